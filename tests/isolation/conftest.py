"""What the schedules play on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.isolation.schedule import Session, Story
from tests.support import Database

# Slides in decks, and notes that have nothing to do with them.
DECK = """
create table slides (id int primary key, deck text, title text, body text);
create table notes (id int primary key, text text);
insert into slides values (1, 'a', 'one', '-'), (2, 'a', 'two', '-'), (3, 'b', 'three', '-');
insert into notes values (1, 'first'), (2, 'second');
select concord.track('slides', groups => array['deck:{deck}']);
select concord.track('notes');
"""


@pytest.fixture
def story(db: Database) -> Iterator[Story]:
    """A database with the pack, and nobody in it yet."""
    told = Story(db)
    yield told
    told.close()


@pytest.fixture
def deck(story: Story) -> Story:
    """Slides 1 and 2 in deck a, slide 3 in deck b; notes 1 and 2."""
    story.tables(DECK)
    return story


@pytest.fixture(params=["plain", "long"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Plays a test twice: see `Session.long_way`."""
    monkeypatch.setattr(Session, "long_way", request.param == "long")
    return str(request.param)
