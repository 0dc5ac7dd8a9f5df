"""A collection in memory, for fast searches, page by page, while the collection grows.

    collection ─follow→ view ─rank→ ranking ─page→ hits

A view is what the collection held at one version of its database: the facts about each image, and the embeddings at
unit length, so that all scores are one product of a matrix and a vector, and exact. It costs 4 x dim bytes an image and
about 400 for its facts: 250 MB for 100,000 images of 512 numbers. Where the embeddings are more than `memory`, they
stay on the disk, and the database's index finds the `BEST` images of a query.
"""

from __future__ import annotations

import posixpath
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from image_encoders import exports, tables
from image_encoders.arrays import at_unit_length
from image_encoders.collection import ITEMS
from image_encoders.records import Locator
from image_encoders.tables import Where, path_of

if TYPE_CHECKING:
    import pyarrow as pa

    from image_encoders.collection import Collection

Sort = Literal["score", "newest", "oldest", "path"]
Group = Literal["folder", "month"]

MEMORY = 2 << 30  # bytes of embeddings that are held: a million images of 512 numbers
BEST = 10_000  # images that a search finds where the embeddings are on the disk
SAMPLE = 2048  # images whose scores say what is usual
MATCHES = 100  # images at least that are sorted or grouped where a query has fewer matches
RANKINGS = 16  # the latest ones, which are kept for their other pages
DEAD = 0.25  # of the rows in memory may be gone from the collection before it is read again
SPARE = 1.25  # times the rows that there are may be held before they are moved; what is not used is never touched
BATCH = 1 << 14  # rows read at a time
DIGITS = 6  # of a score: more are rounding
NO_DATE = "no date"  # the group of images without
LEAST_SPREAD = 1e-5  # of scores; all images of a collection are the same below it
COLUMNS = ["path", "member", "time_s", "sha256", "width", "height", "size", "taken", "state"]
FACTS = np.dtype(
    [
        ("row", np.uint64),  # the database's number for it
        ("sha256", "S64"),
        ("digest", np.uint64),  # of the sha256: a random number, equal for copies
        ("width", np.int32),
        ("height", np.int32),
        ("bytes", np.int64),
        ("taken", "M8[ms]"),
        ("date", "M8[ms]"),  # when taken, else when its file was changed
        ("folder", np.int32),
        ("directed", np.bool_),  # its embedding is not all zeros
    ]
)
# The state of a file, or of what is in one, begins with the file's size and the time of its last change [ns].
CHANGED = re.compile(r"[0-9]{1,18} ([0-9]{1,18}|[0-8][0-9]{18})(?: .*)?", re.DOTALL)
MIX = np.array([0x9E3779B97F4A7C15 * (2 * number + 1) % 2**64 for number in range(8)], np.uint64)


@dataclass(frozen=True)
class Image:
    """An image of a collection, for display.

    key: the sha256 of its bytes, which copies share
    name: of its file, or of the archive's member; of a frame with its time
    folder: below the folders that the collection was made from
    locator: where its bytes are
    taken: when it was taken; None if unknown
    """

    key: str
    name: str
    folder: str
    locator: Locator
    width: int
    height: int
    bytes: int
    taken: datetime | None


@dataclass(frozen=True)
class Ranking:
    """The result of a search, in order, without the facts of each hit.

    positions: of the images in the view
    scores: cosines; None where all images are listed without a query
    copies: how many other images have the same bytes as each
    groups: the name of each one's group; equal ones follow each other; None without groups
    usual, spread: the median and a robust deviation of the query's scores over a sample of the collection
    line: the expected best of that many scores by chance alone
    """

    view: View
    positions: np.ndarray
    scores: np.ndarray | None
    copies: np.ndarray
    groups: Sequence[str] | None = None
    usual: float | None = None
    spread: float | None = None
    line: float | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def above(self, place: int) -> float | None:
        """How far the score at `place` is above the usual one, in spreads."""
        if self.scores is None or self.usual is None or self.spread is None:
            return None
        return (float(self.scores[place]) - self.usual) / self.spread


