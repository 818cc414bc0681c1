"""Saves, deletes and their neighbours inside a unit of Django's."""

from __future__ import annotations

import datetime as dt
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import django
import psycopg
import pytest

from pyconcord import AlreadyExists, InvalidRequest, NotFound, StaleContext, reads
from pyconcord.ext import django as concord
from tests.django_site import configure, point, site
from tests.support import Database

configure()

from django.db import IntegrityError, connection, models, transaction  # noqa: E402
from django.db.models import F, Value  # noqa: E402
from django.db.models.functions import Concat, Now, Upper  # noqa: E402
from django.db.models.signals import post_delete, post_init  # noqa: E402
from django.test.utils import CaptureQueriesContext  # noqa: E402

from tests.django_site.models import (  # noqa: E402
    Comment,
    Country,
    Deck,
    Document,
    Note,
    Page,
    Restaurant,
    Slide,
    Tag,
)

Raw = psycopg.Connection[Any]


@pytest.fixture
def raw(db: Database) -> Iterator[Raw]:
    with site(db) as connection, concord.acting(user="ann"):
        yield connection


@pytest.fixture
def slide(raw: Raw) -> Slide:
    deck = Deck.objects.create(name="one")
    made: Slide = Slide.objects.create(deck=deck, title="old", body="old", price=Decimal("1.5"))
    return made


@pytest.fixture
def token(slide: Slide) -> str:
    return token_now()


def token_now() -> str:
    with concord.reading() as read:
        token: str = read.token
    return token


def theirs(raw: Raw) -> None:
    raw.execute("update django_site_slide set title = 'theirs' where title = 'old'")


def refused(
    kind: type[Exception], change: Callable[[], Any], match: str | None = None, **options: Any
) -> Any:
    pattern = None if match is None else re.escape(match)
    with pytest.raises(kind, match=pattern) as caught, concord.unit(**options):
        change()
    return caught.value


def fresh(slide: Slide) -> Slide:
    found: Slide = Slide.objects.get(pk=slide.pk)
    return found


# Saving


def test_a_save_writes_the_fields_that_changed(raw: Raw, slide: Slide, token: str) -> None:
    theirs(raw)
    with concord.unit(read_at=token) as unit:
        slide.body = "mine"
        slide.save()
    assert unit.receipt.durable
    assert (unit.receipt.applied, unit.receipt.landed) == (1, True)
    slide = fresh(slide)
    assert (slide.title, slide.body) == ("theirs", "mine")


def test_a_stale_save_is_refused_and_leaves_nothing(raw: Raw, slide: Slide, token: str) -> None:
    theirs(raw)

    def change() -> None:
        Deck.objects.create(name="beside")
        slide.title = "mine"
        slide.save()

    error = refused(StaleContext, change, read_at=token)
    assert error.notifications[0].conflicting_fields == ("title",)
    assert fresh(slide).title == "theirs"
    assert not Deck.objects.filter(name="beside").exists()


def test_what_was_saved_is_seen_by_the_next_query(slide: Slide, token: str) -> None:
    with concord.unit(read_at=token) as unit:
        slide.title = "new"
        slide.save()
        assert unit.receipt.receipts == ()
        assert list(Slide.objects.values_list("title", flat=True)) == ["new"]
        assert unit.receipt.applied == 1
        with connection.cursor() as cursor:
            slide.title = "newer"
            slide.save()
            cursor.execute("select title from django_site_slide")
            assert cursor.fetchone() == ("newer",)


def test_a_held_save_says_so_and_expires_the_object(raw: Raw, slide: Slide, token: str) -> None:
    theirs(raw)
    with concord.unit(read_at=token, on_stale="notify") as unit:
        slide.title = "mine"
        slide.save()
    [held] = unit.receipt.held
    values = [held.base, held.current or {}, held.proposed]
    assert [each["title"] for each in values] == ["old", "theirs", "mine"]
    assert slide.title == "theirs"


def test_an_object_takes_over_what_others_changed(raw: Raw, slide: Slide, token: str) -> None:
    theirs(raw)
    with concord.unit(read_at=token):
        slide.body = "mine"
        slide.save()
    assert "title" in slide.get_deferred_fields()
    assert {"body", "price", "updated"}.isdisjoint(slide.get_deferred_fields())
    assert slide.title == "theirs"


