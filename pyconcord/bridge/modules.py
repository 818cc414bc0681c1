"""A generated module that people write in, too.

What the generator writes stands in regions; below the end of a class's region its owner adds to the
class. Each region carries a hash of what was written, so that a change by hand inside of one is
seen, and not lost.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..packs.ddl import PackFileError

_REGION = re.compile(
    r"^# region concord: (?P<key>\S+) (?P<hash>[0-9a-f]{8})\n(?P<body>.*?)^ *# endregion\n",
    re.MULTILINE | re.DOTALL,
)


class Conflict(PackFileError):
    """Lines of a region were changed by hand."""


@dataclass(frozen=True)
class Part:
    """A region: the head of the module, or a class."""

    key: str
    body: str
    is_class: bool = True

    @property
    def region(self) -> str:
        # Where the formatters leave it: in the class, or two lines after one.
        end = "    # endregion" if self.is_class else "\n\n# endregion"
        return f"# region concord: {self.key} {_hash(self.body)}\n{self.body}{end}\n"


def _hash(body: str) -> str:
    """Of what is said, however it is broken into lines."""
    said = re.sub(r",(?=[)\]}])", "", "".join(body.split()))
    return hashlib.sha256(said.encode()).hexdigest()[:8]


def rewritten(old: str | None, parts: Sequence[Part], overwrite: bool = False) -> str:
    """The module with these parts: those it has are replaced, new ones come at the end.

    A class whose table is gone stays as it is, since its owner may have added to it; it then fails
    where it is used. Raises Conflict.
    """
    there = {match["key"]: match for match in _REGION.finditer(old or "")}
    changed = [key for key, match in there.items() if _hash(match["body"]) != match["hash"]]
    if changed and not overwrite:
        raise Conflict(
            f"the region {changed[0]} was changed by hand: move what is yours out of it, below "
            "'# endregion', or have it overwritten"
        )
    regions = {part.key: part.region for part in parts}
    text = _REGION.sub(lambda match: regions.get(match["key"], match[0]), old or "").rstrip("\n")
    new = [region.rstrip("\n") for key, region in regions.items() if key not in there]
    between = "\n\n\n" if there else "\n\n"  # a docstring is followed by one empty line
    return between.join([*([text] if text else []), "\n\n\n".join(new)]).rstrip("\n") + "\n"
