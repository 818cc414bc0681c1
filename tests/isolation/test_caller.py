"""The caller's own rights and settings: what it may do, and what it finds again afterwards."""

from __future__ import annotations

import pytest
from psycopg.types.json import Jsonb

from tests.isolation.schedule import (
    Story,
    contended,
    create,
    delete,
    fails,
    group,
    refused,
    request,
    row,
    update,
)

# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["session", "local"])
def test_lock_timeout_comes_back(deck: Story, scope: str) -> None:
    """The bound of a commit's waits is the commit's: set_config(…, true) alone would keep it for
    the caller's whole transaction."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set title = 'theirs' where id = 1")
    fine = request(update("slides", 2, title="mine"), read_at=token)
    stale = request(update("slides", 1, title="mine"), read_at=token)
    held = request(update("slides", 1, title="mine"), read_at=token, on_stale="notify")
    wrong = [
        request(update("nothing", 1, title="x")),
        request(update("slides", 1, nothing="x")),
        request(update("slides", 77, title="x")),
        request(update("slides", 1, {"where": {"title": "no"}}, title="x")),
        request(update("slides", 1, title="x"), read_at="no token"),
    ]
    if scope == "session":
        ana.run("set lock_timeout = '7s'")
    for ask in (fine, held, stale, *wrong):
        ana.run("begin")
        if scope == "local":
            ana.run("set local lock_timeout = '7s'")
        ana.try_commit(ask)
        assert ana.one("show lock_timeout") == "7s"
        ana.run("commit")
        assert ana.one("show lock_timeout") == ("7s" if scope == "session" else "0")


@pytest.mark.parametrize("failure", ["stale", "contended", "constraint", "rights"])
def test_lock_timeout_comes_back_after_a_failure(deck: Story, failure: str) -> None:
    """Also when the commit ends in an exception that a savepoint catches."""
    deck.configure("lock_timeout", "50 ms")
    deck.raw().run("alter table slides add constraint polite check (title <> 'rude')")
    ana, writer = deck.actor("ana"), deck.raw()
    token = ana.capture()
    deck.psql("update slides set title = 'theirs' where id = 1")
    writer.run("begin; update slides set body = 'theirs' where id = 2")
    ana.run("begin; set local lock_timeout = '7s'; savepoint s")
    if failure == "stale":
        with refused("stale_context"):
            ana.commit(request(update("slides", 1, title="mine"), read_at=token))
    elif failure == "contended":
        with contended():
            ana.commit(request(update("slides", 2, title="mine"), read_at=token))
    elif failure == "constraint":
        with fails("23514"):
            ana.commit(request(update("slides", 3, title="rude"), read_at=token))
    else:
        ana.run(f"set local role {deck.role('concord_test_reader')}")
        with fails("42501"):
            ana.commit(request(update("slides", 3, title="mine"), read_at=token))
    ana.run("rollback to savepoint s")
    assert ana.one("show lock_timeout") == "7s"
    # And the transaction goes on, its next write is a raw one.
    ana.run("update slides set title = 'raw' where id = 3; commit")
    assert [change["commit_id"] for change in deck.history("slides", 3)] == [None]


def test_a_raw_write_beside_a_commit_is_raw(deck: Story) -> None:
    """No forgery, by accident: what stands before, between and after commits is not theirs."""
    ana = deck.actor("ana")
    ana.run("begin")
    ana.run("update slides set title = 'before' where id = 1")
    first = ana.commit(request(update("slides", 1, title="committed"), label="first"))
    ana.run("update slides set title = 'between' where id = 1")
    second = ana.commit(request(update("slides", 1, title="again"), label="second"))
    ana.run("update slides set title = 'after' where id = 1")
    ana.run("commit")
    told = [(change["commit_id"], change["label"]) for change in deck.history("slides", 1)]
    assert told == [
        (None, None),
        (second["id"], "second"),
        (None, None),
        (first["id"], "first"),
        (None, None),
    ]
    assert {change["actor"] for change in deck.history("slides", 1)} == {"ana"}


# --- rights ---------------------------------------------------------------------------------------


def test_set_role(deck: Story) -> None:
    """The caller's own rights: SET ROLE counts for them, and does not change who acts."""
    reader, writer = deck.role("concord_test_reader"), deck.role("concord_test_writer")
    deck.raw().run(
        f"grant select on slides to {reader};grant select, update (title) on slides to {writer}"
    )
    ana = deck.actor("ana")
    token = ana.capture()
    ana.run(f"set role {reader}")
    assert ana.read("slides", 1)["data"]["title"] == "one"
    for wrong in (
        update("slides", 1, title="mine"),
        delete("slides", 1),
        create("slides", 9, deck="a"),
    ):
        with fails("42501"):
            ana.commit(request(wrong, read_at=token))
    ana.run(f"set role {writer}")
    with fails("42501"):
        ana.commit(request(update("slides", 1, body="mine"), read_at=token))
    receipt = ana.commit(request(update("slides", 1, title="mine"), read_at=token, label="mine"))
    ana.run("reset role")
    (change,) = deck.history("slides", 1)
    assert (change["kind"], change["actor"], change["commit_id"]) == ("agent", "ana", receipt["id"])


