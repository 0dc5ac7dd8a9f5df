"""Mapped files give their memory back on request, and stay readable."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from image_encoders.weights import npz
from image_encoders.weights.files import let_go


def resident() -> int:
    """Bytes of this process in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_pages_of_a_mapped_array_are_given_back_and_read_again(tmp_path):
    array = np.random.default_rng(0).random((4, 1 << 20))
    np.savez(tmp_path / "a.npz", array=array)
    mapped = npz.read(tmp_path / "a.npz")["array"]
    before = resident()
    let_go(mapped.transpose())
    assert before - resident() > 0.9 * array.nbytes
    assert np.array_equal(mapped, array)


def test_an_array_in_memory_of_its_own_is_left_alone(tmp_path):
    array = np.arange(5000.0)
    np.savez_compressed(tmp_path / "a.npz", array=array)
    for one in (array.copy(), array.copy()[::2].reshape(50, 50), npz.read(tmp_path / "a.npz")["array"]):
        before = one.copy()
        let_go(one)
        assert np.array_equal(one, before)
