"""history, conflicts, tail: what the log holds."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from psycopg.rows import dict_row

from pyconcord.cli.output import cell, change, emit, emit_line, show
from pyconcord.cli.session import Connection, Dsn, DsnOption, Json, Session, Tenant, err

Max = Annotated[int, typer.Option("--max", "-n", min=1, help="At most so many.")]
PAGE = 1000


def register(app: typer.Typer) -> None:
    app.command()(history)
    app.command()(conflicts)
    app.command()(tail)


def history(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    id: Annotated[str, typer.Argument(help="The row's id; a JSON object for a composite key.")],
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    max: Max = 100,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Show the changes of one row, newest first."""
    rows = _rows(
        Session.of(dsn, dsn_option, json), tenant,
        "select * from concord.history(%s, %s, %s)", model, id, max,
    )  # fmt: skip
    if json:
        emit(rows)
    else:
        columns = ("sync_id", "at", "op", "fields", "by", "before", "groups", "label")
        show(list(map(change, rows)), columns, none="the log holds no change of this row")


def conflicts(
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    max: Max = 100,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Show the writes that were held, newest first."""
    rows = _rows(
        Session.of(dsn, dsn_option, json), tenant,
        "select * from concord.conflicts order by at desc limit %s", max,
    )  # fmt: skip
    if json:
        emit(rows)
        return
    columns = ("at", "tenant", "model", "id", "fields", "held", "because_of")
    for row in rows:
        row["held"] = f"{row['kind']} {row['actor']}"
        row["because_of"] = f"{row['by_kind']} {row['by_actor']}" if row["by_actor"] else None
    show(rows, columns, none="no write was held")


def _rows(session: Session, tenant: str | None, query: str, *args: object) -> list[dict[str, Any]]:
    with session.answering(), session.connect(tenant) as connection:
        return connection.cursor(row_factory=dict_row).execute(query, args).fetchall()


def tail(
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    since: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="From a next_token or a read token on.")
    ] = None,
    all_kept: Annotated[
        bool, typer.Option("--all", help="From the oldest change kept; default: from now on.")
    ] = False,
    follow: Annotated[bool, typer.Option(help="Wait for more, or end where the log ends.")] = True,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 1.0,
    tenant: Tenant = None,
    json: Json = False,
) -> None:
    """Follow the changes of all models, oldest first.

    With --json each line is a change; its next_token says where to go on.
    """
    if since is not None and all_kept:
        raise typer.BadParameter("--since and --all exclude each other", param_hint="--since")
    session = Session.of(dsn, dsn_option, json)
    position = since
    with session.answering(), session.connect(tenant) as connection:
        if since is None and not all_kept:
            position = _now(connection)
        if follow:
            connection.execute("listen concord")  # where wake-ups are on, no need to wait
        try:
            while True:
                position, at_end = _page(connection, position, json)
                if at_end and not follow:
                    return
                if at_end:
                    for _ in connection.notifies(timeout=interval, stop_after=1):
                        pass
        except KeyboardInterrupt:
            if not json and position is not None:
                err.print(f"to go on: --since '{position}'", markup=False, soft_wrap=True)
            raise


def _now(connection: Connection) -> str:
    row = connection.execute("select concord.capture()").fetchone()
    assert row is not None
    return str(row[0])


def _page(connection: Connection, position: str | None, json: bool) -> tuple[str | None, bool]:
    """Print what there is after a position: where that ends, and whether the log ends there."""
    cursor = connection.cursor(row_factory=dict_row)
    rows = cursor.execute("select * from concord.changes(%s, %s)", (position, PAGE)).fetchall()
    for row in rows:
        position = row["next_token"]
        if json:
            emit_line(row)
        elif row["op"] != "checkpoint":
            print(_line(change(row)), flush=True)
    return position, not rows or rows[-1]["op"] == "checkpoint"


def _line(row: dict[str, Any]) -> str:
    where = row["model"] if row["id"] is None else f"{row['model']} {row['id']}"
    parts = [cell(row["at"]), row["op"], where, cell(row["fields"])]
    parts += [f"by {row['by']}", f"({row['label']})" if row["label"] else ""]
    return "  ".join(part for part in parts if part)
