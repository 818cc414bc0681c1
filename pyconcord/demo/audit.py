"""The verdict on one way, worked out from two records that know nothing of the ways.

`RowWrite`s come from `audit.rows`, which a trigger fills: each image of each row, in the order of
commits. `Attempt`s come from the clients: what each had read, meant to write, and was answered.
Values are unique, so the value that a client read tells which write it had seen. No clocks are
compared anywhere.

What is counted, for an attempt D:

lost         D landed, and a value that it replaced had been written by another actor after D read
             the field: D had not seen it, and nobody was told. Counted per value replaced. A value
             whose author was told that it landed and that is nowhere in the rows is lost too.
false        D was refused or held, and of the fields that it wrote or declared as premises none had
             changed between its read and the answer.
moved        D landed, and when it committed, a premise (the other doctor's duty, another slide's
             title) no longer had the value that D had read. One exception: a blind write that
             committed while D's landing statement was under way. It rests on nothing, so that
             "first D, then the blind write" is a full account of both. Between two decisions the
             order of commits counts as it is.
thrown away  The think time of refused attempts, which had to be thought again. A held write keeps
             its thinking; there it is the time that its author spends on merging (and both, if
             what was merged is refused).

A blind write (of the person or psql: one UPDATE by somebody who read nothing) rests on nothing and
replaces what is there on purpose. By this definition it loses nothing, in any of the ways; how
often it replaced another actor's value is counted apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pyconcord.demo.workload import Ref, Value

__all__ = ["Attempt", "AuditError", "RowWrite", "Verdict", "judge"]


class AuditError(Exception):
    """The records contradict each other: no verdict could rest on them."""


@dataclass(frozen=True)
class RowWrite:
    """One row of audit.rows; `seq` is the commit order."""

    seq: int
    actor: str
    model: str
    id: int
    old: Mapping[str, Any]
    new: Mapping[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One try of one actor. Where parts of it were answered apart, each part is an attempt."""

    actor: str
    edit: int
    reads: Mapping[Ref, Value]  # what it rests on: the fields it writes, its premises; blind: none
    writes: Mapping[Ref, Value]
    answer: Literal["landed", "refused", "held"]
    think: float = 0.0
    merge: bool = False  # of a held write with what the row holds now
    before: int = 0  # the last seq to be seen just before the landing statement was sent
    after: int = 0  # and just after the answer had come


@dataclass(frozen=True)
class Verdict:
    lost: int
    false_refusals: int
    moved: int
    thrown_away: float
    landed: int
    refused: int
    held: int
    blind_over_others: int


@dataclass(frozen=True)
class _Entry:
    """A value that a field took; what it held at the start has seq 0 and no actor."""

    seq: int
    actor: str
    value: Value


_Histories = Mapping[Ref, Sequence[_Entry]]


def judge(rows: Iterable[RowWrite], attempts: Sequence[Attempt]) -> Verdict:
    """Count what the module's description defines."""
    histories = _histories(rows)
    blind_seqs = {
        histories[ref][index].seq
        for attempt in attempts
        if not attempt.reads
        for ref, index in _landed_at(attempt, histories).items()
    }
    lost = false_refusals = moved = blind_over_others = 0
    for attempt in attempts:
        read_at = _read_at(attempt, histories)
        if attempt.answer != "landed":
            changed = any(
                entry.seq <= attempt.after
                for ref, index in read_at.items()
                for entry in histories[ref][index + 1 :]
            )
            false_refusals += not changed
            continue

        landed_at = _landed_at(attempt, histories)
        lost += len(attempt.writes) - len(landed_at)
        for ref, index in landed_at.items():
            replaced = histories[ref][index - 1]
            if replaced.actor not in ("", attempt.actor):
                if not attempt.reads:
                    blind_over_others += 1
                elif read_at[ref] < index - 1:
                    lost += 1

        commit = min((histories[ref][index].seq for ref, index in landed_at.items()), default=0)
        moved += any(
            entry.seq < commit and not (entry.seq in blind_seqs and entry.seq > attempt.before)
            for ref, index in read_at.items()
            if ref not in attempt.writes
            for entry in histories[ref][index + 1 :]
        )

    answers = [attempt.answer for attempt in attempts]
    return Verdict(
        lost=lost,
        false_refusals=false_refusals,
        moved=moved,
        thrown_away=sum(a.think for a in attempts if a.merge or a.answer == "refused"),
        landed=answers.count("landed"),
        refused=answers.count("refused"),
        held=answers.count("held"),
        blind_over_others=blind_over_others,
    )


def _histories(rows: Iterable[RowWrite]) -> _Histories:
    """The values of every field that ever changed, oldest first."""
    histories: dict[Ref, list[_Entry]] = {}
    images: dict[tuple[str, int], Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row.seq):
        if images.setdefault((row.model, row.id), row.old) != row.old:
            raise AuditError(f"the audit misses a change of {row.model} {row.id} before {row.seq}")
        images[row.model, row.id] = row.new
        for field, value in row.new.items():
            if field != "version" and value != row.old[field]:
                start = _Entry(0, "", row.old[field])
                history = histories.setdefault(Ref(row.model, row.id, field), [start])
                history.append(_Entry(row.seq, row.actor, value))
    return histories


def _read_at(attempt: Attempt, histories: _Histories) -> dict[Ref, int]:
    """Which entry of each history the attempt had seen; fields that never changed are left out."""
    found = {}
    for ref, value in attempt.reads.items():
        if ref in histories:
            values = [entry.value for entry in histories[ref]]
            if value not in values:
                raise AuditError(f"{attempt.actor} read {value!r} in {ref}: nobody committed that")
            found[ref] = values.index(value)
    return found


def _landed_at(attempt: Attempt, histories: _Histories) -> dict[Ref, int]:
    """Which entry of each history a landed attempt wrote, where there is one."""
    if attempt.answer != "landed":
        return {}
    return {
        ref: index
        for ref, value in attempt.writes.items()
        for index, entry in enumerate(histories.get(ref, ()))
        if (entry.actor, entry.value) == (attempt.actor, value)
    }
