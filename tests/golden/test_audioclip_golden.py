"""AudioCLIP equals its original: a synthetic checkpoint in the released layout, and the original code's rows for it.

Rows of prepared arrays, pixels and files, and of sounds for both statistics and amplitudes:
tests/conformance/test_cases.py.
"""

from __future__ import annotations

import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import image_encoders as ie
from image_encoders.inputs.preprocessing import PILLOW
from image_encoders.models import audioclip

pytestmark = pytest.mark.golden

CLIPS = ("tones", "bursts", "short")  # "silence" is rounding noise after a logarithm


@pytest.fixture(scope="module")
def reference(golden):
    return golden("audioclip")


@pytest.fixture(scope="module")
def tolerance(manifest):
    return manifest["cases"]["audioclip"]


@pytest.fixture(scope="module")
def load(checkpoint, conformance):
    """load(**options) -> the encoder of the synthetic checkpoint, at the precision of the reference."""
    path = checkpoint("audioclip") / audioclip.CHECKPOINTS["full"].file
    vocabulary = conformance / "specs" / "data" / "bpe_synthetic.txt.gz"

    def encoder(**options):
        return ie.load(
            "audioclip/full",
            weights=path,
            vocabulary=vocabulary,
            device="cpu",
            precision="float32",
            engine="torch",
            **options,
        )

    return encoder


@pytest.fixture(scope="module")
def encoder(load):
    return load()


@pytest.fixture(scope="module")
def per_item(load):
    return load(batch_norm="item")


@pytest.fixture(scope="module")
def wav(conformance):
    """wav(name) -> int16 samples of one of the bundle's sounds."""

    def samples(name: str) -> np.ndarray:
        with wave.open(str(conformance / "audio" / f"{name}.wav")) as file:
            return np.frombuffer(file.readframes(file.getnframes()), "<i2")

    return samples


@pytest.fixture
def stages(request):
    """stages(net, names, inputs) -> the outputs of these modules while the net embeds the inputs."""
    torch = pytest.importorskip("torch")

    def outputs(net, names, inputs):
        found = {}
        handles = [
            net.get_submodule(name).register_forward_hook(
                lambda module, args, output, name=name: found.__setitem__(name, output.numpy().copy())
            )
            for name in names
        ]
        try:
            with torch.inference_mode():
                net(torch.from_numpy(inputs))
        finally:
            for handle in handles:
                handle.remove()
        return found

    return outputs


def assert_stage_agrees(found: np.ndarray, summary: np.ndarray, rel: float) -> None:
    """summary: mean, deviation (of n - 1), max|x|, the first eight values."""
    found = found.astype(np.float64)
    mine = np.concatenate([[found.mean(), found.std(ddof=1), np.abs(found).max()], found.ravel()[:8]])
    assert np.abs(mine - summary).max() <= rel * np.abs(summary[2])


def decoded(conformance: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(conformance / "images" / "decoded" / f"{name}.png").convert("RGB"))


def test_every_stage_of_the_image_net_agrees(encoder, reference, float_inputs, stages):
    names = ["bn1", "avgpool", "layer1", "layer2", "layer3", "layer4", "attnpool"]
    found = stages(encoder.tower("image").embed._net, names, float_inputs("audioclip", "float224")[3:4])
    for name in names:
        assert_stage_agrees(found[name], reference[f"stage/{name}"], rel=2e-5)


def test_preprocessing_equals_the_originals(golden, conformance):
    reference = golden("preprocess")
    full = {key.split("/", 2)[2]: key for key in reference if key.startswith("aclip/full/")}
    for i, name in enumerate(reference["aclip/names"].tolist()):
        prepared = audioclip.PREPROCESSING.prepare(decoded(conformance, name))
        assert prepared.shape == (3, 224, 224)
        assert prepared.dtype == np.float32
        np.testing.assert_allclose(prepared[:, ::8, ::8], reference["aclip/sub"][i], rtol=0, atol=2e-5)
        np.testing.assert_allclose(prepared[:, :4, :4], reference["aclip/corner"][i], rtol=0, atol=2e-5)
        np.testing.assert_allclose(prepared.mean((1, 2)), reference["aclip/mean"][i], rtol=0, atol=2e-5)
        np.testing.assert_allclose(prepared.std((1, 2), ddof=1), reference["aclip/std"][i], rtol=0, atol=2e-5)
        if name in full:
            np.testing.assert_allclose(prepared, reference[full[name]], rtol=0, atol=2e-5)


def test_images_prepared_as_clip_does_give_the_originals_embeddings(
    encoder, reference, tolerance, conformance, assert_embeddings_agree
):
    steps = replace(audioclip.PREPROCESSING, resizer=PILLOW)
    prepared = []
    for name in reference["image/clip_pil/names"].tolist():
        pixels = steps.prepare(decoded(conformance, name))
        prepared.append(steps.normalised(pixels.astype(np.float32) / np.float32(255)))
    rows = encoder.embed_image(prepared)
    assert_embeddings_agree(
        rows, reference["image/clip_pil/out"], rel=tolerance["rel"], one_minus_cos=tolerance["one_minus_cos"]
    )


