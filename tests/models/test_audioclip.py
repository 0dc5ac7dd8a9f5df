"""AudioCLIP from its checkpoint to rows: what is loaded, what is refused, what the options do. Small nets only."""

from __future__ import annotations

import gzip
import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import image_encoders as ie
from image_encoders.errors import InputError, UnknownModel, WeightsError
from image_encoders.models import audioclip
from image_encoders.weights import convert

MERGES = ["t h", "th e</w>", "i n", "in g</w>"]
CHECKPOINT = audioclip.CHECKPOINTS["full"].file
RATE = 44_100
SMALL = {"layers": (1, 1, 1, 1), "width": 8, "groups": 2, "ids": 600, "text_width": 32, "text_layers": 1}


@pytest.fixture(autouse=True)
def small_nets(monkeypatch):
    """`load` builds small nets, and nothing is fetched."""
    monkeypatch.setattr(audioclip, "_nets", partial(audioclip._nets, **SMALL))
    monkeypatch.setattr(audioclip, "IDS", SMALL["ids"])
    monkeypatch.setenv("IMAGE_ENCODERS_OFFLINE", "1")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A checkpoint of small nets, with the released names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        nets = audioclip._nets(**SMALL)
        for net in (nets["image"], nets["audio"]):
            for module in net.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.uniform_(-0.1, 0.1)
                    module.running_var.uniform_(0.5, 2)
    places = {"image.": "visual.", "audio.": "audio.", "text.": ""}
    tensors = {}
    for name, tensor in nets.state_dict().items():
        tower = name.partition(".")[0] + "."
        tensors[places[tower] + name.removeprefix(tower)] = tensor
    scales = {f"logit_scale{suffix}": torch.tensor(4.6052) for suffix in ("", "_ai", "_at")}
    return {**tensors, **scales}


@pytest.fixture
def folder(tmp_path, state) -> Path:
    """A folder with a checkpoint and a vocabulary, as the release has them."""
    torch.save(state, tmp_path / CHECKPOINT)
    write_vocabulary(tmp_path / audioclip.VOCABULARY.file, MERGES)
    return tmp_path


def write_vocabulary(path: Path, merges: list[str]) -> Path:
    path.write_bytes(gzip.compress("\n".join(["#version: 0.2", *merges]).encode(), mtime=0))
    return path


def load(weights: Path, **options):
    return ie.load("audioclip/full", weights=weights, device="cpu", precision="float32", engine="torch", **options)


def images(count: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(6)
    return [rng.integers(0, 256, (40 + 30 * i, 60, 3), dtype=np.uint8) for i in range(count)]


def sound(seconds: float = 0.2, seed: int = 0, channels: int | None = None) -> np.ndarray:
    shape = (int(seconds * RATE),) if channels is None else (channels, int(seconds * RATE))
    return np.random.default_rng(seed).uniform(-0.8, 0.8, shape).astype(np.float32)


# ---------------------------------------------------------------- loading


def test_a_checkpoint_gives_three_towers_into_one_space(folder):
    encoder = load(folder / CHECKPOINT)
    assert encoder.name == "audioclip/full"
    assert encoder.modalities == ("image", "text", "audio")
    assert encoder.dim == 1024
    for rows in (
        encoder.encode_image(images()),
        encoder.encode_text(["the thing", "a cat"]),
        encoder.encode_audio([(sound(), RATE), (sound(seed=1), RATE)]),
    ):
        assert rows.shape == (2, 1024)
        assert np.isfinite(rows).all()


def test_the_folder_of_a_checkpoint_will_do(folder):
    assert load(folder).fingerprint == load(folder / CHECKPOINT).fingerprint
    with pytest.raises(WeightsError, match=r"no AudioCLIP-Partial-Training\.pt in this folder"):
        ie.load("audioclip/partial", weights=folder)


def test_the_full_and_the_partial_checkpoint_load_alike(folder):
    (folder / CHECKPOINT).rename(folder / audioclip.CHECKPOINTS["partial"].file)
    encoder = ie.load("audioclip/partial", weights=folder)
    assert encoder.name == "audioclip/partial"
    assert encoder.modalities == ("image", "text", "audio")


def test_a_variant_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(UnknownModel, match="audioclip/full"):
        ie.load("audioclip/ful")


@pytest.mark.parametrize(
    ("option", "value"),
    [("amplitude", "int8"), ("batch_norm", "eval"), ("channels", "stereo"), ("max_seconds", 0), ("max_seconds", "9")],
)
def test_an_options_wrong_value_is_answered_with_what_is_accepted(folder, option, value):
    with pytest.raises(InputError, match=rf"{option} is {value!r}; .*accepted") as caught:
        load(folder, **{option: value})
    assert caught.value.code == "option"


def test_names_that_are_missing_and_left_over_are_both_listed(tmp_path, state):
    wrong = dict(state)
    del wrong["visual.attnpool.c_proj.bias"], wrong["ln_final.weight"]
    wrong["audio.fbsp.more"] = torch.zeros(3)
    torch.save(wrong, tmp_path / "wrong.pt")
    with pytest.raises(WeightsError) as caught:
        load(tmp_path / "wrong.pt")
    message = str(caught.value)
    assert "2 missing" in message
    assert "attnpool.c_proj.bias" in message
    assert "ln_final.weight" in message
    assert "1 not part of this net (audio.fbsp.more)" in message


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path, state):
    wrong = {**state, "audio.fbsp.bias": torch.zeros(1025, 2), "text_projection": torch.zeros(32, 512)}
    torch.save(wrong, tmp_path / "wrong.pt")
    with pytest.raises(WeightsError) as caught:
        load(tmp_path / "wrong.pt")
    assert "audio.fbsp.bias is float32 (1025, 2), wanted float32 (0,)" in str(caught.value)
    assert "text_projection is float32 (32, 512), wanted float32 (32, 1024)" in str(caught.value)


