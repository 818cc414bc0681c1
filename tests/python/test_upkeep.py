"""concord.maintain(), the leaves of the log, settings and stats.

Time is moved by altering what the log says about it, as a superuser; ids are used up for real.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pyconcord.embedded import copy_installation, scratch_dir, server_version_dirs
from tests.support import PG_VERSION, Database, OwnServer
from tests.talk import act, capture, code_of, commit, refused

Connection = psycopg.Connection[Any]
Report = dict[str, Any]

TABLES = """
create table slides (id int primary key, title text, body text);
grant select, insert, update, delete, truncate on slides to app, app2;
select concord.track('slides');
insert into slides select n, 'one', 'body' from generate_series(1, 5) n;
"""

BURN = """
create procedure burn(n bigint) language plpgsql as $$
begin
  for i in 1 .. n loop
    perform pg_current_xact_id();
    commit;
  end loop;
end $$
"""


@dataclass
class Upkeep:
    """A database with one tracked table, and a superuser who keeps it."""

    db: Database
    admin: Connection
    owner: Connection
    app: Connection
    titles: int = field(default=0)

    def maintain(self) -> Report:
        ((report,),) = self.admin.execute("select concord.maintain()")
        return dict(report)

    def cut(self) -> list[str]:
        """The leaves that two calls empty: the first announces, the second cuts."""
        announced = self.maintain()
        report = self.maintain()
        assert set(report["truncated"]) <= set(announced["announced"])
        return [leaf.removeprefix("concord_internal.") for leaf in report["truncated"]]

    def leaves(self) -> dict[str, tuple[int, int, int] | None]:
        """Bounds of the leaves by name: epoch, first id, first id beyond; None for the default."""
        found = self.admin.execute(
            "select relname, epoch, from_xid::text::bigint, to_xid::text::bigint"
            " from concord_internal.leaves() join pg_class on oid = leaf"
        )
        return {n: (e, a, b) if e is not None else None for n, e, a, b in found}

    def rows_in(self) -> dict[str, int]:
        query = (
            "select c.relname, count(*) from concord_internal.deltas d"
            " join pg_class c on c.oid = d.tableoid group by 1"
        )
        return dict(self.admin.execute(query).fetchall())

    def newest_leaf(self) -> str:
        bounds = {name: b for name, b in self.leaves().items() if b is not None}
        return max(bounds, key=lambda name: bounds[name])

    def go_to(self, leaf: str) -> None:
        """Use up ids until the next write falls into this leaf."""
        bounds = self.leaves()[leaf]
        assert bounds is not None
        ((now,),) = self.admin.execute("select pg_current_xact_id()::text::bigint")
        if bounds[1] > now:
            self.admin.execute("call burn(%s)", (bounds[1] - now,))

    def go_past(self, leaf: str) -> None:
        """Use up ids until the next write falls beyond this leaf."""
        bounds = self.leaves()[leaf]
        assert bounds is not None
        ((now,),) = self.admin.execute("select pg_current_xact_id()::text::bigint")
        if bounds[2] > now:
            self.admin.execute("call burn(%s)", (bounds[2] - now,))

    def write(self, id: int = 1) -> None:
        self.titles += 1
        self.owner.execute("update slides set title = %s where id = %s", (str(self.titles), id))

    def configure(self, key: str, value: str) -> None:
        self.admin.execute("select concord.configure(%s, %s)", (key, value))

    def age(self, by: str = "40 days") -> None:
        """Everything in the log was logged so much earlier."""
        for table in ("deltas", "commits", "held"):
            query = f"update concord_internal.{table} set at = at - %s::interval"
            self.admin.execute(query.encode(), (by,))

    def slowly(self) -> None:
        """As if ids had been used up slowly: leaves come out as narrow as they get, 100 ids."""
        self.admin.execute(
            "insert into concord_internal.upkeep"
            " select true, now(), concord_internal.epoch(), pg_current_xact_id(),"
            "   now() - interval '100000 days', '0'"
            " on conflict (only_one) do update set planned_at = excluded.planned_at"
        )


@pytest.fixture
def upkeep(db: Database) -> Upkeep:
    admin, owner = db.connect(), db.connect("owner")
    admin.execute(BURN)
    owner.execute(TABLES)
    found = Upkeep(db, admin, owner, db.connect("app"))
    found.slowly()
    return found


def update(title: str, **more: Any) -> dict[str, Any]:
    operation = {"type": "update", "model": "slides", "id": 1, "data": {"title": title}}
    return {"operations": [operation], **more}


def feed(connection: Connection, since: str | None, max: int = 1000) -> tuple[list[int], str]:
    """Numbers of all changes up to a checkpoint, and the position there."""
    found: list[int] = []
    while True:
        page = connection.execute(
            "select sync_id, op, next_token from concord.changes(%s, %s)", (since, max)
        ).fetchall()
        since = page[-1][2]
        found += [seq for seq, op, _ in page if op != "checkpoint"]
        if page[-1][1] == "checkpoint":
            return found, str(since)


# --- leaves ---------------------------------------------------------------------------------------


def test_the_first_run_makes_a_leaf_and_the_second_finds_nothing_to_do(upkeep: Upkeep) -> None:
    report = upkeep.maintain()
    nothing = {"receipts": 0, "commits": 0, "held": 0, "models": 0}
    assert report == {
        "pruned": nothing,
        "announced": [],
        "truncated": [],
        "made": ["deltas_1"],
        "rotated": [],
        "put_off": [],
    }
    assert upkeep.maintain() == report | {"made": []}
    upkeep.write()
    assert upkeep.rows_in() == {"deltas_default": 6}
    upkeep.go_to("deltas_1")
    upkeep.write()
    assert upkeep.rows_in() == {"deltas_default": 6, "deltas_1": 1}


def test_leaves_follow_one_another_without_a_gap(upkeep: Upkeep) -> None:
    upkeep.maintain()
    upkeep.go_to("deltas_1")
    upkeep.slowly()
    assert upkeep.maintain()["made"] == ["deltas_2"]
    first, second = upkeep.leaves()["deltas_1"], upkeep.leaves()["deltas_2"]
    assert first is not None
    assert second is not None
    assert first[2] == second[1]
    upkeep.go_past("deltas_1")
    upkeep.write()
    assert upkeep.rows_in() == {"deltas_default": 5, "deltas_2": 1}


def test_late_maintenance_never_breaks_a_write(upkeep: Upkeep) -> None:
    upkeep.maintain()
    upkeep.go_to("deltas_1")
    upkeep.write()
    upkeep.go_past("deltas_1")
    upkeep.write()
    assert upkeep.rows_in() == {"deltas_default": 6, "deltas_1": 1}
    upkeep.slowly()
    assert upkeep.maintain()["made"] == ["deltas_2"]
    upkeep.write()
    upkeep.go_to("deltas_2")
    upkeep.write()
    assert upkeep.rows_in() == {"deltas_default": 7, "deltas_1": 1, "deltas_2": 1}
    assert len(feed(upkeep.admin, None, 3)[0]) == 9


def test_a_leaf_has_all_that_the_default_has_and_nobody_may_touch_it(upkeep: Upkeep) -> None:
    upkeep.admin.execute(
        "alter default privileges for role concord_owner grant all on tables to app2"
    )
    upkeep.maintain()
    upkeep.admin.execute(
        "alter default privileges for role concord_owner revoke all on tables from app2"
    )
    shape = """
      select (select array_agg(i.def order by i.def) from (
                select regexp_replace(pg_get_indexdef(indexrelid), '.* USING', '') as def
                  from pg_index where indrelid = c.oid) i), relowner::regrole::text,
             has_table_privilege('app2', c.oid, 'select, insert, update, delete, truncate')
        from pg_class c where c.oid = %s::regclass"""
    one = upkeep.admin.execute(shape, ("concord_internal.deltas_1",)).fetchone()
    other = upkeep.admin.execute(shape, ("concord_internal.deltas_default",)).fetchone()
    assert one == other
    assert one is not None
    assert (one[1], one[2]) == ("concord_owner", False)


def test_a_new_epoch_begins_a_leaf_of_its_own(upkeep: Upkeep) -> None:
    upkeep.maintain()
    upkeep.go_to("deltas_1")
    upkeep.write()
    upkeep.admin.execute("select concord.new_epoch()")
    upkeep.write()
    assert upkeep.rows_in() == {"deltas_default": 6, "deltas_1": 1}
    upkeep.slowly()
    assert upkeep.maintain()["made"] == ["deltas_2"]
    upkeep.go_to("deltas_2")
    upkeep.write()
    assert upkeep.rows_in() == {"deltas_default": 6, "deltas_1": 1, "deltas_2": 1}
    assert len(feed(upkeep.admin, None, 3)[0]) == 8
    upkeep.age()
    token = capture(upkeep.app)
    assert "deltas_1" in upkeep.cut()
    assert feed(upkeep.app, token) == ([], feed(upkeep.app, None)[1])


def test_the_width_of_a_leaf_follows_how_fast_ids_are_used(upkeep: Upkeep) -> None:
    """As many as are used up in one part of retention: 30 days, in 8 leaves."""
    upkeep.admin.execute(
        "update concord_internal.upkeep"
        " set planned_xid = '0', planned_at = now() - interval '1 day'"
    )
    ((now,),) = upkeep.admin.execute("select pg_current_xact_id()::text::bigint")
    upkeep.maintain()
    bounds = upkeep.leaves()["deltas_1"]
    assert bounds is not None
    assert bounds[2] - bounds[1] == pytest.approx(now * 30 / 8, rel=0.01)


def test_the_first_leaf_is_planned_from_what_is_in_the_log(upkeep: Upkeep) -> None:
    upkeep.admin.execute("delete from concord_internal.upkeep")
    upkeep.admin.execute("update concord_internal.deltas set at = now() - interval '20 days'")
    upkeep.admin.execute("call burn(200)")
    upkeep.maintain()
    bounds = upkeep.leaves()["deltas_1"]
    assert bounds is not None
    assert bounds[2] - bounds[1] == 100


def test_the_first_leaf_of_an_empty_log_is_small(db: Database) -> None:
    admin = db.connect()
    admin.execute("select concord.maintain()")
    ((width,),) = admin.execute(
        "select to_xid::text::bigint - from_xid::text::bigint from concord_internal.leaves()"
        " where epoch is not null"
    )
    assert width == 10000


def test_nobody_else_may_be_maintaining(upkeep: Upkeep) -> None:
    with upkeep.db.connect(autocommit=False) as other:
        other.execute("select concord.maintain()")
        assert upkeep.maintain()["put_off"] == ["everything: another maintain is running"]


def test_what_is_locked_is_put_off_and_done_the_next_time(upkeep: Upkeep) -> None:
    """Somebody's long transaction has written into the default leaf."""
    writer = upkeep.db.connect("app", autocommit=False)
    writer.execute("update slides set title = 'mine' where id = 1")
    report = upkeep.maintain()
    assert report["made"] == []
    assert report["put_off"] == ["make deltas_1: the default leaf is in use"]
    assert list(upkeep.leaves()) == ["deltas_default"]
    writer.commit()
    assert upkeep.maintain()["made"] == ["deltas_1"]


