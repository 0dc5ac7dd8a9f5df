"""CLIP, SigLIP and their kin: pictures and texts in one space, from any two-tower checkpoint of Hugging Face.

    load("clip/openai/clip-vit-base-patch32")   # a hub id, fetched once
    load("clip/./my-checkpoint")                # a folder; also "clip//home/me/my-checkpoint", or weights=FOLDER
    load("clip/demo")                           # bundled: small, for trying out, needs no network

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
    https://arxiv.org/abs/2103.00020; code https://github.com/openai/CLIP (MIT). Zhai et al., "Sigmoid Loss for Language
    Image Pre-Training", 2023, https://arxiv.org/abs/2303.15343; Tschannen et al., "SigLIP 2", 2025,
    https://arxiv.org/abs/2502.14786. Nets and tokenizers are those of transformers (Apache-2.0).
Inputs: RGB pictures, prepared as the checkpoint's preprocessor_config.json says; texts, cut up by its tokenizer and
    padded to its context (CLIP 77 tokens, SigLIP 64).
Output: `dim` numbers (512 for ViT-B/32), projected, not of unit length, as get_image_features and get_text_features.
Differs: files are turned upright (EXIF). A text longer than the context is an error unless `truncate=True`.
    Numbers: none known from transformers with its PIL image processors, tests/golden/test_clip_golden.py and
    tests/inputs/test_processor.py; its torchvision processors, and OpenAI's own code on some sizes, crop or resize
    a little differently (docs/clip.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.encoder import Encoder, Tower, fingerprint
from image_encoders.engines import (
    PLAIN,
    Lazy,
    Net,
    Runtime,
    Shared,
    described,
    identity,
    net_key,
    select_embedder,
    select_side_embedder,
)
from image_encoders.errors import ImageEncodersError, InputError, MissingExtra, UnknownModel, WeightsError, first_line
from image_encoders.models import Variant

if TYPE_CHECKING:
    from image_encoders.inputs.processor import Preprocessing

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
ARCHITECTURE = (  # of a tower's config: what decides rows and shows in no tensor
    "hidden_act",
    "num_attention_heads",
    "layer_norm_eps",
    "patch_size",
    "eos_token_id",
    "vision_use_head",
)
CAUSAL = ("clip",)  # no token sees what follows it, so padding at the end is never seen
UNMASKED = (*CAUSAL, "siglip", "siglip2")  # SigLIP was trained to see it
HIDDEN = -1  # a position of padding that has to be hidden from the others


def load(
    variant: str,
    *,
    weights: Path | None,
    runtime: Runtime,
    revision: str | None = None,
    truncate: bool = False,
    max_length: int | None = None,
    preprocessor: str | Path | None = None,
    crop: str = "floor",
    tokenizer: str | Path | None = None,
    offline: bool | None = None,
    preprocessing: str = "exact",
) -> Encoder:
    """The encoder of a checkpoint, its two towers sharing one net's weights.

    variant: hub id, folder or "demo"
    weights: a checkpoint's folder, whatever `variant` is
    revision: of a hub id: branch, tag or commit
    truncate: cut a text that is longer than the context, as transformers does; else it is an InputError
    max_length: of a text in tokens, where that is less than the context
    preprocessor: folder or hub id whose preprocessing of pictures is used instead of the checkpoint's
    crop: where half of the spare pixels is no whole number, the crop's corner is rounded down ("floor", as transformers
        does) or half to even ("round", as OpenAI's code does)
    tokenizer: folder or hub id whose tokenizer is used instead of the checkpoint's
    offline: use only what is already in the cache; None: as the environment says
    preprocessing: "exact", as the checkpoint says; or "fast": large JPEG files are decoded at a smaller scale, and
        pictures are resized by torch. Other rows, in a space of their own.

    Raises UnknownModel; InputError for an option's value; WeightsError for a checkpoint that is damaged, incomplete, or
    asks for unknown preprocessing; MissingExtra for a tokenizer that needs sentencepiece, as the first SigLIP's does.
    """
    from image_encoders.inputs.processor import CORNERS, read_processor
    from image_encoders.weights.facts import cached_facts, steady

    if preprocessing not in ("exact", "fast"):
        raise InputError(f"preprocessing is {preprocessing!r}; accepted: exact, fast", code="option")
    if crop not in CORNERS:
        raise InputError(f"crop is {crop!r}; accepted: {', '.join(CORNERS)}", code="option")
    if max_length is not None and (type(max_length) is not int or max_length < 3):
        raise InputError(
            f"max_length is {max_length!r}; a whole number of tokens is accepted, 3 (start, word, end) or more",
            code="option",
        )
    folder = _folder(variant, weights, revision, offline)
    pictures = folder if preprocessor is None else _part(preprocessor, offline)
    texts = folder if tokenizer is None else _part(tokenizer, offline)
    files = _files(folder)
    with Shared(steady(files, lambda: _model(folder))) as model, Shared(lambda: _tokenizer(texts)) as words:
        facts = Facts(**cached_facts(files, _about("net"), lambda: _facts(model())))
        said = Said(**cached_facts(_files(texts), _about("tokenizer"), lambda: _said(words())))
        return _encoder(
            f"clip/{variant}".rstrip("/"),
            model,
            facts,
            replace(read_processor(pictures, facts.model_type), corner=crop),
            words,
            said,
            runtime,
            folder,
            truncate=truncate,
            max_length=max_length,
            own_tokenizer=tokenizer is None,
            fast=preprocessing == "fast",
        )


def fetch(variant: str, *, offline: bool | None = None, progress: bool | None = None) -> list[Path]:
    """The local folder of a variant's checkpoint, fetched if need be."""
    return [_folder(variant, None, None, offline, progress)]


def tiny(runtime: Runtime = PLAIN) -> Encoder:
    """A small random CLIP with both towers, nothing of it on disk: for tests."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    from image_encoders.inputs.processor import DEFAULTS, Preprocessing

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
    preprocessing = Preprocessing(32, colours["resample"], (32, 32), colours["image_mean"], colours["image_std"])
    facts, said = Facts(**_facts(model)), Said(**_said(tokenizer))
    return _encoder("clip/tiny", lambda: model, facts, preprocessing, lambda: tokenizer, said, runtime, Path("tiny"))


@dataclass(frozen=True)
class Facts:
    """What `load` needs to know of a net.

    weights: the digest of its tensors
    config: a digest of its whole config, activations and all
    image_size: side of the pictures it takes [px]; None where any goes
    patch_size: side of a patch [px]; None where it has none
    positions: how many tokens it takes; None where it does not say
    vocabulary: how many tokens it knows
    architecture: what else of its config decides rows
    """

    weights: str
    config: str
    model_type: str
    dim: int
    image_size: int | None
    patch_size: int | None
    positions: int | None
    vocabulary: int
    architecture: dict[str, Any]


@dataclass(frozen=True)
class Said:
    """What `load` needs to know of a tokenizer.

    max_length: of a text [tokens]
    padding: the token it pads with
    left: whether it pads before the text
    split: whether what looks like a special token is cut up as words are
    cut: the side that it cuts a long text on, "left" or "right"
    digest: of its words and rules
    engine: all of it, as the library tokenizers reads it; None for slow ones, which are Python
    """

    max_length: int
    padding: int
    left: bool
    split: bool
    cut: str
    digest: str
    engine: str | None


def _facts(model: Any) -> dict[str, Any]:
    from image_encoders.weights.digest import weights_digest

    config = model.config
    vision, text = config.vision_config, config.text_config
    image_size, patch_size = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    return {
        "weights": weights_digest(model.state_dict()),
        "config": hashlib.sha256(config.to_json_string(use_diff=False).encode()).hexdigest(),
        "model_type": config.model_type,
        "dim": getattr(config, "projection_dim", None) or vision.hidden_size,
        "image_size": image_size if isinstance(image_size, int) else None,
        "patch_size": patch_size if isinstance(patch_size, int) else None,
        "positions": getattr(text, "max_position_embeddings", None),
        "vocabulary": text.vocab_size,
        "architecture": {
            f"{part}.{key}": value
            for part, config in (("vision", vision), ("text", text))
            for key in ARCHITECTURE
            if isinstance(value := getattr(config, key, None), (bool, int, float, str))
        },
    }


def _said(tokenizer: Any) -> dict[str, Any]:
    return {
        "max_length": int(min(tokenizer.model_max_length, 1 << 62)),
        "padding": tokenizer.pad_token_id,
        "left": tokenizer.padding_side == "left",
        "split": tokenizer.split_special_tokens,
        "cut": tokenizer.truncation_side,
        "digest": _tokenizer_digest(tokenizer),
        "engine": tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else None,
    }


def _about(part: str) -> dict[str, Any]:
    """What facts are about, and who found them."""
    return {"family": "clip", "part": part, "transformers": metadata.version("transformers")}


def _encoder(
    name: str,
    model: Callable[[], Any],
    facts: Facts,
    preprocessing: Preprocessing,
    tokenizer: Callable[[], Any],
    said: Said,
    runtime: Runtime,
    folder: Path,
    *,
    truncate: bool = False,
    max_length: int | None = None,
    own_tokenizer: bool = True,
    fast: bool = False,
) -> Encoder:
    from image_encoders.inputs.image import read_image
    from image_encoders.inputs.text import read_text

    _agree(facts, preprocessing, folder)
    whole_context = _context(facts, said, folder)
    context = min(max_length or whole_context, whole_context)
    token_ids = Lazy(lambda: _ids(facts, said, tokenizer, context, truncate))

    def ids(text: str) -> np.ndarray:
        return token_ids()(text)

    padding = None if facts.model_type in UNMASKED else said.padding

    def pictures() -> Any:
        from image_encoders.nets.clip import FlexibleImageTower, ImageTower
        from image_encoders.nets.normalized import Normalized

        net = FlexibleImageTower(model(), preprocessing.patch) if preprocessing.patch else ImageTower(model())
        return Normalized(net, preprocessing.mean, preprocessing.std)

    def words() -> Any:
        from image_encoders.nets.clip import TextTower

        return TextTower(model(), padding)

    key = {"family": "clip", "weights": facts.weights, "config": facts.config}
    image_key = net_key(**key, mean=preprocessing.mean, std=preprocessing.std, patch=preprocessing.patch)
    embed_image = select_embedder(
        runtime,
        Net(
            name,
            image_key,
            pictures,
            lambda source: preprocessing.prepare(read_image(source)),
            preprocessing.shape,
            traceable=preprocessing.patch is None,  # else the grid of patches is decided in Python
        ),
    )
    embed_text = select_side_embedder(
        runtime,
        Net(f"{name}, text", net_key(**key, padding=padding), words, ids, (context,), "text"),
    )
    exact = embed_image.precision == "float32" and not fast
    texts: dict[str, Any] = {}  # what makes the same text another row
    if context < whole_context:
        texts["max_length"] = context
    if not own_tokenizer:
        texts["tokenizer"] = said.digest
    return Encoder(
        name=name,
        dim=facts.dim,
        towers={
            "image": Tower(
                "image",
                partial(read_image, short_side=preprocessing.short_side) if fast else read_image,
                partial(preprocessing.prepare, exact=exact),
                embed_image,
                preprocessing.shape,
                exact,
            ),
            "text": Tower("text", read_text, ids, embed_text, (context,)),
        },
        fingerprint=fingerprint(
            family="clip",
            weights=facts.weights,
            architecture=facts.architecture,
            preprocessing={**asdict(preprocessing), **({"speed": "fast"} if fast else {})},
            **identity(embed_image),
            **texts,
        ),
        **described(embed_image),
    )


# ------------------------------------------------------------------ checkpoints


def _folder(
    variant: str, weights: Path | None, revision: str | None, offline: bool | None, progress: bool | None = None
) -> Path:
    """Where the checkpoint lies, fetched from the hub if it has to be."""
    if weights is None and not variant:
        raise UnknownModel("clip/ wants a hub id, a folder or demo, such as clip/openai/clip-vit-base-patch32")
    local = weights or (DEMO if variant == "demo" else Path(variant).expanduser())
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise WeightsError(f"{local}: no config.json; a folder with a Hugging Face checkpoint was expected")
        if revision is not None:
            raise WeightsError(f"{local}: a folder has no revisions; revision= goes with a hub id")
        return local
    if local in (weights, DEMO) or variant.startswith((".", "/", "~")):
        what = "a file" if local.exists() else "no such folder"
        raise WeightsError(f"{local}: {what}; a folder with a Hugging Face checkpoint was expected (config.json, ...)")
    from image_encoders.models import did_you_mean
    from image_encoders.weights.fetch import hub_folder

    if "/" not in variant:
        raise UnknownModel(
            f"there is no model 'clip/{variant}' and no folder {variant};{did_you_mean(f'clip/{variant}')} "
            "after clip/ goes a Hugging Face id with its owner, such as openai/clip-vit-base-patch32, or a folder"
        )
    try:
        return hub_folder(variant, revision=revision, offline=offline, progress=progress)
    except UnknownModel as error:
        raise UnknownModel(
            f"{error}, and there is no local folder {variant};{did_you_mean(f'clip/{variant}')} clip/demo is bundled"
        ) from error


def _files(folder: Path) -> list[Path]:
    """A checkpoint's own files; folders below it are somebody else's."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def _part(where: str | Path, offline: bool | None) -> Path:
    """The folder of another checkpoint, of which only the preprocessing or the tokenizer is wanted."""
    local = Path(where).expanduser()
    return local if local.is_dir() else _folder(str(where), None, None, offline)


def _model(folder: Path) -> Any:
    """The checkpoint's net in float32, with every tensor from the checkpoint and none left over."""
    import torch
    from transformers import AutoModel

    from image_encoders.weights.assign import listed

    with _reading(folder), _quiet():
        model, found = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are told below, with what is missing
            output_loading_info=True,
        )
    missing, extra, wrong = (
        sorted(name[0] if isinstance(name, tuple) else name for name in found[key] if "position_ids" not in name)
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    )
    if missing or extra or wrong or found["error_msgs"]:
        raise WeightsError(
            f"{folder}: the weights do not fit {type(model).__name__}: {listed(missing, 'missing')}; "
            f"{listed(extra, 'left over')}; {listed(wrong, 'of another shape')}"
        )
    if not all(hasattr(model, f"get_{modality}_features") for modality in TOWERS):
        raise WeightsError(
            f"{folder}: {type(model).__name__} is not a two-tower net; CLIP, SigLIP and their kin are accepted"
        )
    return model


