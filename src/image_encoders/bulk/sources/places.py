"""Files that hold other things, wherever they are: opened, or read at an offset from many threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from image_encoders.bulk.sources.files import absolute, file_state
from image_encoders.errors import InputError
from image_encoders.inputs.files import check_regular, file_error
from image_encoders.tables import id_of


class Place(Protocol):
    """A file, here or elsewhere.

    path: absolute, as `open` takes it, or an address
    id: the same as valid Unicode
    state: what changes when its bytes may have changed, as it was when it was first asked for; InputError where it
        cannot be looked at
    near: whether reading here and there costs about as much as reading in order
    """

    @property
    def path(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def near(self) -> bool: ...

    def open(self) -> Any:
        """The file, open for reading bytes; may be sought in."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Some of its bytes, fewer only at its end, on any thread; InputError ("changed") where they have changed."""
        ...


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine's."""

    path: str
    near = True

    @classmethod
    def at(cls, path: str) -> LocalFile:
        """The file at a path, made absolute."""
        return cls(absolute(path))

    @cached_property
    def id(self) -> str:
        return id_of(self.path)

    @cached_property
    def state(self) -> str:
        try:
            found = os.stat(self.path)
        except (OSError, ValueError) as error:
            raise file_error(self.path, error) from error
        check_regular(found, "regular")
        return file_state(found)

    def open(self) -> Any:
        try:
            return open(self.path, "rb", buffering=1 << 16)
        except (OSError, ValueError) as error:
            raise file_error(self.path, error) from error

    def read(self, offset: int, size: int) -> bytes:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            try:
                content = os.pread(descriptor, size, offset)
                changed = file_state(os.fstat(descriptor)) != self.state
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            raise file_error(self.path, error) from error
        if changed:
            raise changed_error(self.path)
        return content


def changed_error(path: str) -> InputError:
    """What is said of a file that is another one than a moment ago."""
    return InputError(f"{path} changed while it was read; run again once it is complete", code="changed")
