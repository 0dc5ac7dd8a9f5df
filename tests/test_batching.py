"""Inputs of many callers share batches, and nobody waits for ever or for somebody else's mistake."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait

import numpy as np
import pytest

from image_encoders.batching import Batcher, Embedded
from image_encoders.errors import DeviceError, InputError, Overloaded

BAD = -1.0


class Net:
    """Doubles its inputs; keeps the batches; every call waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.started, self.go = threading.Semaphore(0), threading.Event()
        self.failure: BaseException | None = None

    def __call__(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        self.batches.append([float(one[0]) for one in inputs])
        self.started.release()
        assert self.go.wait(120)
        if self.failure is not None:
            raise self.failure
        if BAD in self.batches[-1]:
            raise RuntimeError("the net cannot bear it")
        return np.stack([one[:1] for one in inputs]) * 2


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net()
    yield made
    made.go.set()


def inputs(*values: float) -> list[np.ndarray]:
    return [np.array([value], np.float32) for value in values]


def found(futures: Sequence[Future[Embedded]]) -> list[object]:
    """Embeddings as numbers, errors as their codes or types."""
    outcomes: list[object] = []
    for future in futures:
        error = future.exception(30)
        if error is None:
            outcomes.append(float(future.result().embedding[0]))
        else:
            outcomes.append(error.code if isinstance(error, InputError) else type(error))
    return outcomes


def occupied(net: Net, **arguments: object) -> tuple[Batcher, list[Future[Embedded]]]:
    """A batcher whose net is busy with one input."""
    batcher = Batcher(net, **arguments)  # type: ignore[arg-type]
    first = batcher.submit(inputs(1))
    assert net.started.acquire(timeout=120)
    return batcher, first


def test_an_input_that_comes_alone_does_not_wait_for_company(net: Net) -> None:
    net.go.set()
    with Batcher(net) as batcher:
        assert found(batcher.submit(inputs(3))) == [6]
        assert found(batcher.submit(inputs(1, 2))) == [2, 4]
        assert batcher.submit([]) == []
    assert net.batches == [[3], [1, 2]]


def test_inputs_that_come_while_the_net_is_busy_share_the_next_batch(net: Net) -> None:
    batcher, first = occupied(net)
    later = [batcher.submit(inputs(2, 3)), batcher.submit(inputs(4)), batcher.submit(inputs(5))]
    assert batcher.waiting == 4
    net.go.set()
    assert [found(futures) for futures in (first, *later)] == [[2], [4, 6], [8], [10]]
    assert net.batches == [[1], [2, 3, 4, 5]]
    assert batcher.waiting == 0
    batcher.close()


def test_a_net_of_two_streams_has_two_batches_at_work(net: Net) -> None:
    batcher, first = occupied(net, streams=2)
    second = batcher.submit(inputs(2))
    assert net.started.acquire(timeout=120)  # although the first one is not done
    later = [*batcher.submit(inputs(3)), *batcher.submit(inputs(4))]
    assert batcher.waiting == 2
    net.go.set()
    assert found([*first, *second, *later]) == [2, 4, 6, 8]
    assert sorted(net.batches) == [[1], [2], [3, 4]]
    batcher.close()


def test_no_batch_costs_more_than_allowed_and_what_costs_more_goes_alone(net: Net) -> None:
    batcher, first = occupied(net, cost=len, max_cost=6)
    later = batcher.submit([np.full(size, size, np.float32) for size in (3, 3, 1, 9, 2, 6, 5, 1)])
    net.go.set()
    assert found([*first, *later]) == [2, 6, 6, 2, 18, 4, 12, 10, 2]
    assert net.batches == [[1], [3, 3], [1], [9], [2], [6], [5, 1]]
    batcher.close()


def test_no_batch_is_larger_than_any_of_its_inputs_allows(net: Net) -> None:
    batcher, _ = occupied(net)
    later = [
        *batcher.submit(inputs(2, 3, 4), batch_size=2),
        *batcher.submit(inputs(5), batch_size=1),
        *batcher.submit(inputs(6, 7)),
    ]
    net.go.set()
    assert found(later) == [4, 6, 8, 10, 12, 14]
    assert net.batches == [[1], [2, 3], [4], [5], [6, 7]]
    batcher.close()


def test_inputs_of_other_shapes_are_the_embedding_function_s_business() -> None:
    with Batcher(lambda inputs: np.array([[one.size] for one in inputs], np.float32)) as batcher:
        assert found(batcher.submit([np.zeros((2, 3)), np.zeros(5)])) == [6, 5]


def test_more_than_may_wait_are_refused_at_once_with_what_to_do(net: Net) -> None:
    clock = Clock()
    batcher = Batcher(net, cost=len, max_waiting=3, clock=clock)
    first = batcher.submit(inputs(1))
    assert net.started.acquire(timeout=120)
    waiting = batcher.submit(inputs(2, 3))
    with pytest.raises(Overloaded, match=r"2 inputs are waiting, of at most 3; retry in about 1\.0 s") as caught:
        batcher.submit(inputs(4, 5))
    assert (caught.value.limit, caught.value.waiting, caught.value.retry_s) == (3, 2, 1.0)
    assert batcher.waiting == 2
    waiting += batcher.submit(inputs(6))
    net.go.set()
    assert found([*first, *waiting]) == [2, 4, 6, 12]
    batcher.close()
    assert net.batches == [[1], [2, 3, 6]]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.retry_s) == (str(caught.value), 1.0)


