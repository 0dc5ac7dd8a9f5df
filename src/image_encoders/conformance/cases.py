"""Every checkpoint of the bundle with the checks that it has to pass.

The tolerances are the bundle's, for float32 by torch on the CPU; where another is used, the reason stands beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from image_encoders.conformance import bundle
from image_encoders.conformance.agreement import Agreement, Limits, agreement
from image_encoders.errors import UnknownModel

if TYPE_CHECKING:
    from image_encoders.encoder import Encoder

SMALL = 300_000_000  # a larger checkpoint is made on request only [bytes]


class Rule(NamedTuple):
    """One way to prepare images.

    name: the bundle's
    options: of `load`, that ask for it
    mean, std: from 8-bit inputs, divided by 255, to the reference's floats
    """

    name: str
    options: Mapping[str, Any] = {}
    mean: Sequence[float] = (0, 0, 0)
    std: Sequence[float] = (1, 1, 1)


@dataclass(frozen=True)
class Case:
    """A synthetic checkpoint, and how it is loaded.

    name: the bundle's
    model: the model that `load` is asked for
    format: of its files, for people
    options: of `load`, always
    rules: the ways to prepare images that its reference has embeddings of; files are checked by the first
    """

    name: str
    model: str
    format: str
    options: Mapping[str, Any] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()

    @property
    def family(self) -> str:
        return self.model.partition("/")[0]

    def weights(self, folder: Path | None = None) -> Path:
        """The checkpoint, which is made if need be: what `load` takes as `weights`."""
        file = "" if self.family == "clip" else bundle.spec(self.name)["file"]  # transformers takes the folder
        return bundle.checkpoint(self.name, folder) / file

    def load(self, weights: Path, options: Mapping[str, Any], **runtime: str) -> Encoder:
        from image_encoders import models

        return models.load(self.model, weights=weights, **runtime, **{**self.options, **options})


class Check(NamedTuple):
    """One comparison.

    stage: what is compared, for people
    options: of `load`, beside the case's own
    found: encoder -> embeddings
    reference: the original code's embeddings
    """

    stage: str
    options: Mapping[str, Any]
    found: Callable[[Encoder], np.ndarray]
    reference: np.ndarray
    limits: Limits


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}

SAVED_MODEL = "TensorFlow SavedModel"
BIT_RULES = (
    Rule("bit224", {"input_size": 224}, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    Rule("bit_jina", {"preprocessing": "jina"}),
    Rule("bit_hyper"),
)
VSE_RULES = (Rule("vse", {}, **IMAGENET),)
CLIP_RULES = (Rule("clip_hf", {}, **CLIP), Rule("clip_pil", {"crop": "round"}, **CLIP))
CAPTIONS = {"unknown_words": "accept"}  # some captions of the reference have no known word
PAIRS = {"vocabulary": str(bundle.FOLDER / "specs" / "data" / "bpe_synthetic.txt.gz")}


def _definition(file: str, class_name: str) -> dict[str, Any]:
    return {"definition": str(bundle.FOLDER / "specs" / "data" / file), "class_name": class_name}


CASES = (
    Case("clip-tiny-quickgelu", "clip", "Hugging Face folder", rules=CLIP_RULES),
    Case("clip-tiny-gelu", "clip", "Hugging Face folder", rules=CLIP_RULES),
    Case("clip-vit-b32", "clip/openai/clip-vit-base-patch32", "Hugging Face folder, true size", rules=CLIP_RULES),
    Case("bit-npz-R50x1", "bit/R50x1", "numpy archive", rules=BIT_RULES),
    Case("bit-savedmodel-hub", "bit/R50x1", f"{SAVED_MODEL}, short names", rules=BIT_RULES[:2]),
    # exported from the repository's own class, which converts nothing inside
    Case(
        "bit-savedmodel-raw",
        "bit/R50x1",
        f"{SAVED_MODEL} of Keras",
        {"input_range": "symmetric"},
        BIT_RULES[:2],
    ),
    Case("bit-savedmodel-wrapped", "bit/R50x1", f"{SAVED_MODEL}, object graph only"),
    Case("bit-savedmodel-named", "bit/R50x1", f"{SAVED_MODEL}, full names"),
    Case("bit-npz-R50x3", "bit/R50x3", "numpy archive"),
    Case("vse-resnet152", "vsepp/f30k-resnet152-finetune", "torch, legacy", CAPTIONS, VSE_RULES),
    Case("vse-resnet152-order", "vsepp/f30k-resnet152-finetune", "torch, zip; use_abs, no_imgnorm", CAPTIONS),
    Case("vse-vgg19", "vsepp/f30k-vgg19", "torch, zip", CAPTIONS, VSE_RULES),
    Case("vse-vgg19-py2", "vsepp/f30k-vgg19", "torch 0.3 of Python 2, from a GPU", CAPTIONS),
    Case("audioclip", "audioclip/full", "torch, zip", PAIRS, (Rule("aclip"),)),
    Case("custom-conv", "custom", "torch, zip", _definition("custom_conv.py", "CustomModel")),
    Case("custom-features", "custom", "torch, legacy", _definition("custom_features.py", "SmallNet")),
    Case("custom-inplace", "custom", "torch, zip", _definition("custom_inplace.py", "InplaceNet")),
)


def named(name: str) -> list[Case]:
    """The cases of a family, a model, or "all"; or the one case of that name. UnknownModel if there are none."""
    from image_encoders import models

    found = [case for case in CASES if name in ("all", case.family, case.model, case.name)]
    if not found:
        family = name.partition("/")[0]
        there = sorted({case.model for case in CASES if case.family == family}) or [*models.families(), "all"]
        raise UnknownModel(
            f"{name}: no conformance case has that name; there are: {', '.join(there)}. "
            "If you have the real weights, pass them with --weights"
        )
    return found


def small(cases: Sequence[Case]) -> list[Case]:
    """Those below 300 MB; for a family that has none, its first."""
    families = dict.fromkeys(case.family for case in cases)
    chosen: list[Case] = []
    for family in families:
        own = [case for case in cases if case.family == family]
        chosen += [case for case in own if bundle.size(case.name) < SMALL] or own[:1]
    return chosen


# ---------------------------------------------------------------- the checks


def checks(case: Case) -> Iterator[Check]:
    """The checks of a case, those of equal options together."""
    stored, tolerances = bundle.golden(case.name), bundle.manifest()["cases"][case.name]
    limits = Limits(rel=tolerances["rel"], one_minus_cos=tolerances["one_minus_cos"])
    yield from _floats(case, stored, limits)
    if "text_rel" in tolerances:
        text_limits = Limits(rel=tolerances["text_rel"], one_minus_cos=tolerances["text_one_minus_cos"])
        yield from _texts(case, stored, text_limits)
    for position, rule in enumerate(case.rules):
        yield from _prepared(rule)
        yield from _pixels(case, rule, stored, limits)
        if position == 0:
            yield from _files(case, rule, stored, limits)
    if "audio" in tolerances:
        yield from _sounds(stored, tolerances["audio"])


def _floats(case: Case, stored: Mapping[str, np.ndarray], limits: Limits) -> Iterator[Check]:
    """Rows of arrays that are already prepared."""
    for key, reference in stored.items():
        if match := re.fullmatch(r"(float(\d+)(?:x(\d+))?)(?:/(\w+))?/out", key):
            name, height, width, layer = match.groups()
            stage = f"prepared {height} x {width or height}" + (f", layer {layer}" if layer else "")

            def found(encoder: Encoder, name: str = name) -> np.ndarray:
                return encoder.embed_image(bundle.float_inputs(case.name, name))

            yield Check(stage, {"layer": layer} if layer else {}, found, reference, limits)


def _prepared(rule: Rule) -> Iterator[Check]:
    """What the net is given for an image's pixels."""
    stored = bundle.golden("preprocess")
    if f"{rule.name}/sub" not in stored:
        return
    names = stored[f"{rule.name}/names"].tolist()
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (rule.mean, rule.std))
    full = f"{rule.name}/full/"
    whole = [names.index(key.removeprefix(full)) for key in stored if key.startswith(full)]

    def found(encoder: Encoder) -> np.ndarray:
        inputs = np.stack([encoder.tower("image").input(bundle.decoded(name)) for name in names])
        if inputs.dtype == np.uint8:
            inputs = (inputs.astype(np.float32) / 255 - mean) / std
        return flat(inputs[:, :, ::8, ::8], inputs[:, :, :4, :4], inputs[whole])

    reference = flat(
        stored[f"{rule.name}/sub"], stored[f"{rule.name}/corner"], *(stored[full + names[i]][None] for i in whole)
    )
    # an image that is resized as floats passes more roundings than one that is resized as pixels
    limits = Limits(max_abs=2e-5 if rule.name == "aclip" else 2e-6)
    yield Check(f"preprocessing {rule.name}", rule.options, found, reference, limits)


