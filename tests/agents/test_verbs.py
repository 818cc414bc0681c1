"""What the verbs of the store do, and what others fell into."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

import pyconcord
from pyconcord import (
    IdempotencyMismatch,
    InvalidRequest,
    LeaseLost,
    NotFound,
    StaleContext,
    Unauthenticated,
)
from pyconcord.agents import AgentStore, Message
from tests.agents.store import LEASE, Store
from tests.talk import code_of

CALLS = [
    {"id": "c1", "name": "send", "arguments": {"to": "bob", "cc": None}},
    {"id": "c2", "function": {"name": "look"}},
]


def call_of(store: Store, call: str = "c1") -> tuple[Any, ...]:
    [row] = store.seen(
        "select status, attempt, holder, result from agents.agent_tool_call"
        " where tool_call_id = %s",
        call,
    )
    return row


def run_out(store: Store) -> None:
    """The leases of all calls are over, as if time had passed."""
    store.admin.execute(
        "update agents.agent_tool_call set expires_at = clock_timestamp() - interval '1 s'"
        " where status = 'started'"
    )


def transcript(agents: AgentStore, session: str) -> list[tuple[Any, ...]]:
    return [(m.seq, m.role, m.content) for m in agents.load(session).messages]


@pytest.fixture
def ana(store: Store) -> AgentStore:
    return store.acting("ana")


@pytest.fixture
def session(ana: AgentStore) -> str:
    return ana.save(agent_name="writer").id


# --- sessions -------------------------------------------------------------------------------------


def test_a_session_is_saved_and_loaded(ana: AgentStore) -> None:
    made = ana.save(agent_name="writer", state={"n": 1, "null": None})
    loaded = ana.load(made.id)
    assert (loaded.agent_name, loaded.state) == ("writer", {"n": 1, "null": None})
    assert loaded.messages == []
    saved = ana.save(made.id, {"n": 2}, read_at=loaded.read_at)
    assert ana.load(made.id).state == {"n": 2}
    ana.save(made.id, {"n": 3}, read_at=saved.read_at)
    # Loaded before those: it is told, or held.
    with pytest.raises(StaleContext):
        ana.save(made.id, {"n": 9}, read_at=loaded.read_at)
    held = ana.save(made.id, {"n": 9}, read_at=loaded.read_at, on_stale="notify").held
    assert held[0]["currentValues"]["state"] == {"n": 3}
    # Messages that came meanwhile are no conflict.
    loaded = ana.load(made.id)
    ana.append(made.id, Message("user", "hi"))
    ana.save(made.id, {"n": 4}, read_at=loaded.read_at)
    ana.delete(made.id)
    with pytest.raises(NotFound):
        ana.load(made.id)


def test_an_owner_is_never_changed_by_a_save(store: Store, ana: AgentStore, session: str) -> None:
    """Context wins over input: in a state, in SQL, in a commit, by the table's owner."""
    ana.save(session, {"user_id": "ben", "tenant_id": "zeta"})
    app = store.connect("ana")
    for query in (
        "update agents.agent_session set user_id = 'ben'",
        "update agents.agent_session set tenant_id = 'zeta'",
        "update agents.agent_message set user_id = 'ben'",
        "insert into agents.agent_session (agent_name, user_id) values ('x', 'ben')",
        "select concord.commit(jsonb_build_object('operations', jsonb_agg(jsonb_build_object("
        " 'type', 'update', 'model', 'agent_session', 'id', id,"
        " 'data', jsonb_build_object('user_id', 'ben'))))) from agents.agent_session",
    ):
        ana.append(session, Message("user", "hi"))
        with pytest.raises(psycopg.Error) as raised:
            app.execute(query.encode())
        assert code_of(raised.value)[0] == "forbidden"
    assert store.seen("select distinct tenant_id, user_id from agents.agent_session") == [
        ("acme", "ana")
    ]
    ben = store.acting("ben")
    with pytest.raises(NotFound):
        ben.save(session, {"mine": True})


def test_messages_have_their_sessions_owner(store: Store, ana: AgentStore, session: str) -> None:
    """Also where nothing stamps them: as a superuser, and after the session's owner changed."""
    ana.append(session, Message("user", "hi"))
    admin = store.db.connect()
    for query in (
        "insert into agents.agent_message (session_id, seq, role, user_id, tenant_id)"
        " values (%s, 9, 'user', 'ben', 'acme')",
        "update agents.agent_message set user_id = 'ben' where session_id = %s",
        "update agents.agent_session set user_id = 'ben' where id = %s",
    ):
        admin.execute("set session_replication_role = origin")
        admin.execute("alter table agents.agent_message disable trigger concord_stamp")
        admin.execute("alter table agents.agent_session disable trigger concord_stamp")
        with pytest.raises(psycopg.errors.ForeignKeyViolation):
            admin.execute(query.encode(), (session,))
        with pytest.raises(psycopg.errors.NotNullViolation):
            admin.execute("update agents.agent_message set user_id = null")