def test_the_waits_of_maintain_end_with_it(upkeep: Upkeep) -> None:
    upkeep.admin.execute("set lock_timeout = '7s'")
    upkeep.maintain()
    assert upkeep.admin.execute("show lock_timeout").fetchone() == ("7s",)


@pytest.mark.parametrize("login", ["app2", "plain", "owner"])
def test_maintain_is_for_those_whom_the_database_trusts(upkeep: Upkeep, login: str) -> None:
    assert refused(upkeep.db.connect(login), "select concord.maintain()") == ("forbidden", None)


def test_a_service_may_maintain(upkeep: Upkeep) -> None:
    ((report,),) = upkeep.app.execute("select concord.maintain()")
    assert report["made"] == ["deltas_1"]


def test_maintain_does_not_run_read_only(upkeep: Upkeep) -> None:
    upkeep.admin.execute("set default_transaction_read_only = on")
    assert refused(upkeep.admin, "select concord.maintain()") == ("invalid_request", None)


# --- retention ------------------------------------------------------------------------------------


@pytest.fixture
def two_leaves(upkeep: Upkeep) -> Upkeep:
    """Deltas 1 to 5 in the default, 6 in leaf 1 and 7 in leaf 2, where the present is."""
    upkeep.maintain()
    upkeep.go_to("deltas_1")
    upkeep.write(1)
    upkeep.slowly()
    upkeep.maintain()
    upkeep.go_to("deltas_2")
    upkeep.write(2)
    return upkeep


