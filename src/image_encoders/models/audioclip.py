"""AudioCLIP: images, texts and sounds in one space; CLIP's RN50 with an audio net trained beside it.

    load("audioclip/full")                                            # fetched: weights and vocabulary
    load("audioclip/full", weights="AudioCLIP-Full-Training.pt", vocabulary="bpe_simple_vocab_16e6.txt.gz")

`full` trained all three nets; `partial` trained the audio net only, so its images and texts are those of CLIP's RN50.

Source: Guzhov et al., "AudioCLIP: Extending CLIP to Image, Text and Audio", https://arxiv.org/abs/2106.13043;
    code https://github.com/AndreyGuzhov/AudioCLIP @ 45327aa (MIT), weights in its release v0.1; vocabulary and cleaning
    of texts: https://github.com/openai/CLIP (MIT)
Inputs: images: short side to 224 px, bicubic on the float image without a low-pass filter and without clamping, the
    central 224 x 224, CLIP's mean and deviation; or prepared floats (3, 224, 224).
    texts: 77 byte-pair tokens, start and end included; a longer one is an error, or cut with `truncate`.
    sounds: samples in [-1, 1] at any rate, resampled to 44,100 Hz and multiplied by 32,768, as in the training.
Output: 1024 numbers, not of unit length: compare by cosine.
Differs: batch norm in the audio net uses the running statistics of the training (`batch_norm="running"`), as the
        author's evaluation does. His demonstration, and Jina's last executor, use the batch's own statistics, and
        Jina's maintainers found retrieval better so; `batch_norm="item"` does that with each sound's own statistics,
        what Jina's executor gives a sound by itself. Neither lets a sound's embedding depend on its neighbours.
    Jina's executors did not multiply samples by 32,768; `amplitude="unit"` gives their embeddings.
    Several channels are mixed to one, as for the training data; `channels="sum"` adds up their features, which is what
        the original net does with such an input.
    Sounds are resampled with the SoX resampler; the original's librosa 0.7 had another low-pass filter (kaiser_best).
    Checkpoints are loaded strictly; the original ignores missing and unknown names.
    Otherwise none known: tests/golden/test_audioclip_golden.py. The published weights were not at hand: the layout of
    the synthetic checkpoint is derived from the published code and the published size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from image_encoders.errors import InputError, WeightsError
from image_encoders.inputs.audio import AudioLimits, read_audio, resample
from image_encoders.inputs.bpe import BytePairs
from image_encoders.inputs.preprocessing import BICUBIC, SAMPLED, Preprocessing, ShortSide
from image_encoders.inputs.spec import InputSpec
from image_encoders.inputs.text import read_text
from image_encoders.model import Model, Part, Variant, check_option
from image_encoders.models import unknown
from image_encoders.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

DIM = 1024
IDS = 49408  # rows of the embedding table
CONTEXT = 77  # tokens
SIDE = 224  # [px]
FULL_SCALE = 32768  # what 1.0 becomes for the net, whose first step undoes it
PREPROCESSING = Preprocessing(  # torchvision's Resize(224), CenterCrop(224) of tensors, and Normalize
    ShortSide(SIDE),
    BICUBIC,
    (SIDE, SIDE),
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    corner="round",
    resizer=SAMPLED,
)


class Published(NamedTuple):
    """A file of the release; its digest is that of the git-lfs pointer in the author's repository."""

    file: str
    size: int  # [bytes]
    sha256: str

    @property
    def url(self) -> str:
        return f"https://github.com/AndreyGuzhov/AudioCLIP/releases/download/v0.1/{self.file}"


CHECKPOINTS = {
    "full": Published(
        "AudioCLIP-Full-Training.pt", 537302068, "2441d35b353352c8b1bbfb8f7c687f46314c3d2909e940eaf763b8c17f632c44"
    ),
    "partial": Published(
        "AudioCLIP-Partial-Training.pt", 537302068, "1921885b6c3b5de0619f2ef4a9700ecbade758a398b34eb064230c30baef0c75"
    ),
}
VOCABULARY = Published(
    "bpe_simple_vocab_16e6.txt.gz", 1356917, "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
)
VARIANTS = tuple(
    Variant(name, ("image", "text", "audio"), DIM, f"{published.file} and {VOCABULARY.file}", "MIT")
    for name, published in CHECKPOINTS.items()
)


