"""The tables of a collection's LanceDB database: their schemas, how rows are replaced, removed and found.

What the database and the disk raise becomes one sentence here (`storage`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from image_encoders.errors import CollectionError, ImageEncodersError, InputError
from image_encoders.process import lancedb_is_used, lancedb_was_used

if TYPE_CHECKING:
    import pyarrow as pa

EXACT_BELOW = 100_000  # rows: fewer are compared one by one, more through an index
# The index's lists hold about LIST rows each, in 8-bit numbers. PROBES of them are searched, which is all of them up to
# a quarter of a million rows, and an eighth of very many; the best REFINED x k rows are compared exactly. Words lie far
# from the images that the lists were made from, so that few probes would miss much: `benchmarks/index.py search`
# measures it, and each build (upkeep.py) measures it with some of its own rows. More probes make a process's first
# search slow, which reads the lists. Lists of half the length took five times as long to make, a million rows in 83 s.
LIST, PROBES, REFINED = 8192, 32, 4
IDS = 1000  # ids in one condition
# When an image was taken, else when its file was changed: its state begins with the file's size and that time [ns].
DATE = (
    "coalesce(taken, CASE WHEN TRY_CAST(split_part(state, ' ', 1) AS BIGINT) IS NULL THEN NULL "
    "ELSE CAST(TRY_CAST(split_part(state, ' ', 2) AS BIGINT) / 1000000 AS TIMESTAMP(3)) END)"
)
EPOCH = datetime(1970, 1, 1)
Pixels = int  # stored in 32 bits


@dataclass(frozen=True)
class ImageFacts:
    """What is known of an image's bytes, a column each: it is computed when they are read (bulk/encode.py), stored
    and exported, and shared by copies.

    width, height: of the upright image [px]
    sha256: of the bytes, hexadecimal
    size: how many bytes
    taken: when it was taken, by the camera's own clock, where it says so
    """

    width: Pixels
    height: Pixels
    sha256: str
    size: int
    taken: datetime | None = None


FACTS = tuple(field.name for field in fields(ImageFacts))


def check_usable(folder: Path) -> None:
    """Raise CollectionError in a process that was forked from one that has used the database."""
    if lancedb_was_used.is_set():
        raise CollectionError(
            f"{folder} cannot be used in this process: it was forked from one that uses a collection, and the "
            "database's threads are missing here; start processes by spawn or forkserver, or use collections only "
            "after forking"
        )


def connect(folder: Path, index_cache: int = 1 << 30) -> Any:
    """The database in `folder`.

    index_cache: bytes that it holds of what searches have used of the index
    """
    import lancedb

    check_usable(folder)
    lancedb_is_used.set()
    # A table is always read as it is now. The other cache would grow with the number of writes.
    session = lancedb.Session(index_cache_size_bytes=index_cache, metadata_cache_size_bytes=1 << 22)
    return lancedb.connect(folder, read_consistency_interval=timedelta(0), session=session)


def items_schema(dim: int, metadata: dict[str, str] | None = None) -> pa.Schema:
    """The schema of the rows: one for each image."""
    import pyarrow as pa

    columns = [
        pa.field("id", pa.utf8(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False),
        *schema_of(ImageFacts),
        pa.field("path", pa.utf8(), nullable=False),
        pa.field("member", pa.utf8()),
        pa.field("time_s", pa.float64()),
        pa.field("state", pa.utf8(), nullable=False),
        pa.field("metadata", pa.utf8()),
        pa.field("part", pa.utf8()),
    ]
    return pa.schema(columns, metadata)


def stored_schema(dim: int) -> pa.Schema:
    """That of the rows in the database, which looks into JSON."""
    import pyarrow as pa

    schema = items_schema(dim)
    return schema.set(schema.get_field_index("metadata"), pa.field("metadata", pa.json_()))


def schema_of(record: type) -> pa.Schema:
    """The schema of rows that hold the fields of a dataclass."""
    import pyarrow as pa

    types = {
        "str": pa.utf8(),
        "int": pa.int64(),
        "Pixels": pa.int32(),
        "float": pa.float64(),
        "bytes": pa.binary(),
        "datetime": pa.timestamp("ms"),
        "list[str]": pa.list_(pa.utf8()),
    }
    columns = [(field.name, *str(field.type).partition(" | None")[:2]) for field in fields(record)]
    return pa.schema([pa.field(name, types[kind], nullable=bool(optional)) for name, kind, optional in columns])


def id_of(path: str) -> str:
    """A path as valid Unicode: itself, or, where its name is not UTF-8, "bytes:" and the path with backslash escapes.

    No two absolute paths have the same.
    """
    try:
        path.encode()
        return path
    except UnicodeEncodeError:
        return _escaped(path)


def _escaped(path: str) -> str:
    escaped = path.replace("\\", "\\\\")
    try:
        content = os.fsencode(escaped)
    except UnicodeEncodeError:  # no file can have such a name
        content = escaped.encode("utf-8", "backslashreplace")
    return "bytes:" + content.decode("utf-8", "backslashreplace")


def path_of(text: str) -> str:
    """The path that `id_of` made text of, as `open` takes it."""
    if not text.startswith("bytes:"):
        return text

    def byte(escape: re.Match[bytes]) -> bytes:
        return bytes.fromhex(escape[1].decode()) if escape[1] else b"\\"

    return os.fsdecode(re.sub(rb"\\(?:\\|x([0-9a-f]{2}))", byte, text.removeprefix("bytes:").encode()))


@dataclass(frozen=True)
class Where:
    """Which rows a search looks at: those for which all that is given holds.

    folders: the file lies in one of these folders, or below it; paths as `open` takes them, written as the row's are
    since, until: the image's date is not before `since`, and before `until`. Its date is when it was taken; where that
        is not known, when its file was last changed (UTC).
    min_width, min_height: of the upright image [px]
    metadata: comparisons with what the images' sources say about them
    """

    folders: tuple[str, ...] | None = None
    since: datetime | None = None
    until: datetime | None = None
    min_width: int | None = None
    min_height: int | None = None
    metadata: tuple[Comparison, ...] = ()

    def condition(self) -> str | None:
        """As the database takes it; None where nothing is asked for."""
        parts = [
            f"{column} >= {int(least)}"
            for column, least in (("width", self.min_width), ("height", self.min_height))
            if least is not None
        ]
        parts += [
            f"{DATE} {comparison} CAST({round(_milliseconds(time))} AS TIMESTAMP(3))"
            for comparison, time in ((">=", self.since), ("<", self.until))
            if time is not None
        ]
        if self.folders is not None:
            within = (
                f"path = {quoted(text)} OR starts_with(path, {quoted(text + '/')})"
                for folder in self.folders
                for text in {id_of(folder.rstrip("/")), _escaped(folder.rstrip("/"))}
            )
            parts.append(f"({' OR '.join(within)})" if self.folders else "false")
        parts += [comparison.condition() for comparison in self.metadata]
        return " AND ".join(parts) or None


LARGEST = 2.0**63
COMPARED = ("!=", "<=", ">=", "=", "<", ">")
COMPARISON = re.compile(rf"\s*(\S.*?)\s*({'|'.join(COMPARED)})\s*(.*?)\s*", re.DOTALL)
TRUTHS = {True: ("true", '"true"', '"True"', '"TRUE"'), False: ("false", '"false"', '"False"', '"FALSE"')}


@dataclass(frozen=True)
class Comparison:
    """What the metadata of an image has to say.

    name: of what is compared, such as the column of a table; dots lead into objects, as in exif.iso
    sign: one of COMPARED. != holds wherever = does not, also for images of which nothing is known
    value: a number is compared with numbers, and with texts that are such; a text with texts, by their letters' codes,
        so that dates as ISO 8601 writes them come in their order; of a list = asks whether it is in it; None is = what
        is missing. Of truths and None only = and != are asked.
    """

    name: str
    sign: str
    value: str | float | bool | None

    @classmethod
    def parse(cls, text: str) -> Comparison:
        """What a text such as "year >= 2020" says: a name, a sign, and a value, as JSON if it is that, else as text."""
        said = COMPARISON.fullmatch(text)
        if said is None:
            raise InputError(
                f'where "{text}": write NAME, one of = != < <= > >=, and a value, such as "year >= 2020"', code="where"
            )
        name, sign, value = said.groups()
        try:
            found = json.loads(value, parse_constant=str)
        except (ValueError, RecursionError):
            found = value
        return cls(name, sign, value if isinstance(found, (list, dict)) else found)

    def __post_init__(self) -> None:
        value = self.value
        if self.sign not in COMPARED:
            raise InputError(f"metadata compared by {self.sign!r}; accepted: {', '.join(COMPARED)}", code="where")
        if not self.name or not all(self.name.split(".")):
            raise InputError(f"not a name of metadata: {self.name!r}", code="where")
        known = abs(value) < LARGEST if isinstance(value, (int, float)) else isinstance(value, (str, type(None)))
        if not known:
            raise InputError(
                f"metadata compared with {value!r}; a number, a text, a bool or None is accepted", code="where"
            )
        if isinstance(value, (bool, type(None))) and self.sign not in ("=", "!="):
            raise InputError(f"{self.name} {self.sign} {value}: only = and != are accepted for it", code="where")

    def condition(self) -> str:
        """As the database takes it."""
        sign = self.sign
        if sign == "!=":
            return f"NOT coalesce({self._equal()}, false)"
        if sign == "=":
            return f"coalesce({self._equal()}, false)"
        if isinstance(self.value, str):
            return f"(starts_with({self._json()}, '\"') AND {self._bare()} {sign} {quoted(self.value)})"
        return f"{self._number()} {sign} {self.value!r}"

    def _equal(self) -> str:
        value, found = self.value, self._json()
        if value is None:
            return f"({found} IS NULL OR {found} = 'null')"
        if isinstance(value, bool):
            return among(found, TRUTHS[value])
        text = as_text(value) if isinstance(value, str) else repr(value)
        within = " OR ".join(f"json_array_contains(metadata, {path}, {quoted(text)})" for path in self._paths())
        same = f"{self._number()} = {value!r}"
        if isinstance(value, str):
            same = f"{found} = {quoted(json.dumps(text, ensure_ascii=False))}"
        return f"({same} OR {within})"

    def _paths(self) -> list[str]:
        """Where the value is: below objects, or under a name that has the dots itself."""
        steps = [json.dumps(as_text(step), ensure_ascii=False) for step in self.name.split(".")]
        whole = json.dumps(as_text(self.name), ensure_ascii=False)
        return [quoted(f"$.{path}") for path in dict.fromkeys((whole, ".".join(steps)))]

    def _json(self) -> str:
        """The value as JSON writes it."""
        found = [f"json_extract(metadata, {path})" for path in self._paths()]
        return found[0] if len(found) == 1 else f"coalesce({', '.join(found)})"

    def _bare(self) -> str:
        return f"btrim({self._json()}, '\"')"

    def _number(self) -> str:
        return f"TRY_CAST({self._bare()} AS DOUBLE)"


def _milliseconds(time: datetime) -> float:
    """Since 1970, as the database counts a time without a zone."""
    naive = time.astimezone(timezone.utc).replace(tzinfo=None) if time.tzinfo else time
    return (naive - EPOCH) / timedelta(milliseconds=1)


def as_text(text: str) -> str:
    """Text as the database takes it: what is no Unicode is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def among(column: str, texts: Iterable[str]) -> str:
    """A condition of the database: `column` is one of `texts`."""
    return f"{column} IN ({', '.join(map(quoted, texts))})"


