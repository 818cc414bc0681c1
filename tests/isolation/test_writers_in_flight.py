"""Tokens taken while somebody writes, and what becomes of that writer."""

from __future__ import annotations

import pytest

from tests.isolation.schedule import (
    Session,
    Story,
    delete,
    fails,
    group,
    refused,
    request,
    row,
    update,
)

pytestmark = pytest.mark.usefixtures("way")


def title(by: Session, id: int = 1) -> object:
    return by.one("select title from slides where id = %s", id)


@pytest.mark.parametrize("rests_on", ["the row it writes", "another row", "a group"])
def test_the_late_commit(deck: Story, rests_on: str) -> None:
    """No lost update, serializable premises: ids become visible out of order.

    A token that were a number, the highest id seen, would count the late writer as seen: its id is
    the lower one. A token is a snapshot, with the ids in progress named.
    """
    late, other, ana = deck.raw("late"), deck.raw("other"), deck.actor("ana")
    late.run("begin")
    late.run("update slides set title = 'late' where id = 1")
    late_id = late.one("select pg_current_xact_id()::text::bigint")
    other.run("begin; update slides set title = 'other' where id = 3")
    assert other.one("select pg_current_xact_id()::text::bigint") > late_id
    other.run("commit")
    token = ana.capture()
    assert (title(ana, 1), title(ana, 3)) == ("one", "other")

    late.run("commit")

    asks = {
        "the row it writes": request(update("slides", 1, title="mine"), read_at=token),
        "another row": request(
            update("notes", 1, text="mine"), read_at=token, reads=[row("slides", 1, "title")]
        ),
        "a group": request(update("notes", 1, text="mine"), read_at=token, reads=[group("deck:a")]),
    }
    with refused("stale_context") as refusal:
        ana.commit(asks[rests_on])
    assert refusal.fields == ([] if rests_on == "a group" else ["title"])
    assert refusal.notification["writtenBy"] == {"kind": "system", "id": "owner"}
    assert title(ana) == "late"
    # What the other one wrote was seen, and is no conflict.
    assert ana.commit(request(update("slides", 3, title="mine"), read_at=token))["applied"] == 1


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_a_writer_in_flight_at_token_time(deck: Story, ends: str) -> None:
    """No lost update, no false alarm: lock first, then look.

    A commit that looked before it had the row's lock would find nothing in the log, wait, and write
    over what the other one had committed meanwhile.
    """
    writer, ana = deck.raw(), deck.actor("ana")
    writer.run("begin")
    writer.run("update slides set title = 'theirs' where id = 1")
    token = ana.capture()

    ana.start_commit(request(update("slides", 1, title="mine"), read_at=token))
    ana.blocked()
    writer.run(ends)

    if ends == "commit":
        with refused("stale_context") as refusal:
            ana.finish_commit()
        assert refusal.fields == ["title"]
        assert refusal.notification["currentValues"] == {"title": "theirs"}
        assert refusal.notification["baseValues"] == {"title": "one"}
        assert title(ana) == "theirs"
    else:
        assert ana.finish_commit()["applied"] == 1
        assert title(ana) == "mine"


@pytest.mark.parametrize("mode", ["notify", "overwrite"])
def test_a_writer_in_flight_under_the_other_modes(deck: Story, mode: str) -> None:
    """notify holds what waited in vain; overwrite waits too, and then writes."""
    writer, ana = deck.raw(), deck.actor("ana")
    writer.run("begin")
    writer.run("update slides set title = 'theirs' where id = 1")
    token = ana.capture()
    ana.start_commit(request(update("slides", 1, title="mine"), read_at=token, on_stale=mode))
    ana.blocked()
    writer.run("commit")
    receipt = ana.finish_commit()
    if mode == "notify":
        assert (receipt["held"], receipt["applied"], receipt["syncId"]) == (1, 0, None)
        assert receipt["notifications"][0]["conflictingFields"] == ["title"]
        assert title(ana) == "theirs"
        # What was observed is enough to try again, once.
        observed = receipt["notifications"][0]["observedAt"]
        ana.commit(request(update("slides", 1, title="merged"), read_at=observed))
        with refused("stale_context"):
            ana.commit(request(update("slides", 1, title="merged again"), read_at=observed))
    else:
        assert (receipt["held"], receipt["applied"], receipt["notifications"]) == (0, 1, [])
        assert title(ana) == "mine"


