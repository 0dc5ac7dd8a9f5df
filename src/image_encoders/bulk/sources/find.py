"""The sources that a run's arguments name."""

from __future__ import annotations

import glob
import os
import random
import re
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from image_encoders.bulk.digests import DigestTable
from image_encoders.bulk.sources import lance, lists
from image_encoders.bulk.sources.ahead import items_of
from image_encoders.bulk.sources.archives import Archive, ArchivedImage, find_member, is_archive_name
from image_encoders.bulk.sources.files import FileEntry, Folder, Glob, OneFile, absolute
from image_encoders.bulk.sources.items import (
    Entry,
    Problem,
    Settings,
    Source,
    SourceItem,
    Uncountable,
    Walk,
)
from image_encoders.bulk.sources.lance import LanceTable, is_lance
from image_encoders.bulk.sources.lists import ListFile, RemoteList, StandardInput
from image_encoders.bulk.sources.locators import locator_of, place_of
from image_encoders.bulk.sources.places import LocalFile, Place
from image_encoders.bulk.sources.stores import ObjectEntry, ObjectFile, ObjectFolder, is_object
from image_encoders.bulk.sources.tables import CellImage, Table, is_table_name, table_name
from image_encoders.bulk.sources.urls import UrlEntry, is_url
from image_encoders.bulk.sources.videos import Frame, Video, frame_times, is_video_name, time_name
from image_encoders.errors import ImageEncodersError, InputError
from image_encoders.inputs.files import address_error
from image_encoders.records import Locator
from image_encoders.tables import id_of, path_of

BRACES = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}|\{([^{},]*(?:,[^{},]*)+)\}")
ACCEPTED = (
    "accepted: a folder, an image file, an archive (.tar, .zip), a table (.parquet, .csv, .jsonl, .lance), a video, a "
    "quoted glob, a list of paths (@list.txt), - for standard input"
)


def find(
    arguments: Sequence[str | os.PathLike[str]],
    *,
    stdin: Any = None,
    all_files: bool = False,
    column: str | None = None,
    private_urls: bool = False,
    frames: str = "10",
) -> Sources:
    """The sources that the arguments name, each item once, in an order that depends only on names.

    arguments: each one of
        a folder: searched recursively, links followed, for names of images; hidden names and collections are skipped
        a list, "@list" or any file ending in .txt or .lst: one path per line, or separated by null bytes, relative to
            the current folder, as on the command line; a folder in it is searched, an archive opened
        an archive, .tar (also .gz, .bz2, .xz) or .zip: the images inside
        a video, .mp4, .mov, .mkv, .webm and others: some of its frames
        a table, .parquet, .csv, .tsv, .jsonl, .ndjson or .lance: what a column of paths names, or of bytes holds;
            "table.csv#column" says which column
        a glob such as "photos/**/*.jpg": if it ends in an extension, all matching files, else only images
        any of these with "{000..009}" or "{a,b}" in its name, for several names
        any other file, whatever its name
        an address in a store, such as s3://bucket/folder: a folder, a pattern or a file of any of these kinds, by
            fsspec, with the store's usual credentials
        "-": a list on standard input
    stdin: the binary stream that "-" reads; None: sys.stdin's
    all_files: take every file of a folder or an archive, whatever its name
    column: of tables, the one with images or their paths; None: detected
    private_urls: also fetch from addresses that are not public. URLs are only fetched from lists and tables; their
        items come as they are fetched, not in order
    frames: of videos: "10" for one every ten seconds, or "scenes" for the first one of each scene

    Raises InputError for an argument that matches nothing, before any image is read. A missing path in a list is not an
    error here, but an error of its item.
    """
    settings = Settings(stdin, all_files, column, private_urls, frame_times(frames))
    sources = Sources([os.fspath(argument) for argument in arguments], settings)
    sources.check()
    return sources


