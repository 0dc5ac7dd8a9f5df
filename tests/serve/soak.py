"""A service at full load for a while, 1% of whose images are broken: `python tests/serve/soak.py --minutes 30`.

Every request gets its answer, every embedding is the library's for its image, no answer is a 5xx, and memory is flat.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import psutil
from bad_input import encoded, no_images, photo, truncated
from service_process import Server, serving
from wire import Client, request

from image_encoders.models import load

BROKEN = 0.01  # of the images
TOLERANCE = 1e-3  # of an embedding's largest number: what batches of other sizes change is a hundred times less


@dataclass
class Sent:
    """What clients may send, and the embedding of each; None of what is broken."""

    items: list[bytes | str] = field(default_factory=list)
    embeddings: list[np.ndarray] = field(default_factory=list)
    broken: list[bytes] = field(default_factory=list)


@dataclass
class Found:
    """What came of it.

    answers: how many, by status
    wrong: what should not have been
    memory: bytes of all processes, at each look
    """

    answers: Counter[int] = field(default_factory=Counter)
    embeddings: int = 0
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        counts = ", ".join(f"{count} of status {status}" for status, count in sorted(self.answers.items()))
        held = f"{self.memory[0] >> 20} MiB, then at most {max(self.memory) >> 20}, at last {self.memory[-1] >> 20}"
        return f"{self.seconds:.0f} s: {self.embeddings} embeddings in {counts}; memory {held}; {len(self.wrong)} wrong"

    def check(self) -> None:
        """Raise AssertionError unless all was as it should be."""
        assert not self.wrong, self.wrong[:5]
        assert self.embeddings
        assert self.answers[422], "no broken image was sent"
        third = len(self.memory) // 3
        early, late = statistics.median(self.memory[:third]), statistics.median(self.memory[-third:])
        assert late < 1.05 * early + (32 << 20), f"memory went from {early / 2**20:.0f} to {late / 2**20:.0f} MiB"


def sent() -> Sent:
    """Images of several formats and sizes, and texts."""
    draw = random.Random(0)
    encoder = load("clip/demo", precision="float32")
    images, texts = [], [f"{size} {colour} circle" for size in ("a small", "a big") for colour in ("red", "blue")]
    for number in range(60):
        image = photo(40 + draw.randrange(400), 40 + draw.randrange(400)).rotate(draw.randrange(360))
        images.append(encoded(image, ("JPEG", "PNG", "WEBP")[number % 3]))
    embeddings = [*encoder.encode_image(images), *encoder.encode_text(texts)]
    broken = [content for kind in (truncated, no_images) for _, content in kind()]
    return Sent([*images, *texts], embeddings, broken)


def soak(server: Server, seconds: float, *, clients: int = 16, broken: float = BROKEN) -> Found:
    """Load a service with these many clients at a time; `broken` of their images are."""
    what, found, lock = sent(), Found(), threading.Lock()
    began = time.monotonic()
    end = began + seconds
    threads = [
        threading.Thread(target=_use, args=(server, what, found, lock, end, random.Random(seed), broken), daemon=True)
        for seed in range(clients)
    ]
    for thread in threads:
        thread.start()
    warm = min(0.2 * seconds, 60.0)
    while time.monotonic() < end:
        time.sleep(min(seconds / 100, 5.0))
        if time.monotonic() - began > warm:
            found.memory.append(_memory(server))
    for thread in threads:
        thread.join(120)
        if thread.is_alive():
            found.wrong.append("a client waits for its answer still")
    found.seconds = time.monotonic() - began
    return found


def _memory(server: Server) -> int:
    total = 0
    for pid in (server.pid, *server.workers()):
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _use(
    server: Server, what: Sent, found: Found, lock: threading.Lock, end: float, draw: random.Random, broken: float
) -> None:
    """One client, which sends as soon as it has its answer."""
    port = int(server.url.rsplit(":", 1)[1])
    client = Client(port)
    try:
        while time.monotonic() < end:
            positions = [
                None if draw.random() < broken else draw.randrange(len(what.items))
                for _ in range(draw.choice((1, 1, 4, 16)))
            ]
            whole, partial = _request(what, positions, draw)
            client.send(whole)
            status, headers, body = client.answer()
            wrong = _wrong(status, json.loads(body), positions, partial, what)
            with lock:
                found.answers[status] += 1
                found.wrong += wrong
                found.embeddings += 0 if status != 200 else sum(one is not None for one in positions)
            if status == 429:
                time.sleep(draw.random() * float(headers["retry-after"]))
    except Exception as error:
        with lock:
            found.wrong.append(f"no answer: {error!r}")
    finally:
        client.socket.close()


def _request(what: Sent, positions: list[int | None], draw: random.Random) -> tuple[bytes, bool]:
    """A request for the items at these positions, broken ones where they are None; whether it takes a part of them."""
    contents = [draw.choice(what.broken) if one is None else what.items[one] for one in positions]
    if len(contents) == 1 and isinstance(contents[0], bytes) and draw.random() < 0.5:
        return request("POST", "/v1/images", contents[0], Content_Type="application/octet-stream"), False
    partial = draw.random() < 0.5
    items = [{"text": one} if isinstance(one, str) else {"image": base64.b64encode(one).decode()} for one in contents]
    body = json.dumps({"input": items, "partial": partial, "encoding_format": "base64"}).encode()
    return request("POST", "/v1/embeddings", body, Content_Type="application/json"), partial


def _wrong(status: int, answer: dict, positions: list[int | None], partial: bool, what: Sent) -> list[str]:
    """What is not as it should be in an answer."""
    bad = [index for index, one in enumerate(positions) if one is None]
    if status == 429:
        return []
    if bad and not partial:
        named = [one["index"] for one in answer.get("items", ())]
        return [] if (status, named) == (422, bad) else [f"{status} names {named} of {bad}: {answer}"[:500]]
    if status != 200:
        return [f"{status}: {answer}"[:500]]
    if [one["index"] for one in answer["data"]] != list(range(len(positions))):
        return ["items are missing, or in another order"]
    wrong = []
    for one, position in zip(answer["data"], positions):
        if (one["embedding"] is None) != (position is None):
            wrong.append(f"item {one['index']} has an embedding, or none, against what it is")
        elif position is not None:
            encoded, wanted = one["embedding"], what.embeddings[position]
            is_text = isinstance(encoded, str)
            embedding = np.frombuffer(base64.b64decode(encoded), "<f4") if is_text else np.array(encoded, np.float32)
            if np.abs(embedding - wanted).max() > TOLERANCE * np.abs(wanted).max():
                wrong.append(f"item {one['index']} has another embedding than its own")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args()
    with serving() as server:
        found = soak(server, 60 * given.minutes, clients=given.clients)
        print(found)
        found.check()
        with server.client() as client:
            assert client.get("/health/ready").status_code == 200
        assert server.stop() == 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
