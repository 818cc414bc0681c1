"""A table of the user's, and packs that are spread into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from pyconcord.packs import Pack, TableName, find
from tests.support import Database

Connection = psycopg.Connection[Any]

STAMPED = """
-- pack: stamped
-- version: {version}
--
-- A pack of the user's own.
create table :"table" (
  {columns}
);
{rest}
"""


def own(columns: str, rest: str = "", version: int = 1) -> Pack:
    """A pack of the user's own, as its file would have it."""
    return Pack.of(STAMPED.format(version=version, columns=columns, rest=rest).lstrip())


class Table:
    """A table of the role owner's, in the schema app, with some rows."""

    def __init__(self, db: Database, name: str = "slides", rows: int = 100) -> None:
        self.db, self.name = db, TableName("app", name)
        with db.connect() as admin:
            admin.execute("create schema if not exists app authorization owner")
            admin.execute("grant usage on schema app to public")
        self.owner = db.connect("owner")
        self.owner.execute(
            f"create table {self.name}"
            " (id int primary key, title text not null, mark text)".encode()
        )
        self.insert(1, rows)

    def insert(self, first: int, last: int) -> None:
        self.owner.execute(
            f"insert into {self.name} (id, title)"
            f" select g, 't' || g from generate_series({first}, {last}) g".encode()
        )

    def add(
        self,
        pack: str | Pack,
        options: Mapping[str, str] | None = None,
        fills: Mapping[str, str] | None = None,
        batch: int | None = 10000,
    ) -> dict[str, Any]:
        found = find(pack) if isinstance(pack, str) else pack
        document = found.on(self.name, options or {}, fills or {}).document()
        return call(self.owner, self.name, document, batch)

    def remove(self, pack: str) -> dict[str, Any]:
        return dict(
            self.one("select concord.remove_pack(%s::text::regclass, %s)", str(self.name), pack)
        )

    def one(self, query: str, *params: Any) -> Any:
        row = self.owner.execute(query.encode(), params or None).fetchone()
        return row[0] if row else None

    def objects(self, pack: str) -> dict[str, str]:
        """What concord.packs says of it: kind and name, and how it stands."""
        found = self.one(
            "select objects from concord.packs where rel = %s::text::regclass and pack = %s",
            str(self.name),
            pack,
        )
        return {f"{each['kind']} {each['name']}": each["state"] for each in found or ()}

    def columns(self) -> list[str]:
        return [
            name
            for (name,) in self.owner.execute(
                "select attname from pg_attribute where attrelid = %s::text::regclass"
                " and attnum > 0 and not attisdropped order by attnum",
                (str(self.name),),
            )
        ]


def call(
    connection: Connection, table: TableName, document: Mapping[str, Any], batch: int | None = 10000
) -> dict[str, Any]:
    row = connection.execute(
        "call concord.add_pack(%s::text::regclass, %s, %s)", (str(table), Jsonb(document), batch)
    ).fetchone()
    assert row is not None
    return dict(row[0])


def holding(db: Database, statement: str) -> Iterator[Connection]:
    """A transaction of somebody else's that has run the statement, and goes on."""
    with db.connect(autocommit=False) as other:
        other.execute(statement.encode())
        yield other
        other.rollback()
