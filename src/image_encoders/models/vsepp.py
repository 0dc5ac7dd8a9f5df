"""VSE++: images and captions in one space, by VGG19 or ResNet-152 and a GRU.

    load("vsepp/f30k-vgg19")                                             # fetched
    load("vsepp", weights="runs/f30k_vse++_vggfull/model_best.pth.tar")  # any checkpoint; finds vocab/f30k_vocab.pkl

Source: Faghri, Fleet, Kiros, Fidler, "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", BMVC 2018,
    https://arxiv.org/abs/1707.05612; code https://github.com/fartashf/vsepp (Apache-2.0), model.py, data.py, vocab.py;
    weights at http://www.cs.toronto.edu/~faghri/vsepp, sizes, digests and licence not stated.
Inputs: RGB images, the short side resized to 256 (bilinear), the central 224 x 224, ImageNet's mean and deviation;
    or, where the checkpoint was trained on precomputed features, those. English captions.
Output: `embed_size` numbers (1024), of unit length; images not where the checkpoint's options say `no_imgnorm`.
    Without signs where they say `use_abs`. The option `measure` says how the authors compare embeddings: "cosine", or
    "order" (see docs/vsepp.md); it is part of the fingerprint.
Differs: files are rotated upright and transparency becomes white; a caption with no known word is an error unless
    `unknown_words="accept"`; NLTK's sentence model is replaced by its list of abbreviations (inputs/words.py). As in
    the original, an embedding whose length is zero becomes NaN. Numbers: none known, tests/golden/test_vsepp_golden.py.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.cache import atomic_write
from image_encoders.errors import InputError, WeightsError
from image_encoders.inputs.preprocessing import BILINEAR, Preprocessing, ShortSide
from image_encoders.inputs.spec import InputSpec
from image_encoders.model import Model, Part, Variant, check_option
from image_encoders.models import unknown
from image_encoders.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

SIDE = 224  # of the images that the nets were trained on [px]
PREPROCESSING = Preprocessing(  # torchvision's Resize(256), CenterCrop(224) and Normalize
    ShortSide(256), BILINEAR, (SIDE, SIDE), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), corner="round"
)
SMALLEST = 32  # side of a prepared image [px]: both CNNs halve it five times
MAX_CHARACTERS = 10_000  # of a caption; bounds the time it takes

START, END, UNKNOWN = "<start>", "<end>", "<unk>"
VOCABULARY_CLASSES = ("vocab.Vocabulary",)

PUBLISHED = "http://www.cs.toronto.edu/~faghri/vsepp"  # no digests are stated: pinned on first use
MAX_BYTES = {"runs.tar": 32 << 30, "vocab.tar": 1 << 30}  # of the published archives
CHECKPOINT = "model_best.pth.tar"
FEATURES = {"vgg19": 4096, "resnet152": 2048}

# Variant -> folder in runs.tar, as public code names it; None: no run of that name is known.
RUNS = {
    "f30k-vgg19": "f30k_vse++_vggfull",
    "f30k-vgg19-finetune": "f30k_vse++_vggfull_finetune",
    "f30k-resnet152": None,
    "f30k-resnet152-finetune": "f30k_vse++_resnet_finetune",
    "coco-vgg19": None,
    "coco-vgg19-finetune": "coco_vse++_vggfull_restval_finetune",
    "coco-resnet152": "coco_vse++_resnet_restval",
    "coco-resnet152-finetune": "coco_vse++_resnet_restval_finetune",
}
VARIANTS = (
    Variant("", ("image", "text"), None, f"weights=PATH to a {CHECKPOINT} of any VSE++ run", "as its authors say"),
    *(
        Variant(
            name,
            ("image", "text"),
            1024,
            f"{run}, in the authors' runs.tar" if run else f"weights=PATH to the run's {CHECKPOINT}",
            "not stated",
        )
        for name, run in RUNS.items()
    ),
)


def load(
    variant: str = "",
    *,
    weights: Path | None,
    vocabulary: str | Path | None = None,
    unknown_words: str = "refuse",
    preprocessing: str = "exact",
) -> Model:
    """The model of a checkpoint, whose own options decide the nets.

    variant: what to fetch, such as "f30k-vgg19"; with `weights`, "" takes any checkpoint, while another name has to
        agree with the checkpoint's CNN
    weights: `model_best.pth.tar` or the folder it is in, or a converted `.safetensors`; None: the published run
    vocabulary: the vocabulary's pickle. Default: `<data name>_vocab.pkl`, such as f30k_vocab.pkl, beside the checkpoint
        or in a folder `vocab` there, one or two levels up. Without one there is no text tower.
    unknown_words: "refuse" a caption with no word in the vocabulary; or "accept" it, as the original does
    preprocessing: "exact", the original's; or "fast": large JPEG files are decoded at a smaller scale, and images are
        resized by torch: different embeddings, in a separate space.

    Raises UnknownModel; WeightsError; InputError for an option's value.
    """
    if variant and variant not in RUNS:
        raise unknown(f"vsepp/{variant}")
    check_option("preprocessing", preprocessing, ("exact", "fast"))
    check_option("unknown_words", unknown_words, ("refuse", "accept"))
    path = _file(weights or fetch(variant)[0])
    nets = Checkpoint([path], lambda: _nets(_read(path)), {"family": "vsepp"})
    facts = Facts.of(nets.facts(lambda: _facts(_read(path), nets.content())), path)
    _agree(variant, facts)
    words = _vocabulary(facts, vocabulary)
    captions = None if words is None else _captions(words, unknown_words == "accept")
    steps = PREPROCESSING.fast() if preprocessing == "fast" else PREPROCESSING
    return _model(f"vsepp/{variant}".rstrip("/"), facts, nets.content, steps, captions, nets)


def fetch(variant: str, *, offline: bool | None = None, progress: bool | None = None) -> list[Path]:
    """The local copies of a variant's checkpoint and vocabulary.

    The authors publish all runs in one archive and all vocabularies in another. Both are downloaded once, and the
    two files are extracted; afterwards the archives may be deleted.
    """
    from image_encoders.cache import cache_folder
    from image_encoders.weights.fetch import fetch as fetch_file

    if not variant:
        raise WeightsError(
            "plain 'vsepp' names no published run: give weights=PATH, or a name such as vsepp/f30k-vgg19"
        )
    if variant not in RUNS:
        raise unknown(f"vsepp/{variant}")
    run = RUNS[variant]
    if run is None:
        raise WeightsError(
            f"vsepp/{variant}: no published run of that kind is known; look into {PUBLISHED}/runs.tar "
            f"and give weights=PATH, the run's {CHECKPOINT}"
        )
    members = (("runs.tar", f"runs/{run}/{CHECKPOINT}"), ("vocab.tar", f"vocab/{variant.split('-')[0]}_vocab.pkl"))
    home = cache_folder() / PUBLISHED.partition("://")[2]
    for archive, member in members:
        if not (home / member).is_file():
            url, most = f"{PUBLISHED}/{archive}", MAX_BYTES[archive]
            local = fetch_file(url, max_bytes=most, offline=offline, progress=progress)
            _extract(local, member, home / member)
    return [home / member for _, member in members]


def original(path: Path, *, vocabulary: str | Path | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of an original checkpoint, and what else `load` needs to know: its options and its vocabulary."""
    path = _file(path)
    checkpoint = _read(path)
    nets = _nets(checkpoint)
    facts = Facts.of(_facts(checkpoint, nets), path)
    words = _vocabulary(facts, vocabulary)
    return _tensors(nets), {
        "family": "vsepp",
        "options": asdict(facts.options),
        "vocabulary": None if words is None else words.ids,
    }


