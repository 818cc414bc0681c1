"""concord.add_pack: what is missing is made, and nothing of the user's is touched."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest

from pyconcord.packs import Pack, TableName, shipped
from tests.catalog import differences, snapshot
from tests.packs.spreading import Table, call, own
from tests.support import Database
from tests.talk import code_of

SPREADABLE = [name for name in shipped() if not name.startswith("agent_")]


def refusal(raised: pytest.ExceptionInfo[psycopg.Error]) -> tuple[str, str | None]:
    return code_of(raised.value)


# --- what is made ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPREADABLE)
def test_a_pack_is_what_postgres_makes_of_its_file(db: Database, name: str) -> None:
    """sqlglot's reading and writing change nothing: by the catalogs."""
    pack = shipped()[name]
    seen = []
    for way in ("text", "pack"):
        with db.connect() as admin:
            admin.execute("create schema app authorization owner")
            owner = db.connect("owner")
            table = TableName("app", "things")
            if way == "text":
                owner.execute(pack._rendered(table, {}).encode())
            else:
                owner.execute("create table app.things ()")
                call(owner, table, pack.on(table).document())
            seen.append(snapshot(admin, "app"))
            admin.execute("drop schema app cascade")
    assert differences(*seen) == []


def test_rows_are_filled_in_batches_and_the_call_can_be_made_again(table: Table) -> None:
    told = table.add("tenant", fills={"tenant": "'t' || id % 2"}, batch=10)
    assert (told["rows_filled"], told["kept"], told["todo"]) == (100, [], [])
    assert table.one("select count(*) from app.slides where tenant = 't' || id % 2") == 100
    assert table.one(
        "select attnotnull from pg_attribute where attrelid = 'app.slides'::regclass"
        " and attname = 'tenant'"
    )
    # The check by which SET NOT NULL was spared its scan is gone again.
    assert table.one("select count(*) from pg_constraint where conname ~ 'concord'") == 0
    again = table.add("tenant", fills={"tenant": "'t' || id % 2"})
    assert again["rows_filled"] == 0


def test_batches_are_transactions(table: Table) -> None:
    """A fill that breaks off leaves what it did, and the next call goes on from there."""
    table.owner.execute("alter table app.slides alter title set storage plain")
    table.owner.execute("update app.slides set title = repeat('x', 900) where id <= 90")
    table.owner.execute("vacuum full app.slides")
    stamped = own("at int not null")
    with pytest.raises(psycopg.errors.DivisionByZero):
        table.add(stamped, fills={"at": "1000 / (id - 88)"}, batch=8)
    done = table.one("select count(*) from app.slides where at is not null")
    assert 0 < done < 100
    told = table.add(stamped, fills={"at": "id"}, batch=8)
    assert told["rows_filled"] == 100 - done
    assert table.one("select count(*) from app.slides where at is null") == 0


def test_a_constant_default_writes_no_row(table: Table) -> None:
    before = table.one("select pg_relation_filenode('app.slides')")
    told = table.add("timestamps")
    assert told["rows_filled"] == 0
    assert table.one("select pg_relation_filenode('app.slides')") == before
    assert table.one("select count(*) from app.slides where created_at is null") == 0


def test_a_volatile_default_is_filled_row_by_row(table: Table) -> None:
    before = table.one("select pg_relation_filenode('app.slides')")
    told = table.add(own("code uuid not null default gen_random_uuid()"), batch=10)
    assert told["rows_filled"] == 100
    assert table.one("select count(distinct code) from app.slides") == 100
    assert table.one("select pg_relation_filenode('app.slides')") == before


def test_writers_go_on_meanwhile(db: Database, table: Table) -> None:
    """Rows that come while the others are filled, from a program that knows no such column."""
    table.insert(101, 20000)
    stop, wrote = threading.Event(), [0]

    def insert() -> None:
        with db.connect("owner") as writer:
            while not stop.is_set():
                try:
                    writer.execute(
                        "insert into app.slides (id, title) values (%s, 'new')",
                        (1_000_000 + wrote[0],),
                    )
                    wrote[0] += 1
                except psycopg.errors.NotNullViolation:
                    break
                except psycopg.errors.CheckViolation:
                    break

    thread = threading.Thread(target=insert)
    thread.start()
    while not wrote[0] and thread.is_alive():
        time.sleep(0.01)
    try:
        table.add(own("kind text not null"), fills={"kind": "'old'"}, batch=500)
    finally:
        stop.set()
        thread.join()
    assert wrote[0] > 0
    assert table.one("select count(*) from app.slides where kind = 'old'") == 20000 + wrote[0]


