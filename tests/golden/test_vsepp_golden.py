"""VSE++ equals its original code: in float64, caption by caption, and the nets stage by stage.

Rows of prepared arrays, pixels, files and captions: tests/conformance/test_cases.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import image_encoders as ie
from image_encoders.encoder import Encoder
from image_encoders.inputs.words import words
from image_encoders.models import vsepp
from image_encoders.weights import convert

pytestmark = pytest.mark.golden

NAMES = {
    "vse-vgg19": "vsepp/f30k-vgg19",
    "vse-vgg19-py2": "vsepp/f30k-vgg19",
    "vse-resnet152": "vsepp/f30k-resnet152-finetune",
    "vse-resnet152-order": "vsepp",
}
STAGED = ["vse-vgg19", "vse-resnet152"]  # the cases whose golden file has stages of the nets, and float64
# The module of the net whose output the reference names so.
STAGES = {
    "vse-vgg19": {
        "conv1_1": "cnn.features.0",
        "pool1": "cnn.features.4",
        "pool2": "cnn.features.9",
        "pool3": "cnn.features.18",
        "pool4": "cnn.features.27",
        "pool5": "cnn.features.36",
        "classifier.0": "cnn.classifier.0",
        "classifier.3": "cnn.classifier.3",
        "cnn": "cnn",
        "fc": "fc",
    },
    "vse-resnet152": {
        "conv1": "cnn.conv1",
        "maxpool": "cnn.maxpool",
        "layer1": "cnn.layer1",
        "layer2": "cnn.layer2",
        "layer3": "cnn.layer3",
        "layer4": "cnn.layer4",
        "avgpool": "cnn.avgpool",
        "fc": "fc",
    },
}


@pytest.fixture(scope="module")
def encoder(checkpoint: Callable[[str], Path]) -> Callable[[str], Encoder]:
    """encoder(case): loaded once. Captions of unknown words are taken, as the original takes them."""

    @cache
    def loaded(case: str) -> Encoder:
        weights = checkpoint(case) / "model_best.pth.tar"
        return ie.load(
            NAMES[case], weights=weights, device="cpu", precision="float32", engine="torch", unknown_words="accept"
        )

    return loaded


@pytest.fixture(scope="module")
def tolerance(manifest: dict[str, Any]) -> Callable[[str], dict[str, float]]:
    return lambda case: {key: manifest["cases"][case][key] for key in ("rel", "one_minus_cos")}


@pytest.mark.parametrize("case", STAGED)
def test_prepared_images_have_the_originals_embeddings_in_float64(
    case, encoder, golden, float_inputs, assert_embeddings_agree, tolerance
):
    rows = encoder(case).embed_image(float_inputs(case, "float224")[2:5])
    assert_embeddings_agree(rows, golden(case)["float224/out_f64_samples2to4"], **tolerance(case))


@pytest.mark.parametrize("case", STAGED)
def test_every_stage_of_the_net_agrees(case, checkpoint, golden, float_inputs, tolerance):
    reference = golden(case)
    image = vsepp._nets(vsepp._read(vsepp._file(checkpoint(case))))["image"]
    outputs: dict[str, np.ndarray] = {}

    def keep(stage: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            outputs[stage] = output.detach().numpy().ravel().astype(np.float64)

        return hook

    for stage, module in STAGES[case].items():
        image.get_submodule(module).register_forward_hook(keep(stage))
    assert {key.removeprefix("stage/") for key in reference if key.startswith("stage/")} == set(STAGES[case])
    assert str(reference["stage_input"]) == "float224 sample 3"
    with torch.inference_mode():
        image(torch.from_numpy(float_inputs(case, "float224")[3:4]))
    limit = tolerance(case)["rel"]
    for stage, x in outputs.items():
        mean, std, largest, *first = reference[f"stage/{stage}"]
        found = [x.mean(), x.std(ddof=1), np.abs(x).max(), *x[:8]]
        assert np.abs(np.subtract(found, [mean, std, largest, *first])).max() <= limit * largest, stage
    features = reference["float224/cnn_out_sample3"]
    last = outputs["cnn" if case == "vse-vgg19" else "avgpool"]
    assert np.abs(last - features).max() <= limit * np.abs(features).max()


@pytest.mark.parametrize("case", NAMES)
def test_captions_one_by_one_have_the_originals_embeddings(case, encoder, golden, assert_embeddings_agree, manifest):
    tolerances = manifest["cases"][case]
    limits = {"rel": tolerances["text_rel"], "one_minus_cos": tolerances["text_one_minus_cos"]}
    captions = golden("vse-vgg19")["text/captions"].tolist()  # the py2 case has the rows of the same captions
    assert_embeddings_agree(encoder(case).encode_text(captions, batch_size=1), golden(case)["text/out"], **limits)


@pytest.mark.parametrize("case", ["vse-vgg19", "vse-resnet152", "vse-resnet152-order"])
def test_captions_have_the_originals_words_and_ids(case, encoder, golden):
    reference = golden(case)
    captions = reference["text/captions"].tolist()
    assert [words(caption.lower()) for caption in captions] == json.loads(str(reference["text/tokens_json"]))
    for caption, ids, length in zip(captions, reference["text/ids"], reference["text/lengths"]):
        assert encoder(case).tower("text").input(caption).tolist() == ids[:length].tolist()


def test_python_2s_file_gives_todays_bits_and_fingerprint(encoder, float_inputs):
    old, new = encoder("vse-vgg19-py2"), encoder("vse-vgg19")
    assert old.fingerprint == new.fingerprint
    images = float_inputs("vse-vgg19", "float224")[:2]
    assert np.array_equal(old.embed_image(images), new.embed_image(images))
    captions = ["a man riding a wave", "two dogs"]
    assert np.array_equal(old.encode_text(captions), new.encode_text(captions))


@pytest.mark.parametrize("case", ["vse-vgg19-py2", "vse-resnet152"])
def test_a_converted_checkpoint_gives_the_same_bits(case, encoder, checkpoint, float_inputs, tmp_path):
    path = tmp_path / f"{case}.safetensors"
    convert.save(path, *vsepp.original(checkpoint(case)))
    converted = ie.load("vsepp", weights=path, device="cpu", precision="float32", engine="torch")
    original = encoder(case)
    assert converted.fingerprint == original.fingerprint
    images = float_inputs(case, "float224")[:2]
    assert np.array_equal(converted.embed_image(images), original.embed_image(images))
    captions = ["a man riding a wave", "two dogs", "the cat is sleeping on the kitchen table"]
    assert np.array_equal(converted.encode_text(captions), original.encode_text(captions))
    path.unlink()


def test_order_embeddings_have_no_signs_and_images_keep_their_length(encoder, float_inputs):
    order = encoder("vse-resnet152-order")
    rows = order.embed_image(float_inputs("vse-resnet152", "float224")[:2])
    assert rows.min() >= 0
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).min() > 1e-3
    texts = order.encode_text(["two dogs"])
    assert texts.min() >= 0
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)


def test_a_backbone_other_than_the_names_is_refused(checkpoint):
    with pytest.raises(ie.WeightsError, match=r"vsepp/coco-vgg19 was requested, .* resnet152"):
        ie.load("vsepp/coco-vgg19", weights=checkpoint("vse-resnet152"))
