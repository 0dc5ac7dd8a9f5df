"""From a folder to a page that searches it, and follows it: the command in a process of its own."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from image_encoders.scenes import write_images

PAGE = re.compile(r"browse .* at (http://\S+)/search;")
LONGEST_S = 300.0  # on a machine that is busy


class Browsing:
    """The command, what it says, and its page."""

    def __init__(self, *arguments: object):
        words = [sys.executable, "-m", "image_encoders", "browse", "--no-open", *map(str, arguments)]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "BROWSER": "no"})
        self.said: list[str] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            for line in self.process.stderr:
                self.said.append(line.rstrip("\n"))

    @property
    def url(self) -> str:
        """Where the page is, once it is there."""

        def printed() -> str | None:
            assert self.process.poll() is None, self.said
            return next((found[1] for line in self.said if (found := PAGE.search(line))), None)

        return until(printed, "listening")

    def get(self, address: str, **query: Any) -> httpx.Response:
        return httpx.get(self.url + address, params=query, timeout=300, trust_env=False)

    def status(self) -> dict[str, Any]:
        return self.get("/status.json").json()

    def names(self, **query: Any) -> list[str]:
        """The hits' names, the best first."""
        answer = self.get("/search.json", k=1000, **query)
        return [hit["name"] for hit in answer.json()["hits"]] if answer.status_code == 200 else []

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it as people do; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(LONGEST_S)
        self._thread.join(10)
        return status

    def children(self) -> list[int]:
        """The processes that it started and that still run."""
        return [pid for pid, parent in _processes() if parent == self.process.pid]


def _processes() -> Iterator[tuple[int, int]]:
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state != "Z":
            yield int(name), int(parent)


