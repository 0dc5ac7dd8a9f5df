"""Encoders by the class names and parameters under which they were first published, as Jina Executors.

    load("BigTransferEncoder", model_path="pretrained", device="/CPU:0")
    load("CustomImageTorchEncoder", model_state_dict_path="model.pth", model_definition_file="model.py",
         model_class_name="CustomModel", layer_name="conv1")

`translate` says what such a call means today. Parameters come in the spellings of the documentation
(`default_batch_size`) and of the code (`batch_size`, `traversal_paths`, `use_preprocessing`, `path`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LegacyModel:
    """What a class name and its parameters mean.

    name, weights, device, options: for `load`
    modality: what the class encodes
    prepared: whether images come preprocessed: always, never, or (None) floats do and uint8 arrays do not
    channel_axis: of an image's array with its batch axis; None: found by its length
    batch_size: how many go through the net together; None: all that came
    traversal_paths: which documents of a tree
    """

    name: str
    modality: str
    weights: Path | None = None
    device: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    prepared: bool | None = False
    channel_axis: int | None = None
    batch_size: int | None = 32
    traversal_paths: Any = ("r",)


ALIASES = {
    "batch_size": "default_batch_size",
    "traversal_paths": "default_traversal_paths",
    "traversal_path": "default_traversal_paths",
    "default_traversal_path": "default_traversal_paths",
    "use_preprocessing": "use_default_preprocessing",
    "path": "model_path",
}
SERVING = {"default_batch_size": 32, "default_traversal_paths": ("r",), "metas": None}


def translate(class_name: str, parameters: dict[str, Any]) -> LegacyModel:
    """The meaning of `class_name(**parameters)`; TypeError for a parameter that the class does not have."""
    values, extra = with_defaults(class_name, parameters)
    build = CLASSES[class_name][1]
    meaning = build(values, extra) if class_name == "CustomImageTorchEncoder" else build(values)
    paths = values["default_traversal_paths"]
    return LegacyModel(
        **meaning,
        device=values["device"] or "auto",
        batch_size=values["default_batch_size"],
        traversal_paths=("r",) if paths is None else paths,
    )


def with_defaults(class_name: str, parameters: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All parameters of a class under their documented names, and those that are its model class's own."""
    accepted = {"device": "cpu", **SERVING, **CLASSES[class_name][0]}
    given: dict[str, Any] = {}
    for name, value in parameters.items():
        meant = name if name in accepted else ALIASES.get(name, name)
        if meant in given:
            raise TypeError(f"{class_name} got {name!r} and {meant!r}, which mean the same; give one of them")
        given[meant] = value
    extra = {name: given.pop(name) for name in list(given) if name not in accepted}
    if extra and class_name != "CustomImageTorchEncoder":  # whose other parameters are its model class's own
        raise TypeError(f"{class_name} has no parameter {next(iter(extra))!r}; it has: {', '.join(sorted(accepted))}")
    return {**accepted, **given}, extra


