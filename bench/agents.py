"""The agent store: what its verbs do in a second, protected and tracked as its packs make it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from bench.measure import LOGIN, Bench, Database, Result, Run, ratios, spread, times
from bench.orms import ROWS
from bench.rows import row
from pyconcord.bridge import Bridge
from pyconcord.bridge.tables import new_table
from pyconcord.packs import TableName, shipped

__all__ = ["ROWS"]  # all rows of the table, these last

TABLES = ("agent_session", "agent_message", "agent_tool_call")
ACTING = "with acting as materialized (select concord.act_as('acme', 'user', 'u1'))"
MESSAGE = '[{"role": "user", "content": "A message of a line, as people write them to an agent."}]'


def make_store(db: Database, sessions: int) -> None:
    """The store, and sessions s1, s2, … of one user."""
    tables = [new_table(TableName("public", name)) for name in TABLES]
    packs = shipped()
    bridge = Bridge([table.having([packs[table.name.name].on(table.name)]) for table in tables])
    with db.connect() as connection:

        def execute(statement: str) -> list[tuple[object, ...]]:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

        bridge.run(execute)
        connection.execute(
            "insert into agent_session (id, agent_name, tenant_id, user_id)"
            " select 's' || i, 'writer', 'acme', 'u1'"
            f" from generate_series(1, {sessions}) i".encode()
        )
    db.run(*(f"grant select, insert, update, delete on {name} to {LOGIN}" for name in TABLES))


@row("agent-append")
def agent_append(bench: Bench) -> Iterator[Result]:
    """One message a transaction: on one session from one connection, on 100 sessions from 20."""
    script = f"""\\set s random(1, :sessions)
{ACTING}
select agent_append('s' || :s, '{MESSAGE}') from acting;
"""
    for sessions, clients, goal in ((1, 1, 500), (100, 20, 1000)):
        with bench.database(f"agent_append_{sessions}") as db:
            make_store(db, sessions)
            side = partial(db.pgbench, script, clients=clients, variables={"sessions": sessions})
            runs = bench.take_turns({"append": side})["append"]
            gaps = db.value(
                "select count(*) from agent_session s where next_seq - 1 <>"
                " (select count(*) from agent_message m where m.session_id = s.id)"
            )
            assert gaps == 0
        rates = [run.rate for run in runs]
        where = "one session" if sessions == 1 else f"{sessions} sessions, {clients} connections"
        yield Result(
            "agent-append", str(sessions), "agent_append of one message", f"a second, {where}",
            "ops/s", goal, "at least", *spread(rates), times(append=runs),
        )  # fmt: skip


@row("agent-list")
def agent_list(bench: Bench) -> Iterator[Result]:
    """The newest 50 messages of a session with many, among as many of others."""
    few, many = bench.scale.deltas[0], min(bench.scale.deltas[1] // 10, 1_000_000)
    script = f"""{ACTING}
select agent_messages('s1', 50) from acting;
"""
    runs: dict[str, list[Run]] = {}
    with bench.database("agent_list_few") as small, bench.database("agent_list_many") as large:
        sides = {}
        for db, count in ((small, few), (large, many)):
            make_store(db, 2)
            with db.connect() as connection:
                # Not by the verb, which would take long: what is listed is what matters here.
                connection.execute("set session_replication_role = replica")
                connection.execute(
                    "insert into agent_message (session_id, seq, role, content, user_id, tenant_id)"
                    " select 's' || s, i, 'user', 'message ' || i, 'u1', 'acme'"
                    f" from generate_series(1, {count // 2}) i, generate_series(1, 2) s".encode()
                )
            db.run("vacuum (freeze, analyze) agent_message")
            sides[f"{count}"] = partial(db.pgbench, script)
        runs = bench.take_turns(sides)
    yield Result(
        "agent-list", "newest 50", f"a page of a transcript, {many:,} messages", f"with {few:,}",
        "×", 1.5, "at most", *ratios(runs[f"{many}"], runs[f"{few}"]),
        times(few=runs[f"{few}"], many=runs[f"{many}"]),
    )  # fmt: skip
