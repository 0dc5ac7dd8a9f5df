"""Addresses that somebody else chose: what is fetched, what is refused, and what the errors say."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from image_encoders.errors import InputError
from image_encoders.inputs import urls
from image_encoders.inputs.urls import UrlFetcher, UrlLimits, read_url

BODY = bytes(range(256)) * 40
HERE = UrlLimits(private=True, max_seconds=5)
PUBLIC = UrlLimits(max_seconds=5)


def refused(url: str, limits: UrlLimits = PUBLIC) -> InputError:
    with pytest.raises(InputError) as caught:
        read_url(url, limits)
    return caught.value


class Handler(BaseHTTPRequestHandler):
    """Paths that behave in different ways."""

    seen: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Host"]))
        getattr(self, "get_" + self.path.strip("/").split("/")[0].split("?")[0].replace("-", "_"), self.get_body)()

    def get_body(self, body: bytes = BODY, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def get_missing(self) -> None:
        self.get_body(b"not here", 404)

    def get_unchanged(self) -> None:
        self.get_body(b"", 304)

    def get_part(self) -> None:
        self.get_body(b"half", 206)

    def get_zipped(self) -> None:
        self.get_body(b"half", Content_Encoding="gzip")

    def get_relative(self) -> None:
        self.get_body(b"", 302, Location="/body")

    def get_loop(self) -> None:
        self.get_body(b"", 307, Location="/loop")

    def get_to(self) -> None:
        self.get_body(b"", 302, Location=self.path.split("?", 1)[1])

    def get_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            pass

    def get_cut(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 10)
        self.close_connection = True

    def drip(self, data: bytes) -> None:
        try:
            for i in range(len(data)):
                self.wfile.write(data[i : i + 1])
                self.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    def get_drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.drip(bytes(400))

    def get_drip_headers(self) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 400)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    handler = type("OwnHandler", (Handler,), {"seen": []})
    served = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    served.daemon_threads = True
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield served
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def at(server: ThreadingHTTPServer) -> Callable[[str], str]:
    return lambda path: f"http://127.0.0.1:{server.server_port}/{path}"


@contextmanager
def resolving(monkeypatch: pytest.MonkeyPatch, **names: list[str]) -> Iterator[list[str]]:
    """A resolver that knows `names`; yields what it was asked."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *rest: Any, **more: Any) -> list[Any]:
        if host not in names:
            return real(host, port, *rest, **more)  # numbers, when a connection is made
        asked.append(host)
        return [
            (socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))
            for ip in names[host]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield asked


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.9.9.9",
        "localhost",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:10.0.0.1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::1]",
        "[2002:7f00:1::1]",
        "[2001:0:53aa:64c::1]",
        "[fe80::1]",
        "[fec0::1]",
        "[fc00::1]",
        "[ff02::1]",
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_addresses_that_are_not_public_are_refused(scheme: str, host: str) -> None:
    error = refused(f"{scheme}://{host}/a.png")
    assert error.code == "url"
    assert "public" in error.message or "could not be fetched" in error.message  # no IPv6 here, or no such spelling


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::808:808", False),
        ("2002:808:808::1", True),
        ("2002:a00:1::1", False),
        ("::ffff:169.254.169.254", False),
        ("::7f00:1", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("ff0e::1", False),
        ("224.0.0.1", False),
        ("192.88.99.1", True),
        ("0.0.0.0", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert urls._public(address) is public


@pytest.mark.parametrize(
    "answers", [["10.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["2001:4860:4860::8888", "::ffff:192.168.0.1"], ["fe80::1%2"]]
)
def test_a_name_is_refused_when_any_of_its_addresses_is_not_public(
    monkeypatch: pytest.MonkeyPatch, answers: list[str]
) -> None:
    with resolving(monkeypatch, **{"images.example": answers}) as asked:
        error = refused("https://images.example/a.png")
    assert asked == ["images.example"]
    assert "images.example is not a public address" in error.message
    assert not any(answer in error.message for answer in answers)  # what is behind the name stays with us


def test_the_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch, server: ThreadingHTTPServer
) -> None:
    checked: list[str] = []
    monkeypatch.setattr(urls, "_public", lambda address: not checked.append(address))
    server.RequestHandlerClass.seen.clear()
    with resolving(monkeypatch, **{"images.example": ["127.0.0.1"]}) as asked:
        assert read_url(f"http://images.example:{server.server_port}/body", UrlLimits(max_seconds=5)) == BODY
    assert asked == ["images.example"]  # once: it has no second chance to answer otherwise
    assert checked == ["127.0.0.1"]
    assert server.RequestHandlerClass.seen == [("/body", f"images.example:{server.server_port}")]


def test_the_next_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch, server: ThreadingHTTPServer) -> None:
    with resolving(monkeypatch, **{"two.example": ["127.0.0.9", "127.0.0.1"]}):
        with socket.socket() as closed:
            closed.bind(("127.0.0.9", 0))
        assert read_url(f"http://two.example:{server.server_port}/body", HERE) == BODY


def test_a_body_is_fetched_where_private_addresses_are_allowed(at: Callable[[str], str]) -> None:
    assert read_url(at("body"), HERE) == BODY
    assert read_url(at("relative"), HERE) == BODY
    assert read_url(at("a b/ü.png?x=1&y=[é]#part"), HERE) == BODY
    assert read_url(at("body").replace("http", "HTTP"), HERE) == BODY


def test_an_address_is_sent_in_plain_ascii(at: Callable[[str], str], server: ThreadingHTTPServer) -> None:
    server.RequestHandlerClass.seen.clear()
    read_url(at("a b/ü%20.png?q=ö#part"), HERE)
    assert server.RequestHandlerClass.seen[0][0] == "/a%20b/%C3%BC%20.png?q=%C3%B6"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing", "answered 404"),
        ("unchanged", "answered 304"),
        ("part", "answered 206"),
        ("zipped", "compressed"),
        ("loop", "more than 5 redirects"),
        ("to?file:///etc/passwd", "unsupported URL scheme"),
        ("to?ftp://ftp.example/a", "unsupported URL scheme"),
        ("to?http://user:secret@127.0.0.1/", "password"),
        ("to?http://[::1", "not a valid URL"),
        ("cut", "could not be fetched"),
    ],
)
def test_an_error_says_what_a_server_answers_amiss(at: Callable[[str], str], path: str, said: str) -> None:
    error = refused(at(path), HERE)
    assert said in error.message
    assert error.code == "url"


