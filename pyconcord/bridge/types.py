"""Postgres's types, as the two ORMs have them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..packs.ddl import normal


@dataclass(frozen=True)
class Kind:
    """A type: in Python, in SQLAlchemy (None: what the Python type stands for), in Django."""

    python: str
    sqlalchemy: str | None
    django: str
    options: Mapping[str, str] | None = None


_KINDS = {
    "smallint": Kind("int", "SmallInteger", "SmallIntegerField"),
    "int": Kind("int", None, "IntegerField"),
    "bigint": Kind("int", "BigInteger", "BigIntegerField"),
    "text": Kind("str", "Text", "TextField"),
    "boolean": Kind("bool", None, "BooleanField"),
    "uuid": Kind("uuid.UUID", None, "UUIDField"),
    "timestamptz": Kind("datetime.datetime", "DateTime(timezone=True)", "DateTimeField"),
    "timestamp": Kind("datetime.datetime", "DateTime", "DateTimeField"),
    "date": Kind("datetime.date", None, "DateField"),
    "time": Kind("datetime.time", None, "TimeField"),
    "interval": Kind("datetime.timedelta", None, "DurationField"),
    "real": Kind("float", "postgresql.REAL", "FloatField"),
    "double precision": Kind("float", None, "FloatField"),
    "decimal": Kind("decimal.Decimal", "Numeric", "DecimalField"),
    "json": Kind("Any", "postgresql.JSON", "JSONField"),
    "jsonb": Kind("Any", "postgresql.JSONB", "JSONField"),
    "bytea": Kind("bytes", None, "BinaryField"),
    "inet": Kind("Any", "postgresql.INET", "GenericIPAddressField"),
}


def kind_of(type: str) -> Kind | None:
    """What a type is in the ORMs; None where they have none for it."""
    match = re.fullmatch(r"([a-z ]+?)(?:\((\d+)(?:, (\d+))?\))?((?:\[\])*)", normal(type))
    if match is None:
        return None
    name, first, second, array = match.groups()
    if name in ("varchar", "char") and not array:
        if first is None:
            return _KINDS["text"] if name == "varchar" else None
        made = f"String({first})" if name == "varchar" else f"CHAR({first})"
        return Kind("str", made, "CharField", {"max_length": first})
    if name == "decimal" and first is not None and not array:
        places = second or "0"
        return Kind(
            "decimal.Decimal",
            f"Numeric({first}, {places})",
            "DecimalField",
            {"max_digits": first, "decimal_places": places},
        )
    kind = _KINDS.get(name)
    if array and array != "[]":
        return None
    if array and kind is not None:
        inner = kind.sqlalchemy or _NAMED[kind.python]
        return Kind(
            f"list[{kind.python}]", f"postgresql.ARRAY({inner})", f"ArrayField({kind.django})"
        )
    return kind


# What SQLAlchemy takes a Python type for, where it has to be said.
_NAMED = {
    "int": "Integer",
    "bool": "Boolean",
    "uuid.UUID": "Uuid",
    "datetime.date": "Date",
    "datetime.time": "Time",
    "datetime.timedelta": "Interval",
    "float": "Double",
    "bytes": "LargeBinary",
}
