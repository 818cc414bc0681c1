"""The short way of plain commits, where it might answer otherwise than the long way: see `way`."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.isolation.schedule import Request, Story, refused, request, update

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


NAMES = (
    "row_key",
    "c",
    "written",
    "ignored",
    "fits",
    "told",
    "many",
    "by_kind",
    "by_epoch",
    "statement",
)


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


TYPES = {
    "smallint": ("7", 8),
    "integer": ("7", 8),
    "bigint": ("7", -8),
    "numeric": ("7.25", 7.5),
    "numeric(5,2)": ("-1.25", 999.99),
    "double precision": ("0.5", 1.5),
    "boolean": ("true", False),
    "text": ("'a'", "b"),
    "varchar(3)": ("'a'", "abc"),
    "uuid": ("gen_random_uuid()", "00000000-0000-4000-8000-000000000000"),
    "date": ("'2024-01-31'", "2024-02-28"),
    "timestamptz": ("'2024-01-31 12:00+02'", "2024-02-28T23:59:59.5+05:30"),
    "jsonb": ("""'{"a": 1}'""", {"a": [1, None]}),
}


def every_type(story: Story, detail: str = "before") -> None:
    columns = ", ".join(f"c{n} {type}" for n, type in enumerate(TYPES))
    first = ", ".join(value for value, _ in TYPES.values())
    story.tables(
        f"create table typed (id int primary key, {columns});"
        f"insert into typed values (1, {first}), (2, {first});"
        f"select concord.track('typed', detail => '{detail}')"
    )


def takes_the_short_way(story: Story, asked: Request) -> bool:
    """Whether the plain way answers. It is asked in a transaction that is rolled back."""
    ana = story.actor("ana")
    with ana.connection.transaction(force_rollback=True):
        [[answer]] = ana.run("select concord_internal.run_plain(%s)", Jsonb(asked))
    return answer is not None


@pytest.mark.parametrize("n", range(len(TYPES)), ids=TYPES)
def test_a_field_of_each_type(story: Story, n: int) -> None:
    every_type(story)
    story.actor("ben").run("set timezone = 'Asia/Kolkata'; set datestyle = 'German'")
    field, new = f"c{n}", list(TYPES.values())[n][1]
    for id, value in ((1, new), (2, None)):
        ana = story.actor("ana")
        ana.run("set timezone = 'Asia/Kolkata'; set datestyle = 'German'")
        token = ana.capture()
        asked = request(update("typed", id, **{field: value}), read_at=token, returning=True)
        assert takes_the_short_way(story, asked)
        receipt = ana.commit(asked)
        shown = ana.read("typed", id)["data"]
        assert receipt["operations"][0]["data"] == shown
        assert story.value(
            f"select {field} is not distinct from "
            f"(jsonb_populate_record(null::typed, %s)).{field} from typed where id = %s",
            Jsonb({field: value}),
            id,
        )


BAD = {
    "smallint": 70000,
    "integer": 3000000000,
    "bigint": "x",
    "numeric": "1e",
    "numeric(5,2)": 1000.1,
    "double precision": "1e999",
    "boolean": "perhaps",
    "varchar(3)": "abcd",
    "uuid": "0",
    "date": "2024-02-30",
    "timestamptz": "2024-02-30T12:00:00Z",
}


@pytest.mark.parametrize("type", BAD)
def test_a_value_that_a_type_refuses(story: Story, type: str) -> None:
    """It is a refusal with a path, not an error of the statement, on either way."""
    every_type(story)
    field = f"c{list(TYPES).index(type)}"
    with refused("invalid_request", param=f"operations[0].data.{field}"):
        story.actor("ana").commit(request(update("typed", 1, **{field: BAD[type]})))


def test_an_echo_of_the_whole_row(story: Story) -> None:
    """Only what differs is written: neither a trigger nor a privilege is asked for the rest."""
    every_type(story)
    story.admin().run(
        """
        create function note() returns trigger language plpgsql as
          $$ begin raise exception 'touched %', tg_argv[0]; end $$;
        create trigger echo before update of c7 on typed for each row execute function note('c7');
        revoke update on typed from app;
        grant update (c0, c1) on typed to app;
        select concord.refresh('typed');
        """
    )
    ana = story.actor("ana")
    read = ana.read("typed", 1)
    echo = {**read["data"], "c0": 100, "c1": 100}
    del echo["id"]
    asked = request(
        update("typed", 1, **echo), read_at=read["readAt"], onlyChanged=True, returning=True
    )
    assert takes_the_short_way(story, asked)
    receipt = ana.commit(asked)
    assert receipt["operations"][0]["data"] == {**read["data"], "c0": 100, "c1": 100}
    assert story.value("select fields::text from concord_internal.deltas") == "{c0,c1}"


def test_an_echo_is_not_a_write_over_others(deck: Story) -> None:
    ana, ben = deck.actor("ana"), deck.actor("ben")
    token = ana.capture()
    ben.commit(request(update("slides", 1, title="theirs")))
    asked = request(update("slides", 1, title="one", body="mine"), read_at=token, onlyChanged=True)
    ana.commit(asked)
    assert deck.value("select (title, body)::text from slides where id = 1") == "(theirs,mine)"


def test_an_echo_that_changes_nothing(deck: Story) -> None:
    ana = deck.actor("ana")
    asked = request(update("slides", 1, title="one"), read_at=ana.capture(), onlyChanged=True)
    receipt = ana.commit(asked)
    assert (receipt["applied"], receipt["unchanged"]) == (0, 1)


@pytest.mark.parametrize("options", ["detail => 'names'", "secret_fields => '{title}'"])
def test_an_echo_where_the_log_holds_no_values(story: Story, options: str) -> None:
    story.tables(
        "create table slides (id int primary key, title text, body text);"
        "insert into slides values (1, 'one', '-');"
        f"select concord.track('slides', {options})"
    )
    asked = request(
        update("slides", 1, title="two"), read_at=story.actor("ana").capture(), onlyChanged=True
    )
    assert not takes_the_short_way(story, asked)


def test_columns_that_the_caller_may_not_see(deck: Story) -> None:
    """They are not compared, and not shown."""
    deck.admin().run("revoke select on slides from app; grant select (id, title) on slides to app")
    ana = deck.actor("ana")
    asked = request(update("slides", 1, title="mine", body="mine"), returning=True)
    receipt = ana.commit(asked)
    assert receipt["operations"][0]["data"] == {"id": 1, "title": "mine"}


@pytest.mark.parametrize(
    "type", ["numeric(2,2)", "numeric(900,700)", "numeric(3,-2)", "numeric(2,5)"]
)
def test_an_odd_precision(story: Story, type: str) -> None:
    story.tables(
        f"create table odd (id int primary key, n {type});"
        "insert into odd values (1); select concord.track('odd')"
    )
    story.actor("ana").commit(request(update("odd", 1, n=0), update("odd", 1, n=None)))
    story.actor("ana").commit(request(update("odd", 1, n=0)))
    assert story.value("select n = 0 from odd")
