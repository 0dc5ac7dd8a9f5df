"""Published files, downloaded into the cache: resumed, checked, and complete or absent.

Environment:
    IMAGE_ENCODERS_CACHE    the cache folder; default: the user's cache folder of this platform
    IMAGE_ENCODERS_OFFLINE  1: never use the network (HF_HUB_OFFLINE=1 says the same)
    IMAGE_ENCODERS_MIRROR   where else to fetch from: "PREFIX=PREFIX, ...", each the start of a published URL and what
                            to put in its place, such as "https://storage.googleapis.com=http://10.0.0.7:8080/gcs"
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from image_encoders.cache import cache_folder, file_lock, running_sha256
from image_encoders.errors import WeightsError
from image_encoders.weights.download import Download, beside, write_json

logger = logging.getLogger(__name__)

MAX_BYTES = 32 << 30  # of a file whose table entry says nothing smaller
YES = {"1", "true", "yes", "on"}


def is_offline(asked: bool | None = None) -> bool:
    """Whether network access is off, by the caller's choice or the environment."""
    names = ("IMAGE_ENCODERS_OFFLINE", "HF_HUB_OFFLINE")
    return bool(asked) or any(os.environ.get(name, "").lower() in YES for name in names)


def fetch(
    url: str,
    *,
    sha256: str | None = None,
    size: int | None = None,
    max_bytes: int = MAX_BYTES,
    offline: bool | None = None,
    progress: bool | None = None,
) -> Path:
    """The cached copy of a published file, downloaded unless it is there already.

    An interrupted download continues where it stopped. Beside the file, `<file>.json` records its URL, size and
    sha256. Where no sha256 is published, the first download's is recorded and compared from then on.

    url: http or https
    sha256, size: what is published of it [hexadecimal, bytes]
    max_bytes: how large it may be where no size is published
    offline: never use the network; the environment can say the same
    progress: show a bar; default: when stderr is a terminal

    Raises WeightsError when the file is not available, or is not the published one.
    """
    target = cache_folder() / _name(url)
    if _present(target, url, sha256, size):
        return target
    if is_offline(offline):
        raise WeightsError(
            f"{target} does not exist, and network access is off. Download {url} on another machine and copy it there"
        )
    with _writing(target), file_lock(beside(target, ".lock")):
        if not _present(target, url, sha256, size):  # another process may have been faster
            found = Download(url, target, sha256, size, max_bytes).run(progress)
            _record(target, url, target.stat().st_size, found, sha256 is not None)
    return target


def _name(url: str) -> str:
    parts = urlsplit(url)
    path = PurePosixPath(unquote(parts.path).lstrip("/"))
    if parts.scheme not in ("http", "https") or not parts.hostname or not path.name or ".." in path.parts:
        raise WeightsError(f"{url}: not the http or https URL of a file")
    return f"{parts.hostname}/{path}"


def _present(target: Path, url: str, sha256: str | None, size: int | None) -> bool:
    """Whether the file is there as published or recorded. Raises WeightsError when it is there but differs.

    A file that was hashed once is known by its size.
    """
    try:
        found = target.stat().st_size
    except FileNotFoundError:
        return False
    except OSError as error:
        raise WeightsError(f"{target}: {error.strerror}") from error
    recorded = _recorded(target)
    again = "delete it to fetch it again"
    for wanted, who in ((size, "published"), (recorded.get("size"), "recorded")):
        if wanted is not None and found != wanted:
            raise WeightsError(f"{target}: has {found} bytes; {wanted} were {who}; {again}")
    known = recorded.get("sha256")
    if known is None or (sha256 and sha256.lower() != known):
        actual = running_sha256(target).hexdigest()
        wanted = (sha256 or known or actual).lower()
        if actual != wanted:
            raise WeightsError(f"{target}: has sha256 {actual}, expected {wanted}; {again}")
        _record(target, url, found, actual, sha256 is not None)
    return True


def _recorded(target: Path) -> dict[str, Any]:
    """What was recorded when the file was fetched; nothing when it was put there by hand."""
    try:
        record = json.loads(beside(target, ".json").read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _record(target: Path, url: str, size: int, sha256: str, published: bool) -> None:
    record = {"url": url, "size": size, "sha256": sha256, "sha256_from": "published" if published else "first use"}
    try:
        write_json(beside(target, ".json"), record)
    except OSError as error:  # a cache that may only be read still serves the file
        logger.info("%s: its record cannot be written: %s", target, error)
    if not published:
        logger.info("%s: no sha256 is published; from now on %s is expected", target, sha256)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turns the errors of a folder that cannot be written into what to do about them."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "no space is left; free some space, or set IMAGE_ENCODERS_CACHE to a larger disk. What came is kept"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            what = f"{error.strerror}; set IMAGE_ENCODERS_CACHE to a writable folder"
        else:
            what = str(error.strerror or error)
        raise WeightsError(f"{target}: {what}") from error
