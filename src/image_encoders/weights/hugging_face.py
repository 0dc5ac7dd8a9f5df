"""Folders with a Hugging Face checkpoint: config, net and tokenizer, read by transformers and known by their files.

What a checkpoint is decides the digests here, not which release of transformers reads it: they are taken over the files
as they are, but for keys known to be idle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from image_encoders.errors import ImageEncodersError, MissingExtra, WeightsError, first_line
from image_encoders.weights.checkpoint import Checkpoint

CONFIG = "config.json"
# Keys of configs, at any depth, that no embedding depends on: where a checkpoint came from, what wrote it, how it was
# initialised or trained, names of classes, and the type its weights are stored in (they are computed on in float32).
IDLE = frozenset(
    {
        "_name_or_path",
        "_commit_hash",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "initializer_range",
        "initializer_factor",
        "logit_scale_init_value",
        "id2label",
        "label2id",
        "use_cache",
    }
)
# The same of tokenizer_config.json: `processor_class` and files of another machine.
IDLE_OF_TOKENIZERS = frozenset(
    {"name_or_path", "special_tokens_map_file", "tokenizer_file", "processor_class", "transformers_version"}
)
WORDS = re.compile(r"tokenizer\..*json|vocab\.(json|txt)|merges\.txt|.*\.model")  # the last are sentencepiece's
RULES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def checkpoint_folder(
    where: str, *, revision: str | None = None, offline: bool | None = None, progress: bool | None = None
) -> Path:
    """Where a checkpoint lies: a local folder, or a hub id, which is fetched if it has to be."""
    local = Path(where).expanduser()
    if local.is_dir():
        return local_folder(local, revision)
    if where.startswith((".", "/", "~")):
        raise _not_a_folder(local)
    from image_encoders.weights.hub import hub_folder

    return hub_folder(where, revision=revision, offline=offline, progress=progress)


def local_folder(folder: Path, revision: str | None = None) -> Path:
    """`folder`, when it holds a checkpoint; WeightsError otherwise."""
    if not folder.is_dir():
        raise _not_a_folder(folder)
    if not (folder / CONFIG).is_file():
        raise WeightsError(f"{folder}: no config.json; a folder with a Hugging Face checkpoint was expected")
    if revision is not None:
        raise WeightsError(f"{folder}: a folder has no revisions; revision= is for hub ids")
    return folder


def _not_a_folder(path: Path) -> WeightsError:
    what = "a file" if path.exists() else "no such folder"
    return WeightsError(f"{path}: {what}; a folder with a Hugging Face checkpoint was expected (config.json, ...)")


@dataclass(frozen=True)
class Opened:
    """A checkpoint of a net that embeds texts as well, with what is known of it.

    net: see `load_model`
    facts: what a family found out about the net
    tokens, tokenizer: what is known of the tokenizer, and how to load it, see `load_tokenizer`
    """

    net: Checkpoint[Any]
    facts: dict[str, Any]
    tokens: TokenizerFacts
    tokenizer: Callable[[], Any]


def open_checkpoint(
    folder: Path,
    modalities: Sequence[str],
    family: str,
    find_facts: Callable[[Any, Mapping[str, Any]], dict[str, Any]],
    tokenizer_folder: Path,
) -> Opened:
    """A folder's net and a folder's tokenizer; what is known of both already is not read.

    find_facts: net, config -> what a family has to know of a net, as plain values
    """
    about = {"family": family, "part": "net", "transformers": metadata.version("transformers")}
    net = Checkpoint(_files(folder), lambda: load_model(folder, modalities), about)
    facts = net.facts(lambda: find_facts(net.content(), _json_object(folder / CONFIG)))
    about = {"part": "tokenizer", "transformers": metadata.version("transformers")}
    words = Checkpoint(_files(tokenizer_folder), lambda: load_tokenizer(tokenizer_folder), about, keep=False)
    tokens = words.facts(lambda: tokenizer_facts(words.content(), tokenizer_digest(tokenizer_folder)))
    return Opened(net, facts, TokenizerFacts(**tokens), words.content)


def _files(folder: Path) -> list[Path]:
    """A checkpoint's own files; folders below it are somebody else's."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def config_digest(config: Mapping[str, Any]) -> str:
    """The sha256 of a config without its idle keys."""
    return _digest(_without(dict(config), IDLE))


