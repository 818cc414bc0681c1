"""install, upgrade, uninstall; schema; demo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer

from pyconcord import schemas
from pyconcord.cli.output import emit
from pyconcord.cli.session import Connection, Dsn, DsnOption, Exit, Json, Session, Sql, err
from pyconcord.install import Outcome, Plan, install_plan, uninstall_plan, upgrade_plan


def register(app: typer.Typer) -> None:
    app.command()(install)
    app.command()(upgrade)
    app.command()(uninstall)
    app.command()(schema)
    app.command()(demo)


def install(
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    app_role: Annotated[
        str | None, typer.Option(help="Grant this role the use of it.", metavar="NAME")
    ] = None,
    service: Annotated[
        bool, typer.Option("--service", help="That login may also state who acts.")
    ] = False,
    sql: Sql = False,
    json: Json = False,
) -> None:
    """Put the pack into a database. Where it is already, make what is lacking.

    With --sql and no DSN it prints what an empty database would get. Exit code 1 if --app-role and
    --service asked for grants that this login may not make.
    """
    session = Session.of(dsn, dsn_option, json)

    def plan(connection: Connection | None) -> Plan:
        return install_plan(connection, app_role=app_role, service=service)

    if sql and session.dsn is None:
        with session.answering():
            print(plan(None).script(), end="")
    else:
        outcome = _carry_out(session, "installing", plan, sql)
        if outcome is not None and app_role is not None and not outcome.usable:
            raise typer.Exit(Exit.NO)


def upgrade(
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    to: Annotated[str | None, typer.Option(help="To which version.", metavar="VERSION")] = None,
    sql: Sql = False,
    json: Json = False,
) -> None:
    """Bring the pack in a database to the version of this program.

    --sql asks the database, too: the steps depend on what is there.
    """
    session = Session.of(dsn, dsn_option, json)
    _carry_out(session, "upgrading", lambda connection: upgrade_plan(connection, to=to), sql)


def uninstall(
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Untrack tables that are still tracked.")
    ] = False,
    drop_roles: Annotated[
        bool, typer.Option("--drop-roles", help="Drop its roles, if nothing else uses them.")
    ] = False,
    sql: Sql = False,
    json: Json = False,
) -> None:
    """Take the pack out of a database, with its log.

    --sql asks the database, too: the steps depend on what is there.
    """
    session = Session.of(dsn, dsn_option, json)

    def plan(connection: Connection) -> Plan:
        return uninstall_plan(connection, force=force, drop_roles=drop_roles)

    _carry_out(session, "uninstalling", plan, sql)


def _carry_out(
    session: Session, what: str, plan: Callable[[Connection], Plan], only_print: bool
) -> Outcome | None:
    why = "\n--sql asks the database: the steps depend on what is there" if only_print else ""
    with session.answering(unreachable=why), session.connect() as connection:
        if only_print:
            print(plan(connection).script(), end="")
            return None
        # Planned anew for each try: what is there may have changed meanwhile.
        outcome = session.patiently(connection, what, lambda: plan(connection).run(connection))
    if session.json:
        emit(asdict(outcome))
    else:
        _tell(outcome)
    return outcome


def _tell(outcome: Outcome) -> None:
    gone = "the pack and its log" if outcome.action == "uninstalled" else "no concord here"
    print(f"{outcome.action}: {outcome.installed or gone}")
    for notice in (*outcome.notices, *(f"kept: {why}" for why in outcome.kept)):
        err.print(notice, markup=False, soft_wrap=True)
    if outcome.for_administrator:
        why = "so that it belongs to concord_owner" if outcome.usable else "before it is of use"
        err.print(f"An administrator has to run, in this database, {why}:", soft_wrap=True)
        for line in outcome.for_administrator:
            err.print(f"  {line}", markup=False, soft_wrap=True)


def schema(
    name: Annotated[str | None, typer.Argument(help=", ".join(schemas.names))] = None,
) -> None:
    """Print a JSON Schema of the wire format; without a name, their names."""
    if name is None:
        print(*schemas.names, sep="\n")
        return
    if name not in schemas.names:
        raise typer.BadParameter(f"there are {', '.join(schemas.names)}", param_hint="NAME")
    emit(schemas.load(name))


def demo(
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="About how long all of it takes.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another workload.")] = 1,
    short: Annotated[bool, typer.Option("--short", help="A quarter of the time.")] = False,
    json: Json = False,
) -> None:
    """Run the same edits six ways, and see which are lost.

    People, agents and a job work on the same rows. Without a DSN it starts a server of its own; in
    either case it makes the database concord_demo.
    """
    # Here, not above: it needs the extra "embedded" where no server is named.
    from pyconcord.demo import main

    session = Session.of(dsn, dsn_option)
    raise typer.Exit(main(session.dsn, seconds=seconds, seed=seed, short=short, json=json))
