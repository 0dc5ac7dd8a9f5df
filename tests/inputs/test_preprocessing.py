"""Images are resized as Pillow does it, or nearly; one value prepares them, names itself, and shows itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from image_encoders.errors import InputError
from image_encoders.inputs import preprocessing
from image_encoders.inputs.preprocessing import (
    BICUBIC,
    BILINEAR,
    LANCZOS,
    PILLOW,
    SAMPLED,
    TORCH,
    BothSides,
    Patches,
    Preprocessing,
    ShortSide,
    resize,
)
from image_encoders.model import fingerprint
from image_encoders.models import audioclip, bit, vsepp

HALF = (0.5, 0.5, 0.5)
CLIP = Preprocessing(ShortSide(224), BICUBIC, (224, 224), HALF, HALF)
NAFLEX = Preprocessing(Patches(16, 256), BILINEAR, None, HALF, HALF)
FAMILIES = {
    "bit": bit.BIT,
    "bit, as Jina meant": bit.JINA,
    "bit, fast": bit.BIT.fast(),
    "vsepp": vsepp.PREPROCESSING,
    "vsepp, fast": vsepp.PREPROCESSING.fast(),
    "audioclip": audioclip.PREPROCESSING,
    "clip": CLIP,
    "siglip 2 naflex": NAFLEX,
}
KERNELS = ["torch"] if find_spec("cykooz_resizer") is None else ["torch", "cykooz"]
FILTERS = [filter.name.lower() for filter in Image.Resampling]

sides = st.integers(1, 12) | st.integers(1, 100) | st.integers(1, 700)


def photo(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A smooth random image, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def kinds_of_images(height: int, width: int, seed: int) -> np.ndarray:
    """Noise, black and white, a photograph, or rows and columns added: the rounding of whole columns then agrees."""
    rng = np.random.default_rng([height, width, seed])
    if seed % 4 == 0:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if seed % 4 == 1:
        return rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255
    if seed % 4 == 2:
        return photo(height, width, seed)
    return (rng.integers(0, 128, (1, width, 3)) + rng.integers(0, 128, (height, 1, 3))).astype(np.uint8)


@contextmanager
def resizing_by(kernel: str) -> Iterator[None]:
    """In the block this kernel resizes, whichever of them is this machine's."""
    steps = {"torch": preprocessing.step_by_torch, "cykooz": preprocessing.step_by_cykooz}
    with mock.patch.object(preprocessing, "step", steps[kernel]):
        yield


def levels(pixels: np.ndarray, height: int, width: int, filter: str) -> np.ndarray:
    """By how much torch's resize, which is the same by each kernel, differs from Pillow's."""
    exact = resize(pixels, height, width, filter, PILLOW)
    found = []
    for kernel in KERNELS:
        with resizing_by(kernel):
            found.append(resize(pixels, height, width, filter, TORCH))
        assert np.array_equal(found[0], found[-1])
    assert found[0].dtype == exact.dtype == np.uint8
    assert found[0].shape == exact.shape == (height, width, 3)
    return np.abs(found[0].astype(int) - exact)


# ------------------------------------------------------------------ resizing


@pytest.mark.parametrize("filter", FILTERS)
def test_resized_images_are_pillows(filter: str):
    for height, width in ((48, 64), (31, 33), (200, 7), (1, 1)):
        wanted = np.asarray(Image.fromarray(photo()).resize((width, height), Image.Resampling[filter.upper()]))
        assert np.array_equal(resize(photo(), height, width, filter), wanted)


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from([BILINEAR, BICUBIC]), st.integers(0, 99))
def test_torch_resizes_to_within_two_levels_of_pillow_at_any_size(height, width, new_height, new_width, filter, seed):
    assert levels(kinds_of_images(height, width, seed), new_height, new_width, filter).max() <= 2


@settings(max_examples=100, deadline=None)
@given(sides, sides, sides, st.booleans(), st.sampled_from([BILINEAR, BICUBIC]), st.integers(0, 99))
def test_torch_resizes_along_one_axis_to_within_one_level(height, width, new, across, filter, seed):
    new_height, new_width = (height, new) if across else (new, width)
    assert levels(kinds_of_images(height, width, seed), new_height, new_width, filter).max() <= 1