def test_what_is_young_stays(two_leaves: Upkeep) -> None:
    two_leaves.age("29 days")
    assert two_leaves.cut() == []
    assert two_leaves.rows_in() == {"deltas_default": 5, "deltas_1": 1, "deltas_2": 1}


def test_leaves_past_retention_are_announced_emptied_and_used_again(two_leaves: Upkeep) -> None:
    upkeep = two_leaves
    upkeep.age()
    doomed = ["concord_internal.deltas_1", "concord_internal.deltas_default"]
    first = upkeep.maintain()
    assert (first["announced"], first["truncated"], first["made"]) == (doomed, [], ["deltas_3"])
    assert upkeep.rows_in() == {"deltas_default": 5, "deltas_1": 1, "deltas_2": 1}
    second = upkeep.maintain()
    assert (second["announced"], second["truncated"]) == ([], doomed)
    assert upkeep.rows_in() == {"deltas_2": 1}  # where somebody may still write
    assert feed(upkeep.admin, None)[0] == [7]
    upkeep.go_to("deltas_3")
    upkeep.slowly()
    third = upkeep.maintain()
    assert (third["announced"], third["rotated"]) == ([doomed[0].replace("1", "2")], ["deltas_1"])
    upkeep.go_to("deltas_1")
    upkeep.write()
    assert upkeep.rows_in() == {"deltas_2": 1, "deltas_1": 1}