def quoted(text: str) -> str:
    """Text as a literal in a condition."""
    return "'" + as_text(text).replace("'", "''") + "'"


def chunks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts, as many at a time as a condition should hold."""
    for start in range(0, len(texts), IDS):
        yield texts[start : start + IDS]


def replace(table: Any, rows: Any) -> None:
    """Add rows in place of those of the same ids."""
    try:
        table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
    except (OSError, RuntimeError, ValueError) as error:
        if "temp dir" not in str(error):
            raise
        # One step needs a folder for temporary files (TMPDIR), and there is none that can be written. In two steps,
        # a process that is killed in between leaves these ids without rows, and the next run encodes them again.
        delete(table, rows.column("id").to_pylist())
        table.add(rows)


def delete(table: Any, ids: Iterable[str]) -> None:
    """Remove the rows of these ids."""
    for some in chunks(list(ids)):
        table.delete(among("id", some))


def indexed(table: Any) -> int:
    """How many rows are in the index; 0 where there is none."""
    for index in table.list_indices():
        return table.index_stats(index.name).num_indexed_rows
    return 0


def nearest(table: Any, query: np.ndarray, k: int, each_copy: bool, condition: str | None = None) -> list[list[dict]]:
    """The k images with the smallest distances, equal ones by id: of each all its rows, or one with `each_copy`."""
    rows = table.count_rows()
    limit = k + 16
    groups: list[list[dict]] = []
    while rows:
        search = _search(table, query, min(limit, rows), condition)
        if rows < EXACT_BELOW:
            search = search.bypass_vector_index()
        else:
            search = _through_index(search, rows, REFINED)
        columns = ["id", "path", "member", "time_s", "width", "height", "sha256", "metadata", "_distance"]
        found = search.select(columns).to_arrow().to_pylist()
        found.sort(key=lambda row: (row["_distance"], row["id"]))
        groups = [[row] for row in found] if each_copy else _copies_together(found)
        # Rows as near as the k-th may have been left out: without them the order among equals would be chance.
        if len(found) < limit or (len(groups) >= k and groups[k - 1][0]["_distance"] < found[-1]["_distance"]):
            break
        limit *= 4
    return groups[:k]


def best(table: Any, query: np.ndarray, count: int, condition: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the `count` rows nearest to a query at unit length, and their cosine distances."""
    search = _search(table, query, count, condition)
    if table.list_indices():
        search = _through_index(search, table.count_rows(), 2)
    found = search.select(["width", "_distance"]).with_row_id(True).to_arrow()
    return found["_rowid"].to_numpy(), found["_distance"].to_numpy()


