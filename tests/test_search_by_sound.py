"""Images found by sounds and by words, through a collection, with AudioCLIP.

No trained weights are at hand, so the last layers of small nets are fitted: each sound, and each word, to its image's
row. The rest is as it always is: images in files, a run into a collection, sounds and words as queries.
"""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import image_encoders as ie
from image_encoders.bulk.run import run
from image_encoders.bulk.sources import find
from image_encoders.collection import Collection
from image_encoders.encoder import Encoder
from image_encoders.models import audioclip

RATE = 44_100
HERTZ = {"bell": 3100.0, "engine": 90.0, "whistle": 1500.0, "hum": 420.0}


def sound(name: str, *, rate: int = RATE, seconds: float = 0.4, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    """A tone with two overtones, over a little noise."""
    time = np.arange(int(seconds * rate)) / rate
    wave_form = sum(0.3 / k * np.sin(2 * np.pi * k * HERTZ[name] * time) for k in (1, 2, 3))
    return (wave_form + np.random.default_rng(seed).normal(0, noise, len(time))).astype(np.float32)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(8)
    files = {}
    for i, name in enumerate(HERTZ):
        pixels = rng.integers(0, 256, (3 << i, 4 << i, 3), dtype=np.uint8)
        files[name] = folder / f"{name}.png"
        Image.fromarray(pixels).resize((320, 260), Image.Resampling.NEAREST).save(files[name])
    return files


def fit(layer_inputs: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """The smallest matrix (inputs, dim) that takes each input to its row."""
    return (torch.linalg.pinv(layer_inputs.double()) @ torch.from_numpy(rows).double()).float()


@pytest.fixture(scope="module")
def encoder(images) -> Encoder:
    """Small nets whose sounds and words lie where their images lie."""
    tiny = audioclip.tiny().assemble()
    rows = tiny.encode_image(list(images.values()))
    seen = {}
    audio, text = (tiny.tower(modality).embed.selected()._net for modality in ("audio", "text"))
    handles = [
        audio.fc.register_forward_hook(lambda layer, inputs, _: seen.setdefault("audio", []).append(inputs[0].clone())),
        text.ln_final.register_forward_hook(lambda *args: seen.setdefault("text", []).append(args[2].clone())),
    ]
    tiny.encode_audio([(sound(name), RATE) for name in HERTZ])
    tiny.encode_text(list(HERTZ))
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        audio.fc.bias.zero_()
        audio.fc.weight.copy_(fit(torch.cat(seen["audio"]), rows).T)
        text.text_projection.copy_(fit(torch.cat(seen["text"]), rows))
    return tiny


@pytest.fixture(scope="module")
def collection(encoder, images, tmp_path_factory) -> Collection:
    folder = tmp_path_factory.mktemp("search") / "collection"
    report = run(find([next(iter(images.values())).parent]), encoder, Collection.create(folder, encoder))
    assert report.encoded == len(HERTZ)
    return Collection.open(folder)


@pytest.mark.parametrize("name", HERTZ)
def test_a_sound_finds_its_image(collection, encoder, images, name):
    hits = collection.search(encoder.encode_audio([(sound(name), RATE)])[0], k=len(HERTZ))
    assert Path(hits[0].path) == images[name]
    assert hits[0].score == pytest.approx(1, abs=1e-3)
    assert hits[1].score < hits[0].score - 0.01
    assert {Path(hit.path) for hit in hits} == set(images.values())


@pytest.mark.parametrize("name", HERTZ)
def test_a_word_finds_the_image_that_its_sound_finds(collection, encoder, images, name):
    hits = collection.search(encoder.encode_text([name])[0], k=2)
    assert Path(hits[0].path) == images[name]
    assert hits[0].score == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", HERTZ)
def test_a_sound_file_at_another_rate_finds_the_same_image(collection, encoder, images, name, tmp_path):
    path = tmp_path / f"{name}.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 48_000, 0, "NONE", ""))
        file.writeframes((sound(name, rate=48_000, seed=9) * 32767).astype("<i2").tobytes())
    hits = collection.search(encoder.encode_audio([path])[0], k=1)
    assert Path(hits[0].path) == images[name]


@pytest.mark.golden
def test_a_full_size_checkpoint_is_searched_by_sound_and_words_after_loading_it_again(
    checkpoint, conformance, images, tmp_path
):
    encoder = ie.load(
        "audioclip/full",
        weights=checkpoint("audioclip"),
        vocabulary=str(conformance / "specs" / "data" / "bpe_synthetic.txt.gz"),
        device="cpu",
        precision="float32",
    )
    made = Collection.create(tmp_path / "collection", encoder)
    assert run(find([next(iter(images.values())).parent]), encoder, made).encoded == len(HERTZ)

    opened = Collection.open(tmp_path / "collection")
    recipe = json.loads(json.dumps(opened.recipe))
    options = recipe.pop("options")
    again = ie.load(recipe.pop("name"), **recipe, **options)
    assert again.fingerprint == opened.fingerprint
    rows = encoder.encode_image(list(images.values()))
    for query in (again.encode_audio([conformance / "audio" / "tones.wav"])[0], again.encode_text(["a bell"])[0]):
        cosines = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
        hits = opened.search(query, k=len(HERTZ))
        assert [Path(hit.path) for hit in hits] == [list(images.values())[i] for i in np.argsort(-cosines)]
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosines)[::-1], atol=1e-4)
