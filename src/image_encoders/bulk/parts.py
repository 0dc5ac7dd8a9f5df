"""Parts of a run: recorded pieces of work that any process with access to the folder can do.

    items ─cut→ PART.items ─a worker: encode→ PART.result ─the committer→ collection; both files are removed

A part's name is a digest of its content: the encoder's fingerprint, ids and states. Each file appears complete or not
at all, so the files left after a kill always show how far each part got.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from image_encoders.bulk.batch_size import BatchSizeTuner
from image_encoders.bulk.encode import Encoded, Failed, Outcome, encode, metadata_text
from image_encoders.bulk.plan import Plan
from image_encoders.bulk.sources import SourceItem
from image_encoders.bulk.sources.ahead import items_of
from image_encoders.bulk.sources.items import Settings
from image_encoders.bulk.sources.recorded import RecordedItem, entries
from image_encoders.cache import atomic_write
from image_encoders.collection import Collection
from image_encoders.encoder import Encoder
from image_encoders.errors import CollectionError, InputError
from image_encoders.exports import matrix
from image_encoders.records import Locator
from image_encoders.tables import FACTS, ImageFacts, schema_of, storage

if TYPE_CHECKING:
    import pyarrow as pa

LEAST, MOST = 256, 4096  # items of a part
SHARE = 16  # a part is that share of what came before it, within these: few workers wait at the end of a short run
ITEMS, RESULT = ".items", ".result"  # endings of a part's files
NAME = re.compile(r"\.?(?P<part>[0-9a-f]{32})(?P<ending>\.items|\.result)(?P<draft>\..+\.part)?")  # other files stay
OTHERS = ("metadata", "stage", "code", "message")  # columns of a result beside facts and embedding
NOTHING = ImageFacts(0, 0, "", 0)  # of an item that failed
WAIT_S = 0.05  # for the next part, before others are looked after
STOP_S = 5.0  # for the item being looked at, when a run is aborted


def folder_of(collection: Collection, shared: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a collection's parts: in the collection, or a subfolder of a shared one."""
    if shared is None:
        return collection.folder.absolute() / "parts"
    return Path(os.path.abspath(shared), hashlib.blake2b(_owner(collection).encode(), digest_size=8).hexdigest())


def _owner(collection: Collection) -> str:
    return f"{collection.fingerprint} {collection.mark.get('created')}"


