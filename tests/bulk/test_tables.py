"""Images in tables and named by them: Parquet, CSV, JSON lines."""

from __future__ import annotations

import base64
import datetime
import gzip
import json
import math
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn import draw, image, rows

from fake_encoder import DIM, FakeEncoder
from image_encoders.bulk.run import Report, run
from image_encoders.bulk.sources import SourceFile, find, read_locator, tables
from image_encoders.bulk.sources.places import LocalFile
from image_encoders.collection import ITEMS, Collection
from image_encoders.errors import InputError
from image_encoders.inputs.image import ImageLimits


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw(tmp_path / "photos", range(6))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def encode(*arguments: str, **options: Any) -> dict[str, int]:
    encoder = FakeEncoder()
    report: Report = run(find(arguments, **options), encoder, Collection.open_or_create("index", encoder))
    assert report.total == report.encoded + report.reused + report.unchanged + report.failed
    return {
        name: getattr(report, name) for name in ("encoded", "reused", "unchanged", "failed") if getattr(report, name)
    }


def failures() -> dict[str, str]:
    return {os.path.basename(one.id): one.code for one in Collection.open("index").failures()}


def metadata() -> dict[str, Any]:
    batches = Collection.open("index").scan(ITEMS, ["id", "metadata"])
    found = [row for batch in batches for row in batch.to_pylist()]
    return {os.path.basename(row["id"]): row["metadata"] and json.loads(row["metadata"]) for row in found}


def csv_of(name: str, some: list[dict[str, Any]], separator: str = ",") -> None:
    lines = [separator.join(some[0]), *(separator.join(str(cell) for cell in one.values()) for one in some)]
    Path(name).write_text("\n".join(lines) + "\n")


def write(name: str, some: list[dict[str, Any]]) -> str:
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(some), name)
    elif name.endswith(".jsonl"):
        Path(name).write_text("".join(json.dumps(one) + "\n" for one in some))
    else:
        csv_of(name, some, "\t" if name.endswith(".tsv") else ",")
    return name


# ------------------------------------------------------------------ what is found


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.tsv", "t.jsonl"])
def test_a_column_of_paths_gives_the_files_with_the_other_columns_as_metadata(photos: Path, name: str) -> None:
    write(name, [{"id": n, "path": f"photos/{n:05d}.png", "caption": f"image {n}"} for n in range(6)])
    assert encode(name) == {"encoded": 6}
    stored = rows(Collection.open("index"))
    assert list(stored) == [str(photos / f"{n:05d}.png") for n in range(6)]
    number = (lambda n: n) if name in ("t.parquet", "t.jsonl") else str
    assert metadata()["00003.png"] == {"id": number(3), "caption": "image 3"}
    assert encode(name) == {"unchanged": 6}
    assert encode("photos") == {"unchanged": 6}


def test_a_run_knows_how_many_rows_a_parquet_file_has_and_not_how_many_lines_a_csv(photos: Path) -> None:
    some = [{"path": f"photos/{n:05d}.png"} for n in range(6)]
    assert find([write("t.parquet", some), "photos"]).count() == 12
    assert find([write("t.csv", some), "photos"]).count() is None


