"""CLIP's rows and preprocessing equal transformers', by the stored rows of the conformance bundle.

Rows of the true size's prepared arrays, pixels and files: tests/conformance/test_cases.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import image_encoders as ie
from image_encoders.inputs.processor import DEFAULTS, read_processor

TINY = ["clip-tiny-quickgelu", "clip-tiny-gelu"]
CASES = [*TINY, pytest.param("clip-vit-b32", marks=pytest.mark.golden)]
tiny = pytest.mark.parametrize("case", TINY, indirect=True, scope="module")
# Files whose decoders may differ by one level between versions, and what the bundle allows for that.
LOSSY, LOSSY_COSINE = (".jpg", ".webp"), 1e-3
# A file's pixels are those of this decoded variant.
FILES = {
    "animated.gif": "rgb",
    "cmyk.jpg": "rgb",
    "exif_rotated.jpg": "exif",
    "gray.png": "rgb",
    "gray16.png": "scaled",
    "one_pixel.png": "rgb",
    "palette.png": "white",
    "photo.webp": "rgb",
    "rgb.jpg": "rgb",
    "rgb_odd.png": "rgb",
    "rgba.png": "white",
    "wide.png": "rgb",
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def encoder(case: str, checkpoint: Callable[[str], Path]) -> ie.Encoder:
    return ie.load("clip", weights=checkpoint(case), device="cpu", precision="float32", engine="torch")


@pytest.fixture
def tolerance(case: str, manifest: dict[str, Any]) -> dict[str, float]:
    found = manifest["cases"][case]
    return {"rel": found["rel"], "one_minus_cos": found["one_minus_cos"]}


def decoded(conformance: Path, names: list[str]) -> list[np.ndarray]:
    return [np.array(Image.open(conformance / "images" / "decoded" / f"{name}.png")) for name in names]


@tiny
def test_prepared_arrays(encoder, case, golden, float_inputs, tolerance, assert_embeddings_agree):
    inputs, rows = float_inputs(case, "float224"), golden(case)["float224/out"]
    assert_embeddings_agree(encoder.embed_image(inputs), rows, **tolerance)
    assert_embeddings_agree(encoder.embed_image(inputs.transpose(0, 2, 3, 1)), rows, **tolerance)
    assert_embeddings_agree(encoder.embed_image(inputs, batch_size=1), rows, **tolerance)


def test_embeddings_are_as_close_to_the_truth_as_the_reference(encoder, case, golden, float_inputs, tolerance):
    truth = golden(case)["float224/out_f64"]
    error = np.abs(encoder.embed_image(float_inputs(case, "float224")) - truth).max() / np.abs(truth).max()
    assert error <= tolerance["rel"]


@tiny
def test_pixels(encoder, case, golden, conformance, tolerance, assert_embeddings_agree):
    stored = golden(case)
    arrays = decoded(conformance, list(stored["image/clip_hf/names"]))
    assert_embeddings_agree(encoder.encode_image(arrays), stored["image/clip_hf/out"], **tolerance)
    assert_embeddings_agree(
        encoder.encode_image(map(Image.fromarray, arrays)), stored["image/clip_hf/out"], **tolerance
    )


@tiny
def test_files(encoder, case, golden, conformance, tolerance, assert_embeddings_agree):
    stored = golden(case)
    names = list(stored["image/clip_hf/names"])
    paths = [conformance / "images" / name for name in FILES]
    wanted = stored["image/clip_hf/out"][[names.index(f"{name}.{variant}") for name, variant in FILES.items()]]
    rows = encoder.encode_image(paths)
    assert np.array_equal(rows, encoder.encode_image([path.read_bytes() for path in paths]))
    exact = [not name.endswith(LOSSY) for name in FILES]
    assert_embeddings_agree(rows[exact], wanted[exact], **tolerance)
    assert_embeddings_agree(rows, wanted, rel=1, one_minus_cos=LOSSY_COSINE)


def test_token_ids(encoder, case, golden):
    stored = golden(case)
    length = stored["text/ids"].shape[1]
    for caption, wanted in zip(stored["text/captions"], stored["text/ids"]):
        found = encoder.tower("text").input(str(caption))
        assert len(found) in (*range(8, 77, 8), 77)
        assert found.dtype == np.int64
        padded = np.full(max(len(found), length), wanted.max())  # with the end, the highest id
        padded[: len(found)] = found
        assert np.array_equal(padded[:length], wanted)
        assert (padded[length:] == wanted.max()).all()


def test_texts(encoder, case, golden, manifest, assert_embeddings_agree):
    stored, tolerances = golden(case), manifest["cases"][case]
    rows = encoder.encode_text([str(caption) for caption in stored["text/captions"]])
    limits = {"rel": tolerances["text_rel"], "one_minus_cos": tolerances["text_one_minus_cos"]}
    assert_embeddings_agree(rows, stored["text/out"], **limits)
    assert np.abs(rows - stored["text/out_f64"]).max() <= limits["rel"] * np.abs(stored["text/out_f64"]).max()
    if "text_real_bpe/ids" in stored:
        assert_embeddings_agree(
            encoder.tower("text").embed(stored["text_real_bpe/ids"]), stored["text_real_bpe/out"], **limits
        )


def test_preprocessing_before_the_net(golden, conformance, checkpoint):
    """Steps `clip_hf`, as the checkpoint's own configuration asks for them."""
    preprocessing = read_processor(checkpoint("clip-tiny-gelu"), "clip")
    compare(golden("preprocess"), "clip_hf", conformance, preprocessing.prepare)


