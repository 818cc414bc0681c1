"""Backfills of which concord.bulk() lets the log hold one change of the whole model."""

from __future__ import annotations

import pytest

from tests.isolation.schedule import (
    Session,
    Story,
    delete,
    group,
    refused,
    request,
    row,
    update,
)

TABLES = """
create table pages (id int primary key, deck text, title text, body text, size int,
                    twice int generated always as (size * 2) stored);
insert into pages select n, 'd', 'title ' || n, 'body', n from generate_series(1, 9) n;
select concord.track('pages', groups => array['deck:{deck}'], detail => 'before');
"""
LOGGED = """
select coalesce(key, ''), coalesce(fields, '') from concord_internal.deltas
 where op = 'u' and seq > %s order by seq
"""


@pytest.fixture
def pages(story: Story) -> Story:
    story.tables(TABLES)
    return story


@pytest.fixture
def owner(pages: Story) -> Session:
    return pages.raw("owner")


def backfill(owner: Session, *statements: str, fields: str = "{size,twice}") -> None:
    owner.run("begin")
    owner.run("select concord.bulk('pages', %s::name[])", fields)
    for statement in statements:
        owner.run(statement)
    owner.run("commit")


def logged(story: Story, since: int) -> list[tuple[str, str]]:
    clerk = story.admin()
    return [(key, fields) for key, fields in clerk.run(LOGGED, since)]


def last(story: Story) -> int:
    seq = story.value("select coalesce(max(seq), 0) from concord_internal.deltas")
    assert isinstance(seq, int)
    return seq


def test_one_change_for_all_rows(pages: Story, owner: Session) -> None:
    """Never silent, never one by one: and its fields say what is stale."""
    ana, since = pages.actor("ana"), last(pages)
    token = ana.capture()
    backfill(owner, "update pages set size = size + 1")
    assert logged(pages, since) == [("", "{size,twice}")]
    with refused("stale_context") as told:
        ana.commit(request(update("pages", 1, size=7, title="mine"), read_at=token))
    assert told.fields == ["size"]
    assert told.notification["currentValues"]["size"] == 2
    assert told.notification["baseValues"] == {"title": "title 1"}  # it holds no values
    with refused("stale_context"):
        ana.commit(request(delete("pages", 1), read_at=token))
    with refused("stale_context", "reads[0]"):
        ana.commit(request(update("pages", 2, title="x"), read_at=token, reads=[row("pages", 1)]))
    with refused("stale_context", "reads[0]"):
        ana.commit(request(update("pages", 2, title="x"), read_at=token, reads=[group("deck:d")]))


def test_other_fields_go_on(pages: Story, owner: Session) -> None:
    """No false alarm in what the backfill did not touch."""
    ana = pages.actor("ana")
    token = ana.capture()
    backfill(owner, "update pages set size = size + 1")
    premise = row("pages", 2, "title", "body")
    receipt = ana.commit(request(update("pages", 1, title="mine"), read_at=token, reads=[premise]))
    assert receipt["applied"] == 1
    assert ana.commit(request(update("pages", 3, size=4), read_at=token))["applied"] == 1  # is so
    fresh = ana.capture()
    assert ana.commit(request(update("pages", 1, size=7), read_at=fresh))["applied"] == 1


def test_history_and_the_feed_say_so(pages: Story, owner: Session) -> None:
    """Coarse: without an id and without values, with its fields, of nobody's rows in particular."""
    ana = pages.actor("ana")
    position = ana.one("select next_token from concord.changes(null) order by sync_id desc limit 1")
    backfill(owner, "update pages set size = size + 1")
    for told in (
        pages.history("pages", 1)[0],
        *[
            change
            for (change,) in ana.run("select to_jsonb(c) from concord.changes(%s) c", position)
            if change["op"] != "checkpoint"
        ],
    ):
        assert (told["id"], told["op"], told["fields"]) == (None, "update", ["size", "twice"])
        assert told["before"] is None
        assert told["actor"] == "owner"


def test_what_else_changed_is_logged_row_by_row(pages: Story, owner: Session) -> None:
    """Never silent: a trigger's own column, a key, a group, other statements."""
    since = last(pages)
    backfill(
        owner,
        "update pages set size = size + 1, body = case id when 2 then 'new' else body end",
        "update pages set deck = 'e', size = 0 where id in (3, 4)",
        "update pages set id = id + 100, size = 0 where id in (5, 6)",
        "update pages set size = 1 where id = 7",
        "update pages set body = 'x' where id in (8, 9)",
    )
    row_by_row = [each for each in logged(pages, since) if each[0]]
    assert [each for each in row_by_row if each[0] not in "56"] == [
        ("2", "{body,size,twice}"),
        ("3", "{deck,size,twice}"),
        ("4", "{deck,size,twice}"),
        ("7", "{size,twice}"),
        ("8", "{body}"),
        ("9", "{body}"),
    ]
    assert next(each["op"] for each in pages.history("pages", 5) if each["id"]) == "delete"
    assert [change["op"] for change in pages.history("pages", 105) if change["id"]] == ["create"]


def test_a_generated_column_that_was_not_named(pages: Story, owner: Session) -> None:
    since = last(pages)
    backfill(owner, "update pages set size = size + 1 where id < 3", fields="{size}")
    assert logged(pages, since)[:2] == [("1", "{size,twice}"), ("2", "{size,twice}")]


