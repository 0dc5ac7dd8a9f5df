"""JPEG files to pixels, by simplejpeg: Pillow's pixels, in half the time, and damage is noticed.

Pillow discards libjpeg's warnings. Here each of them is an error, but for those that no pixel depends on: junk between
the header's segments, zero bytes between the last scan and the end of the image, a JFIF version or parameters of a
sequential scan that libjpeg does not know. libjpeg reports its first warning alone, so a file with one of these is
decoded again without its cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

import numpy as np
import simplejpeg

from image_encoders.errors import InputError

SOF_SEQUENTIAL = (0xC0, 0xC1, 0xC9)
SOI, EOI, SOS, APP0 = 0xD8, 0xD9, 0xDA, 0xE0
WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))  # markers that no length follows
MARKER = re.compile(rb"\xff([^\0\xff])", re.DOTALL)  # where libjpeg finds the next one
AFTER_SCAN = re.compile(rb"\xff([^\0\xff\xd0-\xd7])", re.DOTALL)  # the same where restart markers belong to the data
MAX_SEGMENTS = 2**16  # an image has some dozens; its profile and metadata at most a few thousand

HARMLESS = re.compile(
    r"Corrupt JPEG data: \d+ extraneous bytes|Warning: unknown JFIF revision|Invalid SOS parameters for sequential"
)
DAMAGED = ("Corrupt JPEG data", "Inconsistent progression", "Unknown Adobe color transform")


def decode_jpeg(encoded: bytes, colours: str, divisor: int = 1) -> tuple[np.ndarray, tuple[int, int]] | None:
    """The pixels of a JPEG file, (H, W, 3 or 4) uint8, and (width, height) as libjpeg reads them in its header.

    colours: "RGB", or "CMYK" for files with four inks
    divisor: 2, 4 or 8: decode at that fraction of its size
    returns: None where simplejpeg knows neither the file's sampling nor its coding: Pillow may

    Raises InputError: "truncated", or "corrupt" where pixels may be wrong.
    """
    plain = encoded
    found = _decode(plain, colours, divisor)
    for without in (_without_header_oddities, _without_padding):
        if isinstance(found, str) and HARMLESS.match(found):
            plain = without(plain)
            found = _decode(plain, colours, divisor)
    if not isinstance(found, str):
        return found
    if "remature end" in found:
        raise InputError(f"JPEG that ends too early, after {len(encoded)} bytes", code="truncated")
    if plain is not encoded or found.startswith(DAMAGED):
        raise InputError(f"JPEG with damaged pixels: {found}", code="corrupt")
    return None


def check_scans(encoded: bytes, most: int) -> None:
    """Raise InputError ("too-many-scans") where a JPEG file has more than `most`."""
    if encoded.count(bytes((0xFF, SOS))) <= most:  # thumbnails and all; no data within a scan has these two bytes
        return
    scans = (marker for marker, _, _ in segments(encoded) if marker == SOS)
    if next(islice(scans, most, None), None) is not None:
        raise InputError(
            f"JPEG of more than {most} scans, each of which passes over the whole image; a progressive one has about "
            "10 (IMAGE_ENCODERS_MAX_SCANS)",
            code="too-many-scans",
        )


def segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, where it begins, where its segment ends) as libjpeg finds them, to the end of the image.

    Raises InputError where there are more than `MAX_SEGMENTS`.
    """
    at, pattern = 2, MARKER
    for _ in range(MAX_SEGMENTS):
        found = pattern.search(encoded, at)
        if found is None:
            return
        marker, begin = found[1][0], found.start()
        length = (
            0 if marker in WITHOUT_LENGTH or marker == EOI else int.from_bytes(encoded[begin + 2 : begin + 4], "big")
        )
        at, pattern = begin + 2 + length, AFTER_SCAN if marker == SOS else MARKER
        yield marker, begin, at
        if marker == EOI:
            return
    raise InputError(f"JPEG of more than {MAX_SEGMENTS:,} segments", code="corrupt")


def _decode(encoded: bytes, colours: str, divisor: int) -> tuple[np.ndarray, tuple[int, int]] | str:
    """As `decode_jpeg`; or what libjpeg says against the file, a warning or an error."""
    try:
        height, width = simplejpeg.decode_jpeg_header(encoded)[:2]
        smaller = {"min_height": height // divisor, "min_width": width // divisor} if divisor > 1 else {}
        return simplejpeg.decode_jpeg(encoded, colours, **smaller), (width, height)
    except ValueError as error:
        return str(error)


def _without_header_oddities(encoded: bytes) -> bytes:
    """The same JPEG without what libjpeg warns of in headers and no pixel depends on."""
    parts, at = [encoded[:2]], 2
    sequential = scanned = False
    for marker, begin, end in segments(encoded):
        between, segment = encoded[at:begin], encoded[begin:end]
        if scanned or b"Adobe" in between:  # pixels were lost with it, or what their colours mean
            parts.append(between)
        if marker == APP0 and segment[4:9] == b"JFIF\0":
            segment = segment[:9] + b"\1" + segment[10:]
        elif marker == SOS and sequential:
            segment = segment[:-3] + b"\0\x3f\0"
        parts.append(segment)
        at, sequential, scanned = end, sequential or marker in SOF_SEQUENTIAL, scanned or marker == SOS
    return b"".join(parts) + encoded[at:]


def _without_padding(encoded: bytes) -> bytes:
    """The same JPEG without the zero and fill bytes that stand before the end of the image.

    Where they are not padding, but have taken the place of data, libjpeg will miss it.
    """
    end = next((begin for marker, begin, _ in segments(encoded) if marker == EOI), len(encoded))
    last = len(encoded[:end].rstrip(b"\0\xff"))
    last += 2 * encoded.startswith(b"\xff\0", last)  # a byte of 255 in the data
    return encoded[:last] + encoded[end:]
