"""DDL, as far as packs and bridges understand it: what sqlglot makes a tree of.

Everything is said in Postgres's own words again; what is not understood is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import sqlglot
from psycopg import sql
from sqlglot import TokenType, exp
from sqlglot.errors import SqlglotError


class PackFileError(ValueError):
    """A pack's file, a table's DDL or an option is not as it has to be; the message says how."""


class Token(Protocol):
    """A word of SQL, and where it stands."""

    token_type: TokenType
    text: str
    start: int
    end: int


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


def normal(type: str) -> str:
    """A type in one of its spellings: timestamptz, varchar(80), int."""
    text = type.partition(" collate ")[0]
    return type_of(exp.DataType.build(text, dialect="postgres", udt=True))


def parsed(text: str) -> exp.Expression:
    """One statement's tree; a refusal where sqlglot has none."""
    try:
        tree = cast("exp.Expression", sqlglot.parse_one(text, dialect="postgres"))
    except SqlglotError as error:
        raise PackFileError(f"{first_line(text)}: {str(error).splitlines()[0]}") from None
    if isinstance(tree, exp.Command):
        raise PackFileError(f"{first_line(text)}: this is not understood")
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


def first_line(text: str) -> str:
    return text.strip().splitlines()[0][:80]


def named(table: str, columns: Sequence[str], ending: str) -> str:
    """A name as Postgres would give one; where it is too long for one, cut, and told apart."""
    name = "_".join([table, *columns, ending])
    if len(name.encode()) <= 63:
        return name
    return f"{name.encode()[:54].decode(errors='ignore')}_{zlib.crc32(name.encode()):08x}"


def read_table(tree: exp.Expression, table: TableName) -> tuple[list[Column], list[Constraint]]:
    """Columns and constraints of a CREATE TABLE; what is said beside a column, too."""
    schema = tree.this
    if not isinstance(tree, exp.Create) or not isinstance(schema, exp.Schema):
        raise PackFileError(f"{first_line(written(tree))}: a CREATE TABLE with columns")
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
