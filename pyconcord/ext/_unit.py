"""A unit of work: the writes of an ORM that became operations, and what became of them.

    unit.add(operation, then)   # for each write of a tracked table, in the ORM's own order
    unit.flush()                # before any other statement on the connection, and at the end

Operations are collected and committed together, by `concord.try_commit`, in the transaction that
the ORM has open. Why this is right:

- **Order.** Whatever else runs on the connection runs after `flush`: a query sees what was saved
  before it, an untracked row that refers to a saved one finds it, a savepoint stands where the
  application put it. An ORM that let a statement pass `flush` by would break this.
- **One judgement.** Several commits in one transaction judge as one would: every lock is held to
  the transaction's end, so that a premise which held at the first commit still holds at the last;
  and a transaction's own changes never make it stale. Rolling back to a savepoint gives back the
  locks taken after it; so `rewind` forgets what was judged there.
- **All or nothing.** A refusal has written nothing, but the transaction stays usable. The ORM has
  to roll it back (or to a savepoint, and `rewind`); `finish` raises if it is about to commit it.

Premises are judged with the first operation after they were declared: what is read after the last
write cannot have led to it. They reject, whatever the unit's mode: a held create would leave the
ORM with an object that has no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import _wire
from .._driver import Answer, Calls, Sync
from ..client import Actor
from ..errors import ConcordError, InvalidRequest
from ..events import OnEvent
from ..reads import OnStale, Premise, declare
from ..receipts import Held, Notification, Outcome, Principal, Receipt
from ._models import Execute, Models

Then = Callable[[Outcome], None]

MAX_PENDING = 1_000
"""A commit takes 10,000 operations; a tenth of it keeps the request, and its answer, small."""


class Joined(Sync):
    """Runs the client's calls as statements of the ORM, in its transaction and never again.

    So they show up where the ORM logs its statements; and who acts was said when it began.
    """

    acts_already = True

    def __init__(self, execute: Execute) -> None:
        self.attempts = 1
        self._execute = execute

    def _do(self, effect: Any) -> Any:
        if not isinstance(effect, Calls):
            return super()._do(effect)
        [call] = effect.calls
        rows = self._execute(call.sql, call.params)
        return Answer([row[0] for row in rows], durable=False)


@dataclass(frozen=True)
class UnitReceipt:
    """The answers to a unit's commits, as one."""

    receipts: tuple[Receipt, ...]
    read_at: str | None
    """What the unit's token had seen, and the unit's own writes."""
    durable: bool
    """Whether the transaction was the unit's own, and is committed."""

    @property
    def held(self) -> tuple[Held, ...]:
        """The writes that were not applied; their authors still have to resolve them."""
        return tuple(held for receipt in self.receipts for held in receipt.held)

    @property
    def notifications(self) -> tuple[Notification, ...]:
        return tuple(each for receipt in self.receipts for each in receipt.notifications)

    @property
    def landed(self) -> bool:
        """Whether nothing was held: every write is in the table, or was there already."""
        return all(receipt.landed for receipt in self.receipts)

    @property
    def ignored(self) -> bool:
        """Whether writes were held and nobody looked at them so far."""
        return any(receipt.ignored for receipt in self.receipts)

    @property
    def applied(self) -> int:
        return sum(receipt.applied for receipt in self.receipts)

    @property
    def unchanged(self) -> int:
        return sum(receipt.unchanged for receipt in self.receipts)


@dataclass(frozen=True)
class Mark:
    """How far a unit had come when a savepoint was set."""

    receipts: int
    judged: int


class Unit:
    """The writes and premises of one block, judged by `read_at`; without it the writes are not."""

    def __init__(
        self,
        execute: Execute,
        principal: Principal | None = None,
        *,
        read_at: str | None = None,
        on_stale: OnStale | None = None,
        reads: Iterable[Premise] = (),
        only_changed: bool = True,
        label: str | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self.execute = execute
        self.models = Models(execute)
        self._actor = Actor[Sync](Joined(execute), principal, on_event)
        self._read_at = read_at
        self._options: _wire.BatchOptions = {
            "read_at": read_at,
            "on_stale": on_stale,
            "only_changed": only_changed and read_at is not None,
            "returning": True,
            "label": label,
        }
        self._pending: list[tuple[Mapping[str, Any], Then]] = []
        self._receipts: list[Receipt] = []
        self._premises: list[Premise] = []
        self._judged = 0
        self._durable = False
        self._refusal: ConcordError | None = None
        self._wrote_beside = False
        self.declare(*reads)

    @property
    def receipt(self) -> UnitReceipt:
        """What became of the unit; of what was committed so far while it is open."""
        applied = [receipt.read_at for receipt in self._receipts if receipt.applied]
        # The last one that wrote counts all that this transaction wrote before it.
        read_at = applied[-1] if applied else self._read_at
        return UnitReceipt(tuple(self._receipts), read_at, self._durable)

    def declare(self, *premises: Premise) -> None:
        """Let everything that is written from here on rest on these."""
        for premise in premises:
            wire = {**declare(premise), "onStale": "reject"}
            if wire not in self._premises:
                self._premises.append(wire)

    def add(self, operation: Mapping[str, Any], then: Then) -> None:
        """Write this with the next commit, and tell `then` what became of it."""
        self._pending.append((operation, then))
        if len(self._pending) >= MAX_PENDING:
            self.flush()

    def flush(self) -> None:
        """Commit what was added. Whatever this raises, the transaction is to be rolled back."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        operations = [operation for operation, _ in pending]
        premises = self._premises[self._judged :]
        options: _wire.BatchOptions = {**self._options, "reads": premises}
        request = _wire.request(operations, **options)
        try:
            receipt = self._actor.commit(request)
        except ConcordError as refusal:
            self._refusal = refusal
            raise
        self._judged += len(premises)
        self._receipts.append(receipt)
        for (_, then), outcome in zip(pending, receipt.operations, strict=True):
            then(outcome)

    def wrote_beside(self) -> None:
        """Take note of a write that is no operation, to an untracked table."""
        self._wrote_beside = True

    def mark(self) -> Mark:
        """Where a savepoint stands. What was added before it is committed before it."""
        self.flush()
        return Mark(len(self._receipts), self._judged)

    def rewind(self, mark: Mark) -> None:
        """Forget what was done since the savepoint, which was rolled back to."""
        self._pending.clear()
        del self._receipts[mark.receipts :]
        self._judged = mark.judged
        self._refusal = None

    def finish(self) -> None:
        """Commit what is left, before the transaction ends well."""
        if self._refusal is not None:
            raise self._refusal
        self.flush()
        if self._wrote_beside and self._judged < len(self._premises):
            raise InvalidRequest(
                "nothing judged these premises: no tracked row was written after them",
                param=f"reads[{self._judged}]",
            )

    def committed(self) -> None:
        """Say that the transaction was the unit's own, and is committed."""
        self._durable = True
