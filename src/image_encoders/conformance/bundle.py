"""The conformance bundle: synthetic checkpoints by recipe, inputs, and what the original codes made of them.

Its README.md says what each file holds.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import shutil
import subprocess
import sys
import tempfile
import wave
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from image_encoders.errors import WeightsError

FOLDER = Path(__file__).parent


@cache
def manifest() -> dict[str, Any]:
    """The seed, and the inputs and tolerances of every case."""
    return json.loads((FOLDER / "manifest.json").read_text())


@cache
def spec(case: str) -> dict[str, Any]:
    """The recipe of a case's checkpoint."""
    return json.loads((FOLDER / "specs" / f"{case}.json").read_text())


def golden(name: str) -> dict[str, np.ndarray]:
    """The reference arrays of a case, or of "preprocess", by key."""
    with np.load(FOLDER / "golden" / f"{name}.npz", allow_pickle=False) as archive:
        return dict(archive)


def float_inputs(case: str, name: str) -> np.ndarray:
    """The generated images that the reference was run on: (N, 3, H, W) float32."""
    rng_name, n, height, width, low, high = manifest()["cases"][case]["inputs"][name]
    return _make_inputs().blocks(manifest()["seed"], rng_name, n, 3, height, width, low, high)


@cache
def _make_inputs() -> Any:
    before = list(sys.path)
    try:
        return importlib.import_module(f"{__package__}.make_inputs")
    finally:
        sys.path[:] = before  # it adds its folder, in which it looks for its neighbour


def decoded(name: str) -> np.ndarray:
    """The pixels (H, W, 3) uint8 that the reference got of an image; the name is <file>.<variant>."""
    with Image.open(FOLDER / "images" / "decoded" / f"{name}.png") as image:
        return np.asarray(image.convert("RGB"))


def sound(name: str) -> Path:
    """A file of 16 bits, one channel, 44,100 Hz."""
    return FOLDER / "audio" / f"{name}.wav"


def samples(name: str) -> np.ndarray:
    """The samples (T,) int16 of a sound."""
    with wave.open(str(sound(name))) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def size(case: str) -> int:
    """How much room the tensors of a case's checkpoint take [bytes]."""
    return sum(math.prod(one["shape"]) * np.dtype(one["dtype"]).itemsize for one in spec(case)["tensors"])


def checkpoints() -> Path:
    """Where synthetic checkpoints are kept by default."""
    from image_encoders.cache import cache_folder

    return cache_folder() / "conformance"


def place(case: str, folder: Path | None = None) -> Path:
    """The folder that a case's checkpoint has in `folder`, made or not. Another recipe has another place."""
    maker, recipe = FOLDER / "make_checkpoint.py", FOLDER / "specs" / f"{case}.json"
    digest = hashlib.sha256(maker.read_bytes() + recipe.read_bytes()).hexdigest()[:16]
    return (folder or checkpoints()) / f"{case}-{digest}"


def checkpoint(case: str, folder: Path | None = None) -> Path:
    """The folder with a case's checkpoint, made on first use and kept. It appears whole or not at all.

    Raises WeightsError when it cannot be made, which needs `size(case)` bytes.
    """
    made = place(case, folder)
    if made.is_dir():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{case}-", dir=made.parent))
    # in a process of its own, so that its memory is given back
    words = [sys.executable, str(FOLDER / "make_checkpoint.py"), str(FOLDER / "specs" / f"{case}.json"), str(part)]
    try:
        ran = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
        if ran.returncode:
            said = (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]
            raise WeightsError(
                f"{made}: the synthetic checkpoint of {size(case) / 1e6:,.0f} MB cannot be made: {said}; "
                "free some space, or choose another folder with IMAGE_ENCODERS_CACHE"
            )
        part.chmod(0o755)
        try:
            part.rename(made)
        except OSError:  # another process made it meanwhile
            if not made.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return made
