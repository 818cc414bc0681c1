"""What a kept receipt tells when it is told again: to another role, under other rights, later."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.isolation.schedule import Session, Story, create, fails, group, request, row, update

TABLES = """
create table papers (id int primary key, deck text, title text, salary text, seen text);
insert into papers values (1, 'a', 'one', 'much', 'no'), (2, 'a', 'two', 'more', 'no');
select concord.track('papers', groups => array['deck:{deck}'], ignore_fields => '{seen}');
"""

VALUES = ("currentValues", "baseValues", "proposedValues")
NOTHING: dict[str, Any] = {}


@pytest.fixture
def papers(story: Story) -> Story:
    story.tables(TABLES)
    return story


def told(papers: Story, ana: Session) -> tuple[dict[str, Any], dict[str, Any]]:
    """A commit with values of every sort, and its receipt: paper 2 applied, paper 1 held."""
    token = ana.capture()
    papers.psql("update papers set title = 'uno', salary = 'lots' where id = 1")
    ask = request(
        update("papers", 1, title="mine", salary="mine"),
        update("papers", 2, title="deux"),
        read_at=token,
        on_stale="notify",
        returning=True,
        key="k",
    )
    receipt = ana.commit(ask)
    (notification,) = receipt["notifications"]
    assert notification["currentValues"] == {"title": "uno", "salary": "lots"}
    assert notification["baseValues"] == {"title": "one", "salary": "much"}
    assert receipt["operations"][1]["data"]["salary"] == "more"
    return ask, receipt


def kept(papers: Story) -> str:
    """All that is kept of receipts."""
    return str(papers.value("select string_agg(c::text, '') from concord_internal.commits c"))


def test_a_receipt_is_told_again_word_for_word(papers: Story) -> None:
    """Once: with the rights of then, all of it."""
    ana = papers.actor("ana")
    ask, receipt = told(papers, ana)
    assert ana.commit(ask) == {**receipt, "replayed": True}


def test_columns_that_the_second_role_may_not_select(papers: Story) -> None:
    """No door beside the wall: a receipt tells no more than a read of the row would."""
    ana = papers.actor("ana")
    ask, receipt = told(papers, ana)
    clerk = papers.role("clerk")
    papers.raw().run(f"grant select (id, deck, title), update on papers to {clerk}")
    ana.run(f"set role {clerk}")
    again = ana.commit(ask)
    assert (again["id"], again["replayed"]) == (receipt["id"], True)
    assert again["operations"][1]["data"] == {"id": 2, "deck": "a", "title": "deux"}
    (notification,) = again["notifications"]
    assert [notification[k] for k in VALUES] == [
        {"title": "uno"},
        {"title": "one"},
        {"title": "mine", "salary": "mine"},  # the caller's own
    ]
    assert notification["conflictingFields"] == ["title"]
    assert [change["fields"] for change in notification["changes"]] == [["title"]]
    ana.run("reset role")
    assert ana.commit(ask) == {**receipt, "replayed": True}


@pytest.mark.parametrize("rights", ["insert, update", "select (title), update"])
def test_a_role_without_rights_gets_no_values(papers: Story, rights: str) -> None:
    """No door beside the wall: what became of its operations, and nothing of the rows."""
    ana = papers.actor("ana")
    ask, receipt = told(papers, ana)
    clerk = papers.role("clerk")
    papers.raw().run(f"grant {rights} on papers to {clerk}")
    ana.run(f"set role {clerk}")
    again = ana.commit(ask)
    assert [o["outcome"] for o in again["operations"]] == ["held", "applied"]
    assert again["operations"][1]["data"] == NOTHING
    (notification,) = again["notifications"]
    assert [notification[k] for k in VALUES[:2]] == [NOTHING, NOTHING]
    assert [notification[k] for k in ("conflictingFields", "changes")] == [[], []]
    assert notification["writtenBy"] is None
    ana.run("reset role")
    assert ana.commit(ask) == {**receipt, "replayed": True}


def test_rights_that_were_revoked_since(papers: Story) -> None:
    ana = papers.actor("ana")
    ask, _ = told(papers, ana)
    owner = papers.raw()
    owner.run("revoke select on papers from app")
    owner.run("grant select (id, deck, title) on papers to app")
    assert ana.commit(ask)["operations"][1]["data"] == {"id": 2, "deck": "a", "title": "deux"}


def test_a_table_that_is_no_model_any_more(papers: Story) -> None:
    """Never a guess: nobody can tell any more what was secret, or whose the values were."""
    ana = papers.actor("ana")
    ask, receipt = told(papers, ana)
    papers.raw().run("select concord.untrack('papers')")
    again = ana.commit(ask)
    assert again["id"] == receipt["id"]
    assert again["operations"][1]["data"] == NOTHING
    assert [again["notifications"][0][k] for k in VALUES] == [NOTHING] * 3


def test_policies_bind_the_second_role(papers: Story) -> None:
    """No door beside the wall: policies can't be asked about a row as it was."""
    owner = papers.raw()
    owner.run("alter table papers enable row level security")
    owner.run("create policy everything on papers to app using (true)")
    ana = papers.actor("ana")
    ask, receipt = told(papers, ana)
    assert ana.commit(ask) == {**receipt, "replayed": True}
    clerk = papers.role("clerk")
    owner.run(f"grant select, update on papers to {clerk}")
    ana.run(f"set role {clerk}")
    again = ana.commit(ask)
    assert again["operations"][1]["data"] == NOTHING
    assert [again["notifications"][0][k] for k in VALUES[:2]] == [NOTHING, NOTHING]


