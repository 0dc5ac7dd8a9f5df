"""`precision="auto"`: the fastest way to run a net on this machine that keeps its rows.

Each candidate embeds a few drawn pictures, and so does float32. It is taken when every centred cosine between the two
is at least `CLOSEST`: the mean row is subtracted first, since rows of one net have much in common, which would
hide what they lose. The verdict is kept in the cache, with the net's key, the machine and the versions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from image_encoders.cache import atomic_write, cache_folder
from image_encoders.engines import Embedder, Net, Runtime, system_lines, wished_bfloat16
from image_encoders.errors import DeviceError, InputError, first_line

logger = logging.getLogger(__name__)

CLOSEST = 0.998  # the least centred cosine of a row in low precision to the same row in float32
PROBES, FEWEST = 24, 8  # pictures that a candidate is judged on; a slow net is judged on fewer
PATIENCE_S = 30.0  # after which no further probes are embedded
BATCH = 8
DEFAULT_SIDE = 16  # of an input where any length goes
WORDS = ("man", "woman", "dog", "cat", "red", "blue", "car", "street", "tree", "house", "boat", "table")

Candidate = tuple[str, str]  # engine, precision


@dataclass(frozen=True)
class Closeness:
    """How near rows come to the same pictures' rows in float32.

    cosine: the least, plain
    centred: the least, of rows whose mean was subtracted
    neighbours: the share of pictures whose nearest other picture is the same
    pictures: how many were compared
    """

    cosine: float
    centred: float
    neighbours: float
    pictures: int


def closeness(rows: np.ndarray, reference: np.ndarray) -> Closeness:
    """How near `rows` (N, dim) come to the `reference` (N, dim), N at least 2."""
    mean = reference.mean(axis=0)
    return Closeness(
        cosine=float(_cosines(rows, reference).min()),
        centred=float(_cosines(rows - mean, reference - mean).min()),
        neighbours=float((_nearest(rows) == _nearest(reference)).mean()),
        pictures=len(rows),
    )


@dataclass(frozen=True)
class Choice:
    """What `precision="auto"` came to.

    engine, precision: what runs the net
    closeness: of its rows to float32's; None where it is float32
    refused: what would have been faster, and why it was not taken
    """

    engine: str
    precision: str
    closeness: Closeness | None = None
    refused: tuple[str, ...] = ()


def chosen(net: Net, device: str, engine: str) -> Embedder:
    """`net` run by the first of `candidates` that keeps its rows, with the `choice` as an attribute."""
    offered = candidates(device, engine, net.traceable)
    if len(offered) == 1:
        return in_float32(net, device, engine)
    runtime = Runtime(device)
    path = cache_folder() / "choices" / f"{_identity(net, device, offered)}.json"
    known = _known(path)
    if known is None:
        embedder, choice, sure = _judged(net, runtime, offered, engine)
        if sure:
            _keep(path, choice)
    else:
        embedder, choice = runtime.made(net, known.engine, known.precision), known
    embedder.choice = choice  # type: ignore[attr-defined]
    return embedder


def in_float32(net: Net, device: str, engine: str) -> Embedder:
    """`net` in float32 by the fastest engine, with the `choice` as an attribute."""
    embedder = _sound(net, Runtime(device), (_quickest(device, engine, net.traceable), "float32"), engine)
    embedder.choice = Choice(embedder.engine, "float32")  # type: ignore[attr-defined]
    return embedder


def candidates(device: str, engine: str, traceable: bool) -> list[Candidate]:
    """Ways to run a net, the one that is fastest as a rule first; the last is float32."""
    quickest = _quickest(device, engine, traceable)
    if device != "cpu":
        return [(quickest, precision) for precision in ("bfloat16", "float16", "float32")]
    from image_encoders.engines.openvino import has_bfloat16

    float32 = (quickest, "float32")
    if has_bfloat16():
        return [(quickest, "bfloat16"), float32]
    if wished_bfloat16() and engine != "openvino":
        return [("torch" if engine == "auto" else engine, "bfloat16"), float32]
    return [float32]


def _quickest(device: str, engine: str, traceable: bool) -> str:
    """The engine to try first where the caller left it open."""
    if engine != "auto":
        return engine
    return "openvino" if device == "cpu" and traceable else "torch"


def probes(count: int = PROBES) -> list[np.ndarray]:
    """Drawn pictures, (240, 320, 3) uint8, with structure at every scale, as photographs have it."""
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        canvas = np.full((240, 320, 3), rng.uniform(40, 215), np.float32) + rng.normal(0, 25, 3).astype(np.float32)
        for cells in (3, 6, 12, 24, 48, 96):
            noise = rng.normal(0, 1, (cells, cells * 4 // 3, 3)) * rng.uniform(5, 45) / cells**0.4
            planes = [Image.fromarray(noise[..., c].astype(np.float32)).resize((320, 240)) for c in range(3)]
            canvas += np.stack([np.asarray(plane) for plane in planes], axis=-1)
        for _ in range(rng.integers(1, 6)):  # edges
            top, left = rng.integers(0, 200), rng.integers(0, 280)
            height, width = rng.integers(15, 140, 2)
            canvas[top : top + height, left : left + width] += rng.normal(0, 60, 3)
        canvas += rng.normal(0, rng.uniform(0, 8), canvas.shape)
        pictures.append(np.clip(canvas, 0, 255).astype(np.uint8))
    return pictures


def _judged(net: Net, runtime: Runtime, offered: Sequence[Candidate], asked: str) -> tuple[Embedder, Choice, bool]:
    """The first candidate whose rows are near enough to float32's, or float32; and whether all were judged by rows."""
    from image_encoders.engines.copies import forked

    reference = _sound(net, runtime, offered[-1], asked)
    inputs = example_inputs(net)
    wanted, inputs = _embedded(reference, inputs, PATIENCE_S)
    refused, sure = [], not forked()  # where torch computes what is said of OpenVINO
    for engine, precision in offered[:-1]:
        try:
            embedder = runtime.made(net, engine, precision)
            near = closeness(_embedded(embedder, inputs)[0], wanted)
        except (DeviceError, MemoryError, RuntimeError) as error:  # perhaps of this moment only
            refused.append(f"{precision}: {first_line(error)}")
            sure = False
            continue
        if near.centred >= CLOSEST:
            return embedder, Choice(engine, precision, near, tuple(refused)), sure
        refused.append(f"{precision}: centred cosine {near.centred:.4f}, {CLOSEST} is asked for")
    logger.info("%s stays in float32: %s", net.name, "; ".join(refused))
    return reference, Choice(reference.engine, "float32", None, tuple(refused)), sure


