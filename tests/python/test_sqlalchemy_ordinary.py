"""Outside units nothing is intercepted: hundreds of ordinary operations end alike on two databases,
one with every table tracked and the engine installed, one that knows nothing of Concord."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, delete, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from pyconcord.ext import sqlalchemy as concord
from tests.python.test_sqlalchemy import (
    ANA,
    Base,
    Deck,
    Log,
    Page,
    Picture,
    Slide,
    Tag,
    engine_of,
)
from tests.support import Database

TRACK = """
select concord.track(t::regclass)
  from unnest('{decks,slides,tags,tagged,pages,pictures,log}'::text[]) t;
"""
GRANT = """
grant all on all tables in schema public to app;
grant all on all sequences in schema public to app;
"""

Step = Callable[[Session, random.Random], object]


def some(session: Session, dice: random.Random, kind: type[Any]) -> Any:
    found = session.scalars(select(kind).order_by(*inspect(kind).primary_key)).all()
    return dice.choice(found) if found else None


def add_deck(session: Session, dice: random.Random) -> None:
    slides = [Slide(title=f"s{n}", body=dice.choice(["x", None])) for n in range(dice.randrange(4))]
    session.add(Deck(name=str(dice.random()), slides=slides))


def change_slide(session: Session, dice: random.Random) -> None:
    slide = some(session, dice, Slide)
    if slide is not None:
        slide.title = str(dice.random())
        slide.words = dice.choice([None, [], ["a", "b,c"]])
        slide.extra = dice.choice([None, {"n": dice.randrange(9)}])
        slide.deck = dice.choice([slide.deck, some(session, dice, Deck)])


def compute(session: Session, dice: random.Random) -> None:
    slide = some(session, dice, Slide)
    if slide is not None:
        slide.title = Slide.title + "!"


def tag(session: Session, dice: random.Random) -> None:
    slide = some(session, dice, Slide)
    if slide is not None:
        ids = [UUID(int=dice.getrandbits(128)) for _ in range(dice.randrange(3))]
        slide.tags = [Tag(id=id, name=str(id)) for id in ids]


def remove(session: Session, dice: random.Random) -> None:
    found = some(session, dice, dice.choice([Slide, Deck, Log]))
    if found is not None:
        session.delete(found)


def page(session: Session, dice: random.Random) -> None:
    kind = dice.choice([Page, Picture])
    number = dice.randrange(6)
    there = session.get(Page, ("b", number))
    if there is not None:
        there.text = str(dice.random())
    elif kind is Page:
        session.add(Page(book="b", number=number))
    else:
        session.add(Picture(book="b", number=number, url="u"))


def in_bulk(session: Session, dice: random.Random) -> None:
    session.execute(update(Slide).where(Slide.id % 3 == dice.randrange(3)).values(body="bulk"))
    session.execute(insert(Log), [{"line": str(n)} for n in range(dice.randrange(1, 4))])
    session.execute(delete(Log).where(Log.line == "2"))
    session.execute(text("update decks set name = name || '.' where id % 2 = 0"))


def nested(session: Session, dice: random.Random) -> None:
    add_deck(session, dice)
    inner = session.begin_nested()
    change_slide(session, dice)
    if dice.random() < 0.5:
        inner.rollback()
    else:
        inner.commit()


def violate(session: Session, dice: random.Random) -> None:
    with pytest.raises(IntegrityError), session.begin_nested():
        session.add(Slide(title="x", deck_id=-1))


STEPS: list[Step] = [
    add_deck, change_slide, compute, tag, remove, page, in_bulk, nested, violate,
]  # fmt: skip


def play(engine: Engine, seed: int) -> list[Any]:
    """What the tables hold in the end, and what the objects did meanwhile."""
    dice = random.Random(seed)
    seen: list[Any] = []
    with Session(engine) as session:
        for _ in range(300):
            dice.choice(STEPS)(session, dice)
            if dice.random() < 0.1:
                session.rollback()
            else:
                session.commit()
            seen += session.scalars(select(Slide.title).order_by(Slide.id).limit(3)).all()
        for table in Base.metadata.sorted_tables:
            columns = [c for c in table.c if c.name not in ("made", "touched")]
            seen += session.execute(select(*columns).order_by(*table.primary_key)).all()
    return seen


@pytest.mark.parametrize("seed", [1, 2])
def test_hundreds_of_ordinary_operations(db: Database, seed: int) -> None:
    admin = db.connect()
    outcomes = []
    for tracked in (False, True):
        owner = engine_of(db, "postgres")
        Base.metadata.create_all(owner)
        admin.execute(GRANT.encode())
        if tracked:
            admin.execute(TRACK.encode())
        engine = engine_of(db)
        if tracked:
            concord.install(engine, identity=lambda: ANA)
            with Session(engine) as session, concord.unit(session):  # its hooks are in place
                pass
        outcomes.append(play(engine, seed))
        engine.dispose()
        if tracked:
            [logged] = admin.execute(
                "select count(*) from concord_internal.deltas where actor = 'ana'"
            ).fetchall()
            assert logged[0] > 300
        Base.metadata.drop_all(owner)
        owner.dispose()
    plain, with_concord = outcomes
    assert plain == with_concord
