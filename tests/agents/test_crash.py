"""An agent is killed at every boundary between its writes, and inside each; another goes on.

Each effect is there once, or is not known and was not tried again; the transcript has every message
once and every number, and each call has one result.
"""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest

from tests.agents.store import Store
from tests.agents.test_verbs import run_out
from tests.agents.worker import Boundaries, work


@pytest.fixture
def world(store: Store) -> psycopg.Connection[tuple[object]]:
    admin = store.db.connect()
    admin.execute("create table effects (session text, call text)")
    admin.execute("grant all on effects to app")
    return store.db.connect("app")


def finish_and_look(store: Store, world: psycopg.Connection[tuple[object]], id: str) -> set[str]:
    """Another worker goes on, when the leases of the dead one are over; then all is looked at."""
    run_out(store)
    agents = store.acting("ana")
    work(agents, world, id, Boundaries())
    messages = agents.load(id).messages
    assert [m.seq for m in messages] == list(range(1, 6))
    assert [m.role for m in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert {m.tool_call_id for m in messages[2:4]} == {"send", "look"}
    assert messages[-1].content == "It is sent."
    effects = store.seen("select call, count(*) from effects where session = %s group by 1", id)
    times = dict(effects)
    known = {m.tool_call_id: m.content for m in messages if m.role == "tool"}
    # What is not safe to retry happened once at most, and once where it is said to have.
    assert times.get("send", 0) <= 1
    assert known["look"] == "done"
    assert times["look"] >= 1
    if known["send"] == "done":
        assert times["send"] == 1
    else:
        assert "Outcome unknown" in str(known["send"])
    statuses = store.seen(
        "select tool_call_id, status from agents.agent_tool_call where session_id = %s", id
    )
    assert dict(statuses)["look"] == "done"
    return {f"send {dict(statuses)['send']} {times.get('send', 0)}", f"look {times['look']}"}


def test_killed_at_every_boundary(store: Store, world: psycopg.Connection[tuple[object]]) -> None:
    agents = store.acting("ana")
    counting = Boundaries()
    work(agents, world, agents.save(agent_name="w").id, counting)
    assert counting.passed == 10
    seen: set[str] = set()
    for at in range(1, counting.passed + 1):
        id = agents.save(agent_name="w").id
        done = subprocess.run(
            [sys.executable, "-m", "tests.agents.worker", store.db.dsn("app"), id, str(at)],
            check=False,
        )
        assert done.returncode == -9, at
        seen |= finish_and_look(store, world, id)
    # Each of the ways that it can go was gone.
    assert seen == {"send done 1", "send unknown 0", "send unknown 1", "look 1", "look 2"}


def test_the_server_process_is_killed_at_every_write(
    store: Store, world: psycopg.Connection[tuple[object]]
) -> None:
    """In the middle of a transaction, before each row that one of the store's tables gets."""
    admin = store.db.connect()
    admin.execute("create table doom (at int); insert into doom values (0)")
    admin.execute("grant select on doom to app; create sequence writes; grant all on writes to app")
    admin.execute("""
        create function strike() returns trigger language plpgsql as $$
        begin
          if nextval('public.writes') = (select at from public.doom) then
            perform pg_terminate_backend(pg_backend_pid());
          end if;
          return new;
        end $$
    """)
    for table in ("agent_session", "agent_message", "agent_tool_call"):
        admin.execute(
            f"create trigger strike before insert or update on agents.{table}"
            " for each row execute function public.strike()".encode()
        )
    agents = store.acting("ana")
    id = agents.save(agent_name="w").id
    admin.execute("select setval('writes', 1, false)")
    work(agents, world, id, Boundaries())
    [(last,)] = store.seen("select last_value from writes")
    assert last > 10
    for at in range(1, last + 1):
        id = agents.save(agent_name="w").id
        admin.execute("select setval('writes', 1, false)")
        admin.execute("update doom set at = %s", (at,))
        with pytest.raises(psycopg.OperationalError):
            work(store.acting("ana"), world, id, Boundaries())
        admin.execute("update doom set at = 0")
        finish_and_look(store, world, id)