def tiny() -> Model:
    """A small random net; it takes any caption."""
    import torch

    from image_encoders.nets.vsepp import CaptionTower, ImageTower, Vgg19
    from image_encoders.weights.digest import weights_digest

    caption = (
        "a photo of the red green blue yellow black white circle square triangle dog cat man woman and on in with ."
    )
    words = Vocabulary("tiny", {word: i for i, word in enumerate(("<pad>", START, END, UNKNOWN, *caption.split()))})
    options = Options(embed_size=24, word_dim=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        image = ImageTower(Vgg19(width=4, hidden=48), 48, options.embed_size, normalise=True, absolute=False)
        text = CaptionTower(len(words.ids), options.word_dim, options.embed_size, layers=1, absolute=False)
        torch.nn.init.normal_(text.embed.weight)
        for layer in image.modules():
            if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # so that images differ at the end
    nets = torch.nn.ModuleDict({"image": image, "text": text}).eval()
    facts = Facts(Path("tiny"), weights_digest(_tensors(nets)), options, len(words.ids), None)
    return _model("vsepp/tiny", facts, lambda: nets, PREPROCESSING, _captions(words, accept_unknown=True))


# ---------------------------------------------------------------- the model


def _model(
    name: str,
    facts: Facts,
    nets: Callable[[], nn.ModuleDict],
    steps: Preprocessing,
    captions: InputSpec | None,
    checkpoint: Checkpoint[Any] | None = None,
) -> Model:
    options = facts.options

    def images() -> nn.Module:
        from image_encoders.nets.normalized import Normalized

        return Normalized(nets()["image"], steps.mean, steps.std)

    if options.precomputed:
        read = partial(_read_features, length=options.img_dim)
        features = InputSpec("image", read, np.ascontiguousarray, (options.img_dim,))
        parts = [Part(features, lambda: nets()["image"])]
    else:
        parts = [Part(steps.inputs((3, None, None), SMALLEST), images)]
    if captions is not None:
        parts.append(Part(captions, lambda: nets()["text"]))
    identity = {"family": "vsepp", "weights": facts.weights, "options": asdict(options)}
    return Model(name, options.embed_size, identity, parts, checkpoint)


def _tensors(nets: nn.ModuleDict) -> dict[str, Any]:
    """All that decides embeddings, by name: the same from every generation of checkpoint."""
    from image_encoders.weights.assign import COUNTER

    return {name: tensor for name, tensor in nets.state_dict().items() if not name.endswith(COUNTER)}


def _read_features(source: Any, length: int) -> np.ndarray:
    """Precomputed features (length,) float32."""
    wanted = f"this model takes {length} precomputed features per image, as an array of floats"
    if isinstance(source, (str, bytes, os.PathLike)):
        raise InputError(f"a path or bytes; {wanted}", code="type")
    try:
        features = np.asarray(source, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"a {type(source).__name__}; {wanted}", code="type") from error
    if features.shape != (length,):
        raise InputError(f"an array of shape {features.shape}; {wanted}", code="shape")
    if not np.isfinite(features).all():
        raise InputError(f"features with NaN or infinite values; {wanted}", code="not-finite")
    return features


def _captions(words: Vocabulary, accept_unknown: bool) -> InputSpec:
    """Captions to the ids of their words."""
    encode = partial(words.encode, accept_unknown=accept_unknown)
    return InputSpec("text", _read_text, encode, (None,), {"vocabulary": words.digest})


def _read_text(source: Any) -> str:
    if not isinstance(source, str):
        raise InputError(f"a text is a str, found {type(source).__name__}", code="type")
    if len(source) > MAX_CHARACTERS:
        raise InputError(f"a text of {len(source)} characters; at most {MAX_CHARACTERS} are accepted", code="too-long")
    return source


# ---------------------------------------------------------------- the vocabulary


@dataclass(frozen=True)
class Vocabulary:
    """The words a text tower knows.

    name: for messages
    ids: word -> row of the embedding table
    """

    name: str
    ids: Mapping[str, int]

    def encode(self, text: str, accept_unknown: bool) -> np.ndarray:
        """The ids (L,) int64 of a caption's words between <start> and <end>."""
        from image_encoders.inputs.words import words

        found = words(text.lower())
        if not accept_unknown and not any(word in self.ids for word in found):
            what = (
                f"none of its words ({', '.join(found[:5])}) is in the vocabulary" if found else "a text without words"
            )
            raise InputError(
                f"{what} ({self.name}: {len(self.ids)} words); a caption with at least one of them is accepted, "
                "or any caption with unknown_words='accept'",
                code="unknown-words",
            )
        unknown_id = self.ids[UNKNOWN]
        ids = [self.ids[START], *(self.ids.get(word, unknown_id) for word in found), self.ids[END]]
        return np.array(ids, np.int64)

    @property
    def digest(self) -> str:
        return sha256(json.dumps(self.ids, sort_keys=True).encode()).hexdigest()


def _vocabulary(checkpoint: Facts, path: str | Path | None) -> Vocabulary | None:
    """The vocabulary given, or the checkpoint's own, or the one found near it; None when there is none."""
    from image_encoders.weights import pickle_file

    rows = checkpoint.rows
    if path is None and checkpoint.vocabulary is not None:
        return _checked(checkpoint.vocabulary, checkpoint.path, rows)
    found = Path(path).expanduser() if path is not None else _near(checkpoint)
    if found is None:
        logger.warning(
            "%s: no %s near it, so texts cannot be encoded; pass its path as vocabulary=PATH",
            checkpoint.path,
            checkpoint.options.vocabulary_file,
        )
        return None
    pickled = pickle_file.read(found, VOCABULARY_CLASSES)
    return _checked(pickled.get("word2idx") if isinstance(pickled, dict) else None, found, rows)


def _near(checkpoint: Facts) -> Path | None:
    home = checkpoint.path.absolute().parent
    places = (home, home / "vocab", home.parent / "vocab", home.parent.parent / "vocab")
    return next((p for place in places if (p := place / checkpoint.options.vocabulary_file).is_file()), None)


def _checked(ids: Any, path: Path, rows: int) -> Vocabulary:
    """A vocabulary whose ids are the rows of an embedding table."""
    if not isinstance(ids, dict) or not all(isinstance(w, str) and type(i) is int for w, i in ids.items()):
        raise WeightsError(f"{path}: not a vocabulary of VSE++, which has a table word2idx of words and numbers")
    if len(ids) != rows:
        raise WeightsError(
            f"{path}: a vocabulary of {len(ids)} words for a checkpoint that knows {rows}; "
            "give vocabulary=PATH, the one it was trained with"
        )
    lacking = [word for word in (START, END, UNKNOWN) if word not in ids]
    if lacking or sorted(ids.values()) != list(range(rows)):
        reason = f"no {', '.join(lacking)}" if lacking else f"ids other than 0 to {rows - 1}, each once"
        raise WeightsError(f"{path}: a damaged vocabulary: it has {reason}; get the file again")
    return Vocabulary(path.name, ids)


# ---------------------------------------------------------------- the checkpoint


@dataclass(frozen=True)
class Options:
    """What a checkpoint's own options say of its nets; the defaults are those of the authors' train.py."""

    embed_size: int = 1024
    word_dim: int = 300
    num_layers: int = 1
    img_dim: int = 4096  # of precomputed features
    cnn_type: str = "vgg19"
    data_name: str = "precomp"
    measure: str = "cosine"
    use_abs: bool = False
    no_imgnorm: bool = False

    @property
    def precomputed(self) -> bool:
        return self.data_name.endswith("_precomp")

    @property
    def vocabulary_file(self) -> str:
        return f"{self.data_name}_vocab.pkl"

    @property
    def backbone(self) -> str:
        return "precomputed features" if self.precomputed else self.cnn_type


MAX_SIZES = {"embed_size": 1 << 16, "word_dim": 1 << 16, "num_layers": 64, "img_dim": 1 << 20}


@dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds: tensors by name for each tower, its options, and its vocabulary if it holds one."""

    path: Path
    image: Mapping[str, Any]
    text: Mapping[str, Any]
    options: Options
    vocabulary: Mapping[str, int] | None = None


def _file(path: Path) -> Path:
    """A checkpoint's file, which may be given by its folder."""
    return path / CHECKPOINT if path.is_dir() else path


@dataclass(frozen=True)
class Facts:
    """What `load` needs to know of a checkpoint beside its nets.

    weights: the digest of all tensors
    rows: how many words the embedding table has
    vocabulary: the one it holds, word -> row; else None
    """

    path: Path
    weights: str
    options: Options
    rows: int
    vocabulary: Mapping[str, int] | None

    @classmethod
    def of(cls, plain: Mapping[str, Any], path: Path) -> Facts:
        """From what `_facts` gives."""
        return cls(path, plain["weights"], Options(**plain["options"]), plain["rows"], plain["vocabulary"])


def _facts(checkpoint: Contents, nets: nn.ModuleDict) -> dict[str, Any]:
    """The facts of a checkpoint as plain values."""
    from image_encoders.weights.digest import weights_digest

    return {
        "weights": weights_digest(_tensors(nets)),
        "options": asdict(checkpoint.options),
        "rows": _rows(checkpoint),
        "vocabulary": None if checkpoint.vocabulary is None else dict(checkpoint.vocabulary),
    }


def _read(path: Path) -> Contents:
    """A checkpoint of any generation, or a converted one; WeightsError for everything else."""
    from image_encoders.weights import convert, torch_file

    if path.suffix == ".safetensors":
        tensors, facts = convert.load(path, "vsepp")
        parts = [
            {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            for prefix in ("image.", "text.")
        ]
        return Contents(path, parts[0], parts[1], _options(facts.get("options"), path), facts.get("vocabulary"))
    content = torch_file.read(path)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, (list, tuple)) or len(model) != 2 or not all(isinstance(part, dict) for part in model):
        raise WeightsError(
            f"{path}: {_contents(content)}; a VSE++ checkpoint has 'model', the tensors of two towers, and 'opt'"
        )
    options = content.get("opt")
    if options is not None and not isinstance(options, dict):
        options = vars(options)
    return Contents(path, model[0], model[1], _options(options, path))


def _contents(content: Any) -> str:
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}"
    names = ", ".join(map(str, list(content)[:5]))
    return f"it holds {len(content)} entries ({names}{', ...' if len(content) > 5 else ''})"


