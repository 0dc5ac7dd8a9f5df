"""The families: one file each, found by its name; nothing to register.

A family's module has
    VARIANTS   a tuple of `Variant`, what `names()` lists
    load       (variant, *, weights, runtime, **options) -> Encoder
    tiny       () -> Encoder, a small random net behind every tower, for the contract tests
and imports torch only inside functions, so that listing models is instant. It reads from top to bottom: provenance,
variants, weights -> nets, and for each modality a `Part`, of which `assemble` makes the encoder.
"""

from __future__ import annotations

import copyreg
import difflib
import importlib
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from pickle import PicklingError
from types import ModuleType
from typing import TYPE_CHECKING, Any

from image_encoders.encoder import Encoder, InputSpec, Tower, fingerprint
from image_encoders.errors import InputError, UnknownModel, WeightsError
from image_encoders.inputs.preprocessing import TORCH
from image_encoders.legacy_names import CLASSES, translate
from image_encoders.progress import bar

if TYPE_CHECKING:
    from torch import nn

    from image_encoders.engines import Runtime

DEFAULT = "clip/openai/clip-vit-base-patch32"
PATHS = ("vocabulary", "definition", "preprocessor", "tokenizer")  # options that may be paths


@dataclass(frozen=True)
class Variant:
    """One line of the table of models.

    name: after the family's, such as "R50x1"; "" where the family has just one
    towers: the modalities
    dim: length of an embedding; None where the checkpoint decides
    weights: what `weights=` takes, or where the weights come from
    licence: of the weights, as their authors state it
    """

    name: str
    towers: tuple[str, ...]
    dim: int | None
    weights: str
    licence: str


@dataclass(frozen=True)
class Part:
    """One modality of a model: what its tower is made from.

    inputs: its sources to the net's inputs
    build: the net: one tensor (B, ...) in, one tensor (B, dim) out; in float32, on the CPU
    key: what else decides what `build` builds, and no image's embedding, as plain values
    traceable: whether a copy of the net can be made by following one pass
    """

    inputs: InputSpec
    build: Callable[[], nn.Module]
    key: Mapping[str, Any] = field(default_factory=dict)
    traceable: bool = True


def assemble(name: str, dim: int, facts: Mapping[str, Any], parts: Sequence[Part], runtime: Runtime) -> Encoder:
    """The encoder of a model's parts, the first of which decides what "auto" comes to.

    facts: what decides the nets, as plain values: the family, its weights' digest, its options
    """
    from image_encoders.engines import Net, described, identity, net_key, select_embedder, select_side_embedder

    def net(part: Part) -> Net:
        inputs = part.inputs
        key = net_key(**facts, modality=inputs.modality, inputs=inputs.facts, **part.key)
        label = name if part is parts[0] else f"{name}, {inputs.modality}"
        return Net(label, key, part.build, inputs.input, inputs.shape or (None,), inputs.modality, part.traceable)

    main, *others = parts
    embed = select_embedder(runtime, net(main))
    towers = [Tower(main.inputs.at(embed.precision), embed)]
    if towers[0].inputs.facts.get("resizer") == TORCH:
        import torch  # noqa: F401  # now, while the engine loads, and not when the first image comes
    towers += [Tower(part.inputs, select_side_embedder(runtime, net(part))) for part in others]
    return Encoder(
        name=name,
        dim=dim,
        towers={tower.modality: tower for tower in towers},
        fingerprint=fingerprint(
            **facts, inputs={tower.modality: tower.inputs.facts for tower in towers}, **identity(embed)
        ),
        **described(embed),
    )


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


def check_options(name: str, options: Iterable[str]) -> None:
    """Raise TypeError for an option that the family of the model `name` does not have."""
    accepted = inspect.signature(family(name).load).parameters.values()
    known = [one.name for one in accepted if one.kind is one.KEYWORD_ONLY and one.name not in ("weights", "runtime")]
    for option in options:
        if option not in known:
            raise TypeError(f"{name} has no option {option!r}; it has: {', '.join(known) or 'none'}")


def unknown(name: Any) -> UnknownModel:
    """The error for a name that no model has, with the closest names."""
    return UnknownModel(f"there is no model {name!r};{did_you_mean(name)} `image-encoders models` lists them all")


