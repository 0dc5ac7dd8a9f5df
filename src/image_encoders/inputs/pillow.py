"""Images that Pillow decodes: files of its formats, and PIL images of any mode."""

from __future__ import annotations

import zlib
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin

from image_encoders.errors import InputError
from image_encoders.inputs.exif import orientation, upright
from image_encoders.inputs.limits import ImageLimits

STRIP = 2**20  # pixels of a PIL image that are converted at a time

# What a PNG says beside its pixels; of an animation the first image is all that is read.
PNG_METADATA = (b"eXIf", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT")
PNG_EXIF, PNG_XMP = b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"
MAX_CHUNKS = 2**18  # of a PNG: the pixels of a large one come in some thousands
MAX_TEXT = 2**22  # bytes of a compressed text that are expanded


class PillowFile:
    """A file opened by one of Pillow's plugins, its header read.

    The plugin's class is used directly: `Image.open` would try every installed format, and has its own limit.
    """

    def __init__(self, image: ImageFile.ImageFile, limits: ImageLimits):
        limits.check_pixels(*image.size)
        self.image = image
        self.size = image.size

    @property
    def exif(self) -> bytes:
        return self.image.info.get("exif") or b""

    @property
    def orientation(self) -> int:
        """As EXIF or XMP state it."""
        return orientation(self.exif, self.xmp)

    @property
    def xmp(self) -> bytes:
        return self.image.info.get("xmp") or b""

    def pixels(self, short_side: int | None = None) -> np.ndarray:
        """(H, W, 3) uint8, upright, in the file's own size."""
        return upright(pil_pixels(self.image), self.exif, self.xmp)


class PngFile(PillowFile):
    """A PNG.

    Pillow gets only its pixels: it inflates profiles and texts, and rejects a valid image if they exceed a megabyte.
    """

    def __init__(self, encoded: bytes, limits: ImageLimits):
        plain, self._metadata = _without_metadata(encoded)
        super().__init__(PngImagePlugin.PngImageFile(plain), limits)

    @property
    def exif(self) -> bytes:
        """Its EXIF, in a chunk of its own or as a text of hexadecimal digits."""
        for name, content in self._metadata:
            if name == b"eXIf":
                return content
        for name, content in self._metadata:
            if name in (b"tEXt", b"zTXt") and content.startswith(PNG_EXIF):
                text = content[len(PNG_EXIF) :]
                digits = (_inflated(text[1:]) if name == b"zTXt" else text).split(b"\n")[3:]  # name and length before
                try:
                    return bytes.fromhex(b"".join(digits).decode("latin-1"))
                except ValueError:
                    return b""
        return b""

    @property
    def xmp(self) -> bytes:
        """Its XMP, compressed or not."""
        for name, content in self._metadata:
            if name == b"iTXt" and content.startswith(PNG_XMP):
                text = content[len(PNG_XMP) + 2 :].split(b"\0", 2)[-1]
                return _inflated(text) if content.startswith(b"\1", len(PNG_XMP)) else text
        return b""


class TiffFile(PillowFile):
    """A TIFF, which Pillow rotates itself, and whose size it states after rotation. The whole file is EXIF."""

    orientation = 1

    def __init__(self, encoded: bytes, limits: ImageLimits):
        super().__init__(TiffImagePlugin.TiffImageFile(BytesIO(encoded)), limits)
        self._encoded = encoded

    @property
    def exif(self) -> bytes:
        """The whole file."""
        return self._encoded

    def pixels(self, short_side: int | None = None) -> np.ndarray:
        """(H, W, 3) uint8, upright."""
        return pil_pixels(self.image)


def _without_metadata(encoded: bytes) -> tuple[BytesIO, list[tuple[bytes, bytes]]]:
    """A PNG's pixels, and its metadata: (name, content) of its chunks of EXIF and texts."""
    whole, plain = memoryview(encoded), BytesIO()
    metadata = []
    at, done = 8, 0
    for _ in range(MAX_CHUNKS):
        if len(head := encoded[at : at + 8]) < 8:
            break
        end = at + 12 + int.from_bytes(head[:4], "big")
        if head[4:] in PNG_METADATA:
            plain.write(whole[done:at])
            done = end
            if head[4:] == b"eXIf" or encoded.startswith((PNG_EXIF, PNG_XMP), at + 8):
                metadata.append((head[4:], encoded[at + 8 : end - 4]))
        at = end
    else:
        raise InputError(f"PNG of more than {MAX_CHUNKS:,} chunks", code="corrupt")
    if not done:
        return BytesIO(encoded), []  # which shares the memory
    plain.write(whole[done:])
    plain.seek(0)
    return plain, metadata


def _inflated(content: bytes) -> bytes:
    """The beginning of compressed data; empty if that is damaged."""
    try:
        return zlib.decompressobj().decompress(content, MAX_TEXT)
    except zlib.error:
        return b""


def pil_pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of a PIL image of any mode, transparency on white.

    Equals transformers 5's convert_to_rgb, except for 16-bit grey, which that clips to white, and for premultiplied
    colours (modes La, RGBa), whose alpha it drops.
    """
    image.load()  # some modes and key colours are known only then
    rows = max(1, STRIP // image.width)
    if rows >= image.height:
        return np.array(_rgb(image))
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, rows):  # by strips: each step makes a copy, of up to four bytes a pixel
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = _rgb(image.crop((0, top, image.width, bottom)))
    return pixels


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return _grey16_pixels(image)
    if image.mode in ("I", "F"):
        raise InputError(
            f"a 32-bit image (mode {image.mode}), whose black and white levels are unknown; scale it to 8 bits first",
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
