"""The client: who acts, what they read, what they commit.

    db = pyconcord.connect(tenant="acme")
    with db.acting(agent="writer") as me:
        slide = me.read("slides", 7)                       # remembers its token
        ...                                                # minutes pass
        receipt = me.update(slide, title="…", on_stale="notify")
        for held in receipt.held:                          # not written, not lost
            me.resolve(held, lambda base, current, proposed: {"title": ...})

Everything that decides is SQL. Each operation below is a generator that yields one call of one
function of the pack and makes something of the answer; `_driver` runs it at once or awaits it, so
that `Concord` and `AsyncConcord` are the same text. Identity goes with every call, in the same
transaction and the same round trip, as transaction poolers need it.
"""

from __future__ import annotations

import logging
import os
import random
import time
import warnings
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from . import _wire
from ._driver import (
    Answer,
    Ask,
    Async,
    Call,
    Calls,
    D,
    Driven,
    Op,
    Scope,
    Sleep,
    Sync,
    operation,
)
from ._json import Reference, dumps, key_text, loads
from ._wire import BatchOptions, CommitOptions, Key, OperationOptions, Target
from .errors import (
    Contended,
    HeldWritesIgnored,
    InvalidRequest,
    StaleContext,
    from_database,
    from_wire,
)
from .events import CommitEvent, ConflictNotifiedEvent, ContendedEvent, Event, OnEvent
from .reads import OnStale, Premise
from .receipts import Change, Held, Principal, Receipt, Row, Values

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger("pyconcord")

Merge = Callable[
    [Values, Values | None, Values],
    Values | Awaitable[Values | None] | None,
]
"""`merge(base, current, proposed)`: the values to write, or None to let the others' stand.

`base` is what was read, as far as the log holds it; `current` is None when the row is gone."""

FIRST_DELAY, LONGEST_DELAY = 0.02, 1.0


class Reader(Scope[D]):
    """What a database, an actor and a reading have in common: they read."""

    _secret: str | None = None  # of the session by which it acts

    def __init__(self, driver: D, principal: Principal | None, on_event: OnEvent | None) -> None:
        super().__init__(driver)
        self.principal = principal
        self._on_event = on_event
        self._tokens: list[str] = []  # of the readings that are open

    @operation
    def capture(self) -> Op[str]:
        """A token for whatever is read from now on, by whatever means."""
        return (yield from self._capture())

    @operation
    def read(self, model: Target, id: Key | None = None) -> Op[Row]:
        """A row and the token it was read under, atomically; an absent one is false."""
        return (yield from self._read(model, id))

    @operation
    def history(self, model: Target, id: Key | None = None, max: int = 100) -> Op[list[Change]]:
        """The row's changes, newest first."""
        name, key, _ = _wire.locate(model, id)
        rows = yield from self._rows(Call(_HISTORY, (name, key, max)))
        return [Change.parse(loads(row)) for row in rows]

    def changes(self, since: str | None = None, max: int = 1000) -> Feed[D]:
        """Everybody's changes after `since` (a `next_token` or a read token), oldest first."""
        return Feed(self, since, max)

    def reading(self) -> Reading[D]:
        """A scope for reading several things under one token."""
        return Reading(self)

    def _capture(self) -> Op[str]:
        [token] = yield from self._rows(Call(_CAPTURE))
        return str(token)

    def _read(self, model: Target, id: Key | None = None) -> Op[Row]:
        name, key, _ = _wire.locate(model, id)
        [text] = yield from self._rows(Call(_READ, (name, key)))
        answer = loads(text)
        data = answer["data"]
        # An open reading's token is older than the row: it may refuse too much, never too little.
        token = self._tokens[-1] if self._tokens else answer["readAt"]
        return Row(name, str(key), token, data or {}, exists=data is not None)

    def _rows(self, call: Call) -> Op[list[str]]:
        answer = yield from self._call(call)
        return list(answer.rows)

    def _call(self, call: Call) -> Op[Answer]:
        """The one way to the database: who acts, then the call; again if it was contended.

        A joined transaction is aborted by contention and is its owner's to repeat, so there the
        driver allows one attempt.
        """
        who = self.principal
        calls = [call]
        if self._secret is not None:
            calls.insert(0, Call(_AUTHENTICATE, (self._secret,)))
        elif who is not None and not self._driver.acts_already:
            calls.insert(0, Call(ACT_AS, (who.tenant, who.kind, who.id, who.on_behalf_of)))
        attempt = 1
        while True:
            try:
                answer: Answer = yield Calls(calls)
                return answer
            except psycopg.Error as error:
                refusal = from_database(error, self._driver.login)
                if refusal is None:
                    raise
                if not isinstance(refusal, Contended):
                    raise refusal from error
                last = attempt >= self._driver.attempts
                delay = None if last else _backoff(attempt)
                self._emit(ContendedEvent(who, error.sqlstate, attempt, delay))
                if delay is None:
                    raise refusal from error
            logger.info("contended (%s), attempt %d", refusal.message, attempt)
            yield Sleep(delay)
            attempt += 1

    def _emit(self, event: Event) -> None:
        if self._on_event is not None:
            self._on_event(event)


