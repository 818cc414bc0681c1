"""What a decision rests on beside the rows that it writes: rows, groups, absences.

Two commits that each declare what they read come out as if one had run after the other. Where both
are past their locks and at their writing, one of them gives way as contended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.isolation.schedule import (
    Request,
    Story,
    absent,
    contended,
    create,
    deadlocked,
    delete,
    fails,
    group,
    refused,
    request,
    row,
    update,
)

# Two doctors, each on call; the hospital needs one.
ONCALL = """
create table doctors (name text primary key, on_call boolean not null);
insert into doctors values ('ann', true), ('ben', true);
select concord.track('doctors');
"""


def signs_off(who: str, because_of: str, token: str) -> Request:
    """One signs off because the other is on call."""
    return request(
        update("doctors", who, on_call=False),
        read_at=token,
        reads=[row("doctors", because_of, "on_call")],
    )


def test_each_reads_the_others_row(story: Story) -> None:
    """Serializable premises: write skew. Row locks alone let both through, on different rows."""
    story.tables(ONCALL)
    ann, ben = story.actor("ann"), story.actor("ben")
    mine, yours = ann.capture(), ben.capture()
    ann.run("begin")
    ann.commit(signs_off("ann", "ben", mine))
    ben.start_commit(signs_off("ben", "ann", yours))
    ben.blocked()
    ann.run("commit")
    with refused("stale_context", "reads[0]") as refusal:
        ben.finish_commit()
    told = refusal.notification
    assert told["read"] == 0
    assert told["conflictingFields"] == ["on_call"]
    assert told["currentValues"] == {"on_call": False}
    assert story.value("select count(*) from doctors where on_call") == 1


def test_each_reads_the_others_row_and_the_first_gives_up(story: Story) -> None:
    """No false alarm: who waited for a commit that was rolled back goes on."""
    story.tables(ONCALL)
    ann, ben = story.actor("ann"), story.actor("ben")
    token = ann.capture()
    ann.run("begin")
    ann.commit(signs_off("ann", "ben", token))
    ben.start_commit(signs_off("ben", "ann", token))
    ben.blocked()
    ann.run("rollback")
    assert ben.finish_commit()["applied"] == 1


def test_the_premise_moves_while_the_row_is_waited_for(story: Story) -> None:
    """Serializable premises: judged after the last wait, not at the first look."""
    story.tables(ONCALL)
    ann, ben, writer = story.actor("ann"), story.actor("ben"), story.raw()
    token = ann.capture()
    writer.run("begin; select from doctors where name = 'ann' for update")
    ann.start_commit(signs_off("ann", "ben", token))
    ann.blocked()
    ben.commit(signs_off("ben", "ann", token))
    writer.run("commit")
    with refused("stale_context"):
        ann.finish_commit()


def test_a_premise_under_the_other_modes(story: Story) -> None:
    """A stale premise applies its mode to the whole batch."""
    story.tables(ONCALL)
    ann, ben = story.actor("ann"), story.actor("ben")
    token = ann.capture()
    ann.commit(signs_off("ann", "ben", token))
    held = ben.commit({**signs_off("ben", "ann", token), "onStale": "notify"})
    assert [o["outcome"] for o in held["operations"]] == ["held"]
    assert held["notifications"][0]["read"] == 0
    assert story.value("select on_call from doctors where name = 'ben'")
    assert ben.commit({**signs_off("ben", "ann", token), "onStale": "overwrite"})["applied"] == 1


# --- through cascades and triggers ----------------------------------------------------------------

# Before it writes a parent or an entry, a commit waits at the gate while the script keeps it shut:
# it has then taken its locks and been judged, and has not yet touched what follows from its write.
GATE = """
create function at_the_gate() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock_shared(1, 1);
  return coalesce(new, old);
end $$;
"""

CASCADES = (
    GATE
    + """
