"""The benchmark runs: each row, on a tiny scale, on a server with its settings. No thresholds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from bench import report
from bench.measure import SETTINGS, Bench, BenchError, Result, Run, Scale, ratios, spread
from bench.orms import ROWS
from pyconcord.embedded import Server
from tests.support import PG_VERSION

TINY = Scale(
    seconds=1, turns=2, rows=2_000, bulk=200, deltas=(100, 1_000), unseen=30, transactions=4
)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Bench]:
    with Server(version=PG_VERSION, settings={**SETTINGS, "shared_buffers": "32MB"}) as server:
        yield Bench(server, TINY)


@pytest.fixture(scope="module")
def results() -> list[Result]:
    """What the rows so far came to."""
    return []


@pytest.mark.parametrize("name", ROWS)
def test_row(tiny: Bench, results: list[Result], name: str) -> None:
    for result in ROWS[name](tiny):
        assert 0 < result.low <= result.value <= result.high
        assert result.row == name or name == "commit-one"
        results.append(result)
    assert results


def test_report(tiny: Bench, results: list[Result], tmp_path: Path) -> None:
    told = report.as_json(results, TINY, tiny.server.dsn())
    report.write(tmp_path / "bench.json", told, results)
    read = json.loads((tmp_path / "bench.json").read_text())
    assert read["settings"]["synchronous_commit"] == "off"
    assert [row["meets"] for row in read["rows"]] == [result.meets for result in results]
    assert (tmp_path / "bench.svg").read_text().startswith("<svg")
    assert report.markdown(results).count("\n") == len(results) + 2
    console = Console(width=200, record=True)
    report.show(results, console)
    assert len(re.findall(r"(yes|no)\s*$", console.export_text(), re.MULTILINE)) == len(results)


def test_a_script_that_fails_is_no_measurement(tiny: Bench) -> None:
    with tiny.database("broken") as db, pytest.raises(BenchError, match="division by zero"):
        db.pgbench("select 1 / 0;\n")


def test_bounds_and_spread() -> None:
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.5, 2.5)
    these, those = Run([2.0, 4.0], 1.0, 2), Run([2.0, 2.0], 1.0, 2)
    assert ratios([these], [those]) == (1.5, 1.5, 1.5)
    result = Result("r", "v", "a", "b", "×", 1.0, "at most", 1.0, 1.0, 1.0)
    assert result.meets
    assert not Result("r", "v", "a", "b", "×", 2.0, "at least", 1.0, 1.0, 1.0).meets
