"""Facts of a checkpoint are found once, and again as soon as a file of it changes."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import pytest

from image_encoders.errors import WeightsError
from image_encoders.weights.checkpoint import Checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMAGE_ENCODERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "below").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "below" / "weights").write_bytes(b"weights")
    return folder


def facts(place: Path, find: Any, **about: str) -> dict[str, int]:
    return Checkpoint([place], lambda: "net", about).facts(find)


class Finder:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> dict[str, int]:
        self.asked += 1
        return {"asked": self.asked}


def test_what_was_found_is_remembered(checkpoint: Path):
    find = Finder()
    assert [facts(checkpoint, find, family="x") for _ in range(3)] == [{"asked": 1}] * 3
    assert facts(checkpoint / "config.json", find, family="x") == {"asked": 2}
    assert facts(checkpoint, find, family="y") == {"asked": 3}


@pytest.mark.parametrize("change", ["content", "same size and time", "new file", "gone", "replaced"])
def test_a_change_of_any_file_is_noticed(checkpoint: Path, change: str):
    find = Finder()
    facts(checkpoint, find)
    file = checkpoint / "below" / "weights"
    before = file.stat()
    if change == "content":
        file.write_bytes(b"other weights")
    elif change == "same size and time":
        file.write_bytes(b"WEIGHTS")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "new file":
        (checkpoint / "more").write_text("x")
    elif change == "gone":
        file.unlink()
    else:
        other = checkpoint.parent / "other"
        other.write_bytes(b"weights")
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(file)
    assert facts(checkpoint, find) == {"asked": 2}


def test_a_damaged_note_is_made_again(checkpoint: Path, cache: Path):
    find = Finder()
    facts(checkpoint, find)
    (note,) = cache.rglob("*.json")
    note.write_text('{"states": [')
    assert facts(checkpoint, find) == {"asked": 2}
    assert facts(checkpoint, find) == {"asked": 2}


def test_a_cache_that_cannot_be_written_only_costs_time(checkpoint: Path, cache: Path):
    cache.write_text("a file")
    find = Finder()
    assert facts(checkpoint, find) == {"asked": 1}
    assert facts(checkpoint, find) == {"asked": 2}


def test_what_fails_is_not_remembered(checkpoint: Path):
    def fail() -> dict[str, int]:
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        facts(checkpoint, fail)
    assert facts(checkpoint, Finder()) == {"asked": 1}


class Net:
    """Something that weak references may point to."""


def test_a_checkpoint_that_changes_while_it_is_in_use_is_noticed_when_it_is_read(checkpoint: Path):
    opened = Checkpoint([checkpoint], Net, {})
    opened.release()
    assert isinstance(opened.content(), Net)
    (checkpoint / "below" / "weights").write_bytes(b"other weights")
    with pytest.raises(WeightsError, match="changed while it was in use; load it again"):
        opened.content()


def test_what_was_read_is_shared_and_kept_until_it_is_released(checkpoint: Path):
    opened = Checkpoint([checkpoint], Net, {})
    first = weakref.ref(opened.content())
    assert opened.content() is first()
    opened.release()
    assert first() is None
