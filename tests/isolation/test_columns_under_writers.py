"""Columns that come, go and change under eight guarded writers.

Each writer appends its mark to the trail of a row that all share, and to that of a row of its own,
each time to what it read. Meanwhile the table's owner alters other columns, and writes to them.
What must come out: every mark that was confirmed, once; no refusal of a write to a row that nobody
else touched; and for every refusal a change that its token had really not seen. (Marks and no
counter: two who both write the same next number do not conflict.)
"""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.isolation.schedule import CONTENDED, Session, Story, refused, request, update

COUNTERS = """
create table trails (id int primary key, trail text not null default '', spare text, other text);
insert into trails (id) select generate_series(0, 8);
select concord.track('trails');
"""
SHARED = 0
WRITERS = range(1, 9)
AFTERWARDS = 6  # rounds of each writer when the columns have come to rest
AT_MOST = 400

# What the owner does, again and again. The table ends as it began.
CHANGES: dict[str, list[str]] = {
    "added": [
        "alter table trails add column extra{n} text default 'x'",
        "update trails set extra{n} = 'theirs', other = 'o{n}' where id = 0",
    ],
    "renamed": [
        "update trails set spare = 's{n}' where id = 0",
        "alter table trails rename column spare to renamed",
        "update trails set renamed = 'r{n}' where id = 0",
        "alter table trails rename column renamed to spare",
    ],
    "dropped": [
        "alter table trails add column brief{n} int",
        "update trails set brief{n} = 1 where id = 0",
        "alter table trails drop column brief{n}",
        "select concord.refresh('trails')",
    ],
    "retyped": [
        "alter table trails alter spare type varchar(30)",
        "update trails set spare = 'v{n}' where id = 0",
        "select concord.refresh('trails')",
        "alter table trails alter spare type text",
        "select concord.refresh('trails')",
    ],
}
REPEATS = 4


@pytest.mark.parametrize("change", CHANGES)
def test_columns_change_under_eight_guarded_writers(story: Story, change: str) -> None:
    """No lost update, no false alarm, never a guess: DDL leaves no gap and refuses no bystander."""
    story.tables(COUNTERS)
    owner = story.raw("owner")
    writers = [(id, story.actor(f"w{id}")) for id in WRITERS]
    done = threading.Event()

    with ThreadPoolExecutor(max_workers=len(writers)) as pool:
        running = [pool.submit(leave_marks, id, session, done) for id, session in writers]
        try:
            for n in range(REPEATS):
                for statement in CHANGES[change]:
                    alter(owner, statement.format(n=n))
        finally:
            done.set()
        tallies = [each.result() for each in running]

    trails = {id: trail.split() for id, trail in story.admin().run("select id, trail from trails")}
    assert len(trails[SHARED]) >= AFTERWARDS
    assert sorted(trails[SHARED]) == sorted(mark for tally in tallies for mark in tally.shared)
    for (id, _), tally in zip(writers, tallies, strict=True):
        assert trails[id] == tally.own
        assert tally.of["own: stale_context"] == 0
        if change != "retyped":
            assert tally.of["own: model_changed"] == tally.of["shared: model_changed"] == 0
    for tally in tallies:
        for refusal in tally.stale:
            really_unseen(story, refusal)
    assert story.value("select count(*) from concord.verify() where level = 'error'") == 0


