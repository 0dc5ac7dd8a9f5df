"""Small pickles of plain values, such as vocabularies; and what plain values torch's pickles hold besides tensors."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from image_encoders.errors import WeightsError
from image_encoders.weights import plain_pickle
from image_encoders.weights.files import Malformed, map_file, reason
from image_encoders.weights.plain_pickle import Name, Record, Refused, Unbuilt, record

MAX_BYTES = 64 << 20  # of a pickle; the largest published vocabulary has 0.5 MB
MAX_AXES = 64


def read(path: str | Path, classes: Iterable[str] = ()) -> Any:
    """The plain value in a pickle, or the attributes of the one instance in it.

    classes: the classes whose instances may occur, such as "vocab.Vocabulary"; inside other values they come back
        as namespaces of their attributes

    Raises WeightsError when the file is missing or damaged, or names anything else.
    """
    path = Path(path)
    pickled = map_file(path)
    if len(pickled) > MAX_BYTES:
        raise WeightsError(f"{path}: has {len(pickled)} bytes; a vocabulary of at most {MAX_BYTES} is accepted")
    classes = list(classes)
    names = {**PLAIN_NAMES, **{name: Name(name, record) for name in classes}}
    try:
        value, _ = plain_pickle.load(pickled, names=names)
    except Refused as error:
        raise WeightsError(
            f"{path}: holds a pickled {error}, refused because unpickling it would run code; "
            f"accepted here: plain values and {', '.join(classes) or 'no class'}"
        ) from error
    except Exception as error:  # untrusted bytes
        raise WeightsError(f"{path}: a damaged pickle: {reason(error)}; get the file again") from error
    return vars(value) if type(value) is Record else value


def is_size(value: object) -> TypeGuard[int]:
    """Whether `value` can be a number of elements."""
    return type(value) is int and 0 <= value < 1 << 62


def sizes(value: object) -> tuple[int, ...]:
    """`value` as a shape or strides."""
    if not isinstance(value, tuple) or len(value) > MAX_AXES or not all(is_size(n) for n in value):
        raise Malformed("a tensor's shape or strides are not a tuple of sizes")
    return tuple(value)


def _ordered(items: object = ()) -> collections.OrderedDict:
    if not isinstance(items, (list, tuple)) or not all(type(i) in (list, tuple) and len(i) == 2 for i in items):
        raise Malformed("an OrderedDict of something that is not pairs")
    return collections.OrderedDict((plain_pickle.key(k), v) for k, v in items)


def _members(items: object = ()) -> list[Any]:
    if not isinstance(items, (list, tuple)):
        raise Malformed("a set of something that is not a list")
    return [plain_pickle.key(item) for item in items]


def _encoded(value: object, encoding: object = "utf-8") -> bytes:
    if not isinstance(value, str) or encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise Malformed("bytes that are not encoded text")
    return value.encode(encoding)


def _bytes(value: object = b"", encoding: object = None) -> bytes:
    if encoding is not None:
        return _encoded(value, encoding)
    if not isinstance(value, (bytes, list)):
        raise Malformed("bytes made of something else")  # bytes(n) would be as large as the pickle likes
    return bytes(value)


def _reconstructed(kind: object, base: object, state: object) -> Record:
    """An instance as protocols 0 and 1 make it."""
    if type(kind) is not Name or kind.call is not record:
        raise Refused(kind.name if type(kind) is Name else "object")
    return record()


def _dtype(code: object, *_: object) -> Unbuilt:
    """A numpy dtype of plain numbers or fixed-width text."""
    if not isinstance(code, str) or len(code) > 16:
        raise Malformed("a numpy dtype without a proper name")
    dtype = np.dtype(code)
    if dtype.kind not in "biufcSU" or dtype.itemsize > 1 << 16:
        raise Refused(f"numpy array of {dtype}")

    def build(state: object) -> np.dtype:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise Malformed("a numpy dtype without a byte order")
        return dtype.newbyteorder(state[1])

    return Unbuilt(build)


def _array(raw: object, dtype: object, shape: object, order: object = "C") -> np.ndarray:
    if isinstance(raw, str):  # a Python 2 string that happened to be UTF-8
        raw = raw.encode()
    if not isinstance(dtype, np.dtype) or not isinstance(raw, (bytes, bytearray)) or order not in ("C", "F"):
        raise Malformed("a numpy array without bytes and a dtype")
    return np.frombuffer(bytearray(raw), dtype).reshape(sizes(shape), order=order)


def _empty_array(*_: object) -> Unbuilt:
    """A numpy array as its own pickle makes it: empty, then filled by its state."""

    def build(state: object) -> np.ndarray:
        if type(state) is not tuple or len(state) != 5:
            raise Malformed("a numpy array without version, shape, dtype, order and bytes")
        _, shape, dtype, fortran, raw = state
        return _array(raw, dtype, shape, "F" if fortran else "C")

    return Unbuilt(build)


def _scalar(dtype: object, raw: object) -> Any:
    return _array(raw, dtype, ())[()]


def callables(calls: Mapping[str, Any]) -> dict[str, Any]:
    """A table of names from what is called in the place of each; None: it is named but never called."""
    return {name: Name(name, call) for name, call in calls.items()}


PLAIN_NAMES = callables(
    {
        "collections.OrderedDict": _ordered,
        "builtins.set": lambda items=(): set(_members(items)),
        "builtins.frozenset": lambda items=(): frozenset(_members(items)),
        "builtins.bytes": _bytes,
        "builtins.bytearray": lambda *a: bytearray(_bytes(*a)),
        "builtins.object": None,
        "_codecs.encode": _encoded,
        "copyreg._reconstructor": _reconstructed,
        "argparse.Namespace": record,
        "types.SimpleNamespace": record,
        "numpy.ndarray": None,
        "numpy.dtype": _dtype,
    }
    | {
        f"{module}.{name}": call
        for module in ("numpy.core", "numpy._core")
        for name, call in {
            "multiarray._reconstruct": _empty_array,
            "multiarray.scalar": _scalar,
            "numeric._frombuffer": _array,
        }.items()
    }
)
