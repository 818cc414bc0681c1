"""The clients of a history: committing ones, raw SQL writers, and one that changes columns."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import psycopg
from psycopg import errors, sql
from psycopg.types.json import Jsonb, set_json_loads

from tests.history.oracle import Image, RowId
from tests.history.records import (
    Attempt,
    Client,
    Heads,
    ObservedToken,
    Reading,
    ReceiptToken,
    Snapshot,
    Token,
    Txn,
    loads,
)

Connection = psycopg.Connection[Any]

ITEMS = [str(key) for key in range(1, 25)]
DECKS = ["d1", "d2", "d3", "d4"]
TAGS = ["t", "u"]
WORDS = ["p", "q", "r"]
PRICES = ["1", "1.0", "1.00", "2"]
MOST_DEPTH = 50  # a receipt's token remembers at least 64 own transactions

# What a database may answer to raw SQL in such company; whatever else comes is a finding.
CONTENDED = {"40P01", "40001", "55P03"}
EXPECTED_OF_RAW = CONTENDED | {"23505", "23503", "42703"}
GONE = (psycopg.OperationalError, psycopg.InterfaceError)


def mark_key(item: object, tag: str) -> str:
    """As jsonb writes it."""
    return f'{{"tag": "{tag}", "item": {item}}}'


@dataclass
class World:
    """What the threads of one run share."""

    dsn: Callable[[str], str]
    commits: int
    settings: dict[str, str] = field(default_factory=dict)
    confirmed: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    column: str | None = None
    """The column that comes and goes, while it is there."""
    columns: list[list[str]] = field(default_factory=list)
    """The names that one column had, one after the other; a name is never given out twice."""
    shared: deque[Token] = field(default_factory=lambda: deque(maxlen=60))
    """Tokens that clients leave for each other."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def landed(self) -> None:
        with self.lock:
            self.confirmed += 1
            if self.confirmed >= self.commits:
                self.done.set()


class Actor:
    """Somebody with a connection, which is opened anew when the server goes away."""

    def __init__(self, world: World, name: str, login: str, seed: str) -> None:
        self.world = world
        self.name = name
        self.login = login
        self.random = random.Random(f"{seed}/{name}")
        self.record = Client(name, "raw")

    def run(self) -> None:
        """In a thread of its own; when it breaks, everybody stops."""
        try:
            while not self.world.done.is_set():
                try:
                    with self.connect() as connection:
                        self.connection = connection
                        self.prepare()
                        while not self.world.done.is_set():
                            self.step()
                except (*GONE, psycopg.Rollback):  # a rollback that found nobody to tell, too
                    self.interrupted()
                    time.sleep(0.05)
        finally:
            self.world.done.set()

    def connect(self) -> Connection:
        connection = psycopg.connect(
            self.world.dsn(self.login), autocommit=True, application_name=self.name
        )
        set_json_loads(loads, connection)
        return connection

    def prepare(self) -> None: ...

    def step(self) -> None:
        raise NotImplementedError

    def interrupted(self) -> None: ...

    def row(self, query: str, *values: Any) -> Any:
        found = self.connection.execute(query.encode(), values).fetchone()
        assert found is not None
        return found


