from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.agents.store import Store, make_store
from tests.support import Database


@pytest.fixture
def store(db: Database) -> Iterator[Store]:
    make_store(db)
    made = Store(db)
    yield made
    made.close()
