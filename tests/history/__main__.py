"""A long history: python -m tests.history --commits 20000 --connections 8 --crash --ddl"""

from __future__ import annotations

import argparse
import sys
import time

from tests.history.run import check, run, set_up
from tests.support import OwnServer


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.history", description=__doc__)
    parser.add_argument("--commits", type=int, default=20000, help="confirmed ones to wait for")
    parser.add_argument("--connections", type=int, default=8, help="clients that commit")
    parser.add_argument("--writers", type=int, default=3, help="clients with raw SQL")
    parser.add_argument("--crash", action="store_true", help="stop the server at once, half-way")
    parser.add_argument("--ddl", action="store_true", help="add, rename and drop columns meanwhile")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--show", type=int, default=10, help="violations to show")
    given = parser.parse_args()

    def tell(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    with OwnServer() as server:
        database = server.db()

        def crash() -> None:
            server.stop("immediate")
            server.start()

        set_up(database.dsn)
        history = run(
            database.dsn,
            commits=given.commits,
            connections=given.connections,
            writers=given.writers,
            ddl=given.ddl,
            crash=crash if given.crash else None,
            seed=given.seed,
            tell=tell,
        )
        began = time.monotonic()
        report = check(database.dsn, history)
    for violation in report.violations[: given.show]:
        print(violation)
    counts = ", ".join(f"{n} {what}" for what, n in sorted(report.counts.items()))
    print(
        f"{given.connections} connections, {history.crashes} crashes, {history.seconds:.0f} s, "
        f"checked in {time.monotonic() - began:.0f} s: {counts}"
    )
    print(f"violations: {len(report.violations)} {sorted(report.kinds())}")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
