"""Who else is at work in a history: one that follows the feed, and one that does the upkeep."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from tests.history.log import Delta
from tests.history.oracle import RowId
from tests.history.report import Report
from tests.history.workload import Actor, World

TOKEN_FOREIGN = "KC006"


class Upkeep(Actor):
    """Calls concord.maintain() far more often than anybody should."""

    def __init__(self, world: World, name: str, seed: str) -> None:
        super().__init__(world, name, "app", seed)

    def step(self) -> None:
        if not self.world.done.wait(self.random.expovariate(1 / 0.5)):
            self.connection.execute("select concord.maintain()")


class Follower(Actor):
    """Reads the feed page by page; where its position is foreign, after a crash, from the start."""

    def __init__(self, world: World, name: str, seed: str) -> None:
        super().__init__(world, name, "app", seed)
        self.position: str | None = None
        self.lives: list[list[tuple[int, RowId]]] = [[]]
        """For each time that it began anew, the numbers that it got, and of which rows."""

    def prepare(self) -> None:
        self.row("select concord.act_as('t', 'system', %s, null, false)", self.name)

    def step(self) -> None:
        if not self.world.done.wait(self.random.expovariate(1 / 0.1)):
            self.page()

    def page(self) -> bool:
        """One page; says whether the feed ended with it."""
        most = self.random.choice([1, 10, 100, 1000])
        try:
            page = self.connection.execute(
                "select sync_id, model, id, op, next_token from concord.changes(%s, %s)",
                (self.position, most),
            ).fetchall()
        except psycopg.Error as error:
            if error.sqlstate != TOKEN_FOREIGN:
                raise
            self.position = None
            self.lives.append([])
            return False
        for sync_id, model, key, op, position in page:
            self.position = position
            if op != "checkpoint":
                self.lives[-1].append((sync_id, (model, key or "")))
        return bool(page) and page[-1][3] == "checkpoint"

    def finish(self) -> None:
        """Reads on to the end."""
        with self.connect() as self.connection:
            self.prepare()
            while not self.page():
                pass


def check_feed(
    lives: Sequence[Sequence[tuple[int, RowId]]], deltas: Sequence[Delta], report: Report
) -> None:
    """The feed gave each delta exactly once, those of one row in their order."""
    logged = {delta.seq for delta in deltas}
    for life in lives:
        numbers = [number for number, _ in life]
        last: dict[RowId, int] = {}
        for number, row in life:
            if number <= last.get(row, 0):
                report.add("feed", str(row), f"{number} came after {last[row]}")
            last[row] = number
        if len(set(numbers)) != len(numbers):
            report.add("feed", "feed", "something came twice")
        for number in sorted({*numbers} - logged):
            report.add("feed", "feed", f"{number} is in no log")
    for number in sorted(logged - {number for number, _ in lives[-1]}):
        report.add("feed", "feed", f"{number} never came")
