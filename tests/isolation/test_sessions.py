"""Logins that may not state who acts: by a secret that a service minted for them, or by the claims
of a JWT that somebody checked for them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.isolation.schedule import (
    Session,
    Story,
    create,
    delete,
    fails,
    group,
    refused,
    request,
    row,
    update,
)

TABLES = """
create table slides (id int primary key, deck text, title text, body text);
create table notes (id int primary key, deck text, text text);
create table ledger (id int primary key, amount int);
insert into slides values (1, 'a', 'one', ''), (2, 'a', 'two', '');
insert into notes values (1, 'a', 'first');
insert into ledger values (1, 10);
select concord.track('slides', groups => array['deck:{deck}']);
select concord.track('notes', groups => array['deck:{deck}', 'text:{text}']);
select concord.track('ledger');
grant select, insert, update, delete on all tables in schema public to app2, plain;
"""
MINT = "select secret, session::text from concord.mint_session(%s, %s, %s, operations => %s)"
WHO = "select (concord.principal()).*"


@pytest.fixture
def story(story: Story) -> Story:
    story.tables(TABLES)
    return story


def mint(
    story: Story,
    login: str = "app2",
    kind: str = "agent",
    name: str = "writer",
    operations: list[str] | None = None,
) -> tuple[str, str]:
    """A secret and its session, from a service that acts in acme."""
    ((secret, session),) = story.actor("desk").run(MINT, login, kind, name, operations)
    return secret, session


def by(story: Story, secret: str, login: str = "app2") -> Session:
    """A connection that acts by it."""
    made = story.session("bearer", login)
    made.run("select concord.authenticate(%s, is_local => false)", secret)
    return made


def test_it_acts_as_whom_it_was_minted_for(story: Story) -> None:
    desk = story.actor("desk")
    ((secret,),) = desk.run(
        "select secret from concord.mint_session('app2', 'agent', 'writer', on_behalf_of => 'ana')"
    )
    bearer = by(story, secret)
    assert bearer.run(WHO) == [("acme", "agent", "writer", "ana")]
    token = bearer.capture()
    bearer.commit(request(update("slides", 1, title="by it"), read_at=token))
    bearer.run("update slides set body = 'raw' where id = 1")
    for change in story.history("slides", 1):
        assert (change["kind"], change["actor"], change["on_behalf_of"]) == (
            "agent",
            "writer",
            "ana",
        )
    other = story.actor("ben")
    with refused("stale_context") as told:
        other.commit(request(update("slides", 1, title="x"), read_at=token))
    assert told.notification["writtenBy"] == {"kind": "agent", "id": "writer", "onBehalfOf": "ana"}


def test_the_secret_is_shown_once(story: Story) -> None:
    """No forgery: who reads Concord's tables can't act by what is there."""
    secret, session = mint(story)
    assert re.fullmatch(r"kcs1_[0-9a-f]{64}", secret)
    admin = story.admin()
    ((kept,),) = admin.run("select s::text from concord_internal.sessions s")
    assert secret not in kept
    assert secret.removeprefix("kcs1_") not in kept
    for role in ("app", "app2"):
        with fails("42501"):
            story.session("thief", role).run("select * from concord_internal.sessions")
        with fails("42501"):
            story.session("thief", role).run("select concord_internal.session_mac(%s)", session)


def test_it_is_local_unless_told_otherwise(story: Story) -> None:
    secret, _ = mint(story)
    bearer = story.session("bearer", "app2")
    bearer.run("begin; select concord.authenticate(%s)".replace("%s", f"'{secret}'"))
    assert bearer.run(WHO)[0][2] == "writer"
    bearer.run("commit")
    assert bearer.run(WHO) == [(None, None, None, None)]
    with refused("unauthenticated"):
        bearer.commit(request(update("slides", 1, title="x")))


@pytest.mark.parametrize("login", ["app", "plain", "owner"])
def test_a_secret_on_another_login(story: Story, login: str) -> None:
    secret, _ = mint(story)
    thief = story.session("thief", login)
    with refused("unauthenticated", "secret"):
        thief.run("select concord.authenticate(%s)", secret)
    with refused("unauthenticated", "secret"):
        thief.run("select concord.authenticate('kcs1_guess')")
    with refused("unauthenticated", "secret"):
        thief.run("select concord.authenticate(null)")


def test_the_setting_on_another_backend(story: Story) -> None:
    """No forgery: what authenticate() leaves is worth nothing elsewhere, nor with another id."""
    secret, session = mint(story)
    _, other = mint(story, name="other")
    bearer, thief = by(story, secret), story.session("thief", "app2")
    left = bearer.one("select current_setting('concord.session')")
    mac = left.split(".")[1]
    for forged in (
        left,
        session,
        f"{session}.{'0' * 64}",
        f"{other}.{mac}",
        "x",
        f"{mac}.{session}",
        f"{'-' * 36}.{mac}",
    ):
        thief.run("select set_config('concord.session', %s, false)", forged)
        assert thief.run(WHO) == [(None, None, None, None)], forged
    bearer.run("select set_config('concord.session', %s, false)", f"{other}.{mac}")
    assert bearer.run(WHO) == [(None, None, None, None)]
    bearer.run("select set_config('concord.session', %s, false)", left)
    assert bearer.run(WHO)[0][2] == "writer"


@pytest.mark.parametrize(
    "trick",
    [
        "select set_config('concord.acting', E'acme\\x1fuser\\x1fboss\\x1f', false)",
        "set role none",
        "reset role",
        "set session authorization default",
        "reset session authorization",
    ],
)
def test_tricks_change_nothing(story: Story, trick: str) -> None:
    bearer = by(story, mint(story)[0])
    bearer.run(trick)
    assert bearer.run(WHO)[0][:3] == ("acme", "agent", "writer")
    with refused("forbidden"):
        bearer.run("select concord.act_as('acme', 'user', 'boss')")
    bearer.run("reset concord.session")
    assert bearer.run(WHO) == [(None, None, None, None)]


def test_another_role_is_still_the_logins(story: Story) -> None:
    """The session goes by who connected; SET ROLE gives no other one's, and takes none away."""
    role = story.role("helper_of_sessions")
    story.admin().run(f"grant {role} to app2; grant select, update on slides to {role}")
    bearer = by(story, mint(story)[0])
    bearer.run(f"set role {role}")
    assert bearer.run(WHO)[0][2] == "writer"
    for_role, _ = mint(story, login=role)
    with refused("unauthenticated"):
        bearer.run("select concord.authenticate(%s)", for_role)


