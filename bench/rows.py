"""One function for each row of the table; the docstring says what is measured.

A script is one pgbench transaction; its time is what the client waits, over a Unix socket, with
prepared statements. `:n` counts transactions through all turns, so that no row is met twice in a
run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from bench.measure import LOGIN, Bench, Database, Result, Run, Side, ratios, spread, times

Row = Callable[[Bench], Iterator[Result]]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    def register(function: Row) -> Row:
        ROWS[name] = function
        return function

    return register


# --- tables ---------------------------------------------------------------------------------------

TEN_COLUMNS = """create table {} (
  id bigint primary key, deck_id integer not null, title text not null, body text, status text,
  position integer, price numeric(12, 2), done boolean, version integer not null default 0,
  updated_at timestamptz)"""

# The first half of the rows is in decks 0 to 49, the second in 50 to 99.
FILL = """insert into {} select
  i, i % 50 + case when i > {n} / 2 then 50 else 0 end, 'title ' || i,
  'A paragraph of some length, as slides have them: ' || md5(i::text) || md5((-i)::text), 'open',
  i, i * 1.25, false, 0, now() from generate_series(1, {n}) i"""

DETAILS = ("names", "before")
IN_DECKS = "detail => 'names', groups => array['deck:{deck_id}']"


def make_slides(
    db: Database, name: str, *, rows: int | None = None, track: str | None = None
) -> None:
    """The ten-column table; `track` has the arguments of track. Each row's create is logged."""
    db.run(TEN_COLUMNS.format(name))
    if track is not None:
        db.run(f"select concord.track('{name}', {track})")
    n = db.bench.scale.rows if rows is None else rows
    db.run(FILL.format(name, n=n), f"grant all on {name} to {LOGIN}", "vacuum (freeze, analyze)")


def details(db: Database, groups: str = "") -> list[str]:
    """An untracked table and one for each detail, of the same rows."""
    make_slides(db, "untracked")
    for detail in DETAILS:
        make_slides(db, detail, track=f"detail => '{detail}'{groups}")
    return ["untracked", *DETAILS]


def counted(
    db: Database,
    script: str,
    *,
    token: bool = False,
    clients: int = 1,
    transactions: int | None = None,
) -> Side:
    """A side whose `:n` goes on from turn to turn; with a token taken as each turn begins."""
    done = 0

    def run() -> Run:
        nonlocal done
        variables: dict[str, object] = {"n": done}
        if token:
            variables["token"] = db.token()
        measured = db.pgbench(
            script, clients=clients, transactions=transactions, variables=variables
        )
        done += measured.started
        return measured

    return run


# --- writing past Concord -------------------------------------------------------------------------


@row("update-one")
def update_one(bench: Bench) -> Iterator[Result]:
    """One field of one row, by primary key, autocommit."""
    script = """\\set id random(1, {rows})
\\set v random(1, 1000000)
update {table} set title = 'title ' || :v where id = :id;
"""
    with bench.database("update_one") as db:
        rows = bench.scale.rows
        sides = {t: partial(db.pgbench, script.format(table=t, rows=rows)) for t in details(db)}
        runs = bench.take_turns(sides)
    for detail, goal in zip(DETAILS, (1.35, 1.5), strict=True):
        yield Result(
            "update-one", detail, "single-row UPDATE, 10 columns", "untracked", "×", goal,
            "at most", *ratios(runs[detail], runs["untracked"]), times(**runs),
        )  # fmt: skip


@row("update-many")
def update_many(bench: Bench) -> Iterator[Result]:
    """One field of every row in one statement; the tables are vacuumed between the turns."""
    bulk = bench.scale.bulk
    with bench.database("update_many") as db:

        def side(table: str) -> Run:
            db.run(f"vacuum {table}")
            script = f"\\set v random(1, 1000000)\nupdate {table} set title = 'title ' || :v;\n"
            return db.pgbench(script, transactions=1)

        make_slides(db, "untracked", rows=bulk)
        for detail in DETAILS:
            make_slides(db, detail, rows=bulk, track=f"detail => '{detail}'")
        runs = bench.take_turns({t: partial(side, t) for t in ("untracked", *DETAILS)})
    for detail, goal in zip(DETAILS, (2.5, 3.5), strict=True):
        yield Result(
            "update-many", detail, f"UPDATE of {bulk:,} rows in one statement", "untracked", "×",
            goal, "at most", *ratios(runs[detail], runs["untracked"]), times(**runs),
        )  # fmt: skip


