"""Units and readings over SQLAlchemy sessions, on a real server; others write from connections of
their own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    ARRAY,
    JSON,
    URL,
    Column,
    Computed,
    Connection,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    Table,
    Text,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    deferred,
    mapped_column,
    relationship,
)

from pyconcord import (
    Forbidden,
    InvalidRequest,
    PreconditionFailed,
    StaleContext,
    Unauthenticated,
    reads,
)
from pyconcord.ext import sqlalchemy as concord
from pyconcord.receipts import Principal
from tests.relay import Relay
from tests.support import Database

ANA = Principal("acme", "user", "ana")


class Base(DeclarativeBase):
    pass


tagged = Table(
    "tagged",
    Base.metadata,
    Column("slide_id", ForeignKey("slides.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True),
)


class Deck(Base):
    __tablename__ = "decks"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    slides: Mapped[list[Slide]] = relationship(
        back_populates="deck", cascade="all, delete-orphan", order_by="Slide.id"
    )


class Slide(Base):
    __tablename__ = "slides"
    id: Mapped[int] = mapped_column(primary_key=True)
    deck_id: Mapped[int | None] = mapped_column(ForeignKey("decks.id"))
    title: Mapped[str] = mapped_column(Text)
    body: Mapped[str | None] = mapped_column(Text)
    price: Mapped[Decimal | None]
    made: Mapped[datetime | None] = mapped_column(server_default=func.now())
    touched: Mapped[datetime | None] = mapped_column(onupdate=func.now())
    words: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    extra: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)
    length: Mapped[int | None] = mapped_column(Integer, Computed("length(title)"))
    notes: Mapped[str | None] = deferred(mapped_column(Text))
    deck: Mapped[Deck | None] = relationship(back_populates="slides")
    tags: Mapped[list[Tag]] = relationship(secondary=tagged)


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(Text)


class Page(Base):
    """An inherited class, a composite key, a counter of versions, a reference to its own table."""

    __tablename__ = "pages"
    book: Mapped[str] = mapped_column(Text, primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    text: Mapped[str | None] = mapped_column(Text)
    version: Mapped[int] = mapped_column()
    after: Mapped[int | None]
    __mapper_args__ = {  # noqa: RUF012
        "version_id_col": version,
        "polymorphic_on": "kind",
        "polymorphic_identity": "page",
    }
    __table_args__ = (ForeignKeyConstraint(["book", "after"], ["pages.book", "pages.number"]),)


class Picture(Page):
    __tablename__ = "pictures"
    book: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    url: Mapped[str] = mapped_column(Text)
    __table_args__ = (ForeignKeyConstraint(["book", "number"], ["pages.book", "pages.number"]),)
    __mapper_args__ = {"polymorphic_identity": "picture"}  # noqa: RUF012


class Log(Base):
    """Not tracked."""

    __tablename__ = "log"
    id: Mapped[int] = mapped_column(primary_key=True)
    line: Mapped[str] = mapped_column(Text)
    slide_id: Mapped[int | None] = mapped_column(ForeignKey("slides.id"))


TRACK = """
select concord.track(t::regclass) from unnest('{decks,tags,tagged,pictures}'::text[]) t;
select concord.track('pages', ignore_fields => '{version}');
select concord.track('slides', groups => array['deck:{deck_id}'], ignore_fields => '{touched}');
create function shout() returns trigger language plpgsql as
  $$ begin new.body := upper(new.body); return new; end $$;
