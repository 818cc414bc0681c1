"""A server, databases with the pack in them, and pgbench.

Sides that are compared take turns in short runs, A B A B, in the reverse order every second time:
what else the machine does meets them alike. Each turn gives one ratio; the median of the turns is
the result, the quartiles are its spread.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psycopg
from psycopg import sql

from pyconcord import install
from pyconcord.embedded import Server
from pyconcord.install import Files

# CPU cost shows when no commit waits for the disk. Vacuum runs between the turns, not at random.
SETTINGS = {
    "synchronous_commit": "off",
    "autovacuum": "off",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "max_connections": "60",
}
LOGIN = "bench_app"  # no superuser, for whom the server checks less
TEMPLATE = "bench_template"
WARM = 0.2  # the share of a run that is thrown away: connecting, parsing, first plans
SEED = 7


class BenchError(RuntimeError):
    """Something could not be measured; the message says why."""


@dataclass(frozen=True)
class Scale:
    """How long and how much."""

    seconds: int  # of one run
    turns: int
    rows: int  # of the tables
    bulk: int  # rows of one large statement
    deltas: tuple[int, int]  # the shorter log and the longer one
    unseen: int  # deltas on the stale row
    transactions: int | None = None  # of one run, instead of seconds


FULL = Scale(
    seconds=3, turns=11, rows=100_000, bulk=100_000, deltas=(10_000, 10_000_000), unseen=10_000
)
QUICK = Scale(seconds=1, turns=3, rows=50_000, bulk=50_000, deltas=(10_000, 300_000), unseen=2_000)


@dataclass(frozen=True)
class Run:
    """One run of pgbench, without its warm-up. Times in milliseconds."""

    times: Sequence[float]
    seconds: float  # from the first counted transaction's start to the last one's end
    started: int  # transactions, the warm-up's too

    @property
    def mean(self) -> float:
        return statistics.fmean(self.times)

    @property
    def rate(self) -> float:
        """Transactions a second."""
        return len(self.times) / self.seconds


Side = Callable[[], Run]
Bound = Literal["at most", "at least"]


@dataclass(frozen=True)
class Result:
    """One number of the table."""

    row: str
    variant: str
    what: str
    against: str
    unit: str  # × for a ratio
    goal: float
    bound: Bound
    value: float
    low: float
    high: float
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def meets(self) -> bool:
        return self.value <= self.goal if self.bound == "at most" else self.value >= self.goal


@dataclass
class Database:
    """A database of its own for each row of the table, with the pack."""

    bench: Bench
    name: str

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection[Any]]:
        """As the superuser, each statement on its own."""
        with psycopg.connect(self.bench.server.dsn(self.name), autocommit=True) as connection:
            yield connection

    def run(self, *statements: str) -> None:
        with self.connect() as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def value(self, query: str) -> Any:
        with self.connect() as connection:
            row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return row[0]

    def token(self) -> str:
        return str(self.value("select concord.capture()"))

    def pgbench(
        self,
        script: str,
        *,
        clients: int = 1,
        transactions: int | None = None,
        user: str = LOGIN,
        variables: Mapping[str, object] | None = None,
        acting: str | None = None,
    ) -> Run:
        """Run a script so many times, or for as long as the scale says; on connections `acting`."""
        scale = self.bench.scale
        count = transactions or scale.transactions
        length = ["-t", str(count)] if count else ["-T", str(scale.seconds)]
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "script.sql"
            file.write_text(script)
            done = subprocess.run(
                [str(self.bench.server.bin("pgbench")), "-n", "-M", "prepared", *length]
                + ["-c", str(clients), "-j", str(min(clients, 2)), f"--random-seed={SEED}"]
                + [f"-D{name}={value}" for name, value in (variables or {}).items()]
                + ["-f", str(file), "--log", f"--log-prefix={directory}/log"]
                + [self.bench.server.dsn(self.name, user)],
                capture_output=True,
                text=True,
                env={k: v for k, v in os.environ.items() if not k.startswith("PG")}
                | ({} if acting is None else {"PGOPTIONS": f"-c concord.acting={acting}"}),
            )
            if done.returncode != 0:
                raise BenchError(f"pgbench in {self.name}: {done.stderr.strip()[-2000:]}")
            return _read(sorted(Path(directory).glob("log*")), 0.0 if count == 1 else WARM)


def _read(logs: Sequence[Path], warm: float) -> Run:
    """pgbench's log of single transactions."""
    entries: list[tuple[float, float]] = []  # end, duration; both in seconds
    for log in logs:
        for line in log.read_text().splitlines():
            _, _, duration, _, second, microsecond = line.split()[:6]
            entries.append((int(second) + int(microsecond) / 1e6, int(duration) / 1e6))
    if not entries:
        raise BenchError("pgbench ended without one transaction")
    entries.sort()
    began, ended = min(end - duration for end, duration in entries), entries[-1][0]
    counted = [e for e in entries if e[0] - e[1] >= began + warm * (ended - began)] or entries
    seconds = ended - min(end - duration for end, duration in counted)
    return Run([duration * 1000 for _, duration in counted], seconds, len(entries))


class Bench:
    """The server, the scale, and the sides taking turns."""

    def __init__(self, server: Server, scale: Scale, files: Files | None = None) -> None:
        self.server = server
        self.scale = scale
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(f"create role {LOGIN} login".encode())
            connection.execute(f"create database {TEMPLATE}".encode())
        with psycopg.connect(server.dsn(TEMPLATE)) as connection:
            install.install(connection, app_role=LOGIN, service=True, files=files)

    @contextmanager
    def database(self, name: str) -> Iterator[Database]:
        """A copy of the template, dropped again."""
        database = sql.Identifier(f"bench_{name}")
        with psycopg.connect(self.server.dsn(), autocommit=True) as connection:
            create = sql.SQL("create database {} template {}")
            connection.execute(create.format(database, sql.Identifier(TEMPLATE)))
            try:
                yield Database(self, f"bench_{name}")
            finally:
                connection.execute(sql.SQL("drop database {} with (force)").format(database))

    def take_turns(
        self, sides: Mapping[str, Side], turns: int | None = None
    ) -> dict[str, list[Run]]:
        """The runs of each side, turn by turn."""
        runs: dict[str, list[Run]] = {name: [] for name in sides}
        for turn in range(turns or self.scale.turns):
            for name in list(sides) if turn % 2 == 0 else reversed(list(sides)):
                runs[name].append(sides[name]())
        return runs


def ratios(
    these: Sequence[Run],
    those: Sequence[Run],
    of: Callable[[Run], float] = lambda run: run.mean,
) -> tuple[float, float, float]:
    """Median and quartiles of the turns' ratios."""
    return spread([of(this) / of(that) for this, that in zip(these, those, strict=True)])


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the quartiles."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def times(**sides: Sequence[Run]) -> dict[str, Any]:
    """What each side took: the median of its turns' means, and percentiles over all of them."""
    told = {}
    for name, runs in sides.items():
        every = sorted(time for run in runs for time in run.times)
        told[name] = {
            "ms": round(statistics.median(run.mean for run in runs), 4),
            "p50_ms": round(every[len(every) // 2], 4),
            "p99_ms": round(every[len(every) * 99 // 100], 4),
            "transactions": len(every),
        }
    return told