class Committer(Actor):
    """Reads, thinks, commits."""

    def __init__(self, world: World, name: str, seed: str) -> None:
        super().__init__(world, name, "app", seed)
        self.record.kind = self.random.choice(["user", "agent"])
        self.names = (f"{name}.{n}" for n in count())
        self.tokens: deque[Token] = deque(maxlen=12)
        self.at_hand: Token | None = None
        """The token that is used most."""
        self.heads: Heads | None = None
        self.again: Attempt | None = None
        """A commit with an idempotency key, to be asked for again: cut off, or out of doubt."""

    def prepare(self) -> None:
        self.row(
            "select concord.act_as('t', %s, %s, null, false)", self.record.kind, self.record.name
        )

    def interrupted(self) -> None:
        if self.record.attempts and self.record.attempts[-1].fate == "unknown":
            last = self.record.attempts[-1]
            self.again = last if "idempotencyKey" in last.request else None

    def step(self) -> None:
        if self.again is not None:
            last, self.again = self.again, None
            self.attempt(last.request, last.tokens, alone=True)
        try:
            reading = self.read()
        except errors.UndefinedColumn as error:  # no column was named
            self.record.unexpected.append(f"concord.read: {error}")
            return
        if self.random.random() < 0.3:
            time.sleep(self.random.random() * 0.01)
        if self.random.random() < 0.15:
            self.transaction(reading)
            return
        made = self.attempt(*self.request(reading), alone=True)
        if made.status == "confirmed" and self.random.random() < 0.2:  # goes on with the receipt
            self.at_hand = self.tokens[-1]
            self.attempt(*self.request(reading), alone=True)
            self.at_hand = None

    # --- reading ---------------------------------------------------------------------------------

    def read(self, *wanted: RowId, keep: bool = True) -> Reading:
        """Some rows, each through concord.read, and what every row's newest audit entry is then."""
        wanted = wanted or tuple(self.some_row() for _ in range(self.random.randint(1, 3)))
        calls = ", ".join("concord.read(%s, %s)" for _ in wanted)
        values = [value for row in wanted for value in row]
        query = f"select {calls}, concord.capture(), audit.state(), pg_postmaster_start_time()"
        if self.random.random() < 0.1 and keep:  # several statements, one snapshot
            with self.connection.transaction():
                self.connection.execute("set transaction isolation level repeatable read")
                token = self.row("select concord.capture()")[0]
                if self.random.random() < 0.5:
                    time.sleep(0.002)
                *answers, _, state, started = self.row(query, *values)
        else:
            *answers, token, state, started = self.row(query, *values)
        self.heads = Heads({_row_id(name): entry for name, entry in state.items()}, self.heads)
        reading = Reading(
            token,
            str(started.timestamp()),
            self.heads,
            {row: answer["data"] for row, answer in zip(wanted, answers, strict=True)},
        )
        if keep:
            if len({_snapshot(one) for one in [token, *(a["readAt"] for a in answers)]}) > 1:
                self.record.unexpected.append(f"one snapshot, several tokens: {token} {answers}")
            self.record.readings.append(reading)
            self.keep(reading)
        return reading

    def keep(self, token: Token) -> None:
        self.tokens.append(token)
        if self.random.random() < 0.1:
            self.world.shared.append(token)

    def some_row(self) -> RowId:
        model = self.random.choices(["items", "decks", "marks"], [75, 10, 15])[0]
        if model == "items":
            # A few rows are wanted by many.
            return "items", self.random.choice(ITEMS[:6] if self.random.random() < 0.5 else ITEMS)
        if model == "decks":
            return "decks", self.random.choice(DECKS)
        return "marks", mark_key(self.random.choice(ITEMS[:8]), self.random.choice(TAGS))

    # --- requests --------------------------------------------------------------------------------

    def token(self, reading: Reading) -> Token:
        among = self.random.random()
        if among < 0.7:
            return self.at_hand or reading
        if among < 0.8 and self.world.shared:
            return self.random.choice(list(self.world.shared))
        return self.random.choice(self.tokens) if self.tokens else reading

    def request(self, reading: Reading) -> tuple[dict[str, Any], dict[str, Token]]:
        chance = self.random.random
        tokens: dict[str, Token] = {}

        def use(token: Token) -> str:
            tokens[token.token] = token
            return token.token

        request: dict[str, Any] = {}
        whole_object = chance() < 0.12
        if whole_object or chance() < 0.9:
            request["readAt"] = use(reading if whole_object else self.token(reading))
        if chance() < 0.6:
            request["onStale"] = self.random.choices(["reject", "notify", "overwrite"], [5, 4, 1])[
                0
            ]
        if chance() < 0.1:
            request["returning"] = True
        if chance() < 0.1:
            request["idempotencyKey"] = f"{self.name}-{self.random.getrandbits(60)}"
        if whole_object:
            request["onlyChanged"] = True
            operations = [self.save(row, image) for row, image in reading.rows.items() if image]
        else:
            operations = self.operations(reading)
        request["operations"] = operations or [self.create("items", reading)]
        for operation in request["operations"]:
            if operation["type"] != "create" and not whole_object and chance() < 0.1:
                operation["readAt"] = use(self.token(reading))
            if operation["type"] != "create" and chance() < 0.1:
                operation["onStale"] = self.random.choice(["reject", "notify"])
        reads = [self.premise(reading, use) for _ in range(self.random.choice([0, 0, 1, 1, 2]))]
        if reads:
            request["reads"] = reads
        return request, tokens

    def operations(self, reading: Reading) -> list[dict[str, Any]]:
        operations: list[dict[str, Any]] = []
        rows = list(reading.rows)
        while self.random.random() < 0.25 and len(rows) < 5:
            rows.append(self.some_row())
        if self.random.random() < 0.15:
            rows.append(self.random.choice(rows))  # several operations on one row
        for row in rows[: self.random.choice([1, 1, 2, len(rows)])]:
            operations.append(self.operation(row, reading.rows.get(row), reading))
        if any(o["model"] == "decks" and o["type"] == "delete" for o in operations):
            # Its cascade would take away what other operations of the batch write.
            operations = [o for o in operations if o["model"] == "decks"]
        if any(o["model"] == "items" and o["type"] == "delete" for o in operations):
            operations = [o for o in operations if o["model"] != "marks"]
        return operations

    def operation(self, row: RowId, image: Image | None, reading: Reading) -> dict[str, Any]:
        model, key = row
        operation: dict[str, Any] = {"type": "update", "model": model, "id": key}
        chance = self.random.random()
        if image is None and row in reading.rows and chance < 0.7:
            return self.create(model, reading, key)
        if chance < (0.01 if model == "decks" else 0.1):
            operation["type"] = "delete"
        elif chance < 0.13:
            return self.create(model, reading, key if self.random.random() < 0.6 else None)
        else:
            names = list(self.values(model))
            names = self.random.sample(names, self.random.choice([1, 1, min(2, len(names))]))
            operation["data"] = {name: self.values(model)[name] for name in names}
        if image is not None and self.random.random() < 0.08:
            name = self.random.choice([n for n in self.values(model) if n in image] or ["version"])
            operation["where"] = {
                name: str(image[name]) if name == "price" and image[name] else image[name]
            }
        return operation

    def values(self, model: str) -> dict[str, Any]:
        """New values; often those that are there already."""
        word = self.random.choice([*WORDS, f"{self.name}{self.random.randint(0, 99)}"])
        if model == "decks":
            return {"title": word}
        if model == "marks":
            return {"value": word}
        some: dict[str, Any] = {
            "a": word,
            "b": self.random.choice(WORDS),
            "n": self.random.randint(0, 3),
            "price": self.random.choice(PRICES),
            "deck": self.random.choice([*DECKS, None]),
            "note": word,
        }
        if (column := self.world.column) is not None:
            some[column] = word
        return some

    def create(self, model: str, reading: Reading, key: str | None = None) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "create", "model": model, "data": self.values(model)}
        if model == "marks":
            made["id"] = key or self.some_mark()
        elif key is not None:
            made["id"] = key
        elif model == "decks":
            made["id"] = self.random.choice(DECKS)
        return made

    def some_mark(self) -> str:
        return mark_key(self.random.choice(ITEMS[:8]), self.random.choice(TAGS))

    def save(self, row: RowId, image: Image) -> dict[str, Any]:
        """The whole object as it was read, one field changed."""
        model, key = row
        fixed = {"id", "version", "label", "total", "item", "tag"}
        data = {name: value for name, value in image.items() if name not in fixed}
        if data.get("price") is not None:
            data["price"] = str(data["price"])
        if self.random.random() < 0.9:
            changed = self.random.choice(sorted(data))
            data[changed] = self.values(model).get(changed, data[changed])
        return {"type": "update", "model": model, "id": key, "data": data}

    def premise(self, reading: Reading, use: Callable[[Token], str]) -> dict[str, Any]:
        premise: dict[str, Any] = {"readAt": use(self.token(reading))}
        if self.random.random() < 0.3:
            premise["onStale"] = self.random.choice(["reject", "notify"])
        chance = self.random.random()
        if chance < 0.25:
            return {"group": f"deck:{self.random.choice(DECKS)}", **premise}
        row = self.random.choice(list(reading.rows)) if chance < 0.85 else self.some_row()
        premise |= {"model": row[0], "id": row[1]}
        if reading.rows.get(row, row) is None:
            premise["exists"] = False
        elif chance < 0.6:
            names = [name for name in self.values(row[0]) if name != "note"]
            names += ["label"] if row[0] == "items" else ["total"] if row[0] == "decks" else []
            premise["fields"] = self.random.sample(names, self.random.randint(1, len(names)))
        return premise

    # --- commits ---------------------------------------------------------------------------------

    def attempt(self, request: dict[str, Any], tokens: dict[str, Token], *, alone: bool) -> Attempt:
        made = Attempt(next(self.names), self.name, self.record.kind, request, tokens)
        self.record.attempts.append(made)
        try:
            answer, started, xid, before, after, first, last = self.row(
                "select answer, started, xid::text, before::text, after::text, first_entry, "
                "last_entry from audit.attempt(%s, %s)",
                made.name,
                Jsonb(request),
            )
        except psycopg.Error as error:
            if isinstance(error, GONE) and self.connection.closed:
                raise
            made.error, made.message = error.sqlstate, str(error)
            made.fate = "rolled back"
            return made
        start = str(started.timestamp())
        made.answer = answer
        made.before, made.after = Snapshot.parse(start, before), Snapshot.parse(start, after)
        made.txn = None if xid is None else (start, int(xid))
        made.first_entry, made.last_entry = first, last
        if alone:
            made.fate = "committed"
            self.answered(made)
            if "idempotencyKey" in request and self.random.random() < 0.2:
                self.again = made
        return made

    def answered(self, made: Attempt) -> None:
        """The transaction of a commit has ended well: its tokens may be used."""
        assert made.answer is not None
        assert made.before is not None
        assert made.after is not None
        moment = made.before, made.after
        start = made.before.started
        if made.answer["replayed"]:
            return  # it speaks of the first time
        if made.status == "confirmed":
            self.world.landed()
            token = made.answer["readAt"]
            used = tuple(made.used)
            depth = 1 + max((t.depth for t in used if isinstance(t, ReceiptToken)), default=0)
            if depth < MOST_DEPTH:
                own = None
                if made.txn is not None and made.answer["syncId"] is not None:
                    own = made.txn, made.last_entry
                self.keep(ReceiptToken(token, start, used, moment, own, depth))
        notifications = made.answer.get("error", made.answer).get("notifications") or []
        if notifications:
            own_before: tuple[Txn, int] | None = None
            if made.txn is not None:
                own_before = made.txn, made.first_entry
            self.keep(ObservedToken(notifications[0]["observedAt"], start, moment, own_before))

    def transaction(self, reading: Reading) -> None:
        """Raw writes, a savepoint or two, and commits, in one transaction of the client's own."""
        inside: list[Attempt] = []
        given_up: list[Attempt] = []
        tokens = list(self.tokens)
        try:
            with self.connection.transaction() as whole:
                if self.random.random() < 0.5:
                    raw_write(self, self.random)
                if self.random.random() < 0.4:
                    with self.connection.transaction() as part:
                        raw_write(self, self.random)
                        if self.random.random() < 0.3:
                            inside.append(self.attempt(*self.request(reading), alone=False))
                            if inside[-1].error is not None:
                                raise _Failed
                        if self.random.random() < 0.5:
                            given_up += inside
                            inside = []
                            raise psycopg.Rollback(part)
                if self.random.random() < 0.4:
                    reading = self.read(keep=False)  # sees what this transaction has written
                for _ in range(self.random.choice([1, 1, 2])):
                    inside.append(self.attempt(*self.request(reading), alone=False))
                    if inside[-1].error is not None:
                        raise _Failed
                if self.random.random() < 0.3:
                    raw_write(self, self.random)
                if self.random.random() < 0.15:
                    raise psycopg.Rollback(whole)
        except _Failed:
            rolled_back = True
        except psycopg.Error as error:
            if isinstance(error, GONE) and self.connection.closed:
                raise
            rolled_back = True
            note_error(self, error)
        else:
            rolled_back = whole.status == whole.Status.ROLLED_BACK_EXPLICITLY
        for made in given_up + (inside if rolled_back else []):
            made.fate = "rolled back"
        if rolled_back:
            self.tokens = deque(tokens, maxlen=self.tokens.maxlen)
            return
        for made in inside:
            made.fate = "committed"
            self.answered(made)