def test_a_session_without_owner_is_nobodys(store: Store, ana: AgentStore, session: str) -> None:
    admin = store.db.connect()
    admin.execute("alter table agents.agent_session disable trigger concord_stamp")
    admin.execute("update agents.agent_session set user_id = null")
    for verb in VERBS.values():
        with pytest.raises(NotFound):
            verb(ana, session)
    assert ana.list().sessions == []
    nobody = store.db.connect("app")
    with pytest.raises(psycopg.Error) as raised:
        nobody.execute("select agents.agent_load(%s)", (session,))
    assert code_of(raised.value)[0] == "unauthenticated"


VERBS: dict[str, Callable[[AgentStore, str], object]] = {
    "save": lambda it, id: it.save(id, {}),
    "load": lambda it, id: it.load(id),
    "append": lambda it, id: it.append(id, Message("user", "x")),
    "messages": lambda it, id: it.messages(id),
    "prune": lambda it, id: it.prune(id, 0),
    "delete": lambda it, id: it.delete(id),
    "begin": lambda it, id: it.begin(id, "c1", "w"),
    "finish": lambda it, id: it.finish(id, "c1", 1, None),
    "resume": lambda it, id: it.resume(id, "w"),
}


@pytest.mark.parametrize("name", VERBS)
def test_missing_and_foreign_sessions_answer_alike(
    store: Store, ana: AgentStore, session: str, name: str
) -> None:
    ana.append(session, Message("assistant", None, CALLS))
    seen = []
    others = [store.acting("ben"), store.acting("ana", "zeta"), store.acting("x", agent="ana")]
    for them in others:
        for id in (session, "no-such"):
            with pytest.raises(NotFound) as raised:
                VERBS[name](them, id)
            said = (raised.value.code, str(raised.value), raised.value.param, raised.value.detail)
            seen.append(repr(said).replace(id, "ID"))
    assert len(set(seen)) == 1
    assert len(transcript(ana, session)) == 1


def test_an_agent_works_on_the_sessions_of_whom_it_acts_for(store: Store) -> None:
    ana, agent = store.acting("ana"), store.acting("ana", agent="writer")
    session = agent.save(agent_name="writer").id
    agent.append(session, Message("user", "hi"))
    assert transcript(ana, session) == [(1, "user", "hi")]
    assert store.seen("select user_id from agents.agent_message") == [("ana",)]


def test_nobody(store: Store) -> None:
    client = pyconcord.connect(store.db.dsn("app"), tenant="acme")
    nobody = AgentStore(client.acting(user="ana"), "agents")
    nobody._actor.principal = None
    with pytest.raises(Unauthenticated):
        nobody.list()
    for verb in VERBS.values():
        with pytest.raises(Unauthenticated):
            verb(nobody, "x")
    client.close()


# --- the transcript -------------------------------------------------------------------------------


