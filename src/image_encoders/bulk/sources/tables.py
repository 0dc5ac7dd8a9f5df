"""Tables: Parquet, LanceDB, CSV and JSON lines, with a column of paths, addresses or bytes; the others become metadata.

table.parquet ─rows, streamed→ cells ─→ files and addresses, or the bytes themselves, as `table.parquet#column/row`
"""

from __future__ import annotations

import datetime
import decimal
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from image_encoders.bulk.sources.contents import Content, taken
from image_encoders.bulk.sources.items import Entry, Problem, Ready, Uncountable, Walk
from image_encoders.bulk.sources.places import Place
from image_encoders.bulk.sources.table_readers import SUFFIXES, Reader, Row, open_reader
from image_encoders.errors import InputError, first_line
from image_encoders.inputs.files import check_bytes
from image_encoders.inputs.image import MAX_BYTES_HINT, ImageLimits
from image_encoders.inputs.urls import UrlLimits, read_url
from image_encoders.records import Locator

LONGEST_TEXT = 1 << 14  # characters of a metadata value
DEEPEST_VALUE = 8  # lists and objects in each other
LONGEST_LIST = 64  # values in one metadata value

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
            with _opened(self.place) as reader:
                reader.choose(self.column)
        except InputError as error:
            raise error.named(self.place.path) from error.__cause__
        except Exception as error:  # a damaged file may raise anything
            raise _table_error(error).named(self.place.path) from error

    def count(self) -> int:
        """How many rows it says that it has; Uncountable where it does not say."""
        try:
            with _opened(self.place) as reader:
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
            with _opened(self.place) as reader:
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
            self.walk.complete(self.place.id)

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


@contextmanager
def _opened(place: Place) -> Iterator[Reader]:
    with place.open() as file, closing(open_reader(place.path, file)) as reader:
        yield reader


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
        with _opened(place) as reader:
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
