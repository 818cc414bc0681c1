"""Each finding of concord.doctor(): provoked, and healed by what it says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.isolation.schedule import Session
from tests.security.wall import Wall

# What this application has from the start, and its tables keep: keys without the tenant.
USUAL = {"unique_without_tenant", "index_missing", "check_not_valid", "truncate_granted"}


@pytest.fixture
def clinic(story: Wall) -> Iterator[Wall]:
    """One protected table, and the roles and names that a finding is provoked with."""
    _as_it_was(story)
    story.owner().run("delete from docs where tenant is null or owner is null")
    story.owner().run("select concord.protect('docs', 'tenant', 'owner')")
    yield story
    _as_it_was(story)


def _as_it_was(story: Wall) -> None:
    """Roles are the whole server's, and other tests grant them things."""
    admin = story.admin()
    for line in (
        "alter role app nosuperuser nobypassrls",
        "revoke owner from app2",
        "alter role app2 reset concord.acting",
        "revoke concord_app from owner",
    ):
        admin.run(line)


def found(session: Session, name: str) -> list[tuple[str, str, str]]:
    return [
        (level, detail, remedy)
        for level, code, detail, remedy in session.run("select * from concord.doctor()")
        if code == name
    ]


@pytest.mark.parametrize(
    ("name", "level", "provoke", "heal"),
    [
        (
            "owner_is_application",
            "error",
            "grant concord_app to owner",
            "revoke concord_app from owner",
        ),
        ("owner_assumable", "error", "grant owner to app2", None),
        ("force_missing", "error", "alter table docs no force row level security", None),
        ("security_off", "error", "alter table docs disable row level security", None),
        ("login_unbound", "error", "alter role app bypassrls", None),
        ("login_unbound", "error", "alter role app superuser", None),
        ("policy_changed", "error", "alter policy concord_wall on docs using (true)", None),
        ("policy_changed", "error", "alter policy concord_read on docs to app", None),
        ("policy_changed", "error", "drop policy concord_update on docs", None),
        (
            "policy_without_effect",
            "warning",
            "create policy more on docs using (true)",
            "drop policy more on docs",
        ),
        (
            "stamp_missing",
            "error",
            "alter table docs disable trigger concord_stamp",
            "alter table docs enable trigger concord_stamp",
        ),
        ("stamp_missing", "error", "drop trigger concord_stand on docs", None),
        (
            "column_gone",
            "error",
            "alter table docs rename tenant to org",
            "alter table docs rename org to tenant",
        ),
        ("view_open", "error", "create view v as select * from docs", None),
        (
            "view_open",
            "warning",
            "create view v with (security_invoker) as select * from docs",
            None,
        ),
        (
            "copy_open",
            "error",
            "create materialized view m as select * from docs; grant select on m to app2",
            "revoke select on m from app2",
        ),
        (
            "foreign_key_without_tenant",
            "warning",
            "create table bits (id int, doc int constraint to_docs references docs)",
            "alter table bits drop constraint to_docs",
        ),
        (
            "unique_without_tenant",
            "warning",
            "create unique index by_title on docs (title)",
            "drop index by_title; alter table docs drop constraint docs_pkey; alter table docs add primary key (tenant, id)",
        ),
        ("index_missing", "warning", "select 1", None),
        ("check_not_valid", "warning", "select 1", None),
        ("truncate_granted", "warning", "select 1", None),
        (
            "definer_without_path",
            "error",
            "create function f() returns int language sql security definer as 'select 1'",
            "alter function f() set search_path = pg_catalog, pg_temp",
        ),
        (
            "log_without_tenant",
            "warning",
            "select concord.track('docs')",
            "select concord.track('docs', tenant_column => 'tenant')",
        ),
        (
            "identity_for_all",
            "error",
            "alter role app2 set concord.acting = 'x'",
            "alter role app2 reset concord.acting",
        ),
        (
            "login_shared",
            "warning",
            "select concord.mint_session('app2', 'user', 'a', tenant => t) from unnest('{acme,zeta}'::text[]) t",
            "select concord.revoke_session(session) from concord.sessions",
        ),
        ("columns_changed", "warning", "alter table docs add column more int", None),
        (
            "trust_lost",
            "warning",
            "create role passing; select concord.trust_login('passing'); drop role passing",
            None,
        ),
    ],
)
def test_each_finding(clinic: Wall, name: str, level: str, provoke: str, heal: str | None) -> None:
    admin = clinic.admin()
    if name not in USUAL:
        assert found(admin, name) == []
    admin.run(provoke)
    told = found(admin, name)
    assert told, f"{name} was not found"
    assert {each[0] for each in told} == {level}
    assert all(detail and remedy for _, detail, remedy in told)
    if heal is not None:
        admin.run(heal)
    else:
        for _, _, remedy in told:
            admin.run(remedy)
    assert found(admin, name) == []