class Gallery:
    """A collection in memory; any number of threads may search it.

    memory: bytes of embeddings that may be held; beyond that, the database's index is searched
    """

    def __init__(self, collection: Collection, *, memory: int = MEMORY):
        self.collection = collection
        self.memory = memory
        self._following = threading.Lock()
        self._view: View | None = None
        self._rankings: OrderedDict[tuple, Ranking] = OrderedDict()

    def view(self) -> View:
        """The current content of the collection."""
        return self.collection.read(ITEMS, self._follow, View.empty(self.collection))

    def rank(
        self,
        query: np.ndarray | None = None,
        *,
        where: Where | None = None,
        sort: Sort = "score",
        group: Group | None = None,
        each_copy: bool = False,
    ) -> Ranking:
        """All images that match a search, in order.

        query: (dim,), as `Collection.direction` or `mix` gives it; None: all images are listed
        where: a filter
        sort: "score", or by the image's date or path; without a query "score" means "newest"
        group: images of a folder or a month together, the group of the first image first
        each_copy: files with the same bytes are separate hits

        With a query, "newest", "oldest", "path" and groups are an order among its matches: the images whose scores
        are above the line, and `MATCHES` at least. Equal scores come in the order in which they were stored.
        """
        condition = where.condition() if where is not None else None

        def rank(table: Any) -> Ranking:
            view = self._follow(table)
            asked = (view.version, None if query is None else query.tobytes(), condition, sort, group, each_copy)
            if (known := self._rankings.get(asked)) is not None:
                return known
            found = view.rank(query, condition, sort, group, each_copy)
            with self._following:
                self._rankings[asked] = found
                while len(self._rankings) > RANKINGS or next(iter(self._rankings))[0] != view.version:
                    self._rankings.popitem(last=False)  # an older version's would keep its view in memory
            return found

        empty = View.empty(self.collection)
        nothing = Ranking(empty, np.empty(0, np.int64), None, np.empty(0, np.int64))
        return self.collection.read(ITEMS, rank, nothing)

    def _follow(self, table: Any) -> View:
        """The view of a table as it is now: the last one with the changes since."""
        with self._following:
            if self._view is None or self._view.version != table.version:
                tables.pinned(table)
                view = self._view and self._changed(self._view, table)
                self._view = view or self._read(table)
            return self._view

    def _read(self, table: Any) -> View:
        """The view of a table, read from its beginning to its end."""
        held = _Held(self.collection.dim, table.count_rows(), self.memory)
        columns = [*COLUMNS, "embedding"] if held.units is not None else COLUMNS
        for rows in table.search().select(columns).with_row_id(True).to_batches(BATCH):
            held.append(rows)
        return View(self.collection, table, held, np.ones(held.count, bool))

    def _changed(self, view: View, table: Any) -> View | None:
        """A view with the changes since `view`; None if there are so many that reading everything again is better."""
        now = table.search().select(["width"]).with_row_id(True).to_arrow()["_rowid"].to_numpy()
        held = view.held
        held.cut(view.count)  # what an attempt that failed has left
        before = held.facts["row"][: view.count]
        present = np.isin(before, now)
        new = np.setdiff1d(now, before[present], assume_unique=True)
        if len(new) > max(len(before), BATCH) or np.count_nonzero(~present) > DEAD * len(before):
            return None
        if held.units is not None and 4 * self.collection.dim * len(now) > self.memory:
            return None
        columns = [*COLUMNS, "embedding"] if held.units is not None else COLUMNS
        for start in range(0, len(new), BATCH):
            some = new[start : start + BATCH].tolist()
            for rows in table.take_row_ids(some).select(columns).with_row_id().to_arrow().to_batches():
                held.append(rows)
        return View(self.collection, table, held, np.concatenate([present, np.ones(held.count - len(before), bool)]))


