"""Bridges: from tables that know nothing of Concord to entities of both ORMs, and back."""

from __future__ import annotations

import ast
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from pyconcord import Principal, StaleContext
from pyconcord.cli.app import app
from pyconcord.ext import sqlalchemy as concord
from tests.catalog import differences, snapshot
from tests.support import Database

SCHEMA = """
create schema shop authorization owner;
create type shop.mood as enum ('ok', 'it''s');
alter type shop.mood owner to owner;
set role owner;
create table shop.decks (
  id bigint generated always as identity primary key, name varchar(80) not null,
  made date default current_date, mood shop.mood default 'ok', due timestamp, "class" text,
  weight double precision, share real, logo bytea, opens time, lasts interval, host inet,
  place point, codes int[] not null default '{}', code char(3)
);
create table shop.slides (
  id bigint generated always as identity primary key,
  deck_id bigint not null references shop.decks on delete cascade,
  next_id bigint references shop.slides,
  position int not null default 0,
  title text not null default 'it''s "new"',
  price numeric(10, 2), shown boolean not null default false, extra jsonb not null default '{}',
  uid uuid not null default gen_random_uuid() unique,
  size int generated always as (length(title)) stored,
  unique (deck_id, position)
);
create table shop."odd-names" ("a b" int, "from" int, deck_id bigint, primary key ("a b", "from"));
create view shop.titles as select id, title from shop.slides;
insert into shop.decks (name) values ('first'), ('second');
insert into shop.slides (deck_id, position, title)
  select 1, g, 't' || g from generate_series(1, 50) g;
reset role;
grant usage on schema shop to app;
grant select, insert, update, delete on all tables in schema shop to app;
"""
PACKS = (
    "--pack", "tenant", "--pack", "timestamps", "--pack", "slides:owner",
    "--pack", "slides:soft_delete", "--fill", "tenant='acme'", "--fill", "slides:owner='ana'",
    "--set", "decks:updated_at=changed", "--agent-store", "--schema", "shop",
)  # fmt: skip


GRANTS = b"grant select, insert, update, delete on all tables in schema shop to app"


def bridge(db: Database, *arguments: str, ok: bool = True) -> str:
    done = CliRunner().invoke(app, ["bridge", db.dsn("owner"), *PACKS, *arguments])
    assert (done.exit_code == 0) == ok, done.output
    return done.output


@pytest.fixture
def shop(db: Database) -> Database:
    db.connect().execute(SCHEMA.encode())
    return db