def test_an_attribute_set_anew_is_not_taken_back(raw: Raw, slide: Slide, token: str) -> None:
    theirs(raw)
    with concord.unit(read_at=token):
        slide.body = "mine"
        slide.save()
        slide.title = "not saved yet"
        Deck.objects.count()
        assert slide.title == "not saved yet"


def test_what_a_trigger_made_of_a_value_is_loaded(db: Database, raw: Raw) -> None:
    with db.connect("owner") as owner:
        owner.execute(
            "create function shout() returns trigger language plpgsql as $$"
            "begin new.title := upper(new.title); return new; end $$;"
            "create trigger shout before insert or update on django_site_slide "
            "for each row execute function shout()"
        )
    with concord.unit():
        slide = Slide.objects.create(title="new")
        assert slide.title == "NEW"
        slide.title = "newer"
        slide.save()
    assert slide.title == "NEWER"


def test_a_database_that_changes_a_relation_changes_the_object(
    raw: Raw, slide: Slide, token: str
) -> None:
    [(other,)] = raw.execute("insert into django_site_deck (name) values ('two') returning id")
    raw.execute("update django_site_slide set deck_id = %s", (other,))
    with concord.unit(read_at=token):
        assert slide.deck.name == "one"
        slide.body = "mine"
        slide.save()
    assert slide.deck.name == "two"


def test_update_fields_and_deferred_fields(raw: Raw, slide: Slide, token: str) -> None:
    theirs(raw)
    with concord.unit(read_at=token):
        slide.title = slide.body = "mine"
        slide.save(update_fields=["body"])
        partial = Slide.objects.defer("title").get(pk=slide.pk)
        partial.position = 3
        partial.save()
    assert slide.title == "mine"
    slide = fresh(slide)
    assert (slide.title, slide.body, slide.position) == ("theirs", "mine", 3)


def test_values_come_back_as_django_would_have_them(raw: Raw) -> None:
    moment = dt.datetime(2024, 5, 6, 7, 8, 9, 120000, tzinfo=dt.timezone.utc)
    given = {
        "title": "Ä ' \" %s \\",
        "price": Decimal("12.3456"),
        "weight": 1e-7,
        "meta": {"a": [1, 2.5, None, "x"], "b": {}},
        "due": moment,
        "length": dt.timedelta(days=-1, seconds=5, microseconds=7),
        "position": 7,
    }
    plain = Slide.objects.create(**given)
    with concord.unit():
        created = Slide.objects.create(**given)
        saved = Slide.objects.create(title="x")
        for name, value in given.items():
            setattr(saved, name, value)
        saved.save()
    assert created.get_deferred_fields() <= {"length"}
    skip = {"id", "updated"}

    def stored(one: Slide) -> dict[str, Any]:
        found = Slide.objects.filter(pk=one.pk).values().get()
        return {name: value for name, value in found.items() if name not in skip}

    assert stored(plain) == stored(created) == stored(saved)


def test_values_of_rarer_types(raw: Raw) -> None:
    plain = Document.objects.create()
    given = {
        "content": b"\x00\xff",
        "title": "loud",
        "words": ["a,b", 'c"d', "NULL"],
        "host": "2001:db8::1",
        "day": dt.date(1, 2, 3),
        "at": dt.time(4, 5, 6, 7),
        "parent": plain,
    }
    for name, value in given.items():
        setattr(plain, name, value)
    plain.save()
    with concord.unit():
        created = Document.objects.create(**{**given, "parent_id": plain.pk})
        saved = Document.objects.create()
        for name, value in given.items():
            setattr(saved, name, value)
        saved.save()
    assert saved.get_deferred_fields() <= {"title", "words", "at"}
    assert (created.title, saved.title) == ("LOUD", "LOUD")

    def stored(one: Document) -> dict[str, Any]:
        found = Document.objects.filter(pk=one.pk).values().get()
        return {**found, "content": bytes(found["content"]), "id": None}

    assert stored(plain) == stored(created) == stored(saved)


