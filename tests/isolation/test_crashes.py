"""Crashes and restores: transaction ids come to mean something else, and tokens must notice."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from pyconcord.embedded import scratch_dir
from tests.isolation.conftest import DECK
from tests.isolation.schedule import (
    Request,
    Story,
    contended,
    create,
    group,
    refused,
    request,
    row,
    update,
)
from tests.support import Database, OwnServer, create_logins

pytestmark = pytest.mark.crash


def mine(token: str | None) -> Request:
    return request(update("slides", 1, title="mine"), read_at=token)


@pytest.fixture(scope="module")
def crash_server() -> Iterator[OwnServer]:
    """A server that these tests share, and nobody else uses."""
    with OwnServer() as running:
        running.db("pack")
        yield running


@pytest.fixture
def crashing(crash_server: OwnServer) -> Iterator[Story]:
    """The deck in a database of its own."""
    name = f"crash_{next(_numbers)}"
    with psycopg.connect(crash_server.dsn(), autocommit=True) as clerk:
        clerk.execute(f"create database {name} template pack".encode())
    database = Database(name, crash_server)
    told = Story(database)
    told.tables(DECK)
    yield told
    told.close()
    database.close()


_numbers = itertools.count(1)


def crash(story: Story) -> None:
    assert isinstance(story.db.server, OwnServer)
    story.db.server.restart("immediate")
    story.reconnect()


def burn_ids(story: Story, many: int = 200) -> None:
    """Transactions that get an id, and write nothing that a crash would leave behind."""
    burner = story.admin()
    for _ in range(many):
        burner.run("begin; select pg_current_xact_id(); rollback")


# --- prepared transactions ------------------------------------------------------------------------
# Most servers are set up without them, so these schedules are here, where the server is our own.


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_prepared_at_token_time(crashing: Story, ends: str) -> None:
    """No lost update: a prepared transaction has no session, and is in flight all the same."""
    writer, clerk, ana = crashing.raw(), crashing.raw("clerk"), crashing.actor("ana")
    writer.run("begin")
    writer.run("update slides set title = 'theirs' where id = 1")
    before = ana.capture()
    writer.run("prepare transaction 'two phases'")
    after = ana.capture()
    ana.start_commit(request(update("slides", 1, title="mine"), read_at=before))
    ana.blocked()
    clerk.run(f"{ends} prepared 'two phases'")
    if ends == "commit":
        with refused("stale_context"):
            ana.finish_commit()
        with refused("stale_context"):
            ana.commit(request(update("slides", 1, title="mine"), read_at=after))
        assert ana.commit(request(update("slides", 1, title="mine"), read_at=ana.capture()))
    else:
        receipt = ana.finish_commit()
        with refused("stale_context"):  # ana's own write, which this token has not seen
            ana.commit(request(update("slides", 1, title="again"), read_at=after))
        ana.commit(request(update("slides", 1, title="again"), read_at=receipt["readAt"]))


@pytest.mark.usefixtures("way")
def test_a_prepared_commit(crashing: Story) -> None:
    """All or nothing: a commit that was prepared keeps its locks, and its key is in progress."""
    bo, ana = crashing.actor("bo"), crashing.actor("ana")
    token = ana.capture()
    ask = request(update("slides", 1, title="bo's"), read_at=token, key="k")
    bo.run("begin")
    receipt = bo.commit(ask)
    bo.run("prepare transaction 'two phases'")

    twin = crashing.actor("bo")
    assert twin.try_commit(ask)["error"]["code"] == "idempotency_in_progress"
    ana.start_commit(request(update("notes", 1, text="x"), read_at=token, reads=[row("slides", 1)]))
    ana.blocked()
    crashing.admin().run("commit prepared 'two phases'")
    with refused("stale_context"):
        ana.finish_commit()
    assert twin.commit(ask) == {**receipt, "replayed": True}


# --- crash ----------------------------------------------------------------------------------------


def test_a_crash_after_the_token(crashing: Story) -> None:
    """No lost update: ids are given out again, and the token would count the new as seen."""
    for _ in range(10):  # what the WAL writer has got to disk meanwhile, if anything, is not lost
        burn_ids(crashing)
        token = crashing.actor("ana").capture()
        newest = crashing.value("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
        crash(crashing)
        writer, ana = crashing.raw(), crashing.actor("ana")
        writer.run("begin; update slides set title = 'theirs' where id = 1")
        if writer.one("select pg_current_xact_id()::text::bigint") < newest:
            break
        writer.run("rollback")
    else:
        raise AssertionError("no crash brought the ids back")
    writer.run("commit")
    with refused("token_foreign", "readAt"):
        ana.commit(mine(token))
    with refused("token_foreign"):
        ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[group("deck:a")]))
    assert crashing.value("select title from slides where id = 1") == "theirs"
    assert ana.commit(mine(ana.capture()))["applied"] == 1


def test_a_crash_before_anybody_writes(crashing: Story) -> None:
    """Never a guess: foreign from the first moment, and for receipts too."""
    ana = crashing.actor("ana")
    receipt = ana.commit(mine(ana.capture()))
    crash(crashing)
    ana = crashing.actor("ana")
    with refused("token_foreign"):
        ana.commit(request(update("slides", 1, title="again"), read_at=receipt["readAt"]))
    token = ana.capture()
    assert ana.commit(request(update("slides", 1, title="again"), read_at=token))["applied"] == 1
    # The log did not suffer, and goes on numbering where it was.
    told = crashing.history("slides", 1)
    assert [change["actor"] for change in told] == ["ana", "ana"]
    assert told[0]["sync_id"] > told[1]["sync_id"]
    assert told[1]["commit_id"] == receipt["id"]


def test_a_commit_that_a_crash_cuts_off(crashing: Story) -> None:
    """All or nothing: row, deltas, receipt and key go together; what was confirmed stays."""
    ana, bo = crashing.actor("ana"), crashing.actor("bo")
    kept = bo.commit(request(create("slides", 8, deck="a"), key="kept"))
    ana.run("begin")
    ana.commit(request(create("slides", 9, deck="a"), key="lost"))
    crash(crashing)
    ana, bo = crashing.actor("ana"), crashing.actor("bo")
    assert crashing.value("select count(*) from slides where id = 9") == 0
    assert crashing.history("slides", 9) == []
    again = bo.commit(request(create("slides", 8, deck="a"), key="kept"))
    assert again == {**kept, "replayed": True}
    assert ana.commit(request(create("slides", 9, deck="a"), key="lost"))["replayed"] is False


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_prepared_before_the_crash_and_ended_after(crashing: Story, ends: str) -> None:
    """No lost update: a prepared transaction outlives the crash, with deltas of an ended epoch.

    Those count as seen, unless the token names their transaction as in progress.
    """
    writer = crashing.raw()
    writer.run("begin; update slides set title = 'theirs' where id = 1; truncate notes")
    writer.run("prepare transaction 'outlives'")
    crash(crashing)

    ana, bo, clerk = crashing.actor("ana"), crashing.actor("bo"), crashing.raw("clerk")
    token = ana.capture()
    premise = request(update("slides", 3, title="x"), read_at=token, reads=[group("deck:a")])
    ana.start_commit(mine(token))
    ana.blocked()
    clerk.run(f"{ends} prepared 'outlives'")
    if ends == "commit":
        with refused("stale_context") as refusal:
            ana.finish_commit()
        assert refusal.fields == ["title"]
        assert refusal.notification["baseValues"] == {"title": "one"}
        with refused("stale_context"):
            bo.commit(premise)
        with refused("stale_context"):  # the whole-model delta of TRUNCATE as well
            bo.commit({**premise, "reads": [row("notes", 1)]})
        assert ana.commit(mine(ana.capture()))["applied"] == 1
    else:
        assert ana.finish_commit()["applied"] == 1
        assert bo.commit({**premise, "reads": [group("deck:b"), row("notes", 1)]})["applied"] == 1


def test_prepared_before_the_crash_and_committed_before_the_token(crashing: Story) -> None:
    """No false alarm: deltas of a former epoch that were in no token's way are history."""
    writer = crashing.raw()
    writer.run("begin; update slides set title = 'theirs' where id = 1")
    writer.run("prepare transaction 'outlives'")
    crash(crashing)
    clerk, ana = crashing.raw("clerk"), crashing.actor("ana")
    clerk.run("commit prepared 'outlives'")
    assert ana.commit(mine(ana.capture()))["applied"] == 1


