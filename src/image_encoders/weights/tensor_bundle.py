"""A TensorFlow 2 SavedModel's variables, read without TensorFlow.

`variables/variables.index` is a sorted table in LevelDB's layout that says where in the
`variables/variables.data-?????-of-?????` files each tensor lies. Which variable a tensor is, the object graph says:
a tensor of the table itself, or part of `saved_model.pb`.

Source: TensorFlow's tensor_bundle.proto, trackable_object_graph.proto, saved_object_graph.proto and table_format
(v2.21, Apache-2.0); facts of the layout only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import numpy as np

from image_encoders.errors import WeightsError
from image_encoders.weights import protobuf
from image_encoders.weights.files import Malformed, map_file, reason

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
VARIABLE = "/.ATTRIBUTES/VARIABLE_VALUE"  # how the key of a variable's tensor ends
TABLE_MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # two block handles and the magic number [bytes]
TRAILER = 5  # after each block: how it is compressed and its checksum [bytes]
MAX_AXES = 32
MAX_AXIS = 1 << 40
KEYS_RATIO = 16  # keys share beginnings, and have 2 to 4 times the bytes of their table: beyond this it is a bomb
STRING = 7
BFLOAT16 = 14  # numpy has no such type: read as float32, which holds every value
# DataType in types.proto -> numpy
DTYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "u1",
    5: "<i2",
    6: "i1",
    8: "<c8",
    9: "<i8",
    10: "?",
    BFLOAT16: "<u2",
    17: "<u2",
    18: "<c16",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}


@dataclass(frozen=True)
class Node:
    """One object of the saved program.

    children: the attribute's or item's name -> the number of that node
    key: of this variable's tensor in the table; None when the node is not a variable
    name: this variable's full name; "" when there is none
    """

    children: Mapping[str, int] = field(default_factory=dict)
    key: str | None = None
    name: str = ""


@dataclass(frozen=True)
class Bundle:
    """The variables of a SavedModel.

    tensors: key -> array, mapped from the file copy-on-write; bfloat16 as float32
    names: key -> the variable's full name, for those the graph names; they need not be unique
    graph: the nodes; number 0 is the root
    """

    tensors: Mapping[str, np.ndarray]
    names: Mapping[str, str]
    graph: tuple[Node, ...]

    def walk(self, path: str, start: int = 0) -> str | None:
        """The key of the tensor at `path` from node `start`, such as "_root/layer_with_weights-0/kernel"."""
        node = self.graph[start] if start < len(self.graph) else Node()
        for name in path.split("/"):
            if name not in node.children:
                return None
            node = self.graph[node.children[name]]
        return node.key

    def starts(self, path: str) -> list[int]:
        """The nodes from which `path` leads to a tensor, those nearest to the root first."""
        return [number for number in self._reached() if self.walk(path, number) is not None]

    def _reached(self) -> list[int]:
        """The nodes that can be reached from the root, the nearest first."""
        reached = [0] if self.graph else []
        seen = set(reached)
        for number in reached:  # which grows on the way
            for child in self.graph[number].children.values():
                if child not in seen:
                    seen.add(child)
                    reached.append(child)
        return reached


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies, as the table has it."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int


def read(folder: str | Path) -> Bundle:
    """The variables of a SavedModel folder, every byte's checksum verified.

    Raises WeightsError for a missing, truncated or damaged file, naming it.
    """
    index = Path(folder) / "variables" / "variables.index"
    if not index.is_file():
        raise WeightsError(f"{index}: no such file; a SavedModel folder has one")
    with _reading(index):
        table = dict(_table(memoryview(map_file(index))))
        shards = _header(table)
        entries = _entries(table, shards)
    files = [_Shard(index.with_name(f"variables.data-{i:05}-of-{shards:05}")) for i in range(shards)]
    tensors: dict[str, np.ndarray] = {}
    graph: tuple[Node, ...] = ()
    for key, entry in entries.items():
        with _reading(files[entry.shard].path):
            if entry.dtype != STRING:
                tensors[key] = files[entry.shard].array(key, entry)
            elif key == GRAPH_KEY:
                graph = _trackable_graph(files[entry.shard].text(key, entry))
    program = Path(folder) / "saved_model.pb"
    if not graph and program.is_file():
        with _reading(program):
            graph = _program_graph(memoryview(map_file(program)), tensors)
    names = {node.key: node.name for node in graph if node.key is not None and node.name}
    return Bundle(tensors, names, graph)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever untrusted bytes provoke into a WeightsError that names their file."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"{path}: {reason(error)}; the file is damaged, get it again") from error


def _checksum(raw: object) -> int:
    """crc32c of bytes, masked as the table stores it: rotated and shifted, so that it can lie inside what it checks."""
    crc = google_crc32c.value(np.frombuffer(raw, np.uint8))  # type: ignore[call-overload]
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# ---------------------------------------------------------------- the table


def _table(raw: memoryview) -> Iterator[tuple[str, memoryview]]:
    if len(raw) < FOOTER:
        raise Malformed(f"{len(raw)} bytes; a table has at least {FOOTER}")
    if int.from_bytes(raw[-8:], "little") != TABLE_MAGIC:
        raise Malformed("the table's last 8 bytes are not its mark")
    footer = raw[-FOOTER:]
    _, at = _handle(footer, 0)  # the meta index: empty in these files
    where, _ = _handle(footer, at)
    keys, last, end = 0, b"", 0
    for _, handle in _block(raw, where):
        (offset, size), _ = _handle(handle, 0)
        if offset < end:
            raise Malformed(f"the block at {offset} overlaps the one before it")
        end = offset + size
        for key, value in _block(raw, (offset, size)):
            keys += len(key)
            if keys > KEYS_RATIO * len(raw):
                raise Malformed(f"{len(raw)} bytes whose keys have more than {keys}")
            if key <= last and last:
                raise Malformed(f"the keys of the block at {offset} are not in order")
            yield key.decode(), value
            last = key


def _handle(raw: memoryview, at: int) -> tuple[tuple[int, int], int]:
    """A block's offset and size, and the position after them."""
    offset, at = protobuf.varint(raw, at)
    size, at = protobuf.varint(raw, at)
    return (offset, size), at