class Reading(Reader[D]):
    """A scope whose reads all carry one token, captured before any of them.

    Within it the actor's own `read` carries that token too; `token` serves for rows that are read
    by other means (an ORM, a report), and for premises on groups and absences.
    """

    token: str

    def __init__(self, reader: Reader[D]) -> None:
        super().__init__(reader._driver, reader.principal, reader._on_event)
        self._secret = reader._secret
        self._reader = reader

    def _begin(self) -> Op[None]:
        self.token = yield from self._capture()
        self._tokens.append(self.token)
        self._reader._tokens.append(self.token)

    def _end(self, failed: bool) -> Op[None]:
        self._reader._tokens.remove(self.token)
        yield from ()


class Feed(Driven[D]):
    """The changes after a token, each exactly once: iterate, and go on from `next_token` later.

    The loop ends where the log ends at that time; looping again gives what came since.
    """

    def __init__(self, reader: Reader[D], since: str | None, max: int) -> None:
        super().__init__(reader._driver)
        self._reader = reader
        self._max = max
        self._fetched = since
        self._at_end = False
        self.next_token = since
        """Where to go on: after the last change that was given out, or the end of the log."""

    @operation
    def next_page(self) -> Op[list[Change]]:
        """Up to `max` changes; fewer, or none, at the end of the log."""
        page = yield from self._page()
        self.next_token = self._fetched
        return page

    def __iter__(self: Feed[Sync]) -> Iterator[Change]:
        self._at_end = False
        while not self._at_end:
            for change in self._driver.run(self._page()):
                self.next_token = change.next_token
                yield change
        self.next_token = self._fetched

    async def __aiter__(self: Feed[Async]) -> AsyncIterator[Change]:
        self._at_end = False
        while not self._at_end:
            for change in await self._driver.run(self._page()):
                self.next_token = change.next_token
                yield change
        self.next_token = self._fetched

    def _page(self) -> Op[list[Change]]:
        # From next_token, not from the last page's end: a loop that was left is gone on with.
        rows = yield from self._reader._rows(Call(_CHANGES, (self.next_token, self._max)))
        raw = [loads(row) for row in rows]
        self._at_end = not raw or raw[-1]["op"] == "checkpoint"
        self._fetched = raw[-1]["next_token"] if raw else self.next_token
        return [Change.parse(each) for each in raw if each["op"] != "checkpoint"]


