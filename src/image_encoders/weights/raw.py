"""A tensor's bytes as every file and digest of ours has them: C order, little-endian."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def type_name(value: Any) -> str:
    """The type of a tensor's or ndarray's elements, alike for both: "float32", "bfloat16", "bool"."""
    return value.dtype.name if isinstance(value.dtype, np.dtype) else str(value.dtype).removeprefix("torch.")


def raw_bytes(value: Any) -> memoryview:
    """The elements of a tensor (on any device) or ndarray in C order, little-endian."""
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.ascontiguousarray(value)
        if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
            array = array.astype(array.dtype.newbyteorder("<"))
    else:
        import torch

        flat = value.detach().cpu().contiguous().reshape(-1)
        if not flat.numel():  # without elements its stride may be 0, which `view` refuses
            return memoryview(b"")
        array = flat.view(torch.uint8).numpy()
    return array.reshape(-1).view(np.uint8).data