def test_who_changed_a_group_is_told_to_the_first_role_alone(papers: Story) -> None:
    ana = papers.actor("ana")
    token = ana.capture()
    papers.psql("update papers set title = 'uno' where id = 1")
    ask = request(
        update("papers", 2, title="mine"),
        reads=[group("deck:a"), row("papers", 1)],
        read_at=token,
        on_stale="notify",
        key="k",
    )
    receipt = ana.commit(ask)
    assert receipt["notifications"][0]["changes"] != []
    assert ana.commit(ask) == {**receipt, "replayed": True}
    ana.run(f"set role {papers.role('clerk')}")
    again = ana.commit(ask)
    for notification in again["notifications"]:
        assert (notification["changes"], notification["writtenBy"]) == ([], None)
        assert [notification[k] for k in VALUES] == [NOTHING] * 3


def test_replay_by_hand(papers: Story) -> None:
    """No door beside the wall: the helper asks for the request itself, and filters like commit."""
    ana = papers.actor("ana")
    ask, receipt = told(papers, ana)
    replay = "select concord_internal.replay(%s, %s)"
    assert ana.one(replay, "k", None)["code"] == "invalid_request"
    assert ana.one(replay, None, Jsonb(ask))["code"] == "invalid_request"
    assert ana.one(replay, "k", Jsonb({}))["code"] == "idempotency_mismatch"
    assert ana.one(replay, "other", Jsonb(ask)) is None
    assert ana.one(replay, "k", Jsonb(ask)) == {**receipt, "replayed": True}
    with fails("42883"):
        ana.one("select concord_internal.replay('k', '\\x00'::bytea)")
    ana.run(f"set role {papers.role('clerk')}")
    again = ana.one(replay, "k", Jsonb(ask))
    assert again["operations"][1]["data"] == NOTHING
    assert "lots" not in str(again)
    nobody = papers.session("nobody", "app")
    assert nobody.one(replay, "k", Jsonb(ask))["code"] == "unauthenticated"


def test_secret_values_are_not_kept(papers: Story) -> None:
    """Told once, with the caller's rights; then they are nowhere."""
    papers.raw().run(
        "select concord.track('papers', groups => array['deck:{deck}'], ignore_fields => '{seen}',"
        " secret_fields => '{salary}')"
    )
    ana = papers.actor("ana")
    token = ana.capture()
    papers.psql("update papers set title = 'uno', salary = 'hush-1' where id = 1")
    ask = request(
        update("papers", 1, title="mine", salary="hush-2"),
        update("papers", 2, title="deux", salary="hush-3"),
        create("papers", 3, title="trois", salary="hush-4"),
        read_at=token,
        on_stale="notify",
        returning=True,
        key="k",
    )
    del ask["operations"][1]["data"]["title"]
    receipt = ana.commit(ask)
    assert receipt["operations"][1]["data"]["salary"] == "hush-3"
    assert "hush" not in kept(papers)
    again = ana.commit(ask)
    assert "hush" not in str(again)
    assert again["operations"][2]["data"] == {
        "id": 3,
        "deck": None,
        "title": "trois",
        "seen": None,
    }
    (notification,) = again["notifications"]
    assert [notification[k] for k in VALUES] == [
        {"title": "uno"},
        {"title": "one"},
        {"title": "mine"},
    ]
    assert sorted(notification["conflictingFields"]) == ["salary", "title"]