def load_model(folder: Path, modalities: Sequence[str]) -> Any:
    """The checkpoint's net in float32, with every tensor from the checkpoint and none left over.

    modalities: those that it has to encode, such as "image"
    """
    import torch
    from transformers import AutoModel

    from image_encoders.weights.assign import listed

    with _reading(folder), _quiet():
        model, found = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are listed below, with what is missing
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
    if not all(hasattr(model, f"get_{modality}_features") for modality in modalities):
        raise WeightsError(
            f"{folder}: {type(model).__name__} is not a two-tower net; CLIP, SigLIP and similar models are accepted"
        )
    return model


# ------------------------------------------------------------------ tokenizers


@dataclass(frozen=True)
class TokenizerFacts:
    """What has to be known of a tokenizer.

    max_length: of a text [tokens]
    padding: the token it pads with
    left: whether it pads before the text
    split: whether what looks like a special token is cut up as words are
    cut: the side that it cuts a long text on, "left" or "right"
    digest: of its words, merges and rules
    engine: all of it, as the library tokenizers reads it; None for slow ones, which are Python
    """

    max_length: int
    padding: int
    left: bool
    split: bool
    cut: str
    digest: str
    engine: str | None


def load_tokenizer(folder: Path) -> Any:
    """The checkpoint's tokenizer. Where its files are missing transformers makes one with next to no words."""
    from transformers import AutoTokenizer

    there = {path.name for path in folder.iterdir()}
    complete = {"tokenizer.json", "vocab.txt"} & there or {"vocab.json", "merges.txt"} <= there
    if not complete and not any(name.endswith(".model") for name in there):
        raise WeightsError(f"{folder}: no tokenizer: tokenizer.json, or vocab.json with merges.txt, was expected")
    with _reading(folder), _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except ImportError as error:
            raise MissingExtra("sentencepiece and protobuf", "siglip", f"the tokenizer of {folder}") from error
    if tokenizer.pad_token_id is None:
        raise WeightsError(f"{folder}: its tokenizer has no padding token; tokenizer_config.json should name one")
    return tokenizer


def tokenizer_facts(tokenizer: Any, digest: str) -> dict[str, Any]:
    """The fields of `TokenizerFacts`, as plain values."""
    return {
        "max_length": int(min(tokenizer.model_max_length, 1 << 62)),
        "padding": tokenizer.pad_token_id,
        "left": tokenizer.padding_side == "left",
        "split": tokenizer.split_special_tokens,
        "cut": tokenizer.truncation_side,
        "digest": digest,
        "engine": tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else None,
    }


def tokenizer_digest(folder: Path) -> str:
    """The sha256 of all that a folder's tokenizer is read from: words, merges, and rules without their idle keys.

    The same words in another form, tokenizer.json instead of vocab.json, have another digest.
    """
    found: dict[str, Any] = {}
    for path in _files(folder):
        if WORDS.fullmatch(path.name):
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name in RULES:
            found[path.name] = _without(_json_object(path), IDLE_OF_TOKENIZERS)
        elif path.name == CONFIG:  # which decides a tokenizer's class where its own config does not
            config = _json_object(path)
            found[path.name] = [config.get("model_type"), config.get("tokenizer_class")]
    return _digest(found)


def token_encoder(
    facts: TokenizerFacts, tokenizer: Callable[[], Any], context: int, truncate: bool
) -> Callable[[str], list[int]]:
    """A function from a text to its token ids, to be called from many threads at once.

    tokenizer: makes the tokenizer itself, should it be needed
    context: the most tokens a text is cut to, where `truncate`
    """
    if facts.engine is None:
        return _encode_slow(tokenizer(), context, truncate)
    return _encode_fast(facts, context, truncate)


def _encode_fast(facts: TokenizerFacts, context: int, truncate: bool) -> Callable[[str], list[int]]:
    """With a copy of the tokenizer's own engine, set up once: transformers does so for every call, which is slow,
    and fails when threads do it at the same time."""
    from tokenizers import Tokenizer

    assert facts.engine is not None
    engine = Tokenizer.from_str(facts.engine)
    engine.no_padding()
    engine.encode_special_tokens = facts.split
    if truncate:
        engine.enable_truncation(context, direction=facts.cut)
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


# ------------------------------------------------------------------ files


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a JSON file that can be read: {error}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: a JSON object was expected")
    return found


def _without(value: Any, keys: frozenset[str]) -> Any:
    """`value` without these keys, at any depth."""
    if isinstance(value, dict):
        return {key: _without(one, keys) for key, one in value.items() if key not in keys}
    return [_without(one, keys) for one in value] if isinstance(value, list) else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
