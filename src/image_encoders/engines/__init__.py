"""What runs a net on a device.

    Runtime.resolve(device, precision, engine)   the caller's wish, checked
    runtime.embedder(net)                        the function that a `Tower` calls

A `Net` says how to build a net; engines that keep a converted copy of it on disk build it only once.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from image_encoders.errors import DeviceError, InputError

if TYPE_CHECKING:
    from torch import nn

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")
DEVICES = "accepted: auto, cpu, cuda, cuda:N, /CPU:0, /GPU:N, a torch.device, the number of a CUDA device"
ENGINES = ("auto", "torch", "torch-compile", "openvino")

Built = TypeVar("Built")

building = threading.RLock()  # held while a net is built or traced: two at once fail in transformers and in torch
computed = threading.Event()  # set once torch has computed, here or in the process that this one was forked from


class Embedder(Protocol):
    """A net on a device: inputs (B, ...) -> rows (B, dim) float32, callable from many threads at once."""

    device: str
    engine: str
    precision: str

    def __call__(self, inputs: np.ndarray, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Net:
    """A net that is built when it is needed.

    name: for messages
    key: equal keys, equal rows: a digest of the weights and of whatever else decides what `build` builds
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
                    computed.set()
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


@dataclass(frozen=True)
class Runtime:
    """Where and how nets run: device "cpu", "cuda" or "cuda:1"; precision and engine as asked for.

    calibration: pictures for int8: sources, or the digest of earlier ones
    """

    device: str = "cpu"
    precision: str = "auto"
    engine: str = "auto"
    calibration: Sequence[Any] | str | None = None

    @classmethod
    def resolve(
        cls,
        device: str = "auto",
        precision: str = "auto",
        engine: str = "auto",
        calibration: Sequence[Any] | str | None = None,
    ) -> Runtime:
        """The runtime for a caller's words; DeviceError where this machine or build cannot do it.

        device: "auto" | "cpu" | "cuda" | "cuda:1"; TensorFlow's "/CPU:0", "/GPU:1" mean the same
        """
        if precision not in PRECISIONS:
            raise DeviceError(f"unknown precision {precision!r}; accepted: {', '.join(PRECISIONS)}")
        if engine not in ENGINES:
            raise DeviceError(f"unknown engine {engine!r}; accepted: {', '.join(ENGINES)}")
        if engine == "openvino" or precision == "int8":
            device = "cpu" if device == "auto" else device
        device = _device(device)
        _agree(device, precision, engine)
        if (precision == "int8") != (calibration is not None):
            raise InputError(
                "precision='int8' needs calibration=, a folder or list of your own pictures (--calibration FOLDER)"
                if calibration is None
                else f"calibration= goes with precision='int8', not with {precision!r}",
                code="calibration",
            )
        return cls(device, precision, engine, calibration)

    def embedder(self, net: Net) -> Embedder:
        """`net` ready to embed batches, by the engine and in the precision that were asked for or are best here.

        Raises DeviceError where that cannot be had.
        """
        from image_encoders.engines.precision import chosen, in_float32

        if self.precision == "auto":
            return chosen(net, self.device, self.engine)
        if self.precision == "float32":
            return in_float32(net, self.device, self.engine)
        if net.traceable or self.engine != "auto":
            return self.made(net, self._engine(), self.precision)
        if self.precision == "int8":
            raise DeviceError(
                f"{net.name}: int8 needs a copy that follows one pass of the net, and Python may decide otherwise in "
                "the next; engine='openvino' makes it all the same"
            )
        return self.made(net, "torch", self.precision)

    def later(self, net: Net) -> Later:
        """The same for a tower beside the main one: made when its first batch comes.

        In float32, unless one precision was asked for: texts and sounds are few. By torch where no copy can be made.
        """
        from image_encoders.engines.precision import in_float32

        wish = self if net.traceable else replace(self, engine="torch")
        if self.precision in ("auto", "float32", "int8"):
            return Later(lambda: in_float32(net, wish.device, wish.engine))
        return Later(lambda: wish.made(net, wish._engine(), wish.precision))

    def made(self, net: Net, engine: str, precision: str) -> Embedder:
        """`net` run by one engine in one precision, no questions asked."""
        if engine == "openvino":
            from image_encoders.engines.openvino import OpenVinoEmbedder

            return OpenVinoEmbedder(net, precision, self.calibration)
        from image_encoders.engines.torch import TorchEmbedder

        return TorchEmbedder(net.build(), self.device, precision, compiled=engine == "torch-compile")

    def _engine(self) -> str:
        """The engine for a precision that was asked for: torch, unless another one is all that can do it well."""
        if self.engine != "auto":
            return self.engine
        if self.precision == "int8":
            return "openvino"
        if self.precision == "bfloat16" and self.device == "cpu":
            from image_encoders.engines.openvino import has_bfloat16

            return "openvino" if has_bfloat16() else "torch"
        return "torch"