def _tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer. Where its files are missing transformers makes one with next to no words."""
    from transformers import AutoTokenizer

    there = {path.name for path in folder.iterdir()}
    whole = {"tokenizer.json", "vocab.txt"} & there or {"vocab.json", "merges.txt"} <= there
    if not whole and not any(name.endswith(".model") for name in there):  # sentencepiece's
        raise WeightsError(f"{folder}: no tokenizer: tokenizer.json, or vocab.json with merges.txt, was expected")
    with _reading(folder), _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except ImportError as error:
            raise MissingExtra("sentencepiece and protobuf", "siglip", f"the tokenizer of {folder}") from error
    if tokenizer.pad_token_id is None:
        raise WeightsError(f"{folder}: its tokenizer has no token for padding; tokenizer_config.json should name one")
    return tokenizer


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Whatever transformers raises about a checkpoint becomes a WeightsError that names it."""
    try:
        yield
    except ImageEncodersError:
        raise
    except Exception as error:
        raise WeightsError(f"{folder}: transformers cannot load it: {first_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers' progress bars and advice switched off: what matters is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _agree(facts: Facts, preprocessing: Preprocessing, folder: Path) -> None:
    """WeightsError unless the net takes pictures of the size they are prepared to."""
    sides, wanted = preprocessing.shape[1:], facts.image_size
    if preprocessing.patch is None and wanted is not None and sides not in ((wanted, wanted), (None, None)):
        raise WeightsError(
            f"{folder}: its preprocessing gives pictures of {sides[0]} x {sides[1]}, its net takes {wanted} x {wanted}"
        )
    if preprocessing.patch is not None and preprocessing.patch != facts.patch_size:
        raise WeightsError(
            f"{folder}: its preprocessing cuts patches of {preprocessing.patch}, its net takes {facts.patch_size}"
        )


# ------------------------------------------------------------------ texts


def _context(facts: Facts, said: Said, folder: Path) -> int:
    """How many tokens a text may have: what both the net and the tokenizer say."""
    context = min(n for n in (said.max_length, facts.positions) if n is not None)
    if context > 10_000:
        raise WeightsError(f"{folder}: neither its config nor its tokenizer says how long a text may be")
    return context


def _tokenizer_digest(tokenizer: Any) -> str:
    """What tells tokenizers apart: their words and rules, or of slow ones the words alone."""
    told = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


def _ids(
    facts: Facts, said: Said, tokenizer: Callable[[], Any], context: int, truncate: bool
) -> Callable[[str], np.ndarray]:
    """A function from a text to its token ids, padded: (context,) int64; from many threads at once."""
    hidden, causal = facts.model_type not in UNMASKED, facts.model_type in CAUSAL
    left = said.left and not causal  # before the text padding would be seen
    # Old configs pool where the largest id is first, which padding with a larger one would move.
    largest = causal and facts.architecture.get("text.eos_token_id") == 2
    encode = (
        _encode_slow(tokenizer(), context, truncate) if said.engine is None else _encode_fast(said, context, truncate)
    )

    def ids(text: str) -> np.ndarray:
        found = encode(text)
        if len(found) > context:
            raise InputError(
                f"a text of {len(found)} tokens; this model takes {context}: shorten it, or load with truncate=True",
                code="text-too-long",
            )
        if max(found, default=0) >= facts.vocabulary:  # which would stop a CUDA device for good
            raise InputError(
                f"a text with token {max(found)}, of which this model has {facts.vocabulary}: "
                "the tokenizer is of another checkpoint",
                code="token",
            )
        padding = HIDDEN if hidden else found[-1] if largest and found else said.padding
        padded = np.full(context, padding, np.int64)
        padded[context - len(found) if left else 0 :][: len(found)] = found
        return padded

    return ids


def _encode_fast(said: Said, context: int, truncate: bool) -> Callable[[str], list[int]]:
    """By a copy of the tokenizer's own engine, set up once: transformers sets it up anew for every call, which is slow,
    and fails when threads do it at the same time."""
    from tokenizers import Tokenizer

    assert said.engine is not None
    engine = Tokenizer.from_str(said.engine)
    engine.no_padding()
    engine.encode_special_tokens = said.split
    if truncate:
        engine.enable_truncation(context, direction=said.cut)
    else:
        engine.no_truncation()
    return lambda text: engine.encode(text).ids


def _encode_slow(tokenizer: Any, context: int, truncate: bool) -> Callable[[str], list[int]]:
    """By the tokenizer itself, one text at a time: it is Python with state."""
    lock = threading.Lock()

    def encode(text: str) -> list[int]:
        with lock:
            return tokenizer(text, truncation=truncate, max_length=context, verbose=False)["input_ids"]

    return encode
