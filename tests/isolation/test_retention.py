"""The log is cut while tokens are out and commits wait."""

from __future__ import annotations

import pytest

from tests.isolation.schedule import Request, Story, group, refused, request, row, update

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


def age(story: Story) -> None:
    """What the log holds was logged long ago. (The one lie of these tests: time does not pass.)"""
    story.admin().run("update concord_internal.deltas set at = at - interval '40 days'")


def maintain(story: Story) -> bool:
    """Whether the log was cut; what one call announces a later one does."""
    cut = False
    for _ in range(4):
        cut = bool(story.value("select concord.maintain()")["truncated"]) or cut
    return cut


def ask_for(rests_on: str, token: str) -> Request:
    return ASKS[rests_on](token)


@pytest.mark.parametrize("rests_on", ASKS)
def test_a_token_older_than_the_log(deck: Story, rests_on: str) -> None:
    """Never a guess: what the token missed is no longer in the log, and that is what is said."""
    ana = deck.actor("ana")
    maintain(deck)
    token = ana.capture()
    deck.psql(THEIRS)
    fresh = ana.capture()
    ana.run("select 1")
    # What is open ends, what is written later belongs to the next part of the log.
    deck.psql("update notes set text = 'later' where id = 1")
    age(deck)
    if maintain(deck):
        with refused("token_expired", "readAt"):
            ana.commit(ask_for(rests_on, token))
        assert deck.history("slides", 1) == []
    else:
        with refused("stale_context"):
            ana.commit(ask_for(rests_on, token))
    assert ana.commit(ask_for(rests_on, fresh))["applied"] == 1


@pytest.mark.parametrize("rests_on", ASKS)
def test_the_log_is_cut_while_a_commit_waits(deck: Story, rests_on: str) -> None:
    """No lost update: a commit looked at its token, waited, and must still find what it missed."""
    ana, writer = deck.actor("ana"), deck.raw()
    maintain(deck)
    token = ana.capture()
    deck.psql(THEIRS)
    writer.run("begin; select from slides where id = 1 for update")
    ana.start_commit(ask_for(rests_on, token))
    ana.blocked()
    age(deck)
    maintain(deck)
    writer.run("commit")
    with refused("stale_context or token_expired"):
        ana.finish_commit()
