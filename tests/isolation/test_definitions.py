"""Models that come, go and change while tokens are out and writers are in flight."""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest

from tests.isolation.schedule import (
    Request,
    Session,
    Story,
    absent,
    fails,
    group,
    refused,
    request,
    row,
    update,
)

SLIDES = """
create table slides (id int primary key, deck text, title text, body text);
insert into slides values (1, 'a', 'one', '-'), (2, 'a', 'two', '-');
create table notes (id int primary key, text text);
insert into notes values (1, 'first');
select concord.track('notes');
"""
TRACK = "select concord.track('slides', groups => array['deck:{deck}'])"


def asks(token: str) -> list[Request]:
    """What rests on slides: a guarded write, a row, an absence, a group."""
    premises = (row("slides", 2, "title"), absent("slides", 9), group("deck:a"))
    return [
        request(update("slides", 1, title="mine"), read_at=token),
        *(request(update("notes", 1, text="x"), read_at=token, reads=[p]) for p in premises),
    ]


def all_refused(by: Session, token: str, code: str = "model_changed") -> None:
    for ask in asks(token):
        with refused(code):
            by.commit(ask)


def all_pass(by: Session, token: str) -> None:
    for ask in reversed(asks(token)):  # the write last, since it is a change of the group
        by.commit(ask)


# --- tokens older than a definition ---------------------------------------------------------------


def test_a_token_older_than_track(story: Story) -> None:
    """Never a guess: what changed before the triggers stood is in no log."""
    story.tables(SLIDES)
    ana = story.actor("ana")
    token = ana.capture()
    story.psql("update slides set title = 'unlogged' where id = 2")
    story.psql(TRACK)
    all_refused(ana, token)
    all_pass(ana, ana.capture())


def test_a_token_older_than_untrack_and_track(deck: Story) -> None:
    """Never a guess: between the two nobody logged."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("select concord.untrack('slides')")
    with refused("model_unknown", "operations[0].model"):
        ana.commit(asks(token)[0])
    with refused("model_changed", "reads[0].group"):
        ana.commit(asks(token)[3])
    deck.psql("update slides set title = 'unlogged' where id = 2")
    between = ana.capture()
    deck.psql(TRACK)
    all_refused(ana, token)
    all_refused(ana, between)
    all_pass(ana, ana.capture())


def test_a_token_taken_while_track_waits(story: Story) -> None:
    """Never a guess: track waits for writers in flight, whose changes are in no log."""
    story.tables(SLIDES)
    owner, writer, ana = story.raw("owner"), story.raw(), story.actor("ana")
    writer.run("begin; update slides set title = 'unlogged' where id = 2")
    owner.start(TRACK)
    owner.blocked()
    token = ana.capture()
    writer.run("update slides set title = 'unlogged, too' where id = 1")
    writer.run("commit")
    owner.finish()
    all_refused(ana, token)
    all_pass(ana, ana.capture())


def test_a_writer_that_waits_for_track(story: Story) -> None:
    """No lost update: who comes while track is under way writes under its triggers."""
    story.tables(SLIDES)
    owner, writer, ana = story.raw("owner"), story.raw(), story.actor("ana")
    owner.run("begin")
    owner.run(TRACK)
    during = ana.capture()
    writer.start("update slides set title = 'theirs' where id = 1")
    writer.blocked()
    owner.run("commit")
    token = ana.capture()  # the writer is in flight, or done
    writer.finish()
    with refused("model_changed"):
        ana.commit(asks(during)[0])
    assert [change["fields"] for change in story.history("slides", 1)] == [["title"]]
    if ana.read("slides", 1)["data"]["title"] == "theirs":
        fresh = ana.capture()
        story.psql("update slides set title = 'theirs again' where id = 1")
        for each in (token, fresh):
            with refused("stale_context"):
                ana.commit(asks(each)[0])


def test_track_does_not_queue_the_application_behind_itself(story: Story) -> None:
    """Nobody waits for ever: it is contended, and has left nothing behind."""
    story.tables(SLIDES)
    story.configure("lock_timeout", "50 ms")
    owner, writer = story.raw("owner"), story.raw()
    writer.run("begin; update slides set title = 'theirs' where id = 1")
    with fails("55P03"):
        owner.run(TRACK)
    writer.run("commit")
    assert story.value("select count(*) from pg_trigger where tgrelid = 'slides'::regclass") == 0
    owner.run(TRACK)
    writer.run("begin; update slides set title = 'theirs' where id = 1")
    for inverse in ("untrack", "pause"):
        with fails("55P03"):
            owner.run(f"select concord.{inverse}('slides')")
    writer.run("commit")
    assert story.value("show lock_timeout") == "0"
    assert owner.one("show lock_timeout") == "0"


CHANGED = {
    "groups": "groups => array['deck:{deck}', 'title:{title}']",
    "ignore_fields": "groups => array['deck:{deck}'], ignore_fields => '{body}'",
    "tenant": "groups => array['deck:{deck}'], tenant => 'acme'",
    "tenant_column": "groups => array['deck:{deck}'], tenant_column => 'body'",
}


@pytest.mark.parametrize("changed", CHANGED)
def test_a_token_older_than_a_change_of_the_model(deck: Story, changed: str) -> None:
    """Never a guess: the deltas of the one definition don't answer for the other."""
    deck.psql("update slides set body = 'acme'")
    ana, eve = deck.actor("ana"), deck.actor("eve", tenant="beta")
    token = ana.capture()
    deck.psql(f"select concord.track('slides', {CHANGED[changed]})")
    all_refused(ana, token)
    all_pass(ana, ana.capture())
    with refused("model_changed"):  # what left the shared rows left eve's group as well
        eve.commit(request(update("notes", 2, text="x"), read_at=token, reads=[group("deck:a")]))


