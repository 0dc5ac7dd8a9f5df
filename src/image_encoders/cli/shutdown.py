"""How a command ends: by an error, by Ctrl-C, or with its output closed."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn, TextIO

from image_encoders.cli.printing import error_sentence, say


def exit_with_error(error: Exception) -> NoReturn:
    """One sentence about the error, and exit status 2, even where nothing can be written any more."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_output(sys.stdout)
    try:
        say(f"error: {error_sentence(error)}", style="red")
    except OSError:
        discard_output(sys.stderr)
    sys.exit(2)


def discard_output(stream: TextIO) -> None:
    """Send what the stream still holds, and what comes after it, nowhere."""
    with suppress(ValueError):  # no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def hold_interrupts() -> None:
    """Have Ctrl-C wait for the end of an import or a finalizer that is under way, and then raise KeyboardInterrupt.

    In the midst of an import it would be lost or worse: torch's library imports Python modules while it starts, takes
    their failure for missing packages, or aborts the process. Python ignores what is raised in a finalizer (`__del__`).
    Nothing changes where Ctrl-C is ignored, as under nohup.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGALRM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _interrupt_again


def _interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
    if ignored.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
    else:
        sys.__unraisablehook__(ignored)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _importing(frame):
        signal.setitimer(signal.ITIMER_REAL, 0.02)  # and look again
    elif number == signal.SIGALRM:
        signal.raise_signal(signal.SIGINT)  # for whoever answers it by now
    else:
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, in which a library would not survive it."""
    came: list[int] = []
    try:
        with _handler(signal.SIGINT, lambda number, frame: came.append(number)):
            yield
    finally:
        if came:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def interrupted() -> Iterator[None]:
    """Ctrl-C does nothing while the block says that the command was interrupted; after that it ends it at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    except OSError:  # the reader is gone
        discard_output(sys.stderr)
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))  # threads may be waited for
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # later still, Python would put the default back


@contextmanager
def terminations() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, unless it was to be ignored."""
    with _handler(signal.SIGTERM, signal.default_int_handler):
        yield


@contextmanager
def _handler(number: int, handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """A signal's handler for the block, in the main thread, and where the signal is not ignored."""
    before = signal.getsignal(number)
    if before == signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
