"""Test cases in which somebody interferes."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import TestCase

from ..._interfere import Interfere


class ConcordTestMixin:
    """For TransactionTestCase and LiveServerTestCase.

    A TestCase runs in one transaction, whose own changes never make it stale, and whose rows no
    other connection sees: nothing could ever conflict there.
    """

    def interfere(
        self, statement: str, params: Any = None, *, using: str = "default", **options: Any
    ) -> list[Any]:
        """Run a statement on a second connection, and commit it: see `pyconcord.testing`."""
        if isinstance(self, TestCase):
            raise ImproperlyConfigured(
                "a TestCase is one transaction, and nothing in it is ever stale: "
                "take a TransactionTestCase"
            )
        parameters = connections[using].get_connection_params()
        parameters.pop("cursor_factory", None)
        parameters.pop("context", None)
        return Interfere(**parameters)(statement, params, **options)
