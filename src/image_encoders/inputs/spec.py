"""How sources of one modality become inputs of a net, as one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from image_encoders.errors import InputError


@dataclass(frozen=True)
class InputSpec:
    """How sources of one modality become inputs: written once, for the tower and for the net that engines probe.

    modality: "image", "text" or "audio"
    read: source -> item; may touch the disk; raises InputError
    prepare: item -> input, an ndarray without batch axis; pure; raises InputError
    shape: of an input, None for axes of any length; None altogether if only the net knows
    facts: everything that determines an input, as plain values: it goes into the fingerprint
    summary: the same in readable form
    smallest: the minimum of a variable length
    low_precision: the spec for a net in lower precision, whose inputs need not be the reference's to the last bit;
        None: this one
    """

    modality: str
    read: Callable[[Any], Any]
    prepare: Callable[[Any], np.ndarray]
    shape: tuple[int | None, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""
    smallest: int = 1
    low_precision: InputSpec | None = None

    def input(self, source: Any) -> np.ndarray:
        """The net's input for one source: read, then prepared."""
        return self.prepare(self.read(source))

    def at(self, precision: str) -> InputSpec:
        """The spec for a net that computes in `precision`."""
        return self if precision == "float32" or self.low_precision is None else self.low_precision

    def check(self, one: np.ndarray) -> None:
        """Raise InputError unless `one` has the shape that the net takes."""
        if self.shape is None:
            return
        if one.ndim != len(self.shape) or any(w is not None and w != n for w, n in zip(self.shape, one.shape)):
            wanted = " x ".join("any" if n is None else str(n) for n in self.shape)
            raise InputError(f"a prepared {self.modality} of {_lengths(one)}; this model takes {wanted}", code="shape")
        if any(w is None and n < self.smallest for w, n in zip(self.shape, one.shape)):
            raise InputError(
                f"a prepared {self.modality} of {_lengths(one)}; this model takes sides of {self.smallest} and more",
                code="shape",
            )


def _lengths(array: np.ndarray) -> str:
    return " x ".join(map(str, array.shape)) or "a single number"
