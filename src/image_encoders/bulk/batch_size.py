"""The batch size, if the caller does not set it."""

from __future__ import annotations

SMALLEST, LARGEST = 8, 64  # inputs
TRIES = 2  # batches that a size is judged by
WORTH = 1.05  # times the inputs/s: what a larger batch must bring


class BatchSizeTuner:
    """A batch size that doubles as long as the first batches get faster; or a fixed one.

    size: of the next batch
    most: the largest there may be
    fits: how many fit into the device's memory, as far as known
    seconds: the net's total time
    """

    def __init__(self, fixed: int | None = None):
        self.trying = fixed is None
        self.size = fixed or SMALLEST
        self.most = fixed or LARGEST
        self.fits = self.most
        self.seconds = 0.0
        self._best = 0.0  # inputs/s of the size before
        self._rates: list[float] = []  # of this size

    def took(self, count: int, seconds: float) -> None:
        """Learn from a batch; the first of a size is not counted, as the engine gets ready for it."""
        self.seconds += seconds
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

    def ran_out_of_memory(self, count: int) -> None:
        """Learn that a batch was too large for the device."""
        self.fits = min(self.fits, (count + 1) // 2)
