"""Near-duplicates of a collection, against comparing every two images and joining groups one at a time."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fake_encoder import DIM, FakeEncoder
from image_encoders import duplicates
from image_encoders.collection import Collection, Row, id_of
from image_encoders.duplicates import complete_linkage, find_duplicates, write
from image_encoders.errors import CollectionError, InputError
from image_encoders.records import Locator
from image_encoders.tables import ImageFacts


def row(name: str, embedding: Any, *, pixels: int = 100, size: int = 10, content: str = "") -> Row:
    path = f"/photos/{name}"
    facts = ImageFacts(pixels, 1, content or f"{name:>064}", size)
    return Row(id_of(path), Locator(path), np.asarray(embedding, np.float32), facts, "")


def at(degrees: float, axis: int = 1) -> np.ndarray:
    """A vector at this angle from the first axis."""
    vector = np.zeros(DIM)
    vector[[0, axis]] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return 7 * vector


def cosine(degrees: float) -> float:
    return round(float(np.cos(np.radians(degrees))), 6)


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection.create(tmp_path / "c", FakeEncoder())


def names(found: duplicates.Duplicates) -> list[list[str]]:
    return [[image.id.removeprefix("/photos/") for image in group.images] for group in found.groups]


def test_a_chain_of_near_images_is_not_one_group(collection: Collection):
    collection.append([row(f"{angle:02d}", at(angle)) for angle in (0, 10, 21, 30)])
    found = find_duplicates(collection, threshold=cosine(12))
    assert [sorted(group) for group in names(found)] == [["00", "10"], ["21", "30"]]
    assert [group.least for group in found.groups] == pytest.approx([cosine(10), cosine(9)])
    assert (found.count, found.recall) == (4, None)


def test_the_best_has_the_most_pixels_then_bytes_then_the_first_id(collection: Collection):
    collection.append(
        [
            *[row(f"a{number}", at(number), pixels=100 + number) for number in range(3)],
            *[row(f"b{number}", at(number, 2) - 2 * at(0), size=number % 2) for number in range(2)],
            *[row(f"c{number}", at(number, 3) + 50 * at(90, 4)) for number in range(2)],
        ]
    )
    found = find_duplicates(collection, threshold=0.99)
    assert names(found) == [["a2", "a1", "a0"], ["b1", "b0"], ["c0", "c1"]]
    assert [group.reason for group in found.groups] == [
        "the most pixels",
        "the most bytes among those with the most pixels",
        "the first id among those with the most pixels and bytes",
    ]
    assert [image.score for image in found.groups[0].images] == [1.0, cosine(1), cosine(2)]


def test_copies_are_alike_whatever_their_embeddings_and_zeros_are_like_nothing(collection: Collection):
    collection.append(
        [
            row("a1", at(0), content="a" * 64),
            row("a2", at(0.001), content="a" * 64),
            row("near", at(3)),
            row("z1", np.zeros(DIM), content="f" * 64),
            row("z2", np.zeros(DIM), content="f" * 64),
            row("z3", np.zeros(DIM)),
        ]
    )
    assert names(find_duplicates(collection)) == [["a1", "a2", "near"], ["z1", "z2"]]
    assert names(find_duplicates(collection, threshold=1)) == [["a1", "a2"], ["z1", "z2"]]
    assert names(find_duplicates(collection, each_copy=False)) == [["a1", "near"]]
    assert find_duplicates(collection, each_copy=False).count == 4


def test_an_empty_collection_and_one_of_different_images_have_none(collection: Collection):
    assert find_duplicates(collection) == duplicates.Duplicates((), duplicates.THRESHOLD, 0)
    collection.append([row("a", at(0))])
    assert find_duplicates(collection).groups == ()
    collection.append([row("b", at(90))])
    assert find_duplicates(collection).groups == ()


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan")])
def test_a_threshold_that_is_no_cosine_of_alike_images_is_refused(collection: Collection, threshold: float):
    with pytest.raises(InputError, match="threshold"):
        find_duplicates(collection, threshold=threshold)


def slow_linkage(links: dict[int, dict[int, float]]) -> set[frozenset[int]]:
    """The two groups whose least similarity is the greatest are joined, as long as there are such."""
    groups = [frozenset([node]) for node in links]

    def least(two: tuple[frozenset[int], frozenset[int]]) -> float:
        return min(links[a].get(b, -1) for a, b in itertools.product(*two))

    while len(groups) > 1:
        two = max(itertools.combinations(groups, 2), key=least)
        if least(two) < 0:
            break
        groups = [group for group in groups if group not in two] + [two[0] | two[1]]
    return set(groups)


@pytest.mark.parametrize("seed", range(30))
def test_groups_are_those_of_complete_linkage(seed: int):
    rng = np.random.default_rng(seed)
    count, share = int(rng.integers(2, 14)), rng.random()
    links: dict[int, dict[int, float]] = {node: {} for node in range(count)}
    for a, b in itertools.combinations(range(count), 2):
        if rng.random() < share:
            links[a][b] = links[b][a] = float(rng.random())
    expected = slow_linkage(links)
    found = list(complete_linkage({node: dict(near) for node, near in links.items()}))
    assert {frozenset(members) for members, _ in found} == expected
    for members, least in found:
        assert least == min((links[a][b] for a, b in itertools.combinations(members, 2)), default=1.0)


def clustered(count: int, rng: np.random.Generator) -> np.ndarray:
    """Clusters on one side of the origin, and for every fourth embedding a near one."""
    centres = 1.5 + rng.standard_normal((60, DIM))
    vectors = centres[rng.integers(0, len(centres), count)] + rng.standard_normal((count, DIM))
    vectors[3::4] = vectors[0::4][: len(vectors[3::4])] * 1.7
    vectors[3::4] += rng.normal(scale=0.01, size=vectors[3::4].shape)
    return vectors


def test_many_images_are_compared_in_cells_which_miss_little(collection: Collection, monkeypatch: pytest.MonkeyPatch):
    vectors = clustered(3000, np.random.default_rng(3))
    collection.append([row(f"{number:06d}", vector) for number, vector in enumerate(vectors)])
    exact = find_duplicates(collection, threshold=0.9999)
    monkeypatch.setattr(duplicates, "EXACT_BELOW", 100)
    monkeypatch.setattr(duplicates, "CELL", 200)
    monkeypatch.setattr(duplicates, "BLOCK", 128)
    seen: list[tuple[int, int]] = []
    found = find_duplicates(collection, threshold=0.9999, progress=lambda *done: seen.append(done))
    assert seen[-1] == (3000, 3000)
    assert exact.recall is None
    assert found.recall is not None
    assert 0.97 * found.recall.pairs <= found.recall.found <= found.recall.pairs
    expected, cells = ({frozenset(group) for group in names(one)} for one in (exact, found))
    assert len(expected & cells) > 0.97 * len(expected) > 500


@pytest.mark.parametrize("images", [6, 9])  # with 15 and 36 pairs
def test_more_alike_pairs_than_can_be_held_are_one_sentence(
    images: int, collection: Collection, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(duplicates, "PAIRS", 10)
    collection.append([row(f"{number}", at(number / 10)) for number in range(images)])
    with pytest.raises(CollectionError, match=r"more than 10 pairs .* raise the threshold"):
        find_duplicates(collection)


def test_the_file_has_a_row_for_each_image_of_a_group(collection: Collection, tmp_path: Path):
    odd = "caf\udce9.jpg"
    collection.append([row(odd, at(0), content="e" * 64), row("b", at(1), pixels=700, size=9), row("alone", at(90))])
    write(tmp_path / "d.parquet", find_duplicates(collection))
    rows = pq.read_table(tmp_path / "d.parquet").to_pylist()
    assert [(one["group"], one["id"], one["best"], one["width"], one["bytes"]) for one in rows] == [
        (1, "/photos/b", True, 700, 9),
        (1, id_of(f"/photos/{odd}"), False, 100, 10),
    ]
    assert rows[1]["similarity"] == pytest.approx(cosine(1))
    with pytest.raises(CollectionError, match="already exists"):
        write(tmp_path / "d.parquet", find_duplicates(collection))
    collection.remove([id_of(f"/photos/{odd}")])
    write(tmp_path / "d.parquet", find_duplicates(collection), overwrite=True)
    assert pq.read_table(tmp_path / "d.parquet").num_rows == 0
    with pytest.raises(CollectionError, match=r"accepted: \.parquet"):
        write(tmp_path / "d.csv", find_duplicates(collection))
