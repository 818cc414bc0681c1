"""Column packs: sets of columns, constraints, indexes and code that are spread into a user's table.

A pack is a file of SQL; `pyconcord/packs/shipped` has those that come along. What it says is read
through sqlglot's syntax tree, and made into what a database is told (`Spread.document`, for
concord.add_pack), into a CREATE TABLE (`merge`), or into classes (`pyconcord.bridge`). What is
missing in a table, and what may be changed, the database decides.

    -- pack: timestamps
    -- version: 1
    -- track: {"ignore_fields": ["updated_at"]}
    --
    -- When a row was made, and when it last changed.
    create table :"table" (
      :"created_at" timestamptz not null default now(), …
    );
    create index on :"table" (…);
    create or replace function :"schema".:"table_touch"() …
    create trigger … on :"table" …; create policy … on :"table" …

Names are written as psql's variables, so that two tables may have them differently:
`:"created_at"` is the identifier that the option created_at says, by default created_at itself;
`:"table_touch"` is a name made of the table's.
A line `-- set: key_type = uuid` gives a variable `:key_type` for a piece of SQL its default.
"""

from .ddl import Column, Constraint, Index, PackFileError, TableName
from .definition import Pack, Spread
from .files import find, load, shipped
from .merge import merge

__all__ = [
    "Column",
    "Constraint",
    "Index",
    "Pack",
    "PackFileError",
    "Spread",
    "TableName",
    "find",
    "load",
    "merge",
    "shipped",
]
