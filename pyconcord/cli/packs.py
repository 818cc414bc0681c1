"""packs, bridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from pyconcord import bridge as bridges
from pyconcord.bridge import Bridge, Table
from pyconcord.bridge import django as django_models
from pyconcord.bridge import sqlalchemy as sqlalchemy_entities
from pyconcord.bridge.tables import new_table
from pyconcord.cli.output import emit, show
from pyconcord.cli.session import Dsn, DsnOption, Exit, Json, Session, err
from pyconcord.packs import Pack, PackFileError, Spread, TableName, find, merge, shipped

STORE = ("agent_session", "agent_message", "agent_tool_call")


def register(app: typer.Typer) -> None:
    app.command()(packs)
    app.command()(bridge)


def packs(dsn: Dsn = None, *, dsn_option: DsnOption = None, json: Json = False) -> None:
    """List the packs that come along, and those that the database's tables have."""
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
        typer.Option(help="A table, with its schema if that is another. Default: all."),
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
    session = Session.of(dsn, dsn_option)
    if not (migration or orm or apply or revert or merged):
        raise typer.BadParameter("what to make: --migration, --orm, --apply, --revert or --merge")
    try:
        with session.answering():
            found = _tables(session, schema, table, ddl, store, bool(pack))
        chosen = _Chosen(pack or [], set_ or [], fill or [])
        tables = [each.having(chosen.of(each)) for each in found]
        chosen.demand_used()
        made = Bridge(tables)
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
            generator = sqlalchemy_entities if orm == "sqlalchemy" else django_models
            head, parts = generator.parts(tables, base)
            old = entities.read_text() if entities.exists() else head
            entities.write_text(bridges.rewritten(old, parts, overwrite))
            err.print(f"wrote {entities}", markup=False)
    except (PackFileError, OSError) as error:
        session.fail(Exit.REFUSED, error)
    if apply or revert:
        with session.answering(), session.connect() as connection:
            connection.execute("set lock_timeout = 0")  # each statement bounds its own waits
            connection.add_notice_handler(
                lambda notice: err.print(notice.message_primary or "", markup=False)
            )
            made.run(connection, lambda what: err.print(what, markup=False), back=revert)


def _tables(
    session: Session,
    schema: str,
    names: list[str] | None,
    ddl: Path | None,
    store: bool,
    packs: bool,
) -> list[Table]:
    found: list[Table] = []
    if ddl is not None:
        found = bridges.of_ddl(ddl.read_text(), schema, names)
    elif names is not None or packs or not store:
        with session.connect() as connection:
            found = bridges.of_database(connection, schema, names)
    if store:
        # Last, and in the order in which they refer to each other; the bridge's own, also when it
        # is run again.
        there = {each.name.name: each for each in found}
        found = [each for each in found if each.name.name not in STORE]
        found += [
            replace(there[name], exists=False)
            if name in there
            else new_table(TableName(schema, name))
            for name in STORE
        ]
    if not found:
        raise PackFileError(f"there are no tables in the schema {schema}")
    return found


class _Chosen:
    """Which packs a table is to have, and how: what is said for one table goes before the rest."""

    def __init__(self, packs: Sequence[str], sets: Sequence[str], fills: Sequence[str]) -> None:
        self.packs: list[tuple[str | None, Pack]] = []
        for each in packs:
            table, colon, what = each.rpartition(":")
            self.packs.append((table if colon else None, find(what)))
        self.sets = [_assignment("--set", each) for each in sets]
        self.fills = [_assignment("--fill", each) for each in fills]
        self.unused = {(option, each) for option, each in self._said()}

    def _said(self) -> list[tuple[str, tuple[str | None, str, str]]]:
        return [("--set", each) for each in self.sets] + [("--fill", each) for each in self.fills]

    def of(self, table: Table) -> list[Spread]:
        name = table.name.name
        wanted = [p for only, p in self.packs if only in (None, name)] if table.exists else []
        if not table.exists:
            wanted = [shipped()[name], *(p for only, p in self.packs if only == name)]
        spreads = []
        for pack in dict.fromkeys(p.name for p in wanted):
            chosen = next(p for p in wanted if p.name == pack)
            options = self._those("--set", self.sets, name, {*chosen.names, *chosen.sets})
            columns = {column.name for column in chosen.on(table.name, options).columns}
            fills = self._those("--fill", self.fills, name, columns)
            spreads.append(chosen.on(table.name, options, fills))
        return spreads

    def _those(
        self,
        option: str,
        said: Sequence[tuple[str | None, str, str]],
        table: str,
        names: set[str],
    ) -> dict[str, str]:
        found: dict[str, str] = {}
        for only in (None, table):
            for each in said:
                if each[0] == only and each[1] in names:
                    found[each[1]] = each[2]
                    self.unused.discard((option, each))
        return found

    def demand_used(self) -> None:
        for option, (table, name, _) in sorted(self.unused, key=str):
            where = f" of {table}" if table else ""
            raise PackFileError(f"{option}: no pack{where} has a {name}")


def _assignment(option: str, text: str) -> tuple[str | None, str, str]:
    name, equals, value = text.partition("=")
    table, colon, name = name.rpartition(":")
    if not equals or not name:
        raise typer.BadParameter("[TABLE:]NAME=VALUE", param_hint=option)
    return table if colon else None, name, value