def load(
    variant: str,
    *,
    weights: Path | None,
    vocabulary: str | Path | None = None,
    truncate: bool = False,
    amplitude: str = "int16",
    batch_norm: str = "running",
    channels: str = "mix",
    max_seconds: float = 300.0,
) -> Model:
    """The model of a variant, "full" or "partial".

    weights: the released `.pt`, the folder it is in, or a converted `.safetensors`; None: the published file, fetched
    vocabulary: `bpe_simple_vocab_16e6.txt.gz`; None: the one beside the weights or inside a converted file, else the
        published one, fetched when the first text comes
    truncate: cut texts of more than 77 tokens, instead of refusing them
    amplitude: of the samples that the audio net gets: "int16", up to 32,768, or "unit", up to 1
    batch_norm: in the audio net: "running" statistics, or those of each "item"
    channels: of a sound with several: "mix" the samples, or "sum" the features
    max_seconds: a longer sound is refused; five minutes take about 3 GB of memory

    Raises UnknownModel; WeightsError; InputError for an option's value.
    """
    if variant not in CHECKPOINTS:
        raise unknown(f"audioclip/{variant}")
    check_option("amplitude", amplitude, ("int16", "unit"))
    check_option("batch_norm", batch_norm, ("running", "item"))
    check_option("channels", channels, ("mix", "sum"))
    if not isinstance(max_seconds, (int, float)) or not max_seconds > 0:
        raise InputError(f"max_seconds is {max_seconds!r}; a positive number is accepted", code="option")
    path = _checkpoint(weights, variant)
    nets = Checkpoint([path], lambda: _load(path, per_item=batch_norm == "item")[0], {"family": "audioclip"})
    facts = nets.facts(lambda: _facts(path, nets.content()))
    digest, pairs = _vocabulary(None if vocabulary is None else Path(vocabulary).expanduser(), path, facts)
    sounds = Sounds(scale=FULL_SCALE if amplitude == "int16" else 1, mono=channels == "mix")
    identity = {"family": "audioclip", "weights": facts["weights"], "batch_norm": batch_norm}
    inputs = PREPROCESSING.inputs(), _texts(digest, pairs, truncate), sounds.inputs(max_seconds)
    return Model(f"audioclip/{variant}", DIM, identity, _parts(nets.content, inputs), nets)


def fetch(variant: str, *, offline: bool | None = None, progress: bool | None = None) -> list[Path]:
    """The local copies of a variant's checkpoint and of the vocabulary, downloaded unless they are there."""
    if variant not in CHECKPOINTS:
        raise unknown(f"audioclip/{variant}")
    return [_fetch(published, offline, progress) for published in (CHECKPOINTS[variant], VOCABULARY)]


