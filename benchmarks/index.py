"""A collection of a million: how its index answers, and how its near-duplicates are found.

    python benchmarks/index.py search --rows 1000000              # build, recall@10, ms; texts and images apart
    python benchmarks/index.py duplicates --rows 1000000
    python benchmarks/index.py duplicates --rows 100000 --exact   # also by comparing all pairs

The embeddings are drawn from a seed, clustered like a model's (`Drawn`). A tenth of them are near-duplicates of others.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from bulk import machine, show

PIECE = 1 << 16  # embeddings stored at once
TOPICS, KINDS = 1000, 20  # topics, and kinds of images within each
NEAR = 10  # one embedding in so many is a near-duplicate
QUERIES = 200  # of each modality


class Drawn:
    """Embeddings like those of a model for images and texts.

    Their variance falls off as one over the dimension's rank, in directions that are no axes. Topics are drawn from it,
    kinds of images around each topic (0.6 of the spread), images around each kind (0.5). All images lie on one side of
    the origin, so that two of them have a cosine of 0.5 as a rule, and all texts on another: a text has a kind too, and
    its cosine with the images of it is about 0.3.
    """

    def __init__(self, dim: int):
        rng = np.random.default_rng(0)
        directions = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        self.scale = (directions * np.sqrt(1 / np.arange(1, dim + 1))[:, None]).astype(np.float32)
        size = float(np.linalg.norm(self.scale))
        self.offsets = {name: _of_length(rng.standard_normal(dim), 1.2 * size) for name in ("image", "text")}
        topics = self.noise(rng, TOPICS)
        self.kinds = np.repeat(topics, KINDS, axis=0) + 0.6 * self.noise(rng, TOPICS * KINDS)

    def noise(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.standard_normal((count, len(self.scale)), dtype=np.float32) @ self.scale

    def draw(self, rng: np.random.Generator, count: int, modality: str = "image") -> np.ndarray:
        kinds = self.kinds[rng.integers(0, len(self.kinds), count)]
        return self.offsets[modality] + kinds + 0.5 * self.noise(rng, count)

    def images(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Images, the last tenth of them near-duplicates of others, at a cosine of 0.9 to 1."""
        drawn = self.draw(rng, count)
        near = count // NEAR
        originals = drawn[rng.integers(0, count - near, near)]
        cosines = rng.uniform(0.9, 1, (near, 1))
        other = _of_length(rng.standard_normal(originals.shape), np.linalg.norm(originals, axis=1, keepdims=True))
        drawn[count - near :] = originals + np.sqrt(1 / cosines**2 - 1) * other
        return drawn


def _of_length(vectors: np.ndarray, length: Any) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True) * length).astype(np.float32)


def fill(folder: Path, count: int, dim: int) -> Path:
    """A collection of so many embeddings, without an index."""
    import pyarrow as pa

    from image_encoders import tables
    from image_encoders.collection import ITEMS, Collection
    from image_encoders.encoder import Encoder

    collection = Collection.create(folder, Encoder("benchmark", dim, {}, "0" * 32))
    drawn, rng = Drawn(dim), np.random.default_rng(1)
    schema = tables.items_schema(dim)
    with collection.writing():
        for start in range(0, count, PIECE):
            numbers = np.arange(start, min(count, start + PIECE))
            flat = pa.array(drawn.images(rng, len(numbers)).ravel())
            ids = pa.array([f"/photos/{number:09d}.jpg" for number in numbers])
            known = {
                "id": ids,
                "path": ids,
                "embedding": pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type),
                "width": pa.array(np.full(len(numbers), 640, np.int32)),
                "height": pa.array(np.full(len(numbers), 480, np.int32)),
                "sha256": pa.array([f"{number:064x}" for number in numbers]),
                "size": pa.array(numbers),
                "state": pa.array([""] * len(numbers)),
            }
            columns = [known.get(field.name, pa.nulls(len(numbers), field.type)) for field in schema]
            collection._tables[ITEMS].add(pa.table(columns, schema=schema))
    return folder


def search(folder: Path, options: argparse.Namespace) -> list[dict]:
    """The index: how long it takes to build, what it finds of the ten nearest, and how long a search takes."""
    return [_apart(_build, folder), *_apart(_search, folder, options.dim)]


