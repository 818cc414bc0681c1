"""archive and unarchive: updates of the column that a model names for it, judged as any other."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg.types.json import Jsonb

from tests.isolation.schedule import Story, create, refused, request, update

TABLES = """
create table papers (id int primary key, title text, archived_at timestamptz);
create table plain (id int primary key, archived_at timestamptz);
insert into papers values (1, 'one', null), (2, 'two', null), (3, 'three', '2020-01-01');
insert into plain (id) values (1);
select concord.track('papers', archive_column => 'archived_at');
select concord.track('plain');
grant select, insert, update, delete on papers, plain to app;
"""


def archive(id: object, **keys: Any) -> Any:
    return {"type": "archive", "model": "papers", "id": id, **keys}


def unarchive(id: object, **keys: Any) -> Any:
    return {"type": "unarchive", "model": "papers", "id": id, **keys}


@pytest.fixture
def papers(story: Story) -> Story:
    story.tables(TABLES)
    return story


def away(story: Story, id: int) -> Any:
    return story.value("select archived_at is not null from papers where id = %s", id)


def test_away_and_back(papers: Story) -> None:
    ana = papers.actor("ana")
    receipt = ana.commit(request(archive(1), unarchive(3), returning=True))
    assert receipt["applied"] == 2
    assert receipt["operations"][0]["data"]["archived_at"] is not None
    assert (away(papers, 1), away(papers, 3)) == (True, False)
    [(op, fields, before)] = papers.admin().run(
        "select op, fields, before from concord.history('papers', '3') where op = 'update'"
    )
    assert (op, fields, before["archived_at"][:4]) == ("update", ["archived_at"], "2020")


def test_what_is_so_already_is_unchanged_and_never_stale(papers: Story) -> None:
    ana = papers.actor("ana")
    token = ana.capture()
    papers.psql("update papers set archived_at = '2021-01-01' where id in (1, 3)")
    papers.psql("update papers set archived_at = null where id = 2")
    receipt = ana.commit(request(archive(1), archive(3), unarchive(2), read_at=token))
    assert [o["outcome"] for o in receipt["operations"]] == ["unchanged"] * 3
    assert receipt["syncId"] is None
    assert (
        papers.value("select extract(year from archived_at)::int from papers where id = 1") == 2021
    )


def test_it_is_judged_as_an_update_of_the_column(papers: Story) -> None:
    ana = papers.actor("ana")
    token = ana.capture()
    papers.psql("update papers set title = 'theirs'")
    assert ana.commit(request(archive(1), read_at=token))["applied"] == 1
    # Brought back, and so not put away, by somebody else.
    papers.psql("update papers set archived_at = now() where id = 2")
    papers.psql("update papers set archived_at = null where id = 2")
    with refused("stale_context", "operations[0]") as refusal:
        ana.commit(request(archive(2), read_at=token))
    [told] = refusal.detail["notifications"]
    assert told["conflictingFields"] == ["archived_at"]
    assert told["proposedValues"]["archived_at"] is not None
    assert told["currentValues"] == {"archived_at": None}
    held = ana.commit(request(archive(2), read_at=token, on_stale="notify"))
    assert held["operations"][0]["outcome"] == "held"
    observed = held["notifications"][0]["observedAt"]
    assert ana.commit(request(archive(2), read_at=observed))["applied"] == 1
    assert away(papers, 2)


def test_a_row_that_is_not_there_and_what_must_hold(papers: Story) -> None:
    ana = papers.actor("ana")
    token = ana.capture()
    with refused("not_found", "operations[0].id"):
        ana.commit(request(archive(9)))
    with refused("precondition_failed", "operations[0].where"):
        ana.commit(request(archive(1, where={"title": "other"})))
    papers.psql("delete from papers where id = 1")
    with refused("stale_context") as refusal:
        ana.commit(request(archive(1), read_at=token))
    assert refusal.detail["notifications"][0]["deleted"] is True
    made = request(
        create("papers", 7, title="new"), archive({"$operation": 0}), unarchive({"$operation": 0})
    )
    assert ana.commit(made)["applied"] == 3
    assert not away(papers, 7)


def test_requests_that_are_none(papers: Story) -> None:
    ana = papers.actor("ana")
    for bad, param in (
        (archive(1, data={"title": "x"}), "operations[0].data"),
        ({"type": "archive", "model": "papers"}, "operations[0].id"),
        ({"type": "archive", "model": "plain", "id": 1}, "operations[0].type"),
        ({"type": "hide", "model": "papers", "id": 1}, "operations[0].type"),
    ):
        with refused("invalid_request", param):
            ana.run("select concord.commit(%s)", Jsonb({"operations": [bad]}))


def test_without_the_right_to_the_column(papers: Story) -> None:
    papers.admin().run("revoke update on papers from app; grant update (title) on papers to app")
    ana = papers.actor("ana")
    ana.commit(request(update("papers", 1, title="mine")))
    with pytest.raises(Exception, match="permission denied"):
        ana.commit(request(archive(1)))
    assert not away(papers, 1)


def test_a_session_that_may_update(papers: Story) -> None:
    secret = papers.value(
        "select secret from concord.mint_session('app2', 'user', 'ana', tenant => 'acme',"
        " operations => '{papers.update,papers.read}')"
    )
    papers.admin().run("grant select, update on papers to app2")
    bearer = papers.session("bearer", "app2")
    bearer.run("select concord.authenticate(%s, is_local => false)", secret)
    assert bearer.commit(request(archive(1)))["applied"] == 1


@pytest.mark.parametrize(
    "column", ["title", "nope", "id"],
)  # fmt: skip
def test_columns_that_are_none_for_it(papers: Story, column: str) -> None:
    with refused("invalid_request", "archive_column"):
        papers.admin().run("select concord.track('papers', archive_column => %s)", column)


def test_the_column_renamed_and_dropped(papers: Story) -> None:
    ana = papers.actor("ana")
    papers.psql("alter table papers rename archived_at to gone_at")
    papers.psql("select concord.refresh('papers')")
    assert (
        papers.value("select archive_column from concord.models where name = 'papers'") == "gone_at"
    )
    assert ana.commit(request(archive(1)))["applied"] == 1
    papers.psql("alter table papers drop gone_at")
    with refused("invalid_request"):
        ana.commit(request(archive(1)))
    papers.psql("select concord.refresh('papers')")
    with refused("invalid_request", "operations[0].type"):
        ana.commit(request(archive(1)))
