"""REST framework views: ETag, If-Match, and what a client is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.django_site import configure, site
from tests.support import Database

configure()

from rest_framework import serializers  # noqa: E402
from rest_framework.generics import RetrieveUpdateDestroyAPIView  # noqa: E402
from rest_framework.test import APIRequestFactory  # noqa: E402

from pyconcord import schemas  # noqa: E402
from pyconcord.ext import django as concord  # noqa: E402
from pyconcord.ext.django.rest import ConcordViewMixin  # noqa: E402
from tests.django_site.models import Deck, Slide  # noqa: E402

Raw = psycopg.Connection[Any]
SEND = APIRequestFactory()


class SlideSerializer(serializers.ModelSerializer):  # type: ignore[misc]
    class Meta:
        model = Slide
        fields = ("id", "title", "body")


class SlideView(ConcordViewMixin, RetrieveUpdateDestroyAPIView):  # type: ignore[misc]
    queryset = Slide.objects.all()
    serializer_class = SlideSerializer
    authentication_classes = ()
    permission_classes = ()


class StrictView(SlideView):
    if_match_required = True


@pytest.fixture
def raw(db: Database) -> Iterator[Raw]:
    with site(db) as connection, concord.acting(user="ann"):
        Slide.objects.create(deck=Deck.objects.create(name="one"), title="old", body="old")
        yield connection


def send(method: str, data: Any = None, tag: str | None = None, view: Any = SlideView) -> Any:
    headers = {} if tag is None else {"HTTP_IF_MATCH": tag}
    request = getattr(SEND, method)("/", data, format="json", **headers)
    response = view.as_view()(request, pk=Slide.objects.values_list("pk", flat=True).first())
    return response.render()


def get() -> str:
    return str(send("get")["ETag"])


def test_what_was_seen_is_written_over(raw: Raw) -> None:
    response = send("patch", {"title": "mine"}, get())
    assert response.status_code == 200
    assert response.data["title"] == "mine"
    again = send("patch", {"title": "again"}, response["ETag"])
    assert again.status_code == 200
    assert Slide.objects.get().title == "again"


def test_another_field_was_changed(raw: Raw) -> None:
    tag = get()
    raw.execute("update django_site_slide set body = 'theirs'")
    assert send("put", {"title": "mine", "body": "old"}, tag).status_code == 200
    slide = Slide.objects.get()
    assert (slide.title, slide.body) == ("mine", "theirs")


def test_the_same_field_was_changed(raw: Raw) -> None:
    from jsonschema import Draft202012Validator

    tag = get()
    raw.execute("update django_site_slide set title = 'theirs'")
    response = send("patch", {"title": "mine"}, tag)
    assert response.status_code == 412
    assert response.data["code"] == "stale_context"
    [told] = response.data["notifications"]
    Draft202012Validator(schemas.load("notification")).validate(told)
    assert told["currentValues"]["title"] == "theirs"
    assert Slide.objects.get().title == "theirs"
    assert send("patch", {"title": "mine"}, response["ETag"]).status_code == 200


def test_a_stale_put_gets_no_tag_to_put_its_old_copy_by(raw: Raw) -> None:
    tag = get()
    raw.execute("update django_site_slide set title = 'theirs', body = 'theirs'")
    response = send("put", {"title": "mine", "body": "old"}, tag)
    assert response.status_code == 412
    assert "ETag" not in response
    assert send("put", {"title": "mine", "body": "theirs"}, get()).status_code == 200
    assert Slide.objects.get().body == "theirs"


def test_a_delete(raw: Raw) -> None:
    tag = get()
    raw.execute("update django_site_slide set title = 'theirs'")
    assert send("delete", tag=tag).status_code == 412
    assert Slide.objects.exists()
    assert send("delete", tag=get()).status_code == 204
    assert not Slide.objects.exists()


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        (None, 200),
        ("*", 200),
        ('W/"kc1"', 412),
        ('"kc1.nonsense"', 412),
        ("no quotes", 400),
        ('"a", "b"', 400),
    ],
)
def test_tags_of_other_kinds(raw: Raw, tag: str | None, code: int) -> None:
    assert send("patch", {"title": "mine"}, tag).status_code == code
    assert Slide.objects.get().title == ("mine" if code == 200 else "old")


def test_a_tag_that_is_required(raw: Raw) -> None:
    assert send("patch", {"title": "mine"}, view=StrictView).status_code == 428
    assert send("delete", view=StrictView).status_code == 428
    assert send("patch", {"title": "mine"}, get(), view=StrictView).status_code == 200


def test_what_the_serializer_refuses(raw: Raw) -> None:
    assert send("patch", {"title": ""}, get()).status_code == 400
    assert Slide.objects.get().title == "old"
