"""protect and unprotect: what they refuse, tell, leave alone, and take off again."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.isolation.schedule import contended, fails, refused
from tests.security.wall import Wall

# All that says how a table is, less statistics.
LOOKS = """
select c.oid::regclass::text, c.relrowsecurity, c.relforcerowsecurity, c.relacl::text,
       (select array_agg(row(polname, polcmd, polpermissive, pg_get_expr(polqual, polrelid))::text order by polname) from pg_policy where polrelid = c.oid),
       (select array_agg(pg_get_triggerdef(oid) order by tgname) from pg_trigger where tgrelid = c.oid and not tgisinternal),
       (select array_agg(row(conname, pg_get_constraintdef(oid), convalidated)::text order by conname) from pg_constraint where conrelid = c.oid),
       (select array_agg(row(attname, attnotnull)::text order by attnum) from pg_attribute where attrelid = c.oid and attnum > 0)
  from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') order by 1
"""
HELPERS = "select proname::text, proacl::text from pg_proc where pronamespace = 'concord_internal'::regnamespace order by 1"


def test_it_comes_off_again(story: Wall) -> None:
    admin, owner = story.admin(), story.owner()
    owner.run(
        "create policy old on notes using (true); alter table remarks enable row level security"
    )
    before, helpers = admin.run(LOOKS), admin.run(HELPERS)
    calls = (
        "select concord.protect('notes', 'tenant')",
        "select concord.protect('docs', 'tenant', 'owner')",
        "select concord.protect('pages', 'tenant', 'owner', 'shared')",
        "select concord.protect('remarks', 'tenant', 'author', writable => '{}', editor_column => 'editor')",
    )
    for call in calls:
        owner.run(call)
        owner.run(call)
    assert admin.run(LOOKS) != before
    for table in ("notes", "docs", "pages", "remarks"):
        owner.run(f"select concord.unprotect('{table}')")
        owner.run(f"select concord.unprotect('{table}')")
    assert admin.run(LOOKS) == before
    assert admin.run(HELPERS) == helpers
    assert admin.run("select * from concord.protected") == []
    assert admin.run("select * from concord_internal.protected_relations") == []


def test_what_it_tells(story: Wall) -> None:
    owner = story.owner()
    owner.run("create policy old on docs using (true)")
    told = owner.one("select concord.protect('docs', 'tenant', 'owner')")
    assert (told["rows_without_tenant"], told["rows_without_owner"]) == (1, 1)
    assert told["permissive_policies"] == ["old"]
    assert told["todo"] == [
        "create index concurrently if not exists concord_wall_docs on public.docs (tenant, owner);",
        "alter table public.docs validate constraint concord_has_tenant;",
    ]
    told = owner.one("select concord.protect('docs', 'tenant', 'owner')")
    assert told["rows_without_tenant"] is None  # who is behind the wall now can't count them
    told = story.admin().one("select concord.protect('docs', 'tenant', 'owner')")
    assert (told["rows_without_tenant"], told["rows_without_owner"]) == (1, 1)
    story.admin().run("delete from docs where tenant is null or owner is null")
    for todo in told["todo"]:
        owner.run(todo)
    told = owner.one("select concord.protect('docs', 'tenant', 'owner')")
    assert told["todo"] == []


def test_what_stands_is_not_touched(wall: Wall) -> None:
    """Called again, as in every deployment, it waits for nobody."""
    reader = wall.admin()
    reader.run("begin; select count(*) from docs")
    owner = wall.owner()
    owner.run("set lock_timeout = '100 ms'")
    owner.run("select concord.protect('docs', 'tenant', 'owner')")
    # Else it waits, bounded by Concord's own setting and not by the session's.
    owner.run("set lock_timeout = 0; set statement_timeout = '20 s'")
    wall.configure("lock_timeout", "100 ms")
    with contended():
        owner.run("select concord.protect('docs', 'tenant', 'owner', delegated => true)")
    assert owner.run("show lock_timeout") == [("0",)]
    with contended():
        owner.run("select concord.unprotect('docs')")
    reader.run("commit")
    assert owner.run("select delegated from concord.protected where rel = 'docs'::regclass") == [
        (False,)
    ]


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ("null, 'tenant'", "rel"),
        ("'pg_class', 'tenant'", "rel"),
        ("'a_view', 'tenant'", "rel"),
        ("'leaf', 'tenant'", "rel"),
        ("'parent', 'tenant'", "rel"),
        ("'docs', null", "tenant_column"),
        ("'docs', 'nothing'", "tenant_column"),
        ("'docs', 'tenant', 'tenant'", "owner_column"),
        ("'odd', 'at'", "tenant_column"),
        ("'odd', 'made'", "tenant_column"),
        ("'docs', 'tenant', shared_column => 'title'", "shared_column"),
        ("'docs', 'tenant', 'owner', shared_column => 'title'", "shared_column"),
        ("'docs', 'tenant', delegated => true", "delegated"),
        ("'docs', 'tenant', editor_column => 'id'", "editor_column"),
        ("'docs', 'tenant', writable => '{}'", "writable"),
        ("'docs', 'tenant', 'owner', writable => '[]'", "writable"),
        ("'docs', 'tenant', 'owner', writable => '{\"upsert\": \"any\"}'", "writable.upsert"),
        ("'docs', 'tenant', 'owner', writable => '{\"delete\": \"all\"}'", "writable.delete"),
        ("'docs', 'tenant', 'owner', writable => '{\"insert\": \"own\"}'", "writable.insert"),
        ("'docs', 'tenant', predicate => ''", "predicate"),
        ("'docs', 'tenant', predicate => 'nothing = 1'", "predicate"),
        ("'docs', 'tenant', predicate => 'true); alter role owner superuser; --'", "predicate"),
        ("'docs', 'tenant', predicate => 'id ='", "predicate"),
        ("'docs', 'tenant', predicate => 'id'", "predicate"),
        ("'docs', 'tenant', predicate => 'count(*) > 1'", "predicate"),
        ("'pages', 'tenant', 'owner', 'shared', 'true'", "predicate"),
        ("'docs', 'tenant', contract => 'comments/v2'", "contract"),
        ("'docs', 'tenant', contract => 'comments/v1'", "contract"),
    ],
)
def test_bad_arguments(story: Wall, arguments: str, param: str) -> None:
    owner = story.owner()
    owner.run(
        """
        create view a_view as select * from docs;
        create table tree (tenant text) partition by list (tenant);
        create table leaf partition of tree default;
        create table parent (tenant text);
        create table child () inherits (parent);
        create table odd (at timestamptz, made text generated always as ('x') stored);
        """
    )
    before = story.admin().run(LOOKS)
    rights = "admin" if "pg_class" in arguments else "owner"
    with refused("invalid_request", param):
        (story.admin() if rights == "admin" else owner).run(f"select concord.protect({arguments})")
    assert story.admin().run(LOOKS) == before
    assert owner.run("select 1") == [(1,)]
    assert story.admin().run("select * from concord.protected") == []


def test_a_column_that_takes_different_texts_for_equal(story: Wall) -> None:
    """Where the server has such collations; PostgreSQL's embedded builds have none."""
    owner = story.owner()
    make = "create collation folding (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
    try:
        owner.run(make)
    except psycopg.errors.FeatureNotSupported:
        return  # here; the oldest server has them
    owner.run("create table folded (id int primary key, tenant text collate folding)")
    with refused("invalid_request", "tenant_column"):
        owner.run("select concord.protect('folded', 'tenant')")


