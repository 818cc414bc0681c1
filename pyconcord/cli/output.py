"""What goes to standard output: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Rows = Sequence[Mapping[str, Any]]


def emit(value: Any) -> None:
    """One JSON document."""
    print(json.dumps(value, ensure_ascii=False, default=_plain, indent=2))


def emit_line(value: Any) -> None:
    """One line of JSON, at once."""
    print(json.dumps(value, ensure_ascii=False, default=_plain), flush=True)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def show(rows: Rows, columns: Sequence[str], *, none: str) -> None:
    """A table of these columns; where no row has anything in a column, it is left out."""
    if not rows:
        print(none)
        return
    used = [name for name in columns if any(cell(row.get(name)) for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in used:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(row.get(name))) for name in used))
    # Where there is no terminal its width is a guess, and a row is better long than broken.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def cell(value: Any) -> str:
    """A value as a person reads it; nothing for null, false and empty lists."""
    if value is None or value is False or value == [] or value == {}:
        return ""
    if value is True:
        return "yes"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(map(cell, value))
    return str(value)


def change(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of history or changes as a person reads it."""
    who = f"{row['kind']} {row['actor']}" if row["actor"] else ""
    if row["on_behalf_of"]:
        who += f" for {row['on_behalf_of']}"
    whole = row["fields"] is None and row["op"] == "update"
    return {**row, "by": who, "fields": "(whole row)" if whole else row["fields"]}
