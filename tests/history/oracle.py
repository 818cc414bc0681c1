"""What a commit has to answer (docs/guarantees.md), as plain functions over plain data.

Shared by the history checker and the state machine. Knows nothing of tokens, logs or SQL: a row is
the list of its changes, and which of them a reader had not seen is the caller's to say.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Image = Mapping[str, Any]
RowId = tuple[str, str]
"""A model and a key; the key '' is the model itself, which a TRUNCATE changes."""
Author = tuple[str, str]

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one row."""

    row: RowId
    op: Literal["create", "update", "delete", "truncate"]
    entry: int
    """Rises along the changes of a row, in the order of its writers' commits."""
    txn: Hashable
    by: Author
    old: Image | None
    new: Image | None
    fields: frozenset[str] | None
    """The logged fields that an update changed (if none, nobody notices); None: the whole row."""
    groups: frozenset[str] = NOTHING
    """The groups that the row was or is in."""

    @property
    def noticed(self) -> bool:
        return self.fields is None or bool(self.fields)


@dataclass(frozen=True)
class Conflict:
    """What a notification says, but for tokens, numbers and times."""

    fields: tuple[str, ...]
    deleted: bool
    by: Author
    base: Image = field(default_factory=dict)
    current: Image | None = None
    proposed: Image = field(default_factory=dict)


@dataclass(frozen=True)
class Ruling:
    outcome: Literal["apply", "stale", "unchanged", "not_found"]
    conflict: Conflict | None = None
    data: Image = field(default_factory=dict)
    """What an update then writes."""


def same(one: Any, other: Any) -> bool:
    """Identity of values, not equality: 1 is not 1.0."""
    return type(one) is type(other) and str(one) == str(other)


def changed_fields(old: Image, new: Image, ignored: Collection[str]) -> frozenset[str]:
    return frozenset(
        name
        for name in {*old, *new}
        if name not in ignored
        and (name not in old or name not in new or not same(old[name], new[name]))
    )


def _touches(
    change: Change, fields: Collection[str] | None, gone: Collection[str]
) -> frozenset[str] | None:
    """The fields of a noticed change that `fields` (None: all) rests on; None: the whole row."""
    if change.fields is None or any(name in gone for name in change.fields):
        return None  # a column that is gone may have become any other
    if fields is None:
        return change.fields
    return change.fields & frozenset(fields)


def _base(
    unseen: Sequence[Change], wanted: Iterable[str], current: Image | None, gone: Collection[str]
) -> dict[str, Any]:
    """Values at the token: what the earliest unseen change replaced, else the current."""
    base: dict[str, Any] = {}
    # A TRUNCATE logs no values, and what a column that was renamed held is under another name.
    lost = any(c.op == "truncate" or any(n in gone for n in c.fields or ()) for c in unseen)
    told = [change for change in unseen if change.op != "truncate"]
    for name in wanted:
        first = next((c for c in told if c.fields is None or name in c.fields), None)
        if first is None:
            if current is not None and not lost:
                base[name] = current[name]
        elif first.op != "create" and first.old is not None and name in first.old:
            base[name] = first.old[name]
    return base


def _conflict(
    unseen: Sequence[Change],
    fields: Collection[str] | None,
    wanted: Collection[str],
    current: Image | None,
    gone: Collection[str],
) -> tuple[Conflict, bool] | None:
    """The conflict of `fields` (None: all) with unseen changes; whether it is of the whole row."""
    hits: set[str] = set()
    whole = False
    newest: Change | None = None
    for change in unseen:
        if not change.noticed:
            continue
        touched = _touches(change, fields, gone)
        if touched is None:
            whole = True
        elif touched:
            hits |= touched
        else:
            continue
        newest = change
    if newest is None:
        return None
    noticed = [change for change in unseen if change.noticed]
    return Conflict(
        fields=() if whole else tuple(sorted(hits)),
        deleted=current is None,
        by=newest.by,
        base=_base(noticed, wanted, current, gone),
        current=None if current is None else {name: current[name] for name in wanted},
    ), whole


def judge_update(
    data: Image,
    unseen: Sequence[Change],
    current: Image | None,
    *,
    mode: str,
    guarded: bool = True,
    only_changed: bool = False,
    gone: Collection[str] = (),
) -> Ruling:
    """An update to `data` (as its columns will have it) of a row that is now `current`."""
    if current is None and (mode == "overwrite" or not guarded):
        return Ruling("not_found")
    found = _conflict(unseen, data.keys(), data.keys(), current, gone) if guarded else None
    if current is None:
        return (
            Ruling("not_found")
            if found is None
            else Ruling("stale", replace(found[0], proposed=data), data)
        )
    if only_changed:
        noticed = [change for change in unseen if change.noticed]
        base = _base(noticed, data, current, gone)
        data = {k: v for k, v in data.items() if k not in base or not same(base[k], v)}
        if not data:
            return Ruling("unchanged")
        found = _conflict(unseen, data.keys(), data.keys(), current, gone)
    if mode == "overwrite" or found is None:
        return Ruling("apply", data=data)
    conflict, whole = found
    different = [name for name, value in data.items() if not same(current[name], value)]
    if not whole:
        different = [name for name in different if name in conflict.fields]
    if not different:
        return Ruling("apply", data=data)
    if not whole:  # what was there already is no conflict, nor is who wrote it
        narrowed = _conflict(unseen, different, different, current, gone)
        assert narrowed is not None
        conflict = replace(conflict, fields=narrowed[0].fields, by=narrowed[0].by)
    return Ruling("stale", replace(conflict, proposed=data), data)


def judge_delete(
    unseen: Sequence[Change],
    current: Image | None,
    columns: Collection[str],
    *,
    mode: str,
    guarded: bool = True,
    gone: Collection[str] = (),
) -> Ruling:
    found = _conflict(unseen, None, columns, current, gone) if guarded else None
    if current is None:
        if found is None or mode == "overwrite":
            return Ruling("not_found")
        return Ruling("stale", found[0])
    if found is None or mode == "overwrite":
        return Ruling("apply")
    return Ruling("stale", found[0])


def judge_premise(
    fields: Collection[str] | None,
    unseen: Sequence[Change],
    current: Image | None,
    columns: Collection[str],
    *,
    absent: bool = False,
    gone: Collection[str] = (),
) -> Ruling:
    wanted = columns if fields is None else fields
    found = _conflict(unseen, fields, wanted, current, gone)
    if found is not None:
        return Ruling("stale", found[0])
    if absent and current is not None:  # by nobody else: this very transaction made it
        return Ruling("stale")
    if not absent and current is None:
        return Ruling("not_found")
    return Ruling("apply")
