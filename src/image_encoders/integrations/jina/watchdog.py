"""Ends processes when the process that started them has ended, however it did. A program of its own, for Linux.

    python watchdog.py PARENT PATIENCE_S    with the number of each process, or "close", as lines on standard input

After "close" the parent ends them itself, and those that are still there after a while are killed.
"""

# Nothing of this package is imported, so that it starts at once and stays small.
import os
import select
import signal
import sys
import time
from contextlib import suppress


def main() -> None:
    number, patience = int(sys.argv[1]), float(sys.argv[2])
    parent = os.pidfd_open(number)
    children: list[int] = []
    alone = os.getppid() != number  # it ended before this program came to watch it
    while not alone:
        alone = parent in select.select([parent, sys.stdin], [], [])[0]
        word = "" if alone else sys.stdin.readline().strip()
        if word == "close":
            break
        if word:
            with suppress(ProcessLookupError):
                children.append(os.pidfd_open(int(word)))  # which stays that process, whatever gets its number later
        elif not alone:  # nothing more will be said
            select.select([parent], [], [])
            alone = True
    if alone:
        _send(signal.SIGTERM, children)
    _wait(children, time.monotonic() + patience)
    _send(signal.SIGKILL, children)


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
