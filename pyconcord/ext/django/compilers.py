"""From Django's INSERT, UPDATE and DELETE of tracked tables to operations.

`connection.ops.compiler` is Django's own place to put other compilers: these are mixed into those
of the backend in force, and used only while a unit is open.

An operation names its row by the key. So an UPDATE is taken only where its condition is the key,
as save() and delete() write it; a condition of any other kind is a bulk statement, and refused.
Django counts matched rows to tell an update from an insert, and users do: where the row is not
known to be there (it was loaded, and is being saved), its key is looked up first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from datetime import datetime
from decimal import Decimal
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.core.exceptions import EmptyResultSet, FullResultSet
from django.db.models import IntegerField, JSONField
from django.db.models.constants import OnConflict
from django.db.models.expressions import Col, Subquery
from django.db.models.sql import Query
from django.db.models.sql.compiler import (
    SQLDeleteCompiler,
    SQLInsertCompiler,
    SQLUpdateCompiler,
)
from django.db.models.sql.constants import CURSOR, MULTI

from ...errors import InvalidRequest
from ...receipts import Outcome, Values
from .._models import Model, typed_rows
from .._unit import Then
from .rows import id_of, json_of, key_fields

if TYPE_CHECKING:
    from .blocks import unit

_CAST_ALONE = re.compile(r'%s(::[\w "\[\](),.]+)?')


class Guarded:
    """What the three compilers share."""

    query: Any
    connection: Any
    using: Any

    @property
    def block(self) -> unit:
        block: unit = vars(self.connection)["concord_unit"]
        return block

    def data(self, pairs: Iterable[tuple[Any, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Prepared values in JSON, by column: as they are, and what the server evaluated."""
        data: dict[str, Any] = {}
        evaluated: dict[str, Any] = {}
        asked: list[tuple[Any, str, Sequence[Any]]] = []
        for field, value in pairs:
            if type(value).__name__ == "DatabaseDefault":
                continue
            placeholder = "%s"
            if value is not None and hasattr(field, "get_placeholder"):
                placeholder = field.get_placeholder(value, self, self.connection)
            if hasattr(value, "as_sql"):
                if reads_rows(value):
                    raise self.refusal(
                        f"{field.name} cannot be computed from columns: read them, save the value"
                    )
                sql, params = self.compile(value)  # type: ignore[attr-defined]
                asked.append((field, placeholder % sql, params))
            elif _CAST_ALONE.fullmatch(placeholder):
                data[field.column] = json_of(self.connection, field, value)
            else:
                asked.append((field, placeholder, [value]))
        if asked:
            select = ", ".join(f"({sql})::text" for _, sql, _ in asked)
            params = tuple(chain.from_iterable(params for _, _, params in asked))
            [row] = self.block.execute(f"select {select}", params)
            for (field, _, _), text in zip(asked, row, strict=True):
                document = isinstance(field, JSONField) and text is not None
                value = json.loads(text, parse_float=Decimal) if document else text
                evaluated[field.column] = value
        return data, evaluated

    def ids(self, model: Model) -> list[Any] | None:
        """The ids in a condition that is the primary key and nothing else."""
        meta, where = self.query.get_meta(), self.query.where
        if len(where.children) != 1 or where.negated:
            return None
        [lookup] = where.children
        left = getattr(lookup, "lhs", None)
        targets = getattr(left, "targets", None) or [getattr(left, "target", None)]
        if list(targets) != list(key_fields(meta)) or not lookup.rhs_is_direct_value():
            return None
        if lookup.lookup_name == "isnull" and lookup.rhs:
            return []
        if lookup.lookup_name not in ("exact", "in"):
            return None
        keys = [lookup.rhs] if lookup.lookup_name == "exact" else [*lookup.rhs]
        one = len(targets) == 1
        prepared = (
            [
                field.get_db_prep_save(value, self.connection)
                for field, value in zip(targets, [key] if one else key, strict=True)
            ]
            for key in keys
            if key is not None
        )
        return [id_of(self.connection, model, meta, values) for values in prepared]

    def selecting(self, fields: Sequence[Any]) -> Any:
        """A compiler that selects fields of the rows that meet the condition."""
        query = self.query.chain(klass=Query)
        query.clear_select_clause()
        query.clear_ordering(force=True)
        alias = query.get_initial_alias()
        query.select = tuple(field.get_col(alias) for field in fields)
        return query.get_compiler(connection=self.connection)

    def found(self, model: Model) -> list[Any]:
        """The ids of the rows that meet the condition now."""
        meta = self.query.get_meta()
        rows = self.selecting(key_fields(meta)).execute_sql(MULTI)
        return [id_of(self.connection, model, meta, row) for row in chain.from_iterable(rows)]

    def returned(self, model: Model, fields: Sequence[Any], rows: Sequence[Values]) -> list[Any]:
        """Columns of rows as RETURNING would have brought them."""
        columns = [field.column for field in fields]
        # A number is in JSON what it is in Python: no need to ask the server for generated keys.
        if all(isinstance(field, IntegerField) for field in fields):
            typed: Sequence[Sequence[Any]] = [[row[each] for each in columns] for row in rows]
        else:
            typed = typed_rows(self.block.execute, model, columns, rows)
        cols = [field.get_col(self.query.get_meta().db_table) for field in fields]
        converters = self.get_converters(cols)  # type: ignore[attr-defined]
        if converters:
            typed = self.apply_converters(typed, converters)  # type: ignore[attr-defined]
        return [tuple(row) for row in typed]

    def refusal(self, why: str) -> InvalidRequest:
        return InvalidRequest(f"{self.query.get_meta().label} is tracked, and in a unit {why}")


