"""Readers of tables: Parquet, LanceDB, CSV and JSON lines, row by row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from image_encoders.bulk.sources.items import Uncountable
from image_encoders.errors import InputError

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
ROWS = 1024  # read at a time; of bytes:
IMAGES = 32

Row = Mapping[str, Any]


def open_reader(path: str, file: Any) -> Reader:
    """The reader of a table, by its name; its file is open for reading bytes."""
    name, ending = os.path.splitext(path.lower())
    if ending == PACKED:
        return open_reader(name, gzip.GzipFile(fileobj=file))
    readers: dict[str, Callable[[Any], Reader]] = {".parquet": _Parquet, ".lance": _Lance, ".csv": _Csv, ".tsv": _Tsv}
    return readers.get(ending, _Lines)(file)


class Reader:
    """An open table."""

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


class _Lines(Reader):
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


class _Csv(Reader):
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


class _Parquet(Reader):
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


class _Lance(Reader):
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
