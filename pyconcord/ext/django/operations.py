"""Migration operations: the pack, and the tables that it tracks.

    class Migration(migrations.Migration):
        dependencies = [("slides", "0007_…"), ("concord", "0001_install")]
        operations = [Track("Slide", groups=["deck:{deck_id}"], ignore_fields=["updated"])]

They change nothing that `makemigrations` looks at. On databases other than PostgreSQL they do
nothing. Options name columns, as concord.track does, and not fields.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from django.db.migrations.operations.base import Operation

from ... import install
from .._calls import administer
from .identity import option

logger = logging.getLogger("pyconcord")


class ConcordOperation(Operation):
    """What it runs is SQL; the state of the models stays."""

    reduces_to_sql = True
    reversible = True

    def state_forwards(self, app_label: str, state: Any) -> None:
        """No model changes."""


class Install(ConcordOperation):
    """Install the pack; backwards, take it out, with its log.

    CONCORD["APP_ROLE"] names the login of the application where that is not the one that migrates:
    it is granted the use of the pack, and trusted to say who acts.
    """

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        if schema_editor.connection.vendor != "postgresql":
            return
        role = option("APP_ROLE")
        there = _driver(schema_editor)
        _run(schema_editor, install.install_plan(there, app_role=role, service=role is not None))

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        if schema_editor.connection.vendor != "postgresql":
            return
        there = _driver(schema_editor)
        if there is None:
            schema_editor.execute("drop schema concord, concord_internal cascade")
        else:
            _run(schema_editor, install.uninstall_plan(there))

    def describe(self) -> str:
        return "Install Concord"


class Track(ConcordOperation):
    """Track a model's table, or change how it is tracked; backwards, untrack it."""

    calls = "track", "untrack"

    def __init__(
        self,
        model: str,
        name: str | None = None,  # not keyword-only: Django's writer of migrations left those out
        tenant_column: str | None = None,
        tenant: str | None = None,
        groups: Sequence[str] | None = None,
        ignore_fields: Sequence[str] | None = None,
        secret_fields: Sequence[str] | None = None,
        detail: Literal["before", "names"] | None = None,
        on_stale: Mapping[str, str] | None = None,
        archive_column: str | None = None,
    ) -> None:
        self.model = model
        given: dict[str, Any] = {
            "name": name,
            "tenant_column": tenant_column,
            "tenant": tenant,
            "groups": groups,
            "ignore_fields": ignore_fields,
            "secret_fields": secret_fields,
            "detail": detail,
            "on_stale": on_stale,
            "archive_column": archive_column,
        }
        self.options = {key: value for key, value in given.items() if value is not None}

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        return type(self).__name__, [self.model], self.options

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        self._call(self.calls[0], app_label, schema_editor, to_state)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        self._call(self.calls[1], app_label, schema_editor, from_state)

    def _call(self, function: str, app_label: str, schema_editor: Any, state: Any) -> None:
        model = state.apps.get_model(app_label, self.model)
        connection = schema_editor.connection
        if connection.vendor == "postgresql" and self.allow_migrate_model(connection.alias, model):
            options = {}
            if function == "track":
                # Any two saves of a row would conflict in what every save changes.
                stamps = [f.column for f in model._meta.local_fields if getattr(f, "auto_now", 0)]
                options = {"ignore_fields": stamps, **self.options} if stamps else self.options
            call = administer(function, model._meta.db_table, None, options)
            schema_editor.execute(call.replace("%", "%%"), ())

    def describe(self) -> str:
        return f"{self.calls[0].capitalize()} {self.model}"

    @property
    def migration_name_fragment(self) -> str:
        return f"{self.calls[0]}_{self.model.lower()}"


class Untrack(Track):
    """Untrack a model's table, and its part of the log; backwards, track it with these options."""

    calls = "untrack", "track"


def refresh(sender: Any, using: str, plan: Any = (), **_: Any) -> None:
    """After migrations, let the tables that one owns be tracked as they are now."""
    from django.db import connections

    connection = connections[using]
    if connection.vendor != "postgresql" or not plan:
        return
    with connection.cursor() as cursor:
        cursor.execute("select to_regclass('concord.models') is not null")
        if not cursor.fetchone()[0]:
            return
        cursor.execute(
            "select m.rel::text, concord.refresh(m.rel) from concord.models m"
            " join pg_class c on c.oid = m.rel where pg_has_role(c.relowner, 'usage')"
        )


def _driver(schema_editor: Any) -> Any:
    """psycopg's connection; None where the SQL is only written down."""
    if schema_editor.collect_sql:
        return None
    schema_editor.connection.ensure_connection()
    return schema_editor.connection.connection


def _run(schema_editor: Any, plan: install.Plan) -> None:
    if schema_editor.collect_sql:
        for step in plan.steps:
            schema_editor.execute(step.sql, None)
        return
    outcome = plan.run(schema_editor.connection.connection)
    for line in (*outcome.notices, *outcome.for_administrator, *outcome.kept):
        logger.warning("%s", line)
