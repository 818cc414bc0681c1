"""What the tests of the wall play on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.security.wall import PROTECT, TABLES, Wall
from tests.support import Database


@pytest.fixture
def story(db: Database) -> Iterator[Wall]:
    """A database with the pack, and the application's tables, not protected yet."""
    told = Wall(db)
    owner = told.owner()
    for statement in TABLES.split(";\n"):
        if statement.strip():
            owner.run(statement)
    yield told
    told.close()


@pytest.fixture
def wall(story: Wall) -> Wall:
    """The same, protected."""
    owner = story.owner()
    for statement in PROTECT.split(";\n"):
        if statement.strip():
            owner.run(statement)
    return story
