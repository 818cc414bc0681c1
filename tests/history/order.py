"""Is there a serial order of the commits in which each read what it declared to have read?"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

from tests.history.audit import Knowledge
from tests.history.judge import Ground, Judge
from tests.history.oracle import Change, RowId
from tests.history.records import Attempt, Txn

Object = tuple[RowId, str]
"""Something of a row: a field, '' that it is there, '*' anything of it, a group it is in."""


def check_order(judge: Judge, landed: Sequence[Attempt]) -> None:
    """Looks for a cycle in the order in which commits read and wrote.

    Nodes are transactions with commits. Those that wrote an object come in the order of its
    changes; one that read it comes after the last that wrote what it had seen, and before the next.
    """
    graph = _Graph(judge, landed)
    for attempt in landed:
        graph.read(attempt)
    try:
        TopologicalSorter(graph.before).prepare()
    except CycleError as error:
        cycle = " -> ".join("+".join(graph.names[txn]) for txn in reversed(error.args[1]))
        judge.report.add(
            "not_serializable", cycle, "each of these commits has to come before the next"
        )


class _Graph:
    def __init__(self, judge: Judge, landed: Sequence[Attempt]) -> None:
        self.judge = judge
        self.before: dict[Txn, set[Txn]] = defaultdict(set)
        """For each transaction those that have to come before it."""
        self.names: dict[Txn, list[str]] = defaultdict(list)
        self.writers: dict[Object, list[tuple[int, Txn]]] = defaultdict(list)
        """For each object the positions in its row's changes at which a commit wrote it."""
        windows: dict[Txn, list[tuple[int, int]]] = defaultdict(list)
        for attempt in landed:
            assert attempt.txn is not None
            windows[attempt.txn].append((attempt.first_entry, attempt.last_entry))
            self.names[attempt.txn].append(attempt.name)
        for row, chain in judge.audit.chains.items():
            for at, change in enumerate(chain):
                txn: Txn = change.txn  # type: ignore[assignment]
                if any(first < change.entry <= last for first, last in windows.get(txn, ())):
                    self._wrote(txn, row, at, change)

    def _wrote(self, txn: Txn, row: RowId, at: int, change: Change) -> None:
        for name in _objects(change):
            writers = self.writers[row, name]
            if writers and writers[-1][1] != txn:
                self.before[txn].add(writers[-1][1])
            writers.append((at, txn))

    def read(self, attempt: Attempt) -> None:
        ground = Ground(self.judge, attempt)
        assert attempt.txn is not None
        for premise in ground.premises:
            token = ground.token(premise)
            assert token is not None
            if ground.mode(premise) == "overwrite":
                continue
            knowledge = self.judge.knowledge(token)
            if "group" in premise:
                for row in self.judge.audit.in_group.get(premise["group"], {}):
                    self._read(attempt.txn, row, [premise["group"]], knowledge)
            else:
                names = ["", *premise.get("fields", ["*"])]
                self._read(attempt.txn, ground.row(premise), names, knowledge)

    def _read(self, reader: Txn, row: RowId, names: Iterable[str], knowledge: Knowledge) -> None:
        chain = self.judge.audit.chain(row)
        low, high = knowledge.part(row)
        for name in names:
            writers = self.writers.get((row, name), [])
            at_low = bisect_left(writers, low, key=lambda writer: writer[0])
            seen = {txn for _, txn in writers[at_low - 1 : at_low] if at_low}
            for at, txn in writers[at_low:]:
                if knowledge.knows(chain[at], at, 0):
                    seen.add(txn)
                elif at >= high and txn != reader:  # below it nobody can say what was seen
                    self.before[txn].add(reader)
                    break
            self.before[reader] |= seen - {reader}


def _objects(change: Change) -> Iterator[str]:
    if change.fields is None:
        yield ""
        yield from change.new or change.old or ()
    else:
        yield from change.fields
    if change.noticed:
        yield "*"
        yield from change.groups
