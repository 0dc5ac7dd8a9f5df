"""Inputs of many callers, through the net in batches."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional, Union

import numpy as np

from image_encoders.errors import InputError

log = logging.getLogger(__name__)


@dataclass
class _Waiting:
    """An input, and what became of it."""

    array: np.ndarray
    limit: Optional[int]
    outcome: Union[np.ndarray, InputError, None] = None


class Batcher:
    """Rows for callers on many threads, one batch at a time.

    A caller who finds nobody at work embeds at once, so that nobody waits for company. What arrives in the meantime
    makes the next batch. There is no thread and no timer behind it: nothing that could stop unnoticed.

    rows: inputs -> (N, dim), such as `Tower.rows`
    """

    def __init__(self, rows: Callable[[Sequence[np.ndarray]], np.ndarray]):
        self._rows = rows
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._busy = False

    def __call__(self, inputs: Sequence[np.ndarray], limit: Optional[int]) -> list[Union[np.ndarray, InputError]]:
        """For each input its row (dim,) float32, or why there is none; from any thread.

        limit: how many may share a batch with these; None: any number
        """
        mine = [_Waiting(array, limit) for array in inputs]
        with self._changed:
            self._waiting.extend(mine)
            while any(one.outcome is None for one in mine):
                if self._busy:
                    self._changed.wait()
                else:
                    self._embed_next()
        return [one.outcome for one in mine if one.outcome is not None]

    def _embed_next(self) -> None:
        """Embed those who have waited longest; called with the lock, which others get meanwhile."""
        batch = [self._waiting.popleft()]
        limit = batch[0].limit
        while self._waiting:
            limit = min((n for n in (limit, self._waiting[0].limit) if n is not None), default=None)
            if limit is not None and len(batch) >= limit:
                break
            batch.append(self._waiting.popleft())
        self._busy = True
        self._changed.release()
        try:
            self._embed(batch)
        finally:
            self._changed.acquire()
            self._busy = False
            self._changed.notify_all()

    def _embed(self, batch: list[_Waiting]) -> None:
        """Give every input its outcome; where the batch fails, one by one, so that only the culprit does."""
        try:
            rows = self._rows([one.array for one in batch])
        except BaseException as error:
            if len(batch) > 1 and isinstance(error, Exception):
                for one in batch:
                    self._embed([one])
                return
            for one in batch:  # nobody may wait for ever, whatever happened
                one.outcome = reason(error)
            if not isinstance(error, Exception):
                raise
            return
        for one, row in zip(batch, rows):
            finite = np.isfinite(row).all()
            one.outcome = row if finite else InputError("its embedding is not finite", code="not-finite")


def reason(error: BaseException) -> InputError:
    """What a caller may know: our own reasons as they are; others are for the log, as they may name paths."""
    if isinstance(error, InputError):
        return error
    log.error("a document could not be embedded", exc_info=error)
    return InputError(f"the net fails for it: {type(error).__name__}", code="embed")
