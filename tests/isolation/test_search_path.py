"""Operators and functions that fit a little better than Postgres's own.

A commit runs with its caller's rights, and the caller's triggers and policies find what its
search_path holds. But nothing of Concord's own is taken from there: an operator or function whose
argument types fit more exactly than those of pg_catalog, in a schema of somebody else, would run
with the caller's rights, which may be a superuser's.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.isolation.schedule import (
    Session,
    Story,
    absent,
    create,
    delete,
    group,
    refused,
    request,
    row,
    update,
)

# Every operator and function that the pack speaks of, for many types that Postgres has none for. A
# sequence forgets nothing, whatever is rolled back or caught.
TRAP = """
create schema trap;
grant usage on schema trap to public;
create sequence trap.sprung;
grant all on sequence trap.sprung to public;
do $trap$
declare
  many constant text[] := '{int2,int4,int8,text,varchar,name,bpchar,"\\"char\\"",bool,json,jsonb,
    uuid,oid,regclass,text[],varchar[],name[],int4[],int8[],jsonb[],
    concord_internal.operation[],concord_internal.models[]}';
  few constant text[] := '{int4,int8,text,varchar,name,jsonb,uuid,regclass,text[],name[]}';
  body constant text := $$ language plpgsql as 'begin
    perform pg_catalog.nextval(''trap.sprung''); raise exception ''sprung''; end' $$;
  asks constant text[] := '{=,<>,<,<=,>,>=,~,!~,~~,!~~,@>,<@,?,?&,?|,&&}';
  gives constant text[] := '{||,+,-,*,/,%,&,->,->>,#>,#>>}';
  l text; r text; op text; fn text;
begin
  foreach l in array many loop
    foreach r in array many loop
      execute format('create function trap.says(%s, %s) returns bool', l, r) || body;
      execute format('create function trap.makes(%s, %s) returns text', l, r) || body;
      foreach op in array asks || gives loop
        continue when exists (
          select from pg_operator
           where oprname = op and oprleft = l::regtype and oprright = r::regtype);
        execute format('create operator trap.%s (leftarg = %s, rightarg = %s, function = trap.%s)',
                       op, l, r, case when op = any (gives) then 'makes' else 'says' end);
      end loop;
    end loop;
  end loop;
  for fn in
    select distinct p.proname
      from pg_proc c,
           regexp_matches(c.prosrc || coalesce(pg_get_function_sqlbody(c.oid), ''),
                          '([a-z_0-9]+)\\(', 'g') m
      join pg_proc p on p.proname = m[1] and p.pronamespace = 'pg_catalog'::regnamespace
     where c.pronamespace in ('concord'::regnamespace, 'concord_internal'::regnamespace)
  loop
    foreach l in array many loop
      continue when to_regprocedure(format('pg_catalog.%I(%s)', fn, l)) is not null;
      execute format('create function trap.%I(%s) returns text', fn, l) || body;
    end loop;
    foreach l in array few loop
      foreach r in array few loop
        continue when to_regprocedure(format('pg_catalog.%I(%s,%s)', fn, l, r)) is not null;
        execute format('create function trap.%I(%s, %s) returns text', fn, l, r) || body;
        if fn in ('format', 'concat', 'concat_ws', 'jsonb_build_object') then
          execute format('create function trap.%I(text, %s, %s) returns text', fn, l, r) || body;
          execute format('create function trap.%I(text, %s, text, %s) returns text', fn, l, r)
                  || body;
        end if;
      end loop;
    end loop;
  end loop;
end $trap$;
"""

TABLES = """
create type mood as enum ('calm', 'cross');
create table things (id int primary key, vc varchar(20), nm name, t text, ts text[], js json,
  jb jsonb, u uuid, m mood, rc regclass, at timestamptz, n numeric, fl float8, b bytea, deck text,
  g int generated always as (id * 2) stored);
create table parts (a int, b varchar, c name, d timestamptz, t text, primary key (a, b, c, d));
create table named (id varchar primary key, tenant varchar, t varchar);
create table by_uuid (id uuid primary key default gen_random_uuid(), t text,
  thing int references things on delete cascade);
create table audit (what text);
create function note() returns trigger language plpgsql as $$
begin insert into audit values (tg_op); return new; end $$;
create trigger note before insert or update on things
  for each row execute function note();
insert into things (id, vc, nm, t, ts, js, jb, u, m, rc, at, n, fl, b, deck)
  select g, 'vc', 'nm', 't', '{a,b}', '{}', '{}', gen_random_uuid(), 'calm', 'parts', now(), 1.5, 0,
         'x', 'a'
    from generate_series(1, 9) g;
