"""Every helper that an application role may execute, called directly.

`commit` runs with its caller's rights, so its helpers can be called by the same roles: in any
order, with any arguments. Each must be harmless alone. The helpers are enumerated from the catalog;
a new one fails the first test until it is put where it belongs below, and is then called by the
others.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.isolation.schedule import Session, Story, fails, request, update

# Work out something from their arguments, and look at nothing. The server makes sure: IMMUTABLE.
COMPUTE = """
any_value_columns as_bigint as_column_type as_jsonb as_uuid bad_reference bare_conflict
beside_statement but_fills comment_columns error_codes first_key first_use fits_plainly
format_token group_lock has_reference has_seen held_entries id_in_data idempotency_lock
intersect_tokens is_large json_expression json_object_expression key_data key_expression
key_object key_statement kind_name most_locks newest_changes notification operation_allowed
operation_notification operation_problem own_entries owner_of policy_names premise_problem
record_of reference retyped row_lock rows_by_key rules_of same_json simple_key snapshot_without
stable_text stamp_function stated tenant_lock top_problem trigger_function try_statement
typed_statement unequal_statement with_ids without write_statement
"""

# Run with the caller's own rights.
INVOKE = """
acting_session add_triggers answer beyond_session caller callers_path canonical_id canonical_key
columns_of comparable_fields contradiction deleted_unjudged deletes_unlocked demand_contract
demand_owner demand_pack demand_protection demand_room demand_sight drop_object equality_of
extend_token fail fill_jobs fill_range fills_of first_bad_value first_missing group_expression
hanging_on has_index is_empty is_narrowed is_own is_small judge_request judge_sight judge_token
judge_tokens key_columns_of labels_of live_model live_models live_objects lock_keys lock_request
lock_rows lock_table lock_targets look made_by make_policies match_expression match_statement
may_be_narrowed may_find may_lock models_of_tables moved_places no_jsonb object_definition
observed_now pack_steps pack_todo pack_told parse_request policies_of protect_again protect_table
protection_shown protection_todo proved raise_refusal read_row readable_fields readable_model
refresh_model refusal relations_of resolve_request retire_objects retype_as_jsonb rewrites_rows
row_matches row_values rows_of_nobody rows_statement rows_values run_bounded run_commit run_plain
run_statement run_steps run_whole run_write session_groups session_may shape signature
signature_when_planned track_model try_column try_columns try_values typed_rows typed_values
unequal_fields unfinished_index unknown_column values_statement write_request write_rows
"""

# Run with Concord's rights, and read.
READ = """
bare_relations claimed conflicts_shown demand_idle demand_model demand_owned_model drift_of
group_conflict groups_of history_of is_admin is_service knows_group mints_for_all models_named
moved_models moved_rows needs_horizon objects_of only_left_over out_of_sight owned_model
owned_models owns packs_of packs_shown parse_token plain_context plain_moved policies_know_groups
protection_of protections_shown relations_protected relations_without_triggers replay
row_conflict session_in_force session_may_see_group session_scope sessions_shown setting
settings_shown triggers_made_for visible_models
"""

# Likewise; what they read changes with everybody's work, and says no more than that.
READ_COUNTERS = "current_identity last_delta_seq stats_shown"

# Run with Concord's rights, and write.
WRITE = """
define_model define_protection forget_model forget_object forget_pack forget_protection
forget_row note_object note_pack note_relation note_source record_commit redefine_model
seal_model seal_protection set_paused
"""

GROUPS = {
    "compute": COMPUTE.split(),
    "invoke": INVOKE.split(),
    "read": READ.split() + READ_COUNTERS.split(),
    "write": WRITE.split(),
}

# Slides are shared and mallory may write them. The ledger belongs to several tenants, mallory's
# among them. The diary is another tenant's, and of the hidden table mallory may select nothing.
TABLES = """
create table slides (id int primary key, deck text, title text, body text);
create table ledger (id int primary key, tenant text, amount int);
create table diary (id int primary key, entry text);
create table hidden (id int primary key, deck text, entry text);
insert into slides values (1, 'a', 'one', ''), (2, 'a', 'two', '');
insert into ledger values (1, 'acme', 1), (2, 'beta', 2);
insert into diary values (1, 'dear diary');
insert into hidden values (1, 'a', 'hidden');
select concord.track('slides', groups => array['deck:{deck}']);
select concord.track('ledger', tenant_column => 'tenant', groups => array['book:{tenant}']);
select concord.track('diary', tenant => 'beta', groups => array['diary:{id}']);
select concord.track('hidden', groups => array['secret:{deck}']);
grant select on ledger to app2;
"""


def helpers(story: Story, role: str) -> dict[str, tuple[list[str], bool, str]]:
    """What the role may execute: name to argument types, SECURITY DEFINER, volatility."""
    found = story.admin().run(
        """
        select proname::text, array(select t::regtype::text from unnest(proargtypes) t),
               prosecdef, provolatile::text
          from pg_proc
         where pronamespace = 'concord_internal'::regnamespace
           and has_function_privilege(%s, oid, 'execute')
        """,
        role,
    )
    assert len(found) == len({name for name, *_ in found}), "two helpers of one name"
    return {name: (arguments, definer, how) for name, arguments, definer, how in found}


def test_every_helper_is_known(story: Story) -> None:
    """A new helper belongs into one of the groups above, and a definer not among the computing."""
    found = helpers(story, "app2")
    known = [name for names in GROUPS.values() for name in names]
    assert len(known) == len(set(known)), "in two groups"
    assert sorted(found) == sorted(known)
    for group, names in GROUPS.items():
        for name in names:
            _, definer, how = found[name]
            assert definer == (group in ("read", "write")), f"{name} is not one that {group}s"
            assert group != "compute" or how == "i", f"{name} may look at something"
    assert helpers(story, "plain").keys() <= found.keys()


# --- odd calls ------------------------------------------------------------------------------------


@pytest.fixture
def prey(story: Story) -> Story:
    """Tables with some history by bob, who is of another tenant, and by ana."""
    story.tables(TABLES)
    story.raw().run("revoke all on diary, hidden from app; revoke all on ledger from app")
    story.raw().run("grant select on ledger to app")
    bob, ana = story.actor("bob", tenant="beta"), story.actor("ana", kind="user")
    admin = story.admin()
    ana.commit(request(update("slides", 1, title="ana's"), label="ana's", key="ana's key"))
    token = ana.capture()
    bob.commit(request(update("slides", 2, title="bob's")))
    ana.commit(request(update("slides", 2, title="held"), read_at=token, on_stale="notify"))
    admin.run("select concord.act_as('beta', 'user', 'bob', is_local => false)")
    admin.run("update ledger set amount = 3 where id = 2; update diary set entry = 'bob''s'")
    admin.run("update hidden set entry = 'bob''s'; delete from hidden where id = 7")
    return story


def pool(token: str) -> dict[str, list[str]]:
    """SQL for odd arguments, by type. A type that is not here gets nulls, and a failing test."""
    model = "(concord_internal.models_named('{slides}'))[1]"
    forged = [
        f"""jsonb_populate_record({model}, '{{"rel": "hidden"}}')""",
        f"""jsonb_populate_record({model}, '{{"id": 4, "rel": "concord_internal.deltas"}}')""",
        f"""jsonb_populate_record({model}, '{{"tenant_column": "deck"}}')""",
        f"""jsonb_populate_record({model}, {_injection()})""",
    ]
    models = ["null", model, *forged]
    tokens = ["null", f"concord_internal.parse_token('{token}')", _forged_token()]
    asks = [
        request(update("slides", 2, title="x"), read_at=token),
        request({"type": "delete", "model": "slides", "id": "2"}),
        request({"type": "create", "model": "hidden", "id": "9", "data": {"entry": "x"}}),
    ]
    requests = ["null", *(f"concord_internal.parse_request({_json(ask)})" for ask in asks)]
    literals = [
        "",
        "1",
        "2",
        "slides",
        "hidden",
        "ledger",
        "diary",
        "deck:a",
        "book:beta",
        "secret:a",
        "acme",
        "beta",
        "update",
        "delete",
        "title",
        "ana's key",
        token,
        "x); delete from slides; --",
        "x'); select pg_sleep(9); --",
        "{",
        "no key update",
    ]
    return {
        "text": ["null", *map(_text, literals)],
        "name": ["null", "'title'", "'id'", "'nothing'", _text('x"; drop table slides; --')],
        "integer": ["null", "-1", "0", "1", "2", "3", "4", "2147483647"],
        "bigint": ["null", "-1", "0", "9223372036854775807", "concord_internal.last_delta_seq()"],
        "boolean": ["null", "true", "false"],
        "boolean[]": ["null", "'{}'", "'{t,f}'"],
        '"char"': ["null", "'u'", "'c'", "'t'", "''"],
        "oid": ["null", "0", "'slides'::regclass::oid", "'hidden'::regclass::oid"],
        "xid": ["null", "'3'", "'4294967295'", "'100000'"],
        "regclass": [
            "null",
            "0",
            "'slides'",
            "'hidden'",
            "'pg_class'",
            "'concord_internal.deltas'",
        ],
        "uuid": ["null", "gen_random_uuid()"],
        "bytea": ["null", "'\\x'", "'\\x00'"],
        "xid8": ["null", "'0'", "'3'", "pg_current_xact_id()", "'18446744073709551615'"],
        "pg_snapshot": ["null", "pg_current_snapshot()", "'1:1:'", "'1:9:2,3'"],
        "text[]": [
            "null",
            "'{}'",
            "'{1,2}'",
            "'{slides,hidden,ledger,diary}'",
            "'{title,body}'",
            "array[null]",
            "'{entry}'",
        ],
        "name[]": ["null", "'{}'", "'{id}'", "'{title,nothing}'"],
        "integer[]": ["null", "'{}'", "'{1,2,3,4}'", "array[null]::int[]"],
        "bigint[]": ["null", "'{}'", "'{1,2}'"],
        "jsonb": [
            "null",
            "'null'",
            "'{}'",
            "'[]'",
            "'1'",
            '\'{"title": "x"}\'',
            *map(_json, asks),
            _text('[{"model": 4, "id": "1", "fields": null, "seq": 1}]'),
            _injection(),
        ],
        "json": ["null", "'{}'", "'1'"],
        "jsonb[]": ["null", "'{}'", 'array[\'{"title": "x"}\'::jsonb]'],
        "concord.principal": ["null", "row('beta','user','bob',null)::concord.principal"],
        "concord_internal.models": models,
        "concord_internal.models[]": ["null", *(f"array[{m}]" for m in models)],
        "concord_internal.token": tokens,
        "concord_internal.token[]": ["null", *(f"array[{t}]" for t in tokens)],
        "concord_internal.request": requests,
        "concord_internal.operation": ["null", *(f"({r}).operations[1]" for r in requests[1:])],
        "concord_internal.operation[]": ["null", *(f"({r}).operations" for r in requests[1:])],
        "concord_internal.protections": [
            "null",
            _protection("slides"),
            _protection("hidden"),
            _protection("hidden", predicate="true) with check (true); drop table hidden; --"),
        ],
        "concord_internal.plain_commit": [
            "null",
            f"concord_internal.plain_context({_json(asks[0])})",
            f"jsonb_populate_record(null::concord_internal.plain_commit, {_plain()})",
        ],
    }


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _json(document: Any) -> str:
    return f"{_text(json.dumps(document))}::jsonb"


def _injection() -> str:
    """A model whose column types carry statements: what is built from it runs as its caller."""
    evil = "text); update hidden set entry = 'forged'; delete from concord_internal.deltas; --"
    return _json({"columns": {"id": {"t": evil, "c": "", "g": "", "n": 1, "plain": True}}})


def _forged_token() -> str:
    """One that has seen nothing: a composite can be made without the checksum."""
    return _record(
        "concord_internal.token",
        {"epoch": 1, "xmin": "1", "xmax": "1", "xip": [], "own_xids": [], "own_seqs": []},
    )


def _plain() -> str:
    return _json(
        {
            "model": 4,
            "tenant": "beta",
            "id": "1",
            "field": "entry",
            "value": "forged",
            "lock_timeout": "5 s",
            "call": "update hidden set entry = 'forged' returning entry",
        }
    )


def _protection(table: str, **more: str) -> str:
    document = {"id": 1, "rel": table, "tenant_column": "deck", "delegated": False} | more
    return _record("concord_internal.protections", document)


def _record(type_name: str, fields: dict[str, Any]) -> str:
    return f"jsonb_populate_record(null::{type_name}, {_json(fields)})"


EVERYTHING = """
select jsonb_build_object(
  'deltas', (select md5(coalesce(string_agg(d::text, '|' order by seq), ''))
               from concord_internal.deltas d where actor is distinct from (me)),
  'numbers', (select array_agg(seq order by seq) from concord_internal.deltas
               where actor is distinct from (me)),
  'commits', (select md5(coalesce(string_agg(c::text, '|' order by id), ''))
               from concord_internal.commits c where actor <> (me)),
  'held', (select md5(coalesce(string_agg(h::text, '|' order by commit_id, key), ''))
             from concord_internal.held h where actor <> (me)),
  'models', (select jsonb_agg(m order by id) from concord_internal.models m),
  'group_horizons', (select jsonb_agg(g order by tenant, kind)
                       from concord_internal.group_horizons g),
  'protections', (select jsonb_agg(p) from concord_internal.protections p),
  'floor', (select jsonb_agg(f) from concord_internal.log_floor f),
  'settings', (select jsonb_agg(s) from concord_internal.settings s),
  'trusted', (select jsonb_agg(t) from concord_internal.trusted_logins t),
  'epoch', (select concord_internal.epoch()),
  'functions', (select md5(string_agg(concat(oid, prosrc, proacl), '|' order by oid))
                  from pg_proc where pronamespace = 'concord_internal'::regnamespace),
  'triggers', (select md5(string_agg(concat(oid, tgenabled, tgfoid), '|' order by oid))
                 from pg_trigger),
  'hidden', (select jsonb_agg(h) from hidden h), 'diary', (select jsonb_agg(d) from diary d),
  'ledger', (select jsonb_agg(l order by id) from ledger l))
