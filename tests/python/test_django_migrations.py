"""Migrations by Django itself: the pack, tracking, and what a later change of the schema needs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.django_site import configure, point
from tests.support import Database

configure()

from django.core.management import call_command  # noqa: E402
from django.db import DatabaseError, connections, models  # noqa: E402
from django.db.migrations import AddField, CreateModel, Migration, RemoveField  # noqa: E402
from django.db.migrations.state import ProjectState  # noqa: E402
from django.db.migrations.writer import MigrationWriter  # noqa: E402

from pyconcord.ext.django.operations import Install, Track, Untrack, refresh  # noqa: E402

Raw = psycopg.Connection[Any]
CREATE = CreateModel("Thing", [("id", models.IntegerField(primary_key=True))])
TRACK = Track("Thing", groups=["kind:{id}"], on_stale={"agent": "notify"})
TITLE = AddField("Thing", "title", models.TextField(null=True))


@pytest.fixture
def raw(db: Database) -> Iterator[Raw]:
    """A database without the pack, which Django reaches as its owner."""
    admin = db.connect()
    admin.execute("drop schema concord, concord_internal cascade")
    point("default", db.dsn())
    yield admin
    connections.close_all()


class History:
    """Migrations of one application, applied and unapplied as the executor does it."""

    def __init__(self) -> None:
        self.states = [ProjectState()]
        self.done: list[Migration] = []

    def forwards(self, *operations: Any) -> None:
        migration = Migration(f"{len(self.done):04}", "django_things")
        migration.operations = list(operations)
        with connections["default"].schema_editor(atomic=True) as editor:
            self.states.append(migration.apply(self.states[-1].clone(), editor))
        self.done.append(migration)

    def backwards(self) -> None:
        self.states.pop()
        with connections["default"].schema_editor(atomic=True) as editor:
            self.done.pop().unapply(self.states[-1].clone(), editor)


def tracked(raw: Raw) -> list[Any]:
    return raw.execute("select name, groups, on_stale from concord.models").fetchall()


def findings(raw: Raw) -> list[Any]:
    return raw.execute("select code from concord.verify()").fetchall()


THING = ("django_things_thing", ["kind:{id}"], {"agent": "notify"})


def test_the_applications_own_migration_installs_the_pack(raw: Raw) -> None:
    call_command("migrate", "concord", verbosity=0)
    assert findings(raw) == []
    call_command("migrate", "concord", "zero", verbosity=0)
    assert raw.execute("select to_regnamespace('concord')").fetchone() == (None,)


def test_the_login_of_the_application(raw: Raw, settings_of_concord: dict[str, Any]) -> None:
    settings_of_concord["APP_ROLE"] = "app"
    call_command("migrate", "concord", verbosity=0)
    [[trusted]] = raw.execute("select count(*) from concord_internal.trusted_logins").fetchall()
    assert trusted == 1


@pytest.fixture
def settings_of_concord() -> Iterator[dict[str, Any]]:
    from django.conf import settings

    before = dict(settings.CONCORD)
    yield settings.CONCORD
    settings.CONCORD.clear()
    settings.CONCORD.update(before)


def test_tracked_and_untracked_and_back(raw: Raw) -> None:
    history = History()
    history.forwards(Install(), CREATE, TRACK)
    assert tracked(raw) == [THING]
    history.forwards(Untrack("Thing", **TRACK.options))
    assert tracked(raw) == []
    history.backwards()
    assert tracked(raw) == [THING]
    history.backwards()
    left = "select to_regnamespace('concord'), to_regclass('django_things_thing')"
    assert raw.execute(left).fetchone() == (None, None)


def test_what_every_save_changes_is_ignored(raw: Raw) -> None:
    fields = [
        ("id", models.IntegerField(primary_key=True)),
        ("made", models.DateTimeField(auto_now_add=True)),
        ("saved", models.DateTimeField(auto_now=True, db_column="at")),
        ("seen", models.DateTimeField(null=True)),
    ]
    history = History()
    history.forwards(Install(), CreateModel("Thing", fields), Track("Thing"))
    ignored = "select ignore_fields from concord.models"
    assert raw.execute(ignored).fetchall() == [(["at"],)]
    history.forwards(Track("Thing", ignore_fields=["seen"]))
    assert raw.execute(ignored).fetchall() == [(["seen"],)]


def test_a_later_change_is_refreshed_when_the_migrations_are_over(raw: Raw) -> None:
    history = History()
    history.forwards(Install(), CREATE, TRACK)
    history.forwards(TITLE)
    assert findings(raw) != []
    refresh(None, "default", plan=[object()])
    assert findings(raw) == []
    history.forwards(RemoveField("Thing", "title"))
    refresh(None, "default", plan=[])  # no migration was applied
    assert findings(raw) != []


def test_a_failed_migration_leaves_no_trace(raw: Raw) -> None:
    history = History()
    wrong = Track("Thing", groups=["kind:{nothing}"])
    with pytest.raises(DatabaseError, match="nothing"):
        history.forwards(Install(), CREATE, wrong)
    assert raw.execute("select to_regnamespace('concord')").fetchone() == (None,)


def test_written_down(raw: Raw) -> None:
    """What sqlmigrate writes does the same."""
    out = io.StringIO()
    call_command("sqlmigrate", "concord", "0001", stdout=out)
    raw.execute(out.getvalue().encode())
    assert findings(raw) == []
    out = io.StringIO()
    call_command("sqlmigrate", "concord", "0001", backwards=True, stdout=out)
    raw.execute(out.getvalue().encode())
    assert raw.execute("select to_regnamespace('concord')").fetchone() == (None,)


def test_nothing_to_make(raw: Raw) -> None:
    call_command("migrate", "concord", verbosity=0)
    call_command("makemigrations", "concord", check=True, dry_run=True, verbosity=0)


def test_a_migration_that_is_written_by_the_writer(raw: Raw) -> None:
    migration = Migration("0002_x", "django_things")
    migration.operations = [TRACK, Untrack("Thing"), Install()]
    text = MigrationWriter(migration).as_string()
    made: dict[str, Any] = {}
    exec(text, made)
    again = made["Migration"].operations
    assert [each.deconstruct() for each in again] == [
        each.deconstruct() for each in migration.operations
    ]