@pytest.mark.parametrize("filter", [BILINEAR, BICUBIC])
@pytest.mark.parametrize("seed", range(4))
def test_hardly_any_value_of_torch_s_differs_by_more_than_one_level(seed: int, filter: str):
    sizes = [(480, 640), (500, 333), (768, 1024), (427, 640), (361, 900)]
    images = [kinds_of_images(*size, seed + 4 * i) for i, size in enumerate(sizes)]
    found = [levels(pixels, *ShortSide(224).of(*pixels.shape[:2]), filter).ravel() for pixels in images]
    assert np.mean(np.concatenate(found) > 0) < 0.01
    assert np.mean(np.concatenate(found) > 1) < 5e-5


@pytest.mark.parametrize("size", [(480, 640), (300, 200), (1, 1)])
def test_an_image_that_has_the_size_already_is_copied(size: tuple[int, int]):
    pixels = photo(*size)
    assert not levels(pixels, *size, BICUBIC).any()
    for kernel in KERNELS:
        with resizing_by(kernel):
            assert not np.shares_memory(resize(pixels, *size, BICUBIC, TORCH), pixels)


def test_torch_takes_any_memory_and_leaves_it_unchanged():
    pixels = photo(60, 80)
    constant = pixels.copy()
    constant.flags.writeable = False
    one = pixels[:1]
    for view in (
        constant,
        pixels[::-1],
        pixels[:, ::-1],
        pixels[::2, 1::3],
        pixels[..., ::-1],
        pixels.transpose(1, 0, 2),
        np.asfortranarray(pixels),
        one[::-1],
        one.transpose(1, 0, 2)[:, ::-1],
        np.broadcast_to(one, pixels.shape),
    ):
        before = view.copy()
        assert levels(view, 33, 21, BICUBIC).max() <= 2
        assert np.array_equal(view, before)


def test_torch_s_resize_never_passes_through_pillow(monkeypatch: pytest.MonkeyPatch):
    tall, wide, usual = photo(900, 300), photo(300, 900), photo(480, 640)
    monkeypatch.setattr(Image, "fromarray", None)
    for pixels, height, width in ((usual, 224, 298), (tall, 448, 224), (wide, 224, 448), (tall, 448, 200)):
        for filter in (BILINEAR, BICUBIC):
            for kernel in KERNELS:
                with resizing_by(kernel):
                    assert resize(pixels, height, width, filter, TORCH).shape == (height, width, 3)


DIGEST = """
import hashlib, numpy as np
from image_encoders.inputs import preprocessing
from image_encoders.inputs.preprocessing import BICUBIC, BILINEAR, TORCH, resize
preprocessing.step = preprocessing.step_by_torch
rng, digest = np.random.default_rng(0), hashlib.sha256()
for height, width, new_height, new_width in rng.integers(1, 300, (40, 4)):
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    for filter in (BILINEAR, BICUBIC):
        digest.update(resize(pixels, int(new_height), int(new_width), filter, TORCH).tobytes())
print(digest.hexdigest())
"""


def test_torch_resizes_alike_on_processors_with_and_without_vector_instructions():
    found = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        ).stdout
        for capability in ("default", "avx2", "avx512")
    }
    assert len(found) == 1


@pytest.mark.parametrize("seed", range(4))
def test_the_kernel_that_is_there_at_once_resizes_alike_with_every_kind_of_instructions(
    seed: int, monkeypatch: pytest.MonkeyPatch
):
    fast = pytest.importorskip("cykooz_resizer")
    kinds = [fast.CpuExtensions.none, fast.Resizer().cpu_extensions]
    for height, width, new_height, new_width in np.random.default_rng(seed).integers(1, 700, (10, 4)).tolist():
        pixels = kinds_of_images(height, width, seed)
        for filter in (BILINEAR, BICUBIC):
            found = []
            for kind in kinds:
                with monkeypatch.context() as patch, resizing_by("cykooz"):
                    patch.setattr(fast, "Resizer", partial(resizer_with, fast.Resizer, kind))
                    found.append(resize(pixels, new_height, new_width, filter, TORCH))
            assert np.array_equal(*found)


