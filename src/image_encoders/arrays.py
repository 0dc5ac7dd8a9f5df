"""Numbers from any library as NumPy's."""

from __future__ import annotations

from typing import Any

import numpy as np

from image_encoders.errors import InputError, first_line


def is_tensor(source: Any) -> bool:
    """Whether it is a PyTorch tensor, without importing torch. Open files have a `detach` too."""
    return hasattr(source, "detach") and hasattr(source, "cpu")


def as_array(source: Any) -> np.ndarray:
    """The numbers of an array, a tensor on any device, a list, or anything with `__array__`.

    A view if possible. A tensor's floats become float32, as NumPy has no bfloat16.

    Raises InputError ("dtype") for objects without a plain array of numbers, such as a sparse tensor.
    """
    try:
        if is_tensor(source):
            source = source.detach().cpu()
            source = source.float() if source.is_floating_point() else source
        return np.asarray(source)
    except MemoryError:
        raise
    except Exception as error:  # the object's own code runs here
        reason = first_line(error)[:200]
        raise InputError(
            f"a {type(source).__name__} that cannot be converted to an array: {reason}", code="dtype"
        ) from error


def at_unit_length(embeddings: np.ndarray) -> np.ndarray:
    """Rows at unit length; those of zeros stay zeros."""
    largest = np.abs(embeddings).max(axis=1, keepdims=True, initial=0)  # squares of huge numbers would not be finite
    units = np.divide(embeddings, largest, out=np.zeros_like(embeddings), where=largest > 0)
    lengths = np.linalg.norm(units, axis=1, keepdims=True)
    return np.divide(units, lengths, out=units, where=lengths > 0)
