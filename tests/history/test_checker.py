"""The checker finds nothing in Concord, and what it must in Concord with a mechanism taken out."""

from __future__ import annotations

import pytest

from tests.history.run import check, run, set_up
from tests.history.sabotage import (
    AFTER_A_CRASH,
    MECHANISMS,
    OWN_ENTRIES,
    Mechanism,
    Stage,
)
from tests.support import DURABLE, Database, OwnServer

# Only a commit that waits for it brings WAL to disk: the rest is lost in a crash.
FORGETFUL = {**DURABLE, "wal_writer_delay": "10s", "autovacuum": "off"}


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_a_sound_schedule(db: Database, mechanism: Mechanism) -> None:
    stage = Stage(db.dsn, ())
    mechanism.schedule(stage)
    assert check(db.dsn, stage.history()).violations == []


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
def test_a_missing_mechanism_shows(db: Database, mechanism: Mechanism) -> None:
    stage = Stage(db.dsn, mechanism.cuts)
    mechanism.schedule(stage)
    report = check(db.dsn, stage.history())
    assert mechanism.shows in report.kinds(), [str(v) for v in report.violations]


@pytest.mark.crash
@pytest.mark.parametrize("mechanism", AFTER_A_CRASH, ids=str)
@pytest.mark.parametrize("cut", [False, True], ids=["sound", "cut"])
def test_a_crash(mechanism: Mechanism, cut: bool) -> None:
    with OwnServer(settings=FORGETFUL) as server:
        database = server.db()
        stage = Stage(database.dsn, mechanism.cuts if cut else (), server)
        mechanism.schedule(stage)
        report = check(database.dsn, stage.history())
    if cut:
        assert mechanism.shows in report.kinds(), [str(v) for v in report.violations]
    else:
        assert report.violations == []


def test_a_random_history_finds_missing_own_entries(db: Database) -> None:
    set_up(db.dsn)
    with db.connect() as connection:
        for cut in OWN_ENTRIES:
            cut.apply(connection)
    report = check(db.dsn, run(db.dsn, commits=300, connections=3, writers=1))
    assert "false_alarm" in report.kinds()
