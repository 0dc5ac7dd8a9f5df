"""Nets run by OpenVINO on the CPU, from a converted copy that is kept in the cache.

    openvino/<key>/net.xml, net.bin   the copy, in float32 or quantised
                   about.json         the sha256 of both, and what the copy is of

A copy is made by following one pass of the torch net, and is compared with it before it is used. Where a copy is there,
torch is never imported. One that does not have the sha256 it was written with is made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import queue
import shutil
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.cache import cache_folder, running_sha256, whole
from image_encoders.encoder import cores
from image_encoders.engines import Net
from image_encoders.engines.precision import Choice, Closeness, closeness, example_inputs
from image_encoders.errors import DeviceError, ImageEncodersError, InputError, MissingExtra, WeightsError

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

FORMAT = 1  # of the copies; another one is another key
AGREES = 1e-3  # the most that rows of a copy may differ from torch's, in units of the largest number of a row
PIECE = 8  # inputs that are worth a request of their own
FEWEST, MOST = 16, 300  # pictures that int8 is calibrated on
JUDGED = 48  # of them its rows are compared on
POOR = 0.95  # least centred cosine of int8's rows below which it is warned of
XML, BIN, ABOUT = "net.xml", "net.bin", "about.json"


class OpenVinoEmbedder:
    """A net on the CPU: inputs (B, ...) -> rows (B, dim) float32.

    Inputs of another type or shape than pictures are prepared to, such as prepared floats, go through torch in float32.

    calibration: digest of the pictures that int8 was calibrated on; else ""
    """

    device = "cpu"
    engine = "openvino"

    def __init__(self, net: Net, precision: str, calibration: Sequence[Any] | str | None = None):
        self.precision = precision
        self.calibration = _calibrated(net, calibration) if precision == "int8" else ""
        self.choice = _verdict(net, _folder(net, self.calibration)) if self.calibration else None
        self._net = net
        self._lock = threading.Lock()
        self._torch: Any = None
        folder = _folder(net, self.calibration)
        self._opened: Future[_Compiled] = Future()
        if (folder / ABOUT).is_file():  # meanwhile the caller can read its first pictures
            threading.Thread(target=self._open, args=(folder,), name="openvino", daemon=True).start()
        else:
            self._opened.set_result(_Compiled(_copy(net, folder), precision))

    def _open(self, folder: Path) -> None:
        try:
            self._opened.set_result(_Compiled(_read(self._net, folder, self.calibration), self.precision))
        except BaseException as error:
            self._opened.set_exception(error)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        compiled = self._opened.result()
        if compiled.takes(inputs):
            return compiled(np.ascontiguousarray(inputs))
        with self._lock:
            if self._torch is None:
                from image_encoders.engines.torch import TorchEmbedder

                self._torch = TorchEmbedder(self._net.build(), "cpu", "float32")
        return self._torch(inputs)


class _Compiled:
    """A model ready to run, with as many requests as can run at once."""

    def __init__(self, model: openvino.Model, precision: str):
        threads = _threads()
        compiled = _core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": threads if threads <= 4 else threads // 4,
                "ENABLE_CPU_PINNING": False,  # every process would pin itself to the same cores
            },
        )
        count = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._count = count
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(compiled.create_infer_request())
        entry = compiled.input(0)
        self._type = np.dtype(entry.get_element_type().to_dtype())
        self._shape = [None if side.is_dynamic else side.get_length() for side in entry.get_partial_shape()]

    def takes(self, inputs: np.ndarray) -> bool:
        """Whether the copy was made for such inputs."""
        return (
            inputs.dtype == self._type
            and inputs.ndim == len(self._shape)
            and all(wanted is None or wanted == found for wanted, found in zip(self._shape, inputs.shape))
        )

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        wanted = min(self._count, -(-len(inputs) // PIECE))
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
    for request, piece in zip(requests, pieces):
        request.start_async({0: piece}, share_inputs=True)
    failure = None
    for request in requests:
        try:
            request.wait()
        except RuntimeError as error:  # the others are waited for all the same: they still read their inputs
            failure = error
    if failure is not None:
        raise failure
    for request in requests:
        yield np.array(request.get_output_tensor(0).data, np.float32)


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware, as far as OpenVINO uses it."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _threads() -> int:
    """How many threads nets may use: as many as OMP_NUM_THREADS says, as for torch, or as there are cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(asked), cores()) if asked.isdecimal() and int(asked) > 0 else cores()


@cache
def _core() -> openvino.Core:
    import openvino

    return openvino.Core()


# ---------------------------------------------------------------- copies


