"""BiT (Big Transfer): features of a ResNet trained on ImageNet-1k (BiT-S) or ImageNet-21k (BiT-M).

    load("bit/R50x1", weights="BiT-M-R50x1.npz")
    load("bit/R101x3", weights="feature_vectors/")            # a TensorFlow 2 SavedModel, read without TensorFlow
    load("bit/Imagenet1k/R50x1")                              # fetched: BiT-S-R50x1.npz

Source: Kolesnikov et al., "Big Transfer (BiT): General Visual Representation Learning", https://arxiv.org/abs/1912.11370;
    code https://github.com/google-research/big_transfer (Apache-2.0), bit_pytorch/models.py and
    bit_tf2/models.py; weights under https://storage.googleapis.com/bit_models
Inputs: RGB images, resized to 480 x 480 (128 x 128 if the area is below 96 * 96), aspect ratio not kept, bilinear,
    as bit_pytorch's evaluation does; or prepared floats (3, H, W) of any H and W, in the range that `input_range` says.
Output: 2048 times the width, means of non-negative maps, not of unit length.
Differs: the kernels are standardised once at load, in float32 as the original does in every forward pass;
    SavedModels are given images by the same rule as the npz (the original leaves resizing to the caller), and the
    doubling that some have inside is done here. Otherwise none known: tests/golden/test_bit_golden.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.errors import InputError, WeightsError
from image_encoders.inputs.preprocessing import BILINEAR, LANCZOS, BothSides, Preprocessing, ShortSide
from image_encoders.model import Model, Part, Variant, check_option
from image_encoders.models import unknown
from image_encoders.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

    from image_encoders.nets.normalized import Normalized
    from image_encoders.weights.tensor_bundle import Bundle

PUBLISHED = "https://storage.googleapis.com/bit_models"  # neither sizes nor digests are stated: pinned on first use
MAX_BYTES = 8 << 30  # of a published file; the largest, R152x4, has 3.8 GB
DATASETS = {"Imagenet21k": "BiT-M", "Imagenet1k": "BiT-S"}
RANGES = ("unit", "symmetric")
HALF = (0.5, 0.5, 0.5)  # mean and deviation, which make [0, 1] [-1, 1]
BIT = Preprocessing(  # bit_pytorch's evaluation; bit_hyperrule.py: small images at 128
    BothSides(480, 480, small_area=96 * 96, small_side=128), BILINEAR, None, HALF, HALF, takes_floats=True
)
JINA = Preprocessing(  # what Jina's encoder meant
    ShortSide(256, "round"), LANCZOS, (224, 224), HALF, HALF, corner="truncate", takes_floats=True
)
SHAPE = (3, None, None)  # of an input: the net takes any
PREPROCESSINGS = {"bit": BIT, "fast": BIT.fast(), "jina": JINA}
ROOT = "resnet/root_block/standardized_conv2d/kernel"
HEAD = "resnet/head/"  # the classifier, which embeddings do without


@dataclass(frozen=True)
class Architecture:
    """The size of a net: units in each of the four blocks, and the width."""

    units: tuple[int, ...]
    width: float

    def __str__(self) -> str:
        # A unit has three convolutions; the stem and the classifier make two more.
        return f"R{3 * sum(self.units) + 2}x{self.width:g} (units {'-'.join(map(str, self.units))})"

    @property
    def channels(self) -> int:
        """Of the stem."""
        return int(64 * self.width)

    @property
    def dim(self) -> int:
        return 32 * self.channels


ARCHITECTURES = {
    "R50x1": Architecture((3, 4, 6, 3), 1),
    "R101x1": Architecture((3, 4, 23, 3), 1),
    "R50x3": Architecture((3, 4, 6, 3), 3),
    "R101x3": Architecture((3, 4, 23, 3), 3),
    "R152x2": Architecture((3, 8, 36, 3), 2),
    "R152x4": Architecture((3, 8, 36, 3), 4),
}
SAVED_MODELS = ("R50x1", "R101x1", "R50x3", "R101x3", "R152x4")  # those published as SavedModels

VARIANTS = tuple(
    Variant(
        prefix + name,
        ("image",),
        architecture.dim,
        f"{stem}-{name}.npz, or a SavedModel folder of feature vectors",
        "Apache-2.0",
    )
    for prefix, stem in (("", "BiT-M"), ("Imagenet1k/", "BiT-S"))
    for name, architecture in ARCHITECTURES.items()
)


def load(
    variant: str,
    *,
    weights: Path | None,
    input_size: int | None = None,
    input_range: str | None = None,
    preprocessing: str = "bit",
    source: str = "npz",
) -> Model:
    """The model of a variant, such as "R50x1" or "Imagenet1k/R50x1".

    weights: `.npz`, SavedModel folder, or a converted `.safetensors`; None: the published file, fetched once
    input_size: side of the net's input [px]; default: the rule of `preprocessing`
    input_range: what floats given to `embed_image`, or float images given to `encode_image`, are: "unit" [0, 1] or
        "symmetric" [-1, 1]. Default: as the checkpoint's own program takes them, "unit" for SavedModels and "symmetric"
        for npz. Embeddings of uint8 images and of files do not depend on it.
    preprocessing: "bit", both sides resized to `input_size`, bilinear; by default to 480, or to 128 where the image's
        area is below 96 * 96. "fast": the same, but large JPEG files are decoded at a smaller scale, and images are
        resized by torch: different embeddings, in a separate space. "jina", as intended by Jina's encoder: short side
        to 256, Lanczos, the central square of `input_size`, by default 224, black where the image ends.
    source: which published files to fetch, "npz" or "savedmodel"

    Raises UnknownModel; WeightsError; InputError for an option's value.
    """
    from image_encoders.weights.digest import weights_digest

    architecture = _architecture(variant)
    check_option("preprocessing", preprocessing, tuple(PREPROCESSINGS))
    if input_range is not None:
        check_option("input_range", input_range, RANGES)
    if input_size is not None and (type(input_size) is not int or input_size < 1):
        raise InputError(f"input_size is {input_size!r}; a number of pixels is accepted", code="option")
    path = weights or _folder(fetch(variant, source=source))
    about = {"family": "bit", "units": architecture.units, "width": architecture.width}
    steps = _sized(PREPROCESSINGS[preprocessing], input_size)
    checkpoint = Checkpoint([path], lambda: _net(path, architecture, steps, input_range), about)
    found = checkpoint.facts(lambda: {"weights": weights_digest(checkpoint.content().net.state_dict())})
    image = Part(steps.inputs(shape=SHAPE), checkpoint.content, {"input_range": input_range})  # that of floats alone
    name = f"bit/{variant.removeprefix('Imagenet21k/')}"
    return Model(name, architecture.dim, {**about, **found}, [image], checkpoint)


def fetch(
    variant: str, *, offline: bool | None = None, progress: bool | None = None, source: str = "npz"
) -> list[Path]:
    """The local copies of a variant's published files, downloaded unless they are there."""
    from image_encoders.weights.fetch import fetch as fetch_file

    return [
        fetch_file(url, max_bytes=MAX_BYTES, offline=offline, progress=progress) for url in published(variant, source)
    ]


