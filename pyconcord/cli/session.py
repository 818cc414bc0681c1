"""One command's run: where it connects, how it waits, how it fails."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, NoReturn, TypeVar

import psycopg
import typer
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from rich.console import Console

from pyconcord.cli.locks import Watch
from pyconcord.errors import ConcordError, Contended, from_database
from pyconcord.install import FilesError, PackError

T = TypeVar("T")
Connection = psycopg.Connection[Any]

TRIES = 6
LOCK_TIMEOUT = "5s"  # of one try; the pack's own functions have the setting lock_timeout


class Exit(IntEnum):
    """The exit codes that pyconcord.cli documents."""

    NO = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    CONTENDED = 5
    DATABASE = 6
    INTERRUPTED = 130


# What many commands take.
Dsn = Annotated[
    str | None,
    typer.Argument(
        metavar="DSN",
        show_default=False,
        help="Connection string or URI; without it DATABASE_URL, then the PG* variables.",
    ),
]
DsnOption = Annotated[
    str | None,
    typer.Option("--dsn", "-d", metavar="DSN", show_default=False, help="DSN, given as an option."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Sql = Annotated[bool, typer.Option("--sql", help="Print the SQL that it would run, run nothing.")]
Table = Annotated[
    str, typer.Argument(help="Its name as in SQL: with its schema or its quotes where they matter.")
]
Tenant = Annotated[
    str | None,
    typer.Option(help="Look as this tenant (a trusted login may); owners see every tenant."),
]

# Colour and cursor movements only where there is a terminal; rich sees to it.
err = Console(stderr=True, highlight=False)


@dataclass
class Session:
    """Options shared by the commands."""

    dsn: str | None
    json: bool = False
    login: str | None = None

    @classmethod
    def of(cls, dsn: str | None, option: str | None, json: bool = False) -> Session:
        if dsn is not None and option is not None:
            raise typer.BadParameter("the DSN is given twice", param_hint="--dsn")
        given = dsn or option or os.environ.get("DATABASE_URL") or None
        try:
            conninfo_to_dict(given or "")
        except psycopg.ProgrammingError:
            where = "DATABASE_URL" if given not in (dsn, option) else "DSN"
            expected = "postgresql://USER@HOST/DATABASE, or host=HOST user=USER dbname=DATABASE"
            raise typer.BadParameter(f"expected {expected}", param_hint=where) from None
        return cls(given, json)

    @contextmanager
    def connect(self, tenant: str | None = None) -> Iterator[Connection]:
        """A connection with bounded waits; acting for a tenant, if one is named."""
        with psycopg.connect(
            self.dsn or "", autocommit=True, fallback_application_name="pyconcord"
        ) as connection:
            self.login = connection.info.user
            connection.execute("select set_config('lock_timeout', %s, false)", (LOCK_TIMEOUT,))
            if tenant is not None:
                act = "select concord.act_as(%s, 'system', %s, is_local => false)"
                connection.execute(act, (tenant, connection.info.user))
            yield connection

    def patiently(self, connection: Connection, what: str, action: Callable[[], T]) -> T:
        """Do it; while somebody's lock is in the way say whose, and try again, so many times."""
        for left in reversed(range(TRIES)):
            # The spinner is drawn on a terminal only.
            with err.status(f"{what} …"), Watch(connection, self._note):
                try:
                    return action()
                except psycopg.Error as error:
                    if not isinstance(from_database(error), Contended):
                        raise
                    if not left:
                        self._note(f"{what}: given up after {TRIES} tries")
                        raise
            self._note(f"{what}: not yet, trying again ({left} more)")
        raise AssertionError("unreachable")

    def run(self, connection: Connection, what: str, statement: str) -> list[Any]:
        """Run a statement of a migration, patiently; its rows.

        CREATE INDEX CONCURRENTLY waits for everybody, and nobody for it; given up half-way it would
        leave an invalid index behind.
        """
        alone = "concurrently" in statement
        if alone:
            connection.execute("set lock_timeout = 0")
        cursor = self.patiently(connection, what, lambda: connection.execute(statement.encode()))
        if alone:
            connection.execute("select set_config('lock_timeout', %s, false)", (LOCK_TIMEOUT,))
        return cursor.fetchall() if cursor.description else []

    def _note(self, message: str) -> None:
        err.print(f"pyconcord: {message}", markup=False, soft_wrap=True)

    def fail(self, exit: Exit, error: BaseException | str, **detail: Any) -> NoReturn:
        """End with a message on standard error: a sentence, or JSON."""
        message = str(error).strip() or type(error).__name__
        if self.json:
            told = {"exit": int(exit), "message": message, **detail}
            print(json.dumps({"error": told}, ensure_ascii=False, default=str), file=sys.stderr)
        else:
            self._note(message)
        raise typer.Exit(exit)

    @contextmanager
    def answering(self, hint: str = "", unreachable: str = "") -> Iterator[None]:
        """Turn what may go wrong into an exit code; where something is not there, with a hint."""
        try:
            yield
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None
        except (FilesError, PackError) as error:
            self.fail(Exit.REFUSED, error)
        except psycopg.Error as error:
            known = from_database(error, self.login)
            if isinstance(known, Contended):
                self.fail(Exit.CONTENDED, known, code=known.code)
            elif known is not None:
                told = _as_options(known)
                self.fail(Exit.REFUSED, told, code=known.code, param=known.param)
            elif _is_lost(error):
                self.fail(Exit.UNREACHABLE, f"{str(error).strip()}{unreachable}")
            elif error.sqlstate in _NOT_THERE and _ABOUT_CONCORD.search(
                error.diag.message_primary or ""
            ):
                hint = "is concord in this database? pyconcord install puts it there"
                self.fail(Exit.REFUSED, f"{error} ({hint})", sqlstate=error.sqlstate)
            elif error.sqlstate in _NOT_THERE:
                self.fail(Exit.REFUSED, f"{error}{hint}", sqlstate=error.sqlstate)
            elif error.sqlstate == "42501":
                self.fail(Exit.REFUSED, error, sqlstate=error.sqlstate)
            self.fail(Exit.DATABASE, error, sqlstate=error.sqlstate)