def until(happened: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end:
        if found := happened():
            return found
        time.sleep(0.05)
    raise AssertionError(f"never {what}")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "images"
    folder.mkdir()
    write_images(folder, 60, seed=0)
    return folder


@pytest.fixture
def photos(drawn: Path, tmp_path: Path) -> Path:
    """60 drawn images and two broken files."""
    return Path(shutil.copytree(drawn, tmp_path / "photos"))


@pytest.fixture
def browse(request: pytest.FixtureRequest) -> Iterator[Callable[..., Browsing]]:
    """browse(FOLDER, ...) starts the command; in the end none of its processes is left."""
    started: list[Browsing] = []

    def browse(*arguments: object, model: str | None = "clip/demo", port: int = 0) -> Browsing:
        named = [] if model is None else ["--model", model, "--precision", "float32"]
        started.append(Browsing(*arguments, "--port", port, *named))
        return started[-1]

    yield browse
    statuses = []
    for one in started:
        children = one.children()
        try:
            statuses.append(0 if one.process.poll() is not None else one.stop())
        finally:
            one.process.kill()
        until(lambda children=children: not {*children} & {pid for pid, _ in _processes()}, "ended")
    assert not any(statuses), [one.said for one in started]


def test_a_folder_is_embedded_searched_followed_and_taken_up_again(browse, photos: Path):
    browsing = browse(photos)
    assert browsing.get("/search").headers["content-type"].startswith("text/html")
    assert browsing.status()["run"]["state"] in ("looking", "embedding", "following")  # at once, before the model is
    until(lambda: browsing.names(), "searchable")
    until(lambda: browsing.status()["run"]["state"] == "following", "embedded")
    status = browsing.status()
    assert status["collection"]["images"] == 60
    assert status["collection"]["failures"] == 2
    assert (status["run"]["total"], status["run"]["done"], status["run"]["failed"]) == (62, 60, 2)
    assert (status["model"], status["modalities"]) == ("clip/demo", ["image", "text"])
    found = browsing.names(q="a red circle")
    assert len(found) == 60

    best = next(photos.rglob(found[0]))
    (photos / "more").mkdir()
    best.rename(photos / "more" / "moved.webp")
    until(lambda: "moved.webp" in browsing.names(q="a red circle"), "found under its new name")
    (photos / "more" / "moved.webp").unlink()
    until(lambda: len(browsing.names(q="a red circle")) == 59, "gone")
    assert not {"moved.webp", best.name} & {*browsing.names(q="a red circle")}

    away = photos.rename(photos.with_name("away"))  # out of reach, it can be searched all the same
    until(lambda: browsing.status()["run"]["state"] == "paused", "paused")
    assert len(browsing.names(q="a red circle")) == 59
    assert browsing.stop(signal.SIGINT) == 0
    assert browsing.said[-1].startswith("stopped")
    again = browse(photos, model=None)
    assert again.status()["collection"]["images"] == 59  # at once
    assert len(again.names()) == 59
    assert len(again.names(q="a red circle")) == 59
    until(lambda: again.status()["run"]["state"] == "paused", "paused")
    away.rename(photos)
    until(lambda: again.status()["run"]["state"] == "following", "back")
    assert again.status()["collection"]["images"] == 59


def test_what_is_embedded_is_searched_while_the_rest_is_and_a_killed_run_goes_on(browse, photos: Path, tmp_path: Path):
    draw_large(photos / "large", 60)
    browsing = browse(photos, "-o", tmp_path / "index")

    def some() -> bool:
        found = browsing.status()
        return found["run"]["state"] == "embedding" and 0 < (found["collection"] or {"images": 0})["images"] < 120

    until(some, "partly embedded")
    assert 0 < len(browsing.names()) < 120
    follower = next(pid for pid in browsing.children() if _runs(pid, "image_encoders.serve.follow"))
    os.kill(follower, signal.SIGKILL)
    until(lambda: browsing.status()["run"]["state"] == "following", "embedded")
    assert browsing.status()["collection"]["images"] == 120
    assert len(browsing.names(q="a red circle")) == 120


def draw_large(folder: Path, count: int) -> None:
    """Images that take long to decode, each with other bytes."""
    folder.mkdir()
    file = io.BytesIO()
    Image.new("RGB", (2500, 2500), (200, 30, 30)).save(file, "PNG", compress_level=1)
    content, header = file.getvalue(), 33  # bytes before the second chunk
    for number in range(count):
        text = b"tEXt" + f"number\0{number}".encode()
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        (folder / f"{number}.png").write_bytes(content[:header] + chunk + content[header:])


def _runs(process: int, module: str) -> bool:
    try:
        return module in Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return False


def test_a_second_one_says_where_the_first_is(browse, photos: Path):
    first = browse(photos)
    address = first.url
    second = browse(photos)
    assert second.process.wait(LONGEST_S) == 0
    second.stop()
    assert second.said == [f"{photos} is already being browsed by another process, at {address}/search"]


def test_what_cannot_be_browsed_is_said_at_once(browse, tmp_path: Path, photos: Path):
    def refused(*arguments: object, **options: Any) -> str:
        browsing = browse(*arguments, **options)
        assert browsing.process.wait(LONGEST_S) == 2
        browsing.stop()
        return browsing.said[-1]

    assert "no such folder; name a folder of images" in refused(tmp_path / "nowhere")
    assert "a file; name a folder" in refused(next(photos.rglob("*.png")))
    said = refused(photos, "--offline", model=None)
    assert "has not been downloaded: `image-encoders fetch clip/openai/clip-vit-base-patch32`" in said
    assert "--model clip/demo, bundled" in said
    assert "there is no model" in refused(photos, model="clop/demo")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "is not a collection" in refused(photos, "-o", tmp_path / "full")


def test_a_model_that_cannot_be_loaded_ends_the_command(browse, photos: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    browsing = browse(photos, "--offline", model=f"clip/{tmp_path / 'empty'}")
    assert browsing.process.wait(LONGEST_S) == 2
    browsing.stop()
    assert "error:" in browsing.said[-1]
