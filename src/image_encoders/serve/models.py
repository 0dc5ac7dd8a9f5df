"""The models of a service: for each tower a worker process, which is started, watched, replaced and ended here."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.api.items import Item
from image_encoders.batching import Embedded
from image_encoders.errors import CollectionError, ImageEncodersError, InputError, Overloaded
from image_encoders.serve import frames
from image_encoders.serve.settings import Settings
from image_encoders.serve.worker import START

if TYPE_CHECKING:
    from image_encoders.collection import Collection

log = logging.getLogger(__name__)

MOST_BYTES = 256 << 20  # of items that a worker may hold
BATCHES_AHEAD = 2  # that a worker may hold: one in the net, the next being prepared
MISSED = 4  # canaries, after which a tower is not ready
BACKOFF_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)  # before the next try to start a worker
UNKNOWN_S = 1.0  # when to come back, while nothing has been measured
STEADY_S = 30.0  # a worker that lived so long has not died at its start
NEWEST = 0.1  # the weight of the last answer in the measured speed


class Unavailable(ImageEncodersError):
    """The worker that should have answered has ended, or there is none just now."""

    def __init__(self, message: str, retry_s: float = 1.0):
        super().__init__(message)
        self.retry_s = retry_s


@dataclass(frozen=True)
class Recipe:
    """What `load` is asked for; all of it plain values, which JSON can hold.

    id: what requests call the model; without it its name, and of a local folder the folder's last part: paths are
        nobody's business
    """

    name: str
    wishes: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""

    @classmethod
    def of(cls, collection: Collection) -> Recipe:
        """That of the encoder that a collection was begun with."""
        match collection.recipe:
            case {"name": str(name), "options": dict(options)}:
                wishes = {key: one for key, one in collection.recipe.items() if key not in ("name", "options")}
                wishes = {key: one for key, one in {**options, **wishes}.items() if one is not None}
                return cls(name, {**wishes, "precision": collection.precision})
        raise CollectionError(f"{collection.folder} does not say how its encoder was loaded; name it with --model")

    @property
    def called(self) -> str:
        """What requests call it."""
        family, _, variant = self.name.partition("/")
        if self.id or not variant.startswith((".", "/", "~")):
            return self.id or self.name
        return f"{family}/{os.path.basename(os.path.realpath(os.path.expanduser(variant)))}"


@dataclass(frozen=True)
class Facts:
    """What a worker says of its model and its tower when it is ready."""

    name: str
    dim: int
    fingerprint: str
    device: str
    engine: str
    precision: str
    modality: str
    modalities: tuple[str, ...]
    seconds: float
    pid: int


@dataclass(eq=False)
class Entry:
    """An item that waits, or is in a worker, and who waits for it.

    item: None once it was sent
    number: of the frame that it was sent in
    """

    item: Item | None
    future: asyncio.Future[Embedded]
    since: float = field(default_factory=time.monotonic)
    number: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        self.size = 0 if self.item is None else len(self.item.content)


class Worker:
    """One process, from its start to its end.

    sent: what it has to answer yet
    held: bytes of that
    proved: when a canary came back last
    queues: how many items wait in it to be prepared, and for the net, as it said with its last answer
    """

    def __init__(self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._process, self._reader, self._writer = process, reader, writer
        self._numbers = count(1)
        self._canary: tuple[int, float] | None = None
        self.sent: dict[int, Entry] = {}
        self.held = 0
        self.proved = time.monotonic()
        self.queues = {"preparing": 0, "waiting": 0}

    @classmethod
    async def start(cls, recipe: Recipe, modality: str | None, settings: Settings) -> tuple[Worker, Facts]:
        """A worker that is ready; raises ImageEncodersError with its reason where it cannot load."""
        ours, theirs = socket.socketpair()
        with theirs:
            words = [sys.executable, "-c", START.format(path=sys.path), recipe.name, modality or ""]
            process = subprocess.Popen(
                words, stdin=theirs.fileno(), env=_environment(settings), start_new_session=True
            )  # the terminal's Ctrl-C is for this process, which then ends that one
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = cls(process, reader, writer)
        try:
            wishes = {**recipe.wishes, "name": recipe.name, "modality": modality}
            wishes |= {
                "batch_size": settings.batch_size,
                "deadline": settings.deadline,
                "json_logs": settings.json_logs,
            }
            writer.write(frames.pack(wishes))
            frame = await frames.receive(reader)
            if frame is None:
                raise Unavailable(f"{recipe.name}: the process that loads it ended with no reason given")
            header, _ = frame
            if header.pop("type") != "ready":
                raise ImageEncodersError(f"{recipe.name}: {header['message']}")
        except BaseException:
            await worker.end()
            raise
        worker.proved = time.monotonic()
        return worker, Facts(**{**header, "modalities": tuple(header["modalities"])})

    def has_room(self, entry: Entry, most: int) -> bool:
        """Whether it may hold this item beside the others; one alone it may hold in any case."""
        return not self.sent or (len(self.sent) < most and self.held + entry.size <= MOST_BYTES)

    async def send(self, entry: Entry) -> None:
        """Give it an item; waits while it has more to read than sockets hold."""
        item, entry.item = entry.item, None
        assert item is not None, "an item is sent once"
        entry.number = next(self._numbers)
        self.sent[entry.number] = entry
        self.held += entry.size
        content = item.content.encode() if isinstance(item.content, str) else item.content
        kind = "text" if item.modality == "text" else "file"
        self._writer.write(frames.pack({"type": kind, "id": entry.number}, content))
        del item, content
        await self._writer.drain()

    def cancel(self, entry: Entry) -> None:
        """Have it forget an item that nobody waits for."""
        if self.sent.get(entry.number) is entry:
            self._take(entry.number)
            self._writer.write(frames.pack({"type": "cancel", "id": entry.number}))

    def _take(self, number: int) -> Entry | None:
        entry = self.sent.pop(number, None)
        self.held -= 0 if entry is None else entry.size
        return entry

    def try_canary(self) -> None:
        """Send a canary, unless one is on its way."""
        if self._canary is None:
            self._canary = next(self._numbers), time.monotonic()
            self._writer.write(frames.pack({"type": "canary", "id": self._canary[0]}))

    async def listen(self) -> Any:
        """Answers as they come, (entry, header, embedding), until the process ends."""
        while (frame := await frames.receive(self._reader)) is not None:
            header, content = frame
            self.queues = {name: header.get(name, 0) for name in self.queues}
            if self._canary is not None and header["id"] == self._canary[0]:
                self._canary = None
                if header["type"] == "embedding":
                    self.proved = time.monotonic()
                continue
            entry = self._take(header["id"])
            if entry is not None and not entry.future.done():
                yield entry, header, content

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._process.kill()

    async def end(self) -> None:
        """Have it end, and wait for that."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
        self._process.kill()
        await asyncio.get_running_loop().run_in_executor(None, self._process.wait)