class Actor(Reader[D]):
    """Somebody who reads and writes. Every write is one commit, answered by a receipt or raised."""

    def __init__(self, driver: D, principal: Principal | None, on_event: OnEvent | None) -> None:
        super().__init__(driver, principal, on_event)
        self._held: list[Receipt] = []

    @operation
    def update(
        self,
        target: Target,
        id: Key | None = None,
        /,
        *,
        data: Values | None = None,
        where: Values | None = None,
        read_at: str | None = None,
        on_stale: OnStale | None = None,
        reads: Iterable[Premise] = (),
        only_changed: bool = False,
        returning: bool = False,
        idempotency_key: str | None = None,
        label: str | None = None,
        **fields: Any,
    ) -> Op[Receipt]:
        """Write fields of a row, given as keywords or, for columns named like options, as `data`.

        A `Row` is guarded by its token. `("slides", 7)` and `"slides", 7` are not, unless `read_at`
        is given.
        """
        request = _wire.request(
            [_wire.update(target, id, data, fields, where=where, read_at=read_at)],
            reads=reads,
            on_stale=on_stale,
            only_changed=only_changed,
            returning=returning,
            idempotency_key=idempotency_key,
            label=label,
        )
        return (yield from self._commit(request))

    @operation
    def create(
        self,
        model: str,
        data: Values,
        *,
        id: Key | None = None,
        **options: Unpack[CommitOptions],
    ) -> Op[Receipt]:
        """Create a row. Without an id its key's default makes one: `receipt.operations[0].id`."""
        made = _wire.create(model, data, id)
        return (yield from self._commit(_wire.request([made], **options)))

    @operation
    def delete(
        self,
        target: Target,
        id: Key | None = None,
        /,
        *,
        where: Values | None = None,
        read_at: str | None = None,
        **options: Unpack[CommitOptions],
    ) -> Op[Receipt]:
        """Delete a row; guarded as an update of all its fields."""
        gone = _wire.delete(target, id, where=where, read_at=read_at)
        return (yield from self._commit(_wire.request([gone], **options)))

    @operation
    def archive(
        self,
        target: Target,
        id: Key | None = None,
        /,
        *,
        where: Values | None = None,
        read_at: str | None = None,
        **options: Unpack[CommitOptions],
    ) -> Op[Receipt]:
        """Put a row away, where its model has an `archive_column`; `unchanged` if it is already."""
        away = _wire.archive(target, id, True, where=where, read_at=read_at)
        return (yield from self._commit(_wire.request([away], **options)))

    @operation
    def unarchive(
        self,
        target: Target,
        id: Key | None = None,
        /,
        *,
        where: Values | None = None,
        read_at: str | None = None,
        **options: Unpack[CommitOptions],
    ) -> Op[Receipt]:
        """Bring back a row that was put away."""
        back = _wire.archive(target, id, False, where=where, read_at=read_at)
        return (yield from self._commit(_wire.request([back], **options)))

    @operation
    def commit(self, request: Mapping[str, Any]) -> Op[Receipt]:
        """Commit a request that is written in the JSON contract's own words."""
        return (yield from self._commit(request))

    def batch(self, **options: Unpack[BatchOptions]) -> Batch[D]:
        """A scope that collects operations and commits them together when it is left."""
        return Batch(self, options)

    @operation
    def resolve(
        self, held: Held, merge: Merge, *, rounds: int = 5, label: str | None = None
    ) -> Op[Receipt | None]:
        """Write what `merge` makes of a held write, over what it has been shown and nothing newer.

        If the row moves again meanwhile, `merge` is asked again, up to `rounds` times in all; then
        the last `StaleContext` is raised. None when there is nothing to write: `merge` gave None,
        or no field. For a held delete, no field means to delete after all.

        The premises of the commit are declared again, a stale one as it was when this was told.
        When only a premise was stale, `current` is read afresh and `base` is empty. An operation
        that refers to another one of its batch cannot be resolved alone: commit the batch anew.
        """
        if rounds < 1:
            raise InvalidRequest("at least one round", param="rounds")
        sent = held.operation
        premises = [dict(premise) for premise in held.premises]
        base, current, proposed = held.base, held.current, held.proposed
        if held.notification is not None:
            token: str | None = held.notification.observed_at
        elif sent["type"] == "create":
            token = None
        else:
            row = yield from self._read(str(held.model), held.id)
            token, current = row.read_at, _chosen(row, proposed or row)
        while True:
            merged = yield Ask(merge, (base, current, proposed))
            if merged is None or not (merged or sent["type"] == "delete"):
                return None
            again = {**sent, "readAt": token} if token else {**sent}
            again.pop("onStale", None)
            if held.id is not None:
                again["id"] = held.id
            if merged:
                again["data"] = merged
                again["type"] = "create" if sent["type"] == "create" else "update"
            try:
                return (
                    yield from self._commit(
                        _wire.request([again], reads=premises, on_stale="reject", label=label)
                    )
                )
            except StaleContext as stale:
                rounds -= 1
                if not rounds:
                    raise
                for each in stale.notifications:
                    if each.read is not None:
                        premises[each.read]["readAt"] = each.observed_at
                    else:
                        token = each.observed_at
                        base, current = each.base_values, each.current_values

    def _commit(self, request: Mapping[str, Any]) -> Op[Receipt]:
        started = time.perf_counter()
        answer = yield from self._call(Call(_TRY_COMMIT, (dumps(request),)))
        seconds = time.perf_counter() - started
        [text] = answer.rows
        raw = loads(text)
        if raw["status"] == "rejected":
            refusal = from_wire(raw["error"])
            logger.debug("commit rejected: %s", refusal.code)
            self._emit(CommitEvent(self.principal, "rejected", refusal.code, None, seconds))
            raise refusal
        receipt = Receipt.parse(raw, request, durable=answer.durable)
        if not receipt.landed:
            self._held = [each for each in self._held if each.ignored] + [receipt]
        logger.debug(
            "commit %s: %d applied, %d held, %d unchanged",
            receipt.id,
            receipt.applied,
            raw["held"],
            receipt.unchanged,
        )
        self._emit(CommitEvent(self.principal, "confirmed", None, receipt, seconds))
        for each in receipt.notifications:
            self._emit(ConflictNotifiedEvent(self.principal, receipt.id, each))
        return receipt

    def _end(self, failed: bool) -> Op[None]:
        ignored = [receipt.id for receipt in self._held if receipt.ignored]
        if ignored and not failed:
            warnings.warn(
                f"writes were held and not looked at: {', '.join(ignored)}; see receipt.held",
                HeldWritesIgnored,
                stacklevel=4,  # the statement that leaves the block
            )
        yield from ()


