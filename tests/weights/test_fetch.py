"""fetch: whole files or none, whatever the server does. The server is a real one, on loopback."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from image_encoders.cache import cache_folder
from image_encoders.errors import WeightsError
from image_encoders.weights import download as module
from image_encoders.weights import fetch as fetch_module
from image_encoders.weights.fetch import fetch, is_offline

CONTENT = bytes(range(256)) * 4000  # 1,024,000 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


class Request(BaseHTTPRequestHandler):
    """Answers as the test's own function says; keeps what was asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append(dict(self.headers) | {"path": self.path})  # type: ignore[attr-defined]
        self.close_connection = True
        self.server.answer(self)  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None: ...

    def reply(self, body: bytes = b"", status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def offset(self) -> int:
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def rest(self, etag: str = '"1"', until: int | None = None, content: bytes = CONTENT) -> None:
        """The file or, when the asker names this version, its rest; the connection closes early at byte `until`."""
        start = self.offset()
        if start and self.headers.get("If-Range") in (None, etag):
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.reply(content[start:until], 206, len(content) - start, ETag=etag, Content_Range=span)
        else:
            self.reply(content[:until], 200, len(content), ETag=etag)


class Server:
    """A loopback server; set `answer`, read `asked`."""

    def __init__(self) -> None:
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Request)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # of askers that hang up
        self.http.asked = []  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/weights/model.npz"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def asked(self) -> list[dict[str, str]]:
        return self.http.asked  # type: ignore[attr-defined]

    def answers(self, *answers: Callable[[Request], None]) -> None:
        """These answers one after another, the last one for ever."""
        waiting = list(answers)
        lock = threading.Lock()

        def answer(request: Request) -> None:
            with lock:
                one = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            one(request)

        self.http.answer = answer  # type: ignore[attr-defined]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "IMAGE_ENCODERS_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IMAGE_ENCODERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("image_encoders.weights.retries.BACKOFF_S", 0.001)
    monkeypatch.setattr(module, "TIMEOUT_S", 5.0)
    made = Server()
    made.answers(lambda r: r.rest())
    yield made
    made.http.shutdown()
    made.http.server_close()


def files(path: Path) -> set[str]:
    return {one.name.removeprefix(path.name) for one in path.parent.iterdir()} - {".lock"}


def test_a_file_is_fetched_once_and_then_needs_no_network(server: Server) -> None:
    path = fetch(server.url, sha256=SHA256, size=len(CONTENT), progress=False)
    assert path == cache_folder() / "127.0.0.1/weights/model.npz"
    assert path.read_bytes() == CONTENT
    assert files(path) == {"", ".json"}
    for offline in (False, True):
        assert fetch(server.url, sha256=SHA256, size=len(CONTENT), offline=offline) == path
    assert len(server.asked) == 1


def test_the_record_beside_the_file_says_where_it_came_from(server: Server) -> None:
    path = fetch(server.url, progress=False)
    record = json.loads(path.with_name("model.npz.json").read_text())
    assert record == {"url": server.url, "size": len(CONTENT), "sha256": SHA256, "sha256_from": "first use"}