PLAIN = Runtime(precision="float32", engine="torch")  # the original's rows, by torch on the CPU


class Later:
    """An embedder that is made when its first batch comes."""

    def __init__(self, make: Callable[[], Embedder]):
        self._make = make
        self._lock = threading.Lock()
        self._embedder: Embedder | None = None

    def made(self) -> Embedder:
        """The embedder, made now if it is not yet."""
        with self._lock:
            if self._embedder is None:
                self._embedder = self._make()
            return self._embedder

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        return self.made()(inputs)


def _forked() -> None:
    """A process that was forked has one thread, and torch would wait forever for those that it has computed on."""
    building._at_fork_reinit()  # type: ignore[attr-defined]
    torch = sys.modules.get("torch")
    if computed.is_set() and torch is not None:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _agree(device: str, precision: str, engine: str) -> None:
    """DeviceError where device, precision and engine do not go together."""
    if engine == "openvino" and device != "cpu":
        raise DeviceError(f"engine='openvino' runs on the CPU, not on {device!r}; use engine='torch' there")
    if precision == "int8" and (device != "cpu" or engine in ("torch", "torch-compile")):
        raise DeviceError("precision='int8' is OpenVINO's, on the CPU; use device='cpu' and engine='auto' with it")
    if precision == "float16" and device == "cpu":
        raise DeviceError("float16 is not for the CPU; use bfloat16 or float32 there")
    if engine == "openvino" or precision == "int8":
        from image_encoders.engines.copies import refuse_forked
        from image_encoders.engines.openvino import has_bfloat16

        refuse_forked()
        if precision == "bfloat16" and not has_bfloat16():
            hidden = ", or IMAGE_ENCODERS_BFLOAT16=0 hides them" if wished_bfloat16() is False else ""
            raise DeviceError(
                f"this processor has no instructions for bfloat16 that OpenVINO could use{hidden}; "
                "use precision='auto' or 'float32', or engine='torch', which computes bfloat16 slowly anywhere"
            )


def wished_bfloat16() -> bool | None:
    """Whether IMAGE_ENCODERS_BFLOAT16 wants bfloat16 on this machine; None where the processor decides.

    1: by torch where OpenVINO has no instructions for it; 0: not even where there are some
    """
    wish = os.environ.get("IMAGE_ENCODERS_BFLOAT16", "")
    if wish not in ("", "0", "1"):
        raise DeviceError(f"IMAGE_ENCODERS_BFLOAT16 is {wish!r}; accepted: 1, 0, or nothing, which asks the processor")
    return wish == "1" if wish else None


def device_name(device: Any) -> str:
    """What is written for a device, of text, a `torch.device` or the number of a CUDA device."""
    if isinstance(device, (int, np.integer)) and not isinstance(device, bool):
        return f"cuda:{device}"
    if isinstance(device, str) or (hasattr(device, "type") and hasattr(device, "index")):
        return str(device)
    raise DeviceError(f"unknown device {device!r}; {DEVICES}")


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
        raise DeviceError(f"unknown device {name!r}; {DEVICES}")
    if cuda is None and not _has_cuda_driver():
        return "cpu"
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


def _has_cuda_driver() -> bool:
    """Whether torch could find a CUDA device at all: asking torch itself would import it."""
    if metadata.version("torch").endswith("+cpu"):
        return False
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False


def identity(embedder: Embedder) -> dict[str, Any]:
    """What of an embedder decides its rows, for a fingerprint."""
    calibration = getattr(embedder, "calibration", "")
    return {"precision": embedder.precision, **({"calibration": calibration} if calibration else {})}


def described(embedder: Embedder) -> dict[str, Any]:
    """What an `Encoder` says of the embedder of its main tower."""
    return {
        "device": embedder.device,
        "engine": embedder.engine,
        "precision": embedder.precision,
        "calibration": getattr(embedder, "calibration", ""),
        "choice": getattr(embedder, "choice", None),
    }


def net_key(**facts: Any) -> str:
    """The `key` of a `Net` from plain values that decide its rows."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def system_lines(path: str) -> list[str]:
    """The lines of a file that the system makes; none where it does not."""
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
