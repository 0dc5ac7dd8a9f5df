"""Where the images are: folders, globs, files, lists of files, standard input.

    arguments ─paths→ each path once, in order ─stat→ SourceFile

Nothing is read but folders and lists. A path that is not there, or is not a file, comes out with its error.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from image_encoders.collection import ITEMS, MARK, Locator, id_of
from image_encoders.errors import InputError
from image_encoders.inputs.files import address_error, check_regular, file_error
from image_encoders.inputs.formats import SUFFIXES
from image_encoders.inputs.image import ImageLimits, read_bytes

LISTS = frozenset({".txt", ".lst"})
CHUNK = 1 << 16  # bytes of a list read at a time
LONGEST = 1 << 20  # bytes of a name in a list; far more than a path may have
NAMED = 3  # names of what was passed over that are kept
ACCEPTED = "accepted: a folder, an image file, a quoted glob, a list of paths (@list.txt), - for standard input"


class SourceItem(Protocol):
    """One thing to encode, wherever its bytes are.

    id: unique, valid Unicode
    locator: where its bytes are
    state: text that changes whenever the bytes may have changed, such as a size and a time, or an etag; "" where nobody
        knows: then they are read
    metadata: what its source says about it, as JSON can hold it; None: nothing
    error: why it cannot be read, where that is known already
    """

    @property
    def id(self) -> str: ...
    @property
    def locator(self) -> Locator: ...
    @property
    def state(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any] | None: ...
    @property
    def error(self) -> InputError | None: ...

    def read(self, limits: ImageLimits) -> bytes:
        """Its bytes, on any thread; InputError where they cannot be read or are too many."""
        ...


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
        """Its bytes."""
        if self.error is not None:
            raise self.error
        return read_bytes(self.path, limits)


def find(arguments: Sequence[str | os.PathLike[str]], *, stdin: Any = None, all_files: bool = False) -> Sources:
    """The files that the arguments name, each path once, in an order that depends on names alone.

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
    an error here: its SourceFile says so.
    """
    sources = Sources([os.fspath(argument) for argument in arguments], stdin, all_files)
    for argument in sources.arguments:
        sources.check(argument)
    return sources


class Sources(Iterator[SourceFile]):
    """What `find` gives: an iterator over files, that also counts.

    ignored: files met in folders that are not images by their names, so far
    passed_over: the names of the first few of them
    """

    def __init__(self, arguments: Sequence[str], stdin: Any = None, all_files: bool = False):
        self.arguments = arguments
        self.ignored = 0
        self.passed_over: list[str] = []
        self._stdin = stdin
        self._all_files = all_files
        self._searched: set[tuple[int, int]] = set()  # device and inode of folders: links may form loops
        self._files = (_source_file(path, error) for path, error in self._unique())

    def __iter__(self) -> Sources:
        return self

    def __next__(self) -> SourceFile:
        return next(self._files)

    def searched(self, path: str) -> bool:
        """Whether there is a folder at `path` that has been searched by now."""
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return False
        return (found.st_dev, found.st_ino) in self._searched

    def count(self) -> int | None:
        """How many files there are in all, found by a walk of its own; None where a list can be read only once."""
        if self._once:
            return None
        return sum(1 for _ in Sources(self.arguments, None, self._all_files)._unique())

    def sample(self, count: int) -> list[str]:
        """Paths of at most `count` files, from everywhere, the same every time; none where a list is read once."""
        if self._once:
            return []
        chance = random.Random(0)
        kept: list[str] = []
        for met, (path, error) in enumerate(Sources(self.arguments, None, self._all_files)._unique()):
            place = met if met < count else chance.randrange(met + 1)
            if error is None and place < count:
                kept[place : place + 1] = [path]
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
    def _once(self) -> bool:
        """Whether what names the files is gone once it has been read."""
        return any(argument == "-" or _is_stream(_list_name(argument)) for argument in self.arguments)

    def check(self, argument: str) -> None:
        """Raise InputError unless the argument names something."""
        if not argument:
            raise InputError(f"an empty name among the sources; {ACCEPTED}", code="not-found")
        if argument == "-" and (self._stdin or sys.stdin) is None:
            raise InputError(f"standard input is closed; {ACCEPTED}", item=argument, code="not-found")
        if argument == "-" or os.path.isdir(argument):
            return
        name = _list_name(argument)
        if _is_stream(name):
            return  # whose writer would be gone if it were opened now and closed again
        if name is not None:
            try:
                with open(name, "rb"):
                    return
            except (OSError, ValueError) as error:
                reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
                reason = "no such list" if isinstance(error, FileNotFoundError) else reason
                raise InputError(f"{reason}; a text file with one path a line is accepted", item=argument) from error
        if os.path.exists(argument):
            return
        if (address := address_error(argument, "image")) is not None:
            raise address.named(argument)
        if not glob.has_magic(argument):
            raise InputError(f"no such file or folder; {ACCEPTED}", item=argument, code="not-found")
        if next(self._matches(argument), None) is None:
            raise InputError(f"no file matches; {ACCEPTED}", item=argument, code="not-found")

    def _unique(self) -> Iterator[tuple[str, InputError | None]]:
        """Absolute paths, each once, with the error of a folder that cannot be searched."""
        if len(self.arguments) == 1 and os.path.isdir(self.arguments[0]):
            yield from self._below(_absolute(self.arguments[0]))  # no path comes twice: nothing to remember
            return
        seen: set[bytes] = set()  # digests: a path takes several times their memory
        for argument in self.arguments:
            for path, error in self._named(argument):
                digest = hashlib.blake2b(os.fsencode(path), digest_size=16).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield path, error

    def _named(self, argument: str) -> Iterator[tuple[str, InputError | None]]:
        """What one argument names."""
        if argument == "-":
            yield from self._listed(self._stdin or sys.stdin)
        elif os.path.isdir(argument):
            yield from self._below(_absolute(argument))
        elif name := _list_name(argument):
            with open(name, "rb") as file:
                yield from self._listed(file)
        elif os.path.exists(argument) or not glob.has_magic(argument):
            yield _absolute(argument), None
        else:
            named = bool(os.path.splitext(argument)[1])
            for path in self._matches(argument):
                if os.path.isdir(path):
                    yield from self._below(_absolute(path))
                elif named or self._wanted(path):
                    yield _absolute(path), None

    def _listed(self, stream: Any) -> Iterator[tuple[str, InputError | None]]:
        for entry in _entries(getattr(stream, "buffer", stream)):
            name = os.fsdecode(entry)
            path = _absolute(name)
            if os.path.isdir(path):
                yield from self._below(path)
            elif (error := address_error(name, "image")) is not None and not os.path.lexists(path):
                yield name, error
            else:
                yield path, None

    def _below(self, top: str) -> Iterator[tuple[str, InputError | None]]:
        """The images below a folder: a folder's files by name, then its folders by name."""
        for folder, files, error in _folders(top, self._searched):
            if error is not None:
                yield folder, error
            for name in files:
                if self._wanted(name):
                    yield os.path.join(folder, name), None

    def _wanted(self, name: str) -> bool:
        wanted = self._all_files or os.path.splitext(name)[1].lower() in SUFFIXES
        if not wanted:
            self.ignored += 1
            if len(self.passed_over) < NAMED:
                self.passed_over.append(os.path.basename(name))
        return wanted

    def _matches(self, pattern: str) -> Iterator[str]:
        """The paths that match a glob, folder by folder: nothing is held but one folder's names."""
        top = os.sep if os.path.isabs(pattern) else os.curdir
        return _glob(top, [part for part in pattern.split(os.sep) if part])


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


