"""Concord's log against the audit: each change once, with fields, old values, groups, author."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.types.json import set_json_loads

from tests.history.audit import Audit
from tests.history.oracle import Author, Change, RowId
from tests.history.records import Txn, loads
from tests.history.report import Report

KINDS = {"u": "user", "a": "agent", "s": "system"}
OPS = {"c": "create", "u": "update", "d": "delete", "t": "truncate"}


@dataclass(frozen=True)
class Delta:
    epoch: int
    xid: int
    seq: int
    row: RowId
    op: str
    fields: frozenset[str] | None
    before: str | None
    groups: frozenset[str]
    by: Author


def load(connection: psycopg.Connection[Any]) -> tuple[list[Delta], Counter[tuple[int, str]]]:
    """The log in its order, and how often each transaction is found under each group."""
    set_json_loads(loads, connection)
    deltas = []
    found: Counter[tuple[int, str]] = Counter()
    for (
        epoch,
        xid,
        seq,
        model,
        op,
        key,
        grp,
        fields,
        before,
        kind,
        actor,
        groups,
    ) in connection.execute(
        "select d.epoch, d.xid::text::bigint, d.seq, m.name, d.op::text, d.key, d.grp, "
        "d.fields::text[], d.before::jsonb, d.kind::text, d.actor, d.groups::text[] "
        "from concord_internal.deltas d join concord_internal.models m on m.id = d.model "
        "order by d.seq"
    ):
        if grp is not None:
            found[xid, grp] += 1
        if op == "g":
            continue
        deltas.append(
            Delta(
                epoch=epoch,
                xid=xid,
                seq=seq,
                row=(model, key or ""),
                op=OPS[op],
                fields=None if fields is None else frozenset(fields),
                before=_canonical(before),
                groups=frozenset(groups or ([] if grp is None else [grp])),
                by=(KINDS[kind], actor),
            )
        )
    return deltas, found


def _canonical(image: Any) -> str | None:
    return None if image is None else str(sorted((k, str(v)) for k, v in image.items()))


def check_log(audit: Audit, connection: psycopg.Connection[Any], report: Report) -> list[Delta]:
    """Compares, and returns the log."""
    deltas, grouped = load(connection)
    report.counts["deltas"] = len(deltas)
    if len({delta.seq for delta in deltas}) != len(deltas):
        report.add("log_order", "log", "a number was given out twice")

    expected = [change for change in audit.changes if _is_logged(change)]
    of_xid: dict[int, list[Change]] = defaultdict(list)
    for change in expected:
        of_xid[_xid(change)].append(change)
    logged: dict[int, list[Delta]] = defaultdict(list)
    for delta in deltas:
        logged[delta.xid].append(delta)
    for xid in sorted(of_xid.keys() | logged.keys()):
        _compare(xid, of_xid.get(xid, []), logged.get(xid, []), report)

    wanted: Counter[tuple[int, str]] = Counter()
    for change in expected:
        if change.row[1] and change.op != "truncate":
            wanted.update((_xid(change), group) for group in change.groups)
    for (xid, group), times in ((wanted - grouped) + (grouped - wanted)).items():
        report.add("log_groups", f"transaction {xid}", f"{group}: {times} too few or too many")

    _compare_order(expected, deltas, report)
    return deltas


def _xid(change: Change) -> int:
    txn: Txn = change.txn  # type: ignore[assignment]
    return txn[1]


def _is_logged(change: Change) -> bool:
    """Rows that a TRUNCATE removed are told by one delta of their model."""
    return change.noticed and (change.op != "truncate" or not change.row[1])


def _compare(xid: int, changes: Sequence[Change], deltas: Sequence[Delta], report: Report) -> None:
    def of_change(change: Change) -> tuple[Any, ...]:
        old = change.old
        if old is not None and change.fields is not None:
            old = {name: old[name] for name in change.fields if name in old}
        return (
            change.row,
            change.op,
            change.fields,
            None if change.op == "truncate" else _canonical(old),
            frozenset() if change.op == "truncate" else change.groups,
            change.by,
        )

    is_there = Counter(
        (delta.row, delta.op, delta.fields, delta.before, delta.groups, delta.by)
        for delta in deltas
    )
    should_be = Counter(map(of_change, changes))
    missing, extra = should_be - is_there, is_there - should_be
    for what, times in missing.items():
        about = next((other for other in extra if other[:2] == what[:2]), None)
        if about is not None:
            report.add("log_wrong", f"transaction {xid}", f"{about} instead of {what}")
        else:
            report.add("log_missing", f"transaction {xid}", f"{times} × {what}")
    for what, times in extra.items():
        if all(other[:2] != what[:2] for other in missing):
            report.add("log_extra", f"transaction {xid}", f"{times} × {what}")


def _compare_order(changes: Sequence[Change], deltas: Sequence[Delta], report: Report) -> None:
    """The numbers of a row's deltas rise in the order in which its writers committed."""
    audited: dict[RowId, list[int]] = defaultdict(list)
    logged: dict[RowId, list[int]] = defaultdict(list)
    for change in changes:
        audited[change.row].append(_xid(change))
    for delta in deltas:
        logged[delta.row].append(delta.xid)
    for row, xids in audited.items():
        if sorted(xids) == sorted(logged[row]) and xids != logged[row]:
            report.add("log_order", str(row), f"{logged[row]} instead of {xids}")
