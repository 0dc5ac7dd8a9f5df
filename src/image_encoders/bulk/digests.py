"""A table of digests: what a collection holds already, small enough for ten million items in memory."""

from __future__ import annotations

import hashlib

import numpy as np

RECENT = 1 << 16  # entries in the dictionary before they go into the arrays; more where the arrays are long


class DigestTable:
    """Texts, each with another text, as 64-bit digests of both: 16 bytes an entry.

    A text that was never put is found with a probability of entries / 2**64, with a given other text with the square of
    that: whoever asks for the first alone must bear that, and take what is found as a hint.
    One thread puts; any may read.
    """

    def __init__(self) -> None:
        # Sorted keys, and value i for key i: one attribute, so that a reader on another thread sees both or neither.
        self._arrays = np.empty(0, np.uint64), np.empty(0, np.uint64)
        self._recent: dict[int, int] = {}  # newer than the arrays

    def put(self, text: str, other: str = "") -> None:
        """Set the other text of a text."""
        self._recent[_digest(text)] = _digest(other)
        if len(self._recent) >= max(RECENT, len(self._arrays[0]) // 16):
            self._merge()

    def __contains__(self, text: str) -> bool:
        return self._find(text) is not None

    def matches(self, text: str, other: str) -> bool:
        """Whether the other text of `text` is `other`."""
        return self._find(text) == _digest(other)

    def _find(self, text: str) -> int | None:
        if not self._recent and not len(self._arrays[0]):
            return None
        key = _digest(text)
        recent = self._recent.get(key)
        if recent is not None:
            return recent
        keys, values = self._arrays
        place = int(keys.searchsorted(np.uint64(key)))
        return int(values[place]) if place < len(keys) and int(keys[place]) == key else None

    def _merge(self) -> None:
        keys, values = self._arrays
        newer = np.fromiter(self._recent, np.uint64, len(self._recent))
        kept = ~np.isin(keys, newer)
        keys = np.concatenate([keys[kept], newer])
        values = np.concatenate([values[kept], np.fromiter(self._recent.values(), np.uint64, len(self._recent))])
        order = np.argsort(keys)
        self._arrays = keys[order], values[order]
        self._recent = {}


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
