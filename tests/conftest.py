"""The fixtures: one server for the session, and for each test a database with the pack in it.

The server is an embedded one (version PYCONCORD_PG, 18 by default) or the one DATABASE_URL names.
The pack is installed once, into a template database; pytest-postgresql clones that for each test.
"""

from __future__ import annotations

import secrets
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from pytest_postgresql import factories

from pyconcord.embedded import Server
from tests.support import (
    DATABASE_URL,
    FAST,
    LOGINS,
    PG_VERSION,
    AnyServer,
    Database,
    ExternalServer,
    OwnServer,
    create_logins,
    drop_logins,
    install_for_tests,
)


def pytest_configure() -> None:
    """SIGTERM ends a run as Ctrl-C does: the fixtures are torn down, and their servers stop."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", metavar="DIR", help="where to put pictures of the pages")


def pytest_report_header() -> list[str]:
    server = "DATABASE_URL" if DATABASE_URL else f"embedded PostgreSQL {PG_VERSION}"
    left = [f"{mark}: not run: {why}" for mark, why in _not_here().items()]
    return [f"server: {server}", *left]


def _not_here() -> dict[str, str]:
    """The marks of tests that can't run here, and why."""
    left = {}
    if DATABASE_URL is not None:
        left["crash"] = "a server of the user's own is not ours to crash"
    if DATABASE_URL is not None:
        left["pooler"] = "it has to reach the server by its socket"
    elif shutil.which("pgbouncer") is None:
        left["pgbouncer"] = "there is no pgbouncer on PATH"
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        left["browser"] = "there is no chromium with its chromedriver on PATH"
    return left


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marks = _not_here()
    left = [item for item in items if any(item.get_closest_marker(mark) for mark in marks)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Iterator[AnyServer]:
    """The running server, with the tests' logins."""
    if DATABASE_URL is not None:
        yield from _external(pytestconfig, DATABASE_URL)
        return
    with Server(version=PG_VERSION, settings=FAST) as embedded:
        with psycopg.connect(embedded.dsn(), autocommit=True) as connection:
            create_logins(connection)
            _tell_pytest_postgresql(pytestconfig, connection)
        yield embedded


def _external(config: pytest.Config, url: str) -> Iterator[ExternalServer]:
    passwords = {name: secrets.token_hex(16) for name in LOGINS}
    with psycopg.connect(url, autocommit=True) as connection:
        before = _role_names(connection)
        create_logins(connection, passwords)
        _tell_pytest_postgresql(config, connection)
        version = connection.info.server_version // 10000
        superuser = connection.info.user
    yield ExternalServer(url, superuser, version, passwords)
    with psycopg.connect(url, autocommit=True) as connection:
        drop_logins(connection)
        for role in ("concord_app", "concord_service", "concord_owner"):
            if role not in before:
                connection.execute(f"drop role if exists {role}".encode())


def _role_names(connection: psycopg.Connection[Any]) -> set[str]:
    return {name for (name,) in connection.execute("select rolname from pg_roles")}


def _tell_pytest_postgresql(config: pytest.Config, connection: psycopg.Connection[Any]) -> None:
    """Its factories read where the server is from these options, when their fixtures are set up."""
    info = connection.info
    config.option.postgresql_host = info.host
    config.option.postgresql_port = str(info.port)
    config.option.postgresql_user = info.user
    config.option.postgresql_password = info.password or None
    # Two runs against one server must not meet.
    config.option.postgresql_dbname = f"concord_test_{secrets.token_hex(4)}"


def _load_template(**where: Any) -> None:
    parameters = ("host", "port", "user", "dbname", "password")
    install_for_tests(
        psycopg.conninfo.make_conninfo(**{k: where[k] for k in parameters if where.get(k)})
    )


concord_template = factories.postgresql_noproc(load=[_load_template])
concord_clone = factories.postgresql("concord_template")


@pytest.fixture
def db(server: AnyServer, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A fresh database with the pack."""
    clone: psycopg.Connection[Any] = request.getfixturevalue("concord_clone")
    database = Database(clone.info.dbname, server)
    clone.close()
    yield database
    database.close()


@pytest.fixture
def own_server() -> Iterator[OwnServer]:
    """A running server that nobody else uses."""
    with OwnServer() as running:
        yield running
