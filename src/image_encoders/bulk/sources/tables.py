"""Tables: Parquet, LanceDB, CSV and JSON lines, with a column of paths, addresses or bytes; the others become metadata.

table.parquet ─rows, streamed→ cells ─→ files and addresses, or the bytes themselves, as `table.parquet#column/row`
"""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import json
import math
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from image_encoders.bulk.sources.contents import Content, taken
from image_encoders.bulk.sources.items import Entry, Problem, Ready, Uncountable, Walk
from image_encoders.bulk.sources.places import Place
from image_encoders.errors import InputError, first_line
from image_encoders.inputs.files import check_bytes
from image_encoders.inputs.image import MAX_BYTES_HINT, ImageLimits
from image_encoders.inputs.urls import UrlLimits, read_url
from image_encoders.records import Locator

if TYPE_CHECKING:
    import pyarrow as pa

TEXTS = (".csv", ".tsv", ".jsonl", ".ndjson")
PACKED = ".gz"  # what a text's name may end in besides
SUFFIXES = (".parquet", ".lance", *TEXTS, *(f"{ending}{PACKED}" for ending in TEXTS))
NAMES = (  # of columns that say where an image is, the likeliest first
    *("image", "img", "bytes", "path", "image_path", "img_path", "file", "file_path", "filepath", "file_name"),
    *("filename", "url", "image_url", "img_url", "uri", "image_uri", "link", "href", "src"),
)
LONGEST_LINE = 1 << 26  # bytes
LONGEST_TEXT = 1 << 14  # characters of a metadata value
DEEPEST_VALUE = 8  # lists and objects in each other
LONGEST_LIST = 64  # values in one metadata value
ROWS = 1024  # read at a time; of bytes:
IMAGES = 32

Row = Mapping[str, Any]
Named = Callable[[str, Mapping[str, Any] | None], Entry]


def is_table_name(name: str) -> bool:
    """Whether a file's name ends as those of tables do."""
    return name.lower().endswith(SUFFIXES)


def table_name(argument: str) -> tuple[str, str | None] | None:
    """(file, column) of "table.parquet" or "table.parquet#column"; None for other names."""
    if is_table_name(argument.rstrip(os.sep)):
        return argument, None
    path, _, column = argument.rpartition("#")
    return (path, column) if is_table_name(path) and not os.path.exists(argument) else None


@dataclass(eq=False)
class CellImage(Ready):
    """An image whose bytes are in a table.

    row: its number, from 0
    """

    place: Place
    column: str
    row: int
    metadata: Mapping[str, Any] | None = None
    content: Content | None = None
    error: None = None

    @cached_property
    def name(self) -> str:
        return cell_name(self.place.path, self.column, self.row)

    @property
    def locator(self) -> Locator:
        return Locator(self.place.path, f"{self.column}/{self.row}")

    @property
    def state(self) -> str:
        return f"{self.place.state} {self.row}"

    def read(self, limits: ImageLimits) -> bytes:
        """Its bytes."""
        content = taken(self.content, partial(read_cell, self.place, self.column, self.row))
        check_bytes(len(content), limits.max_bytes, MAX_BYTES_HINT)
        return content


def cell_name(path: str, column: str, row: int) -> str:
    """The name of a cell."""
    return f"{path}#{column}/{row}"


