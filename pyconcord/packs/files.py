"""Where packs are found."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from .ddl import PackFileError
from .definition import Pack


def shipped() -> dict[str, Pack]:
    """The packs that come along, by name."""
    directory = resources.files(__name__.rpartition(".")[0]) / "shipped"
    files = sorted(
        (f for f in directory.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name
    )
    packs = [Pack.of(f.read_text(encoding="utf-8"), f.name) for f in files]
    return {pack.name: pack for pack in packs}


def load(path: Path) -> Pack:
    """A pack of the user's own."""
    try:
        return Pack.of(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise PackFileError(f"{path}: {error}") from None


def find(what: str) -> Pack:
    """A pack by its name, or by the path of its file."""
    if "/" in what or what.endswith(".sql"):
        return load(Path(what))
    packs = shipped()
    if what not in packs:
        raise PackFileError(f"there is no pack {what!r}: there are {', '.join(packs)}, and files")
    return packs[what]