def test_bytes_in_parquet_are_images_and_known_ones_are_not_read(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [{"png": image(n), "label": n % 2, "thumbnail_size": None} for n in range(100)]
    pq.write_table(pa.Table.from_pylist(some), "t.parquet", row_group_size=30)
    assert encode("t.parquet") == {"encoded": 100}
    assert metadata()["3"] == {"label": 1}
    expected = FakeEncoder().encode_image([image(n) for n in range(100)])
    stored = rows(Collection.open("index"))
    assert all(stored[f"{os.getcwd()}/t.parquet#png/{n}"]["embedding"] == expected[n].tobytes() for n in range(100))
    monkeypatch.setattr(tables, "Content", lambda content: pytest.fail("bytes were read"))
    assert encode("t.parquet") == {"unchanged": 100}


def lance(name: str, some: list[dict[str, Any]]) -> Any:
    """A table of LanceDB in the folder `db`."""
    return lancedb.connect("db").create_table(name, pa.Table.from_pylist(some))


def test_a_table_of_lancedb_gives_its_images_with_the_other_columns_as_metadata(photos: Path) -> None:
    some = [{"image": image(n), "caption": f"image {n}", "vector": [0.0] * 99} for n in range(6)]
    table = lance("photos", some)
    table.delete("caption = 'image 2'")
    assert find(["db/photos.lance", "photos"]).count() == 11
    assert encode("db/photos.lance") == {"encoded": 5}
    assert encode("db/photos.lance#image") == {"unchanged": 5}
    assert metadata()["2"] == {"caption": "image 3"}
    hit = Collection.open("index").search(np.ones(DIM), 10)[0]
    assert hit.locator.path == os.path.abspath("db/photos.lance")
    assert read_locator(hit.locator) in [image(n) for n in range(6)]
    table.add(pa.Table.from_pylist([{"image": b"x", "caption": None, "vector": None}]))
    assert encode("db/photos.lance") == {"unchanged": 5, "failed": 1}
    assert failures() == {"5": "not-an-image"}


def test_a_table_of_lancedb_may_hold_paths_and_one_that_changes_gives_no_image_of_another(photos: Path) -> None:
    lance("paths", [{"path": f"photos/{n:05d}.png"} for n in range(6)])
    assert encode("db/paths.lance") == {"encoded": 6}
    table = lance("photos", [{"image": image(n + 50)} for n in range(6)])
    items = list(find(["db/photos.lance"]))
    taken = [item.read(ImageLimits()) for item in items]
    assert taken == [image(n + 50) for n in range(6)]
    table.delete("true")
    with pytest.raises(InputError, match="changed while it was read"):
        items[0].read(ImageLimits())


def test_what_is_no_table_of_lancedb_is_refused(photos: Path) -> None:
    Path("empty.lance").mkdir()
    with pytest.raises(InputError, match=r"empty\.lance"):
        find(["empty.lance"])
    with pytest.raises(InputError, match="export it to Parquet"):
        find(["memory://db/photos.lance"])


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.tsv", "t.jsonl"])
def test_data_urls_in_cells_are_images_that_can_be_read_again(photos: Path, name: str) -> None:
    def url(content: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(content).decode()}"

    def cell(url: str) -> str:
        return f'"{url}"' if name == "t.csv" else url

    write(name, [{"image": cell(url(image(n))), "n": n} for n in range(3)] + [{"image": "data:nothing", "n": 3}])
    assert encode(name) == {"encoded": 3, "failed": 1}
    assert encode(name) == {"unchanged": 3, "failed": 1}
    assert failures() == {"3": "url"}
    for hit in Collection.open("index").search(np.ones(DIM), 3):
        assert read_locator(hit.locator) == image(int(str(hit.member).removeprefix("image/")))


def test_images_as_data_sets_on_the_hub_have_them_are_read(photos: Path) -> None:
    some = [{"image": {"bytes": image(n), "path": "lost.png"}} for n in range(3)]
    some.append({"image": {"bytes": None, "path": "photos/00005.png"}})
    pq.write_table(pa.Table.from_pylist(some), "t.parquet")
    assert encode("t.parquet") == {"encoded": 4}
    assert encode("photos/00000.png") == {"reused": 1}


def test_a_cell_of_bytes_can_be_read_again(photos: Path, waiting: Callable[[], int]) -> None:
    pq.write_table(pa.table({"image": [image(n) for n in range(50)]}), "t.parquet", row_group_size=20)
    for number, one in enumerate(find(["t.parquet"])):
        limits = tables.ImageLimits()
        assert one.read(limits) == one.read(limits) == image(number)
    assert waiting() == 0


def test_metadata_is_what_json_holds(photos: Path) -> None:
    one = {
        "path": "photos/00000.png",
        "when": datetime.datetime(2024, 2, 29, 12),
        "score": math.nan,
        "tags": ["a", "b"],
        "vector": [0.5] * 1000,
        "thumbnail": b"\x89PNG",
        "yes": True,
        "nothing": None,
        "long": "x" * 100_000,
    }
    write("t.parquet", [one])
    assert encode("t.parquet#path") == {"encoded": 1}
    assert metadata()["00000.png"] == {"when": "2024-02-29T12:00:00", "tags": ["a", "b"], "yes": True}


def test_objects_in_cells_become_metadata_and_deep_ones_do_no_harm(photos: Path) -> None:
    some = [{"path": f"photos/{number:05d}.png", "exif": {"iso": number, "lens": {"f": [1.8]}}} for number in range(2)]
    for name in ("t.parquet", "t.jsonl"):
        assert list(encode(write(name, some) + "#path").values()) == [2]
        assert metadata()["00001.png"] == {"exif": {"iso": 1, "lens": {"f": [1.8]}}}
    deep = ['{"path": "photos/00004.png", "x": ' + "[" * 600 + "]" * 600 + "}"]
    deep += ['{"path": "photos/00005.png", "n": 1, "x": ' + '{"a":' * 300 + "1" + "}" * 300 + "}"]
    Path("deep.jsonl").write_text("\n".join(deep))
    assert encode("deep.jsonl") == {"encoded": 2}
    assert (metadata()["00004.png"], metadata()["00005.png"]) == (None, {"n": 1})


def test_members_of_archives_may_be_named(photos: Path) -> None:
    with tarfile.open("a.tar", "w") as tar:
        tar.add("photos/00002.png", "inside/2.png")
    write("t.jsonl", [{"src": "a.tar#inside/2.png"}, {"src": "a.tar#none.png"}])
    assert encode("t.jsonl") == {"encoded": 1, "failed": 1}
    assert encode("a.tar") == {"unchanged": 1}
    assert failures() == {"a.tar#none.png": "not-found"}


# ------------------------------------------------------------------ which column


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["caption", "url"], "url"),
        (["only"], "only"),
        (["URL", "Image_Path"], "Image_Path"),
    ],
)
def test_a_column_is_chosen_by_its_name(photos: Path, columns: list[str], chosen: str) -> None:
    write("t.csv", [{name: f"photos/0000{n}.png" for n, name in enumerate(columns)}])
    [one] = find(["t.csv"])
    assert one.id == str(photos / f"0000{columns.index(chosen)}.png")


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl"])
def test_where_the_column_is_not_clear_all_are_named(photos: Path, name: str) -> None:
    write(name, [{"left": "photos/00000.png", "right": "photos/00001.png"}])
    with pytest.raises(InputError, match="its columns: left, right") as raised:
        find([name])
    assert "--column" in str(raised.value)
    assert name in str(raised.value)
    with pytest.raises(InputError, match="no column middle; its columns: left, right"):
        find([name], column="middle")
    for found in (find([f"{name}#right"]), find([name], column="right")):
        assert [one.id for one in found] == [str(photos / "00001.png")]