def test_a_change_that_changes_no_answer(deck: Story) -> None:
    """No false alarm: track is idempotent, and what the log answers is what it answered."""
    ana = deck.actor("ana")
    for same in (
        "groups => array['deck:{deck}']",
        "groups => array['deck:{deck}'], detail => 'names'",
        "groups => array['deck:{deck}'], secret_fields => '{body}'",
        "groups => array['deck:{deck}'], on_stale => '{\"agent\": \"reject\"}'",
    ):
        token = ana.capture()
        deck.psql(f"select concord.track('slides', {same})")
        all_pass(ana, token)
        deck.psql("update slides set title = 'theirs' where id = 1")
        with refused("stale_context"):
            ana.commit(asks(token)[0])


def test_a_change_of_groups_waits_for_writers(deck: Story) -> None:
    """Never a guess: nobody who writes under the old groups is in flight when the new begin.

    Else that writer's row would enter the new group in no delta that a later token could miss.
    """
    owner, writer, ana = deck.raw("owner"), deck.raw(), deck.actor("ana")
    writer.run("begin; insert into slides values (9, 'a', 'new')")
    owner.start("select concord.track('slides', groups => array['title:{title}'])")
    owner.blocked()
    token = ana.capture()
    writer.run("commit")
    owner.finish()
    ask = request(update("notes", 1, text="x"), read_at=token, reads=[group("title:new")])
    with refused("model_changed"):
        ana.commit(ask)
    assert ana.commit({**ask, "readAt": ana.capture()})["applied"] == 1


def test_one_of_two_models_of_a_group_goes(deck: Story) -> None:
    """Never a guess: the group has lost a model, and with it rows, and no delta says so."""
    deck.tables(
        "create table pictures (id int primary key, deck text);"
        "insert into pictures values (1, 'a');"
        "select concord.track('pictures', groups => array['deck:{deck}'])"
    )
    ana = deck.actor("ana")
    ask = request(update("notes", 1, text="x"), reads=[group("deck:a")])
    token = ana.capture()
    ana.commit({**ask, "readAt": token})
    deck.psql("select concord.untrack('pictures')")
    with refused("model_changed", "reads[0].group"):
        ana.commit({**ask, "readAt": token})
    assert ana.commit({**ask, "readAt": ana.capture()})["applied"] == 1


# --- pause and resume -----------------------------------------------------------------------------