def test_a_mirror_answers_for_the_published_host(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = server.url.removesuffix("/weights/model.npz")
    monkeypatch.setenv("IMAGE_ENCODERS_MIRROR", f"https://one.example=http://nowhere, https://two.example/x={mirror}")
    path = fetch("https://two.example/x/a/b.npz", sha256=SHA256, progress=False)
    assert path == cache_folder() / "two.example/x/a/b.npz"
    assert server.asked[0]["path"] == "/a/b.npz"
    monkeypatch.setenv("IMAGE_ENCODERS_MIRROR", "nonsense")
    with pytest.raises(WeightsError, match="nonsense is not of the form PREFIX=PREFIX"):
        fetch("https://two.example/x/a/c.npz", progress=False)


@pytest.mark.parametrize("digest", [SHA256, None])
def test_a_broken_connection_is_taken_up_where_it_broke(server: Server, digest: str | None) -> None:
    server.answers(lambda r: r.rest(until=HALF), lambda r: r.rest(until=HALF + 1000), lambda r: r.rest())
    assert fetch(server.url, sha256=digest, progress=False).read_bytes() == CONTENT
    assert [one.get("Range") for one in server.asked] == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert server.asked[1]["If-Range"] == '"1"'


def test_a_download_that_was_killed_is_taken_up_by_the_next_one(server: Server) -> None:
    def die(request: Request) -> None:
        request.rest(until=HALF)

    server.answers(die)
    with pytest.raises(WeightsError, match=r"the connection broke after 512000 of 1024000 bytes.*5 times in a row"):
        fetch(server.url, progress=False)
    path = cache_folder() / "127.0.0.1/weights/model.npz"
    assert files(path) == {".part", ".part.json"}
    server.asked.clear()
    server.answers(lambda r: r.rest())
    assert fetch(server.url, progress=False).read_bytes() == CONTENT
    assert server.asked[0]["Range"] == f"bytes={HALF}-"
    assert files(path) == {"", ".json"}


def test_an_interrupt_keeps_what_came(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.Download.total
    calls = []

    def total(self: Any) -> int | None:
        calls.append(self.have)
        if self.have > HALF:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(module.Download, "total", total)
    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, progress=False)
    monkeypatch.setattr(module.Download, "total", real)
    assert fetch(server.url, progress=False).read_bytes() == CONTENT
    assert server.asked[1]["Range"].startswith("bytes=5")


def test_a_file_that_changed_meanwhile_is_not_glued_to_the_old_half(server: Server) -> None:
    other = CONTENT[::-1]
    server.answers(lambda r: r.rest(until=HALF), lambda r: r.rest(etag='"2"', content=other))
    assert fetch(server.url, progress=False).read_bytes() == other


def test_a_server_that_continues_another_version_is_not_believed(server: Server) -> None:
    other = CONTENT[::-1]

    def continues(request: Request) -> None:
        start = request.offset()
        if start:
            span = f"bytes {start}-{len(other) - 1}/{len(other)}"
            request.reply(other[start:], 206, ETag='"2"', Content_Range=span)
        else:
            request.rest(etag='"2"', content=other)

    server.answers(lambda r: r.rest(until=HALF), continues)
    assert fetch(server.url, progress=False).read_bytes() == other


def test_a_continued_file_with_another_digest_is_fetched_anew(server: Server) -> None:
    def wrong_rest(request: Request) -> None:
        start = request.offset()
        span = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        request.reply(bytes(len(CONTENT) - start), 206, ETag='"1"', Content_Range=span)

    server.answers(lambda r: r.rest(until=HALF), wrong_rest, lambda r: r.rest())
    assert fetch(server.url, sha256=SHA256, progress=False).read_bytes() == CONTENT
    assert "Range" not in server.asked[2]


def test_a_server_that_ignores_ranges_starts_over(server: Server) -> None:
    server.answers(lambda r: r.rest(until=HALF), lambda r: r.reply(CONTENT))
    assert fetch(server.url, sha256=SHA256, progress=False).read_bytes() == CONTENT


def test_without_a_version_or_digest_nothing_is_continued(server: Server) -> None:
    server.answers(lambda r: r.reply(CONTENT[:HALF], length=len(CONTENT)), lambda r: r.reply(CONTENT))
    assert fetch(server.url, progress=False).read_bytes() == CONTENT
    assert "Range" not in server.asked[1]


def test_a_position_beyond_the_file_starts_over(server: Server) -> None:
    server.answers(lambda r: r.rest(until=HALF), lambda r: r.reply(b"", 416), lambda r: r.rest())
    assert fetch(server.url, progress=False).read_bytes() == CONTENT
    assert "Range" not in server.asked[2]


def test_a_silent_server_is_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)

    def stall(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(CONTENT)))
        request.send_header("ETag", '"1"')
        request.end_headers()
        request.wfile.write(CONTENT[:HALF])
        request.wfile.flush()
        time.sleep(0.6)

    server.answers(stall, lambda r: r.rest())
    assert fetch(server.url, progress=False).read_bytes() == CONTENT
    assert server.asked[1]["Range"].startswith("bytes=")


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_error_of_the_server_is_waited_out(server: Server, status: int) -> None:
    server.answers(lambda r: r.reply(b"busy", status), lambda r: r.rest())
    assert fetch(server.url, progress=False).read_bytes() == CONTENT


def test_the_pause_a_server_asks_for_is_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    waits = [lambda r, s=s: r.reply(b"", 503, Retry_After=s) for s in ("7", "9999", "Fri, 20 Nov 2026 10:00:00 GMT")]
    server.answers(*waits, lambda r: r.rest())
    fetch(server.url, progress=False)
    assert pauses == [7.0, 60.0, 0.004]