@row("copy")
def copy(bench: Bench) -> Iterator[Result]:
    """COPY from a file on the server into an empty table with its primary key."""
    bulk = bench.scale.bulk
    file = bench.server.data_dir / "slides.copy"  # which it may write, and takes along
    with bench.database("copy") as db:
        make_slides(db, "source", rows=bulk)
        db.run(f"copy source to '{file}'")

        def side(table: str) -> Run:
            db.run(f"truncate {table}")
            return db.pgbench(f"copy {table} from '{file}';\n", transactions=1, user="postgres")

        make_slides(db, "untracked", rows=0)
        for detail in DETAILS:
            make_slides(db, detail, rows=0, track=f"detail => '{detail}'")
        runs = bench.take_turns({t: partial(side, t) for t in ("untracked", *DETAILS)})
    for detail in DETAILS:
        yield Result(
            "copy", detail, f"COPY of {bulk:,} rows", "untracked", "×", 2.5, "at most",
            *ratios(runs[detail], runs["untracked"]), times(**runs),
        )  # fmt: skip


@row("beside-toast")
def beside_toast(bench: Bench) -> Iterator[Result]:
    """An int of a row that also holds 1 MB of text which doesn't change."""
    script = "\\set id random(1, 20)\nupdate {} set n = n + 1 where id = :id;\n"
    with bench.database("beside_toast") as db:
        for table in ("untracked", *DETAILS):
            db.run(f"create table {table} (id bigint primary key, n integer not null, big text)")
            db.run(
                f"insert into {table} select i, 0, (select string_agg(md5(i::text || j), '')"
                " from generate_series(1, 32768) j) from generate_series(1, 20) i",
                f"grant all on {table} to {LOGIN}",
            )
            if table != "untracked":
                db.run(f"select concord.track('{table}', detail => '{table}')")
        db.run("vacuum (freeze, analyze)")
        sides = {t: partial(db.pgbench, script.format(t)) for t in ("untracked", *DETAILS)}
        runs = bench.take_turns(sides)
    for detail in DETAILS:
        yield Result(
            "beside-toast", detail, "UPDATE of an int beside an unchanged 1 MB text", "untracked",
            "×", 3.0, "at most", *ratios(runs[detail], runs["untracked"]), times(**runs),
        )  # fmt: skip


# --- commits --------------------------------------------------------------------------------------

# Identity and commit in one statement: one round trip and one transaction. The id is a permutation
# of :n; the token is as old as the turn.
COMMIT = """\\set n :n + 1
\\set id permute(:n - 1, {rows}, 42) + 1
with acting as materialized (select concord.act_as('acme', 'agent', 'agent-' || :client_id))
select concord.{call}(format('{{"operations": [{{"type": "update", "model": "{model}", "id": "%s",
  "data": {{"title": "title %s"}}, "readAt": "%s"}}]{more}}}',
  :id::text, :n::text, :token::text{args})::jsonb) from acting;
"""


COMMITTED = "select count(*) from concord_internal.commits"


def commit_script(
    model: str, rows: int, call: str = "commit", more: str = "", args: str = ""
) -> str:
    return COMMIT.format(model=model, rows=rows, call=call, more=more, args=args)


# Each row's version is the number of times that all rows were gone through.
BY_VERSION = """\\set n :n + 1
\\set id permute(:n - 1, {rows}, 42) + 1
\\set version (:n - 1) / {rows}
update {table} set title = 'title ' || :n, version = version + 1
 where id = :id and version = :version;
"""

BY_HAND = """\\set n :n + 1
\\set id permute(:n - 1, {rows}, 42) + 1
begin;
select title as was from {table} where id = :id for update \\gset
update {table} set title = 'title ' || :n where id = :id;
insert into audit (row_id, field, was, became, actor)
  values (:id, 'title', :was, 'title ' || :n, 'agent-' || :client_id);
commit;
"""


