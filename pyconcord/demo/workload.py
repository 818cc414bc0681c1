"""Who does what, when: the same edits and the same think times in every way, drawn from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["ACTORS", "Edit", "Ref", "Value", "plan"]

Value = str | int | bool

BLIND = ("person", "psql")  # plain UPDATEs of somebody who has read nothing
AGENTS = ("agent-1", "agent-2", "agent-3", "agent-4")
PAIR = ("agent-anna", "agent-ben")  # either may sign off while the other is on call
ACTORS = (*BLIND, *AGENTS, "batch", *PAIR)

# Two decks of six slides, and seven shifts of two rows, all on different pages (see schema.sql).
HOT_DECKS = (range(1200, 1206), range(4200, 4206))
HOT_SHIFTS = range(50, 1000, 150)


class Ref(NamedTuple):
    """One field of one row."""

    model: str
    id: int
    field: str


@dataclass(frozen=True)
class Edit:
    """What an actor means to do. All values differ: each tells which write it came from."""

    actor: str
    number: int
    at: float  # not before this many seconds after the start
    think: float  # between reading and writing
    writes: tuple[Ref, ...]  # to rows of one table
    premises: tuple[Ref, ...] = ()  # what else of that table the decision rests on

    @property
    def model(self) -> str:
        return self.writes[0].model

    @property
    def ids(self) -> list[int]:
        return sorted({ref.id for ref in self.writes})

    def value(self, ref: Ref) -> Value:
        """What is to be written there."""
        if ref.field == "on_duty":
            return False
        if ref.field == "position":
            return (self.number + 1) * 10_000 + ref.id
        return f"{ref.field} of slide {ref.id} by {self.actor} ({self.number})"


def plan(seed: int, span: float) -> dict[str, list[Edit]]:
    """Every actor's edits, which take `span` seconds if nobody is in anybody's way."""
    edits = {actor: _blind(actor, seed, span) for actor in BLIND}
    edits |= {actor: _agent(actor, seed, span) for actor in AGENTS}
    return {**edits, "batch": _batch(seed, span), **_pair(seed, span)}


def _random(seed: int, actor: str) -> random.Random:
    return random.Random(f"{seed}/{actor}")


def _blind(actor: str, seed: int, span: float) -> list[Edit]:
    rng = _random(seed, actor)
    edits = []
    for number in range(30):
        slide = rng.choice(rng.choice(HOT_DECKS))
        field = rng.choice(("title", "body", "notes"))
        at = (number + rng.random()) / 30 * span
        edits.append(Edit(actor, number, at, 0.0, (Ref("slides", slide, field),)))
    return edits


def _agent(actor: str, seed: int, span: float) -> list[Edit]:
    """Edits of a slide, some of which depend on the title of another slide of the deck."""
    rng = _random(seed, actor)
    edits = []
    for number in range(12):
        slide, other = rng.sample(rng.choice(HOT_DECKS), 2)
        fields = rng.choice((("title",), ("body",), ("notes",), ("title", "body")))
        writes = tuple(Ref("slides", slide, field) for field in fields)
        premises = (Ref("slides", other, "title"),) if rng.random() < 0.4 else ()
        think = rng.uniform(0.05, 0.1) * span
        edits.append(Edit(actor, number, number / 12 * span, think, writes, premises))
    return edits


def _batch(seed: int, span: float) -> list[Edit]:
    """A job that renumbers a whole deck and writes its notes."""
    rng = _random(seed, "batch")
    edits = []
    for number in range(4):
        deck = rng.choice(HOT_DECKS)
        writes = tuple(Ref("slides", id, field) for id in deck for field in ("notes", "position"))
        think = rng.uniform(0.08, 0.12) * span
        edits.append(Edit("batch", number, (number + 0.3) / 4 * span, think, writes))
    return edits


def _pair(seed: int, span: float) -> dict[str, list[Edit]]:
    """Two agents who, shift by shift, look at each other's row at about the same time."""
    rng = _random(seed, "pair")
    edits: dict[str, list[Edit]] = {actor: [] for actor in PAIR}
    for number, shift in enumerate(HOT_SHIFTS):
        rows = [Ref("on_call", 2 * shift + n, "on_duty") for n in range(2)]
        for actor, mine, other in zip(PAIR, rows, reversed(rows), strict=True):
            at = ((number + 0.2) / len(HOT_SHIFTS) + rng.uniform(0, 0.02)) * span
            think = rng.uniform(0.05, 0.08) * span
            edits[actor].append(Edit(actor, number, at, think, (mine,), (other,)))
    return edits
