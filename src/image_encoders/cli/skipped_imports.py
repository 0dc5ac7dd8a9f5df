"""Modules that other packages import and no command uses: skipped, so that commands start sooner."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# LanceDB imports clients of remote catalogues, half of its import's time; a collection is a folder.
UNUSED = "lance_namespace_urllib3_client.api."


def skip() -> None:
    """Have the modules below `UNUSED` imported as empty ones. For a process that is the command's own."""
    sys.meta_path.insert(0, _Empty())


class _Empty(MetaPathFinder, Loader):
    """Finds modules that have whatever name is imported from them."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        return ModuleSpec(name, self) if name.startswith(UNUSED) else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        def anything(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module.__getattr__ = anything  # type: ignore[method-assign]