def test_a_column_that_cannot_hold_images_is_refused(photos: Path) -> None:
    write("t.parquet", [{"number": 3, "path": "photos/00000.png"}])
    with pytest.raises(InputError, match="number holds neither texts nor bytes"):
        find(["t.parquet#number"])


# ------------------------------------------------------------------ what is wrong with them


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
def test_null_and_empty_cells_fail_alone_and_are_forgotten_once_they_are_filled(photos: Path, name: str) -> None:
    paths = ["photos/00000.png", None, "", "photos/00003.png", "photos/none.png"]
    write(name, [{"path": path} for path in paths])
    assert encode(name) == {"encoded": 2, "failed": 3}
    assert failures() == {"1": "cell", "2": "cell", "none.png": "not-found"}
    paths[1:3] = ["photos/00001.png", "photos/00002.png"]
    write(name, [{"path": path} for path in paths])
    assert encode(name) == {"encoded": 2, "unchanged": 2, "failed": 1}
    assert failures() == {"none.png": "not-found"}


def test_null_and_wrong_cells_of_bytes_fail_alone(photos: Path) -> None:
    some = [image(0), None, b"", b"no image", image(4)[:50], image(5)]
    pq.write_table(pa.table({"image": some}), "t.parquet")
    assert encode("t.parquet") == {"encoded": 2, "failed": 4}
    assert failures() == {"1": "cell", "2": "cell", "3": "not-an-image", "4": "truncated"}


@pytest.mark.parametrize("cell", [7, 1.5, True, ["photos/00001.png"], {"a": 1}])
def test_wrong_typed_cells_of_json_lines_fail_alone(photos: Path, cell: Any) -> None:
    write("t.jsonl", [{"path": "photos/00000.png"}, {"path": cell}, {"other": 1}, {"path": "photos/00003.png"}])
    assert encode("t.jsonl") == {"encoded": 2, "failed": 2}
    assert failures() == {"1": "cell", "2": "cell"}


def test_lines_that_are_no_json_fail_alone_and_blank_ones_are_nothing(photos: Path) -> None:
    Path("t.jsonl").write_bytes(
        b'\xef\xbb\xbf{"path": "photos/00000.png"}\r\n\n{"path": \n[1]\n\xff\xfe\n' + b"[" * 99_999 + b"\n"
        b'{"path": "photos/00001.png"}'
    )
    assert encode("t.jsonl") == {"encoded": 2, "failed": 4}
    assert failures() == {f"t.jsonl#row {number}": "table" for number in (1, 2, 3, 4)}


