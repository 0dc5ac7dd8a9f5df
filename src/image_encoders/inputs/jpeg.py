"""JPEG files to pixels, by simplejpeg: the same pixels as Pillow in half the time, and damage is detected.

Pillow discards libjpeg's warnings. Here each of them is an error, except those that affect no pixel: junk between
the header's segments, zero bytes between the last scan and the end of the image, a JFIF version or parameters of a
sequential scan that libjpeg does not know. libjpeg reports only its first warning, so a file with one of these is
decoded again without its cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from io import BytesIO
from itertools import islice

import numpy as np
import simplejpeg
from PIL import Image, JpegImagePlugin

from image_encoders.errors import InputError
from image_encoders.inputs.exif import PREFIX, orientation, upright
from image_encoders.inputs.limits import ImageLimits
from image_encoders.inputs.pillow import PillowFile, pil_pixels

SOF_SEQUENTIAL = (0xC0, 0xC1, 0xC9)
EOI, SOS, APP0, APP1 = 0xD9, 0xDA, 0xE0, 0xE1
ADOBE_XMP = b"http://ns.adobe.com/xap/1.0/\0"
MARGIN = 1.5  # a JPEG is decoded smaller only while its short side stays this many times what is asked for
WITHOUT_LENGTH = (0x01, *range(0xD0, 0xDA))  # markers that no length follows
MARKER = re.compile(rb"\xff([^\0\xff])", re.DOTALL)  # where libjpeg finds the next one
AFTER_SCAN = re.compile(rb"\xff([^\0\xff\xd0-\xd7])", re.DOTALL)  # the same where restart markers belong to the data
MAX_SEGMENTS = 2**16  # an image has some dozens; its profile and metadata at most a few thousand

HARMLESS = re.compile(
    r"Corrupt JPEG data: \d+ extraneous bytes|Warning: unknown JFIF revision|Invalid SOS parameters for sequential"
)
DAMAGED = ("Corrupt JPEG data", "Inconsistent progression", "Unknown Adobe color transform")


class JpegFile:
    """A JPEG whose header has been read."""

    def __init__(self, encoded: bytes, limits: ImageLimits):
        self.encoded, self.limits = encoded, limits
        try:
            height, width, self.colours, _ = simplejpeg.decode_jpeg_header(encoded, strict=False)
        except ValueError:  # a sampling that simplejpeg does not know, or damage
            self.size, self.colours = self._by_pillow().size, ""
        else:
            self.size = width, height
            limits.check_pixels(width, height)

    @cached_property
    def exif(self) -> bytes:
        """Its EXIF, which may come in parts."""
        return b"".join(self._metadata(PREFIX))

    @property
    def orientation(self) -> int:
        """As EXIF or XMP state it."""
        return orientation(self.exif, self.xmp)

    @property
    def xmp(self) -> bytes:
        return next(self._metadata(ADOBE_XMP), b"")

    def _metadata(self, name: bytes) -> Iterator[bytes]:
        """What stands in the header's segments of that name."""
        for marker, begin, end in segments(self.encoded):
            if marker == SOS:
                break
            if marker == APP1 and self.encoded.startswith(name, begin + 4):
                yield self.encoded[begin + 4 + len(name) : end]

    def pixels(self, short_side: int | None = None) -> np.ndarray:
        """(H, W, 3) uint8, upright.

        short_side: what its short side will be resized to [px]; the file's size may then be divided by 2, 4 or 8

        Raises InputError: "truncated", "too-many-scans", or "corrupt" where pixels may be wrong.
        """
        check_scans(self.encoded, self.limits.max_scans)
        plain, divisor = self.encoded, _divisor(self.size, short_side)
        found = self._decode(plain, divisor)
        for without in (_without_header_oddities, _without_padding):
            if isinstance(found, str) and HARMLESS.match(found):
                plain = without(plain)
                found = self._decode(plain, divisor)
        if isinstance(found, str):
            if "remature end" in found:
                raise InputError(f"JPEG that ends too early, after {len(self.encoded)} bytes", code="truncated")
            if plain is not self.encoded or found.startswith(DAMAGED):
                raise InputError(f"JPEG with damaged pixels: {found}", code="corrupt")
            found = pil_pixels(self._by_pillow().image)
        return upright(found, self.exif, self.xmp)

    def _decode(self, encoded: bytes, divisor: int) -> np.ndarray | str:
        """The pixels; or libjpeg's warning or error."""
        width, height = self.size
        smaller = {"min_height": height // divisor, "min_width": width // divisor} if divisor > 1 else {}
        inks = self.colours in ("CMYK", "YCCK")
        try:
            pixels = simplejpeg.decode_jpeg(encoded, "CMYK" if inks else "RGB", **smaller)
        except ValueError as error:
            return str(error)
        if inks:  # Pillow takes all four as inverted, as Adobe writes them
            image = Image.frombytes("CMYK", pixels.shape[1::-1], pixels.tobytes(), "raw", "CMYK;I")
            return np.array(image.convert("RGB"))
        return pixels

    def _by_pillow(self) -> PillowFile:
        return PillowFile(JpegImagePlugin.JpegImageFile(BytesIO(self.encoded)), self.limits)


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
        at, pattern = begin + 2, AFTER_SCAN if marker == SOS else MARKER
        if marker not in WITHOUT_LENGTH:
            at += max(int.from_bytes(encoded[at : at + 2], "big"), 2)
        yield marker, begin, at
        if marker == EOI:
            return
    raise InputError(f"JPEG of more than {MAX_SEGMENTS:,} segments", code="corrupt")


def _divisor(size: tuple[int, int], short_side: int | None) -> int:
    """The divisor of a JPEG's sides for the smallest image that is large enough.

    Only powers of two, as other scales are slower than full size; and without remainder, since libjpeg would round up
    and so stretch the image, which costs more (PSNR 28 to 42 dB at 224 px) than its coarser pixels do (40 to 55).
    """
    if short_side is None:
        return 1
    fine = (n for n in (8, 4, 2) if not any(side % n for side in size) and min(size) >= MARGIN * short_side * n)
    return next(fine, 1)


def _without_header_oddities(encoded: bytes) -> bytes:
    """The same JPEG without the parts of its headers that libjpeg warns about and that affect no pixel."""
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

    If they are not padding but overwrote data, libjpeg will detect the missing data.
    """
    end = next((begin for marker, begin, _ in segments(encoded) if marker == EOI), len(encoded))
    last = len(encoded[:end].rstrip(b"\0\xff"))
    last += 2 * encoded.startswith(b"\xff\0", last)  # a byte of 255 in the data
    return encoded[:last] + encoded[end:]
