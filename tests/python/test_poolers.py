"""Through poolers in transaction mode, with fewer connections than clients: nobody ever acts as
another, and who does not say who acts is nobody. A real PgBouncer is one of them; the other shares
one connection (`tests/shared_connection.py`), and keeps prepared statements on every machine.

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
from dataclasses import dataclass
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
from tests.shared_connection import shared_connection
from tests.support import Database

configure()

from django.db import connections  # noqa: E402

from pyconcord.ext import django as for_django  # noqa: E402
from tests.django_site.models import Deck  # noqa: E402

pytestmark = pytest.mark.pooler

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
    """PgBouncer keeps its clients' prepared statements from 1.21 on, and from 1.22 on also those of
    psycopg, which sends DEALLOCATE ALL.
    """
    found = shutil.which("pgbouncer")
    if found is None:
        return False
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"(\d+)\.(\d+)", told)
    return version is not None and (int(version[1]), int(version[2])) >= (1, 22)


@dataclass(frozen=True)
class Way:
    """To the server."""

    pooler: str
    connections: int
    prepares: bool

    @property
    def threshold(self) -> int | None:
        """When psycopg prepares: at once, or never where the pooler can't keep it."""
        return 0 if self.prepares else None

    def __str__(self) -> str:
        how = "prepared" if self.prepares else "not prepared"
        return f"{self.pooler}, {self.connections}, {how}"


SHARED = [Way("shared", 1, prepares) for prepares in (False, True)]
PGBOUNCER = [
    Way("pgbouncer", connections, prepares)
    for connections in (1, 2)
    for prepares in ((False, True) if _prepares() else (False,))
]


class Slides(DeclarativeBase):
    pass


class Slide(Slides):
    __tablename__ = "slides"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


@contextmanager
def pgbouncer(db: Database, *, connections: int, prepared: int) -> Iterator[str]:
    """The DSN of the test's database through a PgBouncer."""
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


@contextmanager
def through(way: Way, db: Database) -> Iterator[str]:
    if way.pooler == "pgbouncer":
        prepared = 100 if way.prepares else 0
        with pgbouncer(db, connections=way.connections, prepared=prepared) as dsn:
            yield dsn
        return
    where = conninfo_to_dict(db.dsn("app"))
    directory = scratch_dir("pooler-")
    try:
        with shared_connection(directory, **where) as host:
            yield make_conninfo(dbname=where["dbname"], user="app", host=host, port="5432")
    finally:
        shutil.rmtree(directory)


@pytest.fixture(
    params=[*SHARED, *(pytest.param(way, marks=pytest.mark.pgbouncer) for way in PGBOUNCER)],
    ids=str,
)
def way(request: pytest.FixtureRequest) -> Way:
    assert isinstance(request.param, Way)
    return request.param


@pytest.fixture
def pooled(db: Database, way: Way) -> Iterator[str]:
    admin = db.connect()
    admin.execute(
        "create table slides (id int primary key, title text);"
        "insert into slides select i, '' from generate_series(0, 999) i;"
        "select concord.track('slides');"
        "grant all on slides to app"
    )
    admin.execute("truncate concord_internal.deltas")
    with through(way, db) as dsn:
        yield dsn


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


def test_the_client(db: Database, pooled: str, way: Way) -> None:
    prepare = way.threshold

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


def test_the_async_client(db: Database, pooled: str, way: Way) -> None:
    kwargs = {"prepare_threshold": way.threshold}

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
    together(lambda n: None, raw_writer(pooled, way.threshold))
    check(db)


ACTING: ContextVar[Principal | None] = ContextVar("acting", default=None)


def engine_arguments(dsn: str, way: Way) -> dict[str, Any]:
    arguments: dict[str, Any] = dict(conninfo_to_dict(dsn))
    return {
        "connect_args": {**arguments, "prepare_threshold": way.threshold},
        "poolclass": NullPool,
    }


def test_sqlalchemy(db: Database, pooled: str, way: Way) -> None:
    engine = create_engine(URL.create("postgresql+psycopg"), **engine_arguments(pooled, way))
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


def test_sqlalchemy_async(db: Database, pooled: str, way: Way) -> None:
    engine = create_async_engine(
        URL.create("postgresql+psycopg_async"), **engine_arguments(pooled, way)
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


def test_django(db: Database, way: Way) -> None:
    with site(db):
        db.connect().execute(
            "insert into django_site_deck (id, name) select i, '' from generate_series(0, 999) i"
        )
        with through(way, db) as dsn:
            point("default", dsn)
            options = connections.settings["default"].setdefault("OPTIONS", {})
            options["prepare_threshold"] = way.threshold
            options["server_side_binding"] = way.prepares
            try:
                together(django_client, django_forgetful)
            finally:
                del options["prepare_threshold"], options["server_side_binding"]
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


# What the tests above would see, and what the pooler of their own does


@pytest.mark.parametrize("way", SHARED[:1], ids=str)
def test_an_identity_that_stays_would_be_seen(pooled: str) -> None:
    """The next client has the same connection: what one leaves there is another's."""
    asks = "select (concord.principal()).id"
    with psycopg.connect(pooled, autocommit=True) as leaky:
        leaky.execute("select concord.act_as('acme', 'user', 'leaky', is_local => false)")
        with psycopg.connect(pooled, autocommit=True) as other:
            assert other.execute(asks).fetchone() == ("leaky",)
        leaky.execute("select concord.act_as('acme', 'user', 'leaky', is_local => true)")


@pytest.mark.parametrize("way", SHARED, ids=str)
def test_who_goes_in_the_middle_is_rolled_back(db: Database, pooled: str, way: Way) -> None:
    gone = psycopg.connect(pooled, prepare_threshold=way.threshold)
    gone.execute("select concord.act_as('acme', 'user', 'gone')")
    gone.execute("update slides set title = 'gone' where id = 1")
    gone.pgconn.finish()  # without a word
    with psycopg.connect(pooled, prepare_threshold=way.threshold) as after:
        assert after.execute("select title from slides where id = 1").fetchone() == ("",)
        assert after.execute("select (concord.principal()).id").fetchone() == (None,)


@pytest.mark.parametrize("way", SHARED[1:], ids=str)
def test_each_client_has_its_own_statements(pooled: str, way: Way) -> None:
    with (
        psycopg.connect(pooled, autocommit=True, prepare_threshold=0) as one,
        psycopg.connect(pooled, autocommit=True, prepare_threshold=0) as other,
    ):
        for _ in range(3):
            assert one.execute("select 'one'").fetchone() == ("one",)
            assert other.execute("select 'other'").fetchone() == ("other",)
        names = one.execute("select count(*) from pg_prepared_statements").fetchone()
        assert names == (3,)
