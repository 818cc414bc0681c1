"""The short way of plain commits, where it might answer otherwise than the long way: see `way`."""

from __future__ import annotations

import psycopg
import pytest

from tests.isolation.schedule import Story, refused, request, update

pytestmark = pytest.mark.usefixtures("way")


@pytest.mark.parametrize(
    "own",
    [
        "create table own (id int primary key, n numeric)",
        "create table own (id int, n int, primary key (id)) partition by range (id);"
        "create table own_1 partition of own default",
        "create table own (id int primary key, n int generated always as identity)",
    ],
    ids=["another type", "partitioned", "an identity"],
)
def test_a_tenants_own_model_comes_first(story: Story, own: str) -> None:
    """No write lands in another model's table, whatever the short way can do with either."""
    story.tables(
        f"""
        create table everybodys (id int primary key, n int);
        insert into everybodys values (1, 0);
        {own};
        insert into own (id) values (1);
        select concord.track('everybodys', name => 'counts');
        select concord.track('own', name => 'counts', tenant => 'acme');
        """
    )
    ana = story.actor("ana")
    token = ana.capture()
    try:
        ana.commit(request(update("counts", 1, n=5), read_at=token))
    except psycopg.errors.GeneratedAlways:
        pass
    else:
        assert story.value("select n = 5 from own")
    assert story.value("select n from everybodys") == 0


SWAPS = {
    "tables": (
        "create table one (id int primary key, a text);"
        "create table two (id int primary key, a text);",
        "alter table one rename to gone; alter table two rename to one",
        "gone",
        "one",
    ),
    "schemas": (
        "create schema s1; create schema s2; create table s1.one (id int primary key, a text);"
        "create table s2.one (id int primary key, a text); grant usage on schema s1, s2 to app;"
        "grant all on s1.one, s2.one to app;",
        "lock table s1.one; alter schema s1 rename to gone; alter schema s2 rename to s1",
        "gone.one",
        "s1.one",
    ),
}


@pytest.mark.parametrize("what", SWAPS)
def test_names_that_are_swapped_under_the_wait(story: Story, what: str) -> None:
    """A model is its table, not its name."""
    made, swap, model, other = SWAPS[what]
    story.admin().run(f"grant create on database {story.db.name} to owner")
    first = "s1.one" if what == "schemas" else "one"
    second = "s2.one" if what == "schemas" else "two"
    story.tables(
        f"begin; {made} insert into {first} values (1, 'x'); insert into {second} values (1, 'x');"
        f" commit; select concord.track('{first}', name => 'things')"
    )
    owner, ana = story.raw(), story.actor("ana")
    ana.commit(request(update("things", 1, a="before")))
    token = ana.capture()
    owner.run(f"begin; {swap}")
    ana.start_commit(request(update("things", 1, a="mine"), read_at=token))
    ana.blocked()
    owner.run("commit")
    ana.finish_commit()
    assert story.value(f"select a from {model}") == "mine"
    assert story.value(f"select a from {other}") == "x"


def test_a_locked_table_is_not_waited_for_without_end(deck: Story) -> None:
    deck.configure("lock_timeout", "200 ms")
    owner, ana = deck.raw(), deck.actor("ana")
    owner.run("begin; lock table slides in access exclusive mode")
    ana.start_commit(request(update("slides", 1, title="mine")))
    with pytest.raises(psycopg.errors.LockNotAvailable):
        ana.finish_commit()
    assert ana.one("show lock_timeout") == "0"


NAMES = ("row_key", "c", "written", "ignored", "fits", "many", "by_kind", "by_epoch", "statement")


def test_columns_that_are_called_like_variables(story: Story) -> None:
    story.tables(
        f"create table odd (id int primary key, {', '.join(f'{n} text' for n in NAMES)});"
        "insert into odd values (1); select concord.track('odd')"
    )
    ana = story.actor("ana")
    for name in NAMES:
        token = ana.capture()
        ana.commit(request(update("odd", 1, **{name: "mine"}), read_at=token))
        with refused("stale_context"):
            ana.commit(request(update("odd", 1, **{name: "late"}), read_at=token))


def test_a_session_that_wants_plpgsql_strict(deck: Story) -> None:
    """Checks of PL/pgSQL that any user may turn on find nothing to complain of."""
    ana = deck.actor("ana")
    ana.run("set plpgsql.extra_errors = 'all'; set plpgsql.extra_warnings = 'all'")
    token = ana.capture()
    ana.commit(request(update("slides", 1, title="mine"), read_at=token))
    with refused("stale_context"):
        ana.commit(request(update("slides", 1, title="late"), read_at=token))
    ana.run("update slides set title = 'raw' where id = 2")
    assert ana.read("slides", 2)["data"]["title"] == "raw"


def test_a_trigger_that_changes_the_key(story: Story) -> None:
    """The receipt's id is the row's id after the write."""
    story.tables(
        """
        create table moving (id int primary key, a text);
        insert into moving values (1, 'x');
        create function move() returns trigger language plpgsql as $$
        begin new.id := new.id + 100; return new; end $$;
        create trigger move before update on moving for each row execute function move();
        select concord.track('moving');
        """
    )
    ana = story.actor("ana")
    receipt = ana.commit(request(update("moving", 1, a="y")))
    assert receipt["operations"][0]["id"] == "101"


def test_an_array_of_texts(story: Story) -> None:
    story.tables(
        "create table lists (id int primary key, names varchar(10)[]);"
        "insert into lists values (1);"
        "select concord.track('lists')"
    )
    ana = story.actor("ana")
    ana.commit(request(update("lists", 1, names="{b,c}")))
    assert story.value("select names from lists") == ["b", "c"]