def test_one_young_delta_keeps_its_whole_leaf(two_leaves: Upkeep) -> None:
    """Also where vacuum gave a place at the leaf's beginning to it."""
    two_leaves.age()
    two_leaves.admin.execute("update concord_internal.deltas set at = now() where seq = 2")
    two_leaves.admin.execute(
        "insert into concord_internal.deltas"
        " select xid, 1000 + n, at, epoch, model, 1, 'u', 's', ''"
        " from concord_internal.deltas, generate_series(1, 1000) n where seq = 1"
    )
    assert two_leaves.cut() == ["deltas_1"]
    assert two_leaves.rows_in() == {"deltas_default": 1005, "deltas_2": 1}
    two_leaves.age()
    assert two_leaves.cut() == ["deltas_default"]


def test_the_default_is_not_cut_while_it_is_written_into(two_leaves: Upkeep) -> None:
    two_leaves.go_past(two_leaves.newest_leaf())
    two_leaves.age()
    writer = two_leaves.db.connect("app", autocommit=False)
    writer.execute("select pg_current_xact_id()")
    assert "concord_internal.deltas_default" not in two_leaves.maintain()["announced"]
    token = capture(two_leaves.app)
    writer.execute("update slides set title = 'late' where id = 1")
    writer.commit()
    assert len(feed(two_leaves.app, token)[0]) == 1


def test_tokens_that_may_have_missed_what_was_cut_are_expired(two_leaves: Upkeep) -> None:
    """In flight when the token was taken: its delta is cut, and nobody can tell any more."""
    upkeep = two_leaves
    act(upkeep.app)
    writer = upkeep.db.connect("app", autocommit=False)
    writer.execute("update slides set title = 'late' where id = 1")
    old = capture(upkeep.app)
    writer.commit()
    fresh = capture(upkeep.app)
    upkeep.go_past("deltas_2")
    upkeep.age()
    for _ in ("announced", "cut"):
        upkeep.maintain()
        for call in ("concord.changes(%s)", "concord.commit(%s)"):
            given = old if "changes" in call else Jsonb(update("mine", readAt=old))
            assert refused(upkeep.app, f"select {call}", given)[0] == "token_expired"
        assert feed(upkeep.app, fresh)[0] == []
    assert "deltas_2" not in upkeep.rows_in()
    assert commit(upkeep.app, update("mine", readAt=fresh))["applied"] == 1
    assert len(feed(upkeep.app, fresh)[0]) == 1


def test_nothing_is_cut_that_a_transaction_in_flight_may_write_into(two_leaves: Upkeep) -> None:
    """Its id is in the old leaf's range, though it has not written there yet."""
    upkeep = two_leaves
    writer = upkeep.db.connect("app", autocommit=False)
    writer.execute("select pg_current_xact_id()")
    upkeep.go_past("deltas_2")
    upkeep.age()
    assert "concord_internal.deltas_2" not in upkeep.maintain()["announced"]
    token = capture(upkeep.app)
    writer.execute("update slides set title = 'late' where id = 3")
    writer.commit()
    assert len(feed(upkeep.app, token)[0]) == 1
    upkeep.maintain()
    upkeep.age()
    assert "deltas_2" in upkeep.cut()


