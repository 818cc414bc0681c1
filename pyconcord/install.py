"""Put the pack into a database, bring it up to date, take it out: over a connection alone.

For managed servers, on whose disks no extension files can be placed. The SQL is the same as behind
``CREATE EXTENSION concord`` and ``psql -f``; here it runs in one transaction of the caller's
connection. Where the pack is there as an extension, ``upgrade`` and ``uninstall`` go by way of
ALTER and DROP EXTENSION.

Each operation is a `Plan`: ``install_plan(…).script()`` is the SQL that ``install(…)`` would run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg import sql
from psycopg.errors import (
    DependentObjectsStillExist,
    InsufficientPrivilege,
    ObjectInUse,
    UndefinedObject,
)

from pyconcord._files import Files, FilesError, Upgrade

__all__ = [
    "Files",
    "FilesError",
    "Installed",
    "Outcome",
    "PackError",
    "Plan",
    "Step",
    "Upgrade",
    "install",
    "install_plan",
    "installed",
    "script",
    "uninstall",
    "uninstall_plan",
    "upgrade",
    "upgrade_plan",
]

ROLES = ("concord_app", "concord_service", "concord_owner")

Connection = psycopg.Connection[Any]
Kind = Literal["extension", "objects"]
Action = Literal["installed", "upgraded", "uninstalled", "granted", "unchanged"]


class PackError(RuntimeError):
    """The operation was refused before it changed anything; the message says why."""


@dataclass(frozen=True)
class Installed:
    """The pack as it is found in a database."""

    kind: Kind
    version: str

    def __str__(self) -> str:
        how = "as an extension" if self.kind == "extension" else "as plain objects"
        return f"concord {self.version}, {how}"


@dataclass(frozen=True)
class Step:
    """Some SQL. Where the right to run an `attempt` is missing, it is left to an administrator."""

    sql: str
    attempt: bool = False


@dataclass(frozen=True)
class Outcome:
    """What an operation did."""

    action: Action
    installed: Installed | None
    """What is there afterwards."""
    notices: tuple[str, ...] = ()
    """What the SQL had to say, word for word."""
    for_administrator: tuple[str, ...] = ()
    """SQL that this connection had no right to run, in its order; nothing else is lacking."""
    kept: tuple[str, ...] = ()
    """What was to be dropped and is used elsewhere, and by what."""
    usable: bool = True
    """Whether application roles may use the pack, and the role that was named is one of them."""


@dataclass(frozen=True)
class Plan:
    """What an operation will do, worked out but not begun."""

    action: Action
    steps: tuple[Step, ...]
    then: Installed | None
    """What should be there afterwards; an operation that ends elsewhere is rolled back."""
    app_role: str | None = None
    service: bool = False

    def script(self) -> str:
        """The SQL, as one transaction for psql."""
        if not self.steps:
            return ""
        return "\n".join(["begin;", *(_terminated(step.sql) for step in self.steps), "commit;", ""])

    def run(self, connection: Connection) -> Outcome:
        """Run it, in one transaction (a savepoint, if the connection is in one already)."""
        notices: list[str] = []
        left: list[str] = []
        kept: list[str] = []

        def listen(diagnostic: psycopg.errors.Diagnostic) -> None:
            lines = [diagnostic.message_primary, diagnostic.message_detail, diagnostic.message_hint]
            # What CASCADE takes and what is lacking is known; the notices would only repeat it.
            if diagnostic.severity_nonlocalized == "WARNING":
                notices.append("\n".join(line for line in lines if line))

        connection.add_notice_handler(listen)
        try:
            with connection.transaction():
                for step in self.steps:
                    try:
                        _run_step(connection, step)
                    except (InsufficientPrivilege, UndefinedObject):
                        if not step.attempt:
                            raise
                        left.append(_terminated(step.sql))
                    except (DependentObjectsStillExist, ObjectInUse) as error:
                        if not step.attempt:
                            raise
                        why = (error.diag.message_primary, error.diag.message_detail)
                        kept.append(": ".join(text for text in why if text))
                found = installed(connection)
                if found != self.then:
                    raise PackError(f"expected {self.then or 'no concord'}, found {found}")
                usable = True
                if found is not None:  # all that is lacking, and not only what was tried
                    lacking = _lacking(connection, self.app_role, self.service)
                    left = [_terminated(line) for line, _ in lacking]
                    usable = not any(needed for _, needed in lacking)
        finally:
            connection.remove_notice_handler(listen)
        in_vain = bool(left) and left == [_terminated(step.sql) for step in self.steps]
        action = "unchanged" if in_vain else self.action
        return Outcome(action, self.then, tuple(notices), tuple(left), tuple(kept), usable)


def script(files: Files | None = None) -> str:
    """The install script itself, as ``psql -f`` takes it."""
    return (files or Files.find()).script


def installed(connection: Connection) -> Installed | None:
    """The pack in this database, if it is there."""
    row = connection.execute(
        "select extversion from pg_extension where extname = 'concord'"
    ).fetchone()
    if row is not None:
        return Installed("extension", row[0])
    row = connection.execute("select to_regprocedure('concord.version()') is not null").fetchone()
    if row is None or not row[0]:
        return None
    row = connection.execute("select concord.version()").fetchone()
    assert row is not None
    return Installed("objects", row[0])


# --- install --------------------------------------------------------------------------------------


def install(
    connection: Connection,
    *,
    app_role: str | None = None,
    service: bool = False,
    files: Files | None = None,
) -> Outcome:
    """Install the pack, and grant `app_role` the use of it.

    With `service` that login may also state who acts (it is granted ``concord_service`` and trusted
    in this database). On a database that has this version already, what is lacking is made good:
    roles and grants that whoever installed it had no right to make.
    """
    return install_plan(connection, app_role=app_role, service=service, files=files).run(connection)


def install_plan(
    connection: Connection | None = None,
    *,
    app_role: str | None = None,
    service: bool = False,
    files: Files | None = None,
) -> Plan:
    """What `install` would do; without a connection, what it would do to an empty database."""
    if service and app_role is None:
        raise PackError("service needs the login that it is for: app_role")
    files = files or Files.find()
    there = None
    if connection is not None:
        there = installed(connection)
        if there is not None and there.version != files.version:
            raise PackError(f"this database has {there}; upgrade brings it to {files.version}")
        if there is None:
            _refuse_strangers(connection)
        if app_role is not None:
            _require_role(connection, app_role)
    if there is None or connection is None:
        then = Installed("objects", files.version)
        grants = [Step(grant, attempt=True) for _, grant in _grants(app_role, service)]
        steps = [Step(files.script), *grants, *_trust(app_role, service)]
        return Plan("installed", tuple(steps), then, app_role, service)
    lacking = [Step(line, attempt=True) for line, _ in _lacking(connection, app_role, service)]
    steps = [*lacking, *_trust(app_role, service)]
    # An application role that is asked for has its grants then, if it did not have them before.
    action: Action = "granted" if steps or app_role is not None else "unchanged"
    return Plan(action, tuple(steps), there, app_role, service)


def _grants(app_role: str | None, service: bool) -> list[tuple[str, str]]:
    if app_role is None:
        return []
    role = sql.Identifier(app_role).as_string(None)
    groups = ("concord_app", "concord_service") if service else ("concord_app",)
    return [(group, f"grant {group} to {role}") for group in groups]


def _trust(app_role: str | None, service: bool) -> list[Step]:
    if not service:
        return []
    return [Step(f"select concord.trust_login({sql.Literal(app_role).as_string(None)})")]


def _lacking(connection: Connection, app_role: str | None, service: bool) -> list[tuple[str, bool]]:
    """The statements that make an installation whole, and whether applications can't do without."""
    lines = connection.execute(_LACKING, (list(ROLES),)).fetchall()
    for group, grant in _grants(app_role, service):
        asked = "select coalesce(pg_has_role(%s, to_regrole(%s), 'member'), false)"
        row = connection.execute(asked, (app_role, group)).fetchone()
        if row is None or not row[0]:
            lines.append((grant, True))
    return lines