"""


def everything_but_mine(story: Story, me: str) -> Any:
    return story.value(EVERYTHING.replace("(me)", _text(me)))


CALLS_OF_EACH = 14

# Whatever became of the row: a call may have been a delete that mallory could have written itself.
WRITE_RAW = """
insert into slides (id, body) values (1, '')
  on conflict (id) do update set body = slides.body || '.'
"""


def odd_calls(name: str, types: list[str], token: str, dice: random.Random) -> Iterator[str]:
    arguments = pool(token)
    for n in range(CALLS_OF_EACH if types else 1):
        chosen = ["null" if n == 0 else dice.choice(arguments[kind]) for kind in types]
        listed = ", ".join(f"{a}::{kind}" for a, kind in zip(chosen, types, strict=True))
        yield f"select concord_internal.{name}({listed})"


def as_nobody(story: Story, login: str) -> Session:
    return story.session(login, login)


@pytest.mark.parametrize("who", ["mallory", "app2", "plain"])
def test_odd_calls(prey: Story, who: str) -> None:
    """No forgery: neither the log, nor others' records, nor authorship changes, whatever is called.

    Mallory is a principal, and may write slides; what it writes is its own. The others are nobody.
    Between its calls it writes raw, in the same transaction: no such write becomes a commit's.
    """
    mallory = who == "mallory"
    session = prey.actor("mallory") if mallory else as_nobody(prey, who)
    session.run("set statement_timeout = '20s'")
    me = "mallory" if mallory else who
    token = prey.actor("ana").capture()
    dice = random.Random(f"{who} 20260214")
    allowed = helpers(prey, "app" if mallory else who)
    before = everything_but_mine(prey, me)
    names = sorted(allowed)
    dice.shuffle(names)
    survived = 0
    for name in names:
        session.run("begin")
        if mallory:
            session.run(WRITE_RAW)
        for call in odd_calls(name, allowed[name][0], token, dice):
            session.run("savepoint s")
            try:
                session.run(call)
            except psycopg.Error as error:
                if session.connection.closed or error.sqlstate == "57014":
                    raise
                session.run("rollback to savepoint s")
            else:
                survived += 1
        if mallory:
            session.run(WRITE_RAW)
        session.run("commit")
        assert everything_but_mine(prey, me) == before, f"changed by {name}"
    assert survived > len(names)
    written = prey.admin().run(
        "select kind::text, actor, (concord_internal.commit_of(d)).id"
        " from concord_internal.deltas d where key = '1' and model = 1 and actor = %s",
        me,
    )
    if mallory:
        assert len(written) >= 2 * len(names)
        assert set(written) == {("a", "mallory", None)}
    else:
        assert written == []
        ours = "select count(*) from concord_internal.commits where actor = %s"
        assert prey.value(ours, me) == 0


# --- what they tell -------------------------------------------------------------------------------


def test_what_they_tell(prey: Story) -> None:
    """No door beside the wall: what others do where mallory may not look changes no answer.

    Asked before and after bob works in his own tenant, in his diary, and in a table of which
    mallory may select nothing; by ids and keys that can be guessed.
    """
    mallory, admin = prey.actor("mallory"), prey.admin()
    token = mallory.capture()
    found = helpers(prey, "app")
    calls = [call for name in READ.split() for call in asked(name, found[name][0], token)]
    assert len(calls) > 1000
    first = answers(mallory, calls)
    admin.run("select concord.act_as('beta', 'user', 'bob', is_local => false)")
    admin.run(
        "update ledger set amount = amount + 1 where id = 2; insert into ledger values (4, 'beta');"
        "update diary set entry = 'more'; update hidden set entry = 'more';"
        "insert into hidden values (2, 'a', 'more'); delete from hidden where id = 1;"
        "truncate diary"
    )
    with_key = request(update("diary", 1, entry="x"), key="k")
    admin.run("insert into diary values (1)")
    admin.run("select concord.commit(%s)", Jsonb(with_key))
    told = {
        call: (was, now)
        for call, was, now in zip(calls, first, answers(mallory, calls), strict=True)
        if was != now and not only_that_it_moved(call, now)
    }
    assert told == {}, "\n".join(f"{k}: {v}" for k, v in told.items())


def only_that_it_moved(call: str, now: Any) -> bool:
    """A group moved where mallory may not look: the premise fails, and no more is told."""
    if "group_conflict" not in call or "secret:a" not in call:
        return False
    bare: dict[str, Any] = {
        "by": None,
        "seq": None,
        "changes": [],
        "base": {},
        "fields": [],
        "lost": [],
    }
    answer = json.loads(now[0][0])
    return all(answer[key] == value for key, value in bare.items())


def asked(name: str, types: list[str], token: str) -> Iterator[str]:
    """Every combination of what can be guessed."""
    seen_nothing = _forged_token()
    parsed = f"concord_internal.parse_token('{token}')"
    ask = request(update("ledger", 2, amount=1), read_at=token)
    plain = f"concord_internal.plain_context({_json(ask)})"
    guesses: dict[str, list[str]] = {
        "text": [
            "'1'",
            "'2'",
            "'4'",
            "'ledger'",
            "'diary'",
            "'hidden'",
            "'book:beta'",
            "'secret:a'",
            "'diary:1'",
            "'k'",
            f"'{token}'",
        ],
        "integer": ["1", "2", "3", "4", "5"],
        "integer[]": [
            "'{1,2,3,4}'",
            "'{2}'",
            "'{3}'",
            "'{4}'",
            "'{2,2,2}'",
            "'{3,3,3}'",
            "'{4,4,4}'",
        ],
        "text[]": ["'{1,2,4}'", "'{2}'", "'{amount,entry,ledger,diary,hidden}'", "null"],
        "concord_internal.token": [parsed, seen_nothing],
        "jsonb": [_json(ask), _json(ask["operations"][0])],
        "regclass": ["'ledger'", "'diary'", "'hidden'"],
        "bytea": ["'\\x'"],
        "concord_internal.protections": [
            "null",
            _protection("slides"),
            _protection("hidden"),
            _protection("hidden", predicate="true) with check (true); drop table hidden; --"),
        ],
        "concord_internal.plain_commit": [
            plain,
            _record("concord_internal.plain_commit", {"model": 2}),
            _record("concord_internal.plain_commit", {"model": 4}),
        ],
    }
    for chosen in itertools.product(*(guesses[kind] for kind in types)):
        listed = ", ".join(f"{a}::{kind}" for a, kind in zip(chosen, types, strict=True))
        yield f"select h::text from concord_internal.{name}({listed}) h"


def answers(by: Session, calls: list[str]) -> list[Any]:
    told: list[Any] = []
    for call in calls:
        try:
            told.append(by.run(call))
        except psycopg.Error as error:
            told.append((error.sqlstate, error.diag.message_primary, error.diag.message_detail))
    return told


# --- links ----------------------------------------------------------------------------------------

BY_HAND = (
    "concord_internal.record_commit(gen_random_uuid(), 0, 9000000000000000000, 'looks guarded',"
    " null, null, null, null)"
)


@pytest.fixture
def workshop(prey: Story) -> Session:
    """Mallory, with a schema to make things in."""
    prey.admin().run("create schema workshop; grant all on schema workshop to app")
    return prey.actor("mallory")


def links(story: Story) -> list[tuple[str, Any, Any]]:
    """Of mallory's deltas of slide 1: what they changed, and their commit's label."""
    return [
        (change["before"]["title"], change["commit_id"], change["label"])
        for change in story.history("slides", 1)
        if change["actor"] == "mallory"
    ]


def test_recording_by_hand(prey: Story, workshop: Session) -> None:
    """No forgery: no call by hand, from wherever it is made, makes a commit of a raw write."""
    workshop.run(
        f"""
        create function workshop.f() returns void language plpgsql as $$
        begin perform {BY_HAND}; end $$;
        create function workshop.g() returns bigint language plpgsql as $$
        declare done bigint; begin done := {BY_HAND}; return done; end $$;
        create function workshop.h() returns bigint language sql as $$ select {BY_HAND} $$;
        create function workshop."concord_internal.run_commit(jsonb) line 1 at assignment"()
        returns bigint language plpgsql as $$
        declare done bigint; begin done := {BY_HAND}; return done; end $$;
        create function workshop.run_commit(given jsonb) returns bigint language plpgsql as $$
        declare done bigint; begin done := {BY_HAND}; return done; end $$;
        """
    )
    run_commit = "PL/pgSQL function concord_internal.run_commit(jsonb) line 9 at assignment"
    stacked = f'select {BY_HAND} as "\n{run_commit}"'
    attempts = [
        f"select {BY_HAND}",
        stacked,
        f"do $do$ begin execute {_text(stacked)}; end $do$",
        f"do $do$ begin perform {BY_HAND}; end $do$",
        "select workshop.f()",
        "select workshop.g()",
        "select workshop.h()",
        'select workshop."concord_internal.run_commit(jsonb) line 1 at assignment"()',
        "set local search_path = workshop; select run_commit('{}')",
        "set local search_path = concord_internal, workshop; select workshop.run_commit('{}')",
        "set local search_path = workshop, concord_internal; select workshop.run_commit('{}')",
    ]
    for attempt in attempts:
        workshop.run("begin; update public.slides set title = 'raw' where id = 1; savepoint s")
        try:
            workshop.run(attempt)
        except psycopg.Error:
            workshop.run("rollback to savepoint s")
        workshop.run("update public.slides set title = 'back' where id = 1; commit")
    assert {link[1:] for link in links(prey)} == {(None, None)}


def test_settings_that_commit_uses(prey: Story, workshop: Session) -> None:
    """No forgery: a setting that says "committing" makes its caller wait, and nothing else."""
    settings = [
        name
        for (name,) in prey.admin().run(
            "select distinct m[1] from pg_proc p,"
            " regexp_matches(prosrc, '''(concord\\.[a-z_]+)''', 'g') m"
            " where pronamespace in ('concord'::regnamespace, 'concord_internal'::regnamespace)"
            " and m[1] !~ 'concord\\.(capture|commit|read|principal)$'"
        )
    ]
    assert "concord.committing" in settings
    last = workshop.commit(request(update("slides", 2, title="mine"), label="guarded"))
    for name in settings:
        for value in ("1", "on", last["id"], "label", ""):
            if name == "concord.acting":
                continue  # a trusted login may say who acts, and this one has
            workshop.run("begin")
            workshop.run("select set_config(%s, %s, true)", name, value)
            workshop.run("update slides set title = title || '.' where id = 1")
            workshop.run("commit")
    assert {link[1:] for link in links(prey)} == {(None, None)}


def test_a_raw_write_inside_the_same_statement(prey: Story, workshop: Session) -> None:
    """No forgery: beside a commit in one statement, before it, after it, in its arguments."""
    ask = Jsonb(request(update("slides", 2, title="mine"), label="guarded"))
    workshop.run(
        "with raw as (update slides set title = 'raw' where id = 1 returning 1)"
        " select concord.commit(%s) from raw",
        ask,
    )
    workshop.run(
        "with raw as (update slides set title = 'raw again' where id = 1 returning 1)"
        " select concord.commit(%s || jsonb_build_object('label', (select 'guarded' from raw)))",
        ask,
    )
    workshop.run(
        """
        create function workshop.raw() returns text language plpgsql as $$
        begin update public.slides set title = title || '!' where id = 1; return 'guarded'; end $$
        """
    )
    workshop.run(
        "select workshop.raw(), concord.commit(%s || jsonb_build_object('label', workshop.raw())),"
        " workshop.raw()",
        ask,
    )
    assert len(links(prey)) == 5
    assert {link[1:] for link in links(prey)} == {(None, None)}


def test_an_operator_in_the_search_path(prey: Story, workshop: Session) -> None:
    """No forgery: an operator of mallory's own that writes while the commit compares."""
    workshop.run(
        """
        create function workshop.eq(a int, b int) returns boolean language plpgsql as $$
        begin
          update public.slides set title = title || '!' where id operator(pg_catalog.=) 1;
          return a operator(pg_catalog.=) b;
        end $$;
        create operator workshop.= (leftarg = int, rightarg = int, function = workshop.eq);
        """
    )
    workshop.run("set search_path = workshop, public, pg_catalog")
    for keys in ({}, {"where": {"deck": "a"}}):
        answer = workshop.one(
            "select concord.try_commit(%s)",
            Jsonb(request(update("slides", 2, keys, title="mine"), label="guarded")),
        )
        assert answer["status"] == "rejected"
        assert answer["error"]["code"] == "invalid_request"
        assert answer["error"]["param"] == "search_path"
    assert prey.value("select title from slides where id = 1") == "ana's"  # it was never asked
    workshop.run("set search_path = workshop, public")  # pg_catalog comes first then
    receipt = workshop.one(
        "select concord.commit(%s)", Jsonb(request(update("slides", 2, title="mine")))
    )
    assert receipt["applied"] == 1
    assert links(prey) == []


