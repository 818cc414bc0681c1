"""Every write checks its row count: what a trigger or a policy swallows has not landed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.isolation.schedule import Story, create, delete, refused, request, update

SWALLOW = """
create function swallow() returns trigger language plpgsql as $$ begin return null; end $$;
create trigger swallow before {event} on slides for each row when ({row}.id in (1, 9))
  execute function swallow();
"""

# Those that see a row, and may lock it, need not be those that may delete it.
POLICIES = """
alter table slides enable row level security;
create policy may_see on slides for select using (true);
create policy may_add on slides for insert with check (true);
create policy may_change on slides for update using ({update}) with check (true);
create policy may_delete on slides for delete using ({delete});
"""


def swallowed(deck: Story, *operations: Any, code: str = "forbidden", **more: Any) -> None:
    """The commit is refused, leaves no trace, and its connection goes on."""
    ana = deck.actor("ana")
    ana.run("set statement_timeout = '10 s'")  # ends a commit that goes round and round
    traces = (
        "select jsonb_build_array((select jsonb_agg(s order by id) from slides s),"
        " (select count(*) from concord_internal.deltas),"
        " (select count(*) from concord_internal.commits),"
        " (select count(*) from concord_internal.held))"
    )
    before = deck.value(traces)
    with refused(code):
        ana.commit(request(*operations, **more))
    assert deck.value(traces) == before
    assert ana.commit(request(update("slides", 3, body="goes on")))["applied"] == 1


BATCHES = {
    "plain": ((1,), {}),
    "long": ((1,), {"label": "the long way"}),
    "batch": ((2, 1, 3), {}),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("guarded", [False, True])
def test_an_update_that_a_trigger_swallows(deck: Story, batch: str, guarded: bool) -> None:
    deck.raw().run(SWALLOW.format(event="update", row="new"))
    ids, more = BATCHES[batch]
    token = deck.actor("ana").capture() if guarded else None
    swallowed(deck, *(update("slides", id, title="mine") for id in ids), read_at=token, **more)


@pytest.mark.parametrize("batch", BATCHES)
def test_an_update_that_a_policy_hides_the_row_from(deck: Story, batch: str) -> None:
    """A row that may be read and not updated can't be locked."""
    deck.raw().run(POLICIES.format(update="id <> 1", delete="true"))
    ids, more = BATCHES[batch]
    swallowed(deck, *(update("slides", id, title="mine") for id in ids), **more)


@pytest.mark.parametrize("batch", BATCHES)
def test_an_update_that_a_policy_hides_the_row_from_once_it_is_locked(
    deck: Story, batch: str
) -> None:
    """A policy may ask anything, and answer otherwise the next time."""
    raw = deck.raw()
    raw.run(
        """
        create function unless_written() returns boolean language sql
          return coalesce(current_setting('concord.committing', true), '') <> '1';
        """
    )
    raw.run(POLICIES.format(update="id <> 1 or unless_written()", delete="true"))
    ids, more = BATCHES[batch]
    swallowed(deck, *(update("slides", id, title="mine") for id in ids), **more)


@pytest.mark.parametrize("ids", [(1,), (2, 1, 3)])
@pytest.mark.parametrize("by", ["a trigger", "a policy"])
def test_a_delete(deck: Story, ids: tuple[int, ...], by: str) -> None:
    if by == "a trigger":
        deck.raw().run(SWALLOW.format(event="delete", row="old"))
    else:
        deck.raw().run(POLICIES.format(update="true", delete="id <> 1"))
    swallowed(deck, *(delete("slides", id) for id in ids))


def test_a_delete_by_a_role_that_may_not_update(deck: Story) -> None:
    """It can't lock the row before: it deletes, and then looks."""
    deck.raw().run(SWALLOW.format(event="delete", row="old"))
    deck.raw().run("revoke update on slides from app; grant update (body) on slides to app")
    swallowed(deck, delete("slides", 1))
    deck.raw().run("revoke update (body) on slides from app")
    with refused("forbidden"):
        deck.actor("bo").commit(request(delete("slides", 1)))


@pytest.mark.parametrize(
    "operations",
    [
        [create("slides", 9, title="mine")],
        [create("slides", 8, title="mine"), create("slides", 9, title="mine")],
        [{"type": "create", "model": "slides", "data": {"title": "mine"}}],
        [{"type": "create", "model": "slides", "data": {}}],
    ],
    ids=["an id", "two ids", "by default", "all by default"],
)
def test_a_create_that_a_trigger_swallows(deck: Story, operations: list[Any]) -> None:
    deck.raw().run(SWALLOW.format(event="insert", row="new"))
    deck.raw().run("alter table slides alter id set default 9")
    swallowed(deck, *operations)
