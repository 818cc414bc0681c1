"""The pack's files: the control file, the install script, the upgrade scripts.

In a wheel they lie in ``pyconcord/_pack``; in a checkout they are put together from ``sql/`` and
``migrations/``, byte for byte as ``make sql`` does. Standard library only: the build hook loads
this module before any dependency is installed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_DEFAULT_VERSION = re.compile(r"^default_version\s*=\s*'([^']+)'", re.MULTILINE)
_UPGRADE_NAME = re.compile(r"^concord--([^-].*?)--([^-].*?)\.sql$")


class FilesError(RuntimeError):
    """The pack's files are missing or do not belong together."""


@dataclass(frozen=True)
class Upgrade:
    """One upgrade script."""

    source: str
    target: str
    sql: str

    @property
    def file_name(self) -> str:
        return f"concord--{self.source}--{self.target}.sql"


@dataclass(frozen=True)
class Files:
    """A version of the pack, as text."""

    control: str
    script: str
    upgrades: Mapping[tuple[str, str], Upgrade]

    @property
    def version(self) -> str:
        found = _DEFAULT_VERSION.search(self.control)
        if found is None:
            raise FilesError("concord.control names no default_version")
        return found.group(1)

    @classmethod
    def find(cls) -> Files:
        """The files that belong to this installation of the package."""
        package = Path(__file__).resolve().parent
        if (package / "_pack").is_dir():
            return cls.of_directory(package / "_pack")
        if (package.parent / "sql" / "concord.control").is_file():
            return cls.of_checkout(package.parent)
        raise FilesError("this installation of pyconcord carries no SQL: install it again")

    @classmethod
    def of_directory(cls, directory: Path) -> Files:
        """Files laid out as in PostgreSQL's extension directory."""
        control = _read(directory / "concord.control")
        version = cls(control, "", {}).version
        script = _read(directory / f"concord--{version}.sql")
        return cls(control, script, _upgrades(directory.glob("concord--*--*.sql")))

    @classmethod
    def of_checkout(cls, root: Path) -> Files:
        """Files put together from the sources."""
        control = _read(root / "sql" / "concord.control")
        script = "".join(_read(path) for path in source_files(root / "sql"))
        return cls(control, script, _upgrades((root / "migrations").glob("concord--*--*.sql")))

    def write(self, directory: Path) -> list[Path]:
        """Write them out for PostgreSQL's extension directory, and return the paths."""
        directory.mkdir(parents=True, exist_ok=True)
        texts = {
            "concord.control": self.control,
            f"concord--{self.version}.sql": self.script,
            **{upgrade.file_name: upgrade.sql for upgrade in self.upgrades.values()},
        }
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8", newline="")
        return [directory / name for name in texts]

    def chain(self, source: str, target: str | None = None) -> list[Upgrade]:
        """The fewest upgrade scripts that lead from one version to another, as PostgreSQL picks.

        Empty when source and target are the same; FilesError when no chain leads there.
        """
        goal = target or self.version
        came_by: dict[str, Upgrade | None] = {source: None}
        queue = deque([source])
        while queue:
            here = queue.popleft()
            for (start, end), upgrade in sorted(self.upgrades.items()):
                if start == here and end not in came_by:
                    came_by[end] = upgrade
                    queue.append(end)
        if goal not in came_by:
            raise FilesError(f"no upgrade scripts lead from concord {source} to {goal}")
        steps: list[Upgrade] = []
        step = came_by[goal]
        while step is not None:
            steps.append(step)
            step = came_by[step.source]
        return steps[::-1]


def source_files(sql: Path) -> list[Path]:
    """The source files in load order: by the bytes of their paths, as LC_ALL=C sort has it."""
    files = [path for path in sql.rglob("*.sql") if path.is_file()]
    return sorted(files, key=lambda path: path.relative_to(sql).as_posix().encode())


def _upgrades(paths: Iterable[Path]) -> dict[tuple[str, str], Upgrade]:
    found = {}
    for path in paths:
        name = _UPGRADE_NAME.match(path.name)
        if name is None:
            raise FilesError(f"{path.name} is not named concord--FROM--TO.sql")
        source, target = name.groups()
        found[source, target] = Upgrade(source, target, _read(path))
    return found


def _read(path: Path) -> str:
    try:
        # Without translating line ends: what is installed is what was written.
        with path.open(encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        raise FilesError(f"{path.name} is missing from the pack's files") from None
