"""protect, unprotect, doctor."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from psycopg import sql
from psycopg.rows import dict_row

from pyconcord.cli.output import cell, emit, show
from pyconcord.cli.session import (
    Connection,
    Dsn,
    DsnOption,
    Exit,
    Json,
    Session,
    Sql,
    Table,
    call,
    err,
    name_hint,
)


def register(app: typer.Typer) -> None:
    app.command()(protect)
    app.command()(unprotect)
    app.command()(doctor)


def protect(
    table: Table,
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    tenant_column: Annotated[str, typer.Option(help="Says whose tenant a row is.")],
    owner_column: Annotated[str | None, typer.Option(help="Says who owns a row.")] = None,
    shared_column: Annotated[
        str | None, typer.Option(help="A boolean: where it is true, others may read the row.")
    ] = None,
    predicate: Annotated[
        str | None, typer.Option(metavar="SQL", help="A condition in place of the owner rule.")
    ] = None,
    writable: Annotated[
        str | None, typer.Option(metavar="JSON", help='Such as {"insert": "any", "update": "own"}.')
    ] = None,
    editor_column: Annotated[str | None, typer.Option(help="Says who wrote last.")] = None,
    delegated: Annotated[
        bool, typer.Option("--delegated", help="Who acts for somebody works on that one's rows.")
    ] = False,
    contract: Annotated[str | None, typer.Option(help="comments/v1.")] = None,
    sql_only: Sql = False,
    json: Json = False,
) -> None:
    """Put row-level security on a table; then build the index it needs, without stopping anybody.

    The definition is the command line's: what is not given goes back to its default.
    """
    texts = {
        "tenant_column": tenant_column, "owner_column": owner_column,
        "shared_column": shared_column, "predicate": predicate, "writable": writable,
        "editor_column": editor_column, "contract": contract,
    }  # fmt: skip
    arguments: dict[str, sql.Composable] = {"rel": sql.Literal(table)}
    arguments |= {key: sql.Literal(value) for key, value in texts.items() if value is not None}
    if delegated:
        arguments["delegated"] = sql.SQL("true")
    statement = call("concord.protect", **arguments)
    if sql_only:
        print(statement.as_string(None) + ";")
        return
    session = Session.of(dsn, dsn_option, json)
    with session.answering(name_hint(table)), session.connect() as connection:
        told = session.patiently(
            connection, f"protecting {table}", lambda: _row(connection, statement)
        )
        for todo in told["todo"]:
            if "validate" not in todo or not told["rows_without_tenant"]:
                session.run(connection, todo.rstrip(";"), todo)
                if not json:
                    print(todo)
        # Counted before; behind the wall now, the table's owner could not count them again.
        counted = {key: told[key] for key in ("rows_without_tenant", "rows_without_owner")}
        told = _row(connection, statement) | counted
    if json:
        emit(told)
        return
    said = ("rel", "tenant_column", "owner_column", "shared_column", "predicate", "writable")
    print("protected:", ", ".join(f"{k} {cell(told[k])}" for k in said if cell(told[k])))
    for key, count in counted.items():
        if count:
            err.print(f"pyconcord: {count} {key.replace('_', ' ')}: nobody sees them any more")
    for policy in told["permissive_policies"]:
        err.print(f"pyconcord: policy {policy} has no effect beside concord's", markup=False)


def _row(connection: Connection, statement: sql.Composed) -> dict[str, Any]:
    row = connection.execute(statement).fetchone()
    assert row is not None
    found: dict[str, Any] = row[0]
    return found


def unprotect(
    table: Table,
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    sql_only: Sql = False,
    json: Json = False,
) -> None:
    """Take row-level security off a table again, as far as protect put it on."""
    statement = call("concord.unprotect", rel=sql.Literal(table))
    if sql_only:
        print(statement.as_string(None) + ";")
        return
    session = Session.of(dsn, dsn_option, json)
    with session.answering(name_hint(table)), session.connect() as connection:
        session.patiently(
            connection, f"unprotecting {table}", lambda: connection.execute(statement)
        )
    if json:
        emit({"unprotected": table})
    else:
        print(f"unprotected: {table}")


def doctor(dsn: Dsn = None, *, dsn_option: DsnOption = None, json: Json = False) -> None:
    """Say where the wall can be walked around, beside what verify says. Exit code 1 on an error."""
    session = Session.of(dsn, dsn_option, json)
    with session.answering(), session.connect() as connection:
        cursor = connection.cursor(row_factory=dict_row)
        rows = cursor.execute("select * from concord.doctor()").fetchall()
    if json:
        emit(rows)
    else:
        show(rows, ("level", "name", "detail", "remedy"), none="healthy")
    if any(row["level"] == "error" for row in rows):
        raise typer.Exit(Exit.NO)
