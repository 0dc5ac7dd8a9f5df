"""Nets run by OpenVINO on the CPU, from converted copies that are kept in the cache.

    openvino/<key>/net.xml, net.bin   the copy, in float32 or quantised
                   about.json         the sha256 of both, what the copy is of, and what was measured of it

A copy is traced from one pass of the torch net, and compared with it before it is used. If there is a copy, no engine
imports torch. A copy whose sha256 has changed is replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.cache import atomic_write, cache_folder, file_lock, require_cached, running_sha256
from image_encoders.engines.closeness import example_inputs
from image_encoders.engines.embedder import Choice, Embedder, Net
from image_encoders.engines.machine import wished_bfloat16
from image_encoders.engines.precision import PRECISIONS
from image_encoders.errors import DeviceError, ImageEncodersError, WeightsError, first_line
from image_encoders.process import (
    Lazy,
    building,
    cores,
    forked,
    import_openvino,
    openvino_uses,
    quiet,
    torch_has_computed,
)
from image_encoders.progress import bar

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

FORMAT = 1  # of the copies; another one is another key
AGREES = 1e-3  # the most that a copy's embeddings may differ from torch's, as a part of their largest number
SPARE = 1 << 26  # bytes of the disk that stay free
XML, BIN, ABOUT = "net.xml", "net.bin", "about.json"
PIECE = 4  # inputs that are worth a request of their own
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # int8's own layers say what they are
ALONE = 8  # calls with fewer than that, one after the other, after which more of them are expected


class OpenVinoEmbedder:
    """A net on the CPU: inputs (B, ...) -> embeddings (B, dim) float32.

    Inputs of another type or shape than preprocessed images, such as prepared floats, go through torch in the same
    precision, or in float32 if torch does not have it, such as int8.

    calibration: digest of the images that it was calibrated on; else ""
    """

    device = "cpu"
    engine = "openvino"

    def __init__(self, net: Net, precision: str, calibration: str = ""):
        self.precision = precision
        self.calibration = calibration
        self.choice: Choice | None = None
        self._net = net
        self._torch_has_it = "torch" in PRECISIONS[precision].cpu
        self._torch = Lazy(self._by_torch)
        folder = folder_of(net, calibration)
        self._opened: Future[_Compiled] = Future()
        self._process = 0 if forked() else os.getpid()  # the one that has OpenVINO's threads
        if not self._process:
            return  # torch runs it
        if not net.traceable and not calibration:  # its Python may change, so that no copy can be kept
            self._opened.set_result(_Compiled(converted(net), precision))
        elif (folder / ABOUT).is_file():  # meanwhile the caller can read its first images
            openvino_uses(self)  # also should the process fork before OpenVINO has started
            threading.Thread(target=self._open, args=(folder,), name="openvino").start()
        else:
            self._opened.set_result(_Compiled(copied(net, folder), precision))

    def _open(self, folder: Path) -> None:
        try:
            self._opened.set_result(_Compiled(read(self._net, folder, self.calibration), self.precision))
        except ImageEncodersError as error:
            self._opened.set_exception(error)
        except BaseException as error:
            failure = DeviceError(f"OpenVINO cannot start {self._net.name}: {error}; use engine='torch'")
            failure.__cause__ = error
            self._opened.set_exception(failure)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        if os.getpid() != self._process:
            if not self._torch_has_it:
                refuse_forked()  # torch has no such copy
        elif (compiled := self._opened.result()).takes(inputs):
            return compiled(np.ascontiguousarray(inputs))
        return self._torch()(inputs)

    @property
    def streams(self) -> int:
        return self._opened.result().count if os.getpid() == self._process else 1

    def _by_torch(self) -> Embedder:
        from image_encoders.engines.torch import TorchEmbedder

        if forked():
            logger.warning(
                "%s: using torch, as this process was forked and has none of OpenVINO's threads", self._net.name
            )
        return TorchEmbedder(self._net.build(), "cpu", self.precision if self._torch_has_it else "float32")


class _Compiled:
    """A model ready to run, with as many requests as can run at once.

    count: of requests that run at once, each on its own stream

    Several streams of few threads have the highest throughput. A single input has the threads of one stream, so after
    some single inputs a second compilation gives them all threads.
    """

    def __init__(self, model: openvino.Model, precision: str, streams: int | None = None):
        threads = _threads()
        compiled = core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _HINTS[precision],
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": streams or (threads if threads <= 4 else threads // 4),
                "ENABLE_CPU_PINNING": False,  # every process would pin itself to the same cores
            },
        )
        self._model, self._precision = model, precision
        self.count = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.count):
            self._idle.put(compiled.create_infer_request())
        entry = compiled.input(0)
        self._type = np.dtype(entry.get_element_type().to_dtype())
        self._shape = [None if side.is_dynamic else side.get_length() for side in entry.get_partial_shape()]
        self._came_alone = 0
        self._on_all_threads: _Compiled | None = None
        self._alone = threading.Lock()
        openvino_uses(self)

    def takes(self, inputs: np.ndarray) -> bool:
        """Whether the copy was made for such inputs."""
        return (
            inputs.dtype == self._type
            and inputs.ndim == len(self._shape)
            and all(wanted is None or wanted == found for wanted, found in zip(self._shape, inputs.shape))
        )

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        wanted = min(self.count, -(-len(inputs) // PIECE))
        undisturbed = len(inputs) < PIECE and 1 < self.count == self._idle.qsize() and not self._alone.locked()
        self._came_alone = self._came_alone + 1 if undisturbed else 0
        if self._came_alone > ALONE and self._alone.acquire(blocking=False):
            try:
                if self._on_all_threads is None:
                    self._on_all_threads = self._compiled_again()
                if self._on_all_threads is not self:
                    return self._on_all_threads(inputs)
            finally:
                self._alone.release()
        return self._on_streams(inputs, wanted)

    def _compiled_again(self) -> _Compiled:
        """The model on one stream; itself if there is no memory for a second one."""
        try:
            return _Compiled(self._model, self._precision, 1)
        except (MemoryError, RuntimeError) as error:
            logger.warning("single images keep to the threads of one stream: %s", error)
            return self

    def _on_streams(self, inputs: np.ndarray, wanted: int) -> np.ndarray:
        requests = [self._idle.get()]
        try:
            while len(requests) < wanted:  # never waiting while holding one: callers would wait for each other
                requests.append(self._idle.get_nowait())
        except queue.Empty:
            pass
        try:
            return np.concatenate(list(_rows(requests, np.array_split(inputs, len(requests)))))
        finally:
            for request in requests:
                self._idle.put(request)


def _rows(requests: Sequence[Any], pieces: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    started, failure = [], None
    try:
        for request, piece in zip(requests, pieces):
            request.start_async({0: piece}, share_inputs=True)
            started.append(request)
    finally:
        for request in started:  # whatever happens: they still read their inputs
            try:
                request.wait()
            except RuntimeError as error:
                failure = error
    if failure is not None:
        raise failure
    for request in requests:
        yield np.array(request.get_output_tensor(0).data, np.float32)


def _threads() -> int:
    """How many threads nets may use: OMP_NUM_THREADS, as for torch, or one per core."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(asked), cores()) if asked.isdecimal() and int(asked) > 0 else cores()


