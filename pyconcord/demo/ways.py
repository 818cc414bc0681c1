"""The six ways of putting thinking between a read and a write.

A way reads rows, leaves its client to think, and writes. The five that need no Concord are meant as
their advocates would write them: transactions as short as the way allows, locks taken in key order,
every row that a decision rests on locked where the way locks, versions checked row by row so that
one stale row of a batch doesn't fail the others. Version columns guard the row they sit in and no
premises, as in the object-relational mappers that have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

import pyconcord
from pyconcord import Contended, StaleContext, install, reads

__all__ = ["WAYS", "Connection", "Decision", "Refused", "Row", "Way", "connect"]

Connection = psycopg.Connection[dict[str, Any]]
Row = Mapping[str, Any]
AGAIN = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


def connect(dsn: str, actor: str) -> Connection:
    """A connection in autocommit mode that tells the audit whose it is."""
    return psycopg.connect(dsn, autocommit=True, row_factory=dict_row, application_name=actor)


@dataclass(frozen=True)
class Decision:
    """What a client has made up its mind to write, to rows of one table by id."""

    model: str
    seen: Mapping[int, Row]
    changes: Mapping[int, Mapping[str, Any]]
    premises: Mapping[int, Sequence[str]]  # fields it rests on beside those it writes
    merge: Callable[[int, Row], Mapping[str, Any]]  # asked what to write over what is there now


class Refused(Exception):
    """Nothing of the decision was written."""


class Way:
    """Short transactions and no check: last write wins. The other ways change this or that."""

    name = "last write wins"
    isolation = "read committed"  # of all sessions in the database, the person's and psql's too
    setup: sql.SQL | None = None
    begin: sql.SQL | None = None  # if any, the transaction stays open while the client thinks
    lock = sql.SQL("")
    bump = sql.SQL("")
    check = sql.SQL("")

    @classmethod
    def prepare(cls, dsn: str) -> None:
        """Add to the database what the way needs."""
        with psycopg.connect(dsn) as conn:
            if cls.setup:
                conn.execute(cls.setup)

    def __init__(self, dsn: str, actor: str) -> None:
        self.conn = connect(dsn, actor)

    def close(self) -> None:
        self.conn.close()

    def read(self, model: str, ids: Sequence[int]) -> Mapping[int, Row]:
        if self.begin:
            self.conn.execute(self.begin)
        query = sql.SQL("select * from {} where id = any(%s) order by id {}")
        found = self.conn.execute(query.format(sql.Identifier(model), self.lock), [list(ids)])
        return {row["id"]: row for row in found}

    def leave(self) -> None:
        """The client has decided to write nothing."""
        if self.begin:
            self.conn.execute("rollback")

    def write(self, decision: Decision) -> list[int]:
        """Write and commit; answers the ids of rows that were refused one by one."""
        if not self.begin:
            self.conn.execute("begin")
        refused = []
        for id, values in sorted(decision.changes.items()):
            one = sql.SQL("{} = {}")
            query = sql.SQL("update {} set {}{} where id = %(id)s{}").format(
                sql.Identifier(decision.model),
                sql.SQL(", ").join(
                    one.format(sql.Identifier(f), sql.Placeholder(f)) for f in values
                ),
                self.bump,
                self.check,
            )
            known = {**values, "id": id, "seen": decision.seen[id]["version"]}
            if self.conn.execute(query, known).rowcount == 0:
                refused.append(id)
        self.conn.execute("commit")
        return refused


class ApplicationVersion(Way):
    """Whoever knows of the column checks and raises it. The person and psql don't know."""

    name = "version column, app"
    bump = sql.SQL(", version = version + 1")
    check = sql.SQL(" and version = %(seen)s")


class TriggerVersion(Way):
    """The database raises the column, whoever writes whatever."""

    name = "version column, trigger"
    setup = sql.SQL(
        "create trigger bump before update on slides"
        " for each row execute function bump_version();"
        "create trigger bump before update on on_call"
        " for each row execute function bump_version()"
    )
    check = sql.SQL(" and version = %(seen)s")


class ForUpdate(Way):
    name = "SELECT FOR UPDATE"
    begin = sql.SQL("begin")
    lock = sql.SQL("for update")


class Serializable(Way):
    """Everybody is serializable, those too who send a single statement; who is refused retries."""

    name = "SERIALIZABLE"
    isolation = "serializable"
    begin = sql.SQL("begin")

    def read(self, model: str, ids: Sequence[int]) -> Mapping[int, Row]:
        try:
            return super().read(model, ids)
        except AGAIN as error:
            self.conn.execute("rollback")
            raise Refused from error

    def write(self, decision: Decision) -> list[int]:
        try:
            return super().write(decision)
        except AGAIN as error:
            self.conn.execute("rollback")
            raise Refused from error


class Concord(Way):
    """Reads carry tokens, writes are commits. The person and psql go on as before."""

    name = "Concord"

    @classmethod
    def prepare(cls, dsn: str) -> None:
        with psycopg.connect(dsn) as conn:
            install.install(conn)
            conn.execute("select concord.track('slides')")
            conn.execute("select concord.track('on_call')")

    def __init__(self, dsn: str, actor: str) -> None:
        conninfo = make_conninfo(dsn, application_name=actor)
        self.db = pyconcord.connect(conninfo, tenant="demo", max_size=1)
        self.me = self.db.acting(**{"system" if actor == "batch" else "agent": actor})

    def close(self) -> None:
        self.db.close()

    def read(self, model: str, ids: Sequence[int]) -> Mapping[int, Row]:
        return {id: self.me.read(model, id) for id in ids}

    def leave(self) -> None:
        pass

    def write(self, decision: Decision) -> list[int]:
        """A stale field is held, and merged. A stale premise refuses all: what was thought on the
        strength of something else has to be thought again.
        """
        seen = {id: row for id, row in decision.seen.items() if isinstance(row, pyconcord.Row)}
        premises = [
            reads.row(seen[id], fields=fields, on_stale="reject")
            for id, fields in decision.premises.items()
        ]
        try:
            with self.me.batch(reads=premises, on_stale="notify") as batch:
                for id, values in decision.changes.items():
                    batch.update(seen[id], data=values)
        except (StaleContext, Contended) as error:
            raise Refused from error
        refused = []
        for held in batch.receipt.held:
            id = int(str(held.id))

            def merge(_base: Row, current: Row | None, _proposed: Row, id: int = id) -> Row:
                return decision.merge(id, current or {})

            try:
                if premises:  # they are to hold when the merged values land, too
                    now = seen[id].at(held.notifications[0].observed_at)
                    values = merge(held.base, held.current, held.proposed)
                    self.me.update(now, data=values, reads=premises, on_stale="reject")
                else:
                    self.me.resolve(held, merge)
            except (StaleContext, Contended):
                refused.append(id)
        return refused


WAYS: dict[str, type[Way]] = {
    way.name: way
    for way in (Way, ApplicationVersion, TriggerVersion, ForUpdate, Serializable, Concord)
}
