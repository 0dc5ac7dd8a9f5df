"""Arrays of other libraries become NumPy's, or raise an error that says why not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from image_encoders.arrays import as_array, is_tensor
from image_encoders.errors import InputError


class Failing:
    def __array__(self, *arguments: object, **options: object) -> np.ndarray:
        raise RuntimeError("no numbers today\nand a second line")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16, torch.float8_e5m2])
def test_a_tensor_of_any_type_of_number_becomes_an_array(dtype: torch.dtype):
    found = as_array(torch.tensor([[1, 2], [3, 4]]).to(dtype))
    assert found.dtype == (np.float32 if dtype.is_floating_point else np.uint8)
    assert found.tolist() == [[1, 2], [3, 4]]


def test_a_tensor_that_learns_becomes_an_array():
    assert as_array(torch.ones(2, requires_grad=True) * 3).tolist() == [3, 3]


def test_an_array_is_not_copied():
    array = np.zeros((2, 3))
    assert as_array(array) is array


@pytest.mark.filterwarnings("ignore")  # torch's own, about its quantised tensors
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: torch.zeros(3, 4).to_sparse(), "to_dense"),
        (lambda: torch.zeros(3, 4, device="meta"), "meta"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3, 4), 1.0, 0, torch.quint8), "QUInt8"),
        (Failing, "no numbers today"),
        (lambda: [[1.0], [1.0, 2.0]], "cannot be converted to an array"),
    ],
)
def test_what_makes_no_array_says_why(make, says: str):
    with pytest.raises(InputError, match=says) as caught:
        as_array(make())
    assert caught.value.code == "dtype"
    assert "\n" not in str(caught.value)


def test_an_open_file_is_no_tensor(tmp_path):
    with open(tmp_path / "new", "wb") as file:
        assert not is_tensor(file)
    assert is_tensor(torch.zeros(1))
