"""Ways by which a wall is usually got around. Each is tried as a login that may run any SQL it likes."""

from __future__ import annotations

import json

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.isolation.schedule import Session, create, fails, group, refused, request, row, update
from tests.security.wall import Wall


@pytest.mark.parametrize(
    "forgery",
    [
        "set concord.acting = E'acme\\x1fuser\\x1fben'",
        "set concord.acting = E'acme\\x1fuser\\x1fben\\x1f'",
        "set concord.session = 'ben'",
        'set request.jwt.claims = \'{"sub": "ben", "tenant": "acme"}\'',
        "set role plain",
        "reset all",
        "set session authorization default",
        "set row_security = off",
        "set search_path = evil, public",
    ],
)
def test_settings_and_roles(wall: Wall, forgery: str) -> None:
    wall.admin().run("create schema evil; grant all on schema evil to app2; grant plain to app2")
    ana = wall.bearer("ana")
    ana.run(
        "create function evil.principal() returns concord.principal language sql"
        " return row('acme', 'user', 'ben', null)::concord.principal"
    )
    try:
        ana.run(forgery)
        assert ana.run("select id from docs") in ([], [(1,)])
    except psycopg.errors.InsufficientPrivilege:
        assert "row_security" in forgery  # off means: fail rather than filter
    finally:
        wall.admin().run("revoke plain from app2")  # roles are the whole server's


def test_a_permissive_policy_that_comes_later(wall: Wall) -> None:
    owner = wall.owner()
    for table in ("notes", "docs", "pages", "plans", "remarks"):
        owner.run(f"create policy everything on {table} to public using (true) with check (true)")
    ana = wall.bearer("ana")
    assert ana.run("select id from docs") == [(1,)]
    assert ana.run("update docs set title = 'x' where id <> 1 returning id") == []
    assert ana.one("select count(*) from notes where tenant <> 'acme'") == 0
    told = owner.one("select concord.protect('docs', 'tenant', 'owner')")
    assert told["permissive_policies"] == ["everything"]


def test_views_and_functions(wall: Wall) -> None:
    """Of the tables' owner, who is bound itself: they show what the one who acts may see."""
    wall.owner().run(
        """
        create view all_docs as select * from docs;
        create view safe_docs with (security_invoker, security_barrier) as select * from docs;
        create function every_doc() returns setof docs language sql security definer as 'select * from docs';
        create function doc_titles() returns text language sql security definer as 'select string_agg(title, '','') from docs';
        grant select, insert, update, delete on all_docs, safe_docs to app2;
        """
    )
    ana = wall.bearer("ana")
    for source in ("all_docs", "safe_docs", "every_doc()"):
        assert ana.run(f"select id from {source}") == [(1,)]
    assert ana.one("select doc_titles()") == "a1"
    for view in ("all_docs", "safe_docs"):
        assert ana.run(f"update {view} set title = 'x' where id = 2 returning id") == []
        assert ana.run(f"delete from {view} where id = 2 returning id") == []
        with refused("forbidden", "owner"):
            ana.run(f"update {view} set owner = 'ben'")
        with refused("forbidden", "owner"):
            ana.run(f"insert into {view} (id, owner) values (10, 'ben')")


def test_a_function_in_where_sees_no_row_of_others(wall: Wall) -> None:
    wall.admin().run("create schema lab; grant all on schema lab to app2")
    ana = wall.bearer("ana")
    ana.run(
        "create function lab.peek(text) returns bool language plpgsql cost 0.0001 as"
        " $$ begin raise notice 'saw %', $1; return true; end $$"
    )
    heard: list[str] = []
    ana.connection.add_notice_handler(lambda d: heard.append(str(d.message_primary)))
    ana.run("select id from docs where lab.peek(title)")
    ana.run("update docs set body = 'x' where lab.peek(title)")
    assert set(heard) == {"saw a1"}


def test_aggregates_cursors_and_prepared_statements(wall: Wall) -> None:
    """A plan that was made for one principal answers for another."""
    bearer = wall.bearer("ana", login="app2")
    secret = wall.value(
        "select secret from concord.mint_session('app2', 'user', 'ben', tenant => 'acme')"
    )
    bearer.run("prepare mine as select array_agg(id order by id) from docs")
    bearer.run("set plan_cache_mode = force_generic_plan")
    assert bearer.one("execute mine") == [1]
    bearer.run("begin")
    bearer.run("declare c cursor for select id from docs")
    bearer.run("select concord.authenticate(%s)", secret)
    assert bearer.one("execute mine") == [2]
    assert bearer.run("fetch all from c") in ([(1,)], [(2,)])
    bearer.run("commit")
    assert bearer.one("execute mine") == [1]
    assert bearer.run("select min(title), max(title), count(*) from docs") == [("a1", "a1", 1)]
    assert bearer.run("select exists (select from docs where title = 'b1')") == [(False,)]