class Parts:
    """The folder of a collection's parts; all workers see it at the same path.

    settings: the settings of the sources of new parts
    """

    def __init__(self, folder: str | os.PathLike[str], collection: Collection, settings: Settings | None = None):
        self.folder = Path(folder)
        self.owner = _owner(collection)
        self.settings = replace(settings or Settings(), stdin=None)  # which cannot be handed on

    def record(self, items: Sequence[SourceItem]) -> str:
        """Record a part; returns its name."""
        import pyarrow as pa

        digest = hashlib.blake2b(self.owner.encode(), digest_size=16)
        for item in items:
            digest.update(f"\0{item.id}\0{item.state}".encode())
        kept = {name: getattr(self.settings, name) for name in ("all_files", "private_urls", "every_s")}
        schema = _items_schema().with_metadata({"owner": self.owner, "settings": json.dumps(kept)})
        table = pa.Table.from_pylist([_recorded(item) for item in items], schema=schema)
        _write(self.folder / f"{digest.hexdigest()}{ITEMS}", table)
        return digest.hexdigest()

    def recorded(self) -> list[str]:
        """The recorded parts, with or without results. Files that belong to none are removed."""
        with storage(self.folder, "read"), suppress(FileNotFoundError):
            names = [found for name in os.listdir(self.folder) if (found := NAME.fullmatch(name))]
            parts = {name["part"] for name in names if name["ending"] == ITEMS and not name["draft"]}
            for name in names:
                # A part that was done once more after it was stored, and what a killed process was writing.
                if name["draft"] or name["part"] not in parts:
                    (self.folder / name[0]).unlink(missing_ok=True)
            return sorted(parts)
        return []

    def items(self, part: str) -> list[RecordedItem]:
        """What is in a part."""
        path = self.folder / f"{part}{ITEMS}"
        table = _read(path)
        if table.schema.metadata[b"owner"].decode() != self.owner:
            raise CollectionError(
                f"{self.folder} holds parts of a run into another collection; choose another folder, or delete it if "
                "that collection is gone"
            )
        settings = Settings(**json.loads(table.schema.metadata[b"settings"]))
        return [_item(row, settings) for row in table.to_pylist()]

    def write(self, part: str, outcomes: Sequence[Outcome], dim: int) -> None:
        """Store the outcomes of a part's items, in their order."""
        import pyarrow as pa

        embeddings = np.zeros((len(outcomes), dim), np.float32)
        embedded = np.zeros(len(outcomes), bool)
        rows: list[dict[str, Any]] = []
        for number, one in enumerate(outcomes):
            if isinstance(one, Failed):
                rows.append({**asdict(NOTHING), "stage": one.stage, "code": one.code, "message": one.message})
                continue
            rows.append({name: getattr(one.facts, name) for name in FACTS} | {"metadata": metadata_text(one.item)})
            if one.embedding is not None:
                embeddings[number], embedded[number] = one.embedding, True
        texts = [pa.field(name, pa.utf8()) for name in OTHERS]
        table = pa.Table.from_pylist(rows, schema=pa.schema([*schema_of(ImageFacts), *texts]))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), dim)
        _write(
            self.folder / f"{part}{RESULT}",
            table.append_column("embedding", vectors).append_column("embedded", pa.array(embedded)),
        )

    def has_result(self, part: str) -> bool:
        """Whether a part is done."""
        return (self.folder / f"{part}{RESULT}").exists()

    def outcomes(self, part: str) -> list[Outcome]:
        """What became of a part's items."""
        items, path = self.items(part), self.folder / f"{part}{RESULT}"
        table = _read(path)
        if table.num_rows != len(items):
            raise CollectionError(f"{path} holds {table.num_rows:,} results for {len(items):,} items; delete it")
        embeddings, embedded = matrix(table), table["embedded"].to_pylist()
        outcomes: list[Outcome] = []
        for number, row in enumerate(table.select([*FACTS, *OTHERS]).to_pylist()):
            metadata, stage, code, message = (row.pop(name) for name in OTHERS)
            if stage is not None:
                outcomes.append(Failed(items[number], stage, code, message, part))
            else:
                item = replace(items[number], metadata=json.loads(metadata))
                vector = embeddings[number] if embedded[number] else None
                outcomes.append(Encoded(item, ImageFacts(**row), vector, part))
        return outcomes

    def remove(self, part: str) -> None:
        """Remove a part after all of it is stored."""
        for ending in (ITEMS, RESULT):  # in this order: a result alone belongs to nothing
            with storage(self.folder, "written"):
                (self.folder / f"{part}{ending}").unlink(missing_ok=True)


class Worker:
    """Does parts, one after the other, with one encoder.

    tuner: finds the batch size, across all parts
    workers: threads that read and preprocess; None: one for each processor
    """

    def __init__(self, parts: Parts, encoder: Encoder, tuner: BatchSizeTuner, workers: int | None = None):
        self.parts, self.encoder, self.tuner, self.workers = parts, encoder, tuner, workers

    def encode(self, part: str, done: Callable[[list[Outcome]], None] = lambda outcomes: None) -> None:
        """Encode a part and store its outcomes; `done` is called with outcomes on the way."""
        found: dict[str, Outcome] = {}
        items = self.parts.items(part)
        for outcomes in encode(items_of(entries(items)), self.encoder, batch_size=self.tuner, workers=self.workers):
            found.update((one.item.id, one) for one in outcomes)
            done(outcomes)
        self.parts.write(part, [found[item.id] for item in items], self.encoder.dim)

    def finished(self, parts: Iterable[str | None]) -> Generator[str | None, None, None]:
        """As a `Pool`."""
        for part in parts:
            if part is not None:
                self.encode(part)
            yield part