def test_pause_and_resume(deck: Story) -> None:
    """Never a guess: while nothing is logged nothing is judged, and the gap stays closed after."""
    ana = deck.actor("ana")
    before = ana.capture()
    deck.psql("select concord.pause('slides')")
    during = ana.capture()
    all_refused(ana, before)
    all_refused(ana, during)
    assert ana.commit(request(update("slides", 1, title="unguarded")))["applied"] == 1
    deck.psql("update slides set title = 'unlogged' where id = 2")
    ana.commit(request(update("notes", 1, text="x"), read_at=before))
    deck.psql("select concord.resume('slides')")
    all_refused(ana, before)
    all_refused(ana, during)
    after = ana.capture()
    all_pass(ana, after)
    deck.psql("update slides set title = 'logged' where id = 2")
    with refused("stale_context"):
        ana.commit(asks(after)[1])
    titles = [change["before"]["title"] for change in deck.history("slides", 2)]
    assert titles == ["unlogged"]


@pytest.mark.parametrize("switch", ["pause", "resume"])
def test_pause_and_resume_wait_for_writers(deck: Story, switch: str) -> None:
    """Never a guess: a writer in flight is logged under pause's rules or under resume's, not both.

    A statement that began while the model was paused may not end, unlogged, after it has resumed.
    """
    owner, writer, ana = deck.raw("owner"), deck.raw(), deck.actor("ana")
    if switch == "resume":
        owner.run("select concord.pause('slides')")
    writer.run("begin; update slides set title = 'theirs' where id = 1")
    owner.start(f"select concord.{switch}('slides')")
    owner.blocked()
    token = ana.capture()
    writer.run("commit")
    owner.finish()
    all_refused(ana, token)


def test_pausing_what_is_paused(deck: Story) -> None:
    """No false alarm: a second pause, or a resume of what runs, changes nothing."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("select concord.resume('slides')")
    all_pass(ana, token)


# --- definitions that change while a commit waits -------------------------------------------------


UNLOGGED = "update slides set title = 'unlogged' where id = 1"
UNDER_THE_WAIT = {
    # The log no longer answers for what was seen before the wait: judged by a model that is gone
    # nothing is stale, and the write would go over theirs.
    "untracked": (
        ["update slides set title = 'theirs' where id = 1", "select concord.untrack('slides')"],
        "model_unknown",
    ),
    # The same with another model of the same name in its place.
    "untracked and tracked": (
        ["select concord.untrack('slides')", UNLOGGED, TRACK],
        "model_changed",
    ),
    # The gap lies behind a lock that the commit waited for.
    "paused and resumed": (
        ["select concord.pause('slides')", UNLOGGED, "select concord.resume('slides')"],
        "model_changed",
    ),
    # Values can't be compared across a change of type.
    "retyped": (["alter table slides alter body type varchar(9)"], "model_changed"),
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("what", UNDER_THE_WAIT)
def test_redefined_under_the_wait(deck: Story, what: str) -> None:
    """No lost update, never a guess: the model that is judged by is the one after the wait."""
    owner, ana = deck.raw("owner"), deck.actor("ana")
    statements, code = UNDER_THE_WAIT[what]
    token = ana.capture()
    owner.run("begin")
    for statement in statements:
        owner.run(statement)
    ana.start_commit(request(update("slides", 1, title="mine", body="mine"), read_at=token))
    ana.blocked()
    owner.run("commit")
    with refused(code):
        ana.finish_commit()
    assert deck.value("select title from slides where id = 1") != "mine"


PARTED = """
create table parted (region text, id int, title text, primary key (region, id))
  partition by list (region);
