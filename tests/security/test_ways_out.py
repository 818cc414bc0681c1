"""A protected table through dump and restore, and what is left of it when the pack goes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import psycopg
import pytest

from pyconcord import install
from tests.isolation.schedule import refused
from tests.security.test_protect import LOOKS
from tests.security.wall import PROTECT, Wall
from tests.support import Database


def test_uninstall_takes_the_wall_down(story: Wall) -> None:
    admin, owner = story.admin(), story.owner()
    before = [row for row in admin.run(LOOKS) if row[0] != "docs"]
    for table in ("notes", "docs", "pages", "plans", "remarks"):
        owner.run(f"select concord.untrack('{table}')")
    bare = admin.run(LOOKS)
    assert before != bare
    for statement in PROTECT.split(";\n"):
        if statement.strip():
            owner.run(statement)
    connection = story.db.connect()
    with pytest.raises(install.PackError, match="5 tables are tracked or protected"):
        install.uninstall(connection)
    assert install.uninstall(connection, force=True).action == "uninstalled"
    assert admin.run(LOOKS) == bare


def test_a_policy_of_the_users_own_is_not_dropped(wall: Wall) -> None:
    wall.owner().run("create policy mine on teams using (member = (select concord.principal()).id)")
    with pytest.raises(install.PackError, match=r"policy mine on table (public\.)?teams"):
        install.uninstall(wall.db.connect(), force=True)


def test_dump_and_restore(wall: Wall, tmp_path: Path) -> None:
    """The wall stands in the copy, and comes off there."""
    server, name = wall.db.server, f"{wall.db.name}_copy"
    dump = tmp_path / "dump"
    subprocess.run([server.bin("pg_dump"), "-Fc", "-f", dump, "-d", wall.db.dsn()], check=True)
    admin = wall.db.connect()
    admin.execute(f"create database {name}".encode())
    try:
        subprocess.run([server.bin("pg_restore"), "-d", server.dsn(name), dump], check=True)
        copy = Database(name, server)
        with copy.connect() as there:
            there.execute("select concord.refresh()")
            findings = there.execute("select code, detail from concord.verify()").fetchall()
            assert [f for f in findings if f[0] != "leaf_index_missing"] == []
            kinds = {row[1] for row in there.execute("select * from concord.doctor()").fetchall()}
            assert kinds <= {
                "unique_without_tenant",
                "index_missing",
                "check_not_valid",
                "truncate_granted",
            }
        with copy.connect("app") as service:
            service.execute("select concord.act_as('acme', 'user', 'ana', is_local => false)")
            assert service.execute("select id from docs").fetchall() == [(1,)]
            with refused("forbidden", "owner"):
                service.execute("insert into docs (id, owner) values (10, 'ben')")
        with copy.connect("owner") as owner:
            owner.execute("select concord.protect('docs', 'tenant', 'owner')")
            for table in ("notes", "docs", "pages", "plans", "remarks"):
                owner.execute(f"select concord.unprotect('{table}')".encode())
            count = owner.execute("select count(*) from docs").fetchone()
            assert count == (5,)
        copy.close()
    finally:
        with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)".encode())