def checked(*paths: Path, types: bool = True) -> None:
    """The files are as the formatter leaves them, and the type checker has nothing to say."""
    files = [str(path) for path in paths]
    ruff = [sys.executable, "-m", "ruff", "format", "--isolated", "--diff", *files]
    done = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    if types:
        mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, *files]
        done = subprocess.run(mypy, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


# --- there and back -------------------------------------------------------------------------------


def psql(db: Database, file: Path) -> None:
    done = subprocess.run(
        [
            str(db.server.bin("psql")),
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-f",
            str(file),
            db.dsn("owner"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


ENV = """
from alembic import context
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine, pool
where = conninfo_to_dict({dsn!r})
engine = create_engine("postgresql+psycopg://", connect_args=where, poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, version_table_schema="public")
    with context.begin_transaction():
        context.run_migrations()
"""


def alembic(db: Database, where: Path, *arguments: str) -> None:
    from alembic import command
    from alembic.config import Config

    (where / "env.py").write_text(ENV.format(dsn=db.dsn("owner")))
    config = Config()
    config.set_main_option("script_location", str(where))
    getattr(command, arguments[0])(config, arguments[1])


DJANGO = """
from psycopg.conninfo import conninfo_to_dict
import django
from django.conf import settings
where = conninfo_to_dict({dsn!r})
settings.configure(
    INSTALLED_APPS=["pyconcord.ext.django", "shop"], USE_TZ=True,
    DATABASES={{"default": {{
        "ENGINE": "django.db.backends.postgresql", "NAME": where["dbname"], "USER": where["user"],
        "PASSWORD": where.get("password", ""), "HOST": where["host"], "PORT": where["port"],
        "OPTIONS": {{"options": "-c search_path={path}"}}}}}})
django.setup()
from django.core.management import call_command
"""


def django(dsn: str, where: Path, program: str, path: str = "public") -> None:
    """A program in a process of its own, for its settings; the application is `shop`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(where), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", DJANGO.format(dsn=dsn, path=path) + program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def there_and_back(shop: Database, way: str, tmp_path: Path, back: bool) -> None:
    if way == "apply":
        bridge(shop, "--revert" if back else "--apply")
    elif way == "sql":
        psql(shop, tmp_path / f"concord.{'down' if back else 'up'}.sql")
    elif way == "alembic":
        alembic(shop, tmp_path, *(("downgrade", "base") if back else ("upgrade", "head")))
    else:
        target = ', "zero"' if back else ""
        django(shop.dsn("owner"), tmp_path, f'call_command("migrate", "shop"{target}, verbosity=0)')


@pytest.mark.parametrize("way", ["apply", "sql", "alembic", "django"])
def test_there_twice_and_back(shop: Database, way: str, tmp_path: Path) -> None:
    """Protected and tracked, in one command; the schema is as it was after the way back."""
    admin = shop.connect()
    before = snapshot(admin, "shop")
    if way == "sql":
        bridge(shop, "--migration", "sql", "--to", str(tmp_path))
    elif way == "alembic":
        bridge(shop, "--migration", "alembic", "--to", str(tmp_path / "versions"))
        checked(*(tmp_path / "versions").glob("*.py"))
    elif way == "django":
        made = tmp_path / "shop" / "migrations"
        bridge(shop, "--migration", "django", "--name", "0001_concord", "--to", str(made))
        (tmp_path / "shop" / "__init__.py").touch()
        (made / "__init__.py").touch()
        checked(*made.glob("*.py"), types=False)
    there_and_back(shop, way, tmp_path, back=False)
    after = snapshot(admin, "shop")
    tracked = admin.execute("select name from concord.models order by 1").fetchall()
    names = ["agent_message", "agent_session", "agent_tool_call", "decks", "odd-names", "slides"]
    assert [name for (name,) in tracked] == names
    assert len(admin.execute("select from concord.protected").fetchall()) == 6
    [(found,)] = admin.execute(
        "select array[updated_at > created_at, tenant = 'acme', owner = 'ana', archived_at is null]"
        " from shop.slides where id = 1"
    )
    assert found == [False, True, True, True]
    if way in ("apply", "sql"):
        there_and_back(shop, way, tmp_path, back=False)
        assert differences(after, snapshot(admin, "shop")) == []
    there_and_back(shop, way, tmp_path, back=True)
    assert differences(before, snapshot(admin, "shop")) == []
    if way in ("apply", "sql"):
        there_and_back(shop, way, tmp_path, back=True)


def test_what_was_tracked_and_protected_before(shop: Database) -> None:
    """The bridge adds to what was said, and leaves it when it goes."""
    owner = shop.connect("owner")
    owner.execute("alter table shop.decks add org text default 'acme'")
    owner.execute("select concord.track('shop.slides', groups => array['deck:{deck_id}'])")
    owner.execute("select concord.track('shop.decks', tenant_column => 'org', detail => 'names')")
    owner.execute("select concord.protect('shop.decks', 'org')")
    for (todo,) in owner.execute("select concord.todo('shop.decks')").fetchall():
        owner.execute(todo.encode())

    def said() -> list[Any]:
        models = "select to_jsonb(m) - 'tracked_at' from concord.models m order by name"
        walls = "select to_jsonb(p) - 'protected_at' from concord.protected p order by rel"
        return [*owner.execute(models).fetchall(), *owner.execute(walls).fetchall()]

    before, schema = said(), snapshot(shop.connect(), "shop")
    assert len(before) == 3
    assert "concord.track has tenant_column org" in bridge(shop, "--apply", ok=False)
    more = ("--set", "decks:tenant=org")
    for _ in range(2):
        bridge(shop, "--apply", *more)
        [(slides,)] = owner.execute(
            "select to_jsonb(m) from concord.models m where name = 'slides'"
        )
        assert slides["groups"] == ["deck:{deck_id}"]
        assert (slides["tenant_column"], slides["ignore_fields"]) == ("tenant", ["updated_at"])
    bridge(shop, "--revert", *more)
    assert said() == before
    assert differences(schema, snapshot(shop.connect(), "shop")) == []


def test_rows_of_no_tenant(shop: Database) -> None:
    """In a column of the user's: nobody sees them, and the bridge goes on."""
    owner = shop.connect("owner")
    owner.execute("alter table shop.decks add org text")
    bridge(shop, "--apply", "--set", "decks:tenant=org")
    assert shop.connect().execute("select count(*) from concord.protected").fetchone() == (6,)
    assert owner.execute("select concord.todo('shop.decks')").fetchall() == [
        ("alter table shop.decks validate constraint concord_has_tenant;",)
    ]


def test_of_ddl(db: Database, tmp_path: Path) -> None:
    """Tables that are not there yet: what is written is what is written of the live ones."""
    ddl = """
    create table shop.decks (
      id bigint generated always as identity primary key, name text not null
    );
    create table shop.slides (
      id bigint generated always as identity primary key,
      deck_id bigint not null references shop.decks on delete cascade,
      title text not null default '', price numeric(10, 2), made timestamptz not null default now()
    );
    """
    (tmp_path / "ddl.sql").write_text(ddl)
    db.connect().execute(f"create schema shop authorization owner; set role owner; {ddl}".encode())
    texts = []
    for source in ((), ("--ddl", str(tmp_path / "ddl.sql"))):
        made = tmp_path / f"{len(source)}.py"
        done = CliRunner().invoke(
            app,
            ["bridge", *([] if source else [db.dsn("owner")]), *source, "--schema", "shop",
             "--pack", "tenant", "--orm", "sqlalchemy", "--entities", str(made),
             "--migration", "sql", "--to", str(tmp_path / str(len(source)))],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        migration = (tmp_path / str(len(source)) / "concord.up.sql").read_text()
        texts.append((made.read_text().replace("''::text", "''"), migration))
    strip = [line for line in texts[0][0].splitlines() if "# region" not in line]
    assert strip == [line for line in texts[1][0].splitlines() if "# region" not in line]
    assert texts[0][1] == texts[1][1]


# --- entities -------------------------------------------------------------------------------------


def test_sqlalchemy_entities(shop: Database, tmp_path: Path) -> None:
    path = tmp_path / "shop_entities.py"
    bridge(shop, "--apply", "--orm", "sqlalchemy", "--entities", str(path))
    checked(path)
    shop.connect().execute(
        "grant select, insert, update, delete on all tables in schema shop to app"
    )
    it: Any = imported(path)
    from psycopg.conninfo import conninfo_to_dict

    engine = create_engine("postgresql+psycopg://", connect_args=conninfo_to_dict(shop.dsn("app")))
    who = [Principal("acme", "user", "ana")]
    concord.install(engine, identity=lambda: who[0])
    with Session(engine) as session:
        with it.reading(session) as read:
            deck = session.scalars(select(it.Deck).where(it.Deck.name == "first")).one()
            assert [s.title for s in deck.slides[:2]] == ["t1", "t2"]
        with it.unit(session, read_at=read.token) as unit:
            deck.name = "renamed"
            deck.slides.append(it.Slide(position=99, title="new"))
        assert unit.receipt.applied == 2
        [new] = session.scalars(select(it.Slide).where(it.Slide.position == 99))
        assert (new.tenant, new.owner, new.size, new.deck.name) == ("acme", "ana", 3, "renamed")
        assert new.created_at.tzinfo is not None
    # Guarded: somebody else wrote meanwhile.
    with Session(engine) as session:
        with it.reading(session) as read:
            deck = session.get_one(it.Deck, 1)
        with shop.connect() as other:
            other.execute("update shop.decks set name = 'theirs' where id = 1")
        with pytest.raises(StaleContext), it.unit(session, read_at=read.token):
            session.get_one(it.Deck, 1).name = "mine"
    # Walled: another's slides, and another tenant's, are not there.
    for principal in (Principal("acme", "user", "ben"), Principal("zeta", "user", "ana")):
        who[0] = principal
        with Session(engine) as session:
            assert session.scalars(select(it.Slide)).all() == []
    engine.dispose()


USES = """
call_command("check")
import psycopg
from pyconcord import StaleContext
from pyconcord.ext.django import acting
from shop.models import AgentSession, Deck, Slide, reading, unit
with acting(tenant="acme", user="ana"):
    with reading() as read:
        deck = Deck.objects.get(name="first")
        assert [s.title for s in deck.slides.order_by("id")[:2]] == ["t1", "t2"]
    with unit(read_at=read.token) as done:
        deck.name = "renamed"
        deck.save()
        Slide.objects.create(deck=deck, position=99, title="new")
    assert done.receipt.applied == 2, done.receipt
    new = Slide.objects.get(position=99)
    assert (new.tenant, new.owner, new.deck.name, new.shown) == ("acme", "ana", "renamed", False)
    with reading() as read:
        deck = Deck.objects.get(pk=1)
    other = psycopg.connect({admin!r}, autocommit=True)
    other.execute("update shop.decks set name = 'theirs' where id = 1")
    try:
        with unit(read_at=read.token):
            deck.name = "mine"
            deck.save()
    except StaleContext:
        pass
    else:
        raise AssertionError("not stale")
    session = AgentSession.objects.create(agent_name="w")
    assert AgentSession.objects.get().user_id == "ana"
with acting(tenant="acme", user="ben"):
    assert Slide.objects.count() == 0
"""


def test_django_entities(shop: Database, tmp_path: Path) -> None:
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    bridge(shop, "--apply", "--orm", "django", "--entities", str(package / "models.py"))
    checked(package / "models.py", types=False)
    shop.connect().execute(GRANTS)
    django(shop.dsn("app"), tmp_path, USES.format(admin=shop.dsn()), "shop,public")


@pytest.mark.parametrize("orm", ["sqlalchemy", "django"])
def test_written_anew_without_losing_what_is_by_hand(
    shop: Database, orm: str, tmp_path: Path
) -> None:
    path = tmp_path / "made.py"
    made = ("--orm", orm, "--entities", str(path))
    bridge(shop, *made)
    first = path.read_text()
    bridge(shop, *made)
    assert path.read_text() == first
    mine = first.replace('"""The tables of', '"""Mine. The tables of').rstrip("\n")
    slide = mine.index("# region concord: Slide ")
    end = mine.index("    # endregion\n", slide) + len("    # endregion\n")
    method = "\n    def shout(self) -> str:\n        return self.title.upper()\n"
    mine = mine[:end] + method + mine[end:] + "\n\n\nCONSTANT = 1\n"
    path.write_text(mine)
    shop.connect().execute("alter table shop.slides add column subtitle text")
    shop.connect().execute("create table shop.notes (id int primary key)")
    bridge(shop, *made)
    text = path.read_text()
    assert "subtitle" in text
    assert "class Note(" in text
    assert method in text
    assert '"""Mine. The tables of' in text
    assert "CONSTANT = 1" in text
    checked(path, types=orm == "sqlalchemy")
    # Inside of a region: seen, and not lost.
    path.write_text(text.replace('"slides"', '"slidez"', 1))
    assert "was changed by hand" in bridge(shop, *made, ok=False)
    assert '"slidez"' in path.read_text()
    bridge(shop, *made, "--overwrite")
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--schema", "shop", "--pack", "nope"], "no pack 'nope'"),
        (["--schema", "shop", "--pack", "tenant", "--set", "org=x"], "no pack has a org"),
        (["--schema", "shop", "--pack", "tenant", "--fill", "x:tenant=1"], "no pack of x has a"),
        (["--table", "nope", "--pack", "tenant"], "no table nope"),
        (["--schema", "nope"], "no tables in the schema nope"),
        (["--ddl", "/no/such"], "No such file"),
    ],
)
def test_what_is_refused(shop: Database, arguments: Sequence[str], why: str) -> None:
    done = CliRunner().invoke(app, ["bridge", shop.dsn("owner"), *arguments, "--orm", "django"])
    assert done.exit_code == 4, done.output
    assert why in done.output


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("create table shop.deck (id int primary key)", "both be Deck"),
        ("create table shop.keyless (id int)", 'keyless" has no primary key'),
    ],
)
def test_tables_that_cannot_be_entities(shop: Database, sql: str, why: str) -> None:
    shop.connect("owner").execute(sql.encode())
    for orm in ("sqlalchemy", "django"):
        assert why in bridge(shop, "--orm", orm, "--entities", "/nowhere/at/all.py", ok=False)


def test_a_clash_stops_the_bridge_and_can_be_undone(shop: Database) -> None:
    owner = shop.connect("owner")
    before = snapshot(owner, "shop")
    owner.execute("alter table shop.slides add tenant int")
    assert "tenant is integer" in bridge(shop, "--apply", ok=False)
    bridge(shop, "--revert")
    owner.execute("alter table shop.slides drop tenant")
    assert differences(before, snapshot(owner, "shop")) == []


def shape(path: Path) -> dict[str, list[str]]:
    """The classes of a module: their bases, and what they have, of which type."""
    found = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = [ast.unparse(base) for base in node.bases]
            for each in node.body:
                if isinstance(each, ast.AnnAssign):
                    found[node.name].append(
                        f"{ast.unparse(each.target)}: {ast.unparse(each.annotation)}"
                    )
                elif isinstance(each, ast.Assign):
                    value = each.value.func if isinstance(each.value, ast.Call) else each.value
                    found[node.name].append(
                        f"{ast.unparse(each.targets[0])} = {ast.unparse(value)}"
                    )
    return found


@pytest.mark.parametrize("orm", ["sqlalchemy", "django"])
def test_the_same_before_and_after_the_migration(shop: Database, orm: str, tmp_path: Path) -> None:
    """Written anew of the migrated tables: the same classes."""
    shapes = []
    for name in ("before", "after"):
        path = tmp_path / f"{name}.py"
        bridge(shop, "--orm", orm, "--entities", str(path))
        checked(path, types=orm == "sqlalchemy")
        shapes.append(shape(path))
        bridge(shop, "--apply")
    assert shapes[0] == shapes[1]


# --- the command line -----------------------------------------------------------------------------


def test_packs_are_listed(shop: Database) -> None:
    shop.connect("owner").execute("alter table shop.decks add tenant text default 'acme'")
    bridge(shop, "--apply")
    done = CliRunner().invoke(app, ["packs", shop.dsn("owner"), "--json"])
    rows = json.loads(done.output)
    shown = {(row["table"], row["pack"]): row["objects"] for row in rows}
    assert "Whose a row is" in shown["", "tenant"]
    assert "column owner (made)" in shown["shop.slides", "owner"]
    assert shown["shop.decks", "tenant"] == []  # the user's column serves
    assert "agent_session" in CliRunner().invoke(app, ["packs"]).output


@pytest.mark.parametrize("orm", ["sqlalchemy", "django"])
def test_packs_for_classes_that_are_written_by_hand(orm: str, tmp_path: Path) -> None:
    for name, options in (("all", []), ("some", ["--pack", "tenant", "--set", "tenant=org"])):
        path = tmp_path / f"{name}.py"
        done = CliRunner().invoke(app, ["packs", "--orm", orm, *options])
        assert done.exit_code == 0, done.output
        path.write_text(done.output)
        checked(path, types=orm == "sqlalchemy")
    classes = shape(tmp_path / "all.py")
    assert [*classes] == [
        "AgentMessage", "AgentSession", "AgentToolCall", "Comment", "Owner", "SoftDelete", "Tenant",
        "Timestamps",
    ]  # fmt: skip
    [(name, (*_, org))] = shape(tmp_path / "some.py").items()
    assert (name, org.partition(":")[0].partition(" ")[0]) == ("Tenant", "org")
    done = CliRunner().invoke(app, ["packs", "--orm", orm, "--pack", "nope"])
    assert done.exit_code == 4
    if orm == "sqlalchemy":
        from sqlalchemy.orm import DeclarativeBase

        it: Any = imported(tmp_path / "all.py")
        base = type("Base", (DeclarativeBase,), {})
        made: Any = type("Note", (it.Comment, base), {"__tablename__": "notes"})
        assert [c.name for c in made.__table__.primary_key] == ["id"]


def test_ddl_with_packs_in_it(db: Database, tmp_path: Path) -> None:
    (tmp_path / "ddl.sql").write_text(
        "create table slides (\n  id int primary key -- the key\n);\n"
    )
    done = CliRunner().invoke(
        app, ["bridge", "--ddl", str(tmp_path / "ddl.sql"), "--pack", "tenant", "--merge"]
    )
    assert done.output == (
        'create table slides (\n  id int primary key, -- the key\n  "tenant" text not null\n);\n'
    )
    db.connect().execute(done.output.encode())


def test_progress_is_told(shop: Database) -> None:
    shop.connect().execute(
        "insert into shop.slides (deck_id, position) select 2, g from generate_series(1, 60000) g"
    )
    said = bridge(shop, "--apply")
    assert "tenant: 50 % of shop.slides filled" in said
    assert "skipping" not in said


def test_alembic_writes_it_down(shop: Database, tmp_path: Path) -> None:
    """`alembic upgrade --sql`: the calls are in it, and psql takes them."""
    bridge(shop, "--migration", "alembic", "--to", str(tmp_path / "versions"))
    (tmp_path / "env.py").write_text(
        "from alembic import context\n"
        "context.configure(dialect_name='postgresql', dialect_opts={'paramstyle': 'named'},"
        " literal_binds=True)\n"
        "with context.begin_transaction():\n    context.run_migrations()\n"
    )
    from alembic import command
    from alembic.config import Config

    out = io.StringIO()
    config = Config(output_buffer=out)
    config.set_main_option("script_location", str(tmp_path))
    command.upgrade(config, "head", sql=True)
    (tmp_path / "up.sql").write_text(out.getvalue())
    psql(shop, tmp_path / "up.sql")
    assert shop.connect().execute("select count(*) from concord.models").fetchone() == (6,)
