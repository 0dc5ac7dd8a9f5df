"""What the service writes down, and what it does not."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from wire import Client, eventually, request, serving

from image_encoders.errors import InputError
from image_encoders.serve import logs
from image_encoders.serve.guards import Guards
from image_encoders.serve.settings import Settings

SECRET = "the-words-that-nobody-else-should-read"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the log says; the root logger is as it was afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("image_encoders")
    before = root.handlers[:], root.level, ours.level
    stream = io.StringIO()
    yield stream
    root.handlers[:], root.level = before[:2]
    ours.setLevel(before[2])


async def app(scope: Any, receive: Any, send: Any) -> None:
    logging.getLogger("image_encoders.serve").warning("at work")
    if scope["path"] == "/broken":
        try:
            {}[SECRET]
        except KeyError as error:
            raise ValueError(SECRET) from error
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def use(path: str = f"/search?q={SECRET}", **headers: str) -> None:
    settings = Settings(api_keys=(SECRET,))
    with serving(Guards(app, settings), settings) as server, Client(server.port) as client:
        client.send(request("POST", path, SECRET.encode(), Authorization=f"Bearer {SECRET}", Cookie=SECRET, **headers))
        client.answer()


def lines(written: io.StringIO, count: int) -> list[str]:
    eventually(lambda: written.getvalue().count("\n") >= count)
    return written.getvalue().splitlines()


def test_a_line_of_json_for_each_request(written: io.StringIO) -> None:
    logs.configure(as_json=True, stream=written)
    use(X_Request_ID="one")
    during, after = (json.loads(line) for line in lines(written, 2))
    assert (during["level"], during["message"], during["request_id"]) == ("warning", "at work", "one")
    assert (after["message"], after["status"], after["request_id"]) == ("POST /search", 200, "one")
    assert (after["bytes_in"], after["bytes_out"], after["client"]) == (len(SECRET), len(SECRET), "127.0.0.1")
    assert SECRET not in written.getvalue()


def test_a_line_of_text_for_each_request(written: io.StringIO) -> None:
    logs.configure(as_json=False, stream=written)
    use(X_Request_ID="one")
    during, after = lines(written, 2)
    assert during.endswith("WARNING [one] at work")
    assert re.fullmatch(
        r"\S+ INFO    \[one\] POST /search status=200 ms=\S+ bytes_in=38 bytes_out=38 client=\S+", after
    )
    assert SECRET not in written.getvalue()


@pytest.mark.parametrize("as_json", [True, False])
def test_a_failure_is_logged_without_what_was_sent(written: io.StringIO, as_json: bool) -> None:
    logs.configure(as_json=as_json, stream=written)
    use("/broken")
    lines(written, 2)
    eventually(lambda: "status" in written.getvalue())
    said = written.getvalue()
    assert "ValueError" in said
    assert "KeyError" in said
    assert "test_logs.py" in said
    assert SECRET not in said


def test_our_own_errors_are_logged_with_their_messages() -> None:
    assert logs.described(InputError("ends early"))[0] == "image_encoders.errors.InputError: ends early"
    assert logs.described(ValueError("ends early")) == ["builtins.ValueError"]


def test_nothing_that_is_said_begins_a_line_or_commands_a_terminal(written: io.StringIO) -> None:
    logs.configure(as_json=False, stream=written)
    logging.getLogger("image_encoders").info("one\ntwo\x1b[31m\u2028three")
    assert written.getvalue().endswith("one\\ntwo\\x1b[31m\\u2028three\n")
    assert written.getvalue().count("\n") == 1


def test_a_path_that_holds_line_ends_is_one_line(written: io.StringIO) -> None:
    logs.configure(as_json=False, stream=written)
    use("/a%0Ab")
    assert "POST /a%0Ab status=200" in lines(written, 2)[1]


def test_probes_that_are_well_are_not_written_down(written: io.StringIO) -> None:
    logs.configure(as_json=False, stream=written)
    use("/health/live")
    assert "POST" not in written.getvalue()


def test_a_server_that_stops_does_not_speak_of_no_tasks(written: io.StringIO) -> None:
    logs.configure(as_json=False, stream=written)
    for number in (0, 2):
        logging.getLogger("uvicorn.error").error("Cancel %s running task(s)", number)
    assert written.getvalue().count("Cancel") == 1
    assert "Cancel 2" in written.getvalue()
