"""What the server answers, as frozen dataclasses. Each keeps the JSON it was made of in `raw`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Principal:
    """Who acts, as `concord.act_as` is told."""

    tenant: str
    kind: str
    id: str
    on_behalf_of: str | None = None


@dataclass(frozen=True, eq=False)
class Row(Mapping[str, Any]):
    """A row as it was read: a read-only mapping of its columns that remembers its token.

    Values are those of JSON: dates, uuids and the like are text, numbers with a fraction are
    `Decimal`. An absent row is an empty, false `Row` with `exists` False: its token still says when
    it was absent, which a premise can rest on.
    """

    model: str
    id: str
    read_at: str
    data: Values = field(default_factory=dict)
    exists: bool = True

    def __getitem__(self, column: str) -> Any:
        if not self.exists:
            raise KeyError(f"{column}: there is no row {self.id} of {self.model}")
        return self.data[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def at(self, read_at: str) -> Row:
        """The same row under another token, such as that of the receipt of an own write."""
        return replace(self, read_at=read_at)


@dataclass(frozen=True)
class Author:
    """Who wrote something."""

    kind: str
    id: str
    on_behalf_of: str | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any] | None) -> Author | None:
        return None if raw is None else cls(raw["kind"], raw["id"], raw.get("onBehalfOf"))


@dataclass(frozen=True)
class UnseenChange:
    """One of the changes that made something stale."""

    sync_id: int
    fields: tuple[str, ...] | None
    by: Author | None
    at: datetime
    label: str | None
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> UnseenChange:
        return cls(
            sync_id=raw["syncId"],
            fields=_names(raw.get("fields")),
            by=Author.parse(raw.get("by")),
            at=instant(raw["at"]),
            label=raw.get("label"),
            raw=raw,
        )


@dataclass(frozen=True)
class Notification:
    """A stale operation (`index`) or premise (`read`): what the reader had, has not, and wants."""

    index: int | None
    read: int | None
    model: str
    id: str
    group: str | None
    read_at: str
    observed_at: str
    """The token that has seen what this tells: a write under it passes unless more has moved."""
    conflicting_fields: tuple[str, ...]
    """Empty when the whole row changed."""
    base_values: Values
    """As they were read, as far as the log holds them."""
    current_values: Values | None
    """As they are; None when the row is gone."""
    proposed_values: Values
    written_by: Author | None
    deleted: bool
    changes: tuple[UnseenChange, ...]
    changes_truncated: bool
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def base(self) -> Values:
        """`base_values`, `current_values` and `proposed_values` under the names `Held` has."""
        return self.base_values

    @property
    def current(self) -> Values | None:
        return self.current_values

    @property
    def proposed(self) -> Values:
        return self.proposed_values

    def __str__(self) -> str:
        """Such as `slides 7: title changed since it was read, by user ben`."""
        what = self.group or f"{self.model} {self.id}"
        fields = ", ".join(self.conflicting_fields) or "it"
        moved = "was deleted" if self.deleted else f"{fields} changed"
        who = self.written_by
        return f"{what}: {moved} since it was read" + (f", by {who.kind} {who.id}" if who else "")

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Notification:
        return cls(
            index=raw.get("index"),
            read=raw.get("read"),
            model=raw["model"],
            id=raw["id"],
            group=raw.get("group"),
            read_at=raw["readAt"],
            observed_at=raw["observedAt"],
            conflicting_fields=tuple(raw["conflictingFields"]),
            base_values=raw.get("baseValues") or {},
            current_values=raw.get("currentValues"),
            proposed_values=raw.get("proposedValues") or {},
            written_by=Author.parse(raw.get("writtenBy")),
            deleted=raw["deleted"],
            changes=tuple(UnseenChange.parse(each) for each in raw["changes"]),
            changes_truncated=raw["changesTruncated"],
            raw=raw,
        )


@dataclass(frozen=True)
class Outcome:
    """What became of one operation."""

    index: int
    outcome: Literal["applied", "held", "unchanged"]
    model: str
    id: str | None
    data: Values | None
    transaction_id: str | None
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Held:
    """A write that `notify` did not apply. It is its author's to resolve."""

    index: int
    operation: Mapping[str, Any]
    """The operation as it was sent."""
    notification: Notification | None
    """Why it was held itself; None when only a premise of the commit was stale."""
    premises: tuple[Mapping[str, Any], ...]
    """The premises of the commit, as they are to be declared again."""
    premise_notifications: tuple[Notification, ...] = ()

    @property
    def notifications(self) -> tuple[Notification, ...]:
        own = () if self.notification is None else (self.notification,)
        return own + self.premise_notifications

    @property
    def model(self) -> str:
        return str(self.operation["model"])

    @property
    def id(self) -> str | None:
        if self.notification is not None:
            return self.notification.id
        return self.operation.get("id")

    @property
    def base(self) -> Values:
        return {} if self.notification is None else self.notification.base

    @property
    def current(self) -> Values | None:
        return None if self.notification is None else self.notification.current

    @property
    def proposed(self) -> Values:
        if self.notification is not None:
            return self.notification.proposed
        return self.operation.get("data") or {}