class Insert(Guarded):
    def execute_sql(self, returning_fields: Any = None) -> Any:
        model = self.block.model(self.query.get_meta())
        if model is None:
            self.block.wrote_beside()
            return super().execute_sql(returning_fields)  # type: ignore[misc]
        with self.block.guard():
            return self._create(model, returning_fields)

    def _create(self, model: Model, returning_fields: Any) -> list[Any]:
        objs = self.query.objs
        if self.query.on_conflict is not None:
            linking = self.query.get_meta().auto_created
            if self.query.on_conflict != OnConflict.IGNORE or not linking:
                raise self.refusal("conflicts are not passed over: get_or_create(), or save() each")
            objs = self._missing(objs)
        outcomes: list[Outcome] = []
        for obj in objs:
            pairs = [
                (field, self.prepare_value(field, self.pre_save_val(field, obj)))  # type: ignore[attr-defined]
                for field in self.query.fields
            ]
            data, evaluated = self.data(pairs)
            operation = {"type": "create", "model": model.name, "data": {**data, **evaluated}}
            told = expiring(obj, self.query.fields, data)
            self.block.write(operation, also(outcomes.append, told))
        # At once: the object needs the id that the server gives it.
        self.block.flush()
        if not returning_fields:
            return []
        return self.returned(model, returning_fields, [each.data or {} for each in outcomes])

    def _missing(self, objs: Sequence[Any]) -> list[Any]:
        """The links of a many-to-many relation that are not there yet."""
        links = [field for field in self.query.fields if field.remote_field]
        manager = self.query.model._base_manager.using(self.using or self.connection.alias)
        names = [field.attname for field in links]
        among = {f"{name}__in": {getattr(obj, name) for obj in objs} for name in names}
        there = set(manager.filter(**among).values_list(*names))
        return [obj for obj in objs if tuple(getattr(obj, name) for name in names) not in there]


class Update(Guarded):
    def execute_sql(self, result_type: Any) -> Any:
        model = self.block.model(self.query.get_meta())
        if model is None or not self.query.values:
            self.block.wrote_beside()
            return super().execute_sql(result_type)  # type: ignore[misc]
        with self.block.guard():
            rows = self._update(model)
        for query in self.query.get_related_updates():
            query.get_compiler(self.using).execute_sql(result_type)
        return rows

    def execute_returning_sql(self, returning_fields: Any) -> Any:
        """Django 6 asks for what the server computes when it saves."""
        model = self.block.model(self.query.get_meta())
        if model is None or not returning_fields or not self.query.values:
            self.block.wrote_beside()
            return super().execute_returning_sql(returning_fields)  # type: ignore[misc]
        with self.block.guard():
            if not self._update(model):
                return []
        # What the row holds, after a held write too. One that is gone is not to be inserted again.
        rows = self.selecting(returning_fields).results_iter(tuple_expected=True)
        return list(rows) or [(None,) * len(returning_fields)]

    def _update(self, model: Model) -> int:
        meta = self.query.get_meta()
        self.pre_sql_setup()  # type: ignore[attr-defined]
        ids = self.ids(model)
        if ids is None and self._matches_nothing():
            return 0
        if ids is None and not self.block.deletes:
            raise self.refusal(
                "rows are updated by their primary key: save() each object that is to change"
            )
        values = [(field, self._prepared(field, value)) for field, _, value in self.query.values]
        data, evaluated = self.data(values)
        whole = {**data, **evaluated}
        saved = self.block.saved(meta, model, ids[0]) if ids and len(ids) == 1 else None
        if ids is None or saved is None or saved._state.adding:
            ids = self.found(model)
        for id in ids:
            operation = {"type": "update", "model": model.name, "id": id, "data": whole}
            fields = [field for field, _ in values]
            told = ignored if saved is None else expiring(saved, fields, data)
            self.block.write(operation, told)
        return len(ids)

    def _matches_nothing(self) -> bool:
        try:
            with suppress(FullResultSet):
                self.compile(self.query.where)  # type: ignore[attr-defined]
        except EmptyResultSet:
            return True
        return False

    def _prepared(self, field: Any, value: Any) -> Any:
        if hasattr(value, "resolve_expression"):
            value = value.resolve_expression(self.query, allow_joins=False, for_save=True)
        elif hasattr(value, "prepare_database_save"):
            value = value.prepare_database_save(field)
        return field.get_db_prep_save(value, connection=self.connection)


