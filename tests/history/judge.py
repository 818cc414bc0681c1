"""How each part of a request may be ruled, by the audit and by what its token had seen.

What happened while a commit ran may have come before or after its judgement, so there may be
several rulings: an answer is sound when it is one of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tests.history.audit import Audit, Knowledge
from tests.history.oracle import (
    Change,
    Image,
    RowId,
    Ruling,
    judge_delete,
    judge_premise,
    judge_update,
    same,
)
from tests.history.records import Attempt, Reading, Token, loads
from tests.history.report import Report

Part = Mapping[str, Any]
"""An operation or a premise of a request."""


class Judge:
    """The audit, and what it takes to rule by it."""

    def __init__(
        self,
        audit: Audit,
        report: Report,
        columns: Sequence[Sequence[str]],
        on_stale: Mapping[str, str],
    ) -> None:
        self.audit = audit
        self.report = report
        self.on_stale = on_stale
        self.lineage = {name: names for names in columns for name in names}
        self.moving = frozenset(self.lineage)
        """The names of columns that came and went meanwhile."""
        self._knowledge: dict[int, Knowledge] = {}

    def knowledge(self, token: Token) -> Knowledge:
        found = self._knowledge.get(id(token))
        if found is None:
            found = self._knowledge[id(token)] = Knowledge(self.audit, token)
        return found

    def reading(self, client: str, reading: Reading) -> None:
        """What concord.read gave is what the row was in the snapshot that the token stands for."""
        for row, image in reading.rows.items():
            at, _ = self.knowledge(reading).part(row)
            expected = self.audit.image(row, at)
            # (A TRUNCATE empties the table for older snapshots too, once it has committed; also of
            # what was deleted before it.)
            whole = row[0], ""
            emptied = image is None and bool(
                self.audit.chain(whole)[self.knowledge(reading).part(whole)[0] :]
            )
            if not emptied and not self.agree(image, expected):
                self.report.add("wrong_read", client, f"{row}: {image} instead of {expected}")

    # --- columns ---------------------------------------------------------------------------------

    def fixed(self, image: Image) -> dict[str, Any]:
        """Without the columns that came and went."""
        return {name: value for name, value in image.items() if name not in self.moving}

    def agree(self, one: Image | None, other: Image | None) -> bool:
        if one is None or other is None:
            return one is other
        one, other = self.fixed(one), self.fixed(other)
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)

    def names_moving(self, request: Mapping[str, Any]) -> bool:
        return any(
            self.moving & {*part.get("data", ()), *part.get("where", ()), *part.get("fields", ())}
            for part in [*request["operations"], *request.get("reads", ())]
        )

    def gone(self, fields: Collection[str], unseen: Sequence[Change]) -> Iterator[frozenset[str]]:
        """Which columns may have been gone when somebody asked for `fields`.

        There is one of them at a time at most; the one that was asked for was there.
        """
        mentioned = {name for change in unseen for name in change.fields or ()}
        for there in (self.moving & {*fields}) or {"", *(mentioned & self.moving)}:
            yield self.moving - {there}

    def under_names(self, image: Image | None, fields: Collection[str]) -> Image | None:
        """An image under the names that somebody used: null where there was no column."""
        if image is None or not self.moving & {*fields}:
            return image
        named = {}
        for field in self.moving & {*fields}:
            names = self.lineage[field]
            named[field] = next((image[other] for other in names if other in image), None)
        return {**image, **named}


@dataclass
class View:
    """How a row may have looked to the judge: what was unseen, and what was there."""

    unseen: list[Change]
    current: Image | None

    @property
    def columns(self) -> Image:
        """An image that has the row's columns, also where the row is gone."""
        if self.current is not None:
            return self.current
        return next((c.old for c in reversed(self.unseen) if c.old is not None), {})


