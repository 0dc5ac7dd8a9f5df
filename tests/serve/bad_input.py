"""What nobody should send, and somebody will: made here, by name."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image


def photo(height: int = 96, width: int = 128) -> Image.Image:
    """An image with something in it."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


GOOD = encoded(photo(), "JPEG", quality=90)


def truncated() -> Iterator[tuple[str, bytes]]:
    """Files of four formats that end after every tenth of them."""
    for kind, options in (("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {})):
        whole = encoded(photo(), kind, **options)
        for tenth in range(10):
            yield f"{kind} ends after {tenth} tenths", whole[: len(whole) * tenth // 10]


def flipped(count: int = 60) -> Iterator[tuple[str, bytes]]:
    """Files with some of their bits changed: they may be images still."""
    draw = random.Random(0)
    for number in range(count):
        kind = ("JPEG", "PNG", "WEBP", "GIF")[number % 4]
        content = bytearray(encoded(photo(), kind))
        for _ in range(draw.choice((1, 3, 30))):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        yield f"{kind} with changed bits, {number}", bytes(content)


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG of these sizes, whatever its compressed rows hold."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    """A GIF that says it is so large, of one small frame or of one as large."""
    whole = bytearray(encoded(Image.new("P", (1, 1)), "GIF"))
    whole[6:10] = struct.pack("<HH", width, height)
    at = whole.index(b",")
    whole[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(whole)


def webp(width: int, height: int) -> bytes:
    """A lossless WebP of this size in a few bytes, whose pixels are all the same."""
    head = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14)
    body = head + bytes(16)
    return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files of very many pixels."""
    zeros = zlib.compress(bytes(16 << 20), 9)
    yield "PNG of 30,000 x 30,000", png(30_000, 30_000, zeros)
    yield "PNG of 2 to the 31", png(2**31 - 1, 2**31 - 1, zeros)
    yield "PNG of one bit a pixel", png(100_000, 100_000, zeros, depth=1, colour=0)
    yield "PNG whose text is a bomb", _png_with_text()
    yield "GIF of 65,535 x 65,535", gif(65_535, 65_535)
    yield "WebP of 16,383 x 16,383", webp(16_383, 16_383)
    yield "JPEG that says 65,500 x 65,500", _jpeg_that_says(65_500, 65_500)


def _png_with_text() -> bytes:
    whole = png(30_000, 30_000, b"")
    text = b"a\0\0" + zlib.compress(bytes(64 << 20), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    return whole[:33] + chunk + whole[33:]


def _jpeg_that_says(width: int, height: int) -> bytes:
    whole = bytearray(GOOD)
    at = whole.index(b"\xff\xc0")
    whole[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(whole)


def strips() -> Iterator[tuple[str, bytes]]:
    """Images of one pixel's width, or with more in them than their size: images, or not, at little cost either way."""
    yield "PNG whose rows go on and on", png(8, 8, zlib.compress(bytes(64 << 20), 9))
    yield "PNG whose rows never end", png(8, 8, zlib.compress(bytes(64 << 20), 9)[:-4])
    for size in ((1, 65_500), (65_500, 1)):
        for kind in ("JPEG", "PNG"):
            yield f"{kind} of {size[0]} x {size[1]}", encoded(Image.new("RGB", size), kind)


def no_images() -> Iterator[tuple[str, bytes]]:
    """Bytes that are something else."""
    yield "nothing", b""
    yield "one byte", b"\xff"
    yield "a page", b"<!doctype html><script>alert(1)</script>"
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "PDF", b"%PDF-1.7\n1 0 obj<<>>endobj"
    yield "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file"
    yield "ZIP", b"PK\x03\x04" + bytes(100)
    yield "pickle", b"\x80\x04cos\nsystem\n(S'touch /tmp/pwned'\ntR."
    yield "zeros", bytes(10_000)
    yield "noise", random.Random(1).randbytes(10_000)
    yield "a path", b"/etc/passwd"
    yield "only the first bytes of a JPEG", b"\xff\xd8\xff\xe0"
    yield "text in place of a JPEG's data", GOOD[:200] + b"text" * 200


def bad_bodies() -> Iterator[tuple[str, bytes]]:
    """Bodies of /v1/embeddings that are no requests."""
    yield "nothing", b""
    yield "half", b'{"input": ["a'
    yield "no JSON", b"input=a"
    yield "a list", b"[]"
    yield "a number", b"1"
    yield "null", b"null"
    yield "NaN", b'{"input": NaN}'
    yield "a huge number", b'{"input": ' + b"9" * 10_000 + b"}"
    yield "a huge exponent", b'{"input": "a", "dimensions": 1e999999}'
    yield "no text", b'{"input": "\xff\xfe"}'
    yield "half a character", b'{"input": "\\ud800"}'
    yield "half a character as a name", b'{"input": "a", "\\ud800": 1}'
    yield "half a character as the model", b'{"input": "a", "model": "\\ud800"}'
    yield "a zero in the model", b'{"input": "a", "model": "a\\u0000b"}'
    yield "no input", b'{"model": "clip/demo"}'
    yield "empty input", b'{"input": []}'
    yield "null input", b'{"input": null}'
    yield "items of no kind", b'{"input": [{}, {"a": 1}, null, true, 1.5]}'
    yield "items of two kinds", b'{"input": [{"text": "a", "image": "b"}]}'
    yield "10,000 items", json.dumps({"input": ["a"] * 10_000}).encode()
    yield "token numbers", b'{"input": [[1, 2, 3]]}'
    yield "lists in lists", b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    yield "objects in objects", b'{"input": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"
    yield "lists without end", b"[" * 1_000_000
    yield "an unknown model", b'{"input": "a", "model": "clip/openai/clip-vit-base-patch32"}'
    yield "a path as the model", b'{"input": "a", "model": "../../etc/passwd"}'
    yield "an unknown format", b'{"input": "a", "encoding_format": "pickle"}'
    yield "no dimensions", b'{"input": "a", "dimensions": 0}'
    yield "other dimensions", b'{"input": "a", "dimensions": 7}'
    yield "a huge count of dimensions", b'{"input": "a", "dimensions": 99999999999999999999999}'
    yield "an unknown field", b'{"input": "a", "definition": "/etc/passwd"}'
    yield "a modality that it has not", b'{"input": ["aaaa"], "modality": "audio"}'
    yield "an unknown modality", b'{"input": ["a"], "modality": "video"}'


def bad_strings() -> Iterator[tuple[str, object]]:
    """Items of /v1/embeddings that are no images."""
    yield "wrong base64", {"image": "!!!"}
    yield "base64 of odd length", {"image": "abcde"}
    yield "base64 with text after it", {"image": "YWJj====YWJj"}
    yield "base64 of other letters", {"image": "YWé="}
    yield "base64 of no image", {"image": "YWJj"}
    yield "no data in a data URL", "data:image/png;base64,"
    yield "a data URL without a comma", "data:image/png;base64"
    yield "a data URL of wrong base64", "data:image/png;base64,!"
    yield "half a character in base64", {"image": "YW\ud800"}
    yield "half a character in a text", "a\ud800"
    yield "a file", {"url": "file:///etc/passwd"}
    yield "a path", {"image": "/etc/passwd"}
    yield "a path as an address", {"url": "/etc/passwd"}
    yield "an address", {"url": "http://127.0.0.1/"}
    yield "an FTP address", {"url": "ftp://127.0.0.1/"}
    yield "a long text", "a" * 100_000
    yield "no text", ""
    yield "sound", {"audio": "YWJj"}
