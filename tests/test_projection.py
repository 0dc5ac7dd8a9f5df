"""A collection as a map in the plane."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from fake_encoder import DIM, FakeEncoder
from image_encoders import projection
from image_encoders.collection import Collection, Row
from image_encoders.errors import CollectionError, InputError, MissingExtra
from image_encoders.projection import project
from image_encoders.records import Locator
from image_encoders.tables import ImageFacts

COUNT = 300


@pytest.fixture(scope="module")
def embeddings() -> np.ndarray:
    """Around a point far from the origin, spread over the sphere mostly in two directions."""
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((COUNT, DIM)) * ([0.01] * (DIM - 2) + [0.3, 0.2])
    return (spread + [3.0, *[0.0] * (DIM - 1)]).astype(np.float32)


@pytest.fixture
def collection(tmp_path: Path, embeddings: np.ndarray) -> Collection:
    made = Collection.create(tmp_path / "c", FakeEncoder())
    rows = [
        Row(f"/p/{number:03d}.png", Locator(f"/p/{number:03d}.png"), one, ImageFacts(9, 7, f"{number:064x}", 5), "")
        for number, one in enumerate(embeddings)
    ]
    made.append(rows[::2])
    made.append(rows[1::2])
    return made


@pytest.fixture
def no_umap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "find_spec", lambda name: None)


def test_the_map_is_that_of_the_principal_components(
    collection: Collection, embeddings: np.ndarray, tmp_path: Path, no_umap: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(projection, "BATCH", 64)
    written = project(collection, tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    assert (written.images, written.method, table.num_rows) == (COUNT, "pca", COUNT)
    assert table.schema.names == [*projection.COLUMNS, "x", "y"]
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    centred = units - units.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    expected = np.abs(centred @ directions[:2].T)
    places = [int(id[3:6]) for id in table["id"].to_pylist()]
    found = np.abs(np.stack([table["x"].to_numpy(), table["y"].to_numpy()], axis=1))
    np.testing.assert_allclose(found, expected[places], atol=1e-4)
    assert written.variance == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum(), rel=1e-3)
    first = (tmp_path / "m.parquet").read_bytes()
    project(collection, tmp_path / "m.parquet", overwrite=True)
    assert (tmp_path / "m.parquet").read_bytes() == first


def test_umap_is_fitted_to_some_of_the_images_and_places_the_others(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fitted: list[int] = []

    class Umap:
        def __init__(self, **options: object):
            assert options["random_state"] == 0

        def fit_transform(self, reduced: np.ndarray) -> np.ndarray:
            fitted.append(len(reduced))
            return 100 + reduced[:, :2]

    monkeypatch.setattr(projection, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
    monkeypatch.setattr(projection, "FITTED", 120)
    monkeypatch.setattr(projection, "COMPONENTS", 4)
    assert project(collection, tmp_path / "u.parquet").method == "umap"
    assert project(collection, tmp_path / "p.parquet", method="pca").method == "pca"
    assert fitted == [120]
    by_umap, by_pca = (pq.read_table(tmp_path / f"{name}.parquet") for name in "up")
    away = np.abs(by_umap["x"].to_numpy() - 100 - by_pca["x"].to_numpy())
    assert np.count_nonzero(away < 1e-4) >= 120  # those that were fitted
    assert np.median(away) < 0.1 * by_pca["x"].to_numpy().std()  # the others are among their neighbours


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_collection_of_next_to_nothing_is_a_map_too(tmp_path: Path, count: int, no_umap: None):
    made = Collection.create(tmp_path / "c", FakeEncoder())
    made.append(
        [Row(f"{n}", Locator(f"{n}"), np.eye(DIM)[n] * n, ImageFacts(1, 1, f"{n:064x}", 1), "") for n in range(count)]
    )
    assert project(made, tmp_path / "m.parquet").images == count
    table = pq.read_table(tmp_path / "m.parquet")
    assert table.num_rows == count
    assert np.isfinite(table["x"].to_numpy()).all()


def test_what_cannot_be_written_or_computed_is_one_sentence(collection: Collection, tmp_path: Path, no_umap: None):
    with pytest.raises(MissingExtra, match=r"umap-learn.*image-encoders\[map\]"):
        project(collection, tmp_path / "m.parquet", method="umap")
    with pytest.raises(InputError, match="accepted: auto, pca, umap"):
        project(collection, tmp_path / "m.parquet", method="tsne")  # type: ignore[arg-type]
    with pytest.raises(CollectionError, match=r"accepted: \.parquet"):
        project(collection, tmp_path / "m.csv")
    project(collection, tmp_path / "m.parquet")
    with pytest.raises(CollectionError, match="already exists"):
        project(collection, tmp_path / "m.parquet")