class Sources(Iterator[SourceItem]):
    """The result of `find`: an iterator over items, which can also count them."""

    def __init__(self, arguments: Sequence[str], settings: Settings | None = None):
        self.arguments, self.settings = arguments, settings or Settings()
        self._walk = Walk(self.settings)
        self._items = self._iterate()

    def __iter__(self) -> Sources:
        return self

    def __next__(self) -> SourceItem:
        return next(self._items)

    def close(self) -> None:
        """End here: nothing more is fetched ahead."""
        self._items.close()

    @property
    def ignored(self) -> int:
        """Files so far, in folders and archives, that are not named like images."""
        return self._walk.ignored

    @property
    def passed_over(self) -> list[str]:
        """The names of the first few of them."""
        return self._walk.passed_over

    @property
    def known(self) -> Callable[[str, str], bool]:
        """Whether an item with that id is stored in that state; set by the run."""
        return self._walk.known

    @known.setter
    def known(self, known: Callable[[str, str], bool]) -> None:
        self._walk.known = known

    def check(self) -> None:
        """Raise InputError for an argument that matches nothing."""
        for argument in self._patterns():
            try:
                source_of(argument, self._walk).check()
            except InputError as error:
                named = error.named(argument) if argument else error
                raise named if error.code != "not-found" else _accepting(named) from error.__cause__

    def finished(self, id: str, state: str = "") -> bool:
        """Whether what failed as `id` would have failed again by now if anything were still wrong with it.

        So it is for a folder, an archive or the like that was read to its end, and for the parts of those that have no
        state: they are met in every run.
        """
        done = self._walk.completed
        if id in done or (not state and any(id[:at] in done for at, sign in enumerate(id) if sign == "#")):
            return True
        try:
            found = os.stat(path_of(id))
        except (OSError, ValueError):
            return False
        return (found.st_dev, found.st_ino) in self._walk.folders

    def count(self) -> int | None:
        """The number of items, by a separate walk; None if that is expensive, or if something can be read only once."""
        sources = self._all(Walk(self.settings, counting=True))
        others = [one for one in sources if not isinstance(one, Table)]
        try:
            rows = sum(one.count() for one in sources if isinstance(one, Table))
            return rows + sum(1 for _ in self._counted(others))
        except Uncountable:
            return None

    def count_aside(self) -> Callable[[], int | None]:
        """Start counting on a separate thread; returns a function that gives the number once known, and None before."""
        counted: list[int | None] = []

        def count() -> None:
            with suppress(OSError, ImageEncodersError):  # what has vanished: the run itself will say so
                counted.append(self.count())

        threading.Thread(target=count, daemon=True, name="count").start()
        return lambda: counted[0] if counted else None

    def sample(self, count: int) -> list[str]:
        """Paths of at most `count` files, from everywhere, the same every time; none if they cannot be counted."""
        chance = random.Random(0)
        kept: list[str] = []
        try:
            for met, entry in enumerate(self._counted(self._all(Walk(self.settings, counting=True)))):
                place = met if met < count else chance.randrange(met + 1)
                if entry.path is not None and place < count:
                    kept[place : place + 1] = [entry.path]
        except Uncountable:
            return []
        return kept

    @property
    def described(self) -> list[str]:
        """The arguments with absolute paths, valid in another folder."""
        return [
            argument
            if argument == "-" or "://" in argument
            else "@" * argument.startswith("@") + os.path.abspath(argument.removeprefix("@"))
            for argument in self.arguments
        ]

    def _counted(self, sources: list[Source]) -> Iterator[Entry]:
        if not all(source.repeatable for source in sources):
            raise Uncountable
        return self._entries(sources)

    def _all(self, walk: Walk) -> list[Source]:
        return [source_of(argument, walk) for argument in self._patterns()]

    def _patterns(self) -> Iterator[str]:
        return (one for argument in self.arguments for one in expanded(argument))

    def _iterate(self) -> Generator[SourceItem, None, None]:
        """The items, in order, except for those that come over a network, which come when ready."""
        yield from items_of(self._entries(self._all(self._walk)), self.known)

    def _entries(self, sources: list[Source]) -> Iterator[Entry]:
        """What they name, each once."""
        if len(sources) == 1 and isinstance(sources[0], (Folder, Archive)):
            yield from sources[0].entries()  # nothing comes twice: nothing to remember
            return
        seen = DigestTable()  # in a file: there may be a hundred millions
        for source in sources:
            for entry in source.entries():
                name = id_of(entry.name)
                if not seen.has(name):
                    seen.add(name)
                    yield entry


def expanded(argument: str) -> Iterator[str]:
    """shard-{000..009}.tar as the names that it stands for, as shells and WebDataset write them, and a-{b,c}.tar too;
    what is on the disk under that very name stays as it is.
    """
    found = BRACES.search(argument)
    if found is None or os.path.lexists(argument):
        yield argument
        return
    first, last, words = found.groups()
    if words is None:
        width = max(len(first), len(last)) if "0" in (first[0], last[0]) else 0
        step = 1 if int(first) <= int(last) else -1
        choices = (f"{number:0{width}}" for number in range(int(first), int(last) + step, step))
    else:
        choices = (word for word in words.split(","))
    for choice in choices:
        yield from expanded(argument[: found.start()] + choice + argument[found.end() :])


def source_of(argument: str, walk: Walk) -> Source:
    """The source for an argument, by its form and the disk; InputError if there is none."""
    named = partial(_named, walk)
    if not argument:
        raise InputError("an empty source name", code="not-found")
    if argument == "-":
        return StandardInput(walk.settings.stdin, named)
    table = table_name(argument)
    if table is not None and is_lance(table[0]):
        return _table(LanceTable.at(table[0]), walk, table[1])
    if os.path.isdir(argument):
        return Folder(argument, walk)
    if argument.startswith("@"):
        listed = argument[1:]
        return RemoteList(ObjectFile(listed), named) if is_object(listed) else ListFile(listed, named)
    if (found := _local_file(argument, walk)) is not None:
        return found
    if is_object(argument):
        return _stored(argument, walk)
    if is_url(argument):
        said = f"a URL, not a path; URLs are fetched from lists and tables: echo '{argument}' | ... encode -"
        raise InputError(said, item=argument, code="url")
    if (address := address_error(argument, "image")) is not None:
        raise address.named(argument)
    if glob.has_magic(argument):
        return Glob(argument, walk, named)
    raise InputError("no such file or folder", item=argument, code="not-found")


