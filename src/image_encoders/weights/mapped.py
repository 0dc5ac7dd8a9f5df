"""Arrays that are views of a mapped file."""

from __future__ import annotations

import mmap

import numpy as np


def let_go(array: np.ndarray) -> None:
    """Give back the memory that the file behind `array` takes: a copy was made, and the file can be read again.

    The array stays valid; what was written into any view of that file is lost.
    """
    owner: object = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)
