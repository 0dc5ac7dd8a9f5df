"""convert: one file that gives the same rows, or none."""

import argparse
import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import image_encoders as ie
from image_encoders import conversion
from image_encoders.conformance import bundle
from vocabulary_file import vocabulary_bytes

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "red", "circle"]
RUNTIME = {"device": "cpu", "precision": "float32", "engine": "torch"}
CUSTOM = {"definition": str(bundle.FOLDER / "specs" / "data" / "custom_inplace.py"), "class_name": "InplaceNet"}


@pytest.fixture
def run(tmp_path):
    """A small VSE++ checkpoint of precomputed features; its vocabulary is elsewhere."""
    torch.manual_seed(0)
    gru = torch.nn.GRU(6, 8)
    text = {"embed.weight": torch.randn(len(WORDS), 6), **{f"rnn.{n}": t for n, t in gru.state_dict().items()}}
    options = {"data_name": "f30k_precomp", "img_dim": 10, "embed_size": 8, "word_dim": 6}
    torch.save(
        {
            "model": [{"fc.weight": torch.randn(8, 10), "fc.bias": torch.randn(8)}, text],
            "opt": argparse.Namespace(**options),
        },
        tmp_path / "model_best.pth.tar",
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "words.pkl").write_bytes(vocabulary_bytes(WORDS))
    return tmp_path / "model_best.pth.tar"


@pytest.fixture
def words(run):
    return run.parent / "elsewhere" / "words.pkl"


def test_a_converted_checkpoint_gives_the_same_bits_and_needs_no_vocabulary(command, run, words, tmp_path):
    out = tmp_path / "out" / "vse.safetensors"
    ran = command("convert", "vsepp", "--weights", run, "-o", out, "-O", f"vocabulary={words}")
    assert ran.status == 0, ran.err
    assert "same fingerprint" in ran.out
    original = ie.load("vsepp", weights=run, vocabulary=words, **RUNTIME)
    converted = ie.load("vsepp", weights=out, **RUNTIME)
    assert converted.fingerprint == original.fingerprint
    assert original.fingerprint in ran.out
    features = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    assert np.array_equal(converted.embed_image(features), original.embed_image(features))
    assert np.array_equal(converted.encode_text(["a red circle"]), original.encode_text(["a red circle"]))
    assert list(out.parent.iterdir()) == [out]


def test_a_custom_net_is_converted_with_its_definition_or_without(command, checkpoint, tmp_path):
    original = checkpoint("custom-inplace") / "model_state_dict.pth"
    given = [part for key, value in CUSTOM.items() for part in ("-O", f"{key}={value}")]
    report = command(
        "convert",
        "custom",
        "--weights",
        original,
        "-o",
        tmp_path / "a.safetensors",
        *given,
        "-O",
        "layer=out",
        "--json",
    ).json
    assert report["original_bytes"] == original.stat().st_size
    assert report["converted_load_s"] > 0
    ran = command("convert", "custom", "--weights", original, "-o", tmp_path / "b.safetensors")
    assert ran.status == 0
    assert "same tensors" in ran.out
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    images = bundle.float_inputs("custom-inplace", "float97x131")
    rows = [
        ie.load("custom", weights=path, layer="out", **CUSTOM, **RUNTIME).embed_image(images)
        for path in (original, tmp_path / "b.safetensors")
    ]
    assert np.array_equal(*rows)


def test_a_file_that_is_there_is_kept_unless_overwriting_is_asked_for(command, run, tmp_path):
    out = tmp_path / "vse.safetensors"
    out.write_bytes(b"precious")
    ran = command("convert", "vsepp", "--weights", run, "-o", out)
    assert ran.status == 2
    assert "already exists" in ran.err
    assert "--overwrite" in ran.err
    assert out.read_bytes() == b"precious"
    assert command("convert", "vsepp", "--weights", run, "-o", out, "--overwrite").status == 0
    assert ie.load("vsepp", weights=out, **RUNTIME).modalities == ("image",)


def test_a_conversion_that_fails_leaves_the_older_file_and_nothing_else(command, run, tmp_path, monkeypatch):
    out = tmp_path / "there" / "vse.safetensors"
    out.parent.mkdir()
    out.write_bytes(b"precious")
    monkeypatch.setattr("image_encoders.conversion._digest", lambda part: "another")
    ran = command("convert", "vsepp", "--weights", run, "-o", out, "--overwrite")
    assert ran.status == 2
    assert "not written" in ran.err
    assert [path.read_bytes() for path in out.parent.iterdir()] == [b"precious"]


