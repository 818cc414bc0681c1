"""People who mean harm, with the rights of an ordinary login.

None of them may write, change or delete the log, run anything with Concord's rights, or attach its
code to something of their own. Each test has a spy that would leave a trace if it ever ran.
"""

from __future__ import annotations

import psycopg
import pytest

from tests.isolation.schedule import (
    Session,
    Story,
    create,
    delete,
    fails,
    refused,
    request,
    row,
    update,
)

# A spy notes as whom it ran, and tries to write a log row with those rights.
SPY = """
create table ran_as (what text, who name);
grant select, insert on ran_as to public;
create function spy(what text) returns void language plpgsql as $$
begin
  insert into public.ran_as values (what, current_user);
  insert into concord_internal.deltas
    (xid, seq, at, epoch, model, depth, op, kind, tenant, key, fields, actor)
    values (pg_current_xact_id(), 0, now(), 1, 1, 1, 'u', 'u', '', '1', '{forged}', 'victim');
exception when insufficient_privilege then
  null;
end $$;
"""

# A type of the user's own, an array, a composite, a domain and a range of it, whose casts to json,
# jsonb and text spy. A cast of a user's type to json is what to_json calls.
MOODS = (
    SPY
    + """
create type mood as enum ('calm', 'cross');
create function mood_to_json(mood) returns json language plpgsql as $$
begin perform public.spy('json'); return '"forged"'; end $$;
create cast (mood as json) with function mood_to_json(mood);
create function mood_to_jsonb(mood) returns jsonb language plpgsql as $$
begin perform public.spy('jsonb'); return '"forged"'; end $$;
create cast (mood as jsonb) with function mood_to_jsonb(mood);
create function mood_to_text(mood) returns text language plpgsql as $$
begin perform public.spy('text'); return 'forged'; end $$;
create cast (mood as text) with function mood_to_text(mood);
create type pair as (one mood, two text);
create domain grumpy as mood;
create type moods as range (subtype = mood);
create table people (
  name text primary key, m mood, ms mood[], p pair, ps pair[], g grumpy, r moods, note text);
insert into people values
  ('ann', 'calm', '{calm}', row('calm', 'x'), array[row('calm', 'x')::pair], 'calm',
   '[calm,cross]');
insert into people select 'ben', m, ms, p, ps, g, r from people;
create table feelings (m mood primary key, note text);
insert into feelings values ('calm', 'x');
"""
)
OPERATORS = """
create function moods_differ(mood, mood) returns bool language plpgsql as $$
begin perform public.spy('operator'); return false; end $$;
create operator <> (leftarg = mood, rightarg = mood, function = moods_differ);
create operator = (leftarg = mood, rightarg = mood, function = moods_differ);
"""
TRACK_MOODS = """
select concord.track('people', groups => array['mood:{m}', 'note:{note}']);
select concord.track('feelings');
"""
CROSS = {
    "m": "cross",
    "ms": ["cross", None],
    "p": {"one": "cross", "two": "y"},
    "ps": [{"one": "cross", "two": "y"}],
    "g": "cross",
    "r": "[cross,cross]",
}


def ran(story: Story) -> list[tuple[str, str]]:
    return [(what, who) for what, who in story.admin().run("select what, who from ran_as")]


