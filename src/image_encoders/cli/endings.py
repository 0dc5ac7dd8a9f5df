"""How a command ends that could not do what it was asked for."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, TextIO

from image_encoders.cli.printing import say, sentence

# Libraries in C++ that call Python while they are imported, and abort the process where that raises.
ABORTING = ("torch", "openvino")


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


def survive_imports() -> None:
    """Have Ctrl-C end the process at once while one of `ABORTING` is imported; elsewhere it stays a KeyboardInterrupt.

    Where SIGINT is ignored, as `nohup` and shells in the background have it, that stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if any(_is_being_imported(name) for name in ABORTING):
        with interrupted():
            say("interrupted")
        os._exit(130)
    raise KeyboardInterrupt


def _is_being_imported(name: str) -> bool:
    return getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False)


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
