"""What runs a net on a device.

`Runtime` is the caller's wish, checked; `Runtime.embedder` turns a net into the function that a `Tower` calls.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from image_encoders.errors import DeviceError

if TYPE_CHECKING:
    from torch import nn

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
ENGINES = ("auto", "torch")


class Embedder(Protocol):
    """A net on a device: inputs (B, ...) -> rows (B, dim) float32, callable from many threads at once."""

    device: str
    engine: str
    precision: str

    def __call__(self, inputs: np.ndarray, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Runtime:
    """Where and how nets run: device "cpu", "cuda" or "cuda:1"; precision and engine as asked for."""

    device: str = "cpu"
    precision: str = "auto"
    engine: str = "auto"

    @classmethod
    def resolve(cls, device: str = "auto", precision: str = "auto", engine: str = "auto") -> Runtime:
        """The runtime for a caller's words; DeviceError where this machine or build cannot do it.

        device: "auto" | "cpu" | "cuda" | "cuda:1"; TensorFlow's "/CPU:0", "/GPU:1" mean the same
        """
        if precision not in PRECISIONS:
            raise DeviceError(f"unknown precision {precision!r}; accepted: {', '.join(PRECISIONS)}")
        if engine not in ENGINES:
            raise DeviceError(f"unknown engine {engine!r}; accepted: {', '.join(ENGINES)}")
        return cls(_device(device), precision, engine)

    @property
    def chosen_precision(self) -> str:
        """The precision that rows are computed in."""
        return "float32" if self.precision == "auto" else self.precision

    def embedder(self, net: nn.Module) -> Embedder:
        """`net` moved to the device, ready to embed batches.

        net: one tensor (B, ...) in, one tensor (B, dim) out
        """
        from image_encoders.engines.torch import TorchEmbedder

        return TorchEmbedder(net, self.device, self.chosen_precision)


def _device(name: str) -> str:
    """`name` as torch spells it; DeviceError unless it is here."""
    spelled = name.strip()
    tensorflow = re.fullmatch(r"/(?:device:)?(CPU|GPU|XLA_GPU):(\d+)", spelled, re.IGNORECASE)
    if tensorflow:
        kind, index = tensorflow[1].lower(), tensorflow[2]
        spelled = "cpu" if kind == "cpu" else f"cuda:{index}"
    if spelled == "cpu":
        return "cpu"
    cuda = re.fullmatch(r"(?:cuda|gpu)(?::(\d+))?", spelled)
    if spelled != "auto" and cuda is None:
        raise DeviceError(f"unknown device {name!r}; accepted: auto, cpu, cuda, cuda:N, /CPU:0, /GPU:N")
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cuda is None:
        return "cuda:0" if found else "cpu"
    index = int(cuda[1] or 0)
    if index >= found:
        there = f"this machine has {found} CUDA device(s)" if found else "no CUDA device is usable here"
        build = "" if torch.version.cuda else ", and this build of torch is for the CPU only"
        raise DeviceError(f"device {name!r} is not to be had: {there}{build}; use device='cpu' or 'auto'")
    return f"cuda:{index}"
