"""history, changes, forget and conflicts: what they show, to whom, and that the feed loses nothing.

The feed's promise is tested against what the log itself holds, read by a superuser.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from jsonschema import Draft202012Validator
from psycopg.rows import dict_row

from pyconcord import schemas
from tests.support import Database, OwnServer
from tests.talk import act, capture, commit, refused

Connection = psycopg.Connection[Any]
Row = dict[str, Any]

TABLES = """
create table slides (id int primary key, deck text, title text, body text, price int);
create table plans (tenant text not null, id int primary key, title text);
grant select, insert, update, delete, truncate on slides, plans to app, app2;
select concord.track('slides', groups => array['deck:{deck}']);
select concord.track('plans', tenant_column => 'tenant');
"""

CHANGE = Draft202012Validator(schemas.load("change"))


@dataclass
class World:
    """Two tracked tables of the login `owner`: shared slides, and plans with a tenant column."""

    db: Database
    owner: Connection
    app: Connection
    admin: Connection

    def writer(self, autocommit: bool = True) -> Connection:
        return self.db.connect("app", autocommit=autocommit)

    def deltas(self) -> list[int]:
        """The numbers of all deltas that the feed has to deliver to a superuser."""
        query = "select seq from concord_internal.deltas where op <> 'g' order by seq"
        return [seq for (seq,) in self.admin.execute(query)]


@pytest.fixture
def world(db: Database) -> Iterator[World]:
    owner, admin = db.connect("owner"), db.connect()
    owner.execute(TABLES)
    admin.execute("grant concord_app to owner")
    yield World(db, owner, db.connect("app"), admin)
    admin.execute("revoke concord_app from owner")


def rows(connection: Connection, query: str, *params: Any) -> list[Row]:
    """The rows of history or changes, each as its schema says."""
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(f"select to_jsonb(c) as c from ({query}) c", params).fetchall()
    for row in found:
        problems = [f"{e.json_path}: {e.message}" for e in CHANGE.iter_errors(row["c"])]
        assert not problems, f"{problems}\n{row['c']}"
    return [row["c"] for row in found]


def history(connection: Connection, model: str, id: object, max: int = 100) -> list[Row]:
    return rows(connection, "select * from concord.history(%s, %s, %s)", model, str(id), max)


def page(connection: Connection, since: str | None, max: int = 1000) -> list[Row]:
    found = rows(connection, "select * from concord.changes(%s, %s)", since, max)
    assert 1 <= len(found) <= max
    assert all(row["next_token"] for row in found)
    assert all(row["op"] != "checkpoint" for row in found[:-1])
    return found


def feed(connection: Connection, since: str | None, max: int = 1000) -> tuple[list[Row], str]:
    """All changes up to a checkpoint, and the position there."""
    found: list[Row] = []
    while True:
        here = page(connection, since, max)
        since = here[-1]["next_token"]
        if here[-1]["op"] == "checkpoint":
            return found + here[:-1], str(since)
        found += here


def seqs(changes: list[Row]) -> list[int]:
    return [change["sync_id"] for change in changes]


# --- history --------------------------------------------------------------------------------------


def test_history_is_newest_first_and_says_who_what_and_in_which_commit(world: World) -> None:
    app = world.app
    act(app, "ana")
    app.execute("insert into slides values (1, 'a', 'one', 'body')")
    act(app, "bot", kind="agent")
    app.execute("update slides set title = 'two', deck = 'b' where id = 1")
    receipt = commit(
        app,
        {
            "label": "tidy up",
            "operations": [
                {"type": "update", "model": "slides", "id": 1, "data": {"title": "three"}}
            ],
        },
    )
    world.owner.execute("delete from slides where id = 1")

    gone, third, second, first = history(app, "slides", 1)

    assert [c["op"] for c in (gone, third, second, first)] == [
        "delete",
        "update",
        "update",
        "create",
    ]
    assert (first["fields"], first["before"], first["groups"]) == (None, None, ["deck:a"])
    assert second["fields"] == ["deck", "title"]
    assert second["before"] == {"deck": "a", "title": "one"}
    assert sorted(second["groups"]) == ["deck:a", "deck:b"]
    assert (second["kind"], second["actor"], second["commit_id"]) == ("agent", "bot", None)
    assert (third["commit_id"], third["label"]) == (receipt["id"], "tidy up")
    assert third["sync_id"] == receipt["syncId"]
    assert gone["before"] == {"id": 1, "deck": "b", "title": "three", "body": "body", "price": None}
    assert (gone["kind"], gone["actor"], gone["fields"]) == ("system", "owner", None)
    assert seqs([gone, third, second, first]) == sorted(
        seqs([gone, third, second, first]), reverse=True
    )
    assert history(app, "slides", 1, 2) == [gone, third]
    assert history(app, "slides", 2) == []


def test_history_puts_a_statement_of_an_after_trigger_after_its_cause(world: World) -> None:
    """Statement triggers come last, so the inner statement logs before the one that caused it."""
    world.owner.execute(
        """
        create function echo() returns trigger language plpgsql as $$
        begin
          if new.price < 3 then
            update slides set price = new.price + 1, body = new.title where id = new.id;
          end if;
          return null;
        end $$;
        create trigger echo after update on slides for each row execute function echo();
        insert into slides values (1, 'a', 'one', 'body', 0);
        """
    )
    world.owner.execute("update slides set title = 'two', price = 1 where id = 1")

    changes = history(world.owner, "slides", 1)

    assert [c["before"] for c in changes] == [
        {"price": 2},
        {"body": "body", "price": 1},
        {"price": 0, "title": "one"},
        None,
    ]
    assert seqs(changes) == [2, 3, 4, 1]
    for most in range(1, 5):
        assert history(world.owner, "slides", 1, most) == changes[:most]


def test_history_keeps_transactions_and_their_statements_apart(world: World) -> None:
    """A shallow statement of a later transaction is no cause of a deep one before it."""
    world.owner.execute(
        """
        create table jobs (id int primary key, slide int);
        create function work() returns trigger language plpgsql as $$
        begin
          update slides set body = new.id::text where id = new.slide;
          return null;
        end $$;
        create trigger work after insert on jobs for each row execute function work();
        insert into slides values (1, 'a', 'one', 'body', 0);
        insert into jobs values (1, 1);
        """
    )
    world.owner.execute("update slides set title = 'two' where id = 1")
    assert [c["fields"] for c in history(world.owner, "slides", 1)] == [["title"], ["body"], None]


def test_history_of_a_composite_key_takes_its_columns_in_any_order(world: World) -> None:
    world.owner.execute(
        """
        create table seats (house uuid, place int, guest text, primary key (house, place));
        select concord.track('seats');
        insert into seats values ('00000000-0000-0000-0000-00000000000a', 7, 'ana');
        """
    )
    house = "00000000-0000-0000-0000-00000000000A"
    forwards = history(world.owner, "seats", json.dumps({"house": house, "place": 7}))
    backwards = history(world.owner, "seats", json.dumps({"place": 7, "house": house.lower()}))
    assert forwards == backwards
    assert json.loads(forwards[0]["id"]) == {"house": house.lower(), "place": 7}


def test_history_shows_what_happened_to_the_whole_model(world: World) -> None:
    world.owner.execute("insert into slides values (1, 'a', 'one')")
    world.owner.execute("truncate slides")
    truncated, _ = history(world.owner, "slides", 1)
    assert (truncated["op"], truncated["id"], truncated["fields"]) == ("truncate", None, None)
    assert (truncated["tenant"], truncated["before"]) == ("", None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nothing", "1", 100), ("model_unknown", "model")),
        ((None, "1", 100), ("invalid_request", "model")),
        (("slides", None, 100), ("invalid_request", "id")),
        (("slides", "one", 100), ("invalid_request", "id")),
        (("slides", '{"id": 1, "x": 2}', 100), ("invalid_request", "id")),
        (("slides", "1", 0), ("invalid_request", "max")),
        (("slides", "1", None), ("invalid_request", "max")),
    ],
)
def test_history_refuses_bad_arguments(
    world: World, arguments: tuple[Any, ...], expected: tuple[str, str]
) -> None:
    assert refused(world.app, "select concord.history(%s, %s, %s)", *arguments) == expected


# --- the feed: everything once, in order ----------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 7, 1000])
def test_pages_of_any_size_show_every_change_once_oldest_first(world: World, most: int) -> None:
    world.owner.execute(
        """
        insert into slides select n, 'a', 'one' from generate_series(1, 9) n;
        update slides set title = 'two', deck = 'b' where id < 4;
        delete from slides where id = 9;
        truncate slides;
        """
    )
    changes, _ = feed(world.admin, None, most)
    assert seqs(changes) == world.deltas()
    assert Counter(c["op"] for c in changes) == {
        "create": 9,
        "update": 3,
        "delete": 1,
        "truncate": 1,
    }


def test_every_row_says_where_to_go_on(world: World) -> None:
    world.owner.execute("insert into slides select n from generate_series(1, 6) n")
    token = capture(world.admin)
    world.owner.execute("update slides set title = 'two'")
    for since in (None, token):
        changes, _ = feed(world.admin, since)
        for n, change in enumerate(changes):
            assert feed(world.admin, change["next_token"], 2)[0] == feed_without_positions(
                changes[n + 1 :], world.admin, change["next_token"]
            )


def feed_without_positions(expected: list[Row], connection: Connection, since: str) -> list[Row]:
    """The same changes; pages of another size carry the same positions."""
    found, _ = feed(connection, since)
    assert [c | {"next_token": None} for c in found] == [c | {"next_token": None} for c in expected]
    return found


def test_a_quiet_consumer_keeps_a_fresh_position(world: World) -> None:
    world.owner.execute("insert into slides values (1)")
    _, position = feed(world.admin, None)
    for _ in range(3):
        (checkpoint,) = page(world.admin, position)
        assert checkpoint["op"] == "checkpoint"
        world.admin.execute("select pg_current_xact_id()")
        newer = checkpoint["next_token"]
        assert newer != position or page(world.admin, newer)[0]["next_token"] != position
        position = newer
    world.owner.execute("insert into slides values (2)")
    changes, _ = feed(world.admin, position)
    assert [c["id"] for c in changes] == ["2"]


def test_a_page_that_is_just_full_is_followed_by_a_checkpoint(world: World) -> None:
    world.owner.execute("insert into slides select n from generate_series(1, 4) n")
    full = page(world.admin, None, 4)
    assert [c["op"] for c in full] == ["create"] * 4
    assert [c["op"] for c in page(world.admin, full[-1]["next_token"], 4)] == ["checkpoint"]


def test_since_a_read_token_shows_what_it_had_not_seen(world: World) -> None:
    app, late = world.app, world.writer(autocommit=False)
    act(app)
    app.execute("insert into slides select n, 'a', 'one' from generate_series(1, 5) n")
    late.execute("update slides set title = 'late' where id = 1")
    token = capture(app)
    app.execute("update slides set title = 'other' where id = 2")
    receipt = commit(
        app,
        {
            "readAt": token,
            "operations": [
                {"type": "update", "model": "slides", "id": 3, "data": {"title": "mine"}}
            ],
        },
    )
    late.commit()
    assert {c["id"] for c in feed(app, token)[0]} == {"1", "2", "3"}
    # A receipt's token has seen its own commit, and of the rest no more than the request's.
    assert {c["id"] for c in feed(app, receipt["readAt"])[0]} == {"1", "2"}


def test_a_token_taken_between_two_writes_of_one_transaction(world: World) -> None:
    act(world.app)
    with world.app.transaction():
        world.app.execute("insert into slides values (1)")
        token = capture(world.app)
        world.app.execute("insert into slides values (2)")
        other = world.writer()
        other.execute("insert into slides values (3)")
        assert [c["id"] for c in feed(world.app, token)[0]] == ["3"]
    changes, position = feed(world.app, token)
    assert sorted(c["id"] for c in changes) == ["2", "3"]
    assert feed(world.app, position)[0] == []


@pytest.mark.parametrize("ends", ["commit", "rollback", "prepared"])
def test_a_writer_in_flight_is_shown_when_it_has_committed(world: World, ends: str) -> None:
    """Its numbers and its id are lower than those of what was shown before it."""
    late, other = world.writer(autocommit=False), world.writer()
    if ends == "prepared":
        late.execute("set transaction isolation level read committed")
    late.execute("insert into slides values (1)")
    other.execute("insert into slides values (2)")
    changes, position = feed(world.admin, None)
    assert [c["id"] for c in changes] == ["2"]

    if ends == "prepared":
        late.execute("prepare transaction 'late'")
        changes, position = feed(world.admin, position)
        assert changes == []
        world.admin.execute("commit prepared 'late'")
    elif ends == "commit":
        late.commit()
    else:
        late.rollback()
    expected = [] if ends == "rollback" else ["1"]
    changes, position = feed(world.admin, position)
    assert [c["id"] for c in changes] == expected
    assert feed(world.admin, position)[0] == []
    assert len(feed(world.admin, None)[0]) == 1 + len(expected)


def test_a_batch_goes_on_as_it_began_whatever_commits_meanwhile(world: World) -> None:
    late = world.writer(autocommit=False)
    late.execute("insert into slides values (100)")
    world.owner.execute("insert into slides select n from generate_series(1, 5) n")
    first = page(world.admin, None, 2)
    late.commit()
    world.owner.execute("insert into slides values (101)")
    rest, _ = feed(world.admin, first[-1]["next_token"], 2)
    assert [c["id"] for c in first + rest] == ["1", "2", "3", "4", "5", "100", "101"]


def test_a_row_changed_by_many_in_turn_is_shown_in_order(world: World) -> None:
    """Ids are no order: the transaction with the lowest writes the row last."""
    world.owner.execute("insert into slides values (1, 'a', '0')")
    slow, fast = world.writer(autocommit=False), world.writer()
    slow.execute("insert into slides values (2)")
    positions: list[str | None] = [None]
    found: list[Row] = []
    for title in ("1", "2"):
        fast.execute("update slides set title = %s where id = 1", (title,))
        changes, position = feed(world.admin, positions[-1])
        found += changes
        positions.append(position)
    slow.execute("update slides set title = '3' where id = 1")
    slow.commit()
    found += feed(world.admin, positions[-1])[0]
    assert [c["before"]["title"] for c in found if c["op"] == "update"] == ["0", "1", "2"]


def test_the_consumers_own_transaction_is_shown_after_it_has_committed(world: World) -> None:
    """The server's snapshot leaves its own id out of the list of those in progress."""
    reader, other = world.writer(), world.writer()
    with reader.transaction():
        reader.execute("insert into slides values (1)")
        other.execute("insert into slides values (2)")  # a higher id, and ended
        changes, position = feed(reader, None)
        assert [c["id"] for c in changes] == ["2"]
        reader.execute("insert into slides values (3)")
        assert feed(reader, position)[0] == []
    assert [c["id"] for c in feed(reader, position)[0]] == ["1", "3"]


