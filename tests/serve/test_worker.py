"""What a worker does with its items, in this process, with nets that tests hold up."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fake_encoder import DIM, FakeEncoder
from image_encoders.errors import DeviceError
from image_encoders.serve import frames
from image_encoders.serve.worker import Worker

Answer = tuple[dict[str, Any], bytes]


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value // 2, 9)).save(file, "PNG")
    return file.getvalue()


class Held:
    """A net that waits in every batch until it may go on, once it is held; it fails for what `wrong` says."""

    def __init__(self, wrong: Callable[[np.ndarray], Exception | None] = lambda inputs: None):
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)
        self.wrong = wrong
        self.encoder = FakeEncoder(before=self._before)
        self.answers: queue.Queue[Answer] = queue.Queue()
        self.worker = Worker(
            self.encoder.tower("image"), lambda header, content: self.answers.put((header, content)), 8, threads=2
        )
        self.encoder.batches.clear()  # those of the measurement at the start

    def _before(self, inputs: np.ndarray) -> None:
        if not hasattr(self, "worker"):
            return
        self.entered.release()
        assert self.go.wait(120)
        error = self.wrong(inputs)
        if error is not None:
            raise error

    def take(self, number: int, content: bytes = b"", kind: str = "file") -> None:
        self.worker.take({"type": kind, "id": number}, content)

    def answer(self) -> Answer:
        return self.answers.get(timeout=120)


@pytest.fixture
def held() -> Iterator[Held]:
    one = Held()
    yield one
    one.go.set()


def until(condition: Callable[[], bool]) -> None:
    tick = threading.Event()
    for _ in range(2000):
        if condition():
            return
        tick.wait(0.01)
    raise AssertionError("it does not come")


def test_an_item_is_answered_with_the_embedding_and_what_it_took(held: Held) -> None:
    held.take(7, png(3))
    header, content = held.answer()
    assert (header["type"], header["id"], header["batch"]) == ("embedding", 7, 1)
    assert header["prepare_s"] > 0
    assert header["embed_s"] > 0
    assert np.array_equal(np.frombuffer(content, "<f4"), held.encoder.encode_image([png(3)])[0])


def test_what_comes_while_the_net_is_busy_makes_the_next_batch(held: Held) -> None:
    held.go.clear()
    held.take(1, png(1))
    assert held.entered.acquire(timeout=120)
    for number in range(2, 7):
        held.take(number, png(number))
    until(lambda: held.worker._batcher.waiting == 5)
    held.go.set()
    assert {held.answer()[0]["id"] for _ in range(6)} == set(range(1, 7))
    assert held.encoder.batches == [1, 5]


def test_what_nobody_waits_for_any_more_is_never_embedded(held: Held) -> None:
    held.go.clear()
    held.take(1, png(1))
    assert held.entered.acquire(timeout=120)
    held.take(2, png(2))
    held.take(3, png(3))
    until(lambda: held.worker._batcher.waiting == 2)
    held.take(2, kind="cancel")
    held.go.set()
    assert [held.answer()[0]["id"] for _ in range(2)] == [1, 3]
    assert held.encoder.batches == [1, 1]


def test_a_canary_goes_before_what_waits(held: Held) -> None:
    held.go.clear()
    held.take(1, png(1))
    assert held.entered.acquire(timeout=120)
    for number in range(2, 20):
        held.take(number, png(number))
    until(lambda: held.worker._batcher.waiting == 18)
    held.take(99, kind="canary")
    until(lambda: held.worker._batcher.waiting == 19)
    held.go.set()
    answered = [held.answer()[0]["id"] for _ in range(20)]
    assert answered.index(99) == 1


def test_a_file_that_is_no_image_fails_alone(held: Held) -> None:
    held.take(1, b"<html>")
    header, _ = held.answer()
    assert (header["type"], header["code"]) == ("error", "not-an-image")
    held.take(2, png(2))
    assert held.answer()[0]["type"] == "embedding"


def test_a_batch_that_fails_is_halved_until_the_culprit_is_alone() -> None:
    bad: list[float] = []

    def wrong(inputs: np.ndarray) -> Exception | None:
        found = any(float(one.sum()) in bad for one in inputs)
        return RuntimeError("/a/path/of/this/machine: no such kernel") if found else None

    held = Held(wrong)
    bad.append(float(held.encoder.tower("image").input(png(4)).sum()))
    held.go.clear()
    held.take(1, png(1))
    assert held.entered.acquire(timeout=120)
    for number in range(2, 7):
        held.take(number, png(number))
    until(lambda: held.worker._batcher.waiting == 5)
    held.go.set()
    answers = {header["id"]: header for header, _ in (held.answer() for _ in range(6))}
    assert [number for number, header in answers.items() if header["type"] != "embedding"] == [4]
    assert answers[4]["code"] == "unexpected"
    assert "machine" not in answers[4]["message"]


def test_a_device_that_fails_is_no_items_fault() -> None:
    held = Held(lambda inputs: DeviceError("the device is gone"))
    held.take(1, png(1))
    assert held.answer()[0] == {"type": "broken", "id": 1, "message": "DeviceError"}


def test_frames_pass_whole_or_not_at_all() -> None:
    packed = frames.pack({"type": "file", "id": 1}, b"content") + frames.pack({"type": "cancel", "id": 1})
    stream = io.BytesIO(packed)
    assert frames.read(stream) == ({"type": "file", "id": 1}, b"content")
    assert frames.read(stream) == ({"type": "cancel", "id": 1}, b"")
    assert frames.read(stream) is None
    for end in range(len(packed) - 1):
        cut = io.BytesIO(packed[:end])
        while frames.read(cut) is not None:
            pass


def test_an_embedding_has_the_dimensions_of_its_model(held: Held) -> None:
    held.take(1, png(1))
    assert len(held.answer()[1]) == 4 * DIM


class SlowTower:
    """A tower of texts whose items other than the canary take as long as the test likes."""

    modality, streams = "text", 1

    def __init__(self) -> None:
        self.begun, self.go = 0, threading.Event()

    def input(self, source: str) -> np.ndarray:
        if source == "slow":
            self.begun += 1
            self.go.wait()
        return np.zeros(4, np.float32)

    def check(self, input: np.ndarray) -> None:
        pass

    def embeddings(self, inputs: list[np.ndarray]) -> np.ndarray:
        return np.stack(inputs)


def working(deadline: float) -> tuple[SlowTower, Worker, Callable[[], list[int]]]:
    """A tower, its worker with two threads that are at slow items, and the numbers that were answered."""
    tower, answers = SlowTower(), []

    def send(header: dict[str, Any], content: bytes) -> None:
        answers.append(header["id"])

    worker = Worker(tower, send, 8, deadline, threads=2)  # type: ignore[arg-type]
    for number in range(5):
        worker.take({"type": "text", "id": number}, b"slow")
    until(lambda: tower.begun == 2)
    return tower, worker, lambda: answers


def test_items_that_take_long_do_not_hold_up_canaries() -> None:
    tower, worker, answers = working(deadline=600)
    for number in (10, 11):
        worker.take({"type": "canary", "id": number}, b"")
        until(lambda number=number: answers()[-1:] == [number])
    tower.go.set()
    until(lambda: sorted(answers()) == [0, 1, 2, 3, 4, 10, 11])


def test_where_every_thread_is_at_what_nobody_waits_for_canaries_wait_too() -> None:
    tower, worker, answers = working(deadline=0.0)
    worker.take({"type": "canary", "id": 10}, b"")
    assert not threading.Event().wait(0.3)
    assert answers() == []
    tower.go.set()
    until(lambda: sorted(answers()) == [0, 1, 2, 3, 4, 10])
