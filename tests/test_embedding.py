"""The embedding step: what fails fails alone, and nothing that is not finite comes out."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from image_encoders.embedding import embed_each
from image_encoders.errors import DeviceError, InputError

BAD, LARGE = -1.0, 1e30


class Net:
    """Embeddings are the inputs doubled, and their number; batches are remembered."""

    def __init__(self, fails: Callable[[list[float]], None] = lambda values: None):
        self.batches: list[list[float]] = []
        self.fails = fails

    def __call__(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        values = [float(one[0]) for one in inputs]
        self.batches.append(values)
        self.fails(values)
        return np.array([[2 * value, len(values)] for value in values], np.float32)


def inputs(*values: float) -> list[np.ndarray]:
    return [np.array([value], np.float32) for value in values]


def outcomes(found: Sequence[np.ndarray | InputError]) -> list[object]:
    return [one.code if isinstance(one, InputError) else float(one[0]) for one in found]


def refuse_bad(values: list[float]) -> None:
    if BAD in values:
        raise ZeroDivisionError("no\nway")


def test_embeddings_come_in_order_from_one_batch() -> None:
    net = Net()
    assert outcomes(embed_each(net, inputs(3, 1, 2), dim=2)) == [6, 2, 4]
    assert net.batches == [[3, 1, 2]]
    assert embed_each(net, []) == []
    assert len(net.batches) == 1


@pytest.mark.parametrize("place", range(7))
def test_the_input_that_is_to_blame_fails_alone(place: int) -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    values[place] = BAD
    found = embed_each(Net(refuse_bad), inputs(*values), dim=2)
    assert outcomes(found) == ["unexpected" if value == BAD else 2 * value for value in values]
    reason = found[place]
    assert isinstance(reason, InputError)
    assert reason.message == "ZeroDivisionError: no"
    assert isinstance(reason.__cause__, ZeroDivisionError)


def test_a_reason_of_the_net_s_own_is_kept() -> None:
    def refuse(values: list[float]) -> None:
        if BAD in values:
            raise InputError("too thin", code="too-thin")

    assert outcomes(embed_each(Net(refuse), inputs(1, BAD), dim=2)) == [2, "too-thin"]


def test_a_failure_does_not_hold_the_batch_in_memory() -> None:
    arrays = inputs(1, BAD)
    alive = weakref.ref(arrays[1])
    found = embed_each(Net(refuse_bad), arrays, dim=2)
    del arrays
    gc.collect()
    assert outcomes(found) == [2, "unexpected"]
    assert alive() is None


def test_once_memory_ran_out_batches_stay_small() -> None:
    def out_of_memory(values: list[float]) -> None:
        if len(values) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    net, reported = Net(out_of_memory), []
    assert outcomes(embed_each(net, inputs(*range(10)), dim=2, out_of_memory=reported.append)) == list(range(0, 20, 2))
    assert [len(batch) for batch in net.batches] == [10, 5, 3, 2, 3, 2]
    assert reported == [10, 5]


def test_an_input_for_which_there_is_never_memory_fails() -> None:
    def out_of_memory(values: list[float]) -> None:
        if BAD in values:
            raise MemoryError

    assert outcomes(embed_each(Net(out_of_memory), inputs(1, BAD, 3), dim=2)) == [2, "out-of-memory", 6]


def test_an_embedding_that_is_not_finite_is_tried_alone_before_it_fails() -> None:
    def embed(inputs: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack(inputs) + 0 * sum(inputs)  # each one depends on all

    with np.errstate(invalid="ignore"):
        assert outcomes(embed_each(embed, inputs(1, np.inf, 2), dim=1)) == [1, "not-finite", 2]


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (2,), (2, 2, 1)])
def test_embeddings_of_another_shape_are_a_failure(shape: tuple[int, ...]) -> None:
    found = embed_each(lambda inputs: np.zeros(shape, np.float32), inputs(1, 2), dim=2)
    assert outcomes(found) == ["shape", "shape"]


@pytest.mark.parametrize("error", [DeviceError("the device is gone"), KeyboardInterrupt()])
def test_what_no_input_is_to_blame_for_is_raised(error: BaseException) -> None:
    def fail(values: list[float]) -> None:
        raise error

    net = Net(fail)
    with pytest.raises(type(error)):
        embed_each(net, inputs(1, 2), dim=2)
    assert len(net.batches) == 1


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory",
        "std::bad_alloc",
        "CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_libraries_that_run_out_of_memory_say_so_in_their_own_words(said: str) -> None:
    def fails(values: list[float]) -> None:
        if len(values) > 2:
            raise RuntimeError(said)

    net, sizes = Net(fails), []
    assert outcomes(embed_each(net, inputs(*range(8)), out_of_memory=sizes.append)) == [2.0 * n for n in range(8)]
    assert sizes == [8, 4]