@row("commit-one")
def commit_one(bench: Bench) -> Iterator[Result]:
    """One guarded update of one field: against a version column, and against locking by hand.

    The commit carries who acts, in the same statement; neither of the others says who acts.
    """
    rows = bench.scale.rows
    with bench.database("commit_one") as db:
        make_slides(db, "by_hand")
        db.run(
            "create table audit (id bigint generated always as identity primary key,"
            " row_id bigint not null, field text not null, was text, became text, actor text,"
            " at timestamptz not null default now())",
            "create index on audit (row_id)",
            f"grant all on audit to {LOGIN}",
        )
        sides = {"by_hand": counted(db, BY_HAND.format(table="by_hand", rows=rows))}
        for detail in DETAILS:
            for table in (detail, f"{detail}_version"):
                make_slides(db, table, track=f"detail => '{detail}'")
            by_version = BY_VERSION.format(table=f"{detail}_version", rows=rows)
            sides[f"{detail}_version"] = counted(db, by_version)
            sides[detail] = counted(db, commit_script(detail, rows), token=True)
        runs = bench.take_turns(sides)
        for detail in DETAILS:  # every one of them took effect
            updated = db.value(f"select sum(version) from {detail}_version")
            assert updated == sum(run.started for run in runs[f"{detail}_version"])
        committed = sum(run.started for detail in DETAILS for run in runs[detail])
        assert db.value(COMMITTED) == committed
    for detail in DETAILS:
        yield Result(
            "commit-version", detail, "commit of one guarded update",
            "UPDATE … WHERE id AND version, tracked", "×", 1.8, "at most",
            *ratios(runs[detail], runs[f"{detail}_version"]), times(**runs),
        )  # fmt: skip
    for detail in DETAILS:
        yield Result(
            "commit-by-hand", detail, "commit of one guarded update",
            "BEGIN, SELECT FOR UPDATE, UPDATE, INSERT audit, COMMIT", "×", 0.6, "at most",
            *ratios(runs[detail], runs["by_hand"]), times(**runs),
        )  # fmt: skip


@row("commit-batch")
def commit_batch(bench: Bench) -> Iterator[Result]:
    """500 guarded updates of one field each in one commit, sent as text; operations a second."""
    batch, requests = 500, bench.scale.rows // 500
    script = """\\set n :n + 1
\\set i permute(:n - 1, {requests}, 42)
with acting as materialized (select concord.act_as('acme', 'agent', 'agent-' || :client_id))
select concord.commit(request::jsonb) from acting, {table}_requests where i = :i;
"""
    # Before each turn: a token, and every row in one request, in no order.
    prepare = """insert into {table}_requests
select (r - 1) / {batch}, '{{"readAt": "' || token || '", "operations": [' || string_agg(
  format('{{"type": "update", "model": "{table}", "id": "%s", "data": {{"title": "title %s"}}}}', id, r), ', '
  ) || ']}}'
  from (select id, row_number() over (order by hashint8(id)) as r from {table}) s,
       (select concord.capture() as token) t group by 1, token"""  # noqa: E501
    with bench.database("commit_batch") as db:

        def side(table: str) -> Run:
            db.run(
                f"truncate {table}_requests",
                prepare.format(table=table, batch=batch),
                f"vacuum analyze {table}_requests",
                f"vacuum {table}",
            )
            text = script.format(table=table, requests=requests)
            return db.pgbench(text, transactions=requests, variables={"n": 0})

        for detail in DETAILS:
            make_slides(db, detail, track=f"detail => '{detail}'")
            db.run(
                f"create table {detail}_requests (i bigint primary key, request text)",
                f"alter table {detail}_requests alter request set storage external",
                f"grant select on {detail}_requests to {LOGIN}",
            )
        runs = bench.take_turns({detail: partial(side, detail) for detail in DETAILS})
    for detail in DETAILS:
        yield Result(
            "commit-batch", detail, f"{batch} guarded updates in one commit",
            "operations a second, one connection", "ops/s", 25_000, "at least",
            *spread([batch * 1000 / run.mean for run in runs[detail]]), times(**runs),
        )  # fmt: skip


# Half of the rows are written, the premises rest on a row and a group of the other half.
PREMISES = """, "reads": [{"model": "names", "id": "%s", "readAt": "%s"},
  {"group": "deck:99", "readAt": "%s"}]"""


@row("long-log")
def long_log(bench: Bench) -> Iterator[Result]:
    """A guarded update with a row and a group as premises, in a short log and in a long one.

    The deltas are not the work of as many updates: they are inserted in bulk, each with the id of a
    transaction that was really used, spread evenly over the rows and groups.
    """
    rows = bench.scale.rows
    script = commit_script(
        "names", rows // 2, more=PREMISES,
        args=f", (:id + {rows // 2})::text, :token::text, :token::text",
    )  # fmt: skip
    sizes = bench.scale.deltas
    with bench.database("log_short") as short, bench.database("log_long") as long:
        for db, size in ((short, sizes[0]), (long, sizes[1])):
            make_slides(db, "names")
            db.run(f"select concord.track('names', {IN_DECKS})")
            fill_log(db, "names", size)
        # The short log must not grow much by what is measured in it: many turns, short ones.
        counts = {"turns": bench.scale.turns * 3, "transactions": 200}
        if bench.scale.transactions:
            counts = {"turns": bench.scale.turns, "transactions": bench.scale.transactions}
        runs = bench.take_turns(
            {
                "short": counted(short, script, token=True, transactions=counts["transactions"]),
                "long": counted(long, script, token=True, transactions=counts["transactions"]),
            },
            counts["turns"],
        )
    yield Result(
        "long-log", "names", f"commit with row and group premises, {sizes[1]:,} deltas",
        f"with {sizes[0]:,}", "×", 1.15, "at most", *ratios(runs["long"], runs["short"]),
        times(**runs),
    )  # fmt: skip


