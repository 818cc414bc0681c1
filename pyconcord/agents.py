"""The sessions of agents in the user's own tables: the packs agent_session, agent_message and
agent_tool_call, whose verbs are functions in the tables' schema.

    store = AgentStore(me)                                  # me: db.acting(agent="writer", …)
    session = store.save(agent_name="writer").id
    store.append(session, Message("user", "Order milk", client_message_id="turn-1"))
    for call in store.resume(session, holder="worker-7").run:
        store.finish(session, call.tool_call_id, call.attempt, run(call))
    store.load(session).messages

Each call is one call of one function: what it does, and refuses, stands in its COMMENT. Whose a
session is comes from who acts. Over an `AsyncActor` the same names are awaited.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from psycopg import sql

from ._driver import Call, D, Driven, Op, operation
from ._json import dumps, loads
from .client import Actor
from .reads import OnStale
from .receipts import instant

if TYPE_CHECKING:
    from typing_extensions import LiteralString

LEASE = timedelta(minutes=5)


@dataclass(frozen=True)
class Message:
    """A message of a transcript; to append one, role and what belongs to it are given."""

    role: str
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None
    client_message_id: str | None = None
    seq: int | None = None
    id: int | None = None
    created_at: datetime | None = None


@dataclass(frozen=True)
class Appended:
    id: int
    seq: int
    replayed: bool
    """The session had a message of this client_message_id already."""


@dataclass(frozen=True)
class Saved:
    id: str
    read_at: str | None
    """For the next save; None when nothing was applied."""
    held: list[dict[str, Any]]
    """Notifications of what `on_stale="notify"` did not write."""


@dataclass(frozen=True)
class Session:
    id: str
    agent_name: str
    state: Any
    created_at: datetime
    updated_at: datetime
    read_at: str | None = None
    messages: list[Message] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    sessions: list[Session]
    next: dict[str, Any] | None
    """For `list(after=…)`; None at the end."""


@dataclass(frozen=True)
class ToolCall:
    """A call that is leased to who resumed; `call` is as the assistant's message had it."""

    tool_call_id: str
    tool_name: str | None
    attempt: int
    call: dict[str, Any]


@dataclass(frozen=True)
class Resumed:
    run: list[ToolCall]
    unknown: list[str]
    """Ids of calls for which the transcript says now that their outcome is unknown."""
    running: list[str]
    """Ids of calls under somebody's lease."""


