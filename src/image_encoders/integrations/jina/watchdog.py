"""Ends processes when the process that started them has ended, however it did. A program of its own, for Linux.

    python watchdog.py PARENT PATIENCE_S    with the number of each process as a line on standard input

PARENT is an inherited pidfd of the parent, which stays valid however early that ends. Processes that do not end when
they are asked to are killed after a while.
"""

# Nothing of this package is imported, so that it starts at once and stays small.
import os
import select
import signal
import sys
import time
from contextlib import suppress

STDIN = 0


def main() -> None:
    parent, patience = int(sys.argv[1]), float(sys.argv[2])
    os.set_blocking(STDIN, False)
    children: list[int] = []
    sources, said = [parent, STDIN], b""
    while True:
        alone = parent in select.select(sources, [], [])[0]
        part = _read()
        *lines, said = (said + part).split(b"\n")
        for line in lines:
            with suppress(ProcessLookupError):
                children.append(os.pidfd_open(int(line)))  # that process, whatever gets its number later
        if alone:
            break
        if not part:  # nothing more will be said
            sources = [parent]
    _send(signal.SIGTERM, children)
    _wait(children, time.monotonic() + patience)
    _send(signal.SIGKILL, children)


def _read() -> bytes:
    """The message so far; empty if the other end is closed."""
    with suppress(BlockingIOError):
        return os.read(STDIN, 1 << 16)
    return b""


def _send(word: signal.Signals, children: list[int]) -> None:
    for child in children:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(child, word)


def _wait(children: list[int], deadline: float) -> None:
    """Until all have ended, or the deadline."""
    while children and (left := deadline - time.monotonic()) > 0:
        for child in select.select(children, [], [], left)[0]:
            children.remove(child)


if __name__ == "__main__":
    main()