@pytest.mark.parametrize(
    "more",
    ["extra json default '{}'", "len int generated always as (length(title)) stored"],
)
def test_updated_at_tells_of_changes_and_of_nothing_else(table: Table, more: str) -> None:
    """With a type that has no =, and with a column that has no value before the row is written."""
    table.owner.execute(f"alter table app.slides add {more}".encode())
    table.add("timestamps")
    changed = "select count(*) from app.slides where updated_at > created_at"
    table.owner.execute("update app.slides set title = title where id <= 3")
    assert table.one(changed) == 0
    table.owner.execute("update app.slides set title = 'new', updated_at = '1999-1-1' where id = 3")
    assert table.one(changed) == 1


def test_partitions(db: Database, table: Table) -> None:
    table.owner.execute("create table app.parts (id int, title text) partition by range (id)")
    table.owner.execute("create table app.low partition of app.parts for values from (0) to (50)")
    table.owner.execute("create table app.high partition of app.parts default")
    table.owner.execute("insert into app.parts select g, '' from generate_series(1, 100) g")
    name = TableName("app", "parts")
    pack = own("who text not null check (who <> '')", 'create index on :"table" (who);')
    told = call(table.owner, name, pack.on(name, {}, {"who": "'x'"}).document(), 10)
    assert told["rows_filled"] == 100
    assert told["todo"] == []
    assert table.one("select count(*) from pg_index where indrelid = 'app.low'::regclass") == 1


def test_inside_of_a_transaction(table: Table) -> None:
    with pytest.raises(psycopg.errors.InvalidTransactionTermination), table.owner.transaction():
        table.add("timestamps")
    assert table.columns() == ["id", "title", "mark"]
    with table.owner.transaction():
        table.add("tenant", fills={"tenant": "'acme'"}, batch=None)
    assert table.one("select count(*) from app.slides where tenant = 'acme'") == 100


# --- what is the user's ---------------------------------------------------------------------------


def test_a_clash_is_an_error_that_says_which(table: Table) -> None:
    table.owner.execute("alter table app.slides add tenant int")
    for pack, fills in (("tenant", {"tenant": "'acme'"}), ("tenant", {})):
        with pytest.raises(
            psycopg.Error, match=r"app\.slides\.tenant is integer.*set tenant="
        ) as it:
            table.add(pack, fills=fills)
        assert refusal(it) == ("invalid_request", "columns.tenant")
    assert table.objects("tenant") == {}
    # Of another length, and of another collation: another type.
    table.owner.execute("alter table app.slides alter tenant type varchar(9)")
    with pytest.raises(psycopg.Error, match="character varying"):
        table.add("tenant")
    table.owner.execute('alter table app.slides alter tenant type text collate "C"')
    with pytest.raises(psycopg.Error, match=r"app\.slides\.tenant is text"):
        table.add("tenant")


@pytest.mark.parametrize(
    ("theirs", "param"),
    [
        ("alter table app.slides add constraint slides_rank_check check (id > 0)",
         "constraints.slides_rank_check"),
        ("create index slides_rank_idx on app.slides (title)", "indexes.slides_rank_idx"),
        ("create function app.rank() returns int language sql as 'select 1'",
         "document.statements"),
        ("create policy open on app.slides using (true)", None),
    ],
)  # fmt: skip
def test_names_that_are_taken(table: Table, theirs: str, param: str | None) -> None:
    table.owner.execute(theirs.encode())
    pack = own(
        "rank int check (rank > 0)",
        """create index on :"table" (rank);
           create or replace function :"schema".:"rank"() returns int language sql as 'select 2';
           create policy open on :"table" using (false);""",
    )
    before = snapshot(table.db.connect(), "app")
    with pytest.raises(psycopg.Error) as raised:
        table.add(pack, batch=None)
    if param is not None:
        assert refusal(raised) == ("invalid_request", param)
    assert differences(before, snapshot(table.db.connect(), "app")) == []


def test_a_column_of_the_users_serves_and_stays(table: Table) -> None:
    table.owner.execute("alter table app.slides add tenant text default 'mine'")
    table.add("tenant")
    assert table.objects("tenant") == {}
    # It is as it was: no default, no constraint of the pack's.
    assert table.one("select count(*) from app.slides where tenant = 'mine'") == 100
    table.owner.execute("update app.slides set tenant = null where id = 1")
    table.remove("tenant")
    assert "tenant" in table.columns()


