"""Packs in a CREATE TABLE of the user's: for a schema that is kept as DDL.

What is added is decided by the syntax tree; the user's text stays as it is written. The columns
are the user's then, as all in that text is: concord.packs knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import TokenType, exp

from .ddl import (
    Column,
    Constraint,
    PackFileError,
    TableName,
    Token,
    normal,
    parsed,
    quoted,
    read_table,
    statements,
    written,
)
from .definition import Spread


def tables_of(ddl: str) -> dict[TableName, str]:
    """The CREATE TABLE statements of a text, by the tables' names."""
    found = {}
    for statement, tokens in statements(ddl):
        words = [token.text.lower() for token in tokens[:3]]
        if words[:1] == ["create"] and "table" in words:
            tree = parsed(statement)
            if not isinstance(tree.this, exp.Schema):
                continue  # CREATE TABLE … AS, PARTITION OF: nothing to add to
            found[TableName.of(written(tree.this.this))] = statement
    return found


def read_tables(ddl: str) -> list[tuple[TableName, list[Column], list[Constraint]]]:
    """The tables of a text, with their columns and constraints, in its order."""
    return [
        (name, *read_table(parsed(statement), name)) for name, statement in tables_of(ddl).items()
    ]


def merge(ddl: str, spreads: Sequence[Spread]) -> str:
    """The text, with what the packs add to one of its tables. Raises PackFileError for a clash."""
    table = spreads[0].table
    statement = tables_of(ddl).get(table)
    if statement is None:
        raise PackFileError(f"there is no CREATE TABLE {table} in the DDL")
    columns, constraints = read_table(parsed(statement), table)
    have = {column.name: column.type for column in columns}
    taken = {constraint.name for constraint in constraints}
    lines: list[str] = []
    after: list[str] = []
    for spread in spreads:
        for column in spread.columns:
            there = have.setdefault(column.name, column.type)
            if normal(there) != normal(column.type):
                raise PackFileError(
                    f"{table.name}.{column.name} is {there}, and the pack {spread.pack} has "
                    f"{column.type} there: give its column another name"
                )
            if column.name not in {each.name for each in columns}:
                lines.append(column.sql)
                columns.append(column)
                if column.comment:
                    name = f"{table}.{quoted(column.name)}"
                    after.append(f"comment on column {name} is {_text(column.comment)}")
        for constraint in spread.constraints:
            if constraint.name in taken:
                raise PackFileError(f"{table} has a constraint {constraint.name} already")
            taken.add(constraint.name)
            lines.append(f"constraint {quoted(constraint.name)} {constraint.definition}")
        after += [
            f"create {'unique ' if index.unique else ''}index {quoted(index.name)} "
            f"on {table} {index.definition}"
            for index in spread.indexes
        ]
        after += spread.statements
    start = ddl.index(statement)
    last, end = (start + place for place in _end_of_body(statement))
    # The comma stands right behind the last word: a comment may follow, up to the end of its line.
    comma = "," if lines and ddl[last - 1] != "(" else ""
    body = f"{ddl[:last]}{comma}{ddl[last:end].rstrip()}"
    added = ",".join(f"\n  {line}" for line in lines)
    rest = ddl[end:]
    over = rest.find(";") + 1
    head = rest[:over] if over else f"{rest.rstrip()};"
    tail = "".join(f"\n{each};" for each in after)
    return f"{body}{added}\n{head}{tail}{rest[over:] if over else ''}"


def _text(text: str) -> str:
    return written(exp.Literal.string(text))


def _end_of_body(statement: str) -> tuple[int, int]:
    """Where the last word among the columns ends, and where their parenthesis is closed."""
    [(_, tokens)] = statements(statement)
    depth, last = 0, 0
    for token in tokens:
        depth += _step(token)
        if token.token_type is TokenType.R_PAREN and depth == 0:
            return last, token.start
        last = token.end + 1
    raise PackFileError(f"{statement}: no columns")


def _step(token: Token) -> int:
    return {TokenType.L_PAREN: 1, TokenType.R_PAREN: -1}.get(token.token_type, 0)
