"""What is written, compared and told of values, whatever their types; and what ids become."""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.isolation.schedule import (
    Receipt,
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

# --- the same, to the bit -------------------------------------------------------------------------

ALIKE = """
create type pair as (a json, b int);
create table alike (id int primary key, f float8, fs float8[], arr int[], js json, n numeric,
  p pair, pt point, t text, hidden text);
insert into alike values (1, 0, '{0}', '{1,2}', '{"a": 2}', 3, row('{}', 1), '(1,1)', 'x', 'h');
select concord.track('alike');
"""


def unequal(by: Session, id: object, data: dict[str, Any], *fields: str) -> list[str] | None:
    found: list[str] | None = by.one(
        "select concord_internal.unequal_fields(m, %s, %s, %s, 'acme')"
        " from unnest(concord_internal.models_named('{alike}')) m",
        str(id),
        Jsonb(data),
        list(fields or data),
    )
    return found


@pytest.mark.parametrize(
    ("column", "theirs", "mine"),
    [
        ("f", "-0", 0),
        ("fs", "{-0}", [0]),
        ("arr", "[5:6]={1,2}", [1, 2]),
        ("js", '{"a":1,"a":2}', {"a": 2}),
        ("n", "1.0", 1),
        ("p", "({},2)", {"a": {}, "b": 1}),
        ("pt", "(1,2)", "(1,1)"),
        ("t", "x ", "x"),
    ],
)
def test_what_looks_alike_is_not_the_same(
    story: Story, column: str, theirs: str, mine: object
) -> None:
    """No lost update: JSON drops the sign of zero, an array's bounds and a key that comes twice."""
    story.tables(ALIKE)
    ana = story.actor("ana")
    token = ana.capture()
    story.admin().run(f"update alike set {column} = %s", theirs)
    assert unequal(ana, 1, {column: mine}) == [column]
    with refused("stale_context"):
        ana.commit(request(update("alike", 1, **{column: mine}), read_at=token))
    ana.commit(request(update("alike", 1, **{column: mine})))
    assert unequal(ana, 1, {column: mine}) == []


def test_which_fields_are_unequal(story: Story) -> None:
    """Nulls, what the caller may not read, what is not known yet; and no row."""
    story.tables(ALIKE)
    story.raw().run(
        "revoke select on alike from app; grant select (id, f, arr, js, n, t) on alike to app"
    )
    ana = story.actor("ana")
    data = {"t": "y", "hidden": "h", "arr": [1, 2], "n": {"$operation": 0}, "f": None}
    assert unequal(ana, 1, data, "f", "hidden", "arr", "t", "n") == ["f", "hidden", "t", "n"]
    assert unequal(ana, 1, {"hidden": "h"}) == ["hidden"]
    assert unequal(ana, 2, data) is None
    assert unequal(ana, 2, {"hidden": "h"}) is None
    story.psql("update alike set t = null")
    assert unequal(ana, 1, {"t": None}) == []


# --- references -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["$operation", ["$operation"], {"$operation": "x"}, {"$operation": 0, "and": 1}]
)
@pytest.mark.parametrize("model", ["texts", "documents"])
def test_data_that_speaks_of_operations(story: Story, model: str, value: Any) -> None:
    """Only an object of that one key and a number is a reference; everything else is data."""
    story.tables(
        "create table texts (id int primary key, v text);"
        "create table documents (id int primary key, v jsonb);"
        "insert into texts values (1); insert into documents values (1);"
        "select concord.track('texts'); select concord.track('documents');"
    )
    ana = story.actor("ana")
    receipt = ana.commit(request(update(model, 1, v=value), create(model, 2, v=value)))
    assert receipt["applied"] == 2
    for (stored,) in ana.run(f"select v from {model}"):
        as_text = model == "texts" and not isinstance(value, str)
        assert (json.loads(stored) if as_text else stored) == value
    if model == "documents":
        found = update(model, 1, {"where": {"v": {"$operation": "x"}}}, v=1)
        if value == {"$operation": "x"}:
            ana.commit(request(found))
        else:
            with refused("precondition_failed"):
                ana.commit(request(found))
        # In "where" there are no references at all.
        ana.commit(request(update(model, 2, v={"x": {"$operation": 7}})))
        ana.commit(
            request(update(model, 2, {"where": {"v": {"x": {"$operation": 7}}}}, v="deeper"))
        )


