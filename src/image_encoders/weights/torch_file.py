"""What `torch.save` wrote, read without running the pickle inside.

Both containers are read: the zip archive of torch 1.6 and later, and the older sequence of pickles, including
the ones that Python 2 and the first releases wrote from GPU tensors. Only plain values, tensors, numpy arrays
and `argparse.Namespace` come out; any other name in the pickle is refused.

Source: the layouts in torch/serialization.py and torch/_utils.py, v2.13 (BSD-3-Clause); no code of theirs.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_encoders.errors import WeightsError
from image_encoders.weights import plain_pickle
from image_encoders.weights.files import ALIGNMENT, Malformed, Unsupported, map_file, reason
from image_encoders.weights.pickle_file import PLAIN_NAMES, callables, is_size, sizes
from image_encoders.weights.plain_pickle import Name, Refused
from image_encoders.weights.zip_records import ZipRecords

if TYPE_CHECKING:
    import torch

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
BIG_ENDIAN = "tensors in big-endian order; load and save it once with torch"
EXPANDED_AT_LEAST = 64 << 20  # a file's tensors, which may share storages and repeat elements, may have this many bytes
EXPANDED_RATIO = 4  # together, or this many times the file's size: beyond that they are a bomb and not weights

# storage class -> torch dtype; Untyped storages are counted in bytes
DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
DEVICES = ("torch", "torch.cuda", "torch.storage")  # modules that name storage classes; all are read to the CPU
BITS = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")  # dtypes without a storage class of their own


def read(path: str | Path) -> Any:
    """The object in a torch checkpoint file, its tensors on the CPU.

    Tensors are views of the file, mapped copy-on-write, wherever their alignment allows: they cost memory when they
    are first used, and writing to them leaves the file alone. The file must not be changed in place meanwhile.
    An `argparse.Namespace` comes back as a `types.SimpleNamespace`, a torch.nn.Parameter as its tensor.

    Raises WeightsError when the file is missing, truncated or damaged, or holds more than plain data.
    """
    path = Path(path)
    mapped = map_file(path)
    head = mapped[:512]
    try:
        if head.startswith(b"PK"):
            return _read_zip(path, mapped)
        if head.startswith(b"\x80"):
            return _read_legacy(path, mapped)
    except Refused as error:
        raise WeightsError(
            f"{path}: holds a pickled {error}, refused because unpickling it would run code. "
            "A state_dict is accepted: where that class is at hand, torch.save(model.state_dict(), FILE)"
        ) from error
    except Unsupported as error:
        raise WeightsError(f"{path}: holds {error}") from error
    except RecursionError as error:
        raise WeightsError(f"{path}: the values in it are nested too deeply") from error
    except Exception as error:  # the bytes are not to be trusted, and a parser trips over them in many ways
        raise WeightsError(f"{path}: a damaged torch checkpoint: {reason(error)}; get the file again") from error
    raise WeightsError(f"{path}: {_what(head)}, not a torch checkpoint")


def _what(head: bytes) -> str:
    """A guess at what a file is, from its first bytes."""
    start = head.lstrip()[:40].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (a download that went wrong?)"
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer (the file itself was not pulled)"
    if len(head) > 9 and head[8:9] == b"{":
        return "probably a safetensors file"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file"
    if head[257:262] == b"ustar":
        return "a tar archive, perhaps of a torch before 0.1.10 (load and save it once with a newer one)"
    return f"a file that begins with {head[:8]!r}"


class _Storage:
    """`count` elements of a dtype: one flat tensor that any number of tensors view."""

    def __init__(self, dtype: str, count: int, flat: torch.Tensor | None, among: _Storages) -> None:
        self.dtype, self.count, self.flat, self.among = dtype, count, flat, among


class _Storages:
    """The storages that a pickle refers to, each read once.

    size: of the file [bytes]
    find: key, dtype, count -> the flat tensor; None while only the storages' sizes are being collected
    """

    def __init__(self, size: int, find: Callable[[str, str, int], torch.Tensor] | None = None) -> None:
        self.find = find
        self.known: dict[str, _Storage] = {}
        self.may_expand = max(EXPANDED_AT_LEAST, EXPANDED_RATIO * size)

    def expand(self, size: int) -> None:
        """Count the bytes of one more tensor."""
        self.may_expand -= size
        if self.may_expand < 0:
            raise Malformed("the tensors repeat the file's bytes too often")

    def __call__(self, identity: object) -> _Storage:
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise Malformed("a reference to data that is not a storage")
        _, kind, key, _, count = identity[:5]
        dtype = kind.name if type(kind) is Name else ""
        if dtype not in DTYPES.values() or not isinstance(key, (str, int)) or not is_size(count):
            raise Malformed("a storage without a proper type, key and size")
        storage = self._whole(str(key), dtype, count)
        if len(identity) == 6 and identity[5] is not None:
            return self._view(storage, identity[5])
        return storage

    def _whole(self, key: str, dtype: str, count: int) -> _Storage:
        if key not in self.known:
            self.known[key] = _Storage(dtype, count, self.find(key, dtype, count) if self.find else None, self)
        storage = self.known[key]
        if (storage.dtype, storage.count) != (dtype, count):
            raise Malformed(f"storage {key} is described in two different ways")
        return storage

    def _view(self, storage: _Storage, view: object) -> _Storage:
        """Part of a storage, as releases before 0.4 wrote it: (key, offset, count)."""
        if type(view) is not tuple or len(view) != 3 or not all(is_size(n) for n in view[1:]):
            raise Malformed("a view of a storage without a proper offset and size")
        _, offset, count = view
        if offset + count > storage.count:
            raise Malformed(f"a view of elements {offset} to {offset + count} of {storage.count}")
        part = None if storage.flat is None else storage.flat[offset : offset + count]
        return _Storage(storage.dtype, count, part, self)


def _tensor(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object = False,
    hooks: object = None,
    metadata: object = None,
    dtype: Any = None,
) -> torch.Tensor | None:
    """A view of a storage, checked against the storage's end. None while sizes are being collected."""
    import torch

    if metadata:
        raise Unsupported(
            "a tensor whose values have to be negated or conjugated when they are used; "
            "save tensor.resolve_conj().resolve_neg() instead"
        )
    if type(storage) is not _Storage or not is_size(offset):
        raise Malformed("a tensor without a storage or an offset")
    shape, strides = sizes(shape), sizes(strides)
    if len(shape) != len(strides):
        raise Malformed(f"a tensor with {len(shape)} axes and {len(strides)} strides")
    flat, available = storage.flat, storage.count
    if dtype is not None:  # an untyped storage: its elements are bytes
        if not isinstance(dtype, torch.dtype) or storage.dtype != "uint8":
            raise Malformed("a tensor whose type does not fit its storage")
        available //= dtype.itemsize
    count = math.prod(shape)
    end = offset + 1 + sum((size - 1) * stride for size, stride in zip(shape, strides)) if count else offset
    if end > available:
        raise Malformed(f"a tensor of shape {shape} needs {end} elements of a storage that has {available}")
    storage.among.expand(count * (dtype or getattr(torch, storage.dtype)).itemsize)
    if flat is None:
        return None
    if dtype is not None:
        flat = flat[: available * dtype.itemsize].view(dtype)
    return flat.as_strided(shape, strides, flat.storage_offset() + offset)