class Batch(Scope[D]):
    """Operations that are committed together when the block is left without an exception.

    Each of them answers with a `Reference`, which in a later one stands for the id of its row.
    """

    def __init__(self, actor: Actor[D], options: BatchOptions) -> None:
        super().__init__(actor._driver)
        self.reads: list[Premise] = list(options.get("reads", ()))
        """The premises; more may be added until the block is left."""
        self._actor = actor
        self._options: BatchOptions = {**options, "reads": self.reads}
        self._operations: list[Mapping[str, Any]] = []
        self._receipt: Receipt | None = None

    def update(
        self,
        target: Target,
        id: Key | Reference | None = None,
        /,
        *,
        data: Values | None = None,
        where: Values | None = None,
        read_at: str | None = None,
        on_stale: OnStale | None = None,
        transaction_id: str | None = None,
        **fields: Any,
    ) -> Reference:
        options = {
            "where": where,
            "read_at": read_at,
            "on_stale": on_stale,
            "transaction_id": transaction_id,
        }
        return self._add(_wire.update(target, id, data, fields, **options))

    def create(
        self,
        model: str,
        data: Values,
        *,
        id: Key | Reference | None = None,
        transaction_id: str | None = None,
    ) -> Reference:
        return self._add(_wire.create(model, data, id, transaction_id=transaction_id))

    def delete(
        self,
        target: Target,
        id: Key | Reference | None = None,
        /,
        **options: Unpack[OperationOptions],
    ) -> Reference:
        return self._add(_wire.delete(target, id, **options))

    def archive(
        self,
        target: Target,
        id: Key | Reference | None = None,
        /,
        **options: Unpack[OperationOptions],
    ) -> Reference:
        return self._add(_wire.archive(target, id, True, **options))

    def unarchive(
        self,
        target: Target,
        id: Key | Reference | None = None,
        /,
        **options: Unpack[OperationOptions],
    ) -> Reference:
        return self._add(_wire.archive(target, id, False, **options))

    @property
    def receipt(self) -> Receipt:
        if self._receipt is None:
            raise RuntimeError("the batch is committed when its block is left")
        return self._receipt

    def _add(self, operation: Mapping[str, Any]) -> Reference:
        self._operations.append(operation)
        return Reference(len(self._operations) - 1)

    def _end(self, failed: bool) -> Op[None]:
        if not failed:
            request = _wire.request(self._operations, **self._options)
            self._receipt = yield from self._actor._commit(request)