def test_a_checkpoint_that_holds_something_else_is_refused(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match=r"list\.pt: holds a list; wanted the released \.pt"):
        load(tmp_path / "list.pt")


def test_a_cut_checkpoint_is_refused(folder):
    path = folder / CHECKPOINT
    content = path.read_bytes()
    for share in (0.0, 0.3, 0.99):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(WeightsError, match=CHECKPOINT):
            load(path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.pt"):
        load(tmp_path / "none.pt")


def test_without_weights_and_network_the_message_says_what_to_fetch(monkeypatch, tmp_path):
    monkeypatch.setenv("IMAGE_ENCODERS_CACHE", str(tmp_path))
    url = "https://github.com/AndreyGuzhov/AudioCLIP/releases/download/v0.1/AudioCLIP-Partial-Training.pt"
    with pytest.raises(WeightsError, match=url):
        ie.load("audioclip/partial")
    with pytest.raises(WeightsError, match=url):
        audioclip.fetch("partial")


# ---------------------------------------------------------------- fingerprints and conversion


def test_whatever_changes_embeddings_changes_the_fingerprint(folder, tmp_path, state):
    same = load(folder).fingerprint
    assert load(folder).fingerprint == same
    assert load(folder, truncate=True, max_seconds=5).fingerprint == same  # these refuse or cut; rows stay
    others = [
        load(folder, amplitude="unit").fingerprint,
        load(folder, batch_norm="item").fingerprint,
        load(folder, channels="sum").fingerprint,
        load(folder, vocabulary=write_vocabulary(tmp_path / "other.gz", ["a n"])).fingerprint,
    ]
    torch.save({**state, "ln_final.bias": state["ln_final.bias"] + 1}, folder / CHECKPOINT)
    others.append(load(folder).fingerprint)
    assert len({same, *others}) == 6


def test_a_converted_checkpoint_carries_its_vocabulary_and_gives_the_same_embeddings(folder, tmp_path):
    converted = tmp_path / "elsewhere" / "audioclip.safetensors"
    convert.save(converted, *audioclip.original(folder / CHECKPOINT))
    original, again = load(folder), load(converted)
    assert again.fingerprint == original.fingerprint
    np.testing.assert_array_equal(again.encode_image(images()), original.encode_image(images()))
    np.testing.assert_array_equal(again.encode_text(["the thing"]), original.encode_text(["the thing"]))
    clips = [(sound(), RATE)]
    np.testing.assert_array_equal(again.encode_audio(clips), original.encode_audio(clips))


def test_a_converted_file_of_another_family_is_refused(folder, tmp_path):
    tensors, _ = audioclip.original(folder / CHECKPOINT)
    convert.save(tmp_path / "bit.safetensors", tensors, {"family": "bit"})
    with pytest.raises(WeightsError, match="a checkpoint of 'bit'; 'audioclip' was expected"):
        load(tmp_path / "bit.safetensors")


# ---------------------------------------------------------------- texts


def test_the_vocabulary_beside_the_weights_is_used_unless_one_is_given(folder, tmp_path):
    beside = load(folder).tower("text").input("the")
    np.testing.assert_array_equal(beside[:4], [512 + 4, 512 + 1, 512 + 5, 0])
    given = write_vocabulary(tmp_path / "given.gz", ["a n"])
    np.testing.assert_array_equal(
        load(folder, vocabulary=str(given)).tower("text").input("the")[:5],
        [513, ord("t") - 33, ord("h") - 33, 256 + ord("e") - 33, 514],
    )


def test_without_a_vocabulary_only_texts_fail_and_say_what_they_need(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("IMAGE_ENCODERS_CACHE", str(tmp_path / "cache"))
    with_it = load(folder)
    (folder / audioclip.VOCABULARY.file).unlink()
    encoder = load(folder)
    np.testing.assert_array_equal(encoder.encode_image(images()), with_it.encode_image(images()))
    assert encoder.encode_audio([(sound(), RATE)]).shape == (1, 1024)
    with pytest.raises(WeightsError, match=r"vocabulary=PATH.*bpe_simple_vocab_16e6\.txt\.gz"):
        encoder.encode_text(["the thing"])


def test_the_published_vocabulary_counts_in_the_fingerprint_before_it_is_fetched(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("IMAGE_ENCODERS_CACHE", str(tmp_path / "cache"))
    vocabulary = folder / audioclip.VOCABULARY.file
    digest = hashlib.sha256(vocabulary.read_bytes()).hexdigest()
    beside = load(folder).fingerprint
    vocabulary.unlink()
    assert load(folder).fingerprint != beside
    published = audioclip.VOCABULARY._replace(sha256=digest)
    monkeypatch.setattr(audioclip, "VOCABULARY", published)
    assert load(folder).fingerprint == beside


def test_a_vocabulary_that_is_larger_than_the_embedding_table_is_refused(folder, tmp_path):
    large = write_vocabulary(tmp_path / "large.gz", [f"a{i} b" for i in range(100)])
    with pytest.raises(WeightsError, match=r"large\.gz: a vocabulary of 614 tokens; .* has embeddings of 600"):
        load(folder, vocabulary=large)


def test_a_damaged_or_missing_vocabulary_is_named(folder, tmp_path):
    cut = tmp_path / "cut.gz"
    cut.write_bytes((folder / audioclip.VOCABULARY.file).read_bytes()[:20])
    for path in (cut, tmp_path / "none.gz"):
        with pytest.raises(WeightsError, match=path.name):
            load(folder, vocabulary=path)


def test_long_texts_are_refused_or_cut_as_asked(folder):
    text = "the " * 100
    with pytest.raises(InputError, match=r"text\[1\]: a text of 102 tokens; the model takes 77") as caught:
        load(folder).encode_text(["a cat", text])
    assert caught.value.code == "too-long"
    cut = load(folder, truncate=True).tower("text").input(text)
    assert cut.shape == (77,)
    assert cut.dtype == np.int64
    assert cut[-1] == 517


def test_an_empty_text_has_an_embedding(folder):
    assert np.isfinite(load(folder).encode_text([""])).all()


# ---------------------------------------------------------------- images and sounds


def test_float_images_go_straight_to_the_net(folder):
    encoder = load(folder)
    prepared = np.stack([audioclip.PREPROCESSING.prepare(pixels) for pixels in images()])
    np.testing.assert_allclose(encoder.embed_image(prepared), encoder.encode_image(images()), atol=1e-5)
    channels_last = prepared.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(encoder.embed_image(channels_last), encoder.encode_image(images()), atol=1e-5)
    with pytest.raises(InputError, match="3 x 224 x 224"):
        encoder.embed_image(prepared[:, :, :200])


def test_samples_reach_the_net_at_the_amplitude_of_its_training(folder):
    samples = sound()
    np.testing.assert_array_equal(load(folder).tower("audio").input((samples, RATE)), samples * 32768)
    unit = load(folder, amplitude="unit").tower("audio")
    np.testing.assert_array_equal(unit.input((samples, RATE)), samples)


def test_any_rate_is_resampled_to_the_nets(folder):
    tower = load(folder).tower("audio")
    time = np.arange(24_000) / 48_000
    tone = (0.5 * np.sin(2 * np.pi * 500 * time)).astype(np.float32)
    found = tower.input((tone, 48_000))
    assert abs(len(found) - 22_050) <= 1
    wanted = 0.5 * 32768 * np.sin(2 * np.pi * 500 * np.arange(22_050) / RATE)
    np.testing.assert_allclose(found[3000:19_000], wanted[3000:19_000], atol=60)


def test_channels_are_mixed_or_their_features_summed(folder):
    stereo = sound(channels=2)
    mixed, summed = load(folder), load(folder, channels="sum")
    middle = stereo.mean(0, dtype=np.float32)
    np.testing.assert_allclose(
        mixed.encode_audio([(stereo, RATE)]), mixed.encode_audio([(middle, RATE)]), rtol=1e-4, atol=1e-4
    )
    assert summed.tower("audio").input((stereo, RATE)).shape == (2, stereo.shape[1])
    both = summed.encode_audio([(stereo, RATE)])[0]
    left, right, none = summed.encode_audio([(stereo[0], RATE), (stereo[1], RATE), (stereo[:1], RATE)])
    np.testing.assert_allclose(left, none, rtol=1e-5, atol=1e-5)
    bias = summed.tower("audio").embed.selected()._net.fc.bias.numpy()
    np.testing.assert_allclose(both, left + right - bias, rtol=1e-3, atol=1e-4)


def test_mono_and_stereo_clips_may_be_mixed_in_one_call(folder):
    encoder = load(folder, channels="sum")
    clips = [(sound(), RATE), (sound(channels=2), RATE), (sound(0.1), RATE)]
    rows = encoder.encode_audio(clips)
    alone = np.concatenate([encoder.encode_audio([clip]) for clip in clips])
    np.testing.assert_allclose(rows, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_norm", ["running", "item"])
def test_a_clips_embedding_does_not_depend_on_its_neighbours(folder, batch_norm):
    encoder = load(folder, batch_norm=batch_norm)
    clip, loud, silent = sound(), sound(seed=1), np.zeros(8820, np.float32)
    alone = encoder.encode_audio([(clip, RATE)])[0]
    for neighbours in ([loud], [silent, silent], [loud * 0.01, silent, loud]):
        rows = encoder.encode_audio([(one, RATE) for one in [*neighbours, clip]])
        np.testing.assert_allclose(rows[-1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("clip", "code"),
    [
        ((np.zeros(0, np.float32), RATE), "empty"),
        ((np.array([0.1, np.nan], np.float32), RATE), "not-finite"),
        ((np.zeros(100, np.float32), 0), "rate"),
        ((np.zeros(100, np.float32), -RATE), "rate"),
        ((np.zeros(100, np.float32), 10**9), "rate"),
        (np.zeros(100, np.float32), "type"),
        ("a dog barks", "not-found"),
        ((np.zeros(1, np.float32), 768_000), "empty"),
        ((np.zeros(int(0.3 * RATE), np.float32), RATE), "too-long"),
    ],
)
def test_a_sound_that_cannot_be_encoded_is_named_with_a_code(folder, clip, code):
    encoder = load(folder, max_seconds=0.25)
    with pytest.raises(InputError) as caught:
        encoder.encode_audio([(sound(), RATE), clip])
    assert caught.value.code == code
    assert caught.value.item in ("audio[1]", "a dog barks")


def test_the_tables_name_the_releases_files():
    assert set(audioclip.CHECKPOINTS) == {variant.name for variant in audioclip.VARIANTS} == {"full", "partial"}
    for published in (*audioclip.CHECKPOINTS.values(), audioclip.VOCABULARY):
        assert published.url == f"https://github.com/AndreyGuzhov/AudioCLIP/releases/download/v0.1/{published.file}"
        assert len(bytes.fromhex(published.sha256)) == 32
