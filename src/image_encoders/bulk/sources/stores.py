"""Object storage, and everything else that fsspec supports: s3://, gs://, az://, memory:// and others.

Credentials come from the usual places: environment variables, files, or the machine's role.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from image_encoders.bulk.sources.contents import Content
from image_encoders.bulk.sources.files import is_image_name
from image_encoders.bulk.sources.items import (
    Entry,
    Problem,
    RemoteImage,
    Uncountable,
    Walk,
    nothing_known,
    said_by_folders,
    state_with,
)
from image_encoders.errors import InputError, first_line
from image_encoders.inputs.files import check_bytes
from image_encoders.inputs.image import MAX_BYTES_HINT, ImageLimits
from image_encoders.records import Locator
from image_encoders.tables import id_of

# Lists and tables may come from others: no web addresses past the guard, no files of this machine, no chains of stores.
STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hdfs", "webhdfs", "hf", "memory"})
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> what installs it
STATES = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")
BLOCK = 1 << 22  # bytes asked for at a time where a file is read in order


def is_object(name: str) -> bool:
    """Whether a name is an address in one of the stores."""
    protocol, sign, _ = name.partition("://")
    return bool(sign) and protocol.lower() in STORES


@dataclass(frozen=True)
class ObjectFile:
    """A file in a store; a `Place`.

    info: what a listing says of it, where one did
    """

    path: str
    info: Mapping[str, Any] | None = None
    near = False

    @property
    def id(self) -> str:
        return id_of(self.path)

    @cached_property
    def known_info(self) -> Mapping[str, Any]:
        """What the store says of it, asked for once."""
        with _reaching():
            store, inner = _store(self.path)
            return self.info or store.info(inner)

    @cached_property
    def state(self) -> str:
        info = self.known_info
        if info.get("type") == "directory":
            raise InputError("a folder; only files are accepted", code="not-a-file")
        state = next((info[name] for name in STATES if info.get(name) is not None), None)
        state = state.timestamp() if isinstance(state, datetime) else state
        return "" if state is None else f"{info.get('size')} {state}"

    def open(self) -> Any:
        with _reaching():
            store, inner = _store(self.path)
            return store.open(inner, "rb", block_size=BLOCK)

    def read(self, offset: int, size: int) -> bytes:
        with _reaching():
            store, inner = _store(self.path)
            return store.cat_file(inner, start=offset, end=offset + size)

    def read_all(self, limits: ImageLimits) -> bytes:
        """All its bytes, if they are not too many."""
        check_bytes(self.known_info.get("size") or 0, limits.max_bytes, MAX_BYTES_HINT)
        with _reaching():
            store, inner = _store(self.path)
            content = store.cat_file(inner)
        check_bytes(len(content), limits.max_bytes, MAX_BYTES_HINT)
        return content


@dataclass(frozen=True)
class ObjectEntry:
    """An image in a store.

    name: its address
    info: what a listing says of it, where one did
    """

    name: str
    metadata: Mapping[str, Any] | None = None
    info: Mapping[str, Any] | None = None
    path: None = None
    polite = False

    @property
    def host(self) -> str:
        protocol, _, rest = self.name.partition("://")
        return f"{protocol}://{rest.partition('/')[0]}"

    def item(self, known: Callable[[str, str], bool] = nothing_known) -> RemoteImage:
        """What the store holds now, read unless it is known; takes its time."""
        place, id, locator = ObjectFile(self.name, self.info), id_of(self.name), Locator(self.name)
        state = ""
        try:
            state = state_with(place.state, self.metadata)
            content = None if known(id, state) else Content(place.read_all(ImageLimits.from_environment()))
        except InputError as error:
            return RemoteImage(id, locator, state, self.metadata, place.read_all, error=error)
        return RemoteImage(id, locator, state, self.metadata, place.read_all, content)


class ObjectFolder:
    """The images below an address, or those that match a pattern.

    named: what the address of a file that matches names
    """

    repeatable = False

    def __init__(self, address: str, walk: Walk, named: Callable[[str], Iterator[Entry]]):
        self.address, self.walk, self.named = address, walk, named

    def check(self) -> None:
        """Raise InputError where nothing is there."""
        with _reaching():
            store, inner = _store(self.address)
            if not (store.exists(inner) or (glob.has_magic(inner) and store.glob(inner))):
                raise InputError("no such file or folder in the store", code="not-found")

    def entries(self) -> Iterator[Entry]:
        """Its images, folder by folder."""
        if self.walk.counting:
            raise Uncountable
        try:
            with _reaching():
                store, inner = _store(self.address)
                if glob.has_magic(inner) and not store.exists(inner):
                    yield from self._matches(store, inner)
                elif store.isfile(inner):
                    yield from self.named(self.address)
                else:
                    yield from self._below(store, inner)
        except InputError as error:
            yield Problem(self.address, Locator(self.address), error)
        else:
            self.walk.complete(id_of(self.address))

    def _matches(self, store: Any, pattern: str) -> Iterator[Entry]:
        every = self.walk.settings.all_files or "." in pattern.rpartition("/")[2]
        for inner in sorted(store.glob(pattern)):
            if every or is_image_name(inner):
                yield from self.named(_address(store, inner, self.address))
            else:
                self.walk.ignore(inner.rpartition("/")[2])

    def _below(self, store: Any, inner: str) -> Iterator[Entry]:
        for _, folders, files in store.walk(inner, detail=True, on_error="raise"):
            for name in [name for name in folders if name.startswith(".")]:
                del folders[name]
            for name, info in sorted(files.items()):
                if not name and info["type"] == "directory":  # such as that of photos//a.jpg
                    address, error = f"{self.address.rstrip('/')}//", "a folder without a name, which is not searched"
                    yield Problem(address, Locator(address), InputError(error, code="unreadable"))
                if not name or name.startswith("."):
                    continue
                if self.walk.settings.all_files or is_image_name(name):
                    address = _address(store, info["name"], self.address)
                    below = address.removeprefix(self.address).rpartition("/")[0]
                    yield ObjectEntry(address, said_by_folders(below), info)
                else:
                    self.walk.ignore(name)


def _address(store: Any, inner: str, like: str) -> str:
    """The address of a file in a store, spelled with the protocol that was used to get there."""
    return f"{like.partition('://')[0]}://{store._strip_protocol(inner).lstrip('/')}"


def _of_protocol(protocol: str) -> Any:
    import fsspec

    try:
        # A listing that was kept would not show what has changed since.
        return fsspec.filesystem(protocol, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(protocol)
        advice = f"pip install 'image-encoders[{extra}]'" if extra else first_line(error)
        raise InputError(f"{protocol}:// needs another package: {advice}", code="url") from error


def _store(address: str) -> tuple[Any, str]:
    """The store of an address, and the address as the store has it."""
    protocol, _, rest = address.partition("://")
    store = _of_protocol(protocol.lower())
    return store, store._strip_protocol(f"{protocol.lower()}://{rest}")


@contextmanager
def _reaching() -> Iterator[None]:
    """What a store raises, of any kind, becomes an InputError."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError("no such file or folder in the store", code="not-found") from error
    except Exception as error:
        raise InputError(f"the store cannot be read: {first_line(error)}", code="unreadable") from error
