"""A custom net's layer gives what the original's hook captured, without the rest of the net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import image_encoders as ie
from image_encoders.encoder import Encoder

CLASSES = {"custom-conv": "CustomModel", "custom-features": "SmallNet", "custom-inplace": "InplaceNet"}
KEYS = [
    ("custom-conv", "float224", "conv1"),
    ("custom-conv", "float224", "conv2"),
    ("custom-conv", "float224", "pool"),
    ("custom-features", "float224", "features"),
    ("custom-features", "float97x131", "features"),
    ("custom-inplace", "float224", "stem"),
    ("custom-inplace", "float224", "out"),
    ("custom-inplace", "float97x131", "stem"),
    ("custom-inplace", "float97x131", "out"),
]


@pytest.fixture
def load(checkpoint: Callable[[str], Path], conformance: Path) -> Callable[[str, str], Encoder]:
    def loaded(case: str, layer: str) -> Encoder:
        return ie.load(
            "custom",
            weights=checkpoint(case) / "model_state_dict.pth",
            definition=conformance / "specs" / "data" / f"{case.replace('-', '_')}.py",
            class_name=CLASSES[case],
            layer=layer,
            device="cpu",
            precision="float32",
            engine="torch",
        )

    return loaded


def test_every_golden_key_is_tested(golden):
    keys = {(case, *key.split("/")[:2]) for case in CLASSES for key in golden(case) if key.endswith("/out")}
    assert keys == set(KEYS)


@pytest.mark.parametrize(("case", "name", "layer"), KEYS)
def test_embeddings_are_the_originals(case, name, layer, load, golden, float_inputs, manifest, assert_embeddings_agree):
    encoder, inputs = load(case, layer), float_inputs(case, name)
    tolerance = {key: manifest["cases"][case][key] for key in ("rel", "one_minus_cos")}
    reference = golden(case)[f"{name}/{layer}/out"]
    assert encoder.dim == reference.shape[1]
    for _ in range(2):  # the first pass over a shape runs the whole net, later ones stop early
        assert_embeddings_agree(encoder.embed_image(inputs), reference, **tolerance)
    assert_embeddings_agree(encoder.encode_image(list(inputs), batch_size=4), reference, **tolerance)


@pytest.mark.parametrize("name", ["float224", "float97x131"])
def test_a_map_that_is_written_to_afterwards_is_not_the_one_the_layer_gave(name, load, golden, float_inputs):
    rows = load("custom-inplace", "stem").embed_image(float_inputs("custom-inplace", name))
    assert np.abs(rows - golden("custom-inplace")[f"{name}/stem/not_this_value"]).max() > 1e-3
