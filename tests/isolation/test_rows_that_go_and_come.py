"""Rows that are deleted, created anew, moved to another key: under the token and under the wait."""

from __future__ import annotations

import pytest

from tests.isolation.schedule import Story, absent, create, delete, fails, refused, request, update

pytestmark = pytest.mark.usefixtures("way")


def mine(token: str | None, on_stale: str | None = None) -> dict[str, object]:
    return request(update("slides", 1, title="mine"), read_at=token, on_stale=on_stale)


# --- under the token ------------------------------------------------------------------------------


def test_deleted_under_the_token(deck: Story) -> None:
    """No lost update: the row is gone, and the writer is told so, by whom, and what it was."""
    ana, bo = deck.actor("ana"), deck.actor("bo")
    token = ana.capture()
    bo.commit(request(delete("slides", 1), read_at=token))
    with refused("stale_context", "operations[0]") as refusal:
        ana.commit(mine(token))
    told = refusal.notification
    assert told["deleted"] is True
    assert told["currentValues"] is None
    assert told["conflictingFields"] == []
    assert told["baseValues"] == {"title": "one"}
    assert told["writtenBy"] == {"kind": "agent", "id": "bo"}
    with refused("stale_context"):
        ana.commit(request(delete("slides", 1), read_at=token))
    held = ana.commit(mine(token, "notify"))
    assert held["held"] == 1
    assert held["notifications"][0]["deleted"] is True
    with refused("not_found"):  # there is nothing to overwrite
        ana.commit(mine(token, "overwrite"))
    with refused("not_found"):
        ana.commit(mine(None))
    with refused("not_found"):  # who read that it was gone knows that
        ana.commit(mine(ana.capture()))


def test_deleted_and_recreated_under_the_token(deck: Story) -> None:
    """No lost update: the row that is there is another one, although it looks the same."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("delete from slides where id = 1")
    deck.psql("insert into slides values (1, 'a', 'one', '-')")
    with refused("stale_context") as refusal:
        ana.commit(mine(token))
    told = refusal.notification
    assert told["deleted"] is False
    assert told["conflictingFields"] == []
    assert told["currentValues"] == {"title": "one"}
    assert [change.get("fields") for change in told["changes"]] == [None, None]
    assert ana.commit(mine(told["observedAt"]))["applied"] == 1


def test_created_after_the_token(deck: Story) -> None:
    """No lost update: a row that was not there when its writer looked is not what it thinks."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("insert into slides values (9, 'a', 'theirs')")
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 9, title="mine"), read_at=token))
    assert refusal.fields == []
    with refused("already_exists"):
        ana.commit(request(create("slides", 9, deck="a"), read_at=token))


# --- under the wait -------------------------------------------------------------------------------


@pytest.mark.parametrize("on_stale", [None, "overwrite"])
def test_deleted_under_the_wait(deck: Story, on_stale: str | None) -> None:
    """All or nothing: what was waited for is gone, and an update of nothing is no success."""
    writer, ana = deck.raw(), deck.actor("ana")
    token = ana.capture() if on_stale else None
    writer.run("begin; delete from slides where id = 1")
    ana.start_commit(mine(token, on_stale))
    ana.blocked()
    writer.run("commit")
    with refused("not_found", "operations[0].id"):
        ana.finish_commit()


def test_deleted_under_the_wait_of_a_guarded_write(deck: Story) -> None:
    """No lost update: the lock statement comes back empty, and the log says why."""
    writer, ana = deck.raw(), deck.actor("ana")
    token = ana.capture()
    writer.run("begin; delete from slides where id = 1")
    ana.start_commit(mine(token))
    ana.blocked()
    writer.run("commit")
    with refused("stale_context") as refusal:
        ana.finish_commit()
    assert refusal.notification["deleted"] is True


@pytest.mark.parametrize("guard", ["guarded", "overwrite", "unguarded"])
def test_deleted_and_recreated_under_the_wait(deck: Story, guard: str) -> None:
    """No lost update: a row re-created while we waited comes back from the lock statement unlocked.

    Taken for absent it would be refused without need; written without its lock, it could change
    between the judging and the writing. So a fresh look follows, until it finds nothing unlocked.
    """
    writer, ana, bo = deck.raw(), deck.actor("ana"), deck.raw("bo")
    token = ana.capture()
    writer.run("begin; delete from slides where id = 1")
    ana.run("begin")
    ana.start_commit(
        mine(None if guard == "unguarded" else token, "overwrite" if guard == "overwrite" else None)
    )
    ana.blocked()
    writer.run("insert into slides values (1, 'a', 'anew', 'anew')")
    writer.run("commit")
    if guard == "guarded":
        with refused("stale_context") as refusal:
            ana.finish_commit()
        assert refusal.notification["deleted"] is False
        assert refusal.notification["currentValues"] == {"title": "anew"}
        return
    assert ana.finish_commit()["applied"] == 1
    bo.start("update slides set title = 'bo''s' where id = 1")
    bo.blocked()
    ana.run("commit")
    bo.finish()
    assert deck.value("select array[title, body] from slides where id = 1") == ["bo's", "anew"]


