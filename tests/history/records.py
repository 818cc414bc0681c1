"""What a client remembers: the tokens it got, the requests it made, and how they were answered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Any, Literal

from tests.history.oracle import Image, RowId

Txn = tuple[str, int]
"""When the server started, and an xid: after a crash an xid may be given out again."""

# Numbers keep their image: 1.0 stays apart from 1.00.
loads = partial(json.loads, parse_float=Decimal)


@dataclass(frozen=True)
class Snapshot:
    """A pg_snapshot, of a server that started then."""

    started: str
    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, started: str, text: str) -> Snapshot:
        xmin, xmax, running = text.split(":")
        return cls(
            started,
            int(xmin),
            int(xmax),
            frozenset(int(xid) for xid in running.split(",") if xid),
        )

    def sees(self, txn: Txn) -> bool:
        """Whether a committed transaction had ended before this moment."""
        started, xid = txn
        if started != self.started:
            return started < self.started
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)


class Heads:
    """The newest audit entry of every row, as what differs from a state that many readings share.

    A long history has thousands of rows and tens of thousands of readings: each by itself would
    fill the memory.
    """

    MOST = 300

    def __init__(self, state: Mapping[RowId, int], older: Heads | None = None) -> None:
        self.shared: Mapping[RowId, int] = state if older is None else older.shared
        self.other: dict[RowId, int | None] = {
            row: state.get(row)
            for row in self.shared.keys() | state.keys()
            if state.get(row) != self.shared.get(row)
        }
        if len(self.other) > self.MOST:
            self.shared, self.other = state, {}

    def get(self, row: RowId) -> int | None:
        return self.other[row] if row in self.other else self.shared.get(row)


@dataclass(frozen=True, eq=False)
class Reading:
    """A token of a read, with the newest audit entry of every row in the same snapshot."""

    token: str
    started: str
    heads: Heads
    rows: dict[RowId, Image | None] = field(default_factory=dict)
    """What was read beside it."""


@dataclass(frozen=True, eq=False)
class ReceiptToken:
    """A receipt's token: what the request's tokens had all seen, and the own writes up to it."""

    token: str
    started: str
    used: tuple[Token, ...]
    moment: tuple[Snapshot, Snapshot]
    """Instead of `used`, where the request had no token: some moment between these."""
    own: tuple[Txn, int] | None
    depth: int
    """How many receipts stand behind each other: a token remembers a bounded number of them."""


@dataclass(frozen=True, eq=False)
class ObservedToken:
    """The token of a notification: some moment in the commit that was answered by it."""

    token: str
    started: str
    moment: tuple[Snapshot, Snapshot]
    own: tuple[Txn, int] | None


Token = Reading | ReceiptToken | ObservedToken


@dataclass
class Attempt:
    """One call of concord.try_commit."""

    name: str
    client: str
    kind: str
    request: dict[str, Any]
    tokens: dict[str, Token]
    answer: dict[str, Any] | None = None
    error: str | None = None
    """The SQLSTATE, when it was no receipt."""
    message: str = ""
    before: Snapshot | None = None
    after: Snapshot | None = None
    txn: Txn | None = None
    first_entry: int = 0
    last_entry: int = 0
    fate: Literal["committed", "rolled back", "unknown"] = "unknown"

    @property
    def used(self) -> list[Token]:
        """The tokens that apply to some operation or premise."""
        default = self.request.get("readAt")
        parts = [*self.request["operations"], *self.request.get("reads", ())]
        texts = dict.fromkeys(part.get("readAt", default) for part in parts)
        return [self.tokens[text] for text in texts if text is not None]

    @property
    def status(self) -> str:
        return "none" if self.answer is None else str(self.answer["status"])

    @property
    def code(self) -> str | None:
        return None if self.answer is None else self.answer.get("error", {}).get("code")


@dataclass
class Client:
    """What one client brings home."""

    name: str
    kind: str
    attempts: list[Attempt] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
