"""Changes through every door that Postgres has: the guarded write that comes after sees each."""

from __future__ import annotations

import pytest

from tests.isolation.schedule import (
    Session,
    Story,
    absent,
    create,
    delete,
    group,
    refused,
    request,
    row,
    update,
)


def copy_in(session: Session, lines: str) -> None:
    with session.connection.cursor() as cursor, cursor.copy("copy slides from stdin") as copy:
        copy.write(lines)


# --- TRUNCATE, COPY, MERGE, upsert ----------------------------------------------------------------


def test_truncate(deck: Story) -> None:
    """No lost update: TRUNCATE fires no row's trigger, and counts for every row and every group."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("truncate slides")
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, title="mine"), read_at=token))
    assert refusal.notification["deleted"] is True
    for premise in (group("deck:a"), group("deck:never seen"), absent("slides", 77)):
        with refused("stale_context", "reads[0]"):
            ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[premise]))
    # Rows that came after are other rows.
    deck.psql("insert into slides values (1, 'a', 'one', '-')")
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, title="mine"), read_at=token))
    assert refusal.fields == []
    assert refusal.notification["deleted"] is False
    assert "title" not in refusal.notification["baseValues"]  # a TRUNCATE shows no values
    # Another model is not concerned, nor is who read afterwards.
    ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[row("notes", 2)]))
    ana.commit(request(update("slides", 1, title="mine"), read_at=ana.capture()))


def test_truncate_in_flight(deck: Story) -> None:
    """No lost update: it is waited for, and judged after the wait."""
    writer, ana = deck.raw(), deck.actor("ana")
    token = ana.capture()
    writer.run("begin; truncate slides; insert into slides values (1, 'a', 'one', '-')")
    ana.start_commit(request(update("slides", 1, title="mine"), read_at=token))
    ana.blocked()
    writer.run("commit")
    with refused("stale_context"):
        ana.finish_commit()


def test_truncate_taken_back(deck: Story) -> None:
    """No false alarm."""
    writer, ana = deck.raw(), deck.actor("ana")
    token = ana.capture()
    writer.run("begin; truncate slides")
    ana.start_commit(request(update("slides", 1, title="mine"), read_at=token))
    ana.blocked()
    writer.run("rollback")
    assert ana.finish_commit()["applied"] == 1


def test_copy(deck: Story) -> None:
    """No lost premise: COPY fires statement triggers with all its rows."""
    ana, writer = deck.actor("ana"), deck.raw()
    token = ana.capture()
    copy_in(writer, "8\ta\tcopied\t-\n9\tb\tcopied\t-\n")
    for premise in (absent("slides", 8), absent("slides", 9), group("deck:a"), group("deck:b")):
        with refused("stale_context", "reads[0]"):
            ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[premise]))
    with refused("stale_context"):
        ana.commit(request(update("slides", 8, title="mine"), read_at=token))
    assert ana.commit(request(update("slides", 8, title="mine"), read_at=ana.capture()))


def test_merge(deck: Story) -> None:
    """No lost update: MERGE updates, deletes and inserts in one statement."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql(
        """
        merge into slides s
        using (values (1, 'merged'), (2, null), (9, 'inserted')) v (id, title) on s.id = v.id
        when matched and v.title is null then delete
        when matched then update set title = v.title
        when not matched then insert values (v.id, 'a', v.title, '-')
        """
    )
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, title="mine"), read_at=token))
    assert refusal.fields == ["title"]
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 2, title="mine"), read_at=token))
    assert refusal.notification["deleted"] is True
    with refused("stale_context"):
        ana.commit(
            request(update("notes", 1, text="x"), read_at=token, reads=[absent("slides", 9)])
        )
    assert ana.commit(request(update("slides", 1, body="mine"), read_at=token))
    assert ana.commit(request(update("slides", 3, title="mine"), read_at=token))


def test_upsert(deck: Story) -> None:
    """No lost update, no false alarm: the row that is inserted, updated, or left as it was."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql(
        """
        insert into slides
        values (1, 'a', 'upserted', 'u'), (2, 'a', 'two', 'u'), (9, 'a', 'new', 'u')
        on conflict (id) do update set title = excluded.title
        """
    )
    deck.psql("insert into slides values (3, 'b', 'ignored') on conflict do nothing")
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, title="mine", body="mine"), read_at=token))
    assert refusal.fields == ["title"]
    with refused("stale_context"):
        ana.commit(
            request(update("notes", 1, text="x"), read_at=token, reads=[absent("slides", 9)])
        )
    for id in (2, 3):
        assert ana.commit(request(update("slides", id, title="mine"), read_at=token))


def test_upsert_in_flight(deck: Story) -> None:
    """No lost update: its row lock is waited for like any other's."""
    writer, ana = deck.raw(), deck.actor("ana")
    token = ana.capture()
    writer.run(
        "begin; insert into slides values (1, 'a', 'theirs')"
        " on conflict (id) do update set title = excluded.title"
    )
    ana.start_commit(request(update("slides", 1, title="mine"), read_at=token))
    ana.blocked()
    writer.run("commit")
    with refused("stale_context"):
        ana.finish_commit()


