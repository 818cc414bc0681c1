"""Who acts: one principal at a time, said to the database in the transaction that it is true for.

`Voice` sits in a connection's execute_wrappers and sees every statement that passes a Django
cursor. Why identity neither leaks nor lags:

- It is said with `is_local`: it ends with the transaction, whoever uses the connection next.
- A transaction's first statement is known by the connection itself (libpq's status is IDLE), not
  by what Django believes. psycopg would send BEGIN in a round trip of its own before it, even from
  within a pipeline; here BEGIN and act_as are sent as one.
- What was said in the transaction is remembered, and said anew when somebody else acts, or when a
  savepoint was rolled back to, which takes settings back too.
- In autocommit mode the statement is framed: BEGIN, act_as, statement, COMMIT in one round trip.

COPY and callproc pass no wrapper: they act as whoever was said in the transaction before them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import psycopg
from django.conf import settings
from django.db import Error, connections
from django.db.backends.signals import connection_created
from psycopg.pq import TransactionStatus

from ..._driver import _first_error, _pipeline
from ..._json import key_text
from ...client import ACT_AS
from ...errors import InvalidRequest, from_database
from ...receipts import Principal
from .._begin import act_as_values, begin_as

Who = Callable[[], Principal | None]

_who: ContextVar[Who | None] = ContextVar("concord_who", default=None)
_NOBODY = Principal("", "", "")
_UNKNOWN = Principal("?", "?", "?")
# What has use for a frame and can stand in one: VACUUM cannot, a procedure may commit by itself.
_FRAMED = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*"
    r"(?:select|insert|update|delete|merge|with|values|table|truncate|declare|explain)\b",
    re.IGNORECASE | re.DOTALL,
)
_TAKEN_BACK = re.compile(r"\s*rollback\s+(?:work\s+|transaction\s+)?to\b", re.IGNORECASE)


def option(name: str) -> Any:
    """A key of the setting CONCORD."""
    return getattr(settings, "CONCORD", {}).get(name)


def principal() -> Principal | None:
    """Who acts here and now; asked anew each time, for somebody may log in meanwhile."""
    who = _who.get()
    # Whoever looks for request.user may query: that goes on as nobody, or it would ask itself.
    with asking(None):
        return who() if who is not None else None


@contextmanager
def asking(who: Who | None) -> Iterator[None]:
    """Let `who` say who acts inside this block."""
    before = _who.get()
    _who.set(who)
    try:
        yield
    finally:
        _who.set(before)  # not reset(): an async block may be left in another copy of the context


def acting(
    *,
    user: Any = None,
    agent: Any = None,
    system: Any = None,
    tenant: str | None = None,
    on_behalf_of: Any = None,
) -> AbstractContextManager[None]:
    """Say who acts in a command, a job or an agent: exactly one of `user`, `agent` and `system`.

    A model instance stands for its primary key. Without a tenant it is CONCORD["TENANT"].
    """
    named = {"user": user, "agent": agent, "system": system}
    given = [(kind, _id(who)) for kind, who in named.items() if who is not None]
    if len(given) != 1 or not given[0][1]:
        raise InvalidRequest("exactly one of user=, agent= and system= says who acts")
    tenant = tenant or option("TENANT")
    if not tenant:
        raise InvalidRequest("whose? acting takes a tenant, or CONCORD one", param="tenant")
    who = Principal(tenant, *given[0], None if on_behalf_of is None else _id(on_behalf_of))
    return asking(lambda: who)


def _id(who: Any) -> str:
    return key_text(getattr(who, "pk", who))


class Voice:
    """Says on one connection who acts."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._said = _NOBODY

    def __call__(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        raw = self._connection.connection
        if _status(raw) == TransactionStatus.IDLE:
            self._said = _NOBODY
        who = principal() or _NOBODY
        if who != self._said and _status(raw) != TransactionStatus.INERROR:
            if raw.autocommit and _status(raw) == TransactionStatus.IDLE:
                text = _text(sql, raw)
                if _FRAMED.match(text) is None:
                    return execute(sql, params, many, context)
                # What libpq cannot pipeline takes a round trip for each step.
                single = many or ";" not in text.rstrip("; \n")
                piped = single and not hasattr(context["cursor"], "scrollable")
                with self._frame(who, piped):
                    return execute(sql, params, many, context)
            with self._wrapped():
                if _status(raw) == TransactionStatus.IDLE:
                    begin_as(raw, who)
                else:
                    _say(raw, who)
            self._said = who
        result = execute(sql, params, many, context)
        if self._said != _NOBODY and _TAKEN_BACK.match(_text(sql, raw)):
            self._said = _UNKNOWN
        return result

    @contextmanager
    def _frame(self, who: Principal, piped: bool) -> Iterator[None]:
        raw = self._connection.connection
        pipeline = _pipeline(raw) if piped else nullcontext()
        try:
            with self._wrapped(), _first_error() as noting, noting(), pipeline, noting():
                psycopg.Cursor(raw).execute("begin")
                _say(raw, who)
                yield
                psycopg.Cursor(raw).execute("commit")
        finally:
            if _status(raw) in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                raw.rollback()

    @contextmanager
    def _wrapped(self) -> Iterator[None]:
        """A login that may not say who acts is told so; other errors are Django's, as ever."""
        with self._connection.wrap_database_errors:
            try:
                yield
            except (psycopg.Error, Error) as error:
                # From a pipeline it may come out of the statement after it, as Django's.
                cause = error if isinstance(error, psycopg.Error) else error.__cause__
                if not isinstance(cause, psycopg.Error):
                    raise
                if "concord.act_as(" not in (cause.diag.context or ""):
                    raise
                refusal = from_database(cause, self._connection.connection.info.user)
                raise refusal or error from cause


def _status(raw: psycopg.Connection[Any]) -> TransactionStatus:
    return raw.info.transaction_status


def _say(raw: psycopg.Connection[Any], who: Principal) -> None:
    psycopg.Cursor(raw).execute(ACT_AS, act_as_values(who))


def _text(sql: Any, raw: Any) -> str:
    if isinstance(sql, bytes):
        return sql.decode(raw.info.encoding)
    return sql if isinstance(sql, str) else str(sql.as_string(raw))


def install() -> None:
    """Give each connection its voice: those that there are, and those that are made later."""
    connection_created.connect(_created, dispatch_uid="concord")
    for connection in connections.all():
        _created(connection)


def _created(connection: Any, **_: Any) -> None:
    chosen = option("DATABASES")
    if connection.vendor != "postgresql" or (chosen is not None and connection.alias not in chosen):
        return
    wrappers = connection.execute_wrappers
    if not any(isinstance(each, Voice) for each in wrappers):
        # First, for execute_wrapper() blocks take off the last one when they are left.
        wrappers.insert(0, Voice(connection))
