"""Items that were written down: found again where they were, those of one archive or table in one pass over it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from image_encoders.bulk.sources.archives import Archive, is_archive_name
from image_encoders.bulk.sources.items import Entry, Problem, Ready, Settings, Walk
from image_encoders.bulk.sources.locators import place_of, read_locator
from image_encoders.bulk.sources.stores import ObjectEntry, is_object
from image_encoders.bulk.sources.tables import Table
from image_encoders.bulk.sources.urls import UrlEntry, is_url
from image_encoders.bulk.sources.videos import Frame
from image_encoders.errors import InputError
from image_encoders.inputs.files import ADDRESS
from image_encoders.inputs.image import ImageLimits
from image_encoders.records import Locator
from image_encoders.tables import id_of

FILE_STATE = re.compile(r"\d+ -?\d+")  # how those of files begin


@dataclass(frozen=True)
class RecordedItem(Ready):
    """An item as it was written down: what its source said of it, without its bytes.

    name: its id
    settings: the settings of its source
    """

    name: str
    locator: Locator
    state: str
    metadata: Mapping[str, Any] | None = None
    error: InputError | None = None
    settings: Settings = field(default_factory=Settings)

    def changed(self) -> bool:
        """Whether the file that it is, or that it is in, is another one by now; False where that is not known."""
        path = self.locator.path
        if ADDRESS.match(path) or not FILE_STATE.match(self.state):
            return False
        try:
            state = place_of(path).state
        except InputError:  # gone, which changes nothing of what is stored
            return False
        return self.state != state and not self.state.startswith(f"{state} ")

    def read(self, limits: ImageLimits) -> bytes:
        if self.error is not None:
            raise self.error
        return read_locator(self.locator, limits, private_urls=self.settings.private_urls)


def entries(items: Iterable[RecordedItem]) -> Iterator[Entry]:
    """Items as sources would name them; those that an archive or a table holds, in one pass over it."""
    together: defaultdict[tuple[str, str | None], list[RecordedItem]] = defaultdict(list)
    for item in items:
        if (container := _container(item)) is not None:
            together[container].append(item)
        else:
            yield _entry(item)
    for container, some in together.items():
        yield from _members(*container, some)


def _container(item: RecordedItem) -> tuple[str, str | None] | None:
    """The archive that an item is in, or the table and its column."""
    path, member = item.locator.path, item.locator.member
    if item.error is not None or member is None:
        return None
    return path, None if is_archive_name(path) else member.rpartition("/")[0]


def _entry(item: RecordedItem) -> Entry:
    """An item that is in no archive and no table, as a source would name it."""
    path, time_s = item.locator.path, item.locator.time_s
    if item.error is not None:
        return item
    if time_s is not None:
        return Frame(place_of(path), time_s, item.settings.every_s)
    if is_url(path):
        return UrlEntry(path, item.metadata, item.settings.private_urls)
    if is_object(path):
        return ObjectEntry(path, item.metadata)
    return item


def _members(path: str, column: str | None, items: Sequence[RecordedItem]) -> Iterator[Entry]:
    """Items in an archive or a table, in one pass over it; the missing ones with the reason."""
    wanted = {item.id: item for item in items}
    walk = Walk(items[0].settings, known=lambda id, state: id not in wanted)
    error = InputError("no longer in the archive or table", code="not-found")
    if column is None:
        found = Archive(place_of(path), walk).entries()
    else:
        found = Table(place_of(path), walk, _refused, column).entries()
    for entry in found:
        if wanted.pop(id_of(entry.name), None) is not None:
            yield entry
            if not wanted:
                return
        elif isinstance(entry, Problem):
            error = entry.error
    yield from (replace(item, error=error) for item in wanted.values())


def _refused(name: str, metadata: Mapping[str, Any] | None) -> Entry:
    """A cell that held an image when it was written down, and holds a name now."""
    error = InputError("the cell now holds a path instead of an image; run again", code="changed")
    return Problem(name, Locator(name), error)
