"""Everything in a checkpoint's folder that may decide an embedding decides its fingerprint."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import image_encoders as ie
from image_encoders.errors import ImageEncodersError
from image_encoders.models import clip
from image_encoders.weights import hugging_face

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def load(folder: Path, **options: Any) -> ie.Encoder:
    return ie.load("clip", weights=folder, device="cpu", precision="float32", engine="torch", truncate=True, **options)


def edited(folder: Path, to: Path, file: str, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a checkpoint with one of its files edited."""
    shutil.copytree(folder, to)
    content = json.loads((to / file).read_text())
    edit(content)
    (to / file).write_text(json.dumps(content))
    return to


def putting(*path_and_value: Any) -> Callable[[dict[str, Any]], None]:
    *path, value = path_and_value
    return lambda content: put(content, tuple(path), value)


def put(content: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        content = content.setdefault(key, {})
    content[path[-1]] = value


def saved(folder: Path, kin: str, **config: Any) -> Path:
    """A small net with the bundled model's words, in which everything of its config is written down."""
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(clip.DEMO / name, folder)
    tokens = json.loads((folder / "vocab.json").read_text())
    end = tokens["<|endoftext|>"]
    text = {**SMALL, "vocab_size": len(tokens), "max_position_embeddings": 24, "eos_token_id": end, "pad_token_id": end}
    vision = {**SMALL, "image_size": 32, "patch_size": 8, **config}
    made = getattr(transformers, f"{kin}Config")(text_config=text, vision_config=vision, projection_dim=20)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = getattr(transformers, f"{kin}Model")(made)
    net.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(made.to_dict()))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", "size": 32, "crop_size": 32})
    )
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("clip"), "CLIP")


@pytest.mark.parametrize(
    ("kin", "path", "value"),
    [
        ("CLIP", ("text_config", "pad_token_id"), 1),
        ("CLIP", ("text_config", "is_decoder"), True),
        ("CLIP", ("vision_config", "hidden_act"), "relu"),
        ("ChineseCLIP", ("text_config", "is_decoder"), True),
        ("GroupViT", ("vision_config", "assign_eps"), 0.5),
        ("CLIP", ("vision_config", "pooler_act"), "relu"),
        ("CLIP", ("a key that nobody knows",), 1),
    ],
)
def test_an_edit_of_the_config_is_another_space(kin: str, path: tuple[str, ...], value: Any, tmp_path: Path):
    (tmp_path / "one").mkdir()
    groups = {"depths": [1, 1, 1], "num_group_tokens": [8, 4, 0], "num_output_groups": [8, 4, 4]}
    folder = saved(tmp_path / "one", kin, **(groups if kin == "GroupViT" else {}))
    other = edited(folder, tmp_path / "other", "config.json", lambda config: put(config, path, value))
    assert load(other).fingerprint != load(folder).fingerprint


def keys(config: dict[str, Any], *above: str) -> Iterator[tuple[str, ...]]:
    for key, value in config.items():
        yield from keys(value, *above, key) if isinstance(value, dict) else [(*above, key)]


