"""A streaming standby: rows can be read there, and nothing that hands out a token answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest
from psycopg.types.json import Jsonb

from pyconcord.embedded import scratch_dir
from tests.isolation.conftest import DECK
from tests.isolation.schedule import HANGS, Story, refused, request, update
from tests.support import Database, OwnServer

pytestmark = pytest.mark.crash


@pytest.fixture
def primary(own_server: OwnServer) -> Iterator[Story]:
    told = Story(own_server.db())
    told.tables(DECK)
    yield told
    told.close()


@pytest.fixture
def standby(primary: Story) -> Iterator[Database]:
    """The primary's database on a standby that was made by pg_basebackup, and streams."""
    server = primary.db.server
    assert isinstance(server, OwnServer)
    scratch = scratch_dir("pyconcord-standby-")
    data = scratch / "data"
    options = ["-d", server.dsn(), "-R", "-c", "fast"]
    subprocess.run(
        [server.bin("pg_basebackup"), "-D", data, *options], check=True, capture_output=True
    )
    for lock in data.glob(".s.PGSQL.*.lock"):  # of the primary's socket, which lies in its data
        lock.unlink()
    if os.geteuid() == 0:  # the server runs as whom the directory belongs to
        for path in (data, *data.rglob("*")):
            os.chown(path, scratch.stat().st_uid, scratch.stat().st_gid, follow_symlinks=False)
    with OwnServer(data) as running:
        database = Database(primary.db.name, running)
        yield database
        database.close()
    shutil.rmtree(scratch)


def test_a_standby_gives_out_no_token(primary: Story, standby: Database) -> None:
    """Never a guess: what has ended on the primary may not have ended here."""
    token = primary.actor("ana").capture()
    primary.psql("update slides set title = 'streamed' where id = 1")
    with standby.connect("app") as connection:
        connection.execute("select concord.act_as('acme', 'user', 'ana', is_local => false)")
        deadline = time.monotonic() + HANGS
        read = "select title from slides where id = 1"
        while connection.execute(read).fetchone() != ("streamed",):
            assert time.monotonic() < deadline, "what was written never came"
        for call, given in [
            ("concord.capture()", ()),
            ("concord.read('slides', '1')", ()),
            ("concord.changes(null)", ()),
            ("concord.changes(%s)", (token,)),
            ("concord.commit(%s)", (Jsonb(request(update("slides", 1, title="mine"))),)),
        ]:
            with refused("invalid_request") as refusal:
                connection.execute(f"select {call}".encode(), given)
            assert "standby" in refusal.message or "may write" in refusal.message, call
        assert connection.execute(read).fetchone() == ("streamed",)