def test_a_converted_file_that_loads_otherwise_is_not_written(command, run, words, tmp_path, monkeypatch):
    from image_encoders.models import vsepp

    original = vsepp.original

    def wrong(path, *, vocabulary=None):
        tensors, facts = original(path, vocabulary=vocabulary)
        return tensors, {**facts, "options": {**facts["options"], "use_abs": True}}

    monkeypatch.setattr(vsepp, "original", wrong)
    ran = command("convert", "vsepp", "--weights", run, "-o", tmp_path / "x.safetensors", "-O", f"vocabulary={words}")
    assert ran.status == 2
    assert "differs from the original" in ran.err
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "weights", "out", "said"),
    [
        ("clip/demo", "model_best.pth.tar", "x.safetensors", "safetensors folders already"),
        ("vsepp", "model_best.pth.tar", "x.pt", "must end in .safetensors"),
        ("vsepp", "nowhere.tar", "x.safetensors", "no such file or folder"),
        ("vsepp", "model.safetensors", "x.safetensors", "originals are converted"),
        ("vsepp/f30k-vgg19", "model_best.pth.tar", "x.safetensors", "precomputed features"),
        ("bit/R50x1", "model_best.pth.tar", "x.safetensors", "model_best.pth.tar"),
        ("bit", "model_best.pth.tar", "x.safetensors", "there is no model"),
        ("audioclip/full", "model_best.pth.tar", "x.safetensors", "missing"),
        ("bat/R50x1", "model_best.pth.tar", "x.safetensors", "there is no model"),
        ("vsepp", "damaged.tar", "x.safetensors", "damaged.tar"),
    ],
)
def test_what_can_not_be_converted_is_one_sentence_and_no_file(command, run, tmp_path, name, weights, out, said):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "damaged.tar").write_bytes(run.read_bytes()[:-500])
    before = sorted(tmp_path.iterdir())
    ran = command("convert", name, "--weights", tmp_path / weights, "-o", tmp_path / out)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "case", "file", "options"),
    [
        ("bit/R50x1", "bit-savedmodel-named", "bit-savedmodel-named", {}),
        ("bit/R50x1", "bit-npz-R50x1", "BiT-M-R50x1.npz", {}),
        ("vsepp", "vse-resnet152-order", "model_best.pth.tar", {}),
        (
            "audioclip/full",
            "audioclip",
            "AudioCLIP-Full-Training.pt",
            {"vocabulary": str(bundle.FOLDER / "specs" / "data" / "bpe_synthetic.txt.gz")},
        ),
    ],
)
def test_checkpoints_of_the_true_size_are_converted_bit_for_bit(
    command, checkpoint, tmp_path, name, case, file, options
):
    out = tmp_path / "converted.safetensors"
    given = [part for key, value in options.items() for part in ("-O", f"{key}={value}")]
    ran = command("convert", name, "--weights", checkpoint(case) / file, "-o", out, *given, "--json")
    assert ran.status == 0, ran.err
    report = json.loads(ran.out)
    assert re.fullmatch("[0-9a-f]{32}", report["fingerprint"])
    assert {"original_load_s", "converted_load_s"} <= report.keys()
    images = np.random.default_rng(3).random((2, 3, 224, 224)).astype(np.float32)
    original = ie.load(name, weights=checkpoint(case) / file, **RUNTIME, **options)
    converted = ie.load(name, weights=out, **RUNTIME)
    assert converted.fingerprint == original.fingerprint == report["fingerprint"]
    assert np.array_equal(converted.embed_image(images), original.embed_image(images))
    if "text" in original.modalities:
        assert np.array_equal(converted.encode_text(["a man"]), original.encode_text(["a man"]))
    out.unlink()


def test_what_a_killed_conversion_left_is_removed_by_the_next_one(command, run, words, tmp_path):
    (tmp_path / "out").mkdir()
    out, options = tmp_path / "out" / "vse.safetensors", {"vocabulary": str(words)}
    killed = (
        "import os; from pathlib import Path; from image_encoders import conversion\n"
        "conversion._digest = lambda part: os.kill(os.getpid(), 9)\n"
        f"conversion.convert('vsepp', Path({str(run)!r}), Path({str(out)!r}), {options!r})"
    )
    assert subprocess.run([sys.executable, "-c", killed], timeout=300).returncode == -signal.SIGKILL
    (left,) = out.parent.iterdir()
    assert sum(file.stat().st_size for file in left.iterdir()) > 1000
    other = out.with_name("other.safetensors")
    assert command("convert", "vsepp", "--weights", run, "-o", other, "-O", f"vocabulary={words}").status == 0
    assert list(out.parent.iterdir()) == [other]


def test_a_running_conversion_is_left_alone_by_others(command, run, words, tmp_path):
    out = tmp_path / "out" / "vse.safetensors"
    arguments = ["convert", "vsepp", "--weights", run, "-O", f"vocabulary={words}", "-o"]
    with conversion._working_folder(out) as folder:
        (folder / "part").write_text("being written")
        assert command(*arguments, out.with_name("other.safetensors")).status == 0
        assert (folder / "part").read_text() == "being written"
        ran = command(*arguments, out)
        assert ran.status == 2
        assert "another process is converting to this file" in ran.err
    assert [path.name for path in out.parent.iterdir()] == ["other.safetensors"]
