"""Begins a transaction and says whose it is, in the one round trip that BEGIN takes anyway.

psycopg sends BEGIN by itself before the first statement, and waits for its answer in a pipeline
too. So both are sent here, as one simple query: the server runs the second only if the first went
well, and a pooler that shares connections by the transaction sees one request. An error leaves no
transaction behind that is anybody else's: what was begun is rolled back by whoever called.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import psycopg
from psycopg import IsolationLevel
from psycopg.generators import execute
from psycopg.pq import ExecStatus

from ..client import ACT_AS
from ..receipts import Principal


def begin_as(raw: psycopg.Connection[Any], who: Principal) -> None:
    """As psycopg begins a transaction with the connection's settings, and as this principal."""
    with raw.lock:
        raw.wait(_steps(raw, who))


async def begin_as_async(raw: psycopg.AsyncConnection[Any], who: Principal) -> None:
    async with raw.lock:
        await raw.wait(_steps(raw, who))


def act_as_values(who: Principal) -> tuple[object, ...]:
    """What `ACT_AS` takes."""
    return who.tenant, who.kind, who.id, who.on_behalf_of


def _steps(
    raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], who: Principal
) -> Generator[Any, Any, None]:
    pgconn, encoding = raw.pgconn, raw.info.encoding
    act_as = psycopg.ClientCursor[Any](raw).mogrify(ACT_AS, act_as_values(who))  # type: ignore[arg-type]
    pgconn.send_query(f"{_begin(raw)}; {act_as}".encode(encoding))
    for result in (yield from execute(pgconn)):
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result, encoding=encoding)


def _begin(raw: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> str:
    parts = ["begin"]
    if raw.isolation_level is not None:
        level = IsolationLevel(raw.isolation_level).name
        parts.append("isolation level " + level.replace("_", " "))
    if raw.read_only is not None:
        parts.append("read only" if raw.read_only else "read write")
    if raw.deferrable is not None:
        parts.append("deferrable" if raw.deferrable else "not deferrable")
    return " ".join(parts)
