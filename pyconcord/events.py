"""What the `on_event` callback is told, for metrics and traces. No event carries a value of a row
besides those that its receipt or notification holds.

The callback runs in the calling thread (or task), after the transaction has ended; what it raises
passes through to the caller, so it should do little and catch its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from .receipts import Notification, Principal, Receipt


@dataclass(frozen=True)
class CommitEvent:
    """A commit was answered."""

    name: ClassVar[str] = "commit"
    principal: Principal | None
    status: Literal["confirmed", "rejected"]
    code: str | None
    """The error code of a rejected one."""
    receipt: Receipt | None
    """The receipt of a confirmed one."""
    seconds: float


@dataclass(frozen=True)
class ConflictNotifiedEvent:
    """A commit was confirmed with something stale: one event for each notification."""

    name: ClassVar[str] = "conflict_notified"
    principal: Principal | None
    commit_id: str
    notification: Notification


@dataclass(frozen=True)
class ContendedEvent:
    """Postgres ended a call with a deadlock or a lock timeout."""

    name: ClassVar[str] = "contended"
    principal: Principal | None
    sqlstate: str | None
    attempt: int
    """1 for the first."""
    delay: float | None
    """Seconds until the next attempt; None when there is none and `Contended` is raised."""


Event = CommitEvent | ConflictNotifiedEvent | ContendedEvent
OnEvent = Callable[[Event], None]
