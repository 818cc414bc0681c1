"""Tables as a generator sees them, from the catalogs of a database or from DDL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg

from ..packs.ddl import Column, Constraint, PackFileError, TableName
from ..packs.definition import Spread
from ..packs.merge import read_tables
from .python import singular


class BridgeError(PackFileError):
    """A table that can't be bridged as it was asked for; the message says why."""


@dataclass(frozen=True)
class ForeignKey:
    columns: tuple[str, ...]
    target: TableName
    target_columns: tuple[str, ...]
    on_delete: str | None = None
    """`cascade`, `set null`, …; None for no action."""


@dataclass(frozen=True)
class Table:
    name: TableName
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    uniques: tuple[tuple[str, ...], ...] = ()
    labels: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Of columns whose type is an enum."""
    spreads: tuple[Spread, ...] = ()
    """The packs that the bridge puts into it, or that it has already."""
    exists: bool = True
    said: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What `track` and `protect` were told of it before, less what goes without saying."""
    made: frozenset[str] = frozenset()
    """Columns that packs made."""

    @property
    def own(self) -> frozenset[str]:
        """Columns that are the user's."""
        return frozenset(column.name for column in self.columns) - self.made

    def having(self, spreads: Sequence[Spread]) -> Table:
        """The table as it will be with these packs in it."""
        table = replace(self, spreads=tuple(spreads))
        for spread in spreads:
            have = {column.name for column in table.columns}
            more = tuple(column for column in spread.columns if column.name not in have)
            table = replace(table, columns=table.columns + more)
            table = _with(table, spread.constraints)
        return table


@dataclass(frozen=True)
class Ends:
    """What the two sides of a foreign key between entities call each other."""

    table: Table
    key: ForeignKey
    one: str
    many: str
    told: bool
    """There is more than one such key between the two, or it leads to its own table."""


def ends(tables: Sequence[Table]) -> Iterator[Ends]:
    """Each foreign key for which both names are free."""
    taken = {table.name: {column.name for column in table.columns} for table in tables}
    for table in tables:
        for key in table.foreign_keys:
            if key.target not in taken:
                continue
            alike = [each for each in table.foreign_keys if each.target == key.target]
            ids = [column for column in key.columns if column.endswith("_id")]
            one = ids[0].removesuffix("_id") if ids else singular(key.target.name)
            many = table.name.name if len(alike) == 1 else f"{table.name.name}_by_{one}"
            names = one.isidentifier() and many.isidentifier() and one != many
            if names and one not in taken[table.name] and many not in taken[key.target]:
                taken[table.name].add(one)
                taken[key.target].add(many)
                yield Ends(table, key, one, many, len(alike) > 1 or key.target == table.name)


def of_database(
    connection: psycopg.Connection[Any], schema: str, names: Iterable[str] | None = None
) -> list[Table]:
    """The tables of a schema, without partitions; all, but for those of other tools' migrations."""
    rows = connection.execute(_TABLES, {"schema": schema}).fetchall()
    found: dict[str, dict[str, Any]] = dict(rows)
    wanted = list(found) if names is None else list(names)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise BridgeError(f"there is no table {missing[0]} in the schema {schema}")
    [(there,)] = connection.execute("select to_regclass('concord.packs') is not null")
    said = connection.execute(_SAID, (schema,)).fetchall() if there else []
    known = {name: (tracked, protected, made) for name, tracked, protected, made in said}
    return [
        _known(_table(TableName(schema, name), found[name]), *known.get(name, ({}, {}, [])))
        for name in wanted
        if names is not None or not name.startswith(_OF_MIGRATIONS)
    ]


def _known(
    table: Table,
    tracked: Mapping[str, Any] | None,
    protected: Mapping[str, Any] | None,
    made: Sequence[str] | None,
) -> Table:
    """The table, with what the database has written down of it."""
    plain = {"detail": "before", "delegated": False, "name": table.name.name}
    said = {
        function: {
            key: value
            for key, value in (arguments or {}).items()
            if value not in (None, [], {}) and value != plain.get(key)
        }
        for function, arguments in (("track", tracked), ("protect", protected))
    }
    return replace(table, said=said, made=frozenset(made or ()))


_OF_MIGRATIONS = ("alembic_version", "django_", "auth_", "schema_migrations")


def _table(name: TableName, raw: dict[str, Any]) -> Table:
    columns = tuple(
        Column(
            each["name"],
            each["type"],
            each["not_null"],
            each["default"],
            {"a": "always", "d": "by default"}.get(each["identity"]),
            each["generated"],
        )
        for each in raw["columns"]
    )
    foreign = tuple(
        ForeignKey(
            tuple(each["columns"]),
            TableName(each["schema"], each["table"]),
            tuple(each["target_columns"]),
            each["on_delete"],
        )
        for each in raw["foreign_keys"]
    )
    return Table(
        name,
        columns,
        tuple(raw["key"]),
        foreign,
        tuple(sorted(tuple(each) for each in raw["uniques"])),
        tuple((each["name"], tuple(each["labels"])) for each in raw["columns"] if each["labels"]),
    )


