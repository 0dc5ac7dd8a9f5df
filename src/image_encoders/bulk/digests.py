"""A table of digests: what a collection holds already, small enough for a hundred million items in memory."""

from __future__ import annotations

import hashlib

import numpy as np

RECENT = 1 << 14  # entries in the dictionary, of about 170 bytes each, before they go into the arrays
BUCKETS = 256  # by the last byte of a key: arrays are replaced a bucket at a time, so that no merge holds two tables


class DigestTable:
    """Texts, each with another text, as 64-bit digests of both: 16 bytes an entry.

    A text that was never put is found with a probability of entries / 2**64, with a given other text with the square of
    that: whoever asks for the first alone must bear that, and take what is found as a hint.
    One thread puts; any may read.
    """

    def __init__(self) -> None:
        # Sorted keys, and value i for key i: a tuple, so that a reader on another thread sees both or neither.
        self._buckets = [(np.empty(0, np.uint64), np.empty(0, np.uint64))] * BUCKETS
        self._recent: dict[int, int] = {}  # newer than the arrays

    def put(self, text: str, other: str) -> None:
        """Set the other text of a text."""
        self._recent[_digest(text)] = _digest(other)
        if len(self._recent) >= RECENT:
            self._merge()

    def add(self, text: str) -> None:
        """Put a text for `has` to find: by 128 bits, so that none is ever taken for another."""
        self.put(text, "\0" + text)

    def has(self, text: str) -> bool:
        """Whether a text was added."""
        return self.matches(text, "\0" + text)

    def __contains__(self, text: str) -> bool:
        return self._find(text) is not None

    def matches(self, text: str, other: str) -> bool:
        """Whether the other text of `text` is `other`."""
        return self._find(text) == _digest(other)

    def _find(self, text: str) -> int | None:
        key = _digest(text)
        recent = self._recent.get(key)
        if recent is not None:
            return recent
        keys, values = self._buckets[key % BUCKETS]
        place = int(keys.searchsorted(np.uint64(key)))
        return int(values[place]) if place < len(keys) and int(keys[place]) == key else None

    def _merge(self) -> None:
        newer = np.fromiter(self._recent, np.uint64, len(self._recent))
        others = np.fromiter(self._recent.values(), np.uint64, len(self._recent))
        order = np.lexsort((newer, newer % BUCKETS))
        newer, others = newer[order], others[order]
        starts = np.searchsorted(newer % BUCKETS, np.arange(BUCKETS))
        for bucket, some in enumerate(zip(np.split(newer, starts[1:]), np.split(others, starts[1:]))):
            if len(some[0]):
                self._buckets[bucket] = _merged(*self._buckets[bucket], *some)
        self._recent = {}  # last: a reader who has just missed an entry here finds it there


def _merged(
    keys: np.ndarray, values: np.ndarray, newer: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Two tables as one, both sorted; where both have a key, the newer one's value."""
    places = keys.searchsorted(newer)
    there = places < len(keys)
    there[there] = keys[places[there]] == newer[there]
    values = values.copy()  # a reader may hold the old one
    values[places[there]] = others[there]
    places, newer, others = places[~there], newer[~there], others[~there]
    return np.insert(keys, places, newer), np.insert(values, places, others)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