def flat(*arrays: np.ndarray) -> np.ndarray:
    """All the values, as one vector."""
    return np.concatenate([array.ravel() for array in arrays])[None]


ONE_COLOUR = ("gray16.png.rgb", "one_pixel.png.rgb")


def _limited(case: Case, names: Sequence[str], limits: Limits) -> Iterator[tuple[str, list[str], Limits]]:
    """The decoded images `names` in groups of equal limits, each with a label."""
    if not case.format.startswith(SAVED_MODEL):
        yield "", list(names), limits
        return
    # The reference is TensorFlow's float32, whose sums over thousands of nearly equal values drift: its embeddings are
    # up to 1.8e-4 from float64's on images of little contrast, and up to 1.5e-3 on those of one colour.
    yield "", [name for name in names if name not in ONE_COLOUR], Limits(rel=2.5e-4, one_minus_cos=5e-8)
    yield ", one colour", [name for name in names if name in ONE_COLOUR], Limits(rel=2e-3, one_minus_cos=3e-6)


def _pixels(case: Case, rule: Rule, stored: Mapping[str, np.ndarray], limits: Limits) -> Iterator[Check]:
    """Rows of images' pixels."""
    embeddings = dict(zip(stored[f"image/{rule.name}/names"].tolist(), stored[f"image/{rule.name}/out"]))
    for label, names, allowed in _limited(case, list(embeddings), limits):

        def found(encoder: Encoder, names: Sequence[str] = names) -> np.ndarray:
            return encoder.encode_image([bundle.decoded(name) for name in names])

        reference = np.stack([embeddings[name] for name in names])
        yield Check(f"pixels {rule.name}{label}", rule.options, found, reference, allowed)