def _search(table: Any, query: np.ndarray, count: int, condition: str | None) -> Any:
    search = table.search(query, vector_column_name="embedding").distance_type("cosine").limit(count)
    return search if condition is None else search.where(condition, prefilter=True)


def _through_index(search: Any, rows: int, refined: int) -> Any:
    """A search of the nearest lists, and of others where a condition leaves too few rows in them."""
    return search.minimum_nprobes(_probes(rows)).maximum_nprobes(0).refine_factor(refined)


def _probes(rows: int) -> int:
    """How many lists of an index over so many rows are searched."""
    return max(PROBES, rows // LIST // 8)


def _copies_together(found: Iterable[dict]) -> list[list[dict]]:
    """Rows grouped by the bytes they were made from, in the order of each group's first."""
    groups: dict[str, list[dict]] = {}
    for row in found:
        groups.setdefault(row["sha256"], []).append(row)
    return list(groups.values())


def is_made(table: Path) -> bool:
    """Whether a table is there. A process that was killed while it made one leaves a folder that is none yet."""
    return any(table.glob("_versions/*.manifest")) or any(table.glob("data/*"))


def pinned(table: Any) -> Any:
    """The table as it is now, whatever is written meanwhile."""
    table.checkout(table.version)
    return table


def by_id(table: Any, size: int) -> Iterator[pa.Table]:
    """All rows ordered by id, `size` at a time; only the ids are held."""
    import pyarrow.compute as pc

    places = table.search().select(["id"]).with_row_id(True).to_arrow()
    numbers = places["_rowid"].combine_chunks().take(pc.sort_indices(places["id"]))
    for start in range(0, len(numbers), size):
        yield taken(table, numbers[start : start + size], table.schema.names)


def taken(table: Any, numbers: Any, columns: Sequence[str]) -> pa.Table:
    """Some columns of the rows with these numbers of the database's, in that order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = table.take_row_ids(numbers.tolist()).select(list(columns)).with_row_id().to_arrow()
    order = pc.index_in(pa.array(numbers), value_set=rows["_rowid"].combine_chunks())
    return rows.drop_columns("_rowid").take(order)


@contextmanager
def storage(path: Path, done: str) -> Iterator[None]:
    """What the database and the disk raise, as one sentence: `path` cannot be `done`, and why."""
    try:
        yield
    except ImageEncodersError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise CollectionError(f"{path} cannot be {done}: {_reason(error, done)}") from error


def _reason(error: Exception, done: str) -> str:
    text = str(error)
    if "No space left" in text:
        return "the disk is full; free some space and run the same command again"
    if "quota exceeded" in text or "File too large" in text:
        limit = "a limit on disk space or on the size of files (ulimit -f) is reached"
        return f"{limit}; raise it, or free some space, and run the same command again"
    if "Permission denied" in text or "Read-only file system" in text or "not permitted" in text:
        return "no permission"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    lines = re.sub(r", /\S*\.rs:[\d:]*", "", text).strip().splitlines()
    reason = (lines[0] if lines else type(error).__name__)[:300]
    if done != "read" or "os error" in reason:
        return reason
    return f"{reason}; if its files are damaged, restore them from a copy, or delete the folder and encode again"