def fill_log(db: Database, table: str, size: int, leaves: int = 8) -> None:
    """Deltas of `size` transactions, as a month of maintenance would have divided the log."""
    width = size // leaves
    ahead = 1000  # a leaf begins beyond the present
    first = int(db.value("select pg_current_xact_id()::text")) + ahead
    burn = "do $$ begin for i in 1..{} loop perform pg_current_xact_id(); commit; end loop; end $$"
    for leaf in range(leaves):
        start = first + leaf * width
        db.run(
            "set role concord_owner",
            f"select concord_internal.make_leaf('deltas_{leaf + 1}', concord_internal.epoch(),"
            f" {start}, {start + width})",
        )
    db.run(burn.format(ahead))
    for leaf in range(leaves):
        db.run(
            burn.format(width),
            f"""insert into concord_internal.deltas
 (xid, seq, at, epoch, model, depth, op, kind, tenant, key, grp, fields, actor)
select ({first + leaf * width} + i)::text::xid8, nextval('concord_internal.delta_seq'),
  now() - interval '30 days' * {leaves - leaf} / {leaves}, concord_internal.epoch(), m.id, 1, 'u',
  'a', '', s.id::text, 'deck:' || s.deck_id, '{{title}}', 'agent-' || i % 20
  from generate_series(0, {width} - 1) i
  join {table} s on s.id = 1 + (i::bigint * 7919) % {db.bench.scale.rows},
  concord_internal.models m where m.rel = '{table}'::regclass""",
        )
    db.run("select concord.maintain()", "vacuum (freeze, analyze)")


@row("stale")
def stale(bench: Bench) -> Iterator[Result]:
    """Refusing a guarded update whose row has many unseen changes of that field, against one."""
    unseen = bench.scale.unseen
    script = commit_script("{model}", 1, "try_commit").replace("permute(:n - 1, 1, 42) + 1", "{id}")
    with bench.database("stale") as db:
        sides = {}
        for detail in DETAILS:
            make_slides(db, detail, track=f"detail => '{detail}'")
        token = db.token()
        for detail in DETAILS:
            db.pgbench(f"update {detail} set title = 'a' where id = 1;\n", transactions=1)
            again = f"update {detail} set title = 'title ' || :v where id = 2;\n"
            db.pgbench("\\set v random(1, 1000000)\n" + again, transactions=unseen)
            for name, id in ((detail, 2), (f"{detail}_one", 1)):
                text = script.replace("{model}", detail).replace("{id}", str(id))
                sides[name] = partial(db.pgbench, text, variables={"n": 0, "token": token})
        db.run("vacuum (analyze)")
        runs = bench.take_turns(sides)
        assert db.value(COMMITTED) == 0
    for detail in DETAILS:
        yield Result(
            "stale", detail, f"stale check, {unseen:,} unseen overlapping deltas", "with one", "×",
            5.0, "at most", *ratios(runs[detail], runs[f"{detail}_one"]), times(**runs),
        )  # fmt: skip


@row("one-group")
def one_group(bench: Bench) -> Iterator[Result]:
    """20 connections, each with guarded updates of its own rows: all in one group, or in none."""
    clients = 20
    own = bench.scale.rows // clients
    with bench.database("one_group") as db:
        for table, definition in (("grouped", IN_DECKS), ("plain", "detail => 'names'")):
            make_slides(db, table, rows=0, track=definition)
            db.run(
                FILL.format(table, n=bench.scale.rows),
                f"update {table} set deck_id = 7",
                f"vacuum full {table}",
            )
        db.run("vacuum (analyze)")
        # Rows of one connection are those of its number.
        sides = {
            table: counted(
                db,
                commit_script(table, own).replace("+ 1\nwith", f"+ 1 + :client_id * {own}\nwith"),
                token=True,
                clients=clients,
            )
            for table in ("grouped", "plain")
        }
        runs = bench.take_turns(sides)
    yield Result(
        "one-group", "names", f"throughput of {clients} connections writing into one group",
        "without the group", "×", 0.9, "at least",
        *ratios(runs["grouped"], runs["plain"], lambda run: run.rate), times(**runs),
    )  # fmt: skip


# --- behind the wall ------------------------------------------------------------------------------

