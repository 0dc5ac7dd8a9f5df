"""Bicubic resizing without a low-pass filter, as torch resizes float tensors when `antialias` is off.

A large image is sampled at few places only, so nothing else of it is touched.
"""

from __future__ import annotations

import numpy as np

A = np.float32(-0.75)  # of the cubic convolution kernel; Pillow has -0.5


def resize_and_crop(
    pixels: np.ndarray, size: tuple[int, int], crop: tuple[int, int], top: int, left: int
) -> np.ndarray:
    """A part of an image that was resized.

    pixels: (H, W, 3) uint8
    size: (height, width) of the resized image
    crop: (height, width) of the part, whose first pixel is at row `top` and column `left`
    returns: (*crop, 3) float32, full scale 1; beyond [0, 1] where the cubic overshoots

    Source: torch.nn.functional.interpolate(mode="bicubic", align_corners=False, antialias=False) on pixels / 255, to
    rounding.
    """
    height, width = crop
    rows, row_weights = _taps(pixels.shape[0], size[0], top, height)
    columns, column_weights = _taps(pixels.shape[1], size[1], left, width)
    used, rows = np.unique(rows, return_inverse=True)
    rows = rows.reshape(4, height)
    lines = pixels[used].reshape(len(used), pixels.shape[1] * 3)
    values = (columns[:, :, None] * 3 + np.arange(3)).reshape(4, width * 3)  # of a line: 3 for each column
    value_weights = np.repeat(column_weights, 3, axis=1)
    strip = np.take(lines, values[0], axis=1) * value_weights[0]  # (R, 3 W) float32, R rows of the image are used
    for tap in range(1, 4):
        strip += np.take(lines, values[tap], axis=1) * value_weights[tap]
    image = strip[rows[0]] * row_weights[0, :, None]  # (H, 3 W)
    for tap in range(1, 4):
        image += strip[rows[tap]] * row_weights[tap, :, None]
    return image.reshape(height, width, 3) / np.float32(255)


def _taps(side: int, resized: int, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For `count` of `resized` points from the `first` on, the four samples of `side` around each and their weights.

    returns: (4, count) int and (4, count) float32
    """
    points = np.arange(first, first + count)
    scale = np.float32(side) / np.float32(resized)
    at = (scale.astype(np.float64) * (points + 0.5) - 0.5).astype(np.float32)  # one rounding, as a fused multiply-add
    floor = np.floor(at)
    t = (at - floor)[None]
    near, far = np.concatenate([t, 1 - t]), np.concatenate([t + 1, 2 - t])
    near = ((A + 2) * near - (A + 3)) * near * near + 1
    far = ((A * far - 5 * A) * far + 8 * A) * far - 4 * A
    samples = np.clip(floor.astype(np.int64) + np.array([[-1], [0], [1], [2]]), 0, side - 1)
    return samples, np.stack([far[0], near[0], near[1], far[1]])
