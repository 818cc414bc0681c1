"""What an application's own tests are given, in tests of their own."""

from __future__ import annotations

import pytest

from tests.support import Database

pytest_plugins = ["pytester"]

CONFTEST = """
import pytest
pytest_plugins = ["pyconcord.testing"]

@pytest.fixture
def concord_dsn():
    return {dsn!r}
"""
APPLICATION = """
import psycopg
import pytest

import pyconcord
from pyconcord.receipts import Principal
from pyconcord.testing import Interfered

BEN = Principal("acme", "user", "ben")

def test_a_late_save(concord_dsn, interfere):
    with pyconcord.connect(concord_dsn, tenant="acme") as db, db.acting(user="ana") as me:
        slide = me.read("slides", 1)
        interfere("update slides set title = %s where id = 1", ("theirs",), acting=BEN)
        with pytest.raises(pyconcord.StaleContext) as stale:
            me.update(slide, title="mine")
        assert stale.value.notifications[0].written_by.id == "ben"
    assert interfere("select title from slides") == [("theirs",)]

def test_a_lock_of_its_own(concord_dsn, interfere):
    with psycopg.connect(concord_dsn) as connection:
        connection.execute("update slides set title = 'mine'")
        with pytest.raises(Interfered, match="holds a lock"):
            interfere("update slides set title = 'theirs'")
"""
NEW_DATABASE = """
pytest_plugins = ["pyconcord.testing"]

def test_a_database_of_its_own(concord_dsn, interfere):
    assert interfere("select count(*) from concord.models") == [(0,)]
"""


def test_an_applications_tests(db: Database, pytester: pytest.Pytester) -> None:
    db.connect().execute(
        "create table slides (id int primary key, title text);"
        "insert into slides values (1, 'a'); select concord.track('slides')"
    )
    pytester.makeconftest(CONFTEST.format(dsn=db.dsn()))
    pytester.makepyfile(APPLICATION)
    pytester.runpytest_subprocess().assert_outcomes(passed=2)


def test_without_a_database(
    db: Database, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", db.server.dsn())
    pytester.makeconftest(NEW_DATABASE.split("\n\n")[0])
    pytester.makepyfile(NEW_DATABASE.split("\n\n")[1])
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    left = "select count(*) from pg_database where datname ~ '^concord_[0-9a-f]{12}$'"
    assert db.connect().execute(left).fetchone() == (0,)
