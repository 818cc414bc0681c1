"""What the client writes as JSON, and what it refuses to."""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
import json
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyconcord import InvalidRequest, Reference
from pyconcord._json import MAX_DEPTH, dumps, key_text, loads


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "null"),
        (True, "true"),
        (2**70, "1180591620717411303424"),
        (Level.HIGH, "3"),
        (0.1, "0.1"),
        (Decimal("1.10"), "1.10"),
        (Decimal("1E+3"), "1E+3"),
        (Decimal("-0.00"), "-0.00"),
        ('a"\\\n\x1fü', '"a\\"\\\\\\n\\u001fü"'),
        (
            dt.datetime(2024, 2, 3, 4, 5, 6, 700, dt.timezone.utc),
            '"2024-02-03T04:05:06.000700+00:00"',
        ),
        (dt.date(2024, 2, 3), '"2024-02-03"'),
        (dt.time(4, 5), '"04:05:00"'),
        (dt.timedelta(days=-1, seconds=5), '"-1 days 5.000000 seconds"'),
        (b"\x00\xff", '"\\\\x00ff"'),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (ipaddress.ip_network("10.0.0.0/8"), '"10.0.0.0/8"'),
        (Reference(2), '{"$operation":2}'),
        ({"a": [1, (2, {})]}, '{"a":[1,[2,{}]]}'),
    ],
)
def test_written(value: object, written: str) -> None:
    assert dumps(value) == written


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"operations": [{}, {"data": {"price": float("nan")}}]}, "operations[1].data.price"),
        ({"a": [float("-inf")]}, "a[0]"),
        ({"a": Decimal("NaN")}, "a"),
        ({"a": Decimal("sNaN")}, "a"),
        ({"a": {1: 2}}, "a"),
        ({"a": {None: 2}}, "a"),
        ({"a": "nul\x00"}, "a"),
        ({"a": "half \ud800"}, "a"),
        ({"a": {"nul\x00": 1}}, "a"),
        ({"a": {1, 2}}, "a"),
        ({"a": object()}, "a"),
    ],
)
def test_refused_with_its_path(value: object, path: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        dumps(value)
    assert refused.value.param == path


def test_depth_is_bounded() -> None:
    with pytest.raises(InvalidRequest, match=f"{MAX_DEPTH} levels"):
        dumps(endless())


def test_fractions_come_back_exact() -> None:
    assert loads('{"a": 0.10, "b": 12345678901234567890, "c": 1e400}') == {
        "a": Decimal("0.10"),
        "b": 12345678901234567890,
        "c": Decimal("1e400"),
    }


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.decimals(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('abcdé"\\ .[', max_size=5), inner),
    max_leaves=20,
)


@given(VALUES)
def test_round_trip(value: object) -> None:
    assert loads(dumps(value)) == value


@given(VALUES)
def test_another_parser_agrees(value: object) -> None:
    assert json.loads(dumps(value), parse_float=Decimal) == value


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("7", "7"),
        (7, "7"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.50"), "1.50"),
        (dt.date(2024, 2, 3), "2024-02-03"),
        (
            {"house": uuid.UUID(int=1), "place": 3},
            '{"house":"00000000-0000-0000-0000-000000000001","place":3}',
        ),
    ],
)
def test_key_text(key: object, text: str) -> None:
    assert key_text(key) == text


@pytest.mark.parametrize("key", [None, True, 1.5, [1], (1,), Reference(0)])
def test_no_key(key: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        key_text(key)
    assert refused.value.param == "id"
