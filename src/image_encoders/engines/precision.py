"""The precisions that nets are computed in: one table.

To add one, add an entry here and its engine's setting: `_DTYPES` in torch.py, `_HINTS` in openvino.py. Options, their
help and errors, and what `precision="auto"` tries, are derived from the table.
"""

from __future__ import annotations

from dataclasses import dataclass

from image_encoders.errors import DeviceError

TORCH = ("torch", "torch-compile")
OWNERS = {"openvino": "OpenVINO", "torch": "PyTorch", "torch-compile": "PyTorch"}  # in messages


@dataclass(frozen=True)
class Precision:
    """A precision.

    cpu, cuda: the engines that compute it there, in order of preference
    calibrated: whether it needs a copy of the net calibrated on images like those to be encoded
    rank: precision="auto" tries the lowest first, and never 0; the highest is float32, the reference
    instructions: whether it is fast only on CPUs with special instructions
    apart: 1 - cosine of the embeddings of one image on two machines, at most. What is computed in less than float32 may
        be 1 - closeness.CLOSEST from float32's on each, to either side
    """

    cpu: tuple[str, ...]
    cuda: tuple[str, ...]
    calibrated: bool = False
    rank: int = 0
    instructions: bool = False
    apart: float = 0.008


PRECISIONS = {
    "float32": Precision(("openvino", *TORCH), TORCH, rank=9, apart=1e-5),
    "bfloat16": Precision(("openvino", *TORCH), TORCH, rank=1, instructions=True),
    "float16": Precision((), TORCH, rank=2),
    "int8": Precision(("openvino",), (), calibrated=True),
}


CALIBRATED = tuple(name for name, one in PRECISIONS.items() if one.calibrated)
RANKED = tuple(sorted((name for name, one in PRECISIONS.items() if one.rank), key=lambda name: PRECISIONS[name].rank))


def engines_of(precision: str, device: str) -> tuple[str, ...]:
    """The engines that compute a precision on a device, in order of preference."""
    return PRECISIONS[precision].cpu if device == "cpu" else PRECISIONS[precision].cuda


def accepted(*, calibrated: bool = True) -> list[str]:
    """The accepted names, "auto" first; optionally without those that need calibration."""
    return ["auto", *(name for name, one in PRECISIONS.items() if calibrated or not one.calibrated)]


def check_computed(precision: str, device: str, engine: str) -> None:
    """Raise DeviceError where `engine`, or with "auto" every one, does not compute `precision` on `device`."""
    one, here = PRECISIONS[precision], engines_of(precision, device)
    if here and (engine == "auto" or engine in here):
        return
    others = [name for name, other in PRECISIONS.items() if engines_of(name, device) and not other.calibrated]
    if not one.cpu and not one.cuda:
        raise DeviceError(f"no engine computes precision={precision!r}; use {' or '.join(others)}")
    if device == "cpu" and not here:
        raise DeviceError(f"{precision} is not available on the CPU; use {' or '.join(others)} there")
    place, owner = ("cpu", one.cpu[0]) if one.cpu else ("cuda", one.cuda[0])
    raise DeviceError(
        f"precision={precision!r} is computed by {OWNERS[owner]} on {'the CPU' if one.cpu else 'CUDA'}; "
        f"use device={place!r} and engine='auto' with it"
    )
