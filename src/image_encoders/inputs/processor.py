"""A Hugging Face checkpoint's preprocessing of images: read from its JSON, equal to its image processor's pixels.

    preprocessor_config.json ─read_processor→ Preprocessing

Source: transformers 5.23, `PilBackend` in image_processing_backends.py and image_transforms.py (Apache-2.0).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from image_encoders.errors import WeightsError
from image_encoders.inputs.preprocessing import BothSides, Patches, Preprocessing, ShortSide

FILES = ("processor_config.json", "preprocessor_config.json")  # the first counts where it has an image processor
STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}

_CLIP = {
    "size": {"shortest_edge": 224},
    "default_to_square": False,  # of a size that is one number
    "crop_size": 224,
    "resample": Image.Resampling.BICUBIC,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "do_center_crop": True,
}
_HALF = {"size": {"height": 224, "width": 224}, "image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
# What transformers takes for each image processor where the file is silent.
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CLIP,
    "ChineseCLIP": _CLIP,
    "Siglip": {**_HALF, "default_to_square": False, "resample": Image.Resampling.BICUBIC},
    "ViT": {**_HALF, "resample": Image.Resampling.BILINEAR},
    "Siglip2": {**_HALF, "resample": Image.Resampling.BILINEAR, "patch_size": 16, "max_num_patches": 256},
}
# Checkpoints older than the key image_processor_type are of the processor that their model came with.
BY_MODEL = {"clip": "CLIP", "chinese_clip": "ChineseCLIP", "siglip": "Siglip", "siglip2": "Siglip2"}


def read_processor(folder: Path, model_type: str) -> Preprocessing:
    """A checkpoint's preprocessing.

    folder: of the checkpoint
    model_type: its config's, used if the file does not name its image processor

    Raises WeightsError if there is no such file, or it uses something unsupported.
    """
    path, stated = _stated(folder)
    named = stated.get("image_processor_type") or stated.get("feature_extractor_type") or BY_MODEL.get(model_type, "")
    kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", str(named))
    if kind not in DEFAULTS:
        known = ", ".join(f"{name}ImageProcessor" for name in DEFAULTS)
        raise WeightsError(f"{path}: the image processor {named!r} is not supported; supported: {known}")
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
        raise WeightsError(f"{path}: it uses {', '.join(strange)}, which is not supported")
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
        f"{folder}: no preprocessor_config.json, so it is not known how images are preprocessed for this net; "
        "copy it from the checkpoint's source"
    )


def _preprocessing(wanted: Mapping[str, Any], *, flexible: bool) -> Preprocessing:
    """`wanted` with its many spellings resolved."""
    scale = 255 * _number(wanted["rescale_factor"], "rescale_factor") if wanted["do_rescale"] else 255.0
    mean = _colours(wanted["image_mean"] if wanted["do_normalize"] else 0.0)
    std = _colours(wanted["image_std"] if wanted["do_normalize"] else 1.0)
    size: BothSides | ShortSide | Patches | None = None
    crop = None
    if wanted["do_resize"]:
        size = _size(wanted["size"], bool(wanted["default_to_square"]))
    if wanted.get("do_center_crop"):
        kept = _size(wanted.get("crop_size"), True)
        if isinstance(kept, ShortSide):
            raise ValueError(f"crop_size is {wanted['crop_size']!r}; a height and a width are accepted")
        crop = kept.height, kept.width
    if flexible and not wanted["do_resize"]:
        raise ValueError("do_resize is off, but images have to be cut into whole patches")
    filter = wanted["resample"]
    if filter not in range(6):
        raise ValueError(f"resample is {filter!r}; 0 to 5 are accepted")
    if flexible:
        size, crop = Patches(_side(wanted["patch_size"]), _side(wanted["max_num_patches"])), None
    return Preprocessing(
        size=size,
        filter=Image.Resampling(int(filter)).name.lower(),
        crop=crop,
        mean=tuple(value / scale for value in mean),
        std=tuple(value / scale for value in std),
    )


def _size(stated: Any, square: bool) -> BothSides | ShortSide:
    """square: of a size that is one number: whether it is both sides, or the short one"""
    if isinstance(stated, int) and not isinstance(stated, bool):
        return BothSides(_side(stated), _side(stated)) if square else ShortSide(_side(stated))
    if isinstance(stated, (list, tuple)) and len(stated) == 2:
        return BothSides(_side(stated[0]), _side(stated[1]))
    if isinstance(stated, dict):
        sides = {key: value for key, value in stated.items() if value is not None}
        if set(sides) == {"height", "width"}:
            return BothSides(_side(sides["height"]), _side(sides["width"]))
        if set(sides) == {"shortest_edge"}:
            return ShortSide(_side(sides["shortest_edge"]))
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
