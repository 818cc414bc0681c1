"""Models for Django: of tables that are there, so that its own migrations leave them alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..packs.ddl import Column
from ..packs.definition import Spread
from .entities import class_names, inherited, mixins, pack_class, stamped
from .modules import Part
from .python import attribute, call, class_name, listed, text
from .tables import ForeignKey, Table, ends, new_table
from .types import kind_of

HEAD = '''\
"""The tables of the schema {schema}, as models.

    with reading() as read:                         # a token first, then any reads
        row = {example}.objects.get(pk=…)
    with unit(read_at=read.token) as unit_of_work:
        row = {example}.objects.get(pk=…)
        row.save()

pyconcord bridge writes what stands in the regions, and writes it anew when the tables change. What
you add below a class's region stays.{path}
"""
'''
PATH = "\nThe connection's search_path has to lead to the schema."


def parts(tables: Sequence[Table], base: str | None = None) -> tuple[str, list[Part]]:
    """What a new module begins with, and its regions. `base`: `module:Class`, an abstract model."""
    module = _Module(tables, base)
    classes = [module.entity(table) for table in tables]
    schema = tables[0].name.schema
    head = HEAD.format(
        schema=schema,
        example=class_name(tables[0].name.name),
        path=PATH if schema != "public" else "",
    )
    return head, [Part("module", module.head(), is_class=False), *classes]


def mixins_of(spreads: Sequence[Spread]) -> str:
    """A module of the packs' abstract models alone, for models that are written by hand."""
    module = _Module([], None)
    module.mixins = {pack_class(spread): spread for spread in spreads}
    classes = module.classes()
    return "\n".join([*module.imports(classes), listed("__all__", [*module.mixins]), classes])