create table parents (id int primary key);
create table children (id int primary key, parent int references parents on delete cascade);
insert into parents values (1), (2);
insert into children values (10, 1), (20, 2);
create trigger gate before delete on parents for each row execute function at_the_gate();
select concord.track('parents');
select concord.track('children');
"""
)

TRIGGERS = (
    GATE
    + """
create table entries (id int primary key, account int, amount int);
create table accounts (id int primary key, total int);
insert into accounts values (10, 0), (20, 0);
insert into entries values (1, 10, 0), (2, 20, 0);
create function add_up() returns trigger language plpgsql as $$
begin
  update accounts set total = total + new.amount - old.amount where id = new.account;
  return null;
end $$;
create trigger gate before update on entries for each row execute function at_the_gate();
create trigger totals after update on entries for each row execute function add_up();
select concord.track('entries');
select concord.track('accounts');
"""
)


def through_a_cascade(who: int, token: str) -> Request:
    """Deletes a parent, and so its child, because the other parent's child is there."""
    return request(delete("parents", who), read_at=token, reads=[row("children", 30 - 10 * who)])


def through_a_trigger(who: int, token: str) -> Request:
    """Changes an entry, and so a total, because of the other total."""
    return request(
        update("entries", who, amount=5), read_at=token, reads=[row("accounts", 30 - 10 * who)]
    )


INDIRECT = pytest.mark.parametrize(
    ("tables", "ask"),
    [(CASCADES, through_a_cascade), (TRIGGERS, through_a_trigger)],
    ids=["cascade", "trigger"],
)
Ask = Callable[[int, str], Request]


@INDIRECT
def test_each_changes_indirectly_what_the_other_reads(story: Story, tables: str, ask: Ask) -> None:
    """Serializable premises: the rows that two commits name have nothing to do with one another.

    Only the triggers know what was changed: without their locks write skew passes through them.
    """
    story.tables(tables)
    ann, ben = story.actor("ann"), story.actor("ben")
    token = ann.capture()
    ann.run("begin")
    ann.commit(ask(1, token))
    ben.start_commit(ask(2, token))
    ben.blocked()
    ann.run("commit")
    with refused("stale_context", "reads[0]"):
        ben.finish_commit()


@INDIRECT
def test_both_at_their_writing(story: Story, tables: str, ask: Ask) -> None:
    """Serializable premises, nobody waits for ever: a cycle ends as a deadlock, for one of them."""
    story.tables(tables)
    gate, ann, ben = story.admin(), story.actor("ann"), story.actor("ben")
    token = ann.capture()
    gate.run("select pg_advisory_lock(1, 1)")
    for who, session in enumerate((ann, ben), start=1):
        session.start_commit(ask(who, token))
        session.blocked()
    gate.run("select pg_advisory_unlock(1, 1)")
    deadlocked(ann, ben)


def test_a_cascade_larger_than_the_lock_table(story: Story) -> None:
    """Serializable premises: beyond a bound one lock of the tenant stands for all the keys."""
    story.tables(CASCADES)
    story.raw().run("insert into children select n, 1 from generate_series(1001, 3000) n")
    ann, ben = story.actor("ann"), story.actor("ben")
    token = ann.capture()
    ann.run("begin")
    ann.commit(request(delete("parents", 1), read_at=token))
    ben.start_commit(request(delete("parents", 2), read_at=token, reads=[row("children", 2345)]))
    ben.blocked()
    ann.run("commit")
    with refused("stale_context"):
        ben.finish_commit()

    # And the other way round: who rests on one of many keeps the many from being changed.
    story.raw().run("insert into children select n, 2 from generate_series(1001, 3000) n")
    token = ben.capture()
    ben.run("begin")
    ben.commit(request(create("parents", 3), read_at=token, reads=[row("children", 2345)]))
    ann.start_commit(request(delete("parents", 2), read_at=token))
    ann.blocked()
    ben.run("commit")
    assert ann.finish_commit()["applied"] == 1