def _list_name(argument: str) -> str | None:
    """The file of a list, or None where the argument is none."""
    if argument.startswith("@"):
        return argument[1:]
    return argument if os.path.splitext(argument)[1].lower() in LISTS and os.path.isfile(argument) else None


def _is_stream(path: str | None) -> bool:
    """Whether there is a pipe or a device, which can be read only once."""
    return path is not None and os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _entries(stream: Any) -> Iterator[bytes]:
    """The names in a list, ended by null bytes if there are any, else by line ends; empty ones left out."""
    separator = b""
    rest = b""
    first = True
    while chunk := stream.read1(CHUNK):
        if first:
            chunk, first = chunk.removeprefix(b"\xef\xbb\xbf"), False
        rest += chunk
        if not separator:
            separator = b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else b""
        if separator:
            *names, rest = rest.split(separator)
            yield from filter(None, (_line(name, separator) for name in names))
        if len(rest) > LONGEST:
            raise InputError(f"no list of paths: a name of more than {LONGEST:,} bytes", code="list")
    if rest:
        yield _line(rest, separator)


def _line(name: bytes, separator: bytes) -> bytes:
    return name if separator == b"\0" else name.removesuffix(b"\r")


def _absolute(path: str) -> str:
    """A path from the root with its links kept, unless "..", which leads out of a link's target, comes after them."""
    if os.pardir in path.split(os.sep):
        folder, name = os.path.split(path.rstrip(os.sep))
        return os.path.realpath(path) if name == os.pardir else os.path.join(os.path.realpath(folder), name)
    return os.path.abspath(path)


def _source_file(path: str, error: InputError | None) -> SourceFile:
    """What the disk says about a path."""
    state = ""
    try:
        found = os.stat(path)
        state = f"{found.st_size} {found.st_mtime_ns}"
        if error is None:
            check_regular(found, "image")
    except InputError as problem:
        error = problem
    except (OSError, ValueError) as problem:
        error = error or file_error(path, problem)
    return SourceFile(id_of(path), path, state, error)