def of_ddl(ddl: str, schema: str = "public", names: Iterable[str] | None = None) -> list[Table]:
    """The tables of a text of DDL, which are to be there when its migration runs."""
    found = {
        name: (columns, constraints)
        for name, columns, constraints in read_tables(ddl)
        if name.schema == schema
    }
    wanted = [TableName(schema, name) for name in names] if names is not None else list(found)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise BridgeError(f"there is no CREATE TABLE {missing[0]} in the DDL")
    return [_with(Table(name, tuple(found[name][0])), found[name][1]) for name in wanted]


def new_table(name: TableName) -> Table:
    """A table that the bridge makes, with nothing in it but packs."""
    return Table(name, (), exists=False)


def _with(table: Table, constraints: Iterable[Constraint]) -> Table:
    for each in constraints:
        if each.definition.startswith("primary key"):
            table = replace(table, key=each.columns)
        elif each.definition.startswith("unique") and each.columns not in table.uniques:
            table = replace(table, uniques=tuple(sorted([*table.uniques, each.columns])))
        elif each.references is not None:
            key = ForeignKey(each.columns, each.references, each.target_columns, each.on_delete)
            if not any(
                (k.columns, k.target) == (key.columns, key.target) for k in table.foreign_keys
            ):
                table = replace(table, foreign_keys=(*table.foreign_keys, key))
    return table


_SAID = """
select c.relname,
  to_jsonb(m) - array['rel', 'key_columns', 'paused', 'tracked_at'],
  to_jsonb(p) - array['rel', 'protected_at'],
  (select jsonb_agg(o->>'name') from concord.packs k, jsonb_array_elements(k.objects) o
    where k.rel = c.oid and o->>'kind' = 'column')
  from pg_class c
  left join concord.models m on m.rel = c.oid
  left join concord.protected p on p.rel = c.oid
 where c.relnamespace = (select oid from pg_namespace where nspname = %s)
"""

# A name by which Postgres finds a table's column types under an empty search_path.
_TABLES = """
select c.relname, jsonb_build_object(
  'columns', (
    select coalesce(jsonb_agg(jsonb_build_object(
             'name', a.attname, 'type', format_type(coalesce(nullif(t.typbasetype, 0), t.oid),
               case when t.typbasetype <> 0 then t.typtypmod else a.atttypmod end),
             'not_null', a.attnotnull, 'identity', a.attidentity,
             'default', case when a.attgenerated = '' then pg_get_expr(d.adbin, d.adrelid) end,
             'generated', case when a.attgenerated <> '' then pg_get_expr(d.adbin, d.adrelid) end,
             'labels', (select jsonb_agg(e.enumlabel order by e.enumsortorder)
                          from pg_enum e where e.enumtypid = t.oid)) order by a.attnum), '[]')
      from pg_attribute a join pg_type t on t.oid = a.atttypid
      left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
     where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
  'key', coalesce((select jsonb_agg(a.attname order by array_position(k.conkey, a.attnum))
                     from pg_constraint k
                     join pg_attribute a on a.attrelid = c.oid and a.attnum = any (k.conkey)
                    where k.conrelid = c.oid and k.contype = 'p'), '[]'),
  'uniques', coalesce((
    select jsonb_agg((select jsonb_agg(a.attname order by array_position(k.conkey, a.attnum))
                        from pg_attribute a where a.attrelid = c.oid and a.attnum = any (k.conkey))
                     order by k.conname)
      from pg_constraint k where k.conrelid = c.oid and k.contype = 'u'), '[]'),
  'foreign_keys', coalesce((
    select jsonb_agg(jsonb_build_object(
             'schema', n.nspname, 'table', f.relname,
             'on_delete', case k.confdeltype when 'c' then 'cascade' when 'n' then 'set null'
                            when 'd' then 'set default' when 'r' then 'restrict' end,
             'columns', (select jsonb_agg(a.attname order by array_position(k.conkey, a.attnum))
                           from pg_attribute a
                          where a.attrelid = k.conrelid and a.attnum = any (k.conkey)),
             'target_columns', (
               select jsonb_agg(a.attname order by array_position(k.confkey, a.attnum))
                 from pg_attribute a where a.attrelid = k.confrelid and a.attnum = any (k.confkey)))
             order by k.conname)
      from pg_constraint k join pg_class f on f.oid = k.confrelid
      join pg_namespace n on n.oid = f.relnamespace
     where k.conrelid = c.oid and k.contype = 'f' and k.conparentid = 0), '[]'))
  from pg_class c
 where c.relnamespace = (select oid from pg_namespace where nspname = %(schema)s)
   and c.relkind in ('r', 'p') and not c.relispartition
 order by c.relname
"""
