"""Functions called in a Python process of their own, which may die without this one."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

from image_encoders.errors import first_line

START = "import sys; sys.path[:] = {path!r}; from image_encoders.child import answer; answer()"


class ChildDied(Exception):
    """The process ended without an answer; the message says how."""


class ChildTooSlow(ChildDied):
    """The process was killed, since it was not done in time."""


class Unsendable(Exception):
    """An argument cannot be sent to another process."""


def call_in_child(
    function: str, *arguments: Any, environment: Mapping[str, str] | None = None, limit_s: float | None = None
) -> Any:
    """What a function returns in a process of its own; raises what it raises, and ChildDied where the process dies.

    function: "package.module:name"
    arguments: values that can be pickled; else Unsendable is raised
    environment: variables of the process beside those of this one
    limit_s: seconds after which the process is killed, and ChildTooSlow raised

    The process ends with this one, and at once when this call is interrupted. Ctrl-C does not reach it otherwise.
    """
    try:
        question = pickle.dumps((function, arguments))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise Unsendable(first_line(error)) from error
    remarks: list[bytes] = []
    with _start(environment or {}) as child:
        late = threading.Event()
        if limit_s is not None:
            timer = threading.Timer(limit_s, _end_late, (child, late))
            timer.daemon = True
            timer.start()
        listener = threading.Thread(target=_listen, args=(child.stderr, remarks), daemon=True)
        listener.start()
        try:
            reply = _ask(child, question)
            status = child.wait()
        finally:
            if limit_s is not None:
                timer.cancel()
            child.kill()  # where it has not ended
            child.wait()
            listener.join(5)  # a process of the child's own may hold the pipe
    try:
        returned, raised = pickle.loads(reply)
    except (EOFError, pickle.UnpicklingError) as error:
        raise ChildTooSlow(f"not done after {limit_s} s") if late.is_set() else _death(status, remarks) from error
    if raised is not None:
        raise raised
    return returned


def _start(environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process that waits for a question, see `answer`."""
    pipe = subprocess.PIPE
    try:
        return subprocess.Popen(
            [sys.executable, "-c", START.format(path=sys.path)],
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            env={**os.environ, **environment},
            start_new_session=True,  # the terminal's Ctrl-C is for this process, which then ends that one
        )
    except OSError as error:
        raise ChildDied(f"no process can be started: {error.strerror or error}") from error


def _end_late(child: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()  # before anybody sees that it has ended
    child.kill()


def _ask(child: subprocess.Popen[bytes], question: bytes) -> bytes:
    """All that the process answers. Its standard input stays open: when that is closed it ends."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(question)
        child.stdin.flush()
    except BrokenPipeError:  # it has died already
        with suppress(BrokenPipeError):
            child.stdin.close()  # what could not be written is dropped
    return child.stdout.read()


def _death(status: int, remarks: list[bytes]) -> ChildDied:
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    last = b"".join(remarks[-1:]).decode(errors="replace").strip()
    return ChildDied(f"the process that does it ended with {how}{last and f' ({last})'}")


def _listen(stream: IO[bytes], lines: list[bytes]) -> None:
    with stream:
        lines.extend(stream)


def answer() -> None:
    """The other end: call what standard input names, and write what comes of it to standard output."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print
    function, arguments = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, _, name = function.partition(":")
    outcome: tuple[Any, Exception | None]
    try:
        outcome = (getattr(importlib.import_module(module), name)(*arguments), None)
    except Exception as error:
        outcome = (None, error)
    try:
        reply = pickle.dumps(outcome)
        pickle.loads(reply)
    except Exception:  # an error that cannot be sent, or not be made again
        reply = pickle.dumps((None, RuntimeError(str(outcome[1]))))
    replies.write(reply)
    replies.close()
    os._exit(0)  # without waiting for an engine's threads


def _end_with_parent() -> None:
    sys.stdin.buffer.read(1)  # nothing comes any more but the end
    os._exit(1)