def test_two_crashes(crashing: Story) -> None:
    """No lost update: tokens of two ended epochs, and a prepared writer of the first."""
    writer = crashing.raw()
    writer.run("begin; update slides set title = 'theirs' where id = 1")
    writer.run("prepare transaction 'outlives both'")
    first = crashing.actor("ana").capture()
    crash(crashing)
    second = crashing.actor("ana").capture()
    crash(crashing)
    ana, clerk = crashing.actor("ana"), crashing.raw("clerk")
    third = ana.capture()
    for foreign in (first, second):
        with refused("token_foreign"):
            ana.commit(mine(foreign))
    clerk.run("commit prepared 'outlives both'")
    with refused("stale_context"):
        ana.commit(mine(third))


def test_a_read_only_transaction_after_a_crash(crashing: Story) -> None:
    """Never a guess: it can't draw the new epoch, so it is refused and told what to do."""
    crash(crashing)
    ana = crashing.actor("ana")
    for asks in ("select concord.capture()", "select concord.read('slides', '1')"):
        ana.run("begin read only")
        with refused("invalid_request") as refusal:
            ana.run(asks)
        assert "READ ONLY" in refusal.message
        ana.run("rollback")
    token = ana.capture()
    ana.run("begin read only")
    assert ana.capture()
    ana.run("commit")
    assert ana.commit(mine(token))["applied"] == 1


