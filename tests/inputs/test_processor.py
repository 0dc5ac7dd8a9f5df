"""Images are prepared as transformers' image processors prepare them, to the last bit of every pixel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from image_encoders.errors import InputError, WeightsError
from image_encoders.inputs.image import read_image
from image_encoders.inputs.preprocessing import Patches
from image_encoders.inputs.processor import read_processor

OPENAI = {  # as OpenAI's repositories on the hub have it: older than most of today's keys
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
SIGLIP = {
    "do_rescale": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "resample": 3,
    "size": {"height": 48, "width": 48},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "openai": OPENAI,
    "clip": {"image_processor_type": "CLIPImageProcessor"},
    "clip-fast": {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 37}, "crop_size": 36},
    "crop larger than the image": {"image_processor_type": "CLIPImageProcessor", "size": 33, "crop_size": 40},
    "crop not square": {"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 200, "width": 90}},
    "square": {"image_processor_type": "CLIPImageProcessor", "size": 50, "default_to_square": True, "crop_size": 44},
    "siglip": SIGLIP,
    "siglip without keys": {"image_processor_type": "SiglipImageProcessor"},
    "siglip not square": {**SIGLIP, "size": {"height": 31, "width": 64}, "resample": 2},
    "siglip with crop": {**SIGLIP, "do_center_crop": True, "crop_size": {"height": 40, "width": 41}},
    "siglip's number is the short side": {**SIGLIP, "size": 32, "do_center_crop": True, "crop_size": 30},
    "vit's number is both sides": {"image_processor_type": "ViTImageProcessor", "size": 40},
    "vit's number as the short side": {
        "image_processor_type": "ViTImageProcessor", "size": 40, "default_to_square": False, "do_center_crop": True,
        "crop_size": 38,
    },
    "default_to_square without a size": {"image_processor_type": "CLIPImageProcessor", "default_to_square": True},
    "vit without a size": {
        "image_processor_type": "ViTImageProcessor", "default_to_square": False, "do_center_crop": True,
        "crop_size": 224,
    },
    "no normalisation, null": {**OPENAI, "do_normalize": None},
    "no rescaling, null": {**OPENAI, "do_rescale": None},
    "no resize, null": {**OPENAI, "do_resize": None, "size": None},
    "no crop, null": {**OPENAI, "do_center_crop": None, "crop_size": None, "size": {"height": 30, "width": 34}},
    "null is off": {**SIGLIP, "do_convert_rgb": None, "do_center_crop": None, "do_pad": None},
    "list size": {**SIGLIP, "size": [40, 52]},
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}},
    "lanczos": {**OPENAI, "resample": 1},
    "nearest": {**OPENAI, "resample": 0},
    "box": {**OPENAI, "resample": 4},
    "hamming": {**OPENAI, "resample": 5},
    "no resize": {**OPENAI, "do_resize": False},
    "no crop": {**SIGLIP, "do_center_crop": False},
    "no normalisation": {**OPENAI, "do_normalize": False},
    "no rescaling": {**OPENAI, "do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 61, 62]},
    "other scale": {**OPENAI, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    "chinese": {"image_processor_type": "ChineseCLIPImageProcessor"},
    "naflex": {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 16, "max_num_patches": 64},
}  # fmt: skip
SIZES = [
    (1, 1), (1, 2), (3, 1), (1, 90), (90, 1), (5, 7), (31, 33), (36, 37), (37, 36), (48, 48), (47, 49), (100, 333),
    (223, 225), (224, 224), (224, 227), (225, 224), (227, 300), (480, 640), (641, 479), (2000, 50),
]  # fmt: skip


def written(folder: Path, config: dict[str, Any], name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(json.dumps(config))
    return folder


def reference(folder: Path):
    """transformers' own processor of the folder, of the kind that works with Pillow."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, backend="pil")


