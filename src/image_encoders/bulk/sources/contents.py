"""Bytes that were read ahead because a sequential read passed them, up to a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable

MOST = 1 << 28  # bytes that may wait
PATIENCE_S = 1.0  # how long to wait for room, while nothing is taken

_changed = threading.Condition()
_waiting = 0  # bytes
_taken = 0  # how many were taken or dropped so far


class Content:
    """Bytes that wait to be taken, once; dropped with this object.

    Where `MOST` bytes wait already, it takes until some of them are taken; only where none are, as when somebody makes
    a list of all items, more are held.
    """

    def __init__(self, content: bytes):
        global _waiting
        with _changed:
            while _waiting and _waiting + len(content) > MOST:
                taken = _taken
                if not _changed.wait_for(lambda: _taken != taken, PATIENCE_S):  # noqa: B023  called in this turn
                    break
            _waiting += len(content)
        self._content: bytes | None = content

    def take(self, otherwise: Callable[[], bytes]) -> bytes:
        """The bytes, or `otherwise` where they were taken before."""
        with _changed:
            content, self._content = self._content, None
        if content is None:
            return otherwise()
        _release(len(content))
        return content

    def __del__(self) -> None:
        content = getattr(self, "_content", None)
        if content is not None:
            _release(len(content))


def taken(content: Content | None, otherwise: Callable[[], bytes]) -> bytes:
    """The bytes that wait, or `otherwise` where none do."""
    return otherwise() if content is None else content.take(otherwise)


def _release(size: int) -> None:
    global _waiting, _taken
    with _changed:
        _waiting -= size
        _taken += 1
        _changed.notify_all()
