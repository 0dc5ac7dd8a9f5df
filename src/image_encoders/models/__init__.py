"""The families: one file each, found by its name; nothing to register.

A family's module has
    VARIANTS   a tuple of `Variant`, what `names()` lists
    load       (variant, *, weights, **options) -> Model; an option that may be a path is annotated as one
    tiny       () -> Model, a small random net behind every tower, for the contract tests
and imports torch only inside functions, so that listing models is instant. It reads from top to bottom: provenance,
variants, weights -> nets, and for each modality a `Part` (model.py). `load` below makes an encoder of its model.
"""

from __future__ import annotations

import copyreg
import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from pickle import PicklingError
from types import ModuleType
from typing import Any

from image_encoders.cache import NotCached, only_cached
from image_encoders.child import call_in_child
from image_encoders.encoder import Encoder
from image_encoders.engines.select import LazyEmbedder, Runtime, convert_apart
from image_encoders.errors import InputError, UnknownModel, WeightsError
from image_encoders.legacy_names import CLASSES, translate
from image_encoders.model import Variant
from image_encoders.progress import bar

DEFAULT = "clip/openai/clip-vit-base-patch32"


def families() -> tuple[str, ...]:
    """The names of the families, such as "clip"."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def family(name: str) -> ModuleType:
    """The module of the family that a model's name begins with; UnknownModel if there is none."""
    first = name.split("/", 1)[0]
    if first not in families():
        raise unknown(name)
    return importlib.import_module(f"{__name__}.{first}")


def variants() -> dict[str, Variant]:
    """Every listed model by its full name."""
    return {
        f"{first}/{variant.name}".rstrip("/"): variant for first in families() for variant in family(first).VARIANTS
    }


def names() -> list[str]:
    """The names that `load` takes; `clip/` also takes any folder or hub id."""
    return list(variants())


def options_of(name: str) -> dict[str, Any]:
    """The options that the family of the model `name` has, and their defaults."""
    parameters = inspect.signature(family(name).load).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY and one.name != "weights"}


def paths_of(name: str) -> set[str]:
    """Those options of the model `name` that may be paths: its family's `load` annotates them so."""
    parameters = inspect.signature(family(name).load).parameters.values()
    return {one.name for one in parameters if re.search(r"\bPath\b", str(one.annotation))}


def check_options(name: str, options: Iterable[str]) -> None:
    """Raise TypeError for an option that the family of the model `name` does not have."""
    known = options_of(name)
    for option in options:
        if option not in known:
            raise TypeError(f"{name} has no option {option!r}; it has: {', '.join(known) or 'none'}")


def unknown(name: Any) -> UnknownModel:
    """The error for a name that no model has, with the closest names."""
    return UnknownModel(f"there is no model {name!r};{did_you_mean(name)} `image-encoders models` lists them all")


def did_you_mean(name: Any) -> str:
    """A question with the closest models, after a space; "" if none is close."""
    close = difflib.get_close_matches(str(name), [*names(), *CLASSES], n=3)
    return f" did you mean {' or '.join(close)}?" if close else ""


