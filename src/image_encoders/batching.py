"""Inputs of many callers, through a net in batches.

    batcher = Batcher(tower.embeddings, max_waiting=1024)
    (future,) = batcher.submit([tower.input("photos/a.jpg")])
    future.result().embedding

In a coroutine: `await asyncio.wrap_future(future)`, which cancels the future where the coroutine is cancelled.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from image_encoders.embedding import embed_each
from image_encoders.errors import InputError, Overloaded

UNKNOWN_S = 1.0  # when to come back, while no batch has been measured
NEWEST = 0.5  # the weight of the last batch in the measured speed


@dataclass(frozen=True)
class Embedded:
    """An embedding, (dim,) float32, and the times for preparing its input, waiting, and embedding its batch.

    batch: the size of that batch
    """

    embedding: np.ndarray
    prepare_s: float
    wait_s: float
    embed_s: float
    batch: int = 1


@dataclass(frozen=True)
class _Entry:
    input: np.ndarray
    cost: int
    batch_size: int | None
    prepare_s: float
    since: float
    future: Future[Embedded]


class Batcher:
    """Embeddings for callers on many threads.

    If the net is idle, an input is embedded at once; inputs that arrive meanwhile form the next batch, in
    order of arrival. There is no timer: no input waits for a batch to fill.

    embed: inputs -> (N, dim), such as `Tower.embeddings`
    cost: of an input, such as its pixels or tokens; each costs 1 by default
    max_cost: of a batch; an input that costs more goes alone; None: any
    max_waiting: how many inputs may wait; None: any number
    streams: how many batches the net embeds side by side, such as `Tower.streams`
    clock: seconds, for the times in answers
    """

    def __init__(
        self,
        embed: Callable[[Sequence[np.ndarray]], np.ndarray],
        *,
        cost: Callable[[np.ndarray], int] = lambda _: 1,
        max_cost: int | None = None,
        max_waiting: int | None = None,
        streams: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._embed, self._cost, self._clock = embed, cost, clock
        self._max_cost, self._max_waiting, self._streams = max_cost, max_waiting, streams
        self._waiting: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._seconds_per_cost: float | None = None

    def submit(
        self,
        inputs: Sequence[np.ndarray],
        *,
        batch_size: int | None = None,
        prepare_s: float = 0.0,
        first: bool = False,
    ) -> list[Future[Embedded]]:
        """A future of the embedding for each input; callable from any thread.

        batch_size: how many may share a batch with these; None: any number
        prepare_s: how long it took to prepare them, for the results
        first: they go before all inputs that are waiting

        A future that is cancelled while it waits costs nothing. It fails with InputError if its input is the cause,
        otherwise with the engine's error (DeviceError, ...). Raises Overloaded, and takes none of them, if
        others are waiting and `max_waiting` would be exceeded.
        """
        if not inputs:
            return []
        now = self._clock()
        entries = [_Entry(one, self._cost(one), batch_size, prepare_s, now, Future()) for one in inputs]
        with self._changed:
            if self._closed:
                raise RuntimeError("this batcher is closed")
            if first:
                self._waiting.extendleft(reversed(entries))
            else:
                self._make_room(len(entries))
                self._waiting.extend(entries)
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            while len(self._threads) < self._streams:
                self._threads.append(threading.Thread(target=self._run, name="batcher", daemon=True))
                self._threads[-1].start()
            self._changed.notify()
        return [entry.future for entry in entries]

    @property
    def waiting(self) -> int:
        """How many inputs wait for a batch."""
        return len(self._waiting)

    def close(self) -> None:
        """Accept no more inputs, and return when all accepted ones are done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _make_room(self, count: int) -> None:
        """Raise Overloaded unless so many may wait beside those who do."""
        if self._max_waiting is None or len(self._waiting) + count <= self._max_waiting:
            return
        self._waiting = deque(entry for entry in self._waiting if not entry.future.cancelled())
        waiting = len(self._waiting)
        if waiting and waiting + count > self._max_waiting:  # with an empty queue, any number is accepted
            speed = self._seconds_per_cost
            cost = sum(entry.cost for entry in self._waiting)
            retry_s = UNKNOWN_S if speed is None else speed * cost / self._streams
            raise Overloaded(limit=self._max_waiting, waiting=waiting, retry_s=retry_s)

    def _run(self) -> None:
        """What each thread does until the batcher is closed and nothing waits."""
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closed:
                        return
                    self._changed.wait()
                batch = self._next_batch()
                if self._waiting:
                    self._changed.notify()
            if batch:
                self._answer(batch)

    def _next_batch(self) -> list[_Entry]:
        """Those who have waited longest and are still wanted, as many as may go together."""
        batch: list[_Entry] = []
        cost, size = 0, None
        while self._waiting:
            entry = self._waiting[0]
            if entry.future.cancelled():
                self._waiting.popleft()
                continue
            size = min((n for n in (size, entry.batch_size) if n is not None), default=None)
            too_many = size is not None and len(batch) >= size
            if batch and (too_many or (self._max_cost is not None and cost + entry.cost > self._max_cost)):
                break
            self._waiting.popleft()
            if entry.future.set_running_or_notify_cancel():
                batch.append(entry)
                cost += entry.cost
        return batch

    def _answer(self, batch: list[_Entry]) -> None:
        """Set each future's embedding or error, so that no caller waits forever."""
        began = self._clock()
        try:
            outcomes = embed_each(self._embed, [entry.input for entry in batch])
        except BaseException as error:
            for entry in batch:
                entry.future.set_exception(error)
            return
        embed_s = self._clock() - began
        self._measure(embed_s / max(sum(entry.cost for entry in batch), 1))
        for entry, outcome in zip(batch, outcomes):
            if isinstance(outcome, InputError):
                entry.future.set_exception(outcome)
            else:
                entry.future.set_result(Embedded(outcome, entry.prepare_s, began - entry.since, embed_s, len(batch)))

    def _measure(self, seconds_per_cost: float) -> None:
        before = self._seconds_per_cost
        self._seconds_per_cost = (
            seconds_per_cost if before is None else NEWEST * seconds_per_cost + (1 - NEWEST) * before
        )
