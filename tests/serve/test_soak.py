"""Full load for some seconds with broken images among the others: no answer is lost, no embedding is another's."""

from __future__ import annotations

import base64
import io
import os
import random
import threading
import time
from collections import Counter

import httpx
import numpy as np
from PIL import Image
from service_process import Server, serving

from image_encoders.encoder import Encoder
from image_encoders.scenes import draw, sample_scene

SECONDS = float(os.environ.get("IMAGE_ENCODERS_SOAK_SECONDS", "8"))  # of full load
CLIENTS = 8
IMAGES = 40
BROKEN = 0.01  # of all images
MORE_MB = 60.0  # that a service may take between the middle of a soak and its end


def drawn(seed: int) -> bytes:
    rng = random.Random(seed)
    file = io.BytesIO()
    Image.fromarray(draw(sample_scene(rng, unseen_pairs=False), (160, 120))).save(file, "PNG")
    return file.getvalue()


def held(server: Server) -> tuple[float, int]:
    """Memory [MB] and open files of a service and its workers."""
    memory, files = 0.0, 0
    for pid in (server.pid, *server.workers()):
        with open(f"/proc/{pid}/statm") as file:
            memory += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        files += len(os.listdir(f"/proc/{pid}/fd"))
    return memory, files


class Client(threading.Thread):
    """Sends images in many ways until it is told to stop; counts what came back, keeps what is wrong."""

    def __init__(self, server: Server, contents: list[bytes], expected: np.ndarray, seed: int, ends: float):
        super().__init__()
        self._server, self._contents, self._expected, self._ends = server, contents, expected, ends
        self._rng = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self) -> None:
        with self._server.client() as client:
            while time.monotonic() < self._ends:
                try:
                    self._exchange(client)
                except Exception as error:
                    self.wrong.append(f"{type(error).__name__}: {error}")

    def _exchange(self, client: httpx.Client) -> None:
        count = self._rng.choice((1, 1, 1, 3, 40))
        chosen = [self._rng.randrange(IMAGES) for _ in range(count)]
        broken = {position for position in range(count) if self._rng.random() < BROKEN}
        contents = [self._contents[one] for one in chosen]
        for position in broken:
            contents[position] = contents[position][: self._rng.randrange(1, 60)]
        partial = self._rng.random() < 0.5
        if count == 1 and self._rng.random() < 0.5:
            answer = client.post("/v1/images", content=contents[0], params={"partial": partial})
        else:
            items = [{"bytes": base64.b64encode(one).decode()} for one in contents]
            answer = client.post("/v1/embeddings", json={"input": items, "partial": partial})
        self.seen[str(answer.status_code)] += 1
        if broken and not partial:
            self._expect(answer.status_code == 422, answer)
            self._expect({one["index"] for one in answer.json()["items"]} == broken, answer)
            return
        self._expect(answer.status_code == 200, answer)
        data = answer.json()["data"]
        self._expect([one["index"] for one in data] == list(range(count)), answer)
        for position, one in enumerate(data):
            if position in broken:
                self._expect(one["embedding"] is None and one["error"]["index"] == position, answer)
            else:
                off = np.abs(np.float32(one["embedding"]) - self._expected[chosen[position]]).max()
                self._expect(off < 1e-2, answer)
                self.seen["embedding"] += 1

    def _expect(self, right: bool, answer: httpx.Response) -> None:
        if not right:
            self.wrong.append(f"{answer.status_code}: {answer.text[:200]}")


def test_no_answer_is_lost_and_no_embedding_is_anothers(encoder: Encoder) -> None:
    contents = [drawn(seed) for seed in range(IMAGES)]
    expected = encoder.encode_image(contents)
    apart = np.linalg.norm(expected[:, None] - expected[None], axis=2) + 1e9 * np.eye(IMAGES)
    assert apart.min() > 0.5  # so that no two are taken for each other
    with serving() as server:
        began = time.monotonic()
        clients = [Client(server, contents, expected, seed, began + SECONDS) for seed in range(CLIENTS)]
        for one in clients:
            one.start()
        time.sleep(SECONDS / 2)
        memory, _ = held(server)
        for one in clients:
            one.join(60)
        assert not any(one.is_alive() for one in clients)
        more = held(server)[0] - memory
        assert [said for one in clients for said in one.wrong] == []
        assert sum((one.seen for one in clients), Counter())["embedding"] > 100
        assert more < MORE_MB
        with server.client() as client:
            assert client.get("/health/ready").status_code == 200
            # Nothing but this client's connection is open, and whatever is kept open from the start.
            files = held(server)[1]
            for content in contents:
                client.post("/v1/images", content=content)
            assert held(server)[1] <= files + 1
