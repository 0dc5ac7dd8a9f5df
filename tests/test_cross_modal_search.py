"""Images found by words, through a collection, with VSE++.

No trained weights are at hand, so the text tower is set by hand: it says each noun where the image of that noun lies,
and the rest is as it always is: images in files, a run into a collection, words as the query.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
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
from image_encoders.engines.embedder import Net
from image_encoders.engines.select import PLAIN, select_embedder
from image_encoders.errors import CollectionError, InputError
from image_encoders.models import vsepp
from image_encoders.nets.vsepp import CaptionTower
from image_encoders.weights import torch_file
from vocabulary_file import vocabulary_bytes

NOUNS = ["sunset", "forest", "snow", "brick", "night"]
FILLERS = ["<pad>", "<start>", "<end>", "<unk>", "a", "photo", "of", "the", "."]
WORDS = [*FILLERS, *NOUNS]
SHUT = 40.0  # the sigmoid of half of it is 1 in float32


@pytest.fixture
def images(tmp_path: Path) -> dict[str, Path]:
    """A file for each noun: textures that differ in colour and grain."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(3)
    files = {}
    for i, noun in enumerate(NOUNS):
        colour = rng.integers(20, 236, 3)
        grain = rng.integers(-60, 60, (4 << i, 6 << i, 3))
        pixels = np.clip(colour + grain, 0, 255).astype(np.uint8)
        files[noun] = folder / f"{i}-{noun}.png"
        Image.fromarray(pixels).resize((300, 240), Image.Resampling.NEAREST).save(files[noun])
    return files


def caption_state(rows: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The tensors of a text tower that gives a caption the row of its last noun.

    A noun's word vector makes the GRU's state 0.9 times the noun's row; every other word's last component closes the
    update gate, so that the state stays.
    """
    dim = len(next(iter(rows.values())))
    embed = torch.zeros(len(WORDS), dim + 1)
    for i, word in enumerate(WORDS):
        if word in rows:
            embed[i, :dim] = torch.from_numpy(np.arctanh(0.9 * rows[word].astype(np.float64))).float()
        else:
            embed[i, dim] = 1
    state = {name: torch.zeros_like(value) for name, value in torch.nn.GRU(dim + 1, dim).state_dict().items()}
    state["weight_ih_l0"][dim : 2 * dim, dim] = SHUT  # of reset, update and new, the update gate
    state["bias_ih_l0"][dim : 2 * dim] = -SHUT / 2
    state["weight_ih_l0"][2 * dim :, :dim] = torch.eye(dim)
    return {"embed.weight": embed, **{f"rnn.{name}": value for name, value in state.items()}}


@pytest.fixture
def small(images: dict[str, Path]) -> Encoder:
    """An encoder of small nets that knows the images' nouns."""
    tiny = vsepp.tiny().assemble()
    rows = dict(zip(images, tiny.encode_image(list(images.values()))))
    net = CaptionTower(len(WORDS), tiny.dim + 1, tiny.dim, 1, absolute=False)
    net.load_state_dict(caption_state(rows))
    vocabulary = vsepp.Vocabulary("small", {word: i for i, word in enumerate(WORDS)})
    text = replace(
        tiny.tower("text"),
        inputs=vsepp._captions(vocabulary, accept_unknown=False),
        embed=select_embedder(PLAIN, Net("small", "small", lambda: net, vocabulary.encode, (None,), "text")),
    )
    return replace(tiny, towers={"image": tiny.tower("image"), "text": text})


@pytest.fixture
def collection(small: Encoder, images: dict[str, Path], tmp_path: Path) -> Collection:
    made = Collection.create(tmp_path / "collection", small)
    report = run(find([next(iter(images.values())).parent]), small, made)
    assert report.encoded == len(NOUNS)
    return Collection.open(tmp_path / "collection")


@pytest.mark.parametrize("noun", NOUNS)
@pytest.mark.parametrize("caption", ["{}", "A photo of the {}.", "the {} of a photo"])
def test_words_find_the_image_they_describe(collection, small, images, noun, caption):
    hits = collection.search(small.encode_text([caption.format(noun)])[0], k=len(NOUNS))
    assert Path(hits[0].path) == images[noun]
    assert hits[0].score == pytest.approx(1, abs=1e-5)
    assert hits[1].score < hits[0].score
    assert {Path(hit.path) for hit in hits} == set(images.values())


def test_an_image_finds_itself_in_the_same_collection(collection, small, images):
    for path in images.values():
        assert Path(collection.search(small.encode_image([path])[0], k=1)[0].path) == path


def test_words_that_mean_nothing_to_the_model_find_nothing(small):
    with pytest.raises(InputError, match="zebra"):
        small.encode_text(["zebra"])


def test_a_collection_refuses_the_embeddings_of_other_weights(collection, images):
    other = replace(vsepp.tiny().assemble(), fingerprint="0" * 32)
    with pytest.raises(CollectionError, match="cannot be compared"):
        run(find([next(iter(images.values())).parent]), other, collection)


@pytest.mark.golden
def test_a_full_size_checkpoint_is_searched_by_words_after_loading_it_again(
    checkpoint: Callable[[str], Path], images: dict[str, Path], tmp_path: Path
):
    """From the original file format to the command's own loading by the collection's recipe."""
    options = {"device": "cpu", "precision": "float32", "engine": "torch"}
    source = torch_file.read(checkpoint("vse-resnet152") / "model_best.pth.tar")
    image, _ = source["model"]
    image["fc.bias"] = torch.zeros_like(image["fc.bias"])  # all images share it; without it they lie apart
    folder = tmp_path / "run"
    folder.mkdir()
    path = folder / "model_best.pth.tar"

    def write(rows: Mapping[str, np.ndarray]) -> None:
        """A checkpoint whose captions have these rows."""
        text = caption_state(rows)
        settings = {**vars(source["opt"]), "word_dim": text["embed.weight"].shape[1], "vocab_size": len(WORDS)}
        path.unlink(missing_ok=True)
        torch.save({"epoch": 1, "model": [image, text], "opt": argparse.Namespace(**settings)}, path)

    write(dict.fromkeys(NOUNS, np.zeros(1024, np.float32)))
    images_only = ie.load("vsepp", weights=path, **options)
    assert images_only.modalities == ("image",)
    write(dict(zip(images, images_only.encode_image(list(images.values())))))
    (folder / "f30k_vocab.pkl").write_bytes(vocabulary_bytes(WORDS))

    encoder = ie.load("vsepp/f30k-resnet152", weights=path, **options)
    made = Collection.create(tmp_path / "collection", encoder)
    assert run(find([next(iter(images.values())).parent]), encoder, made).encoded == len(NOUNS)

    recipe = json.loads(json.dumps(Collection.open(tmp_path / "collection").recipe))
    again = ie.load(
        recipe["name"],
        weights=recipe["weights"],
        device=recipe["device"],
        precision=recipe["precision"],
        engine=recipe["engine"],
        **recipe["options"],
    )
    assert again.fingerprint == made.fingerprint
    for noun, file in images.items():
        hits = made.search(again.encode_text([f"a photo of the {noun}"])[0], k=2)
        assert Path(hits[0].path) == file
        assert hits[0].score == pytest.approx(1, abs=1e-4)
