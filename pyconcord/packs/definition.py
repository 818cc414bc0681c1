"""A pack's file, and what it comes to on one table.

What is understood of the SQL is what sqlglot makes a tree of: CREATE TABLE and CREATE INDEX. Of
functions, triggers and policies nothing is understood here; they are handed on as they are, and
the database sees what they make. Anything else is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from sqlglot import exp

from .ddl import (
    Column,
    Constraint,
    Index,
    PackFileError,
    TableName,
    Token,
    first_line,
    named,
    parsed,
    quoted,
    read_table,
    statements,
    written,
)

Options = Mapping[str, str]
NOTHING: Options = {}


@dataclass(frozen=True)
class Spread:
    """A pack as one table has it."""

    pack: str
    version: int
    table: TableName
    columns: tuple[Column, ...]
    constraints: tuple[Constraint, ...]
    indexes: tuple[Index, ...]
    statements: tuple[str, ...]
    protect: Mapping[str, Any]
    track: Mapping[str, Any]

    def document(self) -> dict[str, Any]:
        """For concord.add_pack."""
        return {
            "pack": self.pack,
            "version": self.version,
            "columns": [column.document() for column in self.columns],
            "constraints": [
                {"name": each.name, "definition": each.definition} for each in self.constraints
            ],
            "indexes": [
                {"name": each.name, "definition": each.definition}
                | ({"unique": True} if each.unique else {})
                for each in self.indexes
            ],
            "statements": list(self.statements),
        }


@dataclass(frozen=True)
class Pack:
    """A pack as its file defines it."""

    name: str
    version: int
    description: str
    text: str = field(repr=False)
    sets: Options = field(default_factory=dict)
    protect: Mapping[str, Any] = field(default_factory=dict)
    track: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, text: str, where: str = "pack") -> Pack:
        """Read a pack's file. Raises PackFileError."""
        try:
            head, sets, description = _head(text)
            pack = cls(
                head["pack"],
                int(head["version"]),
                description,
                text,
                sets,
                _object(head, "protect"),
                _object(head, "track"),
            )
            pack.on(TableName("public", "t"))
        except PackFileError as error:
            raise PackFileError(f"{where}: {error}") from None
        return pack

    @property
    def names(self) -> tuple[str, ...]:
        """What may be named otherwise, in order."""
        found = dict.fromkeys(_NAMES.findall(self.text))
        return tuple(name for name in found if name != "schema" and not name.startswith("table"))

    def on(self, table: TableName, options: Options = NOTHING, fills: Options = NOTHING) -> Spread:
        """The pack as this table is to have it. `fills`: SQL for rows that are there, by column."""
        unknown = options.keys() - {*self.names, *self.sets}
        if unknown:
            known = ", ".join([*self.names, *self.sets])
            raise PackFileError(f"{self.name} has no name {min(unknown)!r} to set: it has {known}")
        reading = _Reading(table, self._rendered(table, options))
        missing = fills.keys() - {column.name for column in reading.columns}
        if missing:
            raise PackFileError(f"{self.name} has no column {min(missing)!r} to fill")
        named = {name: options.get(name, name) for name in self.names}
        return Spread(
            self.name,
            self.version,
            table,
            tuple(replace(column, fill=fills.get(column.name)) for column in reading.columns),
            tuple(reading.constraints),
            tuple(reading.indexes),
            tuple(reading.statements),
            _renamed(self.protect, named),
            _renamed(self.track, named),
        )

    def _rendered(self, table: TableName, options: Options) -> str:
        def name(match: re.Match[str]) -> str:
            if match[1] == "table":
                return str(table)
            if match[1].startswith("table_"):
                return quoted(named(table.name, [], match[1].removeprefix("table_")))
            return quoted(table.schema if match[1] == "schema" else options.get(match[1], match[1]))

        def piece(match: re.Match[str]) -> str:
            key = match[1]
            return options.get(key, self.sets[key]) if key in self.sets else match[0]

        return _PIECES.sub(piece, _NAMES.sub(name, self.text))


# psycopg and Postgres write casts with two colons.
_NAMES = re.compile(r'(?<!:):"([^"]+)"')
_PIECES = re.compile(r"(?<!:):([a-z_]+)\b")


