"""Who is in the way: a second connection that looks on while a statement waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import psycopg

FIRST_LOOK = 0.7  # seconds; most waits are shorter
NEXT_LOOK = 2.0

# Other logins' start times and states are for superusers and pg_read_all_stats.
BLOCKERS = """
select b.pid, coalesce(a.application_name, ''), coalesce(a.usename::text, a.backend_type, ''),
       a.xact_start, coalesce(a.state, '')
  from unnest(pg_blocking_pids(%s)) b(pid)
  left join pg_stat_activity a on a.pid = b.pid
 group by 1, 2, 3, 4, 5 order by 1
"""


class Watch:
    """While it is open, tells by whom `connection` is kept waiting; each blocker once."""

    def __init__(self, connection: psycopg.Connection[Any], tell: Callable[[str], None]) -> None:
        # The same server, user and password; the info has no password in its DSN.
        self._conninfo = connection.info.dsn
        self._password = connection.info.password
        self._pid = connection.info.backend_pid
        self._tell = tell
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        if self._over.wait(FIRST_LOOK):
            return
        told: set[int] = set()
        try:
            with psycopg.connect(
                self._conninfo,
                password=self._password or None,
                autocommit=True,
                application_name="pyconcord (looking on)",
            ) as eye:
                while not self._over.is_set():
                    for pid, *about in eye.execute(BLOCKERS, (self._pid,)).fetchall():
                        if pid not in told:
                            told.add(pid)
                            self._tell(describe(pid, *about))
                    self._over.wait(NEXT_LOOK)
        except psycopg.Error as error:
            self._tell(f"can't see who is in the way: {str(error).strip()}")


def describe(pid: int, application: str, user: str, since: Any, state: str) -> str:
    """One blocker in a sentence."""
    if pid == 0:
        return "waiting for a prepared transaction: see pg_prepared_xacts"
    parts = [f"waiting for pid {pid}"]
    if application:
        parts.append(f"application {application}")
    if user:
        parts.append(f"user {user}")
    if since is not None:
        parts.append(f"in a transaction since {since:%H:%M:%S}")
    if state:
        parts.append(state)
    return ", ".join(parts)
