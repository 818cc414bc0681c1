"""The mixin for Django's test cases."""

from __future__ import annotations

import pytest

from tests.django_site import configure, site
from tests.support import Database

configure()

from django.core.exceptions import ImproperlyConfigured  # noqa: E402
from django.test import TestCase, TransactionTestCase  # noqa: E402

from pyconcord import StaleContext  # noqa: E402
from pyconcord.ext import django as concord  # noqa: E402
from pyconcord.ext.django.test import ConcordTestMixin  # noqa: E402
from tests.django_site.models import Deck  # noqa: E402


class Edits(ConcordTestMixin, TransactionTestCase):  # type: ignore[misc]
    def edit(self) -> None:
        deck = Deck.objects.create(name="one")
        with concord.reading() as read:
            pass
        self.interfere("update django_site_deck set name = %s", ["theirs"])
        with pytest.raises(StaleContext), concord.unit(read_at=read.token):
            deck.name = "mine"
            deck.save()
        assert Deck.objects.get().name == "theirs"


class Hopeless(ConcordTestMixin, TestCase):  # type: ignore[misc]
    def edit(self) -> None:
        self.interfere("select 1")


def test_somebody_interferes(db: Database) -> None:
    with site(db), concord.acting(user="ann"):
        Edits("edit").edit()


def test_a_test_case_that_is_one_transaction() -> None:
    with pytest.raises(ImproperlyConfigured, match="TransactionTestCase"):
        Hopeless("edit").edit()
