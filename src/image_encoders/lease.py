"""Who may write into a folder, where several machines reach it: one at a time, and a later one shuts out an earlier.

A lock of the operating system (`cache.file_lock`) does not reach other machines on every shared file system. A lease is
a file: `.lease.7` says who is the seventh to write here, and its time of change says that the owner still runs.
Whoever makes `.lease.8` has taken over; the seventh finds that out before its next write and stops.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from image_encoders.errors import CollectionError

BEAT_S = 10.0  # seconds between two signs of life
DEAD_S = 60.0  # without one, after which an owner on another machine counts as dead
NAME = re.compile(r"\.lease\.(\d+)")


class Lease:
    """A folder for this owner alone, from `take` to `give_back`; the caller holds the folder's lock.

    epoch: how many have held it, this one included
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.epoch = 0
        self._ended = threading.Event()

    def take(self) -> None:
        """Take it; CollectionError where an owner on another machine seems to be alive."""
        found = sorted(_epochs(self.folder))
        before = found[-1] if found else 0
        if before:
            self._check_free(before)
        self.epoch = before + 1
        draft = self.folder / f".lease.draft.{socket.gethostname()}.{threading.get_native_id()}"
        draft.write_text(json.dumps({"machine": _machine(), "host": socket.gethostname(), "process": os.getpid()}))
        try:
            os.link(draft, self._path(self.epoch))  # appears whole, and to one alone
            if max(_epochs(self.folder)) > self.epoch:  # this one had been, and is over
                raise FileExistsError
        except FileExistsError:
            raise CollectionError(f"another process has just begun to write {self.folder}; run again later") from None
        finally:
            draft.unlink(missing_ok=True)
        for epoch in found:
            self._path(epoch).unlink(missing_ok=True)
        self._ended.clear()
        threading.Thread(target=self._beat, args=(self._ended,), name="lease", daemon=True).start()

    def check(self) -> None:
        """Raise CollectionError where another has taken over meanwhile."""
        if self._path(self.epoch).exists() and not self._path(self.epoch + 1).exists():
            return
        raise CollectionError(
            f"{self.folder} was taken over by another run, since this one gave no sign of life for {DEAD_S:.0f} s; "
            "what was stored until then is kept, and the other run continues from there"
        )

    def give_back(self) -> None:
        """Release it at once for the next owner."""
        self._ended.set()
        with suppress(OSError):  # where it was taken over there is nothing to give
            if self._path(self.epoch).exists():
                self._path(self.epoch).write_text("{}")  # the number stays, so that no later owner has it again

    def _path(self, epoch: int) -> Path:
        return self.folder / f".lease.{epoch}"

    def _check_free(self, epoch: int) -> None:
        """Raise CollectionError where the owner of an epoch may be alive."""
        owner = _owner(self._path(epoch))
        if not owner or owner.get("machine") == _machine():
            return  # it has ended, or was killed: on one machine the lock is enough
        age = self._age(epoch)
        if age < DEAD_S:
            raise CollectionError(
                f"{self.folder} is being written by process {owner.get('process')} on {owner.get('host')}, last active "
                f"{age:.0f} s ago; wait until it has ended, or, if it was killed, until it has been inactive for "
                f"{DEAD_S:.0f} s"
            )

    def _age(self, epoch: int) -> float:
        """Seconds since the last sign of life, by the file system's own clock."""
        probe = self.folder / f".lease.probe.{socket.gethostname()}.{threading.get_native_id()}"
        try:
            probe.write_text("")
            return max(0.0, probe.stat().st_mtime - self._path(epoch).stat().st_mtime)
        except FileNotFoundError:  # somebody else takes it right now
            return 0.0
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self, ended: threading.Event) -> None:
        path = self._path(self.epoch)
        while not ended.wait(BEAT_S):
            with suppress(OSError):  # `check` says what has become of it
                os.utime(path)


def _epochs(folder: Path) -> list[int]:
    return [int(found[1]) for name in os.listdir(folder) if (found := NAME.fullmatch(name))]


def _owner(path: Path) -> dict[str, Any]:
    """What an owner says of itself; nothing where it has given the folder back, or was about to."""
    try:
        owner = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _machine() -> str:
    """What processes that see the same locks have in common."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()
