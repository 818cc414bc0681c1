"""track, untrack, models, verify, maintain."""

from __future__ import annotations

import json as json_module
import re
import time
from collections.abc import Callable
from typing import Annotated, Any

import typer
from psycopg import sql
from psycopg.rows import dict_row

from pyconcord.cli.output import cell, emit, emit_line, show
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
    app.command()(track)
    app.command()(untrack)
    app.command()(models)
    app.command()(verify)
    app.command()(maintain)


def track(
    table: Table,
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    name: Annotated[str | None, typer.Option(help="Public name; default: the table's.")] = None,
    tenant_column: Annotated[str | None, typer.Option(help="Says whose a row is.")] = None,
    tenant: Annotated[str | None, typer.Option(help="One tenant for the whole table.")] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="A template: deck:{deck_id}. May be repeated.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A column that never conflicts. May be repeated.")
    ] = None,
    secret: Annotated[
        list[str] | None, typer.Option(help="A column whose values aren't logged. Repeatable.")
    ] = None,
    detail: Annotated[str | None, typer.Option(help="before (with old values) or names.")] = None,
    on_stale: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=MODE", help="Default mode: agent=notify. May be repeated."),
    ] = None,
    archive_column: Annotated[
        str | None, typer.Option(help="What operations archive and unarchive write.")
    ] = None,
    sql_only: Sql = False,
    json: Json = False,
) -> None:
    """Make a table a model, or change how it is one.

    The definition is the command line's: what is not given goes back to its default.
    """
    arguments: dict[str, sql.Composable] = {"rel": sql.Literal(table)}
    texts = {
        "name": name, "tenant_column": tenant_column, "tenant": tenant, "detail": detail,
        "archive_column": archive_column,
    }  # fmt: skip
    arguments |= {key: sql.Literal(value) for key, value in texts.items() if value is not None}
    lists = {"groups": group, "ignore_fields": ignore, "secret_fields": secret}
    arguments |= {key: _array(key, value) for key, value in lists.items() if value}
    if on_stale:
        arguments["on_stale"] = sql.Literal(json_module.dumps(_modes(on_stale)))
    statement = call("concord.track", **arguments)
    session = Session.of(dsn, dsn_option, json)
    model = _run(session, "tracking", table, statement, sql_only, show_it=True)
    if model is not None and session.json:
        emit(model)
    elif model is not None:
        said = ("rel", "name", "tenant", "tenant_column", "groups", "detail")
        print("tracked:", ", ".join(f"{k} {cell(model[k])}" for k in said if cell(model[k])))


def _array(name: str, values: list[str]) -> sql.Composed:
    array = sql.SQL(", ").join(map(sql.Literal, values))
    kind = sql.SQL("text[]" if name == "groups" else "name[]")
    return sql.SQL("array[{}]::{}").format(array, kind)


def _modes(given: list[str]) -> dict[str, str]:
    parts = [one.partition("=") for one in given]
    if not all(kind and mode for kind, _, mode in parts):
        raise typer.BadParameter("KIND=MODE, such as agent=notify", param_hint="--on-stale")
    return {kind: mode for kind, _, mode in parts}


def untrack(
    table: Table,
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    sql_only: Sql = False,
    json: Json = False,
) -> None:
    """Take the triggers off a table again, and forget the model."""
    session = Session.of(dsn, dsn_option, json)
    statement = call("concord.untrack", rel=sql.Literal(table))
    if _run(session, "untracking", table, statement, sql_only) is not None:
        if session.json:
            emit({"untracked": table})
        else:
            print(f"untracked: {table}")


def _run(
    session: Session,
    what: str,
    table: str,
    statement: sql.Composed,
    only_print: bool,
    show_it: bool = False,
) -> dict[str, Any] | None:
    """Run a statement and answer its model, if there is one; or print it, and answer None."""
    if only_print:
        print(statement.as_string(None) + ";")
        return None
    with session.answering(name_hint(table)), session.connect() as connection:
        session.patiently(connection, f"{what} {table}", lambda: connection.execute(statement))
        if not show_it:
            return {}
        query = "select to_jsonb(m) from concord.models m where rel = %s::text::regclass"
        row = connection.execute(query, (table,)).fetchone()
    return row[0] if row else {}


_COLUMNS = (
    "tenant", "name", "rel", "tenant_column", "groups", "detail",
    "ignore_fields", "secret_fields", "on_stale", "archive_column", "paused",
)  # fmt: skip


def models(dsn: Dsn = None, *, dsn_option: DsnOption = None, json: Json = False) -> None:
    """List the tracked tables."""
    session = Session.of(dsn, dsn_option, json)
    with session.answering(), session.connect() as connection:
        found = connection.execute("select to_jsonb(m) from concord.models m").fetchall()
    rows = sorted((row[0] for row in found), key=lambda m: (m.get("tenant") or "", m["name"]))
    if json:
        emit(rows)
    else:
        show(rows, _COLUMNS, none="no table is tracked")


def verify(dsn: Dsn = None, *, dsn_option: DsnOption = None, json: Json = False) -> None:
    """Say what is not as it should be. Exit code 1 if a promise does not hold."""
    session = Session.of(dsn, dsn_option, json)
    with session.answering(), session.connect() as connection:
        cursor = connection.cursor(row_factory=dict_row)
        rows = cursor.execute("select * from concord.verify()").fetchall()
    if json:
        emit(rows)
    else:
        show(rows, ("level", "code", "model", "detail", "remedy"), none="healthy")
    if any(row["level"] == "error" for row in rows):
        raise typer.Exit(Exit.NO)


def maintain(
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    every: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Again and again: 90s, 10min, 1h. Default: once."),
    ] = None,
    sql_only: Sql = False,
    json: Json = False,
) -> None:
    """Cut the log to its retention, and make room for what comes."""
    session = Session.of(dsn, dsn_option, json)
    pause = _seconds(every) if every is not None else None
    statement = call("concord.maintain")
    if sql_only:
        print(statement.as_string(None) + ";")
        return
    while True:
        try:
            with session.answering(), session.connect() as connection:
                _maintain(session, connection, statement, emit if pause is None else emit_line)
        except typer.Exit as end:
            # A server that restarts is no reason to stop for good.
            if pause is None or end.exit_code not in (Exit.UNREACHABLE, Exit.CONTENDED):
                raise
        if pause is None:
            return
        with session.answering():  # an interruption, too
            time.sleep(pause)


def _maintain(
    session: Session, connection: Connection, statement: sql.Composed, tell: Callable[[Any], None]
) -> None:
    row = session.patiently(
        connection, "maintaining", lambda: connection.execute(statement).fetchone()
    )
    assert row is not None
    if session.json:
        tell(row[0])
        return
    report = {key: value for key, value in row[0].items() if key != "put_off"}
    pruned = ", ".join(f"{n} {what}" for what, n in report.pop("pruned", {}).items() if n)
    done = [f"pruned {pruned}"] if pruned else []
    done += [f"{what} {cell(leaves)}" for what, leaves in report.items() if leaves]
    print("maintained:", "; ".join(done) or "nothing to do", flush=True)
    for later in row[0].get("put_off", ()):
        err.print(f"pyconcord: put off: {later}", markup=False, soft_wrap=True)


_UNITS = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400}


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d)?", text.strip())
    if match is None or float(match[1]) == 0:
        raise typer.BadParameter("a time such as 90s, 10min or 1h", param_hint="--every")
    return float(match[1]) * _UNITS[match[2] or "s"]