def resizer_with(make: Any, extensions: Any) -> Any:
    made = make()
    made.cpu_extensions = extensions
    return made


def test_lower_precision_resizes_without_importing_torch():
    program = """
import sys, numpy as np
from image_encoders.inputs.preprocessing import BICUBIC, TORCH, Preprocessing, ShortSide
steps = Preprocessing(ShortSide(24), BICUBIC, (24, 24), (0.5,) * 3, (0.5,) * 3, resizer=TORCH)
assert steps.prepare(steps.read(np.zeros((48, 64, 3), np.uint8))).shape == (3, 24, 24)
print("torch" in sys.modules)
"""
    pytest.importorskip("cykooz_resizer")
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.split() == ["False"]


@pytest.mark.parametrize("resizer", [PILLOW, TORCH])
def test_an_image_too_thin_to_be_resized_is_an_input_error(resizer: str):
    with pytest.raises(InputError, match="300 x 2 is too thin") as caught:
        resize(photo(2, 300), 2**14, 2**13, BICUBIC, resizer)
    assert caught.value.code == "too-thin"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux does")
def test_torch_starts_no_threads_to_resize_where_it_has_vector_instructions():
    program = """
import os, numpy as np, torch
from image_encoders.inputs import preprocessing
from image_encoders.inputs.preprocessing import BICUBIC, TORCH, resize
preprocessing.step = preprocessing.step_by_torch
torch.set_num_threads(8)
before = len(os.listdir("/proc/self/task"))
resize(np.zeros((2000, 2000, 3), np.uint8), 224, 224, BICUBIC, TORCH)
more = len(os.listdir("/proc/self/task")) - before
print(more if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 0)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.split() == ["0"]


# ------------------------------------------------------------------ sizes and crops


@pytest.mark.parametrize(
    ("size", "image", "becomes"),
    [
        (ShortSide(224), (480, 640), (224, 298)),
        (ShortSide(224), (641, 479), (299, 224)),
        (ShortSide(224, "round"), (480, 640), (224, 299)),
        (ShortSide(256), (256, 256), (256, 256)),
        (BothSides(480, 481), (96, 96), (480, 481)),
        (BothSides(480, 480, 96 * 96, 128), (96, 96), (480, 480)),
        (BothSides(480, 480, 96 * 96, 128), (95, 97), (128, 128)),
        (Patches(16, 256), (100, 100), (256, 256)),
    ],
)
def test_the_size_that_an_image_becomes(size: Any, image: tuple[int, int], becomes: tuple[int, int]):
    assert size.of(*image) == becomes


SPARES = [(0, 0, 0, 0), (1, 0, 0, 0), (3, 1, 2, 1), (5, 2, 2, 2), (-1, -1, 0, 0), (-3, -2, -2, -1)]


@pytest.mark.parametrize(("spare", "floor", "half_to_even", "truncated"), SPARES)
def test_the_corner_of_a_crop_is_rounded_as_it_says(spare: int, floor: int, half_to_even: int, truncated: int):
    row = np.arange(1, 41, dtype=np.uint8)[None, :, None].repeat(3, 2)
    for corner, first in (("floor", floor), ("round", half_to_even), ("truncate", truncated)):
        found = Preprocessing(None, "", (1, 40 - spare), HALF, HALF, corner=corner).prepare(row)[0, 0]
        inside = row[0, max(first, 0) : max(first, 0) + 40 - spare, 0]
        assert np.array_equal(found[max(-first, 0) :][: len(inside)], inside)
        assert found.sum() == inside.sum()  # the rest is black


def test_colours_come_in_the_order_that_the_net_wants():
    pixels = photo()
    assert np.array_equal(replace(CLIP, colours="BGR").prepare(pixels), CLIP.prepare(pixels)[::-1])


def test_sampled_images_are_normalised_floats_of_the_size_that_the_crop_says():
    steps = replace(CLIP, resizer=SAMPLED, crop=(60, 80), corner="round")
    prepared = steps.prepare(photo(300, 240))
    assert (prepared.shape, prepared.dtype) == ((3, 60, 80), np.float32)
    assert replace(steps, crop=None).prepare(photo(300, 240)).shape == (3, 280, 224)
    assert np.allclose(
        replace(steps, mean=(0, 0, 0), std=(1, 1, 1)).prepare(photo(300, 240)), prepared / 2 + 0.5, atol=1e-6
    )


# ------------------------------------------------------------------ one value


@pytest.mark.parametrize("name", FAMILIES)
def test_in_low_precision_torch_resizes_where_it_has_the_filter(name: str):
    spec = FAMILIES[name].inputs()
    assert spec.at("float32") is spec
    low = spec.at("bfloat16")
    expected = TORCH if FAMILIES[name].filter in (BILINEAR, BICUBIC) else PILLOW
    assert low.facts["resizer"] == (SAMPLED if name == "audioclip" else expected)
    assert low is spec.at("int8")
    assert low.at("bfloat16") is low
    assert {**low.facts, "resizer": ""} == {**spec.facts, "resizer": ""}
    assert low.shape == spec.shape


def test_a_filter_that_torch_lacks_stays_pillow_s():
    assert replace(CLIP, filter=LANCZOS).inputs().low_precision is None
    assert replace(CLIP, filter=LANCZOS).fast().resizer == PILLOW
    assert replace(CLIP, size=None).inputs().low_precision is None


def changed(value: Any) -> list[Any]:
    """`value` with one of its numbers, words or switches changed, in all ways."""
    if is_dataclass(value):
        return [
            replace(value, **{one.name: other})  # type: ignore[type-var]
            for one in fields(value)
            for other in changed(getattr(value, one.name))
        ]
    if isinstance(value, tuple):
        return [(*value[:i], other, *value[i + 1 :]) for i, one in enumerate(value) for other in changed(one)]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value + 1]
    return [f"another {value}"]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_number_of_a_preprocessing_can_change_without_its_fingerprint(name: str):
    steps = FAMILIES[name]
    others = [steps, *changed(steps), replace(steps, size=None), replace(steps, crop=(7, 7)), steps.fast()]
    found = {fingerprint(**other.facts()): other for other in others}
    assert len(found) == len(set(map(repr, others)))
    assert len(others) > 12


@pytest.mark.parametrize("name", FAMILIES)
def test_a_preprocessing_shows_every_step(name: str):
    steps, shown = FAMILIES[name], str(FAMILIES[name])
    assert steps.filter in shown
    assert steps.resizer in shown
    assert "RGB" in shown
    assert ("smaller scale" in shown) == steps.scaled_decoding
    if steps.crop:
        assert f"central {steps.crop[0]} x {steps.crop[1]} (corner: {steps.corner})" in shown
    assert "\n" not in shown


@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_has_the_shape_that_is_promised(name: str):
    steps = FAMILIES[name]
    for size in ((300, 200), (90, 95), (640, 480)):
        pixels = photo(*size)
        before = pixels.copy()
        for one in (steps, steps.by_torch()):
            prepared = one.prepare(pixels)
            assert all(side in (None, length) for side, length in zip(one.shape, prepared.shape, strict=True))
            assert prepared.flags.c_contiguous
            assert not np.shares_memory(prepared, pixels)
        assert np.array_equal(pixels, before)


@pytest.mark.parametrize("page", ["bit", "vsepp", "audioclip", "clip"])
def test_the_page_of_a_family_shows_its_preprocessing(page: str):
    steps = {
        "bit": bit.BIT,
        "vsepp": vsepp.PREPROCESSING,
        "audioclip": audioclip.PREPROCESSING,
        "clip": replace(audioclip.PREPROCESSING, corner="floor", resizer=PILLOW),  # of OpenAI's checkpoints
    }
    assert f" {steps[page]}\n" in (Path(__file__).parents[2] / "docs" / f"{page}.md").read_text()
