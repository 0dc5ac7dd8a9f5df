"""Pictures: files, bytes, PIL images and arrays to pixels, and the steps from pixels to a net's input.

    source ─read_image→ (H, W, 3) uint8 RGB ─resize, center_crop, channels_first→ (3, S, S) uint8

Every source of the same picture gives the same pixels, and the resizing steps equal Pillow's bit for bit. Two options
give that up for speed: `resize(exact=False)` and `read_image(short_side=...)`.

Differs from a plain `PIL.Image.open(path).convert("RGB")`:
    files and bytes are turned upright (EXIF); PIL images and arrays are taken as they are
    transparency is put on white, as transformers 5 does, where Pillow drops it
    16-bit grey is scaled to 8 bits, (v + 128) // 257, where Pillow clips it to white; other 16-bit pictures keep
    the high byte, as in Pillow
    a JPEG whose pixels are partly lost is an error, where Pillow paints the rest grey
Colour profiles (ICC) are ignored, as every reference does.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from image_encoders.arrays import as_array
from image_encoders.errors import InputError
from image_encoders.inputs.files import read_file, read_source, source_name
from image_encoders.inputs.formats import image_format
from image_encoders.inputs.limits import ImageLimits
from image_encoders.inputs.orientation import SIDEWAYS, upright
from image_encoders.inputs.pillow import pil_pixels

BILINEAR = Image.Resampling.BILINEAR
BICUBIC = Image.Resampling.BICUBIC
LANCZOS = Image.Resampling.LANCZOS
TORCH_MODES: dict[int, str] = {BILINEAR: "bilinear", BICUBIC: "bicubic"}
VECTORISED = ("AVX2", "AVX512")  # elsewhere torch is slower than Pillow, and starts threads

ACCEPTED = "accepted: a path, an image file's bytes, an open file, a PIL image, a uint8 array (H, W) or (H, W, 1|3|4)"
MAX_BYTES_HINT = " (IMAGE_ENCODERS_MAX_BYTES)"
MAX_RESIZED = 2**26  # pixels: a picture so thin that its long side passes this is an error, not a memory bomb


def read_image(
    source: Any, *, limits: ImageLimits | None = None, item: str | None = None, short_side: int | None = None
) -> np.ndarray:
    """The pixels of one picture: (H, W, 3) uint8 RGB.

    source: path; bytes of a picture file; one that is open for reading, from where it stands; PIL image; array or
        tensor (H, W), (H, W, 1|3|4) uint8. What a file is, its content says, never its name; of an animation the first
        picture is taken.
    limits: None: `ImageLimits.from_environment()`
    item: its name in error messages; None: the path
    short_side: what the picture's short side will be resized to [px]. A JPEG file or its bytes may then come at 1/2,
        1/4 or 1/8 of its size: only where both sides divide evenly, so that nothing shifts, and only down to `MARGIN`
        times this. It is read whole and checked as ever; `upright_size` says how large it is.

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


def upright_size(encoded: bytes, *, limits: ImageLimits | None = None) -> tuple[int, int]:
    """(width, height) of an image file as it is meant to be seen, after EXIF has turned it; from its headers only.

    But for a PNG whose EXIF or XMP follows its pixels, which are decoded to find it.

    Raises InputError as `read_image` does for bytes whose header cannot be read.
    """
    format = image_format(encoded)
    with decoding(format.name, encoded, format.ends):
        file = format.open(encoded, limits or ImageLimits.from_environment())
        width, height = file.size
        return (height, width) if file.orientation in SIDEWAYS else (width, height)