def attributes(class_name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The value of every parameter under each of its names, for those who read them back."""
    values, _ = with_defaults(class_name, parameters)
    values.pop("metas")
    return values | {alias: values[meant] for alias, meant in ALIASES.items() if meant in values}


def _big_transfer(given: dict[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {"input_range": "unit", "source": "savedmodel"}
    if given["target_dim"] is not None:
        options |= {"preprocessing": "jina", "input_size": int(given["target_dim"][0])}
    return {
        "name": f"bit/{given['model_name']}",
        "modality": "image",
        "weights": _there(given["model_path"]),  # an absent or empty folder means: fetch `model_name`
        "options": options,
        "prepared": None if given["target_dim"] is None else False,
        "channel_axis": given["channel_axis"],
    }


def _clip(given: dict[str, Any], modality: str, own: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"clip/{given['pretrained_model_name_or_path']}",
        "modality": modality,
        "options": {name: value for name, value in own.items() if value is not None},
    }


def _clip_image(given: dict[str, Any]) -> dict[str, Any]:
    # The original's own transforms, not the checkpoint's processor: they place the crop by rounding half to even.
    options = {"preprocessor": given["base_feature_extractor"], "crop": "round"}
    return {**_clip(given, "image", options), "prepared": not given["use_default_preprocessing"]}


def _clip_text(given: dict[str, Any]) -> dict[str, Any]:
    own = {"tokenizer": given["base_tokenizer_model"], "max_length": given["max_length"], "truncate": True}
    return _clip(given, "text", {**own, "crop": "round"})  # no text has a crop, but both towers are of one space


def _vse(given: dict[str, Any]) -> dict[str, Any]:
    path = _there(given["model_path"])
    vocabulary = given.get("vocab_path")
    options = {} if vocabulary is None else {"vocabulary": vocabulary}
    return {"name": "vsepp" if path else "vsepp/f30k-vgg19", "weights": path, "options": options}


def _vse_image(given: dict[str, Any]) -> dict[str, Any]:
    # pool_strategy reduces maps of four dimensions; this net's embeddings have two, so every strategy means the same.
    return {**_vse(given), "modality": "image", "prepared": None, "channel_axis": given["channel_axis"]}


def _vse_text(given: dict[str, Any]) -> dict[str, Any]:
    meant = _vse(given)
    return {**meant, "modality": "text", "options": {**meant["options"], "unknown_words": "accept"}}


def _audioclip(given: dict[str, Any], modality: str, **options: Any) -> dict[str, Any]:
    path = Path(given["model_path"]).expanduser()
    variant = "partial" if "partial" in path.name.lower() else "full"
    if given.get("tokenizer_path") is not None:
        options["vocabulary"] = _there(given["tokenizer_path"])
    return {
        "name": f"audioclip/{variant}",
        "modality": modality,
        "weights": path if path.exists() or not given["download_model"] else None,
        "options": {name: value for name, value in options.items() if value is not None},
    }


def _audioclip_image(given: dict[str, Any]) -> dict[str, Any]:
    return {**_audioclip(given, "image"), "prepared": not given["use_default_preprocessing"]}


def _audioclip_text(given: dict[str, Any]) -> dict[str, Any]:
    return _audioclip(given, "text")


def _audioclip_audio(given: dict[str, Any]) -> dict[str, Any]:
    # The original feeds samples in [-1, 1] as they are and sums the features of two channels.
    return _audioclip(given, "audio", amplitude=given["amplitude"], batch_norm=given["batch_norm"], channels="sum")


def _custom(given: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    lacking = [
        name for name in ("model_state_dict_path", "model_definition_file", "model_class_name") if not given[name]
    ]
    if lacking:
        raise TypeError(f"CustomImageTorchEncoder needs {', '.join(lacking)}")
    options = {
        "definition": given["model_definition_file"],
        "class_name": given["model_class_name"],
        "layer": given["layer_name"],
    }
    return {
        "name": "custom",
        "modality": "image",
        "weights": Path(given["model_state_dict_path"]),
        "options": options | ({"class_args": extra} if extra else {}),
    }


def _there(path: str | Path | None) -> Path | None:
    """The path, unless nothing is there: the originals then fetch what they need."""
    if path is None:
        return None
    found = Path(path).expanduser()
    empty = not found.exists() or (found.is_dir() and not any(found.iterdir()))
    return None if empty else found


_VSE_PATH = "runs/f30k_vse++_vggfull/model_best.pth.tar"
_AUDIOCLIP = {"model_path": ".cache/AudioCLIP-Full-Training.pt", "download_model": True}
_HUB_ID = {"pretrained_model_name_or_path": "openai/clip-vit-base-patch32"}

# class name: (its own parameters with their defaults, their meaning)
CLASSES: dict[str, tuple[dict[str, Any], Callable[..., dict[str, Any]]]] = {
    "BigTransferEncoder": (
        {
            "model_path": "pretrained",
            "model_name": "R50x1",
            "channel_axis": None,
            "target_dim": None,
            "device": "/CPU:0",
        },
        _big_transfer,
    ),
    "CLIPImageEncoder": (
        {**_HUB_ID, "base_feature_extractor": None, "use_default_preprocessing": True},
        _clip_image,
    ),
    "CLIPTextEncoder": ({**_HUB_ID, "base_tokenizer_model": None, "max_length": 77}, _clip_text),
    "VSEImageEncoder": ({"model_path": _VSE_PATH, "pool_strategy": "mean", "channel_axis": 1}, _vse_image),
    "VSETextEncoder": ({"model_path": _VSE_PATH, "vocab_path": None}, _vse_text),
    "AudioCLIPImageEncoder": ({**_AUDIOCLIP, "use_default_preprocessing": True}, _audioclip_image),
    "AudioCLIPTextEncoder": ({**_AUDIOCLIP, "tokenizer_path": None}, _audioclip_text),
    "AudioCLIPEncoder": ({**_AUDIOCLIP, "amplitude": "unit", "batch_norm": "running"}, _audioclip_audio),
    "CustomImageTorchEncoder": (
        {
            "model_state_dict_path": None,
            "model_definition_file": None,
            "model_class_name": None,
            "layer_name": "features",
            "device": None,
        },
        _custom,
    ),
}
