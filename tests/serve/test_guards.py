"""What a request has to pass before a route sees it: tried on a server of this process, on loopback."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import pytest
from wire import Client, eventually, reason, request, serving

from image_encoders.errors import ImageEncodersError
from image_encoders.serve.guards import Guards, check_exposure, is_loopback
from image_encoders.serve.settings import Settings

KEY, OTHER_KEY = "a-key-that-is-long-enough", "another-key-of-enough-length"
Serve = Callable[..., AbstractContextManager[Any]]


class App:
    """Answers with what it got."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.go = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        if scope["path"] == "/broken":
            raise KeyError("a query that nobody else should read")
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RuntimeError("the client left")
            size, more = size + len(message["body"]), message["more_body"]
        while scope["path"] == "/wait" and not self.go.is_set():
            await asyncio.sleep(0.01)
        body = json.dumps({"size": size, "path": scope["path"], "request_id": scope["request_id"]}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if scope["path"] == "/search":
            headers.append((b"Content-Security-Policy", b"script-src 'self'"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        if scope["path"] == "/broken-later":
            raise KeyError("a query that nobody else should read")


@contextmanager
def guarded(**settings: Any) -> Iterator[Any]:
    """A server behind guards; `.app` and `.guards` are what it serves."""
    given = Settings(**settings)
    app = App()
    guards = Guards(app, given)
    with serving(guards, given) as server:
        server.app, server.guards = app, guards  # type: ignore[attr-defined]
        yield server


@pytest.fixture(scope="module")
def open_one() -> Iterator[Any]:
    with guarded() as server:
        yield server


@pytest.fixture(scope="module")
def keyed() -> Iterator[Any]:
    with guarded(api_keys=(KEY, OTHER_KEY), cors_origins=("https://pages.example",)) as server:
        yield server


def ask(server: Any, *arguments: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
    with Client(server.port) as client:
        client.send(request(*arguments, **headers))
        return client.answer(of_head=arguments[:1] == ("HEAD",))


# Host


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7", "10.0.0.1:80"]
)
def test_a_service_is_known_by_its_addresses_and_as_localhost(open_one: Any, host: str) -> None:
    assert ask(open_one, Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "2130706433"]
)
def test_a_name_that_was_made_to_lead_here_is_refused(open_one: Any, host: str) -> None:
    status, _, body = ask(open_one, Host=host)
    assert status == 421
    assert "--allowed-host" in reason(body)


@pytest.mark.parametrize(
    "host", ["", "a b", "localhost/evil", "user@localhost", "[::1", "localhost:port", "localhost,x"]
)
def test_a_host_that_is_no_name_is_refused(open_one: Any, host: str) -> None:
    assert ask(open_one, Host=host)[0] == 400


def test_no_host_or_two_are_refused_but_for_probes(open_one: Any) -> None:
    for host in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
        for path, status in ((b"/", 400), (b"/health/ready", 200)):
            with Client(open_one.port) as client:
                client.send(b"GET " + path + b" HTTP/1.0\r\n" + host + b"\r\n")
                assert client.answer()[0] == status


def test_names_can_be_allowed() -> None:
    with guarded(allowed_hosts=("Images.Example",)) as server:
        assert ask(server, Host="images.example:443")[0] == 200
        assert ask(server, Host="other.example")[0] == 421
    with guarded(allowed_hosts=("*",)) as server:
        assert ask(server, Host="other.example")[0] == 200


# Origin


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://[", "http://localhost"]
)
def test_pages_of_other_origins_are_refused(open_one: Any, method: str, origin: str) -> None:
    status, headers, body = ask(open_one, method, "/", Host="localhost:8000", Origin=origin)
    assert status == 403
    assert "--cors-origin" in reason(body)
    assert "access-control-allow-origin" not in headers


def test_its_own_pages_are_not(open_one: Any) -> None:
    headers = {"Origin": "http://localhost:8000", "Sec_Fetch_Site": "same-origin"}
    assert ask(open_one, "POST", "/", b"{}", Host="localhost:8000", **headers)[0] == 200
    headers["Origin"] = "https://localhost:8000"  # a proxy speaks TLS for it
    assert ask(open_one, "POST", "/", b"{}", Host="localhost:8000", **headers)[0] == 200


def test_what_pages_of_other_sites_embed_is_refused_and_a_link_may_be_followed(open_one: Any) -> None:
    embedded = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"}
    framed = {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"}
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    typed = {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert [ask(open_one, **one)[0] for one in (embedded, framed, followed, typed)] == [403, 403, 200, 200]
    assert ask(open_one, "POST", "/", b"{}", **followed)[0] == 403


def test_an_allowed_origin_gets_what_its_browser_asks_for(keyed: Any) -> None:
    origin = {"Origin": "https://pages.example", "Sec_Fetch_Site": "cross-site"}
    status, headers, body = ask(keyed, "OPTIONS", "/v1/embeddings", Access_Control_Request_Method="POST", **origin)
    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == "https://pages.example"
    assert "x-api-key" in headers["access-control-allow-headers"]
    status, headers, _ = ask(keyed, "POST", "/", b"{}", X_API_Key=KEY, **origin)
    assert (status, headers["access-control-allow-origin"]) == (200, "https://pages.example")
    assert "access-control-allow-credentials" not in headers
    assert headers["vary"] == "origin"
    assert ask(keyed, "POST", "/", b"{}", **origin)[0] == 401
    assert ask(keyed, "OPTIONS", "/", Origin="https://evil.example", Access_Control_Request_Method="POST")[0] == 403


def test_every_origin_can_be_allowed() -> None:
    with guarded(cors_origins=("*",)) as server:
        status, headers, _ = ask(server, "POST", "/", b"{}", Origin="https://any.example")
        assert (status, headers["access-control-allow-origin"]) == (200, "*")


# Keys


@pytest.mark.parametrize(
    "header",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer {OTHER_KEY}"},
        {"X_API_Key": KEY},
        {"X_API_Key": OTHER_KEY, "Authorization": "Basic abc"},
    ],
)
def test_a_key_opens(keyed: Any, header: dict[str, str]) -> None:
    assert ask(keyed, **header)[0] == 200


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"X_API_Key": KEY.upper()},
        {"X_API_Key": "k\xe9y"},
        {"X_API_Key": f"{KEY},{OTHER_KEY}"},
        {"Cookie": f"key={KEY}"},
    ],
)
def test_nothing_else_opens(keyed: Any, header: dict[str, str]) -> None:
    asked = len(keyed.app.paths)
    status, headers, body = ask(keyed, "POST", "/v1/embeddings", b"{}", **header)
    assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="image-encoders"')
    assert "X-API-Key" in reason(body)
    assert KEY not in body.decode()
    assert len(keyed.app.paths) == asked