def test_rolled_back_to_a_savepoint_and_gone_on(deck: Story) -> None:
    """No false alarm from what was taken back, no lost update of what was not.

    What a savepoint takes back takes its deltas along; there is no compensation to forget.
    """
    writer, ana = deck.raw(), deck.actor("ana")
    writer.run("begin")
    writer.run("update slides set body = 'kept' where id = 3")
    writer.run("savepoint s")
    writer.run("update slides set title = 'taken back' where id = 1")
    token = ana.capture()
    writer.run("rollback to savepoint s")
    writer.run("update slides set title = 'kept' where id = 2")
    writer.run("commit")

    assert ana.commit(request(update("slides", 1, title="mine"), read_at=token))["applied"] == 1
    for id, field in ((2, "title"), (3, "body")):
        with refused("stale_context") as refusal:
            ana.commit(request(update("slides", id, title="mine", body="mine"), read_at=token))
        assert refusal.fields == [field]


def test_a_savepoint_taken_back_frees_who_waited(deck: Story) -> None:
    """The lock goes with the savepoint, before the writer has ended, and the verdict is right."""
    writer, ana = deck.raw(), deck.actor("ana")
    writer.run("begin; savepoint s; update slides set title = 'taken back' where id = 1")
    token = ana.capture()
    ana.start_commit(request(update("slides", 1, title="mine"), read_at=token))
    ana.blocked()
    writer.run("rollback to savepoint s")
    assert ana.finish_commit()["applied"] == 1
    writer.run("commit")
    assert title(ana) == "mine"


def test_a_write_inside_a_savepoint_that_is_kept(deck: Story) -> None:
    """No lost update: the log has the id of the whole transaction.

    The row's xmin is here a subtransaction's id, which a snapshot does not name: by it the write
    would be judged as of another transaction.
    """
    writer, ana = deck.raw(), deck.actor("ana")
    writer.run("begin")
    writer.run("update notes set text = 'first' where id = 1")
    writer.run("savepoint s")
    writer.run("update slides set title = 'inside' where id = 1")
    whole = writer.one("select pg_current_xact_id()::text")
    assert writer.one("select xmin::text from slides where id = 1") != whole
    token = ana.capture()
    writer.run("release savepoint s")
    after_release = ana.capture()
    writer.run("commit")
    for each in (token, after_release):
        with refused("stale_context") as refusal:
            ana.commit(request(update("slides", 1, title="mine"), read_at=each))
        assert refusal.fields == ["title"]
    assert ana.commit(request(update("slides", 1, title="mine"), read_at=ana.capture()))


def test_a_repeatable_read_reader(deck: Story) -> None:
    """No lost update: in a fixed snapshot the token is that snapshot, however late it is taken."""
    ana, writer = deck.actor("ana"), deck.raw()
    ana.run("begin isolation level repeatable read")
    assert title(ana, 2) == "two"
    writer.run("update slides set title = 'theirs' where id = 1")
    assert title(ana) == "one"
    token = ana.capture()
    read = ana.read("slides", 1)
    assert read["data"]["title"] == "one"
    # What it would have to judge a fixed snapshot does not show, and no 40001 comes for a group.
    with refused("invalid_request"):
        ana.commit(request(update("slides", 1, title="mine"), read_at=token))
    ana.run("rollback")
    for each in (token, read["readAt"]):
        with refused("stale_context") as refusal:
            ana.commit(request(update("slides", 1, title="mine"), read_at=each))
        assert refusal.fields == ["title"]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_commit_wants_read_committed(deck: Story, level: str) -> None:
    """Never a guess: refused at once, and the transaction goes on."""
    ana = deck.actor("ana")
    ana.run(f"begin isolation level {level}")
    error = ana.try_commit(request(update("slides", 1, title="mine")))["error"]
    assert error["code"] == "invalid_request"
    ana.run("update notes set text = 'mine' where id = 1")
    ana.run("commit")
    assert title(ana) == "one"


