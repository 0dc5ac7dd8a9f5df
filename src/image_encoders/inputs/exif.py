"""Image metadata: EXIF, and XMP for what EXIF lacks.

Not read by Pillow, which gives up at the first damaged tag, with a warning.
"""

from __future__ import annotations

import re
from datetime import datetime

import numpy as np

PREFIX = b"Exif\0\0"  # which may stand before the TIFF that EXIF is, even twice
ORIENTATION, EXIF_DIRECTORY, DATE_TIME_ORIGINAL = 0x0112, 0x8769, 0x9003  # tags
NUMBERS = {3: 2, 4: 4, 8: 2, 9: 4}  # bytes of a whole number, by its type
TEXT = 2  # the type of texts
XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """EXIF's orientation, 2 to 8 if the image is not upright; 1 if none is stated."""
    tags = _Tags(exif)
    stated = tags.number(ORIENTATION, tags.first)
    if stated is None and (found := XMP.search(xmp)):
        return int(found[1])
    return 1 if stated is None else stated


def date_taken(exif: bytes) -> datetime | None:
    """When an image was taken, by the camera's own clock; None if unknown."""
    tags = _Tags(exif)
    text = tags.text(DATE_TIME_ORIGINAL, tags.number(EXIF_DIRECTORY, tags.first) or 0)
    try:
        return datetime.strptime(text.strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None


def upright(pixels: np.ndarray, exif: bytes, xmp: bytes = b"") -> np.ndarray:
    """An image as it is meant to be seen, contiguous."""
    return turned(pixels, orientation(exif, xmp))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """An image rotated and mirrored as EXIF's orientation says, contiguous."""
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


class _Tags:
    """The tags of a TIFF; unreadable ones are omitted.

    first: where the first directory begins; 0 where there is none
    """

    def __init__(self, content: bytes):
        begin = 0
        while content.startswith(PREFIX, begin):
            begin += len(PREFIX)
        self.content = content = content[begin:]
        self.little = content.startswith(b"II")
        self.first = self._integer(4, 4) if content[:4] in (b"II*\0", b"MM\0*") else 0

    def number(self, tag: int, directory: int) -> int | None:
        """A tag that is a whole number; of several the first."""
        kind, count, place = self._entry(tag, directory)
        if kind not in NUMBERS or not count:
            return None
        length = NUMBERS[kind]
        if count * length > 4:
            place = self._integer(place, 4)
        return self._integer(place, length) if place + length <= len(self.content) else None

    def text(self, tag: int, directory: int) -> str:
        """A tag that is a text, else an empty one."""
        kind, count, place = self._entry(tag, directory)
        if kind != TEXT or count <= 4:
            return ""
        begin = self._integer(place, 4)
        return self.content[begin : begin + count].decode("latin-1")

    def _entry(self, tag: int, directory: int) -> tuple[int, int, int]:
        """The type of a tag, how many of it there are, and where its value stands, or where that says where it is."""
        for at in range(directory + 2, directory + 2 + 12 * self._integer(directory, 2), 12):
            if not directory or at + 12 > len(self.content):
                break
            if self._integer(at, 2) == tag:
                return self._integer(at + 2, 2), self._integer(at + 4, 4), at + 8
        return 0, 0, 0

    def _integer(self, at: int, length: int) -> int:
        return int.from_bytes(self.content[at : at + length], "little" if self.little else "big")
