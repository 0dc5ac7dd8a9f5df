"""One run: many files into a collection.

    sources ─known?─ threads: read, prepare ─batches→ embed ─commits→ collection

Files keep their order, and whole batches are committed: with a given batch size, a run that was killed and is started
again cuts the same batches as one that was not, so that even the last bits of its rows are the same.
"""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from types import FrameType
from typing import Any

import numpy as np

from image_encoders.bulk.known import Known
from image_encoders.bulk.sources import SourceFile
from image_encoders.collection import FAILURES, ITEMS, Collection, Failure, Row, Stored, path_of
from image_encoders.encoder import Encoder, Tower, check_batch_size, cores, ordered
from image_encoders.errors import CollectionError, DeviceError, InputError, MissingExtra, WeightsError
from image_encoders.inputs.image import ImageLimits, read_bytes, upright_size

COMMIT_S = 5.0  # seconds between commits: what a kill may cost
COMMIT_ROWS = 4096  # files, and
COMMIT_BYTES = 1 << 24  # bytes of embeddings, that wait for a commit at most
SETTLE = 64  # commits between looks at whether the database's files should be merged
HELD = 4  # batches of inputs that wait for others of their shape at most
SMALLEST, LARGEST = 8, 64  # inputs that go through the net at once, where nobody says how many
TRIES = 2  # batches that a size is judged by
WORTH = 1.05  # times the inputs/s: what a larger batch must bring
SHOW_S = 0.1  # seconds between calls of `progress`

Progress = Callable[[int, "int | None", float], None]


@dataclass
class Report:
    """What a run did. Every file is counted once: total = encoded + reused + unchanged + failed.

    encoded: embedded now
    reused: bytes that were embedded before, under another name; the embedding was copied
    unchanged: there already, with the same bytes
    failed: cannot be encoded, as the collection's list of failures says; among them those from earlier runs that were
        not tried again
    ignored: met in folders and passed over, since their names are not pictures'; not in the total
    pruned: rows removed because their files are gone
    seconds: how long it took
    batch_size: how many pictures the net took at once in the end
    """

    total: int = 0
    encoded: int = 0
    reused: int = 0
    unchanged: int = 0
    failed: int = 0
    ignored: int = 0
    pruned: int = 0
    seconds: float = 0.0
    batch_size: int = 0


