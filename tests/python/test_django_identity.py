"""Who acts, however Django comes to a transaction, and that nobody does afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import django
import psycopg
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from psycopg.conninfo import make_conninfo

from pyconcord import Forbidden, InvalidRequest, Principal
from pyconcord.ext import django as concord
from tests.django_site import configure, point, site
from tests.relay import Relay
from tests.support import Database

configure()

from django.contrib.auth.models import User  # noqa: E402
from django.core.exceptions import ImproperlyConfigured  # noqa: E402
from django.db import IntegrityError, connection, connections, transaction  # noqa: E402
from django.test import AsyncClient, Client, override_settings  # noqa: E402
from django.test.utils import CaptureQueriesContext  # noqa: E402

from tests.django_site.models import Slide, Tag  # noqa: E402
from tests.django_site.urls import whoami  # noqa: E402

Raw = psycopg.Connection[Any]


@pytest.fixture
def raw(db: Database) -> Iterator[Raw]:
    with site(db) as connection:
        yield connection


def authors(raw: Raw) -> list[Any]:
    found = raw.execute("select actor, kind from concord.changes(null) where op <> 'checkpoint'")
    return found.fetchall()


@pytest.fixture
def relay(raw: Raw, db: Database, tmp_path: Path) -> Relay:
    relay = Relay(tmp_path, raw.info)
    point("default", make_conninfo(db.dsn("app"), host=str(tmp_path), port=5432))
    return relay


# Where it is said


def test_it_holds_in_a_transaction_and_no_longer(raw: Raw) -> None:
    with concord.acting(agent="writer"):
        with transaction.atomic():
            assert whoami() == "acme:agent:writer"
            Tag.objects.create(name="a")
        assert whoami() == "acme:agent:writer"
    with transaction.atomic():
        assert whoami() == ""
    assert whoami() == ""
    assert authors(raw) == [("writer", "agent")]


def test_it_costs_no_round_trip(relay: Relay) -> None:
    def alone() -> None:
        assert whoami() == who

    def in_atomic() -> None:
        with transaction.atomic():
            assert whoami() == who

    who = ""
    connection.ensure_connection()
    assert (relay.count(alone), relay.count(in_atomic)) == (1, 3)
    with concord.acting(user=1):
        who = "acme:user:1"
        assert (relay.count(alone), relay.count(in_atomic)) == (1, 3)


def test_statements_outside_atomic_carry_it(raw: Raw) -> None:
    with concord.acting(user="ann"):
        tag = Tag.objects.create(name="a")
        tag.name = "b"
        tag.save()
        Tag.objects.update(name="c")
        with connection.cursor() as cursor:
            cursor.execute("/* two */ (select 1)")
            cursor.executemany(
                "insert into django_site_tag (name) values (%s)", [("many",), ("more",)]
            )
            assert cursor.rowcount == 2
            cursor.execute(
                "update django_site_tag set name = 'x' where name = 'c';"
                "update django_site_tag set name = 'y' where name = 'many'"
            )
    assert set(authors(raw)) == {("ann", "user")}
    assert len(authors(raw)) == 7
    assert set(Tag.objects.values_list("name", flat=True)) == {"x", "y", "more"}


def test_server_side_cursors(raw: Raw) -> None:
    Tag.objects.bulk_create([Tag(name=str(n)) for n in range(30)])
    with concord.acting(user="ann"):
        names = [each.name for each in Tag.objects.order_by("pk").iterator(chunk_size=7)]
        with transaction.atomic():
            assert len(list(Tag.objects.iterator(chunk_size=7))) == 30
        seen = Tag.objects.extra(select={"who": "(select id from concord.principal())"})
        assert {each.who for each in seen.iterator(chunk_size=7)} == {"ann"}
    assert names == [str(n) for n in range(30)]


def test_what_cannot_stand_in_a_transaction_runs_alone(raw: Raw) -> None:
    with concord.acting(user="ann"), connection.cursor() as cursor:
        cursor.execute("vacuum django_site_tag")
        cursor.execute("begin")
        cursor.execute("select 1")
        cursor.execute("rollback")


def test_an_error_outside_atomic_is_djangos_and_ends_there(raw: Raw) -> None:
    with concord.acting(user="ann"):
        Tag.objects.create(name="a")
        with pytest.raises(IntegrityError):
            Tag.objects.create(name="a")
        with pytest.raises(django.db.ProgrammingError), connection.cursor() as cursor:
            cursor.execute("select 1; select nonsense")
        assert Tag.objects.count() == 1
    assert whoami() == ""


# Who it is


def test_somebody_else_in_the_same_transaction(raw: Raw) -> None:
    with concord.acting(user="ann"), transaction.atomic():
        Tag.objects.create(name="a")
        with concord.acting(agent="bot", on_behalf_of="ann"):
            Tag.objects.create(name="b")
        Tag.objects.create(name="c")
    with transaction.atomic():
        with concord.acting(user="ben"):
            Tag.objects.create(name="d")
        assert whoami() == ""
    assert [actor for actor, _ in authors(raw)] == ["ann", "bot", "ann", "ben"]


def test_a_savepoint_takes_it_back(raw: Raw) -> None:
    with transaction.atomic():
        assert whoami() == ""
        with suppress(ZeroDivisionError), transaction.atomic(), concord.acting(user="ann"):
            assert whoami() == "acme:user:ann"
            raise ZeroDivisionError
        with concord.acting(user="ann"):
            assert whoami() == "acme:user:ann"
        with suppress(IntegrityError), transaction.atomic(), concord.acting(user="ben"):
            Tag.objects.create(name=None)
        assert whoami() == ""
        savepoint = transaction.savepoint()
        with concord.acting(user="ben"):
            assert whoami() == "acme:user:ben"
            transaction.savepoint_rollback(savepoint)
            assert whoami() == "acme:user:ben"


def test_who_may_be_said(raw: Raw) -> None:
    user = User.objects.create(username="ann")
    with concord.acting(user=user, tenant="other"):
        assert whoami() == f"other:user:{user.pk}"
    for wrong in ({}, {"user": 1, "agent": 2}, {"user": ""}):
        with pytest.raises(InvalidRequest):
            concord.acting(**wrong)
    with override_settings(CONCORD={}), pytest.raises(InvalidRequest, match="tenant"):
        concord.acting(user=1)


def looking(execute: Any, *args: Any) -> Any:
    execute(*args)
    return args[-1]["cursor"].fetchall()


def test_a_login_that_may_not_say_it_is_told(db: Database, raw: Raw) -> None:
    point("default", db.dsn("app2"))
    with concord.acting(user="ann"):
        with pytest.raises(Forbidden, match=r"trust_login.*app2"), transaction.atomic():
            Tag.objects.count()
        with pytest.raises(Forbidden, match=r"trust_login.*app2"):
            Tag.objects.count()
        # Somebody's wrapper that looks at the answer before the frame is closed.
        with connection.execute_wrapper(looking), pytest.raises(Forbidden, match="trust_login"):
            Tag.objects.count()
    assert Tag.objects.count() == 0


def test_only_the_databases_of_the_setting(db: Database, raw: Raw) -> None:
    point("default", db.dsn("app2"))
    del connections["default"]
    with override_settings(CONCORD={"DATABASES": ["owner"]}), concord.acting(user=1, tenant="t"):
        assert Tag.objects.count() == 0
    del connections["default"]


def test_it_begins_the_transaction_that_was_asked_for(raw: Raw) -> None:
    with connection.cursor() as cursor, concord.acting(user="ann"):
        connection.connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.connection.read_only = connection.connection.deferrable = True
        with transaction.atomic():
            cursor.execute(
                "select current_setting('transaction_isolation'), "
                "current_setting('transaction_read_only'), "
                "current_setting('transaction_deferrable')"
            )
            assert cursor.fetchone() == ("repeatable read", "on", "on")
        connection.close()


def test_it_survives_the_wrappers_of_others(raw: Raw) -> None:
    del connections["default"]
    with connection.execute_wrapper(lambda execute, *args: execute(*args)):
        Tag.objects.count()
    with concord.acting(user="ann"):
        assert whoami() == "acme:user:ann"


def test_a_login_without_grants_or_a_database_without_the_pack(db: Database, raw: Raw) -> None:
    point("default", db.dsn("plain"))
    with pytest.raises(Forbidden, match="grant concord_app to plain"), concord.reading():
        pass
    point("default", db.server.dsn("postgres", "app"))
    for block in concord.reading, concord.unit:
        with pytest.raises(django.db.ProgrammingError, match="does not exist"), block():
            pass


# Connections that are used again


def test_a_kept_connection_says_nothing_by_itself(raw: Raw) -> None:
    with concord.acting(user="ann"):
        Tag.objects.create(name="a")
        pid = connection.connection.info.backend_pid
    Tag.objects.create(name="b")
    assert connection.connection.info.backend_pid == pid
    left = connection.connection.execute("select current_setting('concord.acting', true)")
    assert left.fetchone() == ("",)
    assert [actor for actor, _ in authors(raw)] == ["ann", "app"]
    with concord.acting(user="ben"):
        connection.close()
        Tag.objects.create(name="c")
    assert authors(raw)[-1] == ("ben", "user")


if django.VERSION >= (5, 1):

    def test_a_pooled_connection_says_nothing_by_itself(raw: Raw) -> None:
        settings_dict = copy.deepcopy(connection.settings_dict)
        settings_dict["OPTIONS"] = {"pool": {"min_size": 1, "max_size": 1}}
        connections.settings["pooled"] = settings_dict
        first, second = (type(connections["default"])(settings_dict, "pooled") for _ in range(2))

        def who(pooled: Any) -> tuple[Any, ...]:
            with pooled.cursor() as cursor:
                cursor.execute("select (concord.principal()).id, pg_backend_pid()")
                found: tuple[Any, ...] = cursor.fetchone()
            pooled.close()
            return found

        try:
            with concord.acting(user="ann"):
                ann, pid = who(first)
            assert (ann, who(second)) == ("ann", (None, pid))
            with concord.acting(user="ben"):
                assert who(second) == ("ben", pid)
            assert who(first) == (None, pid)
        finally:
            first.close_pool()
            del connections.settings["pooled"]


# Requests


@pytest.fixture
def ann(raw: Raw) -> Any:
    return User.objects.create_user("ann")


def test_a_request_acts_as_its_user(ann: Any) -> None:
    client = Client()
    assert client.get("/who").content == b""
    client.force_login(ann)
    assert client.get("/who").content.decode() == f"acme:user:{ann.pk}"
    with CaptureQueriesContext(connection) as queries:
        client.get("/none")
    assert len(queries) == 0
    assert whoami() == ""


def test_requests_in_transactions(ann: Any) -> None:
    client = Client()
    client.force_login(ann)
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    try:
        assert client.get("/who").content.decode() == f"acme:user:{ann.pk}"
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False


def by_header(request: Any) -> Principal | None:
    name = request.headers.get("agent")
    return Principal("lab", "agent", name) if name else None


def house(request: Any) -> str:
    return "house-" + str(request.headers["house"])


def test_the_settings_say_who(ann: Any) -> None:
    client = Client()
    with override_settings(CONCORD={"PRINCIPAL": f"{__name__}.by_header"}):
        assert client.get("/who", HTTP_AGENT="r2").content == b"lab:agent:r2"
        assert client.get("/who").content == b""
    client.force_login(ann)
    with override_settings(CONCORD={"TENANT": "acme.example"}):
        assert client.get("/who").content.decode() == f"acme.example:user:{ann.pk}"
        with concord.acting(agent="r2"):
            assert whoami() == "acme.example:agent:r2"
    with override_settings(CONCORD={"TENANT_OF": house}):
        content = client.get("/who", HTTP_HOUSE="7").content.decode()
        assert content == f"house-7:user:{ann.pk}"
    with override_settings(CONCORD={}), pytest.raises(ImproperlyConfigured, match="TENANT"):
        client.get("/who")


def test_async_views_read_write_and_act(raw: Raw, ann: Any) -> None:
    slide = Slide.objects.create(title="old")

    async def visit() -> list[str]:
        client = AsyncClient()
        await sync_to_async(client.force_login)(ann)
        answers = [(await client.get("/who")).content.decode()]
        read_at, title = (await client.get(f"/edit/{slide.pk}")).content.decode().split()
        answers.append(title)
        for new in ("mine", "again"):
            sent = {"read_at": read_at, "title": new}
            answers.append((await client.post(f"/edit/{slide.pk}", sent)).content.decode())
        return answers

    who, *rest = async_to_sync(visit)()
    assert who == f"acme:user:{ann.pk}"
    assert rest == ["old", "1 []", "0 ['mine']"]
    assert (str(ann.pk), "user") in authors(raw)
    assert not connection.in_atomic_block
