"""A Hugging Face checkpoint's preprocessing of pictures: read from its JSON, equal to its image processor's pixels.

    preprocessor_config.json ─read_processor→ Preprocessing ─prepare→ (3, H, W) uint8, what is left being
                                              Normalized(net, mean, std)

Source: transformers 5.23, `PilBackend` in image_processing_backends.py and image_transforms.py (Apache-2.0).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from image_encoders.errors import WeightsError
from image_encoders.inputs.image import BICUBIC, BILINEAR, center_crop, channels_first, resize, short_side

FILES = ("processor_config.json", "preprocessor_config.json")  # the first counts where it has an image processor
STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}

_CLIP = {
    "size": {"shortest_edge": 224},
    "default_to_square": False,  # of a size that is one number
    "crop_size": 224,
    "resample": BICUBIC,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "do_center_crop": True,
}
_HALF = {"size": {"height": 224, "width": 224}, "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
# What transformers takes for each image processor where the file is silent.
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CLIP,
    "ChineseCLIP": _CLIP,
    "Siglip": {**_HALF, "default_to_square": False, "resample": BICUBIC},
    "ViT": {**_HALF, "resample": BILINEAR},
    "Siglip2": {**_HALF, "resample": BILINEAR, "patch_size": 16, "max_num_patches": 256},
}
# Spare pixels on an axis -> how many of them a centre crop leaves out before the picture. They differ by one pixel
# where the spare is 3 mod 4: transformers rounds down, OpenAI's code and torchvision half to even.
CORNERS: dict[str, Callable[[int], int]] = {"floor": lambda spare: spare // 2, "round": lambda spare: round(spare / 2)}
# Checkpoints older than the key image_processor_type are of the processor that their model came with.
BY_MODEL = {"clip": "CLIP", "chinese_clip": "ChineseCLIP", "siglip": "Siglip", "siglip2": "Siglip2"}


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a picture before the net, in this order.

    size: (height, width), or the short side with the shape kept, or None: as it is [px]
    patch, max_patches: instead of `size`: the largest (height, width) in the picture's shape that takes at most
        `max_patches` patches of `patch` x `patch` [px]
    filter: of `PIL.Image.Resampling`
    crop: (height, width) of the middle, or None; black where the picture is smaller
    corner: of `CORNERS`: how the crop is placed where it cannot be in the very middle
    mean, std: then (x / 255 - mean) / std, left to the net
    """

    size: tuple[int, int] | int | None
    filter: int
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: int | None = None
    max_patches: int | None = None
    corner: str = "floor"

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of a prepared picture, None where it depends on the picture."""
        if self.crop is not None:
            return (3, *self.crop)
        return (3, *self.size) if isinstance(self.size, tuple) else (3, None, None)

    @property
    def short_side(self) -> int | None:
        """What a picture's short side is resized to [px], None where that depends on the picture.

        Of a height and a width it is the larger, so that a picture with this short side is large enough for both.
        """
        return max(self.size) if isinstance(self.size, tuple) else self.size

    def prepare(self, pixels: np.ndarray, exact: bool = True) -> np.ndarray:
        """A picture as the net takes it.

        pixels: (H, W, 3) uint8 RGB
        exact: equal to the original to the last bit; False: nearly, and faster: see `resize`
        returns: (3, height, width) uint8
        """
        height, width, _ = pixels.shape
        if self.patch is not None and self.max_patches is not None:
            pixels = resize(pixels, *patch_grid(height, width, self.patch, self.max_patches), self.filter, exact)
        elif isinstance(self.size, int):
            pixels = resize(pixels, *short_side(height, width, self.size), self.filter, exact)
        elif self.size is not None:
            pixels = resize(pixels, *self.size, self.filter, exact)
        if self.crop is not None:
            pixels = center_crop(pixels, *self.crop, CORNERS[self.corner])
        return channels_first(pixels)


def patch_grid(height: int, width: int, patch: int, max_patches: int) -> tuple[int, int]:
    """(height, width) of a picture scaled to as many whole patches as are allowed, its shape nearly kept.

    The scale is found by halving an interval until it is shorter than 1e-5, as the original does: the numbers are its.
    """

    def scaled(side: int, scale: float) -> int:
        return max(patch, math.ceil(side * scale / patch) * patch)

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        scale = (low + high) / 2
        if (scaled(height, scale) / patch) * (scaled(width, scale) / patch) <= max_patches:
            low = scale
        else:
            high = scale
    return scaled(height, low), scaled(width, low)


def read_processor(folder: Path, model_type: str) -> Preprocessing:
    """A checkpoint's preprocessing.

    folder: of the checkpoint
    model_type: its config's, which decides where the file does not name its image processor

    Raises WeightsError when there is no such file, or when it asks for something that is not known here.
    """
    path, stated = _stated(folder)
    named = stated.get("image_processor_type") or stated.get("feature_extractor_type") or BY_MODEL.get(model_type, "")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(named))
    if kind not in DEFAULTS:
        known = ", ".join(f"{name}ImageProcessor" for name in DEFAULTS)
        raise WeightsError(f"{path}: the image processor {named!r} is not known here; known: {known}")
    wanted = {
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "default_to_square": True,
        **DEFAULTS[kind],
        **stated,  # a step that is null is off
    }
    strange = sorted(key for key, on in wanted.items() if key.startswith("do_") and on and key not in STEPS)
    if wanted.get("use_square_size"):
        strange.append("use_square_size")
    if strange:
        raise WeightsError(f"{path}: it asks for {', '.join(strange)}, which is not known here")
    try:
        return _preprocessing(wanted, flexible=kind == "Siglip2")
    except (TypeError, ValueError, KeyError, ArithmeticError) as error:
        raise WeightsError(f"{path}: {error}") from error


def _stated(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that counts, and the image processor it describes."""
    for name in FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise WeightsError(f"{path}: not a JSON file that can be read: {error}") from error
        if name == FILES[0] and isinstance(found, dict):
            found = found.get("image_processor")
            if found is None:
                continue
        if not isinstance(found, dict):
            raise WeightsError(f"{path}: a JSON object was expected")
        return path, found
    raise WeightsError(
        f"{folder}: no preprocessor_config.json, so nobody knows how to prepare pictures for this net; "
        "copy it from the checkpoint's source"
    )


