"""JSON as Postgres reads it: exact numbers, ISO dates, hex bytes, and paths for the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from json.encoder import encode_basestring
from math import isfinite
from typing import Any
from uuid import UUID

from .errors import InvalidRequest

MAX_DEPTH = 200
"""Deeper than any document people write, shallower than Python's own recursion limit."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_NETWORK = (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network)


@dataclass(frozen=True)
class Reference:
    """The id that an earlier operation of the same batch produced; stands for an id or a value."""

    index: int


def loads(text: str) -> Any:
    """Parse an answer of the server. Numbers with a fraction become Decimal: nothing is rounded."""
    return json.loads(text, parse_float=Decimal)


def dumps(value: object) -> str:
    """Write `value` as JSON, or raise `InvalidRequest` with the path of what JSON cannot hold."""
    out: list[str] = []
    _write(value, "", 0, out)
    return "".join(out)


def _write(value: object, path: str, depth: int, out: list[str]) -> None:
    # One writer instead of json.dumps: only so can a Decimal be a number of its own digits, a
    # non-text key be refused instead of being turned into text, and a refusal name its path.
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"nested more than {MAX_DEPTH} levels deep", param=_shorten(path))
    if isinstance(value, Mapping):
        out.append("{")
        for n, (key, item) in enumerate(value.items()):
            if not isinstance(key, str):
                raise InvalidRequest(f"a key must be text, not {key!r}", param=path or None)
            out.append(f"{',' if n else ''}{_text(key, path)}:")
            _write(item, f"{path}.{key}" if path else key, depth + 1, out)
        out.append("}")
    elif isinstance(value, (list, tuple)):
        out.append("[")
        for n, item in enumerate(value):
            if n:
                out.append(",")
            _write(item, f"{path}[{n}]", depth + 1, out)
        out.append("]")
    else:
        out.append(_scalar(value, path))


def _scalar(value: object, path: str) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return _text(value, path)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        if not isfinite(value):
            raise _no_number(value, path)
        return float.__repr__(value)
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise _no_number(value, path)
        return str(value)
    if isinstance(value, Reference):
        return f'{{"$operation":{value.index}}}'
    if isinstance(value, (datetime, date, time)):
        return f'"{value.isoformat()}"'
    if isinstance(value, timedelta):
        return f'"{value.days} days {value.seconds}.{value.microseconds:06d} seconds"'
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f'"\\\\x{bytes(value).hex()}"'
    if isinstance(value, (UUID, *_NETWORK)):
        return f'"{value}"'
    raise InvalidRequest(f"{type(value).__name__} has no JSON form", param=path or None)


def _text(value: str, path: str) -> str:
    if _UNSTORABLE.search(value):
        raise InvalidRequest("text holds a NUL or half a surrogate pair", param=path or None)
    return encode_basestring(value)


def _no_number(value: object, path: str) -> InvalidRequest:
    return InvalidRequest(
        f"{value} is no JSON number; a column that takes it takes the text {str(value)!r}",
        param=path or None,
    )


def _shorten(path: str) -> str:
    return path if len(path) <= 200 else f"{path[:200]}…"


def key_text(key: object) -> str:
    """A row's id as text, the form in which every answer gives it."""
    if isinstance(key, str):
        return key
    if isinstance(key, Mapping):
        return dumps(key)
    if key is None or isinstance(key, (bool, float, list, tuple, Reference)):
        raise InvalidRequest(f"{key!r} is no id of a row", param="id")
    written = _scalar(key, "id")
    return str(json.loads(written)) if written.startswith('"') else written
