"""What a collection holds already, small enough for ten million files in memory."""

from __future__ import annotations

import hashlib

import numpy as np

RECENT = 1 << 16  # entries in the dictionary before they go into the arrays; more where the arrays are long


class Known:
    """A few integers for each text: 8 bytes an entry and 8 more for each integer.

    It keeps 64-bit digests, not texts: one that was never put is found with a probability of entries / 2**64. Whoever
    uses it must bear that: compare the integers too, or take what is found as a hint.
    One thread puts; any may read.
    """

    def __init__(self, integers: int):
        """integers: how many each text has; 0 for a mere set."""
        # Sorted keys, and row i for key i: one attribute, so that a reader on another thread sees both or neither.
        self._arrays = np.empty(0, np.uint64), np.empty((0, integers), np.int64)
        self._recent: dict[int, tuple[int, ...]] = {}  # newer than the arrays

    def get(self, text: str) -> tuple[int, ...] | None:
        """The integers of a text, or None."""
        if not self._recent and not len(self._arrays[0]):
            return None
        key = _digest(text)
        recent = self._recent.get(key)
        if recent is not None:
            return recent
        keys, values = self._arrays
        place = int(keys.searchsorted(np.uint64(key)))
        if place < len(keys) and int(keys[place]) == key:
            return tuple(map(int, values[place]))
        return None

    def __contains__(self, text: str) -> bool:
        return self.get(text) is not None

    def put(self, text: str, *integers: int) -> None:
        """Set the integers of a text."""
        self._recent[_digest(text)] = integers
        if len(self._recent) >= max(RECENT, len(self._arrays[0]) // 16):
            self._merge()

    def _merge(self) -> None:
        keys, values = self._arrays
        newer = np.fromiter(self._recent, np.uint64, len(self._recent))
        kept = ~np.isin(keys, newer)
        keys = np.concatenate([keys[kept], newer])
        values = np.concatenate([values[kept], np.array(list(self._recent.values()), np.int64)])
        order = np.argsort(keys)
        self._arrays = keys[order], values[order]
        self._recent = {}


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