@pytest.mark.parametrize("number", [1, 2, -1, 1.5, 1e300, 10**40])
def test_references_to_nothing(deck: Story, number: float) -> None:
    """To itself, to a later one, to no place at all: by path, before anything is written."""
    ana = deck.actor("ana")
    here = {"$operation": number}
    for wrong, param in (
        (create("slides", 9, title=here), "operations[1].data.title"),
        (update("slides", 2, title=here), "operations[1].data.title"),
        ({**update("slides", 2, title="x"), "id": here}, "operations[1].id"),
        ({**delete("slides", 2), "id": here}, "operations[1].id"),
    ):
        ask = Jsonb(request(update("slides", 1, title="x"), wrong))
        with refused("invalid_request", param):
            ana.run("select concord.commit(%s)", ask)
    assert deck.value("select title from slides where id = 1") == "one"


# --- what a type refuses --------------------------------------------------------------------------

REFUSING = """
create domain even as int check (value % 2 = 0);
create domain given as text not null;
create function says_no(text) returns boolean language plpgsql as $$
begin
  if $1 = 'bad' then raise sqlstate 'ZZ123' using message = 'no'; end if;
  return true;
end $$;
create domain picky as text check (says_no(value));
create type mood as enum ('calm', 'cross');
create table refusing (id int primary key, tq tsquery, jp jsonpath, tv tsvector, rt regtype,
  rc regclass, rp regproc, e even, g given default '', p picky, m mood, x xml, i int, f float8,
  u uuid, es even[], inet inet, r int4range, l pg_lsn, vc varchar(3), t text);
insert into refusing (id) values (1);
create table by_even (id even primary key, t text);
create table by_picky (a picky, b int, t text, primary key (a, b));
select concord.track('refusing'); select concord.track('by_even'); select concord.track('by_picky');
"""

BAD = {
    "tq": "a &",
    "jp": "$..[",
    "tv": "'a",
    "rt": "foo bar baz (",
    "rc": "a.b.c.d",
    "rp": "max",
    "e": 3,
    "g": None,
    "p": "bad",
    "m": "merry",
    "x": "<a",
    "i": "one",
    "f": "1e400",
    "u": "x",
    "es": [2, 3],
    "inet": "x",
    "r": "[2,1]",
    "l": "zz",
    "vc": "long",
}


@pytest.mark.parametrize("column", BAD)
def test_a_value_that_its_type_refuses(story: Story, column: str) -> None:
    """Whatever class of error the type chooses: invalid_request, by path."""
    story.tables(REFUSING)
    ana = story.actor("ana")
    value = {"t": "fine", column: BAD[column]}
    path = f"operations[1].data.{column}"
    with refused("invalid_request", path):
        ana.commit(request(update("refusing", 1, t="x"), update("refusing", 1, **value)))
    with refused("invalid_request", path):
        ana.commit(request(update("refusing", 1, t="x"), create("refusing", 2, **value)))
    if BAD[column] is not None:
        with refused("invalid_request", f"operations[0].where.{column}"):
            ana.commit(request(update("refusing", 1, {"where": value}, t="x")))
    assert story.value("select t from refusing where id = 1") is None


