"""Ways in and out: CREATE EXTENSION, `pyconcord install`, `psql -f`; upgrade; uninstall; the wheel.

The servers are this module's own: one on a copy of the installation, so that `make install` has an
extension directory to write to, and one in whose cluster nobody ever made concord's roles.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from pyconcord import install
from pyconcord._files import source_files
from pyconcord.embedded import copy_installation, scratch_dir, server_version_dirs
from pyconcord.install import Files, FilesError, Installed, PackError, Upgrade
from tests.catalog import Snapshot, differences, snapshot
from tests.support import PG_VERSION, Database, OwnServer

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).resolve().parents[2]
FILES = Files.of_checkout(ROOT)
EXTENSION = Installed("extension", FILES.version)
OBJECTS = Installed("objects", FILES.version)

Connection = psycopg.Connection[Any]


# --- servers and databases ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bindir() -> Iterator[Path]:
    """A copy of the server's installation, with the extension's files on its disk."""
    target = scratch_dir("pyconcord-installation-")
    target.chmod(0o755)
    copied = copy_installation(server_version_dirs()[PG_VERSION], target)
    make("install", copied)
    yield copied
    shutil.rmtree(target)


@pytest.fixture(scope="module")
def cluster(bindir: Path) -> Iterator[OwnServer]:
    """A server whose superuser installs the pack, and so makes its roles."""
    with OwnServer(bindir=bindir) as running:
        with psycopg.connect(running.dsn(), autocommit=True) as connection:
            connection.execute("create role installer login")
        install_with_psql(running.db(install=False), None)
        yield running


@pytest.fixture(scope="module")
def bare_cluster(bindir: Path) -> Iterator[OwnServer]:
    """A server without concord's roles, where nobody but the superuser may create any."""
    with OwnServer(bindir=bindir) as running:
        with psycopg.connect(running.dsn(), autocommit=True) as connection:
            connection.execute("create role installer login")
        yield running


@pytest.fixture
def empty(cluster: OwnServer) -> Iterator[Database]:
    """A database without the pack, on a server that has its roles and its files."""
    database = cluster.db(install=False)
    yield database
    database.close()


def database_of(server: OwnServer, owner: str) -> Database:
    database = server.db(install=False)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(
            sql.SQL("alter database {} owner to {}").format(
                sql.Identifier(database.name), sql.Identifier(owner)
            )
        )
    return database