@pytest.mark.parametrize("detail", ["before", "names"])
def test_a_hostile_cast(story: Story, detail: str) -> None:
    """No forgery: no cast and no operator of a user's type runs, as anybody.

    to_jsonb inside a definer function would run the cast with Concord's rights, which forged a log
    row; under a superuser it would run with the superuser's.
    """
    story.tables(MOODS)
    story.psql(TRACK_MOODS.replace("groups =>", f"detail => '{detail}', groups =>"))
    ana, root = story.actor("ana"), story.session("root")
    root.run("select concord.act_as('acme', 'user', 'root', is_local => false)")
    token = ana.capture()

    for by in (story.raw(), story.admin()):
        write_moods(by)
    assert ran(story) == []

    # Commits, with every way in which a value is looked at.
    for by in (ana, root):
        read = by.read("people", "ann")
        assert read["data"]["m"] == "cross"
        by.read("feelings", "calm")
        with refused("stale_context"):
            by.commit(request(update("people", "ann", **CROSS), read_at=token))
        held = by.commit(
            request(delete("people", "ann"), read_at=token, on_stale="notify", returning=True)
        )
        assert held["notifications"][0]["currentValues"]["m"] == "cross"
        by.commit(
            request(
                update("people", "ben", **CROSS),
                read_at=read["readAt"],
                returning=True,
                reads=[row("people", "ann")],
                on_stale="overwrite",
            )
        )
        if detail == "before":
            echoed = {k: read["data"][k] for k in ("m", "note")}
            by.commit(
                request(update("people", "ben", **echoed), read_at=read["readAt"], onlyChanged=True)
            )
        by.commit(request(create("people", "cy", **CROSS), returning=True))
        by.commit(request(delete("people", "cy")))
        by.commit(
            request(update("feelings", "calm", note="mine"), read_at=token, on_stale="notify")
        )
        by.run("select * from concord.history('people', 'ann')")
        by.run("select * from concord.changes(%s)", token)
    assert ran(story) == []
    # A drifted table is logged by a statement that is made on the spot.
    story.psql("alter table people add column another mood default 'calm'")
    story.admin().run("update people set another = 'cross', m = 'calm' where name = 'ann'")
    story.psql("alter table people rename column another to again")
    story.admin().run("update people set again = 'calm', m = 'cross' where name = 'ann'")
    assert ran(story) == []
    forged = "select count(*) from concord_internal.deltas where fields = '{forged}'"
    assert story.value(forged) == 0


def write_moods(by: Session) -> None:
    """Raw writes, of the owner or of a superuser who suspects nothing."""
    by.run("update people set m = 'cross', ms = '{cross}', g = 'cross' where name = 'ann'")
    by.run("update people set p = row('cross', 'y'), ps = '{}', r = 'empty' where name = 'ann'")
    by.run("insert into people (name, m) values ('tmp', 'calm')")
    by.run("delete from people where name = 'tmp'")
    by.run("insert into feelings values ('cross', 'y')")
    by.run("update feelings set m = m, note = 'z'")
    by.run("delete from feelings where note = 'z' and format('%s', m) = 'cross'")


def test_hostile_operators(story: Story) -> None:
    """No forgery: the log compares rows with none of a user type's own operators."""
    story.tables(MOODS + OPERATORS)
    story.psql(TRACK_MOODS)
    for by in (story.raw(), story.admin()):
        by.run("set search_path = public, pg_catalog")
        write_moods(by)
    assert ran(story) == []
    assert [change["op"] for change in story.history("feelings", "cross")] == [
        "delete",
        "update",
        "create",
    ] * 2


def test_a_hostile_condition(story: Story) -> None:
    """No forgery: `where` compares with the caller's own rights, whatever operator that finds."""
    story.tables(MOODS)
    story.psql(TRACK_MOODS)
    ana = story.actor("ana")
    ana.try_commit(request(update("people", "ann", {"where": {"m": "calm"}}, note="x")))
    assert {who for _, who in ran(story)} <= {"app"}


def test_a_domain_that_checks(story: Story) -> None:
    """No forgery: a domain's CHECK runs when a value is made, and only as who makes it."""
    story.tables(
        SPY
        + """
        create function spies(text) returns bool language plpgsql as $$
        begin perform public.spy('check'); return true; end $$;
        create domain checked as text check (spies(value));
        create table checks (id checked primary key, c checked, cs checked[]);
        insert into checks values ('1', 'one', '{one}');
        """
    )
    story.psql("select concord.track('checks', groups => array['c:{c}'])")
    ana = story.actor("ana")
    token = ana.capture()
    story.psql("update checks set c = 'theirs', cs = '{theirs}'")
    story.admin().run("delete from ran_as")
    with refused("stale_context"):
        ana.commit(request(update("checks", "1", c="mine", cs=["mine"]), read_at=token))
    ana.read("checks", "1")
    ana.run("select * from concord.history('checks', '1')")
    assert {who for _, who in ran(story)} <= {"app"}