def test_nobody_waits_for_who_draws_the_epoch(crashing: Story) -> None:
    """Nobody waits for ever: the epoch is drawn at once, whatever becomes of the drawer."""
    crash(crashing)
    drawer, ana = crashing.actor("drawer"), crashing.actor("ana")
    drawer.run("begin")
    drawn = drawer.capture()
    token = ana.capture()
    assert ana.commit(mine(token))["applied"] == 1
    drawer.run("rollback")
    # It is not rolled back either: the token goes on.
    with refused("stale_context"):
        ana.commit(request(update("slides", 1, title="x"), read_at=drawn))


def test_eight_draw_the_epoch_at_once(crashing: Story) -> None:
    """Never a guess: one epoch, whoever was first; a token of a loser would be foreign."""
    crash(crashing)
    crowd = [crashing.actor(f"a{n}") for n in range(8)]
    for each in crowd:
        each.start("select concord.capture()")
    tokens = [each.finish()[0][0] for each in crowd]
    for each, token in zip(crowd, tokens, strict=True):
        note = request(create("notes", 100 + crowd.index(each), text="x"), read_at=token)
        assert each.commit({**note, "reads": [row("slides", 1)]})["applied"] == 1


def test_raw_writers_draw_the_epoch(crashing: Story) -> None:
    """No lost update: the first after the crash is a trigger; its delta is of the new epoch."""
    crash(crashing)
    writer, ana = crashing.raw(), crashing.actor("ana")
    writer.run("begin; update slides set title = 'theirs' where id = 1")
    token = ana.capture()
    writer.run("commit")
    with refused("stale_context"):
        ana.commit(mine(token))


