"""From the parameters that an ORM hands to psycopg to the values of a request."""

from __future__ import annotations

import json
from decimal import Decimal
from math import isfinite
from typing import Any

from psycopg.abc import Transformer
from psycopg.adapt import PyFormat
from psycopg.types.json import Json, Jsonb

from ..errors import InvalidRequest


def as_json(value: Any, adapt: Transformer, param: str | None = None) -> Any:
    """A parameter in JSON, such that its column reads from it what it would read from psycopg.

    What JSON has of its own goes as it is. Everything else goes as the text that psycopg would
    send, which the server gives to the type's input function in either case: ranges, arrays,
    intervals, composites and the application's own types need nothing here. A JSON document is
    unwrapped, not quoted, for a text in a `jsonb` column is a JSON string.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, (float, Decimal)):
        return value if isfinite(value) else str(value)
    if isinstance(value, (Json, Jsonb)):
        return _document(value, adapt, param)
    dumped = adapt.get_dumper(value, PyFormat.TEXT).dump(value)
    return None if dumped is None else bytes(dumped).decode(adapt.encoding)


def _document(value: Json | Jsonb, adapt: Transformer, param: str | None) -> Any:
    dumped = adapt.get_dumper(value, PyFormat.TEXT).dump(value)
    document = json.loads(bytes(dumped or b"null"), parse_float=Decimal)
    if document is None:
        raise InvalidRequest(
            "JSON null cannot be told from SQL NULL in a commit: store SQL NULL", param=param
        )
    return document
