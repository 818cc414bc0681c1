"""The demo: its audit must be able to fail, and the ways must come out as their makers say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from typing import Any

import psycopg
import pytest
from rich.console import Console

from pyconcord.demo import audit, report
from pyconcord.demo.audit import Attempt, AuditError, RowWrite, judge
from pyconcord.demo.report import Live
from pyconcord.demo.run import DATABASE, LOCK, DemoError, _database, _disputed, _psql, main, run
from pyconcord.demo.ways import WAYS
from pyconcord.demo.workload import ACTORS, Ref, Value, plan
from tests.support import AnyServer, Database

TITLE = Ref("slides", 1, "title")
BODY = Ref("slides", 1, "body")
OTHER = Ref("slides", 2, "title")


def wrote(seq: int, actor: str, ref: Ref, old: Value, new: Value) -> RowWrite:
    return RowWrite(seq, actor, ref.model, ref.id, {ref.field: old}, {ref.field: new})


def agent(ref: Ref, read: Value, write: Value, **more: Any) -> Attempt:
    premises = more.pop("premises", {})
    more.setdefault("answer", "landed")
    return Attempt("agent", 0, {ref: read, **premises}, {ref: write}, **more)


def person(ref: Ref, write: Value) -> Attempt:
    return Attempt("person", 0, {}, {ref: write}, "landed")


# --- the audit, on histories whose verdict is known -----------------------------------------------


def test_a_write_over_a_change_that_was_not_seen_is_a_lost_edit() -> None:
    rows = [wrote(1, "other", TITLE, "a", "b"), wrote(2, "agent", TITLE, "b", "c")]
    other = replace(agent(TITLE, "a", "b"), actor="other")
    assert judge(rows, [other, agent(TITLE, "a", "c")]).lost == 1
    assert judge(rows, [other, agent(TITLE, "b", "c")]).lost == 0


def test_a_blind_write_can_be_lost_and_loses_nothing() -> None:
    rows = [wrote(1, "person", TITLE, "a", "b"), wrote(2, "agent", TITLE, "b", "c")]
    assert judge(rows, [person(TITLE, "b"), agent(TITLE, "a", "c")]).lost == 1
    rows = [wrote(1, "agent", TITLE, "a", "b"), wrote(2, "person", TITLE, "b", "c")]
    verdict = judge(rows, [agent(TITLE, "a", "b"), person(TITLE, "c")])
    assert (verdict.lost, verdict.blind_over_others) == (0, 1)


def test_only_the_value_that_was_replaced_counts() -> None:
    rows = [
        wrote(1, "person", TITLE, "a", "b"),
        wrote(2, "person", TITLE, "b", "c"),
        wrote(3, "agent", TITLE, "c", "d"),
    ]
    attempts = [person(TITLE, "b"), person(TITLE, "c"), agent(TITLE, "a", "d")]
    assert judge(rows, attempts).lost == 1


def test_a_write_that_was_confirmed_and_is_not_there_is_lost() -> None:
    assert judge([], [agent(TITLE, "a", "b")]).lost == 1


def test_the_commit_order_counts_and_not_the_order_of_the_records() -> None:
    rows = [wrote(2, "agent", TITLE, "b", "c"), wrote(1, "person", TITLE, "a", "b")]
    assert judge(rows, [agent(TITLE, "a", "c"), person(TITLE, "b")]).lost == 1


@pytest.mark.parametrize(
    ("changed", "after", "false"),
    [
        (TITLE, 1, 0),  # a field that it would write
        (OTHER, 1, 0),  # a premise
        (BODY, 1, 1),  # another field of the row
        (TITLE, 0, 1),  # only after the refusal
    ],
)
@pytest.mark.parametrize("answer", ["refused", "held"])
def test_a_refusal_is_false_when_nothing_it_rested_on_had_changed(
    changed: Ref, after: int, false: int, answer: str
) -> None:
    rows = [wrote(1, "person", changed, "a", "b")]
    refused = agent(TITLE, "a", "c", premises={OTHER: "a"}, answer=answer, after=after)
    assert judge(rows, [person(changed, "b"), refused]).false_refusals == false


@pytest.mark.parametrize(
    ("premise_seq", "before", "moved"),
    [
        (1, 1, 1),  # committed before the landing statement was sent
        (1, 0, 0),  # a blind write while the statement was under way
        (3, 3, 0),  # after the decision
    ],
)
def test_a_decision_lands_on_a_moved_premise(premise_seq: int, before: int, moved: int) -> None:
    rows = [wrote(2, "agent", TITLE, "x", "y"), wrote(premise_seq, "person", OTHER, "a", "b")]
    decision = agent(TITLE, "x", "y", premises={OTHER: "a"}, before=before)
    assert judge(rows, [decision, person(OTHER, "b")]).moved == moved
    assert judge(rows, [replace(decision, reads={**decision.reads, OTHER: "b"})]).moved == 0


def test_write_skew_is_one_moved_premise_even_if_both_land_at_once() -> None:
    rows = [wrote(1, "anna", TITLE, True, False), wrote(2, "ben", OTHER, True, False)]
    anna = Attempt("anna", 0, {TITLE: True, OTHER: True}, {TITLE: False}, "landed")
    ben = Attempt("ben", 0, {TITLE: True, OTHER: True}, {OTHER: False}, "landed")
    assert judge(rows, [anna, ben]).moved == 1


def test_thinking_is_thrown_away_by_a_refusal_and_merging_by_a_hold() -> None:
    rows = [wrote(1, "person", TITLE, "a", "b"), wrote(2, "agent", TITLE, "b", "b and c")]
    first = person(TITLE, "b")
    refused = agent(TITLE, "a", "c", answer="refused", think=4.0, after=1)
    merged = agent(TITLE, "b", "b and c", merge=True, think=1.0)
    assert judge(rows, [first, refused, replace(merged, merge=False)]).thrown_away == 4.0
    assert judge(rows, [first, replace(refused, answer="held"), merged]).thrown_away == 1.0


def test_records_that_contradict_each_other_get_no_verdict() -> None:
    rows = [wrote(1, "person", TITLE, "a", "b")]
    with pytest.raises(AuditError, match="nobody committed that"):
        judge(rows, [agent(TITLE, "z", "c", answer="refused")])
    with pytest.raises(AuditError, match="misses a change"):
        judge([*rows, wrote(2, "agent", TITLE, "z", "c")], [])


# --- the workload ---------------------------------------------------------------------------------


def test_the_plan_is_the_seeds_and_every_value_of_it_differs() -> None:
    assert plan(7, 1.0) == plan(7, 1.0)
    assert plan(7, 1.0) != plan(8, 1.0)
    once, twice = plan(7, 1.0), plan(7, 2.0)
    assert set(once) == set(ACTORS)
    for edits, slower in zip(once.values(), twice.values(), strict=True):
        assert [edit.writes for edit in edits] == [edit.writes for edit in slower]
        assert [2 * edit.think for edit in edits] == pytest.approx([e.think for e in slower])
    values = [
        (ref, edit.value(ref)) for edits in once.values() for edit in edits for ref in edit.writes
    ]
    assert len(values) == len(set(values))


# --- the run, on a server -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(server: AnyServer) -> Iterator[tuple[int, dict[str, Any]]]:
    """The exit status and the table of one short run; its database is there until the end."""
    with redirect_stdout(StringIO()) as printed:
        status = main(server.dsn(), seconds=15, json=True)
    assert status in (0, 1), "see what went to standard error"
    yield status, json.loads(printed.getvalue())
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"drop database {DATABASE} with (force)".encode())


@pytest.fixture(scope="module")
def ways(ran: tuple[int, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {way["way"]: way for way in ran[1]["ways"]}


def test_last_write_wins_loses_edits_and_leaves_shifts_unattended(ways: dict[str, Any]) -> None:
    way = ways["last write wins"]
    assert way["lost"] > 0
    assert way["moved"] > 0
    assert way["unattended"] > 0
    assert way["refused"] == way["thrown_away"] == 0


def test_a_version_column_of_the_application_misses_those_who_do_not_raise_it(
    ways: dict[str, Any],
) -> None:
    way = ways["version column, app"]
    assert way["lost"] > 0
    assert way["refused"] > 0


def test_a_version_column_of_a_trigger_refuses_by_the_row_and_knows_no_premises(
    ways: dict[str, Any],
) -> None:
    way = ways["version column, trigger"]
    assert way["lost"] == 0
    assert way["false_refusals"] > 0
    assert way["unattended"] > 0


def test_locks_held_while_thinking_are_sound_and_others_wait(ways: dict[str, Any]) -> None:
    way = ways["SELECT FOR UPDATE"]
    assert way["lost"] == way["moved"] == way["unattended"] == way["refused"] == 0
    assert way["waited"] > ways["last write wins"]["waited"]


def test_serializable_is_sound_and_refuses_what_had_not_changed(ways: dict[str, Any]) -> None:
    way = ways["SERIALIZABLE"]
    assert way["lost"] == way["unattended"] == 0
    assert way["false_refusals"] > 0


def test_concord_loses_nothing_and_refuses_nothing_without_reason(
    ran: tuple[int, dict[str, Any]], ways: dict[str, Any]
) -> None:
    status, answer = ran
    way = ways["Concord"]
    assert way["lost"] == way["moved"] == way["unattended"] == way["false_refusals"] == 0
    assert way["held"] > 0
    assert way["refused"] > 0
    assert answer["sound"] is True
    assert status == 0


def test_the_audit_convicts_concord_when_its_triggers_are_off(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = WAYS["Concord"].prepare

    def prepare_and_switch_off(dsn: str) -> None:
        prepare(dsn)
        with psycopg.connect(dsn) as connection:
            for table in ("slides", "on_call"):
                connection.execute(f"alter table {table} disable trigger all".encode())
                connection.execute(f"alter table {table} enable trigger audit".encode())

    monkeypatch.setattr(WAYS["Concord"], "prepare", prepare_and_switch_off)
    live = Live(Console(stderr=True), 1)
    [outcome] = run(db.dsn(), _psql(None), plan(1, 1.0), live, ["Concord"])
    assert outcome.verdict.lost > 0
    assert outcome.verdict.moved > 0
    assert outcome.unattended > 0
    assert not outcome.sound


def test_the_lines_to_paste_find_something(
    ran: tuple[int, dict[str, Any]], server: AnyServer
) -> None:
    dsn = server.dsn(DATABASE)
    lines = report.paste(dsn, "psql", _disputed(dsn)).splitlines()
    queries = [line.strip() for line in lines if line.startswith("  select")]
    assert len(queries) == 3
    with psycopg.connect(dsn) as connection:
        for query in queries:
            assert connection.execute(query.encode()).fetchall(), query


def test_the_records_of_all_ways_are_kept(
    ran: tuple[int, dict[str, Any]], ways: dict[str, Any], server: AnyServer
) -> None:
    with psycopg.connect(server.dsn(DATABASE)) as connection:
        for table in ("rows", "attempts"):
            found = connection.execute(f"select distinct way from audit.{table}".encode())
            assert {way for (way,) in found} == set(ways)


def test_a_database_of_somebody_else_is_left_alone(
    server: AnyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{DATABASE}_foreign"
    monkeypatch.setattr("pyconcord.demo.run.DATABASE", name)
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
        with pytest.raises(DemoError, match="rename it"), _database(server.dsn()):
            pass
        connection.execute(f"drop database {name}".encode())


def test_one_demo_at_a_time(server: AnyServer, capsys: pytest.CaptureFixture[str]) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(%s)", [LOCK])
        assert main(server.dsn()) == 2
    assert "another demo" in capsys.readouterr().err


def test_no_time_is_no_demo(server: AnyServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(server.dsn(), seconds=0) == 2
    assert "at least 5 seconds" in capsys.readouterr().err


def test_the_table_is_plain_text_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    verdict = audit.Verdict(3, 2, 1, 4.5, 10, 2, 0, 7)
    report.show([report.Outcome("a way", verdict, 1.25, 0.5, 1, 0, 6.0)], 12)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "3" in printed
    assert "it happened 7 times in each" in printed
    assert "Shifts left with nobody on duty: a way 1" in printed


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_no_word_of_the_table_is_cut(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    verdict = audit.Verdict(3, 2, 1, 4.5, 10, 2, 0, 7)
    report.show([report.Outcome(way, verdict, 321.25, 0.5, 1, 0, 6.0) for way in WAYS], 12)
    printed = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    table, _, _ = printed.partition("Worked out")
    assert "…" not in table
    words = set(table.split())
    assert words >= {word for line in (*report.COLUMNS, *WAYS) for word in line.split()}
    assert max(map(len, table.splitlines())) <= columns


def test_what_is_counted_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = audit.Verdict(3, 2, 1, 4.5, 146, 2, 0, 7)
    outcome = report.Outcome("a way", verdict, 1.25, 0.5, 1, 0, 6.0)
    Live(Console(stderr=True), 126).done(outcome)
    assert "146 writes landed" in capsys.readouterr().err
    report.show([outcome], 126)
    assert "an edit whose rows are answered apart is\nas many writes" in capsys.readouterr().out


def test_how_to_stop_the_server_and_remove_it_is_said() -> None:
    said = report.paste("dbname=d", "psql", 1, ["kill -INT 5", "rm -r /data"]).splitlines()
    assert said[-2:] == ["  kill -INT 5", "  rm -r /data"]


def test_no_password_is_printed() -> None:
    assert "secret" not in report.paste("postgresql://u:secret@h/d", "psql", 1)
