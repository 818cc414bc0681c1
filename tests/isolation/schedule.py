"""Scripted schedules over real connections: a test reads as the schedule that it plays.

    late.run("begin")
    late.run("update slides set title = 'late' where id = 1")
    ana.start_commit(request(update("slides", 1, title="mine"), read_at=token))
    ana.blocked()                      # returns when ana really waits for somebody's lock
    late.run("commit")
    with refused("stale_context"):
        ana.finish_commit()

Every session is a connection with a thread of its own. Order comes from the script and from locks
that are seen to be waited for, never from the passing of time: the one clock here ends a test that
hangs.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from jsonschema import Draft202012Validator
from psycopg.types.json import Jsonb

from pyconcord import schemas
from tests.support import Database

Rows = list[tuple[Any, ...]]
Request = dict[str, Any]
Receipt = dict[str, Any]

HANGS = 90.0
"""Seconds after which a schedule counts as hanging."""

CONTENDED = {"40P01", "40001", "55P03"}

_VALIDATORS = {name: Draft202012Validator(schemas.load(name)) for name in schemas.names}


def valid(kind: str, document: Any) -> Any:
    """The document itself, when it is as the package's JSON Schema says."""
    problems = [f"{e.json_path}: {e.message}" for e in _VALIDATORS[kind].iter_errors(document)]
    assert not problems, f"not a {kind}: {problems}\n{json.dumps(document, indent=1)}"
    return document


class Session:
    """One connection. What it runs it runs in its own thread, one statement after another."""

    long_way = False
    """A commit of one plain update takes a shorter way through the same steps. Tests that rest on
    the order of those steps are played on both ways; a label is enough to take the long one."""

    def __init__(self, name: str, connection: psycopg.Connection[Any], watcher: Watcher) -> None:
        self.name = name
        self.connection = connection
        self.pid = connection.info.backend_pid
        self._watcher = watcher
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._pending: Future[Rows] | None = None

    def run(self, sql: str, *params: Any) -> Rows:
        """Run to the end."""
        self.start(sql, *params)
        return self.finish()

    def one(self, sql: str, *params: Any) -> Any:
        """The only value of the only row."""
        ((value,),) = self.run(sql, *params)
        return value

    def start(self, sql: str, *params: Any) -> None:
        """Run in the background, until `finish`."""
        assert self._pending is None, f"{self.name} has not finished what it was doing"
        self._pending = self._thread.submit(self._execute, sql, params)

    def blocked(self) -> None:
        """Wait until what was started waits for somebody's lock."""
        self._until(lambda: self._watcher.waits_for_lock(self.pid), "waited for a lock")

    def sleeping(self) -> None:
        """Wait until what was started looks, now and then, whether it may go on."""
        self._until(lambda: self._watcher.looks_now_and_then(self.pid), "waited for others to end")

    def finish(self) -> Rows:
        """The rows of what was started; raises what it raised."""
        assert self._pending is not None, f"{self.name} was not doing anything"
        pending, self._pending = self._pending, None
        return pending.result(HANGS)

    @property
    def finished(self) -> bool:
        """Whether what was started has ended, with whatever result."""
        assert self._pending is not None, f"{self.name} was not doing anything"
        return self._pending.done()

    # -- concord -----------------------------------------------------------------------------------

    def capture(self) -> str:
        """A read token."""
        token = self.one("select concord.capture()")
        assert isinstance(token, str)
        return token

    def read(self, model: str, id: object) -> dict[str, Any]:
        """A row with its token."""
        found = self.one("select concord.read(%s, %s)", model, str(id))
        assert isinstance(found, dict)
        return found

    def start_commit(self, request: Request) -> None:
        """Commit in the background, until `finish_commit`."""
        if self.long_way:
            request = {"label": "not a plain commit", **request}
        valid("request", request)
        self.start("select concord.commit(%s)", Jsonb(request))

    def finish_commit(self) -> Receipt:
        ((receipt,),) = self.finish()
        valid("receipt", receipt)
        assert isinstance(receipt, dict)
        return receipt

    def commit(self, request: Request) -> Receipt:
        """concord.commit: its receipt, or the refusal as an exception."""
        self.start_commit(request)
        return self.finish_commit()

    def try_commit(self, request: Request) -> Receipt:
        """concord.try_commit: a receipt, of a refusal too."""
        valid("request", request)
        receipt = valid("receipt", self.one("select concord.try_commit(%s)", Jsonb(request)))
        assert isinstance(receipt, dict)
        return receipt

    # -- how ---------------------------------------------------------------------------------------

    def _execute(self, sql: str, params: Sequence[Any]) -> Rows:
        cursor = self.connection.execute(sql.encode(), params or None)
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []

    def _until(self, seen: Any, what: str) -> None:
        assert self._pending is not None, f"{self.name} was not doing anything"
        deadline = time.monotonic() + HANGS
        while not seen():
            done, _ = wait([self._pending], timeout=0.005)
            if done:
                outcome = self._pending.exception() or self._pending.result()
                raise AssertionError(f"{self.name} never {what}: it ended with {outcome!r}")
            assert time.monotonic() < deadline, f"{self.name} hangs, and never {what}"

    def close(self) -> None:
        if self._pending is not None and not self._pending.done():
            self._watcher.terminate(self.pid)
        self._thread.shutdown()
        self.connection.close()


