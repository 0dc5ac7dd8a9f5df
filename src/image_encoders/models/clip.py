"""CLIP, SigLIP and similar models: images and texts in one space, from any two-tower checkpoint of Hugging Face.

    load("clip/openai/clip-vit-base-patch32")   # a hub id, fetched once
    load("clip/./my-checkpoint")                # a folder; also "clip//home/me/my-checkpoint", or weights=FOLDER
    load("clip/demo")                           # bundled: small, for trying things out, needs no network

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
    https://arxiv.org/abs/2103.00020; code https://github.com/openai/CLIP (MIT). Zhai et al., "Sigmoid Loss for Language
    Image Pre-Training", 2023, https://arxiv.org/abs/2303.15343; Tschannen et al., "SigLIP 2", 2025,
    https://arxiv.org/abs/2502.14786. Nets and tokenizers are those of transformers (Apache-2.0).
Inputs: RGB images, prepared as the checkpoint's preprocessor_config.json says; texts, split by its tokenizer, of at
    most its context (CLIP 77 tokens, SigLIP 64). SigLIP's are padded to it, and CLIP's, of which padding at the end is
    never seen, to a multiple of 8.
Output: `dim` numbers (512 for ViT-B/32), projected, not of unit length, as get_image_features and get_text_features.
Differs: files are rotated upright (EXIF). A text longer than the context is an error unless `truncate=True`.
    Numbers: none known from transformers with its PIL image processors, tests/golden/test_clip_golden.py and
    tests/inputs/test_processor.py; its torchvision processors, and OpenAI's own code on some sizes, crop or resize
    a little differently (docs/clip.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.errors import InputError, UnknownModel, WeightsError
from image_encoders.inputs.preprocessing import Patches, Preprocessing, ShortSide
from image_encoders.inputs.spec import InputSpec
from image_encoders.model import Model, Part, Variant, check_option
from image_encoders.models import did_you_mean
from image_encoders.process import Lazy
from image_encoders.weights import hugging_face
from image_encoders.weights.checkpoint import Checkpoint
from image_encoders.weights.hugging_face import TokenizerFacts

if TYPE_CHECKING:
    from torch import nn

DEMO = Path(__file__).parents[1] / "assets" / "clip-demo"
TOWERS = ("image", "text")
OPENAI = "MIT (OpenAI's repository; the hub states none)"
VARIANTS = (
    Variant("demo", TOWERS, 128, "bundled; trained on generated scenes, to try things out", "Apache-2.0"),
    *(
        Variant(name, TOWERS, dim, "the Hugging Face hub, or weights=FOLDER", licence)
        for name, dim, licence in (
            ("openai/clip-vit-base-patch32", 512, OPENAI),
            ("openai/clip-vit-base-patch16", 512, OPENAI),
            ("openai/clip-vit-large-patch14", 768, OPENAI),
            ("openai/clip-vit-large-patch14-336", 768, OPENAI),
            ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", 512, "MIT"),
            ("google/siglip-base-patch16-224", 768, "Apache-2.0"),
            ("google/siglip2-base-patch16-224", 768, "Apache-2.0"),
            ("google/siglip2-base-patch16-naflex", 768, "Apache-2.0"),
        )
    ),
)
CAUSAL = ("clip",)  # no token sees what follows it, so padding at the end is never seen
UNMASKED = (*CAUSAL, "siglip", "siglip2")  # SigLIP was trained to see it
GRAIN = 8  # tokens: texts are padded to a multiple of it, so that few lengths occur in a batch
HIDDEN = -1  # a position of padding that has to be hidden from the others
CROPS = ("floor", "round")


def load(
    variant: str,
    *,
    weights: Path | None,
    revision: str | None = None,
    truncate: bool = False,
    max_length: int | None = None,
    preprocessor: str | Path | None = None,
    crop: str = "floor",
    tokenizer: str | Path | None = None,
    offline: bool | None = None,
    preprocessing: str = "exact",
) -> Model:
    """The model of a checkpoint, its two towers sharing one net's weights.

    variant: hub id, folder or "demo"
    weights: a checkpoint's folder, whatever `variant` is
    revision: of a hub id: branch, tag or commit
    truncate: truncate a text that is longer than the context, as transformers does; else it is an InputError
    max_length: of a text in tokens, if less than the context
    preprocessor: folder or hub id whose preprocessing of images is used instead of the checkpoint's
    crop: where half of the spare pixels is no whole number, the crop's corner is rounded down ("floor", as transformers
        does) or half to even ("round", as OpenAI's code does)
    tokenizer: folder or hub id whose tokenizer is used instead of the checkpoint's
    offline: use only what is already in the cache; None: as the environment says
    preprocessing: "exact", as the checkpoint says; or "fast": large JPEG files are decoded at a smaller scale, and
        images are resized by torch, which gives different embeddings in a separate space.

    Raises UnknownModel; InputError for an option's value; WeightsError for a checkpoint that is damaged, incomplete, or
    asks for unknown preprocessing; MissingExtra for a tokenizer that needs sentencepiece, as the first SigLIP's does.
    """
    from image_encoders.inputs.processor import read_processor

    check_option("preprocessing", preprocessing, ("exact", "fast"))
    check_option("crop", crop, CROPS)
    if max_length is not None and (type(max_length) is not int or max_length < 3):
        raise InputError(
            f"max_length is {max_length!r}; a whole number of tokens is accepted, 3 (start, word, end) or more",
            code="option",
        )
    folder = _folder(variant, weights, revision, offline)
    images = folder if preprocessor is None else _part(preprocessor, offline)
    texts = folder if tokenizer is None else _part(tokenizer, offline)
    opened = hugging_face.open_checkpoint(folder, TOWERS, "clip", _facts, texts)
    facts = Facts(**opened.facts)
    steps = replace(read_processor(images, facts.model_type), corner=crop)
    _agree(facts, steps, folder)
    context = _context(facts, opened.tokens, folder)
    ids = TextIds(facts, opened.tokens, opened.tokenizer, min(max_length or context, context), truncate)
    steps = steps.fast() if preprocessing == "fast" else steps
    return _model(f"clip/{variant}".rstrip("/"), facts, opened.net.content, steps, ids, opened.net)


def fetch(variant: str, *, offline: bool | None = None, progress: bool | None = None) -> list[Path]:
    """The local folder of a variant's checkpoint, downloaded if necessary."""
    return [_folder(variant, None, None, offline, progress)]


def tiny() -> Model:
    """A small random CLIP with both towers, nothing of it on disk: for tests."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    from image_encoders.inputs.processor import DEFAULTS

    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=24, padding_side="right"
    )
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1, "pad_token_id": len(names) - 1}
    config = CLIPConfig(
        text_config={**tower, **end, "vocab_size": len(names), "max_position_embeddings": 24},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config)
    colours = DEFAULTS["CLIP"]
    steps = Preprocessing(ShortSide(32), "bicubic", (32, 32), colours["image_mean"], colours["image_std"])
    facts = Facts(**_facts(model, config.to_dict()))
    tokens = TokenizerFacts(**hugging_face.tokenizer_facts(tokenizer, "tiny"))
    ids = TextIds(facts, tokens, lambda: tokenizer, 24, truncate=False)
    return _model("clip/tiny", facts, lambda: model, steps, ids)


@dataclass(frozen=True)
class Facts:
    """What `load` needs to know of a net.

    weights: the digest of its tensors
    config: the digest of its whole config, activations and all, but for keys known to be idle
    image_size: side of the images it takes [px]; None if it takes any
    patch_size: side of a patch [px]; None where it has none
    positions: how many tokens it takes; None where it does not say
    vocabulary: how many tokens it knows
    end: the token that ends a text, as its config says
    """

    weights: str
    config: str
    model_type: str
    dim: int
    image_size: int | None
    patch_size: int | None
    positions: int | None
    vocabulary: int
    end: int | None


def _facts(model: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """config: what config.json says; the net's own has the library's defaults in it as well"""
    from image_encoders.weights.digest import weights_digest

    vision, text = model.config.vision_config, model.config.text_config
    image_size, patch_size = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    end = getattr(text, "eos_token_id", None)
    return {
        "weights": weights_digest(model.state_dict()),
        "config": hugging_face.config_digest(config),
        "model_type": model.config.model_type,
        "dim": getattr(model.config, "projection_dim", None) or vision.hidden_size,
        "image_size": image_size if isinstance(image_size, int) else None,
        "patch_size": patch_size if isinstance(patch_size, int) else None,
        "positions": getattr(text, "max_position_embeddings", None),
        "vocabulary": text.vocab_size,
        "end": end if isinstance(end, int) else None,
    }


def _model(
    name: str,
    facts: Facts,
    net: Callable[[], Any],
    steps: Preprocessing,
    ids: TextIds,
    checkpoint: Checkpoint[Any] | None = None,
) -> Model:
    from image_encoders.inputs.text import read_text

    def images() -> nn.Module:
        from image_encoders.nets.clip import FlexibleImageTower, ImageTower
        from image_encoders.nets.normalized import Normalized

        tower = FlexibleImageTower(net(), steps.size.patch) if isinstance(steps.size, Patches) else ImageTower(net())
        return Normalized(tower, steps.mean, steps.std)

    def words() -> nn.Module:
        from image_encoders.nets.clip import TextTower

        return TextTower(net(), ids.padding if ids.hidden else None)

    texts = InputSpec("text", read_text, ids, ids.shape, ids.facts())
    return Model(
        name,
        facts.dim,
        {"family": "clip", "weights": facts.weights, "config": facts.config},
        [
            # the grid of patches is decided in Python, which no copy can follow
            Part(steps.inputs(), images, traceable=not isinstance(steps.size, Patches)),
            Part(texts, words, {"shape": ids.shape}, examples=replace(texts, prepare=ids.full)),
        ],
        checkpoint,
    )


# ------------------------------------------------------------------ checkpoints


def _folder(
    variant: str, weights: Path | None, revision: str | None, offline: bool | None, progress: bool | None = None
) -> Path:
    """Where the checkpoint lies, fetched from the hub if it has to be."""
    if weights is not None or variant == "demo":
        return hugging_face.local_folder(weights or DEMO, revision)
    if not variant:
        raise UnknownModel("clip/ takes a hub id, a folder or demo, such as clip/openai/clip-vit-base-patch32")
    if "/" not in variant and not Path(variant).expanduser().is_dir() and not variant.startswith((".", "~")):
        raise UnknownModel(
            f"there is no model 'clip/{variant}' and no folder {variant};{did_you_mean(f'clip/{variant}')} "
            "clip/ is followed by a folder or a Hugging Face id with its owner, such as openai/clip-vit-base-patch32"
        )
    try:
        return hugging_face.checkpoint_folder(variant, revision=revision, offline=offline, progress=progress)
    except UnknownModel as error:
        raise UnknownModel(
            f"{error}, and there is no local folder {variant};{did_you_mean(f'clip/{variant}')} clip/demo is bundled"
        ) from error


def _part(where: str | Path, offline: bool | None) -> Path:
    """The folder of another checkpoint, of which only the preprocessing or the tokenizer is wanted."""
    local = Path(where).expanduser()
    return local if local.is_dir() else _folder(str(where), None, None, offline)


def _agree(facts: Facts, steps: Preprocessing, folder: Path) -> None:
    """WeightsError unless the net takes images of the shape that they are prepared to."""
    side = facts.image_size
    if isinstance(steps.size, Patches):
        if steps.size.patch != facts.patch_size:
            raise WeightsError(
                f"{folder}: its preprocessing cuts patches of {steps.size.patch}, its net takes {facts.patch_size}"
            )
    elif side is not None and steps.shape != (3, side, side):
        height, width = steps.shape[1:]
        found = f"{height} x {width}" if height and width else f"any shape ({steps})"
        raise WeightsError(
            f"{folder}: its preprocessing gives images of {found}, its net takes {side} x {side}; correct "
            "preprocessor_config.json (do_resize, size, do_center_crop, crop_size), or give preprocessor=, the folder "
            "or hub id of a checkpoint whose preprocessing fits"
        )


# ------------------------------------------------------------------ texts


def _context(facts: Facts, tokens: TokenizerFacts, folder: Path) -> int:
    """How many tokens a text may have: what both the net and the tokenizer say."""
    context = min(n for n in (tokens.max_length, facts.positions) if n is not None)
    if context > 10_000:
        raise WeightsError(f"{folder}: neither its config nor its tokenizer says how long a text may be")
    return context


class TextIds:
    """Texts to their token ids, padded: (L,) int64; called from many threads at once.

    context: how many tokens a text may have
    shape: (context,); (None,) where padding at the end is never seen, so that a little of it is enough
    padding: the token it is padded with
    hidden: whether the net must not see padding: then `HIDDEN` stands for it
    """

    def __init__(
        self, facts: Facts, tokens: TokenizerFacts, tokenizer: Callable[[], Any], context: int, truncate: bool
    ):
        """tokenizer: makes the tokenizer itself, should it be needed; `tokens` says what it is"""
        causal = facts.model_type in CAUSAL
        self.shape = (None if causal else context,)
        self.context, self.padding, self.hidden = context, tokens.padding, facts.model_type not in UNMASKED
        self._digest, self._vocabulary = tokens.digest, facts.vocabulary
        self._left = tokens.left and not causal  # before the text padding would be seen
        # Old configs pool where the largest id is first, which padding with a larger one would move.
        self._largest = causal and facts.end == 2
        self._encode = Lazy(partial(hugging_face.token_encoder, tokens, tokenizer, context, truncate))

    def facts(self) -> dict[str, Any]:
        """What decides them."""
        return {"tokenizer": self._digest, "context": self.context}

    def __call__(self, text: str) -> np.ndarray:
        found = self._found(text)
        return self._padded(found, self.shape[0] or min(-max(len(found), 1) // GRAIN * -GRAIN, self.context))

    def full(self, text: str) -> np.ndarray:
        """Its ids padded to `context`, whatever is seen: examples have one length."""
        return self._padded(self._found(text), self.context)

    def _found(self, text: str) -> list[int]:
        found = self._encode()(text)
        if len(found) > self.context:
            raise InputError(
                f"a text of {len(found)} tokens; this model takes {self.context}: shorten it, or load with "
                "truncate=True",
                code="text-too-long",
            )
        if max(found, default=0) >= self._vocabulary:  # which would stop a CUDA device for good
            raise InputError(
                f"a text with token id {max(found)}; this model has {self._vocabulary} tokens: "
                "the tokenizer belongs to another checkpoint",
                code="token",
            )
        return found

    def _padded(self, found: list[int], length: int) -> np.ndarray:
        padding = HIDDEN if self.hidden else found[-1] if self._largest and found else self.padding
        padded = np.full(length, padding, np.int64)
        padded[length - len(found) if self._left else 0 :][: len(found)] = found
        return padded
