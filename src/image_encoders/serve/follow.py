"""The process that keeps a collection in sync with its folder, started by `browse.Follower`; it ends with that.

    Job, a line of JSON on standard input ─→ load, run, watch, run, ... ─→ lines of JSON on standard output

Each scan of the folder is an ordinary run, which embeds new and changed images and removes deleted ones, so
this process may be killed at any time. A line is one of
    {"run": {...}}          progress, as /status.json shows it
    {"collection": PATH}    where the embeddings are stored, known once the model has been loaded
    {"reading": [ID, STATE]}    what is being read, after a process has died; null when that is over
    {"error": MESSAGE}      why it ends, if restarting it would not help
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_encoders.bulk.run import Report, Standing, run
from image_encoders.bulk.sources import SourceFile, SourceItem, Sources
from image_encoders.collection import FAILURES, ITEMS, MARK, Collection, path_of
from image_encoders.errors import CollectionError, ImageEncodersError, InputError, first_line
from image_encoders.inputs.formats import SUFFIXES
from image_encoders.inputs.limits import ImageLimits
from image_encoders.serve.browse import Job, RunStatus
from image_encoders.serve.folder import Folder, identity, mount_points

if TYPE_CHECKING:
    from image_encoders.encoder import Encoder

QUIET_MS = 400  # without a change, before a look
LONGEST_MS = 5000  # of changes without a pause, before a look
TICK_MS = 1000  # between looks at whether the folder is still the same one
UNWATCHED_S = 60.0  # between looks where the system reports no changes
RETRY_S = (2.0, 60.0)  # first and longest pause after a look that failed
REST = 1.0  # what a look costs that finds nothing new is rested this many times over before the next one
SHOW_S = 0.25  # between two lines of progress
RATE_S = 10.0  # over which the rate is measured
END_S = 15.0  # for what is embedded to be stored, when this process is to end
NICE = 10  # searches come first
COMMIT_S = 1.0  # between commits, so that the page soon shows what is embedded
FAILED = 2  # exit status
CAREFUL = 4096  # files that are read one by one after a death: more than a run reads ahead of its commits
DEADLY = "the embedding process died each time it read this file"


class Reporter:
    """Writes events as lines of JSON."""

    def __init__(self, write: Callable[[str], None]):
        self._write = write
        self.run = RunStatus()

    def send(self, **message: Any) -> None:
        """One line."""
        self._write(json.dumps(message))

    def show(self, **changes: Any) -> None:
        """How far it is, with these changes."""
        self.run = replace(self.run, **changes)
        self.send(run=asdict(self.run))


class Look:
    """The progress of one scan, a run over the folder."""

    def __init__(self, reporter: Reporter, sources: Sources, failures: Callable[[], int]):
        self.reporter, self.failures = reporter, failures
        self.total = sources.count_aside()
        self._shown = 0.0
        self._read: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        reporter.show(state="looking", total=None, done=0, rate=0.0, eta=None, message="")

    def __call__(self, standing: Standing) -> None:
        """Report progress from time to time."""
        done, read, now = standing.done, standing.read, time.monotonic()
        if now - self._shown < SHOW_S:
            return
        self._shown = now
        self._read.append((now, read))
        while now - self._read[0][0] > RATE_S and len(self._read) > 2:
            self._read.popleft()
        since, before = self._read[0]
        rate = (read - before) / max(now - since, SHOW_S)
        total = self.total()
        eta = None if total is None or not rate else max(0.0, (total - done) / rate)
        state, failed = "embedding" if read else "looking", self.failures()
        self.reporter.show(state=state, total=total, done=max(0, done - failed), failed=failed, rate=rate, eta=eta)


class FollowedFiles(Sources):
    """The images of a folder; those that vanish while they are listed are left out, for a run would take it for the
    loss of what was embedded of them.

    deadly: id and state of files that are not read, as that has ended processes
    """

    def __init__(self, folder: str, deadly: Iterable[tuple[str, str]] = ()):
        super().__init__([folder])
        self.deadly = frozenset(deadly)

    def __next__(self) -> SourceItem:
        while True:
            file = super().__next__()
            if (file.id, file.state) in self.deadly and isinstance(file, SourceFile):
                return replace(file, error=InputError(DEADLY, code="crashed"))
            if file.state or os.path.isdir(file.locator.path):
                return file


class AnnouncedFiles(FollowedFiles):
    """The same, but each file is announced before it is read, and they end when many have been."""

    def __init__(self, folder: str, deadly: Iterable[tuple[str, str]], reporter: Reporter):
        super().__init__(folder, deadly)
        self.reporter, self.begun = reporter, 0

    def __next__(self) -> SourceItem:
        if self.begun >= CAREFUL:
            raise StopIteration
        file = super().__next__()
        return AnnouncedFile(**vars(file), begin=self._begin) if isinstance(file, SourceFile) else file

    def _begin(self, file: SourceFile) -> None:
        self.begun += 1
        self.reporter.send(reading=[file.id, file.state])


@dataclass(frozen=True)
class AnnouncedFile(SourceFile):
    """A file that says when it is read."""

    begin: Callable[[SourceFile], None] = lambda file: None

    def read(self, limits: ImageLimits) -> bytes:
        self.begin(self)
        return super().read(limits)


class Watch:
    """Watches a folder for changes reported by the system, on its own thread.

    changed: set at a change
    refused: why the system reports no changes, or not for the whole folder
    """

    def __init__(self, folder: str, passed_over: str, changed: threading.Event):
        self.folder, self.passed_over = folder, os.path.join(os.path.realpath(passed_over), "")
        self.changed = changed
        self.refused: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="watch")
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still watches."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End it soon."""
        self._stop.set()

    def _work(self) -> None:
        from watchfiles import watch

        changes = watch(
            self.folder,
            watch_filter=lambda change, path: self._matters(path),
            debounce=LONGEST_MS,
            step=QUIET_MS,
            rust_timeout=TICK_MS,
            yield_on_timeout=True,
            stop_event=self._stop,
            raise_interrupt=False,
            recursive=True,
            ignore_permission_denied=True,
        )
        watching = False
        try:
            for found in changes:
                if found or not watching:  # what has changed before it watched is not known
                    self.changed.set()
                watching = True
        except Exception as error:  # of the system's: too many folders, or none at all
            self.refused = first_line(error)

    def _matters(self, path: str) -> bool:
        """Whether a change at `path` may be one of an image or of a folder of images."""
        if path.startswith(self.passed_over):
            return False
        names = os.path.relpath(path, self.folder).split(os.sep)
        if any(name.startswith(".") and name not in (os.curdir, os.pardir) for name in names):
            return False
        return os.path.splitext(path)[1].lower() in SUFFIXES or not os.path.isfile(path)


