"""What was encoded is had again by its row's locator alone, and every id is accounted for."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn import draw, image
from test_videos import film

from fake_encoder import FakeEncoder
from image_encoders.bulk.run import run
from image_encoders.bulk.sources import find, locator_of, read_locator
from image_encoders.collection import ITEMS, Collection, path_of
from image_encoders.errors import InputError
from image_encoders.records import Locator


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One source of each kind that a disk holds."""
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"caf\xe9.png")
    draw(Path("photos"), range(3))
    with tarfile.open("a.tar", "w") as tar, tarfile.open("b.tar.gz", "w:gz") as packed:
        for number in range(3, 6):
            for archive, name in ((tar, f"x/{number}.png"), (packed, odd if number == 3 else f"{number}.png")):
                info = tarfile.TarInfo(name)
                info.size = len(image(number))
                archive.addfile(info, io.BytesIO(image(number)))
    with zipfile.ZipFile("c.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        for number in range(6, 9):
            zipped.writestr(f"{number}.png", image(number))
    pq.write_table(pa.table({"an/image": [image(number) for number in range(9, 12)]}), "d.parquet")
    film(Path("e.mp4"), 6)
    return ["photos", "a.tar", "b.tar.gz", "c.zip", "d.parquet", "e.mp4"]


def test_what_was_encoded_is_had_again_by_its_locator(sources: list[str]) -> None:
    encoder = FakeEncoder()
    collection = Collection.create("index", encoder)
    report = run(find(sources, frames="2"), encoder, collection)
    assert (report.encoded, report.reused) == (15, 3)
    columns = ["id", "path", "member", "time_s", "sha256", "embedding"]
    for batch in collection.scan(ITEMS, columns):
        for row in batch.to_pylist():
            locator = Locator(path_of(row["path"]), row["member"] and path_of(row["member"]), row["time_s"])
            [embedding] = encoder.encode_image([read_locator(locator)])
            assert embedding.tolist() == row["embedding"]


def test_an_id_is_an_item_of_a_list(sources: list[str]) -> None:
    encoder = FakeEncoder()
    collection = Collection.create("index", encoder)
    run(find(sources, frames="2"), encoder, collection)
    found = collection.scan(ITEMS, ["id", "path", "member", "time_s", "embedding"])
    rows = [row for batch in found for row in batch.to_pylist()]
    for row in rows:
        locator = Locator(path_of(row["path"]), row["member"] and path_of(row["member"]), row["time_s"])
        assert locator_of(row["id"]) == locator
    Path("ids.txt").write_text("".join(row["id"] + "\n" for row in rows))
    assert run(find(["ids.txt"]), encoder, collection).unchanged == len(rows) == 18
    again = Collection.create("again", encoder)
    report = run(find(["ids.txt"]), encoder, again)
    assert (report.encoded, report.reused) == (15, 3)
    assert {row["id"]: row["embedding"] for row in rows} == {
        row["id"]: row["embedding"] for batch in again.scan(ITEMS, ["id", "embedding"]) for row in batch.to_pylist()
    }


def test_an_id_of_something_damaged_or_gone_fails_alone(sources: list[str]) -> None:
    Path("cut.tar").write_bytes(Path("a.tar").read_bytes()[:1500])
    Path("bad.zip").write_bytes(b"PK no zip")
    Path("bad.parquet").write_bytes(b"PAR1 no table")
    names = ["cut.tar#x/3.png", "cut.tar#x/5.png", "bad.zip#1.png", "bad.parquet#a/0", "none.tar#1.png", "a.tar#no.png"]
    names += ["d.parquet#an/image/99", "e.mp4#t=99", "photos/00000.png#1"]
    Path("names.txt").write_text("\n".join(names))
    report = run(find(["names.txt"]), FakeEncoder(), "index")
    failed = {
        failure.id.removeprefix(f"{os.getcwd()}/"): failure.code for failure in Collection.open("index").failures()
    }
    assert report.encoded == 1
    assert failed == {
        "cut.tar#x/5.png": "truncated",
        "bad.zip#1.png": "corrupt",
        "bad.parquet#a/0": "table",
        "none.tar#1.png": "not-found",
        "a.tar#no.png": "not-found",
        "d.parquet#an/image/99": "not-found",
        "e.mp4#t=99": "truncated",
        "photos/00000.png#1": "not-found",
    }
    assert locator_of("a.tar#x/3.png") == Locator(os.path.abspath("a.tar"), "x/3.png")
    Path("a.tar#x").mkdir()
    Path("a.tar#x/3.png").write_bytes(image(30))
    assert locator_of("a.tar#x/3.png") == Locator("a.tar#x/3.png")  # a file of that very name


@pytest.mark.parametrize(
    "locator",
    [
        Locator("/nowhere.png"),
        Locator("a.tar", "none.png"),
        Locator("none.tar", "x.png"),
        Locator("c.zip", "none.png"),
        Locator("d.parquet", "an/image/99"),
        Locator("d.parquet", "image"),
        Locator("d.parquet", "none/0"),
        Locator("e.mp4", time_s=99.0),
        Locator("a.tar", time_s=1.0),
        Locator("http://127.0.0.1:1/x.png"),
        Locator("memory://nowhere/x.png"),
    ],
)
def test_what_is_not_there_any_more_is_an_input_error(sources: list[str], locator: Locator) -> None:
    with pytest.raises(InputError):
        read_locator(locator)


def test_every_id_is_accounted_for_whatever_is_wrong_with_the_sources(
    sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = draw(tmp_path / "outside", [50])[0]
    (tmp_path / "photos" / "closed").mkdir()
    with Path("a.tar").open("r+b") as file:
        file.truncate(2000)
    Path("list.txt").write_text(
        f"photos/00000.png\n\n{outside}\nphotos/00000.png\n./photos/../photos/00001.png\n  \ngone.png\n"
    )
    pq.write_table(pa.table({"path": ["photos/00002.png", None, "gone.png", str(outside)]}), "t.parquet")
    scandir = os.scandir

    def denied(folder: Any) -> Any:
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    arguments = [*sources, "list.txt", "t.parquet"]
    expected = [one.id for one in find(arguments, frames="2")]
    assert len(set(expected)) == len(expected)
    encoder = FakeEncoder()
    collection = Collection.create("index", encoder)
    for again in range(2):
        report = run(find(arguments, frames="2"), encoder, collection)
        assert report.total == report.encoded + report.reused + report.unchanged + report.failed == len(expected)
        assert (report.unchanged > 0) == bool(again)
        rows = {row["id"] for batch in collection.scan(ITEMS, ["id"]) for row in batch.to_pylist()}
        failed = {one.id for one in collection.failures()}
        assert not rows & failed
        assert rows | failed == set(expected)
    assert {os.path.basename(id) for id in failed} == {"closed", "a.tar", "  ", "gone.png", "1"}


def test_files_that_change_and_vanish_while_a_run_reads_them_are_accounted_for(sources: list[str]) -> None:
    draw(Path("photos"), range(100, 160))
    found = find(["photos"])
    seen: list[str] = []

    class Changing(FakeEncoder):
        def _embed(self, inputs: Any) -> Any:
            for path in sorted(Path("photos").glob("001[0-9][0-9].png"))[-6::2]:
                if seen and path.exists() and str(path) not in seen:
                    path.write_bytes(image(999)) if len(seen) % 2 else path.unlink()
                seen.append(str(path))
            return super()._embed(inputs)

    encoder = Changing()
    collection = Collection.create("index", encoder)
    report = run(found, encoder, collection, batch_size=4, workers=1)
    assert report.total == report.encoded + report.reused + report.unchanged + report.failed
    assert collection.count() + len(collection.failures()) == report.total > 50
    assert report.failed > 0
