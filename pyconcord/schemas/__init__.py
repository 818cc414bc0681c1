"""The JSON contract as JSON Schemas (draft 2020-12)."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import Any

names = ("request", "receipt", "notification", "error", "change")

_REFERENCE = re.compile(r'"urn:pyconcord:(\w+)"')


def load(name: str) -> dict[str, Any]:
    """One schema, with those that it refers to under `$defs`: it validates by itself."""
    schema = _load(name)
    needed, bundled = [name], {name}
    while needed:
        for other in _REFERENCE.findall(_text(needed.pop())):
            if other not in bundled:
                bundled.add(other)
                needed.append(other)
                schema.setdefault("$defs", {})[other] = _load(other)
    return schema


def _load(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(_text(name))
    return schema


def _text(name: str) -> str:
    if name not in names:
        raise KeyError(f"no schema {name!r}: there are {', '.join(names)}")
    return files(__name__).joinpath(f"{name}.schema.json").read_text("utf-8")
