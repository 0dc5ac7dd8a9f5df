"""Everything between an image and a net's input, as one value with its numbers.

    source ─Preprocessing.read→ (H, W, 3) uint8 RGB ─Preprocessing.prepare→ (3, height, width), what the net takes

The same value does the work, goes into the fingerprint (`facts`), and is shown (`str`): no number is written twice.
Each family has one, or reads one from its checkpoint; which resizer it uses is one of its facts, decided at load.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from image_encoders.arrays import as_array, is_tensor
from image_encoders.errors import InputError
from image_encoders.inputs.spec import InputSpec

BILINEAR, BICUBIC, LANCZOS = "bilinear", "bicubic", "lanczos"
# What resizes:
PILLOW = "pillow"  # exact: most originals use it
TORCH = "torch"  # its antialiased uint8 kernel's numbers: within two levels of Pillow, three to seven times as fast
SAMPLED = "sampling"  # torch's float kernel without a low-pass filter, neither rounded nor clamped (inputs/bicubic.py)
TORCH_FILTERS = (BILINEAR, BICUBIC)  # those that its antialiased kernel has
PIECE = 2**20  # bytes of an image that are resized at once
MAX_RESIZED = 2**26  # pixels: an image so thin that its long side passes this is an error, not a memory bomb
# A length that is no whole number, such as a long side, or half of the pixels that a crop leaves out -> a whole one.
ROUNDINGS: dict[str, Callable[[float], int]] = {"floor": math.floor, "round": round, "truncate": int}


@dataclass(frozen=True)
class BothSides:
    """Resize to (height, width) [px], without keeping the aspect ratio.

    small_area, small_side: an image of fewer than `small_area` pixels becomes a square of `small_side` instead [px]
    """

    height: int
    width: int
    small_area: int = 0
    small_side: int = 0

    def of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image becomes."""
        if height * width < self.small_area:
            return self.small_side, self.small_side
        return self.height, self.width

    def __str__(self) -> str:
        small = f" ({self.small_side} x {self.small_side} below {self.small_area} pixels)" if self.small_area else ""
        return f"to {self.height} x {self.width}{small}"


@dataclass(frozen=True)
class ShortSide:
    """Resize the short side to `side` [px], keeping the aspect ratio.

    rounding: of the long side, of `ROUNDINGS`: "floor" in torchvision and transformers, "round" in others
    """

    side: int
    rounding: str = "floor"

    def of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image becomes."""
        rounded = ROUNDINGS[self.rounding]
        if width <= height:
            return rounded(self.side * height / width), self.side
        return self.side, rounded(self.side * width / height)

    def __str__(self) -> str:
        return f"short side to {self.side} (long side: {self.rounding})"


@dataclass(frozen=True)
class Patches:
    """Resize to as many whole patches of `patch` x `patch` [px] as `limit` allows, nearly keeping the aspect ratio.

    The scale is found by bisection to 1e-5, as in transformers, so the results are the same.
    """

    patch: int
    limit: int

    def of(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that an image becomes."""

        def scaled(side: int, scale: float) -> int:
            return max(self.patch, math.ceil(side * scale / self.patch) * self.patch)

        low, high = 1e-6, 100.0
        while high - low >= 1e-5:
            scale = (low + high) / 2
            if (scaled(height, scale) / self.patch) * (scaled(width, scale) / self.patch) <= self.limit:
                low = scale
            else:
                high = scale
        return scaled(height, low), scaled(width, low)

    def __str__(self) -> str:
        return f"to at most {self.limit} patches of {self.patch} x {self.patch}"