# How files are read here, by the names of the decoded images: upright, on white, 16 bits scaled to 8.
READ = {"exif_rotated.jpg": "exif", "gray16.png": "scaled", "palette.png": "white", "rgba.png": "white"}
LOSSY = (".jpg", ".webp")


def _files(case: Case, rule: Rule, stored: Mapping[str, np.ndarray], limits: Limits) -> Iterator[Check]:
    """Rows of image files."""
    embeddings = dict(zip(stored[f"image/{rule.name}/names"].tolist(), stored[f"image/{rule.name}/out"]))
    files = sorted(path for path in (bundle.FOLDER / "images").iterdir() if path.is_file())
    named = {f"{path.name}.{READ.get(path.name, 'rgb')}": path for path in files}
    there = [name for name in named if name in embeddings]
    exact = [name for name in there if named[name].suffix not in LOSSY]
    groups = [(f"PNG, GIF{label}", names, allowed) for label, names, allowed in _limited(case, exact, limits)]
    # another decoder may differ by 1 in a pixel
    groups.append(("JPEG, WebP", [name for name in there if name not in exact], Limits(one_minus_cos=1e-3)))
    for label, names, allowed in groups:

        def found(encoder: Encoder, names: Sequence[str] = names) -> np.ndarray:
            return encoder.encode_image([named[name] for name in names])

        reference = np.stack([embeddings[name] for name in names])
        yield Check(f"files {label}", rule.options, found, reference, allowed)


