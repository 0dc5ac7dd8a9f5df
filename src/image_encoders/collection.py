"""Stored rows: a folder that holds a LanceDB database and says whose rows they are.

    collection.json   the encoder: name, fingerprint, dim, what `load` was called with
    canaries.npy      what a few fixed images gave with it
    items.lance       one row for each image
    failures.lance    one row for each image that could not be encoded
    failures.txt      the same, to be read by people
    runs.lance        one row for each run

Every change is one atomic step of the database: a process that is killed leaves the rows before it or after it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from image_encoders import __version__, exports
from image_encoders.cache import atomic_write, file_lock
from image_encoders.canaries import drift, embed_canaries
from image_encoders.errors import CollectionError, ImageEncodersError, InputError, MissingExtra

if TYPE_CHECKING:
    import pyarrow as pa
    from filelock import FileLock

    from image_encoders.encoder import Encoder

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

FORMAT = 2  # of the folder; another one is refused
MARK = "collection.json"  # makes a folder a collection
ITEMS, FAILURES, RUNS = "items", "failures", "runs"
CANARIES = "canaries.npy"
LOCK = ".lock"
DRIFT = 0.05  # 1 - cosine: more is another space, whatever the fingerprint says
LOADED = ("weights", "device", "precision", "engine", "calibration")  # of a recipe, beside the family's own options
EXACT_BELOW = 100_000  # rows: fewer are compared one by one, more through an index
UNINDEXED = 0.1  # of the rows may be missing in the index (they are found, at the cost of comparing them)
# The index's lists hold about LIST rows each, in 8-bit numbers. PROBES of them are searched, which is all of them up to
# half a million rows, and the best REFINED x k rows are compared exactly. Words lie far from the images that the
# lists were made from, so that few probes would miss much: `benchmarks/bulk.py recall` measures it.
LIST, PROBES, REFINED = 8192, 64, 10
SMALL_FRAGMENTS = 256  # files of the database before they are merged
IDS = 1000  # ids in one condition
CHUNK = 1 << 24  # bytes of rows held at a time


@dataclass(frozen=True)
class Locator:
    """Where the bytes of something are.

    path: the file as `open` takes it, or an address; where a file's name is not UTF-8, it holds surrogates
    member: in an archive, the name of the member; in a table, "column/row"; surrogates as in a path
    time_s: in a video, the time of the frame [s]
    """

    path: str
    member: str | None = None
    time_s: float | None = None


@dataclass(frozen=True)
class Row:
    """What is stored of one image.

    id: unique, printable Unicode text
    locator: where its bytes are
    embedding: (dim,) float32, finite
    width, height: of the upright image [px]
    sha256: of its bytes, hexadecimal
    size: how many bytes
    state: text that changes when the bytes may have changed; a file's is its size and the time of its last change
    taken: when it was taken, by the camera's own clock, where it says so
    metadata: what its source says about it, as JSON can hold it
    part: the part of a run that it came with, where there are such
    """

    id: str
    locator: Locator
    embedding: np.ndarray
    width: int
    height: int
    sha256: str
    size: int
    state: str
    taken: datetime | None = None
    metadata: Mapping[str, Any] | None = None
    part: str | None = None


@dataclass(frozen=True)
class Stored:
    """What a collection knows of some bytes: embedding, size of the image [px], when taken, the ids that have them."""

    embedding: np.ndarray
    width: int
    height: int
    taken: datetime | None
    ids: frozenset[str]


@dataclass(frozen=True)
class Hit:
    """An image that a search found.

    id: the row's id, always valid Unicode
    path: the file as `open` takes it; where its name is not UTF-8, it holds surrogates
    score: cosine similarity to the query, -1 to 1
    width, height: of the upright image [px]
    sha256: of the file's bytes, hexadecimal
    copies: ids of the other rows with the same bytes, in order; none where a search lists each of them
    """

    id: str
    path: str
    score: float
    width: int
    height: int
    sha256: str
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Something that could not be encoded.

    id, path, state: as of a row; state is that at which it failed
    stage: "read", "prepare" or "embed"
    code: a short stable word, such as "truncated"
    message: what was found, what is accepted
    when: ISO 8601, UTC
    """

    id: str
    path: str
    stage: str
    code: str
    message: str
    state: str
    when: str