class Pool(Protocol):
    """Workers that do parts."""

    def finished(self, parts: Iterable[str | None]) -> Generator[str | None, None, None]:
        """The parts as they are done, in any order; None from time to time, so the caller can do other work. Closing it
        stops the workers.

        parts: gives None if there is nothing to do at the moment
        """
        ...


class Listing(Iterator["str | None"]):
    """Items split into parts, each recorded on a separate thread before it is returned; None while none is ready."""

    def __init__(self, items: Iterable[SourceItem], parts: Parts, plan: Plan):
        self._items, self._parts, self._plan = items, parts, plan
        self._ready: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._list, name="list", daemon=True)

    def __next__(self) -> str | None:
        if self._thread.ident is None:
            self._thread.start()
        try:
            one = self._ready.get(timeout=WAIT_S)
        except queue.Empty:
            return None
        if one is None:
            raise StopIteration
        if isinstance(one, BaseException):
            raise one
        return one

    def close(self) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)  # an address may be slow to answer

    def _list(self) -> None:
        try:
            for items in cut(self._until_stopped()):
                self._ready.put(self._parts.record(items))
                self._plan.recorded(items)
        except BaseException as error:  # is raised where somebody takes it
            self._ready.put(error)
        else:
            self._ready.put(None)

    def _until_stopped(self) -> Iterator[SourceItem]:
        for item in self._items:
            if self._stopped.is_set():
                return
            yield item


def cut(items: Iterable[SourceItem]) -> Iterator[list[SourceItem]]:
    """Items as parts: small ones first, so that all workers soon have some, and large ones where there are many."""
    part: list[SourceItem] = []
    before = 0
    for item in items:
        part.append(item)
        if len(part) >= min(MOST, max(LEAST, before // SHARE)):
            yield part
            before += len(part)
            part = []
    if part:
        yield part


# ------------------------------------------------------------------ items


def _recorded(item: SourceItem) -> dict[str, Any]:
    """What is written down of an item; what an archive or a table says about it is read with its bytes."""
    error, metadata, place = item.error, "null", item.locator
    if place.member is None:
        try:
            metadata = metadata_text(item)
        except InputError as problem:  # which a run finds first, too
            error = problem
    return {
        "id": item.id,
        **place.columns(),
        "state": item.state,
        "metadata": metadata,
        "code": error and error.code,
        "message": error and error.message,
    }


def _item(row: dict[str, Any], settings: Settings) -> RecordedItem:
    error = None if row["code"] is None else InputError(row["message"], code=row["code"])
    return RecordedItem(row["id"], Locator.of(row), row["state"], json.loads(row["metadata"]), error, settings)


# ------------------------------------------------------------------ files


def _items_schema() -> pa.Schema:
    import pyarrow as pa

    texts = ("id", "path", "member", "state", "metadata", "code", "message")
    return pa.schema([*((name, pa.utf8()) for name in texts), ("time_s", pa.float64())])


def _write(path: Path, table: pa.Table) -> None:
    """Write a table to a file that appears complete, and is on disk when this returns."""
    import pyarrow as pa

    with storage(path.parent, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft, pa.OSFile(str(draft), "wb") as file:
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with pa.ipc.new_file(file, table.schema, options=options) as writer:
                writer.write_table(table)


def _read(path: Path) -> pa.Table:
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as file:
            return pa.ipc.open_file(file).read_all()
    except pa.ArrowInvalid as error:
        raise CollectionError(f"{path} is damaged; delete it, and run the same command again") from error
    except OSError as error:
        raise CollectionError(f"{path} cannot be read: {error.strerror or error}") from error
