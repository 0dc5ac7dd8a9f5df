"""This machine's devices and instructions."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from functools import cache
from importlib import metadata
from pathlib import Path

from image_encoders.errors import DeviceError

DEVICES = "accepted: auto, cpu, cuda, cuda:N, /CPU:0, /GPU:N, a torch.device, the number of a CUDA device"


def find_device(name: str) -> str:
    """The device as torch spells it; DeviceError if it is not available.

    name: "auto", a device's name, a `torch.device` or the number of a CUDA device
    """
    spelled = name.strip()
    tensorflow = re.fullmatch(r"/(?:device:)?(CPU|GPU|XLA_GPU):(\d+)", spelled, re.IGNORECASE)
    if tensorflow:
        kind, index = tensorflow[1].lower(), tensorflow[2]
        spelled = "cpu" if kind == "cpu" else f"cuda:{index}"
    if spelled == "cpu":
        return "cpu"
    cuda = re.fullmatch(r"(?:cuda|gpu)(?::(\d+))?|(\d+)", spelled)
    if spelled != "auto" and cuda is None:
        raise DeviceError(f"unknown device {name!r}; {DEVICES}")
    if cuda is None and not _has_cuda_driver():
        return "cpu"
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cuda is None:
        return "cuda:0" if found else "cpu"
    index = int(cuda[1] or cuda[2] or 0)
    if index >= found:
        there = f"this machine has {found} CUDA device(s)" if found else "no CUDA device is usable here"
        build = "" if torch.version.cuda else ", and this build of torch is for the CPU only"
        raise DeviceError(f"device {name!r} is not available: {there}{build}; use device='cpu' or 'auto'")
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


@cache
def device_model(device: str) -> str:
    """The product name of the processor or of a GPU."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    for line in system_lines("/proc/cpuinfo"):
        if line.startswith(("model name", "CPU part")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def wished_bfloat16() -> bool | None:
    """Whether IMAGE_ENCODERS_BFLOAT16 enables bfloat16 on this machine; None if the processor decides.

    1: by torch if the processor has no instructions for it; 0: not even if it has
    """
    wish = os.environ.get("IMAGE_ENCODERS_BFLOAT16", "")
    if wish not in ("", "0", "1"):
        raise DeviceError(f"IMAGE_ENCODERS_BFLOAT16 is {wish!r}; accepted: 1, 0, or nothing, which asks the processor")
    return wish == "1" if wish else None


def has_bfloat16_instructions() -> bool:
    """Whether the system says that the processor multiplies bfloat16."""
    flags = " ".join(system_lines("/proc/cpuinfo")).split()
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def system_lines(path: str) -> list[str]:
    """The lines of a file of the system; none if it does not exist."""
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