def _tensor_of_bytes(
    storage: object,
    offset: object,
    shape: object,
    strides: object,
    requires_grad: object,
    hooks: object,
    dtype: object,
    metadata: object = None,
) -> torch.Tensor | None:
    return _tensor(storage, offset, shape, strides, metadata=metadata, dtype=dtype)


def _parameter(tensor: object, *_: object) -> object:
    import torch

    if tensor is not None and not isinstance(tensor, torch.Tensor):
        raise Malformed("a parameter that is not a tensor")
    return tensor


def _size(shape: object = ()) -> Any:
    import torch

    return torch.Size(sizes(tuple(shape) if isinstance(shape, list) else shape))


def _device(kind: object, index: object = None) -> torch.device:
    import torch

    if not isinstance(kind, str) or not (index is None or is_size(index)):
        raise Malformed("a device without a proper name and number")
    return torch.device(kind) if index is None else torch.device(kind, index)


def _torch_names() -> dict[str, Any]:
    import torch

    return {
        **PLAIN_NAMES,
        **callables(
            {
                "torch._utils._rebuild_tensor": _tensor,
                "torch._utils._rebuild_tensor_v2": _tensor,
                "torch._utils._rebuild_tensor_v3": _tensor_of_bytes,
                "torch._utils._rebuild_parameter": _parameter,
                "torch.Size": _size,
                "torch.device": _device,
            }
        ),
        **{f"torch.{name}": getattr(torch, name) for name in {*DTYPES.values(), *BITS}},
        **{f"{device}.{kind}": Name(dtype, None) for device in DEVICES for kind, dtype in DTYPES.items()},
    }


