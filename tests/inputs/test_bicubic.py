"""The resize equals torch's, of which it computes only what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from image_encoders.inputs import bicubic
from image_encoders.inputs.preprocessing import ShortSide


def resize_and_crop(pixels: np.ndarray, size: int) -> np.ndarray:
    """The central square of an image whose short side becomes `size`."""
    height, width = ShortSide(size).of(*pixels.shape[:2])
    top, left = round((height - size) / 2), round((width - size) / 2)
    return bicubic.resize_and_crop(pixels, (height, width), (size, size), top, left)


def by_torch(pixels: np.ndarray, size: int) -> np.ndarray:
    """The whole image resized, then cut, with torchvision's sizes and corner."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    new_height, new_width = int(size * height / short), int(size * width / short)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    if short != size:
        x = F.interpolate(x, size=(new_height, new_width), mode="bicubic", align_corners=False, antialias=False)
    top, left = round((new_height - size) / 2.0), round((new_width - size) / 2.0)
    return x[0, :, top : top + size, left : left + size].permute(1, 2, 0).numpy()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.sampled_from([1, 7, 32, 224]), st.integers(0, 99))
def test_it_equals_torch_at_any_size(height, width, size, seed):
    if max(height, width) > 40 * min(height, width):  # torch would make a huge image first
        height = width
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = resize_and_crop(pixels, size)
    assert found.shape == (size, size, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_torch(pixels, size), rtol=0, atol=5e-6)


@pytest.mark.parametrize("shape", [(1944, 2593), (2333, 1201), (227, 225), (224, 301), (224, 224)])
def test_it_equals_torch_for_large_images_and_odd_margins(shape):
    pixels = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
    np.testing.assert_allclose(resize_and_crop(pixels, 224), by_torch(pixels, 224), rtol=0, atol=5e-6)


def test_a_thin_image_costs_no_more_than_what_is_kept():
    pixels = np.random.default_rng(4).integers(0, 256, (1, 60_000, 3), dtype=np.uint8)  # resized: 224 x 13,440,000
    found = resize_and_crop(pixels, 224)
    assert found.shape == (224, 224, 3)
    assert np.isfinite(found).all()


def test_edges_overshoot_and_are_not_clamped():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, 4:] = 255
    found = resize_and_crop(pixels, 224)
    assert found.min() < -0.05
    assert found.max() > 1.05


def test_the_image_is_left_as_it_was():
    pixels = np.random.default_rng(5).integers(0, 256, (300, 280, 3), dtype=np.uint8)
    before = pixels.copy()
    resize_and_crop(pixels, 224)
    np.testing.assert_array_equal(pixels, before)


def test_a_view_of_other_memory_is_taken_as_its_pixels():
    pixels = np.random.default_rng(6).integers(0, 256, (300, 280, 3), dtype=np.uint8)
    for view in (pixels[::-1], pixels[:, ::-2], pixels.transpose(1, 0, 2), np.asfortranarray(pixels)):
        np.testing.assert_array_equal(resize_and_crop(view, 64), resize_and_crop(np.ascontiguousarray(view), 64))
