"""verify: synthetic checkpoints, and real weights against what is published of them."""

import hashlib
import json
from dataclasses import replace

import pytest
from PIL import Image

from image_encoders.conformance import bundle, published
from image_encoders.conformance.published import PublishedEmbedding

CASE = "custom-inplace"  # 12 kB


@pytest.fixture
def kept(checkpoint):
    """The folder in which the tests keep synthetic checkpoints."""
    return checkpoint(CASE).parent


def test_a_family_that_agrees_is_shown_check_by_check(command, kept):
    ran = command("verify", "custom", "--keep", kept)
    assert ran.status == 0, ran.err
    heading, *lines = ran.out.splitlines()
    assert heading.split("  ")[0] == "case"
    assert len(lines) == 9
    assert all(line.endswith("ok") for line in lines)
    assert "9 checks, 0 outside the tolerance" in ran.err
    assert f"{CASE}: 4 checks, all pass" in ran.err


def test_the_checkpoint_is_made_once_and_it_is_said_how_large_it_is(command, tmp_path):
    first = command("verify", CASE, "--keep", tmp_path)
    assert first.status == 0, first.err
    assert f"generating 1 synthetic checkpoint, 0 MB, in {tmp_path}" in first.err
    assert bundle.place(CASE, tmp_path).is_dir()
    assert "generating" not in command("verify", CASE, "--keep", tmp_path).err


def test_json_holds_every_number(command, kept):
    report = command("verify", CASE, "--keep", kept, "--json").json
    assert (report["passed"], report["asserted"], report["not_run"]) == (True, True, [])
    first = report["checks"][0]
    assert (first["case"], first["model"], first["stage"]) == (CASE, "custom", "prepared 224 x 224, layer stem")
    assert first["rel"] < first["limits"]["rel"] == 5e-6  # and exactly 0 on some processors
    assert first["limits"].keys() == {"rel", "one_minus_cos"}


def test_markdown_says_how_it_was_made(command, kept):
    lines = command("verify", CASE, "--keep", kept, "--markdown").out.splitlines()
    assert lines[0].startswith(f"`image-encoders verify {CASE} --markdown`, 20")
    assert lines[1].startswith("torch ")
    assert lines[3].count("|") == lines[4].count("|") == lines[5].count("|") == 9
    assert len(lines) == 9


@pytest.fixture
def other_rows(monkeypatch):
    """A bundle whose rows are one part in a thousand larger."""
    golden = bundle.golden
    monkeypatch.setattr(
        bundle, "golden", lambda name: {k: v * 1.001 if k.endswith("/out") else v for k, v in golden(name).items()}
    )


def test_a_check_that_fails_is_shown_and_ends_with_3(command, kept, other_rows):
    ran = command("verify", CASE, "--keep", kept)
    assert ran.status == 3
    assert [line.split()[-1] for line in ran.out.splitlines()[1:]] == ["FAIL"] * 4
    assert f"{CASE}: 4 checks, 4 FAILED" in ran.err
    assert command("verify", CASE, "--keep", kept, "--json").json["passed"] is False


def test_another_precision_is_measured_and_not_judged(command, kept):
    ran = command("verify", CASE, "--keep", kept, "--precision", "bfloat16")
    assert ran.status == 0, ran.err
    assert "FAIL" in ran.out
    assert "shown only for comparison" in ran.err
    report = command("verify", CASE, "--keep", kept, "--precision", "bfloat16", "--json").json
    assert (report["precision"], report["asserted"], report["passed"]) == ("bfloat16", False, False)
    assert all(check["limits"]["rel"] < check["rel"] < 0.1 for check in report["checks"])