def test_a_clean_restart_keeps_the_epoch(crashing: Story) -> None:
    """No false alarm: ids go on where they were, and tokens with them."""
    ana = crashing.actor("ana")
    token = ana.capture()
    server = crashing.db.server
    assert isinstance(server, OwnServer)
    server.restart("fast")
    crashing.reconnect()
    ana = crashing.actor("ana")
    assert ana.commit(mine(token))["applied"] == 1
    with refused("stale_context"):
        ana.commit(request(update("slides", 1, title="x"), read_at=token))


# --- dump and restore -----------------------------------------------------------------------------


def run(command: list[object]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def dumped(crashing: Story) -> Iterator[tuple[Story, str, Path]]:
    """The deck with some history, a token, and a dump of it all, taken after the token."""
    ana = crashing.actor("ana")
    ana.commit(request(update("slides", 2, title="second"), label="kept", key="kept"))
    token = ana.capture()
    directory = scratch_dir("pyconcord-dump-")
    dump = directory / "deck.dump"
    server = crashing.db.server
    run([server.bin("pg_dump"), "-Fc", "-f", dump, crashing.db.dsn()])
    yield crashing, token, dump
    dump.unlink()
    directory.rmdir()


def restored(server: OwnServer, name: str, dump: Path, *options: str) -> Story:
    database = Database(name, server)
    run([server.bin("pg_restore"), "--exit-on-error", *options, "-d", database.dsn(), dump])
    return Story(database)


def check_restored(story: Story, token: str) -> None:
    """Never a guess: the log is there and goes on, and tokens of the original are foreign."""
    ana = story.actor("ana")
    (kept,) = story.history("slides", 2)
    assert (kept["actor"], kept["label"]) == ("ana", "kept")
    assert kept["commit_id"] is not None
    # Enough that a token of the original would count these writes as seen, by their ids.
    story.psql("update slides set title = 'theirs' where id = 1")
    with refused("token_foreign", "readAt"):
        ana.commit(mine(token))
    with refused("token_foreign"):
        ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[row("slides", 1)]))
    newest = story.history("slides", 1)[0]
    assert newest["sync_id"] > kept["sync_id"]
    assert newest["before"] == {"title": "one"}
    replay = request(update("slides", 2, title="second"), label="kept", key="kept")
    assert ana.commit(replay)["replayed"] is True

    token = ana.capture()
    story.psql("update slides set title = 'theirs again' where id = 1")
    with refused("stale_context"):
        ana.commit(mine(token))
    with refused("stale_context"):
        ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[group("deck:a")]))
    receipt = ana.commit(mine(ana.capture()))
    assert ana.commit(request(update("slides", 1, title="x"), read_at=receipt["readAt"]))
    findings = story.admin().run("select level, code, model, detail from concord.verify()")
    assert [f for f in findings if f[0] == "error"] == []


def test_a_dump_restored_beside(dumped: tuple[Story, str, Path]) -> None:
    """Another database of the same cluster: the same ids in the log, and others to come."""
    original, token, dump = dumped
    server = original.db.server
    assert isinstance(server, OwnServer)
    name = f"{original.db.name}_beside"
    original.admin().run(f"create database {name}")
    beside = restored(server, name, dump)
    check_restored(beside, token)
    fresh = beside.actor("ana").capture()
    beside.close()
    # The original is none the worse: its token is good, and the other's is foreign to it.
    ana = original.actor("ana")
    with refused("token_foreign"):
        ana.commit(mine(fresh))
    assert ana.commit(mine(token))["applied"] == 1


@pytest.mark.parametrize("how", ["clean", "dropped"])
def test_a_dump_restored_over(dumped: tuple[Story, str, Path], how: str) -> None:
    """The same name, even the same database: what happened after the dump is undone, and forgotten.

    The ids of those writes are in no log any more; a token taken after them counts them as seen.
    """
    original, token, dump = dumped
    server = original.db.server
    assert isinstance(server, OwnServer)
    ana = original.actor("ana")
    ana.commit(request(update("slides", 3, title="undone")))
    undone = ana.capture()
    original.db.close()
    if how == "clean":
        over = restored(server, original.db.name, dump, "--clean", "--if-exists")
    else:
        run([server.bin("dropdb"), "--maintenance-db", server.dsn(), original.db.name])
        run([server.bin("createdb"), "--maintenance-db", server.dsn(), original.db.name])
        over = restored(server, original.db.name, dump)
    with refused("token_foreign"):
        over.actor("ana").commit(request(update("slides", 3, title="x"), read_at=undone))
    check_restored(over, token)
    over.close()


