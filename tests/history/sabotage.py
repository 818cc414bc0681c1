"""Concord with one mechanism taken out, and for each a schedule that needs it.

A sabotage is made from the live definition of a function by replacing some of its text, which must
be there exactly once: when the code moves, the test that relies on it breaks, and does not pass for
nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg

from tests.history.records import Attempt, Token
from tests.history.run import Dsn, History, authors_of, set_up
from tests.history.workload import Actor, Committer, RawWriter, World


@dataclass(frozen=True)
class Cut:
    """Some text of a function's definition, and what stands there instead."""

    function: str
    text: str
    instead: str

    def apply(self, connection: psycopg.Connection[Any]) -> None:
        row = connection.execute(
            "select pg_get_functiondef(%s::regprocedure)", (self.function,)
        ).fetchone()
        assert row is not None
        definition: str = row[0]
        found = definition.count(self.text)
        if found != 1:
            raise AssertionError(
                f"{self.function} has {found} times {self.text!r}: make the sabotage anew"
            )
        connection.execute(definition.replace(self.text, self.instead).encode())


class Crashing(Protocol):
    def stop(self, mode: Any) -> None: ...
    def start(self) -> Any: ...


class Stage:
    """A database with clients that are moved by hand."""

    def __init__(self, dsn: Dsn, cuts: tuple[Cut, ...], server: Crashing | None = None) -> None:
        set_up(dsn)
        self.dsn = dsn
        self.server = server
        self.world = World(dsn, commits=1_000_000)
        self.committers: list[Committer] = []
        self.raw: list[RawWriter] = []
        with psycopg.connect(dsn("postgres"), autocommit=True) as connection:
            for cut in cuts:
                cut.apply(connection)

    def client(self) -> Committer:
        client = Committer(self.world, f"c{len(self.committers)}", "by hand")
        client.record.kind = "user"
        self.committers.append(client)
        self.seat(client)
        return client

    def writer(self) -> RawWriter:
        writer = RawWriter(self.world, f"raw{len(self.raw)}", "plain", "by hand")
        self.raw.append(writer)
        self.seat(writer)
        return writer

    def seat(self, actor: Actor) -> None:
        actor.connection = actor.connect()
        actor.prepare()

    def crash(self) -> None:
        """The server stops at once, starts again, and everybody comes back."""
        assert self.server is not None
        self.server.stop("immediate")
        self.server.start()
        for actor in (*self.committers, *self.raw):
            actor.connection.close()
            self.seat(actor)

    def history(self) -> History:
        for actor in (*self.committers, *self.raw):
            actor.connection.close()
        return History(
            [actor.record for actor in (*self.committers, *self.raw)],
            authors_of(self.committers, self.raw),
            self.world.columns,
        )

    def meanwhile(self, call: Callable[[], object], actor: Actor) -> threading.Thread:
        """Starts a call of somebody's; comes back when it waits for a lock, or is through."""
        thread = threading.Thread(target=call, daemon=True)
        pid = actor.connection.info.backend_pid
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            thread.start()
            while thread.is_alive():
                row = connection.execute(
                    "select wait_event_type = 'Lock' from pg_stat_activity where pid = %s", (pid,)
                ).fetchone()
                if row is not None and row[0]:
                    break
                thread.join(0.01)
        return thread


# --- requests -------------------------------------------------------------------------------------


def update(row: tuple[str, str], **data: Any) -> dict[str, Any]:
    return {"type": "update", "model": row[0], "id": row[1], "data": data}


def premise(row: tuple[str, str], token: Token, *fields: str) -> dict[str, Any]:
    made: dict[str, Any] = {"model": row[0], "id": row[1], "readAt": token.token}
    if fields:
        made["fields"] = list(fields)
    return made


def commit(
    client: Committer,
    *operations: dict[str, Any],
    token: Token | None = None,
    reads: list[dict[str, Any]] | None = None,
    tokens: tuple[Token, ...] = (),
    alone: bool = True,
) -> Attempt:
    """A commit; `alone`: in a transaction of its own, which ends well when it does."""
    request: dict[str, Any] = {"operations": list(operations)}
    if token is not None:
        request["readAt"] = token.token
        tokens = (token, *tokens)
    if reads:
        request["reads"] = reads
    return client.attempt(request, {one.token: one for one in tokens}, alone=alone)


# --- schedules ------------------------------------------------------------------------------------

ONE, TWO = ("items", "1"), ("items", "2")  # of the decks d2 and d3


def receipt_used_at_once(stage: Stage) -> None:
    """Its author goes on with the token of a receipt."""
    client = stage.client()
    commit(client, update(ONE, a="first"), token=client.read(ONE))
    commit(client, update(ONE, a="second"), token=client.tokens[-1])


