"""DDL that changes rows, or which rows there are, and fires no trigger."""

from __future__ import annotations

import pytest

from pyconcord import install
from tests.isolation.schedule import (
    Session,
    Story,
    create,
    group,
    refused,
    request,
    row,
    update,
)

THINGS = """
create type mood as enum ('glad', 'sad', 'so so');
create domain mood_of_day as mood;
create table things (id int primary key, n int, last int default 1);
create table moods (id mood primary key, text text);
create table boxes (id int primary key, mood mood, day mood_of_day, many mood[], text text);
create table sums (id int primary key, a int, b int, total int generated always as (a + b) stored);
insert into things values (1, 5, 1);
insert into moods values ('glad', '-'), ('sad', '-');
insert into boxes values (1, 'glad', 'glad', '{glad}', '-');
insert into sums values (1, 1, 2);
select concord.track('things');
select concord.track('moods');
select concord.track('boxes', groups => array['mood:{mood}', 'day:{day}']);
select concord.track('sums');
create table notes (id int primary key, text text);
insert into notes values (1, 'first');
select concord.track('notes');
"""

THING = update("things", 1, n=6)
BOX = update("boxes", 1, mood="sad")
SUM = update("sums", 1, a=6)

# What is run, the write that is refused afterwards.
CHANGES_VALUES = {
    "using": ("alter table things alter n type int using n * 2", THING),
    "using, of another column": ("alter table things alter last type int using 9", THING),
    "dropped and added": (
        "alter table things drop column last; alter table things add column last int default 99",
        update("things", 1, last=8),
    ),
    "label of a key": (
        "alter type mood rename value 'sad' to 'blue'",
        update("moods", "glad", text="mine"),
    ),
    "label": ("alter type mood rename value 'glad' to 'happy'", BOX),
    "labels that change places": (
        "alter type mood rename value 'glad' to 'x'; alter type mood rename value 'sad' to 'glad';"
        "alter type mood rename value 'x' to 'sad'",
        BOX,
    ),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("change", CHANGES_VALUES)
def test_ddl_that_changes_values(story: Story, change: str) -> None:
    """Never a guess: refused until refresh, and tokens from before stay refused after it."""
    story.tables(THINGS)
    ana = story.actor("ana")
    statement, write = CHANGES_VALUES[change]
    token = ana.capture()
    ana.commit(request(write, read_at=token))
    token = ana.capture()
    story.psql(statement)
    for each in (token, ana.capture()):
        with refused("model_changed"):
            ana.commit(request(write, read_at=each))
    found = story.admin().run("select distinct code from concord.verify()")
    assert found == [("column_retyped",)]
    story.psql("select concord.refresh()")
    assert story.admin().run("select * from concord.verify()") == []
    with refused("model_changed"):
        ana.commit(request(write, read_at=token))
    assert ana.commit(request(write, read_at=ana.capture()))["applied"] == 1


def set_expression(story: Story, kind: str) -> None:
    if story.db.server.version < (17 if kind == "stored" else 18):
        pytest.skip("no SET EXPRESSION, or no virtual columns")
    story.tables(THINGS)
    if kind == "virtual":
        story.psql(
            "alter table sums add column v int generated always as (a * 2) virtual;"
            "select concord.refresh('sums')"
        )


@pytest.mark.parametrize("kind", ["stored", "virtual"])
def test_another_expression(story: Story, kind: str) -> None:
    """Never a guess: a generated column has other values, and changes with other columns."""
    set_expression(story, kind)
    ana = story.actor("ana")
    column = "total" if kind == "stored" else "v"
    token = ana.capture()
    ask = request(update("notes", 1, text="x"), read_at=token, reads=[row("sums", 1, column)])
    ana.commit(ask)
    story.psql(f"alter table sums alter column {column} set expression as (b * 10)")
    for each in (token, ana.capture()):
        with refused("model_changed"):
            ana.commit({**ask, "readAt": each})
    story.psql("select concord.refresh('sums')")
    with refused("model_changed"):
        ana.commit(ask)
    token = ana.capture()
    ana.commit({**ask, "readAt": token})
    story.psql("update sums set a = 50")
    if kind == "virtual":
        ana.commit({**ask, "readAt": token})
    story.psql("update sums set b = 50")
    with refused("stale_context", "reads[0]"):
        ana.commit({**ask, "readAt": token})


CHANGES_NOTHING = {
    "vacuum full": "vacuum full things",
    "cluster": "cluster things using things_pkey",
    "default": "alter table things alter n set default 7",
    "not null": "alter table things alter n set not null",
    "index": "create index on things (n)",
    "analyze": "analyze things",
    "add": "alter table things add column extra int default 5",
    "rename": "alter table things rename column last to latest",
    "drop": "alter table things drop column last",
    "column grants": "grant select (n) on things to app2",
    "a value more": "alter type mood add value 'cross' before 'sad'",
    "a table of the name": "create table things_2 (like things)",
    "input renamed": "alter table sums rename column b to bb",
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("change", CHANGES_NOTHING)
def test_ddl_that_changes_nothing(story: Story, change: str) -> None:
    """No false alarm: such DDL refuses nobody, and no write after it is missed."""
    story.tables(THINGS)
    ana = story.actor("ana")
    token = ana.capture()
    story.psql(CHANGES_NOTHING[change])
    writes = (THING, BOX, SUM, update("moods", "sad", text="mine"))
    for write in writes:
        assert ana.commit(request(write, read_at=token))["applied"] == 1
    token = ana.capture()
    story.psql(
        "update things set n = 70; update boxes set mood = 'so so'; update sums set a = 70;"
        "update moods set text = 't'"
    )
    for write in writes:
        with refused("stale_context"):
            ana.commit(request(write, read_at=token))


def test_a_group_named_after_a_label(story: Story) -> None:
    """Never a guess: the group's rows were logged under its other name."""
    story.tables(THINGS)
    ana = story.actor("ana")
    token = ana.capture()
    story.psql("update boxes set text = 'theirs'")
    story.psql("alter type mood rename value 'glad' to 'happy'")
    for key in ("mood:happy", "day:happy"):
        with refused("model_changed", "reads[0].group"):
            ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[group(key)]))


