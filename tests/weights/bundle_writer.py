"""Writes small SavedModel folders in TensorFlow's layout, for tests of the reader: whole, or broken in one place."""

from __future__ import annotations

import struct
from pathlib import Path

import google_crc32c
import numpy as np

DTYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "float16": 19}


def masked(raw: bytes) -> int:
    crc = google_crc32c.value(raw)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def block(entries: list[tuple[bytes, bytes]], restart_every: int = 4) -> bytes:
    out, restarts, last = b"", [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % restart_every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return out + b"".join(struct.pack("<I", r) for r in restarts or [0]) + struct.pack("<I", len(restarts or [0]))


def table(
    entries: list[tuple[bytes, bytes]],
    per_block: int = 5,
    compressed: bool = False,
    restart_every: int = 4,
    repeated: int = 1,
) -> bytes:
    """repeated: how often the index names each block"""
    out, index = b"", []

    def place(content: bytes) -> bytes:
        nonlocal out
        handle = varint(len(out)) + varint(len(content))
        kind = b"\x01" if compressed else b"\x00"
        out += content + kind + struct.pack("<I", masked(content + kind))
        return handle

    for at in range(0, len(entries), per_block):
        part = entries[at : at + per_block]
        index += [(part[-1][0], place(block(part, restart_every)))] * repeated
    meta = place(block([]))
    footer = meta + place(block(index, restart_every=1))
    return out + footer.ljust(40, b"\x00") + struct.pack("<Q", 0xDB4775248B80FB57)


def entry(dtype: int, shape: tuple[int, ...], shard: int, offset: int, raw: bytes, checksum: int) -> bytes:
    axes = b"".join(field(2, field(1, size)) for size in shape)
    out = field(1, dtype) + field(2, axes)
    for number, value in ((3, shard), (4, offset), (5, len(raw))):
        out += field(number, value) if value else b""
    return out + varint(6 << 3 | 5) + struct.pack("<I", checksum)


def text_tensor(text: bytes) -> tuple[bytes, int]:
    """A string tensor's bytes, and the checksum of its entry."""
    number = struct.pack("<I", len(text))
    rest = struct.pack("<I", masked(number)) + text
    return varint(len(text)) + rest, masked(number + rest)


def trackable_graph(nodes: list[tuple[dict[str, int], str, str]]) -> bytes:
    """nodes: children, the variable's full name, its key ("" where the node is none)"""
    out = bytearray()
    for children, name, key in nodes:
        node = b"".join(field(1, field(1, child) + field(2, local)) for local, child in children.items())
        if key:
            node += field(2, field(1, "VARIABLE_VALUE") + field(2, name) + field(3, key))
        out += field(1, node)
    return bytes(out)


def program(nodes: list[tuple[dict[str, int], str]]) -> bytes:
    """A saved_model.pb that holds nothing but an object graph; nodes: children, the variable's name."""
    out = b""
    for children, name in nodes:
        node = b"".join(field(1, field(1, child) + field(2, local)) for local, child in children.items())
        if name:
            node += field(7, field(1, 1) + field(6, name))
        out += field(1, node)
    return field(1, 1) + field(2, field(7, out))


def write(
    folder: Path,
    tensors: dict[str, np.ndarray],
    graph: bytes | None = None,
    shards: int = 1,
    compressed: bool = False,
    extra: dict[str, bytes] | None = None,
) -> Path:
    """A SavedModel folder with these tensors, dealt out to the data files in turn."""
    (folder / "variables").mkdir(parents=True)
    files = [b""] * shards
    entries: dict[str, bytes] = dict(extra or {})
    for number, (key, array) in enumerate(tensors.items()):
        raw, shard = np.ascontiguousarray(array).tobytes(), number % shards
        dtype = DTYPES[array.dtype.name]
        entries[key] = entry(dtype, array.shape, shard, len(files[shard]), raw, masked(raw))
        files[shard] += raw
    if graph is not None:
        raw, checksum = text_tensor(graph)
        entries["_CHECKPOINTABLE_OBJECT_GRAPH"] = entry(7, (), shards - 1, len(files[-1]), raw, checksum)
        files[-1] += raw
    header = field(1, shards) + field(3, field(1, 1))
    rows = [(b"", header), *sorted((key.encode(), value) for key, value in entries.items())]
    (folder / "variables/variables.index").write_bytes(table(rows, compressed=compressed))
    for number, raw in enumerate(files):
        (folder / f"variables/variables.data-{number:05}-of-{shards:05}").write_bytes(raw)
    return folder