def other_value(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return value + rng.choice([1, 2])
    return [*value, 1] if isinstance(value, list) else f"{value}_"


def test_no_key_of_a_config_can_change_without_the_digest_unless_it_is_idle(plain: Path):
    config, rng = json.loads((plain / "config.json").read_text()), random.Random(7)
    config["text_config_dict"] = {"hidden_act": "gelu", "deeper": {"still": 1}}  # as old uploads have it
    wanted = hugging_face.config_digest(config)
    seen = set()
    for path in keys(config):
        content = json.loads(json.dumps(config))
        before = config
        for key in path:
            before = before[key]
        put(content, path, other_value(before, rng))
        assert (hugging_face.config_digest(content) == wanted) == bool(hugging_face.IDLE & set(path)), path
        seen.add(path[-1])
    assert {"hidden_act", "layer_norm_eps", "eos_token_id", "image_size", "still"} <= seen


def test_keys_taken_for_idle_change_no_embedding(plain: Path, tmp_path: Path):
    values = {
        "transformers_version": "4.0.0",
        "torch_dtype": "float16",
        "dtype": "bfloat16",
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "label2id": {"a": 0, "b": 1, "c": 2},
        "use_cache": False,
    }

    def edit(config: dict[str, Any]) -> None:
        for part in (config, config["text_config"], config["vision_config"]):
            for key in hugging_face.IDLE:
                part[key] = values.get(key, "elsewhere" if key.startswith("_") else 0.5)

    encoder, other = load(plain), load(edited(plain, tmp_path / "other", "config.json", edit))
    assert other.fingerprint == encoder.fingerprint
    assert np.array_equal(other.encode_image([PIXELS]), encoder.encode_image([PIXELS]))
    assert np.array_equal(other.encode_text(["a red circle"]), encoder.encode_text(["a red circle"]))


def exchange(words: dict[str, int]) -> None:
    one, other = "red</w>", "blue</w>"
    words[one], words[other] = words[other], words[one]


def test_two_words_exchanged_in_the_vocabulary_are_another_space(plain: Path, tmp_path: Path):
    encoder, other = load(plain), load(edited(plain, tmp_path / "other", "vocab.json", exchange))
    assert not np.allclose(other.encode_text(["a red circle"]), encoder.encode_text(["a red circle"]), rtol=1e-3)
    assert other.fingerprint != encoder.fingerprint


def test_a_merge_less_and_another_rule_are_other_spaces(plain: Path, tmp_path: Path):
    wanted = load(plain).fingerprint
    less = Path(shutil.copytree(plain, tmp_path / "less"))
    (less / "merges.txt").write_text((plain / "merges.txt").read_text().rsplit("\n", 2)[0] + "\n")
    longer = edited(plain, tmp_path / "rule", "tokenizer_config.json", lambda rules: rules.update(model_max_length=16))
    assert len({wanted, load(less).fingerprint, load(longer).fingerprint}) == 3


def test_where_a_tokenizer_lay_when_it_was_saved_is_no_part_of_it(plain: Path, tmp_path: Path):
    def edit(rules: dict[str, Any]) -> None:
        rules.update(name_or_path="/home/me", special_tokens_map_file="/tmp/x", processor_class="CLIPProcessor")

    assert load(edited(plain, tmp_path / "other", "tokenizer_config.json", edit)).fingerprint == load(plain).fingerprint


def test_any_number_of_the_preprocessing_is_part_of_the_space(plain: Path, tmp_path: Path):
    edits = {
        "resample": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821074],
        "image_std": [0.26862954, 0.26130258, 0.2757771],
        "size": {"shortest_edge": 33},
        "do_rescale": False,
    }
    found = {load(plain).fingerprint}
    for key, value in edits.items():
        found.add(load(edited(plain, tmp_path / key, "preprocessor_config.json", putting(key, value))).fingerprint)
    assert len(found) == 1 + len(edits)


# ------------------------------------------------------------------ images of any shape


@pytest.mark.parametrize(
    "steps", [{"do_center_crop": False, "size": {"shortest_edge": 32}}, {"do_resize": False, "do_center_crop": False}]
)
def test_images_of_any_shape_for_a_net_of_one_shape_are_refused_when_it_is_loaded(
    steps: dict, plain: Path, tmp_path: Path
):
    folder = edited(plain, tmp_path / "other", "preprocessor_config.json", lambda content: content.update(steps))
    with pytest.raises(ie.WeightsError, match=r"gives images of any shape .*, its net takes 32 x 32; .*do_center_crop"):
        load(folder)
    assert load(folder, preprocessor=plain).encode_image([PIXELS]).shape == (1, 20)


def test_another_shape_is_an_error_of_ours_and_never_a_bare_one(plain: Path):
    for shape in ((3, 32, 40), (3, 64, 64), (1, 32, 32), (3, 32)):
        with pytest.raises(ImageEncodersError):
            load(plain).embed_image(np.zeros((1, *shape), np.float32))