def test_a_statement_over_all_rows(deck: Story) -> None:
    """No lost update, no false alarm: of many rows those count that really changed."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set title = case id when 2 then 'theirs' else title end")
    assert ana.commit(request(update("slides", 1, title="mine"), read_at=token))
    with refused("stale_context"):
        ana.commit(request(update("slides", 2, title="mine"), read_at=token))


# --- cascades -------------------------------------------------------------------------------------

FAMILY = """
create table decks (id int primary key, name text);
create table pages (
  id int primary key,
  deck int references decks on delete cascade on update cascade,
  cover int references decks on delete set null,
  title text);
insert into decks values (1, 'one'), (2, 'two'), (3, 'three');
insert into pages values (1, 1, 2, 'page');
select concord.track('decks');
select concord.track('pages', groups => array['deck:{deck}']);
"""


@pytest.mark.parametrize("door", ["raw", "commit"])
def test_a_cascade_from_a_parent(story: Story, door: str) -> None:
    """No lost update: what a foreign key does to a child is the child's change."""
    story.tables(FAMILY)
    ana, bo = story.actor("ana"), story.actor("bo")
    token = ana.capture()
    if door == "raw":
        story.psql("delete from decks where id = 1")
    else:
        bo.commit(request(delete("decks", 1), read_at=token))
    with refused("stale_context") as refusal:
        ana.commit(request(update("pages", 1, title="mine"), read_at=token))
    told = refusal.notification
    assert told["deleted"] is True
    assert told["writtenBy"] == (
        {"kind": "system", "id": "owner"} if door == "raw" else {"kind": "agent", "id": "bo"}
    )
    with refused("stale_context"):
        ana.commit(request(update("decks", 3, name="x"), read_at=token, reads=[group("deck:1")]))


def test_a_cascade_in_flight(story: Story) -> None:
    """No lost update: the child's row is locked by the cascade."""
    story.tables(FAMILY)
    writer, ana = story.raw(), story.actor("ana")
    token = ana.capture()
    writer.run("begin; delete from decks where id = 1")
    ana.start_commit(request(update("pages", 1, title="mine"), read_at=token))
    ana.blocked()
    writer.run("commit")
    with refused("stale_context"):
        ana.finish_commit()


def test_cascades_that_change_a_field(story: Story) -> None:
    """No lost update, no false alarm: SET NULL and a cascading key change that one field."""
    story.tables(FAMILY)
    ana = story.actor("ana")
    token = ana.capture()
    story.psql("delete from decks where id = 2; update decks set id = 11 where id = 1")
    for field, value in (("cover", 3), ("deck", 3)):
        with refused("stale_context") as refusal:
            ana.commit(request(update("pages", 1, **{field: value}), read_at=token))
        assert refusal.fields == [field]
    assert ana.commit(request(update("pages", 1, title="mine"), read_at=token))["applied"] == 1


# --- triggers of the user's own -------------------------------------------------------------------

# A statement inside an AFTER ROW trigger is logged before the statement that fired it.
SHOUTING = """
create table words (id int primary key, word text, times int default 0);
insert into words values (1, 'quiet'), (2, 'quiet');
create function shout() returns trigger language plpgsql as $$
begin
  update words set word = upper(word), times = times + 1 where id = new.id and word <> upper(word);
  return null;
end $$;
create trigger shout after update on words for each row execute function shout();
select concord.track('words');
"""


def test_base_values_under_an_after_row_trigger(story: Story) -> None:
    """Never a guess: the value at the token is the outer statement's, though it is logged later.

    By number alone the base value would be what the trigger found, 'loud', which no reader ever
    saw.
    """
    story.tables(SHOUTING)
    ana = story.actor("ana")
    token = ana.capture()
    story.psql("update words set word = 'loud' where id = 1")
    ask = request(update("words", 1, word="mine", times=9), read_at=token)
    with refused("stale_context") as refusal:
        ana.commit(ask)
    told = refusal.notification
    assert told["conflictingFields"] == ["times", "word"]
    assert told["currentValues"] == {"word": "LOUD", "times": 1}
    assert told["baseValues"] == {"word": "quiet", "times": 0}

    story.psql("update words set word = 'louder' where id = 1")
    with refused("stale_context") as refusal:
        ana.commit(ask)
    assert refusal.notification["baseValues"] == {"word": "quiet", "times": 0}
    assert refusal.notification["currentValues"] == {"word": "LOUDER", "times": 2}
    # onlyChanged rests on the same value: 'quiet' is what was read, so it is no write.
    receipt = ana.commit(request(update("words", 1, word="quiet"), read_at=token, onlyChanged=True))
    assert receipt["unchanged"] == 1
    newest = [change["before"]["word"] for change in story.history("words", 1)]
    assert newest == ["louder", "LOUD", "loud", "quiet"]


