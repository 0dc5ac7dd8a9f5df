"""From a request (device, precision, engine) to what runs a net: `select_embedder`.

`precision="auto"` is the fastest way to run a net on this machine whose embeddings stay close. Each way embeds a few
drawn images, and so does float32. It is accepted if every centred cosine between the two is at least `CLOSEST`. The
verdict is cached, with the net's key, the machine and the versions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from image_encoders.cache import NotCached, atomic_write, cache_folder, only_cached, require_cached
from image_encoders.child import ChildDied, Unsendable
from image_encoders.engines.closeness import CLOSEST, PATIENCE_S, closeness, embed_probes, example_inputs
from image_encoders.engines.embedder import Choice, Closeness, Embedder, Net
from image_encoders.engines.machine import device_model, find_device, has_bfloat16_instructions, wished_bfloat16
from image_encoders.engines.precision import CALIBRATED, PRECISIONS, RANKED, accepted, check_computed, engines_of
from image_encoders.errors import DeviceError, InputError, first_line
from image_encoders.process import Lazy, forked

logger = logging.getLogger(__name__)

ENGINES = ("auto", "torch", "torch-compile", "openvino")

Way = tuple[str, str]  # engine, precision


@dataclass(frozen=True)
class Runtime:
    """A request: where and how nets run.

    device: "cpu", "cuda" or "cuda:1"
    calibration: images for int8: sources, or the digest of earlier ones
    convert_apart: modality -> the engine that was selected there; selects an embedder in another process, so that what
        this one needs is in the cache. Raises ChildDied, Unsendable. None: what has to be made is made here.
    """

    device: str = "cpu"
    precision: str = "auto"
    engine: str = "auto"
    calibration: Sequence[Any] | str | None = None
    convert_apart: Callable[[str], str] | None = field(default=None, compare=False)

    @classmethod
    def resolve(
        cls,
        device: str = "auto",
        precision: str = "auto",
        engine: str = "auto",
        calibration: Sequence[Any] | str | None = None,
        convert_apart: Callable[[str], str] | None = None,
    ) -> Runtime:
        """The runtime for a caller's options; DeviceError if this machine or build does not support it.

        device: "auto" | "cpu" | "cuda" | "cuda:1"; TensorFlow's "/CPU:0", "/GPU:1" mean the same
        convert_apart: used where something may have to be converted, and a process can be started for it
        """
        if precision != "auto" and precision not in PRECISIONS:
            raise DeviceError(f"unknown precision {precision!r}; accepted: {', '.join(accepted())}")
        if engine not in ENGINES:
            raise DeviceError(f"unknown engine {engine!r}; accepted: {', '.join(ENGINES)}")
        if engine == "openvino" or (precision != "auto" and not PRECISIONS[precision].cuda):
            device = "cpu" if device == "auto" else device
        device = find_device(device)
        _check_combination(device, precision, engine)
        if (precision in CALIBRATED) != (calibration is not None):
            raise InputError(
                f"{precision=} needs calibration=, a folder of your own images"
                if calibration is None
                else f"calibration= is for precision={' or '.join(map(repr, CALIBRATED))}, not for {precision!r}",
                code="calibration",
            )
        apart = device == "cpu" and engine in ("auto", "openvino") and _may_start_processes()
        return cls(device, precision, engine, calibration, convert_apart if apart else None)


PLAIN = Runtime(precision="float32", engine="torch")  # the original's digits, on the CPU


class LazyEmbedder:
    """An embedder that is selected at its first batch."""

    def __init__(self, select: Callable[[], Embedder]):
        self.selected = Lazy(select)

    @property
    def streams(self) -> int:
        return self.selected().streams

    def __call__(self, inputs: np.ndarray, /) -> np.ndarray:
        return self.selected()(inputs)


def select_embedders(runtime: Runtime, nets: Sequence[Net]) -> tuple[Embedder, list[LazyEmbedder]]:
    """The embedder of a model's main net, which is ready, and those of the others."""
    main, *others = nets
    return select_embedder(runtime, main), [_select_later(runtime, net) for net in others]