def test_a_csv_with_short_long_and_overlong_rows_fails_for_those_alone(photos: Path) -> None:
    Path("t.csv").write_bytes(
        b"\xef\xbb\xbfcaption,path\r\nno path\r\n\r\nmany,photos/00001.png,more\r\n"
        b"x," + b"y" * 200_000 + b'\r\n"a\nb",photos/00002.png\r\ncaf\xe9,photos/00003.png\r\n'
    )
    assert encode("t.csv") == {"encoded": 3, "failed": 2}
    assert failures() == {"0": "cell", "t.csv#row 2": "table"}
    assert metadata()["00002.png"] == {"caption": "a\nb"}


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl"])
@pytest.mark.parametrize("content", [b"", b"\0\0\0"])
def test_what_is_no_table_is_refused_by_name(photos: Path, name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        find([name])


def test_a_parquet_file_with_a_damaged_middle_gives_the_rest(photos: Path) -> None:
    pq.write_table(pa.table({"image": [image(n) for n in range(90)]}), "t.parquet", row_group_size=30)
    group = pq.ParquetFile("t.parquet").metadata.row_group(1).column(0)
    content = bytearray(Path("t.parquet").read_bytes())
    at = group.dictionary_page_offset or group.data_page_offset
    content[at : at + 64] = b"\xff" * 64
    Path("t.parquet").write_bytes(content)
    assert encode("t.parquet") == {"encoded": 60, "failed": 1}
    assert failures() == {"t.parquet#rows 30 to 59": "table"}


def test_a_table_that_was_cut_is_one_failure_though_it_was_whole_when_it_was_checked(photos: Path) -> None:
    pq.write_table(pa.table({"image": [image(n) for n in range(9)]}), "t.parquet")
    encoder = FakeEncoder()
    found = find(["t.parquet"])
    Path("t.parquet").write_bytes(Path("t.parquet").read_bytes()[:-20])
    report = run(found, encoder, Collection.open_or_create("index", encoder))
    assert (report.total, report.failed) == (1, 1)


# ------------------------------------------------------------------ large ones


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
def test_a_large_table_is_read_as_it_is_needed(photos: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [f"photos/{number:05d}.png" for number in range(200_000)]
    lines = ["path", *paths] if name == "t.csv" else [json.dumps({"path": path}) for path in paths]
    Path(name).write_text("\n".join(lines))
    opened: list[Any] = []
    original = LocalFile.open
    monkeypatch.setattr(LocalFile, "open", lambda place: opened.append(original(place)) or opened[-1])
    found = find([name])
    assert [one.error for one in (next(found), next(found))] == [None, None]
    assert opened[-1].tell() <= 1 << 16
    assert found.count() is None


# ------------------------------------------------------------------ as others write them


def test_texts_and_bytes_are_found_however_a_column_packs_them(photos: Path) -> None:
    paths = [str(photos / f"{number:05d}.png") for number in range(3)]
    for number, texts in enumerate((pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()))):
        pq.write_table(
            pa.table({"path": pa.array(paths, pa.string()).cast(texts), "k": [1, 2, 3]}), f"{number}.parquet"
        )
        assert list(encode(f"{number}.parquet").values()) == [3]
    contents = [image(number) for number in range(100, 103)]
    assert len({len(one) for one in contents[:1]}) == 1
    for number, packed in enumerate(
        [
            pa.array(contents, pa.large_binary()),
            pa.array(contents, pa.binary_view()),
            pa.array(contents).dictionary_encode(),
            pa.array(contents[:1], pa.binary(len(contents[0]))),
        ]
    ):
        pq.write_table(pa.table({"image": packed}), f"bytes-{number}.parquet")
        assert "failed" not in encode(f"bytes-{number}.parquet")
    pq.write_table(pa.table({"path": [1, 2]}), "numbers.parquet")
    with pytest.raises(InputError, match="no column of texts or bytes; its columns: path"):
        find(["numbers.parquet"])


def test_a_data_set_in_several_files_is_read_by_a_pattern_and_from_a_list(photos: Path) -> None:
    for year in (2020, 2021):
        Path(f"data/year={year}").mkdir(parents=True)
        some = [{"path": f"photos/{year - 2020 + number:05d}.png", "k": number} for number in range(2)]
        write(f"data/year={year}/part-0.parquet", some)
        write(f"data/part-{year}.csv", some)
    assert encode("data/*/*.parquet") == {"encoded": 3}
    assert encode("data/part-{2020..2021}.csv") == {"unchanged": 3}
    Path("tables.txt").write_text("data/year=2020/part-0.parquet\ndata/part-2021.csv\n")
    assert encode("@tables.txt") == {"unchanged": 3}
    pq.write_table(pa.table({"n": [1]}), "data/year=2020/none.parquet")
    assert encode("data/**/*.parquet") == {"unchanged": 3, "failed": 1}
    assert failures() == {"none.parquet": "column"}


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
def test_a_csv_shows_by_what_it_is_separated(photos: Path, separator: str) -> None:
    csv_of("t.csv", [{"path": f"photos/{number:05d}.png", "label": f"n{number}"} for number in range(2)], separator)
    assert encode("t.csv") == {"encoded": 2}
    assert metadata() == {"00000.png": {"label": "n0"}, "00001.png": {"label": "n1"}}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le-bom"])
def test_a_csv_may_begin_with_the_mark_of_its_encoding(photos: Path, encoding: str) -> None:
    draw(photos / "ü", [9])
    text = "path\tlabel\nphotos/ü/00009.png\tschön\n"
    coded = b"\xff\xfe" + text.encode("utf-16-le") if encoding.endswith("bom") else text.encode(encoding)
    for name in ("t.csv", "t.tsv"):
        Path(name).write_bytes(coded)
        assert list(encode(name).values()) == [1]
        assert metadata() == {"00009.png": {"label": "schön"}}


def test_a_quote_that_is_not_closed_is_a_failure_and_swallows_nothing_in_silence(photos: Path) -> None:
    Path("t.csv").write_text('path,k\nphotos/00000.png,0\nphotos/00001.png,"open\nphotos/00002.png,2\n')
    assert encode("t.csv") == {"encoded": 1, "failed": 1}
    (failure,) = Collection.open("index").failures()
    assert failure.id.endswith("t.csv#row 1")
    assert "an unclosed quote" in failure.message


def test_rows_are_counted_from_0_in_ids_and_in_messages(photos: Path) -> None:
    Path("t.csv").write_text("path,k\nphotos/00000.png,0\n,1\n")
    Path("t.jsonl").write_text('{"path": "photos/00000.png"}\n\n{"path": null}\n{broken\n')
    encode("t.csv", "t.jsonl")
    said = {os.path.relpath(one.id): one.message for one in Collection.open("index").failures()}
    assert sorted(said) == ["t.csv#path/1", "t.jsonl#path/1", "t.jsonl#row 2"]
    assert all("in row 1" in message for id, message in said.items() if id.endswith("/1"))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_texts_may_be_packed(photos: Path, name: str) -> None:
    write(name, [{"path": f"photos/{number:05d}.png", "k": number} for number in range(4)])
    content = Path(name).read_bytes()
    Path(f"{name}.gz").write_bytes(gzip.compress(content))
    assert encode(f"{name}.gz") == {"encoded": 4}
    Path(f"cut-{name}.gz").write_bytes(gzip.compress(content)[:-12])
    assert encode(f"cut-{name}.gz")["failed"] == 1
    assert failures() == {f"cut-{name}.gz": "table"}
    Path(f"plain-{name}.gz").write_bytes(content)
    with pytest.raises(InputError, match="Not a gzipped"):
        find([f"plain-{name}.gz"])


def test_metadata_that_come_later_or_change_are_stored_and_stay(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = SourceFile.read
    monkeypatch.setattr(SourceFile, "read", lambda self, limits: read.append(self.id) or original(self, limits))
    assert encode("photos") == {"encoded": 6}
    write("t.csv", [{"path": f"photos/{number:05d}.png", "k": number} for number in range(2)])
    assert encode("t.csv") == {"unchanged": 2}
    assert metadata()["00001.png"] == {"k": "1"}
    read.clear()
    for source in ("t.csv", "photos"):
        assert list(encode(source)) == ["unchanged"]
    assert (read, metadata()["00001.png"]) == ([], {"k": "1"})
    write("t.csv", [{"path": f"photos/{number:05d}.png", "k": 2 * number} for number in range(2)])
    assert encode("t.csv") == {"unchanged": 2}
    assert ([os.path.basename(id) for id in read], metadata()["00001.png"]) == (["00001.png"], {"k": "2"})