# --- inheritance ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("way")
def test_a_child_made_later(story: Story) -> None:
    """Never a guess: a child's rows may have the same id, and are written without the triggers."""
    story.tables(THINGS)
    ana = story.actor("ana")
    ana.commit(request(THING, read_at=ana.capture()))
    story.psql("create table child () inherits (things); insert into child values (2, 5)")
    token = ana.capture()
    story.psql("update child set n = 6")
    with refused("model_changed"):
        ana.commit(request(update("things", 2, n=7), read_at=token))
    with refused("model_changed"):
        ana.commit(request(THING, read_at=ana.capture()))
    assert story.admin().run("select code from concord.verify()") == [("inheritance",)]
    story.psql("drop table child")
    assert ana.commit(request(THING, read_at=ana.capture()))["applied"] == 1


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("how", ["inherits", "partition"])
def test_a_parent_made_later(story: Story, how: str) -> None:
    """Never a guess: what is written through the parent fires the parent's triggers."""
    story.tables(THINGS)
    ana, owner = story.actor("ana"), story.raw("owner")
    ana.commit(request(THING, read_at=ana.capture()))
    if how == "inherits":
        owner.run("create table parent (n int); alter table things inherit parent")
    else:
        owner.run(
            "create table parent (like things including defaults) partition by list (id);"
            "alter table parent attach partition things for values in (1)"
        )
    with refused("model_changed"):
        ana.commit(request(THING, read_at=ana.capture()))


# --- partitions that go and come ------------------------------------------------------------------

PARTED = """
create table parted (id int primary key, n int, deck text) partition by range (id);
create table low partition of parted for values from (0) to (10);
create table high partition of parted for values from (10) to (20);
insert into parted values (1, 1, 'x'), (11, 1, 'x');
select concord.track('parted', groups => array['parted:{deck}']);
create table notes (id int primary key, text text);
insert into notes values (1, 'first');
select concord.track('notes');
"""


def in_group(token: str) -> dict[str, object]:
    return request(update("notes", 1, text="x"), read_at=token, reads=[group("parted:x")])


def gone(ana: Session, token: str, code: str) -> None:
    with refused(code):
        ana.commit(request(update("parted", 1, n=2), read_at=token))
    with refused(code):
        ana.commit(in_group(token))


@pytest.mark.parametrize(
    "goes", ["alter table parted detach partition high", "drop table high"], ids=["detach", "drop"]
)
def test_a_partition_that_goes(story: Story, goes: str) -> None:
    """Never a guess: its rows went with it, and no delta says so."""
    story.tables(PARTED)
    ana = story.actor("ana")
    ana.commit(in_group(ana.capture()))
    token = ana.capture()
    story.psql(goes)
    for each in (token, ana.capture()):
        gone(ana, each, "model_changed")
    codes = "select code from concord.verify() where code <> 'trigger_astray'"
    assert story.admin().run(codes) == [("partitions_changed",)]
    story.psql("select concord.refresh('parted')")
    gone(ana, token, "stale_context")
    assert story.admin().run(codes) == []
    assert ana.commit(in_group(ana.capture()))["applied"] == 1


