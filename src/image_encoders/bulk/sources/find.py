"""What the arguments of a run name."""

from __future__ import annotations

import glob
import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from typing import Any

from image_encoders.bulk.sources import lists
from image_encoders.bulk.sources.files import FileEntry, Folder, Glob, OneFile, absolute
from image_encoders.bulk.sources.items import Entry, Source, SourceItem, Walk
from image_encoders.bulk.sources.lists import ListFile, StandardInput
from image_encoders.errors import InputError
from image_encoders.inputs.files import address_error

ACCEPTED = "accepted: a folder, an image file, a quoted glob, a list of paths (@list.txt), - for standard input"


def find(arguments: Sequence[str | os.PathLike[str]], *, stdin: Any = None, all_files: bool = False) -> Sources:
    """What the arguments name, each thing once, in an order that depends on names alone.

    arguments: each one of
        a folder: searched recursively, links followed, for names of images; hidden names and collections are skipped
        a file: taken whatever its name, unless it ends in .txt or .lst
        a list, "@list" or any file ending in .txt or .lst: one path a line, or separated by null bytes; relative ones
            begin at the current folder, as on the command line; a folder in it is searched
        a glob such as "photos/**/*.jpg": if it ends in an extension, all that matches is taken, else images
        "-": a list on standard input
    stdin: the binary stream that "-" reads; None: sys.stdin's
    all_files: take every file of a folder, whatever its name

    Raises InputError for an argument that names nothing, before any file is looked at. A missing path in a list is not
    an error here: its item says so.
    """
    sources = Sources([os.fspath(argument) for argument in arguments], stdin, all_files)
    sources.check()
    return sources


class Sources(Iterator[SourceItem]):
    """What `find` gives: an iterator over items, that also counts."""

    def __init__(self, arguments: Sequence[str], stdin: Any = None, all_files: bool = False):
        self.arguments = arguments
        self._stdin, self._all_files = stdin, all_files
        self._walk = Walk()
        self._items = (entry.item() for entry in self._entries(self._walk))

    def __iter__(self) -> Sources:
        return self

    def __next__(self) -> SourceItem:
        return next(self._items)

    @property
    def ignored(self) -> int:
        """Files met in folders that are not images by their names, so far."""
        return self._walk.ignored

    @property
    def passed_over(self) -> list[str]:
        """The names of the first few of them."""
        return self._walk.passed_over

    def check(self) -> None:
        """Raise InputError for an argument that names nothing."""
        for argument in self.arguments:
            try:
                source_of(argument, self._walk, self._stdin, self._all_files).check()
            except InputError as error:
                raise error if error.code != "not-found" else _accepting(error) from error.__cause__

    def searched(self, path: str) -> bool:
        """Whether there is a folder at `path` that has been searched by now."""
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return False
        return (found.st_dev, found.st_ino) in self._walk.folders

    def count(self) -> int | None:
        """How many items there are in all, found by a walk of its own; None where something can be read only once."""
        return sum(1 for _ in self._entries(Walk())) if self._repeatable else None

    def sample(self, count: int) -> list[str]:
        """Paths of at most `count` files, from everywhere, the same every time; none where a list is read once."""
        if not self._repeatable:
            return []
        chance = random.Random(0)
        kept: list[str] = []
        for met, entry in enumerate(self._entries(Walk())):
            place = met if met < count else chance.randrange(met + 1)
            if entry.path is not None and place < count:
                kept[place : place + 1] = [entry.path]
        return kept

    @property
    def described(self) -> list[str]:
        """The arguments as they can be understood later, in another folder."""
        return [
            argument
            if argument == "-"
            else "@" * argument.startswith("@") + os.path.abspath(argument.removeprefix("@"))
            for argument in self.arguments
        ]

    @property
    def _repeatable(self) -> bool:
        return all(source.repeatable for source in self._all(Walk()))

    def _all(self, walk: Walk) -> list[Source]:
        return [source_of(argument, walk, self._stdin, self._all_files) for argument in self.arguments]

    def _entries(self, walk: Walk) -> Iterator[Entry]:
        """What the arguments name, each once."""
        sources = self._all(walk)
        if len(sources) == 1 and isinstance(sources[0], Folder):
            yield from sources[0].entries()  # no path comes twice: nothing to remember
            return
        seen: set[bytes] = set()  # digests: a path takes several times their memory
        for source in sources:
            for entry in source.entries():
                digest = hashlib.blake2b(os.fsencode(entry.name), digest_size=16).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield entry


def source_of(argument: str, walk: Walk, stdin: Any = None, all_files: bool = False) -> Source:
    """What an argument is, as its form and the disk say; InputError where it is nothing."""

    def named(name: str) -> Iterator[Entry]:
        """What a name in a list or a match of a glob names."""
        path = absolute(name)
        if os.path.isdir(path):
            yield from Folder(path, walk, all_files).entries()
        elif (error := address_error(name, "image")) is not None and not os.path.lexists(path):
            yield FileEntry(name, error)
        else:
            yield FileEntry(path)

    if not argument:
        raise InputError("an empty name among the sources", code="not-found")
    if argument == "-":
        return StandardInput(stdin, named)
    if os.path.isdir(argument):
        return Folder(argument, walk, all_files)
    if argument.startswith("@"):
        return ListFile(argument[1:], named)
    ending = os.path.splitext(argument)[1].lower()
    if ending in lists.SUFFIXES and os.path.isfile(argument):
        return ListFile(argument, named)
    if os.path.exists(argument):
        return OneFile(argument)
    if (address := address_error(argument, "image")) is not None:
        raise address.named(argument)
    if glob.has_magic(argument):
        return Glob(argument, walk, all_files, named)
    raise InputError("no such file or folder", item=argument, code="not-found")


def _accepting(error: InputError) -> InputError:
    return InputError(f"{error.message}; {ACCEPTED}", item=error.item, code=error.code)