def test_functions_in_the_way(story: Story) -> None:
    """No forgery: nothing that somebody puts into public, pg_temp or the search path is found."""
    story.tables(SPY + "create table things (id int primary key, t text)")
    names = {
        "concat_ws(text, text)": "text",
        "to_json(text)": "json",
        "hashtextextended(text, int)": "int8",
        "nextval(text)": "int8",
        "has_column_privilege(oid, text, text)": "bool",
        "cardinality(text)": "int",
    }
    owner = story.raw()
    for name, result in names.items():
        owner.run(
            f"create function {name} returns {result} language plpgsql as"
            " $$ begin perform public.spy('shadow'); return null; end $$"
        )
    owner.run(
        "create function equal(text, text) returns bool language plpgsql as"
        " $$ begin perform public.spy('shadow'); return true; end $$;"
        "create operator public.= (leftarg = text, rightarg = text, function = equal)"
    )
    owner.run("select concord.track('things')")
    ana = story.actor("ana")
    for by in (ana, owner):
        by.run("set search_path = public, pg_catalog")
    owner.run("insert into things values (1, 'x')")
    token = ana.capture()
    owner.run("update things set t = 'theirs'")
    story.admin().run("set search_path = public, pg_catalog; update things set t = 'root''s'")
    ana.try_commit(request(update("things", 1, t="x"), read_at=token))
    assert {who for _, who in ran(story)} <= {"app", "owner"}


# --- code that is attached to something else ------------------------------------------------------


@pytest.fixture
def mallory(deck: Story) -> Session:
    """A member of concord_app with a table of its own that looks like the slides."""
    deck.admin().run("grant create on schema public to app2")
    session = deck.session("mallory", "app2")
    session.run("create table mine (id int primary key, deck text, title text, body text)")
    return session


def generated(story: Story) -> list[str]:
    """The trigger functions of all models."""
    found = story.admin().run(
        "select oid::regprocedure::text from pg_proc"
        " where pronamespace = 'concord_internal'::regnamespace"
        " and prorettype = 'trigger'::regtype"
    )
    assert found
    return [name for (name,) in found]


def test_a_generated_trigger_function_on_a_table_of_ones_own(deck: Story, mallory: Session) -> None:
    """No forgery: nobody may execute a generated function, so nobody can attach it.

    Attached to a table of one's own it would write deltas of another's table, by whom one likes.
    """
    owner = deck.raw()
    owner.run("create table others (id int primary key, deck text, title text, body text)")
    for function in generated(deck):
        for by, table in ((mallory, "mine"), (owner, "others")):
            for statement in (
                f"create trigger t after insert on {table} for each statement"
                f" execute function {function}",
                f"create trigger t after insert on {table} referencing new table as new_rows"
                f" for each statement execute function {function}",
                f"create constraint trigger t after insert on {table} for each row"
                f" execute function {function}",
                f"select {function}",
            ):
                with fails("42501", "0A000"):
                    by.run(statement)
            with fails("42501"):
                by.run(f"alter function {function} security invoker")
            with fails("42501"):
                by.run(
                    f"create or replace function {function} returns trigger language plpgsql"
                    " as $$ begin return null; end $$"
                )
    assert deck.value("select count(*) from pg_trigger where tgrelid = 'mine'::regclass") == 0


def test_helpers_that_make_triggers(deck: Story, mallory: Session) -> None:
    """No forgery: the helpers that track calls give nobody more than track would."""
    model = deck.value("select id from concord_internal.models where name = 'slides'")
    for attempt in (
        f"select concord_internal.add_triggers({model}, 'mine')",
        f"select concord_internal.lend_trigger_functions({model})",
        "select concord_internal.seal_model('slides')",
        "select concord_internal.define_model("
        "'slides', 'x', null, null, '{}', '{}', '{}', 'names', '{}')",
        "select concord_internal.forget_model('slides')",
        "select concord_internal.set_paused('slides', true)",
        "select concord.track('slides')",
        "select concord.untrack('slides')",
        "select concord.pause('slides')",
    ):
        with pytest.raises(psycopg.Error):
            mallory.run(attempt)
    # What is in its transaction while somebody tracks their own is not left open after it.
    mallory.run("begin; select concord.track('mine')")
    for function in generated(deck):
        mallory.run("savepoint s")
        with fails("42501"):
            mallory.run(
                "create trigger t after insert on mine for each statement"
                f" execute function {function}"
            )
        mallory.run("rollback to savepoint s")
    mallory.run("rollback")
    assert deck.value("select count(*) from concord_internal.models") == 2