def _environment(settings: Settings) -> dict[str, str]:
    limits = {
        "IMAGE_ENCODERS_MAX_BYTES": str(settings.max_image_bytes),
        "IMAGE_ENCODERS_MAX_PIXELS": str(settings.max_pixels),
    }
    return {**os.environ, **limits}


class Tower:
    """One modality of a model: its items wait here, and go to its worker a few at a time.

    state: "loading", "ready", "unhealthy" or "idle"
    seconds_per_item: as measured, when its worker has much to do
    """

    def __init__(self, recipe: Recipe, modality: str | None, settings: Settings):
        self._recipe, self._modality, self._settings = recipe, modality, settings
        self.state = "loading"
        self.facts: Facts | None = None
        self.restarts = 0
        self._waiting: deque[Entry] = deque()
        self._worker: Worker | None = None
        self._wanted = asyncio.Event()  # there is something to send, or room for it
        self._keeper: asyncio.Task[None] | None = None
        self._used = time.monotonic()
        self.seconds_per_item = 0.0

    async def start(self) -> Facts:
        """Load the model; raises ImageEncodersError where that cannot be done."""
        await self._start_worker()
        self._keeper = asyncio.create_task(self._keep())
        assert self.facts is not None
        return self.facts

    def begin(self, facts: Facts, *, at_once: bool) -> None:
        """Load the model in the background: at once, or when the first item comes.

        facts: what is known of it already
        """
        self.facts = facts
        self.state = "loading" if at_once else "idle"
        self._keeper = asyncio.create_task(self._keep(at_once))

    async def close(self) -> None:
        """End the worker; what waits fails."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        self._fail_all("the service stops")

    @property
    def waiting(self) -> int:
        """Items that have no answer yet."""
        return len(self._waiting) + (len(self._worker.sent) if self._worker else 0)

    @property
    def queues(self) -> dict[str, int]:
        """How many wait in the service, to be prepared, and for the net."""
        inside = self._worker.queues if self._worker else {"preparing": 0, "waiting": 0}
        return {"service": len(self._waiting), **inside}

    @property
    def pid(self) -> int | None:
        """Of the worker's process."""
        return self.facts.pid if self._worker and self.facts else None

    @property
    def ready(self) -> bool:
        """Whether a canary came through lately; or nothing runs, as nothing was asked for in a long time."""
        if self.state == "idle":
            return True
        late = MISSED * self._settings.canary_every + 2 * (self.facts.seconds if self.facts else 0.0)
        return self.state == "ready" and self._worker is not None and time.monotonic() - self._worker.proved < late

    def admit(self) -> None:
        """Raise Overloaded or Unavailable where no more may come just now."""
        if self.state == "unhealthy":
            raise Unavailable(f"{self._recipe.called} has ended, and is being started again", retry_s=2.0)
        waiting = self.waiting
        if waiting >= self._settings.max_waiting:
            retry_s = waiting * self.seconds_per_item if self.seconds_per_item else UNKNOWN_S
            raise Overloaded(limit=self._settings.max_waiting, waiting=waiting, retry_s=retry_s)

    async def embed(self, item: Item) -> Embedded:
        """The embedding of an item, after those that came before it; raises InputError, Unavailable."""
        entry = Entry(item, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._wanted.set()
        try:
            return await entry.future
        except asyncio.CancelledError:
            with suppress(ValueError):
                self._waiting.remove(entry)
            if self._worker is not None:
                self._worker.cancel(entry)
                self._wanted.set()
            raise

    async def _start_worker(self) -> None:
        self.state = "loading"
        worker, facts = await Worker.start(self._recipe, self._modality, self._settings)
        if self.facts is not None and facts.fingerprint != self.facts.fingerprint:
            await worker.end()
            raise ImageEncodersError(f"{facts.name} is another encoder than before: its files have changed")
        self._worker, self.facts, self.state, self._modality = worker, facts, "ready", facts.modality
        self._used = time.monotonic()

    async def _keep(self, at_once: bool = True) -> None:
        """Keep a worker at work, until cancelled."""
        failures, what = 0, f"{self._recipe.called}, {self._modality}"
        if not at_once:
            await self._rest()
        while True:
            began = time.monotonic()
            try:
                if self._worker is None:
                    await self._start_worker()
                assert self._worker is not None
                if await self._run(self._worker):
                    await self._rest()
                    continue
                log.error("%s: its worker has ended; another one is started", what)
                self.restarts += 1
            except (ImageEncodersError, OSError) as error:
                log.error("%s: %s", what, error)
                self.state = "unhealthy"
                self._fail_all(f"{self._recipe.called} cannot be loaded just now")
            failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])

    async def _run(self, worker: Worker) -> bool:
        """Use a worker until it ends; whether it was ended because there was nothing to do."""
        watching = asyncio.create_task(self._watch(worker))
        tasks = [watching, *(asyncio.create_task(one) for one in (self._answer(worker), self._send(worker)))]
        rested = False
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            rested = watching.done() and watching.exception() is None and watching.result() is True
        finally:
            self._worker, self.state = None, "idle" if rested else "unhealthy"
            for task in tasks:
                task.cancel()
            for one in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(one, Exception) and not isinstance(one, OSError):
                    log.error("%s: what serves its worker failed", self._recipe.called, exc_info=one)
            for entry in worker.sent.values():
                _fail(entry, "the worker that had this item has ended")
            await worker.end()
        return rested

    async def _rest(self) -> None:
        """Wait, without a worker, for something to do."""
        self._wanted.clear()
        if not self._waiting:
            await self._wanted.wait()

    async def _send(self, worker: Worker) -> None:
        most = BATCHES_AHEAD * self._settings.batch_size
        while True:
            self._wanted.clear()
            while self._waiting and worker.has_room(self._waiting[0], most):
                entry = self._waiting.popleft()
                if not entry.future.done():
                    self._used = time.monotonic()
                    await worker.send(entry)
            await self._wanted.wait()

    async def _answer(self, worker: Worker) -> None:
        async for entry, header, content in worker.listen():
            self._used = time.monotonic()
            self._wanted.set()
            if header["type"] == "embedding":
                taken = header["prepare_s"], header["embed_s"]
                self._measure(header["embed_s"] / header["batch"])
                wait_s = max(self._used - entry.since - sum(taken), 0.0)
                embedding = np.frombuffer(content, "<f4")
                entry.future.set_result(Embedded(embedding, taken[0], wait_s, taken[1], header["batch"]))
            elif header["type"] == "error":
                entry.future.set_exception(InputError(header["message"], code=header["code"]))
            else:
                _fail(entry, f"the model failed: {header['message']}")

    def _measure(self, seconds: float) -> None:
        before = self.seconds_per_item or seconds
        self.seconds_per_item = NEWEST * seconds + (1 - NEWEST) * before

    async def _watch(self, worker: Worker) -> bool:
        """Return True when nothing was to do for long, False when the worker is stuck."""
        idle = self._settings.idle_unload
        while True:
            worker.try_canary()
            await asyncio.sleep(min(self._settings.canary_every, idle or self._settings.canary_every))
            now = time.monotonic()
            if now - worker.proved > self._settings.stuck_after:
                log.error("%s, %s: no canary came back", self._recipe.called, self._modality)
                worker.kill()
                return False
            if idle is not None and not self.waiting and now - self._used > idle:
                return True

    def _fail_all(self, message: str) -> None:
        while self._waiting:
            _fail(self._waiting.popleft(), message)


