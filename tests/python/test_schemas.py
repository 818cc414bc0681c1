"""The JSON Schemas: valid, strict, and in agreement with what the client sends and receives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import psycopg
import pytest
from jsonschema import Draft202012Validator
from psycopg.types.json import Jsonb

from pyconcord import Reference, _wire, errors, reads, schemas
from pyconcord.receipts import Row
from tests.python.client_deck import VALIDATORS, build, check
from tests.support import Database

TOKEN = "kc1.x"


@pytest.mark.parametrize("name", schemas.names)
def test_valid_and_self_contained(name: str) -> None:
    schema = schemas.load(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    ids = {schema["$id"], *(each.get("$id") for each in schema.get("$defs", {}).values())}
    referred = {each["$ref"] for each in _objects(schema) if "$ref" in each}
    assert {ref for ref in referred if ref.startswith("urn:")} <= ids


@pytest.mark.parametrize("name", schemas.names)
def test_strict_and_described(name: str) -> None:
    for each in _objects(schemas.load(name)):
        if each.get("type") == "object" and "properties" in each:
            # What only chooses between others is as strict as they are.
            chooses = "allOf" in each or "then" in each
            assert chooses or each["additionalProperties"] is False, each
            for key, value in each["properties"].items():
                assert {"description", "const", "$ref", "enum"} & set(value), (key, value)


def test_every_file_is_named() -> None:
    shipped = {each.name for each in files(schemas).iterdir() if each.name.endswith(".json")}
    assert shipped == {f"{name}.schema.json" for name in schemas.names}
    with pytest.raises(KeyError, match="there are request"):
        schemas.load("nothing")


def _objects(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _objects(each)


def _complaints(name: str, value: object) -> list[str]:
    return [error.json_path for error in VALIDATORS[name].iter_errors(value)]


ROW = Row("slides", "7", TOKEN, {"title": "t"})
ABSENT = Row("slides", "8", TOKEN, exists=False)


@pytest.mark.parametrize(
    ("request_", "sent"),
    [
        (
            _wire.request(
                [
                    _wire.update(
                        ROW, None, None, {"title": "x"}, where={"a": None}, on_stale="notify"
                    )
                ],
                reads=[ROW, ABSENT],
                on_stale="reject",
                only_changed=True,
                returning=False,
                idempotency_key="k",
                label=None,
            ),
            {
                "onStale": "reject",
                "onlyChanged": True,
                "idempotencyKey": "k",
                "operations": [
                    {
                        "type": "update",
                        "model": "slides",
                        "id": "7",
                        "data": {"title": "x"},
                        "where": {"a": None},
                        "onStale": "notify",
                        "readAt": TOKEN,
                    }
                ],
                "reads": [
                    {"model": "slides", "id": "7", "readAt": TOKEN},
                    {"model": "slides", "id": "8", "exists": False, "readAt": TOKEN},
                ],
            },
        ),
        (
            _wire.request([_wire.delete("slides", 7, read_at=TOKEN)]),
            {"operations": [{"type": "delete", "model": "slides", "id": "7", "readAt": TOKEN}]},
        ),
        (
            _wire.request([_wire.update(ROW, None, {"where": 1}, {}, read_at="other")]),
            {
                "operations": [
                    {
                        "type": "update",
                        "model": "slides",
                        "id": "7",
                        "data": {"where": 1},
                        "readAt": "other",
                    }
                ]
            },
        ),
        (
            _wire.request(
                [_wire.create("slides", {"a": 1}, None), _wire.create("slides", {}, {"b": 1})],
                reads=[
                    reads.row(ROW, fields=["title"], on_stale="notify"),
                    reads.row("slides", 7, TOKEN),
                    reads.absent("slides", 7, TOKEN),
                    reads.absent(ABSENT),
                    reads.group("deck:1", TOKEN),
                    {"group": "deck:2"},
                ],
            ),
            {
                "operations": [
                    {"type": "create", "model": "slides", "data": {"a": 1}},
                    {"type": "create", "model": "slides", "id": '{"b":1}', "data": {}},
                ],
                "reads": [
                    {
                        "model": "slides",
                        "id": "7",
                        "readAt": TOKEN,
                        "fields": ["title"],
                        "onStale": "notify",
                    },
                    {"model": "slides", "id": "7", "readAt": TOKEN},
                    {"model": "slides", "id": "7", "readAt": TOKEN, "exists": False},
                    {"model": "slides", "id": "8", "readAt": TOKEN, "exists": False},
                    {"group": "deck:1", "readAt": TOKEN},
                    {"group": "deck:2"},
                ],
            },
        ),
    ],
)
def test_requests_as_the_client_makes_them(request_: dict[str, Any], sent: dict[str, Any]) -> None:
    assert request_ == sent
    assert _complaints("request", request_) == []


def test_references_are_ids() -> None:
    operation = _wire.update("decks", Reference(0), {"name": Reference(0)}, {})
    assert operation["id"] == Reference(0)
    reference = {"$operation": 0}
    sent = {"type": "update", "model": "decks", "id": reference, "data": {"name": reference}}
    assert _complaints("request", {"operations": [sent]}) == []


DELETE = {"type": "delete", "model": "slides", "id": 1}
WRONG: list[Any] = [
    None,
    3,
    "operations",
    [],
    [{"operations": []}],
    {},
    {"operations": []},
    {"operations": {}},
    {"operations": [1]},
    {"operations": [None]},
    {"operations": [[]]},
    {"operations": [{}]},
    {"operations": [{"type": "update", "model": "slides", "id": 1, "data": {}}]},
    {"operations": [{"type": "update", "model": "slides", "id": 1, "data": []}]},
    {"operations": [{"type": "update", "model": "slides", "data": {"title": "a"}}]},
    {"operations": [{"type": "create", "model": "slides", "id": []}]},
    {"operations": [{"type": "create", "model": "slides", "data": {}, "where": {}}]},
    {"operations": [{"type": "delete", "model": "slides", "id": True}]},
    {"operations": [{"type": "delete", "model": "slides", "id": 1, "data": {}}]},
    {"operations": [{"type": "delete", "model": "slides", "id": {"$operation": -1}}]},
    {"operations": [{"type": "delete", "model": 3, "id": 1}]},
    {"operations": [{"type": "move", "model": "slides", "id": 1}]},
    {"operations": [{"model": "slides", "id": 1}]},
    {"operations": [{**DELETE, "readAt": 5}]},
    {"operations": [{**DELETE, "onStale": "maybe"}]},
    {"operations": [{**DELETE, "where": []}]},
    {"operations": [{**DELETE, "transactionId": 5}]},
    {"operations": [DELETE], "reads": {}},
    {"operations": [DELETE], "reads": [{"model": "slides"}]},
    {"operations": [DELETE], "reads": [{"group": "a:1", "model": "slides"}]},
    {"operations": [DELETE], "reads": [{"group": "a"}]},
    {"operations": [DELETE], "reads": [{"model": "slides", "id": 1, "fields": []}]},
    {"operations": [DELETE], "reads": [{"model": "slides", "id": 1, "fields": [1]}]},
    {"operations": [DELETE], "reads": [{"model": "slides", "id": 1, "exists": 0}]},
    {
        "operations": [DELETE],
        "reads": [{"model": "slides", "id": 1, "exists": False, "fields": ["title"]}],
    },
    {"operations": [DELETE], "readAt": ["x"]},
    {"operations": [DELETE], "onStale": "maybe"},
    {"operations": [DELETE], "onlyChanged": 1},
    {"operations": [DELETE], "returning": "yes"},
    {"operations": [DELETE], "idempotencyKey": ""},
    {"operations": [DELETE], "idempotencyKey": "k" * 256},
    {"operations": [DELETE], "label": "l" * 1001},
    {"operations": [DELETE], "unknown": 1},
    {"operations": [DELETE] * 10001},
    {"operations": [DELETE], "reads": [{"group": "a:1"}] * 501},
]


def test_schema_and_server_refuse_the_same(db: Database) -> None:
    build(db).close()
    connection = db.connect()
    connection.execute("select concord.act_as('acme', 'user', 'u1', null, false)")
    for request in WRONG:
        assert _complaints("request", request), request
        row = connection.execute("select concord.try_commit(%s)", (Jsonb(request),)).fetchone()
        assert row
        receipt = row[0]
        check("receipt", receipt)
        assert receipt["error"]["code"] == "invalid_request", request


def test_the_feed_as_sql_gives_it(db: Database) -> None:
    raw = build(db)
    [(start,)] = raw.execute("select concord.capture()")
    raw.execute("insert into slides (title) values ('new')")
    raw.execute("update slides set title = 'x' where id = 7")
    raw.execute("delete from slides where id = 8")
    db.connect().execute("truncate seats")
    ops = []
    for (change,) in raw.execute("select to_jsonb(c) from concord.changes(%s) c", (start,)):
        check("change", change)
        ops.append(change["op"])
    assert ops == ["create", "update", "delete", "truncate", "checkpoint"]
    for (change,) in raw.execute("select to_jsonb(c) from concord.history('slides', '8') c"):
        check("change", change)


def test_what_commit_raises_is_what_try_commit_answers(db: Database) -> None:
    raw = build(db)
    raw.execute("select concord.act_as('acme', 'user', 'u1', null, false)")
    [(token,)] = raw.execute("select concord.capture()")
    raw.execute("update slides set title = 'x' where id = 7")
    operation = {"type": "delete", "model": "slides", "id": 7, "readAt": token}
    request = Jsonb({"operations": [operation]})
    [(receipt,)] = raw.execute("select concord.try_commit(%s)", (request,))
    check("receipt", receipt)
    with pytest.raises(psycopg.Error) as raised:
        raw.execute("select concord.commit(%s)", (request,))
    detail = json.loads(raised.value.diag.message_detail or "")
    check("error", detail)
    answered = dict(receipt["error"])
    refusal = errors.from_database(raised.value)
    assert refusal is not None
    assert refusal.message == answered.pop("message")
    for each in (*detail["notifications"], *answered["notifications"]):
        del each["observedAt"]
    assert detail == answered


def test_wrong_receipts() -> None:
    assert _complaints("receipt", {"object": "commit_receipt", "status": "rejected"})
    assert _complaints("receipt", {"object": "commit_receipt", "status": "confirmed"})
    assert _complaints(
        "receipt",
        {
            "object": "commit_receipt",
            "status": "rejected",
            "error": {"code": "stale_context", "retryable": False, "notifications": [{}]},
        },
    )
