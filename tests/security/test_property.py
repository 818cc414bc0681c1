"""Random statements behind the wall, as the real roles, against an oracle."""

from __future__ import annotations

import os
import random

import pytest

from tests.security.property.run import Differs, Run
from tests.support import Database

STATEMENTS = int(os.environ.get("PYCONCORD_STATEMENTS", "10000"))


@pytest.mark.parametrize(
    "seed", [7, random.SystemRandom().randrange(1 << 30)], ids=["fixed", "drawn"]
)
def test_nothing_differs(db: Database, seed: int) -> None:
    run = Run(db, seed)
    run.go(STATEMENTS)
    # It was no run of refusals, and every kind of statement had its turn.
    assert run.refused < STATEMENTS * 0.6
    assert min(run.counts.values()) > STATEMENTS / 100


@pytest.mark.parametrize(
    "hole",
    [
        "alter policy concord_wall on owned using (true)",
        "alter policy concord_read on owned using (true)",
        "alter policy concord_update on shared using (true) with check (true)",
        "alter policy concord_delete on shared using (true)",
        "alter policy concord_update on walled using (true) with check (true)",
        "alter table remarks disable trigger concord_stamp",
        "alter table shared no force row level security",
        "alter table parts_1 disable row level security",
        "alter view owned_view owner to postgres",
    ],
)
def test_a_hole_is_found(db: Database, hole: str) -> None:
    """The oracle can fail: each of these is noticed within a few hundred statements."""
    run = Run(db, 7)
    db.connect().execute(hole.encode())
    with pytest.raises(Differs):
        run.go(3000)
