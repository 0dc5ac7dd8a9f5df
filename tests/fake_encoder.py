"""An encoder without a net: rows computed from pixels by NumPy, so that runs can be tested in milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from image_encoders.canaries import canary_images
from image_encoders.encoder import Encoder, InputSpec, Tower
from image_encoders.inputs.image import read_image

DIM = 8
SIDE = 4  # of an input [px]

# Inputs flat to rows; fixed, so that every process has the same.
_MIX = np.cos(np.arange(3 * SIDE * SIDE * DIM, dtype=np.float64).reshape(-1, DIM) * 1.7)


class FakeEncoder(Encoder):
    """Rows of 8 numbers from an image's pixels.

    batches: the sizes of the batches embedded so far
    alive: inputs prepared and not embedded yet; most_alive: the most there ever were

    batch_sensitive: rows depend on the whole batch a little, as a real net's last bits do
    before: called with each batch before it is embedded; may raise, or wait
    """

    def __init__(
        self,
        *,
        name: str = "fake/net",
        fingerprint: str = "f" * 32,
        dim: int = DIM,
        batch_sensitive: bool = False,
        read: Callable[[Any], np.ndarray] = read_image,
        before: Callable[[np.ndarray], None] = lambda inputs: None,
    ):
        self.batches: list[int] = []
        self.alive = self.most_alive = 0
        self._lock = threading.Lock()
        self._batch_sensitive = batch_sensitive
        self._before = before
        tower = Tower(InputSpec("image", read, self._prepare, (3, SIDE, SIDE)), self._embed)
        recipe = {"name": name, "weights": None, "options": {}}
        super().__init__(name, dim, {"image": tower}, fingerprint, recipe=recipe)

    @property
    def embedded(self) -> int:
        """How many inputs have been embedded so far."""
        return sum(self.batches)

    def _prepare(self, pixels: np.ndarray) -> np.ndarray:
        height, width, _ = pixels.shape
        rows = np.arange(SIDE) * height // SIDE
        columns = np.arange(SIDE) * width // SIDE
        if not _is_canary(pixels):
            with self._lock:
                self.alive += 1
                self.most_alive = max(self.alive, self.most_alive)
        return np.ascontiguousarray(pixels[rows][:, columns].transpose(2, 0, 1))

    def _embed(self, inputs: np.ndarray) -> np.ndarray:
        if inputs.shape != _CANARIES.shape or (inputs != _CANARIES).any():  # a new collection's are not counted
            self._before(inputs)
            with self._lock:
                self.alive -= len(inputs)
                self.batches.append(len(inputs))
        rows = (inputs.reshape(len(inputs), -1) / 255.0) @ _MIX + 0.01
        rows = np.resize(rows.T, (self.dim, len(inputs))).T
        if self._batch_sensitive:
            rows = rows + rows.mean(axis=0) * np.linspace(1e-4, 2e-4, len(inputs))[:, None]
        return rows.astype(np.float32)


def _is_canary(pixels: np.ndarray) -> bool:
    return any(pixels.shape == one.shape and (pixels == one).all() for one in canary_images())


def _canary_inputs() -> np.ndarray:
    places = np.arange(SIDE) * len(canary_images()[0]) // SIDE
    return np.stack([image[places][:, places].transpose(2, 0, 1) for image in canary_images()])


_CANARIES = _canary_inputs()
