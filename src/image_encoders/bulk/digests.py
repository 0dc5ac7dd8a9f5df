"""A table of digests: what a collection holds already, in a temporary file, so that memory does not grow with it."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterable

from image_encoders.errors import CollectionError

RECENT = 1 << 12  # entries in the dictionary, of about 170 bytes each, before they go into the file
CACHE = 1000  # KiB of the file that are held in memory
FILTER = 1 << 22  # bytes; with a million entries, one in 30 of the keys that the file lacks is looked for in it


class DigestTable:
    """Texts, each with another text, as 64-bit digests of both: 25 bytes an entry, of a file that nobody else sees,
    and 4 MB of memory for a filter that finds most of what the file lacks.

    A text that was never put is found with a probability of entries / 2**64, with a given other text with the square of
    that: whoever asks for the first alone must bear that, and take what is found as a hint.
    One thread puts; any may read.
    """

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}  # newer than the file
        self._lock = threading.Lock()
        self._file: sqlite3.Connection | None = None  # once there is something in it
        self._filter = bytearray()  # a bit for each ending of a key: where it is 0, the file has no such key

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def put(self, text: str, other: str) -> None:
        """Set the other text of a text."""
        self.put_all([(text, other)])

    def put_all(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Set the other texts of many texts, in one step."""
        self._recent.update((_digest(text), _digest(other)) for text, other in pairs)
        if len(self._recent) >= RECENT:
            self._write()

    def add(self, *texts: str) -> None:
        """Put texts for `has` to find: by 128 bits, so collisions do not occur in practice."""
        self.put_all((text, "\0" + text) for text in texts)

    def has(self, text: str) -> bool:
        """Whether a text was added."""
        return self.matches(text, "\0" + text)

    def __contains__(self, text: str) -> bool:
        return self._find(text) is not None

    def matches(self, text: str, other: str) -> bool:
        """Whether the other text of `text` is `other`."""
        found = self._find(text)
        return found is not None and found == _digest(other)

    def _find(self, text: str) -> int | None:
        recently, file = self._recent, self._file  # in this order, see `_write`
        if not recently and file is None:
            return None
        key = _digest(text)
        if key in recently or file is None:
            return recently.get(key)
        place, bit = _place(key)
        if not self._filter[place] & bit:  # without letting go of the interpreter's lock, as a query does
            return None
        with self._lock:
            found = file.execute("SELECT value FROM digests WHERE key = ?", (key,)).fetchone()
        return found and int(found[0])

    def _write(self) -> None:
        rows = sorted(self._recent.items())  # neighbours share a page
        self._filter = self._filter or bytearray(FILTER)
        for place, bit in (_place(key) for key, _ in rows):
            self._filter[place] |= bit
        try:
            with self._lock:
                self._file = self._file or _temporary_file()
                self._file.execute("BEGIN")
                self._file.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?)", rows)
                self._file.execute("COMMIT")
        except sqlite3.Error as error:
            raise CollectionError(
                f"what is known of the images is kept in a temporary file, which cannot be written ({error}); free "
                "some space, or have TMPDIR name another folder, and run the same command again"
            ) from error
        self._recent = {}  # last: a reader who has just missed an entry here finds it in the file


def _temporary_file() -> sqlite3.Connection:
    """A database without a name: it is in memory until CACHE is full, then in a file, and gone with the connection."""
    file = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    file.execute(f"PRAGMA cache_size = -{CACHE}")
    file.execute("CREATE TABLE digests (key INTEGER PRIMARY KEY, value INTEGER)")
    return file


def _place(key: int) -> tuple[int, int]:
    """The byte of the filter and its bit that stand for a key."""
    return key >> 3 & FILTER - 1, 1 << (key & 7)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