class _Failed(Exception):
    """A commit in a transaction of the client's own raised, and took the transaction with it."""


def _snapshot(token: str) -> str:
    """A token without what it counts as its own."""
    return ".".join(token.split(".")[:3])


def _row_id(name: str) -> RowId:
    model, _, key = name.partition(" ")
    return model, key


def note_error(actor: Actor, error: psycopg.Error) -> None:
    if error.sqlstate not in EXPECTED_OF_RAW:
        actor.record.unexpected.append(f"raw SQL: {error.sqlstate} {error}")


# --- raw SQL --------------------------------------------------------------------------------------


def raw_write(actor: Actor, random: random.Random) -> None:
    """One statement that knows nothing of Concord."""
    item = int(random.choice(ITEMS))
    word = random.choice(WORDS)
    deck = random.choice([*DECKS, None])
    column = actor.world.column
    choices: list[tuple[float, str, tuple[Any, ...]]] = [
        (6, "update items set a = %s where id = %s", (word, item)),
        (4, "update items set n = n + 1 where id = %s", (item,)),
        (2, "update items set n = (n + 1) %% 3, b = %s where deck = %s", (word, deck)),
        (2, "update items set deck = %s where id = %s", (deck, item)),
        (2, "update items set price = %s where id = %s", (random.choice(PRICES), item)),
        (1, "update items set note = %s where id = %s", (word, item)),
        (1, "update items set a = a, b = b where id = %s", (item,)),
        (1, "update items set id = id + 50 where id = %s", (item,)),
        (1, "update items set id = id - 50 where id = %s", (item + 50,)),
        (1, "update decks set title = %s where id = %s", (word, deck)),
        (
            3,
            "insert into items (id, deck, a, n) values (%s, %s, %s, 1) on conflict do nothing",
            (item, deck, word),
        ),
        (
            2,
            "insert into items (id, deck, a) select i, %s, %s from generate_series(%s::int, %s) i "
            "on conflict (id) do update set a = excluded.a, n = items.n + 1",
            (deck, word, item, item + random.randint(0, 2)),
        ),
        (2, "delete from items where id = %s", (item,)),
        (0.1, "delete from decks where id = %s", (deck,)),
        (
            2,
            "insert into marks (item, tag, value) values (%s, %s, %s) "
            "on conflict (item, tag) do update set value = excluded.value",
            (item % 8 + 1, random.choice(TAGS), word),
        ),
        (1, "delete from marks where item = %s", (item % 8 + 1,)),
        (
            1,
            "merge into marks m using (select id from items where id between %s and %s) s "
            "on m.item = s.id and m.tag = 't' when matched and m.value = %s then delete "
            "when matched then update set value = %s "
            "when not matched then insert (item, tag, value) values (s.id, 't', %s)",
            (item % 8, item % 8 + 2, word, word, word),
        ),
    ]
    if column is not None:
        choices.append((3, f"update items set {column} = %s where id = %s", (word, item)))
        choices.append((2, f"update items set {column} = a, b = %s where deck = %s", (word, deck)))
    _, query, values = random.choices(choices, [weight for weight, _, _ in choices])[0]
    actor.connection.execute(query.encode(), values)


