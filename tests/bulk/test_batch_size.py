"""How many inputs go through the net at once, where nobody says."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from image_encoders.bulk.batch_size import LARGEST, SMALLEST, BatchSizeTuner


def settled(seconds: Callable[[int], float], batches: int = 60, warm_up: float = 1.0) -> tuple[int, int]:
    """The size in the end, and how many inputs it took to find it, for a net that needs `seconds(n)` for n inputs."""
    tuner, seen, taken = BatchSizeTuner(None), set(), 0
    for _ in range(batches):
        size = tuner.size
        tuner.took(size, seconds(size) + (0 if size in seen else warm_up))
        taken += size if tuner.trying else 0
        seen.add(size)
    assert not tuner.trying
    return tuner.size, taken


def test_a_net_that_gains_from_large_batches_gets_them():
    assert settled(lambda n: 1 + n / 1000)[0] == LARGEST


def test_a_net_that_gains_nothing_stays_at_small_ones():
    size, taken = settled(lambda n: n / 17)
    assert size == SMALLEST
    assert taken < 100


def test_it_stops_where_the_gain_stops():
    assert settled(lambda n: max(n, 16) / 100)[0] == 16
    assert settled(lambda n: max(n, 32) / 100)[0] == 32


def test_a_size_that_is_slower_is_left_again():
    assert settled(lambda n: n / 100 if n <= 16 else n / 10)[0] == SMALLEST


def test_a_size_that_somebody_chose_stays():
    tuner = BatchSizeTuner(5)
    for _ in range(20):
        tuner.took(5, 1.0)
    assert (tuner.size, tuner.most, tuner.fits, tuner.trying) == (5, 5, 5, False)


def test_memory_that_ran_out_ends_the_growth():
    tuner = BatchSizeTuner(None)
    tuner.ran_out_of_memory(16)
    assert tuner.fits == 8
    for _ in range(20):
        tuner.took(tuner.size, 1.0)
    assert tuner.size == 8


@pytest.mark.parametrize("count", [1, 7, 9])
def test_batches_of_another_size_say_nothing(count: int):
    tuner = BatchSizeTuner(None)
    for _ in range(50):
        tuner.took(count, 1e-6)
    assert tuner.size == SMALLEST
    assert tuner.trying
