"""What becomes of requests when workers die, are stuck, rest, or have too much to do, and when the service ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from service_process import Server, serving

from image_encoders.encoder import Encoder

QUICK = ("--canary-every", "0.2", "--stuck-after", "3")


def until(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it does not come"
        time.sleep(0.05)


def ready(client: httpx.Client) -> bool:
    return client.get("/health/ready").status_code == 200


def embed(client: httpx.Client, text: str = "a red circle") -> httpx.Response:
    return client.post("/v1/embeddings", json={"input": text})


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def waiting(client: httpx.Client) -> float:
    """How many texts wait or are at work."""
    lines = client.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("image_encoders_in_service{") and 'modality="text"' in line]
    return float(found[0].split()[-1])


@contextmanager
def stopped(server: Server) -> Iterator[list[int]]:
    """The workers hang in this block."""
    pids = server.workers()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield pids
    finally:
        for pid in pids:
            if not gone(pid):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


@pytest.fixture(scope="module")
def watched() -> Iterator[Server]:
    """A service that soon sees that a worker has ended or is stuck; its workers may be killed."""
    with serving(*QUICK) as server:
        yield server


@pytest.fixture(scope="module")
def resting() -> Iterator[Server]:
    """A service whose workers end when they have had nothing to do for a second."""
    with serving("--idle-unload", "1", *QUICK) as server:
        yield server


def test_a_dead_worker_turns_readiness_red_at_once_and_is_replaced(watched: Server, encoder: Encoder) -> None:
    server = watched
    with server.client() as client:
        until(lambda: ready(client))
        before = server.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not ready(client))
        assert client.get("/health/live").status_code == 200
        until(lambda: ready(client))
        assert len(server.workers()) == len(before)
        assert not set(server.workers()) & set(before)
        found = np.float32(embed(client).json()["data"][0]["embedding"])
        assert np.array_equal(found, encoder.encode_text(["a red circle"])[0])


def test_a_stuck_worker_turns_readiness_red_and_is_replaced_and_what_it_had_fails_with_503(
    watched: Server, threads: ThreadPoolExecutor
) -> None:
    server = watched
    with server.client() as client:
        until(lambda: ready(client))
    with server.client() as client, stopped(server) as before:
        answers = [threads.submit(embed, client) for _ in range(3)]
        until(lambda: not ready(client))
        assert [one.result().status_code for one in answers] == [503] * 3
        body = answers[0].result().json()
        assert (body["error"]["code"], "retry-after" in answers[0].result().headers) == ("unavailable", True)
        until(lambda: ready(client))
        assert not set(server.workers()) & set(before)
        assert embed(client).status_code == 200


def test_a_full_queue_refuses_at_once_and_what_was_admitted_is_answered(threads: ThreadPoolExecutor) -> None:
    with serving("--max-waiting", "5", "--stuck-after", "60") as server, server.client() as client:
        with stopped(server):
            admitted = []
            for number in range(5):
                admitted.append(threads.submit(embed, client, f"text {number}"))
                until(lambda number=number: waiting(client) == number + 1)  # type: ignore[misc]
            refused = embed(client)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
            assert int(refused.headers["retry-after"]) >= 1
            long = client.post("/v1/embeddings", json={"input": ["a", "b"]})
            assert long.status_code == 429
            assert client.get("/health/live").status_code == 200
        assert [one.result().status_code for one in admitted] == [200] * 5
        assert embed(client).status_code == 200


def test_a_request_that_takes_too_long_fails_with_503() -> None:
    with serving("--deadline", "0.5", "--stuck-after", "60") as server, server.client() as client:
        with stopped(server):
            answer = embed(client)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "deadline")
            assert waiting(client) == 0
        until(lambda: embed(client).status_code == 200)  # on a busy machine not within half a second at once


def test_a_client_that_leaves_while_it_waits_is_forgotten(server: Server, client: httpx.Client) -> None:
    with stopped(server):
        with pytest.raises(httpx.ReadTimeout), server.client() as leaving:
            leaving.post("/v1/embeddings", json={"input": ["a", "b"]}, timeout=0.5)
        until(lambda: waiting(client) == 0)
    assert embed(client).status_code == 200


def test_what_was_begun_is_answered_before_the_service_ends(threads: ThreadPoolExecutor) -> None:
    with serving("--stuck-after", "60") as server, server.client() as client:
        with stopped(server):
            answer = threads.submit(embed, client)
            until(lambda: waiting(client) == 1)
            ended: Future[int] = threads.submit(server.stop)
            until(lambda: refuses(server))
        assert answer.result().status_code == 200
        assert ended.result() == 0
        assert server.said[-1] == "stopped"


def refuses(server: Server) -> bool:
    try:
        with server.client() as client:
            client.get("/health/live")
    except httpx.ConnectError:
        return True
    return False


def test_a_service_ends_within_its_grace_whatever_its_workers_do(threads: ThreadPoolExecutor) -> None:
    with (
        serving("--grace", "1", "--stuck-after", "60") as server,
        server.client() as client,
        stopped(server) as workers,
    ):
        answer = threads.submit(embed, client)
        until(lambda: waiting(client) == 1)
        assert server.stop() == 0
        assert answer.exception() is not None or answer.result().status_code >= 500
        until(lambda: all(map(gone, workers)))


def test_a_net_that_is_not_used_gives_its_memory_back_and_comes_again(resting: Server, encoder: Encoder) -> None:
    server = resting
    with server.client() as client:

        def only_texts() -> bool:
            assert embed(client).status_code == 200  # which keeps the tower of texts
            return len(server.workers()) == 1

        until(only_texts)
        until(lambda: not server.workers())
        assert client.get("/health/ready").json()["models"] == {"clip/demo": "idle"}
        answers = [embed(client) for _ in range(2)]
        expected = encoder.encode_text(["a red circle"])[0]
        assert all(np.array_equal(np.float32(one.json()["data"][0]["embedding"]), expected) for one in answers)
        assert len(server.workers()) == 1


def test_requests_that_find_a_net_resting_start_it_once(resting: Server, threads: ThreadPoolExecutor) -> None:
    server = resting
    with server.client() as client:
        until(lambda: not server.workers())
        answers = [threads.submit(embed, client, f"text {number}") for number in range(20)]
        started: set[int] = set()
        while not all(one.done() for one in answers):
            started.update(server.workers())
            time.sleep(0.01)
        assert [one.result().status_code for one in answers] == [200] * 20
        assert len(started) == 1


def test_several_models_are_chosen_by_their_ids_and_all_workers_end_with_a_service_that_is_killed() -> None:
    with serving(models=("clip/demo", "second=clip/demo")) as server, server.client() as client:
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["clip/demo", "second"]
        for name in ("clip/demo", "second"):
            answer = client.post("/v1/embeddings", json={"input": "a", "model": name})
            assert (answer.status_code, answer.json()["model"], answer.headers["x-encoder"]) == (200, name, name)
        assert client.post("/v1/embeddings", json={"input": "a", "model": "clip/tiny"}).status_code == 404
        workers = server.workers()
        assert len(workers) == 4
        server.stop(signal.SIGKILL)
        until(lambda: all(map(gone, workers)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", "clip/no-such-folder/x", "--offline"), "clip/no-such-folder/x"),
        (("--model", "clap/x"), "there is no model 'clap/x'"),
        ((), "give a model"),
        (("--model", "clip/demo", "--batch-size", "0"), "--batch-size"),
        (("--model", "clip/demo", "--host", "0.0.0.0"), "--api-key"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_said_in_a_sentence(arguments: tuple[str, ...], said: str) -> None:
    import subprocess
    import sys

    words = [sys.executable, "-m", "image_encoders", "serve", "--port", "0", *arguments]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