def test_a_redirect_to_a_private_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, server: ThreadingHTTPServer
) -> None:
    """The first connection passes for public; the redirect is checked like any other."""
    real = urls._public
    monkeypatch.setattr(urls, "_public", lambda address: address == "127.0.0.1" or real(address))
    server.RequestHandlerClass.seen.clear()
    for target in ("127.0.0.2", "10.0.0.1", "169.254.169.254", "[::1]", "2130706434"):
        url = f"http://127.0.0.1:{server.server_port}/to?http://{target}:{server.server_port}/body"
        error = refused(url)
        assert "public" in error.message or "could not be fetched" in error.message
    assert all(path.startswith("/to?") for path, _ in server.RequestHandlerClass.seen)


def test_more_bytes_than_allowed_are_refused(at: Callable[[str], str]) -> None:
    for path in ("body", "endless"):
        error = refused(at(path), UrlLimits(private=True, max_bytes=5000, max_seconds=5))
        assert error.code == "too-many-bytes"
        assert "5,000" in error.message
    assert read_url(at("body"), UrlLimits(private=True, max_bytes=len(BODY))) == BODY


@pytest.mark.parametrize("path", ["drip", "drip-headers"])
def test_a_server_that_drips_is_left_at_the_deadline(at: Callable[[str], str], path: str) -> None:
    error = refused(at(path), UrlLimits(private=True, max_seconds=0.5))  # all of it would take 20
    assert "longer than 0.5 s" in error.message


def test_a_server_that_says_nothing_is_left_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = refused(f"http://127.0.0.1:{silent.getsockname()[1]}/", UrlLimits(private=True, max_seconds=0.3))
        assert "longer" in error.message
        error = refused(f"https://127.0.0.1:{silent.getsockname()[1]}/", UrlLimits(private=True, max_seconds=0.3))
        assert "longer" in error.message


def test_the_error_of_a_failed_connection_names_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with resolving(monkeypatch, **{"inner.example": ["127.0.0.1"]}):
        for scheme in ("http", "https"):
            error = refused(f"{scheme}://inner.example:{port}/", HERE)
            assert "could not be fetched" in error.message
            assert "127.0.0.1" not in error.message
            assert str(port) not in error.message


def test_an_unknown_host_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: Any, **more: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "Name or service not known" in refused("http://nobody.example/").message


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "etc/passwd",
        "ftp://example.org/a",
        "gopher://example.org/",
        "javascript:alert(1)",
        "",
        "http:/nohost",
        "http://",
        "http:///a.png",
        "http://user@example.org/",
        "http://user:secret@example.org/",
        "http://:80/",
        "http://example.org:99999/",
        "http://example.org:a/",
        "http://[::1/",
        "http://example.org:0/",
        "http://exa mple.org/",
        "http://a.example\r\nX: y/",
        "http://" + "a" * 300 + ".example/",
        "http://\x00/",
        "http://ü" + "a" * 100 + "/",
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    error = refused(url)
    assert error.code == "url"
    assert "secret" not in error.message


