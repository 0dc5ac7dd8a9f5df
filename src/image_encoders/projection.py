"""A collection as a map: each image a point in the plane, similar images near each other, in a Parquet file.

    embeddings ─covariance→ 50 principal components ─the first two, or UMAP→ x, y

Three passes over the collection, a batch at a time; 50 numbers of each image are held. UMAP is fitted to some of the
images and places the others among them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from image_encoders import exports, tables
from image_encoders.arrays import at_unit_length
from image_encoders.collection import ITEMS
from image_encoders.errors import InputError, MissingExtra
from image_encoders.tables import storage

if TYPE_CHECKING:
    import pyarrow as pa

    from image_encoders.collection import Collection

Method = Literal["auto", "pca", "umap"]

ENDINGS = (".parquet",)
COMPONENTS = 50  # numbers of an image that UMAP is given
FITTED = 20_000  # images that UMAP is fitted to
NEAR = 5  # of these that each of the others is placed among
BATCH, BLOCK = 1 << 14, 1 << 10  # rows read, and images placed, at a time
COLUMNS = ["id", "path", "member", "time_s", "width", "height", "size", "taken"]


@dataclass(frozen=True)
class Projected:
    """What was written: of how many images, by "pca" or "umap"; of the variance, the share of the first two
    principal components.
    """

    images: int
    method: str
    variance: float


def project(collection: Collection, path: Path, *, method: Method = "auto", overwrite: bool = False) -> Projected:
    """Write the map of a collection: the columns `COLUMNS`, and x and y.

    path: ends in .parquet
    method: "pca", "umap", or "auto", which is umap where that package is installed
    overwrite: replace a file that is there

    Raises CollectionError for a file that cannot be written, MissingExtra for "umap" without the package.
    """
    if method not in ("auto", "pca", "umap"):
        raise InputError(f"method={method!r}; accepted: auto, pca, umap", code="method")
    there = find_spec("umap") is not None
    if method == "umap" and not there:
        raise MissingExtra("umap-learn", "map", 'a map with method="umap"')
    exports.check(path, overwrite, ENDINGS)
    by_umap = there and method != "pca"

    def write(table: Any) -> Projected:
        tables.pinned(table)
        rows, reduced, variance = _reduced(table, collection.dim)
        enough = len(rows) > COMPONENTS  # UMAP has nothing to arrange among fewer
        points = _umap(reduced) if by_umap and enough else reduced[:, :2]
        with storage(path, "written"):
            exports.write(path, _pieces(table, rows, points), _schema(), len(rows))
        return Projected(len(rows), "umap" if by_umap and enough else "pca", variance)

    written: Projected | None = collection.read(ITEMS, write, None)
    if written is None:  # a run that was killed at once leaves no table
        with storage(path, "written"):
            exports.write(path, [], _schema(), 0)
    return written or Projected(0, "pca", 0.0)


def _batches(table: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The database's numbers of some rows, and their embeddings at unit length."""
    for batch in table.search().select(["embedding"]).with_row_id(True).to_batches(BATCH):
        yield batch["_rowid"].to_numpy(), at_unit_length(exports.matrix(batch))


def _reduced(table: Any, dim: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The rows' numbers in order, (N,), their principal components, (N, C), and the share of the first two in the
    variance.
    """
    count, total, products = 0, np.zeros(dim), np.zeros((dim, dim))
    for _, units in _batches(table):
        count += len(units)
        total += units.sum(axis=0, dtype=np.float64)
        products += units.T @ units
    mean = total / max(1, count)
    variances, directions = np.linalg.eigh(products / max(1, count) - np.outer(mean, mean))
    variances, directions = variances[::-1].clip(min=0), directions[:, ::-1]
    # A direction and its opposite are as good: the greatest number of each is positive, so that maps stay as they are.
    signs = np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(dim)])
    kept = (directions * signs)[:, : max(2, min(COMPONENTS, dim))].astype(np.float32)
    rows, reduced = np.empty(count, np.uint64), np.zeros((count, max(2, kept.shape[1])), np.float32)
    done = 0
    for numbers, units in _batches(table):
        end = done + len(units)
        rows[done:end] = numbers
        reduced[done:end, : kept.shape[1]] = (units - mean.astype(np.float32)) @ kept
        done = end
    order = np.argsort(rows)
    share = float(variances[:2].sum() / variances.sum()) if variances.sum() > 0 else 0.0
    return rows[order], reduced[order], share


def _umap(reduced: np.ndarray) -> np.ndarray:
    """(N, C) -> (N, 2)"""
    umap = importlib.import_module("umap")
    some = np.sort(np.random.default_rng(0).choice(len(reduced), min(FITTED, len(reduced)), replace=False))
    model = umap.UMAP(n_neighbors=min(15, len(some) - 1), min_dist=0.1, random_state=0, n_jobs=1)
    points = np.empty((len(reduced), 2), np.float32)
    points[some] = model.fit_transform(reduced[some])
    others = np.setdiff1d(np.arange(len(reduced)), some, assume_unique=True)
    for start in range(0, len(others), BLOCK):
        part = others[start : start + BLOCK]
        points[part] = _among(reduced[part], reduced[some], points[some])
    return points


def _among(reduced: np.ndarray, fitted: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The middle of the points of the nearest that were fitted, the nearer the heavier: (B, 2).

    UMAP's own `transform` had not placed 4,000 after two minutes.
    """
    squares = (fitted**2).sum(axis=1) - 2 * reduced @ fitted.T  # but for each one's own, which orders nothing
    everyone = np.arange(len(reduced))
    near = np.empty((len(reduced), min(NEAR, len(fitted))), np.int64)
    for place in range(near.shape[1]):  # a few times the least is four times as fast as a partition
        near[:, place] = nearest = squares.argmin(axis=1)
        squares[everyone, nearest] = np.inf
    distances = np.linalg.norm(reduced[:, None] - fitted[near], axis=2)
    weights = 1 / np.maximum(distances, 1e-6)
    return (points[near] * weights[:, :, None]).sum(axis=1) / weights.sum(axis=1, keepdims=True)


def _schema() -> pa.Schema:
    import pyarrow as pa

    facts = tables.items_schema(1)
    return pa.schema([*(facts.field(name) for name in COLUMNS), ("x", pa.float32()), ("y", pa.float32())])


def _pieces(table: Any, rows: np.ndarray, points: np.ndarray) -> Iterator[pa.Table]:
    """What the file holds, a batch at a time."""
    import pyarrow as pa

    for batch in table.search().select(COLUMNS).with_row_id(True).to_batches(BATCH):
        places = points[np.searchsorted(rows, batch["_rowid"].to_numpy())]
        yield pa.table([*(batch[name] for name in COLUMNS), *map(pa.array, places.T.copy())], schema=_schema())
