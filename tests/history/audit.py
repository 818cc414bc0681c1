"""The audit after a run: every row's changes in order, and what a token had seen of them."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.types.json import set_json_loads

from tests.history.oracle import Author, Change, Image, RowId, changed_fields
from tests.history.records import (
    Attempt,
    Reading,
    ReceiptToken,
    Snapshot,
    Token,
    Txn,
    loads,
)

IGNORED = frozenset({"note", "version"})


@dataclass
class Audit:
    """All committed changes."""

    chains: dict[RowId, list[Change]] = field(default_factory=lambda: defaultdict(list))
    """Of each row, in order. A TRUNCATE is in that of the model, and of each row it removed."""
    changes: list[Change] = field(default_factory=list)
    of_txn: dict[Hashable, list[Change]] = field(default_factory=lambda: defaultdict(list))
    position: dict[tuple[RowId, int], int] = field(default_factory=dict)
    in_group: dict[str, dict[RowId, list[int]]] = field(default_factory=dict)
    """For each group, of each row that ever was in it, where the changes are that it notices."""
    attempts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Confirmed commits by name."""
    broken: list[str] = field(default_factory=list)
    """Where the audit contradicts itself: nothing can be judged by it then."""

    def add(self, change: Change) -> None:
        chain = self.chains[change.row]
        before = chain[-1] if chain else None
        if change.row[1]:
            was = None if before is None else before.new
            if (None if was is None else was["version"]) != (
                None if change.old is None else change.old["version"]
            ):
                self.broken.append(f"{change.row}: {change} does not follow {before}")
        self.position[change.row, change.entry] = len(chain)
        for group in change.groups if change.noticed else ():
            self.in_group.setdefault(group, {}).setdefault(change.row, []).append(len(chain))
        chain.append(change)
        self.changes.append(change)
        self.of_txn[change.txn].append(change)

    def chain(self, row: RowId) -> Sequence[Change]:
        return self.chains.get(row, ())

    def before(self, row: RowId, visible: Callable[[Change], bool]) -> int:
        """How many of a row's changes are visible; those that are come first."""
        chain = self.chain(row)
        return bisect_left(range(len(chain)), True, key=lambda i: not visible(chain[i]))

    def written(self, attempt: Attempt) -> list[Change]:
        """What a commit has written, triggers and cascades included."""
        first, last = attempt.first_entry, attempt.last_entry
        changes = self.of_txn.get(attempt.txn, ())
        return [change for change in changes if first < change.entry <= last]

    def image(self, row: RowId, position: int) -> Image | None:
        """The row after so many of its changes."""
        return self.chain(row)[position - 1].new if position else None


def load(connection: psycopg.Connection[Any], authors: Mapping[str, Author]) -> Audit:
    """The audit, read as a superuser; `authors` by the application_name of the client."""
    set_json_loads(loads, connection)
    audit = Audit()
    rows = connection.execute(
        "select entry, extract(epoch from started)::float8, xid::text::bigint, client, model, "
        "op::text, old_key, new_key, old, new from audit.changes order by entry"
    )
    for entry, started, xid, client, model, op, old_key, new_key, old, new in rows:
        txn = str(started), xid
        for row, kind, was, now in _parts(model, op, old_key, new_key, old, new):
            audit.add(
                Change(
                    row=row,
                    op=kind,
                    entry=entry,
                    txn=txn,
                    by=authors[client],
                    old=was,
                    new=now,
                    fields=changed_fields(was, now, IGNORED)
                    if kind == "update" and was is not None and now is not None
                    else None,
                    groups=frozenset(
                        f"deck:{image['deck']}"
                        for image in (was, now)
                        if image is not None and image.get("deck") is not None
                    ),
                )
            )
    for name, started, xid, first, last, answer, before, after in connection.execute(
        "select attempt, extract(epoch from started)::float8, xid::text::bigint, first_entry, "
        "last_entry, answer, before::text, after::text from audit.attempts"
    ):
        audit.attempts[name] = {
            "txn": (str(started), xid),
            "first_entry": first,
            "last_entry": last,
            "answer": answer,
            "moment": (Snapshot.parse(str(started), before), Snapshot.parse(str(started), after)),
        }
    return audit


def _parts(
    model: str,
    op: str,
    old_key: str | None,
    new_key: str | None,
    old: Image | None,
    new: Image | None,
) -> Iterator[tuple[RowId, Any, Image | None, Image | None]]:
    """One change, or two where the key changed."""
    if op == "T":
        yield (model, ""), "truncate", None, None
    elif old_key is not None and old_key == new_key:
        yield (model, old_key), "update", old, new
    else:
        if old_key is not None:
            yield (model, old_key), "truncate" if op == "t" else "delete", old, None
        if new_key is not None:
            yield (model, new_key), "create", None, new


# --- what a token had seen ------------------------------------------------------------------------


class Knowledge:
    """What the bearer of a token had seen: of each row a first part of its changes, and own ones.

    Where a token was taken at some moment between two that are known, the part is a range; `extra`
    says how many of the doubtful changes are taken as seen.
    """

    def __init__(self, audit: Audit, token: Token) -> None:
        self.audit = audit
        self.token = token
        self._parts: dict[RowId, tuple[int, int]] = {}
        self.bases = (
            [Knowledge(audit, used) for used in token.used]
            if isinstance(token, ReceiptToken)
            else []
        )

    @property
    def own(self) -> tuple[Txn, int] | None:
        return None if isinstance(self.token, Reading) else self.token.own

    def part(self, row: RowId) -> tuple[int, int]:
        found = self._parts.get(row)
        if found is None:
            found = self._parts[row] = self._part(row)
        return found

    def _part(self, row: RowId) -> tuple[int, int]:
        token = self.token
        if isinstance(token, Reading):
            head = token.heads.get(row)
            at = 0 if head is None else self.audit.position[row, head] + 1
            return at, at
        if self.bases:
            parts = [base.part(row) for base in self.bases]
            return min(low for low, _ in parts), min(high for _, high in parts)
        first, last = token.moment
        return self._seen_at(row, first), self._seen_at(row, last)

    def _seen_at(self, row: RowId, moment: Snapshot) -> int:
        own = self.own

        def visible(change: Change) -> bool:
            return moment.sees(change.txn) and not (  # type: ignore[arg-type]
                own is not None and change.txn == own[0] and change.entry > own[1]
            )

        return self.audit.before(row, visible)

    def knows(self, change: Change, at: int, extra: int) -> bool:
        own = self.own
        if own is not None and change.txn == own[0]:
            return change.entry <= own[1]
        if self.bases:
            return all(base.knows(change, at, extra) for base in self.bases)
        low, high = self.part(change.row)
        return at < min(low + extra, high)

    def unseen(self, row: RowId, until: int, txn: Txn | None, extra: int = 0) -> list[Change]:
        """Of the first `until` changes of a row those that are neither seen nor of `txn` itself."""
        chain = self.audit.chain(row)
        low, _ = self.part(row)
        return [
            chain[at]
            for at in range(low, until)
            if chain[at].txn != txn and not self.knows(chain[at], at, extra)
        ]

    def doubtful(self, row: RowId) -> int:
        low, high = self.part(row)
        return high - low
