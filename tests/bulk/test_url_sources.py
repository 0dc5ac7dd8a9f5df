"""Images at addresses that lists and tables name, from a real server on loopback."""

from __future__ import annotations

import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from drawn import image, rows

from fake_encoder import FakeEncoder
from image_encoders.bulk.run import Report, run
from image_encoders.bulk.sources import ahead, find, urls
from image_encoders.collection import ITEMS, Collection
from image_encoders.errors import InputError, TooManyFailures


class Server(ThreadingHTTPServer):
    """Images by number; what it is asked for, and how much of it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.version = 1
        self.lock = threading.Lock()
        self.released = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        kind, _, name = self.path[1:].partition("/")
        with server.lock:
            server.asked[self.path[1:]] += 1
            asked = server.asked[self.path[1:]]
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        if kind == "hang":
            server.released.wait(120)
        elif kind == "slow":
            time.sleep(0.02)
        with server.lock:  # before the answer is sent, with which the client may ask for the next
            server.at_once -= 1
        if kind == "busy" and asked < 3:
            self.answer(503)
        elif kind == "none":
            self.answer(404)
        elif kind == "huge":
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 40))
            self.end_headers()
            self.wfile.write(b"x" * 1000)
        elif kind == "down":
            self.answer(500)
        else:
            body = image(int(name) + 1000 * server.version * (kind == "etag"))
            headers = {"ETag": f'"{server.version}"'} if kind == "etag" else {}
            if kind == "modified":
                headers = {"Last-Modified": "Sat, 21 Nov 2026 00:00:00 GMT"}
            self.answer(200, body, headers)

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            return
        self.server.sent[self.path[1:]] += len(body)

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(urls, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(urls, "LONGEST_WAIT_S", 0.02)
    with Server() as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield served
        served.released.set()
        served.shutdown()
        thread.join()


def encode(names: list[str], **options: Any) -> Report:
    encoder = FakeEncoder()
    found = find(["-"], stdin=io.BytesIO("\n".join(names).encode()), private_urls=True)
    report = run(found, encoder, Collection.open_or_create("index", encoder), **options)
    assert report.total == report.encoded + report.reused + report.unchanged + report.failed
    return report


def failures() -> dict[str, str]:
    return {one.id.partition("//")[2].partition("/")[2]: one.message for one in Collection.open("index").failures()}


def test_urls_of_a_list_are_fetched_and_have_the_embeddings_of_their_bytes(server: Server) -> None:
    names = [server.url(f"plain/{number}") for number in range(40)]
    assert encode([*names, *names]).encoded == 40
    stored = rows(Collection.open("index"))
    expected = FakeEncoder().encode_image([image(number) for number in range(40)])
    assert all(stored[name]["embedding"] == expected[number].tobytes() for number, name in enumerate(names))
    assert stored[names[3]]["path"] == names[3]


def test_urls_of_a_table_bring_its_other_columns_along(server: Server) -> None:
    lines = [{"url": server.url(f"plain/{number}"), "caption": f"image {number}"} for number in range(3)]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    encoder = FakeEncoder()
    collection = Collection.open_or_create("index", encoder)
    assert run(find(["t.jsonl"], private_urls=True), encoder, collection).encoded == 3
    batches = collection.scan(ITEMS, ["id", "metadata"])
    found = {row["id"]: json.loads(row["metadata"]) for batch in batches for row in batch.to_pylist()}
    assert found == {line["url"]: {"caption": line["caption"]} for line in lines}


def test_what_a_server_says_is_unchanged_is_not_sent_again(server: Server) -> None:
    names = [server.url("etag/1"), server.url("modified/2"), server.url("plain/3")]
    assert encode(names).encoded == 3
    stored = rows(Collection.open("index"))
    assert stored[names[0]]["state"] == 'etag "1"'
    assert stored[names[1]]["state"].startswith("modified Sat, 21 Nov 2026")
    assert encode(names).unchanged == 3
    server.version = 2
    report = encode(names)
    assert (report.encoded, report.unchanged) == (1, 2)
    assert rows(Collection.open("index"))[names[0]]["sha256"] != stored[names[0]]["sha256"]


def test_private_addresses_are_refused_unless_one_asks(server: Server) -> None:
    [one] = find(["-"], stdin=io.BytesIO(server.url("plain/1").encode()))
    assert one.error is not None
    assert "not a public address" in one.error.message
    assert not server.asked


def test_a_busy_server_is_asked_again_and_a_clear_answer_is_taken(server: Server) -> None:
    report = encode([server.url(f"{kind}/1") for kind in ("busy", "none", "down")])
    assert (report.encoded, report.failed) == (1, 2)
    assert server.asked == {"busy/1": 3, "none/1": 1, "down/1": urls.ATTEMPTS}
    assert failures() == {"none/1": "the server answered 404", "down/1": "the server answered 500"}


def test_a_url_that_hangs_holds_up_no_others(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "ATTEMPTS", 1)
    monkeypatch.setattr(urls, "UrlLimits", lambda **limits: urls_limits(**limits, max_seconds=3.0))
    names = [server.url("hang/1"), *(server.url(f"plain/{number}") for number in range(50))]
    found = find(["-"], stdin=io.BytesIO("\n".join(names).encode()), private_urls=True)
    ids = [one.id for one in found]
    assert sorted(ids) == sorted(names)
    assert ids[-1] == names[0]


def urls_limits(**limits: Any) -> Any:
    from image_encoders.inputs.urls import UrlLimits

    return UrlLimits(**limits)


def test_few_urls_of_one_host_are_fetched_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "OF_ONE_HOST", 3)
    assert encode([server.url(f"slow/{number}") for number in range(30)]).encoded == 30
    assert 1 < server.most_at_once <= 3


def test_a_list_is_not_read_further_than_may_be_under_way(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "MOST", 10)
    found = find(
        ["-"], stdin=io.BytesIO("\n".join(server.url(f"plain/{n}") for n in range(100)).encode()), private_urls=True
    )
    next(found)
    assert sum(server.asked.values()) <= 11
    found.close()


def test_a_hopeless_run_is_given_up_and_keeps_what_it_has(server: Server) -> None:
    names = [server.url(f"plain/{number}") for number in range(20)]
    bad = [server.url(f"none/{number}") for number in range(500)]
    with pytest.raises(TooManyFailures, match=r"more than 5 images failed, .*the server answered 404"):
        encode([*names, *bad], batch_size=4, max_failures=5)
    collection = Collection.open("index")
    kept = collection.count()
    assert kept > 0
    [record] = collection.runs()
    assert (record.encoded, record.failed) == (kept, len(collection.failures()))
    assert len(server.asked) < 520
    assert encode(names, max_failures=0).failed == 0


def test_a_web_address_on_the_command_line_is_refused_with_the_way(server: Server) -> None:
    with pytest.raises(InputError, match=r"a URL, not a path; .* encode -"):
        find([server.url("plain/1")])


def test_an_answer_that_says_it_is_too_long_is_not_read(server: Server) -> None:
    assert encode([server.url("huge/1")]).failed == 1
    assert "bytes that are accepted" in failures()["huge/1"]
    assert server.asked["huge/1"] == 1