class Following:
    """One folder, the encoder and the collection: scans it again and again until KeyboardInterrupt."""

    def __init__(self, job: Job, encoder: Encoder, collection: Collection, reporter: Reporter):
        self.job, self.encoder, self.collection, self.reporter = job, encoder, collection, reporter
        self.folder = Folder(job.folder, collection.folder)
        self.changed = threading.Event()
        self.watch: Watch | None = None
        self.batch_size: int | None = None
        self.seen: Any = None
        self.careful = job.careful
        self.cost = 0.0  # of a look that finds nothing new [s]

    def follow(self) -> None:
        """Scan, and scan again whenever something has changed."""
        pause = RETRY_S[0]
        while True:
            self._watch()
            self.changed.clear()
            try:
                if (why := self.folder.unreachable()) is None:
                    self._look()
                else:
                    self.reporter.show(state="paused", message=f"{why}; nothing is removed", rate=0.0, eta=None)
                pause = RETRY_S[0]
                self._rest(REST * self.cost, None if self.watch and not self.watch.refused else UNWATCHED_S)
            except (ImageEncodersError, OSError) as error:
                message = str(error) if isinstance(error, ImageEncodersError) else f"{self.job.folder}: {error}"
                self.reporter.show(state="failed", message=message, rate=0.0, eta=None)
                self._rest(pause, pause)
                pause = min(2 * pause, RETRY_S[1])

    def _look(self) -> None:
        self._forgive()
        if self.careful:
            self._run(AnnouncedFiles(self.job.folder, self._deadly(), self.reporter), workers=1)
            self.reporter.send(reading=None)
            self.careful = False
        files = FollowedFiles(self.job.folder, self._deadly())
        began = time.monotonic()
        report = self._run(files, prune=self._deleted)
        if not report.encoded:
            self.cost = time.monotonic() - began
        if report.encoded > 4 * report.batch_size:
            self.batch_size = report.batch_size  # found by trying, which need not be done at each look
        kept, watch = self.folder.kept, self.watch
        message = ""
        if kept:
            message = (
                f"the files of {kept:,} image{'' if kept == 1 else 's'} are out of reach, all at once, so nothing is "
                f"removed; {self.job.folder} or a folder below it may be unmounted"
            )
        elif watch is not None and watch.refused:
            message = f"looks every {UNWATCHED_S:.0f} s, since the system reports no changes here: {watch.refused}"
        state = "paused" if kept else "following"
        self.reporter.show(
            state=state, total=report.total, done=report.total - report.failed, failed=report.failed, rate=0.0,
            eta=None, message=message,
        )  # fmt: skip

    def _deadly(self) -> set[tuple[str, str]]:
        """The files that are to be listed as failed, and are not yet."""
        listed = {(failure.id, failure.state) for failure in self.collection.failures()} if self.job.deadly else set()
        return {(id, state) for id, state in self.job.deadly} - listed

    def _run(self, files: FollowedFiles, **options: Any) -> Report:
        look = Look(self.reporter, files, self._failures)
        return run(
            files,
            self.encoder,
            self.collection,
            batch_size=self.batch_size,
            progress=look,
            commit_s=COMMIT_S,
            record_unchanged=False,
            **options,
        )

    def _deleted(self, missing: list[str]) -> list[str]:
        return self.folder.deleted(missing, self._known())

    def _known(self) -> Iterator[str]:
        for rows in self.collection.scan(ITEMS, ["path"]):
            yield from map(path_of, rows["path"].to_pylist())

    def _failures(self) -> int:
        return sum(len(rows) for rows in self.collection.scan(FAILURES, ["id"]))

    def _forgive(self) -> None:
        """Remove files from the list of failures that are readable again: their disk was out of reach."""
        readable = [
            failure.id
            for failure in self.collection.failures()
            if failure.code in ("not-found", "unreadable") and failure.state and _is_readable(failure.path)
        ]
        if readable:
            self.collection.forget(readable)

    def _watch(self) -> None:
        """Watch the current folder; the name may now refer to a different one."""
        seen = self._sight()
        if self.watch is not None and self.watch.alive and seen == self.seen:
            return
        if self.watch is not None:
            self.watch.stop()
            self.watch = None
        self.seen = seen
        if self.folder.unreachable() is None:
            self.watch = Watch(self.job.folder, str(self.collection.folder), self.changed)

    def _sight(self) -> Any:
        """A value that changes when the folder is replaced, or something is mounted."""
        below = os.path.join(self.job.folder, "")
        return identity(self.job.folder), sorted(one for one in mount_points() if one.startswith(below))

    def _rest(self, least: float, most: float | None) -> None:
        """Wait until there is a reason to scan: a change, a replaced folder, or `most` seconds have passed."""
        began = time.monotonic()
        while True:
            if self.changed.wait(TICK_MS / 1000):
                time.sleep(max(0.0, min(TICK_MS / 1000, began + least - time.monotonic())))
            over = time.monotonic() - began
            if self._sight() != self.seen or (most is not None and over >= most):
                return
            if self.changed.is_set() and over >= least:
                return