def test_a_lasting_error_of_the_server_is_said_after_some_attempts(server: Server) -> None:
    server.answers(lambda r: r.reply(b"", 503))
    with pytest.raises(WeightsError, match=r"model.npz: the server answers 503, 5 times in a row. try again later"):
        fetch(server.url, progress=False)
    assert len(server.asked) == 5


def test_a_missing_file_is_said_at_once_with_what_to_do(server: Server) -> None:
    server.answers(lambda r: r.reply(b"no", 404))
    with pytest.raises(WeightsError, match=r"no such file \(404\).*weights=.*IMAGE_ENCODERS_MIRROR"):
        fetch(server.url, progress=False)
    assert len(server.asked) == 1
    assert files(cache_folder() / "127.0.0.1/weights/model.npz") == set()


def test_a_refusal_is_said_at_once(server: Server) -> None:
    server.answers(lambda r: r.reply(b"no", 403))
    with pytest.raises(WeightsError, match="answers 403 Forbidden"):
        fetch(server.url, progress=False)
    assert len(server.asked) == 1


def test_other_bytes_than_published_are_deleted(server: Server) -> None:
    server.answers(lambda r: r.rest(content=CONTENT[::-1]))
    with pytest.raises(WeightsError, match=rf"have sha256 [0-9a-f]{{64}}; {SHA256} was published. They were deleted"):
        fetch(server.url, sha256=SHA256, progress=False)
    assert files(cache_folder() / "127.0.0.1/weights/model.npz") == set()


def test_another_size_than_published_is_refused_before_it_is_fetched(server: Server) -> None:
    with pytest.raises(WeightsError, match="the server's file has 1024000 bytes; 7 were published"):
        fetch(server.url, size=7, progress=False)


def test_a_length_that_is_too_short_is_found_by_the_published_size(server: Server) -> None:
    server.answers(lambda r: r.reply(CONTENT, length=HALF))
    with pytest.raises(WeightsError, match="the server's file has 512000 bytes; 1024000 were published"):
        fetch(server.url, size=len(CONTENT), progress=False)


def test_a_length_that_is_too_long_never_makes_a_file(server: Server) -> None:
    server.answers(lambda r: r.reply(CONTENT, length=len(CONTENT) + 10, ETag='"1"'))
    with pytest.raises(WeightsError, match="broke after 1024000 of 1024010 bytes"):
        fetch(server.url, progress=False)
    assert not (cache_folder() / "127.0.0.1/weights/model.npz").exists()


def test_a_body_without_a_length_is_checked_against_the_published_size(server: Server) -> None:
    def chunked(body: bytes) -> Callable[[Request], None]:
        def answer(request: Request) -> None:
            request.send_response(200)
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            for at in range(0, len(body), 50_000):
                piece = body[at : at + 50_000]
                request.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            request.wfile.write(b"0\r\n\r\n")

        return answer

    server.answers(chunked(CONTENT + b"more"))
    with pytest.raises(WeightsError, match="sends more than the 1024000 bytes that the file has"):
        fetch(server.url, size=len(CONTENT), progress=False)
    server.answers(chunked(CONTENT[:HALF]))
    with pytest.raises(WeightsError, match="ended after 512000 of 1024000 bytes"):
        fetch(server.url, size=len(CONTENT), progress=False)
    server.answers(chunked(CONTENT))
    assert fetch(server.url, size=len(CONTENT), progress=False).read_bytes() == CONTENT


def test_redirects_are_followed_but_not_for_ever(server: Server) -> None:
    server.answers(lambda r: r.reply(b"", 302, Location="/elsewhere"), lambda r: r.rest())
    assert fetch(server.url, progress=False).read_bytes() == CONTENT
    server.answers(lambda r: r.reply(b"", 302, Location="/weights/round.npz"))
    with pytest.raises(WeightsError, match="redirects"):
        fetch(server.url + ".other", progress=False)
    server.answers(lambda r: r.reply(b"", 302, Location="file:///etc/passwd"))
    with pytest.raises(WeightsError, match="protocol"):
        fetch(server.url + ".third", progress=False)