def select_embedder(runtime: Runtime, net: Net) -> Embedder:
    """`net` ready to embed batches, by the requested engine and precision, or the best ones here.

    Raises DeviceError where that is not available.
    """
    if _fastest(runtime, net) == "openvino":
        from image_encoders.engines.openvino import has_copy

        if not has_copy(net):  # before anything of OpenVINO runs in this process
            require_cached(f"the converted copy of {net.name}")
    offered = ways(runtime, net)
    if len(offered) == 1:
        embedder = _build_or_torch(runtime, net, offered[0])
        if runtime.precision in ("auto", "float32") and runtime.engine == "auto":
            embedder.choice = Choice(embedder.engine, embedder.precision)
        return embedder
    path = cache_folder() / "choices" / f"{_identity(net, runtime.device, offered)}.json"
    known = _read_verdict(path)
    if known is not None:
        embedder = _build(runtime, net, (known.engine, known.precision))
    else:
        if any(engine == "openvino" for engine, _ in offered):
            require_cached(f"what suits {net.name}")
        embedder, known, sure = _judge(runtime, net, offered)
        if sure:
            _keep_verdict(path, known)
    embedder.choice = known
    return embedder


def _select_later(runtime: Runtime, net: Net) -> LazyEmbedder:
    """The embedder of a tower beside the main one, selected when its first batch comes.

    In float32, unless a precision was requested: there are few texts and sounds. By torch if the net cannot be
    converted; its first batch raises DeviceError if another engine was requested.
    """
    precision = "float32" if runtime.precision in ("auto", *CALIBRATED) else runtime.precision
    side = replace(runtime, precision=precision, calibration=None)

    def select() -> Embedder:
        if runtime.engine == "openvino" and not net.traceable:
            raise DeviceError(
                f"{net.name}: OpenVINO cannot run it, since its computation depends on the content of the batch; "
                "with engine='auto' it runs in torch, and images run in OpenVINO"
            )
        try:
            with only_cached(side.convert_apart is not None):
                return select_embedder(side, net)
        except NotCached:
            return select_embedder(convert_apart(side, net.modality), net)

    return LazyEmbedder(select)


def ways(runtime: Runtime, net: Net) -> list[Way]:
    """The engines and precisions that meet a wish, the first that suits is taken; where there are several, the last is
    float32, which the others are judged by.
    """
    device, asked = runtime.device, runtime.engine
    if runtime.precision in CALIBRATED and not net.traceable and asked == "auto":
        raise DeviceError(
            f"{net.name}: {runtime.precision} needs a copy traced from one forward pass, and this net may compute "
            "something else in the next; engine='openvino' traces it anyway"
        )
    if runtime.precision != "auto":
        check_computed(runtime.precision, device, asked)
    fastest = _fastest(runtime, net)
    found = []
    for precision in RANKED if runtime.precision == "auto" else (runtime.precision,):
        engines = engines_of(precision, device)
        if not engines or asked not in ("auto", *engines):
            continue
        engine = fastest if fastest in engines else engines[0]
        if PRECISIONS[precision].instructions and device == "cpu" and not _has_instructions(fastest):
            if runtime.precision == "auto" and (not wished_bfloat16() or asked == "openvino"):
                continue
            engine = "torch" if asked == "auto" else engine
        found.append((engine, precision))
    return found


def _has_instructions(engine: str) -> bool:
    """Whether the processor has instructions for low precision that `engine` uses."""
    if engine == "openvino":
        from image_encoders.engines.openvino import has_bfloat16

        return has_bfloat16()
    return wished_bfloat16() is not False and has_bfloat16_instructions()


def _fastest(runtime: Runtime, net: Net) -> str:
    """The requested engine, or the one that is usually the fastest."""
    if runtime.engine != "auto":
        return runtime.engine
    return "openvino" if runtime.device == "cpu" and net.traceable else "torch"


def convert_apart(runtime: Runtime, modality: str) -> Runtime:
    """The runtime with which nothing is left to convert: another process has done it.

    If that process died, for example because an engine uses an instruction that the processor lacks, torch takes over,
    with a warning; DeviceError if another engine was requested.
    """
    assert runtime.convert_apart is not None
    try:
        engine = runtime.convert_apart(modality)
    except ChildDied as error:
        if runtime.engine != "auto" or runtime.precision in CALIBRATED:
            raise DeviceError(f"OpenVINO cannot run this model here: {error}; use engine='torch'") from error
        logger.warning("the model runs in torch instead of OpenVINO: %s; engine='torch' skips the attempt", error)
        engine = "torch"
    except Unsendable:  # open files to calibrate on, for example: it is converted here
        return runtime
    return replace(runtime, engine="torch") if engine == "torch" and runtime.engine == "auto" else runtime