# --- groups ---------------------------------------------------------------------------------------

CHANGES_OF_DECK_A: dict[str, Any] = {
    "created into": create("slides", 9, deck="a", title="new"),
    "moved into": update("slides", 3, deck="a"),
    "moved out of": update("slides", 1, deck="b"),
    "deleted from": delete("slides", 1),
    "changed within": update("slides", 1, body="changed"),
}
HOW = pytest.mark.parametrize("how", CHANGES_OF_DECK_A)


@HOW
def test_a_group_premise_after_the_change(deck: Story, how: str) -> None:
    """Serializable premises: whoever comes into, goes out of or changes within the group counts."""
    ana, bo = deck.actor("ana"), deck.actor("bo")
    token = ana.capture()
    bo.run("begin")
    bo.commit(request(CHANGES_OF_DECK_A[how]))
    ana.start_commit(
        request(update("notes", 1, text="mine"), read_at=token, reads=[group("deck:a")])
    )
    ana.blocked()
    bo.run("commit")
    with refused("stale_context", "reads[0]") as refusal:
        ana.finish_commit()
    told = refusal.notification
    assert (told["group"], told["model"], told["id"]) == ("deck:a", "deck:a", "deck:a")
    assert told["conflictingFields"] == []
    assert told["writtenBy"] == {"kind": "agent", "id": "bo"}
    assert deck.value("select text from notes where id = 1") == "first"


@HOW
def test_a_group_premise_before_the_change(deck: Story, how: str) -> None:
    """Serializable premises: a change of the group waits for the premise, wherever it is made.

    It rests on what the other one writes, so had it not waited both would have passed.
    """
    ana, bo = deck.actor("ana"), deck.actor("bo")
    token = ana.capture()
    ana.run("begin")
    ana.commit(request(update("notes", 1, text="mine"), read_at=token, reads=[group("deck:a")]))
    bo.start_commit(request(CHANGES_OF_DECK_A[how], read_at=token, reads=[row("notes", 1, "text")]))
    bo.blocked()
    ana.run("commit")
    with refused("stale_context", "reads[0]"):
        bo.finish_commit()


@HOW
def test_a_change_without_premises_waits_for_a_group_premise(deck: Story, how: str) -> None:
    """Serializable premises, no false alarm: it waits, since its deltas come later, and passes."""
    ana, bo = deck.actor("ana"), deck.actor("bo")
    token = ana.capture()
    ana.run("begin")
    ana.commit(request(update("notes", 1, text="mine"), read_at=token, reads=[group("deck:a")]))
    bo.start_commit(request(CHANGES_OF_DECK_A[how], read_at=token))
    bo.blocked()
    ana.run("commit")
    assert bo.finish_commit()["applied"] == 1


@HOW
def test_a_raw_change_of_the_group(deck: Story, how: str) -> None:
    """Serializable premises: raw writers count when they have committed."""
    raw = {
        "created into": "insert into slides values (9, 'a', 'new')",
        "moved into": "update slides set deck = 'a' where id = 3",
        "moved out of": "update slides set deck = 'b' where id = 1",
        "deleted from": "delete from slides where id = 1",
        "changed within": "update slides set body = 'changed' where id = 1",
    }
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql(raw[how])
    with refused("stale_context", "reads[0]"):
        ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[group("deck:a")]))
    # The other deck moved only when a slide changed decks.
    other = request(update("notes", 1, text="x"), read_at=token, reads=[group("deck:b")])
    if how.startswith("moved"):
        with refused("stale_context"):
            ana.commit(other)
    else:
        assert ana.commit(other)["applied"] == 1