# --- whose receipt, whose key ---------------------------------------------------------------------


def test_the_receipts_of_others(prey: Story, workshop: Session) -> None:
    """No door beside the wall: replay gives its caller the caller's own receipts."""
    ask = Jsonb(request(update("slides", 1, title="ana's"), label="ana's", key="ana's key"))
    replay = "select concord_internal.replay('ana''s key', %s)"
    assert workshop.one(replay, ask) is None
    assert prey.actor("ana", kind="user").one(replay, ask)["replayed"] is True


def test_rights_on_what_they_are_given(prey: Story, workshop: Session) -> None:
    """No door beside the wall: a forged model leads to tables with the caller's own rights only."""
    columns = {
        "id": {"t": "integer", "c": "", "g": "", "n": 1, "plain": True},
        "entry": {"t": "text", "c": "", "g": "", "n": 3, "plain": True},
    }
    hidden = (
        "jsonb_populate_record((concord_internal.models_named('{slides}'))[1],"
        f" {_json({'rel': 'hidden', 'columns': columns})})"
    )
    for call in (
        f"concord_internal.row_values({hidden}, '1', '{{entry}}', 'acme')",
        f"concord_internal.lock_rows({hidden}, '{{1}}', 'update', 'acme')",
        f"concord_internal.write_rows({hidden}, 'update', '{{entry}}', '{{1}}',"
        " array['{\"entry\": \"forged\"}'::jsonb], 'acme')",
        f"concord_internal.write_rows({hidden}, 'delete', null, '{{1}}', '{{}}', 'acme')",
        f"concord_internal.row_matches(concord_internal.match_statement({hidden}, '{{entry}}',"
        " 'acme'), '1', '{\"entry\": \"x\"}')",
    ):
        with fails("42501"):
            workshop.run(f"select {call}")
