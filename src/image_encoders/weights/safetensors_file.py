"""Safetensors files, both ways.

Source: the format at https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_encoders.cache import atomic_write
from image_encoders.errors import WeightsError
from image_encoders.weights.files import ALIGNMENT, reason
from image_encoders.weights.raw import raw_bytes, type_name

if TYPE_CHECKING:
    import torch

# the format's name for a type
TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as a safetensors file does: with a length, and JSON; WeightsError if unreadable."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error


def read(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file, mapped, and its metadata.

    Raises WeightsError when it is missing or damaged.
    """
    from safetensors import safe_open

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # the library raises its own error, and torch's where a mapping fails
        raise WeightsError(f"{path}: a damaged safetensors file: {reason(error)}; get the file again") from error


def write(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """One safetensors file with these tensors, whole or not at all; an older file of that name is replaced.

    tensors: name -> tensor or ndarray; one at a time is brought into contiguous memory

    Raises WeightsError for a type that the format lacks, or when the file cannot be written.
    """
    path = Path(path)
    kinds = {name: type_name(value) for name, value in tensors.items()}
    unknown = [f"{name} ({kind})" for name, kind in kinds.items() if kind not in TYPES]
    if unknown:
        raise WeightsError(f"{path}: safetensors has no type for {', '.join(unknown[:5])}")
    widths = {name: int(value.dtype.itemsize) for name, value in tensors.items()}
    sizes = {name: widths[name] * math.prod(map(int, value.shape)) for name, value in tensors.items()}
    # round sizes first, then the widest types: as many tensors as can be are aligned
    names = sorted(tensors, key=lambda name: (sizes[name] % ALIGNMENT != 0, -widths[name], name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in names:
        shape = [int(size) for size in tensors[name].shape]
        end = at + sizes[name]
        header[name] = {"dtype": TYPES[kinds[name]], "shape": shape, "data_offsets": [at, end]}
        at = end
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-(8 + len(head)) % ALIGNMENT)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part, part.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for name in names:
                file.write(raw_bytes(tensors[name]))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written: {error.strerror or error}") from error