@pytest.mark.parametrize("path", ["/", "/metrics", "/search", "/login/x", "/loginx", "/page/../search.json", "/health"])
def test_no_path_but_probes_and_the_login_is_open(keyed: Any, path: str) -> None:
    assert ask(keyed, "GET", path)[0] == 401


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/login", "/page/style.css"])
def test_probes_and_the_login_are_open(keyed: Any, path: str) -> None:
    assert ask(keyed, "GET", path)[0] == 200


def test_people_are_sent_to_the_login_and_from_there_to_what_they_wanted(keyed: Any) -> None:
    accepts = {"Accept": "text/html,*/*"}
    status, headers, _ = ask(keyed, "GET", "/search?q=a%20dog&sort=date", **accepts)
    assert (status, headers["location"]) == (303, "login?next=" + quote("search?q=a%20dog&sort=date", safe=""))
    assert ask(keyed, "GET", "/a/b/c", **accepts)[1]["location"] == "../../login?next=a%2Fb%2Fc"
    cookie = login(keyed, KEY, "/search?q=a%20dog")
    assert ask(keyed, "GET", "/search?q=a%20dog", Cookie=f"other=1; {cookie}", **accepts)[0] == 200


@pytest.mark.parametrize("path", ["/docs?a=b", "/docs", "/search?q=a%20dog&sort=date", "/v1/models"])
def test_the_login_leads_to_where_the_redirect_came_from(keyed: Any, path: str) -> None:
    _, headers, _ = ask(keyed, "GET", path, Accept="text/html")
    ((wanted,),) = parse_qs(urlsplit(headers["location"]).query).values()
    login(keyed, KEY, wanted)
    assert "/" + wanted == path  # from /login