def test_parallel_workers_know_who_acts(wall: Wall) -> None:
    wall.admin().run(
        "insert into docs (id, tenant, owner, title) select i, 'acme', 'ana', 't' from generate_series(100, 5000) i; analyze docs"
    )
    ana = wall.bearer("ana")
    name = (
        "debug_parallel_query"
        if ana.connection.info.server_version >= 160000
        else "force_parallel_mode"
    )
    ana.run(
        f"set {name} = on; set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0"
    )
    assert ana.one("select count(*) from docs") == 4902
    assert ana.one("select count(*) from docs where (concord.principal()).id = 'ana'") == 4902


def test_error_texts(wall: Wall) -> None:
    """A unique violation says no more than that, and a failing row is not shown."""
    wall.owner().run("alter table docs add unique (title)")
    ana = wall.bearer("ana")
    for sql, state in (
        ("insert into docs (id, title) values (10, 'b1')", "23505"),
        ("update docs set title = 'b1'", "23505"),
        ("insert into docs (id) values (2)", "23505"),
        ("insert into docs (id, title) values (null, 'x')", "23502"),
    ):
        with pytest.raises(psycopg.Error) as raised:
            ana.run(sql)
        assert raised.value.sqlstate == state
        told = f"{raised.value.diag.message_primary} {raised.value.diag.message_detail}"
        assert "b1" not in told.replace("docs_title_key", "")
        assert "Failing row" not in told
    with refused("already_exists"):
        ana.commit(request(create("docs", 1, title="x")))
    with fails("23505", "KC004"):  # as unique keys without the tenant tell
        ana.commit(request(create("docs", 2, title="x")))


def test_a_policy_function_runs_with_the_rights_of_who_asks(story: Wall) -> None:
    owner = story.owner()
    owner.run(
        """
        create table asked (by name, definer name);
        grant insert on asked to public;
        create function may_see(o text) returns bool language plpgsql volatile as
          $$ begin insert into asked values (current_user, session_user); return o = (concord.principal()).id; end $$;
        select concord.protect('docs', 'tenant', 'owner', predicate => 'may_see(owner)');
        """
    )
    ana = story.bearer("ana")
    token = ana.capture()
    assert ana.run("select id from docs") == [(1,)]
    ana.commit(request(update("docs", 1, title="x"), read_at=token))
    ana.run("select * from concord.history('docs', '1')")
    ana.run("select * from concord.changes(null)")
    assert story.admin().run("select distinct by::text from asked") == [("app2",)]


def test_grants_and_roles_at_the_next_statement(wall: Wall) -> None:
    ana = wall.bearer("ana")
    assert ana.run("select id from docs") == [(1,)]
    wall.owner().run("revoke select on docs from app2")
    with fails("42501"):
        ana.run("select id from docs")
    with fails("KC014", "42501"):
        ana.commit(request(update("docs", 1, title="x"), read_at=ana.capture()))
    assert ana.run("select * from concord.history('docs', '1')") == []
    service = wall.session("service", "app")
    service.run("select concord.act_as('acme', 'user', 'ana', is_local => false)")
    assert service.run("select id from docs") == [(1,)]
    wall.admin().run("select concord.distrust_login('app')")
    assert service.run("select id from docs") == []


def _busy(wall: Wall) -> tuple[Session, Session, str]:
    """ana and ben, each with changes of their own; and a token from before."""
    ana, ben = wall.bearer("ana"), wall.bearer("ben")
    token = ben.capture()
    ana.run("update docs set title = 'ana''s secret' where id = 1")
    ana.run("update docs set title = 'second' where id = 1")
    ana.run("update pages set title = 'hidden' where id = 1")
    ana.run("insert into docs (id, title) values (10, 'new')")
    ana.run("delete from docs where id = 10")
    ben.run("update docs set body = 'mine' where id = 2")
    return ana, ben, token


