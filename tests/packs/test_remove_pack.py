"""concord.remove_pack: everything that the pack made, and nothing else."""

from __future__ import annotations

import psycopg
import pytest

from tests.catalog import differences, snapshot
from tests.packs.spreading import Table, own
from tests.packs.test_add_pack import SPREADABLE, refusal
from tests.support import Database


def test_the_schema_is_as_it_was(db: Database, table: Table) -> None:
    admin = db.connect()
    before = snapshot(admin, "app")
    packs = [name for name in SPREADABLE if name != "comment"]
    for name in packs:
        table.add(name, fills={"tenant": "'acme'"} if name == "tenant" else {})
    assert differences(before, snapshot(admin, "app")) != []
    for name in packs:
        table.remove(name)
    assert differences(before, snapshot(admin, "app")) == []
    assert table.one("select count(*) from concord.packs") == 0


@pytest.mark.parametrize(
    "theirs",
    [
        "create view app.v as select tenant from app.slides",
        "create index on app.slides (title, tenant)",
        "alter table app.slides add unique (tenant, id)",
        "alter table app.slides add check (tenant <> title)",
        "create statistics app.s on tenant, title from app.slides",
        "create policy mine on app.slides using (tenant = 'x')",
        "create trigger t before update of tenant on app.slides for each row"
        " execute function suppress_redundant_updates_trigger()",
        "select concord.protect('app.slides', 'tenant')",
        "select concord.track('app.slides', tenant_column => 'tenant')",
        "select concord.track('app.slides', groups => array['org:{tenant}'])",
    ],
)
def test_it_refuses_while_something_depends_on_it(db: Database, table: Table, theirs: str) -> None:
    table.add("tenant", fills={"tenant": "'acme'"})
    table.owner.execute(theirs.encode())
    before = snapshot(db.connect(), "app")
    with pytest.raises(psycopg.Error) as raised:
        table.remove("tenant")
    assert refusal(raised) == ("invalid_request", "pack")
    assert differences(before, snapshot(db.connect(), "app")) == []
    assert table.objects("tenant") == {"column tenant": "made"}


def test_it_refuses_while_another_pack_or_table_does(db: Database, table: Table) -> None:
    table.add(own("code int not null unique"), fills={"code": "id"})
    table.owner.execute("create table app.other (code int references app.slides (code))")
    with pytest.raises(psycopg.Error, match=r"app\.other") as raised:
        table.remove("stamped")
    assert refusal(raised) == ("invalid_request", "pack")
    table.add("owner")
    other = own("owner text, more int")
    table.add(other.__class__.of(other.text.replace("stamped", "second")))
    with pytest.raises(psycopg.Error, match="the pack second uses the column owner") as raised:
        table.remove("owner")
    assert refusal(raised) == ("invalid_request", "pack")


def test_what_is_not_there(table: Table) -> None:
    for args in ("'app.slides', 'nope'", "'app.slides', null", "null, 'tenant'"):
        with pytest.raises(psycopg.Error) as raised:
            table.one(f"select concord.remove_pack({args})")
        assert refusal(raised)[0] == "invalid_request"


def test_only_the_tables_owner(db: Database, table: Table) -> None:
    table.add("owner")
    with pytest.raises(psycopg.Error) as raised:
        db.connect("app").execute("select concord.remove_pack('app.slides', 'owner')")
    assert refusal(raised) == ("forbidden", "rel")


def test_a_table_that_was_dropped_is_forgotten(db: Database, table: Table) -> None:
    table.add("owner")
    table.owner.execute("drop table app.slides")
    admin = db.connect()
    assert admin.execute("select count(*) from concord.packs").fetchone() == (0,)
    admin.execute("select concord.maintain()")
    assert admin.execute("select count(*) from concord_internal.packs").fetchone() == (0,)
