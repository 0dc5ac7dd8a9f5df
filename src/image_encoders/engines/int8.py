"""8-bit copies of nets, calibrated on the user's own images."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.cache import file_lock, require_cached
from image_encoders.engines.closeness import closeness
from image_encoders.engines.embedder import Choice, Closeness, Net
from image_encoders.engines.machine import system_lines
from image_encoders.engines.openvino import (
    ABOUT,
    OpenVinoEmbedder,
    copied,
    core,
    folder_of,
    lock_path,
    read,
    said,
    write,
)
from image_encoders.errors import InputError, MissingExtra, WeightsError
from image_encoders.process import import_nncf, quiet

if TYPE_CHECKING:
    import openvino

logger = logging.getLogger(__name__)

FEWEST, MOST = 16, 300  # images that int8 is calibrated on
JUDGED = 48  # of them its embeddings are compared on
POOR = 0.95  # least centred cosine of int8's embeddings below which it is warned of


def int8_embedder(net: Net, calibration: Sequence[Any] | str | None) -> OpenVinoEmbedder:
    """The net in 8 bits, with what was measured when it was calibrated.

    calibration: images, or the digest of an earlier calibration
    """
    digest = calibrated(net, calibration)
    embedder = OpenVinoEmbedder(net, "int8", digest)
    embedder.choice = verdict(net, folder_of(net, digest))
    return embedder


def calibrated(net: Net, calibration: Sequence[Any] | str | None) -> str:
    """The digest of the calibration whose copy of the net is in the cache, created if necessary."""
    if isinstance(calibration, str):
        if not (folder_of(net, calibration) / ABOUT).is_file():
            raise WeightsError(
                f"the copy of {net.name} that was calibrated as {calibration} is no longer in the cache; "
                "calibrate again, and encode into a new collection"
            )
        return calibration
    inputs = _inputs(net, calibration or ())
    digest = _digest(inputs)
    folder = folder_of(net, digest)
    if not (folder / ABOUT).is_file():
        require_cached(f"the calibrated copy of {net.name}")
        plain = folder_of(net)
        model = read(net, plain, "") if (plain / ABOUT).is_file() else copied(net, plain)
        try:
            with file_lock(lock_path(folder)), said(f"calibrating {net.name} on {len(inputs)} images, once"):
                if not (folder / ABOUT).is_file():  # another process has not made it meanwhile
                    quantized = quantized_model(model, inputs, _sums_int8())
                    near = _nearness(quantized, model, _spread(inputs, JUDGED))
                    write(quantized, folder, net.name, closeness=asdict(near))
        except OSError as error:
            raise WeightsError(
                f"{folder}: the calibrated copy cannot be stored: {error.strerror or error}; "
                "free some space, or set IMAGE_ENCODERS_CACHE"
            ) from error
    return digest


def _inputs(net: Net, images: Sequence[Any]) -> list[np.ndarray]:
    """The inputs of the images that can be read, at most `MOST`; InputError if there are too few."""
    inputs = []
    for source in _spread(images, MOST):
        try:
            inputs.append(net.prepare(source))
        except InputError as error:
            logger.info("not used for the calibration: %s", error)
    if len(inputs) < FEWEST:
        raise InputError(
            f"{len(inputs)} images to calibrate int8 on; with calibration= at least {FEWEST} that can be read "
            f"are needed, better {MOST}",
            code="calibration",
        )
    return inputs


def _digest(inputs: Sequence[np.ndarray]) -> str:
    """Of everything that determines the copy's numbers: images, in their order, versions, and the processor's kind."""
    try:
        versions = [metadata.version(name) for name in ("image-encoders", "openvino", "nncf")]
    except metadata.PackageNotFoundError as error:
        raise MissingExtra("nncf", "int8", "precision='int8'") from error
    digest = hashlib.sha256(repr([*versions, _sums_int8()]).encode())
    for one in inputs:
        digest.update(hashlib.sha256(one.tobytes()).digest())
    return digest.hexdigest()[:16]


def _nearness(quantized: openvino.Model, model: openvino.Model, inputs: Sequence[np.ndarray]) -> Closeness:
    """How close the quantised model's embeddings are to the model's own."""
    embeddings = []
    for one in (quantized, model):
        request = core().compile_model(one, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
        embeddings.append(
            np.concatenate([next(iter(request.infer({0: single[None]}).values())).copy() for single in inputs])
        )
    return closeness(*embeddings)


def verdict(net: Net, folder: Path) -> Choice | None:
    """What was measured when int8 was calibrated; warns about a large loss."""
    try:
        near = Closeness(**json.loads((folder / ABOUT).read_text("utf-8"))["closeness"])
    except (OSError, ValueError, KeyError, TypeError):  # damaged: reading the copy will raise
        return None
    if near.centred < POOR:
        logger.warning(
            "%s: int8 changes its embeddings much: least centred cosine to float32 %.2f, nearest neighbours %.0f %% "
            "the same; precision='auto' keeps them",
            net.name,
            near.centred,
            100 * near.neighbours,
        )
    return Choice("openvino", "int8", near)


def quantized_model(model: openvino.Model, inputs: Sequence[np.ndarray], wide_sums: bool) -> openvino.Model:
    """The model in 8 bits, calibrated on `inputs`.

    wide_sums: for processors that sum products in 32 bits. Without such instructions sums of products overflow 16
        bits, unless weights take half of their range
    """
    nncf = import_nncf()
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    attention = any(op.get_type_name() in ("ScaledDotProductAttention", "Softmax") for op in model.get_ops())
    with quiet(), redirect_stdout(io.StringIO()):  # bars of its own, where results go
        return nncf.quantize(
            model,
            nncf.Dataset([one[None] for one in inputs]),
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.PERFORMANCE if attention else nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if attention else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # by default a range is the mean of the images' extremes, and clips every second image
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                overflow_fix=OverflowFix.DISABLE if wide_sums else OverflowFix.ENABLE,
            ),
        )


def _sums_int8() -> bool:
    """Whether the processor sums products of 8-bit numbers in 32 bits (VNNI, AMX, Arm's dot products)."""
    flags = " ".join(system_lines("/proc/cpuinfo")).split()
    return not {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}.isdisjoint(flags)


def _spread(sources: Sequence[Any], count: int) -> Sequence[Any]:
    """At most `count` of them, from everywhere."""
    if len(sources) <= count:
        return sources
    return [sources[i * len(sources) // count] for i in range(count)]