def test_an_id_that_its_type_refuses(story: Story) -> None:
    """In operations, premises and reads."""
    story.tables(REFUSING)
    ana = story.actor("ana")
    for model, id in (
        ("by_even", "3"),
        ("by_picky", {"a": "bad", "b": 1}),
        ("by_picky", {"a": "x"}),
        ("by_picky", {"a": None, "b": 1}),
        ("refusing", "9999999999"),
        ("refusing", "NaN"),
    ):
        with refused("invalid_request", "operations[0].id"):
            ana.commit(request(update(model, id, t="x")))
        ask = request(update("refusing", 1, t="x"), reads=[row(model, id)], read_at=ana.capture())
        with refused("invalid_request", "reads[0].id"):
            ana.commit(ask)
        for asked in ("select concord.read(%s, %s)", "select concord.history(%s, %s)"):
            with refused("invalid_request", "id"):
                ana.run(asked, model, json.dumps(id) if isinstance(id, dict) else id)


def test_what_no_type_refused_passes(story: Story) -> None:
    """Contention is Postgres's own, also when it comes to light while values are tried."""
    story.tables(
        """
        create table busy (id int primary key);
        create function waits(text) returns boolean language plpgsql as $$
        begin lock table busy in access exclusive mode nowait; return true; end $$;
        create domain waiting as text check (waits(value));
        create table things (id int primary key, w waiting);
        insert into things values (1, null);
        select concord.track('things');
        """
    )
    story.admin().run("grant all on busy to app")
    ana, other = story.actor("ana"), story.raw()
    other.run("begin; lock table busy in access share mode")
    with fails("55P03"):
        ana.commit(request(update("things", 1, w="x")))
    other.run("commit")
    assert ana.commit(request(update("things", 1, w="x")))["applied"] == 1


# --- where ----------------------------------------------------------------------------------------

ODD = """
create type pair as (a json, b int);
create type plain_pair as (a text, b int);
create domain spot as point;
create type mood as enum ('calm', 'cross');
create table odd (id int primary key, t text,
  jss json[], pts point[], p pair, ps pair[], pp plain_pair, jp jsonpath, m money,
  tv tsvector, bx box, mr int4multirange, ci circle, s spot, js json, jb jsonb, fl float8,
  rc regclass, e mood, es mood[], vc varchar(9), bp char(4), iv interval, bits bit(3), nm name,
  ip cidr, tid tid, snap pg_snapshot);
insert into odd values (1, '',
  array['{}'::json], array['(1,1)'::point], row('{}', 1),
  array[row('{}', 1)::pair], row('x', 1), '$.a', '1.5', 'a b', '(1,1),(0,0)', '{[1,2)}',
  '<(0,0),1>', '(1,1)', '{"b": 1, "a": 2}', '{"a": 1}', -0.0, 'odd', 'calm', '{calm}', 'vc', 'bp',
  '1 day', '101',
  'nm', '10.0.0.0/8', '(0,1)', '10:20:10,14');
insert into odd (id, t) values (2, '');
select concord.track('odd');
"""


def test_where_compares_any_type(story: Story) -> None:
    """By the type's equality, by image where it has none; what was read always matches, an odd
    type is never an error, and null matches null."""
    story.tables(ODD)
    ana = story.actor("ana")
    seen = ana.read("odd", 1)["data"]
    assert len(seen) == 28
    wrong: dict[str, Any] = {
        "jss": ["[]"],
        "pts": ["(1,2)"],
        "p": {"a": [], "b": 1},
        "ps": [{"a": {}, "b": 2}],
        "pp": {"a": "y", "b": 1},
        "jp": "$.b",
        "bx": "(3,1),(2,0)",  # of the same area
        "js": {"a": 2},
        "s": "(0,0)",
        "vc": "x",
        "e": "cross",
    }
    for field, value in seen.items():
        if field == "id":
            continue
        ana.commit(request(update("odd", 1, {"where": {field: value}}, t="")))
        ana.commit(
            request(update("odd", 2, {"where": {field: "" if field == "t" else None}}, t=""))
        )
        with refused("precondition_failed"):
            ana.commit(request(update("odd", 1, {"where": {field: wrong.get(field)}}, t="")))
        if field != "t":
            with refused("precondition_failed"):
                ana.commit(request(update("odd", 2, {"where": {field: value}}, t="")))
    # By equality, where there is one.
    same = {"fl": 0, "js": {"a": 2, "b": 1}, "iv": "24:00:00", "bp": "bp  "}
    assert ana.commit(request(update("odd", 1, {"where": same}, t="")))["applied"] == 1


