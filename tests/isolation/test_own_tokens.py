"""What a token counts as its own: the receipt's token, and capture() among one's own writes."""

from __future__ import annotations

import pytest

from tests.isolation.schedule import Story, absent, create, delete, group, refused, request, update


def test_a_receipts_token_used_at_once(deck: Story) -> None:
    """No false alarm: the next edit follows without a read in between.

    Plain pg_current_snapshot() would not do: the own id is its xmax, so the own write would count
    as unseen.
    """
    ana = deck.actor("ana")
    token = ana.capture()
    for title in ("first", "second", "third"):
        receipt = ana.commit(request(update("slides", 1, title=title), read_at=token))
        token = receipt["readAt"]
    made = ana.commit(request(create("slides", 9, deck="a", title="new"), read_at=token))
    changed = ana.commit(request(update("slides", 9, title="newer"), read_at=made["readAt"]))
    gone = ana.commit(request(delete("slides", 9), read_at=changed["readAt"]))
    assert ana.commit(
        request(update("notes", 1, text="x"), read_at=gone["readAt"], reads=[absent("slides", 9)])
    )
    # An unguarded commit knows what it did, too.
    receipt = ana.commit(request(update("slides", 2, title="blind")))
    assert ana.commit(request(update("slides", 2, title="more"), read_at=receipt["readAt"]))


def test_a_receipts_token_for_a_row_read_before_somebody_changed_it(deck: Story) -> None:
    """No lost update: the receipt's token is what its author had seen, and the own write.

    Were it the snapshot of the moment, the commit of slide 1 would launder the old reading of
    slide 2.
    """
    ana, bo = deck.actor("ana"), deck.actor("bo")
    token = ana.capture()  # ana reads slides 1 and 2
    bo.commit(request(update("slides", 2, title="bo's")))
    receipt = ana.commit(request(update("slides", 1, title="ana's"), read_at=token))
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 2, title="ana's"), read_at=receipt["readAt"]))
    assert refusal.notification["currentValues"] == {"title": "bo's"}
    with refused("stale_context"):
        ana.commit(
            request(
                update("notes", 1, text="x"), read_at=receipt["readAt"], reads=[group("deck:a")]
            )
        )


def test_another_field_of_the_committed_row(deck: Story) -> None:
    """No lost update: one's own write to a row says nothing of that row's other fields."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set body = 'theirs' where id = 1")
    receipt = ana.commit(request(update("slides", 1, title="mine"), read_at=token))
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, body="mine"), read_at=receipt["readAt"]))
    assert refusal.fields == ["body"]


def test_what_came_after_the_receipt(deck: Story) -> None:
    """No lost update: a receipt's token is not older, but no newer either."""
    ana = deck.actor("ana")
    receipt = ana.commit(request(update("slides", 1, title="mine"), read_at=ana.capture()))
    deck.psql("update slides set title = 'theirs' where id = 1")
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, title="again"), read_at=receipt["readAt"]))
    assert refusal.notification["baseValues"] == {"title": "mine"}


def test_later_statements_of_the_same_transaction(deck: Story) -> None:
    """No lost update: own entries end at a delta number, not with the transaction.

    By the transaction's id alone the trigger-driven or raw statement after the commit, which its
    receipt's reader never saw, would count as seen.
    """
    ana = deck.actor("ana")
    token = ana.capture()
    ana.run("begin")
    receipt = ana.commit(request(update("slides", 1, title="mine"), read_at=token))
    ana.run("update slides set title = 'and then' where id = 1")
    ana.run("update slides set title = 'and then' where id = 2")
    ana.run("commit")
    for id in (1, 2):
        with refused("stale_context"):
            ana.commit(request(update("slides", id, title="new"), read_at=receipt["readAt"]))


def test_earlier_statements_of_the_same_transaction(deck: Story) -> None:
    """No false alarm: what this transaction did itself never makes its commit stale."""
    ana = deck.actor("ana")
    token = ana.capture()
    ana.run("begin")
    ana.run("update slides set title = 'raw' where id = 1")
    assert ana.commit(request(update("slides", 1, title="guarded"), read_at=token))["applied"] == 1
    assert ana.commit(request(update("slides", 1, title="twice"), read_at=token))["applied"] == 1
    ana.run("commit")
    assert deck.value("select title from slides where id = 1") == "twice"
    # In the next transaction they are changes like any other.
    with refused("stale_context"):
        ana.commit(request(update("slides", 1, title="late"), read_at=token))


def test_capture_among_ones_own_writes(deck: Story) -> None:
    """No false alarm, no lost update: seen are the own writes so far, and no later ones."""
    ana = deck.actor("ana")
    ana.run("begin")
    ana.run("update slides set title = 'so far' where id = 1")
    token = ana.capture()
    ana.run("update slides set title = 'later' where id = 2")
    ana.run("commit")
    assert ana.commit(request(update("slides", 1, title="next"), read_at=token))["applied"] == 1
    with refused("stale_context"):
        ana.commit(request(update("slides", 2, title="next"), read_at=token))