insert into parts select g, 'b', 'c', '2026-02-03', 't' from generate_series(1, 3) g;
insert into named select g::text, 'acme', 't' from generate_series(1, 3) g;
insert into by_uuid (id, t, thing) values ('00000000-0000-0000-0000-000000000001', 't', 9);
select concord.track('things', groups => array['deck:{deck}', 'vc:{vc}']);
select concord.track('parts', groups => array['a:{a}']);
select concord.track('named', tenant_column => 'tenant');
select concord.track('by_uuid');
"""

EVERY = {
    "vc": "x",
    "nm": "x",
    "t": "x",
    "ts": ["x"],
    "js": {"a": 1},
    "jb": {"a": 1},
    "u": "00000000-0000-0000-0000-000000000002",
    "m": "cross",
    "rc": "public.things",
    "at": "2026-02-03",
    "n": 2,
    "fl": 0.5,
    "b": "\\x00",
    "deck": "b",
}
PART = {"a": 1, "b": "b", "c": "c", "d": "2026-02-03T00:00:00+00:00"}
UUID = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
def trapped(story: Story) -> Iterator[tuple[Story, Session]]:
    """Ana, whose search_path leads through the trap."""
    story.tables(TABLES)
    story.admin().run(TRAP)
    story.raw().run("grant select, insert on audit to app")
    ana = story.actor("ana")
    ana.run("set search_path = trap, public")
    # The trap works.
    set_up = "select count(*) from pg_operator where oprnamespace = 'trap'::regnamespace"
    assert story.value(set_up) > 4000
    with pytest.raises(psycopg.errors.RaiseException, match="sprung"):
        ana.run("select 1::int4 || 'x'::text")
    assert story.value("select is_called from trap.sprung")
    story.admin().run("alter sequence trap.sprung restart")
    yield story, ana
    assert not story.value("select is_called from trap.sprung"), "something in the trap ran"


Trapped = tuple[Story, Session]


def test_commits(trapped: Trapped) -> None:
    """Every kind of operation, over every kind of key."""
    story, ana = trapped
    token = ana.capture()
    ana.commit(request(update("things", 1, t="plain"), read_at=token))
    ana.commit(request(update("things", 1, **EVERY), read_at=ana.capture(), returning=True))
    ana.commit(request(update("parts", PART, t="x"), read_at=token, returning=True, label="l"))
    ana.commit(request(update("named", "1", t="x"), read_at=token, returning=True))
    ana.commit(request(update("by_uuid", UUID, t="x"), read_at=token, returning=True, key="k"))
    ana.commit(request(update("by_uuid", UUID, t="x"), read_at=token, returning=True, key="k"))
    ana.commit(request(create("things", 20, **EVERY), returning=True))
    ana.commit(request({"type": "create", "model": "by_uuid", "data": {"t": "x"}}, returning=True))
    ana.commit(request(create("parts", {**PART, "a": 7}, t="x"), returning=True))
    ana.commit(request(delete("things", 9), delete("named", "3"), read_at=token))
    ana.commit(
        request(
            *(update("things", n, t="many", vc="many") for n in range(2, 6)),
            *(update("parts", {**PART, "a": n}, t="many") for n in (1, 2)),
            *(create("things", n, t="many") for n in range(30, 33)),
            update("things", 6, id=60),
            {**update("things", 0, t="later"), "id": {"$operation": 9}},
            create("things", 33, jb={"$operation": 0}, t={"$operation": 9}),
            delete("things", 7),
            returning=True,
        )
    )
    assert story.value("select count(*) from public.things where t = 'many'") == 7
    # And the caller's own trigger found its table.
    assert story.value("select count(*) from public.audit where what = 'UPDATE'") > 5


def test_where_and_only_changed(trapped: Trapped) -> None:
    _, ana = trapped
    seen = ana.read("things", 1)
    for field, value in seen["data"].items():
        ana.commit(request(update("things", 1, {"where": {field: value}}, t="t")))
    ana.commit(request(update("things", 1, {"where": seen["data"]}, t="t"), returning=True))
    ana.commit(request(delete("parts", PART, {"where": {**PART, "t": "t"}})))
    with refused("precondition_failed"):
        ana.commit(request(update("things", 1, {"where": {"vc": "other"}}, t="x")))
    token = ana.capture()
    echoed = {k: v for k, v in seen["data"].items() if k not in ("id", "g")}
    ana.commit(request(update("things", 1, **echoed), read_at=token, onlyChanged=True))
    ana.commit(request(update("things", 1, **EVERY), read_at=token, onlyChanged=True))


@pytest.mark.parametrize("mode", ["reject", "notify", "overwrite"])
def test_what_is_stale(trapped: Trapped, mode: str) -> None:
    """Conflicts of rows, rows that are gone, groups and absences, in every mode."""
    story, ana = trapped
    token = ana.capture()
    story.psql(
        "update things set t = 'theirs', vc = 'theirs', js = '[]'; update named set t = 'theirs';"
        "update parts set t = 'theirs' where a = 1; delete from parts where a = 2;"
        "insert into things (id, deck) values (70, 'a')"
    )
    asked = (
        update("things", 1, **EVERY),
        update("things", 2, t="theirs", vc="theirs"),
        update("named", "1", t="mine"),
        update("parts", PART, t="mine"),
        delete("things", 3),
    )
    if mode == "reject":
        for one in asked:
            if one["id"] == "2":
                ana.commit(request(one, read_at=token))
                continue
            with refused("stale_context"):
                ana.commit(request(one, read_at=token))
        with refused("stale_context"):
            ana.commit(request(*asked, update("parts", {**PART, "a": 2}, t="x"), read_at=token))
        for premise in (
            row("things", 1, "vc", "t"),
            row("parts", {**PART, "a": 2}),
            row("named", "1"),
            group("deck:a"),
            group("vc:theirs"),
            absent("things", 70),
        ):
            with refused("stale_context"):
                ana.commit(request(update("by_uuid", UUID, t="x"), reads=[premise], read_at=token))
    else:
        receipt = ana.commit(request(*asked, read_at=token, on_stale=mode, returning=True))
        assert receipt["held"] == (4 if mode == "notify" else 0)
    holding = [
        row("things", 8, "deck"),
        row("named", "2", "tenant"),
        group("deck:z"),
        absent("things", 71),
    ]
    ana.commit(request(update("by_uuid", UUID, t="x"), reads=holding, read_at=token))


def test_refusals(trapped: Trapped) -> None:
    """What is wrong is named, in the same words."""
    _, ana = trapped
    for wrong, code, param in (
        (update("things", "x", t="x"), "invalid_request", "operations[0].id"),
        (update("parts", {"a": 1}, t="x"), "invalid_request", "operations[0].id"),
        (update("things", 1, u="x", t="x"), "invalid_request", "operations[0].data.u"),
        (update("things", 1, m="merry"), "invalid_request", "operations[0].data.m"),
        (update("things", 1, nothing=1), "invalid_request", "operations[0].data.nothing"),
        (update("things", 1, g=1), "invalid_request", "operations[0].data.g"),
        (
            update("things", 1, {"where": {"n": "x"}}, t="x"),
            "invalid_request",
            "operations[0].where.n",
        ),
        (create("things", 90, id=91), "invalid_request", "operations[0].data.id"),
        (create("things", 1), "already_exists", "operations[0].id"),
        (update("things", 99, t="x"), "not_found", "operations[0].id"),
        (update("nothing", 1, t="x"), "model_unknown", "operations[0].model"),
    ):
        with refused(code, param):
            ana.commit(request(wrong))
        assert ana.try_commit(request(wrong))["status"] == "rejected"
    for token in ("x", ana.capture() + "0"):
        with refused("token_invalid"):
            ana.commit(request(update("things", 1, t="x"), read_at=token))


def test_readers(trapped: Trapped) -> None:
    """What the caller reads: rows, tokens, histories, changes."""
    story, ana = trapped
    since = ana.capture()
    story.psql("update things set t = 'theirs'; update named set t = 'theirs'")
    ana.commit(request(update("parts", PART, t="x"), label="l"))
    for model, id in (("things", "1"), ("named", "1"), ("by_uuid", UUID)):
        assert ana.read(model, id)["data"] is not None
        ana.run("select * from concord.history(%s, %s)", model, id)
    ana.run("select * from concord.changes(%s)", since)
    ana.run("select * from concord.changes(null)")
    ana.run("select * from concord.models; select * from concord.conflicts")


def test_a_path_that_is_set_by_hand(story: Story) -> None:
    """What a definer function of somebody's asks for runs nothing of its caller's schemas."""
    story.tables(
        "create table cells (d date, n int, primary key (d, n));"
        "insert into cells values ('2024-01-01', 1);"
        "select concord.track('cells')"
    )
    story.admin().run(
        """
        create schema trap; grant all on schema trap to app;
        create schema api; grant usage on schema api to app;
        create function api.look() returns bigint language sql security definer
          set search_path = pg_catalog, pg_temp
          as $$ select count(*) from concord.history('cells', '{"d": "2024-01-01", "n": 1}') $$;
        """
    )
    mallory = story.session("mallory", "app")
    mallory.run("create sequence trap.ran")
    mallory.run(
        "create function trap.evil(pg_catalog.date) returns boolean language sql"
        " as $$ select nextval('trap.ran') > 0 $$;"
        "create domain trap.date as pg_catalog.date check (trap.evil(value))"
    )
    mallory.run("set concord.path = 'trap, pg_catalog'; select api.look()")
    assert story.value("select pg_sequence_last_value('trap.ran')") is None
