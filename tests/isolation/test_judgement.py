"""What a judgement rests on, and what it tells: each schedule was once answered wrongly."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.isolation.schedule import (
    Session,
    Story,
    create,
    deadlocked,
    delete,
    group,
    refused,
    request,
    row,
    update,
)

# --- who is looked at -----------------------------------------------------------------------------


def test_a_function_with_the_rights_of_another(deck: Story) -> None:
    """Never a guess: a login that may not look at the table is not told that nothing moved."""
    deck.admin().run(
        """
        create schema api authorization owner;
        create function api.save(r jsonb) returns jsonb language sql security definer
          set search_path = public, pg_temp as $$ select concord.try_commit(r) $$;
        alter function api.save(jsonb) owner to owner;
        grant usage on schema api to app;
        revoke all on slides from app;
        grant concord_app to owner
        """
    )
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set title = 'theirs' where id = 1")
    for title, more in (("mine", {}), ("mine too", {"label": "the long way"})):
        asked = request(update("slides", 1, title=title), read_at=token, **more)
        answer = ana.one("select api.save(%s)", Jsonb(asked))
        assert answer["status"] == "rejected"
        assert answer["error"]["code"] == "forbidden"
        assert answer["error"]["param"] == "operations[0].model"
    assert deck.value("select title from slides where id = 1") == "theirs"


# --- references -----------------------------------------------------------------------------------


def test_a_reference_to_an_update(deck: Story) -> None:
    """No lost update: a row that is named by reference is judged like any other."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set body = 'theirs' where id = 1")
    by_reference = {"$operation": 0}
    for second in (
        update("slides", by_reference, body="mine"),
        delete("slides", by_reference),
    ):
        with refused("stale_context", "operations[1]"):
            ana.commit(request(update("slides", 1, title="mine"), second, read_at=token))
    held = ana.commit(
        request(
            update("slides", 1, title="mine"),
            update("slides", by_reference, body="mine"),
            read_at=token,
            on_stale="notify",
        )
    )
    assert [o["outcome"] for o in held["operations"]] == ["applied", "held"]


def test_a_reference_to_a_row_that_the_batch_deleted(deck: Story) -> None:
    ana = deck.actor("ana")
    with refused("not_found", "operations[1].id"):
        ana.commit(request(delete("slides", 1), update("slides", {"$operation": 0}, title="x")))
    created = ana.commit(
        request(
            create("slides", 9, title="new"),
            update("slides", {"$operation": 0}, body="and more"),
            read_at=ana.capture(),
        )
    )
    assert created["applied"] == 2


# --- order of answers -----------------------------------------------------------------------------


def test_existence_comes_before_where(deck: Story) -> None:
    ana = deck.actor("ana")
    token = ana.capture()
    unmet = update("slides", 1, {"where": {"title": "other"}}, title="x")
    with refused("not_found", "operations[1].id"):
        ana.commit(request(unmet, update("slides", 77, title="x"), read_at=token))
    with refused("not_found", "reads[0].id"):
        ana.commit(request(unmet, read_at=token, reads=[row("slides", 77)]))
    with refused("not_found", "operations[0].id"):
        ana.commit(
            request(update("slides", 77, title="x"), create("slides", 1, title="x"), read_at=token)
        )


def test_changes_are_newest_first_whatever_they_are_of(deck: Story) -> None:
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set title = 'theirs' where id = 1")
    deck.psql("truncate slides")
    deck.psql("insert into slides values (1, 'a', 'anew', '-')")
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, title="mine"), read_at=token))
    ids = [change["syncId"] for change in refusal.notification["changes"]]
    assert len(ids) == 3
    assert ids == sorted(ids, reverse=True)


def test_a_truncate_behind_many_that_were_seen(deck: Story) -> None:
    """No lost update: how many whole-model changes were seen says nothing of one that was not."""
    deck.raw().run(
        "create table sheets (id int primary key, deck text);"
        "select concord.track('sheets', groups => array['deck:{deck}']);"
        "grant all on sheets to app"
    )
    writer, ana = deck.raw(), deck.actor("ana")
    writer.run("begin; truncate slides")
    for _ in range(25):
        deck.psql("truncate sheets")
    token = ana.capture()
    writer.run("commit")
    with refused("stale_context", "reads[0]"):
        ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[group("deck:a")]))


# --- what others' tenants and policies hide -------------------------------------------------------