def test_concurrent_appends_neither_collide_nor_interleave(store: Store, session: str) -> None:
    """Batches of 3 from 8 connections: each stays together, and no number is missing."""

    def append(worker: int) -> None:
        agents = store.acting("ana")
        for turn in range(10):
            agents.append(session, *(Message("user", f"{worker}-{turn}-{n}") for n in range(3)))

    threads = [threading.Thread(target=append, args=(n,)) for n in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    found = transcript(store.acting("ana"), session)
    assert [seq for seq, _, _ in found] == list(range(1, 241))
    for first, second, third in zip(found[::3], found[1::3], found[2::3], strict=True):
        stem = first[2].removesuffix("0")
        assert (second[2], third[2]) == (f"{stem}1", f"{stem}2")


def test_a_number_that_was_rolled_back_was_never_given(store: Store, session: str) -> None:
    a, b = store.connect("ana", autocommit=False), store.connect("ana")
    append = "select agents.agent_append(%s, %s::jsonb)"
    one = '[{"role": "user", "content": "x"}]'
    a.execute(append, (session, one))
    b.execute("set lock_timeout = '50 ms'")
    with pytest.raises(psycopg.errors.LockNotAvailable):
        b.execute(append, (session, one))
    a.rollback()
    [(done,)] = b.execute(append, (session, one))
    assert done[0]["seq"] == 1


def test_the_last_text_after_a_tool_step_is_there_once(ana: AgentStore, session: str) -> None:
    """The answer of an append was lost, and the agent sends all of it again, with more."""
    question = Message("user", "do it", client_message_id="1")
    step = Message("assistant", "I will", [CALLS[0]], client_message_id="2")
    ana.append(session, question, step)
    ana.finish(session, "c1", ana.begin(session, "c1", "w"), "sent")
    last = Message("assistant", "It is done.", client_message_id="3")
    first = ana.append(session, last)
    again = ana.append(session, question, step, last)
    assert [each.replayed for each in again] == [True, True, True]
    assert again[2].seq == first[0].seq == 4
    assert transcript(ana, session) == [
        (1, "user", "do it"), (2, "assistant", "I will"), (3, "tool", "sent"),
        (4, "assistant", "It is done."),
    ]  # fmt: skip
    mixed = ana.append(session, last, Message("user", "thanks", client_message_id="5"))
    assert [(each.seq, each.replayed) for each in mixed] == [(4, True), (5, False)]
    with pytest.raises(IdempotencyMismatch) as raised:
        ana.append(
            session, Message("user", "x"), Message("assistant", "Else", client_message_id="3")
        )
    assert raised.value.param == "messages[1].clientMessageId"
    assert len(transcript(ana, session)) == 5
    # The same id in another session is another message.
    assert not ana.append(ana.save(agent_name="w").id, last)[0].replayed


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ("[]", "messages"),
        ("{}", "messages"),
        ("[1]", "messages[0]"),
        ('[{"role": "user"}, {"role": "boss"}]', "messages[1].role"),
        ('[{"content": "x"}]', "messages[0].role"),
        ('[{"role": "user", "text": "x"}]', "messages[0].text"),
        ('[{"role": "user", "content": 1}]', "messages[0].content"),
        ('[{"role": "user", "clientMessageId": ""}]', "messages[0].clientMessageId"),
        ('[{"role": "user", "toolCallId": "c1"}]', "messages[0].toolCallId"),
        ('[{"role": "tool", "content": "x"}]', "messages[0].toolCallId"),
        ('[{"role": "tool", "toolCallId": "nope"}]', "messages[0].toolCallId"),
        ('[{"role": "user", "toolCalls": []}]', "messages[0].toolCalls"),
        ('[{"role": "assistant", "toolCalls": {}}]', "messages[0].toolCalls"),
        ('[{"role": "assistant", "toolCalls": [{"id": "a"}, {"id": 1}]}]',
         "messages[0].toolCalls[1].id"),
        ('[{"role": "assistant", "toolCalls": [{"id": "a"}, {"id": "a"}]}]',
         "messages[0].toolCalls"),
    ],
)  # fmt: skip
def test_bad_messages_leave_no_trace(store: Store, session: str, messages: str, param: str) -> None:
    app = store.connect("ana")
    with pytest.raises(psycopg.Error) as raised:
        app.execute("select agents.agent_append(%s, %s::jsonb)", (session, messages))
    assert code_of(raised.value) == ("invalid_request", param)
    assert store.seen("select next_seq from agents.agent_session") == [(1,)]
    assert store.seen("select count(*) from agents.agent_message") == [(0,)]
    assert store.seen("select count(*) from agents.agent_tool_call") == [(0,)]
    app.execute("select agents.agent_append(%s, %s)", (session, '[{"role": "user"}]'))


def test_pages_are_complete_while_others_append(ana: AgentStore, session: str) -> None:
    for n in range(1, 26):
        ana.append(session, Message("user", str(n)))
    seen: list[int] = []
    before = None
    while page := ana.messages(session, max=10, before_seq=before):
        seen += [m.seq or 0 for m in page]
        before = page[-1].seq
        ana.append(session, Message("user", "more"))
    assert seen == list(range(25, 0, -1))
    for max in (0, 1001):
        with pytest.raises(InvalidRequest):
            ana.messages(session, max=max)


