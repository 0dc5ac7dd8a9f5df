"""The original executors' class names and parameters, through `load` and without Jina."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import image_encoders as ie
from image_encoders.errors import DeviceError, UnknownModel, WeightsError
from image_encoders.legacy_names import ALIASES, CLASSES, translate
from image_encoders.models.clip import DEMO

HUB_ID = "openai/clip-vit-base-patch32"
# what each class's documentation and code say: (parameter, default)
DOCUMENTED: dict[str, dict[str, Any]] = {
    "BigTransferEncoder": {
        "model_path": "pretrained",
        "model_name": "R50x1",
        "channel_axis": None,
        "target_dim": None,
        "device": "/CPU:0",
    },
    "CLIPImageEncoder": {
        "pretrained_model_name_or_path": HUB_ID,
        "base_feature_extractor": None,
        "use_default_preprocessing": True,
        "device": "cpu",
    },
    "CLIPTextEncoder": {
        "pretrained_model_name_or_path": HUB_ID,
        "base_tokenizer_model": None,
        "max_length": 77,
        "device": "cpu",
    },
    "VSEImageEncoder": {
        "model_path": "runs/f30k_vse++_vggfull/model_best.pth.tar",
        "pool_strategy": "mean",
        "channel_axis": 1,
    },
    "VSETextEncoder": {"model_path": "runs/f30k_vse++_vggfull/model_best.pth.tar", "vocab_path": None},
    "AudioCLIPImageEncoder": {
        "model_path": ".cache/AudioCLIP-Full-Training.pt",
        "use_default_preprocessing": True,
        "download_model": True,
    },
    "AudioCLIPTextEncoder": {"model_path": ".cache/AudioCLIP-Full-Training.pt", "tokenizer_path": None},
    "AudioCLIPEncoder": {"model_path": ".cache/AudioCLIP-Full-Training.pt", "download_model": True},
    "CustomImageTorchEncoder": {
        "model_state_dict_path": None,
        "model_definition_file": None,
        "model_class_name": None,
        "layer_name": "features",
    },
}
NEEDED = {
    "CustomImageTorchEncoder": {
        "model_state_dict_path": "w.pth",
        "model_definition_file": "m.py",
        "model_class_name": "M",
    }
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths lead nowhere unless a test puts something there."""
    monkeypatch.chdir(tmp_path)


def meaning(name: str, **parameters: Any) -> Any:
    return translate(name, {**NEEDED.get(name, {}), **parameters})


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_documented_parameter_has_its_default(name: str) -> None:
    own = CLASSES[name][0]
    for parameter, default in DOCUMENTED[name].items():
        assert own.get(parameter, {"device": "cpu"}.get(parameter)) == default
    assert meaning(name) == meaning(name, **{**DOCUMENTED[name], **NEEDED.get(name, {})})
    assert meaning(name).batch_size == 32
    assert tuple(meaning(name).traversal_paths) == ("r",)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_both_spellings_mean_the_same(name: str) -> None:
    shared = {"batch_size": 8, "traversal_paths": ["c", "m"]}
    assert meaning(name, **shared) == meaning(name, default_batch_size=8, default_traversal_paths=["c", "m"])
    own = CLASSES[name][0]
    if "use_default_preprocessing" in own:
        wanted = meaning(name, use_default_preprocessing=False)
        assert meaning(name, use_preprocessing=False) == wanted
        assert wanted.prepared is True
    if "model_path" in own and name != "CustomImageTorchEncoder":
        assert meaning(name, path="somewhere") == meaning(name, model_path="somewhere")


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_two_spellings_at_once_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="mean the same"):
        meaning(name, batch_size=1, default_batch_size=2)


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"CustomImageTorchEncoder"}))
def test_an_unknown_parameter_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(TypeError, match="no parameter 'colour'") as caught:
        meaning(name, colour="red")
    assert all(parameter in str(caught.value) for parameter in DOCUMENTED[name])


@pytest.mark.parametrize("name", sorted(CLASSES))
@pytest.mark.parametrize("size", [None, 1, 64])
def test_no_batch_size_means_all_at_once(name: str, size: int | None) -> None:
    assert meaning(name, default_batch_size=size).batch_size == size


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_metas_are_accepted_and_mean_nothing(name: str) -> None:
    assert meaning(name, metas={"name": "mine"}) == meaning(name)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_devices_are_handed_on_as_they_are_spelled(name: str) -> None:
    for device in ("cpu", "cuda", "cuda:1", "/CPU:0", "/GPU:0"):
        assert meaning(name, device=device).device == device
    assert meaning(name, device=None).device == "auto"


def test_big_transfer() -> None:
    found = meaning("BigTransferEncoder", model_name="R101x3", channel_axis=1)
    assert (found.name, found.weights, found.modality) == ("bit/R101x3", None, "image")
    assert (found.prepared, found.channel_axis) == (None, 1)
    assert found.options == {"input_range": "unit", "source": "savedmodel"}
    wanted = meaning("BigTransferEncoder", target_dim=(224, 224, 3))
    assert wanted.prepared is False
    assert wanted.options["input_size"] == 224
    assert wanted.options["preprocessing"] == "jina"


