"""What goes wrong around a run: disks that fill up, sources that change, odd lists. Every item is accounted for."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drawn import draw, image, rows

from fake_encoder import FakeEncoder
from image_encoders.bulk.run import Report, run
from image_encoders.bulk.sources import SourceFile, SourceItem, find
from image_encoders.collection import Collection
from image_encoders.errors import CollectionError


def accounted(report: Report) -> Report:
    """The report, whose counts add up."""
    assert report.total == report.encoded + report.reused + report.unchanged + report.failed
    return report


def test_on_a_full_disk_a_run_stops_with_one_sentence_and_goes_on_once_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    paths = draw(tmp_path / "photos", range(600))
    for path in paths[::200]:
        path.write_bytes(b"x")
    encoder, index = FakeEncoder(dim=2048), small_disk / "index"
    with pytest.raises(
        CollectionError, match="the disk is full; free some space and run the same command again"
    ) as full:
        run(tmp_path / "photos", encoder, index, batch_size=32, commit_s=0)
    assert "\n" not in str(full.value)
    kept = Collection.open(index).count()
    assert 0 < kept < 597
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    report = accounted(run(tmp_path / "photos", encoder, index, batch_size=32))
    assert (report.total, report.encoded + report.unchanged, report.failed) == (600, 597, 3)
    assert report.unchanged >= kept
    assert len(rows(Collection.open(index))) == 597


@pytest.mark.parametrize("said", ["Disk quota exceeded (os error 122)", "File too large (os error 27)"])
def test_where_a_limit_on_files_is_reached_the_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    draw(tmp_path / "photos", range(3))
    collection = Collection.create(tmp_path / "index", FakeEncoder())

    def add(rows: object) -> None:
        raise RuntimeError(f"lance error: LanceError(IO): {said}, /x/y.rs:258:9")

    with collection.writing(), monkeypatch.context() as patch:
        patch.setattr(collection._tables["items"], "add", add)
        with pytest.raises(CollectionError, match=r"a limit on disk space .* run the same command again$"):
            run(tmp_path / "photos", FakeEncoder(), collection)
    assert accounted(run(tmp_path / "photos", FakeEncoder(), collection)).encoded == 3


def test_a_file_that_changes_between_listing_and_reading_is_read_again_by_the_next_run(tmp_path: Path) -> None:
    _, second = draw(tmp_path / "photos", range(2))

    def listed() -> list[SourceFile]:
        items = list(find([str(tmp_path / "photos")]))
        return [item for item in items if isinstance(item, SourceFile)]

    items = listed()
    second.write_bytes(image(9))
    os.utime(second, ns=(1, 1))
    assert accounted(run(items, FakeEncoder(), tmp_path / "index")).encoded == 2
    second.write_bytes(image(1))
    report = accounted(run(listed(), FakeEncoder(), tmp_path / "index"))
    assert (report.encoded, report.unchanged) == (1, 1)
    undisturbed = Collection.create(tmp_path / "undisturbed", FakeEncoder())
    run(listed(), FakeEncoder(), undisturbed)
    assert rows(undisturbed) == rows(Collection.open(tmp_path / "index"))


def test_files_that_vanish_while_a_run_goes_on_fail_alone(tmp_path: Path) -> None:
    paths = draw(tmp_path / "photos", range(4))
    items = list(find([str(tmp_path / "photos")]))
    paths[2].unlink()
    report = accounted(run(items, FakeEncoder(), tmp_path / "index"))
    assert (report.encoded, report.failed) == (3, 1)
    assert [failure.code for failure in Collection.open(tmp_path / "index").failures()] == ["not-found"]


def archive(path: Path, numbers: range) -> Path:
    """A tar of small images, written over what is there."""
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(image(number))
            tar.addfile(info, io.BytesIO(image(number)))
    return path


def table(path: Path, numbers: range) -> Path:
    """A CSV file that names files of small images, written over what is there."""
    draw(path.parent / "photos", numbers)
    path.write_text("path,n\n" + "".join(f"photos/{number:05d}.png,{number}\n" for number in numbers))
    return path


@pytest.mark.parametrize(("write", "name"), [(archive, "a.tar"), (table, "a.csv")])
def test_a_source_that_is_written_over_while_it_is_read_loses_nothing_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, range], Path], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / name, range(120))

    def disturbed() -> Iterator[SourceItem]:
        for met, item in enumerate(find([str(source)])):
            yield item
            if met == 5:
                write(source, range(500, 620))

    accounted(run(disturbed(), FakeEncoder(), tmp_path / "index"))
    report = accounted(run(source, FakeEncoder(), tmp_path / "index"))
    assert (report.total, report.failed) == (120, 0)
    undisturbed = Collection.create(tmp_path / "undisturbed", FakeEncoder())
    run(source, FakeEncoder(), undisturbed)
    found = rows(Collection.open(tmp_path / "index"))
    assert {id: found[id] for id in rows(undisturbed)} == rows(undisturbed)


def test_a_list_with_copies_blanks_missing_and_outside_paths_is_accounted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    draw(tmp_path / "photos", range(3))
    lines = ["../photos/00000.png", "", "   ", "../photos/00000.png", "../photos/missing.png"]
    lines += [str(tmp_path / "photos" / "00001.png"), "../photos/../photos/00001.png", "../photos/00002.png", ""]
    (tmp_path / "work" / "list.txt").write_text("\r\n".join(lines))
    report = accounted(run("@list.txt", FakeEncoder(), "index"))
    assert report.encoded == 3
    codes = {os.path.basename(failure.id): failure.code for failure in Collection.open("index").failures()}
    assert codes["missing.png"] == "not-found"
    assert len(rows(Collection.open("index"))) == 3