def _local_file(argument: str, walk: Walk) -> Source | None:
    """The file that an argument names; None where there is none."""
    if os.path.isfile(argument):
        if _is_list(argument):
            return ListFile(argument, partial(_named, walk))
        if (container := _container(LocalFile.at(argument), walk)) is not None:
            return container
    table = table_name(argument)
    if table is not None and os.path.isfile(table[0]):
        return _table(LocalFile.at(table[0]), walk, table[1])
    return OneFile(argument) if os.path.exists(argument) else None


def _stored(address: str, walk: Walk) -> Source:
    """What an address in a store is, by its name."""
    table = table_name(address)
    if table is not None and table[0].rstrip("/").endswith(lance.SUFFIX):
        said = "tables of LanceDB are read from this machine's disks alone; copy it here, or export it to Parquet"
        raise InputError(said, item=address, code="unsupported")
    if not glob.has_magic(address):
        if _is_list(address):
            return RemoteList(ObjectFile(address), partial(_named, walk))
        if (container := _container(ObjectFile(address), walk)) is not None:
            return container
        if table is not None:
            return _table(ObjectFile(table[0]), walk, table[1])
    return ObjectFolder(address, walk, partial(_named_in_store, walk))


def _named(walk: Walk, name: str) -> Iterator[Entry]:
    """What a name in a list or a match of a glob names."""
    path = absolute(name)
    if is_object(name) and not os.path.lexists(path):
        yield from _named_in_store(walk, name)
    elif is_lance(path):
        yield from _table(LanceTable.at(path), walk).entries()
    elif os.path.isdir(path):
        yield from Folder(path, walk).entries()
    elif os.path.isfile(path) and (container := _container(LocalFile(path), walk)) is not None:
        yield from container.entries()
    else:
        yield entry_of(name, None, walk.settings)


def _named_in_store(walk: Walk, name: str) -> Iterator[Entry]:
    """What an address in a list, or one that matches a pattern, names."""
    if (container := _container(ObjectFile(name), walk)) is not None:
        yield from container.entries()
    elif name.endswith("/"):
        yield from ObjectFolder(name, walk, partial(_named_in_store, walk)).entries()
    else:
        yield entry_of(name, None, walk.settings)


def _is_list(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in lists.SUFFIXES


def _table(place: Place, walk: Walk, column: str | None = None) -> Table:
    return Table(place, walk, partial(entry_of, settings=walk.settings), column or walk.settings.column)


# Files that hold many images, by their names: a folder's search passes over them.
CONTAINERS: tuple[tuple[Callable[[str], bool], Callable[[Place, Walk], Source]], ...] = (
    (is_archive_name, Archive),
    (is_video_name, Video),
    (is_table_name, _table),
)


def _container(place: Place, walk: Walk) -> Source | None:
    """The archive, the video or the table that a file is, by its name."""
    return next((source(place, walk) for is_named, source in CONTAINERS if is_named(place.path)), None)


def holds_many(name: str) -> bool:
    """Whether a file is an archive, a video or a table, by its name."""
    return any(is_named(name) for is_named, _ in CONTAINERS)


def entry_of(name: str, metadata: Mapping[str, Any] | None, settings: Settings) -> Entry:
    """The one image that a name in a list or a table names: a path, an address, or an id as search results have it."""
    locator = locator_of(name)
    if locator.member is not None or locator.time_s is not None:
        return _inside(locator)
    name, path = locator.path, absolute(locator.path)
    if is_url(name) and not os.path.lexists(path):
        return UrlEntry(name, metadata, settings.private_urls)
    if is_object(name) and not os.path.lexists(path):
        return ObjectEntry(name, metadata)
    if (error := address_error(name, "image")) is not None and not os.path.lexists(path):
        return FileEntry(name, error, metadata)
    return FileEntry(path, None, metadata)


def _inside(locator: Locator) -> Entry:
    """The member of an archive, the frame of a video or the cell of a table that a locator leads to."""
    place, state, inside = place_of(locator.path), "", locator.member
    try:
        state = place.state
        if inside is None:
            return Frame(place, locator.time_s or 0.0)
        if is_archive_name(locator.path):
            return ArchivedImage(place, find_member(place, inside)).entry()
        column, _, row = inside.rpartition("/")
        return CellImage(place, column, int(row))
    except InputError as error:
        return Problem(f"{locator.path}#{inside or f't={time_name(locator.time_s or 0.0)}'}", locator, error, state)


def _accepting(error: InputError) -> InputError:
    return InputError(f"{error.message}; {ACCEPTED}", item=error.item, code=error.code)
