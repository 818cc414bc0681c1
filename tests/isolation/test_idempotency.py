"""The same request, sent again: while the first is in flight, and after it."""

from __future__ import annotations

import random

import psycopg

from tests.isolation.schedule import Story, create, fails, refused, request, update

SAME = request(create("slides", 9, deck="a", title="once"), key="order 66")


def test_the_same_key_at_once(deck: Story) -> None:
    """All or nothing, once: the second is refused at once, and later gets the first's receipt.

    If it waited instead, a client that retries after a timeout would pile up behind itself.
    """
    ana, again = deck.actor("ana"), deck.actor("ana")
    ana.run("begin")
    receipt = ana.commit(SAME)
    with refused("idempotency_in_progress", "idempotencyKey") as refusal:
        again.commit(SAME)
    assert refusal.detail["retryable"] is True
    ana.run("commit")
    assert receipt["replayed"] is False
    assert again.commit(SAME) == {**receipt, "replayed": True}
    assert [change["op"] for change in deck.history("slides", 9)] == ["create"]


def test_the_first_gives_up(deck: Story) -> None:
    """All or nothing: a commit that was rolled back has left no receipt, and the key is free."""
    ana, again = deck.actor("ana"), deck.actor("ana")
    ana.run("begin")
    first = ana.commit(SAME)
    ana.run("rollback")
    second = again.commit(SAME)
    assert second["replayed"] is False
    assert second["id"] != first["id"]


def test_the_first_gives_up_inside_a_savepoint(deck: Story) -> None:
    """All or nothing: the key goes with the savepoint, while the transaction goes on."""
    ana, again = deck.actor("ana"), deck.actor("ana")
    ana.run("begin; savepoint s")
    ana.commit(SAME)
    ana.run("rollback to savepoint s")
    assert again.commit(SAME)["replayed"] is False
    ana.run("commit")
    assert len(deck.history("slides", 9)) == 1


def test_the_first_fails_while_writing(deck: Story) -> None:
    """All or nothing: a failure of the table's own leaves the key free."""
    deck.raw().run("alter table slides add constraint polite check (title <> 'rude')")
    ana = deck.actor("ana")
    with fails("23514"):
        ana.commit(request(create("slides", 9, title="rude"), key="k"))
    assert ana.commit(request(create("slides", 9, title="kind"), key="k"))["applied"] == 1


def test_twice_in_one_transaction(deck: Story) -> None:
    """Once: also for who asks twice before it has committed."""
    ana = deck.actor("ana")
    ana.run("begin")
    first = ana.commit(SAME)
    assert ana.commit(SAME) == {**first, "replayed": True}
    ana.run("commit")
    assert len(deck.history("slides", 9)) == 1


def test_another_request_under_the_same_key(deck: Story) -> None:
    """Once: never the receipt of something else. What is in flight is refused before it is read."""
    ana, again = deck.actor("ana"), deck.actor("ana")
    other = request(create("slides", 10, deck="a"), key="order 66")
    ana.run("begin")
    ana.commit(SAME)
    with refused("idempotency_in_progress"):
        again.commit(other)
    ana.run("commit")
    with refused("idempotency_mismatch", "idempotencyKey"):
        again.commit(other)
    assert deck.value("select count(*) from slides where id = 10") == 0


def test_the_same_key_of_somebody_else(deck: Story) -> None:
    """Once: keys are per tenant, kind and actor, in flight too."""
    ana = deck.actor("ana")
    others = [
        deck.actor("bo"),
        deck.actor("ana", kind="user"),
        deck.actor("ana", tenant="beta"),
    ]
    ana.run("begin")
    ana.commit(request(create("notes", 100, text="x"), key="k"))
    for id, other in enumerate(others, start=101):
        receipt = other.commit(request(create("notes", id, text="x"), key="k"))
        assert receipt["replayed"] is False
    ana.run("commit")


def test_a_refusal_leaves_the_key_free(deck: Story) -> None:
    """Only confirmed receipts are kept."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set title = 'theirs' where id = 1")
    stale = request(update("slides", 1, title="mine"), read_at=token, key="k")
    with refused("stale_context"):
        ana.commit(stale)
    fresh = {**stale, "readAt": ana.capture()}
    receipt = ana.commit(fresh)
    assert receipt["replayed"] is False
    # The replay answers before tokens, rows and premises are looked at.
    deck.psql("update slides set title = 'theirs again' where id = 1")
    assert ana.commit(fresh) == {**receipt, "replayed": True}
    assert deck.value("select title from slides where id = 1") == "theirs again"


def test_a_held_commit_is_replayed_as_held(deck: Story) -> None:
    """Once: also what was not applied, with its notifications."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set title = 'theirs' where id = 1")
    ask = request(update("slides", 1, title="mine"), read_at=token, on_stale="notify", key="k")
    first = ana.commit(ask)
    assert first["held"] == 1
    assert ana.commit(ask) == {**first, "replayed": True}
    assert deck.value("select count(*) from concord.conflicts") == 1


def test_eight_at_once(deck: Story) -> None:
    """Once: one of eight writes; the others are told to wait, or get its receipt."""
    crowd = [deck.actor("ana") for _ in range(8)]
    for each in crowd:
        each.start_commit(SAME)
    receipts = []
    for each in crowd:
        try:
            receipts.append(each.finish_commit())
        except psycopg.DatabaseError as error:
            if error.sqlstate != "KC010":
                raise
    assert len({receipt["id"] for receipt in receipts}) == 1
    assert [receipt["replayed"] for receipt in receipts].count(False) == 1
    assert len(deck.history("slides", 9)) == 1


def test_names_as_long_as_they_may_be(deck: Story) -> None:
    """Once: also where tenant, actor and key together are longer than an index entry may be."""
    dice = random.Random(34)

    def longest() -> str:
        return "".join(chr(dice.randint(0x10000, 0x2FFFF)) for _ in range(255))

    tenant, ana, key = longest(), longest(), longest()
    writer = deck.session("ana", "app")
    writer.run("select concord.act_as(%s, 'user', %s, is_local => false)", tenant, ana)
    ask = request(create("notes", 100, text="x"), key=key)
    first = writer.commit(ask)
    assert writer.commit(ask) == {**first, "replayed": True}
    for other in (tenant[:-1], ana), (tenant, ana[:-1]):
        writer.run("select concord.act_as(%s, 'user', %s, is_local => false)", *other)
        with fails("KC003"):  # another's key: a commit of its own, of a row that is there
            writer.commit(ask)
