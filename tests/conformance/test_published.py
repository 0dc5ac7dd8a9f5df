"""What is published of real weights, and how it is compared."""

import hashlib

import numpy as np
import pytest

from image_encoders import InputError, models
from image_encoders.conformance import published
from image_encoders.conformance.published import Comparison, PublishedEmbedding
from image_encoders.models import audioclip

PUBLISHED = PublishedEmbedding("m", "text", (3.0, -4.0), 13.0, 1e-2, text="words")


def test_embeddings_are_those_of_listed_models_with_a_tower_for_them():
    listed = models.variants()
    for row in published.EMBEDDINGS:
        assert row.modality in listed[row.model].towers
        assert bool(row.text) == (row.modality == "text")
        assert np.linalg.norm(row.first) < row.norm
    assert len({str((row.model, row.modality)) for row in published.EMBEDDINGS}) == 4


@pytest.mark.parametrize(
    ("found", "passes"),
    [
        ([3.0, -4.0, 12.0], True),
        ([3.03, -4.03, 12.0], True),
        ([3.05, -4.0, 12.0], False),  # a value
        ([3.0, -4.0, 12.5], False),  # the length
        ([3.0, -4.0, np.nan], False),
    ],
)
def test_first_values_and_length_have_both_to_agree(found, passes):
    assert Comparison(PUBLISHED, np.array(found, np.float32)).passed is passes


def test_the_image_is_known_by_its_sha256(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"an image")
    with pytest.raises(InputError, match=r"a\.jpg: not man_piercing\.jpg: it has sha256"):
        published.check_image(tmp_path / "a.jpg")
    monkeypatch.setattr(published, "IMAGE_SHA256", hashlib.sha256(b"an image").hexdigest())
    published.check_image(tmp_path / "a.jpg")


def test_audioclips_file_is_known_by_size_and_sha256(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(b"weights")
    assert published.is_published_file("audioclip/full", tmp_path / "a.pt") is False
    own = audioclip.Published("a.pt", 7, hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setitem(audioclip.CHECKPOINTS, "full", own)
    assert published.is_published_file("audioclip/full", tmp_path / "a.pt") is True
    (tmp_path / "a.pt").write_bytes(b"weightz")
    assert published.is_published_file("audioclip/full", tmp_path / "a.pt") is False


@pytest.mark.parametrize(("name", "file"), [("bit/R50x1", "a.npz"), ("audioclip/full", "a.safetensors")])
def test_of_other_files_nothing_is_published(tmp_path, name, file):
    (tmp_path / file).write_bytes(b"weights")
    assert published.is_published_file(name, tmp_path / file) is None