def test_a_web_page_is_not_taken_for_weights(server: Server) -> None:
    server.answers(lambda r: r.reply(b"<html>log in", Content_Type="text/html; charset=utf-8"))
    with pytest.raises(WeightsError, match="answers with a web page"):
        fetch(server.url, progress=False)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "http:///x", "https://host/", "https://h/a/../../x", "x"]
)
def test_only_http_urls_of_files_are_fetched(url: str) -> None:
    with pytest.raises(WeightsError, match="not the http or https URL of a file"):
        fetch(url)


def test_a_server_that_cannot_be_reached_is_asked_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits to ask again"))
    with pytest.raises(WeightsError, match=r"127.0.0.1:1/x.npz: the server cannot be reached.*refused.*weights="):
        fetch("http://127.0.0.1:1/x.npz", progress=False)


@pytest.mark.parametrize("variable", ["IMAGE_ENCODERS_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_says_where_the_file_should_be(server: Server, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    assert not is_offline()
    monkeypatch.setenv(variable, "1")
    with pytest.raises(
        WeightsError, match=r"cache/127.0.0.1/weights/model.npz does not exist.*network access is off.*Download http"
    ):
        fetch(server.url)
    assert server.asked == []


def test_a_file_put_there_by_hand_is_checked_and_recorded(server: Server) -> None:
    path = cache_folder() / "127.0.0.1/weights/model.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(WeightsError, match=f"has sha256 .*, expected {SHA256}; delete it to fetch it again"):
        fetch(server.url, sha256=SHA256, offline=True)
    path.write_bytes(CONTENT)
    assert fetch(server.url, sha256=SHA256, offline=True) == path
    assert json.loads(path.with_name("model.npz.json").read_text())["sha256"] == SHA256


def test_a_file_without_a_published_digest_has_to_stay_as_it_was(server: Server) -> None:
    path = fetch(server.url, progress=False)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match="has 1023999 bytes; 1024000 were recorded"):
        fetch(server.url)
    path.write_bytes(CONTENT[::-1])
    assert fetch(server.url) == path  # the size alone proves nothing


def test_a_digest_published_later_is_held_against_an_old_file(server: Server) -> None:
    fetch(server.url, progress=False)
    with pytest.raises(WeightsError, match="expected 000"):
        fetch(server.url, sha256="0" * 64)
    assert fetch(server.url, sha256=SHA256.upper())
    assert len(server.asked) == 1


def test_many_at_once_fetch_a_file_once(server: Server) -> None:
    def slow(request: Request) -> None:
        time.sleep(0.1)
        request.rest()

    server.answers(slow)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(server.url, progress=False))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(server.asked) == 1


