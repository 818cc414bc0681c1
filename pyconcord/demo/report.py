"""What the demo prints: progress while it runs, a table, its legend, and lines to paste."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psycopg.conninfo import conninfo_to_dict, make_conninfo
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pyconcord.demo.audit import Verdict

__all__ = ["Live", "Outcome", "as_json", "paste", "show"]


@dataclass(frozen=True)
class Outcome:
    """One row of the table: the audit's verdict and what was measured beside it."""

    way: str
    verdict: Verdict
    waited: float
    oldest: float
    unattended: int  # shifts left with nobody on duty
    gave_up: int
    took: float

    @property
    def sound(self) -> bool:
        """No edit lost, no premise missed."""
        return not (self.verdict.lost or self.verdict.moved or self.unattended)


COLUMNS = (
    "edits lost",
    "refused although nothing it rested on had changed",
    "decisions that landed on a moved premise",
    "think-seconds thrown away",
    "seconds others waited",
    "oldest open transaction (s)",
)

LEGEND = """
Worked out from audit.rows and audit.attempts in this database, by pyconcord/demo/audit.py, which
has the definitions; the last two columns are sampled from pg_stat_activity.
The person and psql write blind: having read nothing, they replace what is there on purpose. That
loses no edit by the definition, in any of the ways; it happened {blind} times in each.
Lost edits are counted value by value. In the lines above, an edit whose rows are answered apart is
as many writes; a write that Concord holds counts as refused, the time to merge it as thrown away.
SERIALIZABLE may land a decision on a moved premise if a serial order with it first explains all."""


def show(outcomes: Sequence[Outcome], edits: int) -> None:
    """Print the table and what has to be said about it."""
    # Where there is no terminal its width is a guess, and a table cut to fit could not be read.
    console = Console(width=None if sys.stdout.isatty() else 120)
    title = f"The same {edits} edits, six ways"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False)
    wide = console.width >= 120
    table.padding = (0, 1 if wide else 0)  # so that 80 columns take the longest words uncut
    table.add_column("", no_wrap=wide)
    for column in COLUMNS:
        longest = max(map(len, column.split()))
        table.add_column(column, justify="right", width=max(longest, 12) if wide else longest)
    for outcome in outcomes:
        verdict = outcome.verdict
        table.add_row(
            outcome.way,
            *map(str, (verdict.lost, verdict.false_refusals, verdict.moved)),
            *(f"{seconds:.1f}" for seconds in (verdict.thrown_away, outcome.waited)),
            f"{outcome.oldest:.2f}",
        )
    console.print(table)
    blind = sorted({outcome.verdict.blind_over_others for outcome in outcomes})
    print(LEGEND.format(blind=" to ".join(map(str, dict.fromkeys((blind[0], blind[-1]))))))
    print("Shifts left with nobody on duty:", _named(outcomes, "unattended"))
    print("Edits given up after six refusals:", _named(outcomes, "gave_up"))


def _named(outcomes: Sequence[Outcome], count: str) -> str:
    numbers = {outcome.way: getattr(outcome, count) for outcome in outcomes}
    return ", ".join(f"{way} {number}" for way, number in numbers.items() if number) or "none"


def as_json(outcomes: Sequence[Outcome], **about: Any) -> str:
    """The table for programs."""
    ways = []
    for outcome in outcomes:
        row = asdict(outcome)
        row |= row.pop("verdict")
        ways.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    return json.dumps({**about, "ways": ways}, indent=2)


def paste(dsn: str, psql: str, slide: int, stop: Sequence[str] = ()) -> str:
    """Lines for a shell and for psql. A password isn't shown."""
    public = {key: value for key, value in conninfo_to_dict(dsn).items() if key != "password"}
    lines = [
        "",
        "Look for yourself:",
        "  " + shlex.join([psql, make_conninfo("", **public)]),
        "  select * from concord.conflicts order by at desc limit 10;",
        "  select sync_id, at, kind, actor, fields, before"
        f" from concord.history('slides', '{slide}');",
        "  select way, seq, actor, model, id, new from audit.rows order by seq desc limit 10;",
    ]
    if stop:
        lines.append("The server goes on running for that. To stop it, and to remove its data:")
        lines += [f"  {line}" for line in stop]
    return "\n".join(lines)


class Live:
    """Progress on standard error: a bar on a terminal, and a line for each way that is done."""

    def __init__(self, console: Console, edits: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description:28}"),
            BarColumn(),
            TextColumn("{task.completed} of {task.total} edits"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._console = console
        self._task = self._progress.add_task("starting", total=edits)

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def way(self, name: str) -> None:
        """A way begins."""
        self._progress.update(self._task, description=name)

    def tick(self) -> None:
        """Somebody is done with an edit."""
        self._progress.advance(self._task)

    def done(self, outcome: Outcome) -> None:
        """A way has its verdict."""
        verdict = outcome.verdict
        self._console.print(
            f"{outcome.way:28} {outcome.took:5.1f} s   {verdict.landed} writes landed,"
            f" {verdict.refused + verdict.held} refused, {verdict.lost} lost",
            highlight=False,
        )
