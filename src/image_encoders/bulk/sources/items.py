"""The elements of sources: items to encode, and entries before they are looked at."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

from image_encoders.bulk.sources.contents import Content, taken
from image_encoders.errors import InputError
from image_encoders.inputs.files import check_bytes
from image_encoders.inputs.image import MAX_BYTES_HINT, ImageLimits
from image_encoders.records import Locator
from image_encoders.tables import as_text, id_of

SAID = " said:"  # before the digest of metadata in a state
PARTITION = re.compile(r"([^\W\d]\w*)=(.+)", re.DOTALL)  # the name of a folder of partitioned data
NULL = "__HIVE_DEFAULT_PARTITION__"
NAMED = 3  # names of what was passed over that are kept


class SourceItem(Protocol):
    """One thing to encode, wherever its bytes are.

    id: unique, valid Unicode
    locator: where its bytes are
    state: text that changes whenever the bytes may have changed, such as a size and a time, or an etag; "" if
        unknown: then they are read
    metadata: what its source says about it, as JSON can hold it; None: nothing. Read on any thread; InputError if it
        cannot be read
    error: why it cannot be read, if that is already known
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


class Entry(Protocol):
    """Something that a source names, before it is looked at: listing and counting make many of them.

    name: what makes it different from other entries, such as a path
    path: the file that it is, where it is a whole one that seems to be there; else None
    """

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str | None: ...

    def item(self) -> SourceItem:
        """The item, looked at now."""
        ...


class RemoteEntry(Protocol):
    """An entry that is looked at over a network, which takes its time.

    host: which server is asked
    polite: whether to limit concurrent requests to one host
    """

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> None: ...
    @property
    def host(self) -> str: ...
    @property
    def polite(self) -> bool: ...

    def item(self, known: Callable[[str, str], bool] = ...) -> SourceItem:
        """The item, looked at now; the bytes of one that is known, as of `Walk`, need not be fetched."""
        ...


@dataclass(eq=False)
class RemoteImage:
    """An item fetched over a network.

    again: fetches its bytes if they were not fetched, or were already used
    """

    id: str
    locator: Locator
    state: str
    metadata: Mapping[str, Any] | None
    again: Callable[[ImageLimits], bytes]
    content: Content | None = None
    error: InputError | None = None

    def read(self, limits: ImageLimits) -> bytes:
        if self.error is not None:
            raise self.error
        content = taken(self.content, partial(self.again, limits))
        check_bytes(len(content), limits.max_bytes, MAX_BYTES_HINT)
        return content


Itself = TypeVar("Itself", bound=SourceItem)


class Ready:
    """An entry that is its own item: there is nothing to look at."""

    path = None

    @property
    def id(self: Entry) -> str:
        return id_of(self.name)

    def item(self: Itself) -> Itself:
        return self


class Source(Protocol):
    """What one argument of a run names.

    repeatable: whether `entries` may be called again, to count them, and costs little beside encoding them
    """

    @property
    def repeatable(self) -> bool: ...

    def check(self) -> None:
        """Raise InputError unless there is something; quick, and reads nothing that can be read only once."""
        ...

    def entries(self) -> Iterator[Entry]:
        """What there is, in an order that depends on names alone; the same thing may come again."""
        ...


@dataclass(frozen=True)
class Problem(Ready):
    """Something that cannot be encoded, and why."""

    name: str
    locator: Locator
    error: InputError
    state: str = ""
    metadata: Mapping[str, Any] | None = None

    def read(self, limits: ImageLimits) -> bytes:
        raise self.error


def state_with(state: str, metadata: Mapping[str, Any] | None) -> str:
    """A state that changes with what a source says, too, so that this is stored when it is said later."""
    if not state or metadata is None:
        return state
    said = json.dumps(metadata, sort_keys=True, default=str)
    return f"{state}{SAID}{hashlib.blake2b(said.encode(), digest_size=8).hexdigest()}"


def said_by_folders(path: str) -> dict[str, str] | None:
    """Metadata from the names of folders as Hive partitions data, such as year=2020/month=3; None if there is none.

    Values are texts, as in a CSV.
    """
    found = (PARTITION.fullmatch(name) for name in path.split("/"))
    return {one[1]: as_text(unquote(one[2])) for one in found if one is not None and one[2] != NULL} or None


class Uncountable(Exception):
    """There is something among the sources that cannot be counted without reading it all, or twice."""


@dataclass(frozen=True)
class Settings:
    """How sources are to be understood.

    stdin: the binary stream that "-" reads; None: sys.stdin's
    all_files: take every file of a folder or an archive, whatever its name
    column: of tables, the one with images or their paths; None: detected
    private_urls: also fetch from addresses that are not public
    every_s: seconds from one frame of a video to the next; None: those at scene cuts
    """

    stdin: Any = None
    all_files: bool = False
    column: str | None = None
    private_urls: bool = False
    every_s: float | None = 10.0


def nothing_known(id: str, state: str) -> bool:
    """As a collection without embeddings answers."""
    return False


@dataclass
class Walk:
    """The state of a walk through sources.

    settings: how the sources are to be understood
    counting: whether entries are counted only; Uncountable is raised where that costs much
    known: whether an item with that id is stored in that state, so that its bytes are not needed. Wrong answers only
        cost time
    folders: device and inode of those that were searched: links may form loops
    completed: ids of what holds many items, such as archives, and was read to its end
    ignored: files in folders that are not images by their names; passed_over: the first few names of them
    """

    settings: Settings = field(default_factory=Settings)
    counting: bool = False
    known: Callable[[str, str], bool] = nothing_known
    folders: set[tuple[int, int]] = field(default_factory=set)
    completed: set[str] = field(default_factory=set)
    ignored: int = 0
    passed_over: list[str] = field(default_factory=list)

    def ignore(self, name: str) -> None:
        """Count a skipped file."""
        self.ignored += 1
        if len(self.passed_over) < NAMED:
            self.passed_over.append(name)

    def complete(self, id: str) -> None:
        """Note that an archive, or the like, was read to its end."""
        self.completed.add(id)