class RawWriter(Actor):
    """Somebody with psql, a job, an import: every other way to change a row."""

    def __init__(self, world: World, name: str, login: str, seed: str) -> None:
        super().__init__(world, name, login, seed)

    def prepare(self) -> None:
        self.connection.execute("set lock_timeout = '2s'")

    def step(self) -> None:
        self.world.done.wait(self.random.expovariate(1 / 0.01))
        try:
            chance = self.random.random()
            if chance < 0.55:
                raw_write(self, self.random)
            elif chance < 0.65:
                self.copy()
            elif chance < 0.995:
                self.transaction(long=chance > 0.96)
            elif chance < 0.999:
                self.connection.execute("truncate marks")
            else:
                self.connection.execute("truncate items cascade")
        except psycopg.Error as error:
            if isinstance(error, GONE) and self.connection.closed:
                raise
            note_error(self, error)
        self.people()

    def people(self) -> None:
        """Keeps some rows there."""
        with_rows = "insert into decks (id, title) select * from unnest(%s::text[], %s::text[])"
        if self.random.random() < 0.05:
            self.connection.execute(f"{with_rows} on conflict do nothing".encode(), (DECKS, DECKS))

    def copy(self) -> None:
        with (
            self.connection.cursor() as cursor,
            cursor.copy("copy items (deck, a, n) from stdin") as out,
        ):
            for _ in range(self.random.randint(1, 3)):
                out.write_row((None, self.random.choice(WORDS), 0))
        self.connection.execute("delete from items where id >= 1000 and note is null and n = 0")

    def transaction(self, *, long: bool) -> None:
        with self.connection.transaction() as whole:
            for _ in range(self.random.randint(1, 3)):
                raw_write(self, self.random)
                if long:
                    self.world.done.wait(self.random.random() * 0.1)
            if self.random.random() < 0.5:
                with self.connection.transaction() as part:
                    raw_write(self, self.random)
                    if self.random.random() < 0.5:
                        raise psycopg.Rollback(part)
            if self.random.random() < 0.7:
                raw_write(self, self.random)
            if self.random.random() < 0.25:
                raise psycopg.Rollback(whole)