class Database(Reader[D]):
    """A database with the pack in it. What it reads itself it reads as its tenant's system."""

    def __init__(self, driver: D, tenant: str | None, on_event: OnEvent | None) -> None:
        itself = None if tenant is None else Principal(tenant, "system", "pyconcord")
        super().__init__(driver, itself, on_event)
        self.tenant = tenant
        self._pool: ConnectionPool[Any] | AsyncConnectionPool[Any] | None = None

    @operation
    def close(self) -> Op[None]:
        """Close the pool, if there is one: a connection of the caller's stays open."""
        yield from self._end(False)

    def _end(self, failed: bool) -> Op[None]:
        if self._pool is not None:
            yield Ask(self._pool.close, ())

    def acting(
        self,
        *,
        user: str | int | UUID | None = None,
        agent: str | int | UUID | None = None,
        system: str | int | UUID | None = None,
        tenant: str | None = None,
        on_behalf_of: str | int | UUID | None = None,
    ) -> Actor[D]:
        """Somebody who acts: exactly one of `user`, `agent` and `system`."""
        named = {"user": user, "agent": agent, "system": system}
        who = [(kind, key_text(id)) for kind, id in named.items() if id is not None]
        if len(who) != 1 or not who[0][1]:
            raise InvalidRequest("exactly one of user=, agent= and system= says who acts")
        tenant = tenant or self.tenant
        if not tenant:
            raise InvalidRequest("whose? connect, on or acting takes a tenant", param="tenant")
        [(kind, id)] = who
        behalf = None if on_behalf_of is None else key_text(on_behalf_of)
        return Actor(self._driver, Principal(tenant, kind, id, behalf), self._on_event)

    def by(self, secret: str) -> Actor[D]:
        """Who acts by a session: a secret that a service minted for this login.

        It is presented with every call, as whoever acts is said, so that no connection keeps it.
        """
        actor = Actor(self._driver, None, self._on_event)
        actor._secret = secret
        return actor


class Concord(Database[Sync]):
    """The client for psycopg's `Connection`. `connect` gives one with a pool of its own."""

    @classmethod
    def on(
        cls,
        connection: psycopg.Connection[Any],
        *,
        tenant: str | None = None,
        on_event: OnEvent | None = None,
    ) -> Concord:
        """Join the transaction of a connection of the caller's, and never end it.

        The receipts are not `durable`: the caller's commit makes them so. A connection in
        autocommit mode without a transaction in progress gives nothing to join: there each call is
        a transaction of its own, and durable. The identity of the last call stays with the
        transaction: later statements of the caller's own are logged under it.
        """
        return cls(Sync(lambda: nullcontext(connection), attempts=1), tenant, on_event)


class AsyncConcord(Database[Async]):
    """The client for psycopg's `AsyncConnection`: the same names, awaited."""

    @classmethod
    def on(
        cls,
        connection: psycopg.AsyncConnection[Any],
        *,
        tenant: str | None = None,
        on_event: OnEvent | None = None,
    ) -> AsyncConcord:
        """As `Concord.on`."""
        return cls(Async(lambda: nullcontext(connection), attempts=1), tenant, on_event)