# No such schema, function, table, type; a table's name that is none.
_NOT_THERE = ("3F000", "42883", "42P01", "42704", "42602")
_ABOUT_CONCORD = re.compile(r'\bconcord\.|"concord"')


def name_hint(table: str) -> str:
    """What to say where there is no table of this name."""
    if re.fullmatch(r"[a-z_0-9.]+|.*\".*", table):
        return ""
    quoted = '"' + table.replace('"', '""') + '"'
    return f"\nCapitals and blanks take SQL's quotes: pyconcord … '{quoted}'"


_OPTIONS = {"rel": "", "groups": "--group: ", "ignore_fields": "--ignore: "} | {
    "secret_fields": "--secret: ", "tenant_column": "--tenant-column: ", "on_stale": "--on-stale: ",
    "owner_column": "--owner-column: ", "shared_column": "--shared-column: ",
    "editor_column": "--editor-column: ", "archive_column": "--archive-column: ",
    **{name: f"--{name}: " for name in ("name", "tenant", "detail", "since")},
    **{name: f"--{name}: " for name in ("predicate", "writable", "contract")},
}  # fmt: skip


def _as_options(error: ConcordError) -> str:
    """The message, with the option where SQL names its parameter."""
    if error.param not in _OPTIONS:
        return str(error)
    return _OPTIONS[error.param] + error.message


def _is_lost(error: psycopg.Error) -> bool:
    """No connection, or one that ended: not an error of a statement."""
    state = error.sqlstate or ""
    return isinstance(error, psycopg.OperationalError) and (
        not state or state.startswith(("08", "28", "57P", "3D", "53300"))
    )


def call(function: str, **arguments: sql.Composable) -> sql.Composed:
    """A call with named arguments, to run or to print."""
    given = [sql.SQL("{} => {}").format(sql.SQL(name), value) for name, value in arguments.items()]
    return sql.SQL("select {}({})").format(
        sql.SQL(function),
        sql.SQL(", ").join(given),
    )
