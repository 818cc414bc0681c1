"""The exceptions: one for each code of the server's table, and usable as exceptions are."""

from __future__ import annotations

import pickle
from typing import Any

import psycopg
import pytest

import pyconcord
from pyconcord import errors, schemas
from tests.support import Database


def test_classes_mirror_the_table(db: Database) -> None:
    rows = db.connect().execute("select * from concord_internal.error_codes()").fetchall()
    table = {code: (sqlstate, retryable) for code, sqlstate, retryable, _ in rows}
    classes = {code: (kind.sqlstate, kind.retryable) for code, kind in errors.BY_CODE.items()}
    assert classes.pop("contended") == (None, True)
    assert classes == table


def test_schema_names_every_code() -> None:
    named = schemas.load("error")["properties"]["code"]["enum"]
    assert set(named) == set(errors.BY_CODE) - {"contended"}


def test_every_class_is_exported() -> None:
    for kind in errors.BY_CODE.values():
        assert getattr(pyconcord, kind.__name__) is kind


@pytest.mark.parametrize("code", sorted(set(errors.BY_CODE) - {"contended"}))
def test_every_code_as_an_exception_of_sql(db: Database, code: str) -> None:
    connection = db.connect()
    with pytest.raises(psycopg.Error) as raised:
        connection.execute("select concord_internal.fail(%s, 'a.b')", (code,))
    refusal = errors.from_database(raised.value)
    assert type(refusal) is errors.BY_CODE[code]
    assert (refusal.code, refusal.param) == (code, "a.b")
    assert refusal.retryable is errors.BY_CODE[code].retryable
    assert not refusal.message.startswith(code)
    assert str(refusal) == f"a.b: {refusal.message}"


@pytest.mark.parametrize("detail", ["", "a sentence", "[1]", "3"])
def test_a_foreign_exception_with_our_sqlstate(db: Database, detail: str) -> None:
    block = f"do $$ begin raise 'mine' using errcode = 'KC014', detail = '{detail}'; end $$"
    with pytest.raises(psycopg.Error) as raised:
        db.connect().execute(block.encode())
    refusal = errors.from_database(raised.value)
    assert isinstance(refusal, pyconcord.Forbidden)
    assert refusal.message == "mine"
    assert refusal.param is None


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03"])
def test_contention_is_contended(db: Database, sqlstate: str) -> None:
    with pytest.raises(psycopg.Error) as raised:
        db.connect().execute(
            f"do $$ begin raise 'wait' using errcode = '{sqlstate}'; end $$".encode()
        )
    assert isinstance(errors.from_database(raised.value), pyconcord.Contended)


def test_others_are_not_ours(db: Database) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero) as raised:
        db.connect().execute("select 1/0")
    assert errors.from_database(raised.value) is None


def test_a_code_of_a_newer_server() -> None:
    raised = errors.from_wire({"code": "too_new", "retryable": True, "message": "upgrade"})
    assert type(raised) is pyconcord.ConcordError
    assert (raised.code, raised.retryable, raised.message) == ("too_new", True, "upgrade")


def test_exceptions_travel_between_processes() -> None:
    detail: dict[str, Any] = {
        "code": "stale_context",
        "retryable": False,
        "message": "moved",
        "param": "operations[0]",
        "notifications": [
            {
                "object": "stale_notification",
                "index": 0,
                "model": "slides",
                "id": "7",
                "readAt": "a",
                "observedAt": "b",
                "conflictingFields": ["title"],
                "currentValues": {"title": "theirs"},
                "baseValues": {},
                "proposedValues": {"title": "yours"},
                "writtenBy": {"kind": "user", "id": "u1"},
                "deleted": False,
                "changes": [],
                "changesTruncated": False,
            }
        ],
    }
    raised = errors.from_wire(detail)
    again = pickle.loads(pickle.dumps(raised))
    assert type(again) is pyconcord.StaleContext
    assert str(again) == str(raised)
    assert again.args == raised.args == ("operations[0]: moved",)
    assert again.notifications == raised.notifications
    assert again.notifications[0].written_by == pyconcord.Author("user", "u1")
    assert again.detail == detail
