"""Sessions for some operations and some groups: on a protected table every statement is narrowed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.isolation.schedule import Session, create, delete, fails, group, refused, request, update
from tests.security.wall import Wall

TABLES = """
create table slides (id int primary key, tenant text, deck text, title text);
create table open_slides (id int primary key, tenant text, deck text, title text);
create table loose (id int primary key, tenant text, title text);
insert into slides values (1, 'acme', 'a', 'one'), (2, 'acme', 'b', 'two'), (3, 'acme', null, 'three'), (4, 'zeta', 'a', 'z');
insert into open_slides select * from slides;
insert into loose values (1, 'acme', 'l');
select concord.track('slides', tenant_column => 'tenant', groups => array['deck:{deck}']);
select concord.track('open_slides', tenant_column => 'tenant', groups => array['pack:{deck}']);
select concord.track('loose', tenant_column => 'tenant');
select concord.protect('slides', 'tenant');
select concord.protect('loose', 'tenant');
grant select, insert, update, delete on slides, open_slides, loose to app2;
"""


@pytest.fixture
def decks(story: Wall) -> Wall:
    for statement in TABLES.split(";\n"):
        if statement.strip():
            story.owner().run(statement)
    return story


def narrowed(decks: Wall, operations: list[str] | None, groups: Any) -> Session:
    secret = decks.value(
        "select secret from concord.mint_session('app2', 'agent', 'writer', tenant => 'acme', operations => %s, groups => %s)",
        operations,
        groups,
    )
    made = decks.session("narrowed", "app2")
    made.run("select concord.authenticate(%s, is_local => false)", secret)
    return made


def test_operations_by_any_statement(decks: Wall) -> None:
    writer = narrowed(decks, ["slides.update"], None)
    assert writer.run("select id from slides order by id") == [(1,), (2,), (3,)]
    assert writer.run("update slides set title = 'x' where id = 1 returning id") == [(1,)]
    assert writer.run("delete from slides returning id") == []
    with fails("42501"):
        writer.run("insert into slides (id) values (9)")
    assert writer.run("select * from loose") == []
    reader = narrowed(decks, ["slides.read"], None)
    assert reader.run("update slides set title = 'x' returning id") == []
    assert len(reader.run("select id from slides")) == 3


def test_groups_by_any_statement(decks: Wall) -> None:
    writer = narrowed(decks, None, ["deck:a"])
    assert writer.run("select id from slides") == [(1,)]
    assert writer.run("update slides set title = 'x' returning id") == [(1,)]
    with fails("42501"):
        writer.run("update slides set deck = 'b' where id = 1")
    with fails("42501"):
        writer.run("insert into slides (id, deck) values (9, 'b')")
    with fails("42501"):
        writer.run("insert into slides (id) values (9)")
    writer.run("insert into slides (id, deck) values (9, 'a')")
    assert writer.run("delete from slides returning id") == [(1,), (9,)]
    assert writer.run("select * from loose") == []


def test_groups_in_commits_and_the_log(decks: Wall) -> None:
    writer, other = narrowed(decks, None, ["deck:a"]), decks.bearer("ana")
    token = writer.capture()
    other.run("update slides set title = 'theirs'")
    other.commit(request(update("slides", 2, title="by commit"), label="for deck b"))
    assert writer.read("slides", 1)["data"]["title"] == "theirs"
    assert writer.read("slides", 2)["data"] is None
    with refused("stale_context") as told:
        writer.commit(request(update("slides", 1, title="mine"), read_at=token))
    assert told.notification["baseValues"] == {"title": "one"}
    for operation in (
        update("slides", 2, title="x"),
        delete("slides", 2),
        update("slides", 3, title="x"),
    ):
        for read_at in (token, None):
            with refused("not_found"):
                writer.commit(request(operation, read_at=read_at))
    with fails("42501", "KC014"):
        writer.commit(request(create("slides", 9, deck="b")))
    writer.commit(request(create("slides", 9, deck="a")))
    with refused("forbidden", "reads[0]"):
        writer.commit(
            request(
                update("slides", 1, title="x"), reads=[group("deck:b")], read_at=writer.capture()
            )
        )
    writer.commit(
        request(update("slides", 1, title="x"), reads=[group("deck:a")], read_at=writer.capture())
    )
    assert {
        row[0]
        for row in writer.run("select id from concord.changes(%s) where id is not null", token)
    } == {"1", "9"}
    assert writer.run("select * from concord.history('slides', '2')") == []
    assert len(writer.run("select * from concord.history('slides', '1')")) == 2


@pytest.mark.parametrize("model", ["open_slides", "loose"])
def test_where_no_policy_knows_the_groups(decks: Wall, model: str) -> None:
    """A session with groups keeps to tables whose policies hold it to them."""
    writer = narrowed(decks, None, ["deck:a", "pack:a"])
    with refused("forbidden", "operations[0]"):
        writer.commit(request(update(model, 1, title="x"), read_at=writer.capture()))
    with refused("forbidden"):
        writer.read(model, 1)
    assert writer.run("select * from concord.history(%s, '1')", model) == []


def test_groups_that_changed_since(decks: Wall) -> None:
    decks.owner().run(
        "select concord.track('slides', tenant_column => 'tenant', groups => array['title:{title}'])"
    )
    writer = narrowed(decks, None, ["deck:a", "title:two"])
    assert writer.run("select id from slides") == [(1,)]  # by the groups that the policies know
    with refused("forbidden", "operations[0]"):
        writer.commit(request(update("slides", 1, title="x"), read_at=writer.capture()))
    ((_, _, remedy),) = decks.admin().run(
        "select level, detail, remedy from concord.doctor() where name = 'groups_changed'"
    )
    decks.owner().run(remedy)
    assert writer.run("select id from slides") == [(2,)]


def test_what_can_not_be_minted(decks: Wall) -> None:
    for groups in (["deck"], [":a"], ["deck:"], [None]):
        with refused("invalid_request", "groups"):
            narrowed(decks, None, groups)
    narrowed(decks, None, ["deck:a"])
    assert decks.value("select groups from concord.sessions") == ["deck:a"]
