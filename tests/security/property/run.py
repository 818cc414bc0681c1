"""The database, the statements, and the comparison of what came of them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg

from tests.security.property.oracle import RULES, TEAMS, Delta, Principal, Row, Table, principals
from tests.support import Database

COLUMNS = "id, tenant, owner, shared, team, grp, title"
LOGINS = ("app2", "plain")  # either may run any SQL; app2 commits
SESSIONS = 60
REFUSED = {"42501", "KC003", "KC004", "KC012", "KC013", "KC014", "23505"}


class Differs(AssertionError):
    """The database did something else than the oracle."""


@dataclass
class Actor:
    who: Principal
    login: str
    secret: str | None


@dataclass
class Outcome:
    """Rows that a statement answered, or its refusal."""

    rows: list[tuple[Any, ...]] | None
    error: str | None = None


@dataclass
class Run:
    """One run: so many statements from one seed."""

    db: Database
    seed: int
    tables: dict[str, Table] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    _titles: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.tables = {rule.name: Table(rule) for rule in RULES}
        self.admin = self.db.connect()
        self.connections = {login: self.db.connect(login) for login in LOGINS}
        self._build()
        self.actors = self._mint()
        self.feeds = {n: self._token() for n in range(len(self.actors))}
        self.seen = {n: self._lengths() for n in range(len(self.actors))}

    # --- building ---

    def _build(self) -> None:
        owner = self.db.connect("owner")
        owner.execute("create table teams (team text, member text)")
        owner.execute("grant select on teams to app2, plain")
        for team, members in TEAMS.items():
            for member in members:
                owner.execute("insert into teams values (%s, %s)", (team, member))
        for name, table in self.tables.items():
            rule = table.rule
            owner.execute(
                f"create table {name} (id int primary key, tenant text, owner text, shared bool,"
                " team text, grp text, title text)".encode()
                + (b" partition by range (id)" if name == "parts" else b"")
            )
            if name == "parts":
                for n in range(3):
                    owner.execute(
                        f"create table parts_{n} partition of parts"
                        f" for values from ({n * 20}) to ({n * 20 + 20})".encode()
                    )
                    owner.execute(f"grant all on parts_{n} to app2, plain".encode())
            groups = "array['g:{grp}']" if rule.grouped else "'{}'"
            owner.execute(
                f"select concord.track('{name}', tenant_column => 'tenant', groups => {groups})".encode()
            )
            owner.execute(f"select concord.protect('{name}', {rule.arguments()})".encode())
            for statement in (
                f"grant select, insert, update, delete, truncate on {name} to app2, plain",
                f"create view {name}_view as select * from {name}",
                f"create view {name}_mine with (security_invoker, security_barrier) as select * from {name}",
                f"create function {name}_rows() returns setof {name} language sql security definer"
                f" set search_path = public, pg_temp as 'select * from {name}'",
                f"grant select, insert, update, delete on {name}_view, {name}_mine to app2, plain",
            ):
                owner.execute(statement.encode())
            for id in range(0, 48, 2):  # rows of everybody, and of nobody, by the superuser
                row = self._row(id)
                if row.tenant is None:  # which the CHECK would refuse; nobody is of this tenant
                    row = replace(row, tenant="t9")
                values = (row.id, row.tenant, row.owner, row.shared, row.team, row.grp, row.title)
                marks = ", ".join(["%s"] * 7)
                self.admin.execute(
                    f"insert into {name} ({COLUMNS}) values ({marks})".encode(), values
                )
                table.rows[id] = row
                owner_then = row.owner if rule.owned else None
                table.log.append(
                    Delta(
                        id,
                        "create",
                        row.tenant,
                        owner_then,
                        table.groups_of(row),
                        "system",
                        "postgres",
                    )
                )

    def _row(self, id: int, near: Principal | None = None) -> Row:
        pick = self.dice.choice
        own = [near.owner(False)] if near is not None else []
        tenants = ["t0", "t1", "t2", None] + ([near.tenant] * 4 if near is not None else [])
        return Row(
            id,
            pick([*tenants, None, None] if near is not None else tenants),
            pick([None, "ana", "ben", "agent:ana", *own, *own, *([None] * 3 if own else [])]),
            pick([True, False, None]),
            pick([None, *TEAMS]),
            pick([None, "x", "y"]),
            self._title(),
        )

    def _title(self) -> str:
        self._titles += 1
        return f"title {self._titles}"

    def _mint(self) -> list[Actor]:
        made: list[Actor] = []
        everybody = principals()
        operations = [
            f"{name}.{op}" for name in self.tables for op in ("read", "create", "update", "delete")
        ]
        for _ in range(SESSIONS):
            who, login = self.dice.choice(everybody), self.dice.choice(LOGINS)
            if who.tenant is None:
                made.append(Actor(who, login, None))
                continue
            if self.dice.random() < 0.3:
                who = replace(who, operations=frozenset(self.dice.sample(operations, 12)))
            if self.dice.random() < 0.2:
                who = replace(who, groups=frozenset(self.dice.sample(["g:x", "g:y", "h:x"], 2)))
            row = self.admin.execute(
                "select secret from concord.mint_session(%s, %s, %s, %s, tenant => %s, operations => %s, groups => %s)",
                (
                    login, who.kind, who.id, who.on_behalf_of, who.tenant,
                    None if who.operations is None else sorted(who.operations),
                    None if who.groups is None else sorted(who.groups),
                ),
            ).fetchone()  # fmt: skip
            assert row is not None
            made.append(Actor(who, login, row[0]))
        return made

    # --- running ---

    def go(self, statements: int) -> None:
        kinds = (
            [self.select] * 4 + [self.update] * 3 + [self.delete, self.insert, self.insert]
            + [self.upsert, self.merge, self.give_away, self.move_group, self.truncate]
            + [self.commit] * 3 + [self.read, self.history, self.feed]
        )  # fmt: skip
        for n in range(statements):
            number = self.dice.randrange(len(self.actors))
            actor = self.actors[number]
            table = self.tables[self.dice.choice(list(self.tables))]
            kind: Callable[[int, Actor, Table], str] = self.dice.choice(kinds)
            if actor.login == "plain" and kind in (self.commit, self.read, self.history, self.feed):
                kind = self.select
            self._identify(actor)
            try:
                what = kind(number, actor, table)
            except Differs as differs:
                raise Differs(
                    f"seed {self.seed}, statement {n}, {actor.who} as {actor.login} on {table.rule}: {differs}"
                ) from None
            self.counts[f"{kind.__name__}"] += 1
            if what == "refused":
                self.refused += 1
            if n % 50 == 49 or n == statements - 1:
                self._compare()

    def _identify(self, actor: Actor) -> None:
        connection = self.connections[actor.login]
        if actor.secret is None:
            connection.execute("reset concord.session")
        else:
            connection.execute(
                "select concord.authenticate(%s, is_local => false)", (actor.secret,)
            )

    def _ask(self, actor: Actor, sql: str, *params: Any) -> Outcome:
        try:
            cursor = self.connections[actor.login].execute(sql.encode(), params or None)
            return Outcome(cursor.fetchall() if cursor.description else [])
        except psycopg.Error as error:
            if error.sqlstate not in REFUSED:
                raise Differs(f"{sql}: {error}") from error
            return Outcome(None, error.sqlstate)

    def _compare(self) -> None:
        for name, table in self.tables.items():
            found = {
                row[0]: Row(*row)
                for row in self.admin.execute(f"select {COLUMNS} from {name}".encode()).fetchall()
            }
            if found != table.rows:
                wrong = [
                    (found.get(id), table.rows.get(id))
                    for id in sorted(found.keys() | table.rows.keys())
                    if found.get(id) != table.rows.get(id)
                ]
                raise Differs(f"seed {self.seed}: {name} holds (found, expected) {wrong[:3]}")

    @staticmethod
    def _expect(found: object, expected: object, what: str) -> None:
        if found != expected:
            raise Differs(f"{what}: found {found}, expected {expected}")

    def _source(self, name: str) -> str:
        return self.dice.choice([name, f"{name}_view", f"{name}_mine"])

    def _ids(self) -> list[int]:
        return sorted(self.dice.sample(range(60), self.dice.choice([1, 1, 3, 20, 60])))

    # --- statements ---

    def select(self, number: int, actor: Actor, table: Table) -> str:
        name, who = table.rule.name, actor.who
        expected = sorted(id for id, row in table.rows.items() if table.sees(who, row))
        source = self.dice.choice([name, f"{name}_view", f"{name}_mine", f"{name}_rows()"])
        way = self.dice.randrange(9)
        if name == "parts" and self.dice.random() < 0.5:
            part = self.dice.randrange(3)
            source = f"parts_{part}"
            expected = [id for id in expected if id // 20 == part]
        if way == 0:
            tricks = [
                "true",
                "tenant is not null or tenant is null",
                "owner = 'ana' or true",
                "tenant in ('t0', 't1', 't2', 't9')",
            ]
            sql = f"select id from {source} where {self.dice.choice(tricks)}"
        elif way == 1:
            sql = f"select unnest(array_agg(id)) from {source}"
        elif way == 2:
            sql = f"with c as materialized (select * from {source}) select id from c"
        elif way == 3:
            sql = f"select g from generate_series(0, 59) g where exists (select from {source} s where s.id = g)"
        elif way == 4:
            owner = self.dice.choice(["ana", "ben", "agent:ana"])
            expected = [id for id in expected if table.rows[id].owner == owner]
            sql = f"select id from {source} where owner = '{owner}'"
        elif way == 5:
            sql = f"select a.id from {source} a join {name} b on a.id = b.id"
        elif way == 6:
            connection = self.connections[actor.login]
            with connection.transaction():
                connection.execute(f"declare c cursor for select id from {source}".encode())
                found = connection.execute("fetch all from c").fetchall()
            self._expect(sorted(row[0] for row in found), expected, f"cursor on {source}")
            return "answered"
        elif way == 7:
            with (
                self.connections[actor.login].cursor() as cursor,
                cursor.copy(f"copy (select id from {source}) to stdout".encode()) as copy,
            ):
                found = sorted(int(row[0]) for row in copy.rows())
            self._expect(found, expected, f"copy of {source}")
            return "answered"
        else:
            sql = f"select id from {source}"
        outcome = self._ask(actor, sql)
        self._expect(sorted(row[0] for row in outcome.rows or []), expected, sql)
        return "answered"

    def update(self, number: int, actor: Actor, table: Table) -> str:
        who, ids = actor.who, self._ids()
        title = self._title()
        hit = [
            id
            for id in ids
            if (row := table.rows.get(id)) and table.sees(who, row) and table.updates(who, row)
        ]
        if any(not table.leaves(who, table.rows[id]) for id in hit):
            return "skipped"
        sql = f"update {self._source(table.rule.name)} set title = '{title}' where id = any ('{{{','.join(map(str, ids))}}}') returning id"
        outcome = self._ask(actor, sql)
        self._expect(outcome.error, None, sql)
        self._expect(sorted(row[0] for row in outcome.rows or []), hit, sql)
        for id in hit:
            table.put(who, replace(table.rows[id], title=title))
        return "answered"

    def delete(self, number: int, actor: Actor, table: Table) -> str:
        who, ids = actor.who, self._ids()[:2]
        hit = [
            id
            for id in ids
            if (row := table.rows.get(id)) and table.sees(who, row) and table.deletes(who, row)
        ]
        sql = f"delete from {self._source(table.rule.name)} where id = any ('{{{','.join(map(str, ids))}}}') returning id"
        outcome = self._ask(actor, sql)
        self._expect(sorted(row[0] for row in outcome.rows or []), hit, sql)
        for id in hit:
            table.drop(who, id)
        return "answered"

    def _new(self, actor: Actor, table: Table) -> tuple[Row, str, tuple[Any, ...]]:
        row = self._row(self.dice.randrange(60), actor.who)
        if not table.rule.owned and self.dice.random() < 0.5:
            row = replace(row, owner="ana")
        return row, f"({COLUMNS}) values (%s, %s, %s, %s, %s, %s, %s)", (
            row.id, row.tenant, row.owner, row.shared, row.team, row.grp, row.title,
        )  # fmt: skip

    def insert(self, number: int, actor: Actor, table: Table) -> str:
        row, text, values = self._new(actor, table)
        made = table.stamped(actor.who, row)
        good = made is not None and table.inserts(actor.who, made) and row.id not in table.rows
        sql = f"insert into {self._source(table.rule.name)} {text}"
        outcome = self._ask(actor, sql, *values)
        self._expect(outcome.error is None, good, f"{sql} {values} ({outcome.error})")
        if not good or made is None:
            return "refused"
        table.put(actor.who, made)
        return "answered"

    def upsert(self, number: int, actor: Actor, table: Table) -> str:
        who = actor.who
        row, text, values = self._new(actor, table)
        made = table.stamped(who, row)
        there = table.rows.get(row.id)
        good = made is not None and table.inserts(who, made) and table.sees(who, made)
        if good and there is not None:
            after = replace(there, title=row.title)
            good = table.sees(who, there) and table.updates(who, there) and table.leaves(who, after)
        sql = f"insert into {self._source(table.rule.name)} {text} on conflict (id) do update set title = excluded.title"
        outcome = self._ask(actor, sql, *values)
        self._expect(
            outcome.error is None, good, f"{sql} {values} ({outcome.error}; there: {there})"
        )
        if not good or made is None:
            return "refused"
        table.put(who, made if there is None else replace(there, title=row.title))
        return "answered"

    def merge(self, number: int, actor: Actor, table: Table) -> str:
        who = actor.who
        row, _, values = self._new(actor, table)
        made = table.stamped(who, row)
        there = table.rows.get(row.id)
        if there is not None and table.sees(who, there):
            good = table.updates(who, there) and table.leaves(who, replace(there, title=row.title))
        else:
            good = made is not None and table.inserts(who, made) and there is None
        sql = (
            f"merge into {table.rule.name} t using (select %s::int as id, %s::text as tenant, %s::text as owner,"
            " %s::bool as shared, %s::text as team, %s::text as grp, %s::text as title) s on t.id = s.id"
            " when matched then update set title = s.title"
            f" when not matched then insert ({COLUMNS}) values (s.id, s.tenant, s.owner, s.shared, s.team, s.grp, s.title)"
        )
        outcome = self._ask(actor, sql, *values)
        self._expect(
            outcome.error is None, good, f"{sql} {values} ({outcome.error}; there: {there})"
        )
        if not good:
            return "refused"
        if there is not None:
            table.put(who, replace(there, title=row.title))
        elif made is not None:
            table.put(who, made)
        return "answered"

    def give_away(self, number: int, actor: Actor, table: Table) -> str:
        """To another owner or tenant: refused where a row would change, else nothing happens."""
        who = actor.who
        column = self.dice.choice(["tenant", "owner"] if table.rule.owned else ["tenant"])
        value = self.dice.choice(["t0", "t1", "ana", "ben", None, ""])
        hit = [
            row for row in table.rows.values() if table.sees(who, row) and table.updates(who, row)
        ]
        good = all(getattr(row, column) == value for row in hit) and all(
            table.leaves(who, row) for row in hit
        )
        sql = f"update {self._source(table.rule.name)} set {column} = %s"
        outcome = self._ask(actor, sql, value)
        self._expect(outcome.error is None, good, f"{sql} {value!r} ({outcome.error})")
        return "answered" if good else "refused"

    def move_group(self, number: int, actor: Actor, table: Table) -> str:
        who, grp = actor.who, self.dice.choice([None, "x", "y"])
        hit = [
            row for row in table.rows.values()
            if table.sees(who, row) and table.updates(who, row) and row.grp == "x"
        ]  # fmt: skip
        after = [replace(row, grp=grp, title=self._title()) for row in hit]
        # The new row has to be visible too: the statement reads it.
        good = all(table.leaves(who, row) and table.sees(who, row) for row in after)
        case = " ".join(f"when {row.id} then '{row.title}'" for row in after)
        title = f"case id {case} end" if case else "title"
        sql = f"update {table.rule.name} set grp = %s, title = {title} where grp = 'x'"
        outcome = self._ask(actor, sql, grp)
        self._expect(outcome.error is None, good, f"{sql} {grp!r} ({outcome.error})")
        if not good:
            return "refused"
        for row in after:
            table.put(who, row)
        return "answered"

    def truncate(self, number: int, actor: Actor, table: Table) -> str:
        outcome = self._ask(actor, f"truncate {table.rule.name}")
        self._expect(outcome.error, "KC014", "truncate")
        return "refused"

    def commit(self, number: int, actor: Actor, table: Table) -> str:
        who = actor.who
        name, id = table.rule.name, self.dice.randrange(60)
        there = table.rows.get(id)
        type = self.dice.choice(["update", "update", "create", "delete"])
        operation: dict[str, Any] = {"type": type, "model": name, "id": str(id)}
        after: Row | None = None
        good = who.tenant is not None and table.may(who, type)
        if who.groups is not None:
            good = good and table.rule.grouped
        if type == "update":
            title = self._title()
            operation["data"] = {"title": title}
            good = (
                good and there is not None and table.sees(who, there) and table.updates(who, there)
            )
            if good and there is not None:
                after = replace(there, title=title)
                good = table.leaves(who, after)
        elif type == "delete":
            good = (
                good and there is not None and table.sees(who, there) and table.deletes(who, there)
            )
        else:
            row = self._row(id, who)
            keys = ("tenant", "owner") if table.rule.owned else ("tenant",)
            data = {k: getattr(row, k) for k in (*keys, "shared", "team", "grp", "title")}
            operation["data"] = {k: v for k, v in data.items() if v is not None}
            after = table.stamped(who, row if table.rule.owned else replace(row, owner=None))
            good = good and there is None and after is not None and table.inserts(who, after)
        request: dict[str, Any] = {"operations": [operation]}
        if self.dice.random() < 0.7 and type != "create":
            operation["readAt"] = self._token(actor)
            operation["onStale"] = self.dice.choice(["reject", "overwrite", "notify"])
        if self.dice.random() < 0.2:
            request["returning"] = True
        outcome = self._ask(actor, "select concord.commit(%s::jsonb)", json.dumps(request))
        told: Any = outcome.rows[0][0] if outcome.rows else None
        done = outcome.error is None and told["applied"] == 1
        self._expect(done, good, f"commit {request} ({outcome.error}, {told}; there: {there})")
        if not good:
            return "refused"
        if type == "delete":
            table.drop(who, id)
        else:
            assert after is not None
            table.put(who, after)
        return "answered"

    def read(self, number: int, actor: Actor, table: Table) -> str:
        who, id = actor.who, self.dice.randrange(60)
        there = table.rows.get(id)
        good = there is not None and table.sees(who, there)
        outcome = self._ask(actor, "select concord.read(%s, %s)", table.rule.name, str(id))
        data: Any = outcome.rows[0][0]["data"] if outcome.rows else None
        self._expect(data is not None, good, f"read {table.rule.name} {id}: {data}")
        if good and there is not None:
            self._expect(data["title"], there.title, "read")
        return "answered" if good else "refused"

    def history(self, number: int, actor: Actor, table: Table) -> str:
        who, id = actor.who, self.dice.randrange(60)
        sql = "select op, kind, actor from concord.history(%s, %s, 1000)"
        outcome = self._ask(actor, sql, table.rule.name, str(id))
        expected = table.told(who, [delta for delta in table.log if delta.id == id])
        found = [tuple(row) for row in reversed(outcome.rows or [])]
        self._expect(
            found, [(d.op, d.kind, d.actor) for d in expected], f"history {table.rule.name} {id}"
        )
        return "answered"

    def feed(self, number: int, actor: Actor, table: Table) -> str:
        """All that happened since this actor's last look."""
        who = actor.who
        sql = "select model, id, op, actor, next_token from concord.changes(%s, 100000)"
        outcome = self._ask(actor, sql, self.feeds[number])
        rows = outcome.rows or []
        found = Counter(tuple(row[:4]) for row in rows if row[2] != "checkpoint")
        expected: Counter[tuple[Any, ...]] = Counter()
        for name, each in self.tables.items():
            for delta in each.told(who, each.log[self.seen[number][name] :]):
                expected[(name, str(delta.id), delta.op, delta.actor)] += 1
        self._expect(found - expected, Counter(), "changes show more")
        self._expect(expected - found, Counter(), "changes show less")
        self.feeds[number] = rows[-1][4]
        self.seen[number] = self._lengths()
        return "answered"

    def _lengths(self) -> dict[str, int]:
        return {name: len(table.log) for name, table in self.tables.items()}

    def _token(self, actor: Actor | None = None) -> str:
        connection = self.admin if actor is None else self.connections[actor.login]
        row = connection.execute("select concord.capture()").fetchone()
        assert row is not None
        return str(row[0])