def _fail(entry: Entry, message: str) -> None:
    if not entry.future.done():
        entry.future.set_exception(Unavailable(message))


class ServedModel:
    """A model and its towers, the main one first."""

    def __init__(self, recipe: Recipe, settings: Settings):
        self._recipe, self._settings = recipe, settings
        self.towers: dict[str, Tower] = {}

    @classmethod
    def of(cls, collection: Collection, settings: Settings) -> ServedModel:
        """The model of a collection, known before it is loaded; its text tower is loaded now, others when needed."""
        model = cls(Recipe.of(collection), settings)
        begun = collection.mark["encoder"]
        for modality in collection.modalities:
            facts = Facts(
                name=collection.name,
                dim=collection.dim,
                fingerprint=collection.fingerprint,
                device=begun["device"],
                engine=begun["engine"],
                precision=collection.precision,
                modality=modality,
                modalities=collection.modalities,
                seconds=0.0,
                pid=0,
            )
            model.towers[modality] = Tower(model._recipe, modality, settings)
            model.towers[modality].begin(facts, at_once=modality == "text")
        return model

    async def start(self) -> None:
        """Load it: first the main tower, which converts what there is to convert; then the others together."""
        main = Tower(self._recipe, None, self._settings)
        facts = await main.start()
        self.towers[facts.modality] = main
        others = [one for one in facts.modalities if one != facts.modality]
        self.towers.update({one: Tower(self._recipe, one, self._settings) for one in others})
        await asyncio.gather(*(self.towers[one].start() for one in others))

    async def close(self) -> None:
        await asyncio.gather(*(tower.close() for tower in self.towers.values()))

    @property
    def facts(self) -> Facts:
        """What its main tower said when it was ready."""
        facts = next(iter(self.towers.values())).facts
        assert facts is not None, "a model is used once it has started"
        return facts

    @property
    def name(self) -> str:
        """What requests call it."""
        return self._recipe.called

    @property
    def dim(self) -> int:
        return self.facts.dim

    @property
    def fingerprint(self) -> str:
        return self.facts.fingerprint

    @property
    def precision(self) -> str:
        return self.facts.precision

    @property
    def engine(self) -> str:
        return self.facts.engine

    @property
    def device(self) -> str:
        return self.facts.device

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.towers)

    @property
    def ready(self) -> bool:
        return all(tower.ready for tower in self.towers.values())

    @property
    def state(self) -> str:
        """The worst of its towers'; "unhealthy" too where a canary is late."""
        states = [
            tower.state if tower.ready or tower.state == "loading" else "unhealthy" for tower in self.towers.values()
        ]
        order = ("unhealthy", "loading", "ready", "idle")
        return min(states, key=order.index)

    def tower(self, modality: str) -> Tower:
        """The tower of `modality`; InputError where this model has none."""
        if modality not in self.towers:
            raise InputError(f"{self.name} has no {modality} tower; it has: {', '.join(self.towers)}", code="no-tower")
        return self.towers[modality]