def test_json_null_is_refused(slide: Slide) -> None:
    slide.meta = Value(None, models.JSONField())
    refused(InvalidRequest, slide.save, "SQL NULL")


def test_an_unguarded_unit_writes_what_it_is_told(raw: Raw, slide: Slide) -> None:
    theirs(raw)
    with concord.unit() as unit:
        slide.body = "mine"
        slide.save()
    assert unit.receipt.applied == 1
    assert fresh(slide).title == "old"


# Creating


def test_creates_give_ids_and_belong_to_the_unit(raw: Raw) -> None:
    with concord.unit() as unit:
        deck = Deck.objects.create(name="new")
        slides = Slide.objects.bulk_create([Slide(deck=deck, title=t) for t in "abc"])
        country = Country.objects.create(code="at", name="Austria")
        document = Document.objects.create()
    assert unit.receipt.applied == 6
    assert [each.title for each in Slide.objects.order_by("pk")] == ["a", "b", "c"]
    assert [each.pk for each in slides] == sorted(each.pk for each in slides)
    assert Deck.objects.get(pk=deck.pk) == deck
    assert Country.objects.get() == country
    assert Document.objects.get() == document
    assert raw.execute(
        "select distinct actor from concord.history('django_site_slide', %s)", (str(slides[0].pk),)
    ).fetchall() == [("ann",)]


def test_an_explicit_key_is_an_update_or_a_create(slide: Slide) -> None:
    with concord.unit() as unit:
        Deck(pk=77, name="new").save()
        Deck(pk=slide.deck_id, name="renamed").save()
    assert [each.model for each in unit.receipt.receipts[0].operations] == ["django_site_deck"]
    assert dict(Deck.objects.values_list("pk", "name")) == {77: "new", slide.deck_id: "renamed"}


def test_a_row_that_is_there_already(slide: Slide) -> None:
    twin = Deck(pk=slide.deck_id, name="twin")
    error = refused(AlreadyExists, lambda: twin.save(force_insert=True))
    assert isinstance(error, IntegrityError)


