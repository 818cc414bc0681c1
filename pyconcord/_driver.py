"""The two ways to run one core.

Every operation of the client is written once, as a generator that yields what it wants done (an
`Effect`) and is sent the answer. `Sync` runs such a generator to its end, `Async` awaits its way
through it; nothing else here knows what an operation is about.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Sequence,
)
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass
from functools import wraps
from inspect import isawaitable
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    TypeVar,
    cast,
    overload,
)

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

if TYPE_CHECKING:
    from typing_extensions import LiteralString
    from typing_extensions import TypeVar as TypeVarWithDefault


@dataclass(frozen=True)
class Call:
    """One call of one of Concord's functions; each row of the answer is one text."""

    sql: LiteralString
    params: tuple[object, ...] = ()


@dataclass(frozen=True)
class Calls:
    """Calls to make in one transaction and one round trip. Answered by the last one's `Answer`."""

    calls: Sequence[Call]


@dataclass(frozen=True)
class Answer:
    rows: Sequence[Any]
    durable: bool
    """Whether the transaction was this call's own, and is committed."""


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Ask:
    """Ask a function of the user's, which in async code may answer with an awaitable."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


Effect = Calls | Sleep | Ask
T = TypeVar("T")
Op = Generator[Effect, Any, T]

# Spelled out, because psycopg's own transaction() would sync the pipeline and so cost another round
# trip; and READ COMMITTED whatever the database's default, because commit() takes no other.
_BEGIN = Call("begin isolation level read committed")
_COMMIT = Call("commit")


class Driver:
    """What runs operations; `attempts` bounds how often one makes a call that is contended."""

    attempts: int
    login: str | None = None
    """As whom the last connection was made, for what is told to those who lack a grant."""
    acts_already: bool = False
    """Whether who acts was said when the transaction began, and is not said again."""


class Sync(Driver):
    """Runs operations on psycopg's Connection."""

    def __init__(
        self,
        connection: Callable[[], AbstractContextManager[psycopg.Connection[Any]]],
        *,
        attempts: int,
    ) -> None:
        self._connection = connection
        self.attempts = attempts

    def run(self, op: Op[T]) -> T:
        try:
            effect = next(op)
            while True:
                try:
                    answer = self._do(effect)
                except psycopg.Error as error:
                    effect = op.throw(error)
                else:
                    effect = op.send(answer)
        except StopIteration as end:
            return cast(T, end.value)

    def _do(self, effect: Effect) -> Any:
        if isinstance(effect, Calls):
            with self._connection() as connection:
                return self._round_trip(connection, effect.calls)
        if isinstance(effect, Sleep):
            return time.sleep(effect.seconds)
        return effect.function(*effect.args)

    def _round_trip(self, connection: psycopg.Connection[Any], calls: Sequence[Call]) -> Answer:
        own = _is_own(connection)
        self.login = connection.info.user
        try:
            with _first_error() as noting, noting(), _pipeline(connection), noting():
                cursors = [
                    psycopg.Cursor(connection, row_factory=tuple_row).execute(
                        call.sql, call.params or None
                    )
                    for call in _framed(calls, own)
                ]
            rows = cursors[-2 if own else -1].fetchall()
        finally:
            if own and _is_left_open(connection):
                connection.rollback()
        return Answer([row[0] for row in rows], own)


class Async(Driver):
    """Runs operations on psycopg's AsyncConnection."""

    def __init__(
        self,
        connection: Callable[[], AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]],
        *,
        attempts: int,
    ) -> None:
        self._connection = connection
        self.attempts = attempts

    async def run(self, op: Op[T]) -> T:
        try:
            effect = next(op)
            while True:
                try:
                    answer = await self._do(effect)
                except psycopg.Error as error:
                    effect = op.throw(error)
                else:
                    effect = op.send(answer)
        except StopIteration as end:
            return cast(T, end.value)

    async def _do(self, effect: Effect) -> Any:
        if isinstance(effect, Calls):
            async with self._connection() as connection:
                return await self._round_trip(connection, effect.calls)
        if isinstance(effect, Sleep):
            return await asyncio.sleep(effect.seconds)
        answer = effect.function(*effect.args)
        return await answer if isawaitable(answer) else answer

    async def _round_trip(
        self, connection: psycopg.AsyncConnection[Any], calls: Sequence[Call]
    ) -> Answer:
        own = _is_own(connection)
        self.login = connection.info.user
        try:
            with _first_error() as noting, noting():
                async with _pipeline(connection):
                    with noting():
                        cursors = [
                            await psycopg.AsyncCursor(connection, row_factory=tuple_row).execute(
                                call.sql, call.params or None
                            )
                            for call in _framed(calls, own)
                        ]
            rows = await cursors[-2 if own else -1].fetchall()
        finally:
            if own and _is_left_open(connection):
                await connection.rollback()
        return Answer([row[0] for row in rows], own)


