"""The options of CLIP that say how images and texts are prepared, where the checkpoint should not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import image_encoders as ie
from image_encoders.errors import InputError, UnknownModel, WeightsError

CASES = ["clip-tiny-quickgelu", "clip-tiny-gelu", pytest.param("clip-vit-b32", marks=pytest.mark.golden)]


def load(folder: Path, **options: Any) -> ie.Encoder:
    return ie.load("clip", weights=folder, device="cpu", precision="float32", engine="torch", **options)


@pytest.fixture(scope="module")
def tiny(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("clip-tiny-quickgelu")


def copied(folder: Path, to: Path, **processor: Any) -> Path:
    """A checkpoint whose preprocessing says something else."""
    shutil.copytree(folder, to)
    path = to / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **processor}))
    return to


@pytest.mark.parametrize("case", CASES)
def test_a_crop_rounded_half_to_even_gives_the_embeddings_of_openai_s_code(
    case: str, checkpoint, golden, conformance: Path, manifest, assert_embeddings_agree
) -> None:
    stored, tolerance = golden(case), manifest["cases"][case]
    names = list(stored["image/clip_pil/names"])
    images = [np.array(Image.open(conformance / "images" / "decoded" / f"{name}.png")) for name in names]
    measure = {"rel": tolerance["rel"], "one_minus_cos": tolerance["one_minus_cos"]}
    rows = load(checkpoint(case), crop="round").encode_image(images)
    assert_embeddings_agree(rows, stored["image/clip_pil/out"], **measure)
    assert np.abs(rows - stored["image/clip_hf/out"]).max() > 0.01 * np.abs(rows).max()  # it makes a difference


@pytest.mark.parametrize(("spare", "corner"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3), (7, 4)])
def test_the_corner_is_rounded_half_to_even(tiny: Path, spare: int, corner: int) -> None:
    tower = load(tiny, crop="round").tower("image")
    image = np.random.default_rng(spare).integers(0, 256, (224, 224 + spare, 3), np.uint8)
    np.testing.assert_array_equal(tower.prepare(image), image[:, corner : corner + 224].transpose(2, 0, 1))


def test_another_checkpoint_s_preprocessing_can_be_used(tiny: Path, tmp_path: Path) -> None:
    other = copied(tiny, tmp_path / "other", resample=0, image_mean=[0.1, 0.2, 0.3])
    (tmp_path / "alone").mkdir()
    shutil.copy(other / "preprocessor_config.json", tmp_path / "alone")
    image = np.random.default_rng(0).integers(0, 256, (300, 260, 3), np.uint8)
    wanted = load(other).encode_image([image])
    for place in (other, str(other), tmp_path / "alone"):
        np.testing.assert_array_equal(load(tiny, preprocessor=place).encode_image([image]), wanted)
    assert np.abs(load(tiny).encode_image([image]) - wanted).max() > 0.01 * np.abs(wanted).max()


def test_another_checkpoint_s_tokenizer_can_be_used(tiny: Path, tmp_path: Path) -> None:
    other = copied(tiny, tmp_path / "other")
    for file in (other / "merges.txt", other / "tokenizer.json"):
        if file.is_file() and file.name == "merges.txt":
            file.write_text(file.read_text().split("\n", 1)[0] + "\n")  # every letter by itself
        elif file.is_file():
            held = json.loads(file.read_text())
            held["model"]["merges"] = []
            file.write_text(json.dumps(held))
    texts = ["the sea", "a dog in the sand"]
    wanted = load(other).encode_text(texts)
    encoder = load(tiny, tokenizer=other)
    np.testing.assert_array_equal(encoder.encode_text(texts), wanted)
    assert np.abs(load(tiny).encode_text(texts) - wanted).max() > 0.001 * np.abs(wanted).max()
    with pytest.raises(WeightsError, match="no tokenizer"):
        load(tiny, tokenizer=tmp_path)


def test_max_length_shortens_the_context(tiny: Path) -> None:
    encoder = load(tiny, max_length=8)
    short, long = "a b", "a b c d e f g h i j"
    np.testing.assert_allclose(encoder.encode_text([short]), load(tiny).encode_text([short]), atol=2e-5)
    with pytest.raises(InputError, match="takes 8"):
        encoder.encode_text([long])
    cut = load(tiny, max_length=8, truncate=True)
    ids = cut.tower("text").input(long)
    whole = load(tiny).tower("text").input(long)
    assert ids.shape == (8,)
    np.testing.assert_array_equal(ids[:7], whole[:7])
    assert ids[7] == max(whole)  # the end, whatever was cut off


def test_max_length_beyond_the_context_changes_nothing(tiny: Path) -> None:
    assert load(tiny, max_length=10_000).tower("text").shape == load(tiny).tower("text").shape
    assert load(tiny, max_length=10_000).fingerprint == load(tiny).fingerprint


@pytest.mark.parametrize("options", [{"crop": "ceil"}, {"crop": None}, {"max_length": 2}, {"max_length": "8"}])
def test_a_wrong_value_is_an_error_that_says_what_is_accepted(tiny: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"accepted: floor, round|tokens is accepted") as caught:
        load(tiny, **options)
    assert caught.value.code == "option"


def test_a_preprocessor_that_is_nowhere_is_an_error(tiny: Path) -> None:
    with pytest.raises((UnknownModel, WeightsError), match="nowhere"):
        load(tiny, preprocessor="./nowhere", offline=True)


def test_whatever_changes_embeddings_changes_the_fingerprint(tiny: Path, tmp_path: Path) -> None:
    other = copied(tiny, tmp_path / "other", resample=0)
    prints = [
        load(tiny, **options).fingerprint
        for options in ({}, {"crop": "round"}, {"preprocessor": other}, {"max_length": 8})
    ]
    assert len(set(prints)) == len(prints)
    assert load(tiny, crop="floor", preprocessor=tiny, tokenizer=other).fingerprint == prints[0]  # the same words
