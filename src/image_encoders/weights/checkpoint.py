"""A checkpoint on disk: the net in it, and what was found out about it, which is kept until its files change."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from image_encoders.cache import atomic_write, cache_folder, require_cached
from image_encoders.errors import WeightsError
from image_encoders.process import building, torch_has_computed

FORMAT = 5  # of what families find out

Content = TypeVar("Content")


class Checkpoint(Generic[Content]):
    """The files of a checkpoint and what is read from them: a net, several nets, a tokenizer.

    places: files, or folders whose files count, those in folders below too
    read: -> the content
    about: plain values, beside the files, that facts depend on, such as versions
    keep: whether the content is kept, once it is read, until `release`; else only as long as somebody holds it
    """

    def __init__(
        self, places: Sequence[Path], read: Callable[[], Content], about: Mapping[str, Any], *, keep: bool = True
    ):
        self._places, self._read, self._about = places, read, about
        self._states = _states(places)
        self._shared: Callable[[], Content | None] = lambda: None
        self._keeps = keep
        self._kept: Content | None = None

    def content(self) -> Content:
        """What is in the files: read by the first who asks, and shared with all who hold it.

        Raises WeightsError once the files have changed: other facts would be true of them.
        """
        found = self._shared()
        if found is None:
            with building:
                found = self._shared()
                if found is None:
                    torch_has_computed.set()
                    found = self._read()
                    if _states(self._places) != self._states:
                        raise WeightsError(
                            f"{self._places[0]}: the checkpoint changed while it was in use; load it again"
                        )
                    self._shared = weakref.ref(found)
        if self._keeps:
            self._kept = found
        return found

    def release(self) -> None:
        """Keep the content no longer than others hold it."""
        self._keeps, self._kept = False, None

    def facts(self, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `find` returned for these files the first time, so that a known checkpoint need not be read.

        find: -> plain values that JSON can hold
        """
        identity = json.dumps(
            [
                FORMAT,
                metadata.version("image-encoders"),
                dict(self._about),
                [str(place.absolute()) for place in self._places],
            ],
            sort_keys=True,
        )
        digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        path = cache_folder() / "facts" / f"{digest}.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(path.read_text("utf-8"))
            if known["states"] == self._states:
                return known["facts"]
        require_cached(f"what is known of {self._places[0] if self._places else 'an empty folder'}")
        facts = find()
        with suppress(OSError):  # then they are found again the next time
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as part:
                part.write_text(json.dumps({"states": self._states, "facts": facts}), "utf-8")
        return facts


def _states(places: Sequence[Path]) -> list[list[Any]]:
    """What shows that a file has changed: its name, size, times and place on the disk."""
    files = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return [
        [str(file), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        for file in files
        if file.is_file()
        for found in [file.stat()]
    ]
