"""Images that Pillow decodes: files of its formats, and PIL images of any mode."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin

from image_encoders.errors import InputError
from image_encoders.inputs.limits import ImageLimits
from image_encoders.inputs.orientation import orientation

STRIP = 2**20  # pixels of a PIL image that are converted at a time

# Where a PNG says how it is to be turned; a file without these words does not.
PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
PNG_METADATA = (b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT")


class PillowFile:
    """A file opened by a plugin of Pillow's, its header read.

    By the plugin's own class: `Image.open` would try every format that is installed, and has a limit of its own.
    """

    def __init__(self, image: ImageFile.ImageFile, limits: ImageLimits):
        limits.check_pixels(*image.size)
        self.image = image
        self.size = image.size

    @property
    def orientation(self) -> int:
        """EXIF's orientation."""
        return self._orientation() or 1

    def pixels(self, short_side: int | None = None) -> np.ndarray:
        """(H, W, 3) uint8, not turned yet, in the file's own size."""
        return pil_pixels(self.image)

    def _orientation(self) -> int | None:
        info = self.image.info
        exif = info.get("exif") or b""
        if not exif and "Raw profile type exif" in info:  # a name, a number of bytes, and so many hexadecimal digits
            try:
                exif = bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:]))
            except ValueError:
                exif = b""
        xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
        return orientation(exif, xmp.encode(errors="replace") if isinstance(xmp, str) else xmp)


class PngFile(PillowFile):
    """A PNG, without what Pillow would read of it and no pixel depends on."""

    def __init__(self, encoded: bytes, limits: ImageLimits):
        super().__init__(PngImagePlugin.PngImageFile(_plain_png(encoded)), limits)
        self._may_be_turned = any(name in encoded for name in PNG_ORIENTATION)

    @property
    def orientation(self) -> int:
        """EXIF's orientation, which may follow the pixels: they are decoded to find it then."""
        if self._may_be_turned and self._orientation() is None:
            self.image.load()
        return super().orientation


class TiffFile(PillowFile):
    """A TIFF, which Pillow turns itself, and whose size it states as it is seen."""

    orientation = 1

    def __init__(self, encoded: bytes, limits: ImageLimits):
        super().__init__(TiffImagePlugin.TiffImageFile(BytesIO(encoded)), limits)


def _plain_png(encoded: bytes) -> BytesIO:
    """A PNG without its colour profile, its animation, and those of its texts that cannot say how it is to be turned.

    Pillow inflates profile and texts, and gives up a sound image where that comes to more than a megabyte.
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


def pil_pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 of a PIL image of any mode, transparency on white.

    Equals transformers 5's convert_to_rgb, but for 16-bit grey, which that clips to white, and for colours multiplied
    by alpha (modes La, RGBa), of which it drops the alpha.
    """
    image.load()  # which tells some modes and key colours only then
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
            f"an image of 32-bit numbers (mode {image.mode}), whose black and white are not stated; "
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
