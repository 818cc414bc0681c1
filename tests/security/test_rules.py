"""What the wall and each owner rule let through. By login app2, which may run any SQL and state nothing."""

from __future__ import annotations

import pytest

from tests.isolation.schedule import create, delete, fails, refused, request, update
from tests.security.wall import Wall

TABLES = ("notes", "docs", "pages", "plans", "remarks")


def ids(rows: list[tuple[int]]) -> list[int]:
    return sorted(row[0] for row in rows)


@pytest.mark.parametrize(
    ("table", "ana", "ben", "zeta_ana"),
    [
        ("notes", [1, 2], [1, 2], [3]),
        ("docs", [1], [2], [3]),
        ("pages", [1, 3], [2, 3], [4]),
        ("plans", [1], [2], [3]),
        ("remarks", [1, 2], [1, 2], [3]),
    ],
)
def test_who_sees_what(
    wall: Wall, table: str, ana: list[int], ben: list[int], zeta_ana: list[int]
) -> None:
    for who, expected in (
        (wall.bearer("ana"), ana),
        (wall.bearer("ben"), ben),
        (wall.bearer("ana", tenant="zeta"), zeta_ana),
    ):
        assert ids(who.run(f"select id from {table}")) == expected
        # A filter narrows, and never replaces the rule.
        assert ids(who.run(f"select id from {table} where tenant in ('acme', 'zeta') or true")) == (
            expected
        )
        assert who.one(f"select count(*) from {table}") == len(expected)


@pytest.mark.parametrize("table", TABLES)
def test_nobody_sees_and_writes_nothing(wall: Wall, table: str) -> None:
    """Also rows without tenant or owner: a null identity equals no null."""
    for login in ("app2", "plain", "owner", "app"):
        nobody = wall.session("nobody", login)
        assert nobody.run(f"select * from {table}") == []
        assert nobody.run(f"update {table} set id = id returning id") == []
        assert nobody.run(f"delete from {table} returning id") == []
        with refused("unauthenticated"):
            nobody.run(f"insert into {table} (id, tenant) values (9, 'acme')")
        with refused("unauthenticated"):
            nobody.run(f"insert into {table} (id, tenant) values (9, null)")


@pytest.mark.parametrize("table", TABLES)
def test_the_owner_of_the_table_is_bound_too(wall: Wall, table: str) -> None:
    owner = wall.owner()
    assert owner.run(f"select * from {table}") == []
    with refused("forbidden"):
        owner.run(f"truncate {table}")


def test_another_identity_of_the_same_name(wall: Wall) -> None:
    """An agent is not the user of its name, and a user whose name looks like an agent's is neither."""
    agent = wall.bearer("ana", kind="agent")
    assert agent.run("select id from docs") == []
    agent.run("insert into docs (id, title) values (10, 'x')")
    assert agent.run("select id, owner from docs") == [(10, "agent:ana")]
    posing = wall.bearer("agent:ana")
    assert posing.run("select id from docs") == []
    with refused("forbidden", "owner"):
        posing.run("insert into docs (id, title) values (11, 'x')")
    assert wall.bearer("ana").run("select id from docs") == [(1,)]


def test_on_behalf_of_opens_nothing_unless_told(wall: Wall) -> None:
    agent = wall.bearer("writer", kind="agent", on_behalf_of="ana")
    assert agent.run("select id from docs") == []
    wall.owner().run("select concord.protect('docs', 'tenant', 'owner', delegated => true)")
    assert agent.run("select id from docs") == [(1,)]
    agent.run("insert into docs (id) values (10)")
    assert agent.run("select owner from docs where id = 10") == [("ana",)]
    assert (
        wall.bearer("writer", kind="agent", on_behalf_of="agent:x").run("select 1 from docs") == []
    )


@pytest.mark.parametrize("table", TABLES)
def test_inserts_are_stamped(wall: Wall, table: str) -> None:
    ana = wall.bearer("ana")
    column = "author" if table == "remarks" else "owner"
    team = ", team" if table == "plans" else ""
    red = ", 'red'" if table == "plans" else ""
    ana.run(f"insert into {table} (id{team}) values (10{red})")
    ana.run(f"insert into {table} (id, tenant{team}) values (11, ''{red}), (12, 'acme'{red})")
    with refused("forbidden", "tenant"):
        ana.run(f"insert into {table} (id, tenant{team}) values (13, 'zeta'{red})")
    if table != "notes":
        with refused("forbidden", column):
            ana.run(f"insert into {table} (id, {column}{team}) values (13, 'ben'{red})")
        owners = wall.admin().run(f"select distinct tenant, {column} from {table} where id > 9")
        assert owners == [("acme", "ana")]


