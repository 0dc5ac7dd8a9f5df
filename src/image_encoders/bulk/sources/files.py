"""Files, folders and globs.

Nothing is read but folders. A path that is not there, or is no regular file, comes out with its error.
"""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from image_encoders.bulk.sources.items import Entry, Walk, said_by_folders, state_with
from image_encoders.collection import ITEMS, MARK
from image_encoders.errors import InputError
from image_encoders.inputs.files import check_regular, file_error
from image_encoders.inputs.formats import SUFFIXES
from image_encoders.inputs.image import ImageLimits, read_bytes
from image_encoders.records import Locator
from image_encoders.tables import id_of


@dataclass(frozen=True)
class SourceFile:
    """A file to encode.

    id: its absolute path as text; a name that is not UTF-8 is escaped, see `collection.id_of`
    path: its absolute path as `open` takes it
    state: its size in bytes and the time of its last change in nanoseconds; "" where there is no such file
    """

    id: str
    path: str
    state: str
    error: InputError | None = None
    metadata: Mapping[str, Any] | None = None

    @property
    def locator(self) -> Locator:
        return Locator(self.path)

    def read(self, limits: ImageLimits) -> bytes:
        if self.error is not None:
            raise self.error
        return read_bytes(self.path, limits)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A path that was named.

    name: the absolute path
    error: what is wrong with it, where that is known already
    """

    name: str
    error: InputError | None = None
    metadata: Mapping[str, Any] | None = None

    @property
    def path(self) -> str | None:
        return None if self.error else self.name

    def item(self) -> SourceFile:
        state, error = "", self.error
        try:
            found = os.stat(self.name)
            state = state_with(file_state(found), self.metadata)
            if error is None:
                check_regular(found, "image")
        except InputError as problem:
            error = problem
        except (OSError, ValueError) as problem:
            error = error or file_error(self.name, problem)
        return SourceFile(id_of(self.name), self.name, state, error, self.metadata)


def file_state(found: os.stat_result) -> str:
    """What changes when a file's bytes may have changed."""
    return f"{found.st_size} {found.st_mtime_ns}"


class OneFile:
    """A file, whatever its name."""

    repeatable = True

    def __init__(self, path: str):
        self.path = path

    def check(self) -> None:
        """It was there a moment ago."""

    def entries(self) -> Iterator[Entry]:
        yield FileEntry(absolute(self.path))


class Folder:
    """The images below a folder: its own files by name, then its folders by name, which may be metadata (year=2020)."""

    repeatable = True

    def __init__(self, path: str, walk: Walk):
        self.path, self.walk = path, walk

    def check(self) -> None:
        """One that cannot be searched comes out with its error."""

    def entries(self) -> Iterator[Entry]:
        """Its images, and the folders that cannot be searched."""
        top = absolute(self.path)
        for folder, files, error in _folders(top, self.walk.folders):
            said = said_by_folders(folder.removeprefix(top))
            if error is not None:
                yield FileEntry(folder, error)
            for name in files:
                if self.walk.settings.all_files or is_image_name(name):
                    yield FileEntry(os.path.join(folder, name), None, said)
                else:
                    self.walk.ignore(name)


class Glob:
    """The paths that match a pattern such as "photos/**/*.jpg"; of folders that match, the images below.

    If it ends in an extension, all that matches is taken, else images.
    named: what the path of a file names
    """

    repeatable = True

    def __init__(self, pattern: str, walk: Walk, named: Callable[[str], Iterator[Entry]]):
        self.pattern, self.walk, self.named = pattern, walk, named

    def check(self) -> None:
        """Raise InputError where nothing matches."""
        if next(self._matches(), None) is None:
            raise InputError("no file matches", item=self.pattern, code="not-found")

    def entries(self) -> Iterator[Entry]:
        every = self.walk.settings.all_files or bool(os.path.splitext(self.pattern)[1])
        for path in self._matches():
            if every or os.path.isdir(path) or is_image_name(path):
                yield from self.named(path)
            else:
                self.walk.ignore(os.path.basename(path))

    def _matches(self) -> Iterator[str]:
        """Folder by folder: nothing is held but one folder's names."""
        top = os.sep if os.path.isabs(self.pattern) else os.curdir
        return _glob(top, [part for part in self.pattern.split(os.sep) if part])


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _glob(folder: str, parts: Sequence[str]) -> Iterator[str]:
    first, rest = parts[0], parts[1:]
    if first == "**":
        for below, _, _ in _folders(folder, set()):
            yield from _glob(below, rest or ["*"])
    elif not glob.has_magic(first):
        path = os.path.join(folder, first)
        if rest and os.path.isdir(path):
            yield from _glob(path, rest)
        elif not rest and os.path.lexists(path):
            yield path
    else:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            return  # as every glob does: what cannot be listed has no matches
        for name in names:
            hidden = name.startswith(".") and not first.startswith(".")
            if not hidden and fnmatch.fnmatchcase(name, first):
                path = os.path.join(folder, name)
                if not rest:
                    yield path
                elif os.path.isdir(path):
                    yield from _glob(path, rest)


def _folders(top: str, searched: set[tuple[int, int]]) -> Iterator[tuple[str, list[str], InputError | None]]:
    """Every folder from `top` down with the names of its files, or the error of one that cannot be listed.

    searched: folders to pass over, added to: each is met once, whatever links lead to it
    """
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        files: list[str] = []
        folders: list[str] = []
        try:
            identity = os.stat(folder)
            if (identity.st_dev, identity.st_ino) in searched:
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        (folders if _is_folder(entry) else files).append(entry.name)
            searched.add((identity.st_dev, identity.st_ino))
        except OSError as error:
            yield folder, [], InputError(f"a folder that cannot be searched: {error.strerror}", code="unreadable")
            continue
        if MARK in files and f"{ITEMS}.lance" in folders:
            continue  # a collection, perhaps the one that is being written
        yield folder, sorted(files), None
        waiting.extend(os.path.join(folder, name) for name in sorted(folders, reverse=True))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def absolute(path: str) -> str:
    """A path from the root with its links kept, unless "..", which leads out of a link's target, comes after them."""
    if os.pardir in path.split(os.sep):
        folder, name = os.path.split(path.rstrip(os.sep))
        return os.path.realpath(path) if name == os.pardir else os.path.join(os.path.realpath(folder), name)
    return os.path.abspath(path)
