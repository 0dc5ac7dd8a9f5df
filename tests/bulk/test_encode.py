"""Encoding as a function of items and encoder: no collection, the same wherever it runs."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from drawn import draw, image
from PIL import Image

from fake_encoder import DIM, FakeEncoder
from image_encoders.bulk import encode as encode_module
from image_encoders.bulk.encode import Encoded, Failed, Outcome, encode
from image_encoders.bulk.sources import SourceFile, find
from image_encoders.encoder import Encoder


class Shapes(FakeEncoder):
    """Inputs of three shapes, by the image's width; embeddings depend on the whole batch a little."""

    def __init__(self, **options: object):
        super().__init__(batch_sensitive=True, **options)  # type: ignore[arg-type]
        tower = self.towers["image"]
        self.towers = {"image": dataclasses.replace(tower, inputs=dataclasses.replace(tower.inputs, shape=None))}

    def _prepare(self, pixels: np.ndarray) -> np.ndarray:
        return super()._prepare(pixels)[:, :, : 4 - pixels.shape[1] % 3]

    def _embed(self, inputs: np.ndarray) -> np.ndarray:
        return super()._embed(np.pad(inputs, [(0, 0), (0, 0), (0, 0), (0, 4 - inputs.shape[3])]))


@pytest.fixture
def photos(tmp_path: Path) -> list[SourceFile]:
    draw(tmp_path / "photos", range(20))
    return list(find([str(tmp_path / "photos")]))


def flat(lists: Iterable[list[Outcome]]) -> list[Outcome]:
    return [one for some in lists for one in some]


def test_every_item_gets_its_embedding_in_order(photos: list[SourceFile]) -> None:
    found = flat(encode(photos, FakeEncoder(), batch_size=8, workers=3))
    assert [one.item for one in found] == photos
    expected = FakeEncoder().encode_image([one.path for one in photos])
    np.testing.assert_allclose([one.embedding for one in found], expected, rtol=1e-6)
    for one, number in zip(found, range(20)):
        assert isinstance(one, Encoded)
        assert (one.facts.width, one.facts.height, one.facts.size) == (12, 9 + number % 5, len(image(number)))


def test_whole_batches_are_given_back_with_what_stands_between(photos: list[SourceFile], tmp_path: Path) -> None:
    (tmp_path / "photos" / "00003 broken.png").write_bytes(b"x")
    lists = list(encode(find([str(tmp_path / "photos")]), FakeEncoder(), batch_size=8))
    assert [len(some) for some in lists] == [9, 8, 4]
    broken = lists[0][3]
    assert isinstance(broken, Failed)
    assert (broken.stage, broken.code) == ("read", "not-an-image")


def test_bytes_that_are_known_or_come_twice_are_not_embedded_again(photos: list[SourceFile], tmp_path: Path) -> None:
    for name, number in (("00000 copy.png", 0), ("00001 copy.png", 1), ("99999.png", 0)):
        (tmp_path / "photos" / name).write_bytes(image(number))
    encoder = FakeEncoder()
    contents = {one.facts.sha256 for one in flat(encode(photos[1:2], FakeEncoder())) if isinstance(one, Encoded)}
    found = []
    for some in encode(find([str(tmp_path / "photos")]), encoder, batch_size=8, known=contents.__contains__):
        found += some
        contents |= {one.facts.sha256 for one in some if isinstance(one, Encoded) and one.embedding is not None}
    without = [Path(one.item.id).name for one in found if isinstance(one, Encoded) and one.embedding is None]
    assert sorted(without) == ["00000.png", "00001 copy.png", "00001.png", "99999.png"]
    assert encoder.embedded == 19


def test_outcomes_and_items_can_be_sent_to_another_process(photos: list[SourceFile]) -> None:
    there = pickle.loads(pickle.dumps(photos))
    back = pickle.loads(pickle.dumps(flat(encode(there, FakeEncoder(), batch_size=4))))
    here = flat(encode(photos, FakeEncoder(), batch_size=4))
    for one, other in zip(here, back):
        assert isinstance(one, Encoded)
        assert (one.item, one.facts.sha256) == (other.item, other.facts.sha256)
        np.testing.assert_array_equal(one.embedding, other.embedding)


@pytest.mark.parametrize("make", [lambda: FakeEncoder(batch_sensitive=True), Shapes])
@pytest.mark.parametrize("outcomes", [3, 1024])
def test_who_goes_on_after_any_list_gets_the_same_embeddings(
    make: Callable[[], Encoder], outcomes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, where embeddings depend on their batch, among copies, broken files and inputs of several shapes."""
    monkeypatch.setattr(encode_module, "OUTCOMES", outcomes)
    rng = np.random.default_rng(4)
    for number in range(60):
        path = tmp_path / f"{number:03}.png"
        kind = rng.integers(0, 8)
        if kind == 0:
            path.write_bytes(b"broken")
        elif kind in (1, 2) and number > 5:
            path.write_bytes((tmp_path / f"{int(rng.integers(0, number)):03}.png").read_bytes())
        else:
            side = 12 if rng.integers(0, 4) else int(rng.integers(13, 15))
            Image.fromarray(rng.integers(0, 256, (9, side, 3), np.uint8)).save(path)
    items = list(find([str(tmp_path)]))

    def stored(lists: int | None, before: dict[str, tuple[str, bytes]]) -> tuple[dict[str, tuple[str, bytes]], int]:
        """What a run stores that is killed after so many lists and finds `before`."""
        kept = dict(before)
        contents = dict(before.values())
        left = [item for item in items if item.id not in kept]
        count = 0
        for some in encode(left, make(), batch_size=5, workers=2, known=lambda sha256: sha256 in contents):
            if count == lists:
                return kept, count
            count += 1
            for one in some:
                if isinstance(one, Encoded) and one.embedding is not None:
                    contents[one.facts.sha256] = one.embedding.tobytes()
            for one in some:
                sha256 = one.facts.sha256 if isinstance(one, Encoded) else one.code
                kept[one.item.id] = sha256, contents.get(sha256, b"")
        return kept, count

    complete, count = stored(None, {})
    assert len(complete) == 60
    for lists in range(count):
        part, _ = stored(lists, {})
        assert part.items() <= complete.items()
        assert stored(None, part)[0] == complete


def test_nothing_is_given_back_for_no_items() -> None:
    assert list(encode([], FakeEncoder())) == []


def test_the_length_of_an_embedding_is_checked(photos: list[SourceFile]) -> None:
    class Short(FakeEncoder):
        def _embed(self, inputs: np.ndarray) -> np.ndarray:
            return super()._embed(inputs)[:, : DIM - 1]

    found = flat(encode(photos, Short(), batch_size=8))
    assert {(one.stage, one.code) for one in found if isinstance(one, Failed)} == {("embed", "shape")}
    assert len(found) == 20
