"""SQLAlchemy sessions on the commit functions: mapped classes as they are, found by their tables.

    concord.install(engine, identity=current_principal)      # once; a Principal, or None for nobody

    with concord.reading(session) as read:                   # a token first, then any reads
        slide = session.get(Slide, 7)
    ...                                                      # minutes; read.token travels as text
    with concord.unit(session, read_at=token, on_stale="notify") as unit:
        session.get(Slide, 7).title = "…"
    unit.receipt.held                                        # not written, not lost

With an `AsyncSession` the same blocks are entered by `async with`.

A flush stays SQLAlchemy's own: relationships, cascades, inheritance and the order of its statements
are as ever. What changes is how a statement of a flush on a tracked table is executed while a unit
is open on its connection (`unit._execute`): it becomes operations of the unit, and the cursor then
looks as if the statement had run. This is right as long as such a statement says no more than an
operation can: which row, by key, and values for its columns. What says more is refused.

Everything else that is executed on the connection first commits what was collected. Outside a unit
the hooks look into an empty dictionary, and let the statement pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary

import psycopg
from psycopg.adapt import Transformer
from sqlalchemy import Connection, Engine, Text, cast, event, exc, func, inspect, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    Mapper,
    Session,
    SessionTransactionOrigin,
    make_transient,
    make_transient_to_detached,
)
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ColumnClause,
    RollbackToSavepointClause,
    SavepointClause,
)
from sqlalchemy.sql.visitors import iterate
from sqlalchemy.util import await_only

from .. import reads as declared
from .._json import loads
from ..errors import InvalidRequest, from_database
from ..events import OnEvent
from ..reads import OnStale, Premise, Read
from ..receipts import Outcome, Principal, Row
from ._begin import begin_as, begin_as_async
from ._models import Execute, Model, Models, typed_rows
from ._unit import Mark, Unit, UnitReceipt
from ._values import as_json

Identity = Callable[[], Principal | None]
AnySession = Session | AsyncSession


class Loaded(Enum):
    """What `LOADED` is made of."""

    LOADED = "loaded"


LOADED: Final = Loaded.LOADED
"""In `reads`: every row of a tracked table that the block loaded before it wrote is its premise."""


# --- who acts -------------------------------------------------------------------------------------


def install(
    engine: Engine | AsyncEngine,
    identity: Identity | None = None,
    on_event: OnEvent | None = None,
) -> None:
    """Let each transaction of the engine begin with who acts, and units be opened on it.

    `identity` is asked as a transaction begins, in its thread or task; None is nobody. It is said
    in the round trip in which psycopg sends BEGIN, and ends with the transaction: no connection of
    a pool carries it on. In AUTOCOMMIT there is no transaction to say it in, so nobody acts.
    """
    sync = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    if sync.dialect.driver not in ("psycopg", "psycopg_async"):
        raise InvalidRequest(
            f"units need psycopg, and this engine has {sync.dialect.driver}: "
            "create it with postgresql+psycopg://"
        )
    known = _hooks(sync)
    known.identity, known.on_event = identity, on_event


class _Hooks:
    """The listeners of one engine."""

    def __init__(self, engine: Engine) -> None:
        self.identity: Identity | None = None
        self.on_event: OnEvent | None = None
        self.units: WeakKeyDictionary[Connection, unit] = WeakKeyDictionary()
        """Those that are open."""
        self.principals: WeakKeyDictionary[Connection, Principal] = WeakKeyDictionary()
        for name in ("begin", "rollback", "commit"):
            event.listen(engine, name, getattr(self, name))
        event.listen(engine, "do_execute", self.execute)
        event.listen(engine, "do_executemany", self.execute)
        event.listen(engine, "do_execute_no_params", self.execute_bare)

    def begin(self, connection: Connection) -> None:
        principal = self.identity() if self.identity is not None else None
        if principal is None:
            self.principals.pop(connection, None)
            return
        self.principals[connection] = principal
        dbapi: Any = connection.connection.dbapi_connection
        driver: Any = connection.connection.driver_connection
        if driver.autocommit:
            return
        try:
            if isinstance(driver, psycopg.AsyncConnection):
                await_only(begin_as_async(driver, principal))
            else:
                begin_as(driver, principal)
        except psycopg.Error as error:
            dbapi.rollback()
            raise from_database(error, driver.info.user) or error from error

    def execute(self, cursor: Any, statement: str, parameters: Any, context: Any) -> bool:
        opened = self.units.get(context.root_connection)
        return opened is not None and opened._execute(cursor, parameters, context)

    def execute_bare(self, cursor: Any, statement: str, context: Any) -> bool:
        return self.execute(cursor, statement, {}, context)

    def rollback(self, connection: Connection) -> None:
        opened = self.units.get(connection)
        if opened is not None:
            opened._over = True

    def commit(self, connection: Connection) -> None:
        opened = self.units.get(connection)
        if opened is not None:
            raise InvalidRequest("a unit commits when its block ends: leave it instead")


_OF_ENGINE: WeakKeyDictionary[Any, _Hooks] = WeakKeyDictionary()


def _hooks(engine: Engine) -> _Hooks:
    # By the pool, which the engines that execution_options() makes of one have in common.
    known = _OF_ENGINE.get(engine.pool)
    if known is None:
        known = _OF_ENGINE[engine.pool] = _Hooks(engine)
    return known


def _runner(connection: Connection) -> Execute:
    """Statements of Concord's own, past SQLAlchemy and its hooks."""
    dbapi: Any = connection.connection.dbapi_connection

    def execute(query: str, values: tuple[object, ...]) -> Sequence[Sequence[Any]]:
        cursor = dbapi.cursor()
        try:
            cursor.execute(query, values or None)
            return list(cursor.fetchall())
        finally:
            cursor.close()

    return execute


