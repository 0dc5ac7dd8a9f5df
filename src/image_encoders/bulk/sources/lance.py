"""Tables of LanceDB on this machine: folders whose names end in .lance."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from image_encoders.bulk.sources.files import absolute
from image_encoders.bulk.sources.places import changed_error
from image_encoders.errors import InputError
from image_encoders.inputs.files import file_error
from image_encoders.tables import connect, id_of, pinned

SUFFIX = ".lance"


@dataclass(frozen=True)
class LanceTable:
    """A table's folder; a `Place` that is opened as a table, not as a file."""

    path: str
    near = True

    @classmethod
    def at(cls, path: str) -> LanceTable:
        """The table at a path, made absolute."""
        return cls(absolute(path.rstrip(os.sep)))

    @cached_property
    def id(self) -> str:
        return id_of(self.path)

    @cached_property
    def state(self) -> str:
        return self._newest()

    def open(self) -> AbstractContextManager[Any]:
        """The table in the version that it has now; InputError where that is not the one of `state`."""
        if self._newest() != self.state:
            raise changed_error(self.path)
        folder, name = os.path.split(self.path)
        return nullcontext(pinned(connect(Path(folder)).open_table(name.removesuffix(SUFFIX))))

    def read(self, offset: int, size: int) -> bytes:
        raise NotImplementedError("a table has no bytes of its own")

    def _newest(self) -> str:
        """The name and the time of what describes its newest version."""
        try:
            with os.scandir(os.path.join(self.path, "_versions")) as versions:
                found = [(one.stat().st_mtime_ns, one.name) for one in versions if one.name.endswith(".manifest")]
        except OSError as error:
            raise file_error(self.path, error) from error
        if not found:
            raise InputError("a folder without a table of LanceDB", code="table")
        time_ns, name = max(found)
        return f"{name.removesuffix('.manifest')} {time_ns}"


def is_lance(path: str) -> bool:
    """Whether there is a folder with such a name."""
    return path.rstrip(os.sep).endswith(SUFFIX) and os.path.isdir(path)