@dataclass(frozen=True)
class Preprocessing:
    """The steps from an image to the net's input, in this order.

    size: the size after resizing; None: not resized
    filter: of the resize: "nearest", "lanczos", "bilinear", "bicubic", "box" or "hamming"
    crop: (height, width) of the central crop, or None; black beyond the image [px]
    mean, std: then (x / 255 - mean) / std for each colour; done by the net, except with `SAMPLED`
    corner: of `ROUNDINGS`: how the crop's corner is rounded if it cannot be exactly central. transformers uses "floor",
        torchvision and OpenAI's code "round" (half to even), others "truncate"
    colours: the order that the net wants, "RGB" or "BGR"
    resizer: PILLOW, TORCH or SAMPLED
    scaled_decoding: whether large JPEG files are decoded at a smaller scale, see `read_image`
    takes_floats: whether arrays of floats are accepted as inputs that are already preprocessed
    """

    size: BothSides | ShortSide | Patches | None
    filter: str
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    corner: str = "floor"
    colours: str = "RGB"
    resizer: str = PILLOW
    scaled_decoding: bool = False
    takes_floats: bool = False

    def read(self, source: Any) -> np.ndarray:
        """A source's pixels (H, W, 3) uint8 RGB; floats as float32, if they are accepted."""
        if self.takes_floats:
            source = as_array(source) if is_tensor(source) else source
            if isinstance(source, np.ndarray) and source.dtype.kind == "f":
                return source.astype(np.float32, copy=False)
        from image_encoders.inputs.image import read_image

        return read_image(source, short_side=self.short_side if self.scaled_decoding else None)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The net's input for an image.

        image: (H, W, 3) uint8 RGB, which is left unchanged; or floats, if they are accepted
        returns: (3, height, width), contiguous: uint8, or with SAMPLED float32 that is normalised already
        """
        if self.takes_floats and image.dtype.kind == "f":
            return _prepared_floats(image)
        height, width, _ = image.shape
        size = (height, width) if self.size is None else self.size.of(height, width)
        kept = self.crop or size
        top, left = (ROUNDINGS[self.corner]((whole - part) / 2) for whole, part in zip(size, kept))
        if self.colours == "BGR":
            image = image[..., ::-1]
        if self.resizer == SAMPLED:
            from image_encoders.inputs.bicubic import resize_and_crop

            return self.normalised(resize_and_crop(image, size, kept, top, left).transpose(2, 0, 1))
        if self.size is not None:
            image = resize(image, size[0], size[1], self.filter, self.resizer)
        return channels_first(crop(image, top, left, *kept))

    def normalised(self, unit: np.ndarray) -> np.ndarray:
        """(x - mean) / std of (3, H, W) float32 in [0, 1], as the net does it with the result of `prepare`."""
        mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in (self.mean, self.std))
        return np.ascontiguousarray((unit - mean) / std)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of a prepared image, None where it depends on the image."""
        if self.crop is not None:
            return (3, *self.crop)
        if isinstance(self.size, BothSides) and not self.size.small_area:
            return (3, self.size.height, self.size.width)
        return (3, None, None)

    @property
    def short_side(self) -> int | None:
        """The size of an image's short side after resizing [px], None if that depends on the image.

        The larger of a height and a width, so that an image with this short side is large enough for both.
        """
        if isinstance(self.size, BothSides):
            return max(self.size.height, self.size.width)
        return self.size.side if isinstance(self.size, ShortSide) else None

    def by_torch(self) -> Preprocessing:
        """The same, resized by torch if it has the filter."""
        suits = self.resizer == PILLOW and self.size is not None and self.filter in TORCH_FILTERS
        return replace(self, resizer=TORCH) if suits else self

    def fast(self) -> Preprocessing:
        """A faster approximation: different embeddings, in a separate space."""
        return replace(self.by_torch(), scaled_decoding=True)

    def inputs(self, shape: tuple[int | None, ...] | None = None, smallest: int = 1) -> InputSpec:
        """The inputs that this prepares. In lower precision, whose rounding is far coarser, torch always resizes.

        shape, smallest: of the inputs that the net accepts, if these are more general
        """
        low = self.by_torch()
        return InputSpec(
            modality="image",
            read=self.read,
            prepare=self.prepare,
            shape=shape or self.shape,
            facts=self.facts(),
            summary=str(self),
            smallest=smallest,
            low_precision=None if low == self else low.inputs(shape, smallest),
        )

    def facts(self) -> dict[str, Any]:
        """All of it as plain values."""
        return _plain(self)

    def __str__(self) -> str:
        steps = []
        if self.scaled_decoding:
            steps.append("large JPEG files decoded at a smaller scale")
        if self.size is not None:
            steps.append(f"{self.size}, {self.filter} by {self.resizer}")
        if self.crop is not None:
            steps.append(f"central {self.crop[0]} x {self.crop[1]} (corner: {self.corner})")
        mean, std = (" ".join(f"{number:.4g}" for number in numbers) for numbers in (self.mean, self.std))
        return ", ".join([*steps, f"{self.colours} / 255, mean {mean}, std {std}"])


