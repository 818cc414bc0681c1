"""What the generators for the two ORMs have in common: which packs become classes of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..packs.ddl import Column, TableName, normal
from ..packs.definition import Spread
from .python import class_name
from .tables import BridgeError, Table


def class_names(tables: Sequence[Table]) -> dict[TableName, str]:
    """The entities' classes. Raises BridgeError where two tables would have one."""
    found = {table.name: class_name(table.name.name) for table in tables}
    by_class: dict[str, TableName] = {}
    for table, name in found.items():
        if name in by_class:
            raise BridgeError(f"{by_class[name]} and {table} would both be {name}: bridge one")
        by_class[name] = table
    return found


def pack_class(spread: Spread) -> str:
    """soft_delete: SoftDelete."""
    return "".join(word.capitalize() for word in spread.pack.split("_"))


def mixins(tables: Sequence[Table]) -> dict[str, Spread]:
    """The packs that are columns and no more, by the names of their classes, as the first table of
    each has them."""
    found: dict[str, Spread] = {}
    names = {class_name(table.name.name) for table in tables}
    for table in tables:
        for spread in table.spreads:
            name = pack_class(spread)
            plain = all(each.definition.startswith("check") for each in spread.constraints)
            if plain and name not in names:
                found.setdefault(name, spread)
    return found


def inherited(mixin: Spread, table: Table) -> bool:
    """Whether the table has the pack just as the mixin has it."""
    have = {column.name: column for column in table.columns}
    return any(
        spread.pack == mixin.pack
        and [_said(c) for c in spread.columns] == [_said(c) for c in mixin.columns]
        and all(_said(have[column.name]) == _said(column) for column in spread.columns)
        for spread in table.spreads
    )


def _said(column: Column) -> tuple[object, ...]:
    """Less the default, which the database words in its own way."""
    return column.name, normal(column.type), column.not_null


def stamped(spreads: Iterable[Spread]) -> set[str]:
    """The columns that protect's triggers write."""
    keys = ("tenant_column", "owner_column", "editor_column")
    return {str(s.protect[key]) for s in spreads for key in keys if key in s.protect}


def touched(spreads: Iterable[Spread]) -> set[str]:
    """The columns that a pack's trigger writes with every change, which never conflict."""
    return {
        name
        for spread in spreads
        for name in spread.track.get("ignore_fields", ())
        if any(c.name == name and c.type == "timestamptz" for c in spread.columns)
    }
