"""What is taken for deleted, and what for out of reach."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image_encoders.serve.folder import Folder

Gone = Callable[[], list[str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six files, two of them in a folder below."""
    folder = tmp_path / "photos"
    fill(folder, "abcd")
    fill(folder / "more", "ef")
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    return folder


def fill(folder: Path, names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.jpg").write_text(name)


class Seen:
    """A collection that knows every file that was there at a look, until it is taken for deleted."""

    def __init__(self, photos: Path, index: Path):
        self.photos, self.index = photos, index
        self.known: set[str] = set()
        self.kept = 0

    def look(self) -> list[str]:
        """The names of what is taken for deleted now, as after a start of the process."""
        self.known |= {str(path) for path in self.photos.rglob("*.jpg") if path.is_file()}
        for link in self.photos.iterdir() if self.photos.is_dir() else ():
            self.known |= {str(path) for path in link.glob("*.jpg")} if link.is_symlink() else set()
        folder = Folder(str(self.photos), self.index)
        missing = [path for path in self.known if not os.path.isfile(path)]
        gone = folder.deleted(missing, self.known)
        self.known -= set(gone)
        self.kept = folder.kept
        return sorted(os.path.relpath(path, self.photos) for path in gone)


@pytest.fixture
def seen(photos: Path, index: Path) -> Seen:
    seen = Seen(photos, index)
    assert seen.look() == []
    return seen


def test_a_file_that_was_deleted_is_gone(photos: Path, seen: Seen):
    (photos / "a.jpg").unlink()
    shutil.rmtree(photos / "more")
    assert seen.look() == ["a.jpg", "more/e.jpg", "more/f.jpg"]
    assert (seen.look(), seen.kept) == ([], 0)


def test_most_files_may_be_deleted(photos: Path, seen: Seen):
    for path in [*photos.glob("[abc].jpg"), *photos.glob("more/*.jpg")]:
        path.unlink()
    assert seen.look() == ["a.jpg", "b.jpg", "c.jpg", "more/e.jpg", "more/f.jpg"]


def test_a_renamed_file_is_gone_under_its_old_name(photos: Path, seen: Seen):
    (photos / "a.jpg").rename(photos / "z.jpg")
    assert seen.look() == ["a.jpg"]


def test_a_file_that_became_a_folder_is_gone(photos: Path, seen: Seen):
    (photos / "a.jpg").unlink()
    (photos / "a.jpg").mkdir()
    assert seen.look() == ["a.jpg"]


def test_nothing_is_gone_where_the_folder_is_missing(photos: Path, seen: Seen):
    photos.rename(photos.with_name("elsewhere"))
    assert (seen.look(), seen.kept) == ([], 6)
    photos.with_name("elsewhere").rename(photos)
    (photos / "a.jpg").unlink()
    assert seen.look() == ["a.jpg"]


def test_nothing_is_gone_where_an_empty_folder_has_taken_its_place(photos: Path, seen: Seen):
    photos.rename(photos.with_name("elsewhere"))
    photos.mkdir()
    assert (seen.look(), seen.kept) == ([], 6)
    assert (seen.look(), seen.kept) == ([], 6)


def test_a_few_new_files_in_its_place_do_not_make_it_the_same_folder(photos: Path, seen: Seen):
    photos.rename(photos.with_name("elsewhere"))
    fill(photos, "xy")
    assert (seen.look(), seen.kept) == ([], 6)
    assert (seen.look(), seen.kept) == ([], 6)


def test_a_copy_of_most_of_it_is_the_same_folder(photos: Path, seen: Seen):
    elsewhere = photos.rename(photos.with_name("elsewhere"))
    shutil.copytree(elsewhere, photos)
    (photos / "a.jpg").unlink()
    assert seen.look() == ["a.jpg"]


def test_nothing_is_gone_where_the_folder_is_empty_of_a_sudden(photos: Path, seen: Seen):
    for path in photos.rglob("*.jpg"):
        path.unlink()
    assert (seen.look(), seen.kept) == ([], 6)
    fill(photos, "x")  # the same folder, and images in it
    assert seen.look() == ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "more/e.jpg", "more/f.jpg"]


def test_other_folders_of_the_collection_are_left_alone(photos: Path, seen: Seen):
    seen.known |= {"/nowhere/a.jpg", f"{photos}2/a.jpg"}
    (photos / "a.jpg").unlink()
    assert seen.look() == ["a.jpg"]
    assert {"/nowhere/a.jpg", f"{photos}2/a.jpg"} < seen.known


