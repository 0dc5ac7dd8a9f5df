"""Inputs of many callers share batches, and nobody waits for ever or for somebody else's mistake."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from image_encoders.errors import InputError
from image_encoders.integrations.jina.batcher import Batcher

BAD = -1.0


class Net:
    """Rows are the inputs, doubled; batches are remembered; the first waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.started, self.go = threading.Event(), threading.Event()
        self.fatal: BaseException | None = None

    def __call__(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        self.batches.append([float(one[0]) for one in inputs])
        self.started.set()
        assert self.go.wait(30)
        if self.fatal:
            raise self.fatal
        if BAD in self.batches[-1]:
            raise RuntimeError("/secret/path.py fails")
        return np.stack(inputs) * 2


@pytest.fixture
def net() -> Net:
    return Net()


def inputs(*values: float) -> list[np.ndarray]:
    return [np.array([value], np.float32) for value in values]


def values(rows: Sequence[object]) -> list[object]:
    return [row.code if isinstance(row, InputError) else float(row[0]) for row in rows]  # type: ignore[index]


def queued(net: Net, batcher: Batcher, calls: list[tuple[list[np.ndarray], int | None]]) -> list[list[object]]:
    """What the calls get when all of them wait behind a first batch, in their order."""
    with ThreadPoolExecutor(len(calls) + 1) as pool:
        first = pool.submit(batcher, inputs(1), None)
        assert net.started.wait(30)
        waiting, count = [], 0
        for arrays, limit in calls:
            waiting.append(pool.submit(batcher, arrays, limit))
            count += len(arrays)
            while len(batcher._waiting) < count:
                pass
        net.go.set()
        assert values(first.result(30)) == [2]
        return [values(one.result(30)) for one in waiting]


def test_a_caller_alone_does_not_wait_for_company(net: Net) -> None:
    net.go.set()
    assert values(Batcher(net)(inputs(1, 2, 3), 32)) == [2, 4, 6]
    assert net.batches == [[1, 2, 3]]
    assert Batcher(net)([], 32) == []


def test_callers_that_come_meanwhile_share_a_batch_and_get_their_own_rows(net: Net) -> None:
    assert queued(net, Batcher(net), [(inputs(2, 3), 8), (inputs(4), 8), (inputs(5), None)]) == [[4, 6], [8], [10]]
    assert net.batches == [[1], [2, 3, 4, 5]]


def test_no_batch_is_larger_than_any_of_its_members_allows(net: Net) -> None:
    found = queued(net, Batcher(net), [(inputs(2, 3, 4), 2), (inputs(5), 1), (inputs(6, 7), None)])
    assert found == [[4, 6, 8], [10], [12, 14]]
    assert net.batches == [[1], [2, 3], [4], [5], [6, 7]]


def test_one_that_fails_fails_alone_and_tells_no_path(net: Net) -> None:
    batcher = Batcher(net)
    assert queued(net, batcher, [(inputs(2), 8), (inputs(3, BAD), 8), (inputs(4), 8)]) == [[4], [6, "embed"], [8]]
    (failed,) = batcher(inputs(BAD), 8)
    assert isinstance(failed, InputError)
    assert "secret" not in failed.message


def test_a_row_that_is_not_finite_is_a_failure(net: Net) -> None:
    net.go.set()
    assert values(Batcher(net)(inputs(float("nan"), 2), 8)) == ["not-finite", 4]


def test_nobody_waits_for_a_caller_that_is_interrupted(net: Net) -> None:
    batcher = Batcher(net)
    net.fatal = KeyboardInterrupt()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(batcher, inputs(1), None)
        assert net.started.wait(30)
        net.go.set()
        with pytest.raises(KeyboardInterrupt):
            first.result(30)
    net.fatal = None
    assert values(batcher(inputs(2), None)) == [4]


def test_many_callers_all_get_their_rows(net: Net) -> None:
    net.go.set()
    batcher = Batcher(net)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: values(batcher(inputs(n, n + 0.5), 7)), range(400)))
    assert found == [[2 * n, 2 * n + 1] for n in range(400)]
    assert max(map(len, net.batches)) <= 7