def test_where_meets_json_that_jsonb_refuses(story: Story) -> None:
    """It does not match what a request can name, and is no error."""
    story.tables(ODD)
    ana = story.actor("ana")
    for poison in (r'{"a": "\u0000"}', '{"a": 1e999999}'):
        story.admin().run("update odd set js = %s where id = 1", poison)
        with refused("precondition_failed"):
            ana.commit(request(update("odd", 1, {"where": {"js": {"a": 1}}}, t="")))


# --- ids ------------------------------------------------------------------------------------------

KEYS = """
create table things (id int primary key, t text, r jsonb);
create table parts (a int, b text, t text, primary key (a, b));
insert into things values (1, 'one'), (2, 'two');
insert into parts values (1, 'x', 'one');
select concord.track('things'); select concord.track('parts');
"""


def told(receipt: Receipt) -> list[tuple[str | None, Any]]:
    return [(o.get("id"), (o.get("data") or {}).get("t")) for o in receipt["operations"]]


def test_a_key_that_changes(story: Story) -> None:
    """The receipt tells the id that the row has afterwards, and later operations follow it."""
    story.tables(KEYS)
    ana = story.actor("ana")
    receipt = ana.commit(request(update("things", 1, id=7, t="moved"), returning=True))
    assert told(receipt) == [("7", "moved")]
    receipt = ana.commit(
        request(
            update("parts", {"a": 1, "b": "x"}, b="y"),
            {**update("parts", 0, t="followed"), "id": {"$operation": 0}},
            returning=True,
        )
    )
    assert told(receipt) == [('{"a": 1, "b": "y"}', "followed")] * 2
    # Several rows in one statement; who wrote a row before it moved hears where it is.
    receipt = ana.commit(
        request(
            update("things", 2, t="first"),
            update("things", 2, id=12),
            update("things", 7, id=17),
            create("things", 20, r={"$operation": 0}),
            returning=True,
        )
    )
    assert told(receipt) == [("12", "first"), ("12", "first"), ("17", "moved"), ("20", None)]
    assert story.value("select r from things where id = 20") == "12"


TRIGGER = """
create function shift() returns trigger language plpgsql as
$$ begin new.id := new.id + 100; return new; end $$;
create trigger shift before insert on things for each row execute function shift();
"""


@pytest.mark.parametrize("many", [False, True])
def test_a_trigger_that_changes_the_key(story: Story, many: bool) -> None:
    story.tables(KEYS + TRIGGER)
    ana = story.actor("ana")
    asked = [create("things", 5 + n, t=f"t{n}") for n in range(3 if many else 1)]
    last = {**update("things", 0, t="later"), "id": {"$operation": 0}}
    receipt = ana.commit(request(*asked, last, returning=True))
    ids = [str(105 + n) for n in range(len(asked))]
    assert [o["id"] for o in receipt["operations"]] == [*ids, "105"]
    assert told(receipt)[0] == ("105", "later")
    assert told(receipt)[-1] == ("105", "later")
    assert told(receipt)[1:-1] == [("106", "t1"), ("107", "t2")][: len(asked) - 1]


def test_an_id_and_data_that_differ(story: Story) -> None:
    """Neither is dropped in silence."""
    story.tables(KEYS)
    ana = story.actor("ana")
    for data in ({"id": 9}, {"id": None}, {"id": {"$operation": 0}}, {"id": "x"}):
        with refused("invalid_request", "operations[1].data.id"):
            ana.commit(request(create("things", 6), create("things", 8, **data)))
    with refused("invalid_request", "operations[0].data.b"):
        ana.commit(request(create("parts", {"a": 8, "b": "x"}, a=8, b="y")))
    assert ana.commit(request(create("things", 8, id=8, t="x")))["applied"] == 1
    receipt = ana.commit(request(create("parts", {"a": 8, "b": "x"}, a="8", b="x")))
    assert told(receipt) == [('{"a": 8, "b": "x"}', None)]


