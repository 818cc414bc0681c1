"""The asynchronous client: the same names, awaited."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest

import pyconcord
from pyconcord import AsyncConcord, Concord, HeldWritesIgnored, StaleContext, events, reads
from pyconcord.aio import AsyncActor
from pyconcord.receipts import Values
from tests.python.client_deck import build, check, check_receipt
from tests.support import Database

Story = Callable[[AsyncConcord, AsyncActor], Awaitable[None]]


@pytest.fixture
def raw(db: Database) -> psycopg.Connection[Any]:
    return build(db)


@pytest.fixture
def run(db: Database, raw: object) -> Callable[[Story], None]:
    """Run a story with a client that is connected, and an actor."""

    async def told(story: Story) -> None:
        async with (
            await pyconcord.aconnect(db.dsn("app"), tenant="acme") as concord,
            concord.acting(agent="writer") as me,
        ):
            await story(concord, me)

    return lambda story: asyncio.run(told(story))


def theirs(raw: psycopg.Connection[Any], value: str = "theirs") -> None:
    raw.execute("update slides set title = %s where id = 7", (value,))


def test_the_same_names() -> None:
    def face(kind: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(kind) if not name.startswith("_")}

    assert face(AsyncConcord) == face(Concord)
    for name in ("read", "update", "create", "delete", "commit", "resolve", "history", "capture"):
        assert callable(getattr(pyconcord.Actor, name))


def test_connecting_is_awaited_or_entered(db: Database, raw: object) -> None:
    async def told() -> None:
        async with pyconcord.aconnect(db.dsn("app"), tenant="acme") as one:
            assert await one.read("slides", 7)
        with pytest.raises(psycopg_pool.PoolClosed):
            await one.read("slides", 7)
        other = await pyconcord.aconnect(db.dsn("app"), tenant="acme")
        assert await other.read("slides", 7)
        await other.close()

    asyncio.run(told())


def test_the_readme_s_example_runs(
    db: Database, raw: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    _, _, text = readme.partition("## With asyncio\n")
    monkeypatch.setenv("DATABASE_URL", db.dsn("app"))
    exec(text.partition("```python\n")[2].partition("```")[0], {})
    row = raw.execute("select body from slides where id = 7").fetchone()
    assert row == ("Up 4 %, and on.",)


def test_read_and_write(run: Callable[[Story], None], raw: psycopg.Connection[Any]) -> None:
    async def story(concord: AsyncConcord, me: AsyncActor) -> None:
        slide = await me.read("slides", 7)
        receipt = check_receipt(await me.update(slide, title="better", returning=True))
        assert receipt.landed
        assert receipt.durable
        assert receipt.row()["title"] == "better"
        made = await me.create("slides", {"title": "new"})
        id = made.operations[0].id
        assert (await me.delete("slides", id)).landed
        assert (
            await me.commit({"operations": [{"type": "delete", "model": "slides", "id": "9"}]})
        ).landed
        with pytest.raises(StaleContext):
            await me.update(slide, title="again")
        [newest, *_] = await concord.history("slides", 7)
        check("change", newest.raw)
        assert (newest.kind, newest.actor) == ("agent", "writer")

    run(story)
    assert raw.execute("select title from slides where id = 7").fetchone() == ("better",)


def test_scopes(run: Callable[[Story], None], raw: psycopg.Connection[Any]) -> None:
    async def story(concord: AsyncConcord, me: AsyncActor) -> None:
        async with me.reading() as read:
            slide, deck = await read.read("slides", 7), await me.read("decks", 1)
            assert slide.read_at == deck.read_at == read.token
        async with me.batch(reads=[deck, reads.group("deck:2", read.token)]) as batch:
            batch.update(slide, title="better")
            made = batch.create("decks", {"name": "new"})
            batch.create("slides", {"deck_id": made})
        assert check_receipt(batch.receipt).applied == 3
        feed = concord.changes(read.token, max=2)
        assert len([change async for change in feed]) == 3
        assert [change async for change in feed] == []
        theirs(raw)
        [change] = await feed.next_page()
        assert change.before == {"title": "better"}

    run(story)


def test_held_writes(
    run: Callable[[Story], None], db: Database, raw: psycopg.Connection[Any]
) -> None:
    async def slowly(base: Values, current: Values | None, proposed: Values) -> Values:
        await asyncio.sleep(0)
        assert current is not None
        return {"title": f"{current['title']} + {proposed['title']}"}

    async def story(concord: AsyncConcord, me: AsyncActor) -> None:
        slide = await me.read("slides", 7)
        theirs(raw)
        [held] = (await me.update(slide, title="mine", on_stale="notify")).held
        assert await me.resolve(held, slowly)
        theirs(raw, "again")
        [held] = (await me.update(slide, title="mine", on_stale="notify")).held
        assert await me.resolve(held, lambda base, current, proposed: proposed)

        async def hasty() -> None:
            async with concord.acting(agent="hasty") as me:
                slide = await me.read("slides", 7)
                theirs(raw, "ignored")
                await me.update(slide, title="mine", on_stale="notify")

        with pytest.warns(HeldWritesIgnored) as caught:
            await hasty()
        assert caught[0].filename == __file__

    run(story)
    assert raw.execute("select title from slides where id = 7").fetchone() == ("ignored",)
    before = [
        row for (row,) in raw.execute("select before->>'title' from concord.history('slides', '7')")
    ]
    assert before == ["mine", "again", "theirs + mine", "theirs", "title 7"]


def test_many_at_once(run: Callable[[Story], None], raw: psycopg.Connection[Any]) -> None:
    async def story(concord: AsyncConcord, me: AsyncActor) -> None:
        rows = await asyncio.gather(*(me.read("slides", n) for n in range(1, 10)))
        receipts = await asyncio.gather(*(me.update(row, title=f"t{row.id}") for row in rows))
        assert all(receipt.landed for receipt in receipts)
        slide = await me.read("slides", 7)
        results = await asyncio.gather(
            *(me.update(slide, title=f"race {n}") for n in range(8)), return_exceptions=True
        )
        assert sum(isinstance(each, pyconcord.Receipt) for each in results) == 1
        assert sum(isinstance(each, StaleContext) for each in results) == 7

    run(story)


def test_contention_is_retried(db: Database, raw: psycopg.Connection[Any]) -> None:
    db.connect().execute("select concord.configure('lock_timeout', '10 ms')")
    told: list[str] = []
    raw.execute("begin")
    theirs(raw)

    def give_way(event: events.Event) -> None:
        told.append(event.name)
        if isinstance(event, events.ContendedEvent):
            raw.execute("commit")

    async def story() -> None:
        async with await pyconcord.aconnect(db.dsn("app"), "acme", on_event=give_way) as concord:
            assert (await concord.acting(user="u1").update("slides", 7, title="mine")).landed

    asyncio.run(story())
    assert told == ["contended", "commit"]


def test_a_cancelled_call_leaves_the_pool_usable(
    run: Callable[[Story], None], db: Database, raw: psycopg.Connection[Any]
) -> None:
    watcher = db.connect()

    async def story(concord: AsyncConcord, me: AsyncActor) -> None:
        raw.execute("begin")
        theirs(raw)
        waiting = asyncio.create_task(me.update("slides", 7, title="cancelled"))
        blocked = "select 1 from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0"
        while not watcher.execute(blocked).fetchone():
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        raw.execute("rollback")
        assert (await me.update("slides", 7, title="next")).landed

    run(story)
    [(title,)] = raw.execute("select title from slides where id = 7")
    assert title == "next"


def test_joined(db: Database, raw: psycopg.Connection[Any]) -> None:
    async def story() -> None:
        connection = await psycopg.AsyncConnection.connect(db.dsn("app"))
        async with connection:
            async with AsyncConcord.on(connection, tenant="acme") as concord:
                me = concord.acting(user="u1")
                assert (await me.update("slides", 7, title="joined")).durable is False
                with pytest.raises(pyconcord.NotFound):
                    await me.update("slides", 404, title="x")
                await connection.rollback()
            await connection.set_autocommit(True)
            assert (await me.update("slides", 8, title="own")).durable is True
            with pytest.raises(psycopg.errors.CheckViolation):
                await me.update("slides", 8, position=-1)
            assert (await me.update("slides", 8, title="next")).landed

    asyncio.run(story())
    titles = raw.execute("select title from slides where id in (7, 8) order by id").fetchall()
    assert titles == [("title 7",), ("next",)]


def test_the_wrong_kind_of_with_is_told(run: Callable[[Story], None], db: Database) -> None:
    async def story(concord: AsyncConcord, me: AsyncActor) -> None:
        with pytest.raises(TypeError, match="'async with'"):
            me.__enter__()  # type: ignore[misc]

    run(story)
    concord = Concord.on(db.connect("app"), tenant="acme")
    with pytest.raises(TypeError, match="'with'"):
        asyncio.run(concord.acting(user="u1").__aenter__())  # type: ignore[misc]