def test_a_reinstall_leaves_what_the_user_changed(table: Table) -> None:
    pack = own(
        "rank int default 1 check (rank > 0), note text",
        """create index on :"table" (rank);
           create or replace function :"schema".:"table_touch"() returns trigger language plpgsql
             as $$ begin return new; end $$;
           create trigger touch before insert on :"table" for each row
             execute function :"schema".:"table_touch"();
           create policy mine on :"table" using (rank > 1);""",
    )
    assert table.add(pack)["kept"] == []
    for change in (
        "alter table app.slides alter rank set default 9",
        "alter table app.slides drop column note",
        "alter table app.slides drop constraint slides_rank_check",
        "drop index app.slides_rank_idx",
        "create index slides_rank_idx on app.slides (rank desc)",
        "create or replace function app.slides_touch() returns trigger language plpgsql"
        " as $$ begin new.mark := 'theirs'; return new; end $$",
        "alter table app.slides disable trigger touch",
        "alter policy mine on app.slides using (rank > 2)",
    ):
        table.owner.execute(change.encode())
    before = snapshot(table.db.connect(), "app")
    told = table.add(pack)
    assert differences(before, snapshot(table.db.connect(), "app")) == []
    assert sorted(f"{k['kind']} {k['state']}" for k in told["kept"]) == [
        "column changed", "column gone", "constraint gone", "function changed", "index changed",
        "policy changed", "trigger changed",
    ]  # fmt: skip
    for theirs, drop in (
        ("index app.slides_rank_idx", "index app.slides_rank_idx"),
        ("policy mine", "policy mine on app.slides"),
    ):
        with pytest.raises(psycopg.Error, match=theirs):
            table.remove("stamped")
        table.owner.execute(f"drop {drop}".encode())
    kept = table.remove("stamped")["kept"]
    assert {f"{k['kind']} {k['state']}" for k in kept} == {
        "constraint gone", "function changed", "index gone", "policy gone", "trigger changed",
    }  # fmt: skip
    assert table.columns() == ["id", "title", "mark"]


def test_nulls_that_the_user_allowed_stay(table: Table) -> None:
    table.add("tenant", fills={"tenant": "'acme'"})
    table.owner.execute("alter table app.slides alter tenant drop not null")
    table.owner.execute("update app.slides set tenant = null where id = 1")
    told = table.add("tenant", fills={"tenant": "'acme'"})
    assert (told["rows_filled"], told["kept"][0]["state"]) == (0, "changed")
    assert table.one("select count(*) from app.slides where tenant is null") == 1


def test_two_tables_need_a_pack_differently(db: Database, table: Table) -> None:
    other = Table(db, "decks")
    other.owner.execute("alter table app.decks add tenant json")
    table.add("timestamps")
    table.add("tenant", fills={"tenant": "'acme'"})
    other.add("timestamps", options={"updated_at": "changed", "created_at": "made"})
    other.add(
        "tenant",
        options={"tenant": "org_id", "tenant_type": "uuid"},
        fills={"org_id": "gen_random_uuid()"},
    )
    assert table.columns()[3:] == ["created_at", "updated_at", "tenant"]
    assert other.columns()[3:] == ["tenant", "made", "changed", "org_id"]
    other.owner.execute("update app.decks set title = 'x' where id = 1")
    assert other.one("select changed > made from app.decks where id = 1")
    other.remove("timestamps")
    table.owner.execute("update app.slides set title = 'x' where id = 1")
    assert table.one("select updated_at > created_at from app.slides where id = 1")


# --- versions -------------------------------------------------------------------------------------

ONE = own(
    "rank int default 1 check (rank > 0), gone text",
    """create index on :"table" (rank);
       create or replace function :"schema".:"level"() returns int language sql as 'select 1';
       create or replace function :"schema".:"old"() returns int language sql as 'select 1';""",
)
TWO = own(
    "rank int not null default 2 check (rank >= 0), \"more\" text not null default ''",
    """create index on :"table" (rank, id);
       create or replace function :"schema".:"level"() returns int language sql as 'select 2';""",
    version=2,
)