class Table:
    """The images that a column of a table contains or names.

    column: its name; None: detected
    named: the image that a path or an address in it names, with its metadata
    """

    repeatable = False  # to count them, all would have to be read

    def __init__(self, place: Place, walk: Walk, named: Named, column: str | None = None):
        self.place, self.walk, self.named, self.column = place, walk, named, column

    def check(self) -> None:
        """Raise InputError where it cannot be opened, or has no such column."""
        try:
            with self.place.open() as file, closing(_rows_of(self.place.path)(file)) as reader:
                reader.choose(self.column)
        except InputError as error:
            raise error.named(self.place.path) from error.__cause__
        except Exception as error:  # a damaged file may raise anything
            raise _table_error(error).named(self.place.path) from error

    def count(self) -> int:
        """How many rows it says that it has; Uncountable where it does not say."""
        try:
            with self.place.open() as file, closing(_rows_of(self.place.path)(file)) as reader:
                return reader.count()
        except Uncountable:
            raise
        except Exception as error:  # a damaged file may raise anything
            raise Uncountable from error

    def entries(self) -> Iterator[Entry]:
        """The entries of its rows; unreadable parts become entries with an error."""
        if self.walk.counting:
            raise Uncountable
        whole = True
        try:
            self.place.state  # noqa: B018  before anything of it is read
            with self.place.open() as file, closing(_rows_of(self.place.path)(file)) as reader:
                column = reader.choose(self.column)
                for number, row in reader.rows(column, self._known):
                    if isinstance(row, Exception):
                        whole = False
                        yield self._problem(f"{self.place.path}#{number}", _table_error(row))
                    else:
                        yield self._entry(column, int(number), row)
        except Exception as error:  # a damaged file may raise anything
            yield self._problem(self.place.path, _table_error(error))
            return
        if whole:
            self.walk.finished(self.place.id)

    def _known(self, column: str, row: int) -> bool:
        one = CellImage(self.place, column, row)
        return self.walk.known(one.id, one.state)

    def _entry(self, column: str, number: int, row: Row | None) -> Entry:
        """What a row names. row: None where its bytes are known already."""
        if row is None:
            return CellImage(self.place, column, number)
        cell = row.get(column)
        metadata = _metadata({name: value for name, value in row.items() if name != column})
        if isinstance(cell, Mapping):  # as data sets on the Hugging Face hub have images
            cell = cell.get("bytes") or cell.get("path")
        if isinstance(cell, (bytes, bytearray)) and cell:
            return CellImage(self.place, column, number, metadata, Content(bytes(cell)))
        if isinstance(cell, str) and cell[:5].lower() == "data:":
            return self._decoded(column, number, cell, metadata)
        if isinstance(cell, str) and cell:
            return self.named(cell, metadata)
        found = f"a cell of type {type(cell).__name__}" if cell not in (None, "", b"") else "an empty cell"
        error = InputError(
            f"{found} in row {number}; a path, an address or the bytes of an image are accepted", code="cell"
        )
        return self._problem(cell_name(self.place.path, column, number), error)

    def _decoded(self, column: str, number: int, url: str, metadata: Mapping[str, Any] | None) -> Entry:
        """The image in a data: URL; not decoded where it is known."""
        try:
            content = None if self._known(column, number) else Content(_decoded(url))
        except InputError as error:
            return self._problem(cell_name(self.place.path, column, number), error)
        return CellImage(self.place, column, number, metadata, content)

    def _problem(self, name: str, error: InputError) -> Problem:
        return Problem(name, Locator(self.place.path), error)


class _Reader:
    """An open table."""

    def __init__(self, file: Any):
        """file: open for reading bytes"""
        raise NotImplementedError

    def choose(self, column: str | None) -> str:
        """The column of images; InputError, with the names of all, where there is none or there are several."""
        raise NotImplementedError

    def rows(
        self, column: str, known: Callable[[str, int], bool]
    ) -> Iterator[tuple[int | str, Row | Exception | None]]:
        """Each row's number and its cells; None for cells that are known, an error for what cannot be read."""
        raise NotImplementedError

    def cell(self, column: str, row: int) -> Any:
        """What is in a cell; None where there is no such row."""
        for number, cells in self.rows(column, lambda column, row: False):
            if number == row and isinstance(cells, Mapping):
                return cells.get(column)
        return None

    def count(self) -> int:
        """How many rows there are, where that is known without reading them; else Uncountable."""
        raise Uncountable

    def close(self) -> None:
        """Nothing more is read."""


class _Lines(_Reader):
    """JSON lines."""

    def __init__(self, file: Any):
        self.file = file

    def choose(self, column: str | None) -> str:
        start = self.file.tell()
        for _, row in self._parsed():
            if isinstance(row, dict):
                self.file.seek(start)
                return _chosen(column, list(row), [name for name, cell in row.items() if isinstance(cell, str)])
        raise InputError("no line that holds a JSON object", code="table")

    def rows(self, column: str, known: Callable[[str, int], bool]) -> Iterator[tuple[int | str, Any]]:
        return self._parsed()

    def _parsed(self) -> Iterator[tuple[int | str, Any]]:
        number = 0
        while line := self.file.readline(LONGEST_LINE):
            if line.isspace():
                continue
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                raise InputError(f"row {number:,} is longer than {LONGEST_LINE:,} bytes", code="table")
            try:
                row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
                if not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__}, where a JSON object is accepted")
                yield number, row
            except (ValueError, RecursionError) as error:
                yield f"row {number}", error
            number += 1