def test_a_refusal_keeps_its_locks_until_the_transaction_ends(deck: Story) -> None:
    """Never a guess: what a refusal said stays true for the transaction that was told so."""
    ana, bo = deck.actor("ana"), deck.raw("bo")
    token = ana.capture()
    deck.psql("delete from slides where id = 1; insert into slides values (1, 'a', 'anew')")
    ana.run("begin")
    assert ana.try_commit(mine(token))["error"]["code"] == "stale_context"
    bo.start("update slides set title = 'bo''s' where id = 1")
    bo.blocked()
    ana.run("commit")
    bo.finish()


def test_a_batch_whose_rows_come_back_unlocked(deck: Story) -> None:
    """No lost update: the fresh look is for every row of the batch."""
    writer, ana = deck.raw(), deck.actor("ana")
    writer.run("begin; delete from slides where id in (1, 2)")
    ana.run("begin")
    ana.start_commit(
        request(*(update("slides", id, title="mine") for id in (1, 2, 3)), delete("notes", 1))
    )
    ana.blocked()
    writer.run("insert into slides values (1, 'a', 'anew'), (2, 'a', 'anew')")
    writer.run("commit")
    assert ana.finish_commit()["applied"] == 4
    for id in (1, 2, 3):
        with fails("55P03"):
            writer.run(f"select from slides where id = {id} for no key update nowait")
    ana.run("commit")


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_created_under_the_wait(deck: Story, ends: str) -> None:
    """No lost update: there was no row to lock, but its id; and then there is a row to judge."""
    bo, ana = deck.actor("bo"), deck.actor("ana")
    token = ana.capture()
    bo.run("begin")
    bo.commit(request(create("slides", 9, deck="a", title="bo's")))
    ana.start_commit(request(update("slides", 9, title="mine"), read_at=token))
    ana.blocked()
    bo.run(ends)
    with refused("stale_context" if ends == "commit" else "not_found"):
        ana.finish_commit()


# --- under another key ----------------------------------------------------------------------------


def test_a_changed_key(deck: Story) -> None:
    """No lost update: a changed key is a row that went and a row that came."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set id = 10 where id = 1")
    with refused("stale_context") as refusal:
        ana.commit(mine(token))
    assert refusal.notification["deleted"] is True
    with refused("stale_context"):
        ana.commit(
            request(update("notes", 1, text="x"), read_at=token, reads=[absent("slides", 10)])
        )
    with refused("stale_context"):
        ana.commit(request(update("slides", 10, title="mine"), read_at=token))
    assert [change["op"] for change in deck.history("slides", 1)] == ["delete"]
    assert [change["op"] for change in deck.history("slides", 10)] == ["create"]


def test_keys_that_change_places(deck: Story) -> None:
    """No lost update: in one statement, each id now belongs to the other's row."""
    ana = deck.actor("ana")
    token = ana.capture()
    # Deferred checking is refused for keys, so the way is through a third place.
    deck.psql(
        "update slides set id = 99 where id = 1; update slides set id = 1 where id = 2;"
        "update slides set id = 2 where id = 99"
    )
    for id in (1, 2):
        with refused("stale_context") as refusal:
            ana.commit(request(update("slides", id, title="mine"), read_at=token))
        assert refusal.notification["deleted"] is False
        assert refusal.fields == []


def test_a_key_that_changes_under_the_wait(deck: Story) -> None:
    """No lost update: the lock follows the row to its new key; the id asked for is gone."""
    writer, ana = deck.raw(), deck.actor("ana")
    token = ana.capture()
    writer.run("begin; update slides set id = 10 where id = 1")
    ana.start_commit(mine(token))
    ana.blocked()
    writer.run("commit")
    with refused("stale_context") as refusal:
        ana.finish_commit()
    assert refusal.notification["deleted"] is True
    assert deck.value("select title from slides where id = 10") == "one"


def test_a_key_that_is_taken_by_another_row_under_the_wait(deck: Story) -> None:
    """No lost update: under the id there is a row again, and it is another one."""
    writer, ana = deck.raw(), deck.actor("ana")
    token = ana.capture()
    writer.run("begin; update slides set id = 10 where id = 1")
    writer.run("update slides set id = 1 where id = 2")
    ana.start_commit(mine(token))
    ana.blocked()
    writer.run("commit")
    with refused("stale_context") as refusal:
        ana.finish_commit()
    assert refusal.notification["currentValues"] == {"title": "two"}
    assert deck.value("select array_agg(title order by id) from slides") == ["two", "three", "one"]