def test_a_secret_that_was_renamed_is_not_kept(papers: Story) -> None:
    """As in the log: a column that the model does not know may be a secret one."""
    owner = papers.raw()
    owner.run("select concord.track('papers', secret_fields => '{salary}')")
    owner.run("alter table papers rename salary to pay")
    ana = papers.actor("ana")
    ask = request(update("papers", 1, pay="hush"), returning=True, key="k")
    assert ana.commit(ask)["operations"][0]["data"]["pay"] == "hush"
    assert "hush" not in kept(papers)
    assert "hush" not in str(ana.commit(ask))


def test_what_is_secret_now_is_not_told_again(papers: Story) -> None:
    ana = papers.actor("ana")
    ask, receipt = told(papers, ana)
    papers.raw().run("select concord.track('papers', secret_fields => '{salary}')")
    again = ana.commit(ask)
    assert again["id"] == receipt["id"]
    data = receipt["operations"][1]["data"]
    assert again["operations"][1]["data"] == {k: v for k, v in data.items() if k != "salary"}
    (notification,) = again["notifications"]
    assert [notification[k] for k in VALUES] == [
        {"title": "uno"},
        {"title": "one"},
        {"title": "mine"},
    ]


def test_forget_finds_receipts_of_commits_without_a_delta(papers: Story) -> None:
    """Only an ignored field changed, or none: the receipt tells of the row all the same."""
    ana = papers.actor("ana")
    asks = [
        request(update("papers", 1, seen="hush-1"), returning=True, key="ignored"),
        request(update("papers", 1, title="one"), returning=True, key="the same"),
        request(update("papers", 2, seen="kept"), returning=True, key="another row"),
    ]
    for ask in asks:
        ana.commit(ask)
    assert [c["op"] for c in papers.history("papers", 1)] == []
    papers.raw().run("select concord.forget('papers', '1')")
    assert "hush" not in kept(papers)
    assert ["data" in ana.commit(ask)["operations"][0] for ask in asks] == [False, False, True]


def test_forget_blanks_every_notification_of_the_row(papers: Story) -> None:
    """Of an operation that was held, and of a premise; another model's row of that id is not it."""
    papers.tables("create table notes (id int primary key, text text)")
    papers.raw().run("insert into notes values (1, 'kept'); select concord.track('notes')")
    ana = papers.actor("ana")
    token = ana.capture()
    papers.psql("update papers set title = 'hush-1', salary = 'hush-2' where id = 1")
    papers.psql("update notes set text = 'kept too' where id = 1")
    ask = request(
        update("papers", 1, title="hush-3"),
        update("notes", 1, text="kept as well"),
        reads=[row("papers", 1)],
        read_at=token,
        on_stale="notify",
        key="k",
    )
    assert len(ana.commit(ask)["notifications"]) == 3
    papers.raw().run("select concord.forget('papers', '1')")
    assert "hush" not in kept(papers)
    premise, of_paper, of_note = ana.commit(ask)["notifications"]
    for blank in premise, of_paper:
        assert [blank[k] for k in VALUES] == [NOTHING] * 3
    assert [of_note[k]["text"] for k in VALUES] == ["kept too", "kept", "kept as well"]


def test_forget_finds_receipts_by_the_row(papers: Story) -> None:
    """Not by a look at each: erasing somebody means forgetting many rows."""
    papers.actor("ana").commit(request(update("papers", 1, title="x"), returning=True, key="k"))
    admin = papers.admin()
    admin.run("set enable_seqscan = off")
    plan = "\n".join(
        line
        for (line,) in admin.run(
            "explain select from concord_internal.commits where about @> array[1::bigint]"
        )
    )
    assert "commits_about" in plan


def test_receipts_past_their_time_are_blank(papers: Story) -> None:
    ana = papers.actor("ana")
    ana.commit(request(update("papers", 1, title="x"), returning=True, key="k"))
    papers.configure("idempotency_retention", "1 minute")
    admin = papers.admin()
    admin.run("update concord_internal.commits set at = at - interval '1 hour'")
    admin.run("select concord.maintain()")
    kept = (
        "select num_nonnulls(idempotency_key, digest, receipt, about) from concord_internal.commits"
    )
    assert papers.value(kept) == 0
