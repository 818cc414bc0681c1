from __future__ import annotations

import pytest

from tests.packs.spreading import Table
from tests.support import Database


@pytest.fixture
def table(db: Database) -> Table:
    return Table(db)