def test_what_cannot_be_looked_at_is_not_gone(photos: Path, index: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch):
    stat, broken, gone = os.stat, str(photos / "a.jpg"), str(photos / "b.jpg")

    def failing(path, *arguments, **options):
        if path == broken:
            raise OSError(5, "Input/output error")
        return stat(path, *arguments, **options)

    os.remove(gone)
    monkeypatch.setattr(os, "stat", failing)
    assert Folder(str(photos), index).deleted([broken, gone], seen.known) == [gone]


def test_two_folders_of_a_collection_are_remembered_apart(photos: Path, index: Path, seen: Seen, tmp_path: Path):
    fill(tmp_path / "others", "gh")
    others = Seen(tmp_path / "others", index)
    assert others.look() == []
    for path in (photos / "a.jpg", photos / "b.jpg", photos / "c.jpg", photos / "d.jpg"):
        path.unlink()
    assert len(seen.look()) == 4  # more than half: only the same folder may lose so many


def test_a_removed_link_to_another_file_system_is_believed_and_a_dangling_one_is_not(seen: Seen, photos: Path):
    shm = Path("/dev/shm")
    if not shm.is_dir() or os.stat(shm).st_dev == os.stat(photos).st_dev:
        pytest.skip("needs a second file system")
    disk = shm / f"image-encoders-{os.getpid()}"
    try:
        fill(disk, "uv")
        (photos / "link").symlink_to(disk)
        assert seen.look() == []
        moved = disk.rename(disk.with_name(disk.name + "-away"))
        assert (seen.look(), seen.kept) == ([], 2)  # unmounted, it seems
        moved.rename(disk)
        assert (seen.look(), seen.kept) == ([], 0)
        (photos / "link").unlink()
        assert seen.look() == ["link/u.jpg", "link/v.jpg"]
    finally:
        shutil.rmtree(disk, ignore_errors=True)


@pytest.fixture
def mount() -> Iterator[Callable[..., None]]:
    """mount("--bind", there, here): mounts something, and takes it away at the end; skips where that is not allowed."""
    mounted: list[str] = []

    def mount(*words: object) -> None:
        ran = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
        if ran.returncode:
            pytest.skip(f"mounting is not permitted: {ran.stderr.strip()}")
        mounted.append(str(words[-1]))

    yield mount
    for place in reversed(mounted):
        subprocess.run(["umount", place], capture_output=True, check=False)


def unmount(place: Path) -> None:
    subprocess.run(["umount", str(place)], capture_output=True, check=True)


def test_what_was_on_an_unmounted_disk_is_kept(photos: Path, index: Path, mount):
    disk = photos.with_name("mounted")
    disk.mkdir()
    mount("--bind", photos, disk)  # of the same device: only the inode differs
    seen = Seen(disk, index)
    assert seen.look() == []
    unmount(disk)
    assert (seen.look(), seen.kept) == ([], 6)
    fill(disk, "x")  # something writes into the empty mount point
    assert (seen.look(), seen.kept) == ([], 6)
    (disk / "x.jpg").unlink()
    (photos / "a.jpg").unlink()
    mount("--bind", photos, disk)
    assert seen.look() == ["a.jpg", "x.jpg"]


@pytest.mark.parametrize("kind", ["bind", "tmpfs"])
def test_what_was_on_an_unmounted_disk_below_the_folder_is_kept(
    kind: str, photos: Path, seen: Seen, tmp_path: Path, mount
):
    disk = photos / "disk"
    disk.mkdir()
    fill(tmp_path / "there", "uvw")
    if kind == "bind":
        mount("--bind", tmp_path / "there", disk)
    else:
        mount("-t", "tmpfs", "none", disk)
        fill(disk, "uvw")
    assert seen.look() == []
    (disk / "u.jpg").unlink()
    (photos / "a.jpg").unlink()
    assert seen.look() == ["a.jpg", "disk/u.jpg"]
    unmount(disk)
    (photos / "b.jpg").unlink()
    assert (seen.look(), seen.kept) == (["b.jpg"], 2)
    disk.rmdir()  # as automatic mounting does
    (photos / "c.jpg").unlink()
    assert (seen.look(), seen.kept) == (["c.jpg"], 2)