@pytest.mark.parametrize("how", ["capture", "read"])
def test_a_token_is_of_the_statement_that_reads(deck: Story, how: str) -> None:
    """No lost update: a long SELECT is stamped with what its rows show.

    capture() and read() are STABLE. Were they VOLATILE, the token would be taken when the function
    runs, after the writer, and count as seen what the SELECT's own rows do not show.
    """
    gate, ana, writer = deck.admin(), deck.actor("ana"), deck.raw()
    gate.run("select pg_advisory_lock(1, 1)")
    taken = {"capture": "concord.capture()", "read": "concord.read('slides', '1')->>'readAt'"}
    ana.start(
        "select title, pg_advisory_xact_lock_shared(1, 1)::text, "
        f"{taken[how]} from slides where id = 1"
    )
    ana.blocked()
    writer.run("update slides set title = 'theirs' where id = 1")
    gate.run("select pg_advisory_unlock(1, 1)")
    ((seen, _, token),) = ana.finish()
    assert seen == "one"
    with refused("stale_context"):
        ana.commit(request(update("slides", 1, title="mine"), read_at=token))


def test_a_raw_update_between_read_and_commit(deck: Story) -> None:
    """No lost update through the door beside: psql knows nothing of Concord."""
    ana = deck.actor("ana")
    read = ana.read("slides", 1)
    deck.psql("update slides set title = 'by psql' where id = 1")
    ask = request(update("slides", 1, title="mine"), read_at=read["readAt"])
    with refused("stale_context", "operations[0]") as refusal:
        ana.commit(ask)
    told = refusal.notification
    assert told["conflictingFields"] == ["title"]
    assert told["currentValues"] == {"title": "by psql"}
    assert told["baseValues"] == {"title": "one"}
    assert told["proposedValues"] == {"title": "mine"}
    assert told["writtenBy"] == {"kind": "system", "id": "owner"}
    assert told["deleted"] is False
    with refused("stale_context"):
        ana.commit(request(delete("slides", 1), read_at=read["readAt"]))
    assert title(ana) == "by psql"


def test_changes_that_are_no_conflict(deck: Story) -> None:
    """No false alarm: another field, the value that is there already, an update to the same."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set body = 'theirs' where id = 1")
    deck.psql("update slides set title = 'agreed' where id = 2")
    deck.psql("update slides set title = title where id = 3")
    for id, value in ((1, "mine"), (2, "agreed"), (3, "mine")):
        assert ana.commit(request(update("slides", id, title=value), read_at=token))
    assert (title(ana, 1), title(ana, 2), title(ana, 3)) == ("mine", "agreed", "mine")
    assert ana.one("select body from slides where id = 1") == "theirs"


def test_a_field_changed_there_and_back(deck: Story) -> None:
    """Never a guess: the field moved, although it holds what the reader saw; others decided on it.

    Writing what is there is no conflict, so that only a new value meets the refusal.
    """
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set title = 'away' where id = 1")
    deck.psql("update slides set title = 'one' where id = 1")
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, title="mine"), read_at=token))
    assert len(refusal.notification["changes"]) == 2
    assert refusal.notification["baseValues"] == {"title": "one"}
    assert ana.commit(request(update("slides", 1, title="one"), read_at=token))


def test_waits_are_bounded(deck: Story) -> None:
    """Nobody waits for ever: a commit that meets a lock is contended, and has written nothing."""
    deck.configure("lock_timeout", "50 ms")
    writer, ana = deck.raw(), deck.actor("ana")
    writer.run("begin; update slides set title = 'theirs' where id = 1")
    token = ana.capture()
    ask = request(update("notes", 1, text="x"), update("slides", 1, title="mine"), read_at=token)
    with fails("55P03"):
        ana.commit(ask)
    with fails("55P03"):
        ana.try_commit(ask)
    writer.run("rollback")
    assert ana.one("select text from notes where id = 1") == "first"
    assert ana.commit(ask)["applied"] == 2


def test_a_condition_is_compared_after_the_wait(deck: Story) -> None:
    """All or nothing: `where` is about the values that are there when the row is locked."""
    writer, ana, bo = deck.raw(), deck.actor("ana"), deck.actor("bo")
    writer.run("begin; update slides set body = 'taken' where id = 1")
    ana.start_commit(request(update("slides", 1, {"where": {"body": "-"}}, title="mine")))
    ana.blocked()
    bo.start_commit(request(update("slides", 1, {"where": {"body": "taken"}}, title="bo's")))
    bo.blocked()
    writer.run("commit")
    with refused("precondition_failed", "operations[0].where"):
        ana.finish_commit()
    assert bo.finish_commit()["applied"] == 1
    assert title(ana) == "bo's"
