"""Named tensors into a net: nothing missing, nothing left over, every shape as the net has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from image_encoders.errors import WeightsError
from image_encoders.weights.files import ALIGNMENT

if TYPE_CHECKING:
    import torch

    Net = TypeVar("Net", bound=torch.nn.Module)

SHOWN = 5  # names that a message lists before it only counts
COUNTER = "num_batches_tracked"  # batch norm counts its training steps there; torch before 0.4.1 did not


def assign(
    net: Net,
    state: Mapping[str, Any],
    path: str | Path,
    *,
    rename: Callable[[str], str | None] | None = None,
) -> Net:
    """`net` with a checkpoint's tensors as its parameters and buffers, in evaluation mode, without gradients.

    No copy is made where type and layout fit already, so build the net under `torch.device("meta")`: then
    memory holds the weights once.

    net: its own names and shapes say what is wanted; floating-point tensors become the type it has (float32 as a rule)
    state: name -> tensor or ndarray; values are taken one by one, so the mapping may read lazily
    path: the checkpoint, for messages
    rename: a name in `state` -> the name in `net`, or None to leave that tensor out

    Batch norm's `num_batches_tracked` may be missing or left over: it counts training steps, and nothing here reads it.

    Raises WeightsError with the names that are missing and those left over, or with the shapes that differ.
    """
    if not isinstance(state, Mapping):
        raise WeightsError(f"{path}: holds a {type(state).__name__}; a state_dict (names and tensors) was expected")
    wanted = net.state_dict()
    sources = _sources(state, path, rename)
    missing = [name for name in wanted if name not in sources and not name.endswith(COUNTER)]
    extra = [source for name, source in sources.items() if name not in wanted and not name.endswith(COUNTER)]
    if missing or extra:
        raise WeightsError(
            f"{path}: {listed(missing, 'missing')}; {listed(extra, 'not part of this net')}. "
            f"It has {len(sources)} tensors, the net has {len(wanted)}; is it a checkpoint of another variant?"
        )
    tensors = {name: _tensor(state[sources[name]], sources[name], path) for name in wanted if name in sources}
    wrong = [
        f"{sources[name]} is {_shown(found)}, wanted {_shown(wanted[name])}"
        for name, found in tensors.items()
        if found.shape != wanted[name].shape or found.is_floating_point() != wanted[name].is_floating_point()
    ]
    if wrong:
        raise WeightsError(f"{path}: {len(wrong)} tensors do not fit: {'; '.join(wrong[:SHOWN])}")
    for name, value in wanted.items():
        if name in tensors:
            tensors[name] = _aligned(tensors[name].to(value.dtype).contiguous())
        else:
            tensors[name] = value.new_zeros(value.shape, device="cpu")
    net.load_state_dict(tensors, strict=True, assign=True)
    return net.requires_grad_(False).eval()


def _sources(state: Iterable[Any], path: str | Path, rename: Callable[[str], str | None] | None) -> dict[str, str]:
    """The net's name -> the name in the checkpoint."""
    sources: dict[str, str] = {}
    for source in state:
        if not isinstance(source, str):
            raise WeightsError(f"{path}: its keys are of type {type(source).__name__}; str was expected")
        name = rename(source) if rename else source
        if name is None:
            continue
        if name in sources:
            raise WeightsError(f"{path}: both {sources[name]} and {source} are given for {name}; one was expected")
        sources[name] = source
    return sources


def _tensor(value: Any, name: str, path: str | Path) -> torch.Tensor:
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach()
    if not isinstance(value, (np.ndarray, np.generic)):
        raise WeightsError(f"{path}: {name} is a {type(value).__name__}; a tensor was expected")
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise WeightsError(f"{path}: {name} holds {array.dtype}; numbers were expected")
    if any(stride < 0 for stride in array.strides):  # torch has no negative strides
        array = np.ascontiguousarray(array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(array, requirements=["ALIGNED", "WRITEABLE"]))


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def listed(names: list[str], what: str) -> str:
    """How many names of what kind, and the first few of them: "7 missing (a, b, c, d, e, ...)"."""
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} {what}" + (f" ({shown})" if names else "")


def _shown(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
