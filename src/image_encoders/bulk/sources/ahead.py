"""Items that come over a network: looked at on separate threads, and returned as they become ready."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import cast

from image_encoders.bulk.sources.items import Entry, RemoteEntry, SourceItem, nothing_known

THREADS = 64  # entries looked at at a time
OF_ONE_HOST = 8  # of these, where it is not a store that is made for many
MOST = 512  # entries that are under way, so that a slow host holds up few others


def items_of(entries: Iterable[Entry], known: Callable[[str, str], bool] = nothing_known) -> Iterator[SourceItem]:
    """The items of entries, in order, except for those that come over a network, which come when ready.

    known: as of a `Walk`
    """
    with ExitStack() as ending:
        ahead: Ahead | None = None
        for entry in entries:
            if not hasattr(entry, "host"):
                yield entry.item()
                continue
            if ahead is None:
                ahead = Ahead(known)
                ending.callback(ahead.close)
            ahead.add(cast(RemoteEntry, entry))
            yield from ahead.taken()
        if ahead is not None:
            yield from ahead.rest()


class Ahead:
    """Entries whose items are looked at ahead of time, a few of each host at once.

    known: as of a `Walk`
    """

    def __init__(self, known: Callable[[str, str], bool]):
        self._known = known
        self._changed = threading.Condition()
        self._waiting: dict[str, deque[RemoteEntry]] = {}
        self._running: Counter[str] = Counter()
        self._done: deque[SourceItem | BaseException] = deque()
        self._under_way = 0  # entries that wait, are looked at, or are done and not taken

    def add(self, entry: RemoteEntry) -> None:
        """Have an entry looked at."""
        with self._changed:
            self._waiting.setdefault(entry.host, deque()).append(entry)
            self._under_way += 1
            if self._free(entry.host):
                self._begin(entry.host)

    def taken(self) -> Iterator[SourceItem]:
        """The finished items; waits while very many are in progress."""
        while one := self._next(MOST):
            yield one

    def rest(self) -> Iterator[SourceItem]:
        """All items in progress, as they finish."""
        while one := self._next(1):
            yield one

    def close(self) -> None:
        """Start nothing more."""
        with self._changed:
            self._waiting.clear()

    def _next(self, most: int) -> SourceItem | None:
        """What was done first; waits for it while `most` or more are under way."""
        with self._changed:
            while not self._done:
                if self._under_way < most:
                    return None
                self._changed.wait()
            one = self._done.popleft()
            self._under_way -= 1
        if isinstance(one, BaseException):
            raise one
        return one

    def _free(self, host: str) -> bool:
        """Whether another entry of a host may be looked at; under the lock."""
        most = OF_ONE_HOST if self._waiting[host][0].polite else THREADS
        return self._running[host] < most and self._running.total() < THREADS

    def _begin(self, host: str) -> None:
        """Look at the next entry of a host; under the lock."""
        waiting = self._waiting[host]
        entry = waiting.popleft()
        if not waiting:
            del self._waiting[host]
        self._running[host] += 1
        # A thread of its own costs little beside a fetch; unlike a pool's, it is not waited for when the process ends.
        threading.Thread(target=self._look, args=(entry,), name="fetch", daemon=True).start()

    def _look(self, entry: RemoteEntry) -> None:
        try:
            one: SourceItem | BaseException = entry.item(self._known)
        except BaseException as error:  # is raised where somebody takes it
            one = error
        with self._changed:
            self._done.append(one)
            self._running[entry.host] -= 1
            if not self._running[entry.host]:
                del self._running[entry.host]
            free = next(filter(self._free, self._waiting), None)
            if free is not None:
                self._begin(free)
            self._changed.notify_all()