def test_a_full_disk_is_said_before_the_file_is_fetched(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = module.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(WeightsError, match="no space is left; free some space, or set IMAGE_ENCODERS_CACHE"):
        fetch(server.url, progress=False)


def test_a_cache_that_can_not_be_written_is_said(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match=r"model\.npz: (Not a directory|File exists)"):
        fetch(server.url, progress=False)
    if os.getuid():  # root may write anywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        monkeypatch.setenv("IMAGE_ENCODERS_CACHE", str(locked / "x"))
        with pytest.raises(WeightsError, match="Permission denied; set IMAGE_ENCODERS_CACHE"):
            fetch(server.url, progress=False)


def test_a_read_only_cache_still_serves_its_files(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch(server.url, progress=False)
    path.with_name("model.npz.json").unlink()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(fetch_module, "write_json", refuse)
    assert fetch(server.url, sha256=SHA256) == path


def test_progress_is_shown_on_stderr(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(server.url, progress=True)
    captured = capsys.readouterr()
    assert "model.npz" in captured.err
    assert captured.out == ""


# ---------------------------------------------------------------- servers that mean no good


def head(request: Request, *lines: str, status: int = 200) -> None:
    """An answer's head with nothing added, to be followed by whatever a test writes."""
    raw = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status} Said", *lines, ""))
    request.wfile.write(raw.encode("latin-1"))


def endless(request: Request) -> None:
    head(request, "Connection: close")
    with suppress(OSError):
        while True:
            request.wfile.write(bytes(1 << 16))


def drip(request: Request, pieces: Iterable[bytes]) -> None:
    with suppress(OSError):
        for piece in pieces:
            request.wfile.write(piece)
            request.wfile.flush()
            time.sleep(0.02)


def drips_body(request: Request) -> None:
    head(request, f"Content-Length: {len(CONTENT)}")
    drip(request, [CONTENT[at : at + 1] for at in range(200)])


def drips_head(request: Request) -> None:
    head_of = f"HTTP/1.1 200 OK\r\nContent-Length: {len(CONTENT)}\r\nX-Long: ".encode()
    drip(request, [head_of, *[b"x"] * 200])


def breaks(request: Request, etag: str) -> None:
    head(request, f"Content-Length: {len(CONTENT)}", f"ETag: {etag}")
    request.wfile.write(CONTENT[:HALF])


def continues(request: Request, span: str, body: bytes = CONTENT[HALF:]) -> None:
    """Half of the file, then the rest as `span` says."""
    if request.offset():
        head(request, f"Content-Range: {span}", 'ETag: "1"', "Connection: close", status=206)
        request.wfile.write(body)
    else:
        request.rest(until=HALF)


HOSTILE: dict[str, tuple[Callable[[Request], None], str]] = {
    "an endless body": (endless, "at most 2000000 are expected"),
    "a length beyond the maximum": (lambda r: head(r, f"Content-Length: {1 << 40}"), "at most 2000000 are expected"),
    "a length of 5,000 digits": (lambda r: head(r, "Content-Length: " + "9" * 5000), "5 times in a row"),
    "a negative length": (lambda r: head(r, "Content-Length: -5"), "5 times in a row"),
    "two lengths": (lambda r: head(r, "Content-Length: 5", "Content-Length: 6"), "5 times in a row"),
    "an empty body": (lambda r: r.reply(b""), "sends an empty file"),
    "an empty body of no length": (lambda r: head(r, "Connection: close"), "sends an empty file"),
    "a compressed body": (lambda r: r.reply(gzip.compress(CONTENT), Content_Encoding="gzip"), r"compressed \(gzip\)"),
    "a body byte by byte": (drips_body, r"received only \d+ bytes in 0.2 s"),
    "a head byte by byte": (drips_head, "no answer within 0.5 s"),
    "a tag that is no ASCII": (lambda r: breaks(r, '"gr\xfc\xdfe"'), "the connection broke"),
    "a tag of control characters": (lambda r: breaks(r, '"\x01"'), "5 times in a row"),
    "a tag of 60,000 characters": (lambda r: breaks(r, f'"{"x" * 60_000}"'), "the connection broke"),
    "a head of 2 MB": (lambda r: head(r, *[f"X-{i}: {'x' * 1000}" for i in range(2000)]), "5 times in a row"),
    "a range of 5,000 digits": (lambda r: continues(r, f"bytes {'5' * 5000}-6/7"), "5 times in a row"),
    "a range that begins elsewhere": (lambda r: continues(r, f"bytes 5-9/{len(CONTENT)}"), "5 times in a row"),
    "a range that is none": (lambda r: continues(r, "bytes nonsense"), "5 times in a row"),
    "a range and then too much": (
        lambda r: continues(r, f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT)}", CONTENT),
        "more than the 1024000 bytes",
    ),
    "a part that nobody asked for": (lambda r: head(r, "Content-Range: bytes 0-4/9", status=206), "sends a part"),
    "chunks of a size that is no number": (
        lambda r: (head(r, "Transfer-Encoding: chunked"), r.wfile.write(b"zz\r\nxx\r\n"))[0],
        "5 times in a row",
    ),
    "no HTTP": (lambda r: r.wfile.write(b"\x16\x03\x01 nothing of the kind") and None, "5 times in a row"),  # type: ignore[func-returns-value]
    "a pause of 5,000 digits": (lambda r: head(r, "Retry-After: " + "9" * 5000, status=503), "answers 503"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_server_neither_installs_a_file_nor_spoils_the_next_download(
    server: Server, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    answer, said = HOSTILE[kind]
    server.answers(answer)
    with monkeypatch.context() as patience:
        if "byte by byte" in kind:
            patience.setattr(module, "SLOW_S", 0.2)
            patience.setattr(module, "HEAD_S", 0.5)
        with pytest.raises(WeightsError, match=said):
            fetch(server.url, max_bytes=2_000_000, progress=False)
    path = cache_folder() / "127.0.0.1/weights/model.npz"
    assert not path.exists()
    server.answers(lambda r: r.rest())
    assert fetch(server.url, progress=False).read_bytes() == CONTENT
    assert files(path) == {"", ".json"}