def _folder(net: Net, calibration: str = "") -> Path:
    """Where a net's copy is kept, for these versions of all that makes it."""
    versions = [metadata.version(name) for name in ("image-encoders", "openvino", "torch", "transformers")]
    shape = [side if side is None else int(side) for side in net.shape]
    identity = json.dumps([FORMAT, net.key, shape, _sources(), *versions])
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return cache_folder() / "openvino" / (f"{name}-int8-{calibration}" if calibration else name)


@cache
def _sources() -> str:
    """A digest of the nets' own code: a copy of another version's net is another copy."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].joinpath("nets").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(net: Net, folder: Path, calibration: str) -> openvino.Model:
    """The copy in `folder`; made again where it is damaged."""
    try:
        _check(folder)
        return _core().read_model(folder / XML)
    except (OSError, ValueError, RuntimeError) as error:
        if calibration:
            raise WeightsError(
                f"{folder}: the calibrated copy is damaged ({error}); delete it, calibrate again, "
                "and encode into a new collection"
            ) from error
        logger.warning("%s: the converted copy is made again: %s", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return _copy(net, folder)


def _check(folder: Path) -> None:
    """ValueError or OSError unless the files are as they were written."""
    about = json.loads((folder / ABOUT).read_text("utf-8"))
    for name in (XML, BIN):
        if running_sha256(folder / name).hexdigest() != about[name]:
            raise ValueError(f"{name} is not as it was written")


def _copy(net: Net, folder: Path) -> openvino.Model:
    """A new copy of the net, kept in `folder` where that can be written."""
    if not net.traceable:
        logger.info("%s: a copy follows the pass of one example", net.name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        with lock:
            if (folder / ABOUT).is_file():  # another process has made it meanwhile
                return _read(net, folder, "")
            model = _converted(net)
            _write(model, folder, net.name)
        return _core().read_model(folder / XML)
    except OSError as error:
        logger.warning(
            "%s: no converted copy can be kept, so every start converts again: %s", folder, error.strerror or error
        )
        return _converted(net)


def _lock(folder: Path) -> Any:
    from filelock import FileLock

    return FileLock(folder.with_suffix(".lock"))


def _write(model: openvino.Model, folder: Path, name: str, **about: Any) -> None:
    """The model's files, and last what vouches for them and what else is to be known."""
    import openvino

    folder.mkdir(parents=True, exist_ok=True)
    need = sum(op.get_byte_size() for op in model.get_ops() if op.get_type_name() == "Constant")
    free = shutil.disk_usage(folder).free
    if free < need + (64 << 20):
        raise OSError(28, f"{need >> 20} MB are needed, {free >> 20} MB are free")
    try:
        openvino.save_model(model, folder / XML, compress_to_fp16=False)
        about["net"] = name
        for file in (XML, BIN):
            about[file] = running_sha256(folder / file).hexdigest()
        with whole(folder / ABOUT) as part:
            part.write_text(json.dumps(about, indent=2), "utf-8")
    except RuntimeError as error:  # a full disk, as OpenVINO tells it
        shutil.rmtree(folder, ignore_errors=True)
        raise OSError(5, str(error).strip().splitlines()[0]) from error


def _converted(net: Net) -> openvino.Model:
    """The net as an OpenVINO model, which gives torch's rows; DeviceError where it cannot be had."""
    with _said(f"converting {net.name} for OpenVINO, once"):
        import torch

        module = net.build().eval()
        examples = _examples(net)
        try:
            with torch.inference_mode(), _silent():
                model = _traced(module, examples[0], net.shape)
                found, wanted = [], []
                request = (
                    _core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
                )
                for batch in examples:
                    found.append(np.array(next(iter(request.infer({0: batch}).values()))))
                    wanted.append(module(torch.from_numpy(batch)).float().numpy())
        except ImageEncodersError:
            raise
        except Exception as error:
            raise DeviceError(f"OpenVINO cannot run {net.name}: {_first_line(error)}; use engine='torch'") from error
    for ours, theirs in zip(found, wanted):
        if ours.shape != theirs.shape or not np.abs(ours - theirs).max() <= AGREES * np.abs(theirs).max():
            raise DeviceError(f"OpenVINO's copy of {net.name} gives other rows than torch; use engine='torch'")
    return model


def _traced(module: Any, example: np.ndarray, shape: Sequence[int | None]) -> openvino.Model:
    """The module as an OpenVINO model, of any batch size."""
    import openvino
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
def _silent() -> Iterator[None]:
    """What tracing warns of, every copy is tested for; so is what transformers remarks."""
    transformers = logging.getLogger("transformers")
    level = transformers.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            transformers.setLevel(level)