def test_a_table_that_looks_like_a_model(deck: Story, mallory: Session) -> None:
    """No forgery: no copy, no child, no table of the same name writes the model's log."""
    deck.raw().run("grant select on notes, slides to app2")
    before = deck.value("select count(*) from concord_internal.deltas")
    mallory.run("create table like_it (like public.notes including all)")
    mallory.run("insert into like_it values (1, 'forged'); update like_it set text = 'forged'")
    mallory.run("create temp table slides (like public.slides including all)")
    mallory.run("insert into slides values (1, 'a', 'forged')")
    with fails("42501"):
        mallory.run("create table child () inherits (public.slides)")
    assert deck.value("select count(*) from concord_internal.deltas") == before
    # And a commit of the model's name does not go to the temporary table.
    ana = deck.actor("ana")
    ana.run("create temp table slides (like public.slides including all)")
    ana.run("insert into slides values (1, 'a', 'temporary')")
    ana.commit(request(update("slides", 1, title="mine")))
    assert deck.value("select title from public.slides where id = 1") == "mine"
    assert ana.one("select title from pg_temp.slides where id = 1") == "temporary"


# --- the log and whose it is ----------------------------------------------------------------------


def test_the_log_is_nobodys(deck: Story, mallory: Session) -> None:
    """No forgery: no application role holds a privilege on what the log is kept in."""
    deck.psql("update slides set title = 'theirs' where id = 1")
    relations = deck.admin().run(
        "select oid::regclass::text, relkind::text from pg_class"
        " where relnamespace = 'concord_internal'::regnamespace and relkind in ('r', 'p', 'v', 'S')"
    )
    assert len(relations) > 5
    owner, app = deck.raw(), deck.session("app", "app")
    for name, kind in relations:
        asks, privileges = "has_table_privilege", "select,insert,update,delete,truncate"
        if kind == "S":
            asks, privileges = "has_sequence_privilege", "usage,select,update"
        for by in (mallory, owner, app):
            assert not by.one(f"select {asks}(%s, %s)", name, privileges), (by.name, name)
    with fails("42501"):
        mallory.run("delete from concord_internal.deltas")
    with fails("42501"):
        owner.run("truncate concord_internal.deltas")


@pytest.mark.parametrize("login", ["app2", "owner", "plain"])
def test_a_login_that_says_who_it_is(deck: Story, login: str) -> None:
    """No forgery: the settings that a trusted login's identity stands in count for nobody else."""
    deck.raw().run("grant select, update on slides to app2, plain")
    impostor = deck.session("impostor", login)
    for statement in (
        "select concord.act_as('acme', 'user', 'victim')",
        "select concord.act_as('acme', 'user', 'victim', is_local => false)",
    ):
        with refused("forbidden"):
            impostor.run(statement)
    impostor.run("select set_config('concord.acting', E'acme\\x1fuser\\x1fvictim\\x1f', false)")
    assert impostor.one("select (concord.principal()).id") is None
    impostor.run("update slides set title = 'forged' where id = 1")
    (change,) = deck.history("slides", 1)
    assert (change["kind"], change["actor"]) == ("system", login)
    if login == "app2":
        with refused("unauthenticated"):
            impostor.commit(request(update("slides", 1, title="mine")))


def test_the_identity_goes_when_trust_goes(deck: Story) -> None:
    """No forgery: trust is asked anew, also in the middle of a transaction."""
    ana = deck.actor("ana")
    ana.run("begin")
    ana.commit(request(update("slides", 1, title="mine")))
    deck.admin().run("select concord.distrust_login('app')")
    assert ana.try_commit(request(update("slides", 1, title="more")))["error"]["code"] == (
        "unauthenticated"
    )
    ana.run("update slides set title = 'raw' where id = 2")
    ana.run("commit")
    assert [c["actor"] for c in deck.history("slides", 2)] == ["app"]
    assert [c["actor"] for c in deck.history("slides", 1)] == ["ana"]