def test_get_or_create_gets_over_a_race(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    raw.execute("insert into django_site_tag (id, name) values (5, 'x')")
    with concord.unit():
        assert Tag.objects.get_or_create(name="y")[1] is True
        assert Tag.objects.get_or_create(name="x")[0].pk == 5
        blind = Tag.objects.all()
        once = iter([Tag.DoesNotExist])
        look = blind.get

        def get(*args: Any, **kwargs: Any) -> Any:
            for error in once:
                raise error
            return look(*args, **kwargs)

        monkeypatch.setattr(blind, "get", get)
        assert blind.get_or_create(pk=5, defaults={"name": "z"}) == (Tag(pk=5), False)
        Tag.objects.create(name="after")
    assert set(Tag.objects.values_list("name", flat=True)) == {"x", "y", "after"}


def test_update_or_create(slide: Slide, token: str) -> None:
    with concord.unit(read_at=token) as unit:
        _, made = Slide.objects.update_or_create(title="old", defaults={"body": "mine"})
        assert not made
        Tag.objects.update_or_create(name="t", defaults={"name": "u"})
    assert unit.receipt.applied == 2
    assert fresh(slide).body == "mine"
    assert Tag.objects.get().name == "u"


def test_constraint_errors_stay_djangos(slide: Slide) -> None:
    with concord.unit():
        Tag.objects.create(name="t")
        with pytest.raises(IntegrityError), transaction.atomic():
            Tag.objects.create(name="t")
        slide.position = -1
        with pytest.raises(IntegrityError), transaction.atomic():
            slide.save()
        slide.position = 2
        slide.save()
    assert Tag.objects.count() == 1
    assert fresh(slide).position == 2


# Deleting


def test_delete_follows_relations_through_operations(slide: Slide, token: str) -> None:
    tag = Tag.objects.create(name="t")
    slide.tags.add(tag)
    Comment.objects.create(slide=slide, text="stays")
    Page.objects.create(slide=slide)
    Note.objects.create(slide=slide, text="untracked")
    with concord.unit(read_at=token_now()) as unit:
        deck = slide.deck
        assert deck.delete()[0] == 5
        assert deck.pk is None
    models_ = [each.model for receipt in unit.receipt.receipts for each in receipt.operations]
    assert sorted(models_) == [
        "django_site_comment",
        "django_site_deck",
        "django_site_page",
        "django_site_slide",
        "django_site_slide_tags",
    ]
    assert Comment.objects.get().slide is None
    assert not Slide.objects.exists()
    assert not Note.objects.exists()


def test_a_stale_delete_is_refused_and_a_held_one_keeps_its_object(
    raw: Raw, slide: Slide, token: str
) -> None:
    theirs(raw)
    with concord.unit(read_at=token, on_stale="notify") as unit:
        pk = slide.pk
        slide.delete()
    assert len(unit.receipt.held) == 1
    assert slide.pk == pk
    slide.refresh_from_db()
    country = Country.objects.create(code="at", name="x")
    old = token_now()
    raw.execute("update django_site_country set name = 'y'")
    with concord.unit(read_at=old, on_stale="notify"):
        country.delete()
        Country.objects.count()
    assert country.pk == "at"
    refused(StaleContext, slide.delete, read_at=token)

    def look(**_: Any) -> None:
        assert not Slide.objects.exclude(pk=pk).exists()

    post_delete.connect(look, sender=Slide)
    try:
        with concord.unit(read_at=token, on_stale="notify"):
            slide.delete()
        assert slide.pk == pk
    finally:
        post_delete.disconnect(look, sender=Slide)


def test_deletes_of_querysets(slide: Slide) -> None:
    for name in "abc":
        Tag.objects.create(name=name)
        Country.objects.create(code=name, name=name)
    with concord.unit() as unit:
        assert Country.objects.exclude(name="c").delete()[0] == 2
        assert Country.objects.filter(pk="none").delete()[0] == 0
        assert Tag.objects.filter(name="a").delete()[0] == 1
        assert Slide.objects.filter(pk=slide.pk)._raw_delete("default") == 1
    assert unit.receipt.applied == 4
    assert (Tag.objects.count(), Country.objects.count()) == (2, 1)


# Relations, inheritance, kinds of keys


def test_many_to_many(slide: Slide) -> None:
    a, b, c = (Tag.objects.create(name=name) for name in "abc")
    with concord.unit() as unit:
        slide.tags.add(a, b)
        slide.tags.add(b, c)
        slide.tags.remove(a)
        assert set(slide.tags.all()) == {b, c}
        slide.tags.set([a])
        a.slide_set.clear()
        slide.tags.add(c)
    assert unit.receipt.applied == 9
    assert list(slide.tags.all()) == [c]


def test_inheritance(raw: Raw) -> None:
    with concord.unit() as unit:
        place = Restaurant.objects.create(name="inn", stars=1)
        place.stars = 2
        place.save()
    assert unit.receipt.applied == 4
    token = token_now()
    raw.execute("update django_site_place set name = 'theirs'")
    with concord.unit(read_at=token):
        place.stars = 3
        place.save()
        Restaurant.objects.filter(pk=place.pk).update(stars=4)
    place.refresh_from_db()
    assert (place.name, place.stars) == ("theirs", 4)
    place.name = "mine"
    refused(StaleContext, place.save, read_at=token)
    with concord.unit() as unit:
        Restaurant.objects.filter(pk=place.pk).update(stars=5, name="both")
        place.delete()
    assert unit.receipt.applied == 4
    assert not Restaurant.objects.exists()


def test_an_update_that_matches_nothing(slide: Slide) -> None:
    with concord.unit() as unit:
        assert Slide.objects.filter(pk=slide.pk + 1).update(title="x") == 0
        assert Slide.objects.filter(pk__in=[]).update(title="x") == 0
        assert Slide.objects.none().update(title="x") == 0
        assert Slide.objects.filter(pk__in=[slide.pk, slide.pk + 1]).update(title="x") == 1
    assert unit.receipt.applied == 1


def test_a_row_that_somebody_deleted_is_not_made_again(raw: Raw, slide: Slide, token: str) -> None:
    raw.execute("delete from django_site_slide")
    assert refused(StaleContext, slide.save, read_at=token).notifications[0].deleted
    refused(NotFound, slide.save)
    assert not Slide.objects.exists()


# Expressions and bulk statements


def test_expressions_without_columns_are_evaluated(slide: Slide) -> None:
    with concord.unit():
        slide.due = Now()
        slide.title = Upper(Concat(Value("a%"), Value("b")))
        slide.meta = Value({"a": 1}, models.JSONField())
        slide.save()
        made = Slide.objects.create(title=Upper(Value("c")))
    assert (made.title, fresh(slide).meta) == ("C", {"a": 1})
    assert slide.title == "A%B"
    assert isinstance(slide.due, dt.datetime)


BULK: dict[str, Callable[[Slide], Any]] = {
    "save() each": lambda _: Slide.objects.update(title="x"),
    "by their primary key": lambda _: Slide.objects.filter(title="old").update(title="x"),
    "read them": lambda slide: Slide.objects.filter(pk=slide.pk).update(position=F("position") + 1),
    "save the value": lambda slide: Slide.objects.bulk_update([slide], ["title"]),
    "get_or_create": lambda _: Tag.objects.bulk_create([Tag(name="x")], ignore_conflicts=True),
    "conflicts": lambda _: Tag.objects.bulk_create(
        [Tag(name="x")], update_conflicts=True, unique_fields=["name"], update_fields=["name"]
    ),
}


@pytest.mark.parametrize("hint", BULK)
def test_bulk_statements_are_refused(slide: Slide, hint: str) -> None:
    error = refused(InvalidRequest, lambda: BULK[hint](slide), hint)
    assert "django_site." in str(error)
    with concord.unit() as unit:
        with pytest.raises(InvalidRequest), transaction.atomic():
            BULK[hint](slide)
        slide.body = "mine"
        slide.save()
    assert unit.receipt.applied == 1
    assert (fresh(slide).title, fresh(slide).position, Tag.objects.count()) == ("old", 0, 0)
    BULK[hint](slide)


# Transactions


def test_savepoints(raw: Raw, slide: Slide, token: str) -> None:
    with concord.unit(read_at=token) as unit:
        slide.body = "first"
        slide.save()
        with suppress(ZeroDivisionError), transaction.atomic():
            Tag.objects.create(name="gone")
            slide.body = "gone"
            slide.save()
            raise ZeroDivisionError
        with transaction.atomic():
            Tag.objects.create(name="stays")
    assert unit.receipt.applied == 2
    assert fresh(slide).body == "first"
    assert Tag.objects.get().name == "stays"


def test_a_refusal_inside_an_inner_atomic_is_got_over(raw: Raw, slide: Slide, token: str) -> None:
    theirs(raw)
    with concord.unit(read_at=token) as unit:
        slide.title = "mine"
        with suppress(StaleContext), transaction.atomic():
            Tag.objects.create(name="gone")
            slide.save()
        Tag.objects.create(name="stays")
    assert unit.receipt.applied == 1
    assert Tag.objects.get().name == "stays"


def test_a_refusal_that_is_caught_rolls_the_unit_back(raw: Raw, slide: Slide, token: str) -> None:
    theirs(raw)

    def change() -> None:
        Tag.objects.create(name="gone")
        slide.title = "mine"
        slide.save()
        with pytest.raises(StaleContext):
            Tag.objects.count()
        with pytest.raises(transaction.TransactionManagementError):
            Tag.objects.count()

    refused(StaleContext, change, read_at=token)
    assert not Tag.objects.exists()


def test_an_error_that_is_caught_does_not_pass_for_success(slide: Slide) -> None:
    def change() -> None:
        Tag.objects.create(name="t")
        with pytest.raises(IntegrityError):
            Note.objects.create(pk=1, slide_id=slide.pk, text=None)

    refused(transaction.TransactionManagementError, change, "rolled back")


def test_units_in_transactions_and_units_in_units(slide: Slide, token: str) -> None:
    with transaction.atomic():
        with concord.unit(read_at=token) as outer:
            slide.title = "outer"
            slide.save()
            with suppress(ZeroDivisionError), concord.unit():
                Tag.objects.create(name="gone")
                raise ZeroDivisionError
            with concord.unit() as inner:
                Tag.objects.create(name="stays")
            slide.body = "outer"
            slide.save()
        assert not outer.receipt.durable
    assert (outer.receipt.applied, inner.receipt.applied) == (2, 1)
    assert Tag.objects.get().name == "stays"
    assert "compiler" not in vars(connection.ops)
    assert len(connection.execute_wrappers) == 1


def test_untracked_models_are_written_as_ever(slide: Slide, token: str) -> None:
    with concord.unit(read_at=token) as unit, CaptureQueriesContext(connection) as queries:
        made = Slide.objects.create(title="new")
        Note.objects.create(slide=made, text="x")
        Note.objects.update(text="y")
    assert unit.receipt.applied == 1
    assert sum("INSERT INTO" in query["sql"] for query in queries) == 1
    assert Note.objects.get().text == "y"


def test_a_deferred_constraint_fails_the_unit_at_its_end(slide: Slide) -> None:
    def change() -> None:
        slide.deck_id = 4711
        slide.save()

    refused(IntegrityError, change)
    with concord.unit() as unit:
        pass
    assert unit.receipt.landed


# Premises


def test_rests_on_an_object(raw: Raw, slide: Slide) -> None:
    other = Slide.objects.create(title="other")
    token = token_now()
    theirs(raw)

    def change() -> None:
        other.body = "mine"
        other.save()

    def resting(*what: Any, read_at: str = token) -> None:
        with concord.unit(read_at=read_at) as unit:
            unit.rests_on(*what)
            change()

    with pytest.raises(StaleContext):
        resting(slide)
    resting(Slide.objects.only("body").get(pk=slide.pk))
    with pytest.raises(StaleContext):
        resting({"model": "django_site_slide", "id": str(slide.pk), "fields": ["title"]})
    resting(slide, read_at=token_now())


def test_all_that_was_loaded(raw: Raw, slide: Slide) -> None:
    Slide.objects.create(title="other")
    token = token_now()

    def change(*, load: bool, only: str = "title") -> None:
        with concord.unit(read_at=token, reads=concord.LOADED):
            if load:
                list(Slide.objects.filter(pk=slide.pk).only(only))
            Deck.objects.create(name="new")
            list(Slide.objects.all())

    theirs(raw)
    change(load=False)
    change(load=True, only="body")
    with pytest.raises(StaleContext):
        change(load=True)


def test_what_a_reading_loaded_is_a_premise_later(raw: Raw, slide: Slide) -> None:
    with concord.reading() as read:
        list(Slide.objects.all())
        Slide(title="made, not loaded")
    Tag.objects.all()
    assert not post_init.has_listeners(Tag)
    assert read.loaded == ({"model": "django_site_slide", "id": slide.pk, "readAt": read.token},)
    theirs(raw)
    refused(StaleContext, lambda: Tag.objects.create(name="t"), reads=read.loaded)
    assert not Tag.objects.exists()


def test_a_reading_joins_a_transaction_or_ends_its_own(slide: Slide) -> None:
    with concord.reading():
        assert connection.in_atomic_block
    assert not connection.in_atomic_block
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), concord.reading():
            raise ZeroDivisionError
        with CaptureQueriesContext(connection) as queries, concord.reading():
            assert Slide.objects.get() == slide
        assert len(queries) == 2  # joining takes no savepoint
    with concord.unit() as unit:
        slide.body = "mine"
        slide.save()
        with concord.reading() as read:
            pass
        assert unit.receipt.applied == 1
    with concord.unit(read_at=read.token) as unit:
        slide.body = "again"
        slide.save()
    assert unit.receipt.applied == 1