def test_the_log(wall: Wall) -> None:
    ana, ben, token = _busy(wall)
    for id in ("1", "10"):
        assert ben.run("select * from concord.history('docs', %s)", id) == []
    assert ben.run("select * from concord.history('pages', '1')") == []
    seen = ben.run(
        "select model, id, actor from concord.changes(%s) where op <> 'checkpoint'", token
    )
    assert seen == [("docs", "2", "ben")]
    assert ben.run("select * from concord.conflicts") == []
    own = ana.run("select op, before->>'title' from concord.history('docs', '1')")
    assert own == [("update", "ana's secret"), ("update", "a1")]
    # By another hand, on a row of hers: hers to see, with the values.
    wall.admin().run("update docs set title = 'mended' where id = 1")
    assert ana.run("select actor, before->>'title' from concord.history('docs', '1', 1)") == [
        ("postgres", "second")
    ]
    # Handed over by an administrator: told to neither.
    wall.admin().run("update docs set owner = 'ben', title = 'given' where id = 1")
    for who in (ana, ben):
        told = who.run("select fields from concord.history('docs', '1', 1)")
        assert told != [(["owner", "title"],)]
    assert ben.run("select * from concord.history('docs', '1')") == []
    assert ben.run("select id from docs order by id") == [(1,), (2,)]


def test_the_log_of_the_tenant(wall: Wall) -> None:
    """Without an owner rule the log is the tenant's; with one that the log can't follow, each sees its own writes."""
    ana, ben, stranger = wall.bearer("ana"), wall.bearer("ben"), wall.bearer("ana", tenant="zeta")
    ana.run("update notes set title = 'x' where id = 1")
    ana.run("update remarks set text = 'x' where id = 1")
    ana.run("update plans set title = 'x' where id = 1")
    assert ben.run("select actor, before->>'title' from concord.history('notes', '1')") == [
        ("ana", "n1")
    ]
    assert ben.run("select actor, before->>'text' from concord.history('remarks', '1')") == [
        ("ana", "r1")
    ]
    assert ben.run("select * from concord.history('plans', '1')") == []
    for model in ("notes", "remarks", "plans"):
        assert stranger.run("select * from concord.history(%s, '1')", model) == []
    assert ana.run("select before from concord.history('plans', '1')") == [(None,)]
    wall.owner().run("create policy narrower on notes as restrictive using (id > 1)")
    assert ben.run("select * from concord.history('notes', '1')") == []


def test_helpers_called_directly(wall: Wall) -> None:
    """They are open to any role that commits: under row-level security they give no row of others away."""
    _, ben, token = _busy(wall)
    docs = wall.value("select id from concord_internal.models where name = 'docs'")
    for sql in (
        "select concord_internal.row_conflict(%s::int, '1', null, '{title,body}', concord_internal.parse_token(%s))",
        "select concord_internal.look(m, '1', null, '{title,body}', 'acme', concord_internal.parse_token(%s))"
        " from concord_internal.models_named('{docs}') n, unnest(n) m where m.id = %s",
    ):
        params = (docs, token) if sql.index("%s") < 50 else (token, docs)
        with fails("KC014"):
            ben.run(sql, *params)
        # Nor from inside a function whose texts look like a commit's.
        body = sql % tuple(f"'{p}'" for p in params)
        ben.run(
            "create or replace function pg_temp.forged() returns void language plpgsql as $forged$"
            f" begin perform (/* PL/pgSQL function concord_internal.judge_request(x) line 1 at assignment */ {body}); end $forged$"
        )
        with fails("KC014"):
            ben.run("select pg_temp.forged()")
    later = ben.capture()
    moved = "select concord_internal.moved_rows(array[%s::int, %s], array['1', '2'], concord_internal.parse_token(%s))"
    assert [ben.one(moved, docs, docs, t) for t in (token, later)] == [[1, 2], [1]]
    for t, other in ((token, True), (later, False)):
        plain = "select concord_internal.plain_moved(concord_internal.plain_context(%s), %s)"
        asked = Jsonb(request(update("docs", 2, title="x"), read_at=t))
        assert [ben.one(plain, asked, id) for id in ("1", "2")] == [True, other]
    assert ben.run("select concord_internal.history_of(%s, '1', 10)", docs) == []


def test_group_premises_tell_no_writer_of_other_rows(story: Wall) -> None:
    owner = story.owner()
    owner.run(
        "select concord.track('docs', tenant_column => 'tenant', groups => array['all:{tenant}'])"
    )
    owner.run("select concord.protect('docs', 'tenant', 'owner')")
    ana, ben = story.bearer("ana"), story.bearer("ben")
    token = ben.capture()
    ana.run("update docs set title = 'x'")
    with refused("stale_context") as told:
        ben.commit(request(update("docs", 2, title="y"), read_at=token, reads=[group("all:acme")]))
    assert "ana" not in json.dumps(told.notification)
    assert told.notification["changes"] == []