def test_a_long_feed_with_gaps_is_found_in_pages(world: World) -> None:
    """Numbers far apart, tenants that the reader may not see, more deltas than one look reads."""
    app = world.app
    for part, gap in enumerate((0, 10**9, 10**12)):
        world.admin.execute(
            "select setval('concord_internal.delta_seq', greatest(%s, last_value))"
            " from concord_internal.delta_seq",
            (gap or 1,),
        )
        world.owner.execute(
            "insert into plans"
            " select case when n %% 400 = 0 then 'acme' else 'other' end, %s + n, 'x'"
            " from generate_series(1, 3000) n",
            (part * 3000,),
        )
    act(app)
    for max, connection, expected in ((7, app, 21), (1000, app, 21), (999, world.admin, 9000)):
        changes, _ = feed(connection, None, max)
        assert len(changes) == len(set(seqs(changes))) == expected
        assert seqs(changes) == sorted(seqs(changes))


def test_a_page_stops_looking_when_it_has_something_and_goes_on_from_there(world: World) -> None:
    """The position after the last change shown is where the page stopped looking."""
    app = world.app
    act(app)
    world.owner.execute("insert into plans values ('acme', 0, 'first')")
    world.owner.execute("insert into slides values (0, 'a', 'first')")
    world.owner.execute("revoke select on slides from app")
    for _ in range(45):
        world.owner.execute(
            "insert into slides select n from generate_series(1, 1000) n; delete from slides"
        )
    world.owner.execute("insert into plans values ('acme', 1, 'last')")
    first = page(app, None, 10)
    assert [c["id"] for c in first] == ["0"]
    rest, _ = feed(app, first[-1]["next_token"], 10)
    assert [c["id"] for c in rest] == ["1"]


