"""The synchronous client against a real server: each name of the contract, and what it promises."""

from __future__ import annotations

import datetime as dt
import logging
import re
import uuid
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

import pyconcord
from pyconcord import (
    Actor,
    Concord,
    Forbidden,
    Held,
    HeldWritesIgnored,
    StaleContext,
    Unauthenticated,
    events,
    reads,
)
from pyconcord.receipts import Values
from tests.python.client_deck import build, check, check_error, check_receipt
from tests.support import Database


@pytest.fixture
def raw(db: Database) -> psycopg.Connection[Any]:
    return build(db)


@pytest.fixture
def told() -> list[events.Event]:
    return []


@pytest.fixture
def concord(db: Database, raw: object, told: list[events.Event]) -> Iterator[Concord]:
    with pyconcord.connect(
        db.dsn("app"), tenant="acme", on_event=told.append, max_size=4
    ) as client:
        yield client


@pytest.fixture
def me(concord: Concord) -> Iterator[Actor]:
    with concord.acting(agent="writer", on_behalf_of="u9") as actor:
        yield actor


def title(raw: psycopg.Connection[Any], id: int = 7) -> Any:
    found = raw.execute("select title from slides where id = %s", (id,)).fetchone()
    return found and found[0]


def theirs(raw: psycopg.Connection[Any], value: str = "theirs", id: int = 7) -> None:
    raw.execute("update slides set title = %s where id = %s", (value, id))


def held_write(me: Actor, raw: psycopg.Connection[Any], proposed: str = "mine") -> Held:
    slide = me.read("slides", 7)
    theirs(raw)
    [held] = me.update(slide, title=proposed, on_stale="notify").held
    return held


# Reading


def test_a_row_remembers_its_token(me: Actor) -> None:
    slide = me.read("slides", 7)
    assert (slide.model, slide.id, slide.exists) == ("slides", "7", True)
    assert slide.read_at.startswith("kc1.")
    assert slide["title"] == "title 7"
    assert slide["price"] == Decimal("7.5000")
    assert str(slide["price"]) == "7.5000"
    assert set(slide) == {
        *("id", "deck_id", "title", "body", "price", "meta", "secret", "due", "position")
    }
    assert me.read(slide) == slide
    with pytest.raises(AttributeError):
        slide.read_at = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        slide["title"] = "other"  # type: ignore[index]


def test_an_absent_row_is_false_and_keeps_its_token(me: Actor) -> None:
    nothing = me.read("slides", 404)
    assert not nothing
    assert not nothing.exists
    assert nothing.read_at.startswith("kc1.")
    with pytest.raises(KeyError, match="there is no row 404 of slides"):
        nothing["title"]


def test_composite_keys(me: Actor) -> None:
    key = {"place": 3, "house": uuid.UUID(int=5)}
    made = me.create("seats", {**key, "guest": "Ada"}, returning=True)
    seat = me.read("seats", key)
    assert seat["guest"] == "Ada"
    assert check_receipt(me.update(("seats", key), guest="Grace")).landed
    assert check_receipt(me.update("seats", made.operations[0].id, guest="Edsger")).landed
    assert me.read("seats", key)["guest"] == "Edsger"


def test_a_reading_has_one_token_captured_first(
    me: Actor, concord: Concord, raw: psycopg.Connection[Any]
) -> None:
    with me.reading() as read:
        theirs(raw)
        slide = read.read("slides", 7)
        other = me.read("slides", 8)
        assert slide.read_at == other.read_at == read.token
    assert slide["title"] == "theirs"
    # The token was there before the change: that the row shows it does not matter.
    with pytest.raises(StaleContext):
        me.update(slide, title="mine")
    assert me.read("slides", 8).read_at != read.token
    with concord.reading() as read:
        assert concord.read("slides", 7).read_at == read.token


def test_readings_may_overlap(me: Actor) -> None:
    outer, inner = me.reading(), me.reading()
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None)
    assert me.read("slides", 7).read_at == inner.token
    inner.__exit__(None)
    with me.reading() as later:
        assert me.read("slides", 7).read_at == later.token


def test_capture_guards_what_is_read_otherwise(me: Actor, raw: psycopg.Connection[Any]) -> None:
    token = me.capture()
    theirs(raw)
    with pytest.raises(StaleContext):
        me.update("slides", 7, title="mine", read_at=token)
    assert me.update("slides", 7, title="mine", read_at=me.capture()).landed


# Writing


def test_an_update_lands(me: Actor, raw: psycopg.Connection[Any]) -> None:
    slide = me.read("slides", 7)
    receipt = check_receipt(me.update(slide, title="better", label="polish", returning=True))
    assert title(raw) == "better"
    assert receipt.landed
    assert receipt.held == ()
    assert (receipt.status, receipt.applied, receipt.unchanged) == ("confirmed", 1, 0)
    assert (receipt.durable, receipt.replayed) == (True, False)
    assert receipt.sync_id is not None
    [outcome] = receipt.operations
    assert (outcome.outcome, outcome.model, outcome.id) == ("applied", "slides", "7")
    again = receipt.row()
    assert (again.model, again.id, again["title"]) == ("slides", "7", "better")
    assert again.read_at == receipt.read_at
    assert me.update(again, title="best").landed
    with pytest.raises(LookupError, match="returning=True"):
        me.update(slide.at(me.capture()), title="x").row()


