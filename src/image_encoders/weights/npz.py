"""A numpy archive as named arrays, read one by one and without pickles.

Source: the npy format at https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from image_encoders.errors import WeightsError
from image_encoders.weights.files import Malformed, map_file, reason
from image_encoders.weights.zip_records import ZipRecords

MAX_HEADER = 1 << 16  # longest description of an array [bytes]


class Archive(Mapping[str, np.ndarray]):
    """The arrays of an `.npz` file by name.

    An array is read, and its checksum verified, at each access: a view of the file, mapped
    copy-on-write, where the archive is not compressed, else a fresh array. So going through the archive needs
    memory for one array at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        mapped = map_file(path)
        try:
            self._records = ZipRecords(path, mapped)
            self._names = [name.removesuffix(".npy") for name in self._records.entries]
            if len(set(self._names)) < len(self._names):
                raise Malformed(f"two arrays are called {max(self._names, key=self._names.count)}")
        except Exception as error:  # untrusted bytes
            raise WeightsError(f"{path}: not a numpy archive, or a damaged one: {reason(error)}") from error

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        try:
            return _array(self._records.read(f"{name}.npy"))
        except Exception as error:  # untrusted bytes
            raise WeightsError(f"{self.path}: array {name}: {reason(error)}; get the file again") from error

    def __contains__(self, name: object) -> bool:
        return name in self._names  # a Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read(path: str | Path) -> Archive:
    """The arrays of an `.npz` file.

    Raises WeightsError when it is missing or damaged; for a damaged array, at its access.
    """
    return Archive(Path(path))


def _array(record: memoryview) -> np.ndarray:
    head = io.BytesIO(record[: MAX_HEADER + 16])
    version = np.lib.format.read_magic(head)
    if version not in ((1, 0), (2, 0)):
        raise Malformed(f"format version {version}; 1.0 and 2.0 are known")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(head, max_header_size=MAX_HEADER)
    if dtype.kind not in "biufcSU":
        raise Malformed(f"values of type {dtype}; numbers are accepted, objects would need a pickle")
    content = record[head.tell() :]
    count = math.prod(shape)
    if count < 0 or len(content) != count * dtype.itemsize:
        raise Malformed(f"{len(content)} bytes for shape {shape} of {dtype}")
    return np.frombuffer(content, dtype, count).reshape(shape, order="F" if fortran else "C")
