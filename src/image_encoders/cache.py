"""The cache folder, files that appear complete or not at all, and locks between processes."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_encoders.errors import ImageEncodersError

if TYPE_CHECKING:
    from filelock import FileLock

PIECE = 1 << 24  # [bytes] hashed at once: between two, other threads may keep this one waiting for milliseconds


def cache_folder() -> Path:
    """Where fetched, converted and measured things are kept: IMAGE_ENCODERS_CACHE, or the user's own cache."""
    import platformdirs

    chosen = os.environ.get("IMAGE_ENCODERS_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("image-encoders"))


def running_sha256(path: Path) -> Any:
    """The digest of a file's bytes, to which more can be added."""
    digest = hashlib.sha256()
    room = memoryview(bytearray(min(PIECE, path.stat().st_size + 1)))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(room):
            digest.update(room[:count])
    return digest


class NotCached(ImageEncodersError):
    """Something is missing from the cache, within `only_cached`; caught by its caller."""


_only_cached: ContextVar[bool] = ContextVar("only_cached", default=False)


@contextmanager
def only_cached(wanted: bool = True) -> Iterator[None]:
    """In the block nothing is added to the cache: a missing entry raises NotCached. False: no effect."""
    token = _only_cached.set(wanted)
    try:
        yield
    finally:
        _only_cached.reset(token)


def require_cached(what: str) -> None:
    """Call before creating something missing from the cache: raises NotCached within `only_cached`."""
    if _only_cached.get():
        raise NotCached(what)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A file to write beside `path`; it replaces `path` if the block succeeds, and is removed otherwise.

    Leftovers of killed processes beside `path` are removed first.
    """
    remove_leftovers(path)
    part = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove unfinished files beside `path` that dead processes of this machine left."""
    own = re.compile(rf"\.{re.escape(f'{path.name}.{socket.gethostname()}')}\.(\d+)\.\d+\.part")
    with suppress(OSError):
        for name in os.listdir(path.parent):
            if (found := own.fullmatch(name)) and not _runs(int(found[1])):
                path.with_name(name).unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        return True
    return True


def file_lock(path: Path, *, wait: bool = True) -> FileLock:
    """A lock for a `with` block: one process, and one thread of it, holds `path` at a time.

    The operating system releases it when its process is killed. The same object may be entered again inside its block.

    path: the lock's own file, created where it is missing
    wait: until it is free; False: entering raises filelock.Timeout while another holds it
    """
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=-1 if wait else 0, thread_local=False)
