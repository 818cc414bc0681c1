"""A model of one tracked table in plain Python: rows as lists of changes, tokens as sets of them.

It knows what Concord promises and nothing of how: no snapshots, no ids of transactions, no log. The
state machine beside it does to a database what it does to the model, and compares the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.history.oracle import (
    Author,
    Change,
    Conflict,
    Image,
    Ruling,
    changed_fields,
    judge_delete,
    judge_premise,
    judge_update,
)

DEFAULTS: dict[str, Any] = {"deck": None, "a": None, "b": None, "n": 0, "note": None}


@dataclass(eq=False)
class Token:
    text: str
    seen: frozenset[int]
    """The entries of the changes that it counts as seen."""
    within: Transaction | None = None
    """The transaction that it was taken in: nobody else can use it before that has ended."""


@dataclass(eq=False)
class Transaction:
    by: Author
    changes: list[Change] = field(default_factory=list)
    savepoints: list[int] = field(default_factory=list)
    """How many changes there were at each of them."""
    rows: set[str] = field(default_factory=set)
    """Locked rows; then the locks of commits: rows written, rows rested on, groups likewise."""
    writes: set[str] = field(default_factory=set)
    rests: set[str] = field(default_factory=set)
    groups_written: set[str] = field(default_factory=set)
    groups_rested: set[str] = field(default_factory=set)


@dataclass
class Prediction:
    """What a commit will answer."""

    code: str | None = None
    param: str | None = None
    outcomes: list[str] = field(default_factory=list)
    notifications: list[tuple[str, int, Conflict | None]] = field(default_factory=list)
    """'read' or 'index', which one, and what it says (nothing: of a group, or of an own row)."""
    data: list[Image | None] = field(default_factory=list)
    """What each applied operation writes."""


class Table:
    """The rows, what happened to them, and who is at it."""

    def __init__(self, model: str, kind: str) -> None:
        self.model = model
        self.kind = kind
        self.ignored = frozenset({"note"})
        self.column = "x0"
        self.gone: set[str] = set()
        self.chains: dict[str, list[Change]] = {}
        self.truncated: list[Change] = []
        self.open: set[Transaction] = set()
        self.horizon = 0
        """The entry that a token must have seen to know the model as it is."""
        self.entries = 0

    # --- rows ------------------------------------------------------------------------------------

    def tick(self) -> int:
        self.entries += 1
        return self.entries

    @property
    def columns(self) -> list[str]:
        return ["id", *DEFAULTS, self.column]

    def _visible(self, change: Change, inside: Transaction | None) -> bool:
        return change.txn is inside or change.txn not in self.open

    def image(self, key: str, inside: Transaction | None) -> Image | None:
        """The row as somebody sees it, under the names that its columns have now."""
        for change in reversed(self.chains.get(key, [])):
            if self._visible(change, inside):
                if change.new is None:
                    return None
                return {self.column if k in self.gone else k: v for k, v in change.new.items()}
        return None

    def seen(self, inside: Transaction | None) -> frozenset[int]:
        changes = [c for chain in self.chains.values() for c in chain] + self.truncated
        return frozenset(c.entry for c in changes if self._visible(c, inside)) | {self.horizon}

    def groups(self, *images: Image | None) -> frozenset[str]:
        return frozenset(
            f"{self.kind}:{image['deck']}"
            for image in images
            if image is not None and image["deck"] is not None
        )

    def put(self, inside: Transaction, key: str, new: Image | None) -> None:
        """Writes a row: null deletes it."""
        old = self.image(key, inside)
        change = Change(
            row=(self.model, key),
            op="create" if old is None else "delete" if new is None else "update",
            entry=self.tick(),
            txn=inside,
            by=inside.by,
            old=old,
            new=new,
            fields=None if old is None or new is None else changed_fields(old, new, self.ignored),
            groups=self.groups(old, new),
        )
        self.chains.setdefault(key, []).append(change)
        inside.changes.append(change)
        inside.rows.add(key)

    def new_row(self, key: str, data: Image) -> Image:
        return {"id": int(key), **DEFAULTS, self.column: None, **data}

    def truncate(self, by: Author) -> None:
        nobody = Transaction(by)
        for key, chain in self.chains.items():
            old = self.image(key, None)
            if old is not None:
                chain.append(
                    Change((self.model, key), "truncate", self.tick(), nobody, by, old, None, None)
                )
        self.truncated.append(
            Change((self.model, ""), "truncate", self.tick(), nobody, by, None, None, None)
        )

    def rename(self, name: str) -> None:
        self.gone.add(self.column)
        self.column = name

    def redefine(self, ignored: frozenset[str]) -> None:
        self.ignored = ignored
        self.horizon = self.tick()

    # --- transactions ----------------------------------------------------------------------------

    def begin(self, by: Author) -> Transaction:
        transaction = Transaction(by)
        self.open.add(transaction)
        return transaction

    def end(self, transaction: Transaction) -> None:
        self.open.remove(transaction)

    def undo(self, transaction: Transaction, to: int = 0) -> None:
        for change in transaction.changes[to:]:
            self.chains[change.row[1]].remove(change)
        del transaction.changes[to:]

    def others(self, inside: Transaction | None) -> Iterator[Transaction]:
        return (other for other in self.open if other is not inside)

    def would_wait(self, inside: Transaction | None, *keys: str) -> bool:
        """Would a raw write of these rows?"""
        return any(other.rows & set(keys) for other in self.others(inside))

    # --- commits ---------------------------------------------------------------------------------

    def unseen(self, key: str, token: Token, inside: Transaction | None) -> list[Change]:
        found = [c for c in self.chains.get(key, []) if c.op != "truncate"] + self.truncated
        return sorted(
            (
                c
                for c in found
                if c.txn is not inside and c.txn not in self.open and c.entry not in token.seen
            ),
            key=lambda c: c.entry,
        )

    def unseen_in_group(self, group: str, token: Token, inside: Transaction | None) -> list[Change]:
        return [
            c
            for key in self.chains
            for c in self.unseen(key, token, inside)
            if c.noticed and (group in c.groups or c.op == "truncate")
        ] or [c for c in self.truncated if c.entry not in token.seen]

    def predict(
        self,
        request: Mapping[str, Any],
        tokens: Mapping[str, Token],
        inside: Transaction | None,
        default_mode: str,
    ) -> Prediction:
        answer = Prediction()
        operations = request["operations"]
        premises = request.get("reads", [])

        def token_of(part: Mapping[str, Any]) -> Token | None:
            text = part.get("readAt", request.get("readAt"))
            return None if text is None else tokens[text]

        def mode_of(part: Mapping[str, Any]) -> str:
            stated = part.get("onStale", request.get("onStale"))
            if stated is None and "group" not in part:
                stated = default_mode
            return stated or "reject"

        def refuse(code: str, param: str | None = None) -> Prediction:
            return Prediction(code, param)

        judged = [o for o in operations if o["type"] != "create"] + list(premises)
        tokens_judged = [token_of(part) for part in judged]
        if any(t is not None and self.horizon not in t.seen for t in tokens_judged):
            return refuse("model_changed")

        # existence, in the order of the operations
        touched: dict[str, bool] = {}
        absent = set()
        for n, operation in enumerate(operations):
            key = operation["id"]
            there = touched.get(key, self.image(key, inside) is not None)
            if operation["type"] == "create":
                if there:
                    return refuse("already_exists", f"operations[{n}].id")
            elif not there:
                guarded = token_of(operation) is not None
                if key in touched or not guarded or mode_of(operation) == "overwrite":
                    return refuse("not_found", f"operations[{n}].id")
                absent.add(n)
            if operation["type"] != "update":
                touched[key] = operation["type"] == "create"

        for n, operation in enumerate(operations):
            if n not in absent:
                image = self.image(operation["id"], inside) or {}
                if any(image.get(k) != v for k, v in operation.get("where", {}).items()):
                    return refuse("precondition_failed", f"operations[{n}].where")

        rejected = hold_all = False
        for n, premise in enumerate(premises):
            ruling = self._premise(premise, token_of(premise), inside)
            if ruling.outcome == "not_found":
                return refuse("not_found", f"reads[{n}].id")
            if ruling.outcome == "stale" and mode_of(premise) != "overwrite":
                answer.notifications.append(("read", n, ruling.conflict))
                answer.param = answer.param or f"reads[{n}]"
                rejected |= mode_of(premise) == "reject"
                hold_all = True

        for n, operation in enumerate(operations):
            ruling = self._operation(
                operation,
                token_of(operation),
                inside,
                mode_of(operation),
                bool(request.get("onlyChanged")),
                fresh=any(
                    o["id"] == operation["id"] and o["type"] == "create" for o in operations[:n]
                ),
            )
            if ruling.outcome == "not_found":
                return refuse("not_found", f"operations[{n}].id")
            outcome = {"apply": "applied", "stale": "held", "unchanged": "unchanged"}[
                ruling.outcome
            ]
            if ruling.outcome == "stale":
                answer.notifications.append(("index", n, ruling.conflict))
                answer.param = answer.param or f"operations[{n}]"
                rejected |= mode_of(operation) == "reject"
            answer.outcomes.append("held" if hold_all else outcome)
            answer.data.append(ruling.data)
        if rejected:
            answer.code = "stale_context"
        else:
            answer.param = None
        return answer

    def _premise(
        self, premise: Mapping[str, Any], token: Token | None, inside: Transaction | None
    ) -> Ruling:
        assert token is not None
        if "group" in premise:
            moved = self.unseen_in_group(premise["group"], token, inside)
            return Ruling("stale" if moved else "apply")
        return judge_premise(
            premise.get("fields"),
            self.unseen(premise["id"], token, inside),
            self.image(premise["id"], inside),
            self.columns,
            absent=premise.get("exists") is False,
            gone=self.gone,
        )

    def _operation(
        self,
        operation: Mapping[str, Any],
        token: Token | None,
        inside: Transaction | None,
        mode: str,
        only_changed: bool,
        *,
        fresh: bool,
    ) -> Ruling:
        """`fresh`: an earlier operation of the batch creates the row."""
        if operation["type"] == "create":
            return Ruling("apply", data=operation["data"])
        key = operation["id"]
        current = self.image(key, inside)
        if current is None and fresh:
            return Ruling("apply", data=operation.get("data", {}))
        unseen = [] if token is None else self.unseen(key, token, inside)
        if operation["type"] == "delete":
            return judge_delete(
                unseen, current, self.columns, mode=mode, guarded=token is not None, gone=self.gone
            )
        return judge_update(
            operation["data"],
            unseen,
            current,
            mode=mode,
            guarded=token is not None,
            only_changed=only_changed,
            gone=self.gone,
        )

    def apply(self, request: Mapping[str, Any], answer: Prediction, inside: Transaction) -> bool:
        """Writes what was applied; says whether any of it made a delta."""
        drew = False
        for operation, outcome, data in zip(
            request["operations"], answer.outcomes, answer.data, strict=True
        ):
            if outcome != "applied":
                continue
            key = operation["id"]
            if operation["type"] == "create":
                self.put(inside, key, self.new_row(key, operation["data"]))
            elif operation["type"] == "delete":
                self.put(inside, key, None)
            else:
                self.put(inside, key, {**(self.image(key, inside) or {}), **(data or {})})
            drew |= inside.changes[-1].noticed
        return drew