def test_what_is_left_out_is_named_with_its_size(command, kept, monkeypatch):
    monkeypatch.setattr("image_encoders.conformance.cases.SMALL", 1_000_000)
    ran = command("verify", "custom", "--keep", kept)
    assert ran.status == 0
    assert "not run: custom-conv (22 MB); --full runs them" in ran.err
    assert "custom-conv" not in ran.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bit/R101x1"], "bit/R50x1, bit/R50x3"),
        (["nothing"], "no conformance case"),
        (["clip/demo"], "clip/demo has no original to compare with; `verify clip` checks the same code"),
        (["custom", "--device", "tpu"], "unknown device 'tpu'"),
        (["custom", "--image", "a.jpg"], "--image needs --weights"),
        (["custom", "--weights", "x.pt", "--full"], "--full cannot be combined with --weights"),
        (["colours/plain", "--weights", "nowhere.txt"], "nowhere.txt: no such file"),
    ],
)
def test_what_can_not_be_verified_ends_with_2(command, kept, arguments, said):
    keep = [] if "--weights" in arguments else ["--keep", kept]
    ran = command("verify", *arguments, *keep)
    assert ran.status == 2
    assert said in ran.err


# ---- real weights ----


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Weights of which the rows of a text and of an image are published; the image is beside them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.txt").write_text("of colours")
    Image.new("RGB", (8, 8), (10, 20, 40)).save("image.png")
    monkeypatch.setattr(published, "IMAGE_SHA256", hashlib.sha256((tmp_path / "image.png").read_bytes()).hexdigest())
    rows = (
        PublishedEmbedding("colours/plain", "text", (0.0, 255.0), 255.0, 1e-3, text="green"),
        PublishedEmbedding("colours/plain", "image", (20.0, 40.0), 2100**0.5 * 2, 1e-3, options={"scale": 2.0}),
    )
    monkeypatch.setattr(published, "EMBEDDINGS", rows)
    return tmp_path / "weights.txt"


def test_published_embeddings_are_compared(command, weights):
    ran = command("verify", "colours/plain", "--weights", weights, "--image", "image.png")
    assert ran.status == 0, ran.err
    loaded, _, text, image = ran.out.splitlines()
    assert loaded.startswith("weights.txt: loads as colours/plain")
    assert text.startswith("the text 'green'")
    assert image.startswith("the image man_piercing.jpg")
    assert text.endswith("ok")
    assert image.endswith("ok")


def test_an_embedding_that_differs_ends_with_3(command, weights, monkeypatch):
    text, image = published.EMBEDDINGS
    monkeypatch.setattr(published, "EMBEDDINGS", (replace(text, norm=250.0), image))
    ran = command("verify", "colours/plain", "--weights", weights, "--image", "image.png")
    assert ran.status == 3
    assert [line.split()[-1] for line in ran.out.splitlines()[2:]] == ["FAIL", "ok"]
    report = command("verify", "colours/plain", "--weights", weights, "--json").json
    assert report["passed"] is False
    assert report["checks"][0]["norm_error"] == pytest.approx(0.02)


def test_without_the_image_its_embedding_is_not_compared_and_that_is_said(command, weights):
    ran = command("verify", "colours/plain", "--weights", weights)
    assert ran.status == 0
    assert "the image" not in ran.out
    assert "--image FILE compares it (sha256" in ran.err
    report = command("verify", "colours/plain", "--weights", weights, "--json").json
    assert report["not_checked"] == ["the image man_piercing.jpg"]


def test_another_image_is_refused(command, weights):
    Image.new("RGB", (8, 8), (1, 2, 3)).save("other.png")
    for name, said in (("other.png", "not man_piercing.jpg: it has sha256"), ("missing.png", "No such file")):
        ran = command("verify", "colours/plain", "--weights", weights, "--image", name)
        assert ran.status == 2
        assert said in ran.err


def test_a_model_of_which_nothing_is_published_is_loaded_and_that_is_said(command, weights):
    ran = command("verify", "colours/mute", "--weights", weights)
    assert ran.status == 0
    assert "loads as colours/mute" in ran.out
    assert "no embedding is published for colours/mute" in ran.err
    refused = command("verify", "colours/mute", "--weights", weights, "--image", "image.png")
    assert refused.status == 2


def test_the_published_file_is_known_by_size_and_sha256(command, weights, monkeypatch):
    monkeypatch.setattr(published, "is_published_file", lambda model, path: False)
    ran = command("verify", "colours/plain", "--weights", weights)
    assert ran.status == 3
    assert "size and sha256 are NOT those of the published file" in ran.out
    assert json.loads(command("verify", "colours/plain", "--weights", weights, "--json").out)["published_file"] is False
