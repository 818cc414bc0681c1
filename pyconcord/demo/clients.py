"""The demo's clients. Each is an operating-system process and keeps a record of what it did."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection as Pipe

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pyconcord.demo.audit import Attempt
from pyconcord.demo.ways import WAYS, Decision, Refused, Row, connect
from pyconcord.demo.workload import Edit, Ref, Value

__all__ = ["Job", "Record", "work"]

MAX_ATTEMPTS = 6  # then an actor gives up on an edit
MERGING = 0.25  # to merge a text with another's takes this part of the time to think it up


@dataclass(frozen=True)
class Job:
    """One actor's part of one way."""

    way: str
    dsn: str
    psql: str  # path of the program
    edits: Sequence[Edit]


@dataclass(frozen=True)
class Record:
    """What a client has to say about its job."""

    attempts: Sequence[Attempt]
    gave_up: int


def work(pipe: Pipe, actor: str) -> None:
    """A client process. For each job that comes in, it says "ready" when it is connected, is told
    the start on the clock that all processes share, sends None for every edit it is done with, and
    its record at the end. None instead of a job ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its clients itself
    kind = {"person": Person, "psql": Psql}.get(actor, Decider)
    while job := pipe.recv():
        with contextlib.closing(kind(job, actor)) as client:
            pipe.send("ready")
            start = pipe.recv()
            for edit in job.edits:
                time.sleep(max(0.0, start + edit.at - time.monotonic()))
                client.do(edit)
                pipe.send(None)
            pipe.send(Record(client.attempts, client.gave_up))


class Client:
    def __init__(self, actor: str) -> None:
        self.actor = actor
        self.attempts: list[Attempt] = []
        self.gave_up = 0

    def do(self, edit: Edit) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Blind(Client):
    """Writes what it has in mind and reads nothing: one UPDATE, sent again if it is refused."""

    def do(self, edit: Edit) -> None:
        (ref,) = edit.writes
        statement = sql.SQL("update {} set {} = {} where id = {}").format(
            sql.Identifier(ref.model), sql.Identifier(ref.field), edit.value(ref), ref.id
        )
        landed = Attempt(self.actor, edit.number, {}, {ref: edit.value(ref)}, "landed")
        while not self.send(statement):
            self.attempts.append(replace(landed, answer="refused"))
        self.attempts.append(landed)

    def send(self, statement: sql.Composed) -> bool:
        """False if it failed to serialize."""
        raise NotImplementedError


class Person(Blind):
    """Somebody with a small program of their own: plain SQL, autocommit."""

    def __init__(self, job: Job, actor: str) -> None:
        super().__init__(actor)
        self.conn = connect(job.dsn, actor)

    def close(self) -> None:
        self.conn.close()

    def send(self, statement: sql.Composed) -> bool:
        try:
            self.conn.execute(statement)
        except psycopg.errors.SerializationFailure:
            return False
        return True


class Psql(Blind):
    """Somebody at a psql prompt."""

    def __init__(self, job: Job, actor: str) -> None:
        super().__init__(actor)
        self.process = subprocess.Popen(
            [job.psql, "--no-psqlrc", "--dbname", make_conninfo(job.dsn, application_name=actor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._ask("\\set VERBOSITY sqlstate")

    def close(self) -> None:
        self.process.communicate()

    def send(self, statement: sql.Composed) -> bool:
        answer = self._ask(statement.as_string() + ";")
        if answer not in ("UPDATE 1", "ERROR:  40001"):
            raise RuntimeError(f"psql: {answer}")
        return answer == "UPDATE 1"

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n\\echo answered\n")
        self.process.stdin.flush()
        lines: list[str] = []
        for answer in self.process.stdout:
            if answer == "answered\n":
                return "".join(lines).strip()
            lines.append(answer)
        raise RuntimeError(f"psql has ended: {''.join(lines)}")


class Decider(Client):
    """An agent or the batch job: reads, thinks and writes by the rules of one way."""

    def __init__(self, job: Job, actor: str) -> None:
        super().__init__(actor)
        self.way = WAYS[job.way](job.dsn, actor)
        self.observer = connect(job.dsn, "observer")
        self.observer.execute("set default_transaction_isolation to 'read committed'")

    def close(self) -> None:
        self.way.close()
        self.observer.close()

    def do(self, edit: Edit) -> None:
        todo = edit.ids
        for _ in range(MAX_ATTEMPTS):
            try:
                seen = self.way.read(edit.model, sorted({*todo, *(p.id for p in edit.premises)}))
            except Refused:
                continue  # nothing was seen or thought yet, so that this is no attempt
            if any(seen[premise.id][premise.field] is False for premise in edit.premises):
                self.way.leave()  # the other doctor has signed off: stay on duty
                return
            time.sleep(edit.think * len(todo) / len(edit.ids))
            todo = self._land(edit, todo, seen)
            if not todo:
                return
        self.gave_up += 1

    def _land(self, edit: Edit, todo: list[int], seen: Mapping[int, Row]) -> list[int]:
        """Try to write the rows in `todo`; answers those that were refused."""
        drafts = {id: self._draft(edit, [id], seen) for id in todo}

        def merge(id: int, current: Row) -> dict[str, Value]:
            """The write was held: keep what is there now beside one's own words."""
            held = replace(drafts[id], answer="held", after=self._last_seq())
            self.attempts.append(held)
            think = edit.think / len(edit.ids) * MERGING
            time.sleep(think)
            drafts[id] = replace(
                held,
                reads={**held.reads, **{ref: current[ref.field] for ref in held.writes}},
                writes={ref: _both(edit.value(ref), current[ref.field]) for ref in held.writes},
                answer="landed",
                think=think,
                merge=True,
                before=self._last_seq(),
            )
            return _by_field(drafts[id].writes)

        decision = Decision(
            model=edit.model,
            seen=seen,
            changes={id: _by_field(draft.writes) for id, draft in drafts.items()},
            premises={premise.id: [premise.field] for premise in edit.premises},
            merge=merge,
        )
        try:
            refused = self.way.write(decision)
        except Refused:
            whole = self._draft(edit, todo, seen)
            self.attempts.append(replace(whole, answer="refused", after=self._last_seq()))
            return todo
        for id in refused:
            # With a merged text that is refused goes also the one that was held.
            lost = edit.think / len(edit.ids) if drafts[id].merge else 0.0
            drafts[id] = replace(drafts[id], answer="refused", think=drafts[id].think + lost)
        after = self._last_seq()
        self.attempts += [replace(draft, after=after) for draft in drafts.values()]
        return refused

    def _draft(self, edit: Edit, ids: Sequence[int], seen: Mapping[int, Row]) -> Attempt:
        writes = {ref: edit.value(ref) for ref in edit.writes if ref.id in ids}
        return Attempt(
            actor=self.actor,
            edit=edit.number,
            reads={ref: seen[ref.id][ref.field] for ref in (*writes, *edit.premises)},
            writes=writes,
            answer="landed",
            think=edit.think * len(ids) / len(edit.ids),
            before=self._last_seq(),
        )

    def _last_seq(self) -> int:
        row = self.observer.execute("select coalesce(max(seq), 0) as n from audit.rows").fetchone()
        assert row is not None
        return int(row["n"])


def _by_field(values: Mapping[Ref, Value]) -> dict[str, Value]:
    return {ref.field: value for ref, value in values.items()}


def _both(mine: Value, theirs: Value) -> Value:
    """Both texts, theirs cut to size. Of two numbers one has to give way."""
    return f"{mine}, and: {str(theirs)[:60]}" if isinstance(mine, str) else mine
