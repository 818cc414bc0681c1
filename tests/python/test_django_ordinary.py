"""The ORM as ever: outside units with every table tracked, and inside one without a token."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from pyconcord.ext import django as concord
from tests.django_site import configure, site, track_all
from tests.support import Database

configure()

from django.core.exceptions import ObjectDoesNotExist  # noqa: E402
from django.db import DatabaseError, IntegrityError, connection, transaction  # noqa: E402
from django.db.models import F  # noqa: E402
from django.test.utils import CaptureQueriesContext  # noqa: E402

from tests.django_site.models import (  # noqa: E402
    Comment,
    Country,
    Deck,
    Document,
    Note,
    Page,
    Place,
    Restaurant,
    Slide,
    Tag,
)

STEPS = 400
KEPT = (Deck, Tag, Slide, Comment, Note, Page, Place, Restaurant, Document, Country)


class Undone(Exception):
    """Takes a step back."""


class Play:
    """A random sequence of ordinary operations; the same for the same seed."""

    def __init__(self, seed: int, block: Callable[[], Any], without: Sequence[str] = ()) -> None:
        self._random = random.Random(seed)
        self._block = block
        self._without = without
        self.told: list[Any] = []

    def run(self) -> None:
        steps = [
            getattr(self, name)
            for name in sorted(vars(type(self)))
            if not name.startswith("_") and name not in ("run", *self._without)
        ]
        for _ in range(STEPS):
            step = self._random.choice(steps)
            self.told.append((step.__name__, self._outcome(step)))

    def _outcome(self, step: Callable[[], Any]) -> Any:
        where = self._random.random()
        try:
            if where < 0.3 and self._block is transaction.atomic:
                return step()
            with self._block():
                answer = step()
                if where > 0.9:
                    raise Undone
                return answer
        except (Undone, DatabaseError, ObjectDoesNotExist, ValueError) as error:
            return "IntegrityError" if isinstance(error, IntegrityError) else type(error).__name__

    def _word(self) -> str:
        return self._random.choice("abcdefgh")

    def _any(self, model: Any) -> Any:
        keys = list(model.objects.order_by("pk").values_list("pk", flat=True))
        return model.objects.get(pk=self._random.choice(keys)) if keys else model()

    def create(self) -> Any:
        deck = Deck.objects.create(name=self._word())
        price = Decimal(self._random.randint(0, 999)) / 16
        return Slide.objects.create(
            deck=deck,
            title=self._word(),
            price=price,
            meta={"a": [1, None, self._word()]},
            length=timedelta(seconds=self._random.randint(-9, 9)),
            position=self._random.randint(-1, 5),
        ).pk

    def save(self) -> Any:
        slide = self._any(Slide)
        slide.title, slide.position = self._word(), self._random.randint(-1, 3)
        slide.save()
        return slide.pk, slide.title

    def save_some_fields(self) -> Any:
        slide = Slide.objects.defer("body").filter(pk=self._any(Slide).pk).first() or Slide()
        slide.title = self._word()
        return slide.save(update_fields=["title"] if slide.pk else None)

    def save_over_a_key(self) -> Any:
        country = Country(code=self._word(), name=self._word())
        country.save(force_insert=self._random.random() < 0.3)
        return country.pk

    def update_many(self) -> Any:
        return Slide.objects.filter(title__lt=self._word()).update(position=F("position") + 1)

    def update_one(self) -> Any:
        return Deck.objects.filter(pk=self._any(Deck).pk).update(name=self._word())

    def update_in_bulk(self) -> Any:
        slides = list(Slide.objects.order_by("pk")[:3])
        for slide in slides:
            slide.body = self._word()
        return Slide.objects.bulk_update(slides, ["body"])

    def create_in_bulk(self) -> Any:
        made = Tag.objects.bulk_create(
            [Tag(name=self._word()) for _ in range(3)], ignore_conflicts=True
        )
        places = Deck.objects.bulk_create([Deck(name=self._word()) for _ in range(2)])
        return len(made), [each.pk for each in places]

    def get_or_create(self) -> Any:
        tag, made = Tag.objects.get_or_create(name=self._word())
        return tag.pk, made

    def update_or_create(self) -> Any:
        return Tag.objects.update_or_create(name=self._word(), defaults={"name": self._word()})[1]

    def link(self) -> Any:
        slide, tags = self._any(Slide), list(Tag.objects.order_by("pk")[:3])
        if self._random.random() < 0.5:
            slide.tags.add(*tags)
        else:
            slide.tags.set(tags[1:])
        return sorted(slide.tags.values_list("pk", flat=True))

    def hang_on(self) -> Any:
        slide = self._any(Slide)
        for model in (Comment, Note, Page):
            model.objects.create(slide=slide, text=self._word())
        return slide.comment_set.count()

    def delete(self) -> Any:
        model = self._random.choice([Deck, Slide, Tag, Place, Country, Comment])
        one = self._any(model)
        return one.delete() if one.pk else None

    def delete_many(self) -> Any:
        return Slide.objects.filter(title=self._word()).delete()

    def inherit(self) -> Any:
        place = Restaurant.objects.create(name=self._word(), stars=1)
        place.stars += 1
        place.save()
        return Restaurant.objects.filter(stars__gt=1).update(name=self._word(), stars=F("stars"))

    def key_of_its_own(self) -> Any:
        key = uuid.UUID(int=self._random.getrandbits(128))
        return Document.objects.create(id=key, content=self._word().encode()).pk

    def lock(self) -> Any:
        return Slide.objects.select_for_update().order_by("pk").values_list("title").first()


def play(it: Play) -> tuple[list[Any], list[str], dict[str, Any]]:
    connection.queries_log.clear()
    with CaptureQueriesContext(connection) as queries:
        it.run()
    kept = {
        model.__name__: [
            {name: value for name, value in row.items() if name != "updated"}
            for row in model.objects.order_by("pk").values()
        ]
        for model in KEPT
    }
    # Savepoints are numbered through, and keys in conditions too long to print.
    sent = [re.sub(r'"s\d+_x\d+"', "", query["sql"] or "")[:50] for query in queries]
    return it.told, sent, kept


def empty(db: Database) -> None:
    tables = ", ".join(model._meta.db_table for model in KEPT)
    with psycopg.connect(db.dsn("owner")) as owner:
        owner.execute(f"truncate {tables} restart identity cascade".encode())


@pytest.mark.parametrize("seed", range(2))
def test_the_same_with_every_table_tracked(db: Database, seed: int) -> None:
    with site(db, track=False):
        untracked = play(Play(seed, transaction.atomic))
        empty(db)
        with psycopg.connect(db.dsn("owner")) as owner:
            track_all(owner)
        tracked = play(Play(seed, transaction.atomic))
        empty(db)
        with concord.acting(user="ann"):
            acting = play(Play(seed, transaction.atomic))
    assert tracked == acting == untracked
    assert sum(len(rows) for rows in untracked[2].values()) > 50


@pytest.mark.parametrize("seed", range(2, 4))
def test_a_unit_without_a_token_does_what_atomic_does(db: Database, seed: int) -> None:
    bulk = ["update_many", "update_in_bulk", "create_in_bulk", "inherit"]
    with site(db), concord.acting(user="ann"):
        plain = play(Play(seed, lambda: transaction.atomic(), bulk))
        empty(db)
        in_units = play(Play(seed, concord.unit, bulk))
    assert in_units[0] == plain[0]
    assert in_units[2] == plain[2]