@pytest.mark.parametrize("end", ["commit", "rollback", "rollback to s; commit"])
def test_it_ends_with_the_transaction(pages: Story, owner: Session, end: str) -> None:
    """Never silent: nor with the savepoint in which it was said."""
    owner.run("begin; savepoint s; select concord.bulk('pages', '{size,twice}')")
    if end.startswith("rollback to"):
        owner.run("rollback to s; update pages set size = 0 where id < 3; commit")
    else:
        owner.run(f"{end}; update pages set size = 0 where id < 3")
    assert [key for key, _ in logged(pages, 0)] == ["1", "2"]


def test_who_says_so_by_hand_is_not_believed(pages: Story, owner: Session) -> None:
    """Nobody else's writes: the setting alone leaves nothing out of the log."""
    ana = pages.actor("ana")
    owner.run("begin; select concord.bulk('pages', '{size,twice}'); commit")
    ana.run("begin; select set_config('concord.bulk', 'said', true)")
    ana.run("update pages set size = 0 where id < 3")
    ana.run("commit")
    assert [key for key, _ in logged(pages, 0)] == ["1", "2"]
    mallory = pages.actor("mallory")
    with refused("forbidden"):
        mallory.run("select concord.bulk('pages', '{size}')")


def test_a_token_from_within(pages: Story) -> None:
    """A transaction's own token has seen what came before it, and not what came after."""
    owner = pages.admin()
    owner.run("select concord.act_as('acme', 'system', 'backfill', is_local => false)")
    owner.run("begin; select concord.bulk('pages', '{size,twice}')")
    owner.run("update pages set size = 10")
    receipt = owner.commit(request(update("pages", 1, title="first")))
    owner.run("update pages set size = 20")
    owner.run("commit")
    later = pages.actor("later")
    with refused("stale_context"):
        later.commit(request(update("pages", 2, size=1), read_at=receipt["readAt"]))
    ana = pages.actor("ana")
    owner.run("begin; select concord.bulk('pages', '{size,twice}')")
    owner.run("update pages set size = 30")
    receipt = owner.commit(request(update("pages", 1, title="second")))
    owner.run("commit")
    done = ana.commit(request(update("pages", 2, size=1), read_at=receipt["readAt"]))
    assert done["applied"] == 1


def test_only_changed_does_not_guess(pages: Story, owner: Session) -> None:
    """Never a guess: what a row held before the backfill is not told by what it held after."""
    ana, raw = pages.actor("ana"), pages.raw()
    token = ana.capture()  # size is 1
    backfill(owner, "update pages set size = 5")
    raw.run("update pages set size = 9 where id = 1")  # the log has: it was 5
    ask = update("pages", 1, size=5, title="title 1")
    with refused("stale_context") as told:
        ana.commit(request(ask, read_at=token, onlyChanged=True))
    assert told.fields == ["size"]
    assert "size" not in told.notification["baseValues"]
    backfill(owner, "update pages set size = 8")
    with refused("stale_context"):
        ana.commit(request(ask, read_at=token, onlyChanged=True))
    raw.run("update pages set size = 5 where id = 1")
    token = ana.capture()
    raw.run("update pages set size = 9 where id = 1")
    backfill(owner, "update pages set size = 8")
    receipt = ana.commit(request(ask, read_at=token, onlyChanged=True))
    assert (receipt["applied"], receipt["unchanged"]) == (0, 1)  # that was told before


def test_many_of_them(pages: Story, owner: Session) -> None:
    """However many there are, every field of every one of them counts."""
    ana = pages.actor("ana")
    token = ana.capture()
    backfill(owner, "update pages set body = 'new'", fields="{body}")
    backfill(owner, *(f"update pages set size = {n} where id < 3" for n in range(50, 110)))
    with refused("stale_context") as told:
        ana.commit(request(update("pages", 1, body="mine", size=1), read_at=token))
    assert told.fields == ["body", "size"]


def test_in_a_partition_and_after_a_new_column(story: Story) -> None:
    story.tables(
        """
        create table p (id int primary key, a int, b int) partition by range (id);
        create table p1 partition of p for values from (0) to (100);
        insert into p select n, n, n from generate_series(1, 9) n;
        select concord.track('p');
        """
    )
    owner = story.raw("owner")
    owner.run("begin; select concord.bulk('p', '{a}')")
    owner.run("update p set a = 0; update p1 set a = 1; alter table p add c int")
    owner.run("update p set a = 2; update p set c = 1 where id < 3; commit")
    assert logged(story, 0) == [("", "{a}")] * 3 + [("1", "{c}"), ("2", "{c}"), ("", "{a}")]


@pytest.mark.parametrize("fields", ["{}", "{nothing}", "{id}", "{size,deck}", "{NULL}", None])
def test_fields_that_will_not_do(pages: Story, owner: Session, fields: str | None) -> None:
    with refused("invalid_request", "fields"):
        owner.run("select concord.bulk('pages', %s::name[])", fields)


def test_tables_that_are_not_tracked(pages: Story, owner: Session) -> None:
    owner.run("create table other (id int primary key)")
    with refused("model_unknown", "rel"):
        owner.run("select concord.bulk('other', '{id}')")