# What newer Djangos have


if django.VERSION >= (5, 2):

    def test_composite_keys(raw: Raw) -> None:
        from tests.django_site.models import Seat

        house = uuid.uuid4()
        with concord.unit() as unit:
            seat = Seat.objects.create(house=house, place=1)
            Seat.objects.bulk_create([Seat(house=house, place=n) for n in (2, 3)])
            seat.guest = "ann"
            seat.save()
            Seat(house=house, place=4).save()
        assert unit.receipt.applied == 5
        token = token_now()
        raw.execute("update django_site_seat set guest = 'ben' where place = 1")
        seat.guest = "cleo"
        refused(StaleContext, seat.save, read_at=token)
        with concord.unit(read_at=token, on_stale="notify") as unit:
            seat.delete()
            assert Seat.objects.filter(pk__in=[(house, 2), (house, 9)]).update(guest="dora") == 1
            Seat.objects.filter(place=3).delete()
        assert (unit.receipt.applied, len(unit.receipt.held)) == (2, 1)
        assert seat.pk == (house, 1)
        assert dict(Seat.objects.values_list("place", "guest")) == {1: "ben", 2: "dora", 4: None}


if django.VERSION >= (5, 0):

    def test_database_defaults_and_generated_fields(raw: Raw) -> None:
        from tests.django_site.models import Invoice

        with concord.unit() as unit:
            invoice = Invoice.objects.create(net=2)
            assert (invoice.gross, invoice.state) == (4, "draft")
            assert isinstance(invoice.issued, dt.datetime)
            invoice.net = 3
            invoice.save()
            assert invoice.gross == 6
            many = Invoice.objects.bulk_create([Invoice(net=5), Invoice(net=6, state="sent")])
        assert unit.receipt.applied == 4
        assert [(each.gross, each.state) for each in many] == [(10, "draft"), (12, "sent")]
        token = token_now()
        raw.execute("update django_site_invoice set net = 7 where net = 3")
        with concord.unit(read_at=token, on_stale="notify") as unit:
            invoice.net = 4
            invoice.save()
            assert (invoice.gross, invoice.net) == (14, 7)
        raw.execute("delete from django_site_invoice where net = 7")
        with concord.unit(read_at=token, on_stale="notify") as unit:
            invoice.net = 4
            invoice.save()
        assert len(unit.receipt.held) == 1
        assert Invoice.objects.count() == 2


