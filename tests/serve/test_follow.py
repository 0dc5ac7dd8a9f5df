"""A process of its own keeps a collection as its folder is, and may die at any time."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from image_encoders.bulk.run import run
from image_encoders.collection import ITEMS, Collection
from image_encoders.serve import browse
from image_encoders.serve.browse import BrowsedAlready, Follower, Job, browsing, known_collection, place_of

FAKE = (sys.executable, str(Path(__file__).with_name("follow_fake.py")))
LONGEST_S = 300.0  # on a machine that is busy


def image(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (9 + number % 5, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def draw(folder: Path, numbers: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number:05d}.png").write_bytes(image(number))


def until(happened: Callable[[], Any], what: str) -> Any:
    """What it gives, once it is true."""
    end = time.monotonic() + LONGEST_S
    while time.monotonic() < end:
        if found := happened():
            return found
        time.sleep(0.02)
    raise AssertionError(f"never {what}")


class Followed:
    """A follower with what its collection holds."""

    def __init__(self, follower: Follower, folder: Path):
        self.follower, self.folder = follower, folder

    @property
    def names(self) -> set[str]:
        """Of the images in the collection, from the folder on."""
        place = self.follower.collection
        if place is None:
            return set()
        rows = Collection.open(place).scan(ITEMS, ["path"])
        paths = [path for batch in rows for path in batch["path"].to_pylist()]
        assert len(paths) == len(set(paths))
        return {os.path.relpath(path, self.folder) for path in paths}

    @property
    def state(self) -> str:
        return str(self.follower.status()["state"])

    def wait(self, state: str = "following", **wanted: Any) -> dict[str, Any]:
        """How far it is, once it is in this state, with these values."""

        def reached() -> dict[str, Any] | None:
            status = self.follower.status()
            there = status["state"] == state and all(status[key] == value for key, value in wanted.items())
            return status if there else None

        try:
            return until(reached, f"{state}, {wanted}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.follower.status()}") from None

    def holds(self, names: set[str]) -> None:
        """Wait until these are the images of the collection."""
        try:
            until(lambda: self.names == names, "the images")
        except AssertionError:
            assert self.names == names


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw(tmp_path / "photos", range(5))
    draw(tmp_path / "photos" / "more", range(5, 8))
    return tmp_path / "photos"


@pytest.fixture
def follow(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Followed]]:
    """follow(...) starts a follower of the photos; all are stopped in the end, and leave no process behind."""
    started: list[Follower] = []
    monkeypatch.setattr(browse, "BACKOFF_S", (0.05, 1.0))

    def follow(seconds: float = 0.0, **job: Any) -> Followed:
        monkeypatch.setenv("FAKE_SECONDS", str(seconds))
        job = {"folder": str(photos), "place": str(tmp_path / "place"), "model": "fake/net", **job}
        started.append(Follower(Job(**job), command=FAKE))
        started[-1].start()
        return Followed(started[-1], photos)

    yield follow
    for one in started:
        one.stop()
        assert one.process is None


FIRST = {*(f"{number:05d}.png" for number in range(5)), *(f"more/{number:05d}.png" for number in range(5, 8))}


def test_files_that_come_change_move_and_go_are_followed(follow, photos: Path):
    followed = follow()
    assert followed.wait()["total"] == 8
    assert followed.names == FIRST
    draw(photos / "new" / "deep", range(10, 12))
    followed.holds({*FIRST, "new/deep/00010.png", "new/deep/00011.png"})
    (photos / "00000.png").unlink()
    (photos / "new" / "deep").rename(photos / "moved")
    now = {*FIRST, "moved/00010.png", "moved/00011.png"} - {"00000.png"}
    followed.holds(now)
    (photos / "00001.png").write_bytes(image(99))

    def digests() -> set[str]:
        rows = Collection.open(followed.follower.collection).scan(ITEMS, ["sha256"])
        return {digest for batch in rows for digest in batch["sha256"].to_pylist()}

    changed = hashlib.sha256(image(99)).hexdigest()
    until(lambda: changed in digests(), "embedded again")
    followed.holds(now)
    followed.wait(done=len(now))


def test_what_is_written_piece_by_piece_is_embedded_in_the_end(follow, photos: Path):
    followed = follow()
    followed.wait()
    content = image(50)
    with (photos / "slow.png").open("wb", buffering=0) as file:
        for start in range(0, len(content), 100):
            file.write(content[start : start + 100])
            time.sleep(0.15)
    followed.holds({*FIRST, "slow.png"})
    followed.wait(failed=0)


def test_broken_and_unreadable_files_are_listed_and_the_others_embedded(follow, photos: Path):
    (photos / "broken.png").write_bytes(image(3)[:60])
    (photos / "text.jpg").write_text("not an image")
    (photos / "notes.txt").write_text("not looked at")
    followed = follow()
    assert followed.wait(failed=2)["total"] == 10
    assert followed.names == FIRST
    (photos / "broken.png").write_bytes(image(50))
    followed.holds({*FIRST, "broken.png"})
    followed.wait(failed=1)
    (photos / "text.jpg").unlink()
    followed.wait(failed=0)


def test_what_could_not_be_read_is_tried_again(follow, photos: Path, tmp_path: Path):
    followed = follow()
    followed.wait()
    collection = Collection.open(followed.follower.collection)
    from image_encoders.collection import Failure, id_of

    path = photos / "00000.png"
    found = path.stat()
    state = f"{found.st_size} {found.st_mtime_ns}"
    collection.remove([id_of(str(path))])
    collection.record([Failure(id_of(str(path)), str(path), "read", "unreadable", "an I/O error", state, "2026")])
    draw(photos, range(20, 21))
    followed.holds({*FIRST, "00020.png"})
    followed.wait(failed=0)


def test_a_folder_that_goes_and_comes_loses_nothing(follow, photos: Path):
    followed = follow()
    followed.wait()
    away = photos.rename(photos.with_name("away"))
    assert "nothing is removed" in followed.wait("paused")["message"]
    assert followed.names == FIRST
    photos.mkdir()
    assert (
        "out of reach"
        in until(lambda: (status := followed.follower.status())["message"].count("out of reach") and status, "empty")[
            "message"
        ]
    )
    assert followed.names == FIRST
    photos.rmdir()
    draw(away, range(30, 31))
    away.rename(photos)
    followed.holds({*FIRST, "00030.png"})
    followed.wait()


def test_images_deleted_while_nobody_followed_are_gone_at_the_next_start(follow, photos: Path):
    followed = follow()
    followed.wait()
    followed.follower.stop()
    (photos / "00000.png").unlink()
    draw(photos, range(40, 41))
    again = follow(collection=str(followed.follower.collection))
    again.holds({*FIRST, "00040.png"} - {"00000.png"})


def test_a_collection_inside_the_folder_is_not_followed_itself(follow, photos: Path):
    inside = photos / "index"
    followed = follow(collection=str(inside), place=None)
    followed.wait()
    looks = len(Collection.open(inside).runs())
    draw(photos, range(20, 21))
    followed.holds({*FIRST, "00020.png"})
    followed.wait()
    time.sleep(2)
    assert len(Collection.open(inside).runs()) <= looks + 3


def test_a_process_that_dies_in_the_middle_costs_nothing(follow, photos: Path, tmp_path: Path):
    draw(photos, range(100, 200))
    followed = follow(0.15)
    for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
        have = len(followed.names)
        until(lambda have=have: len(followed.names) > have, "embedding")
        first = until(lambda: followed.follower.process, "started")
        os.kill(first, number)
        until(lambda first=first: followed.follower.process not in (None, first), "started again")
    followed.wait(done=108)
    assert len(followed.names) == 108
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from fake_encoder import FakeEncoder

    undisturbed = Collection.create(tmp_path / "undisturbed", FakeEncoder())
    run(str(photos), FakeEncoder(), undisturbed)

    def embeddings(collection: Collection) -> dict[str, tuple[float, ...]]:
        rows = collection.scan(ITEMS, ["path", "embedding"])
        return {row["path"]: tuple(row["embedding"]) for batch in rows for row in batch.to_pylist()}

    assert embeddings(Collection.open(followed.follower.collection)) == embeddings(undisturbed)


def test_a_file_that_kills_its_process_is_passed_over_in_the_end(follow, photos: Path):
    draw(photos, range(100, 140))
    deadly = photos / "00110.png"
    deadly.write_bytes(image(110) + b"deadly")
    followed = follow()
    assert followed.wait(done=47)["failed"] == 1
    [failure] = Collection.open(followed.follower.collection).failures()
    assert (failure.path, failure.code, "died" in failure.message) == (str(deadly), "crashed", True)
    assert len(followed.names) == 47
    deadly.write_bytes(image(110))
    followed.wait(done=48, failed=0)


def test_a_look_that_changes_nothing_is_not_recorded(follow, photos: Path):
    followed = follow()
    followed.wait()
    followed.follower.stop()
    collection = Collection.open(followed.follower.collection)
    assert len(collection.runs()) == 1
    again = follow(collection=str(collection.folder))
    again.wait()
    again.follower.stop()
    assert len(collection.runs()) == 1


def test_its_end_comes_with_the_front(photos: Path, tmp_path: Path):
    """Also where the front is killed: the operating system closes the pipe."""
    draw(photos, range(100, 160))
    front = (
        "import sys, time\n"
        "from image_encoders.serve.browse import Follower, Job\n"
        "follower = Follower(Job(folder=sys.argv[1], place=sys.argv[2], model='fake/net'), command=sys.argv[3:])\n"
        "follower.start()\n"
        "while follower.status()['state'] != 'embedding': time.sleep(0.02)\n"
        "print(follower.process, flush=True)\n"
        "time.sleep(100)\n"
    )
    words = [sys.executable, "-c", front, str(photos), str(tmp_path / "place"), *FAKE]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "FAKE_SECONDS": "0.2"}) as one:
        follower = int(one.stdout.readline())
        one.kill()
    until(lambda: not _lives(follower), "ended")


def _lives(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_stopping_stores_what_is_embedded(follow, photos: Path):
    draw(photos, range(100, 160))
    followed = follow(0.3)
    followed.wait("embedding")
    until(lambda: followed.names, "embedding")
    followed.follower.stop()
    kept = len(followed.names)
    assert kept > 0
    assert Collection.open(followed.follower.collection).runs()  # it ended in order


def test_progress_says_how_much_there_is_and_how_long_it_takes(follow, photos: Path):
    draw(photos, range(100, 400))
    followed = follow(0.3)
    status = until(
        lambda: (status := followed.follower.status())["state"] == "embedding" and status["eta"] and status, "eta"
    )
    assert status["total"] == 308
    assert 0 < status["done"] < 308
    assert status["rate"] > 0
    assert set(status) == {"state", "total", "done", "failed", "rate", "eta", "message"}


def test_a_model_that_is_not_there_is_an_error_and_no_process_is_started_again(follow):
    followed = follow(model="fake/missing")
    status = followed.wait("failed")
    assert "fake/missing" in status["message"]
    assert followed.follower.error == status["message"]
    assert followed.follower.process is None


def test_a_collection_that_another_process_writes_is_waited_for(follow, photos: Path, tmp_path: Path):
    followed = follow()
    followed.wait()
    collection = Collection.open(followed.follower.collection)
    with collection.writing():
        draw(photos, range(20, 21))
        assert "written by another process" in followed.wait("failed")["message"]
    followed.holds({*FIRST, "00020.png"})
    followed.wait()


def test_another_embedding_space_gets_a_collection_of_its_own(follow, photos, tmp_path, monkeypatch):
    followed = follow()
    followed.wait()
    followed.follower.stop()
    before = followed.follower.collection
    assert known_collection(tmp_path / "place", None, {}).folder == before
    assert known_collection(tmp_path / "place", "fake/net", {}).folder == before
    assert known_collection(tmp_path / "place", "fake/net", {"precision": "float32", "size": 3}) is None
    assert known_collection(tmp_path / "place", "fake/other", {}) is None
    monkeypatch.setenv("FAKE_FINGERPRINT", "e" * 32)
    changed = follow(collection=str(before))
    changed.wait()
    assert changed.follower.collection == tmp_path / "place" / ("e" * 32)
    assert changed.names == FIRST
    assert known_collection(tmp_path / "place", None, {}).folder == changed.follower.collection


def test_a_collection_that_was_named_is_not_changed_for_another(follow, tmp_path, monkeypatch):
    followed = follow(collection=str(tmp_path / "index"), place=None)
    followed.wait()
    followed.follower.stop()
    monkeypatch.setenv("FAKE_FINGERPRINT", "e" * 32)
    assert "cannot be compared" in follow(collection=str(tmp_path / "index"), place=None).wait("failed")["message"]


def test_a_folder_is_browsed_by_one_process_at_a_time(photos: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("IMAGE_ENCODERS_CACHE", str(tmp_path / "cache"))
    job = Job(str(photos), place=str(place_of(str(photos))), model="fake/net")
    other = (
        "import sys\n"
        "from image_encoders.serve.browse import Job, browsing\n"
        "with browsing(Job(sys.argv[1], place=sys.argv[2], model='fake/net')) as listening:\n"
        "    listening('http://127.0.0.1:1234/search')\n"
        "    print('listening', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    words = [sys.executable, "-c", other, job.folder, str(job.place)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        with pytest.raises(BrowsedAlready, match=r"at http://127\.0\.0\.1:1234/search") as raised, browsing(job):
            pass
        assert raised.value.address == "http://127.0.0.1:1234/search"
        process.kill()
    with browsing(job):  # the lock is gone with its process
        pass


def test_thousands_of_files_that_come_at_once_are_all_embedded(follow, photos: Path):
    followed = follow()
    followed.wait()
    for number in range(20):
        draw(photos / f"album {number}", range(1000 + 100 * number, 1100 + 100 * number))
    followed.wait(done=2008)
    assert len(followed.names) == 2008