# --- the two blocks -------------------------------------------------------------------------------


class _Block:
    """A block over a session: entered by `with`, or over an AsyncSession by `async with`."""

    def __init__(self, session: AnySession) -> None:
        self._given = session
        self._session = session.sync_session if isinstance(session, AsyncSession) else session
        self._watch: _Watch | None = None

    def _enter(self) -> None:
        raise NotImplementedError

    def _leave(self, failed: bool) -> None:
        raise NotImplementedError

    def __enter__(self) -> Any:
        if isinstance(self._given, AsyncSession):
            raise TypeError("over an AsyncSession this is entered by 'async with'")
        self._enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._leave(kind is not None)

    async def __aenter__(self) -> Any:
        if not isinstance(self._given, AsyncSession):
            raise TypeError("over a Session this is entered by 'with'")
        await self._given.run_sync(lambda _: self._enter())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert isinstance(self._given, AsyncSession)
        await self._given.run_sync(lambda _: self._leave(kind is not None))

    def _demand_clean(self) -> None:
        """What was loaded before the block is older than its token says: it is loaded anew."""
        session = self._session
        if session.new or session.deleted or session.dirty:
            raise InvalidRequest("the session has changes that are not flushed: commit them first")
        session.expire_all()

    def _join(self) -> None:
        """Find out who ends the transaction: this block, unless another one began it."""
        current = self._session.get_transaction()
        self._connection = self._session.connection()
        self._hooks = _hooks(self._connection.engine)
        self._outer = self._hooks.units.get(self._connection)
        self._own = self._outer is None and (
            current is None
            or (current.origin is SessionTransactionOrigin.AUTOBEGIN and not current.nested)
        )


class reading(_Block):
    """A block of reads under one token, which was taken before any of them.

    Its transaction ends with the block; what was loaded stays loaded.
    """

    token: str

    def _enter(self) -> None:
        self._demand_clean()
        self._join()
        execute = _runner(self._connection)
        [[token]] = execute("select concord.capture()", ())
        self.token = str(token)
        self._watch = _Watch(self._session, Models(execute), _Binds(self._connection))

    def _leave(self, failed: bool) -> None:
        assert self._watch is not None
        self._watch.close()
        if not self._own:
            return
        if failed:
            self._session.rollback()
            return
        expires, self._session.expire_on_commit = self._session.expire_on_commit, False
        try:
            self._session.commit()
        finally:
            self._session.expire_on_commit = expires

    @property
    def loaded(self) -> list[Mapping[str, Any]]:
        """Premises on every row of a tracked table that was loaded here, for a later unit."""
        assert self._watch is not None
        return list(self._watch.premises)


