"""Premises: what a decision rests on, for the `reads=` of a commit.

A `Row` that was read is a premise as it stands (an absent one, of its absence). These say it more
narrowly, or of more:

    me.update(shift, on_call=False, reads=[
        reads.row(colleague, fields=["on_call"]),
        reads.absent("leaves", 12, read.token),
        reads.group("team:7", read.token),
    ])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ._json import key_text
from .receipts import Row

OnStale = Literal["reject", "overwrite", "notify"]


@dataclass(frozen=True)
class Read:
    """One declared premise; `wire` is its form in the request."""

    wire: Mapping[str, Any]


Premise = Row | Read | Mapping[str, Any]
"""A row that was read, one of the functions below, or the wire form itself."""


def row(
    target: Row | str,
    id: object = None,
    read_at: str | None = None,
    *,
    fields: Iterable[str] | None = None,
    on_stale: OnStale | None = None,
) -> Read:
    """The row, or only the named fields of it, have not changed."""
    chosen = None if fields is None else list(fields)
    return _read(**_row(target, id, read_at), fields=chosen, onStale=on_stale)


def absent(
    target: Row | str,
    id: object = None,
    read_at: str | None = None,
    *,
    on_stale: OnStale | None = None,
) -> Read:
    """There is no such row, and there has been none since the token."""
    return _read(**_row(target, id, read_at), exists=False, onStale=on_stale)


def group(key: str, read_at: str | None = None, *, on_stale: OnStale | None = None) -> Read:
    """No row of the group has changed, entered or left."""
    return _read(group=key, readAt=read_at, onStale=on_stale)


def declare(premise: Premise) -> Mapping[str, Any]:
    """The wire form of any premise."""
    if isinstance(premise, Row):
        premise = row(premise) if premise.exists else absent(premise)
    return premise.wire if isinstance(premise, Read) else premise


def _read(**wire: object) -> Read:
    return Read({name: value for name, value in wire.items() if value is not None})


def _row(target: Row | str, id: object, read_at: str | None) -> dict[str, object]:
    if isinstance(target, Row):
        return {"model": target.model, "id": target.id, "readAt": read_at or target.read_at}
    return {"model": target, "id": key_text(id), "readAt": read_at}
