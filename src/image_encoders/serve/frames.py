"""What passes between the service and its workers: a length, a header in JSON, raw bytes. Nothing is pickled."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import IO, Any

LENGTHS = struct.Struct("<IQ")  # of the header, of the bytes

Frame = tuple[dict[str, Any], bytes]


def pack(header: dict[str, Any], content: bytes = b"") -> bytes:
    """A frame, ready to be sent."""
    head = json.dumps(header, separators=(",", ":")).encode()
    return b"".join((LENGTHS.pack(len(head), len(content)), head, content))


def read(stream: IO[bytes]) -> Frame | None:
    """The next frame; None where the other end has closed."""
    lengths = stream.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    head, content = LENGTHS.unpack(lengths)
    header, body = stream.read(head), stream.read(content)
    return (json.loads(header), body) if len(body) == content and len(header) == head else None


async def receive(stream: asyncio.StreamReader) -> Frame | None:
    """The same in a coroutine."""
    try:
        head, content = LENGTHS.unpack(await stream.readexactly(LENGTHS.size))
        return json.loads(await stream.readexactly(head)), await stream.readexactly(content)
    except (asyncio.IncompleteReadError, OSError):
        return None