def test_a_commits_own_after_row_trigger(story: Story) -> None:
    """No false alarm: what the trigger did to the row is the commit's, and its receipt knows it."""
    story.tables(SHOUTING)
    ana = story.actor("ana")
    receipt = ana.commit(
        request(update("words", 1, word="loud"), read_at=ana.capture(), returning=True)
    )
    assert receipt["operations"][0]["data"]["word"] == "LOUD"
    again = request(update("words", 1, word="more"), read_at=receipt["readAt"])
    assert ana.commit(again)["applied"] == 1
    commits = {change["commit_id"] for change in story.history("words", 1)}
    assert len(commits) == 2
    assert None not in commits


# --- whole objects --------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", ["before", "in flight"])
def test_a_whole_object_save_beside_another_fields_change(deck: Story, seen: str) -> None:
    """No lost update, no false alarm: a form sends every field back, and means one of them."""
    writer, ana = deck.raw(), deck.actor("ana")
    read = ana.read("slides", 1)
    form = {k: v for k, v in read["data"].items() if k != "id"} | {"title": "mine"}
    ask = request(update("slides", 1, **form), read_at=read["readAt"], onlyChanged=True)
    writer.run("begin; update slides set body = 'theirs' where id = 1")
    if seen == "before":
        writer.run("commit")
        receipt = ana.commit(ask)
    else:
        ana.start_commit(ask)
        ana.blocked()
        writer.run("commit")
        receipt = ana.finish_commit()
    assert receipt["applied"] == 1
    assert deck.value("select array[title, body] from slides where id = 1") == ["mine", "theirs"]


def test_a_whole_object_save_of_a_field_that_moved(deck: Story) -> None:
    """No lost update: the field that is meant is guarded, the echoed ones are left alone."""
    ana = deck.actor("ana")
    read = ana.read("slides", 1)
    deck.psql("update slides set title = 'theirs', body = 'theirs' where id = 1")
    form = {**read["data"], "title": "mine"}
    del form["id"]
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, **form), read_at=read["readAt"], onlyChanged=True))
    assert refusal.fields == ["title"]
    # Without onlyChanged each echoed field is a write, and the other one's body would be undone.
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, **form), read_at=read["readAt"]))
    assert refusal.fields == ["body", "title"]
    nothing = request(
        update("slides", 1, **{**form, "title": "one"}), read_at=read["readAt"], onlyChanged=True
    )
    assert ana.commit(nothing)["unchanged"] == 1
    assert deck.value("select array[title, body] from slides where id = 1") == ["theirs"] * 2


# --- partitions -----------------------------------------------------------------------------------

PARTED = """
create table parted (region text, id int, title text, primary key (region, id))
  partition by list (region);
create table parted_north partition of parted for values in ('north');
create table parted_south partition of parted for values in ('south');
insert into parted values ('north', 1, 'one'), ('south', 2, 'two');
create table notes (id int primary key, text text);
insert into notes values (1, 'first');
select concord.track('notes');
select concord.track('parted', groups => array['region:{region}']);
"""
NORTH = {"region": "north", "id": 1}
SOUTH = {"region": "south", "id": 2}
WEST = {"region": "west", "id": 3}


def test_a_write_straight_into_a_partition(story: Story) -> None:
    """No lost update: such a write fires the partition's triggers and not the table's."""
    story.tables(PARTED)
    ana = story.actor("ana")
    token = ana.capture()
    story.psql("update parted_north set title = 'theirs' where id = 1")
    story.psql("insert into parted_south values ('south', 9, 'new')")
    with refused("stale_context") as refusal:
        ana.commit(request(update("parted", NORTH, title="mine"), read_at=token))
    assert refusal.fields == ["title"]
    with refused("stale_context"):
        ana.commit(
            request(
                update("notes", 1, text="x"),
                read_at=token,
                reads=[absent("parted", {"region": "south", "id": 9})],
            )
        )
    with refused("stale_context"):
        ana.commit(
            request(update("notes", 1, text="x"), read_at=token, reads=[group("region:south")])
        )
    assert ana.commit(request(update("parted", SOUTH, title="mine"), read_at=token))["applied"] == 1