def test_only_the_owner(wall: Wall) -> None:
    for login in ("app", "app2", "plain"):
        other = wall.session("other", login)
        for call in ("concord.protect('docs', 'tenant')", "concord.unprotect('docs')"):
            with refused("forbidden"):
                other.run(f"select {call}")
        for helper in (
            "concord_internal.protect_table(row(1, 'docs', 'tenant', null, null, null, null, null, false, null, '{}', false, now()), 'public')",
            "concord_internal.define_protection(row(1, 'docs', 'tenant', null, null, null, null, null, false, null, '{}', false, now()))",
            "concord_internal.note_relation('docs', 'docs')",
            "concord_internal.seal_protection('docs', true)",
            "concord_internal.forget_protection('docs')",
        ):
            with refused("forbidden"):
                other.run(f"select {helper}")
        assert other.one("select (concord_internal.protection_of('docs')).id") is None
        assert other.run("select concord_internal.relations_protected('docs')") == []
        assert other.run("select concord_internal.drift_of('docs')") == []


def test_nobody_attaches_its_trigger_elsewhere(wall: Wall) -> None:
    name = wall.value(
        "select concord_internal.stamp_function(id) from concord_internal.protections where rel = 'notes'::regclass"
    )
    wall.admin().run("create schema lab; grant all on schema lab to app2")
    app2 = wall.bearer("ana")
    app2.run("create table lab.mine (id int, tenant text)")
    with fails("42501"):
        app2.run(
            f"create trigger t before insert on lab.mine for each row execute function {name}()"
        )
    assert wall.admin().run("select * from concord.verify() where code = 'function_open'") == []
    wall.admin().run(f"grant execute on function {name}() to app2")
    assert wall.admin().one("select code from concord.verify()") == "function_open"