def test_the_steps_of_openais_own_code(golden, conformance, checkpoint):
    """Steps `clip_pil`: the corner of the crop is rounded half to even."""

    preprocessing = replace(read_processor(checkpoint("clip-tiny-gelu"), "clip"), corner="round")
    compare(golden("preprocess"), "clip_pil", conformance, preprocessing.prepare)


def compare(stored: dict, steps: str, conformance: Path, prepare: Callable[[np.ndarray], np.ndarray]) -> None:
    colours = DEFAULTS["CLIP"]
    mean = np.array(colours["image_mean"], np.float32)[:, None, None]
    std = np.array(colours["image_std"], np.float32)[:, None, None]
    names = [str(name) for name in stored[f"{steps}/names"]]
    found = np.stack(
        [(prepare(pixels).astype(np.float32) / 255 - mean) / std for pixels in decoded(conformance, names)]
    )
    limit = {"rtol": 0, "atol": 2e-6}
    np.testing.assert_allclose(found[:, :, ::8, ::8], stored[f"{steps}/sub"], **limit)
    np.testing.assert_allclose(found[:, :, :4, :4], stored[f"{steps}/corner"], **limit)
    np.testing.assert_allclose(found.mean((2, 3)), stored[f"{steps}/mean"], **limit)
    np.testing.assert_allclose(found.std((2, 3)), stored[f"{steps}/std"], **limit)
    whole = names.index("rgb_odd.png.rgb")
    np.testing.assert_allclose(found[whole], stored[f"{steps}/full/rgb_odd.png.rgb"], **limit)


def test_raw_pixels_and_their_normalised_floats_give_the_same_embeddings(
    encoder, conformance, tolerance, assert_embeddings_agree
):
    pixels = decoded(conformance, ["rgb_odd.png.rgb", "rgb.jpg.rgb"])
    tower = encoder.tower("image")
    prepared = np.stack([tower.input(one) for one in pixels])
    assert prepared.dtype == np.uint8
    colours = DEFAULTS["CLIP"]
    mean = np.array(colours["image_mean"], np.float32)[:, None, None]
    std = np.array(colours["image_std"], np.float32)[:, None, None]
    floats = (prepared.astype(np.float32) / 255 - mean) / std
    assert_embeddings_agree(encoder.encode_image(pixels), encoder.embed_image(floats), rel=1e-6, one_minus_cos=1e-12)
