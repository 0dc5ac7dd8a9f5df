"""What was found in a checkpoint, kept until its files change, so that it need not be read to be recognised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from image_encoders.cache import atomic_write, cache_folder, require_cached
from image_encoders.errors import WeightsError

FORMAT = 5  # of what families find

Built = TypeVar("Built")


def cached_facts(
    places: Sequence[Path], about: Mapping[str, Any], find: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `find` returned for these files, or returns now.

    places: files, or folders whose files count, those in folders below too
    about: plain values; what else the answer depends on, such as versions
    find: -> plain values that JSON can hold
    """
    identity = json.dumps(
        [FORMAT, metadata.version("image-encoders"), dict(about), [str(place.absolute()) for place in places]],
        sort_keys=True,
    )
    path = (
        cache_folder() / "facts" / f"{hashlib.sha256(identity.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.json"
    )
    states = _states(places)
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text("utf-8"))
        if known["states"] == states:
            return known["facts"]
    require_cached(f"what is known of {places[0] if places else 'an empty folder'}")
    facts = find()
    with suppress(OSError):  # then they are found again the next time
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as part:
            part.write_text(json.dumps({"states": states, "facts": facts}), "utf-8")
    return facts


def steady(places: Sequence[Path], build: Callable[[], Built]) -> Callable[[], Built]:
    """`build`, which raises WeightsError once these files have changed since now: other facts would be true of them."""
    states = _states(places)

    def built() -> Built:
        result = build()
        if _states(places) != states:
            raise WeightsError(f"{places[0]}: the checkpoint has changed while it was in use; load it again")
        return result

    return built


def _states(places: Sequence[Path]) -> list[list[Any]]:
    """What tells a file from what it was: its name, size, times and place on the disk."""
    files = [file for place in places for file in (sorted(place.rglob("*")) if place.is_dir() else [place])]
    return [
        [str(file), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        for file in files
        if file.is_file()
        for found in [file.stat()]
    ]
