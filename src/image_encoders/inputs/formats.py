"""The formats of image files: one table of their names, suffixes, signatures and decoders."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

import numpy as np
from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, ImageFile, WebPImagePlugin

from image_encoders.errors import InputError
from image_encoders.inputs.jpeg import JpegFile
from image_encoders.inputs.limits import ImageLimits
from image_encoders.inputs.pillow import PillowFile, PngFile, TiffFile


class OpenImage(Protocol):
    """A file whose header has been read and whose size is within the limits.

    size: (width, height) as stored, which `orientation` may swap; `pixels` are upright
    """

    size: tuple[int, int]

    @property
    def exif(self) -> bytes: ...

    @property
    def orientation(self) -> int: ...

    def pixels(self, short_side: int | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class ImageFormat:
    """A format of image files.

    suffixes: of their names, in lower case
    signature: what their first 256 bytes match
    open: their bytes, and limits -> the open file
    ends: whether a file that could not be decoded is nevertheless complete
    """

    name: str
    suffixes: Sequence[str]
    signature: bytes
    open: Callable[[bytes, ImageLimits], OpenImage]
    ends: Callable[[bytes], bool]


def image_format(encoded: bytes) -> ImageFormat:
    """The format of a file, by its first bytes.

    Raises InputError: "empty", "unsupported", "not-an-image".
    """
    head = encoded[:256]
    for format in IMAGE_FORMATS:
        if re.match(format.signature, head, re.DOTALL):
            return format
    for name, signature in NOT_ACCEPTED.items():
        if re.match(signature, head, re.DOTALL):
            raise InputError(f"a {name} file; accepted: {NAMES}", code="unsupported")
    if not encoded:
        raise InputError(f"empty, 0 bytes; accepted: {NAMES}", code="empty")
    hint = "; pass a path as str: os.fsdecode converts it" if PATH.fullmatch(encoded) else ""
    raise InputError(
        f"not an image: {len(encoded)} bytes that begin with {_shown(encoded[:12])}{hint}; accepted: {NAMES}",
        code="not-an-image",
    )


def _shown(head: bytes) -> str:
    """The first bytes of a file as text, or else as hexadecimal digits."""
    text = " ".join(head.decode("latin-1").split())
    return f'"{text}"' if text.isascii() and text.isprintable() else head.hex(" ")


def _by(plugin: Callable[[BytesIO], ImageFile.ImageFile]) -> Callable[[bytes, ImageLimits], OpenImage]:
    return lambda encoded, limits: PillowFile(plugin(BytesIO(encoded)), limits)


def _heif(file: BytesIO) -> ImageFile.ImageFile:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise InputError(
            "a HEIC file, which needs pillow-heif: pip install 'image-encoders[heif]'", code="unsupported"
        ) from error
    return HeifImageFile(file)


def _last(pattern: bytes) -> Callable[[bytes], bool]:
    return lambda encoded: re.search(pattern, encoded[-64:]) is not None


def _boxes_end(encoded: bytes) -> bool:
    """Whether an ISO media file holds its last box; each begins with its length, 0 being to the end of the file."""
    position = 0
    while (size := int.from_bytes(encoded[position : position + 4], "big")) >= 8:
        position += size
    return position <= len(encoded)


IMAGE_FORMATS = (
    ImageFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), rb"\xff\xd8\xff", JpegFile, _last(rb"\xff\xd9")),
    ImageFormat("PNG", (".png",), rb"\x89PNG\r\n\x1a\n", PngFile, _last(rb"IEND\xae\x42\x60\x82")),
    ImageFormat(
        "WebP",
        (".webp",),
        rb"RIFF....WEBP",
        _by(WebPImagePlugin.WebPImageFile),
        lambda encoded: len(encoded) >= 8 + int.from_bytes(encoded[4:8], "little"),
    ),
    ImageFormat("GIF", (".gif",), rb"GIF8[79]a", _by(GifImagePlugin.GifImageFile), _last(rb";\0*\Z")),
    ImageFormat(
        "BMP",
        (".bmp", ".dib"),
        rb"BM",
        _by(BmpImagePlugin.BmpImageFile),
        lambda encoded: len(encoded) >= int.from_bytes(encoded[2:6], "little"),
    ),
    ImageFormat("TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", TiffFile, lambda encoded: True),
    # an ISO media file says what it is by its brands, the first of which stands at byte 8
    ImageFormat("AVIF", (".avif",), rb"....ftyp(?:.{4}){0,32}?avi[fs]", _by(AvifImagePlugin.AvifImageFile), _boxes_end),
    ImageFormat(
        "HEIC",
        (".heic", ".heif"),
        rb"....ftyp(?:.{4}){0,32}?(?:hei[cxms]|hev[cxms]|mif1|msf1)",
        _by(_heif),
        _boxes_end,
    ),
)
NOT_ACCEPTED = {
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "Photoshop": rb"8BPS",
    "icon": rb"\0\0[\1\2]\0",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "SVG": rb"\s*(?:<\?xml.{0,200})?<svg",
}
NAMES = ", ".join(format.name for format in IMAGE_FORMATS)
SUFFIXES = frozenset(suffix for format in IMAGE_FORMATS for suffix in format.suffixes)
PATH = re.compile(rb"[^\0-\x1f]{1,4096}\.\w{3,4}")  # bytes that are no image, but may well be the path of one