class Migrator(Actor):
    """Adds, renames and drops a column of items, with and without a refresh after it."""

    def __init__(self, world: World, name: str, seed: str) -> None:
        super().__init__(world, name, "owner", seed)
        self.numbers = count(1)

    def prepare(self) -> None:
        self.connection.execute("set lock_timeout = '100ms'")
        found = self.connection.execute(
            "select attname from pg_attribute where attrelid = 'items'::regclass "
            "and attname ~ '^x\\d+$' and not attisdropped"
        ).fetchone()
        self.world.column = None if found is None else found[0]

    def step(self) -> None:
        if self.world.done.wait(self.random.expovariate(1 / 0.5)):
            return
        column = self.world.column
        fresh = f"x{next(self.numbers)}"
        try:
            if column is None:
                self.world.columns.append([fresh])
                self.alter("add column {} text", fresh)
                self.world.column = fresh
            elif self.random.random() < 0.6:
                self.world.columns[-1].append(fresh)
                self.alter("rename column {} to {}", column, fresh)
                self.world.column = fresh
            else:
                self.alter("drop column {}", column)
                self.world.column = None
            if self.world.done.wait(self.random.choice([0, 0.05, 0.3])):
                return
            if self.random.random() < 0.7:
                self.connection.execute("select concord.refresh('items')")
        except psycopg.Error as error:
            if isinstance(error, GONE) and self.connection.closed:
                raise
            note_error(self, error)

    def alter(self, action: str, *names: str) -> None:
        statement = sql.SQL("alter table items ") + sql.SQL(action).format(
            *map(sql.Identifier, names)
        )
        while not self.world.done.is_set():
            try:
                self.connection.execute(statement)
                return
            except errors.LockNotAvailable:
                self.world.done.wait(0.05)