def test_sessions_are_listed_last_changed_first(store: Store, ana: AgentStore) -> None:
    made = [ana.save(agent_name=f"a{n % 2}").id for n in range(7)]
    store.acting("ben").save(agent_name="a0")
    store.db.connect().execute("update agents.agent_session set updated_at = '2026-01-01'")
    ana.append(made[3], Message("user", "hi"))
    ana.save(made[5], {"x": 1})
    order = [made[5], made[3], *sorted(id for id in made if id not in (made[5], made[3]))]
    seen, after = [], None
    while True:
        page = ana.list(max=3, after=after)
        seen += [each.id for each in page.sessions]
        after = page.next
        if after is None:
            break
    assert seen == order
    assert {s.id for s in ana.list("a1").sessions} == {made[n] for n in (1, 3, 5)}
    assert ana.list().sessions[0].state == {"x": 1}
    for bad in ({}, {"updatedAt": "soon", "id": "x"}, {"updatedAt": 1, "id": "x"}):
        with pytest.raises(InvalidRequest) as raised:
            ana.list(after=bad)
        assert raised.value.param == "after"


def test_pruning_never_parts_a_call_from_its_result(ana: AgentStore) -> None:
    def build() -> str:
        session = ana.save(agent_name="w").id
        ana.append(session, Message("user", "1"), Message("assistant", "2", CALLS))
        for call in ("c2", "c1"):
            ana.finish(session, call, ana.begin(session, call, "w"), call)  # 3, 4
        ana.append(session, Message("assistant", "5"), Message("user", "6"))
        ana.append(session, Message("assistant", "7", [{"id": "c3"}]), Message("user", "8"))
        return session

    first_kept = []
    for keep in range(10):
        session = build()
        before = len(transcript(ana, session))
        gone = ana.prune(session, keep)
        left = ana.load(session).messages
        assert before - gone == len(left) >= min(keep, 8)
        assert [m.seq for m in left] == list(range(gone + 1, 9))
        called = {c["id"] for m in left for c in m.tool_calls or []}
        assert {m.tool_call_id for m in left if m.tool_call_id} == called - {"c3"}
        assert "c3" in called  # it waits for its result
        first_kept.append(gone + 1)
        ana.finish(session, "c3", ana.begin(session, "c3", "w"), "late")
        assert ana.append(session, Message("user", "x"))[0].seq == 10
    assert first_kept == [7, 7, 7, 6, 5, 2, 2, 2, 1, 1]
    with pytest.raises(InvalidRequest):
        ana.prune(session, -1)


# --- tool calls -----------------------------------------------------------------------------------


@pytest.fixture
def called(ana: AgentStore, session: str) -> str:
    ana.append(session, Message("user", "go"), Message("assistant", None, CALLS))
    return session


def test_a_call_from_begin_to_finish(store: Store, ana: AgentStore, called: str) -> None:
    assert call_of(store) == ("pending", 0, None, None)
    attempt = ana.begin(called, "c1", "w1")
    assert call_of(store) == ("started", 1, "w1", None)
    with pytest.raises(LeaseLost):
        ana.begin(called, "c1", "w2")
    assert ana.begin(called, "c1", "w1", attempt=attempt) == attempt  # renewed
    with pytest.raises(LeaseLost):
        ana.begin(called, "c1", "w2", attempt=attempt)
    seq = ana.finish(called, "c1", attempt, {"ok": True})
    assert ana.finish(called, "c1", attempt, {"ok": True}) == seq == 3
    with pytest.raises(LeaseLost):
        ana.finish(called, "c1", attempt, {"ok": False})
    assert call_of(store) == ("done", 1, "w1", {"ok": True})
    message = ana.load(called).messages[-1]
    assert (message.role, message.content, message.tool_call_id, message.tool_name) == (
        "tool", '{"ok": true}', "c1", "send"
    )  # fmt: skip
    with pytest.raises(NotFound):
        ana.begin(called, "no", "w")
    with pytest.raises(NotFound):
        ana.finish(called, "no", 1, None)
    with pytest.raises(InvalidRequest):
        ana.begin(called, "c2", "")
    with pytest.raises(InvalidRequest):
        ana.begin(called, "c2", "w", lease=timedelta(0))
    with pytest.raises(InvalidRequest):
        ana.resume(called, "w", lease=timedelta(seconds=-1))
    with pytest.raises(InvalidRequest):
        ana.begin(called, "c2", "w", lease=timedelta(days=1000000))


def test_a_result_that_is_brought_by_hand(store: Store, ana: AgentStore, called: str) -> None:
    ana.append(called, Message("tool", "seen", tool_call_id="c2", tool_name="look"))
    assert call_of(store, "c2") == ("done", 0, None, "seen")
    ana.begin(called, "c1", "w")
    for call in ("c1", "c2"):  # one runs, one has its result
        with pytest.raises(InvalidRequest):
            ana.append(called, Message("tool", "x", tool_call_id=call))


