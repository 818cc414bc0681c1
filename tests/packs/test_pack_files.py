"""Packs' files, and CREATE TABLE with packs in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyconcord.packs import Pack, PackFileError, TableName, find, load, merge, shipped
from tests.catalog import differences, snapshot
from tests.packs.spreading import call
from tests.support import Database

SLIDES = TableName("app", "slides")
HEAD = "-- pack: mine\n-- version: 1\n\n"
TABLE = 'create table :"table" (a int);\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("create table t (a int);", "pack: name"),
        ("-- pack: mine\n\n" + TABLE, "version: 1"),
        ("-- pack: Mine\n-- version: 1\n\n" + TABLE, "small letters"),
        ("-- pack: mine\n-- version: 1.5\n\n" + TABLE, "whole number"),
        ("-- pack: mine\n-- version: 1\n-- what: 1\n\n" + TABLE, "what: 1"),
        ("-- pack: mine\n-- version: 1\n-- track: [1]\n\n" + TABLE, "track: an object"),
        (HEAD, "create table"),
        (HEAD + TABLE + TABLE, "one create table"),
        (HEAD + TABLE + "drop table t;", "drop table t"),
        (HEAD + TABLE + "create extension hstore;", "create extension"),
        (HEAD + TABLE + "create index on other (a);", 'indexes on :"table"'),
        (HEAD + 'create table :"table" (a int exclude);', "mine"),
        (HEAD + 'create table :"table" (a);', "not understood"),
        (HEAD + 'create table :"table" (a int', "mine"),
        (HEAD + TABLE + "comment on column t.b is 'x';", "comment on a column"),
        (HEAD + TABLE + "create function f() returns int as $$ select 1;", "mine"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "mine.sql"
    path.write_text(text)
    with pytest.raises(PackFileError, match=why) as raised:
        load(path)
    assert str(path) in str(raised.value)


def test_where_packs_are_found(tmp_path: Path) -> None:
    (tmp_path / "mine.sql").write_text(HEAD + TABLE)
    assert find(str(tmp_path / "mine.sql")).name == "mine"
    assert find("tenant") == shipped()["tenant"]
    with pytest.raises(PackFileError, match=r"there are .*tenant"):
        find("mine")
    with pytest.raises(PackFileError, match="No such file"):
        find("no/such.sql")
    for pack in shipped().values():
        assert pack.description, pack.name


def test_options_are_names_of_the_pack() -> None:
    with pytest.raises(PackFileError, match=r"no name 'org'.*tenant, tenant_type"):
        find("tenant").on(SLIDES, {"org": "x"})
    with pytest.raises(PackFileError, match="no column 'org' to fill"):
        find("tenant").on(SLIDES, {}, {"org": "x"})
    spread = find("tenant").on(SLIDES, {"tenant": 'Org "x"', "tenant_type": "uuid"})
    assert [(c.name, c.type) for c in spread.columns] == [('Org "x"', "uuid")]
    assert spread.protect == {"tenant_column": 'Org "x"'}
    mine = Pack.of(
        '-- pack: mine\n-- version: 1\n-- track: {"groups": ["deck:{deck}"]}\n\n'
        'create table :"table" (:"deck" int, b text default \':"deck"\' check (b <> \'::"deck"\'));'
    )
    assert mine.on(SLIDES, {"deck": "d"}).track == {"groups": ["deck:{d}"]}


def test_a_merged_table_is_the_table_with_the_packs(db: Database) -> None:
    ddl = """
        create schema app authorization owner;
        create table app.slides (  -- a comment (
          "Id" bigint generated always as identity primary key,
          title text not null default ');' check (title <> '')
        ) with (fillfactor = 90);
        create table app.decks (id int);
    """
    spreads = [find(name).on(SLIDES) for name in ("tenant", "owner", "timestamps", "soft_delete")]
    merged = merge(ddl, spreads)
    assert "-- a comment (" in merged
    seen = []
    for way in (ddl, merged):
        admin = db.connect()
        admin.execute(way.encode())
        admin.execute("alter table app.slides owner to owner")
        if way is ddl:
            for spread in spreads:
                call(db.connect(), SLIDES, spread.document())
        admin.execute("alter function app.slides_touch() owner to owner")
        seen.append(snapshot(admin, "app"))
        admin.execute("drop schema app cascade")
    assert differences(*seen) == []


def test_merging_is_refused_where_names_clash() -> None:
    tenant = find("tenant").on(SLIDES)
    with pytest.raises(PackFileError, match=r"slides\.tenant is int"):
        merge("create table app.slides (tenant int)", [tenant])
    with pytest.raises(PackFileError, match="no CREATE TABLE"):
        merge("create table slides (tenant text)", [tenant])
    assert merge("create table app.slides (tenant text)", [tenant]).count("tenant") == 1


def test_the_pack_of_comments_is_the_contract(db: Database) -> None:
    """The pack comment, and concord.create_comments: one table, made in two ways."""
    seen = []
    for way in ("pack", "function"):
        admin = db.connect()
        admin.execute("create schema app authorization owner")
        owner = db.connect("owner")
        name = TableName("app", "comments")
        if way == "function":
            owner.execute("select concord.create_comments('app.comments')")
        else:
            owner.execute("create table app.comments ()")
            spread = find("comment").on(name)
            call(owner, name, spread.document())
            arguments = ", ".join(f"{key} => %s" for key in spread.protect)
            from psycopg.types.json import Jsonb

            values = [Jsonb(v) if isinstance(v, dict) else v for v in spread.protect.values()]
            owner.execute(f"select concord.protect('app.comments', {arguments})".encode(), values)
            owner.execute(
                "select concord.track('app.comments', tenant_column => 'tenant', groups => %s)",
                (spread.track["groups"],),
            )
        found = snapshot(admin, "app")
        # The stamp function is numbered.
        seen.append(
            {
                k: v.replace("protect_2", "protect_1").replace("model_2", "model_1")
                for k, v in found.items()
            }
        )
        admin.execute("drop schema app cascade")
        admin.execute("select concord.maintain()")
    assert differences(*seen) == []
