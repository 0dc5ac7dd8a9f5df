"""Canaries: fixed images that show whether two encoders of one fingerprint give the same embeddings."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_encoder import DIM, FakeEncoder
from image_encoders import load
from image_encoders.bulk.run import run
from image_encoders.canaries import canary_images, drift, embed_canaries
from image_encoders.collection import CANARIES, Collection
from image_encoders.encoder import Encoder
from image_encoders.errors import CollectionError, InputError


class Broken(FakeEncoder):
    """The same fingerprint, and other embeddings."""

    def _embed(self, inputs: np.ndarray) -> np.ndarray:
        return np.roll(super()._embed(inputs), 1, axis=1)


def test_the_images_never_change() -> None:
    digest = hashlib.sha256(b"".join(image.tobytes() for image in canary_images())).hexdigest()
    assert digest == "bf2ca991d2988b40db65e0a690698cf161c91d59c7b167faf16a60d96a539ee3"
    assert {(image.shape, image.dtype.str) for image in canary_images()} == {((96, 96, 3), "|u1")}


def test_a_collection_keeps_what_they_gave_with_its_encoder(tmp_path: Path) -> None:
    collection = Collection.create(tmp_path / "index", FakeEncoder())
    np.testing.assert_array_equal(np.load(tmp_path / "index" / CANARIES), embed_canaries(FakeEncoder()))
    assert collection.drift(FakeEncoder()) == pytest.approx(0, abs=1e-6)
    assert (collection.drift(Broken()) or 0) > 0.05


def test_another_machine_that_gives_other_embeddings_is_refused_before_it_writes(tmp_path: Path) -> None:
    collection = Collection.create(tmp_path / "index", FakeEncoder())
    elsewhere: Any = FakeEncoder()
    elsewhere.device = "cuda"
    assert run([], elsewhere, collection).total == 0
    elsewhere = Broken()
    elsewhere.device = "cuda"
    with pytest.raises(CollectionError, match="on cuda the same model gives different embeddings"):
        run([], elsewhere, collection)
    (tmp_path / "index" / CANARIES).write_bytes(b"damaged")
    assert run([], elsewhere, collection).total == 0


def test_an_encoder_that_cannot_embed_them_makes_a_collection_without(tmp_path: Path) -> None:
    class Choosy(FakeEncoder):
        def _prepare(self, pixels: np.ndarray) -> np.ndarray:
            raise InputError("no squares")

    assert Collection.create(tmp_path / "a", Choosy()).drift(FakeEncoder()) is None
    assert embed_canaries(Encoder("texts/only", DIM, {}, "0" * 32)) is None


def test_they_differ_for_a_real_model() -> None:
    embeddings = embed_canaries(load("clip/demo"))
    assert embeddings is not None
    assert drift(embeddings, embeddings) == pytest.approx(0, abs=1e-6)
    assert drift(embeddings, np.roll(embeddings, 1, axis=0)) > 0.1