class Watcher:
    """A connection that looks at what the others wait for."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def waits_for_lock(self, pid: int) -> bool:
        # A prepared transaction that is in the way counts as process 0.
        return self._ask("select pg_blocking_pids(%s) <> '{}'", pid)

    def looks_now_and_then(self, pid: int) -> bool:
        return self.waits_for_lock(pid) or self._ask(
            "select coalesce(bool_or(wait_event = 'PgSleep'), false) from pg_stat_activity"
            " where pid = %s",
            pid,
        )

    def terminate(self, pid: int) -> None:
        # When the server is gone so is the session.
        with suppress(psycopg.OperationalError):
            self._connection.execute("select pg_terminate_backend(%s)", (pid,))

    def forget_prepared_transactions(self) -> None:
        with suppress(psycopg.OperationalError):
            for (gid,) in self._connection.execute(
                "select gid from pg_prepared_xacts where database = current_database()"
            ).fetchall():
                self._connection.execute(f"rollback prepared '{gid}'".encode())

    def drop_roles(self, names: Sequence[str]) -> None:
        for name in names:
            for statement in (f"drop owned by {name} cascade", f"drop role {name}"):
                self._connection.execute(statement.encode())

    def _ask(self, query: str, pid: int) -> bool:
        row = self._connection.execute(query.encode(), (pid,)).fetchone()
        assert row is not None
        return bool(row[0])


@dataclass
class Story:
    """A database and who acts in it."""

    db: Database
    _sessions: list[Session] = field(default_factory=list)
    _roles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._begin()
        # Locks are let go when the script says so; only a broken schedule waits long. Deadlocks
        # are part of some schedules, and found sooner here.
        self.configure("lock_timeout", "60 s")
        self._clerk.run(f"alter database {self.db.name} set deadlock_timeout = '100 ms'")

    def _begin(self) -> None:
        self._watcher = Watcher(self.db.connect())
        self._clerk = self.admin()

    def session(self, name: str, user: str | None = None, **kwargs: Any) -> Session:
        made = Session(name, self.db.connect(user, **kwargs), self._watcher)
        self._sessions.append(made)
        return made

    def admin(self) -> Session:
        """The superuser."""
        return self.session("admin")

    def raw(self, name: str = "raw") -> Session:
        """The owner of the tables, who writes plain SQL and knows nothing of Concord."""
        return self.session(name, "owner")

    def actor(self, name: str, *, kind: str = "agent", tenant: str = "acme") -> Session:
        """Somebody who acts through the application's login."""
        made = self.session(name, "app")
        made.run("select concord.act_as(%s, %s, %s, is_local => false)", tenant, kind, name)
        return made

    def role(self, name: str) -> str:
        """A new role that may use Concord, and that the application's login may SET ROLE to."""
        self._clerk.run(f"create role {name} nologin")
        self._roles.append(name)
        self._clerk.run(f"grant concord_app to {name}; grant {name} to app")
        return name

    def psql(self, sql: str) -> None:
        """The program psql, as the tables' owner."""
        command = [str(self.db.server.bin("psql")), self.db.dsn("owner"), "-X", "-q"]
        subprocess.run(
            [*command, "-v", "ON_ERROR_STOP=1", "-c", sql], check=True, capture_output=True
        )

    def tables(self, sql: str) -> None:
        """Run a script as the tables' owner, and let the application use what it made."""
        owner = self.raw("owner")
        owner.run(sql)
        owner.run("grant select, insert, update, delete on all tables in schema public to app")
        owner.run("grant usage on all sequences in schema public to app")

    def value(self, sql: str, *params: Any) -> Any:
        """What is there now, to whoever may see everything."""
        return self._clerk.one(sql, *params)

    def configure(self, key: str, value: str) -> None:
        self._clerk.run("select concord.configure(%s, %s)", key, value)

    def history(self, model: str, id: object) -> list[dict[str, Any]]:
        """concord.history as the tables' owner sees it: newest first."""
        rows = self._clerk.run("select to_jsonb(h) from concord.history(%s, %s) h", model, str(id))
        return [valid("change", change) for (change,) in rows]

    def reconnect(self) -> None:
        """After the server was stopped: what was connected is gone."""
        for session in self._sessions:
            session.close()
        self._sessions.clear()
        self._begin()

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self._watcher.forget_prepared_transactions()
        self._watcher.drop_roles(self._roles)