def published(variant: str, source: str = "npz") -> list[str]:
    """Where a variant's files are: the `.npz`, or the three files of the SavedModel."""
    _architecture(variant)
    dataset, _, name = variant.rpartition("/")
    dataset = dataset or "Imagenet21k"
    if source == "npz":
        return [f"{PUBLISHED}/{DATASETS[dataset]}-{name}.npz"]
    if source != "savedmodel":
        raise InputError(f"source is {source!r}; accepted: npz, savedmodel", code="option")
    if name not in SAVED_MODELS:
        raise WeightsError(f"no SavedModel of {name} is published, only of {', '.join(SAVED_MODELS)}; use source='npz'")
    folder = f"{PUBLISHED}/{dataset}/{name}/feature_vectors"
    files = ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")
    return [f"{folder}/{file}" for file in files]


def original(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of an original checkpoint as the net has them, kernels standardised, and what else `load` needs."""
    variables, input_range = _variables(path)
    found = _found(variables) or ARCHITECTURES["R50x1"]  # where it is unknown, the error lists what is missing
    tensors = _folded(variables, _names(variables, found, path), path)
    return tensors, {"family": "bit", "units": found.units, "width": found.width, "input_range": input_range}


def tiny() -> Model:
    """A small random net."""
    import torch

    from image_encoders.nets.bit import BiT, standardize
    from image_encoders.nets.normalized import Normalized
    from image_encoders.weights.digest import weights_digest

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = BiT((1, 1, 1, 1), channels=32)
        for parameter in net.parameters():
            if parameter.ndim == 4:
                standardize(parameter.data.uniform_(-1, 1))
            else:
                parameter.data.uniform_(-0.5, 1)
    facts = {"family": "bit", "weights": weights_digest(net.state_dict())}
    steps = _sized(BIT, 64)
    image = Part(steps.inputs(shape=SHAPE), lambda: Normalized(net, steps.mean, steps.std))
    return Model("bit/tiny", 4 * 8 * 32, facts, [image])


def _sized(steps: Preprocessing, side: int | None) -> Preprocessing:
    """`steps` that end in squares of `side` [px]; None: as they are."""
    if side is None:
        return steps
    return replace(steps, size=BothSides(side, side)) if steps.crop is None else replace(steps, crop=(side, side))


def _architecture(variant: str) -> Architecture:
    dataset, _, name = variant.rpartition("/")
    if name not in ARCHITECTURES or dataset not in ("", *DATASETS):
        raise unknown(f"bit/{variant}")
    return ARCHITECTURES[name]


def _folder(files: list[Path]) -> Path:
    """What to load of fetched files: the one file, or the SavedModel's folder."""
    return files[0] if len(files) == 1 else files[0].parent


# ---------------------------------------------------------------- weights


def _net(path: Path, wanted: Architecture, steps: Preprocessing, input_range: str | None) -> Normalized:
    """The net of a checkpoint, original or converted, which takes pixels, and floats in the range that they are in."""
    import torch

    from image_encoders.nets.bit import BiT
    from image_encoders.nets.normalized import Normalized
    from image_encoders.weights import convert
    from image_encoders.weights.assign import assign
    from image_encoders.weights.safetensors_file import is_safetensors

    if is_safetensors(path):
        tensors, facts = convert.load(path, "bit")
        _agree(Architecture(tuple(facts.get("units", ())), facts.get("width", 0)), wanted, path)
        own_range = facts.get("input_range")
    else:
        variables, own_range = _variables(path)
        _agree(_found(variables), wanted, path)
        tensors = _folded(variables, _names(variables, wanted, path), path)
    with torch.device("meta"):
        net = BiT(wanted.units, wanted.channels)
    assign(net, tensors, path)
    return Normalized(net, steps.mean, steps.std, unit_floats=(input_range or own_range) == "unit")


def _agree(found: Architecture | None, wanted: Architecture, path: Path) -> None:
    if found is None or found == wanted:
        return
    names = [name for name, architecture in ARCHITECTURES.items() if architecture == found]
    hint = f"; load it as bit/{names[0]}" if names else ""
    raise WeightsError(f"{path}: the weights are those of {found}, not of {wanted}{hint}")


def _variables(path: Path) -> tuple[Mapping[str, np.ndarray], str]:
    """A checkpoint's variables by the names they have in the npz, and the range of floats its program takes."""
    from image_encoders.weights import npz, tensor_bundle

    if path.is_dir():
        if not (path / "variables").is_dir():
            raise WeightsError(f"{path}: a folder without variables/; a SavedModel has saved_model.pb and variables/")
        return _by_npz_names(tensor_bundle.read(path), path), "unit"
    if path.name == "saved_model.pb":
        raise WeightsError(f"{path}: a SavedModel is more than this file; give its folder, {path.parent}")
    head = _head(path)
    if not head.startswith(b"PK"):
        what = "an HDF5 file" if head.startswith(b"\x89HDF") else "not a numpy archive"
        raise WeightsError(f"{path}: {what}; accepted: Google's .npz, a SavedModel folder, a converted .safetensors")
    return npz.read(path), "symmetric"


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from error


def _found(variables: Mapping[str, np.ndarray]) -> Architecture | None:
    """The size of the net whose variables these are; None when they do not show it."""
    names = set(variables)
    units: list[int] = []
    while f"resnet/block{len(units) + 1}/unit01/a/standardized_conv2d/kernel" in names:
        prefix = f"resnet/block{len(units) + 1}/unit"
        units.append(len({name.split("/")[2] for name in names if name.startswith(prefix)}))
    if not units or ROOT not in names or variables[ROOT].ndim != 4:
        return None
    return Architecture(tuple(units), variables[ROOT].shape[-1] / 64)


def _npz_name(name: str) -> str:
    """The npz's name of a tensor of the net."""
    for ours, theirs in (("conv.weight", "standardized_conv2d.kernel"), ("weight", "gamma"), ("bias", "beta")):
        if name.endswith(ours):
            name = name.removesuffix(ours) + theirs
    return "resnet/" + name.replace(".", "/")


def _names(variables: Mapping[str, np.ndarray], architecture: Architecture, path: Path) -> dict[str, str]:
    """The net's name of every tensor -> its name in `variables`; WeightsError where names lack or are left over."""
    import torch

    from image_encoders.nets.bit import BiT
    from image_encoders.weights.assign import listed

    with torch.device("meta"):
        wanted = {name: _npz_name(name) for name in BiT(architecture.units, architecture.channels).state_dict()}
    missing = [name for name in wanted.values() if name not in variables]
    known = set(wanted.values())
    extra = [name for name in variables if name not in known and not name.startswith(HEAD)]
    if missing or extra:
        raise WeightsError(
            f"{path}: {listed(missing, 'missing')}; {listed(extra, f'not part of {architecture}')}; "
            "is it a BiT checkpoint, and whole?"
        )
    return wanted


def _folded(variables: Mapping[str, np.ndarray], names: dict[str, str], path: Path) -> dict[str, torch.Tensor]:
    """The tensors as the net has them: kernels turned from (h, w, I, O) to (O, I, h, w) and standardised."""
    import torch

    from image_encoders.nets.bit import standardize
    from image_encoders.weights.files import let_go

    tensors = {}
    room = np.empty(0, np.float32)  # for one tensor in the file's order: turning it there, not in the file, is fast
    for name, source in names.items():
        mapped = variables[source]
        if mapped.dtype.kind != "f":
            raise WeightsError(f"{path}: {source} holds {mapped.dtype}; floating-point numbers were expected")
        if room.size < mapped.size:
            room = np.empty(mapped.size, np.float32)
        copy = room[: mapped.size].reshape(mapped.shape)
        copy[...] = mapped
        let_go(mapped)  # else the mapped file would count as memory beside the tensors
        value = torch.from_numpy(copy)
        if value.ndim == 4:
            tensors[name] = standardize(value.permute(3, 2, 0, 1).clone(memory_format=torch.contiguous_format))
        else:
            tensors[name] = value.clone()
    return tensors


def _by_npz_names(bundle: Bundle, path: Path) -> dict[str, np.ndarray]:
    """A SavedModel's variables by the npz's names.

    Some exports keep those names; others give short ones that repeat, and only the object graph says which tensor
    is which.
    """
    named: dict[str, str] = {}
    for key, name in bundle.names.items():
        _, found, tail = name.removesuffix(":0").rpartition("resnet/")
        if found:
            named.setdefault(found + tail, key)
    if ROOT in named:
        return {name: bundle.tensors[key] for name, key in named.items() if key in bundle.tensors}
    keys = dict(_in_graph(bundle))
    if not keys:
        names = ", ".join(sorted(set(bundle.names.values()))[:5])
        raise WeightsError(
            f"{path}: neither the names of its variables nor its object graph are those of a BiT model; "
            f"it has {len(bundle.tensors)} tensors" + (f" ({names}, ...)" if names else "")
        )
    return {name: bundle.tensors[key] for name, key in keys.items() if key in bundle.tensors}


# The part of a unit in the npz -> in the Keras model's object graph
PARTS = {
    "a/group_norm": "_unit_a/layer_with_weights-0",
    "a/standardized_conv2d": "_unit_a_conv",
    "a/proj/standardized_conv2d": "_proj",
    "b/group_norm": "_unit_b/layer_with_weights-0",
    "b/standardized_conv2d": "_unit_b/layer_with_weights-1",
    "c/group_norm": "_unit_c/layer_with_weights-0",
    "c/standardized_conv2d": "_unit_c/layer_with_weights-1",
}


def _in_graph(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """(npz name, key of the tensor) of the Keras model that lies nearest to the root of the object graph."""
    starts = bundle.starts("_root/layer_with_weights-0/kernel")
    if not starts:
        return

    def found(part: str, path: str) -> Iterator[tuple[str, str]]:
        for leaf in ("kernel", "gamma", "beta"):
            if key := bundle.walk(f"{path}/{leaf}", starts[0]):
                yield f"resnet/{part}/{leaf}", key

    yield from found("root_block/standardized_conv2d", "_root/layer_with_weights-0")
    yield from found("group_norm", "_pre_head/0")
    for b in itertools.count():
        for u in itertools.count():
            unit = [
                pair
                for part, path in PARTS.items()
                for pair in found(f"block{b + 1}/unit{u + 1:02}/{part}", f"_blocks/{b}/layer_with_weights-{u}/{path}")
            ]
            if not unit:
                break
            yield from unit
        if not u:
            return
