"""The calls of a migration: administration of one table, as SQL text."""

from __future__ import annotations

from collections.abc import Mapping

from psycopg import sql

from .._json import dumps


def administer(
    function: str,
    table: str | None = None,
    schema: str | None = None,
    options: Mapping[str, object] | None = None,
) -> str:
    """`select concord.function('table', option => …)`; what is None is left to its default."""
    arguments: list[sql.Composable] = []
    if table is not None:
        rel = sql.Identifier(*filter(None, (schema, table))).as_string(None)
        arguments.append(sql.Literal(rel))
    for name, value in (options or {}).items():
        if value is not None:
            literal = sql.Literal(_plain(value))
            arguments.append(sql.SQL("{} => {}").format(sql.Identifier(name), literal))
    called = sql.SQL("select concord.{}({})")
    return called.format(sql.Identifier(function), sql.SQL(", ").join(arguments)).as_string(None)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dumps(value)
    return list(value) if isinstance(value, tuple) else value
