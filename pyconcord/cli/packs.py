"""packs, bridge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pyconcord.cli.output import emit, show
from pyconcord.cli.session import Dsn, DsnOption, Exit, Json, Session, err

# pyconcord.bridge and pyconcord.packs bring sqlglot along, and are imported where they are used.


def register(app: typer.Typer) -> None:
    app.command()(packs)
    app.command()(bridge)


def packs(
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    orm: Annotated[
        Literal["sqlalchemy", "django"] | None,
        typer.Option(help="Print the --pack's as mixins, or abstract models, instead."),
    ] = None,
    pack: Annotated[
        list[str] | None, typer.Option(help="A pack, or a pack's file. May be repeated.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A name of a pack.")
    ] = None,
    json: Json = False,
) -> None:
    """List the packs that come along, and those that the database's tables have."""
    from pyconcord.bridge import django, sqlalchemy
    from pyconcord.bridge.choose import Choice
    from pyconcord.bridge.tables import Table
    from pyconcord.packs import PackFileError, TableName, shipped

    if orm is not None:
        try:
            choice = Choice(pack or [*shipped()], set_ or [], [])
            spreads = choice.of(Table(TableName("public", "a_table"), ()))
            choice.demand_used()
        except PackFileError as error:
            Session.of(None, None).fail(Exit.REFUSED, error)
        print((sqlalchemy if orm == "sqlalchemy" else django).mixins_of(spreads), end="")
        return
    found = [
        {"pack": pack.name, "version": pack.version, "table": "", "objects": pack.description}
        for pack in shipped().values()
    ]
    session = Session.of(dsn, dsn_option, json)
    if session.dsn is not None:
        with session.answering(), session.connect() as connection:
            rows = connection.execute(
                "select pack, version, rel::text, objects from concord.packs order by 3, 1"
            ).fetchall()
        found += [
            {
                "pack": pack,
                "version": version,
                "table": rel,
                "objects": [f"{o['kind']} {o['name']} ({o['state']})" for o in objects],
            }
            for pack, version, rel, objects in rows
        ]
    if json:
        emit(found)
    else:
        show(found, ("table", "pack", "version", "objects"), none="no packs")


def bridge(
    dsn: Dsn = None,
    *,
    dsn_option: DsnOption = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            help="A table of the schema, by its bare name. May be repeated. Default: all."
        ),
    ] = None,
    schema: Annotated[str, typer.Option(help="The tables' schema.")] = "public",
    ddl: Annotated[
        Path | None, typer.Option(help="The tables are those of this SQL, not of a database.")
    ] = None,
    pack: Annotated[
        list[str] | None,
        typer.Option(help="A pack, or a pack's file; TABLE:PACK for one table. Repeatable."),
    ] = None,
    store: Annotated[
        bool, typer.Option("--agent-store", help="Make the tables of an agent store, too.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="[TABLE:]NAME=VALUE", help="A name that a pack has."),
    ] = None,
    fill: Annotated[
        list[str] | None,
        typer.Option(metavar="[TABLE:]COLUMN=SQL", help="What rows have that are there already."),
    ] = None,
    migration: Annotated[
        Literal["sql", "alembic", "django"] | None, typer.Option(help="Write the migration.")
    ] = None,
    to: Annotated[Path, typer.Option(help="The directory of the migration.")] = Path(),
    name: Annotated[str, typer.Option(help="The migration's name.")] = "concord",
    after: Annotated[
        list[str] | None,
        typer.Option(help="The revision (APP.MIGRATION) that it comes after. Repeatable."),
    ] = None,
    orm: Annotated[
        Literal["sqlalchemy", "django"] | None, typer.Option(help="Write the entities' module.")
    ] = None,
    entities: Annotated[Path, typer.Option(help="The file of the module.")] = Path("entities.py"),
    base: Annotated[
        str | None, typer.Option(metavar="MODULE:CLASS", help="A base class of your own.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also where regions were changed by hand.")
    ] = False,
    merged: Annotated[
        bool, typer.Option("--merge", help="Print the DDL with the packs in its CREATE TABLEs.")
    ] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Migrate the database now.")] = False,
    revert: Annotated[bool, typer.Option("--revert", help="Undo it now, with its data.")] = False,
) -> None:
    """Make tables protected, tracked entities: the migration, and a module for an ORM."""
    from pyconcord.bridge import Bridge, django, rewritten, sqlalchemy
    from pyconcord.bridge.choose import Choice, tables_of
    from pyconcord.bridge.migration import summary
    from pyconcord.packs import PackFileError, merge

    session = Session.of(dsn, dsn_option)
    if not (migration or orm or apply or revert or merged):
        raise typer.BadParameter("what to make: --migration, --orm, --apply, --revert or --merge")
    try:
        choice = Choice(pack or [], set_ or [], fill or [])
        if ddl is None and (table or pack or not store):
            with session.answering(), session.connect() as connection:
                found = tables_of(connection, schema, table, store=store)
        else:
            found = tables_of(None, schema, table, ddl, store)
        tables = [each.having(choice.of(each)) for each in found]
        choice.demand_used()
        made = Bridge(tables)
        made.demand()
        if merged:
            text = ddl.read_text() if ddl else ""
            for each in tables:
                text = merge(text, each.spreads) if each.spreads else text
            print(text, end="")
        if migration:
            to.mkdir(parents=True, exist_ok=True)
            for file, text in made.files(migration, name, after or []).items():
                (to / file).write_text(text)
                err.print(f"wrote {to / file}", markup=False)
        if orm:
            generator = sqlalchemy if orm == "sqlalchemy" else django
            head, parts = generator.parts(tables, base)
            old = entities.read_text() if entities.exists() else head
            entities.write_text(rewritten(old, parts, overwrite))
            err.print(f"wrote {entities}", markup=False)
    except (PackFileError, OSError) as error:
        session.fail(Exit.REFUSED, error)
    if apply or revert:
        with session.answering(), session.connect() as connection:
            connection.add_notice_handler(lambda notice: _say(notice.message_primary or ""))

            def execute(statement: str) -> list[Any]:
                what = summary(statement)
                _say(what)
                return session.run(connection, what, statement)

            made.run(execute, back=revert)


def _say(what: str) -> None:
    if not what.endswith(", skipping"):  # of DROP … IF EXISTS
        err.print(what, markup=False, soft_wrap=True)