def test_a_label_stays_in_its_tenant(deck: Story) -> None:
    """No door beside the wall: a shared row tells who changed it, and not why."""
    ana, bo, zoe = deck.actor("ana"), deck.actor("bo"), deck.actor("zoe", tenant="other")
    token = ana.capture()
    bo.commit(request(update("slides", 1, title="bo's"), label="ours"))
    zoe.commit(request(update("slides", 1, title="zoe's"), label="theirs"))
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, title="mine"), read_at=token))
    labels = [change.get("label") for change in refusal.notification["changes"]]
    assert labels == [None, "ours"]


OWNED = """
create table papers (id int primary key, owner text, text text);
insert into papers values (1, 'app', 'mine'), (2, 'boss', 'secret'), (3, 'boss', 'secret'),
  (4, 'app', 'mine');
select concord.track('papers');
alter table papers enable row level security;
create policy own on papers using (owner = current_user) with check (true);
"""


@pytest.fixture
def papers(story: Story) -> Story:
    story.tables(OWNED)
    return story


def asked_of(ana: Session, id: int, token: str) -> list[Any]:
    """What a row answers to everything that may be asked of it: codes and parameters."""
    told: list[Any] = []
    for asked in (
        request(update("papers", id, text="x"), read_at=token),
        request(update("papers", id, text="x"), read_at=token, on_stale="notify"),
        request(update("papers", id, text="x"), read_at=token, label="the long way"),
        request(delete("papers", id), read_at=token),
        request(update("papers", 1, text="mine"), read_at=token, reads=[row("papers", id)]),
        request(update("papers", 1, text="mine"), read_at=token, reads=[row("papers", id, "text")]),
    ):
        error = ana.try_commit(asked)["error"]
        told.append((error["code"], error["param"], error.get("notifications")))
    return told


@pytest.mark.parametrize("what", ["update papers set text = 'more'", "delete from papers"])
def test_a_row_that_a_policy_hides(papers: Story, what: str) -> None:
    """No door beside the wall: hidden rows answer like those that never were."""
    ana = papers.actor("ana")
    token = ana.capture()
    papers.psql(f"{what} where id = 2")
    hidden = asked_of(ana, 2, token)
    assert hidden == asked_of(ana, 77, token)
    assert {code for code, _, _ in hidden} == {"not_found"}


def test_what_a_row_was_before_it_came_into_sight(papers: Story) -> None:
    """No door beside the wall: of another owner's time no value is told, that it changed is."""
    ana = papers.actor("ana")
    token = ana.capture()
    papers.psql("delete from papers where id = 2; insert into papers values (2, 'app', 'given')")
    papers.psql("update papers set text = 'given too', owner = 'app' where id = 3")
    papers.psql("update papers set text = 'changed' where id = 4")
    for id, base in ((2, {}), (3, {}), (4, {"text": "mine"})):
        with refused("stale_context") as refusal:
            ana.commit(request(update("papers", id, text="x"), read_at=token))
        assert refusal.notification["baseValues"] == base, id
    with refused("stale_context") as refusal:
        ana.commit(request(delete("papers", 3), read_at=token))
    assert "secret" not in str(refusal.notification)


# --- what can't be locked -------------------------------------------------------------------------


@pytest.fixture
def deleter(deck: Story) -> Session:
    """May delete slides, and not change them."""
    deck.raw().run("revoke all on slides from app; grant select, delete on slides to app")
    return deck.actor("ana")


def test_where_holds_for_what_is_deleted(deck: Story, deleter: Session) -> None:
    writer = deck.raw()
    writer.run("begin; update slides set title = 'closed' where id = 1")
    deleter.start_commit(request(delete("slides", 1, {"where": {"title": "one"}})))
    deleter.blocked()
    writer.run("commit")
    with refused("precondition_failed", "operations[0].where"):
        deleter.finish_commit()
    assert deck.value("select count(*) from slides where id = 1") == 1


def test_it_was_deleted_by_somebody_else(deck: Story, deleter: Session) -> None:
    writer = deck.raw()
    token = deleter.capture()
    writer.run("begin; delete from slides where id = 1")
    deleter.start_commit(request(delete("slides", 1), read_at=token))
    deleter.blocked()
    writer.run("commit")
    with refused("stale_context") as refusal:
        deleter.finish_commit()
    assert refusal.notification["deleted"] is True


