"""A store of agents' sessions, as its packs make one, and who uses it."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.types.json import Jsonb

import pyconcord
from pyconcord.agents import AgentStore
from pyconcord.packs import TableName, find
from tests.support import Database

TABLES = ("agent_session", "agent_message", "agent_tool_call")
LEASE = "interval '5 minutes'"


def make_store(db: Database) -> None:
    """The tables are the role owner's, in the schema agents; the application is `app`."""
    with db.connect() as admin:
        admin.execute("create schema agents authorization owner")
        admin.execute("grant usage on schema agents to app, app2, plain")
    with db.connect("owner") as owner:
        for name in TABLES:
            table = TableName("agents", name)
            owner.execute(f"create table {table} ()".encode())
            spread = find(name).on(table)
            owner.execute(
                "call concord.add_pack(%s::text::regclass, %s)",
                (str(table), Jsonb(spread.document())),
            )
            for function, said in (("protect", spread.protect), ("track", spread.track)):
                named = ", ".join(f"{key} => %s" for key in said)
                owner.execute(
                    f"select concord.{function}(%s::text::regclass, {named})".encode(),
                    (str(table), *said.values()),
                )
            owner.execute(f"grant select, insert, update, delete on {table} to app, app2".encode())


class Store:
    """The database with the store, and its users."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.admin = db.connect()
        self._clients: dict[str, pyconcord.Concord] = {}

    def acting(
        self, user: str = "ana", tenant: str = "acme", agent: str | None = None
    ) -> AgentStore:
        """The store for a user, or for an agent on the user's behalf."""
        if tenant not in self._clients:
            self._clients[tenant] = pyconcord.connect(self.db.dsn("app"), tenant=tenant)
        client = self._clients[tenant]
        actor = client.acting(agent=agent, on_behalf_of=user) if agent else client.acting(user=user)
        return AgentStore(actor, "agents")

    def connect(
        self, user: str = "ana", tenant: str = "acme", **kwargs: Any
    ) -> psycopg.Connection[Any]:
        connection = self.db.connect("app", **kwargs)
        connection.execute(
            "select concord.act_as(%s, 'user', %s, is_local => false)", (tenant, user)
        )
        if not connection.autocommit:
            connection.commit()
        return connection

    def seen(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        """As a superuser sees it."""
        return self.admin.execute(query.encode(), params or None).fetchall()

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
