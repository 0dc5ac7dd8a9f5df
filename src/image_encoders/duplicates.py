"""Near-duplicates in a collection: groups of images in which every two are alike.

    rows ─same bytes or numbers→ nodes ─cells→ pairs ─complete linkage→ groups ─facts→ the best of each

The most similar pair is joined first, then always the two groups whose least similar pair is the most similar, while
that is at or above the threshold: a chain of images, each alike the next one, is cut.

Up to `EXACT_BELOW` images all pairs are compared. Beyond, embeddings are put into cells around some of them, and
compared within a cell and with those that are nearly in it; how many pairs that misses is measured on a sample.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders import exports, tables
from image_encoders.arrays import at_unit_length
from image_encoders.collection import ITEMS
from image_encoders.errors import CollectionError, InputError
from image_encoders.records import Hit, Locator
from image_encoders.tables import storage

if TYPE_CHECKING:
    from image_encoders.collection import Collection

THRESHOLD = 0.95
EXACT_BELOW = 20_000  # images of which all pairs are compared
CELL = 1000  # images for which there is a cell
TRAINED = 32  # images for each cell that the cells' centres are the means of
ROUNDS = 4  # in which they are found
GUESTS = 8  # cells at most, beside its own, with whose images an image is compared
MARGIN = 0.2  # of the distance of two at the threshold: how far from a cell its guests may be
SAMPLE = 1000  # images whose pairs are all found, which shows how many the cells miss
PAIRS = 10_000_000  # that are held
BATCH = 1 << 14  # rows read at a time
BLOCK = 2048  # images compared with as many at a time
ENDINGS = (".parquet",)  # of the file that they are written to
DIGITS = 6  # of a similarity: more are rounding

Progress = Callable[[int, int], None]  # how many images have been compared, of how many


@dataclass(frozen=True)
class Duplicate(Hit):
    """An image of a group; its score is the cosine similarity to the group's best.

    size: of its bytes
    """

    size: int = 0


@dataclass(frozen=True)
class Group:
    """Images of which every two are alike.

    images: the best one first, then those most similar to it
    least: the similarity of the two that are least alike
    reason: why the first one is the best
    """

    images: tuple[Duplicate, ...]
    least: float
    reason: str


@dataclass(frozen=True)
class Recall:
    """What comparing within cells misses: of all pairs of `SAMPLE` images with any other, how many there are, and how
    many were found.
    """

    pairs: int
    found: int


@dataclass(frozen=True)
class Duplicates:
    """What was found in a collection.

    groups: the one with most images first
    threshold: the least similarity of two images of a group; files with the same bytes are alike in any case
    count: how many images were looked at
    recall: None where all pairs were compared
    """

    groups: tuple[Group, ...]
    threshold: float
    count: int
    recall: Recall | None = None


def find_duplicates(
    collection: Collection, *, threshold: float = THRESHOLD, each_copy: bool = True, progress: Progress | None = None
) -> Duplicates:
    """The groups of images of which every two have a cosine similarity of `threshold` or more.

    each_copy: include all files with the same bytes in a group; False: only the first one by id

    An embedding that is all zeros is alike no other. Above `EXACT_BELOW` images a copy of the embeddings is made in
    the folder for temporary files (TMPDIR).
    Raises InputError for a threshold that is not above 0 and at most 1, CollectionError where too many pairs are alike.
    """
    if not 0 < threshold <= 1:
        raise InputError(f"a threshold of {threshold}; a cosine above 0 and at most 1 is accepted", code="threshold")

    def find(table: Any) -> Duplicates:
        tables.pinned(table)
        rows, contents = _contents(table, each_copy)
        with _room(len(rows), collection.dim) as units:
            digests = _read(table, rows, units)
            nodes = _nodes(units, digests, contents)
            directed = np.flatnonzero((nodes == np.arange(len(rows))) & (digests != 0))
            pairs, recall = _near(units, directed, threshold, progress or (lambda done, total: None))
            groups = _described(table, rows, units, _groups(nodes, pairs))
        return Duplicates(groups, threshold, len(rows), recall)

    return collection.read(ITEMS, find, Duplicates((), threshold, 0))


# ---------------------------------------------------------------- reading


def _contents(table: Any, each_copy: bool) -> tuple[np.ndarray, np.ndarray]:
    """The database's numbers of the rows, ordered by id, and a number for the bytes of each, equal for copies."""
    import pyarrow.compute as pc

    found = table.search().select(["id", "sha256"]).with_row_id(True).to_arrow()
    order = pc.sort_indices(found["id"])
    rows = found["_rowid"].take(order).to_numpy()
    contents = found["sha256"].take(order).combine_chunks().dictionary_encode().indices.to_numpy()
    if each_copy:
        return rows, contents
    first = np.sort(np.unique(contents, return_index=True)[1])
    return rows[first], contents[first]