def test_nothing_is_lost_and_nothing_shown_twice_beside_concurrent_writers(world: World) -> None:
    """Consumers of several page sizes read on while writers commit, roll back and hold back."""
    world.owner.execute("insert into slides select n, 'a', '0' from generate_series(1, 40) n")
    stop = threading.Event()
    failures: list[BaseException] = []

    def write(seed: int) -> None:
        chance = random.Random(seed)
        connection = world.writer(autocommit=False)
        try:
            while not stop.is_set():
                for id in sorted(chance.sample(range(1, 41), chance.randint(1, 4))):
                    connection.execute(
                        "update slides set title = %s where id = %s", (str(chance.random()), id)
                    )
                    if chance.random() < 0.2:
                        with connection.transaction(force_rollback=chance.random() < 0.5):
                            connection.execute(
                                "update slides set body = %s where id = %s",
                                (str(chance.random()), id),
                            )
                if chance.random() < 0.2:
                    connection.rollback()
                else:
                    connection.commit()
        except psycopg.Error as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for writer in writers:
        writer.start()
    shown: dict[int, list[Row]] = {}
    position: dict[int, str | None] = dict.fromkeys((1, 3, 50, 1000))
    try:
        for _ in range(60):
            for most in position:
                here = page(world.admin, position[most], most)
                shown.setdefault(most, []).extend(c for c in here if c["op"] != "checkpoint")
                position[most] = here[-1]["next_token"]
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert failures == []
    for most, since in position.items():
        rest, _ = feed(world.admin, since, most * 50)
        changes = shown.get(most, []) + rest
        assert sorted(seqs(changes)) == world.deltas(), f"pages of {most}"
        for id in {c["id"] for c in changes}:
            of_row = seqs([c for c in changes if c["id"] == id])
            assert of_row == sorted(of_row), f"pages of {most}, row {id}"