def _block(raw: memoryview, where: tuple[int, int]) -> Iterator[tuple[bytes, memoryview]]:
    offset, size = where
    end = offset + size
    if end + TRAILER > len(raw) - FOOTER or size < 4:
        raise Malformed(f"a block of {size} bytes at {offset} does not fit into {len(raw)} bytes")
    if int.from_bytes(raw[end + 1 : end + TRAILER], "little") != _checksum(raw[offset : end + 1]):
        raise Malformed(f"the block of {size} bytes at {offset} has a wrong checksum")
    if raw[end]:
        raise Malformed(f"the block at {offset} is compressed; TensorFlow writes these tables uncompressed")
    end -= 4 + 4 * int.from_bytes(raw[end - 4 : end], "little")  # the places where keys are written out in full
    if end < offset:
        raise Malformed(f"the block at {offset} has a longer index than itself")
    at, key = offset, b""
    while at < end:
        shared, at = protobuf.varint(raw, at)
        own, at = protobuf.varint(raw, at)
        length, at = protobuf.varint(raw, at)
        if shared > len(key) or at + own + length > end:
            raise Malformed(f"an entry of the block at {offset} does not fit into it")
        key = key[:shared] + bytes(raw[at : at + own])
        at += own
        yield key, raw[at : at + length]
        at += length


def _header(table: dict[str, memoryview]) -> int:
    """The number of data files."""
    if "" not in table:
        raise Malformed("the table has no header")
    header = protobuf.message(table[""])
    if protobuf.number(header, 2):
        raise Malformed("tensors in big-endian order")
    shards = protobuf.number(header, 1)
    if not 1 <= shards <= 99999:
        raise Malformed(f"{shards} data files")
    return shards


def _entries(table: dict[str, memoryview], shards: int) -> dict[str, _Entry]:
    entries = {}
    for key, raw in table.items():
        if not key:
            continue
        entry = protobuf.message(raw)
        if 7 in entry:
            raise Malformed(f"{key} is stored in slices; save the model again without partitioned variables")
        axes = [protobuf.message(axis) for shape in protobuf.parts(entry, 2) for axis in _axes(shape)]
        shape = tuple(protobuf.number(axis, 1) for axis in axes)
        shard = protobuf.number(entry, 3)
        if len(shape) > MAX_AXES or max(shape, default=0) > MAX_AXIS:
            raise Malformed(f"{key} has the shape {shape}")
        if shard >= shards:
            raise Malformed(f"{key} lies in data file {shard} of {shards}")
        entries[key] = _Entry(
            dtype=protobuf.number(entry, 1),
            shape=shape,
            shard=shard,
            offset=protobuf.number(entry, 4),
            size=protobuf.number(entry, 5),
            checksum=protobuf.number(entry, 6),
        )
    end = dict.fromkeys(range(shards), 0)
    for key, found in sorted(entries.items(), key=lambda item: item[1].offset):
        if found.size and found.offset < end[found.shard]:
            raise Malformed(f"{key} overlaps another tensor")
        end[found.shard] = max(end[found.shard], found.offset + found.size)
    return entries