def test_an_own_write_is_stale_until_its_receipt_is_used(me: Actor) -> None:
    slide = me.read("slides", 7)
    receipt = me.update(slide, title="one")
    with pytest.raises(StaleContext):
        me.update(slide, title="two")
    assert me.update(slide.at(receipt.read_at), title="two").landed


def test_other_fields_do_not_conflict(me: Actor, raw: psycopg.Connection[Any]) -> None:
    slide = me.read("slides", 7)
    theirs(raw)
    assert me.update(slide, body="mine").landed


def test_values_arrive_as_postgres_would_take_them(me: Actor, raw: psycopg.Connection[Any]) -> None:
    due = dt.datetime(2024, 2, 3, 4, 5, 6, 700, dt.timezone.utc)
    big = 2**70
    me.update(
        "slides",
        7,
        data={"price": Decimal("1.2500"), "due": due, "meta": {"n": big, "d": Decimal("0.10")}},
    )
    found = raw.execute("select price, due, meta::text from slides where id = 7").fetchone()
    assert found == (Decimal("1.2500"), due, f'{{"d": 0.10, "n": {big}}}')
    assert me.read("slides", 7)["meta"] == {"n": big, "d": Decimal("0.10")}


def test_create_and_delete(me: Actor, raw: psycopg.Connection[Any]) -> None:
    made = check_receipt(me.create("slides", {"title": "new", "deck_id": 1}))
    id = made.operations[0].id
    assert id is not None
    assert check_receipt(me.create("slides", {"title": "given"}, id=77)).operations[0].id == "77"
    assert title(raw, 77) == "given"
    with pytest.raises(pyconcord.AlreadyExists) as refused:
        me.create("slides", {"title": "again"}, id=77)
    check_error(refused.value)
    slide = me.read("slides", id)
    theirs(raw, id=int(id))
    with pytest.raises(StaleContext):
        me.delete(slide)
    assert check_receipt(me.delete("slides", id)).landed
    assert not me.read("slides", id)
    with pytest.raises(pyconcord.NotFound):
        me.update("slides", id, title="x")


def test_where_and_unchanged(me: Actor) -> None:
    with pytest.raises(pyconcord.PreconditionFailed):
        me.update("slides", 7, title="x", where={"body": "other"})
    assert me.update("slides", 7, title="x", where={"body": "body 7", "meta": None}).landed
    slide = me.read("slides", 7)
    same = check_receipt(me.update(slide, title="x", body="body 7", only_changed=True))
    assert (same.applied, same.unchanged) == (0, 1)
    assert same.sync_id is None


def test_idempotency(me: Actor, raw: psycopg.Connection[Any]) -> None:
    first = me.update("slides", 7, title="once", idempotency_key="k1")
    theirs(raw)
    again = check_receipt(me.update("slides", 7, title="once", idempotency_key="k1"))
    assert again.replayed
    assert again.id == first.id
    assert title(raw) == "theirs"
    with pytest.raises(pyconcord.IdempotencyMismatch):
        me.update("slides", 7, title="twice", idempotency_key="k1")


def test_an_idempotency_key_in_flight(db: Database, me: Actor) -> None:
    with db.connect("app", autocommit=False) as connection:
        other = Concord.on(connection, tenant="acme").acting(agent="writer")
        other.update("slides", 8, title="first", idempotency_key="k1")
        with pytest.raises(pyconcord.IdempotencyInProgress) as refused:
            me.update("slides", 8, title="first", idempotency_key="k1")
        assert refused.value.retryable
        connection.rollback()
    assert not me.update("slides", 8, title="first", idempotency_key="k1").replayed


def test_commit_takes_the_contract_s_own_words(me: Actor) -> None:
    request = {
        "readAt": me.capture(),
        "operations": [
            {
                "type": "update",
                "model": "slides",
                "id": 7,
                "data": {"title": "a"},
                "transactionId": "t",
            },
            {"type": "delete", "model": "slides", "id": "8"},
        ],
        "reads": [{"group": "deck:1"}],
    }
    check("request", request)
    receipt = check_receipt(me.commit(request))
    assert receipt.applied == 2
    assert receipt.operations[0].transaction_id == "t"


# Refusals