class unit(_Block):
    """A block whose flushes are commits, judged by `read_at`; without it they are not judged.

    `reads` (and `rests_on`) declare what the writes rest on, under the same token. The block ends
    with its transaction committed, or rolled back when anything was raised; inside another
    transaction's block, or another unit, it is a savepoint.
    """

    def __init__(
        self,
        session: AnySession,
        *,
        read_at: str | None = None,
        on_stale: OnStale | None = None,
        reads: Iterable[Premise | Literal[Loaded.LOADED]] = (),
        only_changed: bool = True,
        label: str | None = None,
    ) -> None:
        super().__init__(session)
        premises = list(reads)
        self._loaded = LOADED in premises
        self._options: dict[str, Any] = {
            "read_at": read_at,
            "on_stale": on_stale,
            "reads": [premise for premise in premises if not isinstance(premise, Loaded)],
            "only_changed": only_changed,
            "label": label,
        }
        self._marks: dict[str, Mark] = {}
        self._told: dict[tuple[str, str], Outcome] = {}
        self._saved: list[object] = []
        self._deleted: list[object] = []
        self._in_flush = False
        self._evaluating = False
        self._over = False

    @property
    def receipt(self) -> UnitReceipt:
        """What became of it so far."""
        return self._core.receipt

    def rests_on(self, *things: object) -> None:
        """Let what is written from here on rest on these: mapped objects, or premises."""
        for thing in things:
            if isinstance(thing, (Row, Read, Mapping)):
                self._core.declare(thing)
            else:
                self._core.declare(*_premises_of(thing, self._core.models, self._binds))

    def _enter(self) -> None:
        self._join()
        session, connection = self._session, self._connection
        if self._outer is not None:
            session.flush()  # by the unit around this one, and its token
        self._demand_clean()
        driver: Any = connection.connection.driver_connection
        if driver.autocommit:
            raise InvalidRequest("a unit needs a transaction, and this engine is in AUTOCOMMIT")
        self._nested = None if self._own else session.begin_nested().__enter__()
        self._binds = _Binds(connection)
        who, told = self._hooks.principals.get(connection), self._hooks.on_event
        self._core = Unit(_runner(connection), who, on_event=told, **self._options)
        if self._loaded:
            self._watch = _Watch(session, self._core.models, self._binds, self._core.declare)
        self._hooks.units[connection] = self
        for name, listener in self._listeners():
            event.listen(session, name, listener)

    def _listeners(self) -> Iterable[tuple[str, Callable[..., None]]]:
        return (
            ("before_flush", self._flushes),
            ("after_flush", self._flushed),
            ("after_flush_postexec", self._settle),
        )

    def _leave(self, failed: bool) -> None:
        try:
            if not failed:
                self._demand_transaction()
                self._session.flush()
                self._core.finish()
        except psycopg.Error as error:
            self._end(failed=True)
            raise self._wrapped(error) from error
        except BaseException:
            self._end(failed=True)
            raise
        self._end(failed)

    def _end(self, failed: bool) -> None:
        for name, listener in self._listeners():
            event.remove(self._session, name, listener)
        if self._watch is not None:
            self._watch.close()
        self._hooks.units.pop(self._connection, None)
        if self._outer is not None:
            self._hooks.units[self._connection] = self._outer
        if self._nested is not None:  # its own block knows in which state a failed flush left it
            self._nested.__exit__(InvalidRequest if failed else None, None, None)
        elif failed:
            self._session.rollback()
        else:
            self._session.commit()
            self._core.committed()

    # --- flushes --------------------------------------------------------------------------------

    def _flushes(self, session: Session, context: Any, instances: Any) -> None:
        self._demand_transaction()
        self._in_flush = True

    def _flushed(self, session: Session, context: Any) -> None:
        """A flush is one commit, unless it had to know in between what a statement gave."""
        self._saved, self._deleted = [*session.new, *session.dirty], [*session.deleted]
        self._in_flush = False
        try:
            self._core.flush()
        except psycopg.Error as error:
            raise self._wrapped(error) from error

    def _demand_transaction(self) -> None:
        # The next one would be another, perhaps on another connection, where no unit is open.
        if self._over:
            raise InvalidRequest("the unit's transaction was rolled back: leave its block")

    def _rolled_back_to(self, savepoint: str) -> None:
        mark = self._marks.get(savepoint)
        if mark is not None:
            self._in_flush = False
            self._told.clear()
            self._core.rewind(mark)
        else:  # one from before this unit
            self._over = True
            if self._outer is not None:
                self._outer._rolled_back_to(savepoint)

    def _wrapped(self, error: psycopg.Error) -> BaseException:
        """As SQLAlchemy gives an error of the driver to the application."""
        return exc.DBAPIError.instance(
            "concord.try_commit", None, error, psycopg.Error, dialect=self._connection.dialect
        )

    def _settle(self, session: Session, context: Any) -> None:
        """Objects that differ from their rows are read again; of a held delete the object is back.

        Read, and not only expired: an AsyncSession can't load an attribute when it is asked for.
        """
        told, self._told = self._told, {}
        for instance in self._saved:
            differs: set[str] = set()
            for part in _parts_of(instance, self._core.models, self._binds):
                outcome = told.get((part.model.name, str(part.id)))
                if outcome is None:
                    continue
                row = outcome.data
                differs |= {
                    name
                    for name, (column, value) in part.loaded.items()
                    if row is None or not _same(row.get(column.name), self._binds(value, column))
                }
            if differs:
                self._refresh(instance, differs)
        for instance in self._deleted:
            parts = _parts_of(instance, self._core.models, self._binds)
            if any((part.model.name, str(part.id)) in told for part in parts):
                make_transient(instance)
                make_transient_to_detached(instance)
                session.add(instance)
                self._refresh(instance, None)
        self._saved, self._deleted = [], []

    def _refresh(self, instance: object, names: Iterable[str] | None) -> None:
        try:
            self._session.refresh(instance, names)
        except exc.InvalidRequestError:  # the row is gone
            self._session.expunge(instance)

    # --- statements -----------------------------------------------------------------------------

    def _execute(self, cursor: Any, parameters: Any, context: Any) -> bool:
        """Whether the statement became operations; if not, what was collected is committed."""
        if self._evaluating:
            return False
        asked = context.compiled.statement if context.compiled is not None else None
        if isinstance(asked, RollbackToSavepointClause):
            self._rolled_back_to(asked.ident)
            return False
        if isinstance(asked, SavepointClause):
            self._marks[asked.ident] = self._core.mark()
            return False
        writes = context.isinsert or context.isupdate or context.isdelete
        table = context.invoked_statement.table if writes else None
        model = None if table is None else self._core.models.of(table.name, table.schema)
        if model is None:
            self._core.flush()
            if writes:
                self._core.wrote_beside()
            return False
        if not self._in_flush:
            raise InvalidRequest(
                f"in a unit {model.name} is written by its objects: change, add or delete them. A "
                "statement for many rows would pass by what was read"
            )
        rows = _Statement(self, model, context)
        if context.isinsert:
            self._insert(cursor, parameters, context, model, rows)
        else:
            returning = [column.name for column in context.compiled.effective_returning]
            kind = "update" if context.isupdate else "delete"
            given: list[Outcome] = []
            count = 0
            for key, where, data in rows:
                operation = {"type": kind, "model": model.name, "id": model.id(key)}
                operation |= {"data": data} if context.isupdate else {}
                operation |= {"where": where} if where else {}
                self._core.add(operation, self._then(model, key, given))
                count += 1
            if returning:
                self._core.flush()
                self._answer(cursor, model, returning, [each.data or {} for each in given])
            context._rowcount = count
        return True

    def _insert(
        self, cursor: Any, parameters: Any, context: Any, model: Model, rows: _Statement
    ) -> None:
        """The rows of an INSERT, created with one commit, also where SQLAlchemy sends batches."""
        made: deque[Mapping[str, Any]] | None = getattr(context, "_concord_made", None)
        if made is None:
            made = context._concord_made = deque()
            created: list[Outcome] = []
            for _, _, data in rows:
                operation = {"type": "create", "model": model.name, "data": data}
                self._core.add(operation, created.append)
            self._core.flush()
            for outcome in created:
                row = outcome.data or {}
                made.append(row)
                if row:
                    self._told[model.name, str(model.id(row))] = outcome
        returning = [column.name for column in context.compiled.effective_returning]
        if returning:
            each = len(context.compiled_parameters[0])
            batch = len(parameters) // each if each else 1
            self._answer(cursor, model, returning, [made.popleft() for _ in range(batch)])
        context._rowcount = len(rows.rows)

    def _answer(
        self, cursor: Any, model: Model, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Leave rows on the cursor, as RETURNING would have."""

        def execute(query: str, values: tuple[object, ...]) -> Sequence[Sequence[Any]]:
            cursor.execute(query, values)
            return ()

        typed_rows(execute, model, columns, rows)

    def _then(
        self, model: Model, key: Mapping[str, Any], given: list[Outcome]
    ) -> Callable[[Outcome], None]:
        told = model.name, str(model.id(key))

        def then(outcome: Outcome) -> None:
            given.append(outcome)
            if outcome.outcome == "held" or outcome.data is not None:
                self._told[told] = outcome

        return then

    def _evaluate(self, expression: Any, column: Any) -> Any:
        """What the server makes of an SQL expression that names no column, in JSON."""
        if any(isinstance(part, ColumnClause) for part in iterate(expression)):
            raise InvalidRequest(
                f"{column.table.name}.{column.name} = {expression}: in a unit a value says what it "
                "is, not how it comes out of the row: what it is computed from may have moved"
            )
        self._evaluating = True
        try:
            typed = func.to_json(cast(expression, column.type))
            text = self._connection.scalar(select(cast(typed, Text)))
            return None if text is None else loads(text)
        finally:
            self._evaluating = False


class _Statement:
    """A statement of a flush, taken apart: for each of its rows key, further conditions, data."""

    def __init__(self, opened: unit, model: Model, context: Any) -> None:
        self.opened, self.model, self.context = opened, model, context
        self.statement = context.invoked_statement
        self.columns = {column.key: column for column in self.statement.table.columns}
        self.escaped = context.compiled.escaped_bind_names or {}
        given = context.parameters
        self.rows: Sequence[Mapping[str, Any]] = (
            given if isinstance(given, (list, tuple)) else [given]
        )

    def __iter__(self) -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
        conditions = {} if self.context.isinsert else self._conditions()
        computed = self._computed()
        names = {bind for _, bind in conditions.values()}
        for row in self.rows:
            matched = {
                column.name: self._of(row, bind, column) for column, bind in conditions.values()
            }
            key = {name: matched.pop(name) for name in self.model.key if name in matched}
            if not self.context.isinsert and len(key) < len(self.model.key):
                raise InvalidRequest(f"in a unit a row of {self.model.name} is written by its key")
            data = {
                column.name: self._of(row, bind, column)
                for bind, column in self.columns.items()
                if bind not in names and self.escaped.get(bind, bind) in row
            }
            for column, expression in computed:
                data[column.name] = self.opened._evaluate(expression, column)
            yield key, matched, {} if self.context.isdelete else data

    def _of(self, row: Mapping[str, Any], bind: str, column: Any) -> Any:
        value = row[self.escaped.get(bind, bind)]
        return as_json(value, self.opened._binds.adapt, f"{self.model.name}.{column.name}")

    def _conditions(self) -> dict[str, tuple[Any, str]]:
        """WHERE a = :a AND b = :b, and nothing else."""
        found = {}
        for clause in self.statement._where_criteria:
            for part in clause.clauses if isinstance(clause, BooleanClauseList) else [clause]:
                if not (
                    isinstance(part, BinaryExpression)
                    and part.operator is operators.eq
                    and isinstance(part.right, BindParameter)
                ):
                    raise InvalidRequest(f"in a unit a row of {self.model.name} is found by values")
                found[str(part.left.key)] = (part.left, part.right.key)
        return found

    def _computed(self) -> list[tuple[Any, Any]]:
        """The columns whose value is an SQL expression: assigned, or a default of the column."""
        if self.context.isdelete:
            return []
        given = dict(self.statement._values or {})
        found = [
            (self.columns[getattr(column, "key", column)], value)
            for column, value in given.items()
            if not isinstance(value, BindParameter)
        ]
        sent = {column.key for column, _ in found}
        for key, column in self.columns.items():
            default = column.default if self.context.isinsert else column.onupdate
            if default is None or key in sent:
                continue
            if self.rows and self.escaped.get(key, key) in self.rows[0]:
                continue
            if default.is_sequence:
                found.append((column, func.nextval(default.name)))
            elif default.is_clause_element:
                found.append((column, default.arg))
        return found


# --- objects and their rows -----------------------------------------------------------------------


class _Binds:
    """Mapped values in JSON, by way of what SQLAlchemy would send."""

    def __init__(self, connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        self.adapt = Transformer(driver)
        self._dialect = connection.dialect
        self._processors: dict[Any, Callable[[Any], Any] | None] = {}

    def __call__(self, value: Any, column: Any) -> Any:
        if column not in self._processors:
            implementation = column.type.dialect_impl(self._dialect)
            self._processors[column] = implementation.bind_processor(self._dialect)
        process = self._processors[column]
        return as_json(process(value) if process else value, self.adapt, column.name)


@dataclass(frozen=True)
class _Part:
    """What a tracked table holds of an object; of an inherited class several do."""

    model: Model
    id: Any
    loaded: Mapping[str, tuple[Any, Any]]
    """Of each attribute that is loaded its column and value."""
    whole: bool


def _parts_of(instance: object, models: Models, binds: _Binds) -> Iterator[_Part]:
    state = inspect(instance)
    mapper = state.mapper
    if state.identity is None:
        return
    attributes = _attributes(mapper)
    named = {
        attributes[column]: (column, value)
        for column, value in zip(mapper.primary_key, state.identity, strict=True)
    }
    for table in mapper.tables:
        model = models.of(table.name, table.schema)
        if model is None:
            continue
        columns = {
            column.name: attributes[column] for column in table.columns if column in attributes
        }
        key = {name: binds(named[columns[name]][1], named[columns[name]][0]) for name in model.key}
        loaded = {
            attribute: (table.columns[name], state.dict[attribute])
            for name, attribute in columns.items()
            if attribute in state.dict
        }
        yield _Part(model, model.id(key), loaded, len(loaded) == len(columns))


@cache
def _attributes(mapper: Mapper[Any]) -> Mapping[Any, str]:
    """The mapped columns, each with the name of its attribute."""
    return {column: each.key for each in mapper.column_attrs for column in each.columns}


def _premises_of(instance: object, models: Models, binds: _Binds) -> Iterator[Mapping[str, Any]]:
    for part in _parts_of(instance, models, binds):
        fields = None if part.whole else sorted(column.name for column, _ in part.loaded.values())
        yield declared.row(part.model.name, part.id, fields=fields).wire


def _same(shown: Any, held: Any) -> bool:
    """Whether a value of a receipt is what an object holds; where it is hard to say, not."""
    if isinstance(held, float):
        held = Decimal(repr(held))
    if shown == held:
        return True
    if isinstance(shown, str) and isinstance(held, str):
        try:
            return datetime.fromisoformat(shown) == datetime.fromisoformat(held)
        except (ValueError, TypeError):
            return False
    return False


class _Watch:
    """Premises on the rows of tracked tables that a session loads, as it loads them."""

    def __init__(
        self,
        session: Session,
        models: Models,
        binds: _Binds,
        declare: Callable[[Premise], None] | None = None,
    ) -> None:
        self.premises: list[Mapping[str, Any]] = []
        self._session, self._models, self._binds, self._declare = session, models, binds, declare
        event.listen(session, "loaded_as_persistent", self._loaded)
        event.listen(Mapper, "refresh", self._refreshed)

    def close(self) -> None:
        event.remove(self._session, "loaded_as_persistent", self._loaded)
        event.remove(Mapper, "refresh", self._refreshed)

    def _loaded(self, session: Session, instance: object) -> None:
        for premise in _premises_of(instance, self._models, self._binds):
            if premise not in self.premises:
                self.premises.append(premise)
                if self._declare is not None:
                    self._declare(premise)

    def _refreshed(self, instance: object, context: Any, names: object) -> None:
        if context.session is self._session:
            self._loaded(self._session, instance)