def test_an_id_that_stands_in_data(story: Story) -> None:
    """It is the id: of a row that is there already, too, and for later operations of the batch."""
    story.tables(KEYS)
    ana = story.actor("ana")

    def bare(model: str, **data: Any) -> Any:
        return {"type": "create", "model": model, "data": data}

    for wrong in (
        bare("things", id=1, t="mine"),
        bare("things", id="1"),
        bare("parts", a=1, b="x"),
    ):
        with refused("already_exists", "operations[0].id"):
            ana.commit(request(wrong))
    for bad in (bare("things", id="one"), bare("things", id=[1]), bare("things", id=1e20)):
        with refused("invalid_request", "operations[0].data.id"):
            ana.commit(request(bad))
    with refused("already_exists", "operations[1].id"):
        ana.commit(request(bare("things", id=5), bare("things", id=5)))
    receipt = ana.commit(
        request(bare("things", id=5, t="x"), update("things", 5, t="y"), bare("parts", a=2, b="z"))
    )
    assert [o["id"] for o in receipt["operations"]] == ["5", "5", '{"a": 2, "b": "z"}']
    # Part of a key, or none of it, is no id: the column's default or its constraint decides.
    with fails("23502"):
        ana.commit(request(bare("parts", a=3)))
    with fails("23502"):
        ana.commit(request(bare("things", id=None)))


# --- who may insert and not look ------------------------------------------------------------------


@pytest.mark.parametrize("key", ["id", "default"])
def test_who_may_only_insert(story: Story, key: str) -> None:
    """The caller's own rights: what a plain INSERT may do, a commit may."""
    story.tables(
        "create table drops (id int primary key generated by default as identity, t text);"
        "create table other (id int primary key, v int); insert into other values (1, 1);"
        "select concord.track('drops'); select concord.track('other');"
    )
    story.raw().run("revoke all on drops from app; grant insert on drops to app")
    ana = story.actor("ana")
    ana.run("insert into drops values (7, 'plain')")
    if key == "id":
        receipt = ana.commit(request(create("drops", 8, t="x"), create("drops", 9, t="x")))
        assert [o["id"] for o in receipt["operations"]] == ["8", "9"]
        with fails("23505"):
            ana.commit(request(create("drops", 7, t="x")))
    else:
        bare = {"type": "create", "model": "drops", "data": {"t": "x"}}
        receipt = ana.commit(request(bare))
        assert "id" not in receipt["operations"][0]
        with refused("forbidden", "operations[1].data"):
            ana.commit(request(bare, update("other", 1, v={"$operation": 0})))
    assert story.value("select count(*) from drops") == (3 if key == "id" else 2)
    with fails("42501"):
        ana.commit(request(create("drops", 10, t="x"), returning=True))
    token = ana.capture()
    with refused("forbidden", "reads[0].model"):
        ana.commit(request(update("other", 1, v=2), reads=[row("drops", 7)], read_at=token))


@pytest.mark.parametrize("trigger", [False, True])
def test_who_may_insert_what_nobody_sees(story: Story, trigger: bool) -> None:
    """A policy that shows less than it lets in is no reason to refuse an id that is given."""
    story.tables(
        KEYS
        + (TRIGGER if trigger else "")
        + """
        alter table things enable row level security;
        create policy c on things for insert with check (true);
        create policy r on things for select using (t = 'seen');
        """
    )
    ana = story.actor("ana")
    receipt = ana.commit(request(create("things", 5, t="unseen"), create("things", 6, t="unseen")))
    assert receipt["applied"] == 2
    receipt = ana.commit(request(create("things", 8, t="seen"), returning=True))
    assert told(receipt) == [("108" if trigger else "8", "seen")]


