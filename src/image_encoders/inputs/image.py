"""Files, bytes, PIL images and arrays to the pixels of an image.

    source ─read_image→ (H, W, 3) uint8 RGB, which inputs/preprocessing.py turns into a net's input

Every source of the same image gives the same pixels. `read_image(short_side=...)` gives that up for speed.

Differs from a plain `PIL.Image.open(path).convert("RGB")`:
    files and bytes are rotated upright (EXIF); PIL images and arrays are not
    transparency is composited on white, as in transformers 5; Pillow drops it
    16-bit grey is scaled to 8 bits, (v + 128) // 257; Pillow clips it to white; other 16-bit images keep
    the high byte, as in Pillow
    a JPEG with missing pixels is an error; Pillow fills the rest with grey
Colour profiles (ICC) are ignored, as every reference does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from PIL import Image

from image_encoders.arrays import as_array
from image_encoders.errors import InputError
from image_encoders.inputs.exif import SIDEWAYS, date_taken
from image_encoders.inputs.files import read_file, read_source, source_name
from image_encoders.inputs.formats import image_format
from image_encoders.inputs.limits import ImageLimits
from image_encoders.inputs.pillow import pil_pixels

ACCEPTED = "accepted: a path, an image file's bytes, an open file, a PIL image, a uint8 array (H, W) or (H, W, 1|3|4)"
MAX_BYTES_HINT = " (IMAGE_ENCODERS_MAX_BYTES)"


def read_image(
    source: Any, *, limits: ImageLimits | None = None, item: str | None = None, short_side: int | None = None
) -> np.ndarray:
    """The pixels of one image: (H, W, 3) uint8 RGB.

    source: path; bytes of an image file; an open file, read from its current position; PIL image; array or
        tensor (H, W), (H, W, 1|3|4) uint8. The format is recognised by content, never by name; of an animation the
        first image is read.
    limits: None: `ImageLimits.from_environment()`
    item: its name in error messages; None: the path
    short_side: what the image's short side will be resized to [px]. A JPEG may then be decoded at 1/2, 1/4 or
        1/8 of its size: only if both sides divide evenly, so that nothing shifts, and only down to `MARGIN` times
        this. It is still read and checked completely; `read_header` gives its full size.

    Raises InputError: "not-found", "not-a-file", "unreadable", "url"; "too-many-bytes", "too-many-pixels",
    "too-many-scans"; "empty", "not-an-image", "unsupported", "truncated", "corrupt"; "type", "dtype", "shape".
    """
    limits = limits or ImageLimits.from_environment()
    try:
        encoded = read_source(source, "image", limits.max_bytes, MAX_BYTES_HINT)
        if encoded is not None:
            return _decode(encoded, limits, short_side)
        if isinstance(source, Image.Image):
            limits.check_pixels(*source.size)
            with decoding(f"PIL image of mode {source.mode}"):
                return pil_pixels(source)
        return _array_pixels(source, limits)
    except InputError as error:
        if (name := item or source_name(source)) is None:
            raise
        raise error.named(name) from error.__cause__


@dataclass(frozen=True)
class ImageHeader:
    """Facts from an image file's header.

    width, height: of the upright image [px]
    taken: when, by the camera's own clock; None if unknown
    """

    width: int
    height: int
    taken: datetime | None


def read_header(encoded: bytes, *, limits: ImageLimits | None = None) -> ImageHeader:
    """Read an image file's header, without decoding its pixels.

    Raises InputError as `read_image` does for bytes whose header cannot be read.
    """
    format = image_format(encoded)
    with decoding(format.name, encoded, format.ends):
        file = format.open(encoded, limits or ImageLimits.from_environment())
        width, height = file.size[::-1] if file.orientation in SIDEWAYS else file.size
        return ImageHeader(width, height, date_taken(file.exif))


def read_bytes(path: str, limits: ImageLimits) -> bytes:
    """The bytes of an image file; see `read_file`."""
    return read_file(path, "image", limits.max_bytes, MAX_BYTES_HINT)


def _decode(encoded: bytes, limits: ImageLimits, short_side: int | None) -> np.ndarray:
    """An image file's pixels, upright."""
    format = image_format(encoded)
    with decoding(format.name, encoded, format.ends):
        return format.open(encoded, limits).pixels(short_side)


@contextmanager
def decoding(name: str, encoded: bytes = b"", ends: Callable[[bytes], bool] = lambda encoded: True) -> Iterator[None]:
    """Turn any error of a decoder into an InputError: damaged files can raise almost anything.

    ends: whether the encoded bytes are complete
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{name} that does not fit into memory", code="too-many-pixels") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{name} above Pillow's own limit: {error}; PIL.Image.MAX_IMAGE_PIXELS changes it", code="too-many-pixels"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if not ends(encoded) or re.search(r"truncated|premature end|\bEOF\b|end of file", reason, re.I):
            after = f", after {len(encoded)} bytes" if encoded else ""  # of a PIL image that is unknown
            raise InputError(f"{name} that ends too early{after}", code="truncated") from error
        raise InputError(f"{name} that cannot be decoded: {reason}", code="corrupt") from error


def _array_pixels(source: Any, limits: ImageLimits) -> np.ndarray:
    """(H, W, 3) uint8 of an array or tensor: grey repeated, the fourth channel taken as opacity over white."""
    if not hasattr(source, "__array__"):
        raise InputError(f"a {type(source).__name__}; {ACCEPTED}", code="type")
    array = as_array(source)
    if array.dtype != np.uint8:
        hint = "embed_image takes prepared floats" if array.dtype.kind == "f" else "scale it to 0..255 first"
        raise InputError(f"an array of {array.dtype}; uint8 is accepted ({hint})", code="dtype")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        hint = "; move the channels last" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise InputError(f"an array of shape {array.shape}; {ACCEPTED}{hint}", code="shape")
    if array.size == 0:
        raise InputError(f"an array of shape {array.shape}, without pixels", code="empty")
    limits.check_pixels(array.shape[1], array.shape[0])
    if array.ndim == 3 and array.shape[2] == 3:
        return array
    if array.ndim == 3 and array.shape[2] == 4:
        return pil_pixels(Image.fromarray(np.ascontiguousarray(array)))
    pixels = np.empty((*array.shape[:2], 3), np.uint8)
    pixels[...] = array.reshape(*array.shape[:2], 1)
    return pixels