@pytest.mark.parametrize("name", ["BigTransferEncoder", "VSEImageEncoder", "VSETextEncoder"])
def test_a_path_where_nothing_is_means_that_weights_are_fetched(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert meaning(name, model_path="nowhere").weights is None
    assert meaning(name, model_path="empty").weights is None
    assert meaning(name, model_path="full").weights == Path("full")
    assert meaning(name, model_path=tmp_path / "full" / "file").weights == tmp_path / "full" / "file"


def test_clip() -> None:
    found = meaning("CLIPImageEncoder", pretrained_model_name_or_path="./mine", base_feature_extractor="other")
    assert (found.name, found.modality, found.prepared) == ("clip/./mine", "image", False)
    assert found.options == {"preprocessor": "other", "crop": "round"}
    found = meaning("CLIPTextEncoder", base_tokenizer_model="other", max_length=20)
    assert (found.name, found.modality) == (f"clip/{HUB_ID}", "text")
    assert found.options == {"tokenizer": "other", "max_length": 20, "truncate": True, "crop": "round"}


def test_vse() -> None:
    assert meaning("VSEImageEncoder").options == {}
    assert meaning("VSEImageEncoder", pool_strategy="max") == meaning("VSEImageEncoder")
    assert (meaning("VSEImageEncoder").prepared, meaning("VSEImageEncoder").channel_axis) == (None, 1)
    found = meaning("VSETextEncoder", vocab_path="vocab.pkl")
    assert found.options == {"vocabulary": "vocab.pkl", "unknown_words": "accept"}  # <unk>, as in the original


def test_audioclip(tmp_path: Path) -> None:
    assert meaning("AudioCLIPImageEncoder").name == "audioclip/full"
    partial = meaning("AudioCLIPImageEncoder", model_path=".cache/AudioCLIP-Partial-Training.pt")
    assert (partial.name, partial.weights) == ("audioclip/partial", None)
    kept = meaning("AudioCLIPImageEncoder", model_path="nowhere.pt", download_model=False)
    assert kept.weights == Path("nowhere.pt")
    sounds = meaning("AudioCLIPEncoder")
    assert sounds.options == {"amplitude": "unit", "batch_norm": "running", "channels": "sum"}
    assert meaning("AudioCLIPEncoder", batch_norm="item").options["batch_norm"] == "item"


def test_custom() -> None:
    found = meaning("CustomImageTorchEncoder", layer_name="conv1", hidden=7)
    assert (found.name, found.weights) == ("custom", Path("w.pth"))
    assert found.options == {"definition": "m.py", "class_name": "M", "layer": "conv1", "class_args": {"hidden": 7}}
    with pytest.raises(TypeError, match="model_definition_file, model_class_name"):
        translate("CustomImageTorchEncoder", {"model_state_dict_path": "w.pth"})


def test_aliases_lead_to_parameters_that_exist() -> None:
    known = {name for own, _ in CLASSES.values() for name in own} | {"default_batch_size", "default_traversal_paths"}
    assert set(ALIASES.values()) <= known


def test_load_takes_a_class_name_with_its_parameters() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 63, 3), np.uint8)  # 3 pixels to spare
    encoder = ie.load("CLIPImageEncoder", pretrained_model_name_or_path=str(DEMO), device="/CPU:0", batch_size=4)
    assert encoder.device == "cpu"
    wanted = ie.load("clip/demo", crop="round").encode_image([image])
    np.testing.assert_allclose(encoder.encode_image([image]), wanted, atol=1e-6)
    assert np.abs(ie.load("clip/demo").encode_image([image]) - wanted).max() > 1e-3
    texts = ie.load("CLIPTextEncoder", pretrained_model_name_or_path=str(DEMO))
    assert texts.encode_text(["a red circle " * 99]).shape == (1, encoder.dim)
    assert texts.fingerprint == encoder.fingerprint  # one space


def test_load_of_the_custom_class(checkpoint: Callable[[str], Path], conformance: Path, golden, float_inputs) -> None:
    encoder = ie.load(
        "CustomImageTorchEncoder",
        model_state_dict_path=str(checkpoint("custom-conv") / "model_state_dict.pth"),
        model_definition_file=str(conformance / "specs" / "data" / "custom_conv.py"),
        model_class_name="CustomModel",
        layer_name="conv1",
    )
    rows = encoder.embed_image(float_inputs("custom-conv", "float224"))
    assert rows.shape[1:] == (10,)
    np.testing.assert_allclose(rows, golden("custom-conv")["float224/conv1/out"], rtol=1e-5, atol=5e-6)


def test_the_recipe_loads_the_same_again() -> None:
    encoder = ie.load("CLIPImageEncoder", pretrained_model_name_or_path=str(DEMO))
    recipe = encoder.recipe
    again = ie.load(recipe["name"], weights=recipe["weights"], **recipe["options"])
    assert again.fingerprint == encoder.fingerprint


def test_errors_are_those_of_load(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="unknown device"):
        ie.load("CLIPImageEncoder", pretrained_model_name_or_path=str(DEMO), device="tpu")
    with pytest.raises(TypeError, match="no parameter"):
        ie.load("CLIPImageEncoder", colour="red")
    with pytest.raises(UnknownModel, match="CLIPImageEncoder"):
        ie.load("ClipImageEncoder")
    shutil.copytree(DEMO, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(WeightsError, match="cut"):
        ie.load("CLIPImageEncoder", pretrained_model_name_or_path=str(tmp_path / "cut"))