def draw(height: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([height, width, seed])
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return noise if seed % 2 else np.clip(noise // 4 + np.arange(width, dtype=np.uint8)[:, None] % 190, 0, 255)


def normalised(preprocessing, prepared: np.ndarray) -> np.ndarray:
    """What `Normalized` makes of it, in numpy."""
    return preprocessing.normalised(prepared.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "naflex"])
def test_prepared_images_equal_transformers(name: str, tmp_path: Path):
    folder = written(tmp_path, CONFIGS[name])
    preprocessing, processor = read_processor(folder, "clip"), reference(folder)
    for size in SIZES:
        pixels = draw(*size)
        found = preprocessing.prepare(pixels)
        wanted = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
        assert found.dtype == np.uint8
        assert found.shape == wanted.shape
        assert all(side in (None, length) for side, length in zip(preprocessing.shape, found.shape))
        scale = max(1.0, float(np.abs(wanted).max()))
        np.testing.assert_allclose(normalised(preprocessing, found), wanted, rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("name", ["openai", "siglip"])
def test_pixels_are_equal_to_the_last_bit(name: str, tmp_path: Path):
    """Without normalisation the processor gives pixels / 255 in float32, which shows a difference of one level."""
    folder = written(tmp_path, {**CONFIGS[name], "do_normalize": False, "do_rescale": False})
    preprocessing, processor = read_processor(folder, "clip"), reference(folder)
    for size in SIZES:
        for seed in (0, 1):
            wanted = processor(Image.fromarray(draw(*size, seed)), return_tensors="np")["pixel_values"][0]
            assert np.array_equal(preprocessing.prepare(draw(*size, seed)), wanted)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    short=st.integers(1, 120),
    crop=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    resample=st.integers(0, 5),
)
def test_any_size_of_image_and_crop_equals_transformers(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, short: int, crop: tuple[int, int], resample: int
):
    config = {**OPENAI, "size": {"shortest_edge": short}, "crop_size": list(crop), "resample": resample}
    folder = written(tmp_path_factory.mktemp("any"), {**config, "do_normalize": False, "do_rescale": False})
    wanted = reference(folder)(Image.fromarray(draw(height, width)), return_tensors="np")["pixel_values"][0]
    assert np.array_equal(read_processor(folder, "clip").prepare(draw(height, width)), wanted)


@pytest.mark.parametrize("name", ["openai", "siglip"])
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "P with a key"])
def test_images_of_every_mode_equal_transformers(mode: str, name: str, tmp_path: Path):
    folder = written(tmp_path, CONFIGS[name])
    image = Image.fromarray(np.dstack([draw(60, 80), draw(60, 80, 1)[..., 0]])).convert(mode.split()[0])
    if mode == "P with a key":
        image.info["transparency"] = int(np.asarray(image)[0, 0])
    wanted = reference(folder)(image, return_tensors="np")["pixel_values"][0]
    preprocessing = read_processor(folder, "clip")
    found = preprocessing.prepare(read_image(image))
    np.testing.assert_allclose(normalised(preprocessing, found), wanted, rtol=0, atol=2e-6)


def test_patches_of_any_grid_equal_transformers(tmp_path: Path):
    folder = written(tmp_path, CONFIGS["naflex"])
    preprocessing, processor = read_processor(folder, "siglip2"), reference(folder)
    for size in [*SIZES[:-1], (1000, 20)]:
        pixels = draw(*size)
        found = preprocessing.prepare(pixels)
        wanted = processor(Image.fromarray(pixels), return_tensors="np")
        rows, columns = wanted["spatial_shapes"][0]
        assert found.shape == (3, rows * 16, columns * 16)
        patches = normalised(preprocessing, found).reshape(3, rows, 16, columns, 16)
        patches = patches.transpose(1, 3, 2, 4, 0).reshape(rows * columns, -1)
        np.testing.assert_allclose(patches, wanted["pixel_values"][0][: rows * columns], rtol=0, atol=2e-6)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), patches=st.integers(1, 1024))
def test_a_grid_of_patches_equals_transformers(height: int, width: int, patches: int):
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    assert Patches(16, patches).of(height, width) == get_image_size_for_max_num_patches(height, width, 16, patches)


def test_preparing_leaves_the_image_unchanged(tmp_path: Path):
    preprocessing = read_processor(written(tmp_path, CONFIGS["clip-fast"]), "clip")
    for size in [(36, 36), (37, 37), (100, 50)]:
        pixels = draw(*size)
        before = pixels.copy()
        prepared = preprocessing.prepare(pixels)
        assert not np.shares_memory(prepared, pixels)
        assert np.array_equal(pixels, before)