def _flat(path: Path, mapped: Any, start: int, dtype: str, count: int) -> torch.Tensor:
    """`count` elements at byte `start`: a view where the alignment allows, else read from the file."""
    import torch

    kind = getattr(torch, dtype)
    size = count * kind.itemsize
    if start + size > len(mapped):
        raise Malformed(f"a storage of {size} bytes at byte {start} of a file of {len(mapped)}")
    if not count:
        return torch.empty(0, dtype=kind, device="cpu")
    if kind is torch.bool:  # any other byte than 0 and 1 would be undefined behaviour
        return torch.frombuffer(mapped, dtype=torch.uint8, count=count, offset=start) != 0
    if start % ALIGNMENT:
        flat = torch.empty(count, dtype=kind, device="cpu")
        with path.open("rb") as file:
            file.seek(start)
            if file.readinto(flat.view(torch.uint8).numpy().data) != size:
                raise Malformed("the file became shorter while it was read")
        return flat
    return torch.frombuffer(mapped, dtype=kind, count=count, offset=start)


# ---------------------------------------------------------------- the zip container


def _read_zip(path: Path, mapped: mmap.mmap) -> Any:
    records = ZipRecords(path, mapped)
    folder = next((name.removesuffix("data.pkl") for name in records.entries if name.endswith("/data.pkl")), None)
    if folder is None:
        raise Malformed(f"a zip archive without data.pkl; it has {', '.join(list(records.entries)[:5])}")
    if f"{folder}constants.pkl" in records.entries:
        raise Refused("TorchScript program")
    if f"{folder}byteorder" in records.entries and records.read(f"{folder}byteorder") != b"little":
        raise Malformed(BIG_ENDIAN)

    def find(key: str, dtype: str, count: int) -> torch.Tensor:
        name = f"{folder}data/{key}"
        content = records.read(name)
        if len(content) != count * _itemsize(dtype):
            raise Malformed(f"record {name} has {len(content)} bytes for {count} elements of {dtype}")
        at = records.stored_at(name)
        return _flat(path, content, 0, dtype, count) if at is None else _flat(path, mapped, at, dtype, count)

    pickled = records.read(f"{folder}data.pkl")
    value, _ = plain_pickle.load(pickled, names=_torch_names(), persistent=_Storages(len(mapped), find))
    return value


# ---------------------------------------------------------------- the legacy container


def _read_legacy(path: Path, mapped: mmap.mmap) -> Any:
    names = _torch_names()
    magic, at = plain_pickle.load(mapped, 0, names={})
    if magic != LEGACY_MAGIC:
        raise Malformed("a pickle that torch.save did not write")
    protocol, at = plain_pickle.load(mapped, at, names={})
    if protocol != LEGACY_PROTOCOL:
        raise Malformed(f"protocol {protocol}; {LEGACY_PROTOCOL} is known")
    system, start = plain_pickle.load(mapped, at, names={})
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Malformed(BIG_ENDIAN)

    # The storages lie after the pickle that refers to them, so it is read twice: for their sizes, then with their data.
    declared = _Storages(len(mapped))
    _, at = plain_pickle.load(mapped, start, names=names, persistent=declared)
    keys, at = plain_pickle.load(mapped, at, names={})
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(declared.known):
        raise Malformed("the list of storages does not match the tensors")
    places: dict[str, int] = {}
    for key in map(str, keys):
        storage = declared.known[key]
        if at + 8 > len(mapped):
            raise Malformed(f"the file ends before storage {key}")
        (count,) = struct.unpack_from("<q", mapped, at)
        if count != storage.count:
            raise Malformed(f"storage {key} has {count} elements of {storage.count}")
        places[key] = at + 8
        at += 8 + count * _itemsize(storage.dtype)

    def find(key: str, dtype: str, count: int) -> torch.Tensor:
        return _flat(path, mapped, places[key], dtype, count)

    value, _ = plain_pickle.load(mapped, start, names=names, persistent=_Storages(len(mapped), find))
    return value


def _itemsize(dtype: str) -> int:
    import torch

    return getattr(torch, dtype).itemsize
