"""The two blocks: `reading()` and `unit()`.

While a unit is open on a connection, its compilers make operations of the writes to tracked tables
(`compilers`), and an execute wrapper commits what was collected before any other statement: Django
sends everything through one of these two, savepoints too, so that nothing passes `flush` by. Both
are attributes of the connection, which belongs to one thread, and are taken off with the block.

A refusal marks the transaction for rollback, as Django does after its own errors, so that nothing
goes on in it. An inner `atomic()` gets over one: what it did is rolled back and forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import psycopg
from asgiref.sync import sync_to_async
from django.db import Error, IntegrityError, connections, transaction
from django.db.models.deletion import Collector
from django.db.models.signals import post_save, pre_save

from ..._driver import Sync
from ..._json import key_text
from ...client import Reader
from ...errors import AlreadyExists, ConcordError
from ...reads import OnStale, Premise
from ...receipts import Outcome
from .._models import Execute, Model, Models
from .._unit import Joined, Mark, Then, Unit, UnitReceipt
from .compilers import guarded
from .identity import principal
from .loaded import Loaded, Record, premises_of
from .rows import id_of_instance, model_of

_SAVEPOINT = re.compile(r'(SAVEPOINT|RELEASE SAVEPOINT|ROLLBACK TO SAVEPOINT) ("?\w+"?)')


class RowExists(AlreadyExists, IntegrityError):
    """A create met a row under its id: for get_or_create() the violation that it waits for."""


class Block:
    """Entered by `with`, or by `async with` in the thread where Django's async ORM runs."""

    def __init__(self, using: str) -> None:
        self.using = using

    def __enter__(self: B) -> B:
        self.connection: Any = connections[self.using]
        self._context = self._run()
        self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._context.__exit__(*error)

    async def __aenter__(self: B) -> B:
        return await sync_to_async(self.__enter__)()

    async def __aexit__(self, *error: Any) -> Any:
        return await sync_to_async(self.__exit__)(*error)

    def _run(self) -> AbstractContextManager[None]:
        raise NotImplementedError


B = TypeVar("B", bound=Block)


class reading(Block):
    """A token, and any queries after it; then its transaction ends, or goes on as one it joined."""

    token: str

    def __init__(self, using: str = "default") -> None:
        super().__init__(using)
        self._premises: tuple[Mapping[str, Any], ...] | None = None

    @contextmanager
    def _run(self) -> Iterator[None]:
        joined = self.connection.in_atomic_block
        driver = Joined(statements(self.connection))
        with nullcontext() if joined else transaction.atomic(using=self.using):
            with self.connection.wrap_database_errors:
                driver.login = self.connection.connection.info.user
                self.token = Reader[Sync](driver, None, None).capture()
            with Record(self.connection) as self._record:
                yield

    @property
    def loaded(self) -> tuple[Mapping[str, Any], ...]:
        """What was loaded in the block, as premises for a later unit; JSON can carry them."""
        if self._premises is None:
            models = Models(statements(self.connection))
            found = self._record.premises(models)
            self._premises = tuple({**each, "readAt": self.token} for each in found)
        return self._premises


