"""Names and texts that users choose, in the code that track makes of them."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql

from tests.isolation.schedule import Session, Story, refused, request, update

ODD = {
    "trigger": "$trigger$;select m.f();select $trigger$",
    "body": "$body$;select m.f();select $body$",
    "function": "$function$;select m.f();select $function$",
    "plain": "$plain$;select m.f();select $plain$",
    "once": "$once$ $$ ;select m.f();",
    "quotes": "it's \"quoted\" '';select m.f();--",
    "backslashes": "back\\slash \\' \\x \\",
    "percents": "100%s %1$s %L %%",
    "newlines": "one\n; select m.f();\n-- two\r\n/* three",
    "variables": "a by_kind, b by_actor, c for_whom, d by_epoch, $1 $2",
}

# Whoever runs m.f() leaves a name behind.
SCHEMA = """
create table m.got (who text);
create function m.f() returns int language plpgsql
as $$ begin insert into m.got values (current_user); return 1; end $$;
grant all on schema m to public;
grant all on m.got to public;
set check_function_bodies = off;
"""


def mallory(story: Story) -> Session:
    """A login that is trusted with nothing, and owns a schema."""
    story.admin().run("create schema m authorization plain")
    session = story.session("mallory", "plain")
    session.run(SCHEMA)
    return session


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("where", ["tenant", "group", "column", "table", "schema", "all"])
def test_odd_names(story: Story, where: str, odd: str) -> None:
    """No forgery: names are names, in every piece of generated code, and the log has them."""
    word = ODD[odd].replace("{", "").replace("}", "")
    by = mallory(story)

    def name(place: str, other: str) -> str:
        return word[:60] if where in (place, "all") else other

    schema, table, column = name("schema", "m"), name("table", "odd"), name("column", "title")
    tenant = word if where in ("tenant", "all") else "acme"
    tenant = "".join(c for c in tenant if c.isprintable())  # nobody acts for one that holds others
    groups = [f"{word.replace(':', '')}:{{deck}}" if where in ("group", "all") else "deck:{deck}"]
    if where in ("column", "all"):
        groups[0] += f"/{{{column}}}"
    if schema != "m":
        story.admin().run(
            sql.SQL("create schema {} authorization plain; grant usage on schema {} to app")
            .format(sql.Identifier(schema), sql.Identifier(schema))
            .as_string(None)
        )

    def run(text: str, *params: Any) -> None:
        names = {"t": sql.Identifier(schema, table), "c": sql.Identifier(column)}
        by.connection.execute(sql.SQL(text).format(**names), params or None)

    run("create table {t} (id int primary key, deck text, {c} text)")
    run("insert into {t} values (1, 'a', 'one')")
    run("grant all on {t} to app")
    literal = sql.Identifier(schema, table).as_string(None)
    for detail in ("before", "names"):
        by.run(
            "select concord.track(%s::regclass, 'odd', tenant => %s, groups => %s, detail => %s)",
            *(literal, tenant, groups, detail),
        )
    ana = story.actor("ana", tenant=tenant)
    token = ana.capture()
    run("update {t} set {c} = 'theirs' where id = 1")
    run("insert into {t} values (2, 'a', 'two')")
    run("delete from {t} where id = 2")
    mine = update("odd", 1, **{column: "mine"})
    with refused("stale_context") as refusal:
        ana.commit(request(mine, read_at=token))
    assert refusal.fields == [column]
    in_group = f"{groups[0].split(':')[0]}:a" + ("/theirs" if where in ("column", "all") else "")
    with refused("stale_context", "reads[0]"):
        ana.commit(
            request(
                update("odd", 1, deck="b"),
                read_at=token,
                reads=[{"group": in_group}],
            )
        )
    assert ana.commit(request(mine, read_at=ana.capture()))["applied"] == 1

    # The fallback is made of the same names, when a column has come.
    run("alter table {t} add column extra int")
    token = ana.capture()
    run("update {t} set {c} = 'theirs', extra = 1 where id = 1")
    with refused("stale_context") as refusal:
        ana.commit(request(update("odd", 1, **{column: "mine"}), read_at=token))
    assert refusal.fields == [column]
    logged = story.admin().run("select tenant, groups is null, grp from concord_internal.deltas")
    assert {t for t, *_ in logged} == {tenant}
    assert by.run("select * from m.got") == []


def test_a_body_that_closes_its_quote(story: Story) -> None:
    """No forgery: what a tenant's name holds never runs, least of all as Concord's owner."""
    by = mallory(story)
    by.run("create table m.x (id int primary key)")
    by.run("select concord.track('m.x', tenant => %s)", ODD["trigger"])
    assert by.run("select * from m.got") == []
    models = story.admin().run("select tenant from concord.models")
    assert models == [(ODD["trigger"],)]