# The same that concord_internal.role_findings() has as remedies. Here it is not taken from there:
# a superuser runs it, and who owns the pack could have put anything into a function of its own.
_LACKING = """
with pack as (
  select r.* from pg_namespace n join pg_roles r on r.oid = n.nspowner where n.nspname = 'concord'
),
roles as (
  select to_regrole('concord_app') as app, to_regrole('concord_service') as service,
         to_regrole('concord_owner') as owner,
         exists (select from concord.verify() where code = 'grants_missing') as closed
)
select format('create role %%I nologin', name), name <> 'concord_owner'
  from unnest(%s::text[]) name where to_regrole(name) is null
union all
select 'grant concord_app to concord_service', true
  from roles where not coalesce(pg_has_role(service, app, 'member'), false)
union all
select format('grant concord_owner to %%I', rolname), false
  from pack, roles where not rolsuper and not coalesce(pg_has_role(oid, owner, 'member'), false)
union all
select 'select concord_internal.settle()', app is null or closed
  from pack, roles
 where owner is null or app is null or closed or pack.oid <> owner
"""


def _refuse_strangers(connection: Connection) -> None:
    rows = connection.execute(
        "select nspname from pg_namespace"
        " where nspname in ('concord', 'concord_internal') order by 1"
    ).fetchall()
    if rows:
        names = " and ".join(row[0] for row in rows)
        raise PackError(f"this database has a schema {names} that is not a whole concord")