def login(server: Any, key: str, target: str = "/search") -> str:
    """NAME=VALUE of the cookie that a key gets."""
    form = urlencode({"key": key, "next": target}).encode()
    status, headers, _ = ask(server, "POST", "/login", form, Content_Type="application/x-www-form-urlencoded")
    assert (status, headers["location"]) == (303, target)
    cookie, *attributes = headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
    assert key not in cookie
    return cookie


def test_a_wrong_key_gets_no_cookie(keyed: Any) -> None:
    for form in (b"key=wrong&next=/search", b"", b"key=", b"\xff\x00&&==", b"next=/x&key=" + KEY[:-1].encode()):
        status, headers, _ = ask(keyed, "POST", "/login", form)
        assert status == 303
        assert headers["location"].startswith("login?failed=1&next=")
        assert "set-cookie" not in headers
    assert ask(keyed, "POST", "/login", b"key=" + bytes(100_000))[0] == 413


def test_a_login_leads_to_no_other_site(keyed: Any) -> None:
    for target in (
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "/a\r\nX: y",
        "/ü",
    ):
        form = urlencode({"key": KEY, "next": target}).encode()
        assert ask(keyed, "POST", "/login", form)[1]["location"] == "search"


def test_a_page_of_another_site_cannot_log_in(keyed: Any) -> None:
    assert ask(keyed, "POST", "/login", urlencode({"key": KEY}).encode(), Origin="https://evil.example")[0] == 403


