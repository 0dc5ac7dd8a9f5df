"""A run that is killed or interrupted, and started again, stores exactly what an undisturbed one does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest
from drawn import draw, image, rows

from fake_encoder import FakeEncoder
from image_encoders.bulk.run import run
from image_encoders.bulk.sources import find
from image_encoders.collection import Collection

SCRIPT = Path(__file__).with_name("encode_folder.py")
SERIES = int(os.environ.get("KILL_SERIES", "0"))  # of ten random moments each, in `make soak`; else one of four


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 images, 40 copies among them, and 5 broken files."""
    folder = tmp_path_factory.mktemp("photos")
    draw(folder, range(360))
    for number in range(40):
        (folder / f"copy {number}.png").write_bytes(image(9 * number))
    for number in range(5):
        (folder / f"{number * 60:05d} broken.png").write_bytes(image(number)[:50])
    return folder


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    encoder = FakeEncoder(batch_sensitive=True)
    collection = Collection.create(tmp_path_factory.mktemp("undisturbed") / "index", encoder)
    report = run(find([str(photos)]), encoder, collection, batch_size=8, workers=2)
    assert (report.encoded, report.reused, report.failed) == (360, 40, 5)
    return collection


@pytest.fixture
def start(
    photos: Path, tmp_path: Path, start_script: Callable[..., subprocess.Popen[str]]
) -> Callable[[], subprocess.Popen[str]]:
    """Starts a process that has imported everything and waits for its line."""
    return partial(start_script, SCRIPT, photos, tmp_path / "index")


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()
    process.stdin.write("go\n")
    process.stdin.flush()


def finish(photos: Path, index: Path) -> Collection:
    """The run once more, to its end, in this process."""
    encoder = FakeEncoder(batch_sensitive=True)
    collection = Collection.open_or_create(index, encoder)
    run(find([str(photos)]), encoder, collection, batch_size=8, workers=2)
    return collection


def assert_same(collection: Collection, undisturbed: Collection) -> None:
    """Equal rows, embeddings bit for bit, and equal failures."""
    assert rows(collection) == rows(undisturbed)
    assert [(one.id, one.stage, one.code, one.message) for one in collection.failures()] == [
        (one.id, one.stage, one.code, one.message) for one in undisturbed.failures()
    ]


def commits(index: Path) -> int:
    """How many commits have been begun, as far as the disk shows."""
    data = index / "items.lance" / "data"
    return len(list(data.iterdir())) if data.exists() else 0


def wait_for_commits(process: subprocess.Popen[str], index: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while commits(index) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(max(1, SERIES)))
def test_killing_it_at_random_moments_changes_nothing(
    start: Callable[[], subprocess.Popen[str]], photos: Path, undisturbed: Collection, tmp_path: Path, seed: int
) -> None:
    index = tmp_path / "index"
    complete = rows(undisturbed)
    killed_in_the_midst, random = 0, Random(seed)
    moments = 10 if SERIES else 4
    process = start()
    for _ in range(moments):
        begin(process)
        following = start()  # its imports take longer than the run
        wait_for_commits(process, index, commits(index) + random.randrange(3))
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        _, complaints = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), complaints
        stored = rows(Collection.open(index)) if (index / "collection.json").exists() else {}
        assert stored.items() <= complete.items()
        killed_in_the_midst += 0 < len(stored) < len(complete)
        process = following
    assert killed_in_the_midst >= moments // 4
    assert_same(finish(photos, index), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stores_what_is_embedded_and_the_next_run_goes_on(
    start: Callable[[], subprocess.Popen[str]],
    photos: Path,
    undisturbed: Collection,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    index = tmp_path / "index"
    process = start()
    begin(process)
    wait_for_commits(process, index, 1)
    process.send_signal(number)
    out, complaints = process.communicate(timeout=300)
    assert "KeyboardInterrupt" in complaints
    assert out == ""
    stored = rows(Collection.open(index))
    assert 0 < len(stored) < undisturbed.count()
    assert stored.items() <= rows(undisturbed).items()
    assert not list(index.glob("*.part"))
    assert_same(finish(photos, index), undisturbed)


def test_of_two_runs_at_once_into_a_new_collection_one_is_refused_and_nothing_is_lost(
    start: Callable[[], subprocess.Popen[str]], photos: Path, undisturbed: Collection, tmp_path: Path
) -> None:
    processes = [start(), start()]
    for process in processes:
        begin(process)
    ended = [process.communicate(timeout=300) for process in processes]
    refused = [complaints for process, (_, complaints) in zip(processes, ended) if process.returncode != 0]
    assert len(refused) <= 1
    assert all("CollectionError" in text and "is being written by another process" in text for text in refused)
    assert_same(Collection.open(tmp_path / "index"), undisturbed)
