"""Published files, downloaded into the cache: resumed, checked, and complete or absent.

Environment:
    IMAGE_ENCODERS_CACHE    the cache folder; default: the user's cache folder of this platform
    IMAGE_ENCODERS_OFFLINE  1: never use the network (HF_HUB_OFFLINE=1 says the same)
    IMAGE_ENCODERS_MIRROR   where else to fetch from: "PREFIX=PREFIX, ...", each the start of a published URL and what
                            to put in its place, such as "https://storage.googleapis.com=http://10.0.0.7:8080/gcs"
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from image_encoders.cache import atomic_write, cache_folder, file_lock, running_sha256
from image_encoders.errors import WeightsError
from image_encoders.progress import Show, bar
from image_encoders.weights.retries import ATTEMPTS, Again, as_again
from image_encoders.weights.retries import check as check_status

if TYPE_CHECKING:
    import httpx

logger = logging.getLogger(__name__)

TIMEOUT_S = 30.0  # to connect, and between two pieces of an answer
HEAD_S = 120.0  # for the head of an answer, redirects included
SLOW_S, SLOW_BYTES = 60.0, 60 << 10  # a body that brings fewer bytes in this time has stalled
MAX_BYTES = 32 << 30  # of a file whose table entry says nothing smaller
PROGRESS = 1 << 20  # an attempt that brings fewer new bytes counts as one that brought nothing
REDIRECTS = 10
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
    with _writing(target), file_lock(_beside(target, ".lock")):
        if not _present(target, url, sha256, size):  # another process may have been faster
            _Download(url, target, sha256, size, max_bytes).run(progress)
    return target


def _name(url: str) -> str:
    parts = urlsplit(url)
    path = PurePosixPath(unquote(parts.path).lstrip("/"))
    if parts.scheme not in ("http", "https") or not parts.hostname or not path.name or ".." in path.parts:
        raise WeightsError(f"{url}: not the http or https URL of a file")
    return f"{parts.hostname}/{path}"


def _mirrored(url: str) -> str:
    """The URL to ask instead of the published one."""
    for pair in filter(None, map(str.strip, os.environ.get("IMAGE_ENCODERS_MIRROR", "").split(","))):
        published, equals, mirror = pair.partition("=")
        if not equals:
            raise WeightsError(f"IMAGE_ENCODERS_MIRROR: {pair} is not of the form PREFIX=PREFIX")
        if url.startswith(published):
            return mirror + url.removeprefix(published)
    return url


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
        record = json.loads(_beside(target, ".json").read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _record(target: Path, url: str, size: int, sha256: str, published: bool) -> None:
    record = {"url": url, "size": size, "sha256": sha256, "sha256_from": "published" if published else "first use"}
    try:
        _write_json(_beside(target, ".json"), record)
    except OSError as error:  # a cache that may only be read still serves the file
        logger.info("%s: its record cannot be written: %s", target, error)
    if not published:
        logger.info("%s: no sha256 is published; from now on %s is expected", target, sha256)


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with atomic_write(path) as part:
        part.write_text(json.dumps(value, indent=1))


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


class _Download:
    """One file on its way: `<file>.part` holds what came, `<file>.part.json` which version of the file that is."""

    def __init__(self, url: str, target: Path, sha256: str | None, size: int | None, max_bytes: int) -> None:
        self.url, self.target = url, target
        self.sha256, self.size, self.max_bytes = sha256 and sha256.lower(), size, max_bytes
        self.part, self.notes = _beside(target, ".part"), _beside(target, ".part.json")
        self.have = 0
        self.digest = hashlib.sha256()
        self.version: dict[str, Any] = {}
        self.continued = False  # whether the part came in more than one answer
        self.answered = False  # whether the server has answered at all

    def run(self, progress: bool | None) -> None:
        import httpx

        self.continued = self.restore()
        failures, furthest = 0, self.have
        with (
            httpx.Client(
                timeout=TIMEOUT_S,
                follow_redirects=True,
                max_redirects=REDIRECTS,
                limits=httpx.Limits(max_keepalive_connections=0),
            ) as client,
            bar(self.target.name, progress) as show,
        ):
            while True:
                try:
                    if not self.complete():
                        self.receive(client, show)
                    return self.finish()
                except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
                    raise WeightsError(f"{self.url}: {error}") from error
                except (Again, httpx.TransportError) as error:
                    again = as_again(error, self.answered)
                    if again is None:
                        raise WeightsError(
                            f"{self.url}: the server cannot be reached ({error}); check the network connection, or "
                            "download the file elsewhere and pass its path as weights="
                        ) from error
                failures = 1 if self.have >= furthest + PROGRESS else failures + 1
                furthest = max(furthest, self.have)
                if failures >= ATTEMPTS:
                    raise WeightsError(
                        f"{self.url}: {again}, {failures} times in a row. "
                        + (f"{self.have} bytes are kept in {self.part}; " if self.have else "")
                        + "try again later, or download it elsewhere and pass its path as weights="
                    )
                logger.info("%s: %s; trying again", self.url, again)
                time.sleep(again.pause_s(failures))

    def restore(self) -> bool:
        """Resume an earlier download, if its version of the file is known."""
        try:
            version = json.loads(self.notes.read_bytes())
            usable = version["url"] == self.url and (self.sha256 or _validator(version["validator"]))
        except (OSError, ValueError, KeyError, TypeError):
            usable = False
        if not usable or not self.part.exists():
            self.discard()
            return False
        self.version, self.digest, self.have = version, running_sha256(self.part), self.part.stat().st_size
        return self.have > 0

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.have, self.digest, self.version = 0, hashlib.sha256(), {}

    def total(self) -> int | None:
        """The whole file's size as published, or else as the server says."""
        return self.size if self.size is not None else self.version.get("total")

    def complete(self) -> bool:
        return self.have > 0 and self.have == self.total()

    def receive(self, client: httpx.Client, show: Show) -> None:
        import httpx

        if self.have and not (self.sha256 or self.version.get("validator")):
            self.discard()  # the rest could be of another version of the file
        headers = {"Accept-Encoding": "identity"}
        if self.have:
            headers["Range"] = f"bytes={self.have}-"
            if self.version.get("validator"):
                headers["If-Range"] = self.version["validator"]
        with ExitStack() as stack:
            with _Deadline(HEAD_S) as deadline:
                stream = client.stream("GET", _mirrored(self.url), headers=headers, extensions=deadline.extensions)
                response = stack.enter_context(stream)
            self.check(response)
            with self.part.open("ab" if self.have else "wb") as file:
                self.report(show)
                since, then = time.monotonic(), self.have
                try:
                    for piece in response.iter_raw():
                        file.write(piece)
                        self.digest.update(piece)
                        self.have += len(piece)
                        self.report(show)
                        if self.have > min(self.total() or self.have, self.max_bytes):
                            break  # more than the file has: `finish` says so
                        if time.monotonic() > since + SLOW_S:
                            if self.have < then + SLOW_BYTES:
                                raise Again(f"received only {self.have - then} bytes in {SLOW_S:g} s")
                            since, then = time.monotonic(), self.have
                except httpx.TransportError as error:
                    came = f"{self.have} of {self.total() or 'unknown'} bytes"
                    raise Again(f"the connection broke after {came} ({type(error).__name__})") from error
                finally:
                    file.flush()
                    os.fsync(file.fileno())

    def report(self, show: Show) -> None:
        have, total = self.have, self.total()
        show(have, total, f"{have / 1e6:,.1f} MB" if total is None else f"{have / 1e6:,.1f} of {total / 1e6:,.1f} MB")

    def check(self, response: httpx.Response) -> None:
        """Decide by the response headers whether the body starts the file, continues it, or does not belong to it."""
        self.answered = True
        status = response.status_code
        check_status(response)
        if status == 416:  # nothing at that position: what we have is not a part of this file
            self.discard()
            raise Again("the server cannot resume the file")
        if status in (404, 410):
            raise WeightsError(
                f"{self.url}: the server has no such file ({status}). If you have it, pass its path as weights=; "
                "if it has moved, set IMAGE_ENCODERS_MIRROR to the new place"
            )
        if status not in (200, 206):
            raise WeightsError(f"{self.url}: the server answers {status} {response.reason_phrase}")
        if self.sha256 is None:
            self.check_unpublished(response)
        version = self.describe(response)
        if status == 206 and self.have:
            start, _ = _range(response.headers.get("Content-Range", ""))
            pairs = [(self.version.get(key), version[key]) for key in ("validator", "total")]
            if start == self.have and all(ours == theirs or None in (ours, theirs) for ours, theirs in pairs):
                self.continued = True
                return
            self.discard()
            raise Again("the server's file has changed")
        if status == 206:
            raise WeightsError(f"{self.url}: the server sends a part although the whole file was requested")
        self.begin(version)

    def check_unpublished(self, response: httpx.Response) -> None:
        """Refuse what is probably not the file, if no sha256 could detect that."""
        if response.url.scheme == "http" != urlsplit(_mirrored(self.url)).scheme:
            raise WeightsError(f"{self.url}: redirected from https to http, and there is no sha256 to check it by")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise WeightsError(f"{self.url}: the server answers with a web page; is a login or a proxy in the way?")
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise WeightsError(
                f"{self.url}: the server sends the file compressed ({encoding}), which was not requested"
            )

    def begin(self, version: dict[str, Any]) -> None:
        """Start the part over, with a file of this version, if it is as large as it should be and there is room."""
        self.discard()
        self.continued = False
        if self.size is not None and version["total"] not in (None, self.size):
            raise WeightsError(
                f"{self.url}: the server's file has {version['total']} bytes; {self.size} were published"
            )
        if (version["total"] or 0) > self.max_bytes:
            raise self.too_large(version["total"])
        if (version["total"] or 0) > shutil.disk_usage(self.part.parent).free:
            raise OSError(errno.ENOSPC, "no space")
        self.version = version
        _write_json(self.notes, version)

    def describe(self, response: httpx.Response) -> dict[str, Any]:
        """Which version of the file this answer is of."""
        tag = response.headers.get("ETag")
        weak = tag is None or tag.startswith("W/")  # a weak tag does not promise equal bytes
        if response.status_code == 206:
            total = _range(response.headers.get("Content-Range", ""))[1]
        else:
            total = _count(response.headers.get("Content-Length", ""))
        validator = _validator(response.headers.get("Last-Modified") if weak else tag)
        return {"url": self.url, "validator": validator, "total": total}

    def finish(self) -> None:
        """The complete part, checked, becomes the file."""
        have, total = self.have, self.total()
        if total is not None and have < total:
            raise Again(f"the connection ended after {have} of {total} bytes")
        if total is not None and have > total:
            self.discard()
            raise WeightsError(f"{self.url}: the server sends more than the {total} bytes that the file has")
        if have > self.max_bytes:
            self.discard()
            raise self.too_large(have)
        if not have and not self.sha256:
            raise Again("the server sends an empty file")
        actual = self.digest.hexdigest()
        if self.sha256 and actual != self.sha256:
            continued = self.continued
            self.discard()
            if continued:
                raise Again("the continued file has another sha256; starting over")
            raise WeightsError(
                f"{self.url}: the {have} bytes received have sha256 {actual}; {self.sha256} was published. "
                "They were deleted. Try again; if it happens again, the server's file is not the published one"
            )
        os.replace(self.part, self.target)
        self.notes.unlink(missing_ok=True)
        _record(self.target, self.url, self.have, actual, self.sha256 is not None)

    def too_large(self, size: int) -> WeightsError:
        return WeightsError(f"{self.url}: the server sends {size} bytes or more; at most {self.max_bytes} are expected")


