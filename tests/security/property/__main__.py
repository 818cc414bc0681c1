"""``python -m tests.security.property --statements 20000 --seed 7``"""

from __future__ import annotations

import argparse

import psycopg

from pyconcord.embedded import Server
from tests.security.property.run import Run
from tests.support import FAST, PG_VERSION, Database, create_logins, install_for_tests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--statements", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    with Server(version=PG_VERSION, settings=FAST) as server:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            create_logins(connection)
            connection.execute("create database property")
        install_for_tests(server.dsn("property"))
        db = Database("property", server)
        run = Run(db, given.seed)
        run.go(given.statements)
        db.close()
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(run.counts.items()))
    print(f"{given.statements} statements, {run.refused} refused, nothing differs ({kinds})")


if __name__ == "__main__":
    main()
