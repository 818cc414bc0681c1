"""The tables, and the engine of the database that DATABASE_URL names."""

from __future__ import annotations

import os

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import ForeignKey, Text, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

engine = create_engine(
    "postgresql+psycopg://", connect_args=conninfo_to_dict(os.environ["DATABASE_URL"])
)


class Base(DeclarativeBase):
    pass


class Deck(Base):
    __tablename__ = "decks"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    summary: Mapped[str] = mapped_column(Text, default="")
    slides: Mapped[list[Slide]] = relationship(order_by="Slide.position")


class Slide(Base):
    __tablename__ = "slides"
    id: Mapped[int] = mapped_column(primary_key=True)
    deck_id: Mapped[int] = mapped_column(ForeignKey("decks.id"))
    position: Mapped[int]
    title: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text, default="")