def test_a_column_that_the_role_may_not_read(deck: Story) -> None:
    """No door beside the wall: it appears in no list, no value, no change."""
    half = deck.role("concord_test_half")
    deck.raw().run(f"grant select (id, deck, title), update on slides to {half}")
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set title = 'theirs', body = 'secret' where id = 1")
    ana.run(f"set role {half}")
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, title="mine", body="mine"), read_at=token))
    told = refusal.notification
    assert told["conflictingFields"] == ["title"]
    assert told["changes"][0]["fields"] == ["title"]
    assert "secret" not in str(refusal.detail)
    assert set(told["currentValues"]) == {"title"}
    assert set(told["baseValues"]) == {"title"}
    assert "body" not in ana.read("slides", 1)["data"]
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, body="mine"), read_at=token))
    assert "secret" not in str(refusal.detail)


def test_a_group_that_the_role_may_not_read(deck: Story) -> None:
    """No door beside the wall: who may not select from the table learns nothing of its groups."""
    outsider = deck.role("concord_test_outsider")
    deck.raw().run(f"grant select, update on notes to {outsider}")
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set title = 'theirs' where id = 1")
    ana.run(f"set role {outsider}")
    ask = request(update("notes", 1, text="x"), read_at=token)
    answer = ana.one("select concord.try_commit(%s)", Jsonb({**ask, "reads": [group("deck:a")]}))
    assert "owner" not in str(answer), "it was told who changed what it may not see"
    with refused("forbidden", "reads[0].model"):
        ana.commit({**ask, "reads": [row("slides", 1)]})


# --- a role that may delete and not update --------------------------------------------------------


@pytest.fixture
def cleaner(deck: Story) -> str:
    """May select and delete slides, and nothing else there."""
    name = deck.role("concord_test_cleaner")
    deck.raw().run(
        f"grant select, delete on slides to {name}; grant select, update on notes to {name}"
    )
    return name


def test_who_may_delete_only_deletes(deck: Story, cleaner: str) -> None:
    """No false alarm: locking a row takes the right to update it, deleting it does not."""
    ana = deck.actor("ana")
    ana.run(f"set role {cleaner}")
    token = ana.capture()
    receipt = ana.commit(
        request(delete("slides", 1), update("notes", 1, text="x"), read_at=token, label="tidy")
    )
    assert receipt["applied"] == 2
    ana.run("reset role")
    (change,) = deck.history("slides", 1)
    assert (change["op"], change["commit_id"], change["label"]) == ("delete", receipt["id"], "tidy")
    assert change["before"]["title"] == "one"
    ana.run(f"set role {cleaner}")
    with refused("not_found"):
        ana.commit(request(delete("slides", 77)))
    with fails("42501"):
        ana.commit(request(update("slides", 2, title="x")))


@pytest.mark.parametrize("mode", ["reject", "notify"])
def test_who_may_delete_only_is_judged(deck: Story, cleaner: str, mode: str) -> None:
    """No lost update: judged after the deletion, which a refusal takes back without a trace."""
    ana = deck.actor("ana")
    ana.run(f"set role {cleaner}")
    token = ana.capture()
    deck.psql("update slides set title = 'theirs' where id = 1")
    ask = request(delete("slides", 1), update("notes", 1, text="x"), read_at=token, on_stale=mode)
    if mode == "reject":
        with refused("stale_context", "operations[0]") as refusal:
            ana.commit(ask)
        assert refusal.notification["currentValues"]["title"] == "theirs"
        assert refusal.notification["deleted"] is False
    else:
        receipt = ana.commit(ask)
        assert [o["outcome"] for o in receipt["operations"]] == ["held", "applied"]
    ana.run("reset role")
    assert deck.value("select title from slides where id = 1") == "theirs"
    assert [change["op"] for change in deck.history("slides", 1)] == ["update"]


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_who_may_delete_only_waits(deck: Story, cleaner: str, ends: str) -> None:
    """No lost update: the deletion itself waits for the writer in flight, and is judged after."""
    ana, writer = deck.actor("ana"), deck.raw()
    ana.run(f"set role {cleaner}")
    token = ana.capture()
    writer.run("begin; update slides set title = 'theirs' where id = 1")
    ana.start_commit(request(delete("slides", 1), read_at=token))
    ana.blocked()
    writer.run(ends)
    if ends == "commit":
        with refused("stale_context"):
            ana.finish_commit()
        assert deck.value("select title from slides where id = 1") == "theirs"
    else:
        assert ana.finish_commit()["applied"] == 1
        assert deck.value("select count(*) from slides where id = 1") == 0


def test_who_may_delete_only_and_where(deck: Story, cleaner: str) -> None:
    """All or nothing: a condition that does not hold takes the deletion back."""
    ana = deck.actor("ana")
    ana.run(f"set role {cleaner}")
    with refused("precondition_failed", "operations[0].where"):
        ana.commit(request(delete("slides", 1, {"where": {"title": "no"}})))
    assert deck.value("select count(*) from slides") == 3
    assert ana.commit(request(delete("slides", 1, {"where": {"title": "one"}})))["applied"] == 1


def test_who_may_delete_only_against_a_premise(deck: Story, cleaner: str) -> None:
    """Serializable premises: without a row lock the advisory lock still keeps the two apart."""
    ana, bo = deck.actor("ana"), deck.actor("bo")
    bo.run(f"set role {cleaner}")
    token = ana.capture()
    ana.run("begin")
    ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[row("slides", 1)]))
    bo.start_commit(request(delete("slides", 1), read_at=token, reads=[row("notes", 1, "text")]))
    bo.blocked()
    ana.run("commit")
    with refused("stale_context", "reads[0]"):
        bo.finish_commit()
    assert deck.value("select count(*) from slides") == 3