class _Deadline:
    """Ends the connection of a request whose block takes longer: each byte that comes starts httpx's own timeout anew.

    extensions: of the request, by which httpx says which connection it uses
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.passed = seconds, False
        self.extensions = {"trace": self._note}
        self._socket: Any = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        if self.passed and isinstance(error, Exception):
            raise Again(f"no answer within {self.seconds:g} s") from error

    def _note(self, event: str, facts: dict[str, Any]) -> None:
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._socket = facts["return_value"].get_extra_info("socket")

    def _end(self) -> None:
        self.passed = True
        with suppress(OSError, AttributeError):  # closed already, or not connected yet, which has a timeout of its own
            self._socket.shutdown(socket.SHUT_RDWR)


def _count(value: str) -> int | None:
    """A header's number; None where it is none, or larger than any file."""
    return int(value) if value.isdecimal() and len(value) <= 18 else None


def _validator(value: Any) -> str | None:
    """An ETag or a date that can be sent back to ask for the rest of the same file."""
    return value if isinstance(value, str) and value.isascii() and value.isprintable() and len(value) <= 1000 else None


def _range(value: str) -> tuple[int | None, int | None]:
    """A Content-Range header's start and total; "bytes 5-9/10" gives (5, 10)."""
    unit, _, rest = value.partition(" ")
    span, _, total = rest.partition("/")
    start = span.partition("-")[0]
    if unit != "bytes" or _count(start) is None:
        return None, None
    return _count(start), _count(total)
