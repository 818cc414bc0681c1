"""The migration of a bridge: statements, and what they are written into.

What is done to a table is a few calls, each of which can be made again and finds done what is done.
Back goes the other way, and leaves the schema as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from psycopg import sql

from ..packs.ddl import quoted
from .tables import BridgeError, Table

Target = Literal["sql", "alembic", "django"]


@dataclass(frozen=True)
class Bridge:
    """Tables, each with the packs that it is to have (`Table.having`)."""

    tables: Sequence[Table]

    def demand(self) -> None:
        """Raise BridgeError for what can be told to be wrong before anything runs."""
        for table in self.tables:
            if not table.key:
                raise BridgeError(f"{table.name} has no primary key: a row is known by something")
            _together(table, "track")
            _together(table, "protect")

    def up(self) -> Iterator[str]:
        """The statements, in order; each in a transaction of its own. One that begins with
        `select concord.todo` answers with more of them."""
        for table in self.tables:
            if not table.exists:
                yield f"create table if not exists {table.name} ()"
        for table in self.tables:
            # What fills rows goes before what watches them change.
            for spread in sorted(table.spreads, key=lambda s: not any(c.fill for c in s.columns)):
                document = json.dumps(spread.document(), indent=2, ensure_ascii=False)
                yield f"call concord.add_pack({_literal(str(table.name))}, {_dollar(document)})"
        for table in self.tables:
            # First track, so that the policies know the model's groups.
            yield _call("concord.track", table, _together(table, "track"))
            if protect := _together(table, "protect"):
                yield _call("concord.protect", table, protect)
            yield _call("concord.todo", table)

    def down(self) -> Iterator[str]:
        """The way back, as far as there is one to go. Data in the packs' columns goes with them."""
        for table in reversed(self.tables):
            here = f"rel = to_regclass({_literal(str(table.name))})"
            if before := _before(table, "track"):
                yield _call("concord.track", table, before)
            else:
                yield f"select concord.untrack(rel) from concord.models where {here}"
            if before := _before(table, "protect"):
                yield _call("concord.protect", table, before)
            else:
                yield f"select concord.unprotect(rel) from concord.protected where {here}"
            for spread in reversed(table.spreads):
                this = f"{here} and pack = {_literal(spread.pack)}"
                yield f"select concord.remove_pack(rel, pack) from concord.packs where {this}"
        for table in reversed(self.tables):
            if not table.exists:
                yield f"drop table if exists {table.name}"

    def run(self, execute: Callable[[str], Sequence[tuple[Any, ...]]], back: bool = False) -> None:
        """Do it. `execute` runs a statement in a transaction of its own, and answers its rows."""
        of_no_tenant = False
        for statement in list(self.down() if back else self.up()):
            rows = execute(statement)
            if statement.startswith("select concord.protect"):
                of_no_tenant = bool(rows[0][0]["rows_without_tenant"])
            elif statement.startswith("select concord.todo"):
                for (todo,) in rows:
                    # Rows that nobody sees any more: the check holds for new ones alone.
                    if not (of_no_tenant and "validate constraint concord_has_tenant" in todo):
                        execute(todo)
                of_no_tenant = False

    def files(
        self,
        target: Target,
        name: str = "concord",
        after: Sequence[str] = (),
    ) -> dict[str, str]:
        """The migration's files. `after`: the revision, or the migrations, that it comes after."""
        if target == "alembic":
            return self._alembic(name, after)
        if target == "django":
            return {f"{name}.py": self._django(after)}
        return {f"{name}.up.sql": self._sql(self.up()), f"{name}.down.sql": self._sql(self.down())}

    def _sql(self, statements: Iterator[str]) -> str:
        lines = ["-- Written by pyconcord bridge, for psql without --single-transaction.\n"]
        for statement in statements:
            more = " \\gexec" if statement.startswith("select concord.todo") else ";"
            lines.append(f"{statement}{more}\n")
        return "\n".join(lines)

    def _alembic(self, name: str, after: Sequence[str]) -> dict[str, str]:
        up, down = list(self.up()), list(self.down())
        revision = hashlib.sha256("\n".join([*after, *up]).encode()).hexdigest()[:12]
        before = json.dumps(after[0]) if after else "None"
        text = _ALEMBIC.format(
            name=name,
            revision=revision,
            before=before,
            up=_statements(up),
            down=_statements(down),
        )
        return {f"{revision}_{name}.py": text}

    def _django(self, after: Sequence[str]) -> str:
        pairs = [tuple(each.rsplit(".", 1)) for each in after]
        return _DJANGO.format(
            after="".join(f'\n        ("{app}", "{name}"),' for app, name in pairs)
            + ("\n    " if pairs else ""),
            up=_statements(list(self.up())),
            down=_statements(list(self.down())),
        )


