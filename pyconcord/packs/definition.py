"""A pack's file, and what it comes to on one table.

What is understood of the SQL is what sqlglot makes a tree of: CREATE TABLE and CREATE INDEX. Of
functions, triggers and policies nothing is understood here; they are handed on as they are, and
the database sees what they make. Anything else is refused.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Protocol, cast

import sqlglot
from psycopg import sql
from sqlglot import TokenType, exp
from sqlglot.errors import SqlglotError

Options = Mapping[str, str]
NOTHING: Options = {}


class Token(Protocol):
    """A word of SQL, and where it stands."""

    token_type: TokenType
    text: str
    start: int
    end: int


class PackFileError(ValueError):
    """A pack's file, a table's DDL or an option is not as it has to be; the message says how."""


@dataclass(frozen=True)
class TableName:
    """A table's name, with its schema."""

    schema: str
    name: str

    @classmethod
    def of(cls, text: str, schema: str = "public") -> TableName:
        """Of a name as in SQL."""
        try:
            table = sqlglot.exp.to_table(text, dialect="postgres")
        except SqlglotError:
            raise PackFileError(f"{text!r} is no name of a table") from None
        if table.catalog or not isinstance(table.this, exp.Identifier):
            raise PackFileError(f"{text!r} is no name of a table")
        return cls(identifier(table.args["db"]) if table.db else schema, identifier(table.this))

    def __str__(self) -> str:
        return f"{quoted(self.schema)}.{quoted(self.name)}"


@dataclass(frozen=True)
class Column:
    """A column; everything but its name is SQL."""

    name: str
    type: str
    not_null: bool = False
    default: str | None = None
    identity: str | None = None
    """`always` or `by default`."""
    generated: str | None = None
    """The expression of a stored generated column."""
    fill: str | None = None
    """An expression over the row: what rows get that are there already."""
    comment: str | None = None

    @property
    def sql(self) -> str:
        """As CREATE TABLE has it."""
        parts = [
            f"{quoted(self.name)} {self.type}",
            f"generated always as ({self.generated}) stored" if self.generated else "",
            f"generated {self.identity} as identity" if self.identity else "",
            f"default {self.default}" if self.default is not None else "",
            "not null" if self.not_null and not self.identity else "",
        ]
        return " ".join(filter(None, parts))

    def document(self) -> dict[str, Any]:
        said = {"name": self.name, "type": self.type, "notNull": self.not_null}
        more = {
            "default": self.default, "identity": self.identity, "generated": self.generated,
            "fill": self.fill, "comment": self.comment,
        }  # fmt: skip
        return said | {key: value for key, value in more.items() if value is not None}


@dataclass(frozen=True)
class Constraint:
    """A table constraint: `check (…)`, `unique (…)`, `primary key (…)` or `foreign key (…) …`."""

    name: str
    definition: str
    columns: tuple[str, ...] = ()
    """Of a key, or of a foreign key."""
    references: TableName | None = None
    target_columns: tuple[str, ...] = ()
    on_delete: str | None = None


@dataclass(frozen=True)
class Index:
    name: str
    definition: str
    """What follows the table's name."""
    unique: bool = False


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


# --- SQL ------------------------------------------------------------------------------------------


def quoted(name: str) -> str:
    return sql.Identifier(name).as_string(None)


def identifier(node: exp.Identifier) -> str:
    """A name as Postgres folds it."""
    return str(node.this) if node.quoted else str(node.this).lower()


def written(node: exp.Expression) -> str:
    return node.transform(_as_now).sql(
        dialect="postgres", normalize_functions=False, comments=False
    )


def _as_now(node: exp.Expression) -> exp.Expression:
    """sqlglot takes now() for CURRENT_TIMESTAMP; it is what people write."""
    bare = isinstance(node, exp.CurrentTimestamp) and not node.this
    return exp.Anonymous(this="now") if bare else node


def type_of(node: exp.Expression) -> str:
    text = written(node)
    return text if '"' in text else text.lower()


def parsed(text: str) -> exp.Expression:
    """One statement's tree; a refusal where sqlglot has none."""
    try:
        tree = cast("exp.Expression", sqlglot.parse_one(text, dialect="postgres"))
    except SqlglotError as error:
        raise PackFileError(f"{_first_line(text)}: {str(error).splitlines()[0]}") from None
    if isinstance(tree, exp.Command):
        raise PackFileError(f"{_first_line(text)}: this is not understood")
    return tree


def statements(text: str) -> Iterator[tuple[str, list[Token]]]:
    """The statements of a text, as they stand there, each with its tokens."""
    try:
        tokens = cast("list[Token]", sqlglot.tokenize(text, read="postgres"))
    except SqlglotError as error:
        raise PackFileError(str(error).splitlines()[0]) from None
    current: list[Token] = []
    for token in [*tokens, None]:
        if token is None or token.token_type is TokenType.SEMICOLON:
            if current:
                yield text[current[0].start : current[-1].end + 1], current
            current = []
        else:
            current.append(token)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:80]


def named(table: str, columns: Sequence[str], ending: str) -> str:
    """A name as Postgres would give one; where it is too long for one, cut, and told apart."""
    name = "_".join([table, *columns, ending])
    if len(name.encode()) <= 63:
        return name
    return f"{name.encode()[:54].decode(errors='ignore')}_{zlib.crc32(name.encode()):08x}"


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
                        f"{_first_line(statement)}: a pack has one CREATE TABLE, and CREATE INDEX, "
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
            raise PackFileError(f"{_first_line(statement)}: this is not understood")
        on = index.args["table"]
        if TableName.of(written(on)) != self.table:
            raise PackFileError(f'{_first_line(statement)}: a pack has indexes on :"table"')
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
            raise PackFileError(f"{_first_line(statement)}: a comment on a column of the pack")
        self.columns = [
            replace(each, comment=text.name) if each.name == name else each for each in self.columns
        ]


