"""A net, and what runs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import nn


class Embedder(Protocol):
    """A net on a device: inputs (B, ...) -> embeddings (B, dim) float32, callable from many threads at once.

    streams: how many calls it computes side by side, each on threads of its own
    calibration: digest of the images that it was calibrated on; else ""
    choice: what was selected and why; None where the wish left no choice
    """

    device: str
    engine: str
    precision: str
    calibration: str
    choice: Choice | None

    @property
    def streams(self) -> int: ...

    def __call__(self, inputs: np.ndarray, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Closeness:
    """How near embeddings come to the same images' embeddings in float32.

    cosine: the least, plain
    centred: the least, of embeddings whose mean was subtracted
    neighbours: the share of images whose nearest other image is the same
    images: how many were compared
    """

    cosine: float
    centred: float
    neighbours: float
    images: int


@dataclass(frozen=True)
class Choice:
    """What `precision="auto"` came to.

    engine, precision: what runs the net
    closeness: of its embeddings to float32's; None where it is float32
    refused: what would have been faster, and why it was not taken
    """

    engine: str
    precision: str
    closeness: Closeness | None = None
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Net:
    """A net that is built when it is needed.

    name: for messages
    key: equal keys, equal embeddings: a digest of the weights and of whatever else decides what `build` builds
    build: one tensor (B, ...) in, one tensor (B, dim) out; in float32, on the CPU
    prepare: source -> input, as the tower has it
    shape: of an input without batch axis; None where any length goes
    modality: "image", "text" or "audio"
    traceable: whether a copy can be made by following one pass; not so where Python decides at run time what is done
    """

    name: str
    key: str
    build: Callable[[], nn.Module]
    prepare: Callable[[Any], np.ndarray]
    shape: tuple[int | None, ...]
    modality: str = "image"
    traceable: bool = True
