"""Entities for SQLAlchemy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from ..packs.ddl import Column
from ..packs.definition import Spread
from .entities import class_names, inherited, mixins, pack_class, stamped, touched
from .modules import Part
from .python import WIDTH, attribute, call, class_name, listed, text
from .tables import ForeignKey, Table, ends, new_table
from .types import kind_of

HEAD = '''\
"""The tables of the schema {schema}, as entities.

    install(engine, identity=…)                     # who acts, asked in each transaction
    with reading(session) as read:                  # a token first, then any reads
        row = session.get({example}, …)
    with unit(session, read_at=read.token) as unit_of_work:
        session.get({example}, …).{field} = …

pyconcord bridge writes what stands in the regions, and writes it anew when the tables change. What
you add below a class's region stays.
"""
'''


def parts(tables: Sequence[Table], base: str | None = None) -> tuple[str, list[Part]]:
    """What a new module begins with, and its regions. `base`: `module:Class`, in place of one made
    here."""
    module = _Module(tables, base)
    classes = [module.entity(table) for table in tables]
    example = next((t for t in tables if t.columns), tables[0])
    plain = [c.name for c in example.columns if c.name not in example.key] or ["…"]
    head = HEAD.format(
        schema=example.name.schema, example=class_name(example.name.name), field=plain[0]
    )
    return head, [Part("module", module.head(), is_class=False), *classes]


def mixins_of(spreads: Sequence[Spread]) -> str:
    """A module of the packs' mixins alone, for classes that are written by hand."""
    module = _Module([], None)
    module.mixins = {pack_class(spread): spread for spread in spreads}
    classes = module.classes()
    return "\n".join([*module.imports(classes, []), listed("__all__", [*module.mixins]), classes])


class _Module:
    def __init__(self, tables: Sequence[Table], base: str | None) -> None:
        self.tables = {table.name: table for table in tables}
        self.names = class_names(tables)
        self.base = base
        self.mixins = mixins(tables)
        self.ends = list(ends(tables))
        self.body = ""

    def head(self) -> str:
        """Imports, the base, and the packs' mixins."""
        classes = self.classes()
        orm = ["DeclarativeBase"] if not self.base else []
        lines = self.imports(classes + self.body, orm)
        module, _, name = (self.base or "").partition(":")
        if self.base:
            lines.append(f"from {module} import {name}" + ("" if name == "Base" else " as Base"))
        lines.append("from pyconcord.ext.sqlalchemy import install, reading, unit\n")
        lines.append(listed("__all__", [*self.names.values(), "install", "reading", "unit"]))
        base = "" if self.base else "\n\nclass Base(DeclarativeBase):\n    pass\n"
        return "\n".join(lines) + "\n" + base + classes

    def classes(self) -> str:
        """The packs as mixins."""
        return "".join(
            f'\n\nclass {name}:\n    """The pack {spread.pack}."""\n\n'
            + self._columns(spread.columns, [spread], new_table(spread.table).having([spread]))
            for name, spread in self.mixins.items()
        )

    def imports(self, used: str, orm: list[str]) -> list[str]:
        """What the code uses."""
        lines = ["from __future__ import annotations\n"]
        plain = [f"import {m}" for m in ("datetime", "decimal", "uuid") if f"{m}." in used]
        plain += ["from typing import Any"] if re.search(r"\bAny\b", used) else []
        lines += [*plain, ""] if plain else []
        names = [n for n in _SQLALCHEMY if re.search(rf"(?<![\w.]){n}\b", used)]
        lines += [_import("sqlalchemy", names)] if names else []
        if "postgresql." in used:
            lines.append("from sqlalchemy.dialects import postgresql")
        orm += [n for n in ("Mapped", "mapped_column", "relationship") if n in used]
        return [*lines, _import("sqlalchemy.orm", orm), ""]

    def entity(self, table: Table) -> Part:
        """A class and its columns, then what it refers to and what refers to it."""
        name = self.names[table.name]
        mixed = [m for m, spread in self.mixins.items() if inherited(spread, table)]
        have = {c.name for m in mixed for c in self.mixins[m].columns}
        own = [column for column in table.columns if column.name not in have]
        body = f"class {name}({', '.join([*mixed, 'Base'])}):\n"
        body += f"    __tablename__ = {text(table.name.name)}\n"
        body += self._arguments(table)
        body += "\n" + self._columns(own, table.spreads, table)
        body += self._relations(table)
        self.body += body
        return Part(name, body)

    def _arguments(self, table: Table) -> str:
        items = [
            f"UniqueConstraint({', '.join(text(column) for column in columns)})"
            for columns in table.uniques
            if len(columns) > 1
        ]
        for key in table.foreign_keys:
            if len(key.columns) > 1 and key.target in self.tables:
                to = [f"{_path(key)}.{column}" for column in self._target(key)]
                rule = [f"ondelete={text(key.on_delete.upper())}"] if key.on_delete else []
                items.append(
                    call(
                        "ForeignKeyConstraint",
                        [[text(c) for c in key.columns], [text(c) for c in to], *rule],
                        indent=8,
                    ).strip()
                )
        schema = [f'{{"schema": {text(table.name.schema)}}}'] if _schema(table) else []
        if not items:
            return f"    __table_args__ = {schema[0]}\n" if schema else ""
        items += schema
        one = f"    __table_args__ = ({', '.join(items)}{',' if len(items) == 1 else ''})\n"
        if len(one) <= WIDTH + 1:
            return one
        return "    __table_args__ = (\n" + "".join(f"        {i},\n" for i in items) + "    )\n"

    def _columns(self, columns: Iterable[Column], spreads: Sequence[Spread], table: Table) -> str:
        """Of a table's class, or of a pack's."""
        lines = ""
        taken = {"metadata", "registry"}
        for column in columns:
            type_ = _type(column, dict(table.labels))
            if type_ is None:
                lines += f"    # {column.name}: SQLAlchemy has no type of its own for it\n"
                continue
            name = attribute(column.name, taken)
            taken.add(name)
            arguments = [text(column.name)] if name != column.name else []
            arguments += [type_[1]] if type_[1] else []
            arguments += self._keys(column, table)
            arguments += _made_by_the_database(column, spreads)
            arguments.sort(key=lambda argument: re.match(r"\w+=", argument) is not None)
            optional = not column.not_null and column.name not in table.key
            mapped = f"Mapped[{type_[0]}{' | None' if optional else ''}]"
            if arguments:
                lines += call(f"{name}: {mapped} = mapped_column", arguments) + "\n"
            else:
                lines += f"    {name}: {mapped}\n"
        return lines

    def _keys(self, column: Column, table: Table) -> list[str]:
        """What a column is among the others: a foreign key, the key, unique."""
        found = []
        for key in table.foreign_keys:
            if key.columns == (column.name,) and key.target in self.tables:
                [to] = self._target(key)
                rule = f", ondelete={text(key.on_delete.upper())}" if key.on_delete else ""
                found.append(f"ForeignKey({text(f'{_path(key)}.{to}')}{rule})")
        if column.name in table.key:
            found.append("primary_key=True")
        if (column.name,) in table.uniques:
            found.append("unique=True")
        return found

    def _relations(self, table: Table) -> str:
        """Both ends of the foreign keys between entities."""
        lines = ""
        for end in self.ends:
            key, name = end.key, self.names[end.table.name]
            over = [f"foreign_keys={text(f'[{_all_of(name, key.columns)}]')}"] if end.told else []
            if end.table is table:
                optional = all(not c.not_null for c in table.columns if c.name in key.columns)
                kind = f"{self.names[key.target]}{' | None' if optional else ''}"
                to = _all_of(name, self._target(key))
                itself = [f"remote_side={text(f'[{to}]')}"] if key.target == table.name else []
                lines += call(
                    f"{end.one}: Mapped[{kind}] = relationship",
                    [*over, *itself, f"back_populates={text(end.many)}"],
                )
                lines += "\n"
            if key.target == table.name:
                passive = ["passive_deletes=True"] if key.on_delete == "cascade" else []
                lines += call(
                    f"{end.many}: Mapped[list[{name}]] = relationship",
                    [*over, f"back_populates={text(end.one)}", *passive],
                )
                lines += "\n"
        return f"\n{lines}" if lines else ""

    def _target(self, key: ForeignKey) -> tuple[str, ...]:
        return key.target_columns or self.tables[key.target].key