# --- the feed: positions that are none ------------------------------------------------------------


def test_a_position_that_was_altered_or_cut_is_refused(world: World) -> None:
    world.owner.execute("insert into slides values (1), (2)")
    inside, _, end = (c["next_token"] for c in page(world.admin, None))
    for token in (inside, end):
        for n in range(len(token)):
            spoilt = "0" if token[n] != "0" else "1"
            for given in (token[:n], token[:n] + spoilt + token[n + 1 :]):
                got = refused(world.admin, "select concord.changes(%s)", given)
                assert got == ("token_invalid", "since"), given
    for given in ("12", "kcf1", "kcf1....", inside + "0", inside.replace("kcf1", "kc1")):
        got = refused(world.admin, "select concord.changes(%s)", given)
        assert got == ("token_invalid", "since"), given


def resealed(admin: Connection, token: str, pattern: str, by: str) -> str:
    """A position made up from a true one, with a checksum that fits."""
    body, n = re.subn(pattern, by, token.rpartition(".")[0])
    assert n == 1
    ((sealed,),) = admin.execute("select %s || '.' || concord_internal.checksum(%s)", (body, body))
    return str(sealed)


def test_a_position_made_up_with_a_checksum_is_refused(world: World) -> None:
    world.owner.execute("insert into slides values (1), (2)")
    inside, _, end = (c["next_token"] for c in page(world.admin, None))
    for token, pattern, by, code in (
        (end, r"\.\d+:\d+:", ".9:3:", "token_invalid"),
        (end, r"\.\d+:\d+:", ".x:3:", "token_invalid"),
        (end, r"\.\d+:\d+:", ".5:99999999999:", "token_foreign"),
        (end, r"kcf1\.[0-9a-f]+", "kcf1.1", "token_foreign"),
        (inside, r"\.0$", ".zero", "token_invalid"),
        (inside, r"\.1\.0$", ".1.9:9:9,", "token_invalid"),
        (inside, r"\.1\.0$", ".one.0", "token_invalid"),
    ):
        got = refused(
            world.admin,
            "select concord.changes(%s)",
            resealed(world.admin, token, pattern, by),
        )
        assert got == (code, "since"), (pattern, by)


def test_positions_of_an_epoch_that_ended_are_foreign(world: World) -> None:
    world.owner.execute("insert into slides values (1), (2)")
    tokens = [c["next_token"] for c in page(world.admin, None)]
    world.admin.execute("select concord.new_epoch()")
    world.owner.execute("insert into slides values (3)")
    for token in tokens:
        got = refused(world.admin, "select concord.changes(%s)", token)
        assert got == ("token_foreign", "since")
    assert [c["id"] for c in feed(world.admin, None, 2)[0]] == ["1", "2", "3"]


@pytest.mark.parametrize("most", [0, -1, None])
def test_a_page_of_no_rows_is_refused(world: World, most: int | None) -> None:
    got = refused(world.app, "select concord.changes(null, %s)", most)
    assert got == ("invalid_request", "max")


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_in_a_fixed_snapshot_the_feed_ends_with_it(world: World, level: str) -> None:
    world.owner.execute("insert into slides values (1)")
    with world.app.transaction():
        world.app.execute(f"set transaction isolation level {level}")
        world.app.execute("select 1")
        world.owner.execute("insert into slides values (2)")
        changes, position = feed(world.app, None)
        assert [c["id"] for c in changes] == ["1"]
        world.app.execute("insert into slides values (3)")
        assert feed(world.app, position)[0] == []
    assert [c["id"] for c in feed(world.app, position)[0]] == ["2", "3"]


def test_the_feed_can_be_read_in_a_read_only_transaction(world: World) -> None:
    world.owner.execute("insert into slides values (1)")
    with world.app.transaction():
        world.app.execute("set transaction read only")
        assert len(feed(world.app, None)[0]) == 1


# --- who sees what --------------------------------------------------------------------------------


def seen(connection: Connection, model: str, id: object) -> list[Row]:
    """What the caller sees of one row: history and feed agree on it."""
    by_history = [c | {"next_token": None} for c in history(connection, model, id)]
    by_feed = [
        c | {"next_token": None}
        for c in feed(connection, None)[0]
        if c["model"] == model and c["id"] in (str(id), None)
    ]
    assert by_history[::-1] == by_feed
    return by_history


def test_columns_that_the_caller_may_not_select_vanish(world: World) -> None:
    world.owner.execute("revoke all on slides from app")
    world.owner.execute("grant select (id, title) on slides to app")
    world.owner.execute("insert into slides values (1, 'a', 'one', 'body', 5)")
    world.owner.execute("update slides set title = 'two', body = 'new' where id = 1")
    world.owner.execute("update slides set body = 'newer' where id = 1")
    world.owner.execute("delete from slides where id = 1")

    gone, changed, made = seen(world.app, "slides", 1)

    assert (changed["fields"], changed["before"]) == (["title"], {"title": "one"})
    assert gone["before"] == {"id": 1, "title": "two"}
    assert [c["groups"] for c in (gone, changed, made)] == [None] * 3
    assert "body" not in json.dumps([gone, changed, made])
    assert len(seen(world.owner, "slides", 1)) == 4