def _require_role(connection: Connection, name: str) -> None:
    row = connection.execute("select 1 from pg_roles where rolname = %s", (name,)).fetchone()
    if row is None:
        raise PackError(f"there is no role {name!r} on this server")


# --- upgrade --------------------------------------------------------------------------------------


def upgrade(
    connection: Connection, *, to: str | None = None, files: Files | None = None
) -> Outcome:
    """Bring the pack to version `to`, by default the one this package carries."""
    return upgrade_plan(connection, to=to, files=files).run(connection)


def upgrade_plan(
    connection: Connection, *, to: str | None = None, files: Files | None = None
) -> Plan:
    """What `upgrade` would do."""
    files = files or Files.find()
    target = to or files.version
    there = installed(connection)
    if there is None:
        raise PackError("there is no concord in this database: install it")
    then = Installed(there.kind, target)
    if there.version == target:
        return Plan("unchanged", (), then)
    if there.kind == "objects":
        steps = tuple(Step(upgrade.sql) for upgrade in files.chain(there.version, target))
        return Plan("upgraded", steps, then)
    row = connection.execute(
        "select path from pg_extension_update_paths('concord') where source = %s and target = %s",
        (there.version, target),
    ).fetchone()
    if row is None or row[0] is None:
        raise PackError(
            f"this database has {there}, and its server has no files for {target}: "
            "put them there (make install), then upgrade"
        )
    version = sql.Literal(target).as_string(None)
    return Plan("upgraded", (Step(f"alter extension concord update to {version}"),), then)


# --- uninstall ------------------------------------------------------------------------------------


def uninstall(connection: Connection, *, force: bool = False, drop_roles: bool = False) -> Outcome:
    """Take the pack out, with its log.

    Refused while tables are tracked or protected, unless `force` says to take that off first, and
    while they have column packs, unless `force` says to leave what those made where it is;
    refused while anything of the user's depends on it (a view over ``concord.changes``, say). The
    roles belong to the whole server and stay, unless `drop_roles` says to drop them too; they stay
    even then where another database uses them.
    """
    return uninstall_plan(connection, force=force, drop_roles=drop_roles).run(connection)


def uninstall_plan(
    connection: Connection, *, force: bool = False, drop_roles: bool = False
) -> Plan:
    """What `uninstall` would do."""
    there = installed(connection)
    if there is None:
        return Plan("unchanged", (), None)
    _require_ownership(connection)
    protected, tracked = _with_triggers(connection, "protect"), _tracked(connection)
    in_use = list(protected | tracked)
    if in_use and not force:
        raise PackError(
            f"{len(in_use)} tables are tracked or protected ({_some(in_use)}): "
            "untrack and unprotect them, or use force"
        )
    foreign = [table for table, owned in (protected | tracked).items() if not owned]
    if foreign:
        raise PackError(f"only their owners can untrack and unprotect {_some(foreign)}")
    users = _dependents(connection)
    if users:
        raise PackError(f"the database's own objects depend on concord: {_some(users)}")
    spread = _with_packs(connection)
    if spread and not force:
        raise PackError(
            f"{len(spread)} tables have column packs ({_some(spread)}): remove them, or use force, "
            "which leaves what they made to the tables' owners"
        )
    take_off = [
        Step(f"select concord.{how}({sql.Literal(table).as_string(None)})")
        for how, tables in (("unprotect", protected), ("untrack", tracked))
        for table in tables
    ]
    if there.kind == "extension":
        drop = "drop extension concord cascade"
    else:
        drop = "drop schema concord, concord_internal cascade"
    last = []
    if drop_roles:
        # All or none: nothing in another database depends on concord_service by itself.
        last.append(Step(f"drop role if exists {', '.join(ROLES)}", attempt=True))
    return Plan("uninstalled", (*take_off, Step(drop), *last), None)


