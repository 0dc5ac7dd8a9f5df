"""Stored embeddings: a folder with a LanceDB database and a description of the encoder.

    collection.json   the encoder: name, fingerprint, dim, what `load` was called with
    canaries.npy      its embeddings of a few fixed images
    index.json        the recall of the index, measured when it was built
    items.lance       one row for each image
    failures.lance    one row for each image that could not be encoded
    failures.txt      the same, as readable text
    runs.lance        one row for each run
    .lease.N          who writes, or wrote last: see lease.py
    .upkeep           seconds that were too few for the upkeep of the tables
    parts/            parts of a run that are not stored yet: see bulk/parts.py

Every change is one atomic step of the database: a process that is killed leaves the rows before it or after it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from image_encoders import __version__, exports, tables, upkeep
from image_encoders.cache import atomic_write, file_lock
from image_encoders.canaries import drift, embed_canaries
from image_encoders.child import ChildDied, ChildTooSlow
from image_encoders.errors import CollectionError, InputError, MissingExtra
from image_encoders.lease import Lease
from image_encoders.records import Failure, Hit, Row, RunRecord, Stored
from image_encoders.tables import ImageFacts, Where, id_of, path_of, storage

if TYPE_CHECKING:
    import pyarrow as pa
    from filelock import FileLock

    from image_encoders.encoder import Encoder

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

FORMAT = 3  # of the folder; another one is refused
MARK = "collection.json"  # makes a folder a collection
ITEMS, FAILURES, RUNS = "items", "failures", "runs"
CANARIES = "canaries.npy"
INDEX = "index.json"  # what was measured of the index when it was built
LOCK = ".lock"
GIVEN_UP = ".upkeep"  # seconds that were too few for the upkeep of the tables
DRIFT = 0.05  # 1 - cosine: more is another space, whatever the fingerprint says
LOADED = ("weights", "device", "precision", "engine", "calibration")  # of a recipe, beside the family's own options
CANCELLED = 1e-4  # of the weights' sum: what is left of a mix below this is rounding
CHUNK = 1 << 24  # bytes of rows held at a time


class Collection:
    """Rows of one embedding space.

    name, fingerprint, dim, modalities, precision: the encoder's
    recipe: what `load` was called with, enough to load the encoder again
    """

    def __init__(self, folder: Path, mark: dict[str, Any]):
        """Use `open`, `create` or `open_or_create`."""
        self.folder = folder
        self.mark = mark
        self._whole: set[str] = set()  # tables of which it is known that no column is missing
        self._lease: Lease | None = None  # of a run that goes on
        self._running = threading.Lock()  # held by a run
        self._entering = threading.Lock()  # held while the threads that are writing are counted
        encoder = mark["encoder"]
        self.name: str = encoder["name"]
        self.fingerprint: str = encoder["fingerprint"]
        self.dim: int = encoder["dim"]
        self.modalities: tuple[str, ...] = tuple(encoder["modalities"])
        self.precision: str = encoder["precision"]
        self.recipe: dict[str, Any] = encoder["recipe"]

    def __repr__(self) -> str:
        return f"<Collection {self.folder}: rows of {self.dim} by {self.name}>"

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Collection:
        """The collection in `folder`; CollectionError where there is none or it cannot be read."""
        folder = Path(folder)
        try:
            mark = json.loads((folder / MARK).read_text("utf-8"))
            if mark["format"] != FORMAT:
                advice = "upgrade image-encoders" if mark["format"] > FORMAT else "encode again into another folder"
                raise CollectionError(
                    f"{folder} was written by image-encoders {mark.get('package')} in format {mark['format']}; "
                    f"this version reads and writes format {FORMAT}: {advice}"
                )
            return cls(folder, mark)
        except (FileNotFoundError, NotADirectoryError) as error:
            found = f"a folder without {MARK}" if folder.is_dir() else "a file" if folder.exists() else "no such folder"
            raise CollectionError(
                f"{folder}: {found}; a collection is a folder that `image-encoders encode -o` made"
            ) from error
        except OSError as error:
            raise CollectionError(f"{folder / MARK} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CollectionError(
                f"{folder / MARK} is damaged ({error}); restore it, or encode again into another folder"
            ) from error

    @classmethod
    def create(cls, folder: str | os.PathLike[str], encoder: Encoder) -> Collection:
        """A new collection for the encoder's rows; CollectionError unless `folder` is missing or empty."""
        folder = Path(folder)
        mark = {
            "format": FORMAT,
            "package": __version__,
            "created": now(),
            "encoder": {
                "name": encoder.name,
                "fingerprint": encoder.fingerprint,
                "dim": encoder.dim,
                "modalities": list(encoder.modalities),
                "precision": encoder.precision,
                "engine": encoder.engine,
                "device": encoder.device,
                "recipe": encoder.recipe,
            },
        }
        if folder.exists() and not folder.is_dir():
            raise CollectionError(f"{folder} is a file; a collection is a folder")
        with storage(folder, "made"):
            folder.mkdir(parents=True, exist_ok=True)
            _check_vacant(folder)  # before a lock is left in somebody's folder, and again once it is held
        text = json.dumps(mark, indent=2, default=str) + "\n"
        collection = cls(folder, json.loads(text))
        with collection.locked(), storage(folder, "made"):
            _check_vacant(folder)
            with atomic_write(folder / MARK) as part:
                part.write_text(text, "utf-8")
            with collection.writing():
                embeddings = embed_canaries(encoder)
                if embeddings is not None:
                    with atomic_write(folder / CANARIES) as part, part.open("wb") as file:
                        np.save(file, embeddings)
        return collection

    @classmethod
    def open_or_create(cls, folder: str | os.PathLike[str], encoder: Encoder) -> Collection:
        """The collection in `folder`, made if need be; CollectionError where it is of another embedding space."""
        if not (Path(folder) / MARK).exists():
            try:
                return cls.create(folder, encoder)
            except CollectionError:
                if not (Path(folder) / MARK).exists():  # else another process has made it meanwhile
                    raise
        collection = cls.open(folder)
        collection.check(encoder)
        return collection

    def check(self, encoder: Encoder) -> None:
        """Raise CollectionError unless the encoder's rows may be stored here."""
        if encoder.fingerprint == self.fingerprint and encoder.dim == self.dim:
            return
        same = ": the same model, but other weights, options or precision" if encoder.name == self.name else ""
        raise CollectionError(
            f"{self.folder} holds embeddings of {self.name} (fingerprint {self.fingerprint}, {self.precision}), and "
            f"those of {encoder.name} (fingerprint {encoder.fingerprint}, {encoder.precision}) cannot be compared with "
            f"them{same}; choose another collection, or use the model, options and precision of this one"
        )

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder that the collection was created with, loaded on first use."""
        return self.load_encoder()

    def check_canaries(self, encoder: Encoder) -> None:
        """Raise CollectionError where the encoder, on this machine, gives other embeddings than those that are stored.

        Nothing is computed if the engine, the device and this package's version are those that created the collection.
        """
        begun = self.mark["encoder"]
        if (self.mark["package"], begun["engine"], begun["device"]) == (__version__, encoder.engine, encoder.device):
            return
        found = self.drift(encoder)
        if found is not None and found > DRIFT:
            raise CollectionError(
                f"{self.folder} was created with {self.name} by {begun['engine']} on {begun['device']}, and by "
                f"{encoder.engine} on {encoder.device} the same model gives different embeddings (1 - cosine "
                f"{found:.2g} for the same image); encode where the collection was created, or into another folder"
            )

    def load_encoder(self, **wishes: Any) -> Encoder:
        """The encoder that the collection was created with.

        wishes: what to pass to `load` in place of what was passed then, such as weights= or device=

        Raises CollectionError where its embeddings cannot be compared with those that are stored.
        """
        from image_encoders.models import load

        match self.recipe:
            case {"name": str(name), "options": dict(options)}:
                passed = {key: self.recipe[key] for key in LOADED if self.recipe.get(key) is not None}
            case _:
                raise CollectionError(
                    f"{self.folder} does not say how its encoder was loaded (the recipe in {MARK}); restore that file "
                    "from a copy, or encode again into another folder"
                )
        passed = {**options, **passed, **wishes}
        encoder = load(name, **passed)
        if passed.get("precision", "auto") == "auto" and encoder.precision != self.precision:
            encoder = load(name, **{**passed, "precision": self.precision})  # "auto" was chosen on another machine
        self.check(encoder)
        return encoder

    def drift(self, encoder: Encoder) -> float | None:
        """How far the encoder's embeddings of the canaries are from those of the encoder that created the collection:
        1 - the least cosine; None if unknown.
        """
        try:
            begun = np.load(self.folder / CANARIES, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # none, or a damaged file
            return None
        now = embed_canaries(encoder)
        return None if now is None or now.shape != begun.shape else drift(now, begun)

    # ------------------------------------------------------------------ reading

    def __len__(self) -> int:
        return self.count()

    def count(self) -> int:
        """How many rows there are."""
        return self.read(ITEMS, lambda table: table.count_rows(), 0)

    def search(
        self,
        vector: np.ndarray | None = None,
        k: int = 10,
        *,
        words: str | None = None,
        image: Any = None,
        audio: Any = None,
        each_copy: bool = False,
        where: Where | None = None,
    ) -> list[Hit]:
        """The k images nearest to a query by cosine, best first, equal ones by id.

        vector: (dim,), finite, not all zero; its length does not matter
        words, image, audio: instead of a vector, a query for the collection's model to embed; an image or a sound as
            `encode_image` and `encode_audio` take it. The model is loaded at the first such query.
        each_copy: files with the same bytes are separate hits, not one hit with its copies
        where: a filter
        returns: at most k; a row that is all zero has no direction and is never found

        Exact below 100,000 rows. Above that, the index is used; rows that are not in it yet are compared too.
        Raises InputError for a vector without a direction, CollectionError for one of another length.
        """
        if sum(query is not None for query in (vector, words, image, audio)) != 1:
            raise InputError("give one query: a vector, words, image or audio", code="query")
        if isinstance(vector, str):
            raise InputError("pass a text query as words=, and a file's path as image= or audio=", code="query")
        if words is not None:
            vector = self.encoder.encode_text([words])[0]
        elif image is not None:
            vector = self.encoder.encode_image([image])[0]
        elif audio is not None:
            vector = self.encoder.encode_audio([audio])[0]
        query = self.direction(vector)
        if k < 1:
            raise InputError(f"k is {k}; it must be 1 or more", code="k")
        condition = None if where is None else where.condition()
        found: list[list[dict]] = self.read(
            ITEMS, lambda table: tables.nearest(table, query, k, each_copy, condition), []
        )
        return [Hit.of(row, tuple(copy["id"] for copy in copies)) for row, *copies in found]

    def direction(self, vector: Any) -> np.ndarray:
        """A query's vector at unit length, (dim,) float32.

        Raises InputError for a vector without a direction, CollectionError for one of another length.
        """
        query = np.asarray(vector, np.float64)
        if query.shape != (self.dim,):
            raise CollectionError(f"a query of shape {query.shape}; {self.folder} holds rows of shape ({self.dim},)")
        if not np.isfinite(query).all() or not query.any():
            what = "all zeros" if np.isfinite(query).all() else "not finite"
            raise InputError(f"the query's vector is {what}, so it has no nearest neighbours", code="no-direction")
        query = query / np.abs(query).max()  # squares of huge numbers would not be finite
        return (query / np.linalg.norm(query)).astype(np.float32)

    def mix(self, vectors: Sequence[Any], weights: Sequence[float]) -> np.ndarray:
        """One query from several, (dim,) float32: the sum of their directions times their weights, at unit length.

        weights: one for each; negative ones are subtracted

        Raises InputError if they cancel out, CollectionError for a vector of another length.
        """
        directions = [weight * self.direction(vector) for vector, weight in zip(vectors, weights, strict=True)]
        mixed = np.sum(directions, axis=0, dtype=np.float64) if directions else np.zeros(self.dim)
        if np.linalg.norm(mixed) <= CANCELLED * sum(map(abs, weights)):
            raise InputError(
                "the queries cancel each other out, so they have no nearest neighbours", code="no-direction"
            )
        return self.direction(mixed)

    def info(self) -> dict[str, Any]:
        """The collection's facts as plain values: model, number of images, size, dates."""
        sizes, times = [], []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):  # merged away meanwhile
                    found = os.stat(os.path.join(folder, name))
                    sizes.append(found.st_size)
                    times.append(found.st_mtime)
        rows, indexed = self.read(ITEMS, lambda table: (table.count_rows(), tables.indexed(table)), (0, 0))
        return {
            "path": str(self.folder.absolute()),
            "model": self.name,
            "dim": self.dim,
            "modalities": list(self.modalities),
            "precision": self.precision,
            "fingerprint": self.fingerprint,
            "recipe": self.recipe,
            "images": rows,
            "failures": self.read(FAILURES, lambda table: table.count_rows(), 0),
            "indexed": indexed,
            "recall": self._recall() if indexed else None,
            "bytes": sum(sizes),
            "sources": sorted({source for run in self.runs() for source in run.sources}),
            "created": self.mark.get("created"),
            "changed": datetime.fromtimestamp(max(times), timezone.utc).isoformat(timespec="seconds"),
            "package": self.mark.get("package"),
            "format": self.mark["format"],
        }

    def _recall(self) -> float | None:
        """recall@10 of the index when it was built; None where that is not known."""
        try:
            return float(json.loads((self.folder / INDEX).read_text("utf-8"))["recall"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def failures(self) -> list[Failure]:
        """The files that could not be encoded, ordered by id."""
        rows: list[dict] = self.read(FAILURES, lambda table: table.search().to_arrow().to_pylist(), [])
        failures = (Failure(**{**row, "path": path_of(row["path"])}) for row in rows)
        return sorted(failures, key=lambda failure: failure.id)

    def scan(self, table: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of a table, ITEMS or FAILURES, in batches, as they are now."""
        with storage(self.folder, "read"):
            opened = self._open(table)
            if opened is not None:
                opened.checkout(opened.version)
                yield from opened.search().select(list(columns)).to_batches(1 << 14)

    def stored(self, digests: Iterable[str]) -> dict[str, Stored]:
        """What is stored for the bytes with these sha256 digests, as far as they are known."""
        places: dict[str, list[tuple[int, str]]] = {}  # row numbers and ids by digest
        with storage(self.folder, "read"):
            table = self._open(ITEMS)
            for some in tables.chunks(sorted(set(digests))) if table is not None else ():
                query = table.search().where(tables.among("sha256", some)).select(["sha256", "id"]).with_row_id(True)
                for row in query.to_arrow().to_pylist():
                    places.setdefault(row["sha256"], []).append((row["_rowid"], row["id"]))
            if not places:
                return {}
            # One row for each digest: an image that is there a thousand times is read once.
            numbers = [min(found)[0] for found in places.values()]
            rows = table.take_row_ids(numbers).select(["embedding", *tables.FACTS]).to_arrow()
        known = (ImageFacts(**facts) for facts in rows.select(tables.FACTS).to_pylist())
        return {
            facts.sha256: Stored(embedding, facts, frozenset(id for _, id in places[facts.sha256]))
            for embedding, facts in zip(exports.matrix(rows), known)
        }

    def runs(self) -> list[RunRecord]:
        """The runs into this collection, oldest first."""
        rows: list[dict] = self.read(RUNS, lambda table: table.search().to_arrow().to_pylist(), [])
        return sorted((RunRecord(**row) for row in rows), key=lambda run: run.began)

    def export(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> int:
        """All rows in one file, ordered by id; it appears complete or not at all.

        path: ending in .parquet, .arrow or .feather: all columns, the encoder in the file's metadata; in .csv: all
            columns, each number of an embedding in one of its own; in .npy: float32 (N, dim), with the other columns
            beside it in <name>.ids.jsonl, line i for row i
        overwrite: replace an existing file
        returns: how many rows

        Raises CollectionError for another extension, an existing file, or one that cannot be written.
        """
        path = Path(path)
        exports.check(path, overwrite)

        def write(table: Any) -> int:
            count = table.count_rows() if table is not None else 0
            with storage(path, "written"):
                exports.write(path, self._by_id(table), tables.items_schema(self.dim, self._metadata()), count)
            return count

        written = self.read(ITEMS, lambda table: write(tables.pinned(table)), None)
        return write(None) if written is None else written  # a run that was killed at once leaves no table

    def to_arrow(self) -> pa.Table:
        """All rows as a table of PyArrow, ordered by id."""
        import pyarrow as pa

        def read(table: Any) -> pa.Table:
            return pa.concat_tables([empty, *(rows.cast(schema) for rows in self._by_id(tables.pinned(table)))])

        schema = tables.items_schema(self.dim, self._metadata())
        empty = schema.empty_table()
        return self.read(ITEMS, read, empty)

    def to_pandas(self) -> Any:
        """All rows as a pandas DataFrame, ordered by id; each embedding is an array in the column `embedding`."""
        try:
            import pandas  # noqa: F401
        except ImportError as error:
            raise MissingExtra("pandas", "pandas", "to_pandas") from error
        return self.to_arrow().to_pandas()

    def _by_id(self, table: Any | None) -> Iterator[pa.Table]:
        """All rows ordered by id; what goes wrong here is not the fault of where they are written to."""
        schema = tables.items_schema(self.dim)
        if table is not None:
            with storage(self.folder, "read"):
                for rows in tables.by_id(table, max(1, CHUNK // (4 * self.dim))):
                    yield rows.select(schema.names).cast(schema)

    # ------------------------------------------------------------------ writing

    @contextmanager
    def running(self) -> Iterator[None]:
        """`writing` for a run, which compares its sources with the rows that are there when it begins.

        It holds a lease besides the lock: whatever it writes raises CollectionError once a run on another machine has
        taken over.

        Raises CollectionError where another run of this process, or another process, is writing.
        """
        if not self._running.acquire(blocking=False):
            raise CollectionError(
                f"{self.folder} is being written by another run of this process; wait until it has ended"
            )
        try:
            with self.writing():
                lease = Lease(self.folder)
                with storage(self.folder, "written"):
                    lease.take()
                self._lease = lease
                try:
                    yield
                finally:
                    self._lease = None
                    lease.give_back()
        finally:
            self._running.release()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Exclusive access for this process while the block runs; may be nested.

        Raises CollectionError where another process is writing.
        """
        with self.locked():
            with storage(self.folder, "written"):
                if self._lease is not None:
                    self._lease.check()
                self._tables  # noqa: B018  made here where they are missing
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder's lock, for any number of this process's threads while their blocks run.

        The database is not opened. The operating system takes the lock back from a process that is killed.

        Raises CollectionError where another process is writing.
        """
        from filelock import Timeout

        tables.check_usable(self.folder)  # first: another thread may have held these locks at the fork
        with storage(self.folder, "written"), self._entering:
            try:
                self._lock.acquire()
            except Timeout:
                raise CollectionError(
                    f"{self.folder} is being written by another process; wait until it has ended"
                ) from None
        try:
            yield
        finally:
            with self._entering:
                self._lock.release()

    def append(self, rows: Sequence[Row], *, new: bool = False) -> None:
        """Add rows, replacing those of the same ids, in one atomic step.

        new: the caller knows that none of the ids exists, which saves a look-up
        """
        if not rows:
            return
        import pyarrow as pa

        embeddings = np.stack([row.embedding for row in rows]).astype(np.float32, copy=False)
        if embeddings.shape[1:] != (self.dim,) or not np.isfinite(embeddings).all():
            raise CollectionError(f"rows must be {self.dim} finite numbers to be stored in {self.folder}")
        if len({row.id for row in rows}) != len(rows):
            raise CollectionError("two of the rows to be stored have the same id")
        flat = pa.array(embeddings.ravel(), pa.float32())
        schema = tables.stored_schema(self.dim)
        columns: dict[str, Any] = {
            "id": [row.id for row in rows],
            "embedding": pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type),
            **{name: [getattr(row.facts, name) for row in rows] for name in tables.FACTS},
            "path": [id_of(row.locator.path) for row in rows],
            "member": [row.locator.member and id_of(row.locator.member) for row in rows],
            "time_s": [row.locator.time_s for row in rows],
            "state": [row.state for row in rows],
            "metadata": [None if row.metadata is None else json.dumps(row.metadata, default=str) for row in rows],
            "part": [row.part for row in rows],
        }
        batch = pa.record_batch(columns, schema=schema)
        with self.writing(), storage(self.folder, "written"):
            batch = batch.select(self._tables[ITEMS].schema.names)  # in the order that they have there
            if new:
                self._tables[ITEMS].add(batch)
            else:
                tables.replace(self._tables[ITEMS], batch)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove the rows with these ids, if there are any."""
        with self.writing(), storage(self.folder, "written"):
            tables.delete(self._tables[ITEMS], ids)

    def record(self, failures: Sequence[Failure]) -> None:
        """List failures, replacing earlier ones of the same ids."""
        import pyarrow as pa

        if failures:
            listed = [
                {name: value and tables.as_text(value) for name, value in asdict(failure).items()}
                | {"path": id_of(failure.path)}
                for failure in failures
            ]
            with self.writing(), storage(self.folder, "written"):
                tables.replace(self._tables[FAILURES], pa.Table.from_pylist(listed, schema=tables.schema_of(Failure)))

    def forget(self, ids: Iterable[str]) -> None:
        """Remove files from the list of failures."""
        with self.writing(), storage(self.folder, "written"):
            tables.delete(self._tables[FAILURES], ids)

    def add_run(self, record: RunRecord) -> None:
        """Record a run."""
        import pyarrow as pa

        kept = {**asdict(record), "sources": [tables.as_text(source) for source in record.sources]}
        with self.writing(), storage(self.folder, "written"):
            self._tables[RUNS].add(pa.Table.from_pylist([kept], schema=tables.schema_of(RunRecord)))

    def settle(self, *, index: bool = True, limit_s: float = upkeep.LIMIT_S) -> None:
        """Merge the database's files if there are many small ones, and update the index if wanted.

        limit_s: seconds after which what is not done is left for the next time, which then gets twice as long
        """
        given_up = self.folder / GIVEN_UP
        with suppress(OSError, ValueError):
            limit_s = max(limit_s, 2 * float(given_up.read_text()))
        with self.writing(), storage(self.folder, "written"):
            try:
                self._settle(index, time.monotonic() + limit_s)
                given_up.unlink(missing_ok=True)
            except ChildDied as error:
                if isinstance(error, ChildTooSlow):
                    given_up.write_text(str(limit_s))
                logger.warning(
                    "files of %s were not merged, or its index was not updated: %s; everything is stored and can "
                    "be found, searches may be slower, and the next run tries again",
                    self.folder,
                    error,
                )

    def _settle(self, index: bool, ends: float) -> None:
        """The steps that are due; ChildDied where one is not done at a time of the monotonic clock."""
        for name, table in self._tables.items():
            if upkeep.is_scattered(table):
                upkeep.apart(upkeep.optimize, self.folder, name, ends - time.monotonic())
        step = upkeep.index_due(self._tables[ITEMS]) if index else None
        if step is upkeep.build_index:
            (self.folder / INDEX).unlink(missing_ok=True)
        found = step and upkeep.apart(step, self.folder, ITEMS, ends - time.monotonic())
        if found is not None:
            with atomic_write(self.folder / INDEX) as part:
                part.write_text(json.dumps({"recall": found, "rows": self.count(), "when": now()}) + "\n", "utf-8")

    def write_failures(self) -> None:
        """The list of failures as a text file beside the database, or no file where nothing failed."""
        path = self.folder / "failures.txt"
        failures = self.failures()
        with storage(self.folder, "written"):
            if not failures:
                path.unlink(missing_ok=True)
                return
            with atomic_write(path) as part, part.open("w", encoding="utf-8") as file:
                for failure in failures:
                    print(f"{_line(failure.id)}\t{failure.stage}\t{failure.code}\t{_line(failure.message)}", file=file)

    # ------------------------------------------------------------------ the database

    @cached_property
    def _lock(self) -> FileLock:
        return file_lock(self.folder / LOCK, wait=False)

    @cached_property
    def _database(self) -> Any:
        return tables.connect(self.folder)

    @cached_property
    def _tables(self) -> dict[str, Any]:
        """The tables, to be written; made where they are missing."""
        found = {name: self._open(name) for name in self._schemas}
        return {
            name: self._database.create_table(name, schema=schema, exist_ok=True)
            if found[name] is None
            else found[name]
            for name, schema in self._schemas.items()
        }

    @cached_property
    def _schemas(self) -> dict[str, pa.Schema]:
        return {
            ITEMS: tables.stored_schema(self.dim),
            FAILURES: tables.schema_of(Failure),
            RUNS: tables.schema_of(RunRecord),
        }

    def _open(self, name: str) -> Any:
        """A table, or None where it has not been made yet."""
        tables.check_usable(self.folder)
        if not tables.is_made(self.folder / f"{name}.lance"):
            return None
        table = self._database.open_table(name)
        if name not in self._whole:
            lacking = [column for column in self._schemas[name].names if column not in table.schema.names]
            if lacking:
                raise CollectionError(
                    f"{self.folder} was written by an earlier image-encoders {self.mark['package']}: its table "
                    f"{name} has no column {' and '.join(lacking)}; encode again into another folder"
                )
            self._whole.add(name)
        return table

    def read(self, name: str, function: Callable[[Any], Result], empty: Result) -> Result:
        """`function` of a table, again if a writer merged its files away meanwhile; `empty` where there is no table."""
        with storage(self.folder, "read"):
            for attempt in range(3):
                table = self._open(name)
                if table is None:
                    break
                try:
                    return function(table)
                except (OSError, RuntimeError, CollectionError) as error:
                    if attempt == 2 or not re.search(r"not ?found", str(error), re.IGNORECASE):
                        raise
        return empty

    def _metadata(self) -> dict[str, str]:
        """What an exported file says about its rows."""
        return {
            "image-encoders": json.dumps(
                {
                    "encoder": self.name,
                    "fingerprint": self.fingerprint,
                    "dim": self.dim,
                    "modalities": self.modalities,
                    "precision": self.precision,
                    "recipe": self.recipe,
                }
            )
        }


def open_collection(folder: str | os.PathLike[str]) -> Collection:
    """The collection in `folder`; CollectionError where there is none or it cannot be read."""
    return Collection.open(folder)


# ------------------------------------------------------------------ files


def check_new(folder: Path) -> None:
    """Raise CollectionError where no collection can be made in `folder`, as far as can be seen without writing."""
    there = next((one for one in (folder, *folder.absolute().parents) if one.exists()), Path.cwd())
    if not there.is_dir():
        raise CollectionError(f"{there} is a file; a collection is a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CollectionError(f"{folder} cannot be created: no permission to write in {there}")
    if there == folder:
        with storage(folder, "read"):
            _check_vacant(folder)


def _check_vacant(folder: Path) -> None:
    """Raise CollectionError unless a collection may be made in `folder`, which exists."""
    found = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if MARK in found:
        raise CollectionError(f"{folder} is already a collection")
    if found:
        raise CollectionError(f"{folder} holds {found[0]} and is not a collection; choose a new or empty folder")


def _line(text: str) -> str:
    """Text without line ends and tabs of its own."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def now() -> str:
    """The time as it is stored: ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")
