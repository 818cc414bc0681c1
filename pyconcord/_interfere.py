"""Somebody who writes from a second connection while a test goes on; see `pyconcord.testing`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql

from .client import ACT_AS
from .receipts import Principal

PATIENCE = "2 s"
"""How long an interfering write waits for a lock: its test holds what it waits for."""


class Interfered(AssertionError):
    """The interfering write would have waited for the test itself."""


class Interfere:
    """Writes from a second connection, and commits."""

    def __init__(self, conninfo: str = "", **parameters: Any) -> None:
        self._conninfo, self._parameters = conninfo, parameters

    def __call__(
        self,
        statement: str,
        params: Sequence[object] | Mapping[str, object] | None = None,
        *,
        acting: Principal | None = None,
    ) -> list[Any]:
        """Run a statement, as `acting` if given, and commit; its rows, if it has any."""
        parameters = {**self._parameters, "autocommit": True}
        with psycopg.connect(self._conninfo, **parameters) as connection, connection.transaction():
            connection.execute(sql.SQL("set local lock_timeout = {}").format(PATIENCE))
            if acting is not None:
                who = (acting.tenant, acting.kind, acting.id, acting.on_behalf_of)
                connection.execute(ACT_AS, who)
            try:
                cursor = connection.execute(statement.encode(), params)
            except psycopg.errors.LockNotAvailable as error:
                raise Interfered(
                    "this test holds a lock that the interfering write waits for: interfere before "
                    "its transaction writes, or after it has ended"
                ) from error
            return cursor.fetchall() if cursor.description else []
