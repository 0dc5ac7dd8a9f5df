"""What every tower of every family promises, on a small random net."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from PIL import Image

from image_encoders import models
from image_encoders.encoder import Encoder, Tower
from image_encoders.engines.closeness import closeness, probes
from image_encoders.engines.openvino import multiplies_bfloat16
from image_encoders.engines.select import Runtime
from image_encoders.errors import DeviceError, InputError
from image_encoders.model import Model

MODALITIES = ("image", "text", "audio")
RATE = 44_100  # Hz
# Different batch sizes take different paths through matrix libraries: float32 rounding, and nothing more.
CLOSE = 2e-5

Place = tuple[Encoder, Tower]
UNFIT = {"image": b"not an image", "text": b"not a text", "audio": b"not a sound"}


FAMILIES = models.families()
TOWERS = [
    (family, modality)
    for family in FAMILIES
    for modality in MODALITIES
    if any(modality in variant.towers for variant in models.family(family).VARIANTS)
]


ENGINES = ("torch", "openvino")
TORCH_ALONE = [("audioclip", "text"), ("audioclip", "audio")]  # what these nets do depends on what is in a batch
PLACES = [(*tower, engine) for engine in ENGINES for tower in TOWERS if engine == "torch" or tower not in TORCH_ALONE]


@lru_cache(None)
def model(family: str) -> Model:
    return models.family(family).tiny()


@lru_cache(None)
def tiny(family: str, engine: str = "torch") -> Encoder:
    return model(family).assemble(Runtime(precision="float32", engine=engine))


@pytest.fixture(params=FAMILIES)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return tiny(request.param)


@pytest.fixture(params=PLACES, ids="-".join)
def place(request: pytest.FixtureRequest) -> Place:
    """An encoder and one of its towers."""
    family, modality, engine = request.param
    return tiny(family, engine), tiny(family, engine).tower(modality)


@pytest.mark.parametrize(("family", "modality"), TORCH_ALONE)
def test_an_engine_that_was_asked_for_and_cannot_run_a_tower_is_an_error(family: str, modality: str):
    with pytest.raises(DeviceError, match=r"OpenVINO cannot run it.*with engine='auto' it runs in torch"):
        encode(tiny(family, "openvino"), modality, sources(modality))


@pytest.mark.parametrize(("family", "modality"), [tower for tower in TOWERS if tower not in TORCH_ALONE])
def test_every_engine_gives_the_same_embeddings(family: str, modality: str):
    some = sources(modality)
    rows = [encode(tiny(family, engine), modality, some) for engine in ENGINES]
    assert np.abs(rows[0] - rows[1]).max() <= 1e-4 * np.abs(rows[0]).max()
    assert tiny(family, "openvino").fingerprint == tiny(family).fingerprint
    assert tiny(family, "openvino").engine == "openvino"


@pytest.mark.skipif(not multiplies_bfloat16(), reason="OpenVINO has no instructions for bfloat16 here")
@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_engines_give_comparable_embeddings(family: str):
    """The bounds of docs/decisions/0003."""
    low = [model(family).assemble(Runtime(precision="bfloat16", engine=engine)) for engine in ENGINES]
    by_torch, by_openvino = (encoder.encode_image(probes(24)) for encoder in low)
    assert low[0].fingerprint == low[1].fingerprint != tiny(family).fingerprint
    assert closeness(by_openvino, by_torch).cosine >= 1 - 5e-3
    assert np.abs(by_openvino - by_torch).max() <= 0.1 * np.abs(by_torch).max()


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("family", FAMILIES)
def test_prepared_images_are_embedded_in_the_encoders_precision(family: str):
    encoder = model(family).assemble(Runtime())
    same = model(family).assemble(Runtime(precision=encoder.precision, engine="torch"))
    images = sources("image")
    inputs = [encoder.tower("image").input(image).astype(np.float32) / 128 - 1 for image in images]
    limit = {"float32": CLOSE, "bfloat16": 0.1}[encoder.precision]
    found, wanted = encoder.embed_image(inputs), same.embed_image(inputs)
    assert np.abs(found - wanted).max() <= limit * np.abs(wanted).max()


def sources(modality: str) -> list[Any]:
    """Seven different things to encode, of different sizes."""
    rng = np.random.default_rng(7)
    if modality == "image":
        sizes = [(64, 64), (50, 90), (91, 47), (1, 1), (64, 64), (200, 30), (33, 34)]
        return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    if modality == "text":
        return ["a cat", "two dogs on grass", "red", "a small blue ball", "a cat", "the sea at night", "one"]
    lengths = [6_000, 9_000, 6_000, 12_345, 9_000, 6_001, 20_000]
    return [(rng.uniform(-0.5, 0.5, length).astype(np.float32), RATE) for length in lengths]


def encode(encoder: Encoder, modality: str, some: Any, **options: Any) -> np.ndarray:
    return getattr(encoder, f"encode_{modality}")(some, **options)


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= CLOSE * max(1e-30, float(np.abs(wanted).max()))


def test_embeddings_are_float32_finite_and_one_per_source(place: Place):
    encoder, tower = place
    some = sources(tower.modality)
    rows = encode(encoder, tower.modality, some)
    assert rows.shape == (len(some), encoder.dim)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert rows.flags.c_contiguous


def test_different_sources_have_different_embeddings(place: Place):
    encoder, tower = place
    rows = encode(encoder, tower.modality, sources(tower.modality))
    assert not np.allclose(rows[0], rows[1], rtol=1e-4, atol=0)


def test_an_embedding_is_the_same_alone_in_a_batch_and_in_another_order(place: Place):
    encoder, tower = place
    some = sources(tower.modality)
    rows = encode(encoder, tower.modality, some)
    for batch_size in (1, 3):
        assert_close(encode(encoder, tower.modality, some, batch_size=batch_size), rows)
    alone = np.concatenate([encode(encoder, tower.modality, [one]) for one in some])
    assert_close(alone, rows)
    order = [3, 0, 6, 2, 5, 1, 4]
    assert_close(encode(encoder, tower.modality, [some[i] for i in order]), rows[order])


def test_an_iterator_is_as_good_as_a_list(place: Place):
    encoder, tower = place
    some = sources(tower.modality)[:3]
    assert_close(encode(encoder, tower.modality, iter(some)), encode(encoder, tower.modality, some))


def test_no_sources_give_no_embeddings(place: Place):
    encoder, tower = place
    rows = encode(encoder, tower.modality, [])
    assert rows.shape == (0, encoder.dim)
    assert rows.dtype == np.float32


def test_eight_threads_agree(place: Place):
    encoder, tower = place
    some = sources(tower.modality)[:4]
    rows = encode(encoder, tower.modality, some)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: encode(encoder, tower.modality, some), range(16)):
            assert_close(found, rows)


def test_prepare_is_pure(place: Place):
    _, tower = place
    for source in sources(tower.modality):
        item = tower.read(source)
        before = [np.copy(part) for part in item] if isinstance(item, tuple) else np.copy(item)
        first, again = tower.prepare(item), tower.prepare(item)
        assert isinstance(first, np.ndarray)
        assert first.dtype == again.dtype
        assert np.array_equal(first, again)
        tower.check(first)
        after = list(item) if isinstance(item, tuple) else item
        if isinstance(before, list):
            assert all(np.array_equal(a, b) for a, b in zip(after, before))
        else:
            assert np.array_equal(after, before)


def test_prepared_inputs_and_sources_give_the_same_embeddings(place: Place):
    encoder, tower = place
    some = sources(tower.modality)
    rows = tower.embeddings([tower.input(one) for one in some])
    assert_close(rows, encode(encoder, tower.modality, some))


def test_a_wrong_source_names_its_position(place: Place):
    encoder, tower = place
    some = sources(tower.modality)
    some[2] = UNFIT[tower.modality]
    with pytest.raises(InputError) as caught:
        encode(encoder, tower.modality, some)
    assert caught.value.item == f"{tower.modality}[2]"
    assert str(caught.value).startswith(f"{tower.modality}[2]: ")
    assert caught.value.code


def test_a_wrong_source_leaves_the_encoder_usable(place: Place):
    encoder, tower = place
    some = sources(tower.modality)[:2]
    rows = encode(encoder, tower.modality, some)
    with pytest.raises(InputError):
        encode(encoder, tower.modality, [UNFIT[tower.modality]])
    assert_close(encode(encoder, tower.modality, some), rows)


def test_a_single_source_is_refused_with_the_remedy(place: Place):
    encoder, tower = place
    with pytest.raises(InputError, match=r"takes a list; wrap a single one") as caught:
        encode(encoder, tower.modality, "one.file")
    assert caught.value.code == "not-a-list"


def test_images_give_the_same_embedding_from_an_array_a_pil_image_and_a_file(encoder: Encoder, tmp_path):
    pixels = sources("image")[1]
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    with path.open("rb") as file:
        rows = encoder.encode_image([pixels, Image.fromarray(pixels), path, str(path), path.read_bytes(), file])
    for row in rows[1:]:
        assert_close(row, rows[0])


def test_a_missing_tower_is_a_clear_error(encoder: Encoder):
    for modality in set(MODALITIES) - set(encoder.modalities):
        with pytest.raises(InputError, match=rf"has no {modality} tower; it has: {encoder.modalities[0]}") as caught:
            encode(encoder, modality, [])
        assert caught.value.code == "no-tower"


def test_raw_pixels_are_not_taken_for_prepared_ones(encoder: Encoder):
    with pytest.raises(InputError, match="encode_image takes raw pixels"):
        encoder.embed_image(np.zeros((1, 3, 32, 32), np.uint8))


def test_a_tower_says_what_decides_its_inputs(place: Place):
    encoder, tower = place
    assert tower.inputs.facts
    assert json.loads(json.dumps(tower.inputs.facts)) == tower.inputs.facts
    if tower.modality == "image":
        assert tower.inputs.summary in repr(encoder)


@pytest.mark.parametrize(
    ("family", "name"), [("bit", "BIT"), ("vsepp", "PREPROCESSING"), ("audioclip", "PREPROCESSING")]
)
@pytest.mark.parametrize("change", [{"mean": (0.1, 0.2, 0.3)}, {"filter": "hamming"}])
def test_a_family_s_preprocessing_is_what_prepares_and_what_names_the_space(
    family: str, name: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    module, before = models.family(family), tiny(family).fingerprint
    other = replace(getattr(module, name), **change)
    monkeypatch.setattr(module, name, other)
    encoder = module.tiny().assemble()
    assert encoder.fingerprint != before
    assert {**encoder.tower("image").inputs.facts, "size": None} == {**other.facts(), "size": None}


def test_two_loads_of_one_net_share_a_fingerprint(encoder: Encoder):
    again = models.family(encoder.name.split("/")[0]).tiny().assemble()
    assert again.fingerprint == encoder.fingerprint
    assert len(encoder.fingerprint) == 32


def test_a_tiny_encoder_has_every_tower_of_its_family(encoder: Encoder):
    family = encoder.name.split("/")[0]
    assert set(encoder.modalities) == {modality for name, modality in TOWERS if name == family}


def test_an_encoder_names_what_runs_its_net(encoder: Encoder):
    assert (encoder.device, encoder.engine, encoder.precision) == ("cpu", "torch", "float32")
    assert encoder.name in repr(encoder)
    assert set(encoder.modalities) <= set(MODALITIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_module_says_where_it_comes_from(family: str):
    module = models.family(family)
    for heading in ("Source:", "Inputs:", "Output:", "Differs:"):
        assert heading in (module.__doc__ or ""), f"{family}: no {heading}"
    for variant in module.VARIANTS:
        assert set(variant.towers) <= set(MODALITIES)
        assert variant.dim is None or variant.dim > 0
        assert variant.weights
        assert variant.licence


@pytest.mark.parametrize("family", FAMILIES)
def test_an_option_that_a_family_does_not_have_is_refused(family: str):
    with pytest.raises(TypeError, match="no_such_option"):
        models.load(f"{family}/anything", device="cpu", no_such_option=True)