def _build(folder: Path) -> dict:
    from image_encoders.collection import Collection

    collection = Collection.open(folder)
    began = time.perf_counter()
    collection.settle()
    return {
        "what": "build",
        "s": time.perf_counter() - began,
        "recall@10": collection.info()["recall"],
        "peak MB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,  # of the upkeep's process
    }


def _search(folder: Path, dim: int) -> list[dict]:
    """Ten nearest of new texts and new images, against comparing with all embeddings."""
    from image_encoders import exports
    from image_encoders.arrays import at_unit_length
    from image_encoders.collection import ITEMS, Collection

    collection, drawn, rng = Collection.open(folder), Drawn(dim), np.random.default_rng(2)
    queries = {name: at_unit_length(drawn.draw(rng, QUERIES, name)) for name in ("text", "image")}
    asked = np.concatenate(list(queries.values()))
    best = np.full((len(asked), 10), -2.0)
    ids = np.full((len(asked), 10), "", object)
    for batch in collection.scan(ITEMS, ["id", "embedding"]):
        scores = np.concatenate([best, asked @ at_unit_length(exports.matrix(batch)).T], axis=1)
        names = np.concatenate([ids, np.broadcast_to(batch["id"].to_numpy(False), (len(asked), len(batch)))], axis=1)
        first = np.argpartition(-scores, 10, axis=1)[:, :10]
        best, ids = np.take_along_axis(scores, first, 1), np.take_along_axis(names, first, 1)
    expected = dict(zip(queries, (ids[:QUERIES], ids[QUERIES:])))
    return [{"what": name, **_timed(collection, queries[name], expected[name])} for name in queries]


def _timed(collection: Any, queries: np.ndarray, expected: np.ndarray) -> dict:
    taken, found = [], 0
    for query, ids in zip(queries, expected):
        began = time.perf_counter()
        hits = collection.search(query, 10)
        taken.append(1000 * (time.perf_counter() - began))
        found += len({hit.id for hit in hits} & set(ids))
    first = taken.pop(0)
    taken.sort()
    return {
        "recall@10": found / (10 * len(queries)),
        "first ms": first,
        "p50 ms": statistics.median(taken),
        "p95 ms": taken[int(0.95 * len(taken))],
        "best ms": taken[0],
        "peak MB": peak(),
    }


def duplicates(folder: Path, options: argparse.Namespace) -> list[dict]:
    """Cells, and all pairs if asked for, each in a process of its own."""
    return [_apart(_duplicates, folder, exact) for exact in ([False, True] if options.exact else [False])]


def _duplicates(folder: Path, exact: bool) -> dict:
    from image_encoders import duplicates
    from image_encoders.collection import Collection

    if exact:
        duplicates.EXACT_BELOW = 1 << 60
    began = time.perf_counter()
    found = duplicates.find_duplicates(Collection.open(folder))
    recall = found.recall
    return {
        "how": "cells" if recall else "all pairs",
        "s": time.perf_counter() - began,
        "peak MB": peak(),
        "groups": len(found.groups),
        "images in groups": sum(len(group.images) for group in found.groups),
        "of a sample's pairs": recall and recall.pairs,
        "found": recall and recall.found / max(1, recall.pairs),
    }


def peak() -> float:
    """Of this process [MB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="search | duplicates")
    for function in (search, duplicates):
        command = commands.add_parser(function.__name__, help=(function.__doc__ or "").splitlines()[0])
        command.set_defaults(function=function)
        command.add_argument("--rows", type=int, default=100_000)
        command.add_argument("--dim", type=int, default=512)
        command.add_argument("--work", type=Path, metavar="FOLDER", help="keep the collection there")
        command.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    command.add_argument("--exact", action="store_true", help="also compare all pairs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.work or Path(temporary)) / f"{options.rows}x{options.dim}"
        if not folder.exists():
            _apart(fill, folder, options.rows, options.dim)
        table = options.function(folder, options)
    where = machine()
    show(where, table, markdown=True)
    if options.json:
        options.json.write_text(json.dumps({**where, "rows": options.rows, "table": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
