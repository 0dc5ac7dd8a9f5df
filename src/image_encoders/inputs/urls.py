"""Fetches untrusted URLs, without exposing this machine's network (SSRF).

`data:` URLs are decoded. `http(s):` ones are fetched only from public addresses: for each connection the name is
resolved once, every address is checked, and the connection goes to a checked address (so a name cannot change its
address in between); redirects are checked in the same way. Bytes and time are limited. No other scheme is opened,
and no files. Error messages reveal nothing about this machine's network.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

import httpcore

from image_encoders.errors import InputError

# A body comes as it is: compressed, its size would not say how much it becomes.
HEADERS = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "image-encoders"}
GLOBAL = ipaddress.IPv6Network("2000::/3")  # all that is given out so far; ipaddress calls more than that global
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that may be others a little later
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # an IPv4 address in its last 32 bits


@dataclass(frozen=True)
class UrlLimits:
    """Limits of a fetch, and whether it may reach addresses that are not public."""

    max_bytes: int = 64 << 20
    max_seconds: float = 20.0  # for all of it, redirects too; the time to look up a name is the resolver's own
    max_seconds_together: float = 30.0  # for all URLs of one request
    max_redirects: int = 5
    private: bool = False


def read_url(url: str, limits: UrlLimits = UrlLimits(), deadline: float = float("inf")) -> bytes:
    """The content of a `data:`, `http:` or `https:` URL; InputError otherwise.

    deadline: on the monotonic clock, if earlier than the end of `max_seconds`
    """
    scheme = url.split(":", 1)[0].lower()
    if scheme == "data":
        return _data(url, limits)
    if scheme not in ("http", "https"):
        raise InputError("unsupported URL scheme; data:, http: and https: are accepted", code="url")
    content, _ = _fetch(url, limits, min(deadline, time.monotonic() + limits.max_seconds), lambda state: False)
    assert content is not None
    return content


class TemporaryError(InputError):
    """A failure that may be temporary: a timeout, a busy server.

    after_s: the server's Retry-After, in seconds
    """

    after_s: float = 0.0


def fetch_url(
    url: str, limits: UrlLimits = UrlLimits(), known: Callable[[str], bool] = lambda state: False
) -> tuple[bytes | None, str]:
    """The content of an `http:` or `https:` URL, and its state: text that changes with it, "" if the server gives none.

    known: whether the content in that state is already known: then it is not fetched

    Raises InputError as `read_url` does, TemporaryError if a retry may help.
    """
    return _fetch(url, limits, time.monotonic() + limits.max_seconds, known)


class UrlFetcher:
    """Fetches URLs on dedicated threads, so that slow servers delay only their own documents.

    threads: how many URLs at once
    of_one: how many of these for one call of `fetch`, so that no request takes all
    """

    def __init__(self, limits: UrlLimits = UrlLimits(), threads: int = 64, of_one: int = 16):
        self._limits, self._of_one = limits, of_one
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="fetch")

    def fetch(self, urls: Sequence[str]) -> list[Future[bytes]]:
        """The content of each URL, or InputError, within `max_seconds_together`; cancelled ones are not started."""
        futures: list[Future[bytes]] = [Future() for _ in urls]
        waiting = deque(zip(urls, futures))
        deadline = time.monotonic() + self._limits.max_seconds_together
        for _ in range(min(self._of_one, len(futures))):
            self._threads.submit(self._read, waiting, deadline)
        return futures

    def outcome(self, future: Future[bytes]) -> bytes:
        """The result of a future of `fetch` so far; InputError if there is none."""
        if not future.done() or future.cancelled():  # a resolver that does not answer, or many who came before
            future.cancel()
            raise self._late()
        return future.result()

    def close(self) -> None:
        """Start nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _read(self, waiting: deque[tuple[str, Future[bytes]]], deadline: float) -> None:
        while waiting:
            try:
                url, future = waiting.popleft()
            except IndexError:  # another thread was faster
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if time.monotonic() > deadline:
                    raise self._late()
                future.set_result(read_url(url, self._limits, deadline))
            except BaseException as error:
                future.set_exception(error)

    def _late(self) -> InputError:
        return InputError(
            f"the URLs of its request took longer than {self._limits.max_seconds_together:g} s", code="url"
        )


def _data(url: str, limits: UrlLimits) -> bytes:
    head, comma, body = url[5:].partition(",")
    if not comma:
        raise InputError("a data: URL without a comma", code="url")
    if len(body) > 3 * limits.max_bytes:
        raise _too_big(limits)
    try:
        raw = unquote_to_bytes(body)
        found = base64.b64decode(raw, validate=True) if head.lower().endswith(";base64") else raw
    except (binascii.Error, ValueError) as error:
        raise InputError(f"a data: URL that is not base64: {error}", code="url") from error
    if len(found) > limits.max_bytes:
        raise _too_big(limits)
    return found


