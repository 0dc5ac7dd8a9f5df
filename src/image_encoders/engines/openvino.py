"""Nets run by OpenVINO on the CPU, from converted copies."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.engines.copies import (
    ABOUT,
    converted,
    copied,
    core,
    folder_of,
    multiplies_bfloat16,
    read,
    refuse_forked,
)
from image_encoders.engines.embedder import Embedder, Net
from image_encoders.engines.int8 import calibrated, verdict
from image_encoders.engines.machine import wished_bfloat16
from image_encoders.engines.precision import CALIBRATED, PRECISIONS
from image_encoders.errors import DeviceError, ImageEncodersError
from image_encoders.process import Lazy, cores, forked, openvino_uses

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

PIECE = 4  # inputs that are worth a request of their own
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}  # int8's own layers say what they are
ALONE = 8  # calls with fewer than that, one after the other, after which more of them are expected


class OpenVinoEmbedder:
    """A net on the CPU: inputs (B, ...) -> embeddings (B, dim) float32.

    Inputs of another type or shape than images are prepared to, such as prepared floats, go through torch in the same
    precision; beside one that torch has not, such as int8, in float32.

    calibration: digest of the images that it was calibrated on; else ""
    """

    device = "cpu"
    engine = "openvino"

    def __init__(self, net: Net, precision: str, calibration: Sequence[Any] | str | None = None):
        self.precision = precision
        self.calibration = calibrated(net, calibration) if precision in CALIBRATED else ""
        self.choice = verdict(net, folder_of(net, self.calibration)) if self.calibration else None
        self._net = net
        self._torch_has_it = "torch" in PRECISIONS[precision].cpu
        self._torch = Lazy(self._by_torch)
        folder = folder_of(net, self.calibration)
        self._opened: Future[_Compiled] = Future()
        self._process = 0 if forked() else os.getpid()  # the one that has OpenVINO's threads
        if not self._process:
            return  # torch runs it
        if not net.traceable and not self.calibration:  # its Python may change, so that no copy can be kept
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
                "%s: torch runs it: this process was forked, and OpenVINO's threads are missing in it", self._net.name
            )
        return TorchEmbedder(self._net.build(), "cpu", self.precision if self._torch_has_it else "float32")


class _Compiled:
    """A model ready to run, with as many requests as can run at once.

    count: of requests that run at once, each on a stream of its own

    Several streams of few threads embed the most inputs a second. One input alone has the threads of one stream, so
    after some that came alone a second compilation gives them all threads.
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
        """The model on one stream; itself where there is no room for a second one."""
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


def has_bfloat16() -> bool:
    """Whether OpenVINO computes bfloat16 here: where the processor has instructions for it, unless they are hidden."""
    return wished_bfloat16() is not False and multiplies_bfloat16()


def _threads() -> int:
    """How many threads nets may use: as many as OMP_NUM_THREADS says, as for torch, or as there are cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(asked), cores()) if asked.isdecimal() and int(asked) > 0 else cores()