def test_when_to_come_back_follows_from_the_speed_of_earlier_batches(net: Net) -> None:
    clock = Clock()
    batcher = Batcher(net, cost=len, max_waiting=2, clock=clock)
    measured = batcher.submit([np.ones(4, np.float32)])
    assert net.started.acquire(timeout=120)
    clock.now += 2  # half a second for each unit of cost
    net.go.set()
    wait(measured, 30)
    net.go.clear()
    batcher.submit(inputs(1))
    assert net.started.acquire(timeout=120)
    batcher.submit([np.ones(10, np.float32), np.ones(6, np.float32)])
    with pytest.raises(Overloaded) as caught:
        batcher.submit(inputs(2))
    assert caught.value.retry_s == pytest.approx(8)
    net.go.set()
    batcher.close()


def test_where_nobody_waits_any_number_may_come(net: Net) -> None:
    batcher, first = occupied(net, max_waiting=2)
    later = batcher.submit(inputs(2, 3, 4))
    with pytest.raises(Overloaded):
        batcher.submit(inputs(5))
    net.go.set()
    assert found([*first, *later]) == [2, 4, 6, 8]
    batcher.close()


def test_inputs_whose_caller_has_gone_are_never_embedded_and_take_no_room(net: Net) -> None:
    batcher, first = occupied(net, max_waiting=3)
    gone, kept = batcher.submit(inputs(2, 3), batch_size=1), batcher.submit(inputs(4))
    assert all(future.cancel() for future in gone)
    more = batcher.submit(inputs(5, 6))
    net.go.set()
    assert found([*first, *kept, *more]) == [2, 8, 10, 12]
    for future in gone:
        with pytest.raises(CancelledError):
            future.result(30)
    batcher.close()
    assert net.batches == [[1], [4, 5, 6]]


def test_a_batch_that_all_have_left_is_no_batch(net: Net) -> None:
    batcher, first = occupied(net)
    assert all(future.cancel() for future in batcher.submit(inputs(2, 3)))
    net.go.set()
    assert found(first) == [2]
    assert found(batcher.submit(inputs(4))) == [8]
    batcher.close()
    assert net.batches == [[1], [4]]


def test_only_the_input_that_is_to_blame_fails(net: Net) -> None:
    batcher, first = occupied(net)
    later = [batcher.submit(inputs(2, 3)), batcher.submit(inputs(4, BAD, 5)), batcher.submit(inputs(6))]
    net.go.set()
    assert [found(futures) for futures in (first, *later)] == [[2], [4, 6], [8, "unexpected", 10], [12]]
    assert max(map(len, net.batches)) == 6
    batcher.close()


def test_an_embedding_that_is_not_finite_is_a_failure(net: Net) -> None:
    net.go.set()
    with Batcher(net) as batcher:
        assert found(batcher.submit(inputs(float("nan"), 2))) == ["not-finite", 4]


@pytest.mark.parametrize("failure", [DeviceError("the device is gone"), SystemExit(0), KeyboardInterrupt()])
def test_what_no_input_is_to_blame_for_reaches_all_of_the_batch_and_none_after_it(
    net: Net, failure: BaseException
) -> None:
    batcher, first = occupied(net)
    second = batcher.submit(inputs(2, 3))
    net.failure = failure
    net.go.set()
    assert found([*first, *second]) == [type(failure)] * 3
    net.failure = None
    assert found(batcher.submit(inputs(4))) == [8]
    batcher.close()


def test_every_answer_knows_what_it_took(net: Net) -> None:
    clock = Clock()
    batcher = Batcher(net, clock=clock)
    first = batcher.submit(inputs(1), prepare_s=0.25)
    assert net.started.acquire(timeout=120)
    second = batcher.submit(inputs(2), prepare_s=0.5)
    clock.now += 1
    third = batcher.submit(inputs(3))
    clock.now += 2
    net.go.set()
    times = [
        (one.prepare_s, one.wait_s, one.embed_s) for (future,) in (first, second, third) for one in [future.result(30)]
    ]
    assert times == [(0.25, 0, 3), (0.5, 3, 0), (0, 2, 0)]
    batcher.close()


def test_closing_ends_when_all_that_was_taken_is_done(net: Net) -> None:
    batcher, first = occupied(net)
    later = batcher.submit(inputs(2, 3))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    net.go.set()
    closing.join(120)
    assert not closing.is_alive()
    assert all(future.done() for future in (*first, *later))
    assert found(later) == [4, 6]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(inputs(4))
    batcher.close()
    Batcher(net).close()  # that nobody has used


def test_many_callers_all_get_their_own(net: Net) -> None:
    net.go.set()
    with Batcher(net, max_cost=7) as batcher, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: found(batcher.submit(inputs(n, n + 0.5))), range(400)))
    assert answers == [[2 * n, 2 * n + 1] for n in range(400)]
    assert max(map(len, net.batches)) <= 7


def test_coroutines_wait_for_their_answers_and_what_they_leave_is_dropped(net: Net) -> None:
    async def ask() -> None:
        batcher, first = occupied(net)
        left = asyncio.wrap_future(batcher.submit(inputs(2))[0])
        kept = asyncio.wrap_future(batcher.submit(inputs(3))[0])
        left.cancel()
        await asyncio.sleep(0)  # in which the loop cancels the other future
        net.go.set()
        assert (await kept).embedding[0] == 6
        await asyncio.wrap_future(first[0])
        await asyncio.to_thread(batcher.close)
        assert net.batches == [[1], [3]]

    asyncio.run(ask())


def test_who_asks_for_nothing_is_never_overloaded() -> None:
    net = Net()
    with Batcher(net, max_waiting=1) as batcher:
        busy = batcher.submit(inputs(1, 2, 3))
        net.started.acquire()
        waiting = batcher.submit(inputs(4, 5))
        assert batcher.submit([]) == []
        net.go.set()
        wait([*busy, *waiting])
