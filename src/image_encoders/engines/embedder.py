"""Nets, and the embedders that run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import nn


class Embedder(Protocol):
    """A net on a device: inputs (B, ...) -> embeddings (B, dim) float32, callable from many threads at once.

    streams: how many calls it computes in parallel, each on its own threads
    calibration: digest of the images that it was calibrated on; else ""
    choice: what was selected and why; None if the request left no choice
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
    """How close embeddings are to the same images' embeddings in float32.

    cosine: the least
    centred: the least after subtracting the mean embedding
    neighbours: the share of images whose nearest other image is the same
    images: how many were compared
    """

    cosine: float
    centred: float
    neighbours: float
    images: int


@dataclass(frozen=True)
class Choice:
    """What `precision="auto"` selected.

    engine, precision: what runs the net
    closeness: of its embeddings to float32's; None where it is float32
    refused: what would have been faster, and why it was rejected
    """

    engine: str
    precision: str
    closeness: Closeness | None = None
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Net:
    """A net that is built on demand.

    name: for messages
    key: equal keys, equal embeddings: a digest of the weights and of all else that determines what `build` builds
    build: one tensor (B, ...) in, one tensor (B, dim) out; in float32, on the CPU
    prepare: source -> input, the tower's
    shape: of an input without batch axis; None where any length is accepted
    modality: "image", "text" or "audio"
    traceable: whether one pass traces the net: not if Python code decides at run time
    """

    name: str
    key: str
    build: Callable[[], nn.Module]
    prepare: Callable[[Any], np.ndarray]
    shape: tuple[int | None, ...]
    modality: str = "image"
    traceable: bool = True
