"""Through a real PgBouncer in transaction mode, with fewer connections than clients: nobody ever
acts as another, and who does not say who acts is nobody.

Each client writes rows of its own, under its own name. Some of its transactions fail, and between
the clients go some that say nothing. In the end the log has to name the right author of each row.
"""

from __future__ import annotations

import asyncio
import pwd
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import URL, NullPool, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import pyconcord
from pyconcord import InvalidRequest, Unauthenticated
from pyconcord.embedded import scratch_dir
from pyconcord.ext import sqlalchemy as for_sqlalchemy
from pyconcord.receipts import Principal
from tests.django_site import configure, point, site
from tests.support import Database

configure()

from django.db import connections  # noqa: E402

from pyconcord.ext import django as for_django  # noqa: E402
from tests.django_site.models import Deck  # noqa: E402

pytestmark = pytest.mark.pgbouncer

CLIENTS, ROUNDS = 6, 12
SETTINGS = """
[databases]
* = host={host} port={port}
[pgbouncer]
unix_socket_dir = {directory}
listen_port = 6432
auth_type = trust
auth_file = {directory}/users
pool_mode = transaction
default_pool_size = {connections}
logfile = {directory}/log
"""


def _prepares() -> bool:
    """PgBouncer keeps its clients' prepared statements from 1.21 on."""
    found = shutil.which("pgbouncer")
    if found is None:
        return False
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"(\d+)\.(\d+)", told)
    return version is not None and (int(version[1]), int(version[2])) >= (1, 21)


PREPARED = {"prepares nothing": 0} | ({"prepares": 100} if _prepares() else {})


class Slides(DeclarativeBase):
    pass


class Slide(Slides):
    __tablename__ = "slides"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


@contextmanager
def pgbouncer(db: Database, *, connections: int, prepared: int) -> Iterator[str]:
    """A pooler before the test's server, and the DSN of the test's database through it."""
    where = conninfo_to_dict(db.dsn("app"))
    directory = scratch_dir("pgbouncer-")
    (directory / "users").write_text('"app" ""\n')
    (directory / "ini").write_text(
        SETTINGS.format(
            host=where["host"],
            port=where["port"],
            directory=directory,
            connections=connections,
        )
        + (f"max_prepared_statements = {prepared}\n" if prepared else "")
    )
    owner = directory.stat()
    command = [str(shutil.which("pgbouncer")), str(directory / "ini")]
    process = subprocess.Popen(
        command,
        user=owner.st_uid,
        group=pwd.getpwuid(owner.st_uid).pw_gid,
        extra_groups=[],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    dsn = make_conninfo(dbname=where["dbname"], user="app", host=str(directory), port="6432")
    try:
        _wait_for(dsn, process, directory)
        yield dsn
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory)


def _wait_for(dsn: str, process: subprocess.Popen[bytes], directory: Path) -> None:
    for _ in range(100):
        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError:
            assert process.poll() is None, (directory / "log").read_text()
            time.sleep(0.05)
        else:
            return
    raise AssertionError((directory / "log").read_text())


@pytest.fixture(params=list(PREPARED.values()), ids=list(PREPARED))
def prepared(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=[1, 2], ids=["one connection", "two connections"])
def pooled(db: Database, request: pytest.FixtureRequest, prepared: int) -> Iterator[str]:
    admin = db.connect()
    admin.execute(
        "create table slides (id int primary key, title text);"
        "insert into slides select i, '' from generate_series(0, 999) i;"
        "select concord.track('slides');"
        "grant all on slides to app"
    )
    admin.execute("truncate concord_internal.deltas")
    with pgbouncer(db, connections=request.param, prepared=prepared) as dsn:
        yield dsn


def threshold(prepared: int) -> int | None:
    """When psycopg prepares: at once, or never where the pooler can't keep it."""
    return 0 if prepared else None


class Trouble(Exception):
    """A transaction that fails on its way."""


def who(n: int) -> Principal:
    return Principal("acme", ("user", "agent", "system")[n % 3], f"client {n}")


def rows(n: int) -> Iterator[int]:
    """The rows that a client writes, one after the other."""
    return iter(range(n * 100, n * 100 + ROUNDS))


def together(client: Callable[[int], None], forgetful: Callable[[int], None]) -> None:
    """All clients at once, and between them some that say nothing."""
    with ThreadPoolExecutor(CLIENTS + 2) as pool:
        started = [pool.submit(client, n) for n in range(CLIENTS)]
        started += [pool.submit(forgetful, n) for n in range(CLIENTS, CLIENTS + 2)]
    for each in started:
        each.result()


def raw_writer(dsn: str, prepare: int | None) -> Callable[[int], None]:
    """Writes without a word about who acts; its commits are refused."""

    def write(n: int) -> None:
        request = '{"operations": [{"type": "update", "model": "slides", "id": 0, "data": {}}]}'
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=prepare) as connection:
            for id in rows(n):
                connection.execute("update slides set title = 'x' where id = %s", (id,))
                with pytest.raises(psycopg.Error) as refused:
                    connection.execute("select concord.commit(%s)", (request,))
                assert refused.value.sqlstate in ("KC012", "KC013")
                [[acting]] = connection.execute("select (concord.principal()).id").fetchall()
                assert acting is None

    return write


def check(db: Database, table: str = "slides", clients: int = CLIENTS) -> None:
    """Each row that was written has its writer's name in the log, once."""
    logged = db.connect().execute(
        "select key::int, kind::text, actor from concord_internal.deltas d"
        " join concord_internal.models m on m.id = d.model where m.name = %s and op = 'u'",
        (table,),
    )
    expected = [(id, who(n).kind[0], who(n).id) for n in range(clients) for id in rows(n)]
    expected += [(id, "s", "app") for n in range(clients, clients + 2) for id in rows(n)]
    assert sorted(logged) == sorted(expected)