create table parted_north partition of parted for values in ('north');
insert into parted values ('north', 1, 'one');
create table notes (id int primary key, text text);
insert into notes values (1, 'first');
select concord.track('notes');
select concord.track('parted', groups => array['region:{region}']);
"""
NORTH = {"region": "north", "id": 1}


def test_a_partition_that_comes_under_the_wait(story: Story) -> None:
    """Never a guess: a partition without triggers is there when the commit has its locks.

    What it holds came in unlogged. The look at the definition has to follow the last wait.
    """
    story.tables(PARTED)
    ana, owner = story.actor("ana"), story.raw("owner")
    token = ana.capture()
    owner.run(
        "begin; create table parted_west partition of parted for values in ('west');"
        "insert into parted_west values ('west', 3, 'unlogged')"
    )
    ana.start_commit(
        request(update("parted", NORTH, title="mine"), read_at=token, reads=[group("region:west")])
    )
    ana.blocked()
    owner.run("commit")
    with refused("model_changed"):
        ana.finish_commit()


def test_a_partition_that_is_attached_under_the_wait(story: Story) -> None:
    """Never a guess: attaching doesn't wait for commits, and they don't wait for it."""
    story.tables(PARTED)
    ana, owner, writer = story.actor("ana"), story.raw("owner"), story.raw()
    owner.run("create table parted_west (like parted including all)")
    owner.run("insert into parted_west values ('west', 3, 'from outside')")
    token = ana.capture()
    writer.run("begin; select from parted where id = 1 for update")
    ana.start_commit(
        request(update("parted", NORTH, title="mine"), read_at=token, reads=[group("region:west")])
    )
    ana.blocked()
    owner.run("alter table parted attach partition parted_west for values in ('west')")
    writer.run("commit")
    with refused("model_changed"):
        ana.finish_commit()


# --- columns, one step at a time ------------------------------------------------------------------


def test_an_added_column(deck: Story) -> None:
    """No false alarm, no lost update: the trigger knows a column that it was not made for."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("alter table slides add column mood text default 'calm'")
    assert ana.commit(request(update("slides", 1, title="mine"), read_at=token))["applied"] == 1
    deck.psql("update slides set mood = 'theirs' where id = 2")
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 2, mood="mine"), read_at=token))
    assert refusal.fields == ["mood"]
    assert refusal.notification["baseValues"] == {"mood": "calm"}
    assert ana.commit(request(update("slides", 2, title="mine"), read_at=token))["applied"] == 1
    read = ana.read("slides", 2)
    assert read["data"]["mood"] == "theirs"
    deck.psql("select concord.refresh('slides')")
    deck.psql("update slides set mood = 'again' where id = 2")
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 2, mood="mine"), read_at=read["readAt"]))
    assert refusal.fields == ["mood"]