def test_a_prepared_transaction_holds_its_leaf(two_leaves: Upkeep) -> None:
    upkeep = two_leaves
    writer = upkeep.db.connect("app", autocommit=False)
    writer.execute("update slides set title = 'late' where id = 1")
    writer.execute("prepare transaction 'p'")
    token = capture(upkeep.app)
    upkeep.go_past("deltas_2")
    upkeep.age()
    assert "concord_internal.deltas_2" not in upkeep.maintain()["announced"]
    upkeep.admin.execute("commit prepared 'p'")
    assert len(feed(upkeep.app, token)[0]) == 1


def test_a_reader_of_the_log_puts_the_cut_off(two_leaves: Upkeep) -> None:
    """It came after the announcement, and what it reads is not to vanish under it."""
    upkeep = two_leaves
    upkeep.age()
    assert len(upkeep.maintain()["announced"]) == 2
    upkeep.configure("maintain_lock_timeout", "20 ms")
    reader = upkeep.db.connect("app", autocommit=False)
    holder = upkeep.db.connect("app", autocommit=False)
    holder.execute("select 1")
    upkeep.maintain()  # lists the holder
    reader.execute("select concord.changes(null, 1)")
    holder.rollback()
    report = upkeep.maintain()
    assert report["truncated"] == []
    assert report["put_off"][:2] == [
        "truncate concord_internal.deltas_1: in use",
        "truncate concord_internal.deltas_default: in use",
    ]
    reader.commit()
    assert len(upkeep.maintain()["truncated"]) == 2


def test_nothing_is_cut_under_who_was_there_when_it_was_announced(two_leaves: Upkeep) -> None:
    """It may have compared its token with the floor already; nothing of the log is locked by it."""
    upkeep = two_leaves
    upkeep.configure("maintain_lock_timeout", "20 ms")
    upkeep.age()
    old = upkeep.db.connect("plain", autocommit=False)
    old.execute("select 1")
    assert len(upkeep.maintain()["announced"]) == 2
    for _ in range(2):
        report = upkeep.maintain()
        assert report["truncated"] == []
        assert report["put_off"] == [
            "truncate: 1 transactions have not ended that were there when it was announced"
        ]
    young = upkeep.db.connect("plain", autocommit=False)
    young.execute("select 1")
    old.rollback()
    assert len(upkeep.maintain()["truncated"]) == 2
    young.rollback()


def test_announcing_and_cutting_are_two_transactions(two_leaves: Upkeep) -> None:
    two_leaves.age()
    with two_leaves.admin.transaction():
        assert len(two_leaves.maintain()["announced"]) == 2
        for _ in range(3):
            assert two_leaves.maintain()["truncated"] == []
    assert len(two_leaves.maintain()["truncated"]) == 2


def waits_for_lock(upkeep: Upkeep, pid: int) -> bool:
    query = "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s"
    return upkeep.admin.execute(query, (pid,)).fetchone() == (True,)


@pytest.mark.parametrize(
    ("more", "expected"), [({}, "token_expired"), ({"label": "by the long way"}, "stale_context")]
)
def test_a_commit_that_waits_while_its_token_expires_is_still_judged(
    two_leaves: Upkeep, more: dict[str, Any], expected: str
) -> None:
    """Its token was good when it began; the log is not cut under it while it waits for the row."""
    upkeep = two_leaves
    upkeep.configure("maintain_lock_timeout", "20 ms")
    act(upkeep.app)
    token = capture(upkeep.app)
    upkeep.write(1)
    upkeep.go_past("deltas_2")
    upkeep.age()
    holder = upkeep.db.connect("owner", autocommit=False)
    holder.execute("select from slides where id = 1 for update")
    outcomes: list[str] = []

    def ask() -> None:
        try:
            commit(upkeep.app, update("mine", readAt=token, **more))
            outcomes.append("applied")
        except psycopg.Error as error:
            outcomes.append(code_of(error)[0])

    waiting = threading.Thread(target=ask)
    waiting.start()
    while not waits_for_lock(upkeep, upkeep.app.info.backend_pid):
        assert waiting.is_alive(), outcomes
    assert "concord_internal.deltas_2" in upkeep.maintain()["announced"]
    assert upkeep.maintain()["truncated"] == []
    holder.rollback()
    waiting.join()
    assert outcomes == [expected]
    assert "concord_internal.deltas_2" in upkeep.maintain()["truncated"]
    assert refused(upkeep.app, "select concord.changes(%s)", token)[0] == "token_expired"


