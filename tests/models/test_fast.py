"""`preprocessing="fast"` is another space, near to the exact one, and runs record true sizes all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import image_encoders as ie
from image_encoders.bulk.run import run
from image_encoders.bulk.sources import find
from image_encoders.collection import ITEMS, Collection
from image_encoders.engines.closeness import closeness, probes
from image_encoders.errors import InputError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files that are large enough to be decoded at half their size, one of them lying on its side."""
    folder = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(probes(12)):
        image = Image.fromarray(pixels).resize((1280, 960), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 3 else 1
        image.save(folder / f"{number:02}.jpg", quality=92, exif=exif)
    return folder


def test_fast_embeddings_are_near_and_in_a_space_of_their_own(photos: Path):
    paths = sorted(photos.iterdir())
    asked = {"device": "cpu", "precision": "float32"}
    exact, fast = (ie.load("clip/demo", **asked, preprocessing=speed) for speed in ("exact", "fast"))
    assert exact.fingerprint == ie.load("clip/demo", **asked).fingerprint != fast.fingerprint
    steps, quicker = (dict(encoder.tower("image").inputs.facts) for encoder in (exact, fast))
    assert (steps["resizer"], quicker["resizer"]) == ("pillow", "torch")
    assert {**quicker, "resizer": "pillow", "scaled_decoding": False} == steps
    assert "smaller scale" in repr(fast)
    rows, reference = fast.encode_image(paths), exact.encode_image(paths)
    assert not np.array_equal(rows, reference)
    assert closeness(rows, reference).centred > 0.99


def test_runs_record_the_true_size(photos: Path, tmp_path: Path):
    encoder = ie.load("clip/demo", device="cpu", preprocessing="fast")
    assert encoder.tower("image").read(photos / "00.jpg").shape[:2] != (960, 1280)  # decoded at a smaller scale
    collection = Collection.create(tmp_path / "index", encoder)
    assert run(find([str(photos)]), encoder, collection).encoded == 12
    sizes = {
        Path(path).name: (width, height)
        for rows in collection.scan(ITEMS, ["path", "width", "height"])
        for path, width, height in zip(*(column.to_pylist() for column in rows.columns))
    }
    assert sizes["00.jpg"] == (1280, 960)
    assert sizes["03.jpg"] == (960, 1280)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_resizer_is_decided_when_an_encoder_is_loaded(precision: str):
    encoder = ie.load("clip/demo", device="cpu", precision=precision, engine="torch")
    assert encoder.tower("image").inputs.facts["resizer"] == ("pillow" if precision == "float32" else "torch")
    assert f"bicubic by {'pillow' if precision == 'float32' else 'torch'}" in repr(encoder)


@pytest.mark.parametrize("name", ["clip/demo", "bit/R50x1", "vsepp"])
def test_another_word_is_refused(name: str, tmp_path: Path):
    with pytest.raises(InputError, match="preprocessing is 'quick'; accepted: "):
        ie.load(name, weights=None if name == "clip/demo" else tmp_path / "w", device="cpu", preprocessing="quick")