@pytest.mark.parametrize("name", ["openai", "clip-fast", "siglip", "vit", "naflex", "no resize", "lanczos"])
def test_images_that_torch_resizes_are_nearly_the_same(name: str, tmp_path: Path):
    preprocessing = read_processor(written(tmp_path, CONFIGS[name]), "siglip2" if name == "naflex" else "clip")
    for size in SIZES[:-1]:
        fast, exact = preprocessing.by_torch().prepare(draw(*size)), preprocessing.prepare(draw(*size))
        assert fast.shape == exact.shape
        assert fast.dtype == np.uint8
        assert fast.flags.c_contiguous
        assert np.abs(fast.astype(int) - exact).max() <= 2
        if name in ("no resize", "lanczos"):
            assert np.array_equal(fast, exact)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("openai", 224), ("clip-fast", 37), ("siglip", 48), ("siglip not square", 64), ("no resize", None)],
)
def test_the_short_side_is_the_largest_that_an_image_may_need(name: str, expected: int | None, tmp_path: Path):
    assert read_processor(written(tmp_path, CONFIGS[name]), "clip").short_side == expected


def test_the_short_side_of_whole_patches_depends_on_the_image(tmp_path: Path):
    assert read_processor(written(tmp_path, CONFIGS["naflex"]), "siglip2").short_side is None


def test_an_image_processor_nested_in_the_processors_file_counts_first(tmp_path: Path):
    written(tmp_path, {"image_processor_type": "CLIPImageProcessor", "size": 20, "crop_size": 20})
    written(tmp_path, {"processor_class": "CLIPProcessor"}, "processor_config.json")
    assert read_processor(tmp_path, "clip").shape == (3, 20, 20)
    written(tmp_path, {"processor_class": "SiglipProcessor", "image_processor": SIGLIP}, "processor_config.json")
    assert read_processor(tmp_path, "clip").shape == (3, 48, 48)
    assert reference(tmp_path).size["height"] == 48


def test_a_file_that_does_not_name_its_processor_is_read_as_the_models(tmp_path: Path):
    written(tmp_path, {"do_resize": True})
    assert read_processor(tmp_path, "siglip").crop is None
    assert read_processor(tmp_path, "clip").crop == (224, 224)
    with pytest.raises(WeightsError, match="the image processor '' is not supported"):
        read_processor(tmp_path, "unheard-of")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({**OPENAI, "do_pad": True}, "do_pad"),
        ({**OPENAI, "do_flip_channel_order": True}, "do_flip_channel_order"),
        ({**OPENAI, "use_square_size": True}, "use_square_size"),
        ({"image_processor_type": "EfficientNetImageProcessor"}, "EfficientNetImageProcessor"),
        ({**OPENAI, "size": {"shortest_edge": 224, "longest_edge": 300}}, "longest_edge"),
        ({**OPENAI, "size": 0}, "0 px"),
        ({**OPENAI, "size": "large"}, "large"),
        ({**OPENAI, "crop_size": {"shortest_edge": 224}}, "crop_size"),
        ({**OPENAI, "resample": 9}, "resample is 9"),
        ({**OPENAI, "image_mean": [0.5, 0.5]}, "3 colours"),
        ({**OPENAI, "rescale_factor": 0}, "division"),
        ({**OPENAI, "rescale_factor": None}, "rescale_factor is None"),
        ({**OPENAI, "size": None}, "size of None"),
        ({**OPENAI, "crop_size": None}, "size of None"),
        ({**OPENAI, "image_std": None}, "image_std is None"),
        ({**OPENAI, "resample": None}, "resample is None"),
        ({"image_processor_type": "Siglip2ImageProcessor", "do_resize": False}, "do_resize"),
    ],
)
def test_what_is_not_known_is_named(config: dict[str, Any], says: str, tmp_path: Path):
    with pytest.raises(WeightsError, match=says) as caught:
        read_processor(written(tmp_path, config), "clip")
    assert str(tmp_path / "preprocessor_config.json") in str(caught.value)


def test_a_missing_or_damaged_file_is_named(tmp_path: Path):
    with pytest.raises(WeightsError, match=r"no preprocessor_config\.json"):
        read_processor(tmp_path, "clip")
    (tmp_path / "preprocessor_config.json").write_text('{"size": 2')
    with pytest.raises(WeightsError, match=r"preprocessor_config\.json: not a JSON file"):
        read_processor(tmp_path, "clip")
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with pytest.raises(WeightsError, match="a JSON object was expected"):
        read_processor(tmp_path, "clip")


def test_a_strip_too_thin_to_be_resized_is_an_input_error(tmp_path: Path):
    preprocessing = read_processor(written(tmp_path, OPENAI), "clip")
    assert preprocessing.prepare(draw(1, 1000)).shape == (3, 224, 224)
    with pytest.raises(InputError, match="2000 x 1 is too thin") as caught:
        preprocessing.prepare(draw(1, 2000))
    assert caught.value.code == "too-thin"