def _sound(net: Net, runtime: Runtime, candidate: Candidate, asked: str) -> Embedder:
    """The net in float32; by torch, which is said, where an engine that nobody asked for cannot copy it."""
    try:
        return runtime.made(net, *candidate)
    except DeviceError as error:
        if asked != "auto" or candidate[0] == "torch":
            raise
        logger.warning("%s: torch runs it instead of OpenVINO: %s", net.name, error)
        return runtime.made(net, "torch", "float32")


def example_inputs(net: Net, count: int = PROBES) -> list[np.ndarray]:
    """Inputs of one shape as the net takes them: probes prepared, or random numbers where it takes none."""
    rng = np.random.default_rng(0)
    try:
        if net.modality == "image":
            return [net.prepare(picture) for picture in probes(count)]
        if net.modality == "text":
            return [net.prepare(f"a {one} and a {another}") for one, another in rng.choice(WORDS, (count, 2))]
    except InputError:
        pass
    shape = tuple(side or DEFAULT_SIDE for side in net.shape)
    if net.modality == "text":
        return [rng.integers(0, 4, shape) for _ in range(count)]
    return [rng.normal(0, 1, shape).astype(np.float32) for _ in range(count)]


def _embedded(
    embed: Callable[[np.ndarray], np.ndarray], inputs: list[np.ndarray], patience: float = float("inf")
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Rows of inputs of one shape, and the inputs that there was time for."""
    rows: list[np.ndarray] = []
    began = time.monotonic()
    for start in range(0, len(inputs), BATCH):
        if start >= FEWEST and time.monotonic() - began > patience:
            break
        rows.extend(embed(np.stack(inputs[start : start + BATCH])))
    return np.stack(rows), inputs[: len(rows)]


def _cosines(rows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(reference, axis=1)
    return (rows * reference).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)


def _nearest(rows: np.ndarray) -> np.ndarray:
    """For each row the position of the nearest other one, by cosine."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    return similar.argmax(axis=1)


# ---------------------------------------------------------------- the verdicts kept


def _identity(net: Net, device: str, offered: Sequence[Candidate]) -> str:
    """What a verdict is for: net, machine, candidates, versions."""
    facts = [net.key, _machine(device), list(offered), CLOSEST, *(metadata.version(p) for p in ("torch", "openvino"))]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@cache
def _machine(device: str) -> str:
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    for line in system_lines("/proc/cpuinfo"):
        if line.startswith(("model name", "CPU part")):
            return line.partition(":")[2].strip()
    import platform

    return platform.processor() or platform.machine()


def _known(path: Path) -> Choice | None:
    """The verdict in a file; None where there is none that can be read: then it is found anew."""
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


def _keep(path: Path, choice: Choice) -> None:
    with suppress(OSError):  # then the next load judges again
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            part.write_text(json.dumps(asdict(choice), indent=2), "utf-8")