def test_a_row_without_a_group(deck: Story) -> None:
    """No false alarm: a row that is in no group disturbs none."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("insert into slides values (9, null, 'loose'); delete from slides where id = 9")
    assert ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[group("deck:a")]))


def test_each_reads_the_others_group(deck: Story) -> None:
    """Serializable premises: write skew of groups, one after another."""
    ana, bo = deck.actor("ana"), deck.actor("bo")
    token = ana.capture()
    ana.run("begin")
    ana.commit(
        request(create("slides", 8, deck="b", title="x"), read_at=token, reads=[group("deck:a")])
    )
    bo.start_commit(
        request(create("slides", 9, deck="a", title="x"), read_at=token, reads=[group("deck:b")])
    )
    bo.blocked()
    ana.run("commit")
    with refused("stale_context", "reads[0]"):
        bo.finish_commit()


def test_each_reads_the_others_group_both_at_their_writing(deck: Story) -> None:
    """The same with both past their locks: a deadlock, for one of them."""
    deck.raw().run(
        GATE + "create trigger gate before insert on slides for each row"
        " execute function at_the_gate()"
    )
    gate, ana, bo = deck.admin(), deck.actor("ana"), deck.actor("bo")
    token = ana.capture()
    gate.run("select pg_advisory_lock(1, 1)")
    for session, id, writes, reads in ((ana, 8, "b", "a"), (bo, 9, "a", "b")):
        premise = group(f"deck:{reads}")
        session.start_commit(
            request(create("slides", id, deck=writes), read_at=token, reads=[premise])
        )
        session.blocked()
    gate.run("select pg_advisory_unlock(1, 1)")
    deadlocked(ana, bo)


def test_writers_of_one_group_do_not_wait_for_each_other(deck: Story) -> None:
    """Nobody waits without need: groups are shared among those who write into them."""
    ana, bo = deck.actor("ana"), deck.actor("bo")
    token = ana.capture()
    ana.run("begin")
    ana.commit(request(update("slides", 1, title="ana's"), read_at=token))
    assert bo.commit(request(update("slides", 2, title="bo's"), read_at=token))["applied"] == 1
    ana.run("commit")


def test_readers_of_one_row_do_not_wait_for_each_other(deck: Story) -> None:
    """Nobody waits without need: a premise shares the row."""
    ana, bo = deck.actor("ana"), deck.actor("bo")
    token = ana.capture()
    ana.run("begin")
    ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[row("slides", 1)]))
    bo.commit(request(update("notes", 2, text="x"), read_at=token, reads=[row("slides", 1)]))
    ana.run("commit")


def test_a_group_over_models_of_a_tenant_and_shared_ones(story: Story) -> None:
    """Serializable premises: a group premise stands for the tenant's rows and for shared ones."""
    story.tables(
        """
        create table own (id int primary key, tenant text, deck text);
        create table shared (id int primary key, deck text);
        create table notes (id int primary key, tenant text);
        insert into notes values (1, 'acme'), (2, 'beta');
        select concord.track('own', tenant_column => 'tenant', groups => array['deck:{deck}']);
        select concord.track('shared', groups => array['deck:{deck}']);
        select concord.track('notes', tenant_column => 'tenant');
        """
    )
    ana, bo = story.actor("ana"), story.actor("bo")
    beta = story.actor("eve", tenant="beta")

    def rests_on_deck_a(token: str) -> Request:
        return request(update("notes", 1, tenant="acme"), read_at=token, reads=[group("deck:a")])

    for change in (
        create("own", 1, tenant="acme", deck="a"),
        create("shared", 1, deck="a"),
    ):
        token = ana.capture()
        bo.run("begin")
        bo.commit(request(change))
        ana.start_commit(rests_on_deck_a(token))
        ana.blocked()
        bo.run("commit")
        with refused("stale_context"):
            ana.finish_commit()

    # Another tenant's deck of the same name is another group.
    token = ana.capture()
    beta.run("begin")
    beta.commit(request(create("own", 2, tenant="beta", deck="a")))
    assert ana.commit(rests_on_deck_a(token))["applied"] == 1
    beta.run("commit")
    assert ana.commit(rests_on_deck_a(token))["applied"] == 1


