"""What a unit costs an application: the same edits through the ORM alone, and in a unit.

Both load the objects, change one field of each, save and commit; the table is tracked for both. The
plain side says nothing about who acts, the unit does. What is measured is the application's time,
ORM and network included, in this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from bench.measure import LOGIN, WARM, Bench, Database, Result, Run, Side, ratios, times
from bench.rows import ROWS, make_slides, row
from pyconcord.receipts import Principal

__all__ = ["ROWS"]

WHO = Principal("acme", "user", "ana")

Edit = Callable[[str | None, range, str], None]
"""`edit(token, ids, title)`; without a token plainly."""


@dataclass
class Application:
    """An application with an ORM, on one connection of its own."""

    name: str
    edit: Edit
    close: Callable[[], object]


@row("orm-one")
def orm_one(bench: Bench) -> Iterator[Result]:
    """A unit that loads, changes and saves one object, against the same without a unit."""
    yield from _edits(bench, "orm-one", "one object", 1, 1.5)


@row("orm-many")
def orm_many(bench: Bench) -> Iterator[Result]:
    """The same with 100 objects, which SQLAlchemy flushes at once and Django saves one by one."""
    yield from _edits(bench, "orm-many", "100 objects", 100, 1.2)


def _edits(bench: Bench, name: str, what: str, count: int, goal: float) -> Iterator[Result]:
    with bench.database(name.replace("-", "_")) as db:
        make_slides(db, "slides", track="detail => 'before'")
        for make in (_sqlalchemy, _django):
            application = make(db)
            try:
                runs = bench.take_turns(
                    {
                        "plain": _side(db, application.edit, count, guarded=False),
                        "unit": _side(db, application.edit, count, guarded=True),
                    }
                )
            finally:
                application.close()
            yield Result(
                name, application.name, f"unit: load, change and save {what}",
                "the ORM without a unit", "×", goal, "at most",
                *ratios(runs["unit"], runs["plain"]), times(**runs),
            )  # fmt: skip


def _side(db: Database, edit: Edit, count: int, *, guarded: bool) -> Side:
    """Goes through the table, so that no row is met twice under one token. Each side has its own
    titles: where the other one left the same, nothing would change, and an ORM sends nothing then.
    """
    rows = db.bench.scale.rows
    done = 0

    def run() -> Run:
        nonlocal done
        token = db.token() if guarded else None
        taken: list[tuple[float, float]] = []
        last = 0
        began = time.perf_counter()
        while time.perf_counter() - began < db.bench.scale.seconds:
            first = done * count % (rows - count) + 1
            if guarded and first <= last:
                token = db.token()
            last, now = first, time.perf_counter()
            edit(token, range(first, first + count), f"{'unit' if guarded else 'plain'} {done}")
            taken.append((now, time.perf_counter()))
            done += 1
        cut = began + WARM * db.bench.scale.seconds
        counted = [each for each in taken if each[0] >= cut] or taken
        return Run(
            [(end - start) * 1000 for start, end in counted],
            counted[-1][1] - counted[0][0],
            len(taken),
        )

    return run


def _sqlalchemy(db: Database) -> Application:
    from sqlalchemy import URL, MetaData, Table, create_engine, select
    from sqlalchemy.orm import Session, registry

    from pyconcord.ext import sqlalchemy as concord

    def engine() -> Any:
        from psycopg import connect

        dsn = db.bench.server.dsn(db.name, LOGIN)
        return create_engine(URL.create("postgresql+psycopg"), creator=lambda: connect(dsn))

    class Slide:
        title: str

    plain, guarded = engine(), engine()
    concord.install(guarded, identity=lambda: WHO)
    registry().map_imperatively(Slide, Table("slides", MetaData(), autoload_with=plain))

    def change(session: Session, ids: range, title: str) -> None:
        for slide in session.scalars(select(Slide).where(Slide.id.in_(ids))):  # type: ignore[attr-defined]
            slide.title = title

    def edit(token: str | None, ids: range, title: str) -> None:
        if token is None:
            with Session(plain) as session, session.begin():
                change(session, ids, title)
        else:
            with Session(guarded) as session, concord.unit(session, read_at=token):
                change(session, ids, title)

    return Application("SQLAlchemy", edit, lambda: (plain.dispose(), guarded.dispose()))


def _django(db: Database) -> Application:
    import django
    from django.conf import settings
    from django.db import connections, transaction
    from psycopg.conninfo import conninfo_to_dict

    if not settings.configured:
        settings.configure(
            DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}},
            INSTALLED_APPS=["pyconcord.ext.django"],
            CONCORD={"TENANT": WHO.tenant},
            USE_TZ=True,
        )
        django.setup()

    from pyconcord.ext import django as concord

    parts = conninfo_to_dict(db.bench.server.dsn(db.name, LOGIN))
    connections["default"].settings_dict.update(
        NAME=parts["dbname"],
        USER=parts["user"],
        HOST=parts["host"],
        PORT=parts["port"],
    )
    slides = _slides()

    def change(ids: range, title: str) -> None:
        for slide in slides.objects.filter(id__in=ids):
            slide.title = title
            slide.save()

    def edit(token: str | None, ids: range, title: str) -> None:
        if token is None:
            with transaction.atomic():
                change(ids, title)
        else:
            with concord.acting(user=WHO.id), concord.unit(read_at=token):
                change(ids, title)

    return Application("Django", edit, connections.close_all)


@cache
def _slides() -> Any:
    """The ten-column table as a Django model."""
    from django.db import models

    class Slide(models.Model):  # type: ignore[misc]
        id = models.BigIntegerField(primary_key=True)
        deck_id = models.IntegerField()
        title = models.TextField()
        body = models.TextField(null=True)
        status = models.TextField(null=True)
        position = models.IntegerField(null=True)
        price = models.DecimalField(max_digits=12, decimal_places=2, null=True)
        done = models.BooleanField(null=True)
        version = models.IntegerField(default=0)
        updated_at = models.DateTimeField(null=True)

        class Meta:
            app_label = "bench"
            db_table = "slides"
            managed = False

    return Slide