def _is_readable(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return bool(file.read(1))
    except (OSError, ValueError):
        return False


def open_job(job: Job) -> tuple[Encoder, Collection]:
    """The encoder and the collection of a job.

    If the model differs from the collection's by now, a new collection is created in its own place.
    """
    from image_encoders import models

    if job.collection is not None and os.path.exists(os.path.join(job.collection, MARK)):
        opened = Collection.open(job.collection)
        try:
            return opened.load_encoder(**job.wishes), opened
        except CollectionError:
            if job.place is None:
                raise
    encoder = models.load(job.model or models.DEFAULT, **job.wishes)
    folder = job.collection if job.place is None else os.path.join(job.place, encoder.fingerprint)
    assert folder is not None
    return encoder, Collection.open_or_create(Path(folder), encoder)


def main() -> None:
    """The process."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever libraries print

    def write(line: str) -> None:
        try:
            lines.write(line + "\n")
        except OSError:  # the front has ended
            os._exit(0)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with suppress(OSError):
        os.nice(NICE)
    reporter = Reporter(write)
    try:
        job = Job(**json.loads(sys.stdin.buffer.readline()))
        threading.Thread(target=_end_with_front, daemon=True).start()
        reporter.show(message="loading the model")
        try:
            encoder, collection = open_job(job)
        except (ImageEncodersError, TypeError) as error:
            reporter.send(error=str(error))
            sys.stdout.flush()
            os._exit(FAILED)
        reporter.send(collection=str(collection.folder))
        Following(job, encoder, collection, reporter).follow()
    except KeyboardInterrupt:
        pass
    os._exit(0)  # without waiting for an engine's threads


def _end_with_front() -> None:
    """Interrupt this process when the front closes its end, or has died."""
    sys.stdin.buffer.read(1)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    time.sleep(END_S)
    os._exit(1)


if __name__ == "__main__":
    main()
