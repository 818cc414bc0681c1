"""The command line as a user runs it: a process of its own, its output and its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema
import psycopg
import pytest
import typer

import pyconcord
from pyconcord import install, schemas
from pyconcord.cli.session import Session
from tests.support import Database, OwnServer

NOBODY_THERE = "postgresql://nobody@/nothing?host=/nonexistent"
UUID = "11111111-1111-1111-1111-111111111111"


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would say where to connect or how to print."""
    drop = ("PG", "DATABASE_URL", "FORCE_COLOR", "COLUMNS")
    return {k: v for k, v in os.environ.items() if not k.startswith(drop)} | more


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pyconcord.cli", *arguments]


def cli(*arguments: str, exit: int = 0, **env: str) -> str:
    """Run it, expect an exit code, and answer what it printed (where it failed: the message)."""
    done = subprocess.run(
        command(*arguments), env=environment(**env), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == exit, (done.returncode, done.stdout, done.stderr)
    assert "\x1b" not in done.stdout + done.stderr, "no colour where there is no terminal"
    assert "Traceback" not in done.stderr
    if exit not in (0, 1):
        assert done.stdout == ""
        return done.stderr
    return done.stdout


def told(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it, whatever comes of it."""
    return subprocess.run(
        command(*arguments), env=environment(), capture_output=True, text=True, timeout=60
    )


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """While it runs. It is interrupted in the end, as by Ctrl-C, if it has not ended."""
    with subprocess.Popen(
        command(*arguments),
        env=environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Ignored signals are inherited, as SIGINT is below nohup: the child would not end.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)


@pytest.fixture
def slides(db: Database) -> Database:
    """A table, not tracked."""
    db.connect().execute(
        "create table slides (id uuid primary key, deck_id int, title text, note text);"
        "grant select, insert, update, delete on slides to app"
    )
    return db


@pytest.fixture
def tracked(slides: Database) -> Database:
    """The same, tracked and with a row; `app` acts for acme."""
    cli("track", "slides", slides.dsn(), "--group", "deck:{deck_id}")
    slides.connect().execute("insert into slides values (%s, 7, 'first', 'n')", (UUID,))
    return slides


def acting(db: Database) -> psycopg.Connection[Any]:
    connection = db.connect("app")
    connection.execute("select concord.act_as('acme', 'agent', 'writer', is_local => false)")
    return connection


# --- the pack -------------------------------------------------------------------------------------


def test_install_prints_the_script_without_a_connection() -> None:
    printed = cli("install", "--sql", "--app-role", "web", "--service")
    assert printed == install.install_plan(app_role="web", service=True).script()


def test_in_and_out_again(db: Database) -> None:
    there = f"concord {pyconcord.__version__}, as plain objects"
    assert cli("install", db.dsn()) == f"unchanged: {there}\n"
    assert cli("install", db.dsn(), "--app-role", "app2") == f"granted: {there}\n"
    assert cli("upgrade", db.dsn()) == f"unchanged: {there}\n"
    assert "drop schema concord" in cli("uninstall", db.dsn(), "--sql")
    told = json.loads(cli("uninstall", "--dsn", db.dsn(), "--json"))
    assert told["action"] == "uninstalled"
    assert told["installed"] is None
    assert cli("uninstall", DATABASE_URL=db.dsn()) == "unchanged: no concord here\n"
    assert cli("install", DATABASE_URL=db.dsn()) == f"installed: {there}\n"


def test_grants_that_could_not_be_made_are_an_error(own_server: OwnServer) -> None:
    database = own_server.db(install=False)
    database.connect().execute(f"alter database {database.name} owner to owner".encode())
    arguments = ("install", database.dsn("owner"), "--app-role", "app", "--service")
    done = told(*arguments)
    assert done.returncode == 1
    heading, *lines = done.stderr.splitlines()
    assert heading == "An administrator has to run, in this database, before it is of use:"
    assert [line.strip() for line in lines][-3:] == [
        "select concord_internal.settle();",
        'grant concord_app to "app";',
        'grant concord_service to "app";',
    ]
    assert told(*arguments).stderr == done.stderr
    assert "not concord_owner" not in cli("install", database.dsn("owner"))
    for line in lines:
        database.connect().execute(line.encode())
    done = told(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    cli("tail", database.dsn("app"), "--no-follow", "--tenant", "acme")
    # What only the hand-over is lacking to is of use.
    database.connect().execute("revoke concord_owner from owner")
    assert told(*arguments).returncode == 0


def test_uninstall_says_what_it_did(db: Database) -> None:
    done = told("uninstall", db.dsn(), "--drop-roles")
    assert done.stdout == "uninstalled: the pack and its log\n"
    # The template of these tests' databases has the pack, too.
    (kept,) = done.stderr.splitlines()
    assert kept.startswith("kept: role ")
    assert "because some objects depend on it" in kept


def test_uninstall_spares_tracked_tables_unless_told(tracked: Database) -> None:
    assert "1 tables are tracked or protected" in cli("uninstall", tracked.dsn(), exit=4)
    assert "concord.untrack('slides')" in cli("uninstall", tracked.dsn(), "--force", "--sql")
    assert json.loads(cli("models", tracked.dsn(), "--json"))
    cli("uninstall", tracked.dsn(), "--force")
    query = "select count(*) from pg_trigger where tgrelid = 'slides'::regclass"
    assert tracked.connect().execute(query).fetchone() == (0,)


# --- tables ---------------------------------------------------------------------------------------


def test_track_prints_and_runs_the_same(slides: Database) -> None:
    definition = ["--name", "pages", "--group", "deck:{deck_id}", "--ignore", "note"]
    definition += ["--detail", "names", "--on-stale", "agent=notify"]
    printed = cli("track", "slides", *definition, "--sql")
    assert "models" not in cli("models", slides.dsn())
    assert cli("models", slides.dsn()) == "no table is tracked\n"
    model = json.loads(cli("track", "slides", slides.dsn(), *definition, "--json"))
    slides.connect().execute(printed.encode())
    assert (model["name"], model["groups"]) == ("pages", ["deck:{deck_id}"])
    assert json.loads(cli("models", slides.dsn(), "--json")) == [model]
    assert "pages" in cli("models", slides.dsn())
    assert cli("untrack", "slides", "--sql") == "select concord.untrack(rel => 'slides');\n"
    assert cli("untrack", "slides", slides.dsn()) == "untracked: slides\n"
    assert cli("models", slides.dsn()) == "no table is tracked\n"


def test_names_are_quoted(db: Database) -> None:
    db.connect().execute("""create table "it's" (id int primary key, "a ""b" text)""")
    model = json.loads(cli("track", '''"it's"''', db.dsn(), "--secret", 'a "b', "--json"))
    assert model["secret_fields"] == ['a "b']


def test_verify_says_what_is_wrong(tracked: Database) -> None:
    assert not [
        f for f in json.loads(cli("verify", tracked.dsn(), "--json")) if f["level"] == "error"
    ]
    tracked.connect().execute("alter table slides disable trigger concord_update")
    told = cli("verify", tracked.dsn(), exit=1)
    assert "trigger_disabled" in told
    assert "enable trigger concord_update" in told


def test_maintain_once_and_again(db: Database) -> None:
    assert cli("maintain", "--sql") == "select concord.maintain();\n"
    assert cli("maintain", db.dsn()).startswith("maintained: ")
    report = cli("maintain", db.dsn(), "--json")
    assert set(json.loads(report)) >= {"pruned", "put_off"}
    assert report.startswith("{\n  "), "as the other commands print it"
    with running("maintain", db.dsn(), "--every", "0.1s") as process:
        assert process.stdout is not None
        assert [process.stdout.readline()[:11] for _ in range(2)] == ["maintained:"] * 2
    assert process.returncode == 130
    assert "--every" in cli("maintain", db.dsn(), "--every", "soon", exit=2)


# --- the log --------------------------------------------------------------------------------------


def test_history(tracked: Database) -> None:
    acting(tracked).execute("update slides set title = 'second'")
    rows = json.loads(cli("history", "slides", UUID, tracked.dsn(), "--json"))
    assert [(r["op"], r["fields"], r["before"]) for r in rows] == [
        ("update", ["title"], {"title": "first"}),
        ("create", None, None),
    ]
    told = cli("history", "slides", UUID, tracked.dsn(), "--max", "1")
    assert "agent writer" in told
    assert "create" not in told
    absent = UUID.replace("1", "2")
    assert (
        cli("history", "slides", absent, tracked.dsn()) == "the log holds no change of this row\n"
    )


def test_conflicts(tracked: Database) -> None:
    assert cli("conflicts", tracked.dsn()) == "no write was held\n"
    connection = acting(tracked)
    read = connection.execute("select concord.read('slides', %s)", (UUID,)).fetchone()
    assert read is not None
    tracked.connect().execute("update slides set title = 'theirs'")
    operation = {"type": "update", "model": "slides", "id": UUID, "data": {"title": "mine"}}
    request = {"readAt": read[0]["readAt"], "onStale": "notify", "operations": [operation]}
    connection.execute("select concord.commit(%s)", (json.dumps(request),))
    (held,) = json.loads(cli("conflicts", tracked.dsn(), "--json"))
    assert (held["model"], held["id"], held["fields"]) == ("slides", UUID, ["title"])
    assert "agent writer" in cli("conflicts", tracked.dsn())
    assert "agent writer" in cli("conflicts", tracked.dsn("app"), "--tenant", "acme")
    assert cli("conflicts", tracked.dsn("app"), "--tenant", "other") == "no write was held\n"


def test_tail_to_the_end(tracked: Database) -> None:
    acting(tracked).execute("update slides set title = 'second'")
    lines = cli("tail", tracked.dsn(), "--all", "--no-follow").splitlines()
    assert [line.split("  ")[1:3] for line in lines] == [
        ["create", f"slides {UUID}"],
        ["update", f"slides {UUID}"],
    ]
    rows = [
        json.loads(one)
        for one in cli("tail", tracked.dsn(), "--all", "--no-follow", "--json").splitlines()
    ]
    assert [row["op"] for row in rows] == ["create", "update", "checkpoint"]
    for row in rows:
        jsonschema.validate(row, schemas.load("change"))
    # From a position on: what came after it, and nothing twice.
    rest = cli("tail", tracked.dsn(), "--since", rows[0]["next_token"], "--no-follow")
    assert rest.splitlines() == lines[1:]
    assert cli("tail", tracked.dsn(), "--no-follow") == ""


def test_tail_follows(tracked: Database) -> None:
    writer = acting(tracked)
    with running("tail", tracked.dsn(), "--interval", "0.1", "--all") as process:
        assert process.stdout is not None
        assert "create" in process.stdout.readline()
        writer.execute("update slides set title = 'second'")
        assert "update" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
    assert process.returncode == 130
    position = told.split("--since '")[1].split("'")[0]
    writer.execute("delete from slides")
    assert "delete" in cli("tail", tracked.dsn(), "--since", position, "--no-follow")


def test_interrupts_reach_a_child_where_they_are_ignored(tracked: Database) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with running("tail", tracked.dsn(), "--all") as process:
            assert process.stdout is not None
            assert "create" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            process.wait(20)
    finally:
        process.kill()
        signal.signal(signal.SIGINT, before)
    assert process.returncode == 130


def test_the_tests_end_in_order_on_sigterm() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_a_reader_that_has_seen_enough(tracked: Database) -> None:
    writer = acting(tracked)
    with running("tail", tracked.dsn(), "--interval", "0.05", "--all") as process:
        assert process.stdout is not None
        assert "create" in process.stdout.readline()
        process.stdout.close()
        writer.execute("update slides set title = 'second'")
        assert process.wait(20) == -signal.SIGPIPE
        assert process.stderr is not None
        assert process.stderr.read() == ""


# --- somebody in the way --------------------------------------------------------------------------


def test_says_who_is_in_the_way_and_tries_again(slides: Database) -> None:
    slides.connect().execute("select concord.configure('lock_timeout', '1 s')")
    holder = slides.connect("app", autocommit=False, application_name="a batch job")
    holder.execute("insert into slides values (%s, 1, 'x', 'y')", (UUID,))
    with running("track", "slides", slides.dsn()) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert f"waiting for pid {holder.info.backend_pid}" in first
        assert "application a batch job, user app, in a transaction since" in first
        assert "trying again" in process.stderr.readline()
        holder.rollback()
        out, _ = process.communicate()
    assert process.returncode == 0
    assert out.startswith("tracked: ")


def test_gives_up_in_the_end(slides: Database) -> None:
    slides.connect().execute("select concord.configure('lock_timeout', '10 ms')")
    holder = slides.connect(autocommit=False)
    holder.execute("lock table slides")
    told = cli("track", "slides", slides.dsn(), exit=5)
    assert "given up after 6 tries" in told
    error = json.loads(cli("track", "slides", slides.dsn(), "--json", exit=5).splitlines()[-1])
    assert error["error"]["code"] == "contended"


def test_what_is_tried_once_does_not_speak_of_tries(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end, Session(None).answering():
        raise psycopg.errors.LockNotAvailable("canceling statement due to lock timeout")
    assert end.value.exit_code == 5
    assert capsys.readouterr().err == "pyconcord: canceling statement due to lock timeout\n"


# --- what is wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["models"],
        ["verify"],
        ["conflicts"],
        ["tail"],
        ["maintain"],
        ["history", "slides", "1"],
        ["track", "slides"],
        ["untrack", "slides"],
        ["install"],
        ["upgrade"],
        ["uninstall"],
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_no_server(arguments: list[str]) -> None:
    assert "nonexistent" in cli(*arguments, DATABASE_URL=NOBODY_THERE, exit=3)


def test_sql_that_depends_on_the_database_says_so() -> None:
    for name in ("uninstall", "upgrade"):
        assert "--sql asks the database" in cli(name, "--sql", NOBODY_THERE, exit=3)
        assert "--sql asks the database" in cli(name, "--help")
    assert "--sql" not in cli("uninstall", NOBODY_THERE, exit=3)


def test_no_server_for_the_demo() -> None:
    assert "pyconcord demo:" in cli("demo", NOBODY_THERE, exit=2)


def test_no_concord(db: Database) -> None:
    cli("uninstall", db.dsn())
    for arguments in (["models"], ["verify"], ["maintain"], ["track", "pg_class"], ["upgrade"]):
        assert "install" in cli(*arguments, DATABASE_URL=db.dsn(), exit=4)


def test_refusals(slides: Database) -> None:
    dsn = slides.dsn()
    assert "forbidden" in cli("track", "slides", slides.dsn("app"), "--json", exit=4)
    foreign = "pyconcord: only the owner of the table may do this\n"
    assert cli("track", "slides", slides.dsn("app"), exit=4) == foreign
    assert cli("track", "slides", dsn, "--detail", "all", exit=4).startswith("pyconcord: --detail:")
    assert "--ignore: " in cli("track", "slides", dsn, "--ignore", "ghost", exit=4)
    assert "nowhere" in cli("track", "nowhere", dsn, exit=4)
    assert "not tracked" in cli("untrack", "slides", dsn, exit=4)
    assert "no role 'ghost'" in cli("install", dsn, "--app-role", "ghost", exit=4)
    assert "nothing" in cli("history", "nothing", "1", dsn, exit=4)
    told = json.loads(cli("tail", dsn, "--since", "kcf1.x", "--no-follow", "--json", exit=4))
    assert told["error"]["code"] == "token_invalid"
    for arguments in (["conflicts"], ["history", "slides", "1"], ["tail", "--no-follow"]):
        denied = cli(*arguments, "--dsn", slides.dsn("plain"), exit=4)
        assert "permission denied" in denied
        assert "the login plain needs: grant concord_app to plain;" in denied
    denied = cli("conflicts", slides.dsn("app2"), "--tenant", "acme", exit=4)
    assert "grant concord_service to app2; select concord.trust_login('app2');" in denied


def test_a_table_whose_name_takes_quotes(db: Database) -> None:
    db.connect().execute('create table "Order Lines" (id int primary key); create table "T" ()')
    for name in ("Order Lines", "T"):
        assert f"""pyconcord … '"{name}"'""" in cli("track", name, db.dsn(), exit=4)
    assert "quotes" not in cli("track", "nowhere", db.dsn(), exit=4)
    assert cli("track", '"Order Lines"', db.dsn()).startswith('tracked: rel "Order Lines"')


def test_uninstall_leaves_tables_to_their_owners(db: Database) -> None:
    connection = db.connect()
    connection.execute("create table mine (id int primary key); select concord.track('mine')")
    connection.execute("grant concord_owner to owner")
    try:
        refused = cli("uninstall", db.dsn("owner"), "--force", exit=4)
    finally:
        connection.execute("revoke concord_owner from owner")
    assert refused == "pyconcord: only their owners can untrack and unprotect mine\n"


def test_wrong_command_lines(db: Database) -> None:
    cli("tail", db.dsn(), "--since", "x", "--all", exit=2)
    cli("models", db.dsn(), "--dsn", db.dsn(), exit=2)
    cli("track", "slides", db.dsn(), "--on-stale", "agent", exit=2)
    cli("history", "slides", exit=2)
    cli("fly", exit=2)
    for wrong in ("acme", "mysql://root@localhost/x"):
        assert "expected postgresql://" in cli("models", wrong, exit=2)
        assert "DATABASE_URL" in cli("verify", DATABASE_URL=wrong, exit=2)


# --- the rest -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", schemas.names)
def test_schema(name: str) -> None:
    assert json.loads(cli("schema", name)) == schemas.load(name)


def test_schemas_are_listed() -> None:
    assert cli("schema").split() == list(schemas.names)


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyconcord", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"{pyconcord.__version__}\n"


def test_schema_that_is_not_there() -> None:
    assert "receipt" in cli("schema", "nothing", exit=2)


def test_connects_by_the_pg_variables(db: Database) -> None:
    known = psycopg.conninfo.conninfo_to_dict(db.dsn())
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "dbname": "PGDATABASE"}
    names["password"] = "PGPASSWORD"
    env: Any = {names[k]: str(v) for k, v in known.items() if k in names}
    assert cli("models", exit=0, **env) == "no table is tracked\n"


def test_version_and_help() -> None:
    assert cli("--version") == f"{pyconcord.__version__}\n"
    assert "\n    130  interrupted\n" in cli("--help")
    for name in ("install", "upgrade", "uninstall", "track", "untrack", "maintain"):
        assert "--sql" in cli(name, "--help")


# --- the wall -------------------------------------------------------------------------------------


def test_protect_builds_what_it_needs(slides: Database) -> None:
    slides.connect().execute("alter table slides add tenant text")
    slides.connect().execute("create policy old on slides using (true)")
    definition = ["--tenant-column", "tenant", "--writable", '{"update": "any"}']
    assert "no column" in cli(
        "protect", "slides", slides.dsn(), *definition, "--owner-column", "author", exit=4
    )
    slides.connect().execute("alter table slides add author text")
    definition += ["--owner-column", "author"]
    printed = cli("protect", "slides", *definition, "--sql")
    done = told("protect", "slides", slides.dsn(), *definition)
    assert done.returncode == 0
    assert (
        "create index concurrently if not exists concord_wall_slides on public.slides (tenant);"
        in done.stdout
    )
    assert "validate constraint concord_has_tenant" in done.stdout
    assert "policy old has no effect" in done.stderr
    again = json.loads(cli("protect", "slides", slides.dsn(), *definition, "--json"))
    assert again["todo"] == []
    assert again["writable"] == {"update": "any"}
    slides.connect().execute(printed.encode())
    assert cli("unprotect", "slides", "--sql") == "select concord.unprotect(rel => 'slides');\n"
    assert cli("unprotect", "slides", slides.dsn()) == "unprotected: slides\n"


def test_protect_says_which_rows_are_nobodys(slides: Database) -> None:
    slides.connect().execute("alter table slides add tenant text")
    slides.connect().execute("insert into slides (id) values (gen_random_uuid())")
    done = told("protect", "slides", slides.dsn(), "--tenant-column", "tenant")
    assert (done.returncode, "validate" in done.stdout) == (0, False)
    assert "1 rows without tenant: nobody sees them any more" in done.stderr
    slides.connect().execute("update slides set tenant = 'acme'")
    done = told("protect", "slides", slides.dsn(), "--tenant-column", "tenant")
    assert (done.returncode, "validate" in done.stdout, done.stderr) == (0, True, "")


def test_doctor_exits_by_what_it_finds(tracked: Database) -> None:
    connection = tracked.connect()
    connection.execute("alter table slides add tenant text not null default 'acme'")
    cli("protect", "slides", tracked.dsn(), "--tenant-column", "tenant")
    found = json.loads(cli("doctor", tracked.dsn(), "--json"))
    assert {row["level"] for row in found} == {"warning"}
    assert "unique_without_tenant" in cli("doctor", tracked.dsn())
    connection.execute("alter table slides no force row level security")
    told_so = cli("doctor", tracked.dsn(), exit=1)
    assert "force_missing" in told_so
    assert "alter table public.slides force row level security" in told_so
    connection.execute("alter table slides force row level security")
    cli("doctor", tracked.dsn())
