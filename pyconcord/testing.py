"""For the tests of an application: a database with the pack, and somebody who interferes.

    pytest_plugins = ["pyconcord.testing"]         # in conftest.py

    def test_a_late_save(interfere):
        token = …                                  # the application reads
        interfere("update slides set title = 'theirs' where id = 7")
        …                                          # the application saves, and is told

Nothing is ever stale inside one transaction: a transaction's own changes never are, and what others
commit is what makes a write stale. A test that runs within one outer transaction, to be rolled back
in the end, can't have conflicts. So `interfere` writes from a connection of its own, and commits.

The database is the one that the fixture `concord_dsn` names. By default that is a new one for each
test, with the pack in it, on an embedded server (or on the server of DATABASE_URL); an application
that makes its own database overrides the fixture.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from . import install
from ._interfere import Interfere, Interfered
from .embedded import Server

__all__ = ["Interfere", "Interfered"]


@pytest.fixture(scope="session")
def concord_server() -> Iterator[str]:
    """Where to make databases, as a superuser: DATABASE_URL, else an embedded server."""
    url = os.environ.get("DATABASE_URL")
    if url:
        yield url
        return
    with Server() as server:
        yield server.dsn()


@pytest.fixture
def concord_dsn(concord_server: str) -> Iterator[str]:
    """A new database with the pack, dropped in the end. Override it to name one of your own."""
    name = f"concord_{secrets.token_hex(6)}"
    database = sql.Identifier(name)
    with psycopg.connect(concord_server, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(database))
    dsn = make_conninfo(concord_server, dbname=name)
    try:
        with psycopg.connect(dsn, autocommit=True) as connection:
            install.install(connection)
        yield dsn
    finally:
        with psycopg.connect(concord_server, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(database))


@pytest.fixture
def interfere(concord_dsn: str) -> Interfere:
    """Somebody else, who writes and commits."""
    return Interfere(concord_dsn)