@pytest.mark.parametrize("right", ["revoke all on slides from app", "grant select (title) on"])
def test_without_the_keys_columns_nothing_is_seen(world: World, right: str) -> None:
    world.owner.execute("revoke all on slides from app")
    if right.startswith("grant"):
        world.owner.execute("grant select (title) on slides to app")
    world.owner.execute("insert into slides values (1, 'a', 'one')")
    world.owner.execute("truncate slides")
    assert seen(world.app, "slides", 1) == []


def test_the_rights_of_the_role_in_effect_count(world: World) -> None:
    world.admin.execute("grant app2 to app")
    world.owner.execute("revoke all on slides from app2")
    world.owner.execute("insert into slides values (1, 'a', 'one')")
    assert len(seen(world.app, "slides", 1)) == 1
    world.app.execute("set role app2")
    assert seen(world.app, "slides", 1) == []
    world.admin.execute("revoke app2 from app")


def test_a_schema_that_the_caller_may_not_enter_hides_its_tables(world: World) -> None:
    world.admin.execute("create schema closed authorization owner")
    world.owner.execute("alter table slides set schema closed")
    world.owner.execute("insert into closed.slides values (1, 'a', 'one')")
    assert seen(world.app, "slides", 1) == []
    assert len(seen(world.owner, "slides", 1)) == 1


def test_secret_fields_are_named_and_never_valued(world: World) -> None:
    world.owner.execute("insert into slides values (1, 'a', 'one', 'body')")
    world.owner.execute("update slides set body = 'hidden', title = 'two' where id = 1")
    ((definition,),) = world.owner.execute(
        "select concord.track('slides', groups => array['deck:{deck}'], secret_fields => '{body}')"
    )
    assert definition["secret_fields"] == ["body"]
    world.owner.execute("update slides set body = 'more hidden', title = 'three' where id = 1")
    for connection in (world.app, world.owner, world.admin):
        later, earlier, _ = seen(connection, "slides", 1)
        assert later["fields"] == earlier["fields"] == ["title", "body"]
        assert (later["before"], earlier["before"]) == ({"title": "two"}, {"title": "one"})


def test_a_tenants_changes_are_shown_to_its_principals_and_to_the_owner(world: World) -> None:
    app = world.app
    world.owner.execute("insert into plans values ('acme', 1, 'one'), ('blue', 2, 'two')")
    world.owner.execute("update plans set tenant = 'blue' where id = 1")
    world.owner.execute("truncate plans")
    for tenant, expected in (
        ("acme", [("1", "create"), ("1", "delete"), (None, "truncate")]),
        ("blue", [("2", "create"), ("1", "create"), (None, "truncate")]),
        ("", [(None, "truncate")]),
    ):
        act(app, tenant=tenant)
        changes, _ = feed(app, None)
        assert [(c["id"], c["op"]) for c in changes] == expected, tenant
        assert {c["tenant"] for c in changes} <= {tenant, ""}
    assert len(feed(world.owner, None)[0]) == 5
    assert {c["tenant"] for c in feed(world.admin, None)[0]} == {"acme", "blue", ""}


def test_a_model_with_one_tenant_is_shown_to_it_alone(world: World) -> None:
    app = world.app
    world.owner.execute(
        """
        create table pages (id int primary key);
        grant select on pages to app;
        select concord.track('pages', tenant => 'acme');
        insert into pages values (1);
        """
    )
    act(app, tenant="acme")
    assert len(seen(app, "pages", 1)) == 1
    act(app, tenant="blue")
    assert feed(app, None)[0] == []
    assert refused(app, "select concord.history('pages', '1')") == ("model_unknown", "model")
    assert len(seen(world.owner, "pages", 1)) == 1


def test_a_label_is_not_shown_to_other_tenants(world: World) -> None:
    app = world.app
    world.owner.execute("insert into slides values (1, 'a', 'one')")
    act(app, tenant="acme")
    operation = {"type": "update", "model": "slides", "id": 1, "data": {"title": "two"}}
    commit(app, {"label": "between ourselves", "operations": [operation]})
    for tenant, label in (("acme", "between ourselves"), ("blue", None)):
        act(app, tenant=tenant)
        assert seen(app, "slides", 1)[0]["label"] == label
    assert seen(world.owner, "slides", 1)[0]["label"] == "between ourselves"


def test_under_row_level_security_only_the_own_changes_are_shown_and_no_values(
    world: World,
) -> None:
    app = world.app
    act(app, "ana")
    app.execute("insert into slides values (1, 'a', 'one')")
    act(app, "ben")
    app.execute("update slides set title = 'two' where id = 1")
    world.owner.execute(
        "alter table slides enable row level security; create policy p on slides using (true)"
    )
    act(app, "ana")
    app.execute("update slides set title = 'three' where id = 1")
    changes = seen(app, "slides", 1)
    assert [(c["actor"], c["op"], c["before"]) for c in changes] == [
        ("ana", "update", None),
        ("ana", "create", None),
    ]
    act(app, "ana", tenant="blue")
    assert [c["op"] for c in seen(app, "slides", 1)] == ["update", "create"]  # shared: no tenant
    act(app, "", tenant="")
    assert seen(app, "slides", 1) == []
    assert len(seen(world.owner, "slides", 1)) == 3
    world.owner.execute("alter table slides force row level security")
    assert seen(world.owner, "slides", 1) == []
    assert len(seen(world.admin, "slides", 1)) == 3


