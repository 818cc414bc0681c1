"""What is printed and kept: a table, a JSON file, a chart."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.table import Table

import pyconcord
from bench.measure import SETTINGS, Result, Scale

METHOD = (
    "pgbench, prepared statements, over a Unix socket; times are what one client waits for a "
    "transaction. Sides take turns in short runs, the first fifth of each is thrown away; the "
    "value is the median of the turns' ratios of means, low and high are their quartiles."
)


def number(value: float, unit: str) -> str:
    return {
        "×": f"{value:.2f} ×",
        "ops/s": f"{value:,.0f}/s",
        "bytes": f"{value:.0f} bytes",
    }[unit]


def cells(result: Result) -> tuple[str, ...]:
    sign = "≤" if result.bound == "at most" else "≥"
    spread = ""
    if result.low != result.high:
        ends = [number(end, result.unit).split(" ")[0] for end in (result.low, result.high)]
        spread = " to ".join(ends)
    goal = number(result.goal, result.unit)
    return (
        result.what,
        result.against,
        result.variant,
        f"{sign} {goal}",
        number(result.value, result.unit),
        spread,
        "yes" if result.meets else "no",
    )


HEADINGS = ("what", "against", "detail", "goal", "measured", "quartiles", "meets")


def show(results: Iterable[Result], console: Console) -> None:
    table = Table(*HEADINGS, box=None, pad_edge=False)
    for column in table.columns[3:6]:
        column.justify, column.no_wrap = "right", True
    for result in results:
        style = None if result.meets else "red"
        table.add_row(*cells(result), style=style)
    console.print(table)


def markdown(results: Iterable[Result]) -> str:
    """The same for docs/performance.md."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, results)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_json(results: Sequence[Result], scale: Scale, dsn: str) -> dict[str, Any]:
    with psycopg.connect(dsn) as connection:
        version = connection.execute("select version()").fetchone()
        changed = connection.execute(
            "select name, current_setting(name) from pg_settings"
            " where source = 'configuration file' and name = any (%s) order by 1",
            (list(SETTINGS),),
        ).fetchall()
    assert version is not None
    return {
        "pyconcord": pyconcord.__version__,
        "server": version[0],
        "settings": dict(changed),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "load": os.getloadavg()[2],  # over the last quarter of an hour, this run included
        "method": METHOD,
        "scale": asdict(scale),
        "rows": [asdict(result) | {"meets": result.meets} for result in results],
    }


def write(path: Path, told: dict[str, Any], results: Sequence[Result]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    path.with_suffix(".svg").write_text(chart(results))


def chart(results: Sequence[Result]) -> str:
    """Each number as a share of its goal: a bar that stays within the line meets it."""
    left, line, width, step = 430, 640, 860, 24
    height = step * len(results) + 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{line}" y="16" text-anchor="middle">goal</text>',
    ]
    for n, result in enumerate(results):
        share = result.value / result.goal
        share = share if result.bound == "at most" else 1 / share
        y = 30 + step * n
        length = min(share * (line - left), width - left - 70)
        colour = "#4c78a8" if result.meets else "#e45756"
        label = f"{result.row}, {result.variant}: {number(result.value, result.unit)}"
        sign = "≤" if result.bound == "at most" else "≥"
        parts += [
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(label)}'
            f" ({sign} {number(result.goal, result.unit)})</text>",
            f'<rect x="{left}" y="{y}" width="{length:.0f}" height="17" fill="{colour}">'
            f"<title>{escape(result.what)}, against {escape(result.against)}</title></rect>",
            f'<text x="{left + length + 4:.0f}" y="{y + 13}">{share:.0%}</text>',
        ]
    bottom = height - 14
    parts.append(f'<path d="M{line} 22V{bottom}" stroke="#333" stroke-dasharray="3 3"/>')
    return "\n".join([*parts, "</svg>", ""])