def _texts(case: Case, stored: Mapping[str, np.ndarray], limits: Limits) -> Iterator[Check]:
    """Rows of texts, and of the ids that the published tokenizer gives."""
    prefix = "text/synthetic_bpe/" if case.family == "audioclip" else "text/"
    # the Python 2 case has embeddings of the same captions as its twin
    texts = stored if f"{prefix}captions" in stored else bundle.golden("vse-vgg19")
    captions = texts[f"{prefix}captions"].tolist()
    yield Check("texts", {}, lambda encoder: encoder.encode_text(captions), stored[f"{prefix}out"], limits)
    for key in ("text/real_bpe", "text_real_bpe"):
        if f"{key}/ids" in stored:

            def found(encoder: Encoder, ids: np.ndarray = stored[f"{key}/ids"]) -> np.ndarray:
                return encoder.tower("text").embed(ids.astype(np.int64))

            yield Check("ids of the published tokenizer", {}, found, stored[f"{key}/out"], limits)


def _sounds(stored: Mapping[str, np.ndarray], tolerances: Mapping[str, Any]) -> Iterator[Check]:
    """Rows of sound files, for both statistics and amplitudes; of silence; of two channels."""
    names = stored["audio/names"].tolist()
    silent = names.index("silence")
    loud = [i for i in range(len(names)) if i != silent]
    mono = bundle.samples("tones")
    stereo = np.stack([mono, np.roll(mono, 777) // 2])  # as the bundle made it
    for statistics, batch_norm in (("eval_bn", "running"), ("batchstat_bn", "item")):
        for amplitude in ("int16", "unit"):
            options = {"batch_norm": batch_norm, "amplitude": amplitude}
            reference, limits = stored[f"audio/{statistics}/{amplitude}/out"], tolerances[f"{statistics}/{amplitude}"]
            # silence is rounding noise after a logarithm: another machine gives another embedding, not far
            for label, chosen, allowed in (
                ("sounds", loud, Limits(**limits)),
                ("silence", [silent], Limits(one_minus_cos=0.2)),
            ):

                def found(encoder: Encoder, chosen: Iterable[int] = tuple(chosen)) -> np.ndarray:
                    return encoder.encode_audio([bundle.sound(names[i]) for i in chosen])

                yield Check(f"{label} {statistics} {amplitude}", options, found, reference[chosen], allowed)
        yield Check(
            f"two channels {statistics} int16",
            {"batch_norm": batch_norm, "channels": "sum"},
            lambda encoder: encoder.encode_audio([(stereo, 44_100)]),
            stored[f"audio/stereo_tones_int16/{statistics}/out"][None],
            Limits(**tolerances[f"{statistics}/int16"]),
        )


# ---------------------------------------------------------------- running them


class Result(NamedTuple):
    """A check that was run."""

    case: Case
    stage: str
    agreement: Agreement
    limits: Limits

    @property
    def passed(self) -> bool:
        return self.limits.hold(self.agreement)


def verify(case: Case, folder: Path | None = None, **runtime: str) -> Iterator[Result]:
    """Run a case's checks, each as it is asked for.

    folder: where the synthetic checkpoint is, or is made and kept; default: `bundle.checkpoints()`
    runtime: device, precision and engine, as `load` takes them
    """
    weights = case.weights(folder)
    encoder: Encoder | None = None
    options: Mapping[str, Any] = {}
    for check in checks(case):
        if encoder is None or check.options != options:
            encoder = None  # its memory first
            options = check.options
            encoder = case.load(weights, options, **runtime)
        yield Result(case, check.stage, agreement(check.found(encoder), check.reference), check.limits)
