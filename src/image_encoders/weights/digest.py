"""One digest for a set of named tensors, whatever file they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from image_encoders.weights.raw import raw_bytes, type_name

if TYPE_CHECKING:
    import torch


def weights_digest(state: Mapping[str, torch.Tensor | np.ndarray]) -> str:
    """The sha256 of named tensors: names, types, shapes and values, in the order of the names.

    The same for a tensor and an ndarray, in any memory order.

    state: tensors on any device, or ndarrays; one at a time is brought into contiguous memory
    returns: 64 hexadecimal digits
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        head = (name, type_name(value), tuple(int(size) for size in value.shape))
        digest.update(repr(head).encode("utf-8", "surrogatepass"))
        digest.update(raw_bytes(value))
    return digest.hexdigest()