@pytest.mark.parametrize("gone", ["rename column body to text", "drop column body"])
def test_a_column_that_is_gone(deck: Story, gone: str) -> None:
    """No lost update, no false alarm: a delta that names it counts as a change of the whole row."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set body = 'theirs' where id = 1")
    between = ana.capture()
    deck.psql(f"alter table slides {gone}")
    with refused("stale_context") as refusal:
        ana.commit(request(update("slides", 1, title="mine"), read_at=token))
    assert refusal.fields == []
    assert ana.commit(request(update("slides", 1, title="mine"), read_at=between))["applied"] == 1
    assert ana.commit(request(update("slides", 2, title="mine"), read_at=token))["applied"] == 1
    with refused("invalid_request", "operations[0].data.body"):
        ana.commit(request(update("slides", 2, body="mine"), read_at=token))
    if "rename" in gone:
        fresh = ana.capture()
        deck.psql("update slides set text = 'theirs' where id = 2")
        with refused("stale_context") as refusal:
            ana.commit(request(update("slides", 2, text="mine"), read_at=fresh))
        assert refusal.fields == ["text"]
    after = ana.capture()
    deck.psql("select concord.refresh('slides')")
    assert ana.commit(request(update("slides", 2, title="again"), read_at=after))["applied"] == 1


def test_a_column_that_takes_anothers_name(deck: Story) -> None:
    """No lost update: two columns that swap names were both changed, whatever the names say now.

    After the swap the delta's name is there again and means another column.
    """
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("update slides set body = 'theirs' where id = 1")
    deck.psql(
        "alter table slides rename column body to was_body;"
        "alter table slides rename column title to body;"
        "alter table slides rename column was_body to title"
    )
    with refused("stale_context or model_changed"):
        ana.commit(request(update("slides", 1, title="mine"), read_at=token))


def test_a_retyped_column(deck: Story) -> None:
    """Never a guess: refused until refresh, and tokens from before stay refused after it."""
    ana = deck.actor("ana")
    token = ana.capture()
    deck.psql("alter table slides alter body type varchar(20)")
    all_refused_on_slides(ana, token)
    all_refused_on_slides(ana, ana.capture())
    deck.psql("update slides set body = 'logged all the same' where id = 1")
    assert deck.history("slides", 1)[0]["fields"] == ["body"]
    deck.psql("select concord.refresh('slides')")
    all_refused(ana, token)
    fresh = ana.capture()
    all_pass(ana, fresh)
    deck.psql("update slides set body = 'theirs' where id = 1")
    with refused("stale_context"):
        ana.commit(request(update("slides", 1, body="mine"), read_at=fresh))


def all_refused_on_slides(by: Session, token: str) -> None:
    for ask in asks(token)[:3]:
        with refused("model_changed"):
            by.commit(ask)


@pytest.mark.parametrize(
    "change",
    [
        "add column mood text",
        "rename column body to text",
        "drop column body",
        "alter title set default 'untitled'",
    ],
)
def test_columns_that_change_under_the_wait(deck: Story, change: str) -> None:
    """No false alarm: a column's coming and going concerns who writes that column."""
    owner, ana = deck.raw("owner"), deck.actor("ana")
    token = ana.capture()
    owner.run(f"begin; alter table slides {change}")
    ana.start_commit(
        request(
            update("slides", 1, title="mine"),
            read_at=token,
            reads=[row("slides", 2, "title"), row("slides", 2), group("deck:a")],
            returning=True,
        )
    )
    ana.blocked()
    owner.run("commit")
    receipt = ana.finish_commit()
    assert receipt["operations"][0]["data"]["title"] == "mine"


@pytest.mark.usefixtures("way")
def test_a_change_made_under_the_wait_to_a_column_that_is_new(deck: Story) -> None:
    """No lost update: the same transaction adds a column and writes to it, and to another."""
    owner, ana = deck.raw("owner"), deck.actor("ana")
    token = ana.capture()
    owner.run("begin; alter table slides add column mood text")
    owner.run("update slides set mood = 'theirs', title = 'theirs' where id = 1")
    owner.run("update slides set mood = 'theirs' where id = 2")
    ana.start_commit(request(update("slides", 1, title="mine"), read_at=token))
    ana.blocked()
    owner.run("commit")
    with refused("stale_context") as refusal:
        ana.finish_commit()
    assert refusal.fields == ["title"]
    assert ana.commit(request(update("slides", 2, title="mine"), read_at=token))["applied"] == 1


@pytest.mark.parametrize("change", ["rename column body to text", "drop column body"])
def test_a_read_that_waits_for_a_column(deck: Story, change: str) -> None:
    """Never a guess: who reads while a column goes gets the row as it is then."""
    owner, ana = deck.raw("owner"), deck.actor("ana")
    owner.run(f"begin; alter table slides {change}")
    ana.start("select concord.read('slides', '1')")
    ana.blocked()
    owner.run("commit")
    with suppress(psycopg.errors.SerializationFailure):  # contended: to be tried again
        ana.finish()
    read = ana.read("slides", 1)
    assert read["data"]["title"] == "one"
    assert "body" not in read["data"]
    ana.commit(request(update("slides", 1, title="mine"), read_at=read["readAt"]))


@pytest.mark.parametrize("secret", ["id", "org", "deck"])
def test_a_secret_that_would_be_logged(story: Story, secret: str) -> None:
    """Keys, tenants and groups are what the log is searched by: none of them can be a secret."""
    owner = story.raw("owner")
    owner.run("create table vault (id int primary key, org text, deck text, pw text)")
    track = "select concord.track('vault', tenant_column => 'org', groups => array['deck:{deck}'], "
    with refused("invalid_request", "secret_fields"):
        owner.run(f"{track} secret_fields => '{{{secret}}}')")
    owner.run(f"{track} secret_fields => '{{pw}}')")