def _options(found: Any, path: Path) -> Options:
    """The options that decide the nets, each of its type and a sensible size."""
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: no options in it; a VSE++ checkpoint has them under 'opt'")
    values = {name: found.get(name, default) for name, default in asdict(Options()).items()}
    for name, default in asdict(Options()).items():
        value, sort = values[name], type(default)
        if type(value) is not sort or (sort is int and not 1 <= value <= MAX_SIZES[name]):
            wanted = f"a number from 1 to {MAX_SIZES[name]}" if sort is int else f"a {sort.__name__}"
            raise WeightsError(f"{path}: its option {name} is {value!r:.80}; {wanted} was expected")
    options = Options(**values)
    if not options.precomputed and options.cnn_type not in FEATURES:
        raise WeightsError(
            f"{path}: its option cnn_type is {options.cnn_type!r:.80}; {' and '.join(FEATURES)} are known"
        )
    return options


def _agree(variant: str, checkpoint: Facts) -> None:
    found = checkpoint.options.backbone
    if variant and variant.split("-")[1] != found:
        raise WeightsError(
            f"{checkpoint.path}: vsepp/{variant} was requested, but its images go through {found}; "
            "load it as plain 'vsepp'"
        )


def _rows(checkpoint: Contents) -> int:
    """How many words the embedding table has."""
    shape: tuple[int, ...] = getattr(checkpoint.text.get("embed.weight"), "shape", ())
    if len(shape) != 2:
        raise WeightsError(f"{checkpoint.path}: no table embed.weight of word vectors among the text tower's tensors")
    return int(shape[0])