def read_table(tree: exp.Expression, table: TableName) -> tuple[list[Column], list[Constraint]]:
    """Columns and constraints of a CREATE TABLE; what is said beside a column, too."""
    schema = tree.this
    if not isinstance(tree, exp.Create) or not isinstance(schema, exp.Schema):
        raise PackFileError(f"{_first_line(written(tree))}: a CREATE TABLE with columns")
    columns: list[Column] = []
    constraints: list[Constraint] = []
    for element in schema.expressions:
        if isinstance(element, exp.ColumnDef):
            column, more = _column(element, table)
            columns.append(column)
            constraints += more
        elif isinstance(element, exp.Constraint):
            for each in element.expressions:
                constraints.append(_constraint(each, table, identifier(element.this)))
        else:
            constraints.append(_constraint(element, table, None))
    keys = {name for c in constraints if _is_primary(c) for name in c.columns}
    return [replace(c, not_null=c.not_null or c.name in keys) for c in columns], constraints


def _is_primary(constraint: Constraint) -> bool:
    return constraint.definition.startswith("primary key")


def _column(element: exp.ColumnDef, table: TableName) -> tuple[Column, list[Constraint]]:
    name = identifier(element.this)
    kind = element.args.get("kind")
    if kind is None:
        raise PackFileError(f"{table.name}.{name} has no type")
    column = Column(name, type_of(kind))
    more: list[Constraint] = []
    for each in element.args.get("constraints") or []:
        kind = each.kind
        given = identifier(each.this) if isinstance(each.this, exp.Identifier) else None
        if isinstance(kind, exp.NotNullColumnConstraint):
            column = replace(column, not_null=not kind.args.get("allow_null"))
        elif isinstance(kind, exp.DefaultColumnConstraint):
            column = replace(column, default=written(kind.this))
        elif isinstance(kind, exp.CollateColumnConstraint):
            column = replace(column, type=f"{column.type} collate {written(kind.this)}")
        elif isinstance(kind, exp.GeneratedAsIdentityColumnConstraint):
            if kind.expression or kind.args.get("start") or kind.args.get("increment"):
                raise PackFileError(f"{table.name}.{name}: an identity without options")
            how = "always" if kind.this else "by default"
            column = replace(column, identity=how, not_null=True)
        elif isinstance(kind, exp.ComputedColumnConstraint):
            column = replace(column, generated=written(kind.this.unnest()))
        elif isinstance(kind, exp.PrimaryKeyColumnConstraint):
            more.append(_keyed("primary key", [name], table, given))
        elif isinstance(kind, exp.UniqueColumnConstraint) and kind.this is None:
            more.append(_keyed("unique", [name], table, given))
        elif isinstance(kind, exp.CheckColumnConstraint):
            more.append(_checked(kind, table, given, [name]))
        elif isinstance(kind, exp.Reference):
            more.append(_foreign([name], kind, table, given))
        else:
            raise PackFileError(f"{table.name}.{name}: {written(each)} is not understood")
    return column, more


def _constraint(node: exp.Expression, table: TableName, given: str | None) -> Constraint:
    if isinstance(node, exp.PrimaryKey):
        return _keyed("primary key", _names(node.expressions), table, given)
    if isinstance(node, exp.UniqueColumnConstraint) and isinstance(node.this, exp.Schema):
        return _keyed("unique", _names(node.this.expressions), table, given)
    if isinstance(node, exp.CheckColumnConstraint):
        return _checked(node, table, given, sorted({c.name for c in node.find_all(exp.Column)}))
    if isinstance(node, exp.ForeignKey):
        reference = cast("exp.Reference", node.args["reference"])
        options = [str(option) for option in node.args.get("options") or []]
        return _foreign(_names(node.expressions), reference, table, given, options)
    raise PackFileError(f"{table.name}: {written(node)} is not understood")


def _names(nodes: Sequence[exp.Expression]) -> list[str]:
    found = [node.find(exp.Identifier) for node in nodes]
    return [identifier(node) for node in found if node is not None]


def _list(columns: Sequence[str]) -> str:
    return f"({', '.join(quoted(column) for column in columns)})"


def _keyed(kind: str, columns: list[str], table: TableName, given: str | None) -> Constraint:
    name = named(table.name, [], "pkey") if kind == "primary key" else None
    name = given or name or named(table.name, columns, "key")
    return Constraint(name, f"{kind} {_list(columns)}", tuple(columns))


def _checked(
    node: exp.CheckColumnConstraint, table: TableName, given: str | None, columns: list[str]
) -> Constraint:
    name = given or named(table.name, columns, "check")
    return Constraint(name, f"check ({written(node.this)})")


def _foreign(
    columns: list[str],
    reference: exp.Reference,
    table: TableName,
    given: str | None,
    more: Sequence[str] = (),
) -> Constraint:
    target = reference.this
    other = TableName.of(written(target.this if isinstance(target, exp.Schema) else target))
    to = _names(target.expressions) if isinstance(target, exp.Schema) else []
    options = [str(o).lower() for o in [*(reference.args.get("options") or []), *more]]
    text = " ".join(
        [f"foreign key {_list(columns)} references {other}", *([_list(to)] if to else []), *options]
    )
    on_delete = next((o.removeprefix("on delete ") for o in options if "on delete" in o), None)
    return Constraint(
        given or named(table.name, columns, "fkey"),
        text,
        tuple(columns),
        other,
        tuple(to),
        None if on_delete == "no action" else on_delete,
    )