TENANTS = 1000
WALLS = {"wall": "", "own": ", 'owner'"}


def make_walled(db: Database, name: str, owner: str | None) -> None:
    """The ten columns, in tenants t0 to t999, all of user u1; `owner` ends the call of protect."""
    fill = FILL.replace(" now() from", f" now(), 't' || i % {TENANTS}, 'u1' from")
    make_slides(db, name, rows=0)
    db.run(
        f"alter table {name} add tenant text, add owner text",
        f"select concord.track('{name}', tenant_column => 'tenant')",
        fill.format(name, n=db.bench.scale.rows),
        f"create index on {name} (tenant, owner, id)",
        f"grant all on {name} to {LOGIN}",
    )  # fmt: skip
    if owner is not None:
        db.run(f"select concord.protect('{name}', 'tenant'{owner})")
    db.run("vacuum (freeze, analyze)")


@row("protected-page")
def protected_page(bench: Bench) -> Iterator[Result]:
    """A tenant's newest 50 rows: by the policies, and with the tenant (and owner) in the query."""
    page = "select * from {} order by id desc limit 50;\n"
    by_hand = page.format("open where tenant = 't7'{}")
    acting = "\x1f".join(("t7", "user", "u1", ""))
    with bench.database("protected_page") as db:
        make_walled(db, "open", None)
        sides = {}
        for wall, owner in WALLS.items():
            make_walled(db, wall, owner)
            sides[wall] = partial(db.pgbench, page.format(wall), acting=acting)
            text = by_hand.format(" and owner = 'u1'" if owner else "")
            sides[f"{wall}_by_hand"] = partial(db.pgbench, text, acting=acting)
        runs = bench.take_turns(sides)
    for wall in WALLS:
        yield Result(
            "protected-page", wall, f"a tenant's page of 50 rows, {TENANTS:,} tenants",
            "the tenant written by hand, unprotected", "×", 1.3, "at most",
            *ratios(runs[wall], runs[f"{wall}_by_hand"]), times(**runs),
        )  # fmt: skip


@row("protected-commit")
def protected_commit(bench: Bench) -> Iterator[Result]:
    """One guarded update of one field, on a protected table and on the same unprotected."""
    rows = bench.scale.rows
    with bench.database("protected_commit") as db:
        sides = {}
        for name, owner in {"open": None, **WALLS}.items():
            make_walled(db, name, owner)
            script = commit_script(name, rows).replace(
                "'acme', 'agent', 'agent-' || :client_id", f"'t' || :id % {TENANTS}, 'user', 'u1'"
            )
            sides[name] = counted(db, script, token=True)
        runs = bench.take_turns(sides)
        assert db.value(COMMITTED) == sum(run.started for name in sides for run in runs[name])
    for wall in WALLS:
        yield Result(
            "protected-commit", wall, "commit of one guarded update, protected", "unprotected",
            "×", 1.25, "at most", *ratios(runs[wall], runs["open"]), times(**runs),
        )  # fmt: skip


# --- the log --------------------------------------------------------------------------------------


@row("log-bytes")
def log_bytes(bench: Bench) -> Iterator[Result]:
    """Tables and indexes of the log, over the number of deltas: one update of one row each."""
    rows = bench.scale.rows
    script = """\\set id random(1, {rows})
\\set v random(1, 1000000)
with acting as materialized (select concord.act_as('acme', 'agent', 'agent-' || :id % 20))
update decks set title = 'title ' || :v from acting
 where id = md5(:id::text)::uuid;
"""
    with bench.database("log_bytes") as db:
        db.run(
            "create table decks (id uuid primary key, deck_id integer not null, title text)",
            "insert into decks select md5(i::text)::uuid, i % 100, 'title'"
            f" from generate_series(1, {rows}) i",
            f"grant all on decks to {LOGIN}",
            f"select concord.track('decks', {IN_DECKS})",
            "vacuum (analyze)",
        )
        count = bench.scale.transactions or rows
        db.pgbench(script.format(rows=rows), transactions=count)
        deltas = db.value("select count(*) from concord_internal.deltas")
        assert deltas == count
        leaves = "from pg_partition_tree('concord_internal.deltas')"
        total = db.value(f"select sum(pg_total_relation_size(relid)) {leaves}")
        heap = db.value(f"select sum(pg_relation_size(relid)) {leaves}")
    each = float(total) / deltas
    yield Result(
        "log-bytes", "names", "log bytes of a one-field delta of a uuid row in one group",
        "all indexes", "bytes", 200, "at most", each, each, each,
        {"deltas": deltas, "heap": round(float(heap) / deltas, 1)},
    )  # fmt: skip