@contextmanager
def _room(count: int, dim: int) -> Iterator[np.ndarray]:
    """(count, dim) float32 to be written: in memory, or in a file where they are many."""
    if count <= EXACT_BELOW:
        yield np.zeros((count, dim), np.float32)
        return
    place = Path(tempfile.gettempdir()), "used for a copy of the embeddings"
    with storage(*place), tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, 4 * count * dim)  # a disk that fills up later would end the process
        yield np.memmap(file, np.float32, "r+", shape=(count, dim))


def _read(table: Any, rows: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Fill `units` with the embeddings of `rows` at unit length.

    returns: (N,) a number for each that equal ones share, 0 for those of zeros
    """
    order = np.argsort(rows)
    digests = np.zeros(len(rows), np.int64)
    for batch in table.search().select(["embedding"]).with_row_id(True).to_batches(BATCH):
        numbers = batch["_rowid"].to_numpy()
        places = order[np.searchsorted(rows, numbers, sorter=order).clip(max=len(rows) - 1)]
        wanted = rows[places] == numbers
        places = places[wanted]
        units[places] = some = at_unit_length(exports.matrix(batch)[wanted])
        digests[places] = [hash(unit.tobytes()) if unit.any() else 0 for unit in some]
    return digests


def _nodes(units: np.ndarray, digests: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """For each image the first one that has the same bytes, or the same embedding, or one that has: (N,)."""
    numbers = np.arange(len(units))
    edges = [np.stack([numbers, _first_same(contents)], axis=1)]
    first = _first_same(digests)
    later = np.flatnonzero((first != numbers) & (digests != 0))
    for some in _blocks(later):
        same = (units[some] == units[first[some]]).all(axis=1)
        edges.append(np.stack([some, first[some]], axis=1)[same])
    return _components(len(units), np.concatenate(edges))


def _rounded(similarities: np.ndarray) -> np.ndarray:
    return np.round(similarities.astype(np.float64), DIGITS).clip(-1, 1)


def _first_same(values: np.ndarray) -> np.ndarray:
    """For each value the place where it is first."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]


def _blocks(numbers: np.ndarray, size: int = BLOCK) -> Iterator[np.ndarray]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


# ---------------------------------------------------------------- pairs


class Pairs:
    """Pairs of images that are alike, each once.

    count: how many images there are
    """

    def __init__(self, count: int):
        self.count = count
        self._keys = [np.empty(0, np.int64)]  # the lesser number x count + the greater
        self._similarities = [np.empty(0)]
        self._held = 0

    def compare(self, units: np.ndarray, left: np.ndarray, right: np.ndarray, threshold: float) -> None:
        """Add those of one image of `left` and one of `right`, numbers of `units`, that are alike enough."""
        gathered = [(some, units[some]) for some in _blocks(left)]
        for others in _blocks(right):
            those = units[others]
            for some, these in gathered:
                similarities = these @ those.T
                found = np.flatnonzero(similarities >= threshold - 0.5 * 10**-DIGITS)
                a, b = some[found // len(others)], others[found % len(others)]
                distinct = a != b
                self._add(a[distinct], b[distinct], similarities.ravel()[found][distinct])

    def _add(self, a: np.ndarray, b: np.ndarray, similarities: np.ndarray) -> None:
        self._keys.append(np.minimum(a, b) * self.count + np.maximum(a, b))
        self._similarities.append(_rounded(similarities))
        self._held += len(a)
        if self._held > 2 * PAIRS:  # some of them twice
            self.sorted()

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys in order, `a x count + b` for images a < b, and their similarities; CollectionError for too many."""
        keys, places = np.unique(np.concatenate(self._keys), return_index=True)
        similarities = np.concatenate(self._similarities)[places]
        if len(keys) > PAIRS:
            raise CollectionError(f"more than {PAIRS:,} pairs of images are that similar; raise the threshold")
        self._keys, self._similarities, self._held = [keys], [similarities], len(keys)
        return keys, similarities


def _near(units: np.ndarray, directed: np.ndarray, threshold: float, progress: Progress) -> tuple[Pairs, Recall | None]:
    """The pairs of images at or above the threshold, and what was missed of them, unless all were compared.

    directed: the images that are compared, numbers of `units`
    """
    found = Pairs(len(units))
    count = len(directed)
    if count <= EXACT_BELOW:
        for start in range(0, count, BLOCK):
            found.compare(units, directed[start : start + BLOCK], directed[start:], threshold)
            progress(min(start + BLOCK, count), count)
        return found, None
    rng = np.random.default_rng(0)
    sample = np.sort(rng.choice(directed, SAMPLE, replace=False))
    expected = Pairs(len(units))
    cells = _Cells(units, directed, float(np.sqrt(2 - 2 * threshold)), rng)
    for some in _blocks(directed, BATCH):
        cells.place(units, some)
        expected.compare(units, sample, some, threshold)
    done = 0
    for home, guests in cells:
        for start in range(0, len(home), BLOCK):
            found.compare(units, home[start : start + BLOCK], np.concatenate([home[start:], guests]), threshold)
        done += len(home)
        progress(done, count)
    keys = expected.sorted()[0]
    return found, Recall(len(keys), int(np.isin(keys, found.sorted()[0]).sum()))


class _Cells:
    """Images by the nearest of some centres, and by those that are hardly farther.

    reach: how far two images may lie from each other that are alike enough
    """

    def __init__(self, units: np.ndarray, directed: np.ndarray, reach: float, rng: np.random.Generator):
        count = max(1, len(directed) // CELL)
        some = units[np.sort(rng.choice(directed, min(TRAINED * count, len(directed)), replace=False))]
        self._middle = some.mean(axis=0)  # embeddings have a large common component, without which they differ
        self.centres = at_unit_length(some[rng.choice(len(some), count, replace=False)] - self._middle)
        for _ in range(ROUNDS):
            nearest = np.concatenate([self._nearness(part).argmax(axis=1) for part in _blocks(some, BATCH)])
            sums = np.zeros_like(self.centres)
            np.add.at(sums, nearest, some - self._middle)
            self.centres = np.where(sums.any(axis=1, keepdims=True), at_unit_length(sums), self.centres)
        # The plane between two centres is as far as the nearness to them differs, in units of their distance.
        distances = np.sqrt((2 - 2 * self.centres @ self.centres.T).clip(min=0))
        self._margins = MARGIN * reach * distances
        self._home: list[np.ndarray] = []
        self._guests: list[np.ndarray] = []  # (G, 2): cell, image

    def _nearness(self, units: np.ndarray) -> np.ndarray:
        """Of each to each centre: (B, K)."""
        return (units - self._middle) @ self.centres.T

    def place(self, units: np.ndarray, images: np.ndarray) -> None:
        """Put images into cells, and as guests into those that they nearly lie in."""
        nearness = self._nearness(units[images])
        everyone = np.arange(len(images))
        home = nearness.argmax(axis=1)
        self._home.append(np.stack([home, images], axis=1))
        nearness += self._margins[home] - nearness[everyone, home][:, None]
        nearness[everyone, home] = -1
        for _ in range(min(GUESTS, len(self.centres) - 1)):
            guest = nearness.argmax(axis=1)
            near = nearness[everyone, guest] >= 0
            self._guests.append(np.stack([guest, images], axis=1)[near])
            nearness[everyone, guest] = -1

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each cell its images and its guests."""
        homes = _split(np.concatenate(self._home), len(self.centres))
        guests = _split(np.concatenate(self._guests), len(self.centres))
        return zip(homes, guests)


def _split(placed: np.ndarray, count: int) -> list[np.ndarray]:
    placed = placed[np.argsort(placed[:, 0], kind="stable")]
    return np.split(placed[:, 1], np.searchsorted(placed[:, 0], np.arange(1, count)))


# ---------------------------------------------------------------- groups


def _components(count: int, edges: np.ndarray) -> np.ndarray:
    """For each of `count` numbers the least one that edges, (E, 2), lead to from it."""
    labels = np.arange(count)
    while len(edges):
        ends = labels[edges]
        least = ends.min(axis=1)
        np.minimum.at(labels, ends.ravel(), np.repeat(least, 2))
        while (further := labels[labels]).tobytes() != labels.tobytes():
            labels = further
        edges = edges[labels[edges[:, 0]] != labels[edges[:, 1]]]
    return labels


def complete_linkage(links: dict[int, dict[int, float]]) -> Iterator[tuple[list[int], float]]:
    """The groups of a graph in which every two are linked, with the least of their links.

    links: of each node those that it is linked to, with how similar they are, both ways; emptied

    From any node the most similar one is gone to, from there again, until two are each other's: these are joined. That
    gives the same as joining the most similar two of all each time (the nearest-neighbour chain, Murtagh 1983).
    """
    members = {node: [node] for node in links}
    least = dict.fromkeys(links, 1.0)
    chain: list[int] = []
    while links:
        last = chain[-1] if chain else next(iter(links))
        if not chain:
            chain = [last]
        near = links[last]
        if not near:
            yield members.pop(last), least[last]
            del links[last], chain[-1]
            continue
        before = chain[-2] if len(chain) > 1 else None
        nearest = max(near, key=lambda node: (near[node], node == before, -node))
        if nearest != before:
            chain.append(nearest)
            continue
        del chain[-2:]
        _join(links, last, nearest)
        members[last] += members.pop(nearest)
        least[last] = min(near[nearest], least[last], least[nearest])


def _join(links: dict[int, dict[int, float]], one: int, other: int) -> None:
    """Make two nodes one, linked to what both were linked to, as similar as the less similar of them."""
    theirs = links.pop(other)
    ours = links[one]
    links[one] = {node: min(ours[node], theirs[node]) for node in ours if node in theirs}
    for node in {*ours, *theirs} - {one, other}:
        links[node].pop(other, None)
        if node in links[one]:
            links[node][one] = links[one][node]
        else:
            links[node].pop(one, None)


def _groups(nodes: np.ndarray, pairs: Pairs) -> list[tuple[np.ndarray, float]]:
    """The images of each group, the largest one first, and the least similarity in it.

    nodes: of each image the first one that is the same
    pairs: of nodes
    """
    keys, similarities = pairs.sorted()
    edges = np.stack(np.divmod(keys, max(1, len(nodes))), axis=1)
    components = _components(len(nodes), edges)[edges[:, 0]]
    order = np.argsort(components, kind="stable")
    joined, least = np.arange(len(nodes)), {}
    for some in np.split(order, np.flatnonzero(np.diff(components[order])) + 1):
        for members, low in complete_linkage(_links(edges[some].tolist(), similarities[some].tolist())):
            joined[members] = first = min(members)
            least[first] = low
    labels = joined[nodes]
    order = np.argsort(labels, kind="stable")
    split = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    groups = [(images, least.get(int(labels[images[0]]), 1.0)) for images in split if len(images) > 1]
    return sorted(groups, key=lambda group: -len(group[0]))


def _links(edges: Iterable[tuple[int, int]], similarities: Iterable[float]) -> dict[int, dict[int, float]]:
    links: dict[int, dict[int, float]] = {}
    for (a, b), similarity in zip(edges, similarities):
        links.setdefault(a, {})[b] = similarity
        links.setdefault(b, {})[a] = similarity
    return links


def _described(
    table: Any, rows: np.ndarray, units: np.ndarray, groups: Sequence[tuple[np.ndarray, float]]
) -> tuple[Group, ...]:
    """Groups with what is known of their images, the best one first."""
    wanted = rows[np.concatenate([images for images, _ in groups])] if groups else rows[:0]
    columns = ["id", "path", "member", "time_s", "width", "height", "size", "sha256"]
    facts = (row for some in _blocks(wanted, BATCH) for row in tables.taken(table, some, columns).to_pylist())
    return tuple(_group(list(islice(facts, len(images))), units[images], least) for images, least in groups)


def _group(facts: Sequence[dict[str, Any]], units: np.ndarray, least: float) -> Group:
    sizes = [(row["width"] * row["height"], row["size"]) for row in facts]
    first = max(range(len(facts)), key=lambda place: (*sizes[place], -place))
    pixels, size = sizes[first]
    if sizes.count((pixels, size)) > 1:
        reason = "the first id among those with the most pixels and bytes"
    elif [one for one, _ in sizes].count(pixels) > 1:
        reason = "the most bytes among those with the most pixels"
    else:
        reason = "the most pixels"
    scores = _rounded(units @ units[first]).tolist()
    images = [
        _duplicate(row, 1.0 if row["sha256"] == facts[first]["sha256"] else score) for row, score in zip(facts, scores)
    ]
    best = images.pop(first)
    images.sort(key=lambda image: (-image.score, image.id))
    return Group((best, *images), least, reason)


def _duplicate(row: dict[str, Any], score: float) -> Duplicate:
    place = Locator.of(row)
    facts = {name: row[name] for name in ("width", "height", "sha256", "size")}
    return Duplicate(row["id"], place.path, score, member=place.member, time_s=place.time_s, **facts)


# ---------------------------------------------------------------- writing


def write(path: Path, found: Duplicates, *, overwrite: bool = False) -> None:
    """A Parquet file with a row for each image of a group; it appears complete or not at all.

    Raises CollectionError for another ending, a file that is there unless it is to be replaced, or one that cannot be
    written.
    """
    import pyarrow as pa

    exports.check(path, overwrite, ENDINGS)
    types = {
        "group": pa.int32(),
        "id": pa.utf8(),
        "path": pa.utf8(),
        "member": pa.utf8(),
        "time_s": pa.float64(),
        "similarity": pa.float32(),
        "best": pa.bool_(),
        "width": pa.int32(),
        "height": pa.int32(),
        "bytes": pa.int64(),
        "sha256": pa.utf8(),
    }
    schema = pa.schema([pa.field(*column) for column in types.items()])
    rows = (row for number, group in enumerate(found.groups, 1) for row in fields(number, group))
    batches = (pa.Table.from_pylist(some, schema) for some in iter(lambda: list(islice(rows, BATCH)), []))
    with storage(path, "written"):
        exports.write(path, batches, schema, 0)


def fields(number: int, group: Group) -> list[dict[str, Any]]:
    """The images of a group as plain values; `number` is the group's."""
    return [
        {
            "group": number,
            "id": image.id,
            **image.locator.columns(),
            "similarity": image.score,
            "best": image is group.images[0],
            "width": image.width,
            "height": image.height,
            "bytes": image.size,
            "sha256": image.sha256,
        }
        for image in group.images
    ]