def _type(column: Column, labels: Mapping[str, Sequence[str]]) -> tuple[str, str | None] | None:
    """The type in Python, and in SQLAlchemy where it has to be said."""
    if column.name in labels:
        schema, _, name = column.type.replace('"', "").rpartition(".")
        said = [*map(text, labels[column.name]), f"name={text(name)}"]
        said += [f"schema={text(schema)}"] if schema else []
        return "str", f"postgresql.ENUM({', '.join([*said, 'create_type=False'])})"
    kind = kind_of(column.type)
    return None if kind is None else (kind.python, kind.sqlalchemy)


def _made_by_the_database(column: Column, spreads: Sequence[Spread]) -> list[str]:
    found = []
    if column.identity:
        found.append("Identity(always=True)" if column.identity == "always" else "Identity()")
    if column.generated:
        found.append(f"Computed({text(column.generated)})")
    if column.default is not None:
        now = column.default.lower() in ("now()", "current_timestamp")
        found.append(
            f"server_default={'func.now()' if now else f'sql_text({text(column.default)})'}"
        )
    elif column.name in stamped(spreads):
        found.append("server_default=FetchedValue()")
    if column.name in touched(spreads):
        found.append("server_onupdate=FetchedValue()")
    return found


def _all_of(name: str, columns: Iterable[str]) -> str:
    return ", ".join(f"{name}.{attribute(column)}" for column in columns)


def _schema(table: Table) -> bool:
    return table.name.schema != "public"


def _path(key: ForeignKey) -> str:
    return (
        key.target.name
        if key.target.schema == "public"
        else f"{key.target.schema}.{key.target.name}"
    )


def _import(module: str, names: Sequence[str]) -> str:
    names = sorted(("text as sql_text" if n == "sql_text" else n for n in names), key=str.lower)
    one = f"from {module} import {', '.join(names)}"
    if len(one) <= WIDTH:
        return one
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in names) + ")"


_SQLALCHEMY = (
    "BigInteger", "Boolean", "CHAR", "Computed", "Date", "DateTime", "Double", "FetchedValue",
    "ForeignKey", "ForeignKeyConstraint", "func", "Identity", "Integer", "Interval",
    "LargeBinary", "Numeric", "SmallInteger", "String", "sql_text", "Text", "Time",
    "UniqueConstraint", "Uuid",
)  # fmt: skip