def test_partitions(story: Wall) -> None:
    owner, admin = story.owner(), story.admin()
    owner.run(
        """
        create table logs (id int, tenant text, owner text, primary key (id)) partition by range (id);
        create table logs_1 partition of logs for values from (0) to (10);
        create table logs_2 partition of logs for values from (10) to (20);
        alter table logs_2 enable row level security;
        grant select, insert, update, delete on logs, logs_1, logs_2 to app2;
        insert into logs values (1, 'acme', 'ana'), (2, 'acme', 'ben'), (11, 'zeta', 'ana');
        """
    )
    before = admin.run(LOOKS)
    owner.run("select concord.protect('logs', 'tenant', 'owner')")
    ana = story.bearer("ana")
    for table in ("logs", "logs_1"):
        assert ana.run(f"select id from {table}") == [(1,)]
        with refused("forbidden"):
            ana.run(f"insert into {table} values (5, 'zeta')")
    assert ana.run("select id from logs_2") == []
    ana.run("insert into logs (id) values (3)")
    ana.run("insert into logs_2 (id) values (12)")
    assert ana.run("select id, owner from logs order by id") == [
        (1, "ana"),
        (3, "ana"),
        (12, "ana"),
    ]
    # One that comes later is open to whoever has a grant on it, until protect is called again.
    owner.run(
        "create table logs_3 partition of logs for values from (20) to (30); grant select, insert on logs_3 to app2"
    )
    with refused("forbidden"):
        ana.run("insert into logs (id, tenant) values (21, 'zeta')")
    owner.run("select concord.protect('logs', 'tenant', 'owner')")
    with refused("forbidden"):
        ana.run("insert into logs_3 (id, tenant) values (21, 'zeta')")
    owner.run("alter table logs detach partition logs_2")
    assert ana.run("select id from logs_2") == [(12,)]
    owner.run("drop table logs_3")
    owner.run("select concord.unprotect('logs')")
    owner.run("alter table logs attach partition logs_2 for values from (10) to (20)")
    assert admin.run(LOOKS) == before


def test_odd_names(story: Wall) -> None:
    owner = story.owner()
    story.admin().run("grant create on database " + story.db.name + " to owner")
    owner.run(
        """
        create schema "Odd ""schema";
        grant usage on schema "Odd ""schema" to app2;
        create table "Odd ""schema"."T'a%b$x$" (id int primary key, "the ""ten'ant%" text, "ow%Iner $1" text, "sha red" bool);
        insert into "Odd ""schema"."T'a%b$x$" values (1, 'acme', 'ana', false), (2, 'acme', 'ben', true);
        grant all on "Odd ""schema"."T'a%b$x$" to app2;
        """
    )
    name = '"Odd ""schema"."T\'a%b$x$"'
    owner.run(
        "select concord.protect(%s, %s, %s, %s)", name, "the \"ten'ant%", "ow%Iner $1", "sha red"
    )
    ana = story.bearer("ana")
    assert ana.run(f"select id from {name.replace('%', '%%')} order by id".replace("%%", "%")) == [
        (1,),
        (2,),
    ]
    ana.run(f"insert into {name} (id) values (3)")
    with refused("forbidden"):
        ana.run(f"update {name} set \"ow%Iner $1\" = 'ben' where id = 1")
    owner.run("select concord.unprotect(%s)", name)


