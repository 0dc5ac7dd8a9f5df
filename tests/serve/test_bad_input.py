"""What nobody should send: a service in a process of its own answers why not, and serves everybody else."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from bad_input import GOOD, bad_bodies, bad_strings, bombs, flipped, no_images, strips, truncated
from service_process import Server
from wire import Client, eventually, request

JSON = {"Content-Type": "application/json"}


def image(content: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(content).decode()}


def post(client: httpx.Client, *items: object, **more: object) -> httpx.Response:
    body = json.dumps({"input": list(items), **more}).encode()
    return client.post("/v1/embeddings", content=body, headers=JSON)


def assert_well(client: httpx.Client) -> None:
    """A good request is answered, and the service is ready."""
    assert post(client, image(GOOD)).status_code == 200
    assert client.get("/health/ready").status_code == 200


def assert_blamed(answer: httpx.Response, *positions: int) -> None:
    """A refusal that names these items, each with its reason, and has the form of every error."""
    assert answer.status_code == 422, answer.text
    found = answer.json()
    assert [one["index"] for one in found["items"]] == list(positions)
    assert all(one["message"] and one["code"] for one in found["items"])
    assert_a_problem(answer)


def assert_a_problem(answer: httpx.Response) -> None:
    found = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert found["status"] == answer.status_code
    assert found["detail"] == found["error"]["message"] != ""
    assert found["error"]["code"]
    assert found["request_id"] == answer.headers["x-request-id"]
    assert len(answer.content) < 20_000
    for secret in ("Traceback", "/src/", "site-packages", "IMAGE_ENCODERS_", "image_encoders."):
        assert secret not in answer.text


@pytest.mark.parametrize("kind", [truncated, bombs, no_images], ids=lambda kind: kind.__name__)
def test_each_bad_image_is_named_among_good_ones(client: httpx.Client, kind: Callable) -> None:
    bad = list(kind())
    for name, content in bad:
        answer = post(client, image(GOOD), image(content))
        assert answer.status_code == 422, name
        assert_blamed(answer, 1)
    items = [image(GOOD)] + [image(content) for _, content in bad] + ["a text"]
    assert_blamed(post(client, *items), *range(1, len(bad) + 1))
    answer = post(client, *items, partial=True)
    assert answer.status_code == 200
    assert [one["embedding"] is None for one in answer.json()["data"]] == [False, *[True] * len(bad), False]
    assert_well(client)


def test_changed_bits_are_an_image_or_a_bad_item(client: httpx.Client) -> None:
    for name, content in flipped():
        answer = post(client, image(GOOD), image(content))
        assert answer.status_code in (200, 422), name
        if answer.status_code == 422:
            assert_blamed(answer, 1)
    assert_well(client)


def test_strips_are_images_or_bad_items(client: httpx.Client) -> None:
    for name, content in strips():
        assert post(client, image(content)).status_code in (200, 422), name
    assert_well(client)


@pytest.mark.parametrize(("name", "item"), [pytest.param(*one, id=one[0]) for one in bad_strings()])
def test_each_bad_item_is_named(client: httpx.Client, name: str, item: object) -> None:
    answer = post(client, "a text", item, image(GOOD))
    if name == "no text":
        assert answer.status_code in (200, 422)
    else:
        assert_blamed(answer, 1)
    assert_well(client)


@pytest.mark.parametrize(("name", "body"), [pytest.param(*one, id=one[0]) for one in bad_bodies()])
def test_each_bad_body_gets_an_error_that_says_what_is_wrong(client: httpx.Client, name: str, body: bytes) -> None:
    answer = client.post("/v1/embeddings", content=body, headers=JSON)
    assert 400 <= answer.status_code < 500, answer.text
    assert_a_problem(answer)
    assert_well(client)


def test_memory_and_files_return_after_all_of_it(server: Server, client: httpx.Client) -> None:
    contents = [content for kind in (truncated, flipped, bombs, strips, no_images) for _, content in kind()]
    processes = [psutil.Process(pid) for pid in (server.pid, *server.workers())]

    def everything() -> None:
        post(client, *(image(content) for content in contents), partial=True)
        for _, body in bad_bodies():
            client.post("/v1/embeddings", content=body, headers=JSON)
        for _, item in bad_strings():
            post(client, item)
        for _ in range(20):
            leave_early(server)

    def held() -> tuple[int, int]:
        return sum(one.num_fds() for one in processes), sum(one.memory_info().rss for one in processes)

    for _ in range(2):
        everything()
    assert_well(client)
    files, memory = held()
    for _ in range(4):
        everything()
    assert_well(client)
    assert {one.pid for one in processes} == {server.pid, *server.workers()}, "a worker was replaced"
    eventually(lambda: held()[0] <= files)
    assert held()[1] < memory + (64 << 20)


def leave_early(server: Server) -> None:
    """Clients that stop in the midst of a request, or before its answer."""
    body = json.dumps({"input": [image(GOOD)] * 50}).encode()
    whole = request("POST", "/v1/embeddings", body, Content_Type="application/json")
    for part in (whole[:30], whole[: len(whole) // 2], whole):
        with Client(int(server.url.rsplit(":", 1)[1])) as client:
            client.send(part)


def test_clients_that_leave_hold_up_nobody(server: Server, client: httpx.Client) -> None:
    for _ in range(30):
        leave_early(server)
    assert_well(client)


def test_nothing_that_was_sent_is_in_the_log(server: Server, client: httpx.Client) -> None:
    secret = "words-that-nobody-else-should-read"
    post(client, secret, model=secret)
    post(client, secret, {"image": base64.b64encode(secret.encode()).decode()}, {secret: 1}, secret * 10_000)
    client.get("/search.json", params={"q": secret})
    client.get("/health/live", headers={"Authorization": f"Bearer {secret}"})
    assert client.get("/v1/models", headers={"X-Request-ID": "the-last-one"}).status_code == 200
    eventually(lambda: any("the-last-one" in line for line in server.said))
    assert not [line for line in server.said if secret in line]


def test_no_file_of_the_server_can_be_named(client: httpx.Client, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(GOOD)
    for said in (str(path), f"file://{path}", f"file:{path}"):
        for item in ({"image": said}, {"url": said}, {"bytes": said}):
            assert_blamed(post(client, item), 0)
        assert_blamed(post(client, said, modality="image"), 0)