def test_a_fixed_snapshot_is_not_cut_under(two_leaves: Upkeep) -> None:
    """TRUNCATE shows under every snapshot: a transaction from before it would find nothing."""
    upkeep = two_leaves
    upkeep.configure("maintain_lock_timeout", "20 ms")
    upkeep.age()
    reader = upkeep.db.connect("app", autocommit=False)
    reader.execute("set transaction isolation level repeatable read")
    token = capture(reader)
    upkeep.write(4)
    assert len(upkeep.maintain()["announced"]) == 2
    assert upkeep.maintain()["truncated"] == []
    assert feed(reader, None, 2)[0] == [1, 2, 3, 4, 5, 6, 7]
    assert feed(reader, token)[0] == []
    reader.commit()
    assert len(upkeep.maintain()["truncated"]) == 2
    assert feed(reader, token)[0] == [8]


def test_a_page_that_began_before_a_cut_is_expired_or_whole(two_leaves: Upkeep) -> None:
    """Positions inside a batch: past what was cut, or refused. Never a silent gap."""
    upkeep = two_leaves
    positions = {}
    since = None
    for _ in range(7):
        ((seq, since),) = upkeep.app.execute(
            "select sync_id, next_token from concord.changes(%s, 1)", (since,)
        )
        positions[seq] = since
    upkeep.age()
    assert upkeep.cut() == ["deltas_1", "deltas_default"]  # deltas 1 to 6
    for seq, position in positions.items():
        if seq < 6:
            got = refused(upkeep.app, "select concord.changes(%s)", position)
            assert got == ("token_expired", "since"), seq
        else:
            assert feed(upkeep.app, position)[0] == list(range(seq + 1, 8)), seq
    assert feed(upkeep.app, None)[0] == [7]


def test_a_full_set_of_leaves_is_not_exceeded(upkeep: Upkeep) -> None:
    upkeep.maintain()
    for _ in range(16):
        upkeep.go_to(upkeep.newest_leaf())
        upkeep.write()
        upkeep.slowly()
        report = upkeep.maintain()
    assert len(upkeep.leaves()) == 16
    assert report["put_off"] == ["make a leaf: there are enough, and none is empty"]
    upkeep.write()
    assert sum(upkeep.rows_in().values()) == 5 + 17
    upkeep.go_past(upkeep.newest_leaf())
    upkeep.age()
    upkeep.write()
    assert len(upkeep.cut()) == 15
    assert upkeep.rows_in() == {"deltas_default": 6}


# --- pruning --------------------------------------------------------------------------------------


def test_receipts_are_blanked_and_keys_freed_past_idempotency_retention(upkeep: Upkeep) -> None:
    act(upkeep.app)
    first = commit(upkeep.app, update("mine", idempotencyKey="k", label="said"))
    assert commit(upkeep.app, update("mine", idempotencyKey="k", label="said"))["replayed"] is True
    assert upkeep.maintain()["pruned"]["receipts"] == 0
    upkeep.admin.execute("update concord_internal.commits set at = at - interval '25 hours'")
    assert upkeep.maintain()["pruned"]["receipts"] == 1
    assert upkeep.maintain()["pruned"]["receipts"] == 0
    second = commit(upkeep.app, update("again", idempotencyKey="k"))
    assert (second["replayed"], second["applied"]) == (False, 1)
    # What the log says of the first one is still known.
    found = upkeep.app.execute(
        "select commit_id::text, label from concord.history('slides', '1') where op = 'update'"
    ).fetchall()
    assert found == [(second["id"], None), (first["id"], "said")]


def test_a_late_commit_is_blanked_too(upkeep: Upkeep) -> None:
    """Its id is below those that a run went past while it was in flight."""
    act(upkeep.app)
    late = upkeep.db.connect("app", autocommit=False)
    act(late)
    commit(late, update("late", idempotencyKey="late"))
    operation = {"type": "update", "model": "slides", "id": 2, "data": {"title": "early"}}
    commit(upkeep.app, {"idempotencyKey": "early", "operations": [operation]})
    upkeep.admin.execute("update concord_internal.commits set at = at - interval '25 hours'")
    upkeep.maintain()
    late.commit()
    upkeep.admin.execute("update concord_internal.commits set at = at - interval '25 hours'")
    upkeep.maintain()
    query = "select count(*) from concord_internal.commits where receipt is not null"
    assert upkeep.admin.execute(query).fetchone() == (0,)


