"""What this package changes in the process that uses it: all of it, each with its reason.

Everything else outside cli/ leaves the process as it is.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import logging
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import FrameType, ModuleType
from typing import Any, Generic, TypeVar

Made = TypeVar("Made")

# ---------------------------------------------------------------- forked processes

building = threading.RLock()  # held while a net is built or traced: two at once fail in transformers and in torch
torch_has_computed = threading.Event()  # here, or in the process that this one was forked from
lancedb_is_used = threading.Event()  # here
lancedb_was_used = threading.Event()  # in the process that this one was forked from: here it would crash or hang
PATIENCE_S = 60.0  # for imports, when the process forks
_in_use: weakref.WeakSet[Any] = weakref.WeakSet()  # OpenVINO's objects, which wait for their threads at their end
_left_behind: list[Any] = []  # those that came along from the process that this one was forked from, without threads


def openvino_uses(one: Any) -> None:
    """Note an object of OpenVINO's that has threads."""
    _in_use.add(one)


def forked() -> bool:
    """Whether this process was forked from one that had used OpenVINO, which would wait forever in it."""
    return bool(_left_behind)


def _before_fork() -> None:
    """A module that another thread is importing could never be imported in the forked process, nor what imports it."""
    until = time.monotonic() + PATIENCE_S
    while _others_import() and time.monotonic() < until:
        time.sleep(0.001)


def _others_import() -> bool:
    """Whether another thread is importing a module that this package has asked for."""
    frames = sys._current_frames()
    frames.pop(threading.get_ident(), None)
    return any(map(_imports, frames.values()))


def _imports(frame: FrameType | None) -> bool:
    """Whether this package's code is below an import on a thread's stack, whose top is `frame`.

    Other imports are not waited for: some last as long as their program.
    """
    importing = False
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        importing = importing or module == "importlib._bootstrap"
        if importing and module.partition(".")[0] == __package__:
            return True
        frame = frame.f_back
    return False


class _OfLanceDB:
    """Equals every function of LanceDB's compiled module, which gives no name to what it has called at exit."""

    def __eq__(self, other: object) -> bool:
        return getattr(other, "__module__", None) == "lancedb._lancedb"


def _after_fork() -> None:
    """A forked process has one thread: locks that others held stay locked in it, and pools of threads are empty."""
    building._at_fork_reinit()  # type: ignore[attr-defined]
    torch = sys.modules.get("torch")
    if torch_has_computed.is_set() and torch is not None:
        torch.set_num_threads(1)  # else it would wait forever for those that it has computed on
    for one in _in_use:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))  # a list alone is emptied at the process's end, which hangs
        _left_behind.append(one)
    if lancedb_is_used.is_set():
        lancedb_was_used.set()
        atexit.unregister(_OfLanceDB())  # type: ignore[arg-type]  # it would wait for threads that are not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


class Lazy(Generic[Made]):
    """A value that is made by the first who needs it, once, and kept.

    All share one lock, which is free in a forked process; a value may be made of others.
    """

    def __init__(self, make: Callable[[], Made]):
        self._make = make
        self._made: list[Made] = []

    def __call__(self) -> Made:
        if not self._made:
            with building:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]


# ---------------------------------------------------------------- libraries


@cache
def import_openvino() -> ModuleType:
    """OpenVINO, without its telemetry package, whose import would start a process."""
    telemetry = "openvino_telemetry"
    if "openvino" in sys.modules or telemetry in sys.modules:
        return importlib.import_module("openvino")
    sys.modules[telemetry] = None  # type: ignore[assignment]  # as where it is not installed
    try:
        return importlib.import_module("openvino")
    finally:
        sys.modules.pop(telemetry, None)


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of tracing, for which every copy is tested, and no remarks of transformers and NNCF meanwhile.

    As a rule this is in a process of its own, see child.py.
    """
    loggers = [logging.getLogger(name) for name in ("transformers", "nncf")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


def import_nncf() -> ModuleType:
    """NNCF, with its telemetry switched off before the import."""
    os.environ.setdefault("NNCF_CI", "1")
    return importlib.import_module("nncf")


def compute_full_float32() -> None:
    """Have torch compute float32 on CUDA devices in true float32, not TF32.

    By default it rounds the inputs of convolutions to 10 bits (TF32). Both switches are torch's own, for the whole
    process: other nets in it compute in full float32 from then on.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def give_back_memory() -> None:
    """Have glibc give freed memory back to the system: each of a database's many threads keeps some of every commit."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def frugal() -> dict[str, str]:
    """The environment of a process that merges a collection's files or builds its index: for a million embeddings of
    512 numbers it then takes 370 MB for the one and 524 for the other, in place of 900 and 1,008; what the user has set
    stays.
    """
    wishes = {
        "MALLOC_ARENA_MAX": "1",  # else each thread of the database keeps what it frees
        "LANCE_DEFAULT_FRAGMENT_READAHEAD": "2",
        "LANCE_DEFAULT_IO_BUFFER_SIZE": str(1 << 25),
        "LANCE_DEFAULT_BATCH_SIZE": "1024",  # rows
        "LANCE_SHUFFLE_BATCH_BYTES": str(1 << 24),
    }
    return {name: value for name, value in wishes.items() if name not in os.environ}


@cache
def keep_freed_memory() -> None:
    """Have glibc keep the memory that nets give back: else every batch faults its pages in again."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD: 32 MB, the most there is
    mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


# ---------------------------------------------------------------- processors


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------- clusters

HANDED_ON = ("IMAGE_ENCODERS_MAX_PIXELS", "IMAGE_ENCODERS_MAX_BYTES", "IMAGE_ENCODERS_OFFLINE", "HF_HUB_OFFLINE")
QUIET_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def handed_on() -> dict[str, str]:
    """What the environment says of limits and the network, for workers that another process starts."""
    return {name: os.environ[name] for name in HANDED_ON if name in os.environ}


def take_over(environment: dict[str, str]) -> None:
    """In a worker's own process: have its environment say what `handed_on` did."""
    os.environ.update(environment)


@contextmanager
def starting_ray() -> Iterator[None]:
    """Disable the telemetry of Ray's processes while they are started, then restore the settings."""
    before = {name: os.environ.get(name) for name in QUIET_RAY}
    os.environ.update(QUIET_RAY)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
