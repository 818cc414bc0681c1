"""The log is cut while tokens are out and commits wait."""

from __future__ import annotations

from typing import Any

import pytest

from tests.isolation.schedule import Story, group, refused, request, row, update

ASKS = {
    "the row": lambda token: request(update("slides", 1, title="mine"), read_at=token),
    "a premise": lambda token: request(
        update("slides", 1, body="mine"), read_at=token, reads=[row("slides", 2)]
    ),
    "a group": lambda token: request(
        update("slides", 1, body="mine"), read_at=token, reads=[group("deck:b")]
    ),
}
THEIRS = (
    "update slides set title = 'theirs' where id in (1, 2, 3);"
    "update slides set title = 'theirs, too' where id in (1, 2, 3)"
)


def prepare(story: Story) -> None:
    """A leaf is ready a hundred ids from here, as if ids had been used up slowly so far."""
    story.admin().run(
        "insert into concord_internal.upkeep select true, now(), concord_internal.epoch(),"
        " pg_current_xact_id(), now() - interval '100000 days', '0'"
    )
    assert maintain(story)["made"] == ["deltas_1"]


def turn_the_leaf(story: Story) -> None:
    """Ids are used up until what is written goes into that leaf, and nothing into the former."""
    story.admin().run(
        "do $$ begin for i in 1 .. 120 loop perform pg_current_xact_id(); commit; end loop; end $$"
    )


def age(story: Story) -> None:
    """What the log holds was logged long ago. (The one lie of these tests: time does not pass.)"""
    story.admin().run("update concord_internal.deltas set at = at - interval '40 days'")


def maintain(story: Story) -> dict[str, Any]:
    return dict(story.value("select concord.maintain()"))


FORMER = ["concord_internal.deltas_default"]


@pytest.mark.parametrize("rests_on", ASKS)
def test_a_token_older_than_the_log(deck: Story, rests_on: str) -> None:
    """Never a guess: what the token missed is no longer in the log, and that is what is said."""
    ana = deck.actor("ana")
    prepare(deck)
    token = ana.capture()
    deck.psql(THEIRS)
    fresh = ana.capture()
    turn_the_leaf(deck)
    age(deck)
    assert maintain(deck)["announced"] == FORMER
    assert maintain(deck)["truncated"] == FORMER
    with refused("token_expired", "readAt"):
        ana.commit(ASKS[rests_on](token))
    assert deck.history("slides", 1) == []
    assert ana.commit(ASKS[rests_on](fresh))["applied"] == 1


@pytest.mark.parametrize("rests_on", ASKS)
def test_the_log_is_cut_while_a_commit_waits(deck: Story, rests_on: str) -> None:
    """No lost update: a commit looked at its token, waited, and must still find what it missed."""
    ana, writer = deck.actor("ana"), deck.raw()
    prepare(deck)
    token = ana.capture()
    deck.psql(THEIRS)
    turn_the_leaf(deck)
    writer.run("begin; select from slides where id = 1 for update")
    ana.start_commit(ASKS[rests_on](token))
    ana.blocked()
    age(deck)
    assert maintain(deck)["announced"] == FORMER
    assert maintain(deck)["truncated"] == []  # ana was there before
    writer.run("commit")
    # What is plain and moved is judged anew, the long way, and its token with it.
    with refused("token_expired" if rests_on == "the row" else "stale_context"):
        ana.finish_commit()
    assert maintain(deck)["truncated"] == FORMER


@pytest.mark.parametrize("rests_on", ASKS)
def test_a_leaf_that_comes_while_a_check_is_planned(deck: Story, rests_on: str) -> None:
    """A plan that was made while the leaf was attached is not kept, for it does not know the leaf.

    Planning waits for a lock on the default leaf, which attaching takes. What a plan depends on is
    marked as changed while it is waited; a dependency that only the plan had would be overlooked.
    """
    maintainer, ana = deck.admin(), deck.actor("ana")
    first = deck.value("select pg_current_xact_id()::text::bigint") + 20
    epoch = deck.value("select concord_internal.epoch()")
    deck.psql(THEIRS)
    token = ana.capture()
    maintainer.run(
        "begin; lock table concord_internal.deltas_default in access exclusive mode;"
        "create table concord_internal.deltas_9"
        " (like concord_internal.deltas_default including all);"
        "alter table concord_internal.deltas attach partition concord_internal.deltas_9"
        f" for values from ({epoch}, '{first}') to ({epoch}, '{first + 10000}');"
        "grant all on concord_internal.deltas_9 to concord_owner"
    )
    ana.start_commit(ASKS[rests_on](token))
    ana.blocked()
    maintainer.run("commit")
    ana.finish_commit()
    turn_the_leaf(deck)
    token = ana.capture()
    deck.psql(THEIRS)
    assert deck.value("select count(*) > 0 from concord_internal.deltas_9")
    with refused("stale_context"):
        ana.commit(ASKS[rests_on](token))