class _Held:
    """Rows in memory, which only grow: views of older versions go on reading theirs while newer ones are added.

    units: (capacity, dim) float32, embeddings at unit length; those without a direction are 0; None: too many to hold
    """

    def __init__(self, dim: int, count: int, memory: int):
        self.dim = dim
        self.count = 0
        capacity = int(count * SPARE)
        self.facts = np.empty(capacity, FACTS)
        self.units = np.empty((capacity, dim), np.float32) if 4 * dim * count <= memory else None
        self.paths: list[str] = []
        self.members: dict[int, str] = {}
        self.times: dict[int, float] = {}
        self.folders: list[str] = []  # as paths
        self._numbers: dict[str, int] = {}  # of the folders

    def append(self, rows: pa.RecordBatch) -> None:
        """Rows of the table; where more memory is needed, twice as much is taken, of which nothing is touched yet."""
        begin, end = self.count, self.count + len(rows)
        if end > len(self.facts):
            self.facts = _grown(self.facts, begin, max(end, 2 * begin))
            if self.units is not None:
                self.units = _grown(self.units, begin, max(end, 2 * begin))
        facts = self.facts[begin:end]
        facts["row"] = rows["_rowid"].to_numpy()
        facts["sha256"] = rows["sha256"].to_pylist()
        facts["digest"] = _digests(facts["sha256"])
        for name, column in (("width", "width"), ("height", "height"), ("bytes", "size")):
            facts[name] = rows[column].to_numpy()
        facts["taken"] = rows["taken"].to_numpy(zero_copy_only=False)
        facts["date"] = [_changed(state) for state in rows["state"].to_pylist()]
        facts["date"] = np.where(np.isnat(facts["taken"]), facts["date"], facts["taken"])
        members = rows["member"].to_pylist()
        paths = [path_of(path) for path in rows["path"].to_pylist()]
        self.members.update((begin + place, member) for place, member in enumerate(members) if member is not None)
        times = rows["time_s"].to_pylist()
        self.times.update((begin + place, time_s) for place, time_s in enumerate(times) if time_s is not None)
        facts["folder"] = [
            self._folder(path if member is not None else path.rpartition("/")[0])
            for path, member in zip(paths, members)
        ]
        self.paths += paths
        facts["directed"] = True
        if self.units is not None:
            self.units[begin:end] = at_unit_length(exports.matrix(rows))
            facts["directed"] = self.units[begin:end].any(axis=1)
        self.count = end

    def cut(self, count: int) -> None:
        """Forget what came after the first `count` rows."""
        self.count = count
        del self.paths[count:]
        self.members = {place: member for place, member in self.members.items() if place < count}
        self.times = {place: time_s for place, time_s in self.times.items() if place < count}

    def _folder(self, path: str) -> int:
        """The number of a folder, or of an archive."""
        number = self._numbers.get(path)
        if number is None:
            self.folders.append(path)
            number = self._numbers[path] = len(self.folders) - 1
        return number