class _Csv(_Reader):
    """Separated values, with names in the first line, which shows by what they are separated."""

    delimiters = ",;\t|"

    def __init__(self, file: Any):
        # bytes that are no UTF-8 may be of paths, which can hold any
        encoding = "utf-16" if file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"
        file.seek(0)
        self.text = io.TextIOWrapper(file, encoding, errors="surrogateescape", newline="")
        first = self.text.readline(LONGEST_LINE)
        self.ended = False
        delimiter = max(self.delimiters, key=first.count)  # the first one where none is there
        self.reader = csv.reader(self._lines(first), delimiter=delimiter)
        self.names = next(self.reader, [])
        if any("\0" in name for name in self.names):
            raise InputError("null bytes where names of columns are expected", code="table")

    def _lines(self, first: str) -> Iterator[str]:
        yield first
        while line := self.text.readline(LONGEST_LINE):  # iterating over the text would close the file at its end
            yield line
        self.ended = True

    def choose(self, column: str | None) -> str:
        return _chosen(column, self.names, self.names)

    def rows(self, column: str, known: Callable[[str, int], bool]) -> Iterator[tuple[int | str, Any]]:
        number = 0
        while True:
            try:
                cells = next(self.reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"row {number}", error
            else:
                if not cells:
                    continue  # a blank line
                if self.ended:  # more lines were looked for than there are
                    yield f"row {number}", csv.Error("an unclosed quote, which contains the rest of the file")
                    return
                yield number, dict(zip(self.names, cells))
            number += 1

    def close(self) -> None:
        self.text.detach()  # whoever opened the file closes it


class _Tsv(_Csv):
    delimiters = "\t"


class _Parquet(_Reader):
    """A Parquet file: the columns that are wanted, some rows at a time."""

    def __init__(self, file: Any):
        import pyarrow.parquet as pq

        self.file = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        self.schema = self.file.schema_arrow

    def choose(self, column: str | None) -> str:
        return _chosen_of(self.schema, column)

    def rows(self, column: str, known: Callable[[str, int], bool]) -> Iterator[tuple[int | str, Any]]:
        bytes_inside, wanted = _holds_bytes(self.schema.field(column).type), _wanted(self.schema, column)
        first = 0
        for group in range(self.file.num_row_groups):
            after = first + self.file.metadata.row_group(group).num_rows
            seen = bytes_inside and all(known(column, number) for number in range(first, after))
            if seen and self._holds_bytes_alone(group, column):
                yield from ((number, None) for number in range(first, after))
                first = after
                continue
            number = first
            try:
                size = IMAGES if bytes_inside else ROWS
                for batch in self.file.iter_batches(size, row_groups=[group], columns=wanted, use_threads=False):
                    for row in batch.to_pylist():
                        yield number, row
                        number += 1
            except (OSError, ValueError, RuntimeError) as error:
                yield f"rows {number} to {after - 1}", error
            first = after

    def _holds_bytes_alone(self, group: int, column: str) -> bool:
        """Whether a group of rows says that no cell of it is empty, or has a path in place of bytes."""
        said = self.file.metadata.row_group(group)
        leaves = (said.column(place) for place in range(said.num_columns))
        found = [leaf.statistics for leaf in leaves if leaf.path_in_schema in (column, f"{column}.bytes")]
        return all(one is not None and one.has_null_count and one.null_count == 0 for one in found)

    def cell(self, column: str, row: int) -> Any:
        for group in range(self.file.num_row_groups):
            rows = self.file.metadata.row_group(group).num_rows
            if row < rows:
                return self.file.read_row_group(group, [column])[column][row].as_py()
            row -= rows
        return None

    def count(self) -> int:
        return self.file.metadata.num_rows

    def close(self) -> None:
        self.file.close()


class _Lance(_Reader):
    """A table of LanceDB: the columns that are wanted, some rows at a time."""

    def __init__(self, file: Any):
        self.table, self.schema = file, file.schema
        self.alone: dict[str, bool] = {}

    def choose(self, column: str | None) -> str:
        return _chosen_of(self.schema, column)

    def rows(self, column: str, known: Callable[[str, int], bool]) -> Iterator[tuple[int | str, Any]]:
        bytes_inside, wanted = _holds_bytes(self.schema.field(column).type), _wanted(self.schema, column)
        size, count = IMAGES if bytes_inside else ROWS, self.count()
        for first in range(0, count, size):
            numbers = range(first, min(first + size, count))
            seen = bytes_inside and all(known(column, number) for number in numbers)
            if seen and self._holds_bytes_alone(column):
                yield from ((number, None) for number in numbers)
                continue
            yield from zip(numbers, self._taken(numbers, wanted))

    def cell(self, column: str, row: int) -> Any:
        return self._taken([row], [column])[0][column] if row < self.count() else None

    def _holds_bytes_alone(self, column: str) -> bool:
        """Whether no cell is empty, or has a path in place of bytes; looked up once."""
        import pyarrow.types as types

        if column not in self.alone:
            quoted = f"`{column}`.bytes" if types.is_struct(self.schema.field(column).type) else f"`{column}`"
            self.alone[column] = not self.table.count_rows(f"{quoted} IS NULL")
        return self.alone[column]

    def _taken(self, numbers: Sequence[int], columns: list[str]) -> list[dict[str, Any]]:
        return self.table.take_offsets(list(numbers)).select(columns).to_arrow().to_pylist()

    def count(self) -> int:
        return self.table.count_rows()


def _rows_of(path: str) -> Callable[[Any], Any]:
    name, ending = os.path.splitext(path.lower())
    if ending == PACKED:
        return lambda file: _rows_of(name)(gzip.GzipFile(fileobj=file))
    return {".parquet": _Parquet, ".lance": _Lance, ".csv": _Csv, ".tsv": _Tsv}.get(ending, _Lines)


def _chosen(column: str | None, names: Sequence[str], likely: Sequence[str], fit: Sequence[str] | None = None) -> str:
    """The requested column, or the only likely one, or the likeliest by its name.

    fit: those that can hold images; None: all
    """
    listed = f"its columns: {', '.join(names) or 'none'}"
    if column is not None:
        if column not in names:
            raise InputError(f"no column {column}; {listed}", code="column")
        if fit is not None and column not in fit:
            raise InputError(f"the column {column} holds neither texts nor bytes; {listed}", code="column")
        return column
    if len(likely) == 1:
        return likely[0]
    by_name = {name.lower(): name for name in likely}
    found = next((by_name[name] for name in NAMES if name in by_name), None)
    if found is None:
        raise InputError(
            f"which column holds the images or their paths? Give its name, as in table.csv#COLUMN or "
            f"--column COLUMN; {listed}",
            code="column",
        )
    return found


def _chosen_of(schema: pa.Schema, column: str | None) -> str:
    """The column of images in a table whose columns have types."""
    held = [field.name for field in schema if _holds_bytes(field.type)]
    texts = [field.name for field in schema if _holds_texts(field.type)]
    if column is None and len(schema) and not held and not texts:
        raise InputError(f"no column of texts or bytes; its columns: {', '.join(schema.names)}", code="column")
    return _chosen(column, schema.names, held if len(held) == 1 else [*held, *texts], [*held, *texts])


def _wanted(schema: pa.Schema, column: str) -> list[str]:
    """The columns to be read: that of the images, and those that metadata may come from."""
    return [field.name for field in schema if field.name == column or _is_plain(field.type)]


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    kind = _values(kind)
    if types.is_struct(kind):
        return any(kind.field(place).name == "bytes" for place in range(kind.num_fields))
    binary = types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary
    return any(is_kind(kind) for is_kind in binary)


def _holds_texts(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    texts = types.is_string, types.is_large_string, types.is_string_view
    return any(is_kind(_values(kind)) for is_kind in texts)


def _values(kind: pa.DataType) -> pa.DataType:
    """The type of what a column holds, however it is packed."""
    import pyarrow.types as types

    return kind.value_type if types.is_dictionary(kind) else kind


def _is_plain(kind: pa.DataType) -> bool:
    """Whether metadata may come from a column: numbers, texts, dates, and short lists and objects of these."""
    import pyarrow.types as types

    if types.is_list(kind):
        return _is_plain(kind.value_type)
    if types.is_struct(kind):
        return all(_is_plain(kind.field(place).type) for place in range(kind.num_fields))
    return not (types.is_nested(kind) or _holds_bytes(kind))


def _metadata(cells: Row, levels: int = DEEPEST_VALUE) -> dict[str, Any] | None:
    """What JSON holds of a row; what is empty, long or deep is left out."""
    found = {name: _plain(value, levels) for name, value in cells.items() if name}
    return {name: value for name, value in found.items() if value is not None} or None


def _plain(value: Any, levels: int = DEEPEST_VALUE) -> Any:
    """A value as JSON holds it; None for what is left out. levels: of lists and objects, of which others are empty."""
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value if 0 < len(value) <= LONGEST_TEXT else None
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, (list, tuple)) and 0 < len(value) <= LONGEST_LIST:
        some = [_plain(one, levels - 1) for one in value] if levels else [None]
        return None if None in some else some
    if isinstance(value, dict) and 0 < len(value) <= LONGEST_LIST and levels:
        return _metadata({str(name): one for name, one in value.items()}, levels - 1)
    return None


def read_cell(place: Place, column: str, row: int) -> bytes:
    """The bytes in a cell of a table."""
    try:
        with place.open() as file, closing(_rows_of(place.path)(file)) as reader:
            cell = reader.cell(column, row)
        cell = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if isinstance(cell, str) and cell[:5].lower() == "data:":
            return _decoded(cell)
    except Exception as error:  # a damaged file may raise anything
        raise _table_error(error) from error
    if not isinstance(cell, bytes):
        raise InputError("no such cell with bytes in the table", code="not-found")
    return cell


def _decoded(url: str) -> bytes:
    """What a data: URL holds."""
    return read_url(url, UrlLimits(max_bytes=ImageLimits.from_environment().max_bytes))


def _table_error(error: Exception) -> InputError:
    if isinstance(error, InputError):
        return error
    return InputError(f"a table that cannot be read: {first_line(error)}", code="table")
