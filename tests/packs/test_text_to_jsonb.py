"""Stores that kept JSON as text: what does not parse is told before anything changes."""

from __future__ import annotations

import psycopg
import pytest

from tests.catalog import differences, snapshot
from tests.packs.spreading import Table, own
from tests.packs.test_add_pack import refusal
from tests.support import Database

BAD = [("3", "{'a': 1}"), ("7", ""), ("9", '"\\u0000"')]


@pytest.fixture
def store(table: Table) -> Table:
    table.owner.execute("alter table app.slides add state text not null default '{}'")
    table.owner.execute("update app.slides set state = '{\"n\": ' || id || '}'")
    for id, text in BAD:
        table.owner.execute("update app.slides set state = %s where id = %s", (text, id))
    return table


def told(table: Table, report: str) -> list[tuple[str, str]]:
    rows = table.owner.execute(
        f"select * from concord.text_to_jsonb('app.slides', 'state', {report}) order by 1".encode()
    ).fetchall()
    return [(id, problem) for id, problem in rows]


@pytest.mark.parametrize("report", ["true", "false"])
def test_rows_that_do_not_parse(db: Database, store: Table, report: str) -> None:
    before = snapshot(db.connect(), "app")
    found = told(store, report)
    assert [id for id, _ in found] == [id for id, _ in BAD]
    assert all(problem for _, problem in found)
    assert differences(before, snapshot(db.connect(), "app")) == []


def test_then_it_is_jsonb(db: Database, store: Table) -> None:
    pack = own("state jsonb not null default '{}'")
    with pytest.raises(psycopg.Error, match=r"concord\.text_to_jsonb"):
        store.add(pack)
    store.owner.execute("update app.slides set state = '{}' where id in (3, 7, 9)")
    before = snapshot(db.connect(), "app")
    assert told(store, "true") == []
    assert differences(before, snapshot(db.connect(), "app")) == []
    assert told(store, "false") == []
    assert store.one("select sum((state->>'n')::int) from app.slides") == 5050 - 19
    store.owner.execute("insert into app.slides (id, title) values (0, '')")
    assert store.one("select state::text from app.slides where id = 0") == "{}"
    assert store.add(pack)["kept"] == []
    # What it is already, and what is no text.
    for column in ("state", "id", "nope"):
        with pytest.raises(psycopg.Error) as raised:
            store.one(f"select concord.text_to_jsonb('app.slides', '{column}')")
        assert refusal(raised) == ("invalid_request", "col")


def test_writers_wait_while_it_looks(db: Database, store: Table) -> None:
    """What is read is what is converted: nobody writes text that does not parse in between."""
    with store.owner.transaction():
        told(store, "false")
        other = db.connect("owner")
        other.execute("set lock_timeout = '50 ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute("update app.slides set state = 'no' where id = 1")