def resize(pixels: np.ndarray, height: int, width: int, filter: str, resizer: str = PILLOW) -> np.ndarray:
    """An image at another size.

    pixels: (H, W, 3) uint8
    filter: "bilinear", "bicubic", "lanczos" or another of `PIL.Image.Resampling`
    resizer: PILLOW: as `PIL.Image.resize`. TORCH, for bilinear and bicubic: along one axis within one level of Pillow
        13; along both within two, and within one but for a few values in 100,000 at worst: each pass rounds to whole
        levels. The same on every processor.
    returns: (height, width, 3) uint8

    Raises InputError where the result would have more than `MAX_RESIZED` pixels.
    """
    if height * width > MAX_RESIZED:
        raise InputError(
            f"an image of {pixels.shape[1]} x {pixels.shape[0]} is too thin: it would be resized to "
            f"{width} x {height}; at most {MAX_RESIZED} pixels are accepted there",
            code="too-thin",
        )
    if resizer == TORCH:
        return _resize_in_16_bits(pixels, height, width, filter)
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling[filter.upper()]))


def _resize_in_16_bits(pixels: np.ndarray, height: int, width: int, filter: str) -> np.ndarray:
    """One axis after the other, rounded to whole levels in between, on the calling thread only."""
    first = (pixels.shape[0], width)
    less_height, less_width = pixels.shape[0] - height, pixels.shape[1] - width
    if filter == BICUBIC and less_width != 0 and less_height > max(0, 2 * less_width):
        # Pillow 13 resizes the height first then, torch always the width: what overshoots is cut off at another place.
        first = (height, pixels.shape[1])
    for size in (first, (height, width)):
        pixels = step(pixels, size, filter)
    return pixels


def step_by_cykooz(pixels: np.ndarray, size: tuple[int, int], filter: str) -> np.ndarray:
    """Resize along one axis as torch does, to the same bits, without importing torch, which takes a second."""
    import cykooz_resizer as fast

    kernel = fast.FilterType.bilinear if filter == BILINEAR else fast.FilterType.catmull_rom
    options = fast.ResizeOptions(resize_alg=fast.ResizeAlg.convolution(kernel))

    def resized(piece: np.ndarray, height: int) -> np.ndarray:
        before = fast.ImageData(piece.shape[1], piece.shape[0], fast.PixelType.U8x3, piece.tobytes())
        after = fast.ImageData(size[1], height, fast.PixelType.U8x3)
        fast.Resizer().resize(before, after, options)
        return np.frombuffer(after.get_buffer(), np.uint8).reshape(height, size[1], 3)

    if size[0] != len(pixels):
        return resized(pixels, size[0])
    # Rows by themselves: in pieces, since whole photographs are copied slowly.
    rows = max(1, PIECE // pixels[0].nbytes)
    pieces = (pixels[start : start + rows] for start in range(0, len(pixels), rows))
    return np.concatenate([resized(piece, len(piece)) for piece in pieces])


def step_by_torch(pixels: np.ndarray, size: tuple[int, int], filter: str) -> np.ndarray:
    """Resize along one axis by torch's antialiased uint8 kernel."""
    import torch

    flat = np.require(pixels, requirements=["C", "W"]).reshape(-1)  # torch takes neither negative strides nor constants
    image = torch.from_numpy(flat).view(1, *pixels.shape).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(image, size, mode=filter, antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()


step = step_by_cykooz if find_spec("cykooz_resizer") else step_by_torch  # for some processors it was not built


def crop(pixels: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) pixels whose first is at row `top` and column `left`; black where the image ends.

    A view if all of it lies inside the image.
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


def _prepared_floats(image: np.ndarray) -> np.ndarray:
    """(3, H, W) float32 of a float image that the caller has preprocessed."""
    if image.ndim != 3 or 3 not in (image.shape[0], image.shape[2]) or not image.size:
        raise InputError(f"a float image of shape {image.shape}; (H, W, 3) or (3, H, W) is accepted", code="shape")
    if not np.isfinite(image).all():
        raise InputError("a float image with NaN or infinite values; finite ones are accepted", code="not-finite")
    return channels_first(image) if image.shape[2] == 3 else np.ascontiguousarray(image)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {"rule": type(value).__name__, **{one.name: _plain(getattr(value, one.name)) for one in fields(value)}}
    return list(value) if isinstance(value, tuple) else value
