"""How an image is to be turned, as its metadata states it: EXIF, and XMP where EXIF does not."""

from __future__ import annotations

import re

import numpy as np

SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
TAG = 0x0112
LENGTHS = {3: 2, 4: 4, 8: 2, 9: 4}  # bytes of a whole number, by EXIF's types
XMP = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation(exif: bytes, xmp: bytes = b"") -> int | None:
    """EXIF's orientation, of which 2 to 8 have a meaning; None where none is stated.

    exif: a TIFF of metadata, with or without the "Exif" in front of it; what cannot be read of it is passed over
    """
    exif = re.sub(rb"^(?:Exif\0\0){1,2}", b"", exif)
    order = "little" if exif[:2] == b"II" else "big"
    found = None

    def number(begin: int, length: int) -> int:
        return int.from_bytes(exif[begin : begin + length], order)  # type: ignore[arg-type]

    if exif[:4] in (b"II*\0", b"MM\0*"):
        directory = number(4, 4)
        for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
            length = LENGTHS.get(number(entry + 2, 2))
            if entry + 12 <= len(exif) and number(entry, 2) == TAG and length and number(entry + 4, 4) == 1:
                found = number(entry + 8, length)
                break
    if found is None and (stated := XMP.search(xmp)):
        found = int(stated[1])
    return found


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """An image as it is meant to be seen, contiguous, for EXIF's orientation."""
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
