"""One download over HTTP: resumed where it stopped, checked, retried; the file appears complete or not at all."""

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
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from image_encoders.cache import atomic_write, running_sha256
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
PROGRESS = 1 << 20  # an attempt that brings fewer new bytes counts as one that brought nothing
REDIRECTS = 10


class Download:
    """One file on its way: `<file>.part` holds what came, `<file>.part.json` which version of the file that is."""

    def __init__(self, url: str, target: Path, sha256: str | None, size: int | None, max_bytes: int) -> None:
        self.url, self.target = url, target
        self.sha256, self.size, self.max_bytes = sha256 and sha256.lower(), size, max_bytes
        self.part, self.notes = beside(target, ".part"), beside(target, ".part.json")
        self.have = 0
        self.digest = hashlib.sha256()
        self.version: dict[str, Any] = {}
        self.continued = False  # whether the part came in more than one answer
        self.answered = False  # whether the server has answered at all

    def run(self, progress: bool | None) -> str:
        """Download the file; returns its sha256."""
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
        write_json(self.notes, version)

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

    def finish(self) -> str:
        """The complete part, checked, becomes the file; returns its sha256."""
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
        return actual

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


def _mirrored(url: str) -> str:
    """The URL to ask instead of the published one."""
    for pair in filter(None, map(str.strip, os.environ.get("IMAGE_ENCODERS_MIRROR", "").split(","))):
        published, equals, mirror = pair.partition("=")
        if not equals:
            raise WeightsError(f"IMAGE_ENCODERS_MIRROR: {pair} is not of the form PREFIX=PREFIX")
        if url.startswith(published):
            return mirror + url.removeprefix(published)
    return url


def beside(target: Path, suffix: str) -> Path:
    """The name of a file with something behind it."""
    return target.with_name(target.name + suffix)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A JSON file, complete or not there."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(value, indent=1))