def make(target: str, bindir: Path) -> str:
    done = subprocess.run(
        ["make", "--no-print-directory", target, f"PG_CONFIG={bindir / 'pg_config'}"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def extension_dir(bindir: Path) -> Path:
    asked = subprocess.run(
        [bindir / "pg_config", "--sharedir"], capture_output=True, text=True, check=True
    )
    return Path(asked.stdout.strip()) / "extension"


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# --- the ways in ----------------------------------------------------------------------------------


def install_as_extension(database: Database, user: str | None) -> None:
    database.connect(user).execute("create extension concord")


def install_with_psql(database: Database, user: str | None) -> None:
    run_psql(database, user, "-1", "-f", str(ROOT / f"build/concord--{FILES.version}.sql"))


def install_with_python(database: Database, user: str | None) -> None:
    outcome = install.install(database.connect(user))
    assert (outcome.action, outcome.installed) == ("installed", OBJECTS)


def install_with_the_printed_script(database: Database, user: str | None) -> None:
    run_psql(database, user, stdin=install.install_plan().script())


Way = Callable[[Database, "str | None"], None]
WAYS: list[Way] = [
    install_as_extension,
    install_with_psql,
    install_with_python,
    install_with_the_printed_script,
]
every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__[8:])


def run_psql(database: Database, user: str | None, *options: str, stdin: str = "") -> None:
    subprocess.run(
        [str(database.server.bin("psql")), "-X", "-q", "-v", "ON_ERROR_STOP=1", *options]
        + ["-d", database.dsn(user)],
        input=stdin,
        text=True,
        check=True,
        capture_output=True,
    )


def use(connection: Connection) -> None:
    """The main thing: read, be refused because another wrote, read again, write."""

    def one(query: str, *parameters: object) -> Any:
        row = connection.execute(query.encode(), parameters or None).fetchone()
        assert row is not None
        return row[0]

    def commit(token: str) -> Any:
        operation = {"type": "update", "model": "notes", "id": "1", "data": {"title": "mine"}}
        request = {"readAt": token, "operations": [operation]}
        return one("select concord.try_commit(%s)", Jsonb(request))

    connection.execute("create table notes (id int primary key, title text not null)")
    connection.execute("insert into notes values (1, 'first')")
    one("select concord.track('notes')")
    one("select concord.act_as('acme', 'user', 'ada', is_local => false)")
    token = one("select concord.read('notes', '1')")["readAt"]
    connection.execute("update notes set title = 'theirs'")
    refused = commit(token)
    assert refused["error"]["code"] == "stale_context"
    assert commit(one("select concord.capture()"))["status"] == "confirmed"
    assert one("select title from notes") == "mine"
    assert one("select count(*) from concord.history('notes', '1')") == 2


@every_way
def test_every_way_in_works(way: Way, empty: Database) -> None:
    way(empty, None)
    use(empty.connect())
    expected = EXTENSION if way is install_as_extension else OBJECTS
    assert install.installed(empty.connect()) == expected


def test_every_way_in_leads_to_the_same(cluster: OwnServer) -> None:
    taken: list[Snapshot] = []
    for way in WAYS:
        database = cluster.db(install=False)
        way(database, None)
        taken.append(snapshot(database.connect()))
    for other in taken[1:]:
        assert differences(taken[0], other) == []
    assert "function concord.version()" in taken[0]


def test_the_comparison_sees_what_differs(cluster: OwnServer) -> None:
    one, other = cluster.db(install=False), cluster.db(install=False)
    for database in (one, other):
        install_with_python(database, None)
    connection = other.connect()
    before = snapshot(one.connect())
    for change in (
        "comment on function concord.version() is 'other words'",
        "grant execute on function concord.version() to plain",
        "alter function concord.version() set search_path = public",
        "alter function concord.version() owner to plain",
        "create table concord_internal.stray (id int)",
        "comment on schema concord is null",
    ):
        with connection.transaction(force_rollback=True):
            connection.execute(change.encode())
            assert differences(before, snapshot(connection)), change
    assert differences(before, snapshot(connection)) == []


# --- without the right to make roles --------------------------------------------------------------


def concord_roles(connection: Connection) -> list[str]:
    rows = connection.execute(
        "select rolname from pg_roles where rolname like 'concord%' order by 1"
    )
    return [name for (name,) in rows]


@every_way
def test_where_the_roles_can_not_be_made(way: Way, bare_cluster: OwnServer) -> None:
    database = database_of(bare_cluster, "installer")
    way(database, "installer")
    connection = database.connect("installer")
    assert concord_roles(connection) == []
    use(connection)


@every_way
def test_where_the_roles_are_there_and_not_the_installers(way: Way, cluster: OwnServer) -> None:
    database = database_of(cluster, "installer")
    way(database, "installer")
    use(database.connect("installer"))


@every_way
def test_an_installer_who_may_make_roles(way: Way, bindir: Path) -> None:
    with OwnServer(bindir=bindir) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create role installer login createrole")
        database = database_of(server, "installer")
        way(database, "installer")
        connection = database.connect("installer")
        assert concord_roles(connection) == sorted(install.ROLES)
        connection.execute("grant concord_app to app")
        install.install(connection, app_role="app")
        database.connect("app").execute("select concord.principal()")
        use(connection)
        assert install.uninstall(connection, force=True).for_administrator == ()
        acl = connection.execute(
            "select count(*) from pg_database, aclexplode(datacl)"
            " where grantee = 'concord_owner'::regrole"
        ).fetchone()
        assert acl == (0,)


def test_what_is_lacking_is_said_once_and_in_full(bare_cluster: OwnServer) -> None:
    database = database_of(bare_cluster, "installer")
    connection = database.connect("installer")
    outcome = install.install(connection, app_role="app", service=True)
    assert (outcome.action, outcome.notices) == ("installed", ())
    assert outcome.for_administrator == (
        "create role concord_app nologin;",
        "create role concord_service nologin;",
        "create role concord_owner nologin;",
        "grant concord_app to concord_service;",
        "grant concord_owner to installer;",
        "select concord_internal.settle();",
        'grant concord_app to "app";',
        'grant concord_service to "app";',
    )
    # Trying again says the same, and whoever does without a login for it is told the rest.
    again = install.install(connection)
    assert (again.action, again.for_administrator) == ("unchanged", outcome.for_administrator[:6])
    assert install.install(connection, app_role="app").action == "unchanged"


def test_psql_is_told_what_is_lacking_too(bare_cluster: OwnServer) -> None:
    connection = database_of(bare_cluster, "installer").connect("installer")
    hints: list[str] = []
    connection.add_notice_handler(lambda notice: hints.append(notice.message_hint or ""))
    connection.execute(FILES.script.encode())
    _, *lines = hints[0].splitlines()
    assert len(hints) == 1
    assert lines == [
        "create role concord_owner nologin; grant concord_owner to installer;",
        "create role concord_app nologin;",
        "create role concord_service nologin; grant concord_app to concord_service;",
        "select concord_internal.settle();",
    ]


def run_the_lines(admin: Connection, outcome: install.Outcome) -> None:
    for line in outcome.for_administrator:
        admin.execute(line.encode())


def run_the_remedies(admin: Connection, outcome: install.Outcome) -> None:
    query = "select remedy from concord.verify() where code <> 'trust_lost'"
    for (remedy,) in admin.execute(query).fetchall():
        admin.execute(remedy.encode())
    admin.execute("grant concord_service to app")


def install_again(admin: Connection, outcome: install.Outcome) -> None:
    again = install.install(admin, app_role="app", service=True)
    assert (again.action, again.for_administrator) == ("granted", ())


Cure = Callable[[Connection, install.Outcome], None]


@pytest.mark.parametrize("cure", [run_the_lines, run_the_remedies, install_again])
@pytest.mark.parametrize("way", [install_as_extension, install_with_python])
def test_what_was_lacking_is_made_good_later(way: Way, cure: Cure, bindir: Path) -> None:
    with OwnServer(bindir=bindir) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create role installer login")
        database = database_of(server, "installer")
        way(database, "installer")
        mine = database.connect("installer")
        outcome = install.install(mine, app_role="app", service=True)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.connect("app").execute("select concord.capture()")
        codes = "select code from concord.verify() group by 1 order by 1"
        assert mine.execute(codes).fetchall() == [("role_missing",), ("trust_lost",)]

        admin = database.connect()
        cure(admin, outcome)
        app = database.connect("app")
        app.execute("select concord.act_as('acme', 'user', 'ada', is_local => false)")
        app.execute("select concord.capture()")
        assert app.execute("select * from concord.conflicts").fetchall() == []
        assert admin.execute("select * from concord.verify()").fetchall() == []
        assert install.install(mine, app_role="app", service=True).for_administrator == ()

        # As if a superuser had installed it, and the installer may take it out again.
        fresh = server.db(install=False)
        way(fresh, None)
        assert differences(snapshot(fresh.connect()), snapshot(mine)) == []
        use(mine)
        install.uninstall(mine, force=True)


def test_roles_alone_are_half_of_it(bindir: Path) -> None:
    with OwnServer(bindir=bindir) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create role installer login")
        database = database_of(server, "installer")
        install.install(database.connect("installer"))
        admin = database.connect()
        for role in install.ROLES:
            admin.execute(f"create role {role} nologin".encode())
        admin.execute("grant concord_app to concord_service, app")
        query = "select level, code from concord.verify()"
        assert admin.execute(query).fetchall() == [
            ("warning", "owner_other"),
            ("error", "grants_missing"),
        ]
        # The owner may make the grants, and can't give its objects to a role it is no member of.
        mine = database.connect("installer")
        assert install.install(mine).for_administrator == (
            "grant concord_owner to installer;",
            "select concord_internal.settle();",
        )
        database.connect("app").execute("select concord.capture()")
        assert admin.execute(query).fetchall() == [("warning", "owner_other")]


@every_way
def test_the_readme_s_grants_work_after_every_way(way: Way, empty: Database) -> None:
    admin = empty.connect()
    admin.execute("drop role if exists web")
    admin.execute("create role web login")
    way(empty, None)
    (grants,) = re.findall(r"```sql\n(grant .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    admin.execute(grants.encode())
    web = empty.connect("web")
    web.execute("select concord.act_as('acme', 'user', 'ana', is_local => false)")
    web.execute("select concord.capture()")


def test_the_lines_for_an_administrator_work(bindir: Path) -> None:
    """What operations.md has for an installer dba and a login web."""
    text = (ROOT / "docs" / "operations.md").read_text().partition("**Without CREATEROLE.**")[2]
    lines = text.partition("```sql\n")[2].partition("```")[0]
    with OwnServer(bindir=bindir) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("create role dba login; create role web login")
        database = database_of(server, "dba")
        install_as_extension(database, "dba")
        database.connect().execute(lines.encode())
        database.connect("dba").execute("select concord.trust_login('web')")
        web = database.connect("web")
        web.execute("select concord.act_as('acme', 'user', 'ana', is_local => false)")
        web.execute("select concord.capture()")
        assert database.connect().execute("select * from concord.verify()").fetchall() == []


# --- grants ---------------------------------------------------------------------------------------


def is_member(connection: Connection, login: str, role: str) -> bool:
    row = connection.execute("select pg_has_role(%s, %s, 'member')", (login, role)).fetchone()
    assert row is not None
    return bool(row[0])


def test_an_application_role_is_granted_the_use_of_it(empty: Database) -> None:
    connection = empty.connect()
    for name in ("first login", "second"):
        role = sql.Identifier(name)
        connection.execute(sql.SQL("drop role if exists {}").format(role))
        connection.execute(sql.SQL("create role {} login").format(role))
    install.install(connection, app_role="first login")
    assert is_member(connection, "first login", "concord_app")
    assert not is_member(connection, "first login", "concord_service")

    # Again, for another one: nothing but the grants.
    outcome = install.install(connection, app_role="second", service=True)
    assert outcome.action == "granted"
    assert is_member(connection, "second", "concord_app")
    assert is_member(connection, "second", "concord_service")
    for name, may in (("first login", False), ("second", True)):
        mine = empty.connect(name)
        mine.execute(
            "select concord.act_as('acme', 'user', 'ada', is_local => false)" if may else "select 1"
        )
        row = mine.execute("select concord.principal()").fetchone()
        assert row is not None
        assert ("ada" in str(row[0])) is may
    assert install.install(connection).action == "unchanged"


def test_a_role_that_is_not_there_is_named_and_nothing_installed(empty: Database) -> None:
    connection = empty.connect()
    with pytest.raises(PackError, match="no role 'nobody-of-that-name'"):
        install.install(connection, app_role="nobody-of-that-name")
    assert install.installed(connection) is None


def test_service_without_a_login_is_refused(empty: Database) -> None:
    with pytest.raises(PackError, match="app_role"):
        install.install(empty.connect(), service=True)


def test_installing_joins_the_callers_transaction(empty: Database) -> None:
    connection = empty.connect(autocommit=False)
    install.install(connection)
    assert install.installed(connection) == OBJECTS
    connection.rollback()
    assert install.installed(connection) is None


def test_a_schema_of_that_name_is_not_taken_over(empty: Database) -> None:
    connection = empty.connect()
    connection.execute("create schema concord")
    with pytest.raises(PackError, match="schema concord that is not"):
        install.install(connection)


# --- out again ------------------------------------------------------------------------------------


def dump(database: Database) -> str:
    """The database's schema as pg_dump sees it."""
    done = subprocess.run(
        [database.server.bin("pg_dump"), "--schema-only", "-d", database.dsn()],
        check=True,
        capture_output=True,
        text=True,
    )
    # Newer versions guard the text with a random key.
    return re.sub(r"^\\(un)?restrict .*$", "", done.stdout, flags=re.MULTILINE)


USERS_OWN = """
create table public.decks (id uuid primary key, title text not null, org int, check (title <> ''));
create table public.slides (
  id bigint generated always as identity primary key,
  deck uuid references public.decks on delete cascade,
  body text,
  updated_at timestamptz default now()
);
create table public.events (id int, day date, primary key (id, day)) partition by range (day);
create table public.events_old partition of public.events
  for values from (minvalue) to ('2000-01-01');
create table public.events_new partition of public.events default;
create function public.touch() returns trigger language plpgsql
  as $$ begin new.updated_at := now(); return new; end $$;
create trigger touch before update on public.slides for each row execute function public.touch();
grant select on public.slides to plain;
alter table public.decks enable row level security;
create policy all_of_it on public.decks using (true);
"""


@pytest.mark.parametrize("way", [install_as_extension, install_with_python])
def test_nothing_is_left_behind(way: Way, empty: Database) -> None:
    connection = empty.connect()
    connection.execute(USERS_OWN.encode())
    before = dump(empty)

    way(empty, None)
    for table in ("decks", "events", "slides"):
        connection.execute("select concord.track(%s::text::regclass)", (table,))
    connection.execute("insert into decks values (gen_random_uuid(), 'one')")
    connection.execute("insert into slides (deck, body) select id, title from decks")
    assert dump(empty) != before

    with pytest.raises(
        PackError, match=r"3 tables are tracked or protected \(decks, events, slides\)"
    ):
        install.uninstall(connection)
    outcome = install.uninstall(connection, force=True)
    assert (outcome.action, outcome.installed) == ("uninstalled", None)
    assert dump(empty) == before
    assert connection.execute("select count(*) from slides").fetchone() == (1,)
    assert install.uninstall(connection).action == "unchanged"

    # And in again.
    way(empty, None)
    use(connection)


def test_the_printed_script_uninstalls_too(empty: Database) -> None:
    connection = empty.connect()
    before = dump(empty)
    install.install(connection)
    connection.execute('create table "odd \'name" (id int primary key)')
    connection.execute("select concord.track('\"odd ''name\"')")
    run_psql(empty, None, stdin=install.uninstall_plan(connection, force=True).script())
    connection.execute('drop table "odd \'name"')
    assert dump(empty) == before


@pytest.mark.parametrize("way", [install_as_extension, install_with_python])
def test_what_the_user_built_on_it_is_not_dropped(way: Way, empty: Database) -> None:
    way(empty, None)
    connection = empty.connect()
    connection.execute("create view public.mine as select concord.version() as version")
    with pytest.raises(PackError, match=r"depend on concord: .*view mine"):
        install.uninstall(connection, force=True)
    connection.execute("drop view public.mine")
    connection.execute("create table public.kept (change concord.change)")
    with pytest.raises(PackError, match=r"depend on concord: .*kept"):
        install.uninstall(connection, force=True)
    connection.execute("drop table public.kept")
    assert install.uninstall(connection).action == "uninstalled"


@pytest.mark.parametrize("way", [install_as_extension, install_with_python])
def test_packs_and_the_wall_outlive_dump_and_restore(
    way: Way, cluster: OwnServer, empty: Database, tmp_path: Path
) -> None:
    """What is noted of them is data, which a dump of an extension carries only when told to."""
    from psycopg.types.json import Jsonb

    from pyconcord.packs import TableName, find

    way(empty, None)
    connection = empty.connect()
    connection.execute("create table slides (id int primary key)")
    before = dump(empty)
    for name in ("tenant", "timestamps"):
        document = find(name).on(TableName("public", "slides")).document()
        connection.execute("call concord.add_pack('slides', %s)", (Jsonb(document),))
    connection.execute("select concord.protect('slides', 'tenant')")
    with pytest.raises(PackError, match="tables are tracked or protected"):
        install.uninstall(connection)
    file = tmp_path / "dump"
    subprocess.run([cluster.bin("pg_dump"), "-Fc", "-f", file, "-d", empty.dsn()], check=True)
    copy = cluster.db(install=False)
    subprocess.run([cluster.bin("pg_restore"), "-d", copy.dsn(), file], check=True)
    there = copy.connect()
    shown = "select rel::text, pack, version, objects from concord.packs order by pack"
    assert there.execute(shown).fetchall() == connection.execute(shown).fetchall() != []
    there.execute("select concord.unprotect('slides')")
    with pytest.raises(PackError, match=r"1 tables have column packs \(.*slides\)"):
        install.uninstall(there)
    for name in ("timestamps", "tenant"):
        there.execute("select concord.remove_pack('slides', %s)", (name,))
    assert dump(copy) == before


def test_the_owner_of_the_database_takes_out_what_a_superuser_put_in(cluster: OwnServer) -> None:
    database = database_of(cluster, "installer")
    mine, admin = database.connect("installer"), database.connect()
    admin.execute("create extension concord")
    with pytest.raises(PackError, match=r"belongs to postgres.*: a superuser has to uninstall it$"):
        install.uninstall(mine)
    install.uninstall(admin)
    install.install(admin)
    with pytest.raises(PackError, match=r"grant concord_owner to installer;$"):
        install.uninstall(mine)
    admin.execute("grant concord_owner to installer")
    try:
        assert install.uninstall(mine).action == "uninstalled"
    finally:
        admin.execute("revoke concord_owner from installer")


def test_the_roles_go_when_asked_and_nothing_else_uses_them(cluster: OwnServer) -> None:
    with OwnServer(bindir=cluster.bindir) as server:
        one, other = server.db(), server.db()
        assert len(concord_roles(one.connect())) == 3
        (kept,) = install.uninstall(one.connect(), drop_roles=True).kept
        # The other database still uses them.
        assert "cannot be dropped" in kept
        assert f"in database {other.name}" in kept
        assert len(concord_roles(one.connect())) == 3
        assert install.uninstall(other.connect(), drop_roles=True).kept == ()
        assert concord_roles(one.connect()) == []


def test_make_uninstall_removes_exactly_what_make_install_put_there(bindir: Path) -> None:
    directory = extension_dir(bindir)
    names = {"concord.control", f"concord--{FILES.version}.sql"}
    names |= {upgrade.file_name for upgrade in FILES.upgrades.values()}
    with_it = names_in(directory)
    assert names <= with_it
    for name in names:
        assert (directory / name).stat().st_mode & 0o444 == 0o444
    try:
        make("uninstall", bindir)
        assert names_in(directory) == with_it - names
    finally:
        make("install", bindir)
    assert names_in(directory) == with_it


# --- upgrade --------------------------------------------------------------------------------------


def source_of(name: str) -> str:
    """The source file that creates a function."""
    pattern = re.compile(rf"^create (or replace )?function {re.escape(name)}\(", re.MULTILINE)
    texts = [path.read_text() for path in source_files(ROOT / "sql")]
    found = [text for text in texts if pattern.search(text)]
    assert len(found) == 1, name
    return found[0]


def with_made_up_past() -> tuple[Files, Files]:
    """Version 0.0.9, which had no `forget` yet, and today's with the script that leads here."""
    version, forget = source_of("concord.version"), source_of("concord.forget")
    assert f"'{FILES.version}'" in version
    old = dataclasses.replace(
        FILES,
        control=FILES.control.replace(f"'{FILES.version}'", "'0.0.9'"),
        script=FILES.script.replace(forget, "").replace(
            version, version.replace(f"'{FILES.version}'", "'0.0.9'")
        ),
        upgrades={},
    )
    owner = (ROOT / "sql" / "99_owner" / "10_owner.sql").read_text()
    script = version.replace("create function", "create or replace function") + forget + owner
    step = Upgrade("0.0.9", FILES.version, script)
    return old, dataclasses.replace(FILES, upgrades={("0.0.9", FILES.version): step})


def test_an_upgraded_install_is_a_fresh_one(cluster: OwnServer) -> None:
    old, new = with_made_up_past()
    fresh, upgraded = cluster.db(install=False), cluster.db(install=False)
    install.install(fresh.connect())
    connection = upgraded.connect()
    assert install.install(connection, files=old).installed == Installed("objects", "0.0.9")
    assert differences(snapshot(fresh.connect()), snapshot(connection)) != []

    with pytest.raises(PackError, match=r"0\.0\.9.*upgrade"):
        install.install(connection, files=new)
    outcome = install.upgrade(connection, files=new)
    assert (outcome.action, outcome.installed) == ("upgraded", OBJECTS)
    assert differences(snapshot(fresh.connect()), snapshot(connection)) == []
    assert install.upgrade(connection, files=new).action == "unchanged"
    use(connection)


def test_an_upgraded_extension_is_a_fresh_one(cluster: OwnServer, tmp_path: Path) -> None:
    old, new = with_made_up_past()
    directory = extension_dir(cluster.bindir)
    fresh, upgraded = cluster.db(install=False), cluster.db(install=False)
    install_as_extension(fresh, None)
    connection = upgraded.connect()
    added = [
        path
        for path in [*old.write(tmp_path / "old"), *new.write(tmp_path / "new")]
        if not (directory / path.name).exists()
    ]
    assert len(added) == 2
    try:
        for path in added[:1]:
            shutil.copy(path, directory)
        connection.execute("create extension concord version '0.0.9'")
        with pytest.raises(PackError, match="no files for"):
            install.upgrade(connection, files=new)
        shutil.copy(added[1], directory)
        outcome = install.upgrade(connection, files=new)
    finally:
        for path in added:
            (directory / path.name).unlink(missing_ok=True)
    assert (outcome.action, outcome.installed) == ("upgraded", EXTENSION)
    assert differences(snapshot(fresh.connect()), snapshot(connection)) == []
    use(connection)


def test_every_supported_release_upgrades_to_this_one(cluster: OwnServer) -> None:
    fresh = cluster.db(install=False)
    install.install(fresh.connect())
    for path in sorted((ROOT / "migrations" / "base").glob("concord--*.sql")):
        version = path.stem.removeprefix("concord--")
        control = FILES.control.replace(f"'{FILES.version}'", f"'{version}'")
        connection = cluster.db(install=False).connect()
        install.install(connection, files=Files(control, path.read_text(), {}))
        install.upgrade(connection)
        assert differences(snapshot(fresh.connect()), snapshot(connection)) == [], path.name


def test_an_upgrade_that_fails_changes_nothing(empty: Database) -> None:
    old, new = with_made_up_past()
    connection = empty.connect()
    install.install(connection, files=old)
    before = snapshot(connection)
    (step,) = new.upgrades.values()
    for script, error in (
        (step.sql + "select 1/0;", psycopg.errors.DivisionByZero),
        # It ran, and did not lead to the version it is named after.
        (step.sql.replace(f"'{FILES.version}'", "'0.0.10'"), PackError),
    ):
        broken = dataclasses.replace(step, sql=script)
        files = dataclasses.replace(new, upgrades={(step.source, step.target): broken})
        with pytest.raises(error):
            install.upgrade(connection, files=files)
        assert differences(before, snapshot(connection)) == []


def test_upgrades_take_the_fewest_scripts() -> None:
    steps = [("1", "2"), ("2", "3"), ("3", "4"), ("1", "3"), ("3", "2"), ("4", "1")]
    control = FILES.control.replace(f"'{FILES.version}'", "'4'")
    files = Files(control, "", {(a, b): Upgrade(a, b, f"-- {a} {b}") for a, b in steps})
    assert [(step.source, step.target) for step in files.chain("1")] == [("1", "3"), ("3", "4")]
    assert [(step.source, step.target) for step in files.chain("4", "2")] == [
        ("4", "1"),
        ("1", "2"),
    ]
    assert files.chain("4") == []
    with pytest.raises(FilesError, match="from concord 0 to 4"):
        files.chain("0")


def test_there_is_nothing_to_upgrade_in_an_empty_database(empty: Database) -> None:
    with pytest.raises(PackError, match="install"):
        install.upgrade(empty.connect())


# --- the files ------------------------------------------------------------------------------------


def test_the_script_calls_itself_what_its_file_is_called(empty: Database) -> None:
    connection = empty.connect()
    install.install(connection)
    assert connection.execute("select concord.version()").fetchone() == (FILES.version,)


def test_make_and_python_put_the_same_script_together() -> None:
    subprocess.run(["make", "sql"], cwd=ROOT, check=True, capture_output=True)
    built = (ROOT / f"build/concord--{FILES.version}.sql").read_bytes()
    assert built == FILES.script.encode()
    assert not re.search(r"^\\", FILES.script, re.MULTILINE), "psql commands are for psql alone"
    assert not re.search(r"^(begin|commit);", FILES.script, re.MULTILINE | re.IGNORECASE)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel, built from an unpacked source distribution."""

    def build(kind: str, where: Path) -> Path:
        out = tmp_path / kind
        subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)],
            cwd=where,
            check=True,
            capture_output=True,
        )
        (built,) = out.iterdir()
        return built

    shutil.unpack_archive(build("sdist", ROOT), tmp_path / "unpacked")
    (source,) = (tmp_path / "unpacked").iterdir()
    return build("wheel", source)


def test_the_wheel_carries_the_pack(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert Files.of_directory(tmp_path / "site" / "pyconcord" / "_pack") == FILES
    names = {str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*")}
    assert "pyconcord/py.typed" in names
    assert "pyconcord/schemas/request.schema.json" in names
    assert "pyconcord/packs/shipped/tenant.sql" in names
    assert not any(name.split("/")[0] in ("tests", "sql", "tools", "bench") for name in names)

    program = (
        "from pyconcord import install; print(install.__file__); print(install.script(), end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
    )
    where, _, script = done.stdout.partition("\n")
    assert Path(where).is_relative_to(tmp_path)
    assert script == FILES.script
