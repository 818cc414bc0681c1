"""Judges a history: every answer against the audit, and the order of all commits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.history.answers import Answer
from tests.history.audit import Audit
from tests.history.judge import Judge
from tests.history.order import check_order
from tests.history.records import Attempt, Client
from tests.history.report import Report
from tests.history.workload import CONTENDED

# Beside being contended, a commit may fail as the write itself does.
FAILED_WRITES = {"23503", "23505"}
UNDEFINED_COLUMN = "42703"


def check(
    audit: Audit,
    clients: Sequence[Client],
    *,
    columns: Sequence[Sequence[str]] = (),
    on_stale: Mapping[str, str] | None = None,
) -> Report:
    """Everything that an answer can be wrong about.

    `columns`: for each column that came and went the names that it had, one after the other;
    `on_stale`: the mode of the models by kind of principal.
    """
    report = Report()
    for problem in audit.broken:
        report.add("audit_broken", "audit", problem)
    for client in clients:
        for problem in client.unexpected:
            report.add("unexpected", client.name, problem)
    settle(audit, clients, report)
    judge = Judge(audit, report, columns, on_stale or {})
    for client in clients:
        for reading in client.readings:
            judge.reading(client.name, reading)
        for attempt in client.attempts:
            check_error(judge, attempt)
            if (
                attempt.answer is not None
                and attempt.fate == "committed"
                and not _replayed(attempt)
            ):
                Answer(judge, attempt).check()
    check_once(audit, clients, report)
    landed = [a for client in clients for a in client.attempts if _landed(a)]
    check_order(judge, landed)
    return report


def _replayed(attempt: Attempt) -> bool:
    return attempt.answer is not None and bool(attempt.answer["replayed"])


def _landed(attempt: Attempt) -> bool:
    """Whether it wrote something that is there."""
    return (
        attempt.fate == "committed"
        and attempt.answer is not None
        and bool(attempt.answer["applied"])
        and not _replayed(attempt)
        and attempt.txn is not None
    )


def check_error(judge: Judge, attempt: Attempt) -> None:
    """A write may fail as writes do; a column that was asked for may be missing."""
    allowed = CONTENDED | FAILED_WRITES
    if judge.names_moving(attempt.request):
        allowed = allowed | {UNDEFINED_COLUMN}
    if attempt.error is not None and attempt.error not in allowed:
        judge.report.add("unexpected", attempt.name, f"{attempt.error} {attempt.message}")


def settle(audit: Audit, clients: Sequence[Client], report: Report) -> None:
    """What a client could not know is in the audit; what it knew must agree with it."""
    for client in clients:
        for attempt in client.attempts:
            landed = audit.attempts.get(attempt.name)
            if attempt.fate == "committed" and attempt.status == "confirmed" and landed is None:
                report.add("lost_commit", attempt.name, "confirmed and committed, and not there")
            elif attempt.fate == "rolled back" and landed is not None:
                report.add("wrong_answer", attempt.name, "rolled back, and there")
            elif attempt.fate == "unknown" and landed is not None:
                attempt.fate = "committed"
                attempt.answer = landed["answer"]
                attempt.txn = landed["txn"]
                attempt.first_entry = landed["first_entry"]
                attempt.last_entry = landed["last_entry"]
                attempt.before, attempt.after = landed["moment"]
            report.counts[_outcome(attempt)] += 1


def _outcome(attempt: Attempt) -> str:
    if attempt.error is not None:
        return "contended" if attempt.error in CONTENDED else attempt.error
    if attempt.fate != "committed":
        return attempt.fate
    assert attempt.answer is not None
    if attempt.status == "confirmed":
        return "replayed" if attempt.answer["replayed"] else "confirmed"
    return attempt.code or "?"


def check_once(audit: Audit, clients: Sequence[Client], report: Report) -> None:
    """An idempotency key is used for one commit; whoever asks again is told of the first."""
    first: dict[str, Any] = {}
    for client in clients:
        for attempt in client.attempts:
            key = attempt.request.get("idempotencyKey")
            if key is None or attempt.fate != "committed" or attempt.answer is None:
                continue
            if attempt.status != "confirmed":
                continue
            if key not in first:
                first[key] = attempt.answer["id"]
                if _replayed(attempt):
                    report.add("wrong_answer", attempt.name, "a replay of nothing")
            elif not _replayed(attempt) or attempt.answer["id"] != first[key]:
                report.add("not_once", attempt.name, f"a second commit under the key {key}")
            if _replayed(attempt) and audit.written(attempt):
                report.add("not_once", attempt.name, "a replay that wrote")