def receipt_beside_an_unseen_change(stage: Stage) -> None:
    """Its author read two rows, wrote one, and then the other, which somebody had changed."""
    client, writer = stage.client(), stage.writer()
    reading = client.read(ONE, TWO)
    writer.connection.execute("update items set a = 'theirs' where id = 2")
    commit(client, update(ONE, a="mine"), token=reading)
    commit(client, update(TWO, a="mine"), token=client.tokens[-1])


def writer_in_flight(stage: Stage) -> None:
    """A raw UPDATE is not committed yet when the commit comes, and is before it can write."""
    client, writer = stage.client(), stage.writer()
    reading = client.read(ONE)
    with writer.connection.transaction():
        writer.connection.execute("update items set a = 'theirs' where id = 1")
        waiting = stage.meanwhile(
            lambda: commit(client, update(ONE, a="mine"), token=reading), client
        )
    waiting.join()


def _crossed(
    stage: Stage, one: Callable[[Committer], Attempt], other: Callable[[Committer], Attempt]
) -> None:
    """Two commits, the second before the first one's transaction has ended."""
    first, second = stage.client(), stage.client()
    with first.connection.transaction():
        made = one(first)
        waiting = stage.meanwhile(lambda: other(second), second)
    made.fate = "committed"
    first.answered(made)
    waiting.join()


def premises_crossed(stage: Stage) -> None:
    """Each of two commits rests on the row that the other writes."""
    reading = stage.client().read(ONE, TWO)
    _crossed(
        stage,
        lambda c: commit(
            c, update(ONE, a="off"), token=reading, reads=[premise(TWO, reading, "a")], alone=False
        ),
        lambda c: commit(
            c, update(TWO, a="off"), token=reading, reads=[premise(ONE, reading, "a")]
        ),
    )


def absences_crossed(stage: Stage) -> None:
    """Each creates the row on whose absence the other rests."""
    reading = stage.client().read(ONE)

    def create(client: Committer, key: str, absent: str, *, alone: bool) -> Attempt:
        return commit(
            client,
            {"type": "create", "model": "items", "id": key, "data": {"a": "new"}},
            tokens=(reading,),
            reads=[{"model": "items", "id": absent, "exists": False, "readAt": reading.token}],
            alone=alone,
        )

    _crossed(
        stage,
        lambda c: create(c, "101", "102", alone=False),
        lambda c: create(c, "102", "101", alone=True),
    )


def groups_crossed(stage: Stage) -> None:
    """Each puts a row into the group on which the other rests."""
    reading = stage.client().read(ONE)

    def create(client: Committer, deck: str, other: str, *, alone: bool) -> Attempt:
        return commit(
            client,
            {"type": "create", "model": "items", "data": {"deck": deck}},
            tokens=(reading,),
            reads=[{"group": f"deck:{other}", "readAt": reading.token}],
            alone=alone,
        )

    _crossed(
        stage,
        lambda c: create(c, "d1", "d2", alone=False),
        lambda c: create(c, "d2", "d1", alone=True),
    )


def premises_crossed_through_triggers(stage: Stage) -> None:
    """Each rests on a row that the other changes by a trigger alone."""
    reading = stage.client().read(ONE, TWO)
    of_one, of_two = ("decks", "d2"), ("decks", "d3")
    _crossed(
        stage,
        lambda c: commit(
            c, update(ONE, n=3), token=reading, reads=[premise(of_two, reading)], alone=False
        ),
        lambda c: commit(c, update(TWO, n=3), token=reading, reads=[premise(of_one, reading)]),
    )


def column_added(stage: Stage) -> None:
    """A column that the triggers were not made for is changed between the read and the commit."""
    client, writer = stage.client(), stage.writer()
    with psycopg.connect(stage.dsn("owner"), autocommit=True) as connection:
        connection.execute("alter table items add column x1 text")
    stage.world.columns.append(["x1"])
    reading = client.read(ONE)
    writer.connection.execute("update items set x1 = 'theirs' where id = 1")
    commit(client, update(ONE, x1="mine"), token=reading)


def crash_and_ids_again(stage: Stage) -> None:
    """A crash after the token gives its ids out again, and a change is made under one of them.

    Transactions that are rolled back leave ids which no WAL on disk knows of; the settings of the
    server see to it that nothing flushes theirs in passing.
    """
    client, writer = stage.client(), stage.writer()
    for _ in range(5):  # a page that is full is written all the same: then they are not lost
        # What wakes up the WAL writer is out of the way before: the dead rows that a reader prunes,
        # and a backend that does not know how much is on disk already.
        client.read(ONE)
        writer.connection.execute("insert into decks values ('seen') on conflict do nothing")
        writer.connection.execute("delete from decks where id = 'seen'")
        client.read(ONE)
        _use_ids(writer, 20)
        reading = client.read(ONE)
        stage.crash()
        row = writer.connection.execute(
            "with written as (update items set a = 'theirs' where id = 1 returning 1) "
            "select pg_current_xact_id()::text::bigint from written"
        ).fetchone()
        assert row is not None
        if row[0] < int(reading.token.split(".")[2].split(":")[1]):
            break
    else:
        raise AssertionError("no crash brought the ids back")
    _use_ids(writer, 30)
    commit(client, update(ONE, a="mine"), token=reading)


