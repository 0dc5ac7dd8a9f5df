"""The upkeep of a collection's tables: small files are merged, and the index follows what was added.

Each step is one change, which the database makes whole or not at all, in a process of its own: its memory is gone with
it, and it can be ended at any moment. So what writes to a collection for days needs no more memory for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from image_encoders import exports, tables
from image_encoders.arrays import at_unit_length
from image_encoders.child import call_in_child
from image_encoders.process import frugal
from image_encoders.tables import LIST, connect

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

LIMIT_S = 600.0  # for all steps together
SMALL_FRAGMENTS = 256  # files of the database before they are merged: one merging is of a million rows or two
UNINDEXED = 0.1  # of the rows may be missing in the index (they are found, at the cost of comparing them)
GROWN, PIECES = 0.5, 4  # of the rows, if missing, or pieces that were added to the index: it is built anew
INDEX_CACHE = 1 << 25  # bytes that the database holds of an index meanwhile
MEASURED, NEAREST = 64, 10  # rows whose nearest are looked for in a new index


def is_scattered(table: Any) -> bool:
    """Whether the small files of a table have become so many that they should be merged."""
    return bool(table.stats()["fragment_stats"]["num_small_fragments"] > SMALL_FRAGMENTS)


def index_due(table: Any) -> Callable[[Path, str], float | None] | None:
    """What should be done about the index over the embeddings: `optimize`, `build_index` or nothing."""
    rows = table.count_rows()
    if rows < tables.EXACT_BELOW:
        return None
    temporary = os.environ.get("TMPDIR") or "/tmp"
    if os.name == "posix" and not os.access(temporary, os.W_OK):
        logger.warning("no index is built, so that searches compare all rows: %s cannot be written (TMPDIR)", temporary)
        return None
    existing = [table.index_stats(index.name) for index in table.list_indices()]
    if existing and existing[0].num_unindexed_rows <= UNINDEXED * rows:
        return None
    if existing and existing[0].num_unindexed_rows <= GROWN * rows and existing[0].num_indices < PIECES:
        return optimize  # adds a piece with lists of its own
    return build_index


def apart(step: Callable[[Path, str], Result], folder: Path, name: str, limit_s: float) -> Result:
    """What `optimize` or `build_index` returns, in a process of its own.

    Raises ChildTooSlow where it is not done in time, and ChildDied where that process was killed: then the table is as
    it was. What was written until then, and belongs to nothing, is removed by the next merging: unfinished files at
    once, finished ones when they are a week old.
    """
    result: Result = call_in_child(
        f"{__name__}:{step.__name__}", folder, name, environment=frugal(), limit_s=max(0.0, limit_s)
    )
    return result


def optimize(folder: Path, name: str) -> None:
    """Merge the files of a table, bring its index up to date, and remove what killed processes had not finished."""
    for unfinished in (folder / f"{name}.lance").rglob(".tmp*"):  # the database renames what it has written
        unfinished.unlink(missing_ok=True)
    # A reader of an older version finds its files gone, and reads again: see `Collection.read`.
    connect(folder, INDEX_CACHE).open_table(name).optimize(cleanup_older_than=timedelta(milliseconds=1))


def build_index(folder: Path, name: str) -> float:
    """A new index over the embeddings of a table; the share of the nearest rows that it finds."""
    from lancedb.index import IvfSq

    table = connect(folder, INDEX_CACHE).open_table(name)
    # 8-bit numbers and an exact second look found every neighbour even among random vectors, where product
    # quantisation found one in seven and took twenty times as long to build.
    lists = max(1, table.count_rows() // LIST)
    table.create_index("embedding", config=IvfSq(distance_type="cosine", num_partitions=lists))
    return recall(table)


def recall(table: Any) -> float:
    """Of the rows nearest to some of the rows, the share that the index finds."""
    rows = table.count_rows()
    some = np.sort(np.random.default_rng(0).choice(rows, min(MEASURED, rows), replace=False)).tolist()
    queries = at_unit_length(exports.matrix(table.take_offsets(some).select(["embedding"]).to_arrow()))
    queries = queries[queries.any(axis=1)]
    least = np.full((len(queries), NEAREST), -np.inf, np.float32)
    for batch in table.search().select(["embedding"]).to_batches(1 << 12):
        scores = np.concatenate([least, queries @ at_unit_length(exports.matrix(batch)).T], axis=1)
        least = -np.partition(-scores, NEAREST - 1, axis=1)[:, :NEAREST]
    # Rows as near as the tenth count as found: which of them is found is chance.
    found = [
        np.count_nonzero(1 - tables.best(table, query, NEAREST, None)[1] >= scores.min() - 1e-5)
        for query, scores in zip(queries, least)
    ]
    return sum(found) / (NEAREST * len(queries)) if found else 1.0