@contextmanager
def _said(what: str) -> Iterator[None]:
    """A line on a terminal while something slow is done."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        logger.info("%s", what)
        yield
        return
    with console.status(what):
        yield


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# ---------------------------------------------------------------- int8


def _calibrated(net: Net, calibration: Sequence[Any] | str | None) -> str:
    """The digest of the calibration whose copy of the net is in the cache, made if need be.

    calibration: pictures, or the digest of an earlier calibration
    """
    if isinstance(calibration, str):
        if not (_folder(net, calibration) / ABOUT).is_file():
            raise WeightsError(
                f"the copy of {net.name} that was calibrated as {calibration} is not in the cache any more; "
                "calibrate again, and encode into a new collection"
            )
        return calibration
    inputs = []
    for source in _spread(calibration or (), MOST):
        try:
            inputs.append(net.prepare(source))
        except InputError as error:
            logger.info("not used for the calibration: %s", error)
    if len(inputs) < FEWEST:
        raise InputError(
            f"{len(inputs)} pictures to calibrate int8 on; give at least {FEWEST} that can be read, better {MOST}",
            code="calibration",
        )
    digest = hashlib.sha256(b"".join(hashlib.sha256(one.tobytes()).digest() for one in inputs)).hexdigest()[:16]
    folder = _folder(net, digest)
    if not (folder / ABOUT).is_file():
        plain = _folder(net)
        model = _read(net, plain, "") if (plain / ABOUT).is_file() else _copy(net, plain)
        try:
            with _said(f"calibrating {net.name} on {len(inputs)} pictures, once"):
                quantized = _quantized(model, inputs)
                near = _nearness(quantized, model, _spread(inputs, JUDGED))
                _write(quantized, folder, net.name, closeness=asdict(near))
        except OSError as error:
            raise WeightsError(f"{folder}: the calibrated copy cannot be kept: {error.strerror or error}") from error
    return digest


def _nearness(quantized: openvino.Model, model: openvino.Model, inputs: Sequence[np.ndarray]) -> Closeness:
    """How near the quantised model's rows are to the model's own."""
    rows = []
    for one in (quantized, model):
        request = _core().compile_model(one, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
        rows.append(np.concatenate([next(iter(request.infer({0: single[None]}).values())).copy() for single in inputs]))
    return closeness(*rows)


def _verdict(net: Net, folder: Path) -> Choice | None:
    """What was measured when int8 was calibrated; a warning where it costs much."""
    try:
        near = Closeness(**json.loads((folder / ABOUT).read_text("utf-8"))["closeness"])
    except (OSError, ValueError, KeyError, TypeError):  # damaged: reading the copy will tell
        return None
    if near.centred < POOR:
        logger.warning(
            "%s: int8 changes its rows much: least centred cosine to float32 %.2f, nearest neighbours %.0f %% "
            "the same; precision='auto' keeps them",
            net.name,
            near.centred,
            100 * near.neighbours,
        )
    return Choice("openvino", "int8", near)


def _quantized(model: openvino.Model, inputs: Sequence[np.ndarray]) -> openvino.Model:
    try:
        os.environ.setdefault("NNCF_CI", "1")  # else it reports to its makers
        import nncf
        from nncf.quantization.advanced_parameters import OverflowFix
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    except ImportError as error:
        raise MissingExtra("nncf", "int8", "precision='int8'") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    attention = any(op.get_type_name() in ("ScaledDotProductAttention", "Softmax") for op in model.get_ops())
    with _silent(), redirect_stdout(io.StringIO()):  # bars of its own, where results go
        return nncf.quantize(
            model,
            nncf.Dataset([one[None] for one in inputs]),
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.PERFORMANCE if attention else nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if attention else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # by default a range is the mean of the pictures' extremes, and clips every second picture
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                # without such instructions sums of products overflow 16 bits, unless weights take half of their range
                overflow_fix=OverflowFix.DISABLE if _sums_int8() else OverflowFix.ENABLE,
            ),
        )


def _sums_int8() -> bool:
    """Whether the processor sums products of 8-bit numbers in 32 bits (VNNI, AMX, Arm's dot products)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(errors="replace").split()
    except OSError:
        return False
    return not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}.isdisjoint(flags)


def _spread(sources: Sequence[Any], count: int) -> Sequence[Any]:
    """At most `count` of them, from everywhere."""
    if len(sources) <= count:
        return sources
    return [sources[i * len(sources) // count] for i in range(count)]