@pytest.mark.parametrize("table", TABLES)
def test_no_row_is_given_away_or_planted(wall: Wall, table: str) -> None:
    ana = wall.bearer("ana")
    before = wall.admin().run(f"select * from {table} order by id")
    columns = (
        ["tenant"] if table == "notes" else ["tenant", "author" if table == "remarks" else "owner"]
    )
    for column in columns:
        for value in ("'zeta'", "'ben'", "null", "''"):
            with refused("forbidden", column):
                ana.run(f"update {table} set {column} = {value} where id = 1")
            with refused("forbidden", column):
                ana.run(
                    f"insert into {table} (id) select 1 on conflict (id) do update set {column} = {value}"
                    if table != "plans"
                    else "insert into plans (id, team) values (1, 'red')"
                    f" on conflict (id) do update set {column} = {value}"
                )
            with refused("forbidden", column):
                ana.run(
                    f"merge into {table} t using (select 1 as id) s on t.id = s.id"
                    f" when matched then update set {column} = {value}"
                )
    assert wall.admin().run(f"select * from {table} order by id") == before


@pytest.mark.parametrize(
    ("table", "row"),
    [("docs", 2), ("pages", 2), ("pages", 3), ("plans", 2), ("remarks", 2), ("notes", 3)],
)
def test_rows_of_others_are_not_written(wall: Wall, table: str, row: int) -> None:
    ana = wall.bearer("ana")
    field = "text" if table == "remarks" else "title"
    everything = f"select id, tenant, {field} from {table} order by id"
    before = wall.admin().run(everything)
    assert ana.run(f"update {table} set {field} = 'x' where id = {row} returning id") == []
    assert ana.run(f"delete from {table} where id = {row} returning id") == []
    assert ana.run(f"select id from {table} where id = {row} for update") == []
    ana.run(f"update {table} set {field} = {field}")
    with fails("42501", "23505"):
        ana.run(
            f"insert into {table} (id) values ({row}) on conflict (id) do update set {field} = 'x'"
            if table != "plans"
            else f"insert into plans (id, team) values ({row}, 'red') on conflict (id) do update set title = 'x'"
        )
    token = ana.capture()
    for operation in (update(table, row, **{field: "x"}), delete(table, row)):
        for read_at in (token, None):
            with fails("KC004", "KC014", "42501"):
                ana.commit(request(operation, read_at=read_at))
    assert wall.admin().run(everything) == before


def test_writable_rows(wall: Wall) -> None:
    ana, ben = wall.bearer("ana"), wall.bearer("ben", kind="user")
    ana.run("insert into remarks (id, text) values (10, 'mine')")
    assert ben.run("select text, author, editor from remarks where id = 10") == [
        ("mine", "ana", "ana")
    ]
    ana.run("update remarks set text = 'mine 2', editor = 'ben' where id = 10")
    assert ana.run("select text, editor from remarks where id = 10") == [("mine 2", "ana")]
    assert ana.run("delete from remarks where id = 10 returning id") == []
    # An insert on an existing key is refused and never supersedes.
    with refused("already_exists"):
        ben.commit(request(create("remarks", 10, text="theirs")))
    with fails("23505"):
        ben.run("insert into remarks (id, text) values (10, 'theirs')")
    assert ana.run("select text from remarks where id = 10") == [("mine 2",)]


def test_what_writable_leaves_out(story: Wall) -> None:
    """Absent means insert only."""
    story.owner().run("select concord.protect('remarks', 'tenant', 'author', writable => '{}')")
    ana = story.bearer("ana")
    ana.run("insert into remarks (id, text) values (10, 'mine')")
    assert ana.run("update remarks set text = 'x' returning id") == []
    assert ana.run("delete from remarks returning id") == []
    story.owner().run(
        "select concord.protect('remarks', 'tenant', 'author', writable =>"
        ' \'{"insert": "none", "update": "any", "delete": "own"}\')'
    )
    with fails("42501"):
        ana.run("insert into remarks (id, text) values (11, 'mine')")
    assert ids(ana.run("update remarks set text = 'x' returning id")) == [1, 2, 10]
    assert ids(ana.run("delete from remarks returning id")) == [1, 10]


def test_columns_of_other_types(story: Wall) -> None:
    owner = story.owner()
    owner.run(
        "create table typed (id int primary key, org bigint, who uuid);"
        "insert into typed values (1, 7, '6f1f1e9e-0000-4000-8000-000000000001'), (2, 8, null);"
        "grant select, insert, update on typed to app2;"
        "select concord.protect('typed', 'org', 'who')"
    )
    known = story.bearer("6f1f1e9e-0000-4000-8000-000000000001", tenant="7")
    assert known.run("select id from typed") == [(1,)]
    known.run("insert into typed (id) values (3)")
    assert story.admin().run("select org, who::text from typed where id = 3") == [
        (7, "6f1f1e9e-0000-4000-8000-000000000001")
    ]
    for strange in (
        story.bearer("ana", tenant="7"),
        story.bearer("6f1f1e9e-0000-4000-8000-000000000001", tenant="x"),
        # Another name for the same value is another name.
        story.bearer("6F1F1E9E-0000-4000-8000-000000000001", tenant="7"),
        story.bearer("6f1f1e9e-0000-4000-8000-000000000001", tenant="07"),
    ):
        assert strange.run("select id from typed") == []
        with refused("forbidden"):
            strange.run("insert into typed (id) values (4)")