# --- names of objects -----------------------------------------------------------------------------


def test_what_names_an_object(story: Story) -> None:
    """The text of a regclass follows the search_path: the log, answers and proposals agree."""
    story.admin().run(
        "create schema elsewhere; create table elsewhere.target ();"
        "grant usage on schema elsewhere to app, owner"
    )
    story.tables(
        """
        create table refs (id int primary key, c regclass, cs regclass[], p regproc, n int);
        insert into refs values (1, 'elsewhere.target', '{elsewhere.target}', 'now', 1);
        select concord.track('refs');
        """
    )
    ana, bob = story.actor("ana"), story.actor("bob")
    ana.run("set search_path = public, elsewhere")
    first = ana.read("refs", 1)
    assert first["data"] == bob.read("refs", 1)["data"]
    story.psql("update refs set c = 'refs', cs = '{refs}', p = 'clock_timestamp'")
    (change,) = story.history("refs", 1)
    assert change["before"] == {k: first["data"][k] for k in ("c", "cs", "p")}
    # What was read can be written, as can a name.
    with refused("stale_context") as refusal:
        ana.commit(request(update("refs", 1, c="target"), read_at=first["readAt"]))
    assert refusal.notification["baseValues"] == {"c": first["data"]["c"]}
    echoed = {k: first["data"][k] for k in ("c", "cs", "p")}
    receipt = ana.commit(
        request(update("refs", 1, **echoed, n=2), read_at=first["readAt"], onlyChanged=True)
    )
    assert receipt["applied"] == 1
    assert ana.one("select c = 'refs'::regclass and n = 2 from refs")
    ana.commit(request(update("refs", 1, c="target")))
    bob.commit(request(update("refs", 1, {"where": {"c": "elsewhere.target"}}, **echoed)))
    assert ana.read("refs", 1)["data"] == {**first["data"], "n": 2}


# --- what is too much -----------------------------------------------------------------------------


def test_requests_beyond_measure(deck: Story) -> None:
    """Deep, long or out of range: a clear answer, and the session goes on."""
    ana = deck.actor("ana")
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    ana.commit(request(update("slides", 1, title=deep)))
    with refused("invalid_request", "operations"):
        ana.run(
            "select concord.commit(jsonb_build_object('operations',"
            " (select jsonb_agg(n) from generate_series(1, 1000000) n)))"
        )
    with refused("invalid_request", "operations[0]"):
        ana.run("select concord.commit('{\"operations\": [1]}')")
    with fails("54001"):
        ana.run("select concord.commit(repeat('[', 100000)::jsonb)")
    for number in ("1e400", "-1e400", "NaN", "Infinity", "1e-400"):
        with refused("invalid_request", "operations[0].id"):
            ana.commit(request(update("slides", number, title="x")))
    ana.commit(request(update("slides", 1, title=10**400)))
    assert ana.commit(request(update("slides", 1, title="fine")))["applied"] == 1


def test_json_that_jsonb_refuses_in_the_row(story: Story) -> None:
    """Never a guess: such a value is told as its text, and takes down no answer."""
    story.tables(
        "create table raws (id int primary key, d json, n int);"
        "insert into raws values (1, '{}', 1);"
        "select concord.track('raws')"
    )
    ana = story.actor("ana")
    token = ana.capture()
    odd = r'{"a": "\u0000"}'
    story.raw().run("update raws set d = %s, n = 2", odd)
    assert ana.read("raws", 1)["data"] == {"id": 1, "d": odd, "n": 2}
    with refused("stale_context") as refusal:
        ana.commit(request(delete("raws", 1), read_at=token))
    assert refusal.notification["currentValues"]["d"] == odd
    receipt = ana.commit(request(update("raws", 1, n=3), returning=True))
    assert receipt["operations"][0]["data"]["d"] == odd
