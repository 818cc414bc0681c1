"""Python as a person writes it, in the lines of the formatters (88 columns)."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterable, Sequence

WIDTH = 88


def call(head: str, arguments: Sequence[str | list[str]], indent: int = 4) -> str:
    """`head(arguments)`: in one line, else the arguments in one of their own, else each in one. An
    argument may be a list of what it lists."""
    pad, inner = " " * indent, " " * (indent + 4)
    flat = [f"[{', '.join(a)}]" if isinstance(a, list) else a for a in arguments]
    one = f"{pad}{head}({', '.join(flat)})"
    if len(one) <= WIDTH:
        return one
    together = f"{inner}{', '.join(flat)}"
    if len(together) <= WIDTH:
        return f"{pad}{head}(\n{together}\n{pad})"
    lines = ""
    for argument, text in zip(arguments, flat, strict=True):
        line = f"{inner}{text},\n"
        if len(line) > WIDTH + 1 and isinstance(argument, list):
            line = f"{inner}[\n" + "".join(f"{inner}    {a},\n" for a in argument) + f"{inner}],\n"
        lines += line
    return f"{pad}{head}(\n{lines}{pad})"


def listed(name: str, values: Sequence[str]) -> str:
    """`name = ["…", …]`, in one line or in many."""
    one = f"{name} = [{', '.join(map(text, values))}]"
    if len(one) <= WIDTH:
        return one
    return f"{name} = [\n" + "".join(f"    {text(value)},\n" for value in values) + "]"


def text(value: str) -> str:
    """A string literal, in the quotes that need fewer escapes."""
    if value.count('"') > value.count("'"):
        inner = json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', '"')
        return "'" + inner.replace("'", "\\'") + "'"
    return json.dumps(value, ensure_ascii=False)


def class_name(table: str) -> str:
    """slides: Slide; agent_tool_calls: AgentToolCall; statuses: Status."""
    words = re.split(r"[^A-Za-z0-9]+", table)
    words[-1] = singular(words[-1])
    name = "".join(word[:1].upper() + word[1:] for word in words if word) or "Row"
    return f"T{name}" if name[0].isdigit() else name


def singular(word: str) -> str:
    for ending, instead in (("ies", "y"), ("sses", "ss"), ("uses", "us"), ("xes", "x")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word.removesuffix(ending) + instead
    return word[:-1] if re.search(r"[^sui]s$", word) else word


def attribute(column: str, taken: Iterable[str] = (), ending: str = "_") -> str:
    """A column's name as an attribute; where it can be none, with an ending."""
    name = re.sub(r"\W", "_", column)
    if not name or name[0].isdigit():
        name = f"c_{name}"
    if keyword.iskeyword(name) or name in taken or name.startswith("__"):
        name = f"{name.strip('_')}{ending}"
    return name