@pytest.mark.parametrize("how", ["revoke", "expire"])
def test_it_ends_in_the_middle_of_a_transaction(story: Story, how: str) -> None:
    secret, session = mint(story)
    bearer = by(story, secret)
    bearer.run("begin")
    bearer.commit(request(update("slides", 1, title="before")))
    if how == "revoke":
        story.actor("desk").run("select concord.revoke_session(%s)", session)
    else:
        story.admin().run("update concord_internal.sessions set expires_at = clock_timestamp()")
    assert bearer.run(WHO) == [(None, None, None, None)]
    answer = bearer.try_commit(request(update("slides", 1, title="after")))
    assert answer["error"]["code"] == "unauthenticated"
    bearer.run("update slides set title = 'raw' where id = 2")
    bearer.run("commit")
    assert [change["actor"] for change in story.history("slides", 1)] == ["writer"]
    assert [change["actor"] for change in story.history("slides", 2)] == ["app2"]
    with refused("unauthenticated"):
        bearer.run("select concord.authenticate(%s)", secret)


def test_who_may_revoke(story: Story) -> None:
    secret, session = mint(story)
    other_secret, other = mint(story, name="other")
    bearer = by(story, other_secret)
    stranger = story.actor("stranger", tenant="beta")
    for who, what in ((bearer, session), (stranger, session), (story.session("x", "app"), session)):
        with refused("not_found", "session"):
            who.run("select concord.revoke_session(%s)", what)
    assert by(story, secret).run(WHO)[0][2] == "writer"
    bearer.run("select concord.revoke_session(%s)", other)  # its own
    assert bearer.run(WHO) == [(None, None, None, None)]
    story.admin().run("select concord.revoke_session(%s)", session)
    with refused("unauthenticated"):
        by(story, secret)