class _Module:
    def __init__(self, tables: Sequence[Table], base: str | None) -> None:
        self.tables = {table.name: table for table in tables}
        self.names = class_names(tables)
        self.base = base
        self.mixins = mixins(tables)
        self.ends = list(ends(tables))
        self.body = ""

    def head(self) -> str:
        """Imports, and the packs as abstract models."""
        classes = self.classes()
        lines = self.imports(classes + self.body)
        if self.base:
            lines.append(f"from {self.base.partition(':')[0]} import {self._base}")
        lines.append("from pyconcord.ext.django import reading, unit\n")
        lines.append(listed("__all__", [*self.names.values(), "reading", "unit"]))
        return "\n".join(lines) + "\n" + classes

    def classes(self) -> str:
        """The packs as abstract models."""
        return "".join(
            f'\n\nclass {name}({self._base}):\n    """The pack {spread.pack}."""\n\n'
            + self._columns(spread.columns, [spread], new_table(spread.table).having([spread]))
            + "\n    class Meta:\n        abstract = True\n"
            for name, spread in self.mixins.items()
        )

    def imports(self, used: str) -> list[str]:
        """What the code uses."""
        lines = [f"import {m}" for m in ("datetime", "decimal", "uuid") if f"{m}." in used]
        lines += [""] if lines else []
        if "ArrayField(" in used:
            lines.append("from django.contrib.postgres.fields import ArrayField")
        lines.append("from django.db import models")
        if "RawSQL(" in used:
            lines.append("from django.db.models.expressions import RawSQL")
        if "timezone." in used:
            lines.append("from django.utils import timezone")
        return [*lines, ""]

    @property
    def _base(self) -> str:
        return self.base.partition(":")[2] if self.base else "models.Model"

    def entity(self, table: Table) -> Part:
        name = self.names[table.name]
        mixed = [m for m, spread in self.mixins.items() if inherited(spread, table)]
        have = {c.name for m in mixed for c in self.mixins[m].columns}
        own = [column for column in table.columns if column.name not in have]
        body = f"class {name}({', '.join(mixed) or self._base}):\n"
        if len(table.key) > 1:
            keys = [text(_field(column)) for column in table.key]
            body += call("pk = models.CompositePrimaryKey", keys) + "\n"
        body += self._columns(own, table.spreads, table)
        uniques = [
            call(
                "models.UniqueConstraint",
                [f"fields=[{', '.join(map(text, u))}]", f"name={text(_unique(table, u))}"],
                indent=12,
            )
            for u in table.uniques
            if len(u) > 1
        ]
        body += "\n    class Meta:\n        managed = False\n"
        body += f"        db_table = {text(table.name.name)}\n"
        if uniques:
            body += (
                "        constraints = [\n" + "".join(f"{u},\n" for u in uniques) + "        ]\n"
            )
        body += "\n"
        self.body += body
        return Part(name, body)

    def _columns(self, columns: Iterable[Column], spreads: Sequence[Spread], table: Table) -> str:
        """Of a table's class, or of a pack's."""
        lines = ""
        taken: set[str] = {"objects", "pk"}
        stamps = stamped(spreads)
        labels = dict(table.labels)
        key = table.key
        for column in columns:
            options = [f"db_column={text(column.name)}"]
            name = _field(column.name, taken)
            end = next(
                (e for e in self.ends if e.table is table and column.name == _of(e.key)), None
            )
            kind = kind_of(column.type)
            null = not column.not_null and column.name not in key
            if end is not None and (len(key) == 1 or column.name not in key):
                name = _field(end.one, taken)
                rule = "CASCADE" if end.key.on_delete == "cascade" else "DO_NOTHING"
                head = f"{name} = models.ForeignKey"
                made = [self.names[end.key.target], f"models.{rule}"]
                made = [text(made[0]), made[1]]
                if f"{name}_id" == column.name:
                    options = []
                options.append(f"related_name={text(end.many)}")
            elif column.name in labels:
                pairs = ", ".join(f"({text(v)}, {text(v)})" for v in labels[column.name])
                head, made = f"{name} = models.CharField", [f"choices=[{pairs}]", "max_length=63"]
            elif kind is None:
                lines += f"    # {column.name}: Django has no field of its own for {column.type}\n"
                continue
            else:
                field = kind.django
                if column.identity and key == (column.name,):
                    field = {
                        "int": "AutoField",
                        "bigint": "BigAutoField",
                        "smallint": "SmallAutoField",
                    }[column.type]
                head = f"{name} = models.{field}"
                made = [f"{k}={v}" for k, v in (kind.options or {}).items()]
                if field.startswith("ArrayField("):
                    inner = re.sub(r"ArrayField\((\w+)\)", r"models.\1()", field)
                    head, made = f"{name} = ArrayField", [inner, *made]
            if column.generated:
                inner = f"{head.partition(' = ')[2]}({', '.join([*made, 'null=True'])})"
                head = f"{name} = models.GeneratedField"
                made = [f"expression=RawSQL({text(column.generated)}, [])"]
                made += [f"output_field={inner}", "db_persist=True"]
            if name == column.name:
                options = [o for o in options if not o.startswith("db_column")]
            if key == (column.name,):
                options.append("primary_key=True")
            if (column.name,) in table.uniques:
                options.append("unique=True")
            if column.generated:
                pass
            elif column.name in stamps:
                # Written by the database, which refuses anybody else's; null is for it to fill in.
                options += ["null=True", "editable=False"]
            else:
                if null:
                    options += ["null=True", "blank=True"]
                options += _default(column, kind.python if kind else "")
            taken.add(name)
            lines += call(head, [*made, *options]) + "\n"
        return lines


def _field(name: str, taken: Iterable[str] = ()) -> str:
    """Django has no fields that end with an underscore."""
    return attribute(name, taken, "_field").rstrip("_")


def _of(key: ForeignKey) -> str:
    """The column of a foreign key that Django's field is for: of several the one named for it."""
    ids = [column for column in key.columns if column.endswith("_id")]
    return ids[0] if ids else key.columns[0]


def _unique(table: Table, columns: Sequence[str]) -> str:
    return f"{table.name.name}_{'_'.join(columns)}_key"[:30]


def _default(column: Column, python: str) -> list[str]:
    """A default that Django applies, as the database would."""
    default = column.default
    if default is None or column.identity:
        return []
    said = default.lower()
    if said in ("now()", "current_timestamp"):
        return ["default=timezone.now", "editable=False"]
    if said == "gen_random_uuid()":
        return ["default=uuid.uuid4"]
    literal = re.fullmatch(r"'((?:[^']|'')*)'(?:::[\w ]+)?", default)
    if python == "str" and literal:
        return [f"default={text(literal[1].replace(chr(39) * 2, chr(39)))}", "blank=True"]
    if python == "bool" and said in ("true", "false"):
        return [f"default={said.capitalize()}"]
    if python == "int" and re.fullmatch(r"-?\d+", default):
        return [f"default={default}"]
    if python == "Any" and re.match(r"'(\{\}|\[\])'|cast\('(\{\}|\[\])'", said):
        return [f"default={'dict' if '{' in said else 'list'}", "blank=True"]
    return [f"db_default=RawSQL({text(default)}, [])"]