def original(path: Path, *, vocabulary: str | Path | None = None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a released checkpoint under their names, and the vocabulary, given or beside it."""
    facts: dict[str, Any] = {"family": "audioclip"}
    beside = path.parent / VOCABULARY.file
    if vocabulary is not None or beside.is_file():
        pairs = BytePairs.read(beside if vocabulary is None else Path(vocabulary).expanduser())
        facts["vocabulary"] = {"merges": pairs.merges, "sha256": pairs.sha256}
    return _state(path), facts


def tiny() -> Model:
    """Three small random nets and a vocabulary of a few merges."""
    import torch

    from image_encoders.weights.digest import weights_digest

    pairs = BytePairs(["i n", "t h", "th e</w>", "in g</w>", "a n", "e r</w>"], sha256="tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = _nets(layers=(1, 1, 1, 1), width=8, groups=2, ids=len(pairs), text_width=32, text_layers=2, dim=32)
        images = torch.randn(8, 3, 7, 7).repeat_interleave(32, 2).repeat_interleave(32, 3)
        sounds = torch.randn(8, 20_000) * torch.logspace(0, 4, 8)[:, None]
        _spread(nets["image"], images, "attnpool.c_proj")
        _spread(nets["audio"], sounds, "fc")
    identity = {"family": "audioclip", "weights": weights_digest(nets.state_dict())}
    inputs = PREPROCESSING.inputs(), _texts(pairs.sha256, lambda: pairs), Sounds().inputs()
    return Model("audioclip/tiny", 32, identity, _parts(lambda: nets, inputs))


def _spread(net: nn.Module, inputs: torch.Tensor, last: str) -> None:
    """Statistics and a bias that make an untrained net's embeddings differ; as they come, they are nearly the same."""
    import torch

    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    layer = net.get_submodule(last)
    with torch.no_grad():
        net.train()(inputs)
        embeddings = net.eval()(inputs)
        spread = embeddings.std()
        scaled = {"weight": layer.weight / spread, "bias": (layer.bias - embeddings.mean(0)) / spread}
    layer.load_state_dict(scaled)


# ---------------------------------------------------------------- sources to inputs


@dataclass(frozen=True)
class Sounds:
    """Sounds to samples as the net takes them.

    scale: of the samples: what 1.0 becomes
    mono: whether several channels are mixed to one
    rate: [Hz]
    """

    scale: float = FULL_SCALE
    mono: bool = True
    rate: int = 44_100

    def prepare(self, item: tuple[np.ndarray, int]) -> np.ndarray:
        """(T,) or (channels, T) float32 from samples in [-1, 1] and their rate."""
        samples, rate = item
        resampled = resample(samples, rate, self.rate)
        if not resampled.size:
            raise InputError(
                f"{samples.shape[-1]} samples at {rate} Hz; too short for one at {self.rate} Hz", code="empty"
            )
        return resampled * np.float32(self.scale)

    def inputs(self, max_seconds: float = 300.0) -> InputSpec:
        """The inputs that this prepares, of sounds up to `max_seconds` long."""
        read = partial(read_audio, mono=self.mono, limits=AudioLimits(max_seconds=max_seconds))
        return InputSpec("audio", read, self.prepare, facts=asdict(self))


def _texts(vocabulary: str, pairs: Callable[[], BytePairs], truncate: bool = False) -> InputSpec:
    """Texts to (77,) int64: start, tokens, end, zeros."""

    def prepare(text: str) -> np.ndarray:
        ids = np.zeros(CONTEXT, np.int64)
        found = pairs().encode(text, CONTEXT, truncate=truncate)
        ids[: len(found)] = found
        return ids

    return InputSpec("text", read_text, prepare, (CONTEXT,), {"vocabulary": vocabulary, "context": CONTEXT})


def _parts(nets: Callable[[], nn.ModuleDict], inputs: Sequence[InputSpec]) -> list[Part]:
    """A part for each of the nets. Those of texts and sounds cut their batch by what is in it, so no copy follows."""
    return [Part(one, partial(_net_of, nets, one.modality), traceable=one.modality == "image") for one in inputs]


def _net_of(nets: Callable[[], nn.ModuleDict], modality: str) -> nn.Module:
    return nets()[modality]


# ---------------------------------------------------------------- weights


def _nets(
    layers: tuple[int, ...] = (3, 4, 6, 3),
    width: int = 64,
    groups: int = 32,
    ids: int = IDS,
    text_width: int = 512,
    text_layers: int = 12,
    dim: int = DIM,
    per_item: bool = False,
) -> nn.ModuleDict:
    """The nets of the three towers, untrained; the defaults are the released checkpoints' sizes."""
    from torch import nn

    from image_encoders.nets.clip_resnet import ClipResNet
    from image_encoders.nets.clip_text import ClipText
    from image_encoders.nets.esresnext import ESResNeXt

    return nn.ModuleDict(
        {
            "image": ClipResNet(layers, width, heads=width // 2, dim=dim, side=SIDE),
            "text": ClipText(ids, text_width, heads=max(1, text_width // 64), layers=text_layers, dim=dim),
            "audio": ESResNeXt(layers, width, groups, dim, per_item),
        }
    )


def _net_name(name: str) -> str | None:
    """The place of a checkpoint's tensor in the nets; None for the scales of the training's losses."""
    if re.fullmatch(r"logit_scale(_a[it])?", name):
        return None
    first, _, rest = name.partition(".")
    tower = {"visual": "image", "audio": "audio"}.get(first)
    return f"{tower}.{rest}" if tower else f"text.{name}"


def _load(path: Path, per_item: bool) -> tuple[nn.ModuleDict, dict[str, Any]]:
    """The nets of a checkpoint, and what a converted one says beside its tensors."""
    import torch

    from image_encoders.weights import convert
    from image_encoders.weights.assign import assign

    facts: dict[str, Any] = {"family": "audioclip"}
    if path.suffix == ".safetensors":
        state, facts = convert.load(path, "audioclip")
    else:
        state = _state(path)
    with torch.device("meta"):
        nets = _nets(per_item=per_item)
    assign(nets, state, path, rename=_net_name)
    for kernel in nets.parameters():
        if kernel.ndim == 4:  # an order in which CPUs are twice as fast; 1x1 kernels, the most of them, have it already
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    return nets, facts


def _facts(path: Path, nets: nn.ModuleDict) -> dict[str, Any]:
    """What `load` needs to know of a checkpoint beside its nets."""
    from image_encoders.weights import convert
    from image_encoders.weights.digest import weights_digest

    facts = convert.load(path)[1] if path.suffix == ".safetensors" else {}
    return {"weights": weights_digest(nets.state_dict()), "vocabulary": facts.get("vocabulary")}


def _state(path: Path) -> dict[str, torch.Tensor]:
    from image_encoders.weights import torch_file

    state = torch_file.read(path)
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds a {type(state).__name__}; wanted the released .pt, a dict of tensors")
    return state


def _checkpoint(weights: Path | None, variant: str) -> Path:
    if weights is None:
        return _fetch(CHECKPOINTS[variant])
    if not weights.is_dir():
        return weights
    path = weights / CHECKPOINTS[variant].file
    if not path.is_file():
        raise WeightsError(f"{weights}: no {path.name} in this folder; give the path of the checkpoint itself")
    return path


def _vocabulary(given: Path | None, checkpoint: Path, facts: Mapping[str, Any]) -> tuple[str, Callable[[], BytePairs]]:
    """The sha256 of the vocabulary's file, and how to get the vocabulary: at once where it is here."""
    beside = checkpoint.parent / VOCABULARY.file
    inside = facts.get("vocabulary")
    if given is None and inside is None and not beside.is_file():
        return VOCABULARY.sha256, lru_cache(1)(_fetch_vocabulary)
    if given is None and inside is not None:
        pairs = BytePairs(inside["merges"], inside["sha256"])
    else:
        pairs = BytePairs.read(given or beside)
    if len(pairs) > IDS:
        raise WeightsError(
            f"{given or beside}: a vocabulary of {len(pairs)} tokens; the checkpoint {checkpoint} has embeddings of "
            f"{IDS}; wanted {VOCABULARY.file}"
        )
    return pairs.sha256, lambda: pairs


def _fetch_vocabulary() -> BytePairs:
    try:
        path = _fetch(VOCABULARY)
    except WeightsError as error:
        raise WeightsError(
            f"texts need the vocabulary; put it beside the weights, or pass vocabulary=PATH: {error}"
        ) from error
    return BytePairs.read(path)


def _fetch(published: Published, offline: bool | None = None, progress: bool | None = None) -> Path:
    from image_encoders.weights.fetch import fetch as fetch_file

    return fetch_file(published.url, sha256=published.sha256, size=published.size, offline=offline, progress=progress)