def test_commits_and_held_operations_go_past_retention(upkeep: Upkeep) -> None:
    act(upkeep.app)
    token = capture(upkeep.app)
    upkeep.write()
    receipt = commit(upkeep.app, update("mine", readAt=token, onStale="notify"))
    assert receipt["held"] == 1
    assert upkeep.maintain()["pruned"] == {"receipts": 0, "commits": 0, "held": 0, "models": 0}
    upkeep.age()
    pruned = upkeep.maintain()["pruned"]
    assert (pruned["commits"], pruned["held"]) == (1, 1)
    assert upkeep.app.execute("select count(*) from concord.conflicts").fetchone() == (0,)


def test_what_is_left_of_a_dropped_table_goes(upkeep: Upkeep) -> None:
    functions = """
      select count(*) from pg_proc where pronamespace = 'concord_internal'::regnamespace
         and proname like 'model\\_1\\_%'"""
    assert upkeep.admin.execute(functions).fetchone() == (7,)
    upkeep.owner.execute("drop table slides")
    shown = "select count(*) from concord.models"
    assert upkeep.admin.execute(shown).fetchone() == (1,)
    for login in ("owner", "app", "plain"):  # its name, its groups: whose they were nobody can tell
        assert upkeep.db.connect(login).execute(shown).fetchone() == (0,), login
    assert upkeep.maintain()["pruned"]["models"] == 1
    assert upkeep.admin.execute(functions).fetchone() == (0,)
    assert upkeep.admin.execute("select count(*) from concord_internal.models").fetchone() == (0,)


# --- settings -------------------------------------------------------------------------------------


def setting(connection: Connection, key: str) -> str:
    ((value,),) = connection.execute("select value from concord.settings where key = %s", (key,))
    return str(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("retention", "7 days"),
        ("idempotency_retention", "PT90M"),
        ("lock_timeout", "250ms"),
        ("lock_timeout", "1 min"),
        ("maintain_lock_timeout", "50 ms"),
        ("leaf_count", "4"),
        ("notify", "on"),
    ],
)
def test_a_setting_is_set_shown_and_taken_back(upkeep: Upkeep, key: str, value: str) -> None:
    default = setting(upkeep.app, key)
    upkeep.admin.execute("select concord.configure(%s, %s)", (key, f" {value} "))
    assert setting(upkeep.app, key) == value
    upkeep.maintain()
    upkeep.admin.execute("select concord.configure(%s, null)", (key,))
    assert setting(upkeep.app, key) == default


@pytest.mark.parametrize(
    ("key", "value", "param"),
    [
        ("nothing", "1", "key"),
        (None, "1", "key"),
        ("Retention", "1 day", "key"),
        ("retention", "soon", "value"),
        ("retention", "-1 day", "value"),
        ("retention", "1 second", "value"),
        ("retention", "999999 years", "value"),
        ("retention", "", "value"),
        ("idempotency_retention", "0", "value"),
        ("lock_timeout", "0 s", "value"),
        ("lock_timeout", "5", "value"),
        ("lock_timeout", "2 hours", "value"),
        ("lock_timeout", "5 s; drop table slides", "value"),
        ("lock_timeout", "9999999 min", "value"),
        ("maintain_lock_timeout", "-1 ms", "value"),
        ("leaf_count", "1", "value"),
        ("leaf_count", "12", "value"),
        ("leaf_count", "x", "value"),
        ("notify", "yes", "value"),
    ],
)
def test_a_setting_that_could_not_be_used_is_refused(
    upkeep: Upkeep, key: str | None, value: str, param: str
) -> None:
    before = upkeep.admin.execute("table concord.settings").fetchall()
    got = refused(upkeep.admin, "select concord.configure(%s, %s)", key, value)
    assert got == ("invalid_request", param)
    assert upkeep.admin.execute("table concord.settings").fetchall() == before


@pytest.mark.parametrize("login", ["app", "app2", "plain", "owner"])
def test_settings_are_for_administrators_to_change_and_for_all_to_see(
    upkeep: Upkeep, login: str
) -> None:
    connection = upkeep.db.connect(login)
    got = refused(connection, "select concord.configure('retention', '1 day')")
    assert got == ("forbidden", None)
    assert setting(connection, "retention") == "30 days"
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("select * from concord_internal.settings")