create trigger shout before insert or update on slides for each row execute function shout();
grant all on all tables in schema public to app;
grant all on all sequences in schema public to app;
"""


def url(db: Database, user: str = "app") -> tuple[URL, dict[str, Any]]:
    from psycopg.conninfo import conninfo_to_dict

    return URL.create("postgresql+psycopg"), dict(conninfo_to_dict(db.dsn(user)))


def engine_of(db: Database, user: str = "app", **options: Any) -> Engine:
    where, arguments = url(db, user)
    return create_engine(where, connect_args=arguments, **options)


@pytest.fixture
def deck(db: Database) -> Database:
    owner = engine_of(db, "postgres")
    Base.metadata.create_all(owner)
    owner.dispose()
    db.connect().execute(TRACK.encode())
    return db


@pytest.fixture
def engine(deck: Database) -> Iterator[Engine]:
    made = engine_of(deck)
    concord.install(made, identity=lambda: ANA)
    with Session(made) as session:
        session.add(Deck(name="one", slides=[Slide(title="a", body="-"), Slide(title="b")]))
        session.commit()
    yield made
    made.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as opened:
        yield opened


def others(deck: Database, sql: str) -> None:
    """Somebody else writes, and commits."""
    deck.connect("app").execute(sql.encode())


def token_of(session: Session) -> str:
    with concord.reading(session) as read:
        pass
    return str(read.token)


def statements(engine: Engine) -> list[str]:
    """What is sent from here on."""
    sent: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    return sent


def test_an_edit(deck: Database, session: Session) -> None:
    with concord.reading(session) as read:
        slide = session.get_one(Slide, 1)
    assert not session.in_transaction()
    assert slide.title == "a"  # still loaded, without a transaction
    assert not session.in_transaction()
    others(deck, "update slides set body = 'theirs' where id = 1")
    with concord.unit(session, read_at=read.token) as unit:
        slide = session.get_one(Slide, 1)
        slide.title = "mine"
    assert unit.receipt.landed
    assert unit.receipt.durable
    assert not session.in_transaction()
    assert (slide.title, slide.body) == ("mine", "THEIRS")
    [change] = deck.connect().execute(
        "select actor, fields from concord.history('slides', '1') limit 1"
    )
    assert change == ("ana", ["title", "length"])


def test_a_conflict_is_refused_and_the_session_goes_on(deck: Database, session: Session) -> None:
    token = token_of(session)
    others(deck, "update slides set title = 'theirs' where id = 1")
    with pytest.raises(StaleContext) as stale, concord.unit(session, read_at=token):
        session.get_one(Slide, 1).title = "mine"
        session.get_one(Slide, 2).title = "mine"
    [told] = stale.value.notifications
    assert (told.conflicting_fields, told.current_values) == (
        ("title",),
        {"title": "theirs", "touched": None},
    )
    assert session.scalars(select(Slide.title).order_by(Slide.id)).all() == ["theirs", "b"]


def test_held_writes_leave_the_row_and_the_object(deck: Database, session: Session) -> None:
    token = token_of(session)
    others(deck, "update slides set title = 'theirs' where id = 1")
    with concord.unit(session, read_at=token, on_stale="notify") as unit:
        first, second = session.get_one(Slide, 1), session.get_one(Slide, 2)
        first.title = second.title = "mine"
        session.flush()
        assert (first.title, second.title) == ("theirs", "mine")
    [held] = unit.receipt.held
    assert held.proposed["title"] == "mine"
    assert held.notification is not None
    with concord.unit(session, read_at=held.notification.observed_at) as again:
        session.get_one(Slide, 1).title = "merged"
    assert again.receipt.landed


def test_an_echo_is_no_write(deck: Database, session: Session) -> None:
    token = token_of(session)
    others(deck, "update slides set title = 'theirs' where id = 1")
    with concord.unit(session, read_at=token) as unit:
        slide = session.get_one(Slide, 1)
        slide.title, slide.body = "a", "mine"
        session.flush()
        assert (slide.title, slide.body) == ("theirs", "MINE")
    assert unit.receipt.landed


def test_a_held_delete_leaves_the_object(deck: Database, session: Session) -> None:
    token = token_of(session)
    others(deck, "update slides set title = 'theirs' where id = 1")
    with concord.unit(session, read_at=token, on_stale="notify") as unit:
        slide = session.get_one(Slide, 1)
        session.delete(slide)
        session.flush()
        assert slide in session
        assert slide.title == "theirs"
    assert len(unit.receipt.held) == 1


def test_what_is_created_comes_back(session: Session) -> None:
    with concord.unit(session, read_at=token_of(session)) as unit:
        slide = Slide(
            title="new", body="low", price=Decimal("1.20"), words=["a,b", "c"], extra={"x": [1]}
        )
        session.add(slide)
        session.flush()
        assert slide.id == 3
        assert (slide.body, slide.length) == ("LOW", 3)
        assert isinstance(slide.made, datetime)
        assert (slide.price, slide.words, slide.extra) == (
            Decimal("1.20"),
            ["a,b", "c"],
            {"x": [1]},
        )
    assert unit.receipt.applied == 1


def test_a_graph_of_objects(session: Session) -> None:
    with concord.unit(session, read_at=token_of(session)) as unit:
        tags = [Tag(name=str(n)) for n in range(3)]
        made = Deck(name="two", slides=[Slide(title=str(n), tags=tags) for n in range(20)])
        session.add(made)
    assert unit.receipt.applied == 1 + 3 + 20 + 60
    assert [slide.title for slide in made.slides] == [str(n) for n in range(20)]
    with concord.unit(session, read_at=token_of(session)) as unit:
        made.slides[0].tags.remove(tags[0])
        made.slides.pop()
        session.delete(session.get_one(Deck, 1))
    left = select(func.count()).select_from
    assert session.scalar(left(Slide)) == 19
    assert session.scalar(left(tagged)) == 56
    assert session.scalar(left(Deck)) == 1


def test_a_flush_is_one_commit(engine: Engine, session: Session) -> None:
    with concord.unit(session) as unit:
        session.add_all([Slide(title=str(n)) for n in range(30)])
    with concord.unit(session, read_at=token_of(session)) as unit:
        for slide in session.scalars(select(Slide)):
            slide.title += "!"
            if slide.id % 2:
                slide.body = "odd"
    assert (unit.receipt.applied, len(unit.receipt.receipts)) == (32, 1)


def test_composite_keys_versions_and_inheritance(deck: Database, session: Session) -> None:
    with concord.unit(session) as unit:
        session.add(Page(book="b", number=1, text="x"))
        session.flush()
        session.add(Picture(book="b", number=2, url="u", after=1))
    assert unit.receipt.applied == 3
    token = token_of(session)
    others(deck, "update pages set text = 'theirs', version = version + 1 where number = 2")
    with concord.unit(session, read_at=token) as unit:
        picture = session.get_one(Picture, ("b", 2))
        picture.url, picture.after = "v", None
    assert unit.receipt.landed
    assert (picture.version, picture.text) == (3, "theirs")
    token = token_of(session)
    with pytest.raises(PreconditionFailed), concord.unit(session, read_at=token):
        picture = session.get_one(Picture, ("b", 2))
        picture.text = "mine"
        others(deck, "update pages set version = version + 1 where number = 2")
    with concord.unit(session, read_at=token_of(session)):
        session.delete(session.get_one(Picture, ("b", 2)))
    assert session.scalar(select(func.count()).select_from(Page)) == 1


def test_a_changed_key(session: Session) -> None:
    with concord.unit(session, read_at=token_of(session)):
        session.get_one(Slide, 2).id = 20
    assert session.get(Slide, 2) is None
    assert session.get_one(Slide, 20).title == "b"


def test_merge(session: Session) -> None:
    with concord.unit(session, read_at=token_of(session)):
        session.merge(Slide(id=1, title="merged"))
        session.merge(Slide(id=9, title="came"))
    assert session.scalars(select(Slide.title).order_by(Slide.id)).all() == ["merged", "b", "came"]


def test_what_runs_inside_a_flush_sees_what_was_saved_before(session: Session) -> None:
    seen: list[Any] = []

    def look(_mapper: Any, connection: Connection, slide: Slide) -> None:
        seen.append(connection.scalar(select(Slide.title).where(Slide.id == slide.id)))

    event.listen(Slide, "after_update", look)
    try:
        with concord.unit(session, read_at=token_of(session)):
            session.get_one(Slide, 1).title = "mine"
    finally:
        event.remove(Slide, "after_update", look)
    assert seen == ["mine"]


def test_untracked_rows_are_written_in_the_same_transaction(session: Session) -> None:
    with concord.unit(session, read_at=token_of(session)):
        slide = Slide(title="new")
        session.add(slide)
        session.flush()
        session.add(Log(line="made", slide_id=slide.id))
        session.execute(insert(Log).values(line="core"))
    assert session.scalars(select(Log.line).order_by(Log.id)).all() == ["made", "core"]
    with pytest.raises(RuntimeError), concord.unit(session):
        session.add_all([Log(line="undone"), Slide(title="undone")])
        session.flush()
        raise RuntimeError
    assert session.scalar(select(func.count()).select_from(Log)) == 2


BULK: list[Any] = [
    update(Slide).values(title="x"),
    delete(Slide).where(Slide.id == 1),
    insert(Slide).values(title="x"),
    update(Slide.__table__).where(Slide.id == 1).values(title="x"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("statement", BULK, ids=str)
def test_statements_for_many_rows_are_refused(session: Session, statement: Any) -> None:
    with concord.unit(session, read_at=token_of(session)) as unit:
        with pytest.raises(InvalidRequest, match="slides is written by its objects"):
            session.execute(statement)
        session.get_one(Slide, 1).title = "mine"
    assert unit.receipt.applied == 1
    assert session.scalars(select(Slide.title).order_by(Slide.id)).all() == ["mine", "b"]


def test_bulk_mappings_are_refused(session: Session) -> None:
    with pytest.raises(InvalidRequest), concord.unit(session):
        session.bulk_insert_mappings(Slide.__mapper__, [{"title": "x"}])
    assert session.scalar(select(func.count()).select_from(Slide)) == 2


def test_an_expression_over_the_row_is_refused(session: Session) -> None:
    with pytest.raises(InvalidRequest, match="what it is computed from"):
        with concord.unit(session, read_at=token_of(session)):
            session.get_one(Slide, 1).title = Slide.title + "!"
    with concord.unit(session, read_at=token_of(session)) as unit:
        session.get_one(Slide, 1).title = func.lower("LOW")
    assert unit.receipt.applied == 1
    slide = session.get_one(Slide, 1)
    assert slide.title == "low"
    assert slide.touched is not None


def test_json_null_is_refused(session: Session) -> None:
    with pytest.raises(InvalidRequest, match="SQL NULL"), concord.unit(session):
        session.add(Slide(title="x", extra=JSON.NULL))


def test_constraints_are_the_orms_own_errors(session: Session) -> None:
    with pytest.raises(IntegrityError), concord.unit(session, read_at=token_of(session)):
        session.get_one(Slide, 1).deck_id = 99
    assert session.get_one(Slide, 1).deck_id == 1


def test_a_refusal_that_was_swallowed_is_not_committed(deck: Database, session: Session) -> None:
    token = token_of(session)
    others(deck, "update slides set title = 'theirs' where id = 1")
    with pytest.raises(InvalidRequest, match="rolled back"), concord.unit(session, read_at=token):
        session.get_one(Slide, 1).title = "mine"
        with pytest.raises(StaleContext):
            session.flush()
    assert session.get_one(Slide, 1).title == "theirs"


def test_savepoints(deck: Database, session: Session) -> None:
    token = token_of(session)
    others(deck, "update slides set title = 'theirs' where id = 2")
    with concord.unit(session, read_at=token) as unit:
        session.get_one(Slide, 1).title = "kept"
        with pytest.raises(StaleContext), session.begin_nested():
            session.get_one(Slide, 2).title = "mine"
        with session.begin_nested():
            session.get_one(Slide, 1).body = "kept"
    assert unit.receipt.applied == 2
    assert session.scalars(select(Slide.title).order_by(Slide.id)).all() == ["kept", "theirs"]


def test_inside_a_transaction_of_the_applications_own(session: Session) -> None:
    token = token_of(session)
    with session.begin():
        with concord.unit(session, read_at=token) as unit:
            session.get_one(Slide, 1).title = "mine"
        assert not unit.receipt.durable
        with pytest.raises(RuntimeError), concord.unit(session, read_at=token):
            session.get_one(Slide, 2).title = "undone"
            session.flush()
            raise RuntimeError
    assert session.scalars(select(Slide.title).order_by(Slide.id)).all() == ["mine", "b"]


def test_a_refusal_inside_a_transaction_of_the_applications_own(
    deck: Database, session: Session
) -> None:
    """The refused unit is undone, and nothing else: neither what came before nor a unit around."""
    token = token_of(session)
    others(deck, "update slides set title = 'theirs' where id = 2")
    with session.begin():
        session.get_one(Deck, 1).name = "before"
        session.flush()
        with pytest.raises(StaleContext), concord.unit(session, read_at=token):
            session.get_one(Slide, 2).title = "mine"
    with concord.unit(session, read_at=token) as outer:
        session.get_one(Slide, 1).title = "mine"
        with pytest.raises(StaleContext), concord.unit(session, read_at=token):
            session.get_one(Slide, 1).body = "undone"
            session.flush()
            session.get_one(Slide, 2).title = "mine"
    assert (outer.receipt.applied, outer.receipt.durable) == (1, True)
    assert session.scalars(select(Slide.title).order_by(Slide.id)).all() == ["mine", "theirs"]
    assert (session.get_one(Slide, 1).body, session.get_one(Deck, 1).name) == ("-", "before")


def test_a_unit_commits_when_its_block_ends(session: Session) -> None:
    with pytest.raises(InvalidRequest, match="when its block ends"), concord.unit(session):
        session.get_one(Slide, 1).title = "mine"
        session.commit()
    session.rollback()
    assert session.get_one(Slide, 1).title == "a"


def test_changes_from_before_the_block(session: Session) -> None:
    """They would be judged by a token that they have nothing to do with."""
    session.get_one(Slide, 1).title = "early"
    with pytest.raises(InvalidRequest, match="not flushed"), concord.reading(session):
        pass
    with pytest.raises(InvalidRequest, match="not flushed"), concord.unit(session):
        pass


def test_what_was_loaded_before_the_block_is_loaded_anew(deck: Database, session: Session) -> None:
    """The identity map would hand out rows that are older than the token says."""
    before = session.get_one(Slide, 1)  # held: the identity map alone would let go of it
    others(deck, "update slides set title = 'theirs' where id = 1")
    with concord.reading(session) as read:
        slide = session.get_one(Slide, 1)
        assert slide is before
        assert slide.title == "theirs"
    others(deck, "update slides set title = 'newer' where id = 1")
    with concord.unit(session, read_at=read.token, on_stale="notify") as unit:
        slide = session.get_one(Slide, 1)
        slide.title = "theirs"  # what is in memory: yet it has to be judged
    assert slide.title == "newer"
    assert unit.receipt.landed


def test_premises(deck: Database, session: Session) -> None:
    with concord.reading(session) as read:
        session.get_one(Slide, 2)
    assert [(each["model"], each["id"]) for each in read.loaded] == [("slides", "2")]
    token = read.token
    others(deck, "update slides set body = 'theirs' where id = 2")
    for premises in (read.loaded, [reads.row("slides", 2)], [reads.group("deck:1")]):
        with pytest.raises(StaleContext), concord.unit(session, read_at=token, reads=premises):
            session.get_one(Slide, 1).title = "mine"
    with pytest.raises(StaleContext), concord.unit(session, read_at=token) as unit:
        unit.rests_on(session.get_one(Slide, 2))
        session.get_one(Slide, 1).title = "mine"
    with pytest.raises(StaleContext), concord.unit(session, read_at=token, reads=[concord.LOADED]):
        session.get_one(Slide, 2)
        session.get_one(Slide, 1).title = "mine"
    with concord.unit(session, read_at=token, reads=[concord.LOADED]):
        session.scalars(select(Slide.title).where(Slide.id == 2)).all()  # no object was loaded
        session.get_one(Slide, 1).title = "mine"


def test_premises_of_writes_that_are_not_judged(session: Session) -> None:
    premise = reads.row("slides", 2)
    with pytest.raises(InvalidRequest, match="nothing judged"):
        with concord.unit(session, read_at=token_of(session), reads=[premise]):
            session.add(Log(line="rests on slide 2"))
    assert session.scalar(select(func.count()).select_from(Log)) == 0


def test_a_premise_on_an_object_is_on_what_was_loaded_of_it(
    deck: Database, session: Session
) -> None:
    token = token_of(session)
    others(deck, "update slides set notes = 'theirs' where id = 2")
    with concord.unit(session, read_at=token, reads=[concord.LOADED]) as unit:
        session.get_one(Slide, 2)  # its notes are deferred
        session.get_one(Slide, 1).title = "mine"
    assert unit.receipt.applied == 1
    with pytest.raises(StaleContext):
        with concord.unit(session, read_at=token, reads=[concord.LOADED]):
            assert session.get_one(Slide, 2).notes == "theirs"
            session.get_one(Slide, 1).body = "mine"
    with pytest.raises(StaleContext):
        with concord.unit(session, read_at=token) as unit:
            slide = session.get_one(Slide, 2)
            assert slide.title == "b"
            session.expire(slide)
            unit_loads = concord.unit(session, read_at=token, reads=[concord.LOADED])
            with unit_loads:
                session.refresh(slide, ["notes"])  # loaded again, not anew
                session.get_one(Slide, 1).body = "mine"


def test_who_acts_is_said_with_each_transaction(deck: Database) -> None:
    who: list[Principal | None] = [ANA]
    engine = engine_of(deck, pool_size=1, max_overflow=0)
    concord.install(engine, identity=lambda: who[0])
    acting = text("select (concord.principal()).id")
    with Session(engine) as session:
        assert session.scalar(acting) == "ana"
        session.rollback()
        who[0] = Principal("acme", "agent", "bot", "ana")
        assert session.scalar(acting) == "bot"
        session.commit()
        who[0] = None
        assert session.scalar(acting) is None
        session.rollback()
        with pytest.raises(Unauthenticated), concord.unit(session):
            session.add(Slide(title="x"))
    engine.dispose()


def test_who_acts_costs_no_round_trip(deck: Database, tmp_path: Path) -> None:
    def trips(user: Principal | None) -> int:
        engine = create_engine(URL.create("postgresql+psycopg"), connect_args=arguments)
        concord.install(engine, identity=lambda: user)
        with engine.connect():  # what SQLAlchemy asks a new server
            pass

        def work() -> None:
            with Session(engine) as session:
                said = session.scalar(text("select (concord.principal()).id"))
                assert said == (user and user.id)

        try:
            return relay.count(work)
        finally:
            engine.dispose()

    async def trips_async(user: Principal | None) -> int:
        engine = create_async_engine(URL.create("postgresql+psycopg"), connect_args=arguments)
        concord.install(engine, identity=lambda: user)
        async with engine.connect():
            pass
        before = relay.trips
        async with AsyncSession(engine) as session:
            said = await session.scalar(text("select (concord.principal()).id"))
            assert said == (user and user.id)
        trips = relay.trips - before
        await engine.dispose()
        return trips

    _, arguments = url(deck)
    relay = Relay(tmp_path, deck.connect("app").info)
    arguments |= {"host": str(tmp_path), "port": 5432}
    assert trips(ANA) == trips(None) == 3  # begin, select, rollback
    assert asyncio.run(trips_async(ANA)) == 3


def test_a_login_that_may_not_say_who_acts(deck: Database) -> None:
    engine = engine_of(deck, "app2")
    concord.install(engine, identity=lambda: ANA)
    with Session(engine) as session:
        with pytest.raises(Forbidden):
            session.scalar(select(1))
        session.rollback()
    engine.dispose()


def test_another_driver() -> None:
    with pytest.raises(InvalidRequest, match="psycopg"):
        concord.install(create_engine("sqlite://"))


def test_autocommit(deck: Database) -> None:
    engine = engine_of(deck, isolation_level="AUTOCOMMIT")
    concord.install(engine, identity=lambda: ANA)
    with Session(engine) as session:
        with pytest.raises(InvalidRequest, match="AUTOCOMMIT"), concord.unit(session):
            pass
    engine.dispose()


def test_events(deck: Database) -> None:
    told: list[Any] = []
    engine = engine_of(deck)
    concord.install(engine, identity=lambda: ANA, on_event=told.append)
    with Session(engine) as session, concord.unit(session):
        session.add(Tag(name="x"))
    assert [(each.name, each.principal) for each in told] == [("commit", ANA)]
    engine.dispose()


def test_async_sessions(deck: Database, engine: Engine) -> None:
    where, arguments = url(deck)

    async def edit() -> None:
        made = create_async_engine(
            where.set(drivername="postgresql+psycopg_async"), connect_args=arguments
        )
        concord.install(made, identity=lambda: ANA)
        async with AsyncSession(made, expire_on_commit=False) as session:
            async with concord.reading(session) as read:
                slide = await session.get_one(Slide, 1)
            others(deck, "update slides set title = 'theirs' where id = 1")
            async with concord.unit(session, read_at=read.token, on_stale="notify") as unit:
                slide = await session.get_one(Slide, 1)
                slide.title, slide.body = "mine", "low"
                new = Slide(title="new", body="low")
                session.add(new)
            assert [held.id for held in unit.receipt.held] == ["1"]
            assert (slide.title, slide.body) == ("theirs", "-")
            assert (new.id, new.body) == (3, "LOW")
            with pytest.raises(StaleContext):
                async with concord.unit(session, read_at=read.token):
                    slide.title = "mine"
            with pytest.raises(TypeError, match="async with"), concord.unit(session):
                pass
        await made.dispose()

    asyncio.run(edit())