def connect(
    dsn: str | None = None,
    tenant: str | None = None,
    *,
    on_event: OnEvent | None = None,
    attempts: int = 4,
    **pool: Any,
) -> Concord:
    """A client with a pool of its own; each call is one durable transaction.

    Without a `dsn`, DATABASE_URL and then libpq's PG* variables say where. `attempts` bounds how
    often a contended call is made. Everything else is psycopg_pool's: `min_size`, `max_size`,
    `timeout`, `check`, and `kwargs` for its connections (a pooler that cannot keep prepared
    statements wants `kwargs={"prepare_threshold": None}`).
    """
    conninfo, options = _pool_options(dsn, pool)
    # A pool answers a wrong address with a timeout, half a minute later; this says what is wrong.
    psycopg.connect(conninfo, **options["kwargs"]).close()
    own = ConnectionPool(conninfo, open=True, **options)
    db = Concord(Sync(own.connection, attempts=attempts), tenant, on_event)
    db._pool = own
    return db


class Connecting:
    """What `aconnect` answers: `await` it, or enter it by `async with`, which closes it again."""

    def __init__(self, opening: Coroutine[Any, Any, AsyncConcord]) -> None:
        self._opening = opening

    def __await__(self) -> Generator[Any, Any, AsyncConcord]:
        return self._opening.__await__()

    async def __aenter__(self) -> AsyncConcord:
        self._db = await self._opening
        return self._db

    async def __aexit__(self, *_: object) -> None:
        await self._db.close()


def aconnect(
    dsn: str | None = None,
    tenant: str | None = None,
    *,
    on_event: OnEvent | None = None,
    attempts: int = 4,
    **pool: Any,
) -> Connecting:
    """As `connect`, for asyncio: `db = await aconnect()`, or `async with aconnect() as db`."""
    return Connecting(_aconnect(dsn, tenant, on_event, attempts, pool))


async def _aconnect(
    dsn: str | None,
    tenant: str | None,
    on_event: OnEvent | None,
    attempts: int,
    pool: Mapping[str, Any],
) -> AsyncConcord:
    conninfo, options = _pool_options(dsn, pool)
    first = await psycopg.AsyncConnection.connect(conninfo, **options["kwargs"])
    await first.close()
    own = AsyncConnectionPool(conninfo, open=False, **options)
    await own.open()
    db = AsyncConcord(Async(own.connection, attempts=attempts), tenant, on_event)
    db._pool = own
    return db


def _pool_options(dsn: str | None, pool: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    conninfo = dsn if dsn is not None else os.environ.get("DATABASE_URL", "")
    # autocommit, because the driver begins and ends the transaction of each call itself.
    kwargs = {"client_encoding": "utf8", **pool.get("kwargs", {}), "autocommit": True}
    return conninfo, {"min_size": 1, "max_size": 10, **pool, "kwargs": kwargs}


def _backoff(attempt: int) -> float:
    ceiling = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (attempt - 1))
    return ceiling * random.uniform(0.5, 1.0)


def _chosen(row: Row, fields: Values) -> Values | None:
    if not row.exists:
        return None
    return {name: row[name] for name in fields if name in row}


# The calls, one for each function. Answers come as text and are parsed here, so that no adapter
# that the caller may have registered on a joined connection decides how a number arrives.
ACT_AS = "select concord.act_as(%s, %s, %s, %s)"
_AUTHENTICATE = "select concord.authenticate(%s)"
_CAPTURE = "select concord.capture()"
_READ = "select concord.read(%s, %s)::text"
_TRY_COMMIT = "select concord.try_commit(%s)::text"
_HISTORY = "select to_jsonb(change)::text from concord.history(%s, %s, %s) as change"
_CHANGES = "select to_jsonb(change)::text from concord.changes(%s, %s) as change"
