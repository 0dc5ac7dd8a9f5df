"""Pictures: files, bytes, PIL images and arrays to pixels.

    source ─read_image→ (H, W, 3) uint8 RGB, which inputs/preprocessing.py makes a net's input

Every source of the same picture gives the same pixels. `read_image(short_side=...)` gives that up for speed.

Differs from a plain `PIL.Image.open(path).convert("RGB")`:
    files and bytes are turned upright (EXIF); PIL images and arrays are taken as they are
    transparency is put on white, as transformers 5 does, where Pillow drops it
    16-bit grey is scaled to 8 bits, (v + 128) // 257, where Pillow clips it to white; other 16-bit pictures keep
    the high byte, as in Pillow
    a JPEG whose pixels are partly lost is an error, where Pillow paints the rest grey
Colour profiles (ICC) are ignored, as every reference does.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from io import BytesIO
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from image_encoders.arrays import as_array
from image_encoders.errors import InputError
from image_encoders.inputs.files import check_bytes, read_file
from image_encoders.inputs.jpeg import check_scans, decode_jpeg
from image_encoders.inputs.streams import read_stream

FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC"
ACCEPTED = "accepted: a path, a picture file's bytes, an open file, a PIL image, a uint8 array (H, W) or (H, W, 1|3|4)"
MAX_BYTES_HINT = " (IMAGE_ENCODERS_MAX_BYTES)"
MARGIN = 1.5  # a JPEG is decoded smaller only while its short side stays this many times what is asked for
STRIP = 2**20  # pixels of a PIL image that are converted at a time


@dataclass(frozen=True)
class ImageLimits:
    """What an image may cost; checked before it is decoded.

    max_bytes: size of the file; the default holds an image of `max_pixels` uncompressed
    max_pixels: width x height
    max_scans: of a JPEG file: a progressive one comes in about 10, and each costs a pass over the whole image
    """

    max_bytes: int = 2**29
    max_pixels: int = 178_000_000
    max_scans: int = 100

    @classmethod
    def from_environment(cls) -> ImageLimits:
        """The defaults, or what IMAGE_ENCODERS_MAX_BYTES, IMAGE_ENCODERS_MAX_PIXELS and ..._MAX_SCANS say."""
        names = [limit.name for limit in fields(cls)]
        return cls(**{name: _limit(f"IMAGE_ENCODERS_{name.upper()}", getattr(cls, name)) for name in names})


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
        if isinstance(source, (str, os.PathLike)):
            path = os.fsdecode(source)
            item = item or path
            return _decode(read_bytes(path, limits), limits, short_side)
        if isinstance(source, (bytes, bytearray, memoryview)):
            return _decode(bytes(source), limits, short_side)
        if isinstance(source, Image.Image):
            _check_pixels(source.size, limits)
            with _decoding(f"PIL image of mode {source.mode}"):
                return _pil_pixels(source)
        if hasattr(source, "read"):
            return _decode(read_stream(source, "picture", limits.max_bytes, MAX_BYTES_HINT), limits, short_side)
        return _array_pixels(source, limits)
    except InputError as error:
        if item is None:
            raise
        raise error.named(item) from error.__cause__


def picture_size(encoded: bytes, *, limits: ImageLimits | None = None) -> tuple[int, int]:
    """(width, height) as a picture file's header states them, before EXIF turns the picture; decodes nothing."""
    limits = limits or ImageLimits.from_environment()
    kind = _kind(encoded)
    with _decoding(kind, encoded):
        return _open(kind, encoded, limits).size


def upright_size(encoded: bytes, *, limits: ImageLimits | None = None) -> tuple[int, int]:
    """(width, height) of a picture file as it is meant to be seen, after EXIF has turned it; from its headers only.

    But for a PNG whose EXIF or XMP follows its pixels, which are decoded to find it.

    Raises InputError as `read_image` does for bytes whose header cannot be read.
    """
    limits = limits or ImageLimits.from_environment()
    kind = _kind(encoded)
    with _decoding(kind, encoded):
        image = _open(kind, encoded, limits)
        width, height = image.size
        if kind == "TIFF" or (kind == "PNG" and not any(name in encoded for name in PNG_ORIENTATION)):
            return width, height  # Pillow states a TIFF's size as it is seen
        return (height, width) if _orientation(image) in SIDEWAYS else (width, height)


# ------------------------------------------------------------------ files


def read_bytes(path: str, limits: ImageLimits) -> bytes:
    """The bytes of a picture file; see `read_file`."""
    return read_file(path, "picture", limits.max_bytes, MAX_BYTES_HINT)