def test_a_write_through_the_table(story: Story) -> None:
    """No lost update, and one delta: only the triggers of the relation that was named fire."""
    story.tables(PARTED)
    ana = story.actor("ana")
    token = ana.capture()
    story.psql("update parted set title = 'theirs'")
    for id in (NORTH, SOUTH):
        with refused("stale_context") as refusal:
            ana.commit(request(update("parted", id, title="mine"), read_at=token))
        assert len(refusal.notification["changes"]) == 1
    story.psql("truncate parted_south")
    with refused("stale_context") as refusal:
        ana.commit(request(update("parted", SOUTH, title="mine"), read_at=token))
    assert refusal.notification["deleted"] is True


def test_a_row_that_moves_to_another_partition(story: Story) -> None:
    """No lost update: one id went, another came."""
    story.tables(PARTED)
    ana = story.actor("ana")
    token = ana.capture()
    story.psql("update parted set region = 'south' where id = 1")
    with refused("stale_context") as refusal:
        ana.commit(request(update("parted", NORTH, title="mine"), read_at=token))
    assert refusal.notification["deleted"] is True
    moved = {"region": "south", "id": 1}
    with refused("stale_context"):
        ana.commit(request(update("parted", moved, title="mine"), read_at=token))
    with refused("stale_context"):
        ana.commit(
            request(update("notes", 1, text="x"), read_at=token, reads=[absent("parted", moved)])
        )


def test_a_new_partition_written_straight(story: Story) -> None:
    """Never a guess: a partition that lacks its triggers may have changed unseen.

    `commit` refuses until `refresh`, which counts as a change of the whole model, so that a token
    from before can't count the unlogged write as seen.
    """
    story.tables(PARTED)
    ana, owner = story.actor("ana"), story.raw("owner")
    token = ana.capture()
    owner.run("create table parted_west partition of parted for values in ('west')")
    owner.run("grant select, insert, update, delete on parted_west to app")
    asks = [
        request(update("parted", NORTH, title="mine"), read_at=token),
        request(update("notes", 1, text="x"), read_at=token, reads=[absent("parted", WEST)]),
        request(create("parted", WEST, title="mine")),
    ]
    story.psql("insert into parted_west values ('west', 3, 'unlogged')")
    for ask in asks:
        with refused("model_changed"):
            ana.commit(ask)
    owner.run("select concord.refresh('parted')")
    with refused("stale_context") as refusal:
        ana.commit(asks[0])
    assert refusal.fields == []
    with refused("stale_context"):
        ana.commit(asks[1])
    with refused("already_exists"):
        ana.commit(asks[2])

    token = ana.capture()
    story.psql("update parted_west set title = 'theirs'")
    with refused("stale_context") as refusal:
        ana.commit(request(update("parted", WEST, title="mine"), read_at=token))
    assert refusal.fields == ["title"]


def test_a_table_with_rows_that_is_attached(story: Story) -> None:
    """Never a guess: its rows entered the model without a statement that could be logged."""
    story.tables(PARTED)
    ana, owner = story.actor("ana"), story.raw("owner")
    token = ana.capture()
    owner.run(
        "create table parted_west (like parted including all);"
        "insert into parted_west values ('west', 3, 'from outside');"
        "grant select, insert, update, delete on parted_west to app;"
        "alter table parted attach partition parted_west for values in ('west')"
    )
    ask = request(update("notes", 1, text="x"), read_at=token, reads=[absent("parted", WEST)])
    with refused("model_changed"):
        ana.commit(ask)
    owner.run("select concord.refresh('parted')")
    with refused("stale_context"):
        ana.commit(ask)
    with refused("stale_context"):
        ana.commit({**ask, "reads": [group("region:west")]})


# --- rows that go on their way --------------------------------------------------------------------


@pytest.mark.parametrize("ids", ["1", "1, 2"])
def test_an_update_that_removes_rows(story: Story, ids: str) -> None:
    """No lost update: a row that another partition swallows is gone, though nobody deleted it."""
    story.tables(
        """
        create table parts (id int primary key, kind text, n int) partition by range (id);
        create table parts_1 partition of parts for values from (0) to (100);
        create table parts_2 partition of parts for values from (100) to (200);
        insert into parts values (1, 'x', 0), (2, 'x', 0);
        create function swallow() returns trigger language plpgsql as $$
        begin return null; end $$;
        create trigger swallow before insert on parts_2 for each row execute function swallow();
        create table notes (id int primary key, text text);
        insert into notes values (1);
        select concord.track('parts', groups => array['kind:{kind}']);
        select concord.track('notes');
        """
    )
    ana = story.actor("ana")
    token = ana.capture()
    story.psql(
        f"update parts set id = case id when 1 then 101 else id end, n = n + 1 where id in ({ids})"
    )
    assert story.value("select count(*) from parts") == 1
    with refused("stale_context") as refusal:
        ana.commit(request(update("parts", 1, n=5), read_at=token))
    assert refusal.notification["deleted"] is True
    with refused("stale_context", "reads[0]"):
        ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[group("kind:x")]))