def test_never_started_and_outcome_unknown_are_told_apart(
    store: Store, ana: AgentStore, called: str
) -> None:
    ana.begin(called, "c1", "w1")
    run_out(store)
    resumed = ana.resume(called, "w2")
    assert [(c.tool_call_id, c.attempt, c.tool_name) for c in resumed.run] == [("c2", 1, "look")]
    assert resumed.run[0].call == CALLS[1]
    assert (resumed.unknown, resumed.running) == (["c1"], [])
    assert call_of(store)[0] == "unknown"
    last = ana.load(called).messages[-1]
    assert (last.role, last.tool_call_id) == ("tool", "c1")
    assert "Outcome unknown" in (last.content or "")
    again = ana.resume(called, "w3")
    assert (again.run, again.unknown, again.running) == ([], [], ["c2"])


def test_a_call_that_is_safe_to_retry_runs_again(
    store: Store, ana: AgentStore, called: str
) -> None:
    first = ana.begin(called, "c1", "w1", safe_to_retry=True)
    run_out(store)
    [call] = [c for c in ana.resume(called, "w2").run if c.tool_call_id == "c1"]
    assert call.attempt == first + 1
    with pytest.raises(LeaseLost):
        ana.finish(called, "c1", first, "late")
    ana.finish(called, "c1", call.attempt, "in time")
    assert [m.content for m in ana.load(called).messages[2:]] == ["in time"]


def test_a_worker_that_was_away_past_its_lease_writes_nothing(
    store: Store, ana: AgentStore, called: str
) -> None:
    """Before anybody resumed, and after; results and what it says under the lease."""
    attempt = ana.begin(called, "c1", "w1")
    said = Message("assistant", "still here")
    assert ana.append(called, said, tool_call_id="c1", attempt=attempt)[0].seq == 3
    run_out(store)
    for _ in range(2):
        with pytest.raises(LeaseLost):
            ana.finish(called, "c1", attempt, "late")
        with pytest.raises(LeaseLost):
            ana.append(called, said, tool_call_id="c1", attempt=attempt)
        with pytest.raises(LeaseLost):
            ana.begin(called, "c1", "w1", attempt=attempt)
        ana.resume(called, "w2")
    assert [m.role for m in ana.load(called).messages] == ["user", "assistant", "assistant", "tool"]


def test_two_resumes_never_both_run_a_call(store: Store, ana: AgentStore, called: str) -> None:
    """One waits for the other, whichever verb it is, and then sees what that did."""
    verbs = {
        "begin": f"select to_jsonb(agents.agent_begin(%s, 'c1', 'W', {LEASE}))",
        "resume": f"select agents.agent_resume(%s, 'W', {LEASE}) #> '{{run,0,attempt}}'",
    }
    ana.begin(called, "c1", "w0", safe_to_retry=True)
    for first, second in itertools.product(verbs.values(), repeat=2):
        store.db.connect().execute(
            "update agents.agent_tool_call set status = case when tool_call_id = 'c1'"
            " then 'pending' else 'done' end, attempt = 1, result_seq = 2"
        )
        a, b = store.connect("ana", autocommit=False), store.connect("ana")
        [(taken,)] = a.execute(first.replace("W", "a").encode(), (called,))
        assert taken == 2
        got: list[Any] = []

        def run(it: psycopg.Connection[Any], query: str, out: list[Any]) -> None:
            try:
                out += it.execute(query.replace("W", "b").encode(), (called,)).fetchall()
            except psycopg.Error as error:
                out.append(code_of(error)[0])

        thread = threading.Thread(target=run, args=(b, second, got))
        thread.start()
        watch = store.db.connect()
        waits = "select from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
        while thread.is_alive() and not watch.execute(waits, (b.info.backend_pid,)).fetchall():
            time.sleep(0.01)
        assert thread.is_alive()
        a.commit()
        thread.join()
        assert got in (["lease_lost"], [(None,)])
        assert call_of(store)[:3] == ("started", 2, "a")


def test_the_store_awaited(store: Store) -> None:
    async def main() -> list[str | None]:
        async with pyconcord.aconnect(store.db.dsn("app"), tenant="acme") as db:
            agents = AgentStore(db.acting(user="ana"), "agents")
            session = (await agents.save(agent_name="w")).id
            await agents.append(session, Message("user", "hi"))
            return [m.content for m in (await agents.load(session)).messages]

    assert asyncio.run(main()) == ["hi"]