class Ground:
    """What the answer to one attempt may rest on."""

    def __init__(self, judge: Judge, attempt: Attempt) -> None:
        assert attempt.before is not None
        assert attempt.after is not None
        self.judge = judge
        self.audit = judge.audit
        self.attempt = attempt
        self.before = attempt.before
        self.after = attempt.after
        self.operations: Sequence[Part] = attempt.request["operations"]
        self.premises: Sequence[Part] = attempt.request.get("reads", [])

    def token(self, part: Part) -> Token | None:
        text = part.get("readAt", self.attempt.request.get("readAt"))
        return None if text is None else self.attempt.tokens[text]

    def mode(self, part: Part) -> str:
        stated = part.get("onStale", self.attempt.request.get("onStale"))
        if stated is None and "model" in part:
            stated = self.judge.on_stale.get(self.attempt.kind)
        return stated or "reject"

    @staticmethod
    def row(part: Part) -> RowId:
        return part["model"], str(part["id"])

    # --- what may have been seen -----------------------------------------------------------------

    def visible(self, change: Change, *, late: bool) -> bool:
        """Whether a change was there before the call, or by its end (`late`)."""
        if change.txn == self.attempt.txn:
            return change.entry <= self.attempt.first_entry
        return (self.after if late else self.before).sees(change.txn)  # type: ignore[arg-type]

    def until(self, row: RowId, *, target: bool) -> range:
        """How many of a row's changes the judge may have seen.

        A target was locked before it was judged, and stood still until the end of the call: unless
        it was not there to be locked.
        """
        first = self.audit.before(row, lambda change: self.visible(change, late=False))
        last = self.audit.before(row, lambda change: self.visible(change, late=True))
        created = any(change.op == "create" for change in self.audit.chain(row)[first:last])
        if target and not created and self.audit.image(row, last) is not None:
            return range(last, last + 1)
        return range(first, last + 1)

    def views(self, row: RowId, token: Token | None, *, target: bool) -> Iterator[View]:
        model = row[0], ""
        for until, whole_until in product(
            self.until(row, target=target), self.until(model, target=False)
        ):
            current = self.audit.image(row, until)
            if token is None:
                yield View([], current)
                continue
            knowledge = self.judge.knowledge(token)
            doubtful = max(knowledge.doubtful(row), knowledge.doubtful(model))
            for extra in range(doubtful + 1):
                unseen = knowledge.unseen(row, until, self.attempt.txn, extra)
                # A TRUNCATE is in a row's own changes too, where there was a row.
                own = {change.txn for change in unseen if change.op == "truncate"}
                whole = knowledge.unseen(model, whole_until, self.attempt.txn, extra)
                unseen += [change for change in whole if change.txn not in own]
                yield View(sorted(unseen, key=lambda change: change.entry), current)

    # --- rulings ---------------------------------------------------------------------------------

    def of_operation(self, operation: Part) -> list[Ruling]:
        """What may be ruled of an update or a delete."""
        token = self.token(operation)
        return [
            ruling
            for view in self.views(self.row(operation), token, target=True)
            for ruling in self._of_view(operation, view, guarded=token is not None)
        ]

    def _of_view(self, operation: Part, view: View, *, guarded: bool) -> Iterator[Ruling]:
        mode = self.mode(operation)
        data = typed(operation.get("data", {}))
        for gone in self.judge.gone(data, view.unseen):
            if operation["type"] == "delete":
                columns = self.judge.fixed(view.columns)
                yield judge_delete(
                    view.unseen, view.current, columns, mode=mode, guarded=guarded, gone=gone
                )
            else:
                yield judge_update(
                    data,
                    view.unseen,
                    self.judge.under_names(view.current, data),
                    mode=mode,
                    guarded=guarded,
                    only_changed=self.attempt.request.get("onlyChanged", False),
                    gone=gone,
                )

    def of_premise(self, premise: Part) -> list[Ruling]:
        token = self.token(premise)
        assert token is not None
        if "group" in premise:
            return self._of_group(premise["group"], token)
        fields = premise.get("fields")
        return [
            judge_premise(
                fields,
                view.unseen,
                self.judge.under_names(view.current, fields or ()),
                self.judge.fixed(view.columns),
                absent=premise.get("exists") is False,
                gone=gone,
            )
            for view in self.views(self.row(premise), token, target=False)
            for gone in self.judge.gone(fields or (), view.unseen)
        ]

    def _of_group(self, group: str, token: Token) -> list[Ruling]:
        """Stale for sure, perhaps, or not."""
        knowledge = self.judge.knowledge(token)
        whole = "items", ""  # the model that has groups: a TRUNCATE counts for all of them
        positions: dict[RowId, Sequence[int]] = {
            **self.audit.in_group.get(group, {}),
            whole: range(len(self.audit.chain(whole))),
        }
        perhaps = False
        for row, of_row in positions.items():
            chain = self.audit.chain(row)
            low, _ = knowledge.part(row)
            for at in of_row[bisect_left(of_row, low) :]:
                change = chain[at]
                if not self.visible(change, late=True):
                    break
                if change.txn == self.attempt.txn or knowledge.knows(change, at, 0):
                    continue
                doubtful = knowledge.knows(change, at, knowledge.doubtful(row))
                if not doubtful and self.visible(change, late=False):
                    return [Ruling("stale")]
                perhaps = True
        return [Ruling("stale"), Ruling("apply")] if perhaps else [Ruling("apply")]


def typed(data: Image) -> dict[str, Any]:
    """Values as their columns will have them: a price is sent as text, and is a number."""
    return {
        name: loads(value) if name == "price" and isinstance(value, str) else value
        for name, value in data.items()
    }