def test_a_conflict_on_an_own_row_is_told(wall: Wall) -> None:
    """Judging needs no more than own rows: field by field, with the values."""
    ana, other = wall.bearer("ana"), wall.bearer("ana")
    token = ana.capture()
    other.run("update docs set title = 'theirs' where id = 1")
    ana.commit(request(update("docs", 1, body="mine"), read_at=token))
    with refused("stale_context") as told:
        ana.commit(request(update("docs", 1, title="mine"), read_at=token))
    assert told.notification["baseValues"] == {"title": "a1"}
    assert told.notification["currentValues"] == {"title": "theirs"}
    held = ana.commit(request(update("docs", 1, title="mine"), read_at=token, on_stale="notify"))
    assert held["held"] == 1
    assert ana.one("select count(*) from concord.conflicts") == 1
    assert wall.bearer("ben").one("select count(*) from concord.conflicts") == 0
    assert wall.bearer("ana", tenant="zeta").one("select count(*) from concord.conflicts") == 0
    with refused("not_found"):
        ana.commit(request(update("docs", 2, title="x"), read_at=token))
    with refused("not_found"):
        ana.commit(
            request(
                update("docs", 1, title="x"),
                read_at=ana.capture(),
                reads=[row("docs", 2, readAt=token)],
            )
        )


def test_a_second_path_in_the_same_process(wall: Wall) -> None:
    """commit, read and raw statements are one path: no mode or trick of a request goes beside the rules."""
    ana = wall.bearer("ana")
    everything = "select * from docs where id <> 1 order by id"
    before = wall.admin().run(everything)
    for operation in (
        update("docs", 2, title="x"),
        update("docs", 3, title="x"),
        update("docs", 4, title="x"),
        {"type": "delete", "model": "docs", "id": 2},
        create("docs", 2, title="x"),
        create("docs", 11, owner="ben"),
        create("docs", 12, tenant="zeta"),
        update("docs", 1, owner="ben"),
        update("docs", 1, tenant="zeta"),
        update("docs", 1, id=2),
    ):
        for mode in ("reject", "overwrite", "notify"):
            with fails("KC004", "KC014", "42501", "23505", "KC003", "KC012"):
                ana.commit(request(operation, read_at=ana.capture(), on_stale=mode))
        with fails("KC004", "KC014", "42501", "23505", "KC003", "KC012"):
            ana.commit(request(operation))
    assert ana.read("docs", 2)["data"] is None
    assert wall.admin().run(everything) == before


def test_foreign_keys_do_their_work(wall: Wall) -> None:
    """Their actions run as the table's owner, past the policies, whoever caused them, and nobody too."""
    wall.owner().run(
        """
        create table folders (tenant text, id int, primary key (tenant, id));
        insert into folders values ('acme', 1), ('acme', 2), ('acme', 3), ('acme', 4);
        alter table docs add folder int, add foreign key (tenant, folder) references folders (tenant, id) on update cascade on delete set null (folder);
        create table bits (id int primary key, tenant text, owner text, folder int,
                           foreign key (tenant, folder) references folders (tenant, id) on delete cascade);
        grant select, insert, update, delete on folders, bits to app2;
        insert into bits values (1, 'acme', 'ana', 4), (2, 'acme', 'ben', 4), (3, 'acme', 'ben', 3);
        select concord.track('bits', tenant_column => 'tenant');
        select concord.protect('bits', 'tenant', 'owner');
        """
    )
    admin, ana, nobody = wall.admin(), wall.bearer("ana"), wall.session("nobody", "app2")
    admin.run("update docs set folder = id where id in (1, 2)")
    nobody.run("update folders set id = 10 where id = 1")
    assert admin.run("select folder from docs where id = 1") == [(10,)]
    ana.run(
        "update folders set id = 20 where id = 2"
    )  # of ben's row, whom the key leaves his tenant
    assert admin.run("select folder from docs where id = 2") == [(20,)]
    nobody.run("delete from folders where id = 20")
    assert admin.run("select folder from docs where id = 2") == [(None,)]
    assert ana.run("select id from docs") == [(1,)]
    nobody.run("delete from folders where id = 3")
    assert admin.run("select id from bits order by id") == [(1,), (2,)]


def test_tracked_after_it_was_protected(wall: Wall) -> None:
    """The log carries the owner whichever came first."""
    owner, ana, ben = wall.owner(), wall.bearer("ana"), wall.bearer("ben")
    owner.run("select concord.untrack('docs')")
    owner.run("select concord.track('docs', tenant_column => 'tenant')")
    wall.admin().run("update docs set title = 'x' where id = 1")
    assert len(ana.run("select * from concord.history('docs', '1')")) == 1
    assert ben.run("select * from concord.history('docs', '1')") == []
    owner.run("select concord.unprotect('docs')")
    wall.admin().run("update docs set title = 'y' where id = 1")
    assert len(ben.run("select * from concord.history('docs', '1')")) == 2
