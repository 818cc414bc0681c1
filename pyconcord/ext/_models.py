"""Which tables are tracked, as the database has it now, and their rows in the tables' own types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from .._json import dumps, loads
from ..receipts import Values

Execute = Callable[[str, tuple[object, ...]], Sequence[Sequence[Any]]]
"""Runs one statement on the ORM's connection, in its transaction, past the ORM's own hooks that
make operations of writes. It answers with all rows, and lets psycopg's errors through as they are.
"""

_MODELS = "select concord_internal.models_of_tables()::text"  # Django takes jsonb for text


@dataclass(frozen=True)
class Model:
    """A tracked table."""

    name: str
    schema: str
    table: str
    key: tuple[str, ...]

    def id(self, columns: Mapping[str, object]) -> Any:
        """The row's id in a request, of the values of its key columns."""
        if len(self.key) == 1:
            return columns[self.key[0]]
        return {column: columns[column] for column in self.key}


class Models:
    """The tracked tables that the caller may see.

    They are asked for anew in every unit: a process that remembered a table as not tracked would go
    on writing to it unguarded, and say nothing.
    """

    def __init__(self, execute: Execute) -> None:
        self._by_table: dict[tuple[str | None, str], Model] = {}
        [[models]] = execute(_MODELS, ())
        for schema, table, visible, name, key in loads(models or "[]"):
            model = Model(name, schema, table, tuple(key))
            self._by_table[schema, table] = model
            if visible:
                self._by_table[None, table] = model

    def of(self, table: str, schema: str | None = None) -> Model | None:
        """The model of a table; without a schema, of the one that the search_path finds."""
        return self._by_table.get((schema, table))


def typed_rows(
    execute: Execute, model: Model, columns: Iterable[str], rows: Sequence[Values]
) -> Sequence[Sequence[Any]]:
    """Rows of a receipt as the driver hands out rows of the table, in the same order.

    The server reads the JSON by the table's own row type, so that every column arrives in the type
    in which the ORM's own SELECT or RETURNING would have had it.
    """
    table = sql.Identifier(model.schema, model.table)
    chosen = sql.SQL(", ").join(map(sql.Identifier, columns))
    query = sql.SQL("select {} from jsonb_populate_recordset(null::{}, ").format(chosen, table)
    text = query.as_string(None).replace("%", "%%")
    return execute(f"{text}%s::jsonb)", (dumps(rows),))
