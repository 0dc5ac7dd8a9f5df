"""Converts an original checkpoint to a safetensors file, which loads faster and gives the same embeddings."""

from __future__ import annotations

import inspect
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import Timeout

from image_encoders.cache import file_lock
from image_encoders.errors import WeightsError

UNFINISHED, LOCK = ".converting", "lock"  # how the name of a working folder ends, and the file in it that is locked


class Conversion(NamedTuple):
    """A converted checkpoint.

    seconds: that converting took
    original_load_s, converted_load_s: how long loading takes; None if nothing was loaded
    fingerprint: of the encoder, the same from both files
    """

    path: Path
    original_bytes: int
    converted_bytes: int
    seconds: float
    original_load_s: float | None = None
    converted_load_s: float | None = None
    fingerprint: str | None = None


def convert(
    name: str, weights: Path, out: Path, options: Mapping[str, Any] | None = None, *, overwrite: bool = False
) -> Conversion:
    """Write the converted checkpoint, which appears complete, and only if it has the original's fingerprint.

    name: the model
    weights: the original checkpoint, file or folder
    out: the file to write, .safetensors
    options: of `load`; those that belong in the file, such as a vocabulary, are included
    overwrite: replace an existing `out`

    A custom net is loaded only if `options` have its definition and class; otherwise tensors are compared.

    Raises WeightsError; UnknownModel; InputError for an option's value.
    """
    from image_encoders import models

    options = dict(options or {})
    original = getattr(models.family(name), "original", None)
    if original is None:
        raise WeightsError(f"{name}: its checkpoints are safetensors folders already, and load as they are")
    if out.suffix != ".safetensors":
        raise WeightsError(f"{out}: the name of a converted checkpoint must end in .safetensors")
    if not overwrite and out.exists():
        raise WeightsError(f"{out} already exists; choose another name, or replace it with overwrite=True")
    if not weights.exists():
        raise WeightsError(f"{weights}: no such file or folder")
    if weights.suffix == ".safetensors":
        raise WeightsError(f"{weights}: a safetensors file already; originals are converted")
    _remove_leftovers(out.parent)
    with _working_folder(out) as folder:
        return _converted(name, original, weights, out, options, folder / out.name)


@contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`, locked while it is in use, and then removed."""
    folder = out.with_name(f".{out.name}{UNFINISHED}")
    lock = file_lock(folder / LOCK, wait=False)
    try:
        lock.acquire()
    except Timeout:
        raise WeightsError(f"{out}: another process is converting to this file; wait until it has ended") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _remove_leftovers(parent: Path) -> None:
    """Remove what conversions that were killed left in `parent`; those that are running hold their lock."""
    for lock in parent.glob(f".*{UNFINISHED}/{LOCK}"):
        with suppress(Timeout, OSError), file_lock(lock, wait=False):
            shutil.rmtree(lock.parent, ignore_errors=True)


def _converted(
    name: str, original: Any, weights: Path, out: Path, options: Mapping[str, Any], part: Path
) -> Conversion:
    inside = {key: options[key] for key in inspect.signature(original).parameters if key in options}
    beside = {key: value for key, value in options.items() if key not in inside}
    loads = name != "custom" or {"definition", "class_name"} <= options.keys()
    if loads:  # which says what is wrong with the checkpoint, and imports what would be timed below
        _loaded(name, weights, options)
    started = time.perf_counter()
    digest = _write(original, weights, inside, part)
    seconds = time.perf_counter() - started
    before, original_s = _loaded(name, weights, options) if loads else (None, None)
    after, converted_s = _loaded(name, part, beside) if loads else (None, None)
    if before != after or digest != _digest(part):
        raise WeightsError(
            f"{out}: not written, since the converted checkpoint differs from the original: a bug in image-encoders"
        )
    part.replace(out)
    return Conversion(out, _size(weights), out.stat().st_size, seconds, original_s, converted_s, after)


def _write(original: Any, weights: Path, inside: Mapping[str, Any], part: Path) -> str:
    """Write the converted file; the digest of the original's tensors."""
    from image_encoders.weights import convert as file
    from image_encoders.weights.digest import weights_digest

    tensors, facts = original(weights, **inside)
    file.save(part, tensors, facts)
    return weights_digest(tensors)


def _digest(part: Path) -> str:
    from image_encoders.weights import convert as file
    from image_encoders.weights.digest import weights_digest

    return weights_digest(file.load(part)[0])


def _loaded(name: str, weights: Path, options: Mapping[str, Any]) -> tuple[str, float]:
    """The fingerprint of the encoder, and how long it took to load [s]."""
    from image_encoders import models

    started = time.perf_counter()
    encoder = models.load(name, weights=weights, device="cpu", precision="float32", engine="torch", **options)
    return encoder.fingerprint, time.perf_counter() - started


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