def test_a_new_version(table: Table) -> None:
    table.add(ONE)
    told = table.add(TWO)
    assert told["kept"] == [{"kind": "column", "name": "gone", "state": "left"}]
    assert table.columns()[3:] == ["rank", "gone", "more"]
    table.owner.execute("insert into app.slides (id, title) values (0, '')")
    assert table.one("select rank from app.slides where id = 0") == 2
    table.owner.execute("update app.slides set rank = 0 where id = 1")  # the new check
    assert table.one("select app.level()") == 2
    assert table.one("select to_regproc('app.old')") is None
    assert "slides_rank_id_idx" in table.one(
        "select string_agg(indexrelid::regclass::text, ' ') from pg_index"
        " where indrelid = 'app.slides'::regclass"
    )
    assert "index slides_rank_idx" not in table.objects("stamped")
    with pytest.raises(psycopg.Error, match="version 2 of the pack already") as raised:
        table.add(ONE)
    assert refusal(raised) == ("invalid_request", "document.version")
    table.remove("stamped")
    assert table.columns()[3:] == ["gone"]


def test_a_new_version_leaves_what_the_user_changed(table: Table) -> None:
    table.add(ONE)
    table.owner.execute("alter table app.slides alter rank set default 7")
    table.owner.execute(
        "create or replace function app.level() returns int language sql as 'select 7'"
    )
    table.owner.execute("drop index app.slides_rank_idx")
    table.owner.execute("create index slides_rank_idx on app.slides (rank desc)")
    kept = {f"{k['kind']} {k['name']}": k["state"] for k in table.add(TWO)["kept"]}
    assert kept["index slides_rank_idx"] == "changed"  # which version 2 has no more
    assert table.one("select to_regclass('app.slides_rank_idx') is not null")
    assert kept["column rank"] == "changed"
    assert kept["function app.level()"] == "changed"
    assert table.one("select app.level()") == 7
    table.owner.execute("insert into app.slides (id, title) values (0, '')")
    assert table.one("select rank from app.slides where id = 0") == 7


def test_another_definition_is_another_version(table: Table) -> None:
    table.add(own("rank int"))
    with pytest.raises(psycopg.Error, match="another definition is another version") as raised:
        table.add(own("rank bigint"))
    assert refusal(raised) == ("invalid_request", "document")


# --- at once -------------------------------------------------------------------------------------


def test_two_calls_at_once(db: Database, table: Table) -> None:
    """Of a pack and a table: both succeed, and all of it is there once."""
    table.insert(101, 3000)
    pack = own(
        "code int not null, at timestamptz not null default now() check (at > '2000-1-1')",
        """create index on :"table" (at);
           create or replace function :"schema".:"table_at"() returns trigger language plpgsql
             as $$ begin return new; end $$;
           create trigger at before insert on :"table" for each row
             execute function :"schema".:"table_at"();""",
    )
    document = pack.on(table.name, {}, {"code": "id"}).document()
    failed: list[psycopg.Error] = []

    def add() -> None:
        try:
            call(db.connect("owner"), table.name, document, 100)
        except psycopg.Error as error:
            failed.append(error)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failed == []
    assert set(table.objects("stamped").values()) == {"made"}
    assert table.one("select count(*) from app.slides where code = id") == 3000


def test_what_others_make_meanwhile_is_theirs(db: Database, table: Table) -> None:
    """While the pack's trigger waits for somebody's lock, that one makes a function."""
    pack = own(
        "mark text",
        """create trigger at before update on :"table" for each row
             execute function suppress_redundant_updates_trigger();""",
    )
    other = db.connect("owner", autocommit=False)
    other.execute("lock table app.slides in share row exclusive mode")
    thread = threading.Thread(target=lambda: table.add(pack))
    thread.start()
    waits = "select from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
    watch = db.connect()
    while (
        thread.is_alive() and not watch.execute(waits, (table.owner.info.backend_pid,)).fetchall()
    ):
        time.sleep(0.01)
    assert thread.is_alive()
    other.execute("create function app.theirs() returns int language sql as 'select 1'")
    other.commit()
    thread.join()
    assert table.objects("stamped") == {"trigger at": "made"}


# --- locks ----------------------------------------------------------------------------------------


