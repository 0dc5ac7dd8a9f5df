"""The towers of models in the front: each has a queue, and a worker process that is started, watched and replaced."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress

import numpy as np

from image_encoders.api.items import Item
from image_encoders.batching import Embedded
from image_encoders.errors import ImageEncodersError, InputError, Overloaded
from image_encoders.serve.recipe import Recipe
from image_encoders.serve.settings import Settings
from image_encoders.serve.worker_process import Entry, Facts, Unavailable, WorkerProcess

log = logging.getLogger(__name__)

BATCHES_AHEAD = 2  # that a worker may hold: one in the net, the next being prepared
MISSED = 4  # canaries, after which a tower is not ready
BACKOFF_S = (0.2, 1.0, 2.0, 5.0, 10.0, 30.0)  # before the next try to start a worker
UNKNOWN_S = 1.0  # when to come back, while nothing has been measured
STEADY_S = 30.0  # a worker that lived so long has not died at its start
NEWEST = 0.1  # the weight of the last answer in the measured speed


class TowerQueue:
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
        self._worker: WorkerProcess | None = None
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
        self._fail_all("the service is stopping")

    @property
    def waiting(self) -> int:
        """Items without a result yet."""
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
        """Whether a canary succeeded recently, or the net was unloaded as idle."""
        if self.state == "idle":
            return True
        late = MISSED * self._settings.canary_every + 2 * (self.facts.seconds if self.facts else 0.0)
        return self.state == "ready" and self._worker is not None and time.monotonic() - self._worker.proved < late

    def admit(self) -> None:
        """Raise Overloaded or Unavailable if no more items are accepted at the moment."""
        if self.state == "unhealthy":
            raise Unavailable(f"{self._recipe.called} has stopped and is being restarted", retry_s=2.0)
        waiting = self.waiting
        if waiting >= self._settings.max_waiting:
            retry_s = waiting * self.seconds_per_item if self.seconds_per_item else UNKNOWN_S
            raise Overloaded(limit=self._settings.max_waiting, waiting=waiting, retry_s=retry_s)

    async def embed(self, item: Item) -> Embedded:
        """The embedding of an item, in order of arrival; raises InputError, Unavailable."""
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
        worker, facts = await WorkerProcess.start(self._recipe, self._modality, self._settings)
        if self.facts is not None and facts.fingerprint != self.facts.fingerprint:
            await worker.end()
            raise ImageEncodersError(f"{facts.name} differs from the encoder loaded before: its files have changed")
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
                log.error("%s: its worker has ended; starting another", what)
                self.restarts += 1
            except (ImageEncodersError, OSError) as error:
                log.error("%s: %s", what, error)
                self.state = "unhealthy"
                self._fail_all(f"{self._recipe.called} cannot be loaded at the moment")
            failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])

    async def _run(self, worker: WorkerProcess) -> bool:
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
                    log.error("%s: serving its worker failed", self._recipe.called, exc_info=one)
            for entry in worker.sent.values():
                _fail(entry, "the worker that was processing this item has ended")
            await worker.end()
        return rested

    async def _rest(self) -> None:
        """Wait, without a worker, for something to do."""
        self._wanted.clear()
        if not self._waiting:
            await self._wanted.wait()

    async def _send(self, worker: WorkerProcess) -> None:
        most = BATCHES_AHEAD * self._settings.batch_size
        while True:
            self._wanted.clear()
            while self._waiting and worker.has_room(self._waiting[0], most):
                entry = self._waiting.popleft()
                if not entry.future.done():
                    self._used = time.monotonic()
                    await worker.send(entry)
            await self._wanted.wait()

    async def _answer(self, worker: WorkerProcess) -> None:
        async for entry, header, content in worker.listen():
            self._used = time.monotonic()
            self._wanted.set()
            if header["type"] == "embedding":
                taken = header["prepare_s"], header["embed_s"]
                self._measure(header["per_item_s"])
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

    async def _watch(self, worker: WorkerProcess) -> bool:
        """Return True when it has been idle for long, False when the worker is stuck."""
        idle = self._settings.idle_unload
        while True:
            now = time.monotonic()
            if now - worker.proved > self._settings.canary_every / 2:  # else an answer has just proved as much
                worker.try_canary()
            await asyncio.sleep(min(self._settings.canary_every, idle or self._settings.canary_every))
            now = time.monotonic()
            if now - worker.proved > self._settings.stuck_after:
                log.error("%s, %s: no canary succeeded", self._recipe.called, self._modality)
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
