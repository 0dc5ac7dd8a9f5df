"""Lists of what to encode: text files and streams, one name a line or separated by null bytes."""

from __future__ import annotations

import os
import sys
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, getincrementaldecoder
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from image_encoders.bulk.sources.items import Entry
from image_encoders.bulk.sources.places import Place
from image_encoders.errors import InputError

SUFFIXES = frozenset({".txt", ".lst"})
CHUNK = 1 << 16  # bytes of a list read at a time
LONGEST = 1 << 20  # bytes of a name in a list; far more than a path may have


class ListFile:
    """A file that lists names.

    path: as `open` takes it; of a pipe or a device, which can be read only once, too
    named: what a name in it names
    """

    def __init__(self, path: str, named: Callable[[str], Iterator[Entry]]):
        self.path, self.named = path, named

    @property
    def repeatable(self) -> bool:
        return not _is_stream(self.path)

    def check(self) -> None:
        """Raise InputError where it cannot be opened."""
        if _is_stream(self.path):
            return  # whose writer would be gone if it were opened now and closed again
        try:
            with open(self.path, "rb"):
                return
        except (OSError, ValueError) as error:
            reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
            reason = "no such list" if isinstance(error, FileNotFoundError) else reason
            raise InputError(f"{reason}; a text file with one path a line is accepted", item=f"@{self.path}") from error

    def entries(self) -> Iterator[Entry]:
        with open(self.path, "rb") as file:
            yield from _listed(file, self.named)


class RemoteList:
    """A list in a store.

    place: where it is
    named: what a name in it names
    """

    repeatable = False

    def __init__(self, place: Place, named: Callable[[str], Iterator[Entry]]):
        self.place, self.named = place, named

    def check(self) -> None:
        """Raise InputError where it cannot be opened."""
        self.place.open().close()

    def entries(self) -> Iterator[Entry]:
        with self.place.open() as file:
            yield from _listed(file, self.named)


class StandardInput:
    """A list on standard input.

    stdin: the binary stream; None: sys.stdin's
    """

    repeatable = False

    def __init__(self, stdin: Any, named: Callable[[str], Iterator[Entry]]):
        self.stdin, self.named = stdin, named

    def check(self) -> None:
        """Raise InputError where it is closed."""
        if (self.stdin or sys.stdin) is None:
            raise InputError("standard input is closed", item="-", code="not-found")

    def entries(self) -> Iterator[Entry]:
        stream = self.stdin or sys.stdin
        yield from _listed(getattr(stream, "buffer", stream), self.named)


def _listed(stream: Any, named: Callable[[str], Iterator[Entry]]) -> Iterator[Entry]:
    for line in lines(stream):
        yield from named(os.fsdecode(line))


def _is_stream(path: str) -> bool:
    """Whether there is a pipe or a device, which can be read only once."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def lines(stream: Any) -> Iterator[bytes]:
    """The names in a list, ended by null bytes if there are any, else by line ends; empty ones left out."""
    separator = b""
    rest = b""
    for chunk in _chunks(stream):
        rest += chunk
        if not separator:
            separator = b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else b""
        if separator:
            *names, rest = rest.split(separator)
            yield from filter(None, (_line(name, separator) for name in names))
        if len(rest) > LONGEST:
            raise InputError(f"not a list of paths: it has a line of more than {LONGEST:,} bytes", code="list")
    if rest := _line(rest, separator):
        yield rest


def _chunks(stream: Any) -> Iterator[bytes]:
    """What a stream holds, without a byte order mark; UTF-16 as UTF-8."""
    read = getattr(stream, "read1", stream.read)  # which waits for nothing more where something is there
    chunks = iter(partial(read, CHUNK), b"")
    first = next(chunks, b"")
    if first.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        decoder = getincrementaldecoder("utf-16")("replace")
        yield from (decoder.decode(chunk).encode("utf-8", "replace") for chunk in chain([first], chunks))
    else:
        yield first.removeprefix(BOM_UTF8)
        yield from chunks


def _line(name: bytes, separator: bytes) -> bytes:
    return name if separator == b"\0" else name.removesuffix(b"\r")