def _may_start_processes() -> bool:
    return not forked() and bool(sys.executable) and os.environ.get("IMAGE_ENCODERS_CONVERT_APART", "1") != "0"


def _check_combination(device: str, precision: str, engine: str) -> None:
    """DeviceError if device, precision and engine are incompatible."""
    if engine == "openvino" and device != "cpu":
        raise DeviceError(f"engine='openvino' runs only on the CPU, not on {device!r}; use engine='torch' there")
    if precision != "auto":
        check_computed(precision, device, engine)
    if engine == "openvino" or precision in CALIBRATED:
        from image_encoders.engines.openvino import has_bfloat16, refuse_forked

        refuse_forked()
        if precision == "bfloat16" and not has_bfloat16():
            hidden = ", or IMAGE_ENCODERS_BFLOAT16=0 hides them" if wished_bfloat16() is False else ""
            raise DeviceError(
                f"this processor has no instructions for bfloat16 that OpenVINO could use{hidden}; "
                "use precision='auto' or 'float32', or engine='torch', which computes bfloat16 slowly anywhere"
            )


def _build(runtime: Runtime, net: Net, way: Way) -> Embedder:
    engine, precision = way
    if precision in CALIBRATED:
        from image_encoders.engines.int8 import int8_embedder

        return int8_embedder(net, runtime.calibration)
    if engine == "openvino":
        from image_encoders.engines.openvino import OpenVinoEmbedder

        return OpenVinoEmbedder(net, precision)
    from image_encoders.engines.torch import TorchEmbedder

    return TorchEmbedder(net.build(), runtime.device, precision, compiled=engine == "torch-compile")


def _build_or_torch(runtime: Runtime, net: Net, way: Way) -> Embedder:
    """The net by an engine; by torch, with a warning, if an engine that was not requested cannot run it."""
    try:
        return _build(runtime, net, way)
    except DeviceError as error:
        engine, precision = way
        if runtime.engine != "auto" or engine == "torch" or "torch" not in engines_of(precision, runtime.device):
            raise
        logger.warning("%s: using torch instead of OpenVINO: %s", net.name, error)
        return _build(runtime, net, ("torch", precision))


def _judge(runtime: Runtime, net: Net, offered: Sequence[Way]) -> tuple[Embedder, Choice, bool]:
    """The first way whose embeddings are near enough to float32's, or float32; and whether all were judged by them."""
    reference = _build_or_torch(runtime, net, offered[-1])
    inputs = example_inputs(net)
    wanted, inputs = embed_probes(reference, inputs, PATIENCE_S)
    refused, sure = [], not forked()  # where torch computes what is said of OpenVINO
    for way in offered[:-1]:
        engine, precision = way
        try:
            embedder = _build(runtime, net, way)
            near = closeness(embed_probes(embedder, inputs)[0], wanted)
        except (DeviceError, MemoryError, RuntimeError) as error:  # perhaps of this moment only
            refused.append(f"{precision}: {first_line(error)}")
            sure = False
            continue
        if near.centred >= CLOSEST:
            return embedder, Choice(engine, precision, near, tuple(refused)), sure
        refused.append(f"{precision}: centred cosine {near.centred:.4f}, {CLOSEST} is required")
    logger.info("%s stays in float32: %s", net.name, "; ".join(refused))
    return reference, Choice(reference.engine, "float32", None, tuple(refused)), sure


# ---------------------------------------------------------------- the verdicts kept


def _identity(net: Net, device: str, offered: Sequence[Way]) -> str:
    """What a verdict is for: net, machine, ways, versions."""
    versions = [metadata.version(name) for name in ("torch", "openvino")]
    facts = [net.key, device_model(device), list(offered), CLOSEST, *versions]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _read_verdict(path: Path) -> Choice | None:
    """The verdict in a file; None if it cannot be read: then it is determined again."""
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        near = found["closeness"]
        return Choice(
            str(found["engine"]),
            str(found["precision"]),
            None if near is None else Closeness(**near),
            tuple(map(str, found["refused"])),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep_verdict(path: Path, choice: Choice) -> None:
    with suppress(OSError):  # then the next load judges again
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            part.write_text(json.dumps(asdict(choice), indent=2), "utf-8")
