"""Names of models and kinds of groups that others use already, and code that is lent."""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest

from tests.isolation.schedule import (
    Session,
    Story,
    contended,
    fails,
    group,
    refused,
    request,
    update,
)


@pytest.fixture
def mallory(deck: Story) -> Session:
    """A login that owns tables in a schema of its own."""
    deck.admin().run("create schema m authorization plain; grant usage on schema m to app")
    session = deck.session("mallory", "plain")
    session.run(
        "create table m.evil (id int primary key, deck text, title text);"
        "insert into m.evil values (1, 'a', 'evil'); grant all on m.evil to app"
    )
    return session


@pytest.mark.parametrize("tenant", [None, "acme"])
def test_a_name_that_shadows_anothers(deck: Story, mallory: Session, tenant: str | None) -> None:
    """No door beside the wall: a commit meant for one table never comes to another's owner."""
    with refused("invalid_request", "name"):
        mallory.run("select concord.track('m.evil', 'slides', tenant => %s)", tenant)
    mallory.run("select concord.track('m.evil', tenant => %s)", tenant)
    with refused("invalid_request", "name"):
        mallory.run("select concord.track('m.evil', 'slides', tenant => %s)", tenant)
    ana = deck.actor("ana")
    assert ana.read("slides", 1)["data"]["title"] == "one"


def test_a_shared_name_that_a_tenant_has(deck: Story, mallory: Session) -> None:
    """Likewise: for all tenants means for those that have a model of that name, too."""
    deck.psql("select concord.track('slides', tenant => 'acme')")
    with refused("invalid_request", "name"):
        mallory.run("select concord.track('m.evil', 'slides')")
    # A tenant's own name is no other tenant's concern.
    mallory.run("select concord.track('m.evil', 'slides', tenant => 'beta')")
    with refused("invalid_request", "name"):
        mallory.run("select concord.track('m.evil', 'slides')")
    with refused("invalid_request", "name"):
        deck.raw().run("select concord.track('slides')")


def test_names_of_ones_own(deck: Story, mallory: Session) -> None:
    """Who owns both tables, or the database, may give both one name; and refresh goes on."""
    owner = deck.raw("owner")
    owner.run("create table special (id int primary key, title text)")
    owner.run("select concord.track('special', 'slides', tenant => 'acme')")
    deck.admin().run("select concord.track('m.evil', 'slides', tenant => 'beta')")
    for by in (owner, mallory):
        by.run("select concord.refresh()")
    owner.run("select concord.track('slides', groups => array['deck:{deck}'], detail => 'names')")
    mallory.run("select concord.track('m.evil', 'slides', tenant => 'beta', detail => 'names')")


def test_names_taken_at_once(deck: Story, mallory: Session) -> None:
    """No door beside the wall: of two that come at once, the second sees the first."""
    owner = deck.raw("owner")
    owner.run("create table late (id int primary key)")
    owner.run("begin; select concord.track('late')")
    mallory.start("select concord.track('m.evil', 'late', tenant => 'acme')")
    mallory.blocked()
    owner.run("commit")
    with refused("invalid_request", "name"):
        mallory.finish()
    # Nor does an old snapshot help.
    owner.run("create table later (id int primary key)")
    mallory.run("begin isolation level repeatable read; select 1 from m.evil")
    owner.run("select concord.track('later')")
    with refused("invalid_request", "isolation"):
        mallory.run("select concord.track('m.evil', 'later', tenant => 'acme')")
    mallory.run("rollback")
    # Other names wait for nobody, and waits are bounded.
    mallory.run("begin; select concord.track('m.evil')")
    owner.run("create table other (id int primary key); select concord.track('other')")
    deck.configure("lock_timeout", "50 ms")
    with contended():
        owner.run("select concord.track('other', 'evil', tenant => 'acme')")


