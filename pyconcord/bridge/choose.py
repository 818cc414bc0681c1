"""What a bridge is asked for, in the words of a command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psycopg

from ..packs import Pack, PackFileError, Spread, TableName, find, shipped
from .tables import Table, new_table, of_database, of_ddl

STORE = ("agent_session", "agent_message", "agent_tool_call")


def tables_of(
    connection: psycopg.Connection[object] | None,
    schema: str,
    names: Sequence[str] | None = None,
    ddl: Path | None = None,
    store: bool = False,
) -> list[Table]:
    """The tables of a database, or of DDL, and those of an agent store.

    The store's come last, in the order in which they refer to each other, and are the bridge's own
    also when it is run again.
    """
    found: list[Table] = []
    if ddl is not None:
        found = of_ddl(ddl.read_text(), schema, names)
    elif connection is not None:
        found = of_database(connection, schema, names)
    if store:
        there = {each.name.name: each for each in found}
        found = [each for each in found if each.name.name not in STORE]
        found += [
            replace(there[name], exists=False)
            if name in there
            else new_table(TableName(schema, name))
            for name in STORE
        ]
    if not found:
        raise PackFileError(f"there are no tables in the schema {schema}")
    return found


class Choice:
    """Which packs a table is to have, and how: what is said for one table goes before the rest."""

    def __init__(self, packs: Sequence[str], sets: Sequence[str], fills: Sequence[str]) -> None:
        self.packs: list[tuple[str | None, Pack]] = []
        for each in packs:
            table, colon, what = each.rpartition(":")
            self.packs.append((table if colon else None, find(what)))
        self.sets = [_assignment("--set", each) for each in sets]
        self.fills = [_assignment("--fill", each) for each in fills]
        self.unused = {(option, each) for option, each in self._said()}

    def _said(self) -> list[tuple[str, tuple[str | None, str, str]]]:
        return [("--set", each) for each in self.sets] + [("--fill", each) for each in self.fills]

    def of(self, table: Table) -> list[Spread]:
        name = table.name.name
        wanted = [p for only, p in self.packs if only in (None, name)] if table.exists else []
        if not table.exists:
            wanted = [shipped()[name], *(p for only, p in self.packs if only == name)]
        spreads = []
        for pack in dict.fromkeys(p.name for p in wanted):
            chosen = next(p for p in wanted if p.name == pack)
            options = self._those("--set", self.sets, name, {*chosen.names, *chosen.sets})
            columns = {column.name for column in chosen.on(table.name, options).columns}
            fills = self._those("--fill", self.fills, name, columns)
            spreads.append(chosen.on(table.name, options, fills))
        return spreads

    def _those(
        self,
        option: str,
        said: Sequence[tuple[str | None, str, str]],
        table: str,
        names: set[str],
    ) -> dict[str, str]:
        found: dict[str, str] = {}
        for only in (None, table):
            for each in said:
                if each[0] == only and each[1] in names:
                    found[each[1]] = each[2]
                    self.unused.discard((option, each))
        return found

    def demand_used(self) -> None:
        for option, (table, name, _) in sorted(self.unused, key=str):
            where = f" of {table}" if table else ""
            raise PackFileError(f"{option}: no pack{where} has a {name}")


def _assignment(option: str, text: str) -> tuple[str | None, str, str]:
    name, equals, value = text.partition("=")
    table, colon, name = name.rpartition(":")
    if not equals or not name:
        raise PackFileError(f"{option} is [TABLE:]NAME=VALUE, and not {text!r}")
    return table if colon else None, name, value
