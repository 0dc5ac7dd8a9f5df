"""Protocol buffers, read field by field without a schema.

Source: the wire format at https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator

from image_encoders.weights.files import Malformed


def varint(raw: memoryview, at: int) -> tuple[int, int]:
    """The unsigned number at `at`, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            break
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise Malformed("a number that does not end")


def fields(raw: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Every field of a message in its order: its number, and an int or, for text and messages, their bytes."""
    at = 0
    while at < len(raw):
        tag, at = varint(raw, at)
        kind = tag & 7
        value: int | memoryview
        if kind == 0:
            value, at = varint(raw, at)
        else:
            if kind == 2:
                size, at = varint(raw, at)
            else:
                size = {1: 8, 5: 4}.get(kind, -1)
            if size < 0 or at + size > len(raw):
                raise Malformed(f"field {tag >> 3} of kind {kind} does not fit into its message")
            value = raw[at : at + size]
            at += size
            if kind != 2:
                value = int.from_bytes(value, "little")
        yield tag >> 3, value


def message(raw: memoryview) -> dict[int, list]:
    """All values of a message by field number, each in its order."""
    found: dict[int, list] = {}
    for number, value in fields(raw):
        found.setdefault(number, []).append(value)
    return found


def number(found: dict[int, list], index: int) -> int:
    """The last value of an integer field; 0 where there is none."""
    value = found.get(index, [0])[-1]
    if not isinstance(value, int):
        raise Malformed(f"field {index} is not a number")
    return value


def parts(found: dict[int, list], index: int) -> list[memoryview]:
    """Every value of a field of text or messages."""
    values = found.get(index, [])
    if not all(isinstance(value, memoryview) for value in values):
        raise Malformed(f"field {index} is not text")
    return values


def text(found: dict[int, list], index: int) -> str:
    """The last value of a text field."""
    values = parts(found, index)
    return bytes(values[-1]).decode() if values else ""