def test_the_client(db: Database, pooled: str, prepared: int) -> None:
    prepare = threshold(prepared)

    def client(n: int) -> None:
        me = who(n)
        kwargs = {"prepare_threshold": prepare}
        with pyconcord.connect(pooled, tenant=me.tenant, max_size=1, kwargs=kwargs) as concord:
            named: dict[str, Any] = {me.kind: me.id}
            with concord.acting(**named) as actor:
                for id in rows(n):
                    slide = actor.read("slides", id)
                    with pytest.raises(InvalidRequest):
                        actor.update(slide, nothing="x")
                    actor.update(slide, title=me.id)

    together(client, raw_writer(pooled, prepare))
    check(db)


def test_the_async_client(db: Database, pooled: str, prepared: int) -> None:
    kwargs = {"prepare_threshold": threshold(prepared)}

    async def client(n: int) -> None:
        me = who(n)
        async with (
            pyconcord.aconnect(pooled, tenant=me.tenant, max_size=1, kwargs=kwargs) as concord,
            concord.acting(**{me.kind: me.id}) as actor,
        ):
            for id in rows(n):
                await actor.update(await actor.read("slides", id), title=me.id)

    async def all_of_them() -> None:
        await asyncio.gather(*(client(n) for n in range(CLIENTS)))

    asyncio.run(all_of_them())
    together(lambda n: None, raw_writer(pooled, threshold(prepared)))
    check(db)


ACTING: ContextVar[Principal | None] = ContextVar("acting", default=None)


def engine_arguments(dsn: str, prepared: int) -> dict[str, Any]:
    arguments: dict[str, Any] = dict(conninfo_to_dict(dsn))
    return {
        "connect_args": {**arguments, "prepare_threshold": threshold(prepared)},
        "poolclass": NullPool,
    }


def test_sqlalchemy(db: Database, pooled: str, prepared: int) -> None:
    engine = create_engine(URL.create("postgresql+psycopg"), **engine_arguments(pooled, prepared))
    for_sqlalchemy.install(engine, identity=ACTING.get)

    def client(n: int) -> None:
        dice = random.Random(n)
        ACTING.set(who(n))
        with Session(engine) as session:
            for id in rows(n):
                with for_sqlalchemy.reading(session) as read:
                    session.get_one(Slide, id)
                with pytest.raises(Trouble), for_sqlalchemy.unit(session, read_at=read.token):
                    session.get_one(Slide, id).title = "undone"
                    session.flush()
                    raise Trouble
                if dice.random() < 0.5:
                    with for_sqlalchemy.unit(session, read_at=read.token):
                        session.get_one(Slide, id).title = who(n).id
                else:
                    session.get_one(Slide, id).title = who(n).id
                    session.commit()

    def forgetful(n: int) -> None:
        with Session(engine) as session:
            for id in rows(n):
                session.get_one(Slide, id).title = "x"
                session.commit()
                with pytest.raises(Unauthenticated), for_sqlalchemy.unit(session):
                    session.get_one(Slide, id).title = "y"

    together(client, forgetful)
    check(db)


def test_sqlalchemy_async(db: Database, pooled: str, prepared: int) -> None:
    engine = create_async_engine(
        URL.create("postgresql+psycopg_async"), **engine_arguments(pooled, prepared)
    )
    for_sqlalchemy.install(engine, identity=ACTING.get)

    async def client(n: int) -> None:
        ACTING.set(who(n) if n < CLIENTS else None)
        async with AsyncSession(engine) as session:
            for id in rows(n):
                if n < CLIENTS:
                    async with for_sqlalchemy.reading(session) as read:
                        await session.get_one(Slide, id)
                    async with for_sqlalchemy.unit(session, read_at=read.token):
                        (await session.get_one(Slide, id)).title = who(n).id
                else:
                    (await session.get_one(Slide, id)).title = "x"
                    await session.commit()

    async def all_of_them() -> None:
        await asyncio.gather(*(client(n) for n in range(CLIENTS + 2)))

    asyncio.run(all_of_them())
    check(db)


@pytest.mark.parametrize("connections_of_pool", [1, 2])
def test_django(db: Database, prepared: int, connections_of_pool: int) -> None:
    with site(db):
        db.connect().execute(
            "insert into django_site_deck (id, name) select i, '' from generate_series(0, 999) i"
        )
        with pgbouncer(db, connections=connections_of_pool, prepared=prepared) as dsn:
            point("default", dsn)
            options = connections.settings["default"].setdefault("OPTIONS", {})
            options["prepare_threshold"] = threshold(prepared)
            try:
                together(django_client, django_forgetful)
            finally:
                del options["prepare_threshold"]
                connections["default"].close()
        check(db, "django_site_deck")


def django_client(n: int) -> None:
    me = who(n)
    dice = random.Random(n)
    named: dict[str, Any] = {me.kind: me.id}
    try:
        for id in rows(n):
            with for_django.acting(tenant=me.tenant, **named):
                with for_django.reading() as read:
                    deck = Deck.objects.get(pk=id)
                with pytest.raises(Trouble), for_django.unit(read_at=read.token):
                    deck.name = "undone"
                    deck.save()
                    raise Trouble
                deck.name = me.id
                if dice.random() < 0.5:
                    with for_django.unit(read_at=read.token):
                        deck.save()
                else:
                    deck.save()
    finally:
        connections["default"].close()


def django_forgetful(n: int) -> None:
    try:
        for id in rows(n):
            Deck.objects.filter(pk=id).update(name="x")
            with pytest.raises(Unauthenticated), for_django.unit():
                Deck(pk=id, name="y").save()
    finally:
        connections["default"].close()
