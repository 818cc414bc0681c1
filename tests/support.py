"""What the fixtures of conftest.py hand to a test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pyconcord import install
from pyconcord.embedded import Server, ServerError

PG_VERSION = int(os.environ.get("PYCONCORD_PG", "18"))
DATABASE_URL = os.environ.get("DATABASE_URL") or None

# Loses nothing a test looks at, except in a test that crashes the server: those have `own_server`.
FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "max_prepared_transactions": "10",
    "max_connections": "50",
}
# A committed transaction survives an immediate stop here; what was never flushed does not.
DURABLE = {**FAST, "synchronous_commit": "on"}

# The logins of the tests. `app` may state who acts, `app2` may not, `plain` is a member of nothing,
# `owner` owns application tables and is not a superuser.
LOGINS = ("app", "app2", "plain", "owner")
_MARK = "made by the tests of pyconcord"


class RolesInTheWay(RuntimeError):
    """The server has a role with the name of one of the tests' own."""


@dataclass(frozen=True)
class ExternalServer:
    """The server that DATABASE_URL names, with a superuser's rights."""

    url: str
    superuser: str
    version: int
    passwords: Mapping[str, str]

    def dsn(self, dbname: str = "postgres", user: str | None = None) -> str:
        if user is None or user in ("postgres", self.superuser):
            return make_conninfo(self.url, dbname=dbname)
        return make_conninfo(self.url, dbname=dbname, user=user, password=self.passwords[user])

    def bin(self, name: str) -> Path:
        found = shutil.which(name)
        if found is None:
            raise ServerError(f"{name} is not on PATH")
        return Path(found)


AnyServer = Server | ExternalServer


@dataclass
class Database:
    """A database with the pack in it. `user=None` is the superuser."""

    name: str
    server: AnyServer
    _connections: list[psycopg.Connection[Any]] = field(default_factory=list, repr=False)

    def dsn(self, user: str | None = None) -> str:
        return self.server.dsn(self.name, user or "postgres")

    def connect(
        self, user: str | None = None, autocommit: bool = True, **kwargs: Any
    ) -> psycopg.Connection[Any]:
        """A connection that is closed when the test ends."""
        connection = psycopg.connect(self.dsn(user), autocommit=autocommit, **kwargs)
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()


class OwnServer(Server):
    """A private server that a test may stop, crash and start again."""

    def __init__(self, data_dir: Path | None = None, **kwargs: Any) -> None:
        super().__init__(data_dir, **{"version": PG_VERSION, "settings": DURABLE, **kwargs})
        self._databases: list[Database] = []

    def db(self, name: str | None = None, *, install: bool = True) -> Database:
        """A new database, with the logins and (unless told otherwise) the pack."""
        database = Database(name or f"own_{len(self._databases) + 1}", self)
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            create_logins(connection)
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(database.name)))
        self._databases.append(database)
        if install:
            install_for_tests(database.dsn())
        return database

    def close(self) -> None:
        for database in self._databases:
            database.close()
        super().close()


def create_logins(
    connection: psycopg.Connection[Any], passwords: Mapping[str, str] | None = None
) -> None:
    """The tests' login roles; refuses where a role of that name is somebody else's."""
    for name in LOGINS:
        found = connection.execute(
            "select shobj_description(oid, 'pg_authid') from pg_roles where rolname = %s", (name,)
        ).fetchone()
        role = sql.Identifier(name)
        if found is None:
            connection.execute(sql.SQL("create role {} login").format(role))
            connection.execute(sql.SQL("comment on role {} is {}").format(role, sql.Literal(_MARK)))
        elif found[0] != _MARK:
            raise RolesInTheWay(
                f"the tests need a login role {name!r} of their own, and this server has one: "
                "use a server without it"
            )
        if passwords is not None:
            connection.execute(
                sql.SQL("alter role {} password {}").format(role, sql.Literal(passwords[name]))
            )


def drop_logins(connection: psycopg.Connection[Any]) -> None:
    for name in LOGINS:
        connection.execute(sql.SQL("drop role if exists {}").format(sql.Identifier(name)))


def install_for_tests(dsn: str) -> None:
    """The pack as a superuser installs it, and what the logins may do."""
    with psycopg.connect(dsn) as connection:
        install.install(connection, app_role="app", service=True)
        install.install(connection, app_role="app2")
        connection.execute("grant create on schema public to owner")
