"""Model forms: shown, submitted late, told, submitted again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.django_site import configure, site
from tests.support import Database

configure()

from django import forms  # noqa: E402

from pyconcord.ext import django as concord  # noqa: E402
from pyconcord.ext.django.forms import ConcordFormMixin  # noqa: E402
from tests.django_site.models import Deck, Slide  # noqa: E402
from tests.pages import sent_back  # noqa: E402

Raw = psycopg.Connection[Any]


class SlideForm(ConcordFormMixin, forms.ModelForm):  # type: ignore[misc]
    class Meta:
        model = Slide
        fields = ("deck", "title", "body")


@pytest.fixture
def raw(db: Database) -> Iterator[Raw]:
    with site(db) as connection, concord.acting(user="ann"):
        deck = Deck.objects.create(name="one")
        Slide.objects.create(deck=deck, title="old", body="old")
        yield connection


def shown() -> dict[str, Any]:
    """What a browser sends back of the form as it was shown."""
    form = SlideForm(instance=Slide.objects.get())
    return {name: form[name].value() for name in form.fields}


def submitted(data: dict[str, Any]) -> tuple[Any, bool]:
    form = SlideForm(data, instance=Slide.objects.get())
    assert form.is_valid(), form.errors
    return form, form.commit()


def test_nothing_happened(raw: Raw) -> None:
    form, landed = submitted({**shown(), "title": "mine"})
    assert landed
    assert form.receipt.durable
    assert Slide.objects.get().title == "mine"


def test_another_field_was_changed(raw: Raw) -> None:
    page = shown()
    raw.execute("update django_site_slide set body = 'theirs'")
    assert submitted({**page, "title": "mine"})[1]
    slide = Slide.objects.get()
    assert (slide.title, slide.body) == ("mine", "theirs")


def test_the_same_field_was_changed(raw: Raw) -> None:
    page = shown()
    raw.execute("update django_site_slide set title = 'theirs'")
    form, landed = submitted({**page, "title": "mine"})
    assert not landed
    [error] = form.errors["title"]
    assert "theirs" in error
    assert "mine" in error
    assert form["title"].value() == "mine"
    assert Slide.objects.get().title == "theirs"
    again = {name: form[name].value() for name in form.fields}
    assert submitted(again)[1]
    assert Slide.objects.get().title == "mine"


def test_it_was_changed_again(raw: Raw) -> None:
    page = shown()
    raw.execute("update django_site_slide set title = 'theirs'")
    form, _ = submitted({**page, "title": "mine"})
    again = {name: form[name].value() for name in form.fields}
    raw.execute("update django_site_slide set title = 'newer'")
    form, landed = submitted(again)
    assert not landed
    assert "newer" in form.errors["title"][0]


def test_a_reference_is_told_at_its_field(raw: Raw) -> None:
    page = shown()
    other = Deck.objects.create(name="two")
    raw.execute("update django_site_slide set deck_id = null")
    form, landed = submitted({**page, "deck": other.pk})
    assert not landed
    assert list(form.errors) == ["deck"]


def test_it_was_deleted(raw: Raw) -> None:
    page = shown()
    slide = Slide.objects.get()
    raw.execute("delete from django_site_slide")
    form = SlideForm({**page, "title": "mine"}, instance=slide)
    assert form.is_valid(), form.errors
    assert not form.commit()
    assert "deleted" in form.non_field_errors()[0]
    assert not Slide.objects.exists()


def test_what_is_shown_is_not_older_than_its_token(raw: Raw) -> None:
    """The view had read the object before: the form reads it again."""
    slide = Slide.objects.get()
    raw.execute("update django_site_slide set title = 'theirs'")
    form = SlideForm(instance=slide)
    assert form["title"].value() == "theirs"


def test_a_token_of_the_views_own(raw: Raw) -> None:
    with concord.reading() as read:
        slide = Slide.objects.get()
    raw.execute("update django_site_slide set title = 'theirs'")
    form = SlideForm(instance=slide, read_at=read.token)
    assert (form["title"].value(), form["read_at"].value()) == ("old", read.token)


def test_without_a_token(raw: Raw) -> None:
    page = shown()
    del page["read_at"]
    form = SlideForm(page, instance=Slide.objects.get())
    assert not form.is_valid()
    assert list(form.errors) == ["read_at"]


def test_a_new_object(raw: Raw) -> None:
    form = SlideForm({"title": "new", "body": "-", "deck": Deck.objects.get().pk})
    assert form.is_valid(), form.errors
    assert form.commit()
    assert Slide.objects.count() == 2


class WideForm(ConcordFormMixin, forms.ModelForm):  # type: ignore[misc]
    due = forms.SplitDateTimeField(required=False)
    length = forms.DurationField(required=False)
    meta = forms.JSONField(required=False)

    class Meta:
        model = Slide
        fields = ("deck", "title", "body", "price", "meta", "due", "length", "position")


def test_what_was_left_alone_is_shown_as_it_is_now(raw: Raw) -> None:
    """Sent again, the fields that the author never touched are not taken back to what they were."""

    def row() -> dict[str, Any]:
        [[found]] = raw.execute("select to_jsonb(s) from django_site_slide s").fetchall()
        assert isinstance(found, dict)
        return found

    other = Deck.objects.create(name="other")
    page = sent_back(WideForm(instance=Slide.objects.get()).as_p())
    raw.execute(
        "update django_site_slide set deck_id = %s, title = 'theirs', body = 'b', price = 7.5,"
        " meta = '{\"a\": [1]}', due = '2026-01-02 03:04:05Z', length = '1 day 02:03:04.5',"
        " position = 9",
        (other.pk,),
    )
    form = WideForm({**page, "title": "mine"}, instance=Slide.objects.get())
    assert form.is_valid(), form.errors
    assert not form.commit()
    assert list(form.errors) == ["title"]
    [conflict] = form.conflicts
    assert (conflict.label, conflict.theirs, conflict.yours) == ("Title", "theirs", "mine")
    before = row()
    form = WideForm(sent_back(form.as_p()), instance=Slide.objects.get())
    assert form.is_valid(), form.errors
    assert form.commit()
    assert form.receipt.applied == 1
    changed = {name for name, value in row().items() if value != before[name]}
    assert changed == {"title", "updated"}
