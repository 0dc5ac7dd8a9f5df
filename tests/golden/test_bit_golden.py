"""BiT equals its original code: in float64, and stage by stage.

Embeddings of floats of every size, and of images and files by every rule: tests/conformance/test_cases.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import image_encoders as ie
from image_encoders.encoder import Encoder
from image_encoders.models import bit

pytestmark = pytest.mark.golden

FILES = {"bit-npz-R50x1": "BiT-M-R50x1.npz"}
# The module of the net whose output the reference names so.
STAGES = {
    "root.conv": "root_block.conv",
    "root": "root_block",
    "block1.unit01": "block1.unit01",
    "block1": "block1",
    "block2.unit02": "block2.unit02",
    "block2": "block2",
    "block3": "block3",
    "block4": "block4",
    "head.gn": "group_norm",
}
FLAT = ["gray16.png.rgb", "one_pixel.png.rgb"]  # images of one colour


@pytest.fixture(scope="module")
def encoder(checkpoint: Callable[[str], Path]) -> Callable[..., Encoder]:
    """encoder(case, **options): loaded once."""

    @cache
    def loaded(case: str, **options: Any) -> Encoder:
        weights = checkpoint(case) / FILES.get(case, case)
        return ie.load("bit/R50x1", weights=weights, device="cpu", precision="float32", engine="torch", **options)

    return loaded


def decoded(conformance: Path, names: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(Image.open(conformance / "images" / "decoded" / f"{name}.png")) for name in names]


def test_embeddings_agree_with_the_originals_in_float64(encoder, golden, float_inputs, assert_embeddings_agree):
    rows = encoder("bit-npz-R50x1").embed_image(float_inputs("bit-npz-R50x1", "float224"))
    reference = golden("bit-npz-R50x1")["float224/out_f64"]
    assert_embeddings_agree(rows, reference, rel=1e-4, one_minus_cos=1e-8)


def test_flat_images_get_the_embeddings_of_float64(checkpoint, encoder, conformance, assert_embeddings_agree):
    import torch

    case = "bit-savedmodel-hub"
    images = decoded(conformance, np.array(FLAT))
    net = bit._net(checkpoint(case) / case, bit.ARCHITECTURES["R50x1"], bit.BIT, "unit").double()
    inputs = np.stack([bit._sized(bit.BIT, 224).prepare(one) for one in images])
    with torch.inference_mode():
        reference = net(torch.from_numpy(inputs).double() / 255).numpy()
    assert_embeddings_agree(encoder(case, input_size=224).encode_image(images), reference, rel=1e-4, one_minus_cos=1e-8)


def test_every_stage_is_the_originals(checkpoint, golden, float_inputs):
    import torch

    weights = checkpoint("bit-npz-R50x1") / FILES["bit-npz-R50x1"]
    net = bit._net(weights, bit.ARCHITECTURES["R50x1"], bit.BIT, None).net
    arrays = golden("bit-npz-R50x1")
    assert str(arrays["stage_input"]) == "float224 sample 3"
    outputs = {}
    for stage, module in STAGES.items():
        net.get_submodule(module).register_forward_hook(
            lambda _module, _inputs, output, stage=stage: outputs.__setitem__(stage, output[0].double().flatten())
        )
    with torch.inference_mode():
        net(torch.from_numpy(float_inputs("bit-npz-R50x1", "float224")[3:4]))
    assert {f"stage/{stage}" for stage in outputs} == {key for key in arrays if key.startswith("stage/")}
    for stage, x in outputs.items():
        found = np.array([x.mean(), x.std(correction=0), x.abs().max(), *x[:8]])
        reference = arrays[f"stage/{stage}"]
        assert np.abs(found - reference).max() <= 1e-4 * reference[2], stage