@pytest.mark.parametrize("port", ["99999", "a", "-1", "0", "80a", "1e3"])
def test_a_port_that_cannot_be_is_named(port: str) -> None:
    assert "1 to 65535 are accepted" in refused(f"http://example.org:{port}/").message


def test_a_fetcher_gives_each_address_its_bytes_or_its_error(at: Callable[[str], str]) -> None:
    fetcher = UrlFetcher(HERE, threads=3, of_one=2)
    futures = fetcher.fetch([at("body"), at("missing"), at("relative"), "ftp://example.org/a", at("body")] * 5)
    wait(futures, 30)
    for position, future in enumerate(futures):
        if position % 5 in (1, 3):
            with pytest.raises(InputError, match=r"answered 404|URL scheme"):
                fetcher.outcome(future)
        else:
            assert fetcher.outcome(future) == BODY
    assert fetcher.fetch([]) == []
    fetcher.close()


class Stalling(UrlFetcher):
    """Reads stand still, those of addresses that begin with "slow" until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **arguments: Any):
        super().__init__(**arguments)
        self.go = threading.Event()
        self.begun: list[str] = []
        self.enough = threading.Semaphore(0)
        monkeypatch.setattr(urls, "read_url", self.read)

    def read(self, url: str, limits: UrlLimits, deadline: float) -> bytes:
        self.begun.append(url)
        self.enough.release()
        if url.startswith("slow"):
            assert self.go.wait(120)
        return url.encode()


def test_one_request_does_not_take_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = Stalling(monkeypatch, threads=3, of_one=2)
    slow = fetcher.fetch([f"slow {i}" for i in range(20)])
    for _ in range(2):
        assert fetcher.enough.acquire(timeout=120)
    (good,) = fetcher.fetch(["good"])
    assert good.result(30) == b"good"
    assert len([url for url in fetcher.begun if url != "good"]) == 2
    fetcher.go.set()
    assert [future.result(30) for future in slow] == [f"slow {i}".encode() for i in range(20)]
    fetcher.close()


def test_what_is_not_there_in_time_has_the_reason_and_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = Stalling(monkeypatch, limits=UrlLimits(max_seconds_together=7), threads=1)
    first, second = fetcher.fetch(["slow 1", "slow 2"])
    assert fetcher.enough.acquire(timeout=120)
    for future in (first, second):
        with pytest.raises(InputError, match="its request took longer than 7 s"):
            fetcher.outcome(future)
    fetcher.go.set()
    assert first.result(30) == b"slow 1"
    (third,) = fetcher.fetch(["third"])
    assert third.result(30) == b"third"
    assert fetcher.begun == ["slow 1", "third"]
    fetcher.close()


def test_what_comes_to_its_turn_too_late_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = Stalling(monkeypatch, limits=UrlLimits(max_seconds_together=-1))
    for future in fetcher.fetch(["slow 1", "slow 2"]):
        with pytest.raises(InputError, match="the URLs of its request took longer than"):
            future.result(30)
    assert not fetcher.begun
    fetcher.close()


def test_the_deadline_of_a_request_ends_what_has_begun(at: Callable[[str], str]) -> None:
    limits = UrlLimits(private=True, max_seconds=60, max_seconds_together=0.5)
    fetcher = UrlFetcher(limits)
    futures = fetcher.fetch([at("drip")] * 3)
    wait(futures, 20)
    for future in futures:
        with pytest.raises(InputError, match=r"took longer than 0\.5 s"):
            future.result(0)
    fetcher.close()


def test_data_addresses_are_decoded() -> None:
    encoded = base64.b64encode(BODY).decode()
    assert read_url(f"data:image/png;base64,{encoded}") == BODY
    assert read_url(f"DATA:image/png;Base64,{encoded}") == BODY
    assert read_url("data:,a%20b") == b"a b"
    assert read_url(f"data:;base64,{encoded}".replace("=", "%3D")) == BODY


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:image/png;base64,%%%", "data:;base64,abc", "data:x"])
def test_damaged_data_addresses_are_refused(url: str) -> None:
    assert refused(url).code == "url"


def test_data_addresses_have_the_same_limit() -> None:
    limits = UrlLimits(max_bytes=100)
    assert read_url("data:," + "a" * 100, limits) == b"a" * 100
    for url in ("data:," + "a" * 101, "data:;base64," + base64.b64encode(bytes(101)).decode(), "data:," + "a" * 1000):
        assert refused(url, limits).code == "too-many-bytes"