def _preprocessing(wanted: Mapping[str, Any], *, flexible: bool) -> Preprocessing:
    """`wanted` with its many spellings resolved."""
    scale = 255 * _number(wanted["rescale_factor"], "rescale_factor") if wanted["do_rescale"] else 255.0
    mean = _colours(wanted["image_mean"] if wanted["do_normalize"] else 0.0)
    std = _colours(wanted["image_std"] if wanted["do_normalize"] else 1.0)
    size = _size(wanted["size"], bool(wanted["default_to_square"])) if wanted["do_resize"] else None
    crop = _size(wanted.get("crop_size"), True) if wanted.get("do_center_crop") else None
    if isinstance(crop, int):
        raise ValueError(f"crop_size is {wanted['crop_size']!r}; a height and a width are accepted")
    if flexible and not wanted["do_resize"]:
        raise ValueError("do_resize is off, but pictures have to be cut into whole patches")
    filter = wanted["resample"]
    if filter not in range(6):
        raise ValueError(f"resample is {filter!r}; 0 to 5 are accepted")
    return Preprocessing(
        size=None if flexible else size,
        filter=int(filter),
        crop=None if flexible else crop,
        mean=tuple(value / scale for value in mean),
        std=tuple(value / scale for value in std),
        patch=_side(wanted["patch_size"]) if flexible else None,
        max_patches=_side(wanted["max_num_patches"]) if flexible else None,
    )


def _size(stated: Any, square: bool) -> tuple[int, int] | int:
    """(height, width), or the short side."""
    if isinstance(stated, int) and not isinstance(stated, bool):
        return (_side(stated), _side(stated)) if square else _side(stated)
    if isinstance(stated, (list, tuple)) and len(stated) == 2:
        return _side(stated[0]), _side(stated[1])
    if isinstance(stated, dict):
        sides = {key: value for key, value in stated.items() if value is not None}
        if set(sides) == {"height", "width"}:
            return _side(sides["height"]), _side(sides["width"])
        if set(sides) == {"shortest_edge"}:
            return _side(sides["shortest_edge"])
    raise ValueError(f"a size of {stated!r}; a number, height and width, or shortest_edge are accepted")


def _side(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"a side of {value!r} px; a whole number above 0 is accepted")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; a finite number is accepted")
    return float(value)


def _colours(value: Any) -> tuple[float, ...]:
    """One number for each of red, green and blue."""
    numbers = (value,) * 3 if isinstance(value, (int, float)) else tuple(value or ())
    if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"image_mean or image_std is {value!r}; a finite number for each of 3 colours is accepted")
    return tuple(float(number) for number in numbers)
