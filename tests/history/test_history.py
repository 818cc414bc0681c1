"""Random histories: many clients, raw writers, column changes, a crash; nothing is wrong.

PYCONCORD_HISTORY=N makes them N times as long. `python -m tests.history --help` runs longer ones.
"""

from __future__ import annotations

import os

import pytest

from tests.history.report import Report
from tests.history.run import check, run, set_up
from tests.support import Database, OwnServer

TIMES = int(os.environ.get("PYCONCORD_HISTORY", "1"))


def assert_sound(report: Report) -> None:
    shown = "\n".join(str(violation) for violation in report.violations[:5])
    assert report.violations == [], f"{len(report.violations)} violations\n{shown}"
    # Not for nothing: things were accepted and refused, and others wrote meanwhile.
    assert report.counts["confirmed"]
    assert report.counts["stale_context"]
    assert report.counts["changes"] > report.counts["confirmed"]


def test_a_history(db: Database) -> None:
    set_up(db.dsn)
    assert_sound(check(db.dsn, run(db.dsn, commits=1500 * TIMES)))


@pytest.mark.crash
def test_a_history_with_column_changes_and_a_crash() -> None:
    with OwnServer() as server:
        database = server.db()
        set_up(database.dsn)

        def crash() -> None:
            server.stop("immediate")
            server.start()

        history = run(database.dsn, commits=1500 * TIMES, ddl=True, crash=crash)
        assert history.crashes == 1
        assert_sound(check(database.dsn, history))