@dataclass(frozen=True)
class RunRecord:
    """A run that came to its end or was interrupted: when [ISO 8601, UTC], from where, and what it did."""

    began: str
    ended: str
    sources: list[str]
    encoded: int
    reused: int
    unchanged: int
    failed: int
    pruned: int
    package: str = __version__


class Collection:
    """Rows of one embedding space.

    name, fingerprint, dim, modalities, precision: the encoder's
    recipe: what `load` was called with, enough to load the encoder again
    """

    def __init__(self, folder: Path, mark: dict[str, Any]):
        """Use `open`, `create` or `open_or_create`."""
        self.folder = folder
        self.mark = mark
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
        with _storage(folder, "made"):
            folder.mkdir(parents=True, exist_ok=True)
            _check_vacant(folder)  # before a lock is left in somebody's folder, and again once it is held
        text = json.dumps(mark, indent=2, default=str) + "\n"
        collection = cls(folder, json.loads(text))
        with collection._exclusive(), _storage(folder, "made"):
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
            f"them{same}; choose another collection, or use what this one was begun with"
        )

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder that the collection was begun with, loaded when it is first asked for."""
        return self.load_encoder()

    def check_canaries(self, encoder: Encoder) -> None:
        """Raise CollectionError where the encoder, on this machine, gives other embeddings than those that are stored.

        Nothing is computed where the engine, the device and this package are those that the collection was begun with.
        """
        begun = self.mark["encoder"]
        if (self.mark["package"], begun["engine"], begun["device"]) == (__version__, encoder.engine, encoder.device):
            return
        found = self.drift(encoder)
        if found is not None and found > DRIFT:
            raise CollectionError(
                f"{self.folder} was begun with {self.name} by {begun['engine']} on {begun['device']}, and by "
                f"{encoder.engine} on {encoder.device} the same model gives other embeddings (1 - cosine {found:.2g} "
                "for the same image); encode where the collection was begun, or into another folder"
            )

    def load_encoder(self, **wishes: Any) -> Encoder:
        """The encoder that the collection was begun with.

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
        """How far the encoder's embeddings of the canaries lie from those of the encoder that the collection was begun
        with: 1 - the least cosine; None where that is not known.
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
        return self._read(ITEMS, lambda table: table.count_rows(), 0)

    def search(
        self,
        vector: np.ndarray | None = None,
        k: int = 10,
        *,
        words: str | None = None,
        image: Any = None,
        audio: Any = None,
        each_copy: bool = False,
    ) -> list[Hit]:
        """The k images nearest to a query by cosine, best first, equal ones by id.

        vector: (dim,), finite, not all zero; its length does not matter
        words, image, audio: in place of a vector, what the collection's model is to embed; an image or a sound as
            `encode_image` and `encode_audio` take it. The model is loaded at the first such query.
        each_copy: files with the same bytes are hits of their own, not one hit with its copies
        returns: at most k; a row that is all zero has no direction and is never found

        Exact below 100,000 rows. Above, the index that a run ends with is used; rows newer than it are compared too.
        Raises InputError for a vector without a direction, CollectionError for one of another length.
        """
        if sum(query is not None for query in (vector, words, image, audio)) != 1:
            raise InputError("give one query: a vector, words, image or audio", code="query")
        if isinstance(vector, str):
            raise InputError("a query in words goes into words=, a file's path into image= or audio=", code="query")
        if words is not None:
            vector = self.encoder.encode_text([words])[0]
        elif image is not None:
            vector = self.encoder.encode_image([image])[0]
        elif audio is not None:
            vector = self.encoder.encode_audio([audio])[0]
        query = np.asarray(vector, np.float64)
        if query.shape != (self.dim,):
            raise CollectionError(f"a query of shape {query.shape}; {self.folder} holds rows of shape ({self.dim},)")
        if not np.isfinite(query).all() or not query.any():
            what = "all zeros" if np.isfinite(query).all() else "not finite"
            raise InputError(f"the query's vector is {what}, so nothing is nearest to it", code="no-direction")
        if k < 1:
            raise InputError(f"k is {k}; it must be 1 or more", code="k")
        query /= np.abs(query).max()  # squares of huge numbers would not be finite
        query /= np.linalg.norm(query)
        return self._read(ITEMS, lambda table: _nearest(table, query.astype(np.float32), k, each_copy), [])

    def info(self) -> dict[str, Any]:
        """What the collection is, in plain values: whose embeddings, how many, how large, when they were made."""
        sizes, times = [], []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with suppress(OSError):  # merged away meanwhile
                    found = os.stat(os.path.join(folder, name))
                    sizes.append(found.st_size)
                    times.append(found.st_mtime)
        rows, indexed = self._read(ITEMS, lambda table: (table.count_rows(), _indexed(table)), (0, 0))
        return {
            "path": str(self.folder.absolute()),
            "model": self.name,
            "dim": self.dim,
            "modalities": list(self.modalities),
            "precision": self.precision,
            "fingerprint": self.fingerprint,
            "recipe": self.recipe,
            "images": rows,
            "failures": self._read(FAILURES, lambda table: table.count_rows(), 0),
            "indexed": indexed,
            "bytes": sum(sizes),
            "sources": sorted({source for run in self.runs() for source in run.sources}),
            "created": self.mark.get("created"),
            "changed": datetime.fromtimestamp(max(times), timezone.utc).isoformat(timespec="seconds"),
            "package": self.mark.get("package"),
            "format": self.mark["format"],
        }

    def failures(self) -> list[Failure]:
        """The files that could not be encoded, by id."""
        rows: list[dict] = self._read(FAILURES, lambda table: table.search().to_arrow().to_pylist(), [])
        failures = (Failure(**{**row, "path": path_of(row["path"])}) for row in rows)
        return sorted(failures, key=lambda failure: failure.id)

    def scan(self, table: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of a table, ITEMS or FAILURES, in batches, as they are now."""
        with _storage(self.folder, "read"):
            opened = self._open(table)
            if opened is not None:
                opened.checkout(opened.version)
                yield from opened.search().select(list(columns)).to_batches(1 << 14)

    def stored(self, digests: Iterable[str]) -> dict[str, Stored]:
        """What is known of the bytes with these sha256 digests, where something is."""
        places: dict[str, list[tuple[int, str]]] = {}  # row numbers and ids by digest
        with _storage(self.folder, "read"):
            table = self._open(ITEMS)
            for some in _chunks(sorted(set(digests))) if table is not None else ():
                query = table.search().where(_among("sha256", some)).select(["sha256", "id"]).with_row_id(True)
                for row in query.to_arrow().to_pylist():
                    places.setdefault(row["sha256"], []).append((row["_rowid"], row["id"]))
            if not places:
                return {}
            # One row for each digest: an image that is there a thousand times is read once.
            numbers = [min(found)[0] for found in places.values()]
            columns = ["sha256", "embedding", "width", "height", "taken"]
            rows = table.take_row_ids(numbers).select(columns).to_arrow()
        digests, *others = (rows[name].to_pylist() for name in ("sha256", "width", "height", "taken"))
        return {
            digest: Stored(embedding, *facts, ids=frozenset(id for _, id in places[digest]))  # type: ignore[misc]
            for digest, embedding, facts in zip(digests, exports.matrix(rows), zip(*others))
        }

    def runs(self) -> list[RunRecord]:
        """The runs into this collection, the first one first."""
        rows: list[dict] = self._read(RUNS, lambda table: table.search().to_arrow().to_pylist(), [])
        return sorted((RunRecord(**row) for row in rows), key=lambda run: run.began)

    def export(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> int:
        """All rows in one file, ordered by id; it appears complete or not at all.

        path: ending in .parquet, .arrow or .feather: all columns, the encoder in the file's metadata; in .csv: all
            columns, each number of an embedding in one of its own; in .npy: float32 (N, dim), with the other columns
            beside it in <name>.ids.jsonl, line i for row i
        overwrite: replace a file that is there
        returns: how many rows

        Raises CollectionError for another ending, a file that is there, or one that cannot be written.
        """
        path = Path(path)
        exports.check(path, overwrite)

        def write(table: Any) -> int:
            count = table.count_rows() if table is not None else 0
            with _storage(path, "written"):
                exports.write(path, self._by_id(table), self._schema(self._metadata()), count)
            return count

        written = self._read(ITEMS, lambda table: write(_pinned(table)), None)
        return write(None) if written is None else written  # a run that was killed at once leaves no table

    def to_arrow(self) -> pa.Table:
        """All rows as a table of PyArrow, ordered by id."""
        import pyarrow as pa

        def read(table: Any) -> pa.Table:
            return pa.concat_tables([empty, *(rows.cast(schema) for rows in self._by_id(_pinned(table)))])

        schema = self._schema(self._metadata())
        empty = schema.empty_table()
        return self._read(ITEMS, read, empty)

    def to_pandas(self) -> Any:
        """All rows as a pandas DataFrame, ordered by id; each embedding is an array in the column `embedding`."""
        try:
            import pandas  # noqa: F401
        except ImportError as error:
            raise MissingExtra("pandas", "pandas", "to_pandas") from error
        return self.to_arrow().to_pandas()

    def _by_id(self, table: Any | None) -> Iterator[pa.Table]:
        """All rows ordered by id; what goes wrong here is not the fault of where they are written to."""
        if table is not None:
            with _storage(self.folder, "read"):
                yield from _by_id(table, max(1, CHUNK // (4 * self.dim)))

    # ------------------------------------------------------------------ writing

    @contextmanager
    def running(self) -> Iterator[None]:
        """`writing` for a run, which compares its sources with the rows that are there when it begins.

        Raises CollectionError where another run of this process, or another process, is writing.
        """
        if not self._running.acquire(blocking=False):
            raise CollectionError(
                f"{self.folder} is being written by another run of this process; wait until it has ended"
            )
        try:
            with self.writing():
                yield
        finally:
            self._running.release()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The collection for this process alone while the block runs; may be nested.

        Raises CollectionError where another process is writing.
        """
        with self._exclusive():
            with _storage(self.folder, "written"):
                self._tables  # noqa: B018  made here where they are missing
            yield

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """The folder's lock, for any number of this process's threads while their blocks run.

        The operating system takes it back from a process that is killed.
        """
        from filelock import Timeout

        with _storage(self.folder, "written"), self._entering:
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

        new: the caller knows that none of the ids is there, which saves looking
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
        schema = self._schema()
        columns: dict[str, Any] = {
            "embedding": pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type),
            "path": [id_of(row.locator.path) for row in rows],
            "member": [row.locator.member and id_of(row.locator.member) for row in rows],
            "time_s": [row.locator.time_s for row in rows],
            "metadata": [None if row.metadata is None else json.dumps(row.metadata, default=str) for row in rows],
        }
        batch = pa.record_batch(
            [
                pa.array(columns.get(name) or [getattr(row, name) for row in rows], schema.field(name).type)
                if name != "embedding"
                else columns[name]
                for name in schema.names
            ],
            schema=schema,
        )
        with self.writing(), _storage(self.folder, "written"):
            if new:
                self._tables[ITEMS].add(batch)
            else:
                _replace(self._tables[ITEMS], batch)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove the rows of these ids, where there are any."""
        with self.writing(), _storage(self.folder, "written"):
            _delete(self._tables[ITEMS], ids)

    def record(self, failures: Sequence[Failure]) -> None:
        """List what could not be encoded, in place of what was listed for it before."""
        import pyarrow as pa

        if failures:
            listed = [
                {name: _text(value) for name, value in asdict(failure).items()} | {"path": id_of(failure.path)}
                for failure in failures
            ]
            with self.writing(), _storage(self.folder, "written"):
                _replace(self._tables[FAILURES], pa.Table.from_pylist(listed, schema=_failures_schema()))

    def forget(self, ids: Iterable[str]) -> None:
        """Take files off the list of failures."""
        with self.writing(), _storage(self.folder, "written"):
            _delete(self._tables[FAILURES], ids)

    def add_run(self, record: RunRecord) -> None:
        """Keep what a run did."""
        import pyarrow as pa

        kept = {**asdict(record), "sources": [_text(source) for source in record.sources]}
        with self.writing(), _storage(self.folder, "written"):
            self._tables[RUNS].add(pa.Table.from_pylist([kept], schema=_runs_schema()))

    def settle(self, *, index: bool = True) -> None:
        """Merge the database's files where small ones have become many, and bring the index up to date if wanted."""
        with self.writing(), _storage(self.folder, "written"):
            for table in self._tables.values():
                if table.stats()["fragment_stats"]["num_small_fragments"] > SMALL_FRAGMENTS:
                    _optimize(table)
            if index:
                _index(self._tables[ITEMS])

    def write_failures(self) -> None:
        """The list of failures as a text file beside the database, or no file where nothing failed."""
        path = self.folder / "failures.txt"
        failures = self.failures()
        with _storage(self.folder, "written"):
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
        import lancedb

        # A table is always read as it is now. Of the caches, the first holds what searches have used of the index; the
        # second would otherwise grow with the number of writes.
        session = lancedb.Session(index_cache_size_bytes=1 << 30, metadata_cache_size_bytes=1 << 25)
        return lancedb.connect(self.folder, read_consistency_interval=timedelta(0), session=session)

    @cached_property
    def _tables(self) -> dict[str, Any]:
        """The tables, to be written; made where they are missing."""
        schemas = {ITEMS: self._schema(), FAILURES: _failures_schema(), RUNS: _runs_schema()}
        return {
            name: self._database.create_table(name, schema=schema, exist_ok=True) for name, schema in schemas.items()
        }

    def _open(self, name: str) -> Any:
        """A table, or None where it has not been made yet."""
        return self._database.open_table(name) if _is_made(self.folder / f"{name}.lance") else None

    def _read(self, name: str, function: Callable[[Any], Result], empty: Result) -> Result:
        """`function` of a table, again if a writer merged its files away meanwhile; `empty` where there is no table."""
        with _storage(self.folder, "read"):
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

    def _schema(self, metadata: dict[str, str] | None = None) -> pa.Schema:
        import pyarrow as pa

        types = {
            "id": pa.utf8(),
            "embedding": pa.list_(pa.float32(), self.dim),
            "width": pa.int32(),
            "height": pa.int32(),
            "sha256": pa.utf8(),
            "path": pa.utf8(),
            "member": pa.utf8(),
            "time_s": pa.float64(),
            "size": pa.int64(),
            "state": pa.utf8(),
            "taken": pa.timestamp("ms"),
            "metadata": pa.utf8(),
            "part": pa.utf8(),
        }
        return pa.schema(
            [pa.field(name, type, nullable=name in _NULLABLE) for name, type in types.items()],
            metadata,
        )

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


_NULLABLE = ("member", "time_s", "taken", "metadata", "part")


def open_collection(folder: str | os.PathLike[str]) -> Collection:
    """The collection in `folder`; CollectionError where there is none or it cannot be read."""
    return Collection.open(folder)


def id_of(path: str) -> str:
    """A path as valid Unicode: itself, or, where its name is not UTF-8, "bytes:" and the path with backslash escapes.

    No two absolute paths have the same.
    """
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        escaped = path.replace("\\", "\\\\")
        try:
            content = os.fsencode(escaped)
        except UnicodeEncodeError:  # no file can have such a name
            content = escaped.encode("utf-8", "backslashreplace")
        return "bytes:" + content.decode("utf-8", "backslashreplace")


def path_of(text: str) -> str:
    """The path that `id_of` made text of, as `open` takes it."""
    if not text.startswith("bytes:"):
        return text

    def byte(escape: re.Match[bytes]) -> bytes:
        return bytes.fromhex(escape[1].decode()) if escape[1] else b"\\"

    return os.fsdecode(re.sub(rb"\\(?:\\|x([0-9a-f]{2}))", byte, text.removeprefix("bytes:").encode()))


# ------------------------------------------------------------------ tables


def _failures_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([pa.field(field.name, pa.utf8(), nullable=False) for field in fields(Failure)])


def _runs_schema() -> pa.Schema:
    import pyarrow as pa

    types = {"str": pa.utf8(), "int": pa.int64(), "list[str]": pa.list_(pa.utf8())}
    return pa.schema([pa.field(field.name, types[str(field.type)], nullable=False) for field in fields(RunRecord)])


def _text(text: str) -> str:
    """Text as the database takes it: what is no Unicode is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _among(column: str, texts: Iterable[str]) -> str:
    """A condition of the database: `column` is one of `texts`."""
    quoted = ", ".join("'" + text.replace("'", "''") + "'" for text in texts)
    return f"{column} IN ({quoted})"


def _chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), IDS):
        yield texts[start : start + IDS]


def _replace(table: Any, rows: Any) -> None:
    try:
        table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
    except (OSError, RuntimeError, ValueError) as error:
        if "temp dir" not in str(error):
            raise
        # One step needs a folder for temporary files (TMPDIR), and there is none that can be written. In two steps,
        # a process that is killed in between leaves these ids without rows, and the next run encodes them again.
        _delete(table, rows.column("id").to_pylist())
        table.add(rows)


def _delete(table: Any, ids: Iterable[str]) -> None:
    for some in _chunks(list(ids)):
        table.delete(_among("id", some))


def _optimize(table: Any) -> None:
    # A reader of an older version finds its files gone, and reads again: see `Collection._read`.
    table.optimize(cleanup_older_than=timedelta(milliseconds=1))


def _index(table: Any) -> None:
    """An index over the embeddings where there are many; it takes about 12 s for 100,000 rows of 512 on two cores."""
    rows = table.count_rows()
    if rows < EXACT_BELOW:
        return
    temporary = os.environ.get("TMPDIR") or "/tmp"
    if os.name == "posix" and not os.access(temporary, os.W_OK):
        logger.warning("no index is built, so that searches compare all rows: %s cannot be written (TMPDIR)", temporary)
        return
    existing = [index.name for index in table.list_indices()]
    if not existing:
        from lancedb.index import IvfSq

        # 8-bit numbers and an exact second look found every neighbour even among random vectors, where product
        # quantisation found one in seven and took twenty times as long to build.
        table.create_index("embedding", config=IvfSq(distance_type="cosine", num_partitions=max(1, rows // LIST)))
    elif table.index_stats(existing[0]).num_unindexed_rows > UNINDEXED * rows:
        _optimize(table)


def _indexed(table: Any) -> int:
    """How many rows are in the index; 0 where there is none."""
    for index in table.list_indices():
        return table.index_stats(index.name).num_indexed_rows
    return 0


def _nearest(table: Any, query: np.ndarray, k: int, each_copy: bool) -> list[Hit]:
    """The k images with the smallest distances, equal distances by id."""
    rows = table.count_rows()
    limit = k + 16
    groups: list[list[dict]] = []
    while rows:
        search = table.search(query, vector_column_name="embedding").distance_type("cosine").limit(min(limit, rows))
        if rows < EXACT_BELOW:
            search = search.bypass_vector_index()
        else:
            search = search.nprobes(PROBES).refine_factor(REFINED)
        columns = ["id", "path", "width", "height", "sha256", "_distance"]
        found = search.select(columns).to_arrow().to_pylist()
        found.sort(key=lambda row: (row["_distance"], row["id"]))
        groups = [[row] for row in found] if each_copy else _copies_together(found)
        # Rows as near as the k-th may have been left out: without them the order among equals would be chance.
        if len(found) < limit or (len(groups) >= k and groups[k - 1][0]["_distance"] < found[-1]["_distance"]):
            break
        limit *= 4
    return [_hit(row, tuple(copy["id"] for copy in copies)) for row, *copies in groups[:k]]


def _copies_together(found: Iterable[dict]) -> list[list[dict]]:
    """Rows grouped by the bytes they were made from, in the order of each group's first."""
    groups: dict[str, list[dict]] = {}
    for row in found:
        groups.setdefault(row["sha256"], []).append(row)
    return list(groups.values())


def _hit(row: dict, copies: tuple[str, ...]) -> Hit:
    score = min(1.0, max(-1.0, 1.0 - row["_distance"]))
    return Hit(row["id"], path_of(row["path"]), score, row["width"], row["height"], row["sha256"], copies)


# ------------------------------------------------------------------ files


def check_new(folder: Path) -> None:
    """Raise CollectionError where no collection can be made in `folder`, as far as can be seen without writing."""
    there = next((one for one in (folder, *folder.absolute().parents) if one.exists()), Path.cwd())
    if not there.is_dir():
        raise CollectionError(f"{there} is a file; a collection is a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CollectionError(f"{folder} cannot be made: no permission to write in {there}")
    if there == folder:
        with _storage(folder, "read"):
            _check_vacant(folder)


def _check_vacant(folder: Path) -> None:
    """Raise CollectionError unless a collection may be made in `folder`, which exists."""
    found = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if MARK in found:
        raise CollectionError(f"{folder} is a collection already")
    if found:
        raise CollectionError(f"{folder} holds {found[0]} and is no collection; choose a folder that is new or empty")


def _is_made(table: Path) -> bool:
    """Whether a table is there. A process that was killed while it made one leaves a folder that is none yet."""
    return any(table.glob("_versions/*.manifest")) or any(table.glob("data/*"))


def _pinned(table: Any) -> Any:
    """The table as it is now, whatever is written meanwhile."""
    table.checkout(table.version)
    return table


def _by_id(table: Any, size: int) -> Iterator[pa.Table]:
    """All rows ordered by id, `size` at a time; only the ids are held."""
    import pyarrow as pa
    import pyarrow.compute as pc

    places = table.search().select(["id"]).with_row_id(True).to_arrow()
    numbers = places["_rowid"].combine_chunks().take(pc.sort_indices(places["id"]))
    for start in range(0, len(numbers), size):
        some = numbers[start : start + size]
        rows = table.take_row_ids(some.to_pylist()).select(table.schema.names).with_row_id().to_arrow()
        order = pc.index_in(some, value_set=pa.chunked_array(rows["_rowid"]).combine_chunks())
        yield rows.drop_columns("_rowid").take(order)


def _line(text: str) -> str:
    """Text without line ends and tabs of its own."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def now() -> str:
    """The time as it is stored: ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


@contextmanager
def _storage(path: Path, done: str) -> Iterator[None]:
    """What the database and the disk raise, as one sentence: `path` cannot be `done`, and why."""
    try:
        yield
    except ImageEncodersError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise CollectionError(f"{path} cannot be {done}: {_reason(error, done)}") from error


def _reason(error: Exception, done: str) -> str:
    text = str(error)
    if "No space left" in text:
        return "the disk is full; free some space and run the same command again"
    if "Permission denied" in text or "Read-only file system" in text or "not permitted" in text:
        return "no permission"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    lines = re.sub(r", /\S*\.rs:[\d:]*", "", text).strip().splitlines()
    reason = (lines[0] if lines else type(error).__name__)[:300]
    if done != "read" or "os error" in reason:
        return reason
    return f"{reason}; if its files are damaged, restore them from a copy, or delete the folder and encode again"