def test_its_waits_are_bounded(db: Database, table: Table) -> None:
    db.connect().execute("select concord.configure('lock_timeout', '50 ms')")
    with db.connect(autocommit=False) as other:
        other.execute("select from app.slides")
        table.owner.execute("set statement_timeout = '20 s'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            table.add("timestamps")
        assert table.one("show lock_timeout") == "0"
    assert table.columns() == ["id", "title", "mark"]
    assert table.objects("timestamps") == {}


def test_what_is_there_takes_no_lock(db: Database, table: Table) -> None:
    db.connect().execute("select concord.configure('lock_timeout', '50 ms')")
    table.add("tenant", fills={"tenant": "'acme'"})
    table.add("timestamps")
    with db.connect(autocommit=False) as other:
        other.execute("select from app.slides")
        table.add("tenant", fills={"tenant": "'acme'"})
        table.add("timestamps")


def test_a_large_table_gets_its_indexes_aside(table: Table) -> None:
    table.owner.execute("alter table app.slides alter title set storage plain")
    table.owner.execute(
        "insert into app.slides select g, repeat('x', 900) from generate_series(1000, 12000) g"
    )
    pack = own("rank int, code int not null unique", 'create index on :"table" (rank);')
    told = table.add(pack, fills={"code": "id"})
    assert table.objects("stamped")["index slides_rank_idx"] == "planned"
    assert len(told["todo"]) == 3
    for statement in told["todo"]:
        table.owner.execute(statement.encode())
    assert table.objects("stamped") == {
        "column rank": "made", "column code": "made", "constraint slides_code_key": "made",
        "index slides_rank_idx": "made",
    }  # fmt: skip
    assert table.add(pack, fills={"code": "id"})["todo"] == []
    table.remove("stamped")
    # One that was given up half-way is there, and is none.
    told = table.add(pack, fills={"code": "1"})
    with pytest.raises(psycopg.errors.UniqueViolation):
        table.owner.execute(told["todo"][0].encode())
    table.owner.execute("update app.slides set code = id")
    for (statement,) in table.owner.execute("select concord.todo('app.slides')").fetchall():
        table.owner.execute(statement.encode())
    assert set(table.objects("stamped").values()) == {"made"}
    table.remove("stamped")
    assert table.columns() == ["id", "title", "mark"]


# --- bad input ------------------------------------------------------------------------------------

GOOD: dict[str, Any] = own("rank int").on(TableName("app", "slides")).document()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"pack": "No"}, "document.pack"),
        ({"version": 0}, "document.version"),
        ({"version": "1"}, "document.version"),
        ({"more": []}, "document.more"),
        ({"indexes": None}, "document.indexes"),
        ({"columns": [{"name": "x"}]}, "document.columns[0]"),
        ({"columns": [{"name": "x", "type": "no_such_type", "notNull": False}]},
         "document.columns[0]"),
        ({"columns": [{"name": "x", "type": "int", "default": "'x'", "notNull": False}]},
         "document.columns[0]"),
        ({"statements": [1]}, "document.statements[0]"),
        ({"columns": [{"name": "x", "type": "int", "notNull": "maybe"}]},
         "document.columns[0].notNull"),
        ({"columns": [{"name": "x", "type": "int", "identity": "never"}]},
         "document.columns[0].identity"),
        ({"indexes": [{"name": "i", "definition": "(x)", "where": "x"}]},
         "document.indexes[0].where"),
    ],
)  # fmt: skip
def test_bad_documents(table: Table, change: dict[str, Any], param: str) -> None:
    with pytest.raises(psycopg.Error) as raised:
        call(table.owner, table.name, GOOD | change)
    assert refusal(raised) == ("invalid_request", param)
    assert table.columns() == ["id", "title", "mark"]


def test_a_fill_that_gives_nothing(table: Table) -> None:
    with pytest.raises(psycopg.Error, match="is null for some rows") as raised:
        table.add("tenant", fills={"tenant": "mark"})
    assert refusal(raised) == ("invalid_request", "columns.tenant")
    assert table.add("tenant", fills={"tenant": "'acme'"})["rows_filled"] == 100
    with pytest.raises(psycopg.Error, match="say what they have") as raised:
        table.add(own("must int not null"))
    assert refusal(raised) == ("invalid_request", "columns.must")


def test_only_the_tables_owner(db: Database, table: Table) -> None:
    for login in ("app", "plain"):
        with pytest.raises(psycopg.Error) as raised:
            call(db.connect(login), table.name, GOOD)
        assert refusal(raised) == ("forbidden", "rel")


def test_rows_behind_the_wall_cannot_be_filled(table: Table) -> None:
    table.add("tenant", fills={"tenant": "'acme'"})
    table.owner.execute("select concord.protect('app.slides', 'tenant')")
    with pytest.raises(psycopg.Error, match="row-level security hides rows") as raised:
        table.add(own("code int not null"), fills={"code": "id"})
    assert refusal(raised) == ("invalid_request", "rel")
    assert table.add("timestamps")["rows_filled"] == 0  # which fills none


def test_packs_of_a_pack_file(db: Database) -> None:
    assert isinstance(shipped()["tenant"], Pack)