def test_stale_is_raised_with_what_moved(
    me: Actor, concord: Concord, raw: psycopg.Connection[Any]
) -> None:
    slide = me.read("slides", 7)
    with concord.acting(user="u1") as other:
        other.update("slides", 7, title="theirs", label="rename")
    with pytest.raises(StaleContext) as refused:
        me.update(slide, title="mine")
    check_error(refused.value)
    assert (refused.value.code, refused.value.retryable) == ("stale_context", False)
    [moved] = refused.value.notifications
    assert (moved.index, moved.read, moved.group) == (0, None, None)
    assert (moved.model, moved.id, moved.read_at) == ("slides", "7", slide.read_at)
    assert moved.conflicting_fields == ("title",)
    assert moved.base_values == {"title": "title 7"}
    assert moved.current_values == {"title": "theirs"}
    assert moved.proposed_values == {"title": "mine"}
    assert (moved.base, moved.current) == (moved.base_values, moved.current_values)
    assert moved.proposed == moved.proposed_values
    told = "slides 7: title changed since it was read, by user u1"
    assert str(refused.value) == f"{told}: read again, or resolve"
    assert moved.written_by == pyconcord.Author("user", "u1")
    assert not moved.deleted
    assert not moved.changes_truncated
    [change] = moved.changes
    assert (change.fields, change.by, change.label) == (("title",), moved.written_by, "rename")
    assert change.at.tzinfo is not None
    assert title(raw) == "theirs"
    assert me.update(slide, title="mine", read_at=moved.observed_at).landed


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"operations": []}, "operations"),
        (
            {"operations": [{"type": "update", "model": "slides", "id": 7, "data": {}}]},
            "operations[0].data",
        ),
        ({"operations": [{"type": "move", "model": "slides", "id": 7}]}, "operations[0].type"),
        ({"operations": [{"type": "delete", "model": "slides", "id": 7}], "colour": 1}, "colour"),
        (
            {
                "operations": [
                    {"type": "update", "model": "slides", "id": 7, "data": {"price": "dear"}}
                ]
            },
            "operations[0].data.price",
        ),
        (
            {
                "operations": [
                    {"type": "update", "model": "slides", "id": 7, "data": {"price": float("nan")}}
                ]
            },
            "operations[0].data.price",
        ),
    ],
)
def test_bad_requests_name_their_place(me: Actor, request_: Values, param: str) -> None:
    with pytest.raises(pyconcord.InvalidRequest) as refused:
        me.commit(request_)
    assert refused.value.param == param
    assert me.update("slides", 7, title="next").landed


def test_refusals_of_other_functions_are_the_same_classes(me: Actor) -> None:
    with pytest.raises(pyconcord.ModelUnknown) as refused:
        me.read("nothing", 1)
    assert refused.value.code == "model_unknown"
    assert isinstance(refused.value.__cause__, psycopg.Error)
    with pytest.raises(pyconcord.ModelUnknown):
        me.history("nothing", 1)
    with pytest.raises(pyconcord.TokenInvalid):
        list(me.changes("kc1.nonsense"))
    assert me.read("slides", 7)


def test_a_message_names_its_place_once(me: Actor) -> None:
    with pytest.raises(pyconcord.InvalidRequest) as refused:
        me.commit({"operations": [{"type": "delete", "model": "slides", "id": 1, "data": {}}]})
    assert str(refused.value).count("operations[0].data") == 1


def test_a_principal_that_cannot_be(concord: Concord) -> None:
    for wrong in ("a\x1fb", "x" * 256):
        with pytest.raises(pyconcord.InvalidRequest) as refused:
            concord.acting(user=wrong).read("slides", 7)
        assert refused.value.param == "id"
    assert concord.read("slides", 7)


def test_constraints_pass_through(me: Actor) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        me.update("slides", 7, position=-1)
    assert me.update("slides", 7, position=1).landed


def test_who_may_act(db: Database, raw: object, concord: Concord) -> None:
    with pytest.raises(pyconcord.InvalidRequest):
        concord.acting()
    with pytest.raises(pyconcord.InvalidRequest):
        concord.acting(user="a", agent="b")
    with pytest.raises(pyconcord.InvalidRequest):
        concord.acting(user="")
    with pytest.raises(pyconcord.InvalidRequest, match="tenant"):
        Concord.on(db.connect("app")).acting(user="u1")
    untrusted = Concord.on(db.connect("app2"), tenant="acme").acting(user="u1")
    remedy = "grant concord_service to app2; select concord.trust_login('app2');"
    with pytest.raises(pyconcord.Forbidden, match=re.escape(remedy)):
        untrusted.update("slides", 7, title="x")
    stranger = Concord.on(db.connect("plain"))
    with pytest.raises(pyconcord.Forbidden, match=r"function capture: .* concord_app to plain;"):
        stranger.capture()
    # What the application's own tables refuse is Postgres's to say.
    raw_table = "create table decks_of_others (id int primary key)"
    db.connect("owner").execute(f"{raw_table}; select concord.track('decks_of_others')".encode())
    with concord.acting(user=7) as me, pytest.raises(psycopg.errors.InsufficientPrivilege):
        me.create("decks_of_others", {"id": 1})
    with concord.acting(user=7, tenant="umbra") as me:
        assert me.principal == pyconcord.Principal("umbra", "user", "7")


# Held writes


