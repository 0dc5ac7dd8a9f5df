"""Converted copies of nets for OpenVINO, kept in the cache.

    openvino/<key>/net.xml, net.bin   the copy, in float32 or quantised
                   about.json         the sha256 of both, what the copy is of, and what was measured of it

A copy is made by following one pass of the torch net, and is compared with it before it is used. Where a copy is there,
no engine imports torch. One that does not have the sha256 it was written with is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.cache import atomic_write, cache_folder, file_lock, require_cached, running_sha256
from image_encoders.engines.closeness import example_inputs
from image_encoders.engines.embedder import Net
from image_encoders.errors import DeviceError, ImageEncodersError, WeightsError, first_line
from image_encoders.process import Lazy, building, forked, import_openvino, openvino_uses, quiet, torch_has_computed
from image_encoders.progress import bar

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

FORMAT = 1  # of the copies; another one is another key
AGREES = 1e-3  # the most that a copy's embeddings may differ from torch's, as a part of their largest number
SPARE = 1 << 26  # bytes of the disk that stay free
XML, BIN, ABOUT = "net.xml", "net.bin", "about.json"


def core() -> openvino.Core:
    """OpenVINO at work; DeviceError in a process that was forked from one where it is."""
    refuse_forked()
    return _openvino()[0]


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 matrices that OpenVINO uses."""
    return _openvino()[1]


def _start() -> tuple[openvino.Core, bool]:
    """OpenVINO, and what it says of the processor: asked at once, since a forked process cannot ask."""
    made = import_openvino().Core()
    openvino_uses(made)
    return made, "BF16" in made.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


_openvino = Lazy(_start)


def refuse_forked() -> None:
    """DeviceError where `forked`."""
    if forked():
        raise DeviceError(
            "OpenVINO cannot be used in this process: it was forked from one that uses OpenVINO, whose threads are "
            "missing here; start processes by spawn, load only after forking, or use engine='torch' (which has no int8)"
        )


def folder_of(net: Net, calibration: str = "") -> Path:
    """Where a net's copy is kept, for these versions of all that makes it."""
    if calibration:  # which knows the versions that it was made by; the copy itself needs none of them
        name = hashlib.sha256(json.dumps([FORMAT, net.key, calibration]).encode()).hexdigest()[:32]
        return cache_folder() / "openvino" / f"{name}-int8-{calibration}"
    versions = [metadata.version(name) for name in ("image-encoders", "openvino", "torch", "transformers")]
    shape = [side if side is None else int(side) for side in net.shape]
    identity = json.dumps([FORMAT, net.key, shape, _sources(), *versions])
    return cache_folder() / "openvino" / hashlib.sha256(identity.encode()).hexdigest()[:32]


def has_copy(net: Net) -> bool:
    """Whether the cache holds a copy of the net, damaged perhaps."""
    return net.traceable and (folder_of(net) / ABOUT).is_file()