class AgentStore(Driven[D]):
    """The store in a schema, for who acts. `names`: functions that were named otherwise."""

    def __init__(
        self, actor: Actor[D], schema: str = "public", names: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(actor._driver)
        self._actor = actor
        self._schema = schema
        self._names = names or {}

    @operation
    def save(
        self,
        id: str | None = None,
        state: Any = None,
        *,
        agent_name: str | None = None,
        read_at: str | None = None,
        on_stale: OnStale | None = None,
    ) -> Op[Saved]:
        """Create a session, or save one's state, guarded by `read_at`."""
        kept = None if state is None else dumps(state)
        answer = yield from self._ask("agent_save", id, kept, agent_name, read_at, on_stale)
        return Saved(answer["id"], answer["readAt"], answer["held"] or [])

    @operation
    def load(self, id: str, *, messages: bool = True) -> Op[Session]:
        """A session, the token for its next save, and its transcript, oldest first."""
        answer = yield from self._ask("agent_load", id, messages)
        row = answer["session"]
        return Session(
            row["id"],
            row["agent_name"],
            row["state"],
            instant(row["created_at"]),
            instant(row["updated_at"]),
            answer["readAt"],
            [_message(each) for each in answer.get("messages", ())],
        )

    @operation
    def list(
        self,
        agent_name: str | None = None,
        *,
        max: int = 50,
        after: Mapping[str, Any] | None = None,
    ) -> Op[Page]:
        """Sessions, last changed first."""
        key = None if after is None else dumps(after)
        answer = yield from self._ask("agent_list", agent_name, max, key)
        return Page(
            [
                Session(
                    each["id"],
                    each["agentName"],
                    each["state"],
                    instant(each["createdAt"]),
                    instant(each["updatedAt"]),
                )
                for each in answer["sessions"]
            ],
            answer["next"],
        )

    @operation
    def delete(self, id: str, *, read_at: str | None = None) -> Op[None]:
        """Delete a session with its transcript."""
        yield from self._ask("agent_delete", id, read_at)

    @operation
    def append(
        self,
        session: str,
        *messages: Message,
        tool_call_id: str | None = None,
        attempt: int | None = None,
    ) -> Op[tuple[Appended, ...]]:
        """Add messages, all or none; under the lease of a tool call where one is named."""
        said = [
            {
                "role": each.role,
                "content": each.content,
                "toolCalls": each.tool_calls,
                "toolCallId": each.tool_call_id,
                "toolName": each.tool_name,
                "clientMessageId": each.client_message_id,
            }
            for each in messages
        ]
        answer = yield from self._ask("agent_append", session, dumps(said), tool_call_id, attempt)
        return tuple(Appended(each["id"], each["seq"], each["replayed"]) for each in answer)

    @operation
    def messages(
        self, session: str, *, max: int = 50, before_seq: int | None = None
    ) -> Op[tuple[Message, ...]]:
        """A page of the transcript, newest first."""
        answer = yield from self._ask("agent_messages", session, max, before_seq)
        return tuple(_message(each) for each in answer)

    @operation
    def prune(self, session: str, keep: int) -> Op[int]:
        """Delete the oldest messages; how many went."""
        return int((yield from self._ask("agent_prune", session, keep)))

    @operation
    def begin(
        self,
        session: str,
        tool_call_id: str,
        holder: str,
        *,
        lease: timedelta = LEASE,
        safe_to_retry: bool | None = None,
        attempt: int | None = None,
    ) -> Op[int]:
        """Lease a call, before its effect, or renew a lease; the attempt that `finish` takes."""
        return int(
            (
                yield from self._ask(
                    "agent_begin", session, tool_call_id, holder, lease, safe_to_retry, attempt
                )
            )
        )

    @operation
    def finish(self, session: str, tool_call_id: str, attempt: int, result: Any) -> Op[int]:
        """Record a result, and add it to the transcript; the message's number there."""
        answer = yield from self._ask("agent_finish", session, tool_call_id, attempt, dumps(result))
        return int(answer["seq"])

    @operation
    def resume(self, session: str, holder: str, *, lease: timedelta = LEASE) -> Op[Resumed]:
        """What is left of the session's calls after a crash; what can run is leased to holder."""
        answer = yield from self._ask("agent_resume", session, holder, lease)
        return Resumed(
            [
                ToolCall(each["toolCallId"], each["toolName"], each["attempt"], each["call"])
                for each in answer["run"]
            ],
            [each["toolCallId"] for each in answer["unknown"]],
            [each["toolCallId"] for each in answer["running"]],
        )

    def _ask(self, verb: str, *arguments: object) -> Op[Any]:
        types = _ARGUMENTS[verb]
        query = sql.SQL("select to_jsonb({}({}))::text").format(
            sql.Identifier(self._schema, self._names.get(verb, verb)),
            sql.SQL(", ").join(sql.SQL(f"%s::{type}") for type in types),
        )
        call = Call(query.as_string(), arguments)
        [text] = yield from self._actor._rows(call)
        return loads(text)


_ARGUMENTS: dict[str, tuple[LiteralString, ...]] = {
    "agent_save": ("text", "jsonb", "text", "text", "text"),
    "agent_load": ("text", "boolean"),
    "agent_list": ("text", "integer", "jsonb"),
    "agent_delete": ("text", "text"),
    "agent_append": ("text", "jsonb", "text", "integer"),
    "agent_messages": ("text", "integer", "bigint"),
    "agent_prune": ("text", "integer"),
    "agent_begin": ("text", "text", "text", "interval", "boolean", "integer"),
    "agent_finish": ("text", "text", "integer", "jsonb"),
    "agent_resume": ("text", "text", "interval"),
}


def _message(raw: Mapping[str, Any]) -> Message:
    return Message(
        raw["role"],
        raw["content"],
        raw["toolCalls"],
        raw["toolCallId"],
        raw["toolName"],
        raw["clientMessageId"],
        raw["seq"],
        raw["id"],
        instant(raw["createdAt"]),
    )