def test_a_dropped_table(wall: Wall) -> None:
    wall.owner().run("drop table docs; drop table notes")
    assert wall.admin().run("select rel::text from concord.protected order by 1") == [
        ("pages",),
        ("plans",),
        ("remarks",),
    ]
    wall.admin().run("select concord.maintain()")
    assert wall.value("select count(*) from concord_internal.protections") == 3
    assert (
        wall.value(
            "select count(*) from pg_proc where proname like 'protect\\_%' and prorettype = 'trigger'::regtype"
        )
        == 3
    )


def _comment(**data: Any) -> dict[str, Any]:
    return {
        "type": "create",
        "model": "comments",
        "data": {"model": "docs", "row_id": "1", "body": "x"} | data,
    }


def test_comments(story: Wall) -> None:
    owner = story.owner()
    told = owner.one("select concord.create_comments('comments')")
    assert (told["contract"], told["todo"]) == ("comments/v1", [])
    owner.run("grant select, insert, update, delete on comments to app2")
    ana, ben = story.bearer("ana"), story.bearer("ben", kind="agent")
    receipt = ana.commit({"operations": [_comment(target={"title": "a1"})]})
    first = receipt["operations"][0]["id"]
    ben.commit({"operations": [_comment(reply_to=first, body="reply")]})
    assert ana.run("select author, body from comments order by at") == [
        ("ana", "x"),
        ("agent:ben", "reply"),
    ]
    ana.run("update comments set body = 'y' where id = %s", first)
    for column, value in (
        ("at", "now()"),
        ("model", "'x'"),
        ("row_id", "'2'"),
        ("target", "'{}'"),
        ("reply_to", "id"),
    ):
        with refused("forbidden", "body"):
            ana.run(f"update comments set {column} = {value} where id = %s", first)
    assert ben.run("update comments set body = 'z' where id = %s returning 1", first) == []
    for wrong in (
        {"body": " \n"},
        {"body": "x" * 10001},
        {"target": ["x"]},
        {"target": {"x": "x" * 100001}},
        {"row_id": "2", "reply_to": first},
    ):
        with fails("23514", "23503"):
            ben.commit({"operations": [_comment(**wrong)]})
    stamped = ana.one("select at > now() - interval '1 hour' from comments where id = %s", first)
    assert stamped is True
    assert story.bearer("ana", tenant="zeta").run("select * from comments") == []


def test_comments_v1_is_a_reserved_name(story: Wall) -> None:
    owner = story.owner()
    owner.run("select concord.create_comments('comments')")
    with refused("invalid_request", "name"):
        owner.run("select concord.track('docs', name => 'comments/v1')")
    owner.run("select concord.track('comments', name => 'comments/v1', tenant_column => 'tenant')")
    owner.run("alter table comments alter body drop not null")
    with refused("invalid_request", "contract"):
        owner.run(
            "select concord.protect('comments', 'tenant', 'author', editor_column => 'editor',"
            " writable => '{\"update\": \"own\"}', contract => 'comments/v1')"
        )
    for name in ("", "a.b.c", "no good", "comments"):
        with refused("invalid_request", "name"):
            owner.run("select concord.create_comments(%s)", name)
    with refused("invalid_request", "contract"):
        owner.run("select concord.create_comments('others', '{\"update\": \"any\"}')")
    assert story.value("select to_regclass('others')") is None


def test_an_index_that_was_given_up_half_way(wall: Wall) -> None:
    """IF NOT EXISTS would take it for the index: it goes first, and is done as told."""
    admin, owner = wall.admin(), wall.owner()
    admin.run("create index concord_wall_docs on docs (tenant, owner)")
    admin.run(
        "update pg_index set indisvalid = false where indexrelid = 'concord_wall_docs'::regclass"
    )
    todo = [row[0] for row in owner.run("select concord.todo('docs')")]
    assert todo[:2] == [
        "drop index concurrently public.concord_wall_docs;",
        "create index concurrently if not exists concord_wall_docs on public.docs (tenant, owner);",
    ]
    for statement in todo[:2]:
        admin.run(statement)
    assert not any("index" in row[0] for row in owner.run("select concord.todo('docs')"))