def run(
    sources: Iterable[SourceFile],
    encoder: Encoder,
    collection: Collection,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    retry_failed: bool = False,
    prune: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Encode what is new or changed among `sources` into `collection`.

    sources: as `bulk.sources.find` gives them
    batch_size: how many go through the net at once; None: what is fastest, tried on the first batches. Rows depend on
        it in their last bits at most.
    workers: threads that read and prepare; None: one for each processor
    retry_failed: try again also what failed in an earlier run and has not changed since
    prune: afterwards remove the rows whose files are gone
    progress: called in this thread with (files done, files in all or None while unknown, files encoded a second)

    A file that cannot be encoded goes into the collection's list of failures, and the others are encoded. Ctrl-C and
    SIGTERM raise KeyboardInterrupt once what is embedded has been stored, a second one at once; the same run again goes
    on from there.
    Raises CollectionError where the collection cannot be written, is in use, or is of another embedding space.
    """
    if batch_size is not None:
        check_batch_size(batch_size)
    collection.check(encoder)
    with collection.writing(), _Interrupts() as interrupts:
        return _Run(sources, encoder, collection, batch_size, workers, retry_failed, progress, interrupts).all(prune)


@dataclass
class _Prepared:
    """What became of one source on a thread.

    input: for the net; None where the bytes seem to be in the collection, or once it has been taken into a batch
    failure: why there is none
    """

    source: SourceFile
    sha256: str = ""
    width: int = 0
    height: int = 0
    input: np.ndarray | None = None
    failure: Failure | None = None


@dataclass
class _Embedded:
    """A new embedding, or why there is none, and for which file it was computed."""

    outcome: np.ndarray | InputError
    width: int
    height: int
    id: str


class _Run:
    """The state of a run. Everything but `_prepare` happens in the caller's thread."""

    def __init__(
        self,
        sources: Iterable[SourceFile],
        encoder: Encoder,
        collection: Collection,
        batch_size: int | None,
        workers: int | None,
        retry_failed: bool,
        progress: Progress | None,
        interrupts: _Interrupts,
    ):
        self.sources, self.collection, self.interrupts = sources, collection, interrupts
        self.tower, self.dim = encoder.tower("image"), encoder.dim
        self.pace, self.workers, self.retry_failed = _Pace(batch_size), workers or cores(), retry_failed
        self.report = Report()
        self.began, self.since = _now(), time.monotonic()
        self.shown = _Shown(sources, progress)
        self.limits = ImageLimits.from_environment()
        self.max_waiting = max(self.pace.most, min(COMMIT_ROWS, COMMIT_BYTES // (4 * encoder.dim)))

        self.states = Known(2)  # size and mtime_ns of each file that has a row
        self.digests = Known(0)  # sha256 of the bytes that have an embedding: a hint, rows are replaced meanwhile
        self.failures = Known(2)  # size and mtime_ns of each file that failed

        self.waiting: dict[str, _Prepared] = {}  # by id: read, not committed
        self.batch: dict[str, _Prepared] = {}  # by sha256: to be embedded next
        self.shapes: Counter[tuple[int, ...]] = Counter()  # of the inputs in it: one shape goes through the net at once
        self.embedded: dict[str, _Embedded] = {}  # by sha256: not committed
        self.followers = 0  # how many that wait have bytes of the batch
        self.failed: dict[str, Failure] = {}  # by id: not committed
        self.recovered: list[str] = []  # ids on the list of failures that have a row
        self.taken = 0  # files that had to be read, and were
        self.commits, self.committed = 0, time.monotonic()

    def all(self, prune: bool) -> Report:
        """The whole run."""
        for rows in self.collection.scan(ITEMS, ["id", "size", "mtime_ns", "sha256"]):
            for id, size, mtime_ns, sha256 in zip(*(column.to_pylist() for column in rows.columns)):
                self.states.put(id, size, mtime_ns)
                self.digests.put(sha256)
        for rows in self.collection.scan(FAILURES, ["id", "size", "mtime_ns"]):
            for id, size, mtime_ns in zip(*(column.to_pylist() for column in rows.columns)):
                self.failures.put(id, size, mtime_ns)
        try:
            self._encode()
            self._forget_folders()
            if prune:
                self._prune()
            self.collection.settle()
        except KeyboardInterrupt:
            if not self.interrupts.urgent:
                self.collection.write_failures()
            raise
        self.collection.write_failures()
        self.report.ignored = getattr(self.sources, "ignored", 0)
        self.report.seconds = time.monotonic() - self.since
        self.report.batch_size = self.pace.size
        self.shown.last(self.report.total, self.taken)
        return self.report

    def _encode(self) -> None:
        ahead = 2 * self.pace.most + self.workers
        try:
            prepared = ordered(self._prepare, self._changed(), ahead=ahead, workers=self.workers)
            with closing(prepared):  # type: ignore[type-var]  # a generator, whose threads end with it
                for one in prepared:
                    with self.interrupts.held():
                        self._take(one)
                    self._show()
            with self.interrupts.held():
                for shape in list(self.shapes):
                    self._embed(shape)
                self._commit()
        except CollectionError:
            raise
        except BaseException:
            if not self.interrupts.urgent:
                self._commit()
            raise

    def _changed(self) -> Iterator[SourceFile]:
        """The sources that must be read."""
        for source in self.sources:
            self.report.total += 1
            state = source.size, source.mtime_ns
            if self.states.get(source.id) == state or source.id in self.waiting:
                self.report.unchanged += 1
                if source.id in self.failures:
                    self.recovered.append(source.id)
            elif self.failures.get(source.id) == state and not self.retry_failed and source.error is None:
                self.report.failed += 1
            else:
                yield source
            self._show()

    def _prepare(self, source: SourceFile, known: bool = True) -> _Prepared:
        """Read and prepare one source, on any thread; bytes that have an embedding already are not decoded.

        known: False to decode them all the same
        """
        stage = "read"
        try:
            if source.error is not None:
                raise source.error
            content = read_bytes(source.path, self.limits)
            sha256 = hashlib.sha256(content).hexdigest()
            if known and sha256 in self.digests:
                return _Prepared(source, sha256)
            item = self.tower.read(content)
            width, height = upright_size(content, limits=self.limits) if self.tower.inputs.scaled else item.shape[1::-1]
            stage = "prepare"
            one = self.tower.prepare(item)
            self.tower.check(one)
            return _Prepared(source, sha256, width, height, one)
        except Exception as error:
            return _Prepared(source, failure=_failure(source, stage, _as_input_error(error)))

    def _take(self, one: _Prepared) -> None:
        """Into the batch, or to what waits for the next commit."""
        self.taken += 1
        if one.source.id in self.waiting or one.source.id in self.failed:
            self.report.unchanged += 1  # the same source again
        elif one.failure is not None:
            self.failed[one.source.id] = one.failure
        else:
            self.waiting[one.source.id] = one
            new = one.sha256 not in self.embedded and one.sha256 not in self.digests
            if one.sha256 in self.batch:
                one.input = None
                self.followers += 1
            elif one.input is not None and new:
                self.batch[one.sha256] = one
                self.shapes[one.input.shape] += 1
            else:
                one.input = None
        self._embed_full()
        done = len(self.waiting) - len(self.batch) - self.followers + len(self.failed)
        if done >= self.max_waiting or time.monotonic() - self.committed > COMMIT_S:
            self._commit()

    def _show(self) -> None:
        report, batch = self.report, len(self.batch) + self.followers
        stored = report.encoded + report.reused + report.unchanged + report.failed
        self.shown.show(stored + len(self.waiting) + len(self.failed) - batch, self.taken - batch)

    def _embed_full(self) -> None:
        """Embed the inputs of one shape where there are enough of them, or where too many wait."""
        if not self.batch:
            return
        shape, count = self.shapes.most_common(1)[0]
        if count >= self.pace.size or len(self.batch) >= HELD * self.pace.size or self.followers >= self.max_waiting:
            self._embed(shape)

    def _embed(self, shape: tuple[int, ...]) -> None:
        """Embed what there is of one shape in the batch."""
        leaders = [one for one in self.batch.values() if one.input is not None and one.input.shape == shape]
        inputs = [one.input for one in leaders if one.input is not None]
        began = time.perf_counter()
        outcomes = self._rows(inputs)
        self.pace.took(len(inputs), time.perf_counter() - began)
        for one, outcome in zip(leaders, outcomes):
            self.embedded[one.sha256] = _Embedded(outcome, one.width, one.height, one.source.id)
            one.input = None
            del self.batch[one.sha256]
        del self.shapes[shape]
        if self.followers:
            self.followers = sum(
                one.sha256 in self.batch and self.batch[one.sha256] is not one for one in self.waiting.values()
            )

    def _rows(self, inputs: list[np.ndarray]) -> list[np.ndarray | InputError]:
        """A row, or the reason why there is none, for each input; where a batch fails, its halves are tried."""
        if len(inputs) > self.pace.fits:
            return [row for part in _cut(inputs, self.pace.fits) for row in self._rows(part)]
        if not inputs:
            return []
        outcome = _embed(self.tower, inputs, self.dim)
        if isinstance(outcome, InputError):
            if len(inputs) == 1:
                return [outcome]
            half = (len(inputs) + 1) // 2
            if outcome.code == "out-of-memory":
                self.pace.fits = half
            return [row for part in _cut(inputs, half) for row in self._rows(part)]
        rows: list[np.ndarray | InputError] = list(outcome)
        for position in np.flatnonzero(~np.isfinite(outcome).all(axis=1)):
            alone = self._rows([inputs[position]]) if len(inputs) > 1 else []
            rows[position] = alone[0] if alone else InputError("the model's row is not finite", code="not-finite")
        return rows

    def _commit(self) -> None:
        """Store what is done: everything that waits, but for what waits for its batch."""
        done = [one for one in self.waiting.values() if one.sha256 not in self.batch]
        stored = self._stored([one for one in done if one.sha256 not in self.embedded])
        rows = []
        counts = Report()
        for one in done:
            row = self._row(one, stored, counts)
            if row is not None:
                rows.append(row)
        self._write(rows)
        for row in rows:
            self.states.put(row.id, row.size, row.mtime_ns)
            self.digests.put(row.sha256)
        for one in done:
            del self.waiting[one.source.id]
        for name in ("encoded", "reused", "unchanged"):
            setattr(self.report, name, getattr(self.report, name) + getattr(counts, name))
        self.report.failed += len(self.failed)
        self.embedded, self.failed, self.recovered = {}, {}, []
        self.commits, self.committed = self.commits + 1, time.monotonic()
        if self.commits % SETTLE == 0:
            self.collection.settle(index=False)

    def _stored(self, sources: list[_Prepared]) -> dict[str, Stored]:
        """What the collection has for bytes that it seemed to have; where it has lost them, they are embedded now."""
        stored = self.collection.stored(one.sha256 for one in sources)
        for one in sources:
            if one.sha256 in stored or one.sha256 in self.embedded:
                continue
            again = self._prepare(one.source, known=False)
            if again.failure is not None or again.input is None:
                one.failure = again.failure
                continue
            one.sha256 = again.sha256
            [outcome] = self._rows([again.input])
            self.embedded[one.sha256] = _Embedded(outcome, again.width, again.height, one.source.id)
        return stored

    def _row(self, one: _Prepared, stored: dict[str, Stored], counts: Report) -> Row | None:
        """The row of a file, and under what it counts; None, and a failure more, where it has none."""
        source, known = one.source, stored.get(one.sha256) or self.embedded.get(one.sha256)
        if known is None:
            assert one.failure is not None
            self.failed[source.id] = one.failure
            return None
        if isinstance(known, Stored):
            embedding = known.embedding
            name = "unchanged" if source.id in known.ids else "reused"
        elif isinstance(known.outcome, InputError):
            self.failed[source.id] = _failure(source, "embed", known.outcome)
            return None
        else:
            embedding = known.outcome
            name = "encoded" if source.id == known.id else "reused"
        setattr(counts, name, getattr(counts, name) + 1)
        return Row(
            source.id, source.path, embedding, known.width, known.height, one.sha256, source.size, source.mtime_ns
        )

    def _write(self, rows: list[Row]) -> None:
        """Rows and failures to the database: first what is no longer true, so that no file is ever in both tables."""
        recovered = [row.id for row in rows if row.id in self.failures] + self.recovered
        broken = [id for id in self.failed if id in self.states]
        if recovered:
            self.collection.forget(recovered)
        if broken:
            self.collection.remove(broken)
        self.collection.append(rows, new=not any(row.id in self.states for row in rows))
        self.collection.record(list(self.failed.values()))

    def _forget_folders(self) -> None:
        """Take folders off the list of failures that could not be searched in an earlier run, and were in this one."""
        searched = getattr(self.sources, "searched", lambda path: False)
        self.collection.forget(
            failure.id
            for failure in self.collection.failures()
            if failure.when < self.began and searched(path_of(failure.id))
        )

    def _prune(self) -> None:
        """Remove the rows, and the failures of earlier runs, whose files are gone."""
        gone = [
            id
            for rows in self.collection.scan(ITEMS, ["id", "path"])
            for id, path in zip(rows["id"].to_pylist(), rows["path"].to_pylist())
            if (mode := _mode(path_of(path))) is None or (mode and not stat.S_ISREG(mode))
        ]
        with self.interrupts.held():
            self.collection.remove(gone)
            self.report.pruned = len(gone)
        self.collection.forget(
            failure.id
            for failure in self.collection.failures()
            if failure.when < self.began and _mode(path_of(failure.id)) is None
        )


class _Pace:
    """How many inputs go through the net at once.

    Unless the caller said how many, the size doubles as long as that makes the net faster, as the first batches show.

    fits: how many the device takes at once, as far as is known
    """

    def __init__(self, fixed: int | None):
        self.trying = fixed is None
        self.size = fixed or SMALLEST
        self.most = fixed or LARGEST
        self.fits = self.most
        self._best = 0.0  # inputs/s of the size before
        self._rates: list[float] = []  # of this size

    def took(self, count: int, seconds: float) -> None:
        """Learn from a batch; the first of a size is not counted, as the engine gets ready for it."""
        if not self.trying or count != self.size:
            return
        self._rates.append(count / max(seconds, 1e-9))
        if len(self._rates) <= TRIES:
            return
        rate = max(self._rates[1:])
        if rate < WORTH * self._best:
            self.size, self.trying = self.size // 2, False
        elif 2 * self.size > min(self.most, self.fits):
            self.trying = False
        else:
            self.size, self._best, self._rates = 2 * self.size, rate, []


class _Shown:
    """Calls `progress` now and then, and counts on a thread of its own how many files there will be."""

    def __init__(self, sources: Any, progress: Progress | None):
        self.progress = progress
        self.total: int | None = len(sources) if hasattr(sources, "__len__") else None
        self.began, self.called = time.monotonic(), 0.0
        if progress is not None and self.total is None and hasattr(sources, "count"):
            threading.Thread(target=self._count, args=(sources,), daemon=True, name="count").start()

    def _count(self, sources: Any) -> None:
        with suppress(OSError, InputError):  # a list that vanished: the run itself will say so
            self.total = sources.count()

    def show(self, done: int, encoded: int) -> None:
        """Say how many files are done, and how many of them had to be encoded."""
        now = time.monotonic()
        if self.progress is not None and now - self.called >= SHOW_S:
            self.called = now
            self.progress(done, self.total, encoded / max(now - self.began, SHOW_S))

    def last(self, total: int, encoded: int) -> None:
        """Say that all is done."""
        self.total, self.called = total, 0.0
        self.show(total, encoded)


class _Interrupts:
    """Ctrl-C and SIGTERM as KeyboardInterrupt that never falls into the middle of a step, unless it is the second one.

    urgent: there was a second one; nothing more may be stored, since a step may have been cut in two
    """

    def __init__(self) -> None:
        self.count = 0
        self.holding = False
        self._before: dict[int, Any] = {}

    @property
    def urgent(self) -> bool:
        return self.count > 1

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python has no say in signals
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup and the like stay in force
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.urgent or not self.holding:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """A step that the first interrupt waits for."""
        self.holding = True
        try:
            yield
        finally:
            self.holding = False
        if self.count:
            raise KeyboardInterrupt


def _embed(tower: Tower, inputs: list[np.ndarray], dim: int) -> np.ndarray | InputError:
    """(B, dim) rows, or why there are none."""
    try:
        rows = tower.rows(inputs)
    except (DeviceError, MissingExtra, WeightsError):  # the engine's failure, and no picture's
        raise
    except Exception as error:  # a net may raise anything; its traceback, and the memory in it, goes with this block
        return _as_input_error(error)
    if rows.shape != (len(inputs), dim):
        return InputError(f"the model gave rows of shape {rows.shape}, not {(len(inputs), dim)}", code="shape")
    return rows


def _as_input_error(error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    lines = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    memory = isinstance(error, MemoryError) or "outofmemory" in message.lower().replace(" ", "")
    return InputError(message, code="out-of-memory" if memory else "unexpected")


def _failure(source: SourceFile, stage: str, error: InputError) -> Failure:
    return Failure(source.id, stage, error.code, error.message, source.size, source.mtime_ns, _now())


def _cut(inputs: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    for start in range(0, len(inputs), size):
        yield inputs[start : start + size]


def _mode(path: str) -> int | None:
    """What kind of file there is, as `os.stat` says it; None where there is none, 0 where that cannot be known."""
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return 0


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")