@pytest.mark.parametrize("by", ["refresh('parted')", "track('parted')"])
def test_a_partition_that_went_and_came(story: Story, by: str) -> None:
    """Never a guess: it was written without the model meanwhile, and looks as it did."""
    story.tables(PARTED)
    ana = story.actor("ana")
    token = ana.capture()
    story.psql("alter table parted detach partition high; alter table high disable trigger user")
    story.psql("update high set n = 50; alter table high enable trigger user")
    story.psql("alter table parted attach partition high for values from (10) to (20)")
    gone(ana, token, "model_changed")
    gone(ana, ana.capture(), "model_changed")
    story.psql(f"select concord.{by}")
    with refused("stale_context or model_changed"):
        ana.commit(request(update("parted", 11, n=2), read_at=token))
    token = ana.capture()
    assert ana.commit(request(update("parted", 11, n=2), read_at=token))["applied"] == 1


def test_a_tracked_table_that_becomes_a_partition(story: Story) -> None:
    """Never a guess: it has triggers of the right names, which log for another model."""
    story.tables(PARTED)
    story.tables(
        "create table other (id int primary key, n int, deck text);"
        "insert into other values (21, 1, 'x'); select concord.track('other')"
    )
    ana = story.actor("ana")
    story.psql("alter table parted attach partition other for values from (20) to (30)")
    token = ana.capture()
    story.psql("update other set n = 50 where id = 21")
    for write in (update("parted", 21, n=2), update("other", 21, n=2)):
        with refused("model_changed"):
            ana.commit(request(write, read_at=token))
    story.psql("select concord.refresh('parted')")
    assert story.value("select array_agg(name order by name) from concord.models") == [
        "notes",
        "parted",
    ]
    assert story.admin().run("select * from concord.verify()") == []
    with refused("stale_context"):
        ana.commit(request(update("parted", 21, n=2), read_at=token))
    token = ana.capture()
    story.psql("update other set n = 51 where id = 21")
    with refused("stale_context") as refusal:
        ana.commit(request(update("parted", 21, n=2), read_at=token))
    assert refusal.fields == ["n"]
    with refused("model_unknown"):
        ana.commit(request(create("other", 22)))


def triggers(story: Story) -> object:
    return story.value("select count(*) from pg_trigger where tgname like 'concord%%'")


def test_untrack_with_a_detached_partition(story: Story) -> None:
    """It comes off again: also from a table that was a partition."""
    story.tables(PARTED)
    story.psql("alter table parted detach partition high")
    story.psql("select concord.untrack('parted'); select concord.untrack('notes')")
    assert triggers(story) == 0
    left = "select count(*) from pg_proc where proname like 'model\\_%%\\_%%'"
    assert story.value(left) == 0
    story.psql("insert into high values (12)")


def test_untrack_with_a_partition_that_is_somebody_elses(story: Story) -> None:
    """It comes off as far as its owner may take it, says what is left, and what is left sleeps."""
    story.tables(PARTED)
    admin, owner = story.admin(), story.raw("owner")
    story.psql("alter table parted detach partition high")
    admin.run("alter table high owner to plain")
    told: list[str] = []
    owner.connection.add_notice_handler(
        lambda notice: told.append(f"{notice.message_primary} {notice.message_hint}")
    )
    owner.run("select concord.untrack('parted')")
    assert triggers(story) == 8  # of high and of notes
    assert "drop trigger concord_insert on high;" in "".join(told)
    before = story.value("select count(*) from concord_internal.deltas")
    other = story.session("other", "plain")
    other.run("insert into high values (12); update high set n = 3; truncate high")
    assert story.value("select count(*) from concord_internal.deltas") == before
    found = admin.run("select code, remedy from concord.verify()")
    assert {code for code, _ in found} == {"trigger_left"}
    with refused("forbidden"):
        owner.run("select concord.untrack('high')")
    other.run("select concord.untrack('high')")
    assert triggers(story) == 4
    with refused("model_unknown"):
        other.run("select concord.untrack('high')")
    admin.run("select concord.maintain()")
    assert story.value("select count(*) from pg_proc where proname like 'model\\_1\\_%%'") == 0


def test_uninstall_with_a_detached_partition(story: Story) -> None:
    """It comes off again: the table that was a partition is not taken for a model."""
    story.tables(PARTED)
    story.psql("alter table parted detach partition high")
    with story.db.connect(autocommit=False) as connection:
        install.uninstall(connection, force=True)
    assert triggers(story) == 0
    story.psql("insert into high values (12)")


def test_a_table_dropped_beside_a_detached_partition(story: Story) -> None:
    """Late maintenance breaks nothing: what the detached one still uses stays, and sleeps."""
    story.tables(PARTED)
    story.psql("alter table parted detach partition high; drop table parted")
    story.psql("select concord.track('notes'); insert into high values (12)")
    story.admin().run("select concord.maintain()")
    story.psql("select concord.untrack('high')")
    assert triggers(story) == 4