def test_the_owner_of_the_database_is_an_administrator(upkeep: Upkeep) -> None:
    name = upkeep.db.name
    upkeep.admin.execute(f'alter database "{name}" owner to owner'.encode())
    owner = upkeep.db.connect("owner")
    owner.execute("select concord.configure('retention', '1 day')")
    owner.execute("select concord.maintain()")
    assert owner.execute("select leaves from concord.stats").fetchone() == (2,)
    upkeep.admin.execute(f'alter database "{name}" owner to postgres'.encode())


# --- stats ----------------------------------------------------------------------------------------


def test_stats_tell_the_size_of_the_log(upkeep: Upkeep) -> None:
    upkeep.owner.execute("create table notes (id int primary key)")
    upkeep.owner.execute("select concord.track('notes', tenant => 'acme')")
    upkeep.owner.execute("insert into notes select n from generate_series(1, 20) n")
    upkeep.maintain()
    upkeep.admin.execute("analyze concord_internal.deltas_default")
    columns = (
        "leaves, models, deltas_by_model, deltas, floor_xid::text, held, maintained_at is null"
    )
    found = upkeep.app.execute(f"select {columns} from concord.stats".encode()).fetchone()
    assert found == (2, 2, {"slides": 5, "acme/notes": 20}, 25, "0", 0, False)
    sizes = upkeep.app.execute(
        "select log_bytes, index_bytes, default_bytes, oldest <= now() from concord.stats"
    ).fetchone()
    assert sizes is not None
    assert min(sizes[:3]) > 0
    assert sizes[3] is True


@pytest.mark.parametrize("login", ["app2", "plain"])
def test_stats_are_not_for_those_who_act_for_one_tenant(upkeep: Upkeep, login: str) -> None:
    assert upkeep.db.connect(login).execute("table concord.stats").fetchall() == []


# --- dump and restore -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server_with_files() -> Iterator[OwnServer]:
    """A server that can CREATE EXTENSION concord."""
    target = scratch_dir("pyconcord-upkeep-")
    target.chmod(0o755)
    bindir = copy_installation(server_version_dirs()[PG_VERSION], target)
    subprocess.run(
        ["make", "--no-print-directory", "install", f"PG_CONFIG={bindir / 'pg_config'}"],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    with OwnServer(bindir=bindir) as running:
        yield running
    shutil.rmtree(target)


@pytest.mark.packaging
@pytest.mark.parametrize("kind", ["objects", "extension"])
def test_leaves_and_what_is_in_them_survive_dump_and_restore(
    server_with_files: OwnServer, kind: str
) -> None:
    server = server_with_files
    db = server.db(install=kind == "objects")
    own = Upkeep(db, db.connect(), db.connect("owner"), db.connect())
    if kind == "extension":
        own.admin.execute("create extension concord; grant create on schema public to owner")
    own.admin.execute(BURN)
    own.owner.execute(TABLES)
    own.slowly()
    own.maintain()
    own.go_to("deltas_1")
    own.write()
    own.maintain()
    own.configure("retention", "7 days")
    state = (
        "select tableoid::regclass::text, seq, xid::text, epoch from concord_internal.deltas"
        " order by seq"
    )
    before = own.admin.execute(state).fetchall()
    assert {leaf for leaf, *_ in before} == {
        "concord_internal.deltas_1",
        "concord_internal.deltas_default",
    }
    dump = subprocess.run(
        [server.bin("pg_dump"), "-d", db.dsn()], capture_output=True, check=True
    ).stdout
    copy = server.db(install=False)
    restore = subprocess.run(
        [server.bin("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", copy.dsn()],
        input=dump,
        capture_output=True,
        check=False,
    )
    assert restore.stderr == b""
    restored = Upkeep(copy, copy.connect(), copy.connect("owner"), copy.connect(), titles=50)
    assert restored.admin.execute(state).fetchall() == before
    assert restored.leaves() == own.leaves()
    assert setting(restored.admin, "retention") == "7 days"
    restored.write()
    assert feed(restored.admin, None)[0] == [seq for _, seq, *_ in before] + [before[-1][1] + 1]
    assert restored.maintain()["put_off"] == []
    assert restored.admin.execute("select * from concord.verify()").fetchall() == []
    restored.age()
    assert "deltas_1" in restored.cut()
    db.close()
    copy.close()