class Tally:
    """What became of one writer's commits."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self.shared: list[str] = []
        self.own: list[str] = []
        self.stale: list[dict[str, Any]] = []


def leave_marks(own: int, session: Session, done: threading.Event) -> Tally:
    tally = Tally()
    rounds = 0
    marks = {SHARED: tally.shared, own: tally.own}
    left = AFTERWARDS
    while left and rounds < AT_MOST:
        rounds += 1
        left -= done.is_set()
        for which, id in (("shared", SHARED), ("own", own)):
            mark = f"{own}.{rounds}"
            ((trail, token),) = session.run(
                "select trail, concord.capture() from trails where id = %s", id
            )
            ask = request(update("trails", id, trail=f"{trail} {mark}"), read_at=token)
            try:
                receipt = session.try_commit(ask)
            except psycopg.OperationalError as error:
                if error.sqlstate not in CONTENDED:
                    raise
                tally.of[f"{which}: contended"] += 1
                continue
            if receipt["status"] == "confirmed":
                marks[id].append(mark)
                continue
            code = receipt["error"]["code"]
            tally.of[f"{which}: {code}"] += 1
            assert code in ("stale_context", "model_changed"), receipt["error"]
            if code == "stale_context":
                tally.stale.extend(receipt["error"]["notifications"])
    return tally


def alter(owner: Session, statement: str) -> None:
    """Postgres may choose the owner to give way in a deadlock."""
    for _ in range(20):
        try:
            owner.run(statement)
        except psycopg.OperationalError as error:
            if error.sqlstate not in CONTENDED:
                raise
        else:
            return
    raise AssertionError(f"contended twenty times: {statement}")


def really_unseen(story: Story, notification: dict[str, Any]) -> None:
    """Judged by the ids in the log, and by Postgres's own reading of the token's snapshot."""
    assert notification["changes"], notification
    _, _, snapshot, *_ = notification["readAt"].split(".")
    for change in notification["changes"]:
        assert change.get("fields") in (None, ["trail"]), notification
        assert story.value(
            "select not pg_visible_in_snapshot(xid, %s::pg_snapshot)"
            " from concord_internal.deltas where seq = %s",
            snapshot,
            change["syncId"],
        )


# --- in a snapshot from before --------------------------------------------------------------------

# What the owner does under an old snapshot, and what its session then writes.
UNDER_A_SNAPSHOT = {
    "added": ("alter table trails add column extra text", "update trails set extra = 'x'"),
    "renamed": (
        "alter table trails rename column spare to other_name",
        "update trails set other_name = 'x'",
    ),
    "renamed in turn": (
        "alter table trails rename column spare to was_spare;"
        "alter table trails rename column other to spare",
        "update trails set spare = 'x'",
    ),
    "dropped": ("alter table trails drop column spare", "update trails set other = 'x'"),
    "widened": ("alter table trails alter other type varchar", "update trails set other = 'x'"),
}


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("change", UNDER_A_SNAPSHOT)
def test_a_writer_whose_snapshot_is_older_than_the_columns(
    story: Story, change: str, warm: bool, isolation: str
) -> None:
    """No lost update: a fixed snapshot shows the catalogs as they were before the columns."""
    story.tables(COUNTERS)
    alteration, write = UNDER_A_SNAPSHOT[change]
    writer, ana = story.raw(), story.actor("ana")
    if warm:
        writer.run("update trails set trail = 'warm' where id = 1")
    writer.run(f"begin isolation level {isolation}; select 1")
    story.raw("owner").run(alteration)
    token = ana.capture()
    column = write.split(" set ")[1].split(" ")[0]
    writer.run(f"{write} where id = 0")
    writer.run(f"{write} where id = 2")  # with the plans of the first
    writer.run("commit")
    for id in (0, 2):
        answer = ana.try_commit(request(update("trails", id, **{column: "mine"}), read_at=token))
        code = "model_changed" if change in ("renamed in turn", "widened") else "stale_context"
        assert (answer.get("error") or {}).get("code") == code, (change, answer)
    # And the session goes on knowing what is there.
    token = ana.capture()
    writer.run(
        f"{write} || 'y' where id = 0"
        if change != "dropped"
        else "update trails set other = 'y' where id = 0"
    )
    answer = ana.try_commit(request(update("trails", 0, **{column: "mine"}), read_at=token))
    assert answer["status"] == "rejected"


@pytest.mark.parametrize("warm", [True, False])
def test_an_alter_table_that_is_rolled_back(story: Story, warm: bool) -> None:
    """No lost update, no false alarm: what a trigger was planned with inside it holds no longer."""
    story.tables(COUNTERS)
    writer, ana = story.raw(), story.actor("ana")
    if warm:
        writer.run("update trails set trail = 'warm' where id = 1")
    writer.run(
        "begin; alter table trails rename spare to renamed;"
        " update trails set renamed = 'x' where id = 1"
    )
    writer.run("rollback")
    token = ana.capture()
    writer.run("update trails set spare = 'theirs' where id = 1")
    with refused("stale_context") as refusal:
        ana.commit(request(update("trails", 1, spare="mine"), read_at=token))
    assert refusal.fields == ["spare"]
    ana.commit(request(update("trails", 1, other="mine"), read_at=token))


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_fixed_snapshot_of_a_table_that_lost_a_column_long_ago(
    story: Story, isolation: str
) -> None:
    """No false alarm: what was dropped before the snapshot is no difference."""
    story.tables(COUNTERS)
    story.raw().run("alter table trails drop column spare; select concord.refresh('trails')")
    writer, ana = story.raw(), story.actor("ana")
    token = ana.capture()
    writer.run(
        f"begin isolation level {isolation}; update trails set other = 'x' where id = 1; commit"
    )
    ana.commit(request(update("trails", 5, other="mine"), read_at=token))
    ana.commit(request(update("trails", 1, trail="mine"), read_at=token))
    with refused("stale_context") as refusal:
        ana.commit(request(update("trails", 1, other="mine"), read_at=token))
    assert refusal.fields == ["other"]