# --- absences -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["commit", "rollback"])
def test_absence_against_a_creator_in_flight(deck: Story, ends: str) -> None:
    """Serializable premises: there is no row yet to lock, so the id itself is locked."""
    ana, bo = deck.actor("ana"), deck.actor("bo")
    token = ana.capture()
    bo.run("begin")
    bo.commit(request(create("slides", 9, deck="a", title="new")))
    ana.start_commit(
        request(update("notes", 1, text="none"), read_at=token, reads=[absent("slides", 9)])
    )
    ana.blocked()
    bo.run(ends)
    if ends == "commit":
        with refused("stale_context", "reads[0]"):
            ana.finish_commit()
    else:
        assert ana.finish_commit()["applied"] == 1


def test_a_creator_against_an_absence_in_flight(deck: Story) -> None:
    """Serializable premises, the other order: who would create waits for who counts on absence."""
    ana, bo = deck.actor("ana"), deck.actor("bo")
    token = ana.capture()
    ana.run("begin")
    ana.commit(request(update("notes", 1, text="none"), read_at=token, reads=[absent("slides", 9)]))
    bo.start_commit(
        request(create("slides", 9, deck="a"), read_at=token, reads=[row("notes", 1, "text")])
    )
    bo.blocked()
    ana.run("commit")
    with refused("stale_context", "reads[0]"):
        bo.finish_commit()


def test_absence_of_a_row_that_came_and_went(deck: Story) -> None:
    """Never a guess: it exists or existed since, also when it is gone again."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("insert into slides values (9, 'a'); delete from slides where id = 9")
    ask = request(update("notes", 1, text="x"), read_at=token, reads=[absent("slides", 9)])
    with refused("stale_context", "reads[0]"):
        ana.commit(ask)
    assert ana.commit({**ask, "readAt": ana.capture()})["applied"] == 1


def test_two_creators_of_one_id(deck: Story) -> None:
    """All or nothing: the second waits, and is told that the row is there."""
    ana, bo = deck.actor("ana"), deck.actor("bo")
    ana.run("begin")
    ana.commit(request(create("slides", 9, deck="a", title="ana's")))
    bo.start_commit(request(create("slides", 9, deck="a", title="bo's")))
    bo.blocked()
    ana.run("commit")
    with refused("already_exists", "operations[0].id"):
        bo.finish_commit()


def test_a_raw_creator_in_flight(deck: Story) -> None:
    """A raced create is Postgres's own unique violation, and nothing of the batch is left."""
    bo, writer = deck.actor("bo"), deck.raw()
    writer.run("begin; insert into slides values (9, 'a', 'raw')")
    bo.start_commit(request(update("notes", 1, text="x"), create("slides", 9, deck="a")))
    bo.blocked()
    writer.run("commit")
    with fails("23505"):
        bo.finish_commit()
    assert deck.value("select text from notes where id = 1") == "first"
    assert deck.history("notes", 1) == []


def test_a_premise_on_a_row_that_is_written_too(deck: Story) -> None:
    """No false alarm: who reads and writes one row does not wait for itself."""
    ana = deck.actor("ana")
    token = ana.capture()
    receipt = ana.commit(
        request(
            update("slides", 1, title="mine"),
            create("slides", 9, deck="a"),
            read_at=token,
            reads=[row("slides", 1), absent("slides", 9), group("deck:a")],
        )
    )
    assert receipt["applied"] == 2