def load(
    name: str = DEFAULT,
    *,
    weights: str | Path | None = None,
    device: Any = "auto",
    precision: str = "auto",
    engine: str = "auto",
    calibration: Any = None,
    **options: Any,
) -> Encoder:
    """The encoder called `name`, its nets loaded and on their device.

    name: family/variant, such as "clip/openai/clip-vit-base-patch32", "bit/R50x1", "custom"; `names()` lists them;
        or an original executor's class name with its own parameters (legacy_names.py)
    weights: path to an original checkpoint, file or folder; None: the published files, downloaded once and cached
    device: "auto" | "cpu" | "cuda" | "cuda:1"; also TensorFlow's "/CPU:0", "/GPU:0", a `torch.device`, or a number
    precision: "float32" gives the original's embeddings; the others of engines/precision.py, such as "bfloat16", are
        used as given; "auto": the fastest that stays close here, determined at the first load
    engine: "auto" | "torch" | "torch-compile" | "openvino" (CPU). "auto" with precision="auto" is OpenVINO on the CPU,
        which converts a model once and caches the copy, and torch elsewhere
    calibration: for int8: a folder of images like those to be encoded, or a list of them
    options: the family's own, described in its module

    Raises UnknownModel, WeightsError, DeviceError; TypeError for an option the family does not have.
    """
    if not isinstance(name, str):
        raise unknown(name)
    device = str(device)
    if name in CLASSES:
        legacy = translate(name, options if device == "auto" else {**options, "device": device})
        name, weights, device, options = legacy.name, weights or legacy.weights, legacy.device, legacy.options
    module, variant = family(name), name.partition("/")[2]
    check_options(name, options)
    path = None if weights is None else Path(weights).expanduser()
    wishes = {"device": device, "precision": precision, "engine": engine, "calibration": calibration}
    apart = partial(_convert_apart, name, {"weights": path, **wishes, **options})
    runtime = Runtime.resolve(device, precision, engine, _images(calibration), apart)
    try:
        with only_cached(runtime.convert_apart is not None):
            encoder: Encoder = module.load(variant, weights=path, **options).assemble(runtime)
    except NotCached:
        runtime = convert_apart(runtime, "image")
        encoder = module.load(variant, weights=path, **options).assemble(runtime)
    paths = paths_of(name)
    encoder.recipe = {
        "name": name,
        "weights": None if path is None else str(path.resolve()),
        **wishes,
        "calibration": encoder.calibration or None,
        "options": {key: _absolute(value) if key in paths else value for key, value in options.items()},
    }
    return encoder


def _convert_apart(name: str, wishes: dict[str, Any], modality: str) -> str:
    """Have another process load the encoder, so that its converted copy is in the cache; returns the engine."""
    with bar(f"converting {name} for OpenVINO, once"):
        engine: str = call_in_child(
            f"{__name__}:_engine_of", name, wishes, modality, environment={"IMAGE_ENCODERS_CONVERT_APART": "0"}
        )
    return engine


def _engine_of(name: str, wishes: dict[str, Any], modality: str) -> str:
    encoder = load(name, **wishes)
    embed = encoder.tower(modality).embed
    return embed.selected().engine if isinstance(embed, LazyEmbedder) else encoder.engine


def _reduced(encoder: Encoder) -> tuple[Any, ...]:
    """Pickle an encoder as the arguments to load it again."""
    if not encoder.recipe:
        raise PicklingError(f"{encoder.name} was not created by load(), so it cannot be loaded again elsewhere")
    return _reloaded, (encoder.recipe, encoder.precision, encoder.fingerprint)


def _reloaded(recipe: dict[str, Any], precision: str, fingerprint: str) -> Encoder:
    """The encoder of a recipe; WeightsError if its embeddings are not comparable with those of the pickled one.

    precision: the one chosen there, which may differ from the choice here
    """
    wishes = {**{key: value for key, value in recipe.items() if key != "options"}, **recipe["options"]}
    encoder = load(**wishes)
    if encoder.precision != precision:
        encoder = load(**{**wishes, "precision": precision})
        encoder.recipe = recipe
    if encoder.fingerprint != fingerprint:
        raise WeightsError(
            f"{encoder.name} is not the encoder that was pickled (fingerprint {encoder.fingerprint}, was "
            f"{fingerprint}): its files or this package have changed since"
        )
    return encoder


copyreg.pickle(Encoder, _reduced)


def _images(calibration: Any) -> Sequence[Any] | str | None:
    """Images to calibrate on: those of a folder, or those listed; a digest stays one."""
    if isinstance(calibration, str) and re.fullmatch(r"[0-9a-f]{16}", calibration) and not Path(calibration).exists():
        return calibration
    if not isinstance(calibration, (str, Path)):
        return calibration
    folder = Path(calibration).expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; calibration= is a folder of images, or a list", code="calibration")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _absolute(value: Any) -> Any:
    """A path as an absolute one; hub ids and other values unchanged."""
    if not isinstance(value, (str, Path)):
        return value
    path = Path(value).expanduser()
    return str(path.resolve()) if path.exists() else str(value)