def _use_ids(writer: RawWriter, times: int) -> None:
    for _ in range(times):
        with writer.connection.transaction(force_rollback=True):
            writer.connection.execute("select pg_current_xact_id()")


# --- what is taken out ----------------------------------------------------------------------------

# A commit of one plain update goes a short way of its own, by a function of each model: what is cut
# is cut there too.
SHORT_WAY = "concord_internal.run_plain(jsonb)"
MODELS = range(1, 4)  # items, decks, and marks, which is partitioned and has no short way


def short_ways(text: str, instead: str) -> tuple[Cut, ...]:
    return tuple(
        Cut(
            f"concord_internal.model_{model}_plain(concord_internal.plain_commit)",
            text.format(model=model),
            instead,
        )
        for model in MODELS[:2]
    )


TOKEN_EPOCH = (
    Cut(
        "concord_internal.parse_token(text)",
        "if part[2] <> to_hex(t.identity) then",
        "if false then",
    ),
)
OWN_ENTRIES = (
    Cut(
        "concord_internal.has_seen(concord_internal.token,integer,xid8,bigint)",
        "return own is not null and seq <= t.own_seqs[own];",
        "return false;",
    ),
)
INTERSECTION = (
    Cut("concord_internal.run_whole(jsonb)", "if cardinality(tokens) = 0 then", "if true then"),
    Cut(
        SHORT_WAY,
        "concord_internal.extend_token(c.t,",
        "concord_internal.extend_token(concord_internal.parse_token(concord_internal.observed_now()),",
    ),
)
ROW_LOCKS = (
    Cut(
        "concord_internal.lock_rows(concord_internal.models,text[],text,text)",
        "if not pg_catalog.has_any_column_privilege(m.rel, 'update') then",
        "if true then",
    ),
    *short_ways(" for no key update of t;", ";"),
)
LOCKS_OF_REQUESTS = (
    Cut(
        "concord_internal.lock_keys(concord_internal.request,concord_internal.models[],text)",
        "\nbegin\n",
        "\nbegin\n  return;\n",
    ),
    *short_ways(
        "pg_catalog.pg_advisory_xact_lock(concord_internal.row_lock({model}, row_key))", "1"
    ),
)
LOCKS_OF_TRIGGERS = (
    Cut(
        "concord_internal.lock_touched(integer,text[],text[],text[])",
        "\nbegin\n",
        "\nbegin\n  return;\n",
    ),
    *(
        Cut(
            f"concord_internal.model_{model}_{op}()",
            "elsif current_setting('concord.committing', true) = '1'"
            " and concord_internal.may_lock(2)",
            "elsif false",
        )
        for model in MODELS
        for op in ("insert", "update", "delete")
    ),
)
FALLBACK = (
    Cut(
        "concord_internal.model_1_update()",
        "if not fits or beside is not null then",
        "if false then",
    ),
)


@dataclass(frozen=True)
class Mechanism:
    """Something that Concord can't do without: what to cut, who misses it, and how that shows."""

    name: str
    cuts: tuple[Cut, ...]
    schedule: Callable[[Stage], None]
    shows: str

    def __str__(self) -> str:
        return f"{self.name}-{self.schedule.__name__}"


MECHANISMS = [
    Mechanism("own_entries", OWN_ENTRIES, receipt_used_at_once, "false_alarm"),
    Mechanism("intersection", INTERSECTION, receipt_beside_an_unseen_change, "lost_update"),
    Mechanism("row_locks", ROW_LOCKS, writer_in_flight, "lost_update"),
    Mechanism("advisory_locks", LOCKS_OF_REQUESTS, premises_crossed, "not_serializable"),
    Mechanism("advisory_locks", LOCKS_OF_REQUESTS, absences_crossed, "not_serializable"),
    Mechanism("advisory_locks", LOCKS_OF_REQUESTS, groups_crossed, "not_serializable"),
    Mechanism("locks_of_triggers", LOCKS_OF_TRIGGERS, groups_crossed, "not_serializable"),
    Mechanism(
        "locks_of_triggers",
        LOCKS_OF_TRIGGERS,
        premises_crossed_through_triggers,
        "not_serializable",
    ),
    Mechanism("fallback", FALLBACK, column_added, "lost_update"),
]
AFTER_A_CRASH = [Mechanism("token_epoch", TOKEN_EPOCH, crash_and_ids_again, "lost_update")]
