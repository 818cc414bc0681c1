"""A Django project for the tests: `configure()`, then `site(db)` for its tables in a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import django
import psycopg
from django.conf import settings
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from tests.support import Database

UNTRACKED = {"django_site_note"}


def configure() -> None:
    """Set Django up, once in a process."""
    if settings.configured:
        return
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": "none"}
    settings.configure(
        DATABASES={"default": database, "owner": {**database}},
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "django.contrib.sessions",
            "django.contrib.messages",
            "django.contrib.admin",
            "pyconcord.ext.django",
            "tests.django_site",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
            "pyconcord.ext.django.middleware.ConcordMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        STATIC_URL="/static/",
        CONCORD={"TENANT": "acme"},
        ROOT_URLCONF="tests.django_site.urls",
        SECRET_KEY="of the tests",
        ALLOWED_HOSTS=["*"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        TIME_ZONE="Europe/Vienna",
    )
    django.setup()


def point(alias: str, dsn: str) -> None:
    from django.db import connections

    connections[alias].close()
    found = conninfo_to_dict(dsn)
    where = {
        "NAME": found.get("dbname"),
        "USER": found.get("user"),
        "HOST": found.get("host"),
        "PORT": str(found.get("port") or ""),
        "PASSWORD": found.get("password") or "",
    }
    connections.settings[alias].update(where)
    connections[alias].settings_dict.update(where)


@contextmanager
def site(db: Database, *, track: bool = True) -> Iterator[psycopg.Connection[Any]]:
    """Make the site's tables; the answer is a raw writer who knows nothing of Concord."""
    from django.apps import apps
    from django.db import connections

    point("default", db.dsn("app"))
    point("owner", db.dsn("owner"))
    names = []
    with connections["owner"].schema_editor() as editor:
        for label in ("contenttypes", "auth", "sessions", "admin", "django_site"):
            for model in apps.get_app_config(label).get_models(
                include_auto_created=label not in ("auth", "admin")
            ):
                editor.create_model(model) if not model._meta.auto_created else None
                names.append(model._meta.db_table)
    with db.connect("owner") as owner:
        owner.execute(
            "grant select, insert, update, delete on all tables in schema public to app, app2"
        )
        owner.execute("grant usage on all sequences in schema public to app, app2")
        if track:
            track_all(owner)
    try:
        yield db.connect("app")
    finally:
        for alias in ("default", "owner"):
            connections[alias].close()


def track_all(owner: psycopg.Connection[Any]) -> None:
    from django.apps import apps

    for model in apps.get_app_config("django_site").get_models(include_auto_created=True):
        table = model._meta.db_table
        if table not in UNTRACKED:
            name = sql.Identifier(table).as_string(None)
            # Two saves of one row always differ in it.
            stamps = [f.column for f in model._meta.local_fields if getattr(f, "auto_now", False)]
            owner.execute("select concord.track(%s, ignore_fields => %s)", (name, stamps))