def test_a_dump_restored_into_a_fresh_cluster(dumped: tuple[Story, str, Path]) -> None:
    """Another system: its ids start anew, below those of the log."""
    _, token, dump = dumped
    with OwnServer() as fresh:
        with psycopg.connect(fresh.dsn(), autocommit=True) as clerk:
            create_logins(clerk)
            for role in ("concord_owner", "concord_app", "concord_service"):
                clerk.execute(f"create role {role} nologin".encode())
            clerk.execute("grant concord_app to concord_service, app, app2")
            clerk.execute("grant concord_service to app")
            clerk.execute("create database deck")
        story = restored(fresh, "deck", dump)
        check_restored(story, token)
        story.close()


# --- a new epoch, when the owner says so ----------------------------------------------------------


def test_new_epoch(crashing: Story) -> None:
    """Never a guess: after a cold copy SQL can't see that it is a copy; the owner says so."""
    ana = crashing.actor("ana")
    token = ana.capture()
    crashing.admin().run("select concord.new_epoch()")
    with refused("token_foreign"):
        ana.commit(mine(token))
    fresh = ana.capture()
    crashing.psql("update slides set title = 'theirs' where id = 1")
    with refused("stale_context"):
        ana.commit(mine(fresh))


def test_new_epoch_waits_for_writers(crashing: Story) -> None:
    """No lost update: who began under the old epoch has ended when tokens of the new are given out.

    A writer's id may lie beyond the xmax of a snapshot that does not see it. Its delta would carry
    the old epoch, and count as seen.
    """
    writer, admin, ana, bo = (
        crashing.raw(),
        crashing.admin(),
        crashing.actor("ana"),
        crashing.actor("bo"),
    )
    before = ana.capture()
    writer.run("begin; update slides set title = 'theirs' where id = 1")
    admin.start("select concord.new_epoch()")
    admin.sleeping()
    # A reader in between is refused, waits, or gets a token that misses what is in flight.
    ana.start("select concord.capture()")
    bo.run("begin isolation level repeatable read")
    assert bo.one("select title from slides where id = 1") == "one"
    writer.run("update slides set title = 'theirs' where id = 2")
    assert not admin.finished
    writer.run("commit")
    admin.finish()

    tokens = [before]
    with suppress(psycopg.OperationalError):  # contended
        tokens.append(ana.finish()[0][0])
    with suppress(psycopg.OperationalError):
        tokens.append(bo.capture())
    bo.run("rollback")
    for token in tokens:
        for id in (1, 2):
            with refused("token_foreign or stale_context"):
                ana.commit(request(update("slides", id, title="mine"), read_at=token))
    with refused("token_foreign"):
        ana.commit(mine(before))
    assert ana.commit(mine(ana.capture()))["applied"] == 1


def test_new_epoch_does_not_wait_for_ever(crashing: Story) -> None:
    """Nobody waits for ever: a writer that does not end makes it contended."""
    writer, admin = crashing.raw(), crashing.admin()
    crashing.configure("lock_timeout", "50 ms")
    writer.run("begin; update slides set title = 'theirs' where id = 1")
    with contended():
        admin.run("select concord.new_epoch()")
    writer.run("commit")
    admin.run("select concord.new_epoch()")


def test_new_epoch_is_the_owners(crashing: Story) -> None:
    with refused("forbidden"):
        crashing.actor("ana").run("select concord.new_epoch()")
    with refused("forbidden"):
        crashing.raw().run("select concord.new_epoch()")
