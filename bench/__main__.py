"""``python -m bench [--quick] [--row NAME]…``"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import sys
from pathlib import Path

from rich.console import Console

from bench import report
from bench.agents import ROWS
from bench.measure import FULL, QUICK, SETTINGS, Bench, BenchError, Result
from pyconcord.embedded import Server, ServerError
from pyconcord.install import Files, FilesError, PackError

TOP = Path(__file__).resolve().parent.parent
DOCS = TOP / "docs" / "performance.md"
TABLE = re.compile(r"(<!-- table -->\n).*(<!-- end of table -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small and short, for a first look")
    parser.add_argument("--row", action="append", choices=list(ROWS), help="only these rows")
    parser.add_argument("--docs", action="store_true", help="put it into docs/performance.md")
    parser.add_argument("--out", type=Path, default=TOP / "build" / "bench.json")
    parser.add_argument("--pack", type=Path, help="measure the pack of another checkout")
    args = parser.parse_args()
    if args.docs and (args.quick or args.row):
        parser.error("--docs takes a whole run at full scale")
    scale = QUICK if args.quick else FULL
    console = Console(width=None if sys.stdout.isatty() else 150)
    results: list[Result] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server goes when we go
    try:
        with Server(version=18, settings=SETTINGS) as server:
            bench = Bench(server, scale, Files.of_checkout(args.pack) if args.pack else None)
            for name in args.row or ROWS:
                print(f"measuring {name}", file=sys.stderr, flush=True)
                results += ROWS[name](bench)
            told = report.as_json(results, scale, server.dsn())
    except (BenchError, FilesError, PackError, ServerError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    report.show(results, console)
    if args.quick:
        console.print("\n--quick: fewer rows and deltas than the goals are about.")
    report.write(args.out, told, results)
    if args.docs:
        keep(results, args.out)
    return 0


def keep(results: list[Result], out: Path) -> None:
    """The table and the chart, for the docs."""
    table = report.markdown(results)
    DOCS.write_text(TABLE.sub(lambda m: m[1] + table + m[2], DOCS.read_text()))
    shutil.copy(out.with_suffix(".svg"), DOCS.with_suffix(".svg"))


if __name__ == "__main__":
    raise SystemExit(main())