def test_texts_give_the_originals_ids_and_embeddings(encoder, reference, tolerance, assert_embeddings_agree):
    captions = reference["text/synthetic_bpe/captions"].tolist()
    tower = encoder.tower("text")
    np.testing.assert_array_equal(
        np.stack([tower.input(caption) for caption in captions]), reference["text/synthetic_bpe/ids"]
    )
    assert_embeddings_agree(
        encoder.encode_text(captions),
        reference["text/synthetic_bpe/out"],
        rel=tolerance["text_rel"],
        one_minus_cos=tolerance["text_one_minus_cos"],
    )


def test_sound_files_and_samples_give_the_originals_embeddings(
    encoder, wav, conformance, reference, tolerance, assert_embeddings_agree
):
    wanted = reference["audio/eval_bn/int16/out"][: len(CLIPS)]
    paths = [conformance / "audio" / f"{name}.wav" for name in CLIPS]
    bounds = tolerance["audio"]["eval_bn/int16"]
    assert_embeddings_agree(encoder.encode_audio(paths), wanted, **bounds)
    assert_embeddings_agree(encoder.encode_audio([path.read_bytes() for path in paths]), wanted, **bounds)
    assert_embeddings_agree(encoder.encode_audio([(wav(name), 44100) for name in CLIPS]), wanted, **bounds)


def test_a_sound_twice_in_a_batch_gives_the_originals_embeddings(
    per_item, wav, reference, tolerance, assert_embeddings_agree
):
    rows = per_item.encode_audio([(wav("tones"), 44100)] * 2)
    wanted = reference["audio/batch2_tones_tones_int16/batchstat_bn/out"]
    assert_embeddings_agree(rows, wanted, **tolerance["audio"]["batchstat_bn/int16"])


def test_a_sounds_embedding_is_the_same_beside_any_other(encoder, per_item, wav):
    tones, bursts = (wav(name)[:60_000].astype(np.float32) for name in ("tones", "bursts"))
    silence = np.zeros_like(tones)
    for tower in (encoder.tower("audio"), per_item.tower("audio")):
        alone = np.concatenate([tower.embed(one[None]) for one in (tones, silence, bursts)])
        together = tower.embed(np.stack([tones, silence, bursts]))
        np.testing.assert_allclose(together, alone, rtol=0, atol=2e-5 * np.abs(alone).max())


@pytest.mark.parametrize("name", ["tones", "bursts", "short", "silence"])
@pytest.mark.parametrize("amplitude", ["int16", "unit"])
def test_spectrograms_equal_the_originals(encoder, wav, reference, name, amplitude):
    import torch

    net = encoder.tower("audio").embed.selected()._net
    samples = wav(name).astype(np.float32) / (1 if amplitude == "int16" else 32768)
    decibels = net.spectrograms(torch.from_numpy(samples)[None, None]).numpy()
    if amplitude == "int16":
        assert decibels.shape == tuple(reference[f"audio/xdb_int16/{name}/shape"])
    sub = decibels[0, 0, :, ::31, :: max(1, decibels.shape[-1] // 8)]
    wanted = reference[f"audio/xdb_{amplitude}/{name}/sub"]
    assert sub.shape == wanted.shape
    loud = wanted > wanted.max() - 80  # what is quieter, 16-bit steps of the samples decide: rounding noise
    assert loud.any()
    np.testing.assert_allclose(sub[loud], wanted[loud], rtol=0, atol=0.02)
    if name == "short":
        full = reference[f"audio/xdb_{amplitude}/short/full"]
        assert np.median(np.abs(decibels - full)) < 1e-3


def test_every_stage_of_the_audio_net_agrees(encoder, wav, reference, stages):
    stage = [f"{kind}{i}" for i in range(1, 5) for kind in ("layer", "att")]
    names = ["bn1", "maxpool", *stage, "att5", "fc"]
    found = stages(encoder.tower("audio").embed.selected()._net, names, wav("tones").astype(np.float32)[None])
    for name in names:
        assert_stage_agrees(found[name], reference[f"stage/audio.{name}"], rel=5e-4)


def test_a_converted_checkpoint_gives_the_same_embeddings_and_fingerprint(
    load, encoder, checkpoint, conformance, tmp_path, wav
):
    from image_encoders.weights import convert

    folder = checkpoint("audioclip")
    source = tmp_path / "original.pt"
    source.symlink_to(folder / audioclip.CHECKPOINTS["full"].file)
    vocabulary = conformance / "specs" / "data" / "bpe_synthetic.txt.gz"
    (tmp_path / audioclip.VOCABULARY.file).write_bytes(vocabulary.read_bytes())
    (tmp_path / "alone").mkdir()
    converted = tmp_path / "alone" / "audioclip.safetensors"
    convert.save(converted, *audioclip.original(source))
    again = ie.load("audioclip/full", weights=converted, precision="float32", engine="torch", device="cpu")
    assert again.fingerprint == encoder.fingerprint
    image = np.random.default_rng(5).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    np.testing.assert_array_equal(again.encode_image([image]), encoder.encode_image([image]))
    np.testing.assert_array_equal(again.encode_text(["thunder"]), encoder.encode_text(["thunder"]))
    clip = (wav("short"), 44100)
    np.testing.assert_array_equal(again.encode_audio([clip]), encoder.encode_audio([clip]))