def _limit(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{variable} is {text!r}; a whole number above 0 is accepted", code="limits")
    return int(text)


def _check_pixels(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise InputError(
            f"{width} x {height} = {width * height} pixels; at most {limits.max_pixels} are accepted "
            "(IMAGE_ENCODERS_MAX_PIXELS)",
            code="too-many-pixels",
        )
    if width < 1 or height < 1:
        raise InputError(f"a picture of {width} x {height}, without pixels", code="empty")


# ------------------------------------------------------------------ formats

SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF....WEBP",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    # an ISO media file says what it is by its brands, the first of which stands at byte 8
    "AVIF": rb"....ftyp(?:.{4}){0,32}?avi[fs]",
    "HEIC": rb"....ftyp(?:.{4}){0,32}?(?:hei[cxms]|hev[cxms]|mif1|msf1)",
}
NOT_ACCEPTED = {
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "Photoshop": rb"8BPS",
    "icon": rb"\0\0[\1\2]\0",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "SVG": rb"\s*(?:<\?xml.{0,200})?<svg",
}
# Bytes that a whole file of the format has, as a test of the end of one that could not be decoded.
ENDS = {"JPEG": rb"\xff\xd9", "PNG": rb"IEND\xae\x42\x60\x82", "GIF": rb";\0*\Z"}

PATH = re.compile(rb"[^\0-\x1f]{1,4096}\.\w{3,4}")  # bytes that are no picture, but may well be the path of one

PLUGINS: dict[str, Callable[[BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
}

# Where a PNG says how it is to be turned; a file without these words does not.
PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
PNG_METADATA = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")
SIDEWAYS = (5, 6, 7, 8)  # EXIF's orientations that exchange width and height


def _kind(encoded: bytes) -> str:
    """The name of the format, by the first bytes."""
    head = encoded[:256]
    for kind, signature in SIGNATURES.items():
        if re.match(signature, head, re.DOTALL):
            return kind
    for kind, signature in NOT_ACCEPTED.items():
        if re.match(signature, head, re.DOTALL):
            raise InputError(f"a {kind} picture; accepted: {FORMATS}", code="unsupported")
    if not encoded:
        raise InputError(f"empty, 0 bytes; accepted: {FORMATS}", code="empty")
    hint = "; a path is given as text, os.fsdecode makes it" if PATH.fullmatch(encoded) else ""
    raise InputError(
        f"not a picture: {len(encoded)} bytes that begin with {encoded[:12]!r}{hint}; accepted: {FORMATS}",
        code="not-an-image",
    )


def _decode(encoded: bytes, limits: ImageLimits, short_side: int | None) -> np.ndarray:
    """A picture file's pixels, upright."""
    check_bytes(len(encoded), limits.max_bytes, MAX_BYTES_HINT)
    kind = _kind(encoded)
    with _decoding(kind, encoded):
        image = _open(kind, encoded, limits)
        if kind == "JPEG":
            check_scans(encoded, limits.max_scans)
        pixels = _jpeg_pixels(encoded, image, short_side) if kind == "JPEG" else _pil_pixels(image)
        return _upright(pixels, _orientation(image))


def _open(kind: str, encoded: bytes, limits: ImageLimits) -> ImageFile.ImageFile:
    """A picture whose header is read and whose size is within the limits, not decoded yet.

    By the format's own class: `Image.open` would try every format that is installed, and has a limit of its own.
    """
    _silence(UserWarning, r"PIL\.(Png|Tiff)ImagePlugin")  # metadata they could not read; the pixels are what counts
    if kind == "HEIC":
        try:
            from pillow_heif import HeifImageFile
        except ImportError as error:
            raise InputError(
                "a HEIC picture, which needs pillow-heif: pip install 'image-encoders[heif]'", code="unsupported"
            ) from error
        image: ImageFile.ImageFile = HeifImageFile(BytesIO(encoded))
    else:
        image = PLUGINS[kind](_plain_png(encoded) if kind == "PNG" else BytesIO(encoded))
    _check_pixels(image.size, limits)
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        _silence(Image.DecompressionBombWarning, r"PIL\.Image")  # our limit has just allowed it
    return image


def _plain_png(encoded: bytes) -> BytesIO:
    """A PNG without its colour profile and those of its texts that cannot say how it is to be turned.

    Pillow inflates them all, and gives up a sound picture where that comes to more than a megabyte.
    """
    whole, plain = memoryview(encoded), BytesIO()
    at, done = 8, 0
    while len(head := encoded[at : at + 8]) == 8:
        end = at + 12 + int.from_bytes(head[:4], "big")
        if head[4:] in PNG_METADATA and encoded[at + 8 : at + 88].split(b"\0")[0] not in PNG_ORIENTATION:
            plain.write(whole[done:at])
            done = end
        at = end
    if not done:
        return BytesIO(encoded)  # which shares the memory
    plain.write(whole[done:])
    plain.seek(0)
    return plain


def _silence(category: type[Warning], module: str) -> None:
    """Have a module's warnings ignored from now on, in every thread: `warnings.catch_warnings` is not thread-safe."""
    if ("ignore", None, category, re.compile(module), 0) not in warnings.filters:
        warnings.filterwarnings("ignore", category=category, module=module)


@contextmanager
def _decoding(kind: str, encoded: bytes = b"") -> Iterator[None]:
    """Whatever a decoder raises becomes an InputError: damaged files raise nearly everything."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{kind} that does not fit into memory", code="too-many-pixels") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{kind} above Pillow's own limit: {error}; PIL.Image.MAX_IMAGE_PIXELS raises it", code="too-many-pixels"
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if _cut_short(kind, encoded) or re.search(r"truncated|premature end|\bEOF\b|end of file", reason, re.I):
            after = f", after {len(encoded)} bytes" if encoded else ""  # a PIL image does not tell
            raise InputError(f"{kind} that ends too early{after}", code="truncated") from error
        raise InputError(f"{kind} that cannot be decoded: {reason}", code="corrupt") from error


def _cut_short(kind: str, encoded: bytes) -> bool:
    """Whether a file that could not be decoded lacks its end."""
    if kind in ENDS:
        return not re.search(ENDS[kind], encoded[-64:])
    if kind == "WebP":
        return len(encoded) < 8 + int.from_bytes(encoded[4:8], "little")
    if kind == "BMP":
        return len(encoded) < int.from_bytes(encoded[2:6], "little")
    if kind in ("AVIF", "HEIC"):  # boxes, each of which begins with its length; 0: to the end of the file
        position = 0
        while (size := int.from_bytes(encoded[position : position + 4], "big")) >= 8:
            position += size
        return position > len(encoded)
    return False


# ------------------------------------------------------------------ pixels


def _jpeg_pixels(encoded: bytes, image: ImageFile.ImageFile, short_side: int | None) -> np.ndarray:
    """A JPEG's pixels, at a smaller scale where that leaves enough of them."""
    decoded = decode_jpeg(encoded, "CMYK" if image.mode == "CMYK" else "RGB", _divisor(image.size, short_side))
    if decoded is None:
        return _pil_pixels(image)
    pixels, size = decoded
    if size != image.size:
        raise InputError(f"JPEG that states two sizes, {image.size} and {size}", code="corrupt")
    if image.mode == "CMYK":  # Pillow takes all four inks as inverted, as Adobe writes them
        inks = Image.frombytes("CMYK", pixels.shape[1::-1], pixels.tobytes(), "raw", "CMYK;I")
        return np.array(inks.convert("RGB"))
    return pixels


def _divisor(size: tuple[int, int], short_side: int | None) -> int:
    """By what to divide the sides of a JPEG for the smallest picture that is fine enough.

    Powers of two alone, the other scales being slower than none; and without remainder, for libjpeg would round up and
    so stretch the picture, which costs more (PSNR 28 to 42 dB at 224 px) than its coarser pixels do (40 to 55).
    """
    if short_side is None:
        return 1
    fine = (n for n in (8, 4, 2) if not any(side % n for side in size) and min(size) >= MARGIN * short_side * n)
    return next(fine, 1)


def _pil_pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of a PIL image of any mode, transparency on white.

    Equals transformers 5's convert_to_rgb, but for 16-bit grey, which that clips to white, and for colours multiplied
    by alpha (modes La, RGBa), of which it drops the alpha.
    """
    image.load()  # which tells some modes and key colours only then
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):  # by strips: each step makes a copy, of up to four bytes a pixel
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = _rgb(image.crop((0, top, image.width, bottom)))
    return pixels


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return _grey16_pixels(image)
    if image.mode in ("I", "F"):
        raise InputError(
            f"a picture of 32-bit numbers (mode {image.mode}), whose black and white are not stated; "
            "scale it to 8 bits first",
            code="unsupported",
        )
    if image.mode in ("La", "RGBa"):  # colours multiplied by alpha
        image = image.convert(image.mode.upper())
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _grey16_pixels(image: Image.Image) -> np.ndarray:
    wide = np.asarray(image).astype(np.uint32)
    grey = ((wide + 128) // 257).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[wide == key] = 255
    return np.repeat(grey[..., None], 3, axis=2)


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
    _check_pixels((array.shape[1], array.shape[0]), limits)
    if array.ndim == 3 and array.shape[2] == 3:
        return array
    if array.ndim == 3 and array.shape[2] == 4:
        return _pil_pixels(Image.fromarray(np.ascontiguousarray(array)))
    pixels = np.empty((*array.shape[:2], 3), np.uint8)
    pixels[...] = array.reshape(*array.shape[:2], 1)
    return pixels


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A picture as it is meant to be seen, for EXIF's orientation 1 to 8."""
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