# --- requests -------------------------------------------------------------------------------------


def update(model: str, id: object, keys: Mapping[str, Any] | None = None, /, **data: Any) -> Any:
    return {"type": "update", "model": model, "id": _id(id), "data": data, **(keys or {})}


def create(model: str, id: object, /, **data: Any) -> Any:
    return {"type": "create", "model": model, "id": _id(id), "data": data}


def delete(model: str, id: object, keys: Mapping[str, Any] | None = None, /) -> Any:
    return {"type": "delete", "model": model, "id": _id(id), **(keys or {})}


def row(model: str, id: object, *fields: str, **keys: Any) -> Any:
    """The premise that a row, or some of its fields, did not change."""
    return {"model": model, "id": _id(id), **({"fields": list(fields)} if fields else {}), **keys}


def absent(model: str, id: object) -> Any:
    """The premise that there is no such row, and was none."""
    return {"model": model, "id": _id(id), "exists": False}


def group(key: str) -> Any:
    """The premise that no row entered, left or changed within a group."""
    return {"group": key}


def request(
    *operations: Any,
    read_at: str | None = None,
    reads: Sequence[Any] = (),
    on_stale: str | None = None,
    key: str | None = None,
    **more: Any,
) -> Request:
    given = {"readAt": read_at, "onStale": on_stale, "idempotencyKey": key, **more}
    return {
        "operations": list(operations),
        **({"reads": list(reads)} if reads else {}),
        **{k: v for k, v in given.items() if v is not None},
    }


def _id(id: object) -> Any:
    return id if isinstance(id, dict) else str(id)


# --- what is answered -----------------------------------------------------------------------------


@dataclass
class Refusal:
    """A refusal of concord.commit, filled in when the block that expects it has ended."""

    detail: dict[str, Any] = field(default_factory=dict)
    message: str = ""

    @property
    def notification(self) -> dict[str, Any]:
        """The only one."""
        (only,) = self.detail["notifications"]
        assert isinstance(only, dict)
        return only

    @property
    def fields(self) -> list[str]:
        """The conflicting fields of the only notification; none for a whole-row change."""
        found = self.notification["conflictingFields"]
        assert isinstance(found, list)
        return found


@contextmanager
def refused(code: str, param: str | None = None) -> Iterator[Refusal]:
    """Expects this refusal (or, written `one or other`, one of them), well formed."""
    refusal = Refusal()
    try:
        yield refusal
    except psycopg.Error as error:
        if not (error.sqlstate or "").startswith("KC"):
            raise
        refusal.message = error.diag.message_primary or ""
        refusal.detail = valid("error", json.loads(error.diag.message_detail or "null"))
        assert refusal.detail["code"] in code.split(" or "), f"refused, but: {refusal.message}"
        if param is not None:
            assert refusal.detail.get("param") == param, refusal.detail
    else:
        raise AssertionError(f"not refused; expected {code}")


@contextmanager
def contended() -> Iterator[None]:
    """Expects Postgres's own word for it: deadlock, serialization failure, lock not available."""
    with fails(*CONTENDED):
        yield


@contextmanager
def fails(*sqlstates: str) -> Iterator[None]:
    """Expects an error of Postgres's."""
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate not in sqlstates:
            raise
    else:
        raise AssertionError(f"did not fail; expected {' or '.join(sorted(sqlstates))}")


def deadlocked(*sessions: Session) -> list[Session]:
    """Finish sessions of which exactly one has to give way, and return those that did not."""
    through = []
    for session in sessions:
        try:
            session.finish()
        except psycopg.errors.DeadlockDetected:
            continue
        through.append(session)
    assert len(through) == len(sessions) - 1, f"{len(sessions) - len(through)} gave way, not one"
    return through
