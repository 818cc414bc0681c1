"""The documentation says what is so: generated parts, examples, names and numbers."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from jsonschema import Draft202012Validator

from pyconcord import schemas
from tests.support import Database
from tools import docs

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = (README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))


def section(page: Path, title: str) -> str:
    """The text under a heading, up to the next one of its level."""
    found = re.search(
        rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)", page.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found is not None, f"{page.name} has no section {title!r}"
    return found[2]


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


# --- generated ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reference", "errors"])
def test_generated_parts_are_up_to_date(db: Database, name: str) -> None:
    text = getattr(docs, name)(db.connect())
    assert not docs.put(name, text, write=False), f"docs/{name}.md is out of date: make docs"


PUBLIC = """
select p.proname, obj_description(p.oid, 'pg_proc')
  from pg_proc p where p.pronamespace = 'concord'::regnamespace
union all
select c.relname, obj_description(c.oid, 'pg_class')
  from pg_class c where c.relnamespace = 'concord'::regnamespace and c.relkind = 'v'
union all
select t.typname, obj_description(t.oid, 'pg_type')
  from pg_type t join pg_class c on c.oid = t.typrelid and c.relkind = 'c'
 where t.typnamespace = 'concord'::regnamespace
"""


def test_everything_public_has_a_comment_and_stands_in_the_reference(db: Database) -> None:
    reference = (ROOT / "docs" / "reference.md").read_text()
    rows = db.connect().execute(PUBLIC).fetchall()
    assert len(rows) > 25
    for name, comment in rows:
        assert comment, f"concord.{name} has no comment"
        assert re.search(rf"^### concord\.{name}\b", reference, re.MULTILINE), name


def test_there_is_nothing_else_in_the_public_schema(db: Database) -> None:
    """No table, sequence or domain that a reader of the reference would miss."""
    kinds = "select relname from pg_class where relnamespace = 'concord'::regnamespace"
    assert db.connect().execute(f"{kinds} and relkind not in ('v', 'c')".encode()).fetchall() == []


# --- the promises ---------------------------------------------------------------------------------

GUARANTEES = ROOT / "docs" / "guarantees.md"


def promises() -> list[tuple[str, str]]:
    parts = re.split(r"^## (.*)\n", GUARANTEES.read_text(), flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def functions_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def test_there_are_nine_promises_and_what_is_not_promised() -> None:
    titles = [title for title, _ in promises()]
    assert [title.partition(".")[0] for title in titles[:9]] == [str(n) for n in range(1, 10)]
    assert titles[9:] == ["Not promised"]


@pytest.mark.parametrize("number", range(1, 10))
def test_every_promise_says_how_and_names_tests_that_exist(number: int) -> None:
    title, text = promises()[number - 1]
    for word in ("How", "Assumes", "Breaks it", "Tests"):
        assert f"**{word}.**" in text, f"{title} lacks {word!r}"
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text.partition("**Tests.**")[2])
    assert named, f"{title} names no test"
    for file, function in named:
        paths = [
            ROOT / "tests" / room / file
            for room in ("isolation", "python", "history", "security", "packs", "agents")
        ]
        [path] = [path for path in paths if path.exists()]
        assert function in functions_of(path), f"{title}: there is no {file}::{function}"


# --- examples -------------------------------------------------------------------------------------


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").split("\n")]


def test_the_worked_conflict_runs(db: Database) -> None:
    """What the README has as SQL and as Python, one after the other, prints what it shows."""
    sql_part = section(README, "A conflict, in SQL")
    [script], [shown] = blocks(sql_part, "sql"), blocks(sql_part, "text")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    psql = subprocess.run(
        [db.server.bin("psql"), "-X", "-q", "-P", "footer=off", "-v", "ON_ERROR_STOP=1", db.dsn()],
        input=script, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert psql.returncode == 0, psql.stderr
    assert lines(psql.stdout)[-len(lines(shown)) :] == lines(shown)

    python_part = section(README, "The same in Python")
    [program], [printed] = blocks(python_part, "python"), blocks(python_part, "text")
    python = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**environment, "DATABASE_URL": db.dsn()},
    )  # fmt: skip
    assert python.returncode == 0, python.stderr
    assert lines(python.stdout) == lines(printed)


def test_the_agents_of_the_readme(db: Database) -> None:
    """Twenty lines, by count too; they print what stands below them."""
    part = section(README, "The sessions of agents")
    [program], [printed], [command] = (blocks(part, kind) for kind in ("python", "text", "sh"))
    assert len([line for line in program.splitlines() if line.strip()]) <= 20
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    environment |= {"DATABASE_URL": db.dsn()}
    bridge = command.replace("pyconcord", f"{sys.executable} -m pyconcord.cli", 1)
    subprocess.run(["sh", "-ec", bridge], check=True, env=environment, cwd=ROOT)
    python = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert python.returncode == 0, python.stderr
    assert lines(python.stdout) == lines(printed)


def test_the_pack_of_the_docs_is_one(tmp_path: Path) -> None:
    from pyconcord.packs import load

    [text] = blocks(section(ROOT / "docs" / "packs.md", "A pack of your own"), "sql")
    (tmp_path / "rated.sql").write_text(text)
    assert load(tmp_path / "rated.sql").names == ("rating", "rated_at")


def test_the_demos_table_is_as_the_demo_prints_it() -> None:
    from pyconcord.demo.report import COLUMNS
    from pyconcord.demo.ways import WAYS

    text = section(README, "What the demo shows")
    assert f"| | {' | '.join(COLUMNS)} |\n" in text
    assert re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE) == [*WAYS]


def test_the_first_guarded_write_is_at_most_six_steps_away() -> None:
    steps = re.findall(r"^(\d+)\. ", section(README, "Into a database that exists"), re.MULTILINE)
    assert 1 <= len(steps) <= 6


@pytest.mark.parametrize(
    ("page", "name"),
    [("reference", "request"), ("reference", "receipt"), ("reference", "notification"),
     ("errors", "error")],
)  # fmt: skip
def test_examples_are_as_their_schemas_say(page: str, name: str) -> None:
    [example] = blocks((ROOT / "docs" / f"{page}.md").read_text(), f"json {name}")
    Draft202012Validator(schemas.load(name)).validate(json.loads(example))


def test_the_schemas_keys_are_explained() -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    for name in ("request", "receipt", "notification"):
        for key in schemas.load(name)["properties"]:
            assert f"`{key}`" in text or f'"{key}"' in text, f"{name}.{key}"


# --- names and numbers ----------------------------------------------------------------------------


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_findings_of_verify_are_all_explained() -> None:
    raised = {
        (code, level)
        for path in (ROOT / "sql" / "90_health").glob("*.sql")
        if path.name not in DOCTOR
        for level, code in re.findall(r"row\('(error|warning)', '(\w+)'", path.read_text())
    }
    text = section(ROOT / "docs" / "operations.md", "What `verify` finds")
    assert set(re.findall(r"^\| `(\w+)` \| (error|warning) \|", text, re.MULTILINE)) == raised


DOCTOR = ("35_protections.sql", "50_doctor.sql")


def test_the_findings_of_doctor_are_all_explained() -> None:
    raised = {
        name
        for file in DOCTOR
        for head in re.findall(
            r"return next row\((.*?)(?:p\.rel::text|null),",
            (ROOT / "sql" / "90_health" / file).read_text(),
            re.DOTALL,
        )
        for name in re.findall(r"'([a-z]+_[a-z_]+|subscribed)'", head)
    }
    text = section(ROOT / "docs" / "security.md", "The doctor")
    rows = re.findall(r"^\| (`.+`) \| (?:error|warning|error, warning) \|", text, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert told == raised - {"table_gone"}  # which verify has, too


def test_the_settings_are_all_explained_with_their_defaults(db: Database) -> None:
    rows = db.connect().execute('select key, "default" from concord.settings').fetchall()
    text = section(ROOT / "docs" / "operations.md", "Settings")
    assert set(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)) == set(rows)


FENCED = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code(text: str) -> Iterator[str]:
    """What is set as code, but for programs in Python."""
    yield from (block for language, block in FENCED.findall(text) if language != "python")
    yield from re.findall(r"`([^`\n]+)`", FENCED.sub("", text))


def test_the_commands_exist() -> None:
    """Commands of the CLI with their options, and targets of make."""
    from typer.main import get_command

    from pyconcord.cli.app import app

    commands: dict[str, Any] = getattr(get_command(app), "commands")  # noqa: B009
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for text in code(page.read_text()):
            for target in re.findall(r"\bmake ([a-z]+)\b", text):
                assert target in targets, f"{page.name}: make {target}"
            for name, rest in re.findall(r"\bpyconcord ([a-z]+)\b([^#\n]*)", text):
                assert name in commands, f"{page.name}: pyconcord {name}"
                known = {o for parameter in commands[name].params for o in parameter.opts}
                for option in re.findall(r"(?<![\w-])--[a-z-]+", rest):
                    assert option in known, f"{page.name}: pyconcord {name} {option}"


def test_the_functions_that_are_named_exist(db: Database) -> None:
    connection: psycopg.Connection[Any] = db.connect()
    public = {name for name, _ in connection.execute(PUBLIC).fetchall()}
    internal = {
        name
        for (name,) in connection.execute(
            "select relname from pg_class where relnamespace = 'concord_internal'::regnamespace"
            " union select proname from pg_proc"
            " where pronamespace = 'concord_internal'::regnamespace"
        )
    }
    import pyconcord.ext.django

    of_orms = set(pyconcord.ext.django.__all__)
    imported = {
        name: of_orms | {"install"} for name in ("django.md", "sqlalchemy.md", "convert.md")
    }
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"\bconcord\.([a-z]\w+)", text):
            # A file; a thing said not to be there; what a guide imports under the name `concord`.
            if name in {"control"} | imported.get(page.name, set()):
                continue
            assert name in public, f"{page.name}: concord.{name}"
        for name in re.findall(r"\bconcord_internal\.([a-z]\w+)", text):
            assert name in internal, f"{page.name}: concord_internal.{name}"


def test_errors_are_documented_by_the_names_of_their_classes() -> None:
    import pyconcord

    for name in re.findall(r"\| KC\d+ \| `(\w+)`", (ROOT / "docs" / "errors.md").read_text()):
        assert issubclass(getattr(pyconcord, name), pyconcord.ConcordError)