def did_you_mean(name: Any) -> str:
    """A question, with a space before it, that names the closest models; "" where none is close."""
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
    weights: path to an original checkpoint, file or folder; None: the family's own source, fetched once and cached
    device: "auto" | "cpu" | "cuda" | "cuda:1"; also TensorFlow's "/CPU:0", "/GPU:0", a `torch.device`, or a number
    precision: "float32" gives the original's embeddings; "bfloat16" | "float16" (CUDA) | "int8" (CPU, with
        `calibration`) are taken as asked; "auto": the fastest that stays close here, judged at the first load
    engine: "auto" | "torch" | "torch-compile" | "openvino" (CPU). "auto" with precision="auto" is OpenVINO on the CPU,
        which converts a model once and keeps the copy in the cache, and torch elsewhere
    calibration: for int8: a folder of images like those to be encoded, or a list of them
    options: the family's own, described in its module

    Raises UnknownModel, WeightsError, DeviceError; TypeError for an option the family does not have.
    """
    from image_encoders.engines import Runtime, device_name, with_conversions

    if not isinstance(name, str):
        raise unknown(name)
    device = device_name(device)
    if name in CLASSES:
        legacy = translate(name, options if device == "auto" else {**options, "device": device})
        return load(
            legacy.name,
            weights=weights or legacy.weights,
            device=legacy.device,
            precision=precision,
            engine=engine,
            calibration=calibration,
            **legacy.options,
        )
    module = family(name)
    check_options(name, options)
    runtime = Runtime.resolve(device, precision, engine, _images(calibration))
    variant = name.partition("/")[2]
    path = None if weights is None else Path(weights).expanduser()
    if _converts_apart(runtime):
        wishes = {"weights": path, "device": device, "precision": precision, "engine": engine, **options}
        runtime = replace(runtime, convert_apart=partial(_convert_apart, name, {**wishes, "calibration": calibration}))
    encoder: Encoder = with_conversions(
        lambda wish: module.load(variant, weights=path, runtime=wish, **options), runtime, "image"
    )
    encoder.recipe = {
        "name": name,
        "weights": None if path is None else str(path.resolve()),
        "device": device,
        "precision": precision,
        "engine": engine,
        "calibration": encoder.calibration or None,
        "options": {key: _absolute(value) if key in PATHS else value for key, value in options.items()},
    }
    return encoder


def _converts_apart(runtime: Runtime) -> bool:
    """Whether what this runtime converts is converted by a process of its own."""
    from image_encoders.engines import forked

    here = runtime.device != "cpu" or runtime.engine not in ("auto", "openvino") or forked()
    return not here and bool(sys.executable) and os.environ.get("IMAGE_ENCODERS_CONVERT_APART", "1") != "0"


def _convert_apart(name: str, wishes: dict[str, Any], modality: str) -> str:
    """Have another process load the encoder, so that what its tower needs is in the cache; the engine that runs it."""
    from image_encoders.engines import call_in_child

    with bar(f"converting {name} for OpenVINO, once"):
        engine: str = call_in_child(f"{__name__}:_engine_of", name, wishes, modality, IMAGE_ENCODERS_CONVERT_APART="0")
    return engine


def _engine_of(name: str, wishes: dict[str, Any], modality: str) -> str:
    from image_encoders.engines import LazyEmbedder

    encoder = load(name, **wishes)
    embed = encoder.tower(modality).embed
    return embed.selected().engine if isinstance(embed, LazyEmbedder) else encoder.engine


def _reduced(encoder: Encoder) -> tuple[Any, ...]:
    """How an encoder is pickled: as what it takes to load it again."""
    if not encoder.recipe:
        raise PicklingError(f"{encoder.name} was not made by load(), so that it cannot be loaded again elsewhere")
    return _reloaded, (encoder.recipe, encoder.precision, encoder.fingerprint)


def _reloaded(recipe: dict[str, Any], precision: str, fingerprint: str) -> Encoder:
    """The encoder of a recipe; WeightsError where its embeddings cannot be compared with those of the pickled one.

    precision: what was chosen there, should another one be chosen here
    """
    wishes = {**{key: value for key, value in recipe.items() if key != "options"}, **recipe["options"]}
    encoder = load(**wishes)
    if encoder.precision != precision:
        encoder = load(**{**wishes, "precision": precision})
        encoder.recipe = recipe
    if encoder.fingerprint != fingerprint:
        raise WeightsError(
            f"{encoder.name} is another encoder than the one that was pickled (fingerprint {encoder.fingerprint}, was "
            f"{fingerprint}): its files, or this package, have changed since"
        )
    return encoder


copyreg.pickle(Encoder, _reduced)  # type: ignore[arg-type]


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
    """A path that means the same from another working folder; a hub id and the like as it is."""
    if not isinstance(value, (str, Path)):
        return value
    path = Path(value).expanduser()
    return str(path.resolve()) if path.exists() else str(value)