class Delete(Guarded):
    def execute_sql(self, result_type: Any = MULTI, **options: Any) -> Any:
        model = self.block.model(self.query.get_meta())
        if model is None:
            self.block.wrote_beside()
            return super().execute_sql(result_type, **options)  # type: ignore[misc]
        with self.block.guard():
            ids = self.ids(model)
            objects = [self.block.deleted(model, id) for id in ids or ()]
            if ids is None or None in objects:
                ids = self.found(model)
                objects = [self.block.deleted(model, id) for id in ids]
            for id, instance in zip(ids, objects, strict=True):
                operation = {"type": "delete", "model": model.name, "id": id}
                told = ignored if instance is None else self.block.dropping(instance)
                self.block.write(operation, told)
        return Count(len(ids)) if result_type == CURSOR else len(ids)


class Count(nullcontext[Any]):
    """What Django before 5.2 takes from a cursor that deleted."""

    def __init__(self, rowcount: int) -> None:
        super().__init__(self)
        self.rowcount = rowcount


_MIXINS = {SQLInsertCompiler: Insert, SQLUpdateCompiler: Update, SQLDeleteCompiler: Delete}


@cache
def guarded(compiler: type) -> type:
    """A compiler of the backend's with the unit's mixed in; one that only reads, as it is."""
    for kind, mixin in _MIXINS.items():
        if issubclass(compiler, kind) and not issubclass(compiler, Guarded):
            return type(f"Guarded{compiler.__name__}", (mixin, compiler), {})
    return compiler


def ignored(outcome: Outcome) -> None:
    """Nothing in memory stands for the row."""


def also(first: Then, second: Then) -> Then:
    def both(outcome: Outcome) -> None:
        first(outcome)
        second(outcome)

    return both


def expiring(instance: Any, fields: Iterable[Any], sent: Values) -> Then:
    """Takes from an object what its row does not hold as it was sent: the next access loads it.

    That is what a trigger changed, what somebody else's change took precedence over, and all of a
    held write. An attribute that was set anew meanwhile is a change to be saved, and stays.
    """
    keys = key_fields(instance._meta)
    for field in instance._meta.concrete_fields:
        if getattr(field, "generated", False):
            vars(instance).pop(field.attname, None)
    held = {field: vars(instance).get(field.attname) for field in fields if field not in keys}

    def told(outcome: Outcome) -> None:
        row = None if outcome.outcome == "held" else outcome.data
        for field in held:
            column = field.column
            if row is not None and column in sent and same(sent[column], row.get(column)):
                continue
            if vars(instance).get(field.attname, told) is held[field]:
                del vars(instance)[field.attname]
                if field.is_relation and field.is_cached(instance):
                    field.delete_cached_value(instance)

    return told


def reads_rows(expression: Any) -> bool:
    """Whether its value may depend on a row."""
    if isinstance(expression, (Col, Subquery, Query)):
        return True
    return any(map(reads_rows, getattr(expression, "get_source_expressions", tuple)()))


def same(sent: Any, got: Any) -> bool:
    """Whether a row holds what was sent; false where the two texts only may mean the same."""
    if isinstance(sent, float) and isinstance(got, (int, Decimal)):
        return sent == float(got)
    if isinstance(sent, str) and isinstance(got, str) and sent != got:
        for read in (UUID, datetime.fromisoformat):
            with suppress(ValueError, TypeError):
                return bool(read(sent) == read(got))
    return bool(sent == got)
