"""A Hypothesis state machine: three principals on three connections against the model in model.py.

Every answer is predicted: code, outcomes, conflicting fields, base, current and proposed values,
and the rows afterwards. PYCONCORD_EXAMPLES=N tries N examples, other ones each time.
"""

from __future__ import annotations

import os
from itertools import count
from typing import Any, ClassVar

import psycopg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg import sql
from psycopg.types.json import Jsonb

from tests.history.model import DEFAULTS, Prediction, Table, Token, Transaction
from tests.history.oracle import Conflict, Image
from tests.support import Database

EXAMPLES = os.environ.get("PYCONCORD_EXAMPLES")
# (Not "now and then another one" without being asked: what fails in CI has to fail at the desk.)
PROFILE = settings(
    max_examples=int(EXAMPLES or 30),
    stateful_step_count=60,
    deadline=None,
    derandomize=EXAMPLES is None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

KEYS = ["1", "2", "3"]
DECKS = ["d", "e"]
MODES = ["reject", "notify", "overwrite"]
WHO = {"ann": "user", "bot": "agent", "job": "system"}
ON_STALE = {"agent": "notify"}

keys = st.sampled_from(KEYS)
words = st.sampled_from(["p", "q", None])
names = st.sampled_from(sorted(WHO))
numbers = count(1)


class Session:
    """One connection, and the transaction that is open on it."""

    def __init__(self, database: Database, name: str) -> None:
        self.by = (WHO[name], name)
        self.connection = database.connect("app")
        self.connection.execute("select concord.act_as('t', %s, %s, null, false)", self.by)
        self.open: Transaction | None = None


class Machine(RuleBasedStateMachine):
    sessions: ClassVar[dict[str, Session]]
    owner: ClassVar[psycopg.Connection[Any]]
    admin: ClassVar[psycopg.Connection[Any]]

    def __init__(self) -> None:
        super().__init__()
        number = next(numbers)
        self.table = Table(f"cards_{number}", f"deck{number}")
        self.tokens: list[Token] = []
        self.owner.execute(
            self.sql(
                "create table {} (id int primary key, deck text, a text, b text, "
                "n int not null default 0, note text, x0 text)"
            )
        )
        self.owner.execute(self.sql("grant all on {} to app"))
        self.track()
        for key in KEYS:
            self.raw_insert_of(self.sessions["job"], key, {"a": "p", "b": "q", "deck": "d"})

    def teardown(self) -> None:
        for session in self.sessions.values():
            session.connection.rollback() if session.open is None else None
            session.connection.execute("rollback")
            if session.open is not None:
                self.table.undo(session.open)
                self.table.end(session.open)
                session.open = None
        self.compare_log()
        self.owner.execute("select concord.untrack(%s::regclass)", (self.table.model,))
        self.owner.execute(self.sql("drop table {}"))

    def sql(self, text: str, *more: str) -> sql.Composed:
        """`text` with the table's name, then others, in its braces."""
        return sql.SQL(text).format(*map(sql.Identifier, (self.table.model, *more)))

    def track(self) -> None:
        self.owner.execute(
            "select concord.track(%s::regclass, groups => array[%s], ignore_fields => %s, "
            "on_stale => %s)",
            (
                self.table.model,
                f"{self.table.kind}:{{deck}}",
                sorted(self.table.ignored),
                Jsonb(ON_STALE),
            ),
        )

    # --- transactions ----------------------------------------------------------------------------

    @rule(name=names)
    def begin(self, name: str) -> None:
        session = self.sessions[name]
        if session.open is None:
            session.connection.execute("begin")
            session.open = self.table.begin(session.by)

    @rule(name=names)
    def savepoint(self, name: str) -> None:
        session = self.sessions[name]
        if session.open is not None:
            session.open.savepoints.append(len(session.open.changes))
            session.connection.execute(f"savepoint s{len(session.open.savepoints)}".encode())

    @rule(name=names)
    def rollback_to(self, name: str) -> None:
        session = self.sessions[name]
        if session.open is not None and session.open.savepoints:
            depth = len(session.open.savepoints)
            session.connection.execute(f"rollback to s{depth}".encode())
            self.table.undo(session.open, session.open.savepoints[-1])

    @rule(name=names, well=st.sampled_from([True, True, False]))
    def end(self, name: str, well: bool) -> None:
        session = self.sessions[name]
        if session.open is not None:
            session.connection.execute(b"commit" if well else b"rollback")
            if not well:
                self.table.undo(session.open)
            self.table.end(session.open)
            session.open = None

    # --- readers ---------------------------------------------------------------------------------

    @rule(name=names, key=keys)
    def read(self, name: str, key: str) -> None:
        session = self.sessions[name]
        row = session.connection.execute(
            "select concord.read(%s, %s)", (self.table.model, key)
        ).fetchone()
        assert row is not None
        assert row[0]["data"] == self.table.image(key, session.open)
        self.remember(session, row[0]["readAt"])

    @rule(name=names)
    def capture(self, name: str) -> None:
        session = self.sessions[name]
        row = session.connection.execute("select concord.capture()").fetchone()
        assert row is not None
        self.remember(session, row[0])

    def remember(self, session: Session, text: str, seen: frozenset[int] | None = None) -> None:
        if seen is None:
            seen = self.table.seen(session.open)
        self.tokens.append(Token(text, seen, session.open))

    # --- raw writers -----------------------------------------------------------------------------

    @rule(name=names, key=keys, data=st.data())
    def raw_update(self, name: str, key: str, data: st.DataObject) -> None:
        session = self.sessions[name]
        image = self.table.image(key, session.open)
        if image is None or self.table.would_wait(session.open, key):
            return
        new = {**image, **data.draw(self.some_values(), "values")}
        self.raw(session, [(key, new)], "update", new)

    @rule(name=names, key=keys, data=st.data())
    def raw_insert(self, name: str, key: str, data: st.DataObject) -> None:
        session = self.sessions[name]
        if self.table.image(key, session.open) is None and not self.table.would_wait(
            session.open, key
        ):
            self.raw_insert_of(session, key, data.draw(self.some_values(), "values"))

    def raw_insert_of(self, session: Session, key: str, values: Image) -> None:
        new = self.table.new_row(key, values)
        self.raw(session, [(key, new)], "insert", new)

    @rule(name=names, key=keys, dice=st.integers(0, 2))
    def raw_delete(self, name: str, key: str, dice: int) -> None:
        session = self.sessions[name]
        image = self.table.image(key, session.open)
        if image is not None and dice == 0 and not self.table.would_wait(session.open, key):
            self.raw(session, [(key, None)], "delete", image)

    @rule(name=names, key=keys, to=keys)
    def raw_key_change(self, name: str, key: str, to: str) -> None:
        session = self.sessions[name]
        image = self.table.image(key, session.open)
        free = self.table.image(to, session.open) is None
        if image is not None and free and not self.table.would_wait(session.open, key, to):
            new = {**image, "id": int(to)}
            session.connection.execute(
                self.sql("update {} set id = %s where id = %s"), (int(to), int(key))
            )
            self.table_write(session, [(key, None), (to, new)])

    @rule(name=names, word=words)
    def raw_update_of_all(self, name: str, word: str | None) -> None:
        session = self.sessions[name]
        rows = {key: self.table.image(key, session.open) for key in KEYS}
        if not self.table.would_wait(session.open, *KEYS):
            session.connection.execute(self.sql("update {} set b = %s"), (word,))
            self.table_write(
                session, [(k, {**image, "b": word}) for k, image in rows.items() if image]
            )

    def raw(
        self, session: Session, changes: list[tuple[str, Image | None]], how: str, image: Image
    ) -> None:
        columns = list(image)
        if how == "delete":
            session.connection.execute(self.sql("delete from {} where id = %s"), (image["id"],))
        elif how == "insert":
            session.connection.execute(
                self.sql(
                    f"insert into {{}} ({', '.join('{}' for _ in columns)}) "
                    f"values ({', '.join('%s' for _ in columns)})",
                    *columns,
                ),
                list(image.values()),
            )
        else:
            session.connection.execute(
                self.sql(
                    f"update {{}} set {', '.join('{} = %s' for _ in columns)} where id = %s",
                    *columns,
                ),
                [*image.values(), image["id"]],
            )
        self.table_write(session, changes)

    def table_write(self, session: Session, changes: list[tuple[str, Image | None]]) -> None:
        inside = session.open or self.table.begin(session.by)
        for key, new in changes:
            self.table.put(inside, key, new)
        if session.open is None:
            self.table.end(inside)

    # --- the table's owner -----------------------------------------------------------------------

    @precondition(lambda self: not self.table.open)
    @rule(dice=st.integers(0, 5))
    def truncate(self, dice: int) -> None:
        if dice == 0:
            self.owner.execute(self.sql("truncate {}"))
            self.table.truncate(("system", "owner"))

    @precondition(lambda self: not self.table.open)
    @rule(refresh=st.booleans())
    def rename(self, refresh: bool) -> None:
        old, new = self.table.column, f"x{len(self.table.gone) + 1}"
        self.owner.execute(self.sql("alter table {} rename column {} to {}", old, new))
        self.table.rename(new)
        if refresh:
            self.owner.execute("select concord.refresh(%s::regclass)", (self.table.model,))

    @precondition(lambda self: not self.table.open)
    @rule(dice=st.integers(0, 7))
    def redefine(self, dice: int) -> None:
        if dice == 0:
            ignored = frozenset({"note"}) if "b" in self.table.ignored else frozenset({"note", "b"})
            self.table.redefine(ignored)
            self.track()

    # --- commits ---------------------------------------------------------------------------------

    def some_values(self) -> st.SearchStrategy[dict[str, Any]]:
        values = {
            "deck": st.sampled_from([*DECKS, None]),
            "a": words,
            "b": words,
            "n": st.integers(0, 2),
            "note": words,
            self.table.column: words,
        }
        return st.lists(
            st.sampled_from(sorted(values)), min_size=1, max_size=3, unique=True
        ).flatmap(lambda chosen: st.fixed_dictionaries({name: values[name] for name in chosen}))

    def make_commit(self, name: str, data: st.DataObject) -> None:
        session = self.sessions[name]
        usable = [
            t for t in self.tokens if t.within is session.open or t.within not in self.table.open
        ]
        recent = usable[-6:]

        def maybe_token(likely: int) -> dict[str, str]:
            if not recent or data.draw(st.integers(0, 9), "token?") >= likely:
                return {}
            return {"readAt": data.draw(st.sampled_from(recent), "token").text}

        def maybe_mode(likely: int) -> dict[str, str]:
            if data.draw(st.integers(0, 9), "mode?") >= likely:
                return {}
            return {"onStale": data.draw(st.sampled_from(MODES), "mode")}

        request: dict[str, Any] = {**maybe_token(8), **maybe_mode(5)}
        operations: list[dict[str, Any]] = []
        for _ in range(data.draw(st.sampled_from([1, 1, 1, 2, 3]), "operations")):
            key = data.draw(keys, "id")
            kind = data.draw(st.sampled_from(["update"] * 7 + ["delete", "create"]), "type")
            if self.table.image(key, session.open) is None and data.draw(st.booleans(), "absent"):
                kind = "create"
            operation: dict[str, Any] = {"type": kind, "model": self.table.model, "id": key}
            if kind != "delete":
                operation["data"] = data.draw(self.some_values(), "data")
            if kind != "create":
                operation |= {**maybe_token(2), **maybe_mode(2)}
            fresh = all(other["id"] != operation["id"] for other in operations)
            if kind != "create" and fresh and data.draw(st.integers(0, 9), "where?") == 0:
                operation["where"] = data.draw(self.some_values(), "where")
            operations.append(operation)
        request["operations"] = operations
        guarded = all("readAt" in {**request, **o} for o in operations if o["type"] == "update")
        if guarded and data.draw(st.integers(0, 4), "onlyChanged?") == 0:
            request["onlyChanged"] = True
            for operation in operations:  # mostly what is there, as a form would send it
                image = self.table.image(operation["id"], session.open)
                if operation["type"] == "update" and image is not None:
                    old = {k: v for k, v in image.items() if k != "id"}
                    operation["data"] = old | dict(list(operation["data"].items())[:1])
        reads = []
        for _ in range(data.draw(st.sampled_from([0, 0, 1, 2]), "reads")):
            premise: dict[str, Any] = {**maybe_token(10), **maybe_mode(3)}
            what = data.draw(st.integers(0, 9), "premise")
            if "readAt" not in premise:
                continue
            if what < 2:
                premise["group"] = f"{self.table.kind}:{data.draw(st.sampled_from(DECKS), 'deck')}"
            else:
                premise |= {"model": self.table.model, "id": data.draw(keys, "id")}
                if what < 4:
                    premise["exists"] = False
                elif what < 8:
                    premise["fields"] = sorted(data.draw(self.some_values(), "fields"))
            reads.append(premise)
        if reads:
            request["reads"] = reads
        if not self.would_wait(session, request):
            self.try_commit(session, request, {t.text: t for t in usable})

    # A rule is chosen among all as often as any other: commits are what this is about.
    commit = rule(name=names, data=st.data())(make_commit)
    commit_too = rule(name=names, data=st.data())(make_commit)
    commit_as_well = rule(name=names, data=st.data())(make_commit)
    commit_besides = rule(name=names, data=st.data())(make_commit)

    def would_wait(self, session: Session, request: dict[str, Any]) -> bool:
        rows = {o["id"] for o in request["operations"]}
        rests = {r["id"] for r in request.get("reads", []) if "id" in r}
        rests_on_groups = {r["group"] for r in request.get("reads", []) if "group" in r}
        into = self.touched_groups(session, request)
        return any(
            other.rows & rows
            or rows & (other.writes | other.rests)
            or rests & other.writes
            or rests_on_groups & (other.groups_written | other.groups_rested)
            or into & other.groups_rested
            for other in self.table.others(session.open)
        )

    def touched_groups(self, session: Session, request: dict[str, Any]) -> set[str]:
        """The groups that it may write into."""
        found: set[str] = set()
        for operation in request["operations"]:
            image = self.table.image(operation["id"], session.open) or {"deck": None}
            found |= self.table.groups(image, {**image, **operation.get("data", {})})
        return found

    def try_commit(
        self, session: Session, request: dict[str, Any], tokens: dict[str, Token]
    ) -> None:
        expected = self.table.predict(
            request, tokens, session.open, ON_STALE.get(session.by[0], "reject")
        )
        row = session.connection.execute(
            "select concord.try_commit(%s)", (Jsonb(request),)
        ).fetchone()
        assert row is not None
        answer = row[0]
        inside = session.open or self.table.begin(session.by)
        if expected.code != "model_changed":
            inside.rows |= {o["id"] for o in request["operations"] if o["type"] != "create"}
            inside.writes |= {o["id"] for o in request["operations"]}
            inside.groups_written |= self.touched_groups(session, request)
            for premise in request.get("reads", []):
                if "group" in premise:
                    inside.groups_rested.add(premise["group"])
                else:
                    inside.rests.add(premise["id"])
        try:
            self.compare(request, answer, expected)
            if expected.code is None:
                drew = self.table.apply(request, expected, inside)
                assert (answer["syncId"] is not None) == drew
                self.remember_receipt(session, request, tokens, answer, inside if drew else None)
        finally:
            if session.open is None:
                self.table.end(inside)
        found = answer.get("error", answer).get("notifications") or []
        if found:
            before = self.table.seen(session.open) - {
                change.entry for change in inside.changes if expected.code is None
            }
            if session.open is None or expected.code is not None or not answer["applied"]:
                self.remember(session, found[0]["observedAt"], before)

    def remember_receipt(
        self,
        session: Session,
        request: dict[str, Any],
        tokens: dict[str, Token],
        answer: dict[str, Any],
        own: Transaction | None,
    ) -> None:
        """Its token has seen what the request's tokens had all seen, and what it wrote itself."""
        parts = [*request["operations"], *request.get("reads", [])]
        used = [
            tokens[text].seen
            for part in parts
            if (text := part.get("readAt", request.get("readAt"))) is not None
        ]
        seen = frozenset.intersection(*used) if used else self.table.seen(session.open)
        if own is not None:
            seen |= {change.entry for change in own.changes}
        self.remember(session, answer["readAt"], seen)

    # --- comparisons -----------------------------------------------------------------------------

    def compare(
        self, request: dict[str, Any], answer: dict[str, Any], expected: Prediction
    ) -> None:
        error = answer.get("error", {})
        said = error.get("code"), error.get("param")
        if expected.code == "model_changed":
            assert said[0] == expected.code, (request, answer)
            return
        assert said == (expected.code, expected.param), (request, answer, expected)
        if expected.code is None:
            assert [o["outcome"] for o in answer["operations"]] == expected.outcomes
        notifications = (error if error else answer).get("notifications") or []
        assert [
            (place, n[place]) for n in notifications for place in ("read", "index") if place in n
        ] == [(place, n) for place, n, _ in expected.notifications], (request, answer, expected)
        for notification, (_, _, conflict) in zip(
            notifications, expected.notifications, strict=True
        ):
            if conflict is not None:
                assert self.told(notification) == conflict, (request, notification)

    @staticmethod
    def told(notification: dict[str, Any]) -> Conflict:
        by = notification["writtenBy"]
        return Conflict(
            fields=tuple(sorted(notification["conflictingFields"])),
            deleted=notification["deleted"],
            by=(by["kind"], by["id"]),
            base=notification["baseValues"],
            current=notification["currentValues"],
            proposed=notification["proposedValues"],
        )

    @invariant()
    def rows_are_as_expected(self) -> None:
        for session in self.sessions.values():
            rows = session.connection.execute(self.sql("select to_jsonb(t) from {} t order by id"))
            assert [image for (image,) in rows] == [
                image for key in KEYS if (image := self.table.image(key, session.open)) is not None
            ]

    def compare_log(self) -> None:
        """What was committed is in the log, in order, with what it replaced."""
        assert set(self.table.columns) == {"id", *DEFAULTS, self.table.column}
        for key, chain in self.table.chains.items():
            rows = self.admin.execute(
                "select d.op::text, d.fields::text[], d.before::jsonb "
                "from concord_internal.deltas d join concord_internal.models m on m.id = d.model "
                "where m.name = %s and d.key = %s order by d.seq",
                (self.table.model, key),
            ).fetchall()
            assert [
                (op, None if fields is None else frozenset(fields), before)
                for op, fields, before in rows
            ] == [
                (
                    change.op[0],
                    change.fields,
                    {
                        k: v
                        for k, v in change.old.items()
                        if change.fields is None or k in change.fields
                    }
                    if change.old is not None
                    else None,
                )
                for change in chain
                if change.noticed and change.op != "truncate"
            ]


def test_state_machine(db: Database) -> None:
    class OnThisDatabase(Machine):
        sessions: ClassVar = {name: Session(db, name) for name in sorted(WHO)}
        owner = db.connect("owner")
        admin = db.connect()

    with db.connect() as connection:
        # A step that was thought not to wait fails soon when it does.
        connection.execute("select concord.configure('lock_timeout', '500 ms')")
    run_state_machine_as_test(OnThisDatabase, settings=PROFILE)