def test_held_writes_are_told(me: Actor, raw: psycopg.Connection[Any]) -> None:
    slide = me.read("slides", 7)
    theirs(raw)
    receipt = check_receipt(me.update(slide, title="mine", on_stale="notify"))
    assert not receipt.landed
    assert receipt.ignored
    [held] = receipt.held
    assert not receipt.ignored
    assert (held.model, held.id, held.index) == ("slides", "7", 0)
    assert held.base == {"title": "title 7"}
    assert held.current == {"title": "theirs"}
    assert held.proposed == {"title": "mine"}
    assert held.notification == receipt.notifications[0]
    assert title(raw) == "theirs"


def test_ignoring_held_writes_warns(concord: Concord, raw: psycopg.Connection[Any]) -> None:
    def hasty() -> None:
        with concord.acting(agent="hasty") as me:
            slide = me.read("slides", 7)
            theirs(raw)
            me.update(slide, title="mine", on_stale="notify")

    with pytest.warns(HeldWritesIgnored, match="receipt.held") as caught:
        hasty()
    assert caught[0].filename == __file__


def test_no_warning_when_looked_at_or_when_failing(
    concord: Concord, raw: psycopg.Connection[Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with concord.acting(agent="careful") as me:
            slide = me.read("slides", 7)
            theirs(raw)
            assert me.update(slide, title="mine", on_stale="notify").held
            assert me.update(slide, title="theirs", on_stale="notify").landed
        with suppress(ZeroDivisionError), concord.acting(agent="failing") as me:
            me.update(slide, title="mine", on_stale="notify")
            raise ZeroDivisionError


def test_resolve_merges(me: Actor, raw: psycopg.Connection[Any]) -> None:
    asked = []

    def merge(base: Values, current: Values | None, proposed: Values) -> Values:
        asked.append((base, current, proposed))
        return {"title": f"{current and current['title']} + {proposed['title']}"}

    receipt = me.resolve(held_write(me, raw), merge)
    assert receipt is not None
    assert check_receipt(receipt).landed
    assert asked == [({"title": "title 7"}, {"title": "theirs"}, {"title": "mine"})]
    assert title(raw) == "theirs + mine"


def test_resolve_asks_again_when_the_row_moves_again(
    me: Actor, raw: psycopg.Connection[Any]
) -> None:
    seen = []

    def merge(base: Values, current: Values | None, proposed: Values) -> Values:
        assert current is not None
        seen.append(current["title"])
        if len(seen) < 3:
            theirs(raw, f"theirs {len(seen)}")
        return {"title": f"{current['title']} + {proposed['title']}"}

    assert me.resolve(held_write(me, raw), merge)
    assert seen == ["theirs", "theirs 1", "theirs 2"]
    assert title(raw) == "theirs 2 + mine"


def test_resolve_is_bounded(me: Actor, raw: psycopg.Connection[Any]) -> None:
    asked = 0

    def restless(base: Values, current: Values | None, proposed: Values) -> Values:
        nonlocal asked
        asked += 1
        theirs(raw, f"theirs {asked}")
        return proposed

    with pytest.raises(StaleContext) as raised:
        me.resolve(held_write(me, raw), restless, rounds=3)
    assert asked == 3
    assert raised.value.notifications[0].current_values == {"title": "theirs 3"}
    assert title(raw) == "theirs 3"
    with pytest.raises(pyconcord.InvalidRequest):
        me.resolve(held_write(me, raw), restless, rounds=0)


def test_resolve_may_let_theirs_stand(me: Actor, raw: psycopg.Connection[Any]) -> None:
    held = held_write(me, raw)
    assert me.resolve(held, lambda base, current, proposed: None) is None
    assert me.resolve(held, lambda base, current, proposed: {}) is None
    assert title(raw) == "theirs"


def test_resolve_keeps_where(me: Actor, raw: psycopg.Connection[Any]) -> None:
    slide = me.read("slides", 7)
    theirs(raw)
    [held] = me.update(slide, title="mine", on_stale="notify", where={"body": "body 7"}).held
    raw.execute("update slides set body = 'moved' where id = 7")
    with pytest.raises(pyconcord.PreconditionFailed):
        me.resolve(held, lambda base, current, proposed: proposed)


def test_resolve_a_held_delete(me: Actor, raw: psycopg.Connection[Any]) -> None:
    choices: list[tuple[Values, str | None]] = [({"title": "kept"}, "kept"), ({}, None)]
    for merged, left in choices:

        def merge(
            base: Values, current: Values | None, proposed: Values, it: Values = merged
        ) -> Values:
            return it

        slide = me.read("slides", 7)
        theirs(raw)
        [held] = check_receipt(me.delete(slide, on_stale="notify")).held
        assert held.proposed == {}
        assert me.resolve(held, merge)
        assert title(raw) == left


def test_resolve_of_a_row_that_is_gone(me: Actor, raw: psycopg.Connection[Any]) -> None:
    slide = me.read("slides", 7)
    raw.execute("delete from slides where id = 7")
    [held] = check_receipt(me.update(slide, title="mine", on_stale="notify")).held
    assert held.notification is not None
    assert held.notification.deleted
    assert held.current is None
    assert me.resolve(held, lambda base, current, proposed: None) is None
    with pytest.raises(pyconcord.NotFound):
        me.resolve(held, lambda base, current, proposed: proposed)


def test_resolve_what_a_premise_held(me: Actor, raw: psycopg.Connection[Any]) -> None:
    deck, slide = me.read("decks", 1), me.read("slides", 7)
    raw.execute("update decks set name = 'moved' where id = 1")
    premise = reads.row(deck, on_stale="notify")
    receipt = check_receipt(me.update(slide, title="mine", reads=[premise]))
    [held] = receipt.held
    assert held.notification is None
    assert [(each.read, each.model) for each in held.notifications] == [(0, "decks")]
    asked = []

    def merge(base: Values, current: Values | None, proposed: Values) -> Values:
        asked.append((base, current, proposed))
        if len(asked) == 1:
            raw.execute("update decks set name = 'moved again' where id = 1")
        return proposed

    assert me.resolve(held, merge)
    assert asked == [({}, {"title": "title 7"}, {"title": "mine"})] * 2
    assert title(raw) == "mine"


def test_resolve_rests_on_every_premise_of_the_commit(
    me: Actor, raw: psycopg.Connection[Any]
) -> None:
    """A premise that held at first, and moves while somebody merges, is not forgotten."""
    slide, deck, other = me.read("slides", 1), me.read("decks", 1), me.read("slides", 2)
    raw.execute("update slides set title = 'theirs' where id = 1")
    receipt = me.update(slide, title="mine", reads=[deck, other], on_stale="notify")
    [held] = receipt.held
    seen: list[Any] = []

    def merge(base: Any, current: Any, proposed: Any) -> dict[str, Any]:
        if not seen:
            raw.execute("update slides set body = 'moved' where id = 2")
        seen.append(current)
        return {"title": f"{current['title']} and {proposed['title']}"}

    assert me.resolve(held, merge, rounds=2) is not None
    assert len(seen) == 2


def test_resolve_a_create_that_a_premise_held(me: Actor, raw: psycopg.Connection[Any]) -> None:
    deck = me.read("decks", 1)
    raw.execute("update decks set name = 'moved' where id = 1")
    made = me.create("slides", {"title": "new"}, id=99, reads=[deck], on_stale="notify")
    [held] = check_receipt(made).held
    assert (held.current, held.proposed) == (None, {"title": "new"})
    assert me.resolve(held, lambda base, current, proposed: {**proposed, "body": "b"})
    assert title(raw, 99) == "new"


# Batches and premises


def test_a_batch_commits_together(me: Actor, raw: psycopg.Connection[Any]) -> None:
    slide, deck = me.read("slides", 7), me.read("decks", 1)
    with me.batch(reads=[deck], label="split", returning=True) as batch:
        made = batch.create("decks", {"name": "new"}, transaction_id="t0")
        batch.update(slide, deck_id=made)
        batch.create("slides", {"deck_id": made, "title": "first"})
        batch.delete("slides", 8, read_at=deck.read_at)
        batch.update("decks", made, name="newer")
        with pytest.raises(RuntimeError, match="when its block is left"):
            _ = batch.receipt
    receipt = check_receipt(batch.receipt)
    assert receipt.applied == 5
    id = receipt.operations[0].id
    assert receipt.operations[0].transaction_id == "t0"
    assert receipt.operations[4].id == id
    assert str(receipt.row(1)["deck_id"]) == str(receipt.row(2)["deck_id"]) == id
    assert receipt.row(4)["name"] == "newer"
    assert title(raw, 8) is None


def test_a_batch_that_fails_sends_nothing(me: Actor, raw: psycopg.Connection[Any]) -> None:
    with suppress(ZeroDivisionError), me.batch() as batch:
        batch.update("slides", 7, title="x")
        raise ZeroDivisionError
    assert title(raw) == "title 7"
    with pytest.raises(pyconcord.InvalidRequest), me.batch():
        pass


def test_one_stale_operation_refuses_or_is_held(me: Actor, raw: psycopg.Connection[Any]) -> None:
    slide = me.read("slides", 7)
    theirs(raw)
    batch = me.batch()
    batch.update("slides", 8, title="mine")
    batch.update(slide, title="mine")
    with pytest.raises(StaleContext), batch:
        pass
    assert title(raw, 8) == "title 8"
    with me.batch() as batch:
        batch.update("slides", 8, title="mine")
        batch.update(slide, title="mine", on_stale="notify")
    assert [each.outcome for each in check_receipt(batch.receipt).operations] == ["applied", "held"]
    [held] = batch.receipt.held
    assert held.index == 1
    asked = []

    def merge(base: Values, current: Values | None, proposed: Values) -> Values:
        asked.append(current)
        if len(asked) == 1:
            theirs(raw, "again")
        return proposed

    # The mode that held it is not the mode to resolve it under: that it moved again is heard.
    receipt = me.resolve(held, merge)
    assert receipt is not None
    assert receipt.landed
    assert asked == [{"title": "theirs"}, {"title": "again"}]
    assert (title(raw, 7), title(raw, 8)) == ("mine", "mine")


def test_premises(me: Actor, raw: psycopg.Connection[Any]) -> None:
    with me.reading() as read:
        slide, nothing = read.read("slides", 7), read.read("slides", 404)
    raw.execute("update slides set body = 'moved' where id = 7")

    def write(*premises: reads.Premise) -> pyconcord.Receipt:
        return check_receipt(me.update("slides", 1, title="decided", reads=premises))

    assert write(reads.row(slide, fields=["title"])).landed
    assert write(reads.row("slides", 6, read.token)).landed
    assert write(reads.absent("slides", 405, read.token), nothing).landed
    assert write(reads.group("deck:2", read.token)).landed
    assert write({"model": "slides", "id": "6", "readAt": read.token}).landed
    assert write(reads.row(slide, on_stale="overwrite")).landed
    for premise in (
        slide,
        reads.row(slide, fields=["body", "title"]),
        reads.group("deck:1", read.token),
        reads.absent("slides", 7, read.token),
    ):
        with pytest.raises(StaleContext) as refused:
            write(premise)
        check_error(refused.value)
        assert refused.value.notifications[0].read == 0
    raw.execute("insert into slides (id, title) values (404, 'now')")
    with pytest.raises(StaleContext):
        write(nothing)
    with me.batch() as batch:
        batch.update("slides", 1, title="again")
        batch.reads.append(reads.row("slides", 6, read.token))
    assert batch.receipt.landed


def test_write_skew_is_refused(concord: Concord, raw: psycopg.Connection[Any]) -> None:
    raw.execute("update slides set position = 1 where id in (1, 2)")
    with concord.acting(agent="a") as a, concord.acting(agent="b") as b:
        with a.reading() as at_a:
            mine, other = at_a.read("slides", 1), at_a.read("slides", 2)
        with b.reading() as at_b:
            b_mine, b_other = at_b.read("slides", 2), at_b.read("slides", 1)
        assert other["position"] == b_other["position"] == 1
        assert a.update(mine, position=0, reads=[other]).landed
        with pytest.raises(StaleContext):
            b.update(b_mine, position=0, reads=[b_other])


# The log


def test_history(me: Actor, concord: Concord, raw: psycopg.Connection[Any]) -> None:
    receipt = me.update("slides", 7, title="one", price=Decimal("2.5"), label="polish")
    theirs(raw)
    newest, older = me.history("slides", 7)
    for change in (newest, older):
        check("change", change.raw)
    assert (older.op, older.model, older.id) == ("update", "slides", "7")
    assert set(older.fields or ()) == {"title", "price"}
    assert older.before == {"title": "title 7", "price": Decimal("7.5000")}
    assert (older.kind, older.actor, older.on_behalf_of) == ("agent", "writer", "u9")
    assert (older.label, str(older.commit_id)) == ("polish", receipt.id)
    assert older.groups == ("deck:1",)
    assert older.at.tzinfo is not None
    assert newest.before == {"title": "one"}
    assert newest.commit_id is None
    assert [change.sync_id for change in concord.history("slides", 7, 1)] == [newest.sync_id]
    assert len(me.history(me.read("slides", 7))) == 2


def test_changes_come_once_each(me: Actor, concord: Concord, raw: psycopg.Connection[Any]) -> None:
    start = me.capture()
    for n in range(5):
        theirs(raw, f"theirs {n}")
    feed = concord.changes(start, max=2)
    first = list(feed)
    assert [change.before for change in first] == [
        {"title": value} for value in ("title 7", *(f"theirs {n}" for n in range(4)))
    ]
    for change in first:
        check("change", change.raw)
    assert list(feed) == []
    theirs(raw, "last")
    assert [change.before for change in concord.changes(feed.next_token)] == [{"title": "theirs 4"}]
    assert [change.before for change in feed] == [{"title": "theirs 4"}]
    assert next(iter(concord.changes(first[3].next_token))) == first[4]


def test_a_feed_that_is_left_goes_on_where_it_was(
    concord: Concord, raw: psycopg.Connection[Any]
) -> None:
    start = concord.capture()
    for n in range(5):
        theirs(raw, f"theirs {n}")
    whole = [change.sync_id for change in concord.changes(start)]
    feed = concord.changes(start, max=3)
    taken = []
    for change in feed:
        taken.append(change.sync_id)
        if len(taken) == 2:
            break
    assert taken + [change.sync_id for change in feed] == whole
    pages = concord.changes(start, max=3)
    paged = [[change.sync_id for change in page] for page in iter(pages.next_page, [])]
    assert len(paged) > 1
    assert [id for page in paged for id in page] == whole


# Joining a transaction


def test_joined_writes_are_the_caller_s_to_commit(
    db: Database, raw: psycopg.Connection[Any]
) -> None:
    with db.connect("app", autocommit=False) as connection:
        me = Concord.on(connection, tenant="acme").acting(user="u1")
        slide = me.read("slides", 7)
        assert connection.info.transaction_status == TransactionStatus.INTRANS
        connection.execute("update slides set body = 'raw' where id = 7")
        receipt = check_receipt(me.update(slide, title="joined"))
        assert receipt.durable is False
        assert title(raw) == "title 7"
        with pytest.raises(pyconcord.NotFound):
            me.update("slides", 404, title="x")
        assert connection.info.transaction_status == TransactionStatus.INTRANS
        connection.rollback()
        assert title(raw) == "title 7"
        me.update("slides", 7, title="joined")
        connection.execute("update slides set body = 'raw' where id = 8")
        connection.commit()
    assert title(raw) == "joined"
    [change] = Concord.on(raw, tenant="acme").history("slides", 8)
    assert (change.kind, change.actor, change.commit_id) == ("user", "u1", None)


def test_identity_ends_with_the_transaction(db: Database, raw: psycopg.Connection[Any]) -> None:
    with db.connect("app", autocommit=False) as connection:
        Concord.on(connection, tenant="acme").acting(user="u1").update("slides", 7, title="joined")
        connection.commit()
        connection.execute("update slides set body = 'raw' where id = 7")
        connection.commit()
    newest, older = Concord.on(raw, tenant="acme").history("slides", 7)
    assert (older.kind, older.actor) == ("user", "u1")
    assert (newest.kind, newest.actor) == ("system", "app")


def test_autocommit_gives_nothing_to_join(db: Database, raw: psycopg.Connection[Any]) -> None:
    connection = db.connect("app")
    me = Concord.on(connection, tenant="acme").acting(user="u1")
    assert me.update("slides", 7, title="own").durable is True
    assert title(raw) == "own"
    with pytest.raises(psycopg.errors.CheckViolation):
        me.update("slides", 7, position=-1)
    assert connection.info.transaction_status == TransactionStatus.IDLE
    with connection.transaction(force_rollback=True):
        assert me.update("slides", 7, title="joined").durable is False
    assert title(raw) == "own"
    with connection.pipeline():
        assert me.update("slides", 7, title="pipelined").landed
    assert title(raw) == "pipelined"


def test_a_refusal_of_the_isolation_level(db: Database, raw: psycopg.Connection[Any]) -> None:
    with db.connect("app", autocommit=False) as connection:
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        me = Concord.on(connection, tenant="acme").acting(user="u1")
        with pytest.raises(pyconcord.InvalidRequest):
            me.update("slides", 7, title="x")
        assert connection.info.transaction_status == TransactionStatus.INTRANS
        connection.rollback()


def test_a_connection_s_own_adapters_do_not_matter(
    db: Database, raw: psycopg.Connection[Any]
) -> None:
    connection = db.connect("app", row_factory=dict_row)
    set_json_loads(lambda text: "not parsed", connection)
    me = Concord.on(connection, tenant="acme").acting(user="u1")
    slide = me.read("slides", 7)
    assert slide["price"] == Decimal("7.5")
    assert me.update(slide, title="x").landed
    assert me.history(slide)[0].before == {"title": "title 7"}


def test_closing_leaves_a_joined_connection_open(db: Database, raw: object) -> None:
    connection = db.connect("app")
    with Concord.on(connection, tenant="acme") as concord:
        assert concord.read("slides", 7)
    assert not connection.closed


# The connection


def test_identity_costs_no_round_trip(db: Database, raw: object, tmp_path: Path) -> None:
    connection = db.connect("app")
    me = Concord.on(connection, tenant="acme").acting(user="u1")
    joined = db.connect("app", autocommit=False)
    us = Concord.on(joined, tenant="acme").acting(user="u1")
    us.read("slides", 7)
    for actor, link in ((me, connection), (us, joined)):
        with (tmp_path / "trace").open("w+") as trace:
            link.pgconn.trace(trace.fileno())
            actor.update("slides", 8, title="x")
            link.pgconn.untrace()
            trace.seek(0)
            sent = [line.split("\t")[1:4] for line in trace]
        # One Sync and one ReadyForQuery: everything else went with them.
        assert [kind for way, _, kind in (s for s in sent if len(s) == 3) if way == "F"].count(
            "Sync\n"
        ) == 1
    joined.rollback()


def test_any_default_isolation_will_do(db: Database, raw: object) -> None:
    with db.connect() as connection:
        connection.execute("alter role app set default_transaction_isolation = 'serializable'")
    try:
        with pyconcord.connect(db.dsn("app"), tenant="acme") as concord:
            assert concord.acting(user="u1").update("slides", 7, title="x").landed
    finally:
        db.connect().execute("alter role app reset default_transaction_isolation")


def test_connect_says_at_once_what_is_wrong(
    db: Database, raw: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(psycopg.OperationalError, match="no_such_database"):
        pyconcord.connect(db.dsn("app"), kwargs={"dbname": "no_such_database"})
    monkeypatch.setenv("DATABASE_URL", db.dsn("app"))
    with pyconcord.connect(tenant="acme") as concord:
        assert concord.read("slides", 7)


def test_contention_is_retried_and_bounded(
    db: Database, raw: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    db.connect().execute("select concord.configure('lock_timeout', '10 ms')")
    told: list[events.Event] = []
    raw.execute("begin")
    theirs(raw)

    def give_way(event: events.Event) -> None:
        told.append(event)
        if isinstance(event, events.ContendedEvent) and event.attempt == 2:
            raw.execute("commit")

    caplog.set_level(logging.INFO, "pyconcord")
    with pyconcord.connect(db.dsn("app"), tenant="acme", on_event=give_way) as concord:
        assert concord.acting(user="u1").update("slides", 7, title="mine").landed
    assert [event.name for event in told] == ["contended", "contended", "commit"]
    assert sum("contended" in record.getMessage() for record in caplog.records) == 2
    raw.execute("begin")
    theirs(raw)
    told.clear()
    with pyconcord.connect(db.dsn("app"), "acme", on_event=told.append, attempts=2) as concord:
        mine = concord.acting(user="u1")
        with pytest.raises(pyconcord.Contended) as raised:
            mine.update("slides", 7, title="mine")
    assert raised.value.retryable
    assert isinstance(raised.value.__cause__, psycopg.errors.LockNotAvailable)
    first, last = told
    assert isinstance(first, events.ContendedEvent)
    assert isinstance(last, events.ContendedEvent)
    assert (first.sqlstate, first.attempt, first.delay is not None) == ("55P03", 1, True)
    assert (last.attempt, last.delay) == (2, None)
    with db.connect("app", autocommit=False) as connection:
        told.clear()
        joined = Concord.on(connection, tenant="acme", on_event=told.append)
        with pytest.raises(pyconcord.Contended):
            joined.acting(user="u1").update("slides", 7, title="mine")
        assert len(told) == 1
        connection.rollback()
    raw.execute("rollback")


def test_threads_share_a_client(concord: Concord) -> None:
    def write(n: int) -> bool:
        with concord.acting(agent=f"a{n}") as actor:
            return actor.update(actor.read("slides", n), title=f"by {n}").landed

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(write, range(1, 10)))
    for n in range(1, 10):
        assert [change.actor for change in concord.history("slides", n)] == [f"a{n}"]


def test_events_and_log(
    me: Actor,
    told: list[events.Event],
    raw: psycopg.Connection[Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    slide = me.read("slides", 7)
    theirs(raw)
    with caplog.at_level(logging.DEBUG, "pyconcord"):
        receipt = me.update(slide, title="mine", on_stale="notify")
        with pytest.raises(StaleContext):
            me.update(slide, title="mine")
    confirmed, notified, rejected = told
    assert isinstance(confirmed, events.CommitEvent)
    assert (confirmed.status, confirmed.code, confirmed.receipt) == ("confirmed", None, receipt)
    assert confirmed.principal == me.principal
    assert isinstance(notified, events.ConflictNotifiedEvent)
    assert notified.notification == receipt.notifications[0]
    assert notified.commit_id == receipt.id
    assert isinstance(rejected, events.CommitEvent)
    assert (rejected.status, rejected.code, rejected.receipt) == (
        "rejected",
        "stale_context",
        None,
    )
    assert receipt.held
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        f"commit {receipt.id}: 0 applied, 1 held, 0 unchanged",
        "commit rejected: stale_context",
    ]


# Sessions


def test_by_a_session(db: Database, raw: psycopg.Connection[Any]) -> None:
    """The secret goes with every call: no connection of the pool keeps it."""
    [[secret]] = (
        db.connect()
        .execute(
            "select secret from concord.mint_session('app2', 'agent', 'writer', tenant => 'acme',"
            " operations => '{slides.update}')"
        )
        .fetchall()
    )
    db.connect().execute("grant select, update on slides to app2")
    with pyconcord.connect(db.dsn("app2"), max_size=1) as concord, concord.by(secret) as me:
        with me.reading() as reading:
            slide = reading.read("slides", 7)
        me.update(slide, title="by it")
        with pytest.raises(Forbidden, match=r"slides\.delete"):
            me.delete("slides", 7)
        with pytest.raises(Unauthenticated):
            concord.by("kcs1_of_nobody").update("slides", 7, title="x")
        db.connect().execute("update concord_internal.sessions set revoked_at = now()")
        with pytest.raises(Unauthenticated):
            me.read("slides", 7)
    [change, *_] = raw.execute("select actor from concord.history('slides', '7')").fetchall()
    assert change == ("writer",)


# --- archive --------------------------------------------------------------------------------------


def test_rows_are_put_away_and_brought_back(db: Database) -> None:
    build(db)
    with db.connect("owner") as owner:
        owner.execute("select concord.track('slides', archive_column => 'due')")
    with pyconcord.connect(db.dsn("app"), tenant="acme") as client:
        me = client.acting(user="ana")
        slide = me.read("slides", 1)
        assert me.archive(slide).applied == 1
        assert me.archive("slides", 1).unchanged == 1
        with me.batch() as batch:
            batch.unarchive("slides", 1)
            batch.archive("slides", 2)
        assert batch.receipt.applied == 2
        assert me.unarchive("slides", 2, where={"title": "title 2"}).applied == 1
        assert me.read("slides", 1)["due"] is None
