"""Migrations by Alembic itself: up, down, checked, and written down."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from psycopg.conninfo import conninfo_to_dict

from tests.support import Database

ENV = """
from alembic import context
from sqlalchemy import URL, Column, Integer, MetaData, Table, Text, create_engine

import pyconcord.ext.alembic as concord

where = context.config.attributes["where"]
schemas = context.config.attributes["schemas"]
metadata = MetaData()
Table("slides", metadata, Column("id", Integer, primary_key=True), Column("title", Text))
options = dict(target_metadata=metadata, include_schemas=schemas, include_name=concord.include_name)

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, **options)
    with context.begin_transaction():
        context.run_migrations()
else:
    engine = create_engine(URL.create("postgresql+psycopg"), connect_args=where)
    with engine.connect() as connection:
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()
"""

SCRIPT = """
from alembic import op
import sqlalchemy as sa

revision, down_revision = "{revision}", {down}


def upgrade():
    {upgrade}


def downgrade():
    {downgrade}
"""

FIRST = {
    "upgrade": """op.create_table("slides", sa.Column("id", sa.Integer, primary_key=True))
    op.concord_install(app_role="app", service=True)
    op.concord_track("slides", groups=["deck:{{id}}"], on_stale={{"agent": "notify"}})""".format(),
    "downgrade": """op.concord_untrack("slides")
    op.concord_uninstall()
    op.drop_table("slides")""",
}
SECOND = {
    "upgrade": """op.add_column("slides", sa.Column("title", sa.Text))
    op.concord_refresh("slides", schema="public")""",
    "downgrade": """op.drop_column("slides", "title")
    op.concord_refresh()""",
}


@pytest.fixture
def config(db: Database, tmp_path: Path) -> Config:
    """An application with two migrations, and a database without the pack."""
    admin = db.connect()
    admin.execute("drop schema concord, concord_internal cascade")
    (tmp_path / "versions").mkdir()
    (tmp_path / "env.py").write_text(ENV)
    for revision, down, body in (("a", "None", FIRST), ("b", "'a'", SECOND)):
        script = SCRIPT.format(revision=revision, down=down, **body)
        (tmp_path / "versions" / f"{revision}.py").write_text(script)
    made = Config(output_buffer=io.StringIO(), stdout=io.StringIO())
    made.set_main_option("script_location", str(tmp_path))
    made.attributes["where"] = dict(conninfo_to_dict(db.dsn()))
    made.attributes["schemas"] = False
    return made


def test_up_and_down(db: Database, config: Config) -> None:
    command.upgrade(config, "head")
    admin = db.connect()
    [model] = admin.execute("select name, groups, on_stale from concord.models").fetchall()
    assert model == ("slides", ["deck:{id}"], {"agent": "notify"})
    assert admin.execute("select code from concord.verify()").fetchall() == []
    admin.execute("insert into slides values (1, 'a')")
    admin.execute("update slides set title = 'b'")
    last = "select fields from concord.history('slides', '1') limit 1"
    assert admin.execute(last).fetchone() == (["title"],)
    command.downgrade(config, "a")
    assert admin.execute("select code from concord.verify()").fetchall() == []
    command.downgrade(config, "base")
    left = "select to_regnamespace('concord'), to_regclass('slides')"
    assert admin.execute(left).fetchone() == (None, None)


@pytest.mark.parametrize("schemas", [False, True], ids=["one schema", "all schemas"])
def test_a_check_finds_nothing_to_do(config: Config, schemas: bool) -> None:
    config.attributes["schemas"] = schemas
    command.upgrade(config, "head")
    command.check(config)


def test_a_failed_migration_leaves_no_trace(db: Database, config: Config, tmp_path: Path) -> None:
    script = SCRIPT.format(revision="c", down="'b'", upgrade="1 / 0", downgrade="pass")
    (tmp_path / "versions" / "c.py").write_text(script)
    with pytest.raises(ZeroDivisionError):
        command.upgrade(config, "head")
    assert db.connect().execute("select to_regnamespace('concord')").fetchone() == (None,)


def test_written_down(db: Database, config: Config) -> None:
    """What --sql writes does the same, run by whoever may."""
    buffer = io.StringIO()
    config.output_buffer = buffer
    command.upgrade(config, "head", sql=True)
    admin = db.connect()
    admin.execute(buffer.getvalue().encode())
    assert admin.execute("select name from concord.models").fetchall() == [("slides",)]
    assert admin.execute("select code from concord.verify()").fetchall() == []
    buffer.seek(0)
    buffer.truncate()
    command.downgrade(config, "b:base", sql=True)
    admin.execute(buffer.getvalue().encode())
    assert admin.execute("select to_regnamespace('concord')").fetchone() == (None,)