def test_a_model_that_is_gone_has_no_changes(world: World) -> None:
    world.owner.execute("insert into slides values (1, 'a', 'one')")
    world.owner.execute("select concord.untrack('slides')")
    assert feed(world.admin, None)[0] == []
    assert refused(world.app, "select concord.history('slides', '1')") == ("model_unknown", "model")


def test_the_helpers_show_no_more_than_the_functions(world: World) -> None:
    world.owner.execute("insert into plans values ('acme', 1, 'one')")
    world.owner.execute("revoke select on plans from app")
    ((model,),) = world.admin.execute("select id from concord_internal.models where name = 'plans'")
    act(world.app)
    assert rows(world.app, "select * from concord_internal.history_of(%s, '1', 9)", model) == []
    for call in (
        "concord_internal.batch(null, null, 0, 9, 'acme', true, 9)",
        f"concord_internal.sight({model})",
        "concord_internal.shown(null, null, null)",
        "concord_internal.parse_position(null, 1, 1)",
        "concord_internal.position_expired(null)",
        "concord_internal.log_cut()",
    ):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            world.app.execute(f"select {call}".encode())
    for call in ("concord.changes(null)", "concord.history('slides', '1')"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            world.db.connect("plain").execute(f"select {call}".encode())


# --- forget ---------------------------------------------------------------------------------------


def test_forget_blanks_the_logged_values_of_one_row(world: World) -> None:
    app = world.app
    act(app)
    app.execute("insert into slides values (1, 'a', 'private', 'body'), (2, 'a', 'kept', 'body')")
    token = capture(app)
    app.execute("update slides set title = 'changed' where id = 1")
    request = {
        "idempotencyKey": "k",
        "readAt": token,
        "onStale": "notify",
        "returning": True,
        "operations": [
            {"type": "update", "model": "slides", "id": 1, "data": {"title": "private too"}},
            {"type": "update", "model": "slides", "id": 2, "data": {"title": "new"}},
        ],
    }
    receipt = commit(app, request)
    assert (receipt["held"], receipt["applied"]) == (1, 1)
    app.execute("delete from slides where id = 1")

    world.owner.execute("select concord.forget('slides', '1')")

    changes = history(app, "slides", 1)
    assert [c["op"] for c in changes] == ["delete", "update", "create"]
    assert [c["before"] for c in changes] == [None] * 3
    assert history(app, "slides", 2)[0]["before"] == {"title": "kept"}
    replayed = commit(app, request)
    (notification,) = replayed["notifications"]
    assert notification["conflictingFields"] == ["title"]
    assert [notification[k] for k in ("currentValues", "baseValues", "proposedValues")] == [{}] * 3
    assert replayed["operations"][1]["data"]["title"] == "new"
    everything = "select string_agg(x::text, '') from {} x"
    for table in ("deltas", "commits", "held"):
        ((text,),) = world.admin.execute(everything.format(f"concord_internal.{table}").encode())
        assert "private" not in text, table


def test_forget_takes_what_a_commit_returned(world: World) -> None:
    act(world.app)
    create = {"type": "create", "model": "slides", "id": 1, "data": {"title": "private"}}
    request = {"idempotencyKey": "k", "returning": True, "operations": [create]}
    assert commit(world.app, request)["operations"][0]["data"]["title"] == "private"
    world.owner.execute("select concord.forget('slides', '1')")
    assert "data" not in commit(world.app, request)["operations"][0]


def test_forget_is_for_the_owner(world: World) -> None:
    world.admin.execute("revoke concord_app from owner")  # no role of concord's is needed
    world.owner.execute("insert into slides values (1, 'a', 'one')")
    world.owner.execute("update slides set title = 'two'")
    act(world.app)
    forget = "select concord.forget(%s, %s)"
    assert refused(world.app, forget, "slides", "1") == ("forbidden", "model")
    assert refused(world.app, forget, "nothing", "1") == ("model_unknown", "model")
    assert refused(world.owner, forget, "nothing", "1") == ("model_unknown", "model")
    assert refused(world.owner, forget, "slides", "one") == ("invalid_request", "id")
    assert refused(world.owner, forget, None, "1") == ("invalid_request", "model")
    assert refused(world.owner, forget, "slides", None) == ("invalid_request", "id")
    world.owner.execute("select concord.forget('slides', '2')")  # nothing to forget
    ((model,),) = world.admin.execute(
        "select id from concord_internal.models where name = 'slides'"
    )
    got = refused(world.app, "select concord_internal.forget_row(%s, '1')", model)
    assert got == ("forbidden", "rel")
    assert history(world.app, "slides", 1)[0]["before"] == {"title": "one"}


# --- values ---------------------------------------------------------------------------------------

# What a column of type json takes and jsonb refuses, and how the feed shows it.
NOT_JSONB = {
    "a NUL": (r'{"a": "\u0000"}', r'{"a": "\u0000"}'),
    "half a character": (r'"\ud800"', r'"\ud800"'),
    "beyond numeric": ('{"a": [1e999999, {"b": "]},{["}]}', '{"a": [1e999999, {"b": "]},{["}]}'),
}


@pytest.mark.parametrize("odd", NOT_JSONB)
def test_json_that_jsonb_refuses_is_shown_as_its_text(world: World, odd: str) -> None:
    """And takes nothing else with it: neither the row's other values nor the rest of the feed."""
    stored, shown = NOT_JSONB[odd]
    world.owner.execute("create table odd (id int primary key, j json, t text)")
    world.owner.execute("select concord.track('odd')")
    world.owner.execute("insert into odd values (1, %s, 'kept'), (2, '{}', 'b')", (stored,))
    world.owner.execute("update odd set j = '{}', t = 'new' where id = 1")
    world.owner.execute("update odd set t = 'c' where id = 2")
    assert history(world.owner, "odd", 1)[0]["before"] == {"j": shown, "t": "kept"}
    changes, _ = feed(world.owner, None)
    assert seqs(changes) == world.deltas()
    assert [c["before"] for c in changes[2:]] == [{"j": shown, "t": "kept"}, {"t": "b"}]


def test_json_too_deep_for_the_reader_is_shown_as_its_text(world: World) -> None:
    """A writer with a larger stack may store what a reader's session can't parse."""
    world.owner.execute("create table odd (id int primary key, j json, t text)")
    world.owner.execute("select concord.track('odd')")
    writer = world.db.connect()
    writer.execute("set max_stack_depth = '7MB'")
    depths = range(2_000, 40_000, 1_000)
    for id, depth in enumerate(depths, start=1):
        deep = "[" * depth + "]" * depth
        with suppress(psycopg.errors.StatementTooComplex):
            writer.execute("insert into odd values (%s, %s, 'kept')", (id, deep))
    writer.execute("update odd set j = null, t = 'new'")
    changes = world.owner.execute(
        "select before->>'t', before->>'j' from concord.changes(null) where op = 'update'"
    ).fetchall()
    assert len(changes) > 20
    assert {t for t, _ in changes} == {"kept"}
    for (_, shown), depth in zip(changes, depths, strict=False):
        assert shown == "[" * depth + "]" * depth


EXOTIC = {
    "numeric[]": "array['NaN', 'Infinity', '-Infinity', 1.10]::numeric[]",
    "float8[]": "array['NaN', 'Infinity', '-0']::float8[]",
    "timestamptz[]": "array['infinity', '-infinity', '0044-03-15 BC']::timestamptz[]",
    "date[]": "array['infinity', '-infinity', '0044-03-15 BC']::date[]",
    "interval": "interval '1 year -3 days 00:00:00.000001'",
    "money": "'12.34'::money",
    "bit varying": "b'0110'",
    "bytea": r"'\x00ff'::bytea",
    "tsvector": "$$'quo''ted':1A 'back\\slash'$$::tsvector",
    "tsquery": "'a & !b'::tsquery",
    "int4multirange": "'{[1,3), [7,)}'::int4multirange",
    "tstzrange": "'empty'::tstzrange",
    "int[]": "'[-2:0][5:6]={{1,2},{3,null},{5,6}}'::int[]",
    "json[]": """array['{"a": "\\u0000"}', '1e999999', '{"a": 1, "a": 2}']::json[]""",
    "jsonb": """'{"": [null, {"x": "\\u0001"}]}'::jsonb""",
    "text": r"""E'\x01\x1f"\\{},:\n' || chr(65534) || chr(128169)""",
    "point": "point '(1e300,-0)'",
    "box": "box '((0,0),(1,1))'",
    "inet": "inet '::1/64'",
    "jsonpath": "'$.a[*] ? (@ > 1)'::jsonpath",
    "xid8": "'18446744073709551615'::xid8",
    "pg_lsn": "'16/B374D848'::pg_lsn",
    "oddly.pair": """row(E'a",\\\\)(', null)::oddly.pair""",
    "oddly.pair[]": """array[row('{"', null), null]::oddly.pair[]""",
    "oddly.mood": """'{"a": "\\u0000'::oddly.mood""",
    "oddly.text": """E'"}, {\\\\u0000'::oddly.text""",
    "oddly.span": """oddly.span('"', '}')""",
}


def test_values_of_any_type_pass_through_the_feed(world: World) -> None:
    """None raises, none is passed over, none takes what stands beside it."""
    world.admin.execute("create schema oddly authorization owner")
    world.owner.execute(
        """
        create type oddly.pair as (a text, b json);
        create type oddly.mood as enum ('{"a": "\\u0000', 'fine');
        create domain oddly.text as text check (value <> 'never');
        create type oddly.span as range (subtype = text)
        """
    )
    columns = ", ".join(f'"{n}" {kind}' for n, kind in enumerate(EXOTIC))
    world.owner.execute(f"create table exotic (id int primary key, kept text, {columns})".encode())
    world.owner.execute("select concord.track('exotic')")
    world.owner.execute(
        f"insert into exotic values (1, 'kept', {', '.join(EXOTIC.values())})".encode()
    )
    world.owner.execute("update exotic set id = 2 where id = 1")
    for n, _ in enumerate(EXOTIC):
        world.owner.execute(f'update exotic set "{n}" = null, kept = %s'.encode(), (str(n),))
    world.owner.execute("delete from exotic")
    changes, _ = feed(world.owner, None)
    assert seqs(changes) == world.deltas()
    moved, created, *updates, deleted = changes[1:]
    if moved["op"] == "create":
        moved, created = created, moved
    assert set(moved["before"]) == {"id", "kept", *map(str, range(len(EXOTIC)))}
    assert moved["before"]["kept"] == "kept"
    for n, (kind, change) in enumerate(zip(EXOTIC, updates, strict=True)):
        assert change["before"] == {
            "kept": "kept" if n == 0 else str(n - 1),
            str(n): moved["before"][str(n)],
        }, kind
        assert change["before"][str(n)] is not None
    assert [c["sync_id"] for c in history(world.owner, "exotic", 2)] == [
        c["sync_id"] for c in reversed([created, *updates, deleted])
    ]
    assert moved["before"][str([*EXOTIC].index("jsonb"))] == {"": [None, {"x": "\x01"}]}
    assert moved["before"][str([*EXOTIC].index("int[]"))] == [[1, 2], [3, None], [5, 6]]


@pytest.mark.parametrize(
    "value",
    ["to_json(repeat('x', 50000000))", "('\"' || repeat('x', 50000000) || '\\u0000\"')::json"],
)
def test_values_of_many_megabytes(world: World, value: str) -> None:
    world.owner.execute("create table big (id int primary key, j json, t text)")
    world.owner.execute("select concord.track('big')")
    world.owner.execute(f"insert into big values (1, {value}, 'kept')".encode())
    world.owner.execute("update big set j = null, t = 'new'")
    found = world.owner.execute(
        "select before->>'t', length(before->>'j') >= 50000000 from concord.changes(null)"
        " where op = 'update'"
    ).fetchall()
    assert found == [("kept", True)]


def test_changes_of_the_whole_model_stand_where_they_happened(world: World) -> None:
    """Each row's history over them, and the values of what came before and after."""
    owner = world.owner
    owner.execute("insert into slides values (1, 'a', 'one', 'b'), (2, 'a', 'two', 'b')")
    owner.execute("update slides set title = 'uno' where id = 1")
    with owner.transaction():
        owner.execute("update slides set title = 'eins' where id = 1")
        owner.execute("truncate slides")
        owner.execute("insert into slides values (1, 'a', 'new', 'b')")
        owner.execute("update slides set title = 'newer' where id = 1")
    owner.execute("truncate slides")
    owner.execute("insert into slides values (1, 'a', 'last', 'b')")
    expected = [
        ("create", None),
        ("update", {"title": "one"}),
        ("update", {"title": "uno"}),
        ("truncate", None),
        ("create", None),
        ("update", {"title": "new"}),
        ("truncate", None),
        ("create", None),
    ]
    changes, _ = feed(owner, None)
    assert seqs(changes) == world.deltas()
    assert [(c["op"], c["before"]) for c in changes if c["id"] in ("1", None)] == expected
    told = history(owner, "slides", 1)
    assert [(c["op"], c["before"]) for c in reversed(told)] == expected
    assert [c["id"] for c in told if c["op"] == "truncate"] == [None, None]
    told = history(owner, "slides", 2)
    assert [c["op"] for c in told] == ["truncate", "truncate", "create"]


# --- conflicts ------------------------------------------------------------------------------------


def held(connection: Connection) -> list[Row]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute("select * from concord.conflicts").fetchall()


@pytest.fixture
def conflict(world: World) -> Row:
    """A held update of slide 1 by agent bot, over what ana wrote."""
    app = world.app
    world.owner.execute("insert into slides values (1, 'a', 'one', 'body')")
    act(app, "bot", kind="agent")
    token = capture(app)
    other = world.writer()
    act(other, "ana")
    other.execute("update slides set title = 'two' where id = 1")
    data = {"title": "mine", "body": "mine"}
    operation = {"type": "update", "model": "slides", "id": 1, "data": data}
    return commit(app, {"readAt": token, "onStale": "notify", "operations": [operation]})


def test_conflicts_are_what_was_held_and_by_whom(world: World, conflict: Row) -> None:
    (row,) = held(world.app)
    assert str(row.pop("commit_id")) == conflict["id"]
    assert sorted(row.pop("fields")) == ["body", "title"]
    row.pop("at")
    assert row == {
        "tenant": "acme",
        "model": "slides",
        "id": "1",
        "kind": "agent",
        "actor": "bot",
        "by_kind": "user",
        "by_actor": "ana",
    }
    assert [found["actor"] for found in held(world.owner)] == ["bot"]


def test_a_conflict_with_an_unknown_author_names_neither_kind_nor_id(world: World) -> None:
    """Here a premise held the operation: whom it met is not in the log of the operation's row."""
    app = world.app
    world.owner.execute("insert into slides values (1, 'a', 'one', 'body'), (2, 'a', 'two', '')")
    act(app, "bot", kind="agent")
    token = capture(app)
    other = world.writer()
    act(other, "ana")
    other.execute("update slides set title = 'moved' where id = 2")
    held_by_premise = {"type": "update", "model": "slides", "id": 1, "data": {"title": "mine"}}
    receipt = commit(
        app,
        {
            "readAt": token,
            "onStale": "notify",
            "operations": [held_by_premise],
            "reads": [{"model": "slides", "id": 2}],
        },
    )
    assert receipt["held"] == 1
    (row,) = held(app)
    assert (row["by_kind"], row["by_actor"]) == (None, None)


def test_conflicts_are_behind_the_same_wall(world: World, conflict: Row) -> None:
    app = world.app
    assert conflict["held"] == 1
    act(app, "bot", tenant="blue", kind="agent")
    assert held(app) == []
    act(app, "", tenant="")
    assert held(app) == []
    act(app, "ana")
    assert len(held(app)) == 1
    world.owner.execute("revoke select on slides from app")
    world.owner.execute("grant select (id, body) on slides to app")
    assert held(app)[0]["fields"] == ["body"]
    world.owner.execute("revoke select (body) on slides from app")
    assert held(app) == []
    world.owner.execute("grant select on slides to app")
    world.owner.execute("alter table slides enable row level security")
    assert held(app) == []
    act(app, "bot", kind="agent")
    assert len(held(app)) == 1
    world.owner.execute("revoke select on slides from app")
    assert held(app) == []


# --- a crash --------------------------------------------------------------------------------------


@pytest.mark.crash
def test_a_consumer_loses_nothing_over_a_crash(own_server: OwnServer) -> None:
    db = own_server.db()
    owner = db.connect("owner")
    owner.execute(TABLES)
    owner.execute("insert into slides values (1)")
    prepared = db.connect("app", autocommit=False)
    prepared.execute("insert into slides values (2)")
    prepared.execute("prepare transaction 'p'")
    changes, position = feed(db.connect(), None)
    assert [c["id"] for c in changes] == ["1"]
    db.close()

    own_server.stop("immediate")
    own_server.start()

    admin = db.connect()
    assert refused(admin, "select concord.changes(%s)", position) == ("token_foreign", "since")
    changes, position = feed(admin, None)
    assert [c["id"] for c in changes] == ["1"]
    admin.execute("insert into slides values (3)")
    changes, position = feed(admin, position)
    assert [c["id"] for c in changes] == ["3"]
    admin.execute("commit prepared 'p'")
    changes, position = feed(admin, position)
    assert [c["id"] for c in changes] == ["2"]
    assert feed(admin, position)[0] == []
