"""The two measures, and what may pass."""

import numpy as np
import pytest

from image_encoders.conformance.agreement import Agreement, Limits, agreement


def test_equal_embeddings_are_at_no_distance():
    rows = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    assert agreement(rows, rows) == pytest.approx((0, 0, 0), abs=1e-15)
    assert agreement(rows, rows).one_minus_cos >= 0


def test_the_largest_error_is_measured_against_the_largest_value_of_all():
    reference = np.array([[1.0, 0.0], [0.0, 8.0]])
    found = reference + [[0.0, 0.0], [0.0, 0.4]]
    assert agreement(found, reference) == pytest.approx((0.4, 0.05, 0))


def test_the_embedding_of_the_smallest_cosine_counts():
    reference = np.array([[1.0, 0.0], [1.0, 0.0]])
    found = np.array([[5.0, 0.0], [1.0, 1.0]])
    assert agreement(found, reference).one_minus_cos == pytest.approx(1 - 2**-0.5)


def test_axes_of_an_embedding_are_taken_together():
    reference = np.ones((2, 3, 4, 4))
    assert agreement(reference * 2, reference) == pytest.approx((1, 1, 0))


def test_embeddings_of_another_shape_never_pass():
    found = agreement(np.ones((2, 3)), np.ones((2, 4)))
    assert not Limits(rel=1e9).hold(found)


@pytest.mark.parametrize("limits", [Limits(max_abs=1.0), Limits(rel=1.0), Limits(one_minus_cos=1.0)])
def test_an_embedding_with_nan_never_passes(limits):
    rows = np.array([[1.0, 2.0], [3.0, np.nan]])
    assert not limits.hold(agreement(rows, np.nan_to_num(rows)))


def test_only_what_is_limited_is_looked_at():
    found = Agreement(max_abs=5.0, rel=0.5, one_minus_cos=float("nan"))
    assert Limits(max_abs=5.0).hold(found)
    assert not Limits(max_abs=4.9).hold(found)
    assert not Limits(max_abs=9.0, rel=0.4).hold(found)


def test_limits_are_shown_as_people_write_them():
    assert str(Limits(rel=1e-4, one_minus_cos=1e-8)) == "rel 1e-04, 1-cos 1e-08"
    assert str(Limits(max_abs=2e-6)) == "abs 2e-06"