def resize(pixels: np.ndarray, height: int, width: int, filter: int, exact: bool = True) -> np.ndarray:
    """The picture at another size, as `PIL.Image.resize` makes it.

    pixels: (H, W, 3) uint8
    filter: BILINEAR, BICUBIC, LANCZOS or another of `PIL.Image.Resampling`
    exact: equal to Pillow bit for bit; False: by torch, several times as fast, where torch is imported already and
        has vector instructions for it. Along one axis that is within one level of Pillow; along both within two, and
        within one but for a few values in 100,000 at worst: each pass rounds to whole levels.
    returns: (height, width, 3) uint8

    Raises InputError where the result would have more than `MAX_RESIZED` pixels.
    """
    if height * width > MAX_RESIZED:
        raise InputError(
            f"a picture of {pixels.shape[1]} x {pixels.shape[0]} is too thin: it would be resized to "
            f"{width} x {height}; at most {MAX_RESIZED} pixels are accepted there",
            code="too-thin",
        )
    if not exact and _torch_suits(pixels, height, width, filter):
        return _torch_resize(pixels, height, width, filter)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling(filter)))


def _torch_suits(pixels: np.ndarray, height: int, width: int, filter: int) -> bool:
    """Whether torch resizes a picture faster than Pillow, and nearly as it does."""
    if filter not in TORCH_MODES or sys.modules.get("torch") is None:
        return False
    less_height, less_width = pixels.shape[0] - height, pixels.shape[1] - width
    if filter == BICUBIC and less_width != 0 and less_height > max(0, 2 * less_width):
        return False  # Pillow 13 then resizes the height first: what overshoots is cut off at another place
    import torch  # which is there, or is being imported by a thread that this waits for

    return torch.backends.cpu.get_cpu_capability() in VECTORISED


def _torch_resize(pixels: np.ndarray, height: int, width: int, filter: int) -> np.ndarray:
    """As Pillow, in 16-bit arithmetic; on the calling thread alone, whatever `torch.get_num_threads()` is."""
    import torch

    flat = np.require(pixels, requirements=["C", "W"]).reshape(-1)  # torch takes neither negative strides nor constants
    picture = torch.from_numpy(flat).view(1, *pixels.shape).permute(0, 3, 1, 2)
    mode = TORCH_MODES[filter]
    resized = torch.nn.functional.interpolate(picture, (height, width), mode=mode, antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()


def short_side(height: int, width: int, target: int, rounding: Callable[[float], int] = int) -> tuple[int, int]:
    """(height, width) of a picture whose short side becomes `target`, its shape kept.

    rounding: of the long side: `int` in torchvision and transformers, `round` in others
    """
    if width <= height:
        return rounding(target * height / width), target
    return target, rounding(target * width / height)


def center_crop(
    pixels: np.ndarray, height: int, width: int, corner: Callable[[int], int] = lambda spare: spare // 2
) -> np.ndarray:
    """The middle of a picture, (height, width, 3); see `crop`.

    corner: spare pixels on an axis -> how many to leave out before. transformers rounds half of them down (the
        default); torchvision takes round(spare / 2), half to even; others int(spare / 2).
    """
    return crop(pixels, corner(pixels.shape[0] - height), corner(pixels.shape[1] - width), height, width)


def crop(pixels: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) pixels whose first is at row `top` and column `left`; black where the picture ends.

    A view where all of it lies inside the picture.
    """
    inside = pixels[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if inside.shape[:2] == (height, width):
        return inside
    black = np.zeros((height, width, 3), pixels.dtype)
    y, x = max(-top, 0), max(-left, 0)
    black[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return black


def channels_first(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) -> (3, H, W), contiguous, of the same type."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def read_bytes(path: str, limits: ImageLimits) -> bytes:
    """The bytes of an image file; see `read_file`."""
    return read_file(path, "image", limits.max_bytes, MAX_BYTES_HINT)


def _decode(encoded: bytes, limits: ImageLimits, short_side: int | None) -> np.ndarray:
    """An image file's pixels, upright."""
    format = image_format(encoded)
    with decoding(format.name, encoded, format.ends):
        file = format.open(encoded, limits)
        return upright(file.pixels(short_side), file.orientation)


@contextmanager
def decoding(name: str, encoded: bytes = b"", ends: Callable[[bytes], bool] = lambda encoded: True) -> Iterator[None]:
    """Whatever a decoder raises becomes an InputError: damaged files raise nearly everything.

    ends: whether the encoded bytes have their end
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
            after = f", after {len(encoded)} bytes" if encoded else ""  # a PIL image does not tell
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
