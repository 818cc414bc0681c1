"""The embedded server: its life cycle, who runs it, and what becomes of its files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pyconcord import embedded
from pyconcord.embedded import Server, ServerError
from tests.support import PG_VERSION

# Files go to `scratch`: under root, pytest's tmp_path is closed to the server's user.
pytestmark = pytest.mark.crash


@pytest.fixture
def scratch() -> Iterator[Path]:
    path = embedded.scratch_dir("pyconcord-test-")
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


def alive(pid: int | str) -> bool:
    """Whether the process runs; a dead one that its container's init has not reaped does not."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def one(dsn: str, query: str) -> Any:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def backends(connection: psycopg.Connection[tuple[int]]) -> list[int]:
    return [pid for (pid,) in connection.execute("select pid from pg_stat_activity")]


def test_a_temporary_server_leaves_nothing() -> None:
    with Server(version=PG_VERSION) as server:
        assert server.running
        assert server.pid is not None
        assert one(server.dsn(), "show server_version_num").startswith(str(PG_VERSION))
        assert server.log.read_text()
        data_dir, pid = server.data_dir, server.pid
        assert alive(pid)
    assert not data_dir.parent.exists()
    assert not alive(pid)


def test_a_server_ends_with_its_program() -> None:
    program = f"""
from pyconcord.embedded import Server
server = Server(version={PG_VERSION}).start()
print(server.data_dir, server.pid)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    data_dir, pid = done.stdout.split()
    assert not Path(data_dir).exists()
    assert not alive(pid)


def test_a_forked_child_does_not_take_it_along() -> None:
    program = f"""
import os, sys
from pyconcord.embedded import Server
server = Server(version={PG_VERSION}).start()
if os.fork() == 0:
    sys.exit()
os.wait()
print(server.running)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"


def test_settings_reach_the_server_whatever_is_in_them() -> None:
    awkward = r"it's \ 100% #fine"
    with Server(version=PG_VERSION, settings={"cluster_name": "x", "demo.text": awkward}) as server:
        assert one(server.dsn(), "show cluster_name") == "x"
        assert one(server.dsn(), "show demo.text") == awkward
        assert one(server.dsn(), "show listen_addresses") == ""


def test_data_survive_a_stop_and_the_dsn_a_restart() -> None:
    with Server(version=PG_VERSION) as server:
        dsn = server.dsn()
        with psycopg.connect(dsn) as connection:
            connection.execute("create table kept (id int)")
        server.stop()
        assert not server.running
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(dsn)
        server.start()
        assert server.dsn() == dsn
        assert one(dsn, "select count(*) from kept") == 0


def test_an_immediate_stop_is_a_crash() -> None:
    with Server(version=PG_VERSION) as server:
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("create unlogged table volatile as select 1")
        server.restart("immediate")
        assert one(server.dsn(), "select count(*) from volatile") == 0
        assert "was not properly shut down" in server.log.read_text()


def test_a_named_directory_stays_and_a_running_server_is_taken_over(scratch: Path) -> None:
    data_dir = scratch / "a place with 'quotes'"
    first = Server(data_dir, version=PG_VERSION).start()
    pid = first.pid
    second = Server(data_dir, version=PG_VERSION).start()
    assert second.pid == pid
    assert second.dsn() == first.dsn()
    second.close()
    assert not first.running
    assert (data_dir / "PG_VERSION").exists()
    with Server(data_dir, version=PG_VERSION) as third:
        assert one(third.dsn(), "select 1") == 1


def test_a_path_too_long_for_a_socket_still_works(scratch: Path) -> None:
    with Server(scratch / ("long" * 30), version=PG_VERSION) as server:
        assert server.socket_dir != server.data_dir
        assert one(server.dsn(), "select 1") == 1
        dsn = server.dsn()
        server.restart()
        assert server.dsn() == dsn


def test_nobody_else_can_enter_the_socket_directory() -> None:
    with Server(version=PG_VERSION) as server:
        assert server.socket_dir.stat().st_mode & 0o077 == 0


def test_the_programs_of_that_version_are_at_hand() -> None:
    with Server(version=PG_VERSION) as server:
        for name in ("psql", "pg_dump", "pgbench"):
            done = subprocess.run(
                [server.bin(name), "--version"], capture_output=True, text=True, check=True
            )
            assert f" {PG_VERSION}." in done.stdout


def test_binaries_out_of_reach_are_copied(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under root, a virtual environment may lie where the server's user can't go."""
    original = embedded.server_version_dirs()[PG_VERSION]
    closed, cache = scratch / "closed", scratch / "cache"
    closed.mkdir(mode=0o700)
    cache.mkdir(mode=0o755)
    bindir = embedded.copy_installation(original, closed)
    monkeypatch.setattr(embedded, "_root_dir", lambda kind: cache)
    for _ in range(2):
        with Server(version=PG_VERSION, bindir=bindir) as server:
            assert one(server.dsn(), "select 1") == 1
            assert server.bindir.is_relative_to(cache if os.geteuid() == 0 else closed)
    assert len(list(cache.iterdir())) == (os.geteuid() == 0)


def test_a_killed_server_starts_again() -> None:
    with Server(version=PG_VERSION) as server:
        pid = server.pid
        assert pid is not None
        with psycopg.connect(server.dsn()) as connection:
            connection.execute("create table kept (id int)")
            children = backends(connection)
        os.kill(pid, signal.SIGKILL)
        while alive(pid) or any(map(alive, children)):
            time.sleep(0.01)
        assert not server.running
        server.start()
        assert one(server.dsn(), "select count(*) from kept") == 0


def test_without_a_server_of_that_version_it_says_what_there_is() -> None:
    with pytest.raises(ServerError, match=r"no PostgreSQL 9 server .*found: .*\b18"):
        Server(version=9)


def test_a_failed_start_shows_the_log() -> None:
    server = Server(version=PG_VERSION, settings={"shared_buffers": "nonsense"})
    with pytest.raises(ServerError, match="shared_buffers"):
        server.start()
    server.close()


def test_a_command_runs_with_a_server_of_its_own() -> None:
    script = 'psql -X -A -t -d "$DATABASE_URL" -c "show server_version_num"; exit 7'
    done = subprocess.run(
        [sys.executable, "-m", "pyconcord.embedded", "--pg", str(PG_VERSION), "--"]
        + ["sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(str(PG_VERSION))
    assert done.returncode == 7
