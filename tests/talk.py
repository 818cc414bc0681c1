"""Talking to Concord in SQL over a plain connection."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

Connection = psycopg.Connection[Any]


def act(
    connection: Connection, actor: str = "ana", tenant: str = "acme", kind: str = "user"
) -> None:
    connection.execute(
        "select concord.act_as(%s, %s, %s, is_local => false)", (tenant, kind, actor)
    )


def capture(connection: Connection) -> str:
    ((token,),) = connection.execute("select concord.capture()")
    return str(token)


def commit(connection: Connection, request: dict[str, Any]) -> dict[str, Any]:
    ((receipt,),) = connection.execute("select concord.commit(%s)", (Jsonb(request),))
    return dict(receipt)


def code_of(error: psycopg.Error) -> tuple[str, str | None]:
    detail = json.loads(error.diag.message_detail or "{}")
    return detail["code"], detail.get("param")


def refused(connection: Connection, query: str, *params: Any) -> tuple[str, str | None]:
    """The code and the parameter that the call is refused with; the connection goes on working."""
    with pytest.raises(psycopg.Error) as raised:
        connection.execute(query, params)
    assert connection.execute("select 1").fetchone() == (1,)
    return code_of(raised.value)