def test_locks_of_a_batch_come_in_one_order(deck: Story) -> None:
    """Nobody waits for ever: two batches over the same rows wait, and do not deadlock."""
    ana, bo, writer = deck.actor("ana"), deck.actor("bo"), deck.raw()
    token = ana.capture()
    writer.run("begin; select from slides where id = 2 for update")
    there = request(*(update("slides", id, title="ana's") for id in (1, 2, 3)), read_at=token)
    back = request(*(update("slides", id, title="bo's") for id in (3, 2, 1)), read_at=token)
    ana.start_commit(there)
    ana.blocked()
    bo.start_commit(back)
    bo.blocked()
    writer.run("commit")
    assert ana.finish_commit()["applied"] == 3
    with refused("stale_context"):
        bo.finish_commit()


def test_a_premise_that_is_waited_for_in_vain(deck: Story) -> None:
    """Nobody waits for ever: a premise's wait is bounded like any other."""
    deck.configure("lock_timeout", "50 ms")
    ana, bo = deck.actor("ana"), deck.actor("bo")
    token = ana.capture()
    bo.run("begin")
    bo.commit(request(update("slides", 1, title="bo's"), read_at=token))
    for premise in (row("slides", 1), group("deck:a")):
        with contended():
            ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[premise]))
    bo.run("rollback")


def test_a_batch_larger_than_the_lock_table(deck: Story) -> None:
    """Serializable premises: beyond a bound a batch takes its tenant alone, which others share."""
    deck.raw().run("insert into notes select n, 'note' from generate_series(1001, 2100) n")
    ana, bo, eve = deck.actor("ana"), deck.actor("bo"), deck.actor("eve", tenant="beta")
    token = ana.capture()
    many = request(*(update("notes", id, text="x") for id in range(1001, 2101)), read_at=token)
    one = request(update("slides", 1, title="x"), read_at=token, reads=[row("notes", 1500)])

    bo.run("begin")
    bo.commit(one)
    ana.start_commit(many)
    ana.blocked()
    bo.run("commit")
    assert ana.finish_commit()["applied"] == 1100

    token = ana.capture()
    again = request(*(update("notes", id, text="y") for id in range(1001, 2101)), read_at=token)
    ana.run("begin")
    ana.commit(again)
    for session in (bo, eve):  # of another tenant too, where the model is shared
        session.start_commit({**one, "readAt": token})
        session.blocked()
    ana.run("commit")
    for session in (bo, eve):
        with refused("stale_context", "reads[0]"):
            session.finish_commit()


@pytest.mark.parametrize("then", ["raw writes", "commits", "a trigger"])
def test_more_locks_than_the_server_has(deck: Story, then: str) -> None:
    """The number of keys is bounded over a transaction, too: in the end one stands for all."""
    deck.raw().run(
        """
        create table many (id int primary key, n int default 0);
        create function fill() returns trigger language plpgsql as $$
        begin
          for i in 1 .. 20000 loop insert into many values (i); end loop;
          return null;
        end $$;
        create trigger fill after update on notes for each row when (new.text = 'fill')
          execute function fill();
        select concord.track('many', groups => array['n:{n}']);
        grant all on many to app
        """
    )
    ana, bo = deck.actor("ana"), deck.actor("bo")
    ana.run("begin")
    if then == "a trigger":
        ana.commit(request(update("notes", 1, text="fill")))
    else:
        ana.run("insert into many select generate_series(1, 12000)")
        ana.commit(request(update("notes", 1, text="x")))
        one = (
            "update many set n = 1 where id = i"
            if then == "raw writes"
            else "perform concord.commit(jsonb_build_object('operations', jsonb_build_array("
            "jsonb_build_object('type', 'update', 'model', 'many', 'id', i,"
            " 'data', jsonb_build_object('n', 1)))))"
        )
        ana.run(f"do $$ begin for i in 1 .. 12000 loop {one}; end loop; end $$")
    assert ana.one("select current_setting('concord.committing')") == "all"
    token = bo.capture()
    bo.start_commit(request(update("notes", 2, text="y"), read_at=token, reads=[absent("many", 5)]))
    bo.blocked()
    ana.run("commit")
    with refused("stale_context", "reads[0]"):
        bo.finish_commit()
