"""How a command ends that could not do what it was asked for."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

from image_encoders.cli.printing import say, sentence


def give_up(error: Exception) -> NoReturn:
    """One sentence about the error, and exit status 2, even where nothing can be written any more."""
    try:
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)
    try:
        say(f"error: {sentence(error)}", style="red")
    except OSError:
        discard(sys.stderr)
    sys.exit(2)


def discard(stream: TextIO) -> None:
    """Send what the stream still holds, and what comes after it, nowhere."""
    with suppress(ValueError):  # no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def interrupted() -> Iterator[None]:
    """Ctrl-C does nothing while the block says that the command was interrupted; after that it ends it at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    except OSError:  # nobody listens any more
        discard(sys.stderr)
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))  # threads may be waited for
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # later still, Python would put the default back
