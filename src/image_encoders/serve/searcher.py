"""Searching a served collection: queries to directions, directions to rankings, keys to thumbnails.

Slow work runs on a few threads, and a bounded number of requests waits for them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import struct
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from image_encoders.api.items import Item
from image_encoders.api.responses import RequestError
from image_encoders.bulk.sources import read_locator
from image_encoders.bulk.sources.urls import is_url
from image_encoders.collection import FAILURES
from image_encoders.contact_sheet import thumbnail
from image_encoders.encoder import cores
from image_encoders.errors import CollectionError, InputError, Overloaded
from image_encoders.gallery import Gallery, Group, Ranking, Sort
from image_encoders.inputs.limits import ImageLimits
from image_encoders.tables import Where

if TYPE_CHECKING:
    from image_encoders.collection import Collection, Failure
    from image_encoders.records import Locator
    from image_encoders.serve.service import Service

Result = TypeVar("Result")

WAITING_SEARCHES, WAITING_THUMBNAILS = 64, 512  # before requests are refused
REMEMBERED = 256  # directions of the latest texts, so that a search's next page embeds nothing
GONE = ("not-found", "not-a-file", "unreadable", "changed")  # why a file's bytes cannot be had any more
TOKEN = struct.Struct("<8s")  # of an embedding: the beginning of its space's fingerprint, then float16 numbers


ANYWHERE = Where()


@dataclass(frozen=True)
class Term:
    """One of the queries that a search adds up.

    kind: "text", "image" and "audio" are embedded; "key" is a stored image; "vector" a token, or numbers
    weight: negative: subtracted
    param: its name in the request
    """

    kind: Literal["text", "image", "audio", "key", "vector"]
    value: Any
    weight: float = 1.0
    param: str = "q"


@dataclass(frozen=True)
class Wanted:
    """A parsed search.

    folder: a name that hits have; None: all
    where: the other filters
    """

    terms: Sequence[Term] = ()
    folder: str | None = None
    where: Where = ANYWHERE
    sort: Sort = "score"
    group: Group | None = None
    each_copy: bool = False


class Threads:
    """A few threads, and a bounded queue.

    most: how many may wait
    """

    def __init__(self, name: str, count: int, most: int):
        self.most, self.waiting = most, 0
        self._turns = asyncio.Semaphore(count)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(
        self, function: Callable[..., Result], *arguments: Any, gone: Callable[[], Any] | None = None
    ) -> Result:
        """`function` on a thread, when it is its turn.

        gone: called before it runs: whether the client has disconnected

        Raises Overloaded, and CancelledError if the client has disconnected.
        """
        if self.waiting >= self.most:
            raise Overloaded(limit=self.most, waiting=self.waiting, retry_s=1.0)
        self.waiting += 1
        try:
            async with self._turns:
                if gone is not None and await gone():
                    raise asyncio.CancelledError
                return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        finally:
            self.waiting -= 1

    def begin(self, function: Callable[[], Any]) -> None:
        """Run `function` on a thread without waiting for it."""
        self._pool.submit(function)


class Searcher:
    """The collection of a service, as its routes search it."""

    def __init__(self, service: Service):
        self._service = service
        self._searches = Threads("search", 2, WAITING_SEARCHES)
        self._thumbnails = Threads("thumbnail", cores(), WAITING_THUMBNAILS)
        self._gallery: Gallery | None = None
        self._texts: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        if service.collection is not None:
            self._searches.begin(self.gallery.view)  # so that the first search finds it in memory

    @property
    def collection(self) -> Collection:
        """What is searched; RequestError (404) where this service has none."""
        if self._service.collection is None and self._service.run is not None:
            raise RequestError(404, "nothing has been embedded yet: the model is being loaded", code="no_collection")
        if self._service.collection is None:
            raise RequestError(
                404, "this service has no collection to search; start it with --collection", code="no_collection"
            )
        return self._service.collection

    @property
    def gallery(self) -> Gallery:
        """The collection in memory."""
        if self._gallery is None or self._gallery.collection is not self.collection:
            self._gallery = Gallery(self.collection)
        return self._gallery

    @property
    def limits(self) -> ImageLimits:
        settings = self._service.settings
        return ImageLimits(max_bytes=settings.max_file_bytes, max_pixels=settings.max_pixels)

    @property
    def waiting(self) -> int:
        """Requests that wait for a thread, or are at work on one."""
        return self._searches.waiting + self._thumbnails.waiting

    # ------------------------------------------------------------------ searching

    async def direction(self, terms: Sequence[Term]) -> np.ndarray | None:
        """What is searched for, (dim,) float32 at unit length; None without terms; RequestError for a bad one."""
        if not terms:
            return None
        directions = await asyncio.gather(*map(self._direction, terms))  # which may share a batch
        try:
            return self.collection.mix(directions, [term.weight for term in terms])
        except InputError as error:
            raise RequestError(422, error.message, code=error.code, param=terms[0].param) from error

    async def _direction(self, term: Term) -> np.ndarray:
        try:
            if term.kind == "key":
                return await self._searches.run(self._stored, term.value)
            if term.kind == "vector":
                vector = self.vector(term.value) if isinstance(term.value, str) else np.array(term.value, np.float64)
                return self.collection.direction(vector)
            return await self._embedded(term)
        except InputError as error:
            raise RequestError(422, error.message, code=error.code, param=term.param) from error
        except CollectionError as error:  # numbers of another length
            raise RequestError(
                422,
                f"a vector of {np.size(term.value)} numbers; embeddings of {self.collection.name} have "
                f"{self.collection.dim}",
                code="dimensions",
                param=term.param,
            ) from error

    async def _embedded(self, term: Term) -> np.ndarray:
        asked = (self.collection.fingerprint, term.value) if term.kind == "text" else None
        if asked is not None and (known := self._texts.get(asked)) is not None:
            self._texts.move_to_end(asked)
            return known
        item = Item(term.kind, term.value) if isinstance(term.value, (str, bytes)) else term.value
        direction = self.collection.direction(await self.embed(item))
        if asked is not None:
            self._texts[asked] = direction
            while len(self._texts) > REMEMBERED:
                self._texts.popitem(last=False)
        return direction

    async def embed(self, item: Item) -> np.ndarray:
        """The embedding of an item in the collection's space; raises InputError."""
        (outcome,) = await self._service.embed(self._service.collection_model or self._service.model(), [item])
        if isinstance(outcome, InputError):
            raise outcome
        return outcome.embedding

    def _stored(self, key: str) -> np.ndarray:
        view = self.gallery.view()
        found = view.find(key)
        if not found:
            raise InputError("no image of the collection has this key; it may have been removed", code="unknown-key")
        return view.direction(found[0])

    async def rank(
        self, direction: np.ndarray | None, wanted: Wanted, read: Callable[[Ranking], Result]
    ) -> tuple[Result, float]:
        """What `read` makes, on the same thread, of all that is found, and how long the search took [s]."""
        gallery = self.gallery

        def search() -> tuple[Result, float]:
            began = time.perf_counter()
            ranking = self._rank(gallery, direction, wanted)
            seconds = time.perf_counter() - began
            return read(ranking), seconds

        return await self._searches.run(search)

    @staticmethod
    def _rank(gallery: Gallery, direction: np.ndarray | None, wanted: Wanted) -> Ranking:
        where = wanted.where
        if wanted.folder is not None:
            where = replace(where, folders=gallery.view().folders(wanted.folder))
        return gallery.rank(direction, where=where, sort=wanted.sort, group=wanted.group, each_copy=wanted.each_copy)

    # ------------------------------------------------------------------ tokens

    def token(self, embedding: np.ndarray) -> str:
        """An embedding as text for a URL: nothing is stored here."""
        direction = self.collection.direction(embedding)
        content = TOKEN.pack(self._space) + direction.astype("<f2").tobytes()
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    def vector(self, token: str) -> np.ndarray:
        """The embedding that `token` made text of; InputError for another text, or one of another model."""
        try:
            content = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        except (binascii.Error, UnicodeEncodeError) as error:
            raise InputError("not a token from /v1/queries", code="token") from error
        if not content.startswith(self._space):
            raise InputError("a token of another model, or not from /v1/queries; upload the file again", code="token")
        if len(content) != TOKEN.size + 2 * self.collection.dim:
            raise InputError("a truncated token", code="token")
        return np.frombuffer(content, "<f2", offset=TOKEN.size).astype(np.float32)

    @property
    def _space(self) -> bytes:
        return hashlib.sha256(self.collection.fingerprint.encode()).digest()[: TOKEN.size]

    # ------------------------------------------------------------------ thumbnails

    async def thumbnail(self, key: str, side: int, gone: Callable[[], Awaitable[bool]]) -> bytes:
        """A small JPEG of a stored image; RequestError (404, 410, 422) where there is none."""
        return await self._thumbnails.run(self._thumbnail, self.gallery, key, side, gone=gone)

    async def preview(self, content: bytes, side: int) -> bytes:
        """A small JPEG of an image that a client sent; raises InputError."""
        return await self._thumbnails.run(lambda: thumbnail(content, side=side, limits=self.limits))

    def _read(self, locator: Locator) -> bytes:
        """The bytes of a stored image, which may be others by now."""
        if is_url(locator.path) and not self._service.settings.urls:
            raise InputError("it is on the web, and this service does not fetch URLs", code="url")
        return read_locator(locator, self.limits)

    def _thumbnail(self, gallery: Gallery, key: str, side: int) -> bytes:
        view = gallery.view()
        images = [view.image(position) for position in view.find(key)]
        if not images:
            raise RequestError(404, "no image of the collection has this key", code="unknown_key")
        for one in images:
            try:
                content = self._read(one.locator)
            except InputError as error:
                if error.code in GONE:
                    continue
                status = 404 if error.code == "url" else 422
                raise RequestError(status, f"no thumbnail: {error.message}", code=error.code) from error
            if hashlib.sha256(content).hexdigest() == key:
                try:
                    return thumbnail(content, side=side, limits=self.limits)
                except InputError as error:
                    raise RequestError(422, f"no thumbnail: {error.message}", code=error.code) from error
        raise RequestError(410, "the image's file is gone, or has changed since it was embedded", code="gone")

    # ------------------------------------------------------------------ what there is

    async def failures(self) -> list[Failure]:
        """The files that could not be embedded."""
        return await self._searches.run(self.collection.failures)

    async def counts(self) -> tuple[int, int]:
        """How many images there are, and how many files failed."""
        collection = self.collection
        return await self._searches.run(
            lambda: (collection.count(), collection.read(FAILURES, lambda table: table.count_rows(), 0))
        )

    @property
    def name(self) -> str:
        """The collection's display name."""
        return self._service.title or Path(self.collection.folder).absolute().name