def _head(text: str) -> tuple[dict[str, str], dict[str, str], str]:
    """What stands before the first statement: lines with a key, then the description."""
    lines = [line[2:].strip() for line in takewhile(_is_comment, text.splitlines())]
    keys = list(takewhile(bool, lines))
    head: dict[str, str] = {}
    sets: dict[str, str] = {}
    for line in keys:
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "set":
            name, _, default = (part.strip() for part in value.partition("="))
            sets[name] = default
        elif key in ("pack", "version", "protect", "track"):
            head[key] = value
        else:
            raise PackFileError(f"the head has lines such as '-- version: 1', not {line!r}")
    if not re.fullmatch(r"[a-z_][a-z_0-9]{0,59}", head.get("pack", "")):
        raise PackFileError("the head has a line '-- pack: name', in small letters")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", head.get("version", "")):
        raise PackFileError("the head has a line '-- version: 1', a whole number")
    return head, sets, "\n".join(lines[len(keys) :]).strip()


def _is_comment(line: str) -> bool:
    return line.startswith("--")


def _object(head: Mapping[str, str], key: str) -> Mapping[str, Any]:
    try:
        value = json.loads(head.get(key, "{}"))
    except ValueError as error:
        raise PackFileError(f"{key}: {error}") from None
    if not isinstance(value, dict):
        raise PackFileError(f"{key}: an object of arguments")
    return value


def _renamed(value: Any, named: Options) -> Any:
    """Names of columns, also in templates of groups, as this table has them."""
    if isinstance(value, str):
        template = re.sub(r"\{([^}]+)\}", lambda m: f"{{{named.get(m[1], m[1])}}}", value)
        return named.get(value, template)
    if isinstance(value, list):
        return [_renamed(each, named) for each in value]
    if isinstance(value, dict):
        return {key: _renamed(each, named) for key, each in value.items()}
    return value


class _Reading:
    """What a rendered text says."""

    def __init__(self, table: TableName, text: str) -> None:
        self.table = table
        self.columns: list[Column] = []
        self.constraints: list[Constraint] = []
        self.indexes: list[Index] = []
        self.statements: list[str] = []
        for statement, tokens in statements(text):
            words = [token.text.lower() for token in tokens[:4]]
            plain = [
                word for word in words if word not in ("or", "replace", "unique", "constraint")
            ]
            match plain[:2]:
                case ["create", "table"]:
                    self._table(statement)
                case ["create", "index"]:
                    self._index(statement, tokens)
                case ["create", "function" | "procedure" | "trigger" | "policy"]:
                    self.statements.append(statement)
                case ["comment", "on"] if plain[2:3] == ["column"]:
                    self._comment(statement)
                case ["comment", "on"] if self.statements:
                    # A comment is no object, and belongs to the statement that made one.
                    self.statements[-1] += f";\n{statement}"
                case _:
                    raise PackFileError(
                        f"{first_line(statement)}: a pack has one CREATE TABLE, and CREATE INDEX, "
                        "FUNCTION, TRIGGER and POLICY"
                    )
        if not self.columns:
            raise PackFileError('a pack has a create table :"table" with columns')

    def _table(self, statement: str) -> None:
        tree = parsed(statement)
        if self.columns:
            raise PackFileError("a pack has one create table")
        self.columns, self.constraints = read_table(tree, self.table)

    def _index(self, statement: str, tokens: list[Token]) -> None:
        tree = parsed(statement)
        index = tree.this
        if not isinstance(index, exp.Index):
            raise PackFileError(f"{first_line(statement)}: this is not understood")
        on = index.args["table"]
        if TableName.of(written(on)) != self.table:
            raise PackFileError(f'{first_line(statement)}: a pack has indexes on :"table"')
        # What follows the name of the table, as it stands there.
        at = next(n for n, token in enumerate(tokens) if token.text.lower() == "on")
        rest = statement[tokens[at + 4].start - tokens[0].start :]
        params = index.args["params"]
        columns = [
            column.name for each in params.args["columns"] for column in each.find_all(exp.Column)
        ]
        name = index.name or named(self.table.name, list(dict.fromkeys(columns)), "idx")
        self.indexes.append(Index(name, rest, bool(tree.args.get("unique"))))

    def _comment(self, statement: str) -> None:
        tree = parsed(statement)
        name = tree.this.name if isinstance(tree, exp.Comment) else None
        text = tree.expression
        if name not in {column.name for column in self.columns} or not text.is_string:
            raise PackFileError(f"{first_line(statement)}: a comment on a column of the pack")
        self.columns = [
            replace(each, comment=text.name) if each.name == name else each for each in self.columns
        ]