def test_a_kind_of_group_that_others_use(deck: Story, mallory: Session) -> None:
    """No false alarm by somebody else's hand: nobody's table joins a group without its owner."""
    for tenant in (None, "acme"):
        with refused("invalid_request", "groups"):
            mallory.run(
                "select concord.track('m.evil', groups => array['mine:{id}', 'deck:{deck}'],"
                " tenant => %s)",
                tenant,
            )
    mallory.run("select concord.track('m.evil', groups => array['mine:{id}'])")
    with refused("invalid_request", "groups"):
        mallory.run("select concord.track('m.evil', groups => array['deck:{deck}'])")
    ana = deck.actor("ana")
    token = ana.capture()
    mallory.run("insert into m.evil values (2, 'a'); select concord.pause('m.evil')")
    ana.commit(request(update("notes", 1, text="x"), read_at=token, reads=[group("deck:a")]))
    # Its owner may, and an administrator; what stands is refreshed by each owner.
    owner = deck.raw("owner")
    owner.run("create table cards (id int primary key, deck text)")
    owner.run("select concord.track('cards', groups => array['deck:{deck}'])")
    deck.admin().run("select concord.track('m.evil', groups => array['deck:{deck}'])")
    owner.run("select concord.refresh()")
    mallory.run("select concord.refresh()")
    mallory.run("select concord.track('m.evil', groups => array['deck:{deck}'], detail => 'names')")


def test_a_kind_of_group_of_another_tenant(deck: Story, mallory: Session) -> None:
    """Tenants do not see each other's kinds."""
    deck.psql("select concord.track('slides', groups => array['deck:{deck}'], tenant => 'acme')")
    mallory.run("select concord.track('m.evil', groups => array['deck:{deck}'], tenant => 'beta')")
    with refused("invalid_request", "groups"):
        mallory.run(
            "select concord.track('m.evil', groups => array['deck:{deck}'], tenant => 'acme')"
        )


def test_functions_are_lent_to_track_alone(deck: Story, mallory: Session) -> None:
    """No forgery: the helpers of track, called otherwise, lend no trigger function."""
    mallory.run("create table m.other (id int primary key, title text)")
    model = mallory.one("select concord.track('m.evil')->>'id'")
    inserts = f"concord_internal.model_{model}_insert()"
    define = "concord_internal.define_model('m.evil','e',null,'','{}','{}','{}','before','{}')"
    for attempt in (
        f"select {define}",
        "select concord_internal.redefine_model('m.evil')",
        f"do $$ declare m concord_internal.models; begin m := {define}; end $$",
        f"do $$ begin perform {define};\n-- concord_internal.track_model(\nend $$",
        "create function m.track_model(r regclass) returns void language plpgsql as"
        f" $$ declare m concord_internal.models; begin m := {define}; end $$;"
        "set search_path = m, concord, concord_internal; select track_model('evil')",
    ):
        with suppress(psycopg.Error):
            mallory.run(attempt)
        assert mallory.one("select has_function_privilege(%s, 'execute')", inserts) is False
        with fails("42501"):
            mallory.run(
                "create trigger t after insert on m.other referencing new table as new_rows"
                f" for each statement execute function {inserts}"
            )
    mallory.run("select concord.refresh('m.evil')")
    assert mallory.one("select has_function_privilege(%s, 'execute')", inserts) is False


@pytest.mark.parametrize("path", ["m", "concord", "concord_internal, concord, m", "m, pg_catalog"])
def test_track_under_a_search_path_of_the_callers(deck: Story, mallory: Session, path: str) -> None:
    """Nothing that the caller wrote runs while the functions are lent, whatever its path finds."""
    mallory.run(
        "create table m.got (what text);"
        "create function m.format(text, regclass, text) returns text language plpgsql as $$ begin"
        " insert into m.got values ($1); return pg_catalog.format($1, $2, $3); end $$"
    )
    mallory.run(f"set search_path = {path}")
    mallory.run("select concord.track('m.evil')")
    mallory.run("alter table m.evil add column extra int")
    mallory.run("drop trigger concord_insert on m.evil")
    mallory.run("select concord.refresh('m.evil')")
    mallory.run("insert into m.evil values (9)")
    assert mallory.run("select * from m.got") == []
    assert deck.history("evil", 9)[0]["op"] == "create"