def _nets(checkpoint: Contents) -> nn.ModuleDict:
    """The two towers, "image" and "text", with the checkpoint's weights, which they share with the file."""
    import torch

    from image_encoders.nets.vsepp import CaptionTower, ImageTower, ResNet152, Vgg19
    from image_encoders.weights.assign import assign

    options = checkpoint.options
    with torch.device("meta"):
        cnn: nn.Module | None = None
        if not options.precomputed:
            cnn = Vgg19() if options.cnn_type == "vgg19" else ResNet152()
        features = options.img_dim if cnn is None else FEATURES[options.cnn_type]
        image = ImageTower(cnn, features, options.embed_size, not options.no_imgnorm, options.use_abs)
        text = CaptionTower(
            _rows(checkpoint), options.word_dim, options.embed_size, options.num_layers, options.use_abs
        )
    return torch.nn.ModuleDict(
        {
            "image": assign(image, checkpoint.image, checkpoint.path, rename=_renaming(checkpoint.image)),
            "text": assign(text, checkpoint.text, checkpoint.path),
        }
    )


def _renaming(names: Mapping[str, Any]) -> Callable[[str], str]:
    """A tensor's name in a checkpoint's image tower -> its name in ours.

    DataParallel put `module.` into the names; until mid-2017 torchvision's classifier began with a dropout, so that
    its linear layers were 1 and 4 instead of 0 and 3.
    """
    old = {"cnn.classifier.1.": "cnn.classifier.0.", "cnn.classifier.4.": "cnn.classifier.3."}
    if "cnn.classifier.1.weight" not in names:
        old = {}

    def rename(name: str) -> str:
        name = name.replace("cnn.module.", "cnn.").replace("cnn.features.module.", "cnn.features.")
        for found, ours in old.items():
            if name.startswith(found):
                return ours + name.removeprefix(found)
        return name

    return rename


# ---------------------------------------------------------------- the published archives


def _extract(archive: Path, member: str, target: Path) -> None:
    """Write one file of a tar archive, whole or not at all."""
    try:
        with tarfile.open(archive) as tar:
            names = []
            for entry in tar:
                name = entry.name.removeprefix("./")
                if name == member and entry.isreg():
                    _write(tar.extractfile(entry), entry.size, target)
                    return
                names.append(name)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise WeightsError(f"{archive}: {member} cannot be taken out of it: {error}; get the file again") from error
    shown = ", ".join(sorted(name for name in names if name.endswith(target.suffix))[:20])
    raise WeightsError(f"{archive}: no {member} in it; it has {shown or f'{len(names)} other entries'}")


def _write(source: Any, size: int, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as part, part.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
        if file.tell() != size:
            raise EOFError(f"{file.tell()} of {size} bytes")
