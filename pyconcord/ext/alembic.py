"""Alembic operations: the pack, and the tables that it tracks, as part of an application's schema.

    import pyconcord.ext.alembic  # in env.py or in the script

    def upgrade():
        op.concord_install(app_role="web", service=True)
        op.concord_track("slides", groups=["deck:{deck_id}"])

    def downgrade():
        op.concord_untrack("slides")
        op.concord_uninstall()

All of them take part in Alembic's transaction. `op.concord_refresh` belongs at the end of a script
that alters tracked tables. With `--sql` they write what they would run: installing then takes it
that the database has no pack, and uninstalling that nothing is tracked any more.

Concord's own tables stand in schemas of their own. `alembic check` and `--autogenerate` look there
only if `env.py` asks for all schemas; it then has to pass `include_name` on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, cast

from alembic.operations import MigrateOperation, Operations
from psycopg import Connection

from .. import install
from ._calls import administer

logger = logging.getLogger("pyconcord")

OWN_SCHEMAS = ("concord", "concord_internal")


def include_name(name: str | None, type_: str, parent_names: object) -> bool:
    """For `context.configure(include_name=…)`: everything but Concord's own schemas."""
    return type_ != "schema" or name not in OWN_SCHEMAS


class _ConcordOperation(MigrateOperation):
    """An operation that is the SQL that it runs, and in a script that is written down, that SQL."""

    def __init__(self, run: Callable[[Connection[Any] | None], install.Plan | str]) -> None:
        self.run = run


@Operations.implementation_for(_ConcordOperation)
def _run(operations: Operations, operation: _ConcordOperation) -> None:
    context = operations.migration_context
    if context.as_sql:
        planned = operation.run(None)
        for step in [planned] if isinstance(planned, str) else [s.sql for s in planned.steps]:
            context.impl.static_output(f"{step.rstrip().rstrip(';')};")
        return
    bind = operations.get_bind()
    driver = cast("Connection[Any]", bind.connection.driver_connection)
    if not isinstance(driver, Connection):
        raise install.PackError(f"the pack is installed by psycopg, and this is a {type(driver)}")
    bind.exec_driver_sql("select 1")  # SQLAlchemy's transaction, and who acts in it, begin
    planned = operation.run(driver)
    if isinstance(planned, str):
        driver.execute(planned.encode())
        return
    outcome = planned.run(driver)
    for line in (*outcome.notices, *outcome.for_administrator, *outcome.kept):
        logger.warning("%s", line)


@Operations.register_operation("concord_install")
class Install(_ConcordOperation):
    @classmethod
    def concord_install(
        cls, operations: Operations, *, app_role: str | None = None, service: bool = False
    ) -> None:
        """Install the pack, as `pyconcord install` does."""
        operations.invoke(
            cls(lambda there: install.install_plan(there, app_role=app_role, service=service))
        )


@Operations.register_operation("concord_uninstall")
class Uninstall(_ConcordOperation):
    @classmethod
    def concord_uninstall(cls, operations: Operations, *, force: bool = False) -> None:
        """Take the pack out, with its log; with `force` also while tables are tracked."""

        def plan(there: Connection[Any] | None) -> install.Plan | str:
            if there is None:
                return f"drop schema {', '.join(OWN_SCHEMAS)} cascade"
            return install.uninstall_plan(there, force=force)

        operations.invoke(cls(plan))


@Operations.register_operation("concord_track")
class Track(_ConcordOperation):
    @classmethod
    def concord_track(
        cls,
        operations: Operations,
        table: str,
        *,
        schema: str | None = None,
        name: str | None = None,
        tenant_column: str | None = None,
        tenant: str | None = None,
        groups: list[str] | None = None,
        ignore_fields: list[str] | None = None,
        secret_fields: list[str] | None = None,
        detail: Literal["before", "names"] | None = None,
        on_stale: dict[str, str] | None = None,
        archive_column: str | None = None,
    ) -> None:
        """Track a table, or change how it is tracked: the arguments are those of concord.track."""
        options: dict[str, object] = {
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
        operations.invoke(cls(lambda _: administer("track", table, schema, options)))


@Operations.register_operation("concord_untrack")
class Untrack(_ConcordOperation):
    @classmethod
    def concord_untrack(
        cls, operations: Operations, table: str, *, schema: str | None = None
    ) -> None:
        """Take a table's triggers, and its part of the log, away."""
        operations.invoke(cls(lambda _: administer("untrack", table, schema)))


@Operations.register_operation("concord_refresh")
class Refresh(_ConcordOperation):
    @classmethod
    def concord_refresh(
        cls, operations: Operations, table: str | None = None, *, schema: str | None = None
    ) -> None:
        """Let a tracked table, or all of them, be tracked as they are now."""
        operations.invoke(cls(lambda _: administer("refresh", table, schema)))
