"""One history: a world of clients on a database, then everything that is to be checked about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from tests.history import audit, checker, log
from tests.history.beside import Follower, Upkeep, check_feed
from tests.history.oracle import Author, RowId
from tests.history.records import Client
from tests.history.report import Report
from tests.history.workload import DECKS, ITEMS, Actor, Committer, Migrator, RawWriter, World

SCHEMA = Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")
ON_STALE = {"agent": "notify"}
RAW_LOGINS = ("plain", "owner", "app2")

Dsn = Callable[[str], str]
"""The connection string of a login; 'postgres' is the superuser."""


def set_up(dsn: Dsn) -> None:
    """The tables, owned by an ordinary login, their audit, and Concord on them."""
    with psycopg.connect(dsn("postgres")) as connection:
        connection.execute(SCHEMA.encode())
        for table in ("decks", "items", "marks"):
            connection.execute(f"alter table {table} owner to owner".encode())
        # A deadlock is soon found: the workload makes many, on purpose.
        connection.execute(
            "do $$ begin execute format('alter database %I set deadlock_timeout = ''20ms''', "
            "current_database()); end $$"
        )
        connection.execute("select concord.configure('lock_timeout', '2 s')")
    with psycopg.connect(dsn("owner")) as connection:
        connection.execute(
            "select concord.track('items', groups => array['deck:{deck}'], "
            "ignore_fields => '{note,version}', on_stale => '{\"agent\": \"notify\"}')"
        )
        for table in ("decks", "marks"):
            connection.execute(
                "select concord.track(%s::regclass, ignore_fields => '{version}', "
                'on_stale => \'{"agent": "notify"}\')',
                (table,),
            )
        connection.execute("set application_name = 'seed'")
        connection.execute(
            "insert into decks (id, title) select d, d from unnest(%s::text[]) d", (DECKS,)
        )
        connection.execute(
            "insert into items (id, deck, a, b, n) select i, 'd' || 1 + i %% 4, 'p', 'q', 1 "
            "from generate_series(1, %s) i",
            (len(ITEMS),),
        )


@dataclass
class History:
    """What a run left behind."""

    clients: Sequence[Client]
    authors: Mapping[str, Author]
    columns: Sequence[Sequence[str]] = ()
    feed: Sequence[Sequence[tuple[int, RowId]]] | None = None
    """What somebody got who followed the feed, each time from its start."""
    seconds: float = 0.0
    crashes: int = 0


def run(
    dsn: Dsn,
    *,
    commits: int,
    connections: int = 8,
    writers: int = 3,
    ddl: bool = False,
    crash: Callable[[], None] | None = None,
    crashes: int = 1,
    seed: str = "0",
    tell: Callable[[str], None] = lambda _: None,
) -> History:
    """Clients and writers until so many commits were confirmed; `crash` is called on the way."""
    world = World(dsn, commits)
    committers = [Committer(world, f"c{n}", seed) for n in range(connections)]
    raw: list[Actor] = [
        RawWriter(world, f"raw{n}", RAW_LOGINS[n % len(RAW_LOGINS)], seed) for n in range(writers)
    ]
    if ddl:
        raw.append(Migrator(world, "ddl", seed))
    follower, upkeep = Follower(world, "feed", seed), Upkeep(world, "upkeep", seed)
    actors = [*committers, *raw, follower, upkeep]
    began = time.monotonic()
    crashed = 0
    with ThreadPoolExecutor(len(actors)) as pool:
        threads = [pool.submit(actor.run) for actor in actors]
        try:
            while not world.done.wait(1.0):
                tell(f"{world.confirmed} of {commits} commits, {time.monotonic() - began:.0f} s")
                due = commits * (crashed + 1) // (crashes + 1)
                if crash is not None and crashed < crashes and world.confirmed > due:
                    crash()
                    crashed += 1
                    tell("crashed and started again")
        finally:
            world.done.set()
    for thread in threads:
        thread.result()  # raises what broke it
    follower.finish()
    return History(
        clients=[actor.record for actor in actors],
        authors=authors_of(committers, raw),
        columns=world.columns,
        feed=follower.lives,
        seconds=time.monotonic() - began,
        crashes=crashed,
    )


def authors_of(committers: Sequence[Actor], raw: Sequence[Actor]) -> dict[str, Author]:
    return {
        "seed": ("system", "owner"),
        **{actor.name: (actor.record.kind, actor.name) for actor in committers},
        **{actor.name: ("system", actor.login) for actor in raw},
    }


def check(dsn: Dsn, history: History) -> Report:
    """Everything there is to say about a history."""
    with psycopg.connect(dsn("postgres"), autocommit=True) as connection:
        found = audit.load(connection, history.authors)
        report = checker.check(found, history.clients, columns=history.columns, on_stale=ON_STALE)
        deltas = log.check_log(found, connection, report)
        if history.feed is not None:
            check_feed(history.feed, deltas, report)
        check_totals(connection, report)
        for (finding,) in connection.execute(
            "select f::text from concord.verify() f where level = 'error'"
        ):
            report.add("verify", "concord.verify()", finding)
    report.counts["changes"] = len(found.changes)
    return report


def check_totals(connection: psycopg.Connection[Any], report: Report) -> None:
    """The workload's own invariant, which its trigger keeps."""
    for deck, total, summed in connection.execute(
        "select d.id, d.total, coalesce(sum(i.n), 0) "
        "from decks d left join items i on i.deck = d.id group by d.id "
        "having d.total <> coalesce(sum(i.n), 0)"
    ):
        report.add("wrong_total", deck, f"{total} instead of {summed}")