def _fetch(url: str, limits: UrlLimits, deadline: float, known: Callable[[str], bool]) -> tuple[bytes | None, str]:
    began = time.monotonic()
    guard = _Guard(limits, deadline)
    try:
        with httpcore.ConnectionPool(network_backend=guard, ssl_context=_certificates()) as pool:
            for _ in range(limits.max_redirects + 1):
                host, url = _plain(url)
                with pool.stream("GET", url, headers=[("Host", host), *HEADERS.items()]) as response:
                    if 300 <= response.status < 400 and (target := _header(response, b"location")) is not None:
                        url = urljoin(url, target)
                        continue
                    _check_status(response)
                    state = _state(response)
                    return (None if state and known(state) else _body(response, limits)), state
    except httpcore.TimeoutException as error:
        raise TemporaryError(f"took longer than {max(round(deadline - began, 1), 0):g} s", code="url") from error
    except (ValueError, httpcore.LocalProtocolError) as error:
        raise InputError("not a valid URL", code="url") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        raise TemporaryError(f"could not be fetched: {_said(error)}", code="url") from error
    raise InputError(f"more than {limits.max_redirects} redirects", code="url")


@cache
def _certificates() -> ssl.SSLContext:
    """The trusted certificates, read once: that takes longer than a fetch."""
    return ssl.create_default_context()


def _plain(url: str) -> tuple[str, str]:
    """(host as the Host header names it, the address in plain ASCII); InputError for one that is not accepted."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise InputError("redirected to an unsupported URL scheme; http: and https: are accepted", code="url")
    if not parts.hostname or "@" in parts.netloc:
        raise InputError("a URL without a host, or with a password in it", code="url")
    try:
        port = parts.port
    except ValueError as error:
        raise InputError("a URL with an invalid port; 1 to 65535 are accepted", code="url") from error
    if port == 0:
        raise InputError("a URL with the port 0; 1 to 65535 are accepted", code="url")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    host = f"[{host}]" if ":" in host else host
    netloc = host if port is None else f"{host}:{port}"
    path, query = (
        quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._"),
        quote(parts.query, safe="/?%:@!$&'()*+,;=~-._[]"),
    )
    return netloc, parts._replace(netloc=netloc, path=path, query=query, fragment="").geturl()


def _header(response: httpcore.Response, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), None)


def _check_status(response: httpcore.Response) -> None:
    """Raise InputError unless the answer is a file."""
    said = f"the server answered {response.status}"
    if response.status in BUSY:
        error = TemporaryError(said, code="url")
        after = _header(response, b"retry-after") or ""
        error.after_s = float(after) if after.isdecimal() else 0.0
        raise error
    if response.status != 200:
        raise InputError(said, code="url")


def _state(response: httpcore.Response) -> str:
    """What changes with the file, as far as the server says."""
    if etag := _header(response, b"etag"):
        return f"etag {etag}"
    if modified := _header(response, b"last-modified"):
        return f"modified {modified} {_header(response, b'content-length') or ''}".strip()
    return ""


def _body(response: httpcore.Response, limits: UrlLimits) -> bytes:
    if (_header(response, b"content-encoding") or "identity").lower() != "identity":
        raise InputError("the server sent it compressed", code="url")
    length = _header(response, b"content-length") or ""
    if length.isdecimal() and int(length) > limits.max_bytes:
        raise _too_big(limits)
    held = bytearray()
    for part in response.iter_stream():
        held += part
        if len(held) > limits.max_bytes:
            raise _too_big(limits)
    return bytes(held)


def _said(error: Exception) -> str:
    """A network error without the numbers and addresses that some contain."""
    if isinstance(error, httpcore.RemoteProtocolError):
        return "the response is incomplete, or not HTTP"
    reason = error.__cause__ or error
    while isinstance(reason, httpcore.NetworkError) and reason.__context__ is not None:
        reason = reason.__context__
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {reason.verify_message}"
    return (reason.strerror if isinstance(reason, OSError) else None) or type(error).__name__


class _Guard(httpcore.NetworkBackend):
    """Connections to checked addresses only, none of which outlives the deadline."""

    def __init__(self, limits: UrlLimits, deadline: float):
        self._limits, self._deadline = limits, deadline
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        addresses = _checked(host, port, self._limits)
        for address in addresses:
            try:
                return _Timed(self._network.connect_tcp(address, port, _left(self._deadline)), self._deadline)
            except httpcore.ConnectError:
                if address == addresses[-1]:
                    raise
        raise AssertionError("a name without addresses is an error before this")


class _Timed(httpcore.NetworkStream):
    """A connection that gives nothing after the deadline, however slowly data arrives."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float):
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    """How many seconds are left; httpcore.ReadTimeout where none are."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout
    return left


def _checked(host: str, port: int, limits: UrlLimits) -> list[str]:
    """The numeric addresses to connect to, in the resolver's order; InputError unless every one is public."""
    answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    if not limits.private and not all(map(_public, found)):
        raise InputError(f"{host} is not a public address; only public addresses are fetched", code="url")
    return found


def _public(address: str) -> bool:
    """Whether a numeric address is public, including an IPv4 address embedded in an IPv6 one."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else ip.ipv4_mapped or ip.sixtofour
        if inner is not None:
            return _public(str(inner))
        if ip not in GLOBAL or ip.teredo:
            return False
    return ip.is_global and not ip.is_multicast


def _too_big(limits: UrlLimits) -> InputError:
    return InputError(f"more than the {limits.max_bytes:,} bytes that are accepted", code="too-many-bytes")