def _require_ownership(connection: Connection) -> None:
    row = connection.execute(
        "select quote_ident(r.rolname), r.rolsuper, quote_ident(current_user)"
        "  from pg_roles r"
        " where r.oid = coalesce((select extowner from pg_extension where extname = 'concord'),"
        "                        (select nspowner from pg_namespace where nspname = 'concord'))"
        "   and not pg_has_role(r.oid, 'usage')"
    ).fetchone()
    if row is None:
        return
    owner, is_super, me = row
    remedy = "" if is_super else f", who may also grant you the right: grant {owner} to {me};"
    raise PackError(
        f"the pack belongs to {owner}, and {me} is no member of that role: "
        f"a superuser has to uninstall it{remedy}"
    )


def _tracked(connection: Connection) -> dict[str, bool]:
    """The tracked tables: what the view shows this role, and what has concord's triggers.

    Whether they are this role's to untrack.
    """
    left = _with_triggers(connection, "model")  # also what was left of a model, which goes first
    rows = connection.execute(
        "select c.oid::regclass::text, pg_has_role(c.relowner, 'usage')"
        "  from pg_class c where c.oid in (select rel from concord.models) order by 1"
    ).fetchall()
    shown = dict(rows)
    return {table: owned for table, owned in left.items() if table not in shown} | shown


def _with_triggers(connection: Connection, kind: str) -> dict[str, bool]:
    """The tables that triggers of this kind are on, and whether they are this role's."""
    rows = connection.execute(
        """
        select c.oid::regclass::text, pg_has_role(c.relowner, 'usage')
        from pg_class c
        where not c.relispartition and exists (
          select from pg_trigger t join pg_proc p on p.oid = t.tgfoid
          where t.tgrelid = c.oid and not t.tgisinternal
            and p.pronamespace = 'concord_internal'::regnamespace and starts_with(p.proname, %s))
        order by 1
        """,
        (f"{kind}_",),
    ).fetchall()
    return dict(rows)


def _with_packs(connection: Connection) -> list[str]:
    """The tables with column packs. One may have come from a version that knew none."""
    [(there,)] = connection.execute("select to_regclass('concord.packs') is not null")
    if not there:
        return []
    rows = connection.execute("select distinct rel::text from concord.packs order by 1").fetchall()
    return [row[0] for row in rows]


def _dependents(connection: Connection) -> list[str]:
    """Objects outside of concord's schemas that CASCADE would take along, less its own.

    What `track` and `protect` put on tables goes with their inverses, and an event trigger on
    concord's functions is concord's.
    """
    rows = connection.execute(_DEPENDENTS).fetchall()
    return [row[0] for row in rows]


_DEPENDENTS = """
with schemas as (select oid from pg_namespace where nspname in ('concord', 'concord_internal')),
own (classid, objid) as (
  select 'pg_class'::regclass, oid from pg_class where relnamespace in (select oid from schemas)
  union all
  select 'pg_proc'::regclass, oid from pg_proc where pronamespace in (select oid from schemas)
  union all
  select 'pg_type'::regclass, oid from pg_type where typnamespace in (select oid from schemas)
)
select distinct pg_describe_object(d.classid, d.objid, 0)
from own
join pg_depend d on d.refclassid = own.classid and d.refobjid = own.objid
cross join lateral pg_identify_object_as_address(d.classid, d.objid, 0) as a
where d.deptype in ('n', 'a')
  and d.classid <> 'pg_event_trigger'::regclass
  and a.object_names[1] not in ('concord', 'concord_internal')
  and not exists (
    select from pg_trigger t
    where d.classid = 'pg_trigger'::regclass and t.oid = d.objid and t.tgname like 'concord%'
  )
  and not exists (
    select from pg_policy p
    where d.classid = 'pg_policy'::regclass and p.oid = d.objid
      and p.polname in ('concord_wall', 'concord_read', 'concord_insert',
                        'concord_update', 'concord_delete')
  )
order by 1
"""


# --- running --------------------------------------------------------------------------------------


def _run_step(connection: Connection, step: Step) -> None:
    # An attempt that fails takes nothing with it.
    with connection.transaction() if step.attempt else nullcontext():
        connection.execute(step.sql.encode())


def _terminated(statement: str) -> str:
    text = statement.rstrip()
    return text if text.endswith(";") else f"{text};"


def _some(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