def test_capture_before_a_savepoint_is_taken_back(deck: Story) -> None:
    """No lost update: numbers that were taken back are not drawn again by somebody else."""
    ana = deck.actor("ana")
    ana.run("begin; savepoint s; update slides set title = 'taken back' where id = 1")
    token = ana.capture()
    ana.run("rollback to savepoint s")
    ana.run("update slides set title = 'really' where id = 1")
    ana.run("commit")
    with refused("stale_context"):
        ana.commit(request(update("slides", 1, title="next"), read_at=token))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("way", ["plain", "long"], indirect=True)
@pytest.mark.parametrize("whose", ["own", "somebody else's"])
def test_an_own_write_over_an_unseen_change(deck: Story, whose: str) -> None:
    """No lost update: that the newest change is one's own says nothing of the one before it."""
    ana, bo = deck.actor("ana"), deck.actor("bo")
    ana.run("begin; update notes set text = 'x' where id = 1")
    deck.psql("update notes set text = 'theirs' where id = 2")
    token = (ana if whose == "own" else bo).capture()  # ana's id is below its xmax
    deck.psql("update slides set title = 'theirs' where id = 1")
    ana.run("update slides set body = 'mine' where id = 1")
    with refused("stale_context"):
        ana.commit(request(update("slides", 1, title="mine"), read_at=token))


def test_two_commits_in_one_transaction(deck: Story) -> None:
    """No false alarm: the second receipt counts both commits, the first only its own."""
    ana = deck.actor("ana")
    token = ana.capture()
    ana.run("begin")
    first = ana.commit(request(update("slides", 1, title="1st"), read_at=token))
    second = ana.commit(request(update("slides", 2, title="2nd"), read_at=first["readAt"]))
    ana.run("commit")
    with refused("stale_context"):
        ana.commit(request(update("slides", 2, title="x"), read_at=first["readAt"]))
    receipt = ana.commit(
        request(
            update("slides", 1, title="x"),
            update("slides", 2, title="x"),
            read_at=second["readAt"],
        )
    )
    assert receipt["applied"] == 2


def test_the_intersection_of_two_tokens(deck: Story) -> None:
    """No lost update: of an old and a new reading the receipt's token has seen the old one's."""
    ana = deck.actor("ana")
    old = ana.capture()
    deck.psql("update slides set title = 'between' where id = 3")
    new = ana.capture()
    receipt = ana.commit(
        request(
            update("slides", 1, {"readAt": old}, title="mine"),
            update("slides", 2, {"readAt": new}, title="mine"),
        )
    )
    with refused("stale_context"):
        ana.commit(request(update("slides", 3, title="mine"), read_at=receipt["readAt"]))
    both = request(
        update("slides", 1, title="x"), update("slides", 2, title="x"), read_at=receipt["readAt"]
    )
    assert ana.commit(both)["applied"] == 2


def test_own_entries_of_both_tokens(deck: Story) -> None:
    """No false alarm, no lost update: an own entry is kept where the other token has it too."""
    ana = deck.actor("ana")
    base = ana.capture()
    first = ana.commit(request(update("slides", 1, title="1st"), read_at=base))["readAt"]
    second = ana.commit(request(update("slides", 2, title="2nd"), read_at=first))["readAt"]
    merged = ana.commit(
        request(
            update("slides", 1, {"readAt": first}, body="mine"),
            update("slides", 2, {"readAt": second}, body="mine"),
        )
    )["readAt"]
    assert ana.commit(request(update("slides", 1, title="x"), read_at=merged))["applied"] == 1
    # The older token had not seen the second commit, so what rests on both has not either.
    with refused("stale_context"):
        ana.commit(request(update("slides", 2, title="x"), read_at=merged))


def test_a_long_chain_of_receipts(deck: Story) -> None:
    """No false alarm: sixty-four commits on one reading are all remembered."""
    deck.raw().run("insert into notes select n, 'note' from generate_series(101, 164) n")
    ana = deck.actor("ana")
    token = ana.capture()
    ids = range(101, 165)
    for id in ids:
        token = ana.commit(request(update("notes", id, text="mine"), read_at=token))["readAt"]
    again = request(*(update("notes", id, text="again") for id in ids), read_at=token)
    assert ana.commit(again)["applied"] == 64


def test_a_receipt_that_applied_nothing(deck: Story) -> None:
    """Never a guess: no delta, no syncId, and a token that has seen no more than the request's."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set title = 'theirs' where id = 1")
    held = ana.commit(request(update("slides", 1, title="x"), read_at=token, on_stale="notify"))
    same = ana.commit(request(update("slides", 2, title="two"), read_at=token, onlyChanged=True))
    assert (held["syncId"], same["syncId"]) == (None, None)
    assert (held["held"], same["unchanged"]) == (1, 1)
    for receipt in (held, same):
        with refused("stale_context"):
            ana.commit(request(update("slides", 1, title="x"), read_at=receipt["readAt"]))
