"""A worker as seen by the front: its process, its socket, and its pending items."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from image_encoders.api.items import Item
from image_encoders.batching import Embedded
from image_encoders.errors import ImageEncodersError
from image_encoders.serve import frames
from image_encoders.serve.recipe import Recipe
from image_encoders.serve.settings import Settings
from image_encoders.serve.worker import START

MOST_BYTES = 256 << 20  # of items that a worker may hold


class Unavailable(ImageEncodersError):
    """The worker has ended, or there is none at the moment."""

    def __init__(self, message: str, retry_s: float = 1.0):
        super().__init__(message)
        self.retry_s = retry_s


@dataclass(frozen=True)
class Facts:
    """Facts about its model and tower that a worker reports when it is ready."""

    name: str
    dim: int
    fingerprint: str
    device: str
    engine: str
    precision: str
    modality: str
    modalities: tuple[str, ...]
    seconds: float
    pid: int


@dataclass(eq=False)
class Entry:
    """An item that is waiting or in a worker, and its future.

    item: None once it was sent
    number: of the frame that it was sent in
    """

    item: Item | None
    future: asyncio.Future[Embedded]
    since: float = field(default_factory=time.monotonic)
    number: int = 0
    size: int = 0

    def __post_init__(self) -> None:
        self.size = 0 if self.item is None else len(self.item.content)


class WorkerProcess:
    """One process, from its start to its end.

    sent: its pending items
    held: bytes of those
    proved: when it last embedded something, a canary or a client's item
    queues: how many items wait in it for preparation and for the net, as last reported
    """

    def __init__(self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._process, self._reader, self._writer = process, reader, writer
        self._numbers = count(1)
        self._canary: int | None = None  # the number of the one that is on its way
        self.sent: dict[int, Entry] = {}
        self.held = 0
        self.proved = time.monotonic()
        self.queues = {"preparing": 0, "waiting": 0}

    @classmethod
    async def start(cls, recipe: Recipe, modality: str | None, settings: Settings) -> tuple[WorkerProcess, Facts]:
        """A worker that is ready; raises ImageEncodersError with its reason where it cannot load."""
        ours, theirs = socket.socketpair()
        with theirs:
            words = [sys.executable, "-c", START.format(path=sys.path), recipe.name, modality or ""]
            process = subprocess.Popen(
                words, stdin=theirs.fileno(), env=_environment(settings), start_new_session=True
            )  # the terminal's Ctrl-C is for this process, which then ends that one
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = cls(process, reader, writer)
        try:
            wishes = {**recipe.wishes, "name": recipe.name, "modality": modality}
            wishes |= {
                "batch_size": settings.batch_size,
                "deadline": settings.deadline,
                "json_logs": settings.json_logs,
            }
            writer.write(frames.pack(wishes))
            frame = await frames.receive(reader)
            if frame is None:
                raise Unavailable(f"{recipe.name}: the process that loads it ended with no reason given")
            header, _ = frame
            if header.pop("type") != "ready":
                raise ImageEncodersError(f"{recipe.name}: {header['message']}")
        except BaseException:
            await worker.end()
            raise
        worker.proved = time.monotonic()
        return worker, Facts(**{**header, "modalities": tuple(header["modalities"])})

    def has_room(self, entry: Entry, most: int) -> bool:
        """Whether it may hold this item besides the others; a single one is always accepted."""
        return not self.sent or (len(self.sent) < most and self.held + entry.size <= MOST_BYTES)

    async def send(self, entry: Entry) -> None:
        """Send it an item; waits while its socket's buffer is full."""
        item, entry.item = entry.item, None
        assert item is not None, "an item is sent once"
        entry.number = next(self._numbers)
        self.sent[entry.number] = entry
        self.held += entry.size
        content = item.content.encode() if isinstance(item.content, str) else item.content
        kind = "text" if item.modality == "text" else "file"
        self._writer.write(frames.pack({"type": kind, "id": entry.number}, content))
        del item, content
        await self._writer.drain()

    def cancel(self, entry: Entry) -> None:
        """Have it drop a cancelled item."""
        if self.sent.get(entry.number) is entry:
            self._take(entry.number)
            self._writer.write(frames.pack({"type": "cancel", "id": entry.number}))

    def _take(self, number: int) -> Entry | None:
        entry = self.sent.pop(number, None)
        self.held -= 0 if entry is None else entry.size
        return entry

    def try_canary(self) -> None:
        """Send a canary, unless one is on its way."""
        if self._canary is None:
            self._canary = next(self._numbers)
            self._writer.write(frames.pack({"type": "canary", "id": self._canary}))

    async def listen(self) -> Any:
        """Results as they arrive, (entry, header, embedding), until the process ends."""
        while (frame := await frames.receive(self._reader)) is not None:
            header, content = frame
            self.queues = {name: header.get(name, 0) for name in self.queues}
            if header["type"] == "embedding":
                self.proved = time.monotonic()
            if header["id"] == self._canary:
                self._canary = None
                continue
            entry = self._take(header["id"])
            if entry is not None and not entry.future.done():
                yield entry, header, content

    def kill(self) -> None:
        """Kill it at once."""
        self._process.kill()

    async def end(self) -> None:
        """Have it end, and wait for that."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
        self._process.kill()
        await asyncio.get_running_loop().run_in_executor(None, self._process.wait)


def _environment(settings: Settings) -> dict[str, str]:
    limits = {
        "IMAGE_ENCODERS_MAX_BYTES": str(settings.max_file_bytes),
        "IMAGE_ENCODERS_MAX_PIXELS": str(settings.max_pixels),
    }
    return {**os.environ, **limits}