# Where it does not reach, and where it does all the same


def test_a_refused_create_gives_a_deleted_object_its_key_back(slide: Slide) -> None:
    pk = slide.pk

    def change() -> None:
        slide.delete()
        Deck(pk=slide.deck_id, name="twin").save(force_insert=True)

    refused(AlreadyExists, change)
    assert slide.pk == pk
    slide.refresh_from_db()


def test_premises_that_nobody_judged(raw: Raw, slide: Slide, token: str) -> None:
    """An untracked row alone is judged by nobody: it is not said that it was."""

    def change() -> None:
        Note.objects.create(slide=slide, text="rests on it")

    premise = reads.row("django_site_slide", slide.pk)
    refused(InvalidRequest, change, "nothing judged these premises", read_at=token, reads=[premise])
    assert not Note.objects.exists()


def test_an_object_that_was_made_and_not_loaded(raw: Raw, slide: Slide, token: str) -> None:
    theirs(raw)
    made = {"pk": slide.pk, "deck_id": slide.deck_id, "price": slide.price}
    with concord.unit(read_at=token) as unit:
        Slide(**made, title="old", body="mine").save()
    assert unit.receipt.applied == 1
    assert (fresh(slide).title, fresh(slide).body) == ("theirs", "mine")
    refused(StaleContext, lambda: Slide(**made, title="mine", body="mine").save(), read_at=token)


def test_another_database(db: Database, raw: Raw, slide: Slide, token: str) -> None:
    """A unit is of one connection; what is written on another one goes by it."""
    theirs(raw)
    point("owner", db.dsn("app"))
    with concord.unit(using="owner", read_at=token, on_stale="notify") as unit:
        there = Slide.objects.using("owner").get()
        there.title = "mine"
        there.save()
        Deck.objects.create(name="on the other one")
    [held] = unit.receipt.held
    assert held.notification is not None
    assert held.notification.conflicting_fields == ("title",)
    assert Deck.objects.count() == 2


def test_another_thread_is_no_part_of_it(raw: Raw, slide: Slide, token: str) -> None:
    def elsewhere() -> None:
        try:
            Deck.objects.create(name="of a thread of its own")
        finally:
            connection.close()

    with suppress(ZeroDivisionError), concord.unit(read_at=token):
        Deck.objects.create(name="mine")
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        raise ZeroDivisionError
    assert [deck.name for deck in Deck.objects.order_by("pk")] == ["one", "of a thread of its own"]
