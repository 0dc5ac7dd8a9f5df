"""A file's bytes, mapped into memory; and errors for damaged content."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from image_encoders.errors import WeightsError

ALIGNMENT = 64  # [bytes] torch's own: sums depend on it in their last bits, and rows must not depend on the file


class Malformed(Exception):
    """Bytes that do not follow their format. Readers turn it into a WeightsError that names the file."""


class Unsupported(Malformed):
    """Valid bytes with content that no checkpoint of these families has."""


def map_file(path: Path) -> mmap.mmap:
    """A file's bytes, copy-on-write: what is written there stays in memory.

    Raises WeightsError when it cannot be opened or is empty.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # an empty file cannot be mapped
        raise WeightsError(f"{path}: the file is empty; get it again") from error
    if hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED)  # else every 64 KB waits for the disk: 0.9 s instead of 0.35 s for 537 MB
    return mapped


def let_go(array: np.ndarray) -> None:
    """Release the memory of the file behind `array`: a copy was made, and the file can be read again.

    The array stays valid; what was written into any view of that file is lost.
    """
    owner: object = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def reason(error: Exception) -> str:
    """What went wrong while reading, in one printable line. Parsers fail on damaged bytes in many ways."""
    said = str(error) if isinstance(error, Malformed) else f"{type(error).__name__}: {error}"
    return said.encode("unicode_escape").decode()[:300]
