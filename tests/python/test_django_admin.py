"""The admin's change form: shown, filled in, sent late, sent again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.django_site import configure, site
from tests.pages import sent_back
from tests.support import Database

configure()

from django.contrib.admin.models import LogEntry  # noqa: E402
from django.contrib.auth.models import Permission, User  # noqa: E402
from django.contrib.contenttypes.models import ContentType  # noqa: E402
from django.test import Client  # noqa: E402

from tests.django_site.models import Comment, Deck, Slide  # noqa: E402

Raw = psycopg.Connection[Any]
CHANGE = "/admin/django_site/slide/1/change/"
DELETE = "/admin/django_site/slide/1/delete/"


@pytest.fixture
def raw(db: Database) -> Iterator[Raw]:
    with site(db) as connection:
        ContentType.objects.clear_cache()  # of an earlier test's database
        ContentType.objects.get_for_models(Slide, Comment)  # else migrate's
        slide = Slide.objects.create(deck=Deck.objects.create(name="one"), title="old", body="old")
        Comment.objects.create(slide=slide, text="first")
        Comment.objects.create(slide=slide, text="second")
        yield connection


@pytest.fixture
def ann(raw: Raw) -> Client:
    user = User.objects.create(username="ann", is_staff=True, is_superuser=True)
    client = Client()
    client.force_login(user)
    return client


def shown(client: Client, path: str = CHANGE) -> dict[str, str]:
    return sent_back(client.get(path, follow=True).content.decode())


def saved(client: Client, page: dict[str, str], **changes: str) -> Any:
    """The answer: a redirect, or the form again."""
    return client.post(CHANGE, {**page, **changes})


def row() -> tuple[Any, ...]:
    slide = Slide.objects.get()
    return slide.title, slide.body, *slide.comment_set.order_by("id").values_list("text", flat=True)


def test_nothing_happened(ann: Client, raw: Raw) -> None:
    page = shown(ann)
    assert saved(ann, page, title="mine", **{"comment_set-0-text": "1st"}).status_code == 302
    assert row() == ("mine", "old", "1st", "second")
    authors = raw.execute(
        "select distinct actor, kind from concord.changes(null) where fields @> '{title}'"
    )
    assert authors.fetchall() == [(str(User.objects.get().pk), "user")]


def test_another_field_and_another_comment(ann: Client, raw: Raw) -> None:
    page = shown(ann)
    raw.execute("update django_site_slide set body = 'theirs'")
    raw.execute("update django_site_comment set text = 'theirs' where text = 'second'")
    assert saved(ann, page, title="mine", **{"comment_set-0-text": "1st"}).status_code == 302
    assert row() == ("mine", "theirs", "1st", "theirs")
    message = LogEntry.objects.get().get_change_message()
    assert "Title" in message
    assert "read" not in message


def test_the_same_field(ann: Client, raw: Raw) -> None:
    """All or nothing, and no second try takes back what somebody else wrote elsewhere."""
    page = shown(ann)
    raw.execute("update django_site_slide set title = 'theirs', body = 'theirs'")
    raw.execute("update django_site_comment set text = 'theirs' where text = 'second'")
    answer = saved(ann, page, title="mine", **{"comment_set-0-text": "1st"})
    assert answer.status_code == 200
    text = answer.content.decode()
    assert "system app changed this to “theirs” meanwhile; yours is “mine”." in text
    assert row() == ("theirs", "theirs", "first", "theirs")
    assert LogEntry.objects.count() == 0
    assert saved(ann, sent_back(text)).status_code == 302
    assert row() == ("mine", "theirs", "1st", "theirs")


def test_the_same_comment(ann: Client, raw: Raw) -> None:
    page = shown(ann)
    raw.execute("update django_site_comment set text = 'theirs' where text = 'second'")
    raw.execute("update django_site_slide set body = 'theirs'")
    answer = saved(ann, page, title="mine", **{"comment_set-1-text": "2nd"})
    assert "changed this to “theirs” meanwhile; yours is “2nd”." in answer.content.decode()
    assert row() == ("old", "theirs", "first", "theirs")
    assert saved(ann, sent_back(answer.content.decode())).status_code == 302
    assert row() == ("mine", "theirs", "first", "2nd")


def test_again_and_again(ann: Client, raw: Raw) -> None:
    """Each time that something else moved it is told; what was told of stays told."""
    page = shown(ann)
    raw.execute("update django_site_slide set title = 'theirs'")
    answer = saved(ann, page, title="mine", **{"comment_set-0-text": "1st"})
    raw.execute("update django_site_comment set text = 'theirs' where text = 'first'")
    answer = saved(ann, sent_back(answer.content.decode()))
    assert "yours is “1st”." in answer.content.decode()
    raw.execute("update django_site_slide set title = 'newer'")
    answer = saved(ann, sent_back(answer.content.decode()))
    assert "to “newer” meanwhile; yours is “mine”." in answer.content.decode()
    assert row() == ("newer", "old", "theirs", "second")
    assert saved(ann, sent_back(answer.content.decode())).status_code == 302
    assert row() == ("mine", "old", "1st", "second")


def test_a_comment_that_is_taken_away(ann: Client, raw: Raw) -> None:
    page = shown(ann)
    raw.execute("update django_site_comment set text = 'theirs' where text = 'second'")
    answer = saved(ann, page, **{"comment_set-1-DELETE": "on"})
    assert "django_site_comment" in answer.content.decode()
    assert Comment.objects.count() == 2
    assert saved(ann, sent_back(answer.content.decode())).status_code == 302
    assert [comment.text for comment in Comment.objects.all()] == ["first"]


def test_it_was_deleted(ann: Client, raw: Raw) -> None:
    page = shown(ann)
    raw.execute("delete from django_site_comment; delete from django_site_slide")
    answer = ann.post(CHANGE, {**page, "title": "mine"}, follow=True)
    assert "Perhaps it was deleted?" in answer.content.decode()
    assert Slide.objects.count() == 0


def test_deleting(ann: Client, raw: Raw) -> None:
    url = ann.get(DELETE).url
    assert "Are you sure" in ann.get(url).content.decode()
    raw.execute("update django_site_slide set title = 'theirs'")
    answer = ann.post(url, {"post": "yes"}, follow=True)
    assert "Nothing was deleted: django_site_slide 1: title changed" in answer.content.decode()
    assert Slide.objects.count() == 1
    again = answer.redirect_chain[-1][0]
    assert ann.post(again, {"post": "yes"}).status_code == 302
    assert Slide.objects.count() == 0


def test_an_admin_that_says_nothing_of_its_fields(ann: Client, raw: Raw) -> None:
    path = "/admin/django_site/deck/1/change/"
    page = ann.get(path).content.decode()
    assert page.count('name="read_at"') == 1
    raw.execute("update django_site_deck set name = 'theirs'")
    answer = ann.post(path, {**sent_back(page), "name": "mine"})
    assert "yours is “mine”" in answer.content.decode()


def test_adding(ann: Client, raw: Raw) -> None:
    path = "/admin/django_site/slide/add/"
    page = shown(ann, path)
    assert "read_at" not in page
    assert ann.post(path, {**page, "deck": "1", "title": "new", "body": "x"}).status_code == 302
    assert Slide.objects.filter(title="new").count() == 1


@pytest.mark.parametrize("token", [None, "", "{}", "kc1.nonsense", '{"read_at": "x", "rows": 1}'])
def test_a_token_that_is_none(ann: Client, raw: Raw, token: str | None) -> None:
    """Nothing is written that was not judged."""
    page = shown(ann)
    del page["read_at"]
    page |= {} if token is None else {"read_at": token}
    answer = ann.post(CHANGE, {**page, "title": "mine"}, follow=True)
    assert "Nothing was saved" in answer.content.decode()
    assert row()[0] == "old"


def test_who_may_only_look(raw: Raw) -> None:
    user = User.objects.create(username="ben", is_staff=True)
    user.user_permissions.add(
        Permission.objects.create(
            codename="view_slide", name="", content_type=ContentType.objects.get_for_model(Slide)
        )
    )
    client = Client()
    client.force_login(user)
    answer = client.get(CHANGE)
    assert answer.status_code == 200
    assert "read_at" not in sent_back(answer.content.decode())
    assert client.post(CHANGE, {"title": "mine"}).status_code == 403