def _of_packs(table: Table, function: str) -> dict[str, Any]:
    """What all packs of a table say of protect, or of track: lists are put together."""
    together: dict[str, Any] = {}
    for spread in table.spreads:
        said: Mapping[str, Any] = getattr(spread, function)
        for key, value in said.items():
            together[key] = _union(together.get(key), value) if isinstance(value, list) else value
    return together if function == "track" or "tenant_column" in together else {}


def _together(table: Table, function: str) -> dict[str, Any]:
    """The same, with what was said before the bridge. Raises BridgeError where they differ."""
    together: dict[str, Any] = dict(table.said.get(function, {}))
    for key, value in _of_packs(table, function).items():
        was = together.get(key)
        if isinstance(value, list):
            together[key] = _union(was, value)
        elif was is not None and was != value:
            raise BridgeError(
                f"concord.{function} has {key} {was} for {table.name}, and the packs say {value}: "
                f"name the pack's column so (--set), or leave the pack out"
            )
        else:
            together[key] = value
    return together


def _before(table: Table, function: str) -> dict[str, Any]:
    """What was said without the packs: of columns that are the user's, and what packs don't say."""
    packs = _of_packs(table, function)
    left: dict[str, Any] = {}
    for key, value in table.said.get(function, {}).items():
        if isinstance(value, list):
            value = [v for v in value if v in table.own or v not in packs.get(key, [])]
        if value != [] and (packs.get(key) != value or value in table.own):
            left[key] = value
    return left if function == "track" or "tenant_column" in left else {}


def _union(one: list[Any] | None, other: list[Any]) -> list[Any]:
    return list(dict.fromkeys([*(one or []), *other]))


def _call(function: str, table: Table, arguments: Mapping[str, Any] | None = None) -> str:
    named = [f"{key} => {_value(key, value)}" for key, value in (arguments or {}).items()]
    return f"select {function}({', '.join([_literal(str(table.name)), *named])})"


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        kind = "name[]" if key.endswith("_fields") else "text[]"
        return f"array[{', '.join(_literal(each) for each in value)}]::{kind}"
    return _literal(json.dumps(value) if isinstance(value, dict) else value)


def _literal(text: str) -> str:
    return sql.Literal(text).as_string(None)


def _dollar(text: str) -> str:
    """A text in dollar quotes, as people write long ones."""
    mark = "$pack$"
    while mark in text:
        mark = f"{mark[:-1]}_$"
    return f"{mark}{text}{mark}"


def summary(statement: str) -> str:
    """A statement in a line, for people."""
    first = statement.splitlines()[0]
    if "$pack$" in first:
        pack = json.loads(statement.partition("$pack$")[2].rpartition("$pack$")[0])["pack"]
        return f"{first.partition(', $pack$')[0]}, {quoted(pack)})"
    return first


def _statements(statements: Sequence[str]) -> str:
    """A list of texts as Python has them."""
    return "\n".join(f"    {_python(each)}," for each in statements)


def _python(text: str) -> str:
    if "\n" not in text and '"' not in text and "\\" not in text:
        return f'"{text}"'
    escaped = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    return f'"""{escaped}"""' if not escaped.endswith('"') else f'"""{escaped[:-1]}\\""""'


_ALEMBIC = '''\
"""Tables on Concord. Written by pyconcord bridge.

Revision ID: {revision}
"""

from alembic import op
from sqlalchemy import text

revision = "{revision}"
down_revision = {before}
branch_labels = None
depends_on = None

UP = [
{up}
]
DOWN = [
{down}
]


def upgrade() -> None:
    run(UP)


def downgrade() -> None:
    run(DOWN)


def run(statements: list[str]) -> None:
    """Each in a transaction of its own; rows are filled in batches, and nobody waits long."""
    context = op.get_context()
    with context.autocommit_block():
        for statement in statements:
            if statement.startswith("select concord.todo(") and not context.as_sql:
                left = op.get_bind().execute(text(escaped(statement)))
                for todo in left.scalars().all():
                    op.get_bind().exec_driver_sql(todo)
            else:
                op.execute(text(escaped(statement)))


def escaped(statement: str) -> str:
    """A colon before a name would be a parameter."""
    return statement.replace(":", "\\\\:")
'''

_DJANGO = '''\
"""Tables on Concord. Written by pyconcord bridge."""

from django.db import migrations

UP = [
{up}
]
DOWN = [
{down}
]


def run(schema_editor, statements):
    """Each in a transaction of its own; rows are filled in batches, and nobody waits long."""
    with schema_editor.connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
            if statement.startswith("select concord.todo("):
                for (todo,) in cursor.fetchall():
                    cursor.execute(todo)


class Migration(migrations.Migration):
    atomic = False
    dependencies = [{after}]
    operations = [
        migrations.RunPython(
            lambda apps, schema_editor: run(schema_editor, UP),
            lambda apps, schema_editor: run(schema_editor, DOWN),
        )
    ]
'''