@dataclass(frozen=True)
class Receipt:
    """The answer to a commit that was not refused."""

    id: str
    status: str
    replayed: bool
    """Whether this is the first answer to the same idempotency key, given again."""
    sync_id: int | None
    """Orders commits; None when nothing was applied. It is no token."""
    read_at: str
    """What the request's tokens had seen, and this commit's own writes."""
    applied: int
    unchanged: int
    operations: tuple[Outcome, ...]
    notifications: tuple[Notification, ...]
    durable: bool
    """Whether the transaction was committed before this was returned."""
    raw: Mapping[str, Any] = field(repr=False)
    _held: tuple[Held, ...] = field(repr=False)
    _looked_at: bool = field(default=False, repr=False, compare=False)

    @property
    def held(self) -> tuple[Held, ...]:
        """The writes that were not applied. An actor warns of those that nobody looked at."""
        object.__setattr__(self, "_looked_at", True)
        return self._held

    @property
    def landed(self) -> bool:
        """Whether nothing was held: every write is in the table, or was there already."""
        return not self._held

    @property
    def ignored(self) -> bool:
        """Whether writes were held and nobody looked at them so far."""
        return bool(self._held) and not self._looked_at

    def row(self, index: int = 0) -> Row:
        """The row that an operation left, under this receipt's token. It takes `returning`."""
        outcome = self.operations[index]
        if outcome.data is None or outcome.id is None:
            raise LookupError(f"operation {index} returned no row: it takes returning=True")
        return Row(outcome.model, outcome.id, self.read_at, outcome.data)

    @classmethod
    def parse(cls, raw: Mapping[str, Any], request: Mapping[str, Any], *, durable: bool) -> Receipt:
        operations: Sequence[Mapping[str, Any]] = request["operations"]
        reads: Sequence[Mapping[str, Any]] = request.get("reads") or ()
        notifications = tuple(Notification.parse(each) for each in raw["notifications"])
        moved = tuple(each for each in notifications if each.read is not None)
        # All of them, in their order: one that still held may move while somebody merges. A stale
        # one is declared again as it was when this was told; another under its own token, or,
        # where the commit wrote something itself, under the receipt's, which counts that as seen.
        # Without a mode of their own: who resolves has to hear of it when they move.
        told = {each.read: each.observed_at for each in moved}

        def asked(read: Mapping[str, Any]) -> Any:
            return read.get("readAt") or request.get("readAt")

        premises = tuple(
            {k: v for k, v in read.items() if k != "onStale"}
            | {"readAt": told.get(n) or (raw["readAt"] if raw["applied"] else asked(read))}
            for n, read in enumerate(reads)
        )
        own = {each.index: each for each in notifications if each.index is not None}
        outcomes = tuple(
            Outcome(
                index=each["index"],
                outcome=each["outcome"],
                model=operations[each["index"]]["model"],
                id=each.get("id"),
                data=each.get("data"),
                transaction_id=each.get("transactionId"),
                raw=each,
            )
            for each in raw["operations"]
        )
        return cls(
            id=raw["id"],
            status=raw["status"],
            replayed=raw["replayed"],
            sync_id=raw["syncId"],
            read_at=raw["readAt"],
            applied=raw["applied"],
            unchanged=raw["unchanged"],
            operations=outcomes,
            notifications=notifications,
            durable=durable,
            raw=raw,
            _held=tuple(
                Held(each.index, operations[each.index], own.get(each.index), premises, moved)
                for each in outcomes
                if each.outcome == "held"
            ),
        )


@dataclass(frozen=True)
class Change:
    """One row of `concord.history` or `concord.changes`, under the same names."""

    sync_id: int
    model: str
    id: str | None
    op: Literal["create", "update", "delete", "truncate"]
    fields: tuple[str, ...] | None
    """None for the whole row."""
    before: Values | None
    """The old values of the fields that changed, as far as the log holds them."""
    groups: tuple[str, ...]
    tenant: str | None
    kind: str | None
    actor: str | None
    on_behalf_of: str | None
    label: str | None
    commit_id: UUID | None
    at: datetime
    next_token: str | None
    """Where `changes` goes on after this one."""
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Change:
        return cls(
            sync_id=raw["sync_id"],
            model=raw["model"],
            id=raw["id"],
            op=raw["op"],
            fields=_names(raw["fields"]),
            before=raw["before"],
            groups=tuple(raw["groups"] or ()),
            tenant=raw["tenant"],
            kind=raw["kind"],
            actor=raw["actor"],
            on_behalf_of=raw["on_behalf_of"],
            label=raw["label"],
            commit_id=None if raw["commit_id"] is None else UUID(raw["commit_id"]),
            at=instant(raw["at"]),
            next_token=raw["next_token"],
            raw=raw,
        )


def _names(raw: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if raw is None else tuple(raw)


_ISO = re.compile(r"(\d{4,}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?(Z|[+-]\d\d(?::?\d\d)?)")


def instant(text: str) -> datetime:
    """A point in time as Postgres writes it into JSON."""
    # Postgres drops trailing zeros of the fraction; before Python 3.11 fromisoformat wants them,
    # and knows neither Z nor an offset of hours alone.
    match = _ISO.fullmatch(text)
    if match is None:
        raise ValueError(f"not a point in time: {text!r}")
    clock, fraction, zone = match.groups()
    if zone == "Z":
        zone = "+00:00"
    elif len(zone) == 3:
        zone += ":00"
    elif ":" not in zone:
        zone = f"{zone[:3]}:{zone[3:]}"
    return datetime.fromisoformat(f"{clock}.{(fraction or '').ljust(6, '0')}{zone}")