class View:
    """What a collection holds at one version of its database; see the module."""

    def __init__(self, collection: Collection, table: Any, held: _Held, present: np.ndarray):
        self.collection = collection
        self.version: int | None = None if table is None else table.version
        self.held = held
        self.count = len(present)  # rows in memory, of which some may be gone
        self.present = np.flatnonzero(present)
        self._table = table
        self._facts = held.facts[: self.count]
        self._units = None if held.units is None else held.units[: self.count]

    @classmethod
    def empty(cls, collection: Collection) -> View:
        """A view of nothing."""
        return cls(collection, None, _Held(collection.dim, 0, 0), np.empty(0, bool))

    def __len__(self) -> int:
        return len(self.present)

    def image(self, position: int) -> Image:
        """The image at a position."""
        facts = self._facts[position]
        path, member = self.held.paths[position], self.held.members.get(position)
        time_s = self.held.times.get(position)
        name = posixpath.basename((member or path).rstrip("/"))
        return Image(
            key=facts["sha256"].decode(),
            name=name if time_s is None else f"{name}#t={time_s:.7g}",
            folder=self._folders[facts["folder"]],
            locator=Locator(path, None if member is None else path_of(member), time_s),
            width=int(facts["width"]),
            height=int(facts["height"]),
            bytes=int(facts["bytes"]),
            taken=facts["taken"].item(),
        )

    def find(self, key: str) -> list[int]:
        """The positions of the images with these bytes, in the order in which they were stored."""
        digests, positions = self._by_digest
        [digest] = _digests(np.array([key.encode("ascii", "replace")], "S64"))
        begin, end = np.searchsorted(digests, digest, "left"), np.searchsorted(digests, digest, "right")
        return [int(one) for one in positions[begin:end] if self._facts["sha256"][one].decode() == key]

    def direction(self, position: int) -> np.ndarray:
        """The embedding at a position, at unit length."""
        return self._read_units(np.array([position]))[0] if self._units is None else self._units[position]

    def folders(self, name: str) -> tuple[str, ...]:
        """The folders, as paths, that `Image.folder` calls by this name, and those below such.

        If there are none, those with this in their names, ignoring case.
        """
        name = name.rstrip("/")
        found = set()
        for path, folder in zip(self.held.folders, self._folders):
            if folder == name or folder.startswith(name + "/"):
                for _ in range(folder[len(name) :].count("/")):
                    path = path.rpartition("/")[0]
                found.add(path)
        parts = zip(self.held.folders, self._folders)
        return tuple(sorted(found or {path for path, folder in parts if name.casefold() in folder.casefold()}))

    def rank(
        self, query: np.ndarray | None, condition: str | None, sort: Sort, group: Group | None, each_copy: bool
    ) -> Ranking:
        """As `Gallery.rank`, among the rows of this version."""
        positions = self.present if condition is None else self._matching(condition)
        usual = spread = line = scores = None
        if query is not None:
            positions, scores, usual, spread = self._scored(query, positions, condition)
        elif sort != "path":
            positions = positions[self._by_date(positions, sort)]
        positions, scores, copies = self._folded(positions, scores, each_copy)
        if scores is not None and usual is not None and spread is not None:
            line = usual + spread * best_by_chance(len(positions))
            if sort != "score" or group is not None:
                matches = max(int(np.count_nonzero(scores >= line)), MATCHES)
                positions, scores, copies = positions[:matches], scores[:matches], copies[:matches]
        names = None
        if sort == "path":
            positions, scores, copies = _taken(self._by_path(positions), positions, scores, copies)
        elif query is not None and sort != "score":
            positions, scores, copies = _taken(self._by_date(positions, sort), positions, scores, copies)
        if group is not None:
            numbers, texts = self._groups(positions, group)
            order = _by_group(numbers, len(texts))
            positions, scores, copies = _taken(order, positions, scores, copies)
            names = texts[numbers[order]].tolist()
        return Ranking(self, positions.astype(np.int32), scores, copies.astype(np.int32), names, usual, spread, line)

    def _scored(
        self, query: np.ndarray, positions: np.ndarray, condition: str | None
    ) -> tuple[np.ndarray, np.ndarray, float, float]:
        """The positions by their scores, the best one first; the scores; their usual value and spread."""
        if self._units is None:
            usual, spread = usual_and_spread(_scores(self._sampled, query))
            rows, distances = tables.best(self._table, query, BEST, condition)
            positions, scores = self._positions(rows), np.round(1 - distances, DIGITS)
        else:
            all_scores = _scores(self._units, query)
            usual, spread = usual_and_spread(all_scores[self._sample])
            positions = positions[self._facts["directed"][positions]]
            scores = all_scores[positions]
        order = _best_first(scores)
        return positions[order], scores[order], usual, spread

    def _folded(
        self, positions: np.ndarray, scores: np.ndarray | None, each_copy: bool
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """The first one of images with the same bytes, and how many others there are."""
        numbers, count = self._contents
        if each_copy or count == len(self):
            return positions, scores, np.zeros(len(positions), np.int64)
        numbers = numbers[positions]
        first = _first(numbers, count)
        kept = np.sort(first[first < len(numbers)])
        copies = np.bincount(numbers, minlength=count)[numbers[kept]] - 1
        return positions[kept], None if scores is None else scores[kept], copies

    def _by_date(self, positions: np.ndarray, sort: Sort) -> np.ndarray:
        """The order of images by their dates; those without come last."""
        dates = self._facts["date"][positions]
        numbers = dates.astype(np.int64)
        return np.lexsort((numbers if sort == "oldest" else -numbers, np.isnat(dates)))

    def _by_path(self, positions: np.ndarray) -> np.ndarray:
        """The order of images by their paths."""
        paths = [self.held.paths[position] for position in positions]
        return np.array(sorted(range(len(paths)), key=paths.__getitem__), np.int64)

    def _groups(self, positions: np.ndarray, group: Group) -> tuple[np.ndarray, np.ndarray]:
        """The number of each one's group, and the groups' names."""
        if group == "folder":
            names, numbers = np.unique(np.array(self._folders, object), return_inverse=True)
            return numbers[self._facts["folder"][positions]], names
        months, numbers = np.unique(self._facts["date"][positions].astype("M8[M]"), return_inverse=True)
        return numbers, np.array([NO_DATE if np.isnat(month) else str(month) for month in months], object)

    def _matching(self, condition: str) -> np.ndarray:
        """The positions of the rows for which a condition of the database holds."""
        found = self._table.search().where(condition).select(["width"]).with_row_id(True).to_arrow()
        return np.sort(self._positions(found["_rowid"].to_numpy()))

    def _positions(self, rows: np.ndarray) -> np.ndarray:
        """The positions of rows of the database."""
        numbers, positions = self._by_row
        return positions[np.searchsorted(numbers, rows)]

    def _read_units(self, positions: np.ndarray) -> np.ndarray:
        """Embeddings that are not held, at unit length."""
        rows = self._table.take_row_ids(self._facts["row"][positions].tolist()).select(["embedding"]).to_arrow()
        return at_unit_length(exports.matrix(rows))

    @cached_property
    def _by_row(self) -> tuple[np.ndarray, np.ndarray]:
        return self._sorted_by("row")

    @cached_property
    def _by_digest(self) -> tuple[np.ndarray, np.ndarray]:
        return self._sorted_by("digest")

    def _sorted_by(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        values = self._facts[name][self.present]
        order = np.argsort(values, kind="stable")
        return values[order], self.present[order]

    @cached_property
    def _contents(self) -> tuple[np.ndarray, int]:
        """A number for each position, equal for copies, and how many different ones there are."""
        digests, positions = self._by_digest
        starts = np.ones(len(digests), np.int64)
        starts[1:] = digests[1:] != digests[:-1]
        numbers = np.zeros(self.count, np.int64)
        numbers[positions] = np.cumsum(starts) - 1
        return numbers, int(starts.sum())

    @cached_property
    def _sample(self) -> np.ndarray:
        """The positions of the images with the smallest digests: random ones, and much the same as it grows."""
        _, positions = self._by_digest
        return positions[self._facts["directed"][positions]][:SAMPLE]

    @cached_property
    def _sampled(self) -> np.ndarray:
        return self._read_units(self._sample)

    @cached_property
    def _folders(self) -> list[str]:
        """The name of each folder: below the one that the collection was made from, so that it gives away no path."""
        paths = list(self.held.folders)
        said = {source.removeprefix("@") for run in self.collection.runs() for source in run.sources}
        return folder_names(paths, [source for source in said if source.startswith("/")])


def folder_names(paths: Sequence[str], sources: Sequence[str]) -> list[str]:
    """What folders are called: their paths below the source that they lie in, whose name comes first if there are many.

    Those that lie in none are named from the folder that they all lie in; where they have only the root "/" in
    common, by their own names. Addresses stay as they are.
    """
    roots = sorted({source for source in sources if any(_within(path, source) for path in paths)}, key=len)
    roots = [root for place, root in enumerate(roots) if not any(_within(root, outer) for outer in roots[:place])]
    others = [path for path in paths if path.startswith("/") and not any(_within(path, root) for root in roots)]
    if others:
        roots.append(posixpath.commonpath(others))
    names = []
    for path in paths:
        root = next((root for root in roots if _within(path, root)), None)
        if root is None:  # an address
            name = path
        elif root == "/":
            name = posixpath.basename(path)
        else:
            outer = [posixpath.basename(root)] if len(roots) > 1 else []
            name = "/".join([*outer, *path[len(root) :].strip("/").split("/")]).rstrip("/")
        names.append(tables.as_text(name or "."))
    return names


def usual_and_spread(scores: np.ndarray) -> tuple[float, float]:
    """The median and a robust spread of some scores, since the matches are among them.

    The spread is measured below the median: matches are above.
    """
    if not len(scores):
        return 0.0, LEAST_SPREAD
    low, middle = np.quantile(scores, [NormalDist().cdf(-1), 0.5])
    return float(middle), max(float(middle - low), LEAST_SPREAD)


def best_by_chance(count: int) -> float:
    """The expected best of `count` draws from a normal distribution, in deviations (Blom's approximation)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count else 0.0


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _scores(units: np.ndarray, query: np.ndarray) -> np.ndarray:
    return np.clip(np.round(units @ query, DIGITS), -1, 1)


def _best_first(scores: np.ndarray) -> np.ndarray:
    """The stable order of scores that were rounded to `DIGITS`, in a tenth of the time that a stable argsort takes."""
    below = np.rint((1 - scores.astype(np.float64)) * 10**DIGITS).astype(np.int64)
    return np.sort(below << 32 | np.arange(len(scores))) & 0xFFFFFFFF


def _taken(order: np.ndarray, *arrays: Any) -> list[Any]:
    return [None if array is None else array[order] for array in arrays]


def _by_group(numbers: np.ndarray, count: int) -> np.ndarray:
    """The order that puts groups together, in the order of their first ones."""
    return np.argsort(_first(numbers, count)[numbers], kind="stable")


def _first(numbers: np.ndarray, count: int) -> np.ndarray:
    """The first place of each number from 0 to count - 1; one past the last place where there is none."""
    first = np.full(count, len(numbers))
    np.minimum.at(first, numbers, np.arange(len(numbers)))
    return first


def _digests(sha256: np.ndarray) -> np.ndarray:
    """Random numbers of 64 bits, equal for equal texts. (N,) S64 -> (N,) uint64."""
    words = np.ascontiguousarray(sha256).view(np.uint64).reshape(-1, 8)
    mixed = (words * MIX).sum(axis=1, dtype=np.uint64)
    return (mixed ^ (mixed >> np.uint64(29))) * MIX[1]


def _changed(state: str) -> np.datetime64:
    """When a file was changed, as its state says it."""
    found = CHANGED.fullmatch(state)
    return np.datetime64(int(found[1]) // 10**6, "ms") if found else np.datetime64("NaT")


def _grown(array: np.ndarray, count: int, capacity: int) -> np.ndarray:
    larger = np.empty((capacity, *array.shape[1:]), array.dtype)
    larger[:count] = array[:count]
    return larger
