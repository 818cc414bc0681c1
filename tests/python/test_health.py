"""concord.verify() and concord.version(): each finding is provoked, read, and healed as it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pyconcord._files import Files
from tests.support import Database, OwnServer

Connection = psycopg.Connection[Any]

TABLES = """
create table slides (id int primary key, deck text, title text);
create table plans (tenant text not null, id int primary key, title text);
create table parts (id int, part int, title text, primary key (id, part)) partition by list (part);
create table parts_1 partition of parts for values in (1);
select concord.track('slides', groups => array['deck:{deck}']);
select concord.track('plans', tenant_column => 'tenant');
select concord.track('parts');
insert into slides values (1, 'a', 'one');
"""


@dataclass
class Clinic:
    """A healthy database, and a superuser who looks at it."""

    db: Database
    admin: Connection
    owner: Connection

    def findings(self) -> list[tuple[str, str, str | None]]:
        query = "select level, code, model from concord.verify()"
        return self.admin.execute(query).fetchall()

    def remedies(self) -> list[str]:
        query = "select remedy from concord.verify()"
        return [remedy for (remedy,) in self.admin.execute(query)]

    def take(self) -> None:
        """Run the remedies, word for word."""
        for remedy in self.remedies():
            self.admin.execute(remedy.encode())

    def is_well(self) -> bool:
        return self.findings() == []


@pytest.fixture
def clinic(db: Database) -> Clinic:
    admin, owner = db.connect(), db.connect("owner")
    owner.execute(TABLES)
    found = Clinic(db, admin, owner)
    assert found.is_well()
    return found


def test_a_fresh_installation_is_healthy(db: Database) -> None:
    assert db.connect().execute("select * from concord.verify()").fetchall() == []


def test_a_database_in_use_is_healthy(clinic: Clinic) -> None:
    app = clinic.db.connect("app")
    clinic.owner.execute("grant all on slides to app")
    app.execute("select concord.act_as('acme', 'user', 'ana', is_local => false)")
    operation = {"type": "update", "model": "slides", "id": 1, "data": {"title": "two"}}
    app.execute("select concord.commit(%s)", (Jsonb({"operations": [operation]}),))
    app.execute("select concord.maintain()")
    clinic.admin.execute("select concord.new_epoch()")
    app.execute("select concord.maintain()")
    assert clinic.is_well()


# What somebody does, what verify says, and what heals it; None: the remedy, word for word.
MODELS: list[tuple[str, list[tuple[str, str, str | None]], str | None]] = [
    (
        "drop trigger concord_update on slides",
        [("error", "trigger_missing", "slides")],
        None,
    ),
    (
        "alter trigger concord_update on slides rename to mine",
        [("error", "trigger_missing", "slides"), ("error", "trigger_astray", "slides")],
        None,
    ),
    (
        "create table parts_2 partition of parts for values in (2)",
        [("error", "trigger_missing", "parts")],
        None,
    ),
    (
        "alter table parts detach partition parts_1",
        [("error", "partitions_changed", "parts"), *[("error", "trigger_astray", "parts")] * 4],
        None,
    ),
    (
        "alter table parts detach partition parts_1;"
        "alter table parts attach partition parts_1 for values in (1)",
        [("error", "partitions_changed", "parts")],
        None,
    ),
    (
        "alter table slides alter column title type text using title || '!'",
        [("error", "column_retyped", "slides")],
        None,
    ),
    (
        "alter table slides disable trigger concord_delete",
        [("error", "trigger_disabled", "slides")],
        "alter table slides enable trigger concord_delete;"
        " select concord.pause('slides'), concord.resume('slides')",
    ),
    (
        "alter table parts_1 enable replica trigger concord_insert",
        [("error", "trigger_disabled", "parts")],
        "alter table parts_1 enable trigger concord_insert",
    ),
    (
        "create or replace trigger concord_truncate after truncate on slides"
        " for each statement execute function suppress_redundant_updates_trigger()",
        [("error", "trigger_altered", "slides")],
        None,
    ),
    (
        "alter table slides add column body text",
        [("warning", "columns_changed", "slides")],
        None,
    ),
    (
        "alter table slides rename column title to headline",
        [("warning", "columns_changed", "slides")],
        None,
    ),
    (
        "alter table slides alter column title type varchar(99)",
        [("error", "column_retyped", "slides")],
        None,
    ),
    (
        "alter table slides drop column deck",
        [("warning", "columns_changed", "slides"), ("error", "definition_broken", "slides")],
        "select concord.track('slides')",
    ),
    (
        "alter table plans rename column tenant to org",
        [("warning", "columns_changed", "plans"), ("error", "definition_broken", "plans")],
        "select concord.track('plans', tenant_column => 'org')",
    ),
    (
        "alter table slides drop constraint slides_pkey",
        [("error", "key_changed", "slides")],
        "alter table slides add primary key (id); select concord.refresh('slides')",
    ),
    (
        "alter table plans drop constraint plans_pkey, add primary key (tenant, id)",
        [("error", "key_changed", "plans")],
        None,
    ),
    (
        "alter table slides drop constraint slides_pkey, add primary key (id) deferrable",
        [("error", "key_deferrable", "slides")],
        "alter table slides drop constraint slides_pkey, add primary key (id)",
    ),
    (
        "alter table slides alter column id type numeric",
        [("error", "key_unusable", "slides"), ("error", "column_retyped", "slides")],
        "alter table slides alter column id type int; select concord.refresh('slides')",
    ),
    (
        "select concord.pause('slides')",
        [("warning", "paused", "slides")],
        None,
    ),
    (
        "create table children () inherits (slides)",
        [("error", "inheritance", "slides")],
        "drop table children",
    ),
    (
        "create table decks (like slides) partition by list (deck);"
        "alter table decks attach partition slides for values in ('a')",
        [("error", "now_a_partition", "slides")],
        "alter table decks detach partition slides",
    ),
    (
        "drop table slides",
        [("warning", "table_gone", "slides")],
        None,
    ),
]


@pytest.mark.parametrize(
    ("harm", "findings", "cure"), MODELS, ids=[findings[-1][1] for _, findings, _ in MODELS]
)
def test_what_is_wrong_with_a_model_is_found_and_healed(
    clinic: Clinic, harm: str, findings: list[tuple[str, str, str | None]], cure: str | None
) -> None:
    clinic.owner.execute(harm.encode())
    assert sorted(clinic.findings()) == sorted(findings)
    if cure is None:
        clinic.take()
    else:
        clinic.owner.execute(cure.encode())
    assert clinic.is_well()


def test_a_subscribed_table_is_found(clinic: Clinic) -> None:
    admin = clinic.admin
    admin.execute("set allow_system_table_mods = on")
    admin.execute(
        "create subscription sub connection 'dbname=nowhere' publication pub"
        " with (connect = false, slot_name = none)"
    )
    admin.execute(
        "insert into pg_subscription_rel select oid, 'parts_1'::regclass, 'r', null"
        " from pg_subscription where subname = 'sub'"
    )
    assert clinic.findings() == [("error", "subscribed", "parts")]
    admin.execute("drop subscription sub")
    assert clinic.is_well()


PACK: list[tuple[str, str, str, str | None]] = [
    (
        "grant select on concord_internal.deltas to app",
        "error",
        "table_open",
        None,
    ),
    (
        "grant update (before) on concord_internal.deltas_default to app2",
        "error",
        "table_open",
        None,
    ),
    (
        "grant usage on concord_internal.delta_seq to public",
        "error",
        "table_open",
        None,
    ),
    (
        "grant execute on function concord_internal.model_1_update() to app",
        "error",
        "function_open",
        None,
    ),
    (
        "grant execute on function concord_internal.model_1_truncate() to public",
        "error",
        "function_open",
        None,
    ),
    (
        "alter function concord_internal.model_1_insert() owner to postgres",
        "error",
        "owner_changed",
        None,
    ),
    (
        "alter function concord.maintain() reset search_path",
        "error",
        "search_path_missing",
        None,
    ),
    (
        "alter sequence concord_internal.epoch_mark set logged",
        "error",
        "epoch_mark",
        None,
    ),
    (
        "alter sequence concord_internal.epoch_ordinal set unlogged",
        "error",
        "epoch_mark",
        None,
    ),
    (
        "insert into concord_internal.trusted_logins values ('nobody_there')",
        "warning",
        "trust_lost",
        None,
    ),
    (
        "insert into concord_internal.trusted_logins values ('app2')",
        "warning",
        "trust_lost",
        "select concord.distrust_login('app2')",
    ),
    (
        "set session_replication_role = replica",
        "error",
        "replica_mode",
        None,
    ),
    (
        "select concord.configure('notify', 'on');"
        " drop trigger concord_wake_up on concord_internal.deltas",
        "warning",
        "notify_lost",
        None,
    ),
    (
        "update concord_internal.deltas set at = now() - interval '25 hours'",
        "warning",
        "maintenance_late",
        "select concord.maintain()",
    ),
    (
        "select concord.maintain();"
        " update concord_internal.deltas set at = now() - interval '62 days'",
        "warning",
        "retention_behind",
        "select concord.configure('retention', '40 days')",
    ),
    (
        "select concord.maintain(); drop index concord_internal.deltas_1_xid_seq_idx",
        "warning",
        "leaf_index_missing",
        "create index on concord_internal.deltas_1 using brin ((xid::text::bigint), seq)",
    ),
]


@pytest.mark.parametrize(
    ("harm", "level", "code", "cure"),
    PACK,
    ids=[f"{code}-{n}" for n, (_, _, code, _) in enumerate(PACK)],
)
def test_what_is_wrong_with_the_pack_is_found_and_healed(
    clinic: Clinic, harm: str, level: str, code: str, cure: str | None
) -> None:
    ((first,),) = clinic.admin.execute("select min(id) from concord_internal.models")
    assert first == 1
    clinic.admin.execute(harm.encode())
    assert clinic.findings() == [(level, code, None)]
    if cure is None:
        clinic.take()
    else:
        clinic.admin.execute(cure.encode())
    assert clinic.is_well()


def test_maintenance_that_stopped_is_found(clinic: Clinic) -> None:
    clinic.admin.execute("select concord.maintain()")
    clinic.admin.execute("update concord_internal.deltas set at = now() - interval '25 hours'")
    assert clinic.is_well()
    clinic.admin.execute(
        "update concord_internal.upkeep set maintained_at = now() - interval '2 days'"
    )
    assert clinic.findings() == [("warning", "maintenance_late", None)]
    clinic.admin.execute("select concord.maintain()")
    assert clinic.is_well()


def test_leaves_that_were_overtaken_are_found(clinic: Clinic) -> None:
    clinic.admin.execute("select concord.maintain()")
    clinic.admin.execute(
        "do $$ begin"
        " for i in 1 .. (select max(to_xid::text::bigint) from concord_internal.leaves())"
        " - pg_current_xact_id()::text::bigint loop"
        " perform pg_current_xact_id(); commit; end loop; end $$"
    )
    clinic.owner.execute("update slides set title = 'two'")
    assert clinic.findings() == [("warning", "leaves_overtaken", None)]
    clinic.admin.execute("select concord.maintain()")
    assert clinic.is_well()


def test_a_replica_mode_that_is_set_for_a_role_is_found(clinic: Clinic) -> None:
    name = clinic.db.name
    for who, reset in (
        (f'database "{name}"', "every role"),
        (f'role app in database "{name}"', "role app"),
    ):
        clinic.admin.execute(f"alter {who} set session_replication_role = replica".encode())
        ((code, detail),) = clinic.admin.execute("select code, detail from concord.verify()")
        assert code == "replica_mode"
        assert reset in detail
        clinic.admin.execute(f"alter {who} reset session_replication_role".encode())
        assert clinic.is_well()


def test_a_prepared_transaction_that_was_left_is_found(clinic: Clinic) -> None:
    writer = clinic.db.connect("owner", autocommit=False)
    writer.execute("update slides set title = 'two'")
    writer.execute("prepare transaction 'left''over'")
    assert clinic.is_well()  # not yet an hour old
    query = "select level, code, remedy from concord_internal.server_findings('0 s')"
    ((level, code, remedy),) = clinic.admin.execute(query)
    assert (level, code) == ("warning", "prepared_old")
    assert remedy == "commit prepared 'left''over'; or rollback prepared 'left''over';"
    clinic.admin.execute("rollback prepared 'left''over'")
    assert clinic.admin.execute(query).fetchall() == []


@pytest.fixture
def cluster(own_server: OwnServer) -> Clinic:
    """A server whose roles may be spoilt."""
    db = own_server.db()
    return Clinic(db, db.connect(), db.connect("owner"))


@pytest.mark.packaging
def test_what_is_wrong_with_the_roles_is_found(cluster: Clinic) -> None:
    for harm, findings, cure in (
        (
            "alter role concord_owner login",
            [("error", "role_unsafe", None)],
            "alter role concord_owner nologin",
        ),
        (
            "revoke concord_app from concord_service",
            [("warning", "role_missing", None)],
            "grant concord_app to concord_service",
        ),
        (
            "alter role concord_app rename to somebody",
            [("warning", "role_missing", None)],
            "alter role somebody rename to concord_app",
        ),
    ):
        cluster.admin.execute(harm.encode())
        assert cluster.findings() == findings, harm
        cluster.admin.execute(cure.encode())
        assert cluster.is_well(), cure


def codes(connection: Connection) -> Sequence[str]:
    return [code for (code,) in connection.execute("select code from concord.verify()")]


def test_who_is_not_trusted_sees_what_is_wrong_with_tables_of_its_own(clinic: Clinic) -> None:
    clinic.owner.execute("select concord.pause('slides')")
    clinic.admin.execute("grant select on concord_internal.models to app2")
    assert codes(clinic.admin) == ["table_open", "paused"]
    assert codes(clinic.db.connect("app")) == ["table_open", "paused"]
    assert codes(clinic.owner) == ["paused"]
    assert codes(clinic.db.connect("app2")) == codes(clinic.db.connect("plain")) == []
    for helper in ("pack_findings()", "server_findings()", "model_findings(null)"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            clinic.db.connect("app").execute(f"select concord_internal.{helper}".encode())


def test_the_version_is_the_control_files(clinic: Clinic) -> None:
    files = Files.of_checkout(Path(__file__).resolve().parents[2])
    assert clinic.db.connect("plain").execute("select concord.version()").fetchone() == (
        files.version,
    )
