"""Build hook: a wheel carries the pack's files, as pyconcord/_pack/.

An editable install carries none: it reads the sources of the checkout it points to.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PackBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        out = root / "build" / "_pack"
        files = _files_module(root).Files.of_checkout(root)
        for path in files.write(out):
            build_data["force_include"][str(path)] = f"pyconcord/_pack/{path.name}"


def _files_module(root: Path) -> Any:
    """pyconcord/_files.py by path: the package's dependencies are not there while it is built."""
    spec = importlib.util.spec_from_file_location(
        "_concord_files", root / "pyconcord" / "_files.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module
