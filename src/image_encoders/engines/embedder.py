"""A net, and what runs it."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from image_encoders.engines.process import building, torch_has_computed

if TYPE_CHECKING:
    from torch import nn

Built = TypeVar("Built")


class Embedder(Protocol):
    """A net on a device: inputs (B, ...) -> embeddings (B, dim) float32, callable from many threads at once.

    calibration: digest of the images that int8 was calibrated on; else ""
    choice: what was selected and why; None where the wish left no choice
    """

    device: str
    engine: str
    precision: str
    calibration: str
    choice: Choice | None

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


def net_key(**facts: Any) -> str:
    """The `key` of a `Net` from plain values that decide its embeddings."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Lazy(Generic[Built]):
    """A value that is made by the first who needs it, once, and kept.

    All share one lock, which is free in a forked process; a value may be made of others.
    """

    def __init__(self, make: Callable[[], Built]):
        self._make = make
        self._made: list[Built] = []

    def __call__(self) -> Built:
        if not self._made:
            with building:
                if not self._made:
                    self._made.append(self._make())
        return self._made[0]


class Shared(Generic[Built]):
    """What several nets are parts of: built when one of them needs it, and let go when none holds it any more.

    In a `with` block it is kept once it is built.
    """

    def __init__(self, build: Callable[[], Built]):
        self._build = build
        self._built: Callable[[], Built | None] = lambda: None
        self._keeps = False
        self._kept: Built | None = None

    def __call__(self) -> Built:
        built = self._built()
        if built is None:
            with building:
                built = self._built()
                if built is None:
                    torch_has_computed.set()
                    built = self._build()
                    self._built = weakref.ref(built)
        if self._keeps:
            self._kept = built
        return built

    def __enter__(self) -> Shared[Built]:
        self._keeps = True
        return self

    def __exit__(self, *exception: object) -> None:
        self._keeps, self._kept = False, None


class LazyEmbedder:
    """An embedder that is selected when its first batch comes."""

    def __init__(self, select: Callable[[], Embedder]):
        self.selected = Lazy(select)

    def __call__(self, inputs: np.ndarray, /) -> np.ndarray:
        return self.selected()(inputs)


def identity(embedder: Embedder) -> dict[str, Any]:
    """What of an embedder decides its embeddings, for a fingerprint."""
    calibration = {"calibration": embedder.calibration} if embedder.calibration else {}
    return {"precision": embedder.precision, **calibration}


def described(embedder: Embedder) -> dict[str, Any]:
    """What an `Encoder` says of the embedder of its main tower."""
    return {name: getattr(embedder, name) for name in ("device", "engine", "precision", "calibration", "choice")}
