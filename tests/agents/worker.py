"""An agent of one turn, which can be made to die: `python -m tests.agents.worker DSN SESSION N`.

Before and after each thing that it writes it counts; at N it kills itself. What it sends twice
carries the same ids. An effect is a row in a table of the world's, on a connection of its own.
"""

from __future__ import annotations

import os
import signal
import sys

import psycopg

import pyconcord
from pyconcord.agents import AgentStore, Message

QUESTION = Message("user", "Send it, and look it up.", client_message_id="question")
STEP = Message(
    "assistant",
    "I will.",
    [{"id": "send", "name": "send"}, {"id": "look", "name": "look", "safeToRetry": True}],
    client_message_id="step",
)
LAST = Message("assistant", "It is sent.", client_message_id="last")


class Boundaries:
    """Places where a process can end; `at` is the one where this does."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.passed = at, 0

    def __call__(self) -> None:
        self.passed += 1
        if self.passed == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def work(
    agents: AgentStore, world: psycopg.Connection[tuple[object]], id: str, here: Boundaries
) -> None:
    here()
    agents.append(id, QUESTION)
    here()
    agents.append(id, STEP)
    here()
    while to_do := agents.resume(id, holder=f"worker {os.getpid()}").run:
        for call in to_do:
            here()
            world.execute("insert into effects values (%s, %s)", (id, call.tool_call_id))
            here()
            agents.finish(id, call.tool_call_id, call.attempt, "done")
            here()
    agents.append(id, LAST)
    here()


def main() -> None:
    dsn, id, at = sys.argv[1:]
    with (
        pyconcord.connect(dsn, tenant="acme") as db,
        psycopg.connect(dsn, autocommit=True) as world,
    ):
        work(AgentStore(db.acting(user="ana"), "agents"), world, id, Boundaries(int(at)))


if __name__ == "__main__":
    main()