@cache
def _sources() -> str:
    """A digest of the nets' own code: a copy of another version's net is another copy."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].joinpath("nets").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read(net: Net, folder: Path, calibration: str) -> openvino.Model:
    """The copy in `folder`; made again where it is damaged."""
    damage = _damage(folder)
    if damage is None:
        return core().read_model(folder / XML)
    if calibration:
        raise WeightsError(
            f"{folder}: the calibrated copy is damaged ({damage}); delete it, calibrate again, "
            "and encode into a new collection"
        )
    logger.warning("%s: the converted copy is made again: %s", folder, damage)
    return copied(net, folder)


def _damage(folder: Path) -> str | None:
    """What is wrong with the copy in `folder`; None where it is as it was written, and can be read."""
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        for name in (XML, BIN):
            if running_sha256(folder / name).hexdigest() != about[name]:
                return f"{name} is not as it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None


def copied(net: Net, folder: Path) -> openvino.Model:
    """A new copy of the net, kept in `folder` where that can be written."""
    require_cached(f"the converted copy of {net.name}")
    model = None
    try:
        with file_lock(lock_path(folder)):
            if _damage(folder) is not None:  # else another process has made it meanwhile
                model = converted(net)
                write(model, folder, net.name)
            return core().read_model(folder / XML)
    except OSError as error:
        logger.warning(
            "%s: no converted copy can be kept, so every start converts again: %s; "
            "make room, or set IMAGE_ENCODERS_CACHE",
            folder,
            error.strerror or error,
        )
        return converted(net) if model is None else model


def lock_path(folder: Path) -> Path:
    """What is locked while the copy in `folder` is made."""
    return folder.with_name(f"{folder.name}.lock")


def write(model: openvino.Model, folder: Path, name: str, **about: Any) -> None:
    """The model's files, and last what vouches for them and what else is to be known."""
    shutil.rmtree(folder, ignore_errors=True)  # what other processes have mapped stays theirs
    folder.mkdir(parents=True, exist_ok=True)
    need = sum(op.get_byte_size() for op in model.get_ops() if op.get_type_name() == "Constant")
    free = shutil.disk_usage(folder).free
    if free < need + SPARE:
        shutil.rmtree(folder, ignore_errors=True)
        raise OSError(28, f"{need >> 20} MB are needed, {free >> 20} MB are free")
    try:
        import_openvino().save_model(model, folder / XML, compress_to_fp16=False)
        about["net"] = name
        for file in (XML, BIN):
            about[file] = running_sha256(folder / file).hexdigest()
        with atomic_write(folder / ABOUT) as part:
            part.write_text(json.dumps(about, indent=2), "utf-8")
    except RuntimeError as error:  # what OpenVINO raises for a full disk
        shutil.rmtree(folder, ignore_errors=True)
        raise OSError(5, first_line(error)) from error


def converted(net: Net) -> openvino.Model:
    """The net as an OpenVINO model, which gives torch's embeddings; DeviceError where none can be made."""
    with building, said(f"converting {net.name} for OpenVINO, once"):
        import torch

        torch_has_computed.set()
        module = net.build().eval()
        examples = _examples(net)
        try:
            with torch.inference_mode(), quiet():
                model = _traced(module, examples[0], net.shape)
                found, wanted = [], []
                request = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
                for batch in examples:
                    found.append(np.array(next(iter(request.infer({0: batch}).values()))))
                    wanted.append(module(torch.from_numpy(batch)).float().numpy())
        except ImageEncodersError:
            raise
        except Exception as error:
            raise DeviceError(f"OpenVINO cannot run {net.name}: {first_line(error)}; use engine='torch'") from error
    for ours, theirs in zip(found, wanted):
        if ours.shape != theirs.shape or not np.abs(ours - theirs).max() <= AGREES * np.abs(theirs).max():
            raise DeviceError(f"OpenVINO's copy of {net.name} gives other embeddings than torch; use engine='torch'")
    return model


def _traced(module: Any, example: np.ndarray, shape: Sequence[int | None]) -> openvino.Model:
    """The module as an OpenVINO model, of any batch size."""
    openvino = import_openvino()
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    tensor = torch.from_numpy(example)
    module(tensor)  # nets that learn something from their first pass have learnt it
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(module, example_input=(tensor,))  # has to outlive the frontend's model
    model = frontend.convert(frontend.load(decoder))
    entry = model.inputs[0]
    entry.get_node().set_element_type(openvino.Type(example.dtype))
    entry.get_node().set_partial_shape(openvino.PartialShape([-1, *(-1 if side is None else side for side in shape)]))
    model.validate_nodes_and_infer_types()
    return model


def _examples(net: Net) -> list[np.ndarray]:
    """Batches of two sizes, as the tower prepares them, and of another shape where any goes."""
    inputs = example_inputs(net, 3)
    whole, cut = slice(None), iter((0.5, 0.75))
    part = tuple(
        whole if side else slice(int(length * next(cut)) + 1) for side, length in zip(net.shape, inputs[0].shape)
    )
    return [np.stack(inputs[:2]), np.ascontiguousarray(np.stack(inputs)[(whole, *part)])]


@contextmanager
def said(what: str) -> Iterator[None]:
    """Something slow, for the log and on a terminal."""
    logger.info("%s", what)
    with bar(what):
        yield