class unit(Block):
    """Saves and deletes of tracked models in this block are committed under `read_at`.

    The block is an `atomic()`: a transaction, or a savepoint in one, and then not `durable`.
    `rows_read_at` has later tokens of single rows, which were read again, by model and id.
    """

    def __init__(
        self,
        read_at: str | None = None,
        on_stale: OnStale | None = None,
        reads: Iterable[Premise] | Loaded = (),
        label: str | None = None,
        only_changed: bool = True,
        using: str = "default",
        rows_read_at: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        super().__init__(using)
        self._rows_read_at = rows_read_at or {}
        self._all_loaded = isinstance(reads, Loaded)
        self._options: dict[str, Any] = {
            "read_at": read_at,
            "on_stale": on_stale,
            "reads": () if isinstance(reads, Loaded) else reads,
            "label": label,
            "only_changed": only_changed,
        }
        self._marks: dict[str, Mark] = {}
        self._error: Exception | None = None
        self._saving: list[Any] = []
        self._deleting: dict[tuple[str, str], Any] = {}
        self._dropped: list[tuple[Any, Any]] = []
        self._kept: list[tuple[Any, Any]] = []

    @contextmanager
    def _run(self) -> Iterator[None]:
        owned = not self.connection.in_atomic_block and self.connection.get_autocommit()
        self.execute = statements(self.connection)
        with transaction.atomic(using=self.using):
            with self.connection.wrap_database_errors:
                self._unit = Unit(self.execute, principal(), **self._options)
            record = Record(self.connection) if self._all_loaded else nullcontext()
            with self._taking_over(), record as self._record:
                yield
                self._finish()
        if owned:
            self._unit.committed()

    # For the application

    @property
    def receipt(self) -> UnitReceipt:
        """What became of the writes; so far, while the block is open."""
        return self._unit.receipt

    def rests_on(self, *what: Any) -> None:
        """What is written from here on rests on these: objects as they were loaded, or premises."""
        for each in what:
            if hasattr(each, "_meta"):
                deferred = each.get_deferred_fields()
                found = premises_of(self.connection, self._unit.models, each, deferred)
                self._unit.declare(*found)
            else:
                self._unit.declare(each)

    # For the compilers

    def model(self, meta: Any) -> Model | None:
        return model_of(self._unit.models, meta)

    def write(self, operation: Mapping[str, Any], then: Then) -> None:
        if self._record is not None:
            self._unit.declare(*self._record.premises(self._unit.models))
        if self._rows_read_at and "id" in operation:
            later = self._rows_read_at.get((operation["model"], key_text(operation["id"])))
            operation = {**operation, "readAt": later} if later else operation
        self._unit.add(operation, then)

    def flush(self) -> None:
        self._unit.flush()

    def wrote_beside(self) -> None:
        self._unit.wrote_beside()

    def saved(self, meta: Any, model: Model, id: Any) -> Any:
        """The object that is being saved to this row; None for QuerySet.update()."""
        for instance in reversed(self._saving):
            if isinstance(instance, meta.concrete_model) and id == id_of_instance(
                self.connection, model, meta, instance
            ):
                return instance
        return None

    @property
    def deletes(self) -> bool:
        """Whether Django is following the on_delete of a deleted object's relations."""
        return bool(self._deleting)

    def deleted(self, model: Model, id: Any) -> Any:
        """The object that is being deleted with this row, if it was loaded."""
        return self._deleting.get((model.name, key_text(id)))

    def dropping(self, instance: Any) -> Then:
        """Django takes the key from what it deletes. A delete that is held gives it back."""
        entry = instance, instance.pk
        self._dropped.append(entry)

        def told(outcome: Outcome) -> None:
            self._dropped.remove(entry)
            if outcome.outcome == "held":
                self._keep(entry)

        return told

    def _keep(self, *entries: tuple[Any, Any]) -> None:
        for instance, pk in entries:
            instance.pk = pk
        self._kept += entries

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Around what may be refused: errors leave as Django's, and nothing goes on after them."""
        try:
            with self.connection.wrap_database_errors:
                yield
        except Exception as error:
            self._error = error
            self._keep(*self._dropped)
            self._dropped.clear()
            if isinstance(error, AlreadyExists):
                self._error = RowExists(error.message, param=error.param, detail=error.detail)
                self.connection.needs_rollback = True
                raise self._error from error
            # After an error of its own the server refuses what follows, up to the savepoint.
            if isinstance(error, ConcordError):
                self.connection.needs_rollback = True
            raise

    # What the connection does

    @contextmanager
    def _taking_over(self) -> Iterator[None]:
        state, ops = vars(self.connection), vars(self.connection.ops)
        outer, compiler = state.get("concord_unit"), self.connection.ops.compiler
        state["concord_unit"] = self
        ops["compiler"] = lambda name: guarded(compiler(name))
        self.connection.execute_wrappers.insert(0, self._before)
        try:
            yield
        finally:
            self.connection.execute_wrappers.remove(self._before)
            state["concord_unit"] = outer
            ops["compiler"] = compiler
            if outer is None:
                del ops["compiler"]

    def _before(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        """Commits what was collected before another statement, and keeps up with savepoints."""
        if self.connection.needs_rollback:
            return execute(sql, params, many, context)
        found = _SAVEPOINT.match(sql) if isinstance(sql, str) else None
        verb, name = found.groups() if found else ("", "")
        if verb == "ROLLBACK TO SAVEPOINT":
            result = execute(sql, params, many, context)
            self._rewind(name)
            return result
        try:
            with self.guard():
                self._unit.flush()
        except ConcordError:
            if verb == "RELEASE SAVEPOINT":  # Django would roll back after a DatabaseError only
                self.connection.needs_rollback = False
                execute(f"ROLLBACK TO SAVEPOINT {name}", None, False, context)
                self._rewind(name)
            raise
        if verb == "SAVEPOINT":
            self._marks[name] = self._unit.mark()
        return execute(sql, params, many, context)

    def _rewind(self, name: str) -> None:
        if name in self._marks:
            self._unit.rewind(self._marks[name])
            self._error = None

    def _finish(self) -> None:
        if self.connection.needs_rollback or self._error is not None:
            raise self._error or transaction.TransactionManagementError(
                "the unit is rolled back: an error inside it was caught without an atomic() "
                "around what failed"
            )
        with self.guard():
            self._unit.finish()


def statements(connection: Any) -> Execute:
    """Runs statements on a connection of Django's, and raises psycopg's own errors."""

    def execute(sql: str, params: tuple[object, ...]) -> Sequence[Sequence[Any]]:
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql, params)
                rows: Sequence[Sequence[Any]] = cursor.fetchall()
                return rows
        except Error as error:
            if isinstance(error.__cause__, psycopg.Error):
                raise error.__cause__ from None
            raise

    return execute


def install() -> None:
    """Let units know which object a statement is about: Django's compilers see only queries."""
    pre_save.connect(_saving, dispatch_uid="concord")
    post_save.connect(_saved, dispatch_uid="concord")
    if not hasattr(Collector.delete, "__wrapped__"):
        Collector.delete = _noticing(Collector.delete)


def _open(using: str) -> unit | None:
    found: unit | None = vars(connections[using]).get("concord_unit")
    return found


def _saving(instance: Any, using: str, **_: Any) -> None:
    if (open := _open(using)) is not None:
        open._saving.append(instance)


def _saved(instance: Any, using: str, **_: Any) -> None:
    if (open := _open(using)) is not None:
        open._saving = [each for each in open._saving if each is not instance]


def _noticing(delete: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # No signal: a receiver of pre_delete or post_delete would change how Django deletes.
    @wraps(delete)
    def wrapper(collector: Any) -> Any:
        open = _open(collector.using)
        if open is None:
            return delete(collector)
        outer, open._kept = open._deleting, []
        open._deleting = {("", ""): collector}
        for kind, instances in collector.data.items():
            if (model := open.model(kind._meta)) is not None:
                for each in instances:
                    id = id_of_instance(open.connection, model, kind._meta, each)
                    open._deleting[model.name, key_text(id)] = each
        try:
            result = delete(collector)
        finally:
            open._deleting = outer
        for instance, pk in open._kept:
            instance.pk = pk
        return result

    return wrapper