def test_who_may_mint(story: Story) -> None:
    mint_beta = "select concord.mint_session('app2', 'agent', 'x', tenant => 'beta')"
    nobody = story.session("nobody", "app")
    with refused("invalid_request", "tenant"):
        nobody.run("select concord.mint_session('app2', 'agent', 'x')")
    with refused("forbidden", "tenant"):
        nobody.run(mint_beta)
    desk = story.actor("desk")
    with refused("forbidden", "tenant"):
        desk.run(mint_beta)
    with refused("forbidden"):
        by(story, mint(story)[0]).run("select concord.mint_session('app2', 'agent', 'boss')")
    admin = story.admin()
    admin.run("select concord.trust_login('app', mints_for_all => true)")
    nobody.run(mint_beta)
    admin.run("select concord.trust_login('app')")
    with refused("forbidden", "tenant"):
        nobody.run(mint_beta)
    admin.run(mint_beta)


BAD: dict[str, tuple[str, Any]] = {
    "no such login": ("login", "nobody_there"),
    "no login": ("login", None),
    "another kind": ("kind", "boss"),
    "no kind": ("kind", None),
    "an empty id": ("id", ""),
    "no id": ("id", None),
    "a control character": ("id", "a\x1fb"),
    "a long id": ("id", "x" * 256),
    "an empty tenant": ("tenant", ""),
    "no operation": ("operations", ["slides.drop"]),
    "no model": ("operations", [".update"]),
    "null": ("operations", [None]),
    "not long": ("lifetime", "0"),
    "too long": ("lifetime", "2 years"),
    "a label with a newline": ("label", "a\nb"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
def test_what_can_not_be_minted(story: Story, bad: tuple[str, Any]) -> None:
    given: dict[str, Any] = {"login": "app2", "kind": "agent", "id": "x"}
    given[bad[0]] = bad[1]
    casts = {"operations": "::text[]", "lifetime": "::interval"}
    named = ", ".join(f"{name} => %s{casts.get(name, '')}" for name in given)
    desk = story.admin() if bad[0] == "tenant" else story.actor("desk")
    with refused("invalid_request", bad[0]):
        desk.run(f"select concord.mint_session({named})", *given.values())
    assert story.value("select count(*) from concord_internal.sessions") == 0


# --- narrowed -------------------------------------------------------------------------------------


def test_what_a_narrowed_session_may(story: Story) -> None:
    """A write implies the read; nothing implies anything else. The long way and the plain one."""
    bearer = by(story, mint(story, operations=["slides.update", "notes.read"])[0])
    token = bearer.capture()
    assert bearer.read("slides", 1)["data"]["title"] == "one"
    bearer.read("notes", 1)
    for each in (row("slides", 2), row("notes", 1), group("deck:a")):
        asked = request(update("slides", 1, title="x"), read_at=bearer.capture(), reads=[each])
        bearer.commit(asked)
    bearer.commit(request(update("slides", 1, body="plain"), read_at=bearer.capture()))
    refused_at: dict[str, Any] = {
        "operations[0]": request(delete("slides", 1)),
        "operations[1]": request(update("slides", 1, title="y"), update("notes", 1, text="y")),
        "reads[0]": request(
            update("slides", 1, title="y"), read_at=token, reads=[row("ledger", 1)]
        ),
    }
    for path, asked in refused_at.items():
        with refused("forbidden", path):
            bearer.commit(asked)
    with refused("forbidden", "operations[0]"):
        bearer.commit(request(create("slides", 3, title="z")))
    with refused("forbidden", "operations[0]"):
        bearer.commit(request(update("ledger", 1, amount=0)))
    with refused("forbidden", "model"):
        bearer.read("ledger", 1)
    assert story.value("select title || body from slides where id = 1") == "xplain"


def test_a_group_reaches_as_far_as_its_tables(story: Story) -> None:
    """What is in a group is seen by who may read every table that is in it."""
    bearer = by(story, mint(story, operations=["slides.update"])[0])
    token = bearer.capture()
    with refused("forbidden", "reads[0]"):
        bearer.commit(
            request(update("slides", 1, title="x"), read_at=token, reads=[group("deck:a")])
        )


def test_the_log_of_a_narrowed_session(story: Story) -> None:
    raw = story.raw()
    raw.run(
        "update slides set title = 'x'; update ledger set amount = 5; update notes set text = 'y'"
    )
    bearer = by(story, mint(story, operations=["slides.update"])[0])
    models = bearer.run("select distinct model from concord.changes(null) where model is not null")
    assert models == [("slides",)]
    assert bearer.run("select op from concord.history('ledger', '1')") == []
    assert bearer.run("select op from concord.history('slides', '1')") == [("update",)]


def test_a_dot_in_a_models_name(story: Story) -> None:
    story.psql("select concord.track('ledger', name => 'books.ledger')")
    bearer = by(story, mint(story, operations=["books.ledger.update"])[0])
    bearer.commit(request(update("books.ledger", 1, amount=3)))
    with refused("forbidden"):
        bearer.commit(request(delete("books.ledger", 1)))
    narrower = by(story, mint(story, operations=["books.read"])[0])
    with refused("forbidden"):
        narrower.read("books.ledger", 1)


def test_a_service_that_states_who_acts_is_not_narrowed(story: Story) -> None:
    secret, _ = mint(story, login="app", operations=["slides.read"])
    both = by(story, secret, "app")
    with refused("forbidden"):
        both.commit(request(update("slides", 1, title="x")))
    both.run("select concord.act_as('acme', 'user', 'ana', is_local => false)")
    both.commit(request(update("slides", 1, title="x")))
    assert story.history("slides", 1)[0]["actor"] == "ana"


# --- looking at them ------------------------------------------------------------------------------


def test_the_view(story: Story) -> None:
    """No door beside the wall: nothing of another tenant's sessions, and never a secret."""
    secret, session = mint(story)
    mint(story, name="other")
    seen = "select id from concord.sessions order by id"
    assert story.actor("desk").run(seen) == [("other",), ("writer",)]
    assert story.actor("x", tenant="beta").run(seen) == []
    assert story.session("nobody", "app").run(seen) == []
    assert by(story, secret).run(seen) == [("writer",)]
    assert story.session("plain", "plain").run(seen) == []
    assert len(story.admin().run(seen)) == 2
    story.actor("desk").run("select concord.revoke_session(%s)", session)
    shown = story.admin().run(
        "select revoked_at is not null from concord.sessions where id = 'writer'"
    )
    assert shown == [(True,)]


def test_ended_ones_are_forgotten(story: Story) -> None:
    mint(story)
    story.admin().run(
        "update concord_internal.sessions set expires_at = now() - interval '31 days'"
    )
    mint(story, name="new")
    assert story.value("select string_agg(id, ',') from concord_internal.sessions") == "new"


def test_a_key_that_was_lost(story: Story) -> None:
    """A dump without it: nobody acts by an old setting, and the next minting makes one."""
    secret, _ = mint(story)
    bearer = by(story, secret)
    story.admin().run("delete from concord_internal.session_key")
    assert bearer.run(WHO) == [(None, None, None, None)]
    assert by(story, mint(story, name="new")[0]).run(WHO)[0][2] == "new"
    assert bearer.run(WHO) == [(None, None, None, None)]


# --- claims ---------------------------------------------------------------------------------------

CLAIMS = """{"sub": "u-7", "tenant": "acme", "app": {"house": "beta", "n": 5}}"""


def with_claims(story: Story, claims: str, login: str = "app2") -> Session:
    made = story.session("gateway", login)
    made.run("select set_config('request.jwt.claims', %s, false)", claims)
    return made


def test_claims_of_a_login_that_was_named(story: Story) -> None:
    gateway = with_claims(story, CLAIMS)
    assert gateway.run(WHO) == [(None, None, None, None)]
    admin = story.admin()
    admin.run("select concord.trust_claims('app2')")
    assert gateway.run(WHO) == [("acme", "user", "u-7", None)]
    role = story.role("authenticated_by_claims")
    admin.run(f"grant {role} to app2; grant select, update on slides to {role}")
    gateway.run(f"set role {role}")
    gateway.commit(request(update("slides", 1, title="x"), read_at=gateway.capture()))
    gateway.run("update slides set title = 'raw' where id = 1")
    assert [change["actor"] for change in story.history("slides", 1)] == ["u-7", "u-7"]
    admin.run("select concord.trust_claims('app2', 'app.n', 'app.house', 'agent')")
    assert gateway.run(WHO) == [("beta", "agent", "5", None)]
    admin.run("select concord.distrust_login('app2')")
    assert gateway.run(WHO) == [(None, None, None, None)]


@pytest.mark.parametrize("login", ["plain", "owner"])
def test_claims_of_any_other_login(story: Story, login: str) -> None:
    """No forgery: whoever may set a setting says nothing by it."""
    story.admin().run("select concord.trust_claims('app2')")
    assert with_claims(story, CLAIMS, login).run(WHO) == [(None, None, None, None)]


@pytest.mark.parametrize(
    "claims",
    [
        "no json",
        "[]",
        "7",
        "{}",
        '{"sub": "x"}',
        '{"tenant": "x"}',
        '{"sub": "", "tenant": "x"}',
        '{"sub": null, "tenant": "x"}',
        '{"sub": "a\\u001fb", "tenant": "x"}',
        '{"sub": "a\\u0000b", "tenant": "x"}',
        '{"sub": "' + "x" * 256 + '", "tenant": "x"}',
    ],
)
def test_claims_that_say_nobody(story: Story, claims: str) -> None:
    story.admin().run("select concord.trust_claims('app2')")
    gateway = with_claims(story, claims)
    assert gateway.run(WHO) == [(None, None, None, None)]
    gateway.run("update slides set title = 'raw' where id = 1")
    assert story.history("slides", 1)[0]["actor"] == "app2"


def test_what_goes_before_claims(story: Story) -> None:
    story.admin().run("select concord.trust_claims('app2'); select concord.trust_claims('app')")
    secret, _ = mint(story)
    gateway = with_claims(story, CLAIMS)
    gateway.run("select concord.authenticate(%s, is_local => false)", secret)
    assert gateway.run(WHO)[0][2] == "writer"
    service = with_claims(story, CLAIMS, "app")
    assert service.run(WHO)[0][2] == "u-7"
    service.run("select concord.act_as('acme', 'user', 'ana', is_local => false)")
    assert service.run(WHO)[0][2] == "ana"


@pytest.mark.parametrize(
    ("path", "given"),
    {
        "login": "login => 'nobody_there'",
        "id": "login => 'app2', id => 'a..b'",
        "tenant": "login => 'app2', tenant => ''",
        "kind": "login => 'app2', kind => 'boss'",
    }.items(),
)
def test_claims_that_can_not_be_trusted(story: Story, path: str, given: str) -> None:
    with refused("invalid_request", path):
        story.admin().run(f"select concord.trust_claims({given})")
    with refused("forbidden"):
        story.actor("ana").run("select concord.trust_claims('app')")
