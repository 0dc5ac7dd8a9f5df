"""A process that embeds for one tower of one model: `python -c ... worker NAME MODALITY`, its socket on standard input.

    service ─load→ worker ─ready→ service ─item, item, cancel, ...→ worker ─embedding, error, ...→ service

Items are read and prepared on a few threads, and go through the net by the package's batcher. The process ends when the
other end of its socket closes, whatever it is doing.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import queue
import re
import socket
import threading
import time
import wave
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from image_encoders import models
from image_encoders.batching import Batcher, Embedded
from image_encoders.canaries import canary_images
from image_encoders.embedding import as_input_error
from image_encoders.encoder import Encoder, Tower, cores
from image_encoders.errors import ImageEncodersError, InputError, first_line
from image_encoders.serve import frames, logs

log = logging.getLogger(__name__)

START = "import sys; sys.path[:] = {path!r}; from image_encoders.serve.worker import main; main()"
LONGEST_BATCH_S = 1.0  # so that no item waits longer for the net to be free
PROBES = 8  # inputs in the batch that the net's speed is measured with
HINT = re.compile(r" \(IMAGE_ENCODERS_\w+\)")  # how the owner of this machine changes a limit

Send = Callable[[dict[str, Any], bytes], None]


def main() -> None:
    """Serve requests on standard input, a socket, until it closes."""
    connection = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # whatever libraries print
    answers = _Answers(connection)
    stream = connection.makefile("rb")
    wished = frames.read(stream)
    if wished is not None:
        logs.configure(as_json=wished[0].pop("json_logs"))
        worker: Future[Worker] = Future()
        threading.Thread(target=_load, args=(wished[0], answers.send, worker), daemon=True).start()
        while (frame := frames.read(stream)) is not None:
            worker.result().take(*frame)
    os._exit(0)  # without waiting for threads


def _load(wishes: dict[str, Any], send: Send, made: Future[Worker]) -> None:
    """Load the requested tower, and report the result."""
    try:
        modality, batch_size, deadline = (wishes.pop(one) for one in ("modality", "batch_size", "deadline"))
        encoder = models.load(**wishes)
        tower = encoder.tower(modality or next(iter(encoder.towers)))
        facts = _facts(encoder, tower)
        del encoder  # and the nets of its other towers
        gc.collect()
        worker = Worker(tower, send, batch_size, deadline)
        made.set_result(worker)
    except (ImageEncodersError, OSError, TypeError, ValueError) as error:
        send({"type": "failed", "message": str(error)}, b"")
    except BaseException as error:
        log.error("the model could not be loaded", exc_info=error)
        send({"type": "failed", "message": f"{type(error).__name__}: {first_line(error)}"}, b"")
    else:
        send({"type": "ready", **facts, "seconds": worker.seconds, "pid": os.getpid()}, b"")


def _facts(encoder: Encoder, tower: Tower) -> dict[str, Any]:
    about = ("name", "dim", "fingerprint", "device", "engine", "precision")
    facts = {name: getattr(encoder, name) for name in about}
    return {**facts, "modality": tower.modality, "modalities": list(encoder.modalities)}


class _Answers:
    """Sends messages on its own thread: a batch never waits for the service to read."""

    def __init__(self, connection: socket.socket):
        self._frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._connection = connection
        threading.Thread(target=self._run, name="answers", daemon=True).start()

    def send(self, header: dict[str, Any], content: bytes) -> None:
        self._frames.put(frames.pack(header, content))

    def _run(self) -> None:
        try:
            while True:
                self._connection.sendall(self._frames.get())
        except OSError:  # the other end is closed
            os._exit(0)


@dataclass
class _Item:
    """What is to be embedded.

    embedding: what it waits for, once it is prepared
    """

    number: int
    canary: bool
    source: Any
    since: float = field(default_factory=time.monotonic)
    left: bool = False
    embedding: Future[Embedded] | None = None


class Worker:
    """A tower at work: items to embeddings, each answered by its number.

    Canaries are read on a separate thread, so slow images do not make a worker look stuck. It is stuck when every
    thread has been busy with one item for longer than the deadline of a request.

    deadline: how long that is [s]
    threads: that read and prepare
    seconds: that the canary took alone, after loading
    """

    def __init__(
        self, tower: Tower, send: Send, batch_size: int, deadline: float = float("inf"), threads: int | None = None
    ):
        self._tower, self._send, self._batch_size = tower, send, batch_size
        self._items: dict[int, _Item] = {}
        self._work: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._canaries: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._deadline = deadline
        self._at_work_since: dict[int, float] = {}  # by the threads that are at an item
        self._threads = threads or cores()
        self._canary = canary(tower.modality)
        input = tower.input(self._canary)
        tower.embeddings([input])  # which selects engines and compiles
        self.seconds, cost_per_s = _measure(tower, input)
        most = max(input.size, int(LONGEST_BATCH_S * cost_per_s / tower.streams))
        self._batcher = Batcher(tower.embeddings, cost=lambda one: int(one.size), max_cost=most, streams=tower.streams)
        for number in range(self._threads):
            threading.Thread(target=self._run, args=(number,), name=f"prepare-{number}", daemon=True).start()
        threading.Thread(target=self._run_canaries, name="canaries", daemon=True).start()

    def take(self, header: dict[str, Any], content: bytes) -> None:
        """Start what a frame requests."""
        kind = header["type"]
        if kind == "cancel":
            self._cancel(header["id"])
            return
        source = self._canary if kind == "canary" else content.decode() if kind == "text" else content
        item = _Item(header["id"], kind == "canary", source)
        self._items[item.number] = item
        (self._canaries if item.canary else self._work).put(item)

    def _cancel(self, number: int) -> None:
        item = self._items.pop(number, None)
        if item is not None:
            item.left = True
            if item.embedding is not None:
                item.embedding.cancel()

    def _run(self, number: int) -> None:
        """The loop of each preparing thread."""
        while True:
            item = self._work.get()
            self._at_work_since[number] = time.monotonic()
            self._prepare(item)
            del self._at_work_since[number]
            del item  # the next one may be long in coming

    def _run_canaries(self) -> None:
        while True:
            item = self._canaries.get()
            while self._is_stuck():
                time.sleep(0.05)
            self._prepare(item)

    def _is_stuck(self) -> bool:
        since = list(self._at_work_since.values())
        return len(since) == self._threads and max(since) < time.monotonic() - self._deadline

    def _prepare(self, item: _Item) -> None:
        if item.left:
            return
        began = time.monotonic()
        try:
            prepared = self._tower.input(item.source)
            self._tower.check(prepared)
            item.source = None
            (item.embedding,) = self._batcher.submit(
                [prepared],
                batch_size=self._batch_size,
                prepare_s=time.monotonic() - began,
                first=item.canary,
            )
        except Exception as error:  # a decoder may raise anything
            self._answer(item, reason(error))
            return
        item.embedding.add_done_callback(lambda future: self._done(item, future))
        if item.left:
            item.embedding.cancel()

    def _done(self, item: _Item, future: Future[Embedded]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None or isinstance(error, InputError):
            self._answer(item, future.result() if error is None else reason(error))
        else:  # no item's fault: the device, a bug
            log.error("a batch failed", exc_info=error)
            self._send({"type": "broken", "id": item.number, "message": type(error).__name__}, b"")

    def _answer(self, item: _Item, outcome: Embedded | InputError) -> None:
        if self._items.pop(item.number, None) is None:
            return
        queues = {"preparing": self._work.qsize(), "waiting": self._batcher.waiting}
        if isinstance(outcome, InputError):
            about = {"type": "error", "message": outcome.message, "code": outcome.code}
            self._send({**about, "id": item.number, **queues}, b"")
            return
        per_item_s = outcome.embed_s / outcome.batch / self._tower.streams
        times = {"prepare_s": outcome.prepare_s, "embed_s": outcome.embed_s, "batch": outcome.batch}
        embedding = np.ascontiguousarray(outcome.embedding, "<f4").tobytes()
        self._send({"type": "embedding", "id": item.number, **times, "per_item_s": per_item_s, **queues}, embedding)


def reason(error: BaseException) -> InputError:
    """What a client may see: our own reasons unchanged; others only go to the log, as they may contain paths."""
    error = error if isinstance(error, InputError) else as_input_error(error)  # type: ignore[arg-type]
    if error.code not in ("unexpected", "out-of-memory"):
        return InputError(HINT.sub("", error.message), code=error.code)
    log.error("an item could not be encoded", exc_info=error.__cause__ or error)
    return InputError(f"the model fails on it: {type(error.__cause__ or error).__name__}", code=error.code)


def canary(modality: str) -> Any:
    """A source of a modality that every model of it takes."""
    if modality == "text":
        return "a canary"
    if modality == "image":
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(canary_images()[0]).save(file, "PNG")
        return file.getvalue()
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(44_100)
        sound.writeframes((np.sin(np.arange(44_100) * 0.06) * 9_000).astype("<i2").tobytes())
    return file.getvalue()


def _measure(tower: Tower, input: np.ndarray) -> tuple[float, float]:
    """The seconds that one input takes alone, and how many numbers of inputs go through the net in a second."""

    def seconds(count: int) -> float:
        began = time.monotonic()
        tower.embeddings([input] * count)
        return max(time.monotonic() - began, 1e-6)

    alone = min(seconds(1) for _ in range(2))
    if alone > LONGEST_BATCH_S / PROBES:  # a batch might take long
        return alone, input.size / alone
    return alone, PROBES * input.size / min(seconds(PROBES) for _ in range(2))