def test_a_healthy_database(clinic: Wall) -> None:
    admin = clinic.admin()
    admin.run(
        """
        alter table docs drop constraint docs_pkey;
        alter table docs add primary key (tenant, id);
        revoke truncate on docs from app, app2, plain;
        select concord.track('docs', tenant_column => 'tenant');
        """
    )
    for _, _, remedy in found(admin, "index_missing") + found(admin, "check_not_valid"):
        admin.run(remedy)
    assert admin.run("select * from concord.doctor()") == []


def test_a_partition_that_comes_later(clinic: Wall) -> None:
    owner, admin = clinic.owner(), clinic.admin()
    owner.run(
        """
        create table logs (tenant text not null, id int, primary key (tenant, id)) partition by range (id);
        create table logs_1 partition of logs for values from (0) to (10);
        select concord.protect('logs', 'tenant');
        create table logs_2 partition of logs for values from (10) to (20);
        """
    )
    ((level, detail, remedy),) = found(admin, "partition_open")
    assert level == "error"
    assert "logs_2" in detail
    admin.run(remedy)
    assert found(admin, "partition_open") == []


def test_identity_of_a_connection(clinic: Wall) -> None:
    service = clinic.session("service", "app")
    assert found(service, "identity_per_connection") == []
    service.run("begin; select concord.act_as('acme', 'user', 'ana')")
    assert found(service, "identity_per_connection") == []
    service.run("commit")
    service.run("select concord.act_as('acme', 'user', 'ana', is_local => false)")
    ((_, _, remedy),) = found(service, "identity_per_connection")
    assert remedy.endswith("reset all;")
    service.run("reset all")
    assert found(service, "identity_per_connection") == []


def test_a_dropped_table_and_late_maintenance(clinic: Wall) -> None:
    admin = clinic.admin()
    admin.run("drop table docs")
    ((_, _, remedy), *_) = found(admin, "table_gone")
    admin.run(remedy)
    assert found(admin, "table_gone") == []
    admin.run(
        "update notes set title = 'x'; update concord_internal.deltas set at = at - interval '3 days'"
    )
    admin.run("update concord_internal.upkeep set maintained_at = now() - interval '2 days'")
    assert found(admin, "maintenance_late")
    admin.run("select concord.maintain()")
    assert found(admin, "maintenance_late") == []


def test_who_is_told(clinic: Wall) -> None:
    clinic.admin().run("alter role app bypassrls")
    try:
        owner = clinic.owner()
        names = {row[1] for row in owner.run("select * from concord.doctor()")}
        assert "unique_without_tenant" in names
        assert "login_unbound" not in names
        for login in ("app2", "plain"):
            assert clinic.session("other", login).run("select * from concord.doctor()") == []
    finally:
        clinic.admin().run("alter role app nobypassrls")


def test_a_subscribed_table(clinic: Wall) -> None:
    admin = clinic.admin()
    admin.run("set allow_system_table_mods = on")
    admin.run(
        "create subscription sub connection 'dbname=nowhere' publication pub"
        " with (connect = false, slot_name = none)"
    )
    try:
        admin.run(
            "insert into pg_subscription_rel select oid, 'docs'::regclass, 'r', null"
            " from pg_subscription where subname = 'sub'"
        )
        levels = {level for level, _, _ in found(admin, "subscribed")}
    finally:
        admin.run("drop subscription sub")
    assert levels == {"error"}
    assert found(admin, "subscribed") == []