def test_a_cookie_is_good_for_its_keys_until_it_expires(keyed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = login(keyed, OTHER_KEY)
    name, ticket = cookie.split("=")
    until, digest = ticket.split(".")
    assert ask(keyed, Cookie=cookie)[0] == 200
    for forged in (
        f"{int(until) + 1}.{digest}",
        f"{until}.{'0' * 64}",
        f"{until}.",
        "",
        ".",
        f"-1.{digest}",
        f"{until}",
    ):
        assert ask(keyed, Cookie=f"{name}={forged}")[0] == 401
    with guarded(api_keys=(KEY,)) as server:  # the other key is not one any more
        assert ask(server, Cookie=cookie)[0] == 401
        assert ask(server, Cookie=f"{login(server, KEY).split('=')[0]}={ticket}")[0] == 401
    with guarded(api_keys=(KEY, OTHER_KEY)) as server:  # a replica, or the same one after a restart
        assert ask(server, Cookie=cookie)[0] == 200
    monkeypatch.setattr("image_encoders.serve.guards.time.time", lambda: int(until) + 1.0)
    assert ask(keyed, Cookie=cookie)[0] == 401


def test_a_link_from_another_site_is_opened_again_from_here_where_the_cookie_comes_along(keyed: Any) -> None:
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    status, _, body = ask(keyed, "GET", "/search", Accept="text/html", **followed)
    assert status == 200
    assert b'http-equiv="refresh"' in body
    assert b"script" not in body


def test_cookies_are_for_tls_where_there_is_tls() -> None:
    with guarded(api_keys=(KEY,)) as server:
        form = urlencode({"key": KEY}).encode()
        assert "Secure" not in ask(server, "POST", "/login", form)[1]["set-cookie"]
        assert "Secure" in ask(server, "POST", "/login", form, X_Forwarded_Proto="https")[1]["set-cookie"]


# Bodies


def test_a_body_that_is_too_large_is_refused_before_it_is_read_and_while_it_is() -> None:
    with guarded(max_body_bytes=100_000) as server:
        assert ask(server, "POST", "/", bytes(100_000))[0] == 200
        with Client(server.port) as client:
            client.send(request("POST", "/", Content_Length="100001"))
            status, headers, body = client.answer()
            assert (status, headers["connection"]) == (413, "close")
            assert "100,000 bytes" in reason(body)
        assert server.app.paths == ["/"]
        with Client(server.port) as client:
            client.send(request("POST", "/", Transfer_Encoding="chunked"))
            for _ in range(50):
                client.send(b"1000\r\n" + bytes(4096) + b"\r\n")
            status, headers, body = client.answer()
            assert (status, headers["connection"]) == (413, "close")
            assert "100,000 bytes" in reason(body)
        assert ask(server, "POST", "/", bytes(100_000))[0] == 200
        eventually(lambda: server.guards.buffered == 0)


def test_all_bodies_together_are_bounded() -> None:
    with guarded(max_buffered_bytes=250_000) as server:
        with Client(server.port) as one, Client(server.port) as two:
            one.send(request("POST", "/wait", bytes(100_000)))
            eventually(lambda: server.guards.buffered == 100_000)
            two.send(request("POST", "/wait", bytes(100_000)))
            eventually(lambda: server.guards.buffered == 200_000)
            status, headers, body = ask(server, "POST", "/", bytes(100_000))
            assert (status, headers["retry-after"]) == (429, "1")
            assert "250,000 bytes" in reason(body)
            eventually(lambda: server.guards.buffered == 200_000)
            assert ask(server, "POST", "/", bytes(40_000))[0] == 200
            two.socket.close()
            eventually(lambda: server.guards.buffered == 100_000)
            assert ask(server, "POST", "/", bytes(100_000))[0] == 200
            server.app.go.set()
            assert one.answer()[0] == 200
        eventually(lambda: server.guards.buffered == 0)


def test_compressed_bodies_are_refused(open_one: Any) -> None:
    for encoding in ("gzip", "br", "gzip, identity"):
        assert ask(open_one, "POST", "/", b"x", Content_Encoding=encoding)[0] == 415
    assert ask(open_one, "POST", "/", b"x", Content_Encoding="identity")[0] == 200


# Answers


def test_every_answer_has_security_headers_and_a_route_may_set_its_own(open_one: Any) -> None:
    for arguments, host in ((("GET", "/"), "localhost"), (("GET", "/"), "evil.example"), (("HEAD", "/"), "localhost")):
        _, headers, _ = ask(open_one, *arguments, Host=host)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    assert ask(open_one, "GET", "/search")[1]["content-security-policy"] == "script-src 'self'"


def test_requests_have_an_id_which_a_client_may_choose(open_one: Any) -> None:
    _, headers, body = ask(open_one)
    assert re.fullmatch("[0-9a-f]{16}", headers["x-request-id"])
    assert json.loads(body)["request_id"] == headers["x-request-id"]
    assert ask(open_one, X_Request_ID="my.own-1")[1]["x-request-id"] == "my.own-1"
    for bad in ("a b", "<script>", "x" * 65, ""):
        assert re.fullmatch("[0-9a-f]{16}", ask(open_one, X_Request_ID=bad)[1]["x-request-id"])
    _, headers, body = ask(open_one, Host="evil.example")
    assert json.loads(body)["request_id"] == headers["x-request-id"]


def test_an_application_that_fails_is_a_500_without_details(open_one: Any, caplog: pytest.LogCaptureFixture) -> None:
    status, _, body = ask(open_one, "GET", "/broken")
    assert status == 500
    assert "query" not in body.decode()
    assert ask(open_one, "GET", "/broken-later")[0] == 200
    eventually(lambda: sum(one.message == "a request failed" for one in caplog.records) == 2)
    assert ask(open_one)[0] == 200


# Where it listens


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.7", "no-such-name.invalid"])
def test_others_are_let_in_with_a_key_or_by_a_word(host: str) -> None:
    with pytest.raises(ImageEncodersError, match="--api-key"):
        check_exposure(Settings(host=host))
    check_exposure(Settings(host=host, api_keys=(KEY,)))
    check_exposure(Settings(host=host, no_auth=True))


@pytest.mark.parametrize("key", ["", "short", "ä" * 20, "line\nline\nline\nline"])
def test_a_key_that_can_be_guessed_or_not_be_sent_is_refused(key: str) -> None:
    with pytest.raises(ImageEncodersError, match="at least 16"):
        check_exposure(Settings(api_keys=(KEY, key)))