def test_a_policy_that_lets_read_and_delete(deck: Story) -> None:
    """No lost update: what can't be locked is judged again once it is deleted."""
    deck.raw().run(
        """
        alter table slides enable row level security;
        create policy sees on slides for select using (true);
        create policy deletes on slides for delete using (true)
        """
    )
    writer, ana = deck.raw(), deck.actor("ana")
    token = ana.capture()
    with refused("forbidden", "operations[0].id"):
        ana.commit(request(update("slides", 1, title="x"), read_at=token))
    writer.run("begin; update slides set title = 'theirs' where id = 1")
    ana.start_commit(request(delete("slides", 1), read_at=token))
    ana.blocked()
    writer.run("commit")
    with refused("stale_context"):
        ana.finish_commit()
    assert ana.commit(request(delete("slides", 1), read_at=ana.capture()))["applied"] == 1


# --- deferred triggers ----------------------------------------------------------------------------


def test_what_deferred_triggers_change(story: Story) -> None:
    """Declared premises are serializable: also over what a trigger changes at COMMIT."""
    story.tables(
        """
        create table seats (id int primary key, state text default '');
        insert into seats select generate_series(1, 4);
        create function follow() returns trigger language plpgsql as $$
        begin
          update seats set state = state || '!' where id = new.id + 2;
          return null;
        end $$;
        create constraint trigger follow after update on seats deferrable initially deferred
          for each row when (new.id <= 2) execute function follow();
        select concord.track('seats');
        """
    )
    ana, bo = story.actor("ana"), story.actor("bo")
    token = ana.capture()
    for who, writes, rests_on in ((ana, 1, 4), (bo, 2, 3)):
        who.run("begin")
        who.commit(
            request(
                update("seats", writes, state="x"), read_at=token, reads=[row("seats", rests_on)]
            )
        )
    ana.start("commit")  # its trigger changes 3, which bo's decision rests on
    ana.blocked()
    bo.start("commit")
    assert len(deadlocked(ana, bo)) == 1
    assert story.value("select string_agg(state, ',' order by id) from seats") in ("x,,!,", ",x,,!")


def test_raw_writes_after_a_commit(deck: Story) -> None:
    """A commit's locks go on for the rest of its transaction, and end with it."""
    ana = deck.actor("ana")
    ana.run("begin")
    ana.commit(request(update("slides", 1, title="mine")))
    assert ana.one("select current_setting('concord.committing')") == "1"
    ana.run("commit")
    assert ana.one("select coalesce(current_setting('concord.committing', true), '')") == ""


# --- many -----------------------------------------------------------------------------------------


def test_many_stale_operations(deck: Story) -> None:
    """Every one of them is told, in order."""
    deck.raw().run("insert into slides select i, 'c', 't', 'b' from generate_series(100, 1299) i")
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set title = 'theirs' where id >= 100")
    operations = [update("slides", id, title="mine") for id in range(100, 1300)]
    with refused("stale_context") as refusal:
        ana.commit(request(*operations, read_at=token))
    told = refusal.detail["notifications"]
    assert [n["index"] for n in told] == list(range(1200))
    held = ana.commit(request(*operations, read_at=token, on_stale="notify"))
    assert held["held"] == 1200
    assert [n["index"] for n in held["notifications"]] == list(range(1200))


def test_an_operator_that_fits_better(deck: Story) -> None:
    """No forgery: commit runs none of the operators that its caller's search_path holds."""
    deck.admin().run(
        """
        create schema trap;
        grant usage on schema trap to public;
        create function trap.sprung(text, regclass) returns text language plpgsql as $$
        begin raise exception 'sprung'; end $$;
        create function trap.sprung(int, text) returns text language plpgsql as $$
        begin raise exception 'sprung'; end $$;
        create function trap.sprung(text[], text) returns text[] language plpgsql as $$
        begin raise exception 'sprung'; end $$;
        create operator trap.|| (function = trap.sprung, leftarg = text, rightarg = regclass);
        create operator trap.|| (function = trap.sprung, leftarg = int, rightarg = text);
        create operator trap.|| (function = trap.sprung, leftarg = text[], rightarg = text)
        """
    )
    ana = deck.actor("ana")
    ana.run("set search_path = trap, public")
    token = ana.capture()
    deck.psql("update slides set title = 'theirs' where id = 1")
    try:
        ana.commit(request(update("slides", 2, body="x"), read_at=token))
        ana.commit(
            request(
                update("slides", 1, title="x"),
                update("slides", 2, title="y"),
                create("slides", 9, title="z"),
                delete("slides", 3),
                read_at=token,
                on_stale="notify",
                reads=[row("notes", 1), group("deck:b")],
                returning=True,
            )
        )
        ana.read("slides", 1)
    except psycopg.Error as error:
        pytest.fail(f"{error}")