# ---------------------------------------------------------------- OpenVINO itself


def core() -> openvino.Core:
    """OpenVINO, started; DeviceError in a process forked from one that uses it."""
    refuse_forked()
    return _openvino()[0]


def _start() -> tuple[openvino.Core, bool]:
    """OpenVINO, and what it reports about the processor: queried at once, since a forked process cannot."""
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


def has_bfloat16() -> bool:
    """Whether OpenVINO computes bfloat16 here: if the processor has instructions for it, unless they are hidden."""
    return wished_bfloat16() is not False and multiplies_bfloat16()


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 matrices that OpenVINO uses."""
    return _openvino()[1]


# ---------------------------------------------------------------- copies


def folder_of(net: Net, calibration: str = "") -> Path:
    """Where a net's copy is kept, for the current versions of everything involved."""
    if calibration:  # which knows the versions that it was made by; the copy itself needs none of them
        name = hashlib.sha256(json.dumps([FORMAT, net.key, calibration]).encode()).hexdigest()[:32]
        return cache_folder() / "openvino" / f"{name}-int8-{calibration}"
    versions = [metadata.version(name) for name in ("image-encoders", "openvino", "torch", "transformers")]
    shape = [side if side is None else int(side) for side in net.shape]
    identity = json.dumps([FORMAT, net.key, shape, _sources(), *versions])
    return cache_folder() / "openvino" / hashlib.sha256(identity.encode()).hexdigest()[:32]


def has_copy(net: Net) -> bool:
    """Whether the cache holds a copy of the net, even a damaged one."""
    return net.traceable and (folder_of(net) / ABOUT).is_file()


@cache
def _sources() -> str:
    """A digest of the nets' own code, so that copies of other versions are not used."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].joinpath("nets").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read(net: Net, folder: Path, calibration: str) -> openvino.Model:
    """The copy in `folder`; replaced if it is damaged."""
    damage = _damage(folder)
    if damage is None:
        return core().read_model(folder / XML)
    if calibration:
        raise WeightsError(
            f"{folder}: the calibrated copy is damaged ({damage}); delete it, calibrate again, "
            "and encode into a new collection"
        )
    logger.warning("%s: converting the model again: %s", folder, damage)
    return copied(net, folder)


def _damage(folder: Path) -> str | None:
    """What is wrong with the copy in `folder`; None if it is unchanged and readable."""
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        for name in (XML, BIN):
            if running_sha256(folder / name).hexdigest() != about[name]:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None


def copied(net: Net, folder: Path) -> openvino.Model:
    """A new copy of the net, stored in `folder` if that is writable."""
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
            "%s: the converted copy cannot be stored, so every start converts again: %s; "
            "free some space, or set IMAGE_ENCODERS_CACHE",
            folder,
            error.strerror or error,
        )
        return converted(net) if model is None else model


def lock_path(folder: Path) -> Path:
    """The lock file for creating the copy in `folder`."""
    return folder.with_name(f"{folder.name}.lock")


def write(model: openvino.Model, folder: Path, name: str, **about: Any) -> None:
    """Write the model's files, and last their digests and other facts."""
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
    """The net as an OpenVINO model, which gives torch's embeddings; DeviceError if it cannot be converted."""
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
            raise DeviceError(
                f"OpenVINO's copy of {net.name} gives different embeddings from torch's; use engine='torch'"
            )
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
    """Batches of two sizes, as the tower prepares them, and of another shape if any is accepted."""
    inputs = example_inputs(net, 3)
    whole, cut = slice(None), iter((0.5, 0.75))
    part = tuple(
        whole if side else slice(int(length * next(cut)) + 1) for side, length in zip(net.shape, inputs[0].shape)
    )
    return [np.stack(inputs[:2]), np.ascontiguousarray(np.stack(inputs)[(whole, *part)])]


@contextmanager
def said(what: str) -> Iterator[None]:
    """Report something slow in the log and on a terminal."""
    logger.info("%s", what)
    with bar(what):
        yield
