"""What a camera wrote into a file beside the image."""

from __future__ import annotations

import io
from datetime import datetime

EXIF_IFD, DATE_TIME_ORIGINAL = 0x8769, 0x9003
FRONT = 1 << 17  # bytes in which JPEG, AVIF and HEIC announce EXIF


def date_taken(encoded: bytes) -> datetime | None:
    """When an image was taken, by the camera's own clock (EXIF's DateTimeOriginal); None where it does not say.

    Damaged EXIF is none: the image itself has been decoded by then.
    """
    if not _may_have_exif(encoded):
        return None
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            text = image.getexif().get_ifd(EXIF_IFD).get(DATE_TIME_ORIGINAL)
        return datetime.strptime(str(text).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except Exception:  # the many ways in which EXIF is damaged
        return None


def _may_have_exif(encoded: bytes) -> bool:
    """Whether it is worth while to parse the file for it."""
    match encoded[:4]:
        case b"\x89PNG":
            return b"eXIf" in encoded
        case b"RIFF":
            return b"EXIF" in encoded
        case b"II*\0" | b"MM\0*":
            return True
        case _:
            return b"Exif" in encoded[:FRONT]