def _axes(shape: memoryview) -> list[memoryview]:
    return protobuf.parts(protobuf.message(shape), 2)


# ---------------------------------------------------------------- the data files


class _Shard:
    """One data file, mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise WeightsError(f"{path}: no such file, but the index beside it refers to tensors in it")
        self.bytes = memoryview(map_file(path)) if path.stat().st_size else memoryview(b"")

    def part(self, key: str, entry: _Entry) -> memoryview:
        end = entry.offset + entry.size
        if end > len(self.bytes):
            raise Malformed(f"{key} takes bytes {entry.offset} to {end}, the file has {len(self.bytes)}")
        return self.bytes[entry.offset : end]

    def array(self, key: str, entry: _Entry) -> np.ndarray:
        raw = self.part(key, entry)
        if entry.dtype not in DTYPES:
            raise Malformed(f"{key} has TensorFlow's data type {entry.dtype}; numbers were expected")
        dtype = np.dtype(DTYPES[entry.dtype])
        if math.prod(entry.shape) * dtype.itemsize != len(raw):
            raise Malformed(f"{key} of shape {entry.shape} and type {dtype} has {len(raw)} bytes")
        _verify(key, entry, raw)
        array = np.frombuffer(raw, dtype)
        if entry.dtype == BFLOAT16:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return array.reshape(entry.shape)

    def text(self, key: str, entry: _Entry) -> memoryview:
        """The one string of a tensor without axes: its length, the length's checksum, its bytes."""
        raw = self.part(key, entry)
        length, at = protobuf.varint(raw, 0)
        if entry.shape or at + 4 + length != len(raw):
            raise Malformed(f"{key} is a text of {length} bytes in {len(raw)}")
        # what is checked begins with the length as a number, of 8 bytes from 4 GiB on
        _verify(key, entry, struct.pack("<I" if length < 1 << 32 else "<Q", length) + bytes(raw[at:]))
        return raw[at + 4 :]


def _verify(key: str, entry: _Entry, raw: memoryview | bytes) -> None:
    found = _checksum(raw)
    if found != entry.checksum:
        raise Malformed(f"{key} has checksum {found:08x}, the index says {entry.checksum:08x}")


def _nodes(graph: memoryview) -> list[dict[int, list]]:
    return [protobuf.message(node) for node in protobuf.parts(protobuf.message(graph), 1)]


def _trackable_graph(raw: memoryview) -> tuple[Node, ...]:
    """The nodes of a TrackableObjectGraph message."""
    nodes = _nodes(raw)
    graph = []
    for node in nodes:
        children, key, name = _children(node, len(nodes)), None, ""
        for attribute in map(protobuf.message, protobuf.parts(node, 2)):
            if protobuf.text(attribute, 1) == "VARIABLE_VALUE":
                key, name = protobuf.text(attribute, 3), protobuf.text(attribute, 2)
        graph.append(Node(children, key, name))
    return tuple(graph)


def _program_graph(raw: memoryview, tensors: Mapping[str, np.ndarray]) -> tuple[Node, ...]:
    """The nodes of the SavedObjectGraph in saved_model.pb; a variable's key is its path, or its name."""
    programs = protobuf.parts(protobuf.message(raw), 2)
    graphs = protobuf.parts(protobuf.message(programs[0]), 7) if programs else []
    nodes = _nodes(graphs[0]) if graphs else []
    children = [_children(node, len(nodes)) for node in nodes]
    names = {
        number: protobuf.text(protobuf.message(variable), 6)
        for number, node in enumerate(nodes)
        for variable in protobuf.parts(node, 7)
    }
    keys = {number: name for number, name in names.items() if name in tensors}
    for key in tensors:
        number = _follow(children, key.removesuffix(VARIABLE)) if key.endswith(VARIABLE) else None
        if number in names:
            keys[number] = key
    return tuple(Node(children[number], keys.get(number), names.get(number, "")) for number in range(len(nodes)))


def _follow(children: list[dict[str, int]], path: str) -> int | None:
    """The node at a path as the table writes it, where "." inside a name is ".." and "/" is ".S"."""
    number = 0
    for name in path.split("/"):
        name = name.replace(".S", "/").replace("..", ".")
        if number >= len(children) or name not in children[number]:
            return None
        number = children[number][name]
    return number


def _children(node: dict[int, list], nodes: int) -> dict[str, int]:
    children = {}
    for part in protobuf.parts(node, 1):
        child = protobuf.message(part)
        number = protobuf.number(child, 1)
        if number >= nodes:
            raise Malformed(f"a reference to object {number} of {nodes}")
        children[protobuf.text(child, 2)] = number
    return children