AnyConnection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]


def _pipeline(connection: AnyConnection) -> Any:
    """psycopg's pipeline, where libpq has it; to be entered as the connection is."""
    return connection.pipeline() if psycopg.Pipeline.is_supported() else nullcontext()


@contextmanager
def _first_error() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Raises the first of the errors noted inside, and is silent about the rest: that what follows
    it in a pipeline was aborted would be logged as a warning else.
    """
    errors: list[psycopg.Error] = []

    @contextmanager
    def noting() -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            errors.append(error)

    yield noting
    if errors:
        raise errors[0]


def _is_own(connection: AnyConnection) -> bool:
    """Whether there is no transaction to join: autocommit, and none in progress.

    The calls then need one around them (identity is set per transaction), and it is ours to end.
    """
    return connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE


def _framed(calls: Sequence[Call], own: bool) -> Sequence[Call]:
    return (_BEGIN, *calls, _COMMIT) if own else calls


def _is_left_open(connection: AnyConnection) -> bool:
    return connection.info.transaction_status in (
        TransactionStatus.INTRANS,
        TransactionStatus.INERROR,
    )


if TYPE_CHECKING:  # so that a plain `Actor` in an annotation is the synchronous one
    D = TypeVarWithDefault("D", bound=Driver, default=Sync)
else:
    D = TypeVar("D", bound=Driver)


class Driven(Generic[D]):
    """Something with operations, and the driver that runs them."""

    def __init__(self, driver: D) -> None:
        self._driver: D = driver


P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class Operation(Protocol[P, R]):
    """An operation's type: its result is at hand under `Sync`, to be awaited under `Async`."""

    @overload
    def __get__(self, instance: Driven[Sync], owner: object = ...) -> Callable[P, R]: ...
    @overload
    def __get__(
        self, instance: Driven[Async], owner: object = ...
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...


def operation(body: Callable[Concatenate[Any, P], Op[T]]) -> Operation[P, T]:
    """Make a method of a generator: calling it runs the generator with the instance's driver."""

    @wraps(body)
    def method(self: Driven[Any], *args: P.args, **kwargs: P.kwargs) -> Any:
        return self._driver.run(body(self, *args, **kwargs))

    return cast("Operation[P, T]", method)


class Scope(Driven[D]):
    """Something to be entered: by `with` under Sync, by `async with` under Async."""

    def _begin(self) -> Op[None]:
        yield from ()

    def _end(self, failed: bool) -> Op[None]:
        yield from ()

    def __enter__(self: InSync) -> InSync:
        self._expect(Sync, "async with")
        self._driver.run(self._begin())
        return self

    def __exit__(self: Scope[Sync], kind: type[BaseException] | None, *_: object) -> None:
        self._driver.run(self._end(kind is not None))

    async def __aenter__(self: InAsync) -> InAsync:
        self._expect(Async, "with")
        await self._driver.run(self._begin())
        return self

    async def __aexit__(self: Scope[Async], kind: type[BaseException] | None, *_: object) -> None:
        await self._driver.run(self._end(kind is not None))

    def _expect(self, driver: type, instead: str) -> None:
        if not isinstance(self._driver, driver):
            raise TypeError(f"{type(self).__name__}: this one is entered by '{instead}'")


InSync = TypeVar("InSync", bound=Scope[Sync])
InAsync = TypeVar("InAsync", bound=Scope[Async])
