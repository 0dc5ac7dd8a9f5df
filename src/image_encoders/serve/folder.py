"""A folder compared with its last complete state: what has been deleted, and what is out of reach.

A file that cannot be found may have been deleted, or its disk may have been unmounted. The folder, and every folder
below it where another file system begins, is an area. Files missing from an area count as deleted if the area is
the same as last time (device and inode), or if at least half of its known files are there. They are
kept if the folder has lost all its images at once.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from image_encoders.cache import atomic_write

MEMORY = ".folders.json"  # in a collection: the areas of each folder that was followed into it
MOUNTS = "/proc/self/mountinfo"

Identity = list[int]  # device and inode; for a symbolic link to a folder also its own


class Folder:
    """The folder at `path`, and its state stored in a collection.

    kept: images whose files were missing in the last scan, but do not count as deleted
    """

    def __init__(self, path: str, collection: Path):
        self.path = path
        self.memory = collection / MEMORY
        self.kept = 0

    def unreachable(self) -> str | None:
        """Why the folder cannot be read now; None if it can."""
        try:
            with os.scandir(self.path):
                return None
        except OSError as error:
            return f"{self.path}: {(error.strerror or 'not reachable').lower()}"

    def deleted(self, missing: Iterable[str], known: Iterable[str]) -> list[str]:
        """Which files have been deleted.

        missing: paths where no file can be found
        known: the paths of all images of the collection, the missing ones among them

        Files outside the folder are ignored.
        """
        missing = [path for path in missing if self._holds(path)]
        known = [path for path in known if self._holds(path)]
        remembered = self._remembered()
        absent = set(missing)
        present = [path for path in known if path not in absent]
        found = self._areas(present)
        areas = sorted({self.path, *remembered, *found}, key=len)
        area = _Areas(areas)
        left = Counter(map(area.of, present))
        lost = Counter(map(area.of, missing))
        trusted: dict[str, Identity] = {}
        for one in areas:
            now = identity(one)
            same = now is not None and now == remembered.get(one)
            if one == self.path:
                same = same and (bool(present) or self._holds_images())
            if now is not None and (same or left[one] >= lost[one]):
                trusted[one] = now
        unlinked = {one for one in remembered if self._unlinked(one, area, remembered, trusted)}
        believed = {*trusted, *unlinked}
        # Looked at once more: between the first look and the check of its area, a disk may have gone and come.
        gone = [path for path in missing if area.of(path) in believed and _is_gone(path)]
        gone = [path for path in gone if (one := area.of(path)) in unlinked or identity(one) == trusted[one]]
        self.kept = len(absent) - len(set(gone))
        still = {one: was for one, was in remembered.items() if one not in unlinked and lost[one]}
        self._remember({**still, **{one: trusted[one] for one in trusted if one in (self.path, *found)}}, remembered)
        return gone

    def _holds(self, path: str) -> bool:
        return path.startswith(os.path.join(self.path, ""))

    def _holds_images(self) -> bool:
        """Whether any image is there now, whatever is known of it."""
        from image_encoders.bulk.sources import Sources

        return any(file.error is None for file in Sources([self.path]))

    def _areas(self, present: Iterable[str]) -> set[str]:
        """The folders of these files, and those above them, where another file system begins."""
        mounts = mount_points()
        devices: dict[str, int | None] = {}
        areas = set()

        def device(folder: str) -> int | None:
            if folder not in devices:
                found = identity(folder)
                devices[folder] = None if found is None else found[0]
                if folder != self.path and (folder in mounts or device(os.path.dirname(folder)) != devices[folder]):
                    areas.add(folder)
            return devices[folder]

        for path in present:
            device(os.path.dirname(path))
        return areas

    def _unlinked(
        self, area: str, areas: _Areas, remembered: dict[str, Identity], trusted: dict[str, Identity]
    ) -> bool:
        """Whether an area was reached by a symbolic link, and somebody has removed that."""
        is_link = len(remembered[area]) > 2
        return area != self.path and is_link and not os.path.lexists(area) and areas.of(area) in trusted

    def _remembered(self) -> dict[str, Identity]:
        with suppress(OSError, ValueError, AttributeError):
            return dict(json.loads(self.memory.read_text("utf-8")).get(self.path, {}))
        return {}

    def _remember(self, areas: dict[str, Identity], before: dict[str, Identity]) -> None:
        if areas == before:
            return
        folders = {}
        with suppress(OSError, ValueError):
            folders = json.loads(self.memory.read_text("utf-8"))
        with atomic_write(self.memory) as part:
            part.write_text(json.dumps({**folders, self.path: areas}, indent=1), "utf-8")


class _Areas:
    """Which of some folders each path lies in: the deepest one above it."""

    def __init__(self, areas: Iterable[str]):
        self.areas = frozenset(areas)
        self._known: dict[str, str] = {}

    def of(self, path: str) -> str:
        folder = os.path.dirname(path)
        found = self._known.get(folder)
        if found is None:
            found = folder if folder in self.areas or folder == os.path.dirname(folder) else self.of(folder)
            self._known[folder] = found
        return found


def _is_gone(path: str) -> bool:
    """Whether there is no file at `path`; False if that is unknown."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False


def identity(folder: str) -> Identity | None:
    """Device and inode of a folder, and of the symbolic link that leads to it; None if it does not exist."""
    try:
        found, own = os.stat(folder), os.lstat(folder)
    except (OSError, ValueError):
        return None
    here, link = [found.st_dev, found.st_ino], [own.st_dev, own.st_ino]
    return here if here == link else [*here, *link]


def mount_points() -> frozenset[str]:
    """Where file systems are mounted, as far as the system says so; parts of a file system mounted again among them."""
    try:
        with open(MOUNTS, "rb") as file:
            lines = [line.split(b" ") for line in file]
    except OSError:
        return frozenset()
    return frozenset(
        os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), parts[4])) for parts in lines
    )
