"""Browsing a folder: where its embeddings are stored, and which process follows it.

cache/browse/NAME-DIGEST/    of the folder's real path
    browsed.json             the folder, and which of its collections was used last
    FINGERPRINT/             a collection for each embedding space
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from image_encoders.cache import atomic_write, cache_folder, file_lock
from image_encoders.collection import MARK, Collection
from image_encoders.errors import CollectionError, ImageEncodersError

BROWSED = "browsed.json"
COMMAND = (sys.executable, "-m", "image_encoders.serve.follow")
BACKOFF_S = (0.5, 60.0)  # before a process that has died is started again: at first, and at most
STEADY_S = 60.0  # a process that lived so long has not died at its start
END_S = 20.0  # for the process to store what is embedded
DEATHS = 3  # at the same file, after which it is passed over: it may have been read by chance when others died
ADDRESS_S = 10.0  # for another `browse` to say where it listens


@dataclass(frozen=True)
class Job:
    """What to follow, and where to store it.

    folder: its real path
    collection: the folder of an existing or a new one; None: one in `place`, named after the encoder's fingerprint
    place: a folder of collections; None: there is only `collection`
    model: the model's name, for a new collection; None: the default one
    wishes: further arguments of `load`
    careful: whether a process has died at it: the next one reads one file after the other, and says which
    deadly: the id and the state of each file at which processes died again and again
    """

    folder: str
    collection: str | None = None
    place: str | None = None
    model: str | None = None
    wishes: Mapping[str, Any] = field(default_factory=dict)
    careful: bool = False
    deadly: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class RunStatus:
    """The progress of the run, as /status.json shows it.

    state: "looking", "embedding", "following", "paused" or "failed"
    total: files, if they have been counted; done, failed: of those
    rate: files read per second
    eta: the remaining seconds, if known
    """

    state: str = "looking"
    total: int | None = None
    done: int = 0
    failed: int = 0
    rate: float = 0.0
    eta: float | None = None
    message: str = ""


def place_of(folder: str) -> Path:
    """Where the collections of a folder are kept."""
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    name = re.sub(r"[^\w.-]+", "-", os.path.basename(folder), flags=re.ASCII).strip("-.")[:40]
    return cache_folder() / "browse" / f"{name}-{digest}".lstrip("-")


def known_collection(place: Path, model: str | None, wishes: Mapping[str, Any]) -> Collection | None:
    """The collection created here with this model; without a model the one used last."""
    found = []
    last = _browsed(place).get("last")
    for mark in place.glob(f"*/{MARK}"):
        with suppress(CollectionError):  # of another version
            opened = Collection.open(mark.parent)
            if model is None or (model in (opened.name, opened.recipe.get("name")) and _as_wished(opened, wishes)):
                found.append((mark.parent.name == last, mark.stat().st_mtime, opened))
    return max(found, key=lambda one: one[:2])[2] if found else None


def _as_wished(opened: Collection, wishes: Mapping[str, Any]) -> bool:
    recipe = opened.recipe
    options = {key: wish for key, wish in wishes.items() if key not in ("weights", "device", "precision", "engine")}
    weights = wishes.get("weights")
    same = recipe.get("weights") == (None if weights is None else str(Path(weights).expanduser().resolve()))
    precision = wishes.get("precision") or "auto"
    return same and precision in (recipe.get("precision"), opened.precision) and options == recipe.get("options", {})


def remember(place: Path, folder: str, collection: Path) -> None:
    """Note which collection of a folder was used last."""
    place.mkdir(parents=True, exist_ok=True)
    with atomic_write(place / BROWSED) as part:
        part.write_text(json.dumps({"folder": folder, "last": collection.name}, indent=2) + "\n", "utf-8")


def _browsed(place: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        return dict(json.loads((place / BROWSED).read_text("utf-8")))
    return {}


class BrowsedAlready(ImageEncodersError):
    """Another process browses the same folder; `address` is its page, if known."""

    def __init__(self, folder: str, address: str | None):
        super().__init__(
            f"{folder} is already being browsed by another process" + (f", at {address}" if address else "")
        )
        self.address = address


@contextmanager
def browsing(job: Job) -> Iterator[Callable[[str], None]]:
    """Exclusive access for browsing the job's folder; call the yielded function with the page's address.

    Raises BrowsedAlready if another process does.
    """
    from filelock import Timeout

    what = [job.collection] if job.place is None else [job.folder, job.model, {**job.wishes}]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]
    path = cache_folder() / "browse" / f"{digest}.lock"
    address = path.with_suffix(".address")
    try:
        with file_lock(path, wait=False):
            address.unlink(missing_ok=True)

            def listening(page: str) -> None:
                with atomic_write(address) as part:
                    part.write_text(page, "utf-8")

            try:
                yield listening
            finally:
                address.unlink(missing_ok=True)
    except Timeout:
        raise BrowsedAlready(job.folder, _address(address)) from None


def _address(path: Path) -> str | None:
    """What the other process writes once it listens."""
    until = time.monotonic() + ADDRESS_S
    while time.monotonic() < until:
        with suppress(OSError):
            return path.read_text("utf-8")
        time.sleep(0.1)
    return None


class Follower:
    """Runs a process that follows a folder, and restarts it when it dies.

    collection: where the embeddings are stored; None until that is known
    error: why the folder is no longer followed
    """

    def __init__(
        self,
        job: Job,
        attach: Callable[[Path], None] = lambda collection: None,
        failed: Callable[[str], None] = lambda error: None,
        command: Sequence[str] = COMMAND,
    ):
        """attach, failed: called on a thread of this object's: with the collection, when it is known and whenever it is
        another one; with the error, when the folder is no longer followed
        """
        self.job, self._attach, self._failed, self._command = job, attach, failed, command
        self.collection: Path | None = None
        self.error: str | None = None
        self._run = RunStatus(message="starting")
        self._careful = False
        self._reading: tuple[str, str] | None = None  # what a careful process reads: id and state
        self._deaths: Counter[tuple[str, str]] = Counter()
        self._process: subprocess.Popen[str] | None = None
        self._starting = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="follower")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def status(self) -> dict[str, Any]:
        """Its progress, as /status.json shows it."""
        return asdict(self._run)

    @property
    def process(self) -> int | None:
        """The process that follows the folder now."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def stop(self) -> None:
        """End the process once it has stored what is embedded; at once if that takes too long."""
        self._stopped.set()
        with self._starting:
            process = self._process
        if process is not None:
            _close(process)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._thread.ident is not None:
            self._thread.join()

    def _keep(self) -> None:
        """Start the process, listen to it, and restart it, until that no longer helps."""
        pause = BACKOFF_S[0]
        while not self._stopped.is_set():
            began = time.monotonic()
            ended = self._live()
            if self._stopped.is_set():
                return
            if self.error is not None:
                self._show_failed(self.error)
                self._failed(self.error)
                return
            pause = BACKOFF_S[0] if time.monotonic() - began > STEADY_S else pause
            self._careful = True
            if self._reading is not None:
                self._deaths[self._reading] += 1
            self._show_failed(f"the embedding process ended with {ended}; restarting it in {pause:.1f} s")
            self._stopped.wait(pause)
            pause = min(2 * pause, BACKOFF_S[1])

    def _show_failed(self, message: str) -> None:
        self._run = replace(self._run, state="failed", rate=0.0, eta=None, message=message)

    def _live(self) -> str:
        """One process from its start to its end, and how it ended."""
        collection = self.job.collection if self.collection is None else str(self.collection)
        deadly = [file for file, deaths in self._deaths.items() if deaths >= DEATHS]
        job = replace(self.job, collection=collection, careful=self._careful, deadly=deadly)
        self._reading = None
        with self._starting:
            if self._stopped.is_set():
                return ""
            try:
                self._process = process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    encoding="utf-8",
                    start_new_session=True,  # the terminal's Ctrl-C is for this process, which then ends that one
                )
            except OSError as error:
                return str(error.strerror or error)
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdout:
            with suppress(OSError, ValueError):  # it has died, or is being stopped
                process.stdin.write(json.dumps(asdict(job)) + "\n")
                process.stdin.flush()
            for line in process.stdout:
                with suppress(ValueError):  # the rest of a line of a process that was killed
                    self._take(json.loads(line))
        _close(process)
        status = process.wait()
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"

    def _take(self, message: dict[str, Any]) -> None:
        if "run" in message:
            self._run = RunStatus(**message["run"])
        if "reading" in message:
            self._reading = message["reading"] and tuple(message["reading"])
        if "error" in message:
            self.error = message["error"]
        if "collection" in message and (collection := Path(message["collection"])) != self.collection:
            self.collection = collection
            if self.job.place is not None:
                remember(Path(self.job.place), self.job.folder, collection)
            self._attach(collection)


def _close(process: subprocess.Popen[str]) -> None:
    """Close the pipe, which makes the process end."""
    assert process.stdin is not None
    with suppress(OSError, ValueError):
        process.stdin.close()
