"""Collections: what is stored, found and exported, and what is refused. Against a real LanceDB."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from socket import gethostname
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from fake_encoder import DIM, FakeEncoder
from image_encoders import collection as collection_module
from image_encoders import exports, load, tables, upkeep
from image_encoders.child import ChildDied
from image_encoders.collection import (
    FAILURES,
    GIVEN_UP,
    INDEX,
    ITEMS,
    MARK,
    Collection,
    Failure,
    Row,
    id_of,
    open_collection,
)
from image_encoders.errors import CollectionError, InputError, MissingExtra
from image_encoders.records import Locator
from image_encoders.tables import FACTS, Comparison, ImageFacts, Where


def row(number: int, embedding: np.ndarray | None = None, **changes: Any) -> Row:
    vector = np.cos(np.arange(DIM) * (number + 1.3)) if embedding is None else embedding
    made = Row(
        id=f"/photos/{number:06d}.jpg",
        locator=Locator(f"/photos/{number:06d}.jpg"),
        embedding=np.asarray(vector, np.float32),
        facts=ImageFacts(width=640 + number, height=480, sha256=f"{number:064x}", size=1000 + number),
        state=f"{1000 + number} {10**18 + number}",
    )
    facts = {name: changes.pop(name) for name in FACTS if name in changes}
    return dataclasses.replace(made, facts=dataclasses.replace(made.facts, **facts), **changes)


def failure(id: str = "/photos/broken.jpg", **changes: Any) -> Failure:
    made = Failure(id, id, "read", "truncated", "JPEG that ends too early", "12 34", "2026-01-01T00:00:00+00:00")
    return dataclasses.replace(made, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def collection(folder: Path) -> Collection:
    return Collection.create(folder, FakeEncoder())


# ------------------------------------------------------------------ the folder


def test_a_collection_says_whose_rows_it_holds_and_how_to_load_the_encoder_again(folder: Path) -> None:
    encoder = FakeEncoder(name="fake/other", fingerprint="a" * 32)
    encoder.recipe = {"name": "fake/other", "weights": "/models/w.npz", "options": {"input_size": 480}}
    Collection.create(folder, encoder)
    opened = Collection.open(folder)
    assert (opened.name, opened.fingerprint, opened.dim) == ("fake/other", "a" * 32, DIM)
    assert (opened.modalities, opened.precision, opened.recipe) == (("image",), "float32", encoder.recipe)
    assert opened.count() == 0
    assert opened.failures() == []
    assert opened.search(np.ones(DIM), 5) == []


def test_it_is_made_in_a_folder_that_is_missing_or_empty_and_opened_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "not" / "there", tmp_path / "empty"):
        first = Collection.open_or_create(folder, FakeEncoder())
        first.append([row(1)])
        assert Collection.open_or_create(folder, FakeEncoder()).count() == 1


def test_another_fingerprint_is_refused_naming_both(folder: Path) -> None:
    Collection.create(folder, FakeEncoder())
    with pytest.raises(CollectionError) as raised:
        Collection.open_or_create(folder, FakeEncoder(name="fake/other", fingerprint="b" * 32))
    for word in ("fake/net", "f" * 32, "fake/other", "b" * 32, str(folder)):
        assert word in str(raised.value)
    with pytest.raises(CollectionError, match="same model"):
        Collection.open_or_create(folder, FakeEncoder(fingerprint="b" * 32))


@pytest.mark.parametrize("name", ["holiday.jpg", "folder/x.txt"])
def test_a_folder_with_other_things_is_refused_and_left_as_it_was(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    before = sorted(path for path in tmp_path.rglob("*") if not path.name.startswith("."))
    with pytest.raises(CollectionError, match="is not a collection"):
        Collection.open_or_create(tmp_path, FakeEncoder())
    assert sorted(path for path in tmp_path.rglob("*") if not path.name.startswith(".")) == before


def test_a_missing_collection_a_file_and_a_folder_of_something_else_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "missing", tmp_path / "file", tmp_path):
        with pytest.raises(CollectionError, match=str(path)):
            Collection.open(path)
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CollectionError, match=str(path)):
            Collection.open_or_create(path, FakeEncoder())


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"format": 3}', '{"format": "x"}', "\x00\xff"])
def test_a_damaged_mark_is_one_clear_error(folder: Path, collection: Collection, content: str) -> None:
    (folder / MARK).write_text(content, "latin-1")
    with pytest.raises(CollectionError, match="damaged"):
        Collection.open(folder)
    with pytest.raises(CollectionError, match="damaged"):
        Collection.open_or_create(folder, FakeEncoder())


@pytest.mark.parametrize(("format", "advice"), [(2, "encode again into another folder"), (4, "upgrade image-encoders")])
def test_another_format_is_refused_with_what_to_do(
    folder: Path, collection: Collection, format: int, advice: str
) -> None:
    mark = json.loads((folder / MARK).read_text())
    (folder / MARK).write_text(json.dumps({**mark, "format": format, "package": "9.9"}))
    with pytest.raises(CollectionError, match=rf"9\.9 in format {format}; .*format 3: {advice}"):
        Collection.open(folder)


def test_a_process_killed_before_the_tables_were_made_leaves_an_empty_collection(folder: Path) -> None:
    Collection.create(folder, FakeEncoder())
    for name in (ITEMS, FAILURES):
        subprocess.run(["rm", "-r", folder / f"{name}.lance"], check=True)
    opened = Collection.open(folder)
    assert (opened.count(), opened.search(np.ones(DIM)), opened.failures()) == (0, [], [])
    assert list(opened.scan(ITEMS, ["id"])) == []
    opened.append([row(1)])
    assert opened.count() == 1


def test_damaged_tables_are_one_clear_error(folder: Path, collection: Collection) -> None:
    collection.append([row(1)])
    for path in (folder / f"{ITEMS}.lance").rglob("*.*"):
        if path.is_file():
            path.write_bytes(b"rubbish")
    with pytest.raises(CollectionError, match=r"cannot be read: .*restore them from a copy, or delete the folder"):
        Collection.open(folder).count()


def test_a_table_that_a_killed_process_had_begun_to_make_is_none_yet(folder: Path, collection: Collection) -> None:
    table = folder / f"{ITEMS}.lance"
    for path in (*table.rglob("*.manifest"), *table.rglob("*.txn")):
        path.unlink()
    opened = Collection.open(folder)
    assert opened.count() == 0
    opened.append([row(1)])
    assert opened.count() == 1


# ------------------------------------------------------------------ writing


def test_appending_adds_new_rows_and_replaces_old_ones(collection: Collection) -> None:
    collection.append([row(1), row(2)])
    collection.append([row(2, np.arange(DIM)), row(3)])
    assert collection.count() == 3
    assert [hit.id for hit in collection.search(np.arange(DIM), 1)] == [row(2).id]
    collection.remove([row(1).id, "/photos/it's not there.jpg"])
    assert {one.id for one in collection.search(np.ones(DIM), 10)} == {row(2).id, row(3).id}


@pytest.mark.parametrize("bad", [np.full(DIM, np.nan), np.full(DIM, np.inf), np.ones(DIM + 1)])
def test_rows_that_are_not_finite_or_of_another_length_are_never_stored(
    collection: Collection, bad: np.ndarray
) -> None:
    with pytest.raises(CollectionError):
        collection.append([row(1, bad)])
    assert collection.count() == 0


def test_what_comes_from_outside_is_stored_whatever_it_is(collection: Collection) -> None:
    """Names that are no Unicode, empty ones and long ones; numbers of any size in a state; texts that hold anything."""
    odd = ["\ud800", "\udcff\\", "\0", "it's \n \u2028", "q" * 300_000]
    rows = [
        row(number, id=id_of(name), locator=Locator(name, "a\nb", 1e300), state=f"{10**40} {-(10**40)}")
        for number, name in enumerate(odd)
    ]
    dated = row(
        9, taken=datetime(9999, 12, 31, 23, 59, 59), metadata={"caption": "\udcff", "n": 10**40, "when": object}
    )
    collection.append([*rows, dated])
    collection.append([*rows, dated])
    assert collection.count() == 6
    kept = {one["id"]: one for one in collection.to_arrow().to_pylist()}
    assert [kept[one.id]["state"] for one in rows] == [one.state for one in rows]
    assert kept[dated.id]["taken"] == dated.facts.taken
    assert json.loads(kept[dated.id]["metadata"])["n"] == 1e40
    collection.record([failure(id_of(name), path=name, message=f"KeyError: {name}") for name in odd])
    assert len(collection.failures()) == 5
    collection.write_failures()
    collection.forget([id_of(name) for name in odd])
    collection.remove([one.id for one in rows])
    assert (collection.failures(), collection.count()) == ([], 1)


def test_one_id_cannot_be_stored_twice_at_once(collection: Collection) -> None:
    with pytest.raises(CollectionError, match="same id"):
        collection.append([row(1), row(1)])


def test_what_is_known_of_bytes_is_found_by_their_digest(collection: Collection) -> None:
    collection.append([row(number) for number in range(2500)])
    twin = row(9000, row(7).embedding, sha256=row(7).facts.sha256)
    collection.append([twin])
    known = collection.stored([row(number).facts.sha256 for number in range(2400, 2600)] + [row(7).facts.sha256])
    assert len(known) == 101
    assert known[row(7).facts.sha256].ids == {row(7).id, twin.id}
    np.testing.assert_array_equal(known[row(2499).facts.sha256].embedding, row(2499).embedding)
    assert known[row(2499).facts.sha256].facts.width == row(2499).facts.width
    assert collection.stored([]) == {}


def test_failures_are_listed_by_id_replaced_and_forgotten(collection: Collection, folder: Path) -> None:
    odd = failure("/photos/it's \n odd.jpg", message="tab\tand line\nend")
    collection.record([failure(), odd])
    collection.record([failure(code="corrupt")])
    assert [(one.id, one.code) for one in collection.failures()] == [
        ("/photos/broken.jpg", "corrupt"),
        (odd.id, "truncated"),
    ]
    collection.write_failures()
    text = (folder / "failures.txt").read_text()
    assert text.splitlines()[0] == "/photos/broken.jpg\tread\tcorrupt\tJPEG that ends too early"
    assert len(text.splitlines()) == 2
    collection.forget([odd.id, "/photos/broken.jpg"])
    collection.write_failures()
    assert collection.failures() == []
    assert not (folder / "failures.txt").exists()


def test_a_second_writer_is_refused_while_the_first_one_writes(folder: Path, collection: Collection) -> None:
    second = Collection.open(folder)
    with collection.writing():
        with pytest.raises(CollectionError, match="another process"):
            second.append([row(1)])
        collection.append([row(2)])
        assert second.count() == 1  # reading is always possible
    second.append([row(1)])
    assert collection.count() == 2


def _hold(folder: Path, ready: object, done: object) -> None:
    with Collection.open(folder).writing():
        ready.set()
        done.wait(120)


def test_a_writer_in_another_process_is_refused_and_a_killed_one_leaves_no_lock(folder: Path) -> None:
    collection = Collection.create(folder, FakeEncoder())
    spawn = multiprocessing.get_context("spawn")
    ready, done = spawn.Event(), spawn.Event()
    process = spawn.Process(target=_hold, args=(folder, ready, done))
    process.start()
    try:
        while not ready.wait(0.1):
            assert process.is_alive()
        with pytest.raises(CollectionError, match="another process"):
            collection.append([row(1)])
    finally:
        process.kill()
        process.join()
    collection.append([row(1)])
    assert collection.count() == 1


def test_many_small_writes_are_merged_and_lose_nothing(
    collection: Collection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "SMALL_FRAGMENTS", 8)
    reader = Collection.open(folder)
    for number in range(20):
        collection.append([row(number)], new=True)
    before = reader.search(np.ones(DIM), 20)
    collection.settle()
    assert len(list((folder / f"{ITEMS}.lance" / "data").iterdir())) == 1
    assert reader.search(np.ones(DIM), 20) == before


def test_upkeep_that_takes_too_long_is_given_up_loses_nothing_and_gets_twice_as_long_the_next_time(
    collection: Collection, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "SMALL_FRAGMENTS", 8)
    collection.append([row(number) for number in range(20)])
    before = collection.search(np.ones(DIM), 20)
    for limit_s in (1.2, 0.9, 0.6, 0.3, 0):  # wherever it is ended
        for number in range(20):
            collection.append([row(number)])
        (folder / GIVEN_UP).unlink(missing_ok=True)
        collection.settle(limit_s=limit_s)
        assert collection.search(np.ones(DIM), 20) == before
    assert "not done after" in caplog.text
    data = folder / f"{ITEMS}.lance" / "data"
    (data / ".tmpAbCdEf").write_bytes(b"unfinished")  # as one that is killed may leave
    (folder / GIVEN_UP).write_text("1000.0")
    limits = []
    apart = upkeep.apart
    monkeypatch.setattr(upkeep, "apart", lambda *step: limits.append(step[-1]) or apart(*step))
    collection.settle()
    assert 1000 < limits[0] <= 2000
    assert not list(data.glob(".tmp*"))
    assert tables.connect(folder).open_table(ITEMS).stats()["fragment_stats"]["num_fragments"] == 1
    assert collection.search(np.ones(DIM), 20) == before
    assert not (folder / GIVEN_UP).exists()


def test_upkeep_whose_process_is_killed_leaves_the_collection_as_it_was(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def killed(*_: object) -> None:
        raise ChildDied("the process that does it ended with SIGKILL")

    monkeypatch.setattr(upkeep, "SMALL_FRAGMENTS", 1)
    monkeypatch.setattr(upkeep, "apart", killed)
    for number in range(3):
        collection.append([row(number)], new=True)
    collection.settle()
    assert "SIGKILL" in caplog.text
    assert len(collection.search(np.ones(DIM))) == 3


# ------------------------------------------------------------------ full disks and read-only ones


def test_a_full_disk_is_one_clear_error_and_what_was_stored_stays(small_disk: Path) -> None:
    collection = Collection.create(small_disk / "index", FakeEncoder(dim=512))
    stored = 0

    def fill() -> None:
        nonlocal stored
        for start in range(0, 10_000, 256):
            rows = [row(number, np.random.default_rng(number).random(512)) for number in range(start, start + 256)]
            collection.append(rows, new=True)
            stored += len(rows)

    with pytest.raises(CollectionError, match="the disk is full") as raised:
        fill()
    assert "\n" not in str(raised.value)
    assert 0 < stored == collection.count() == Collection.open(small_disk / "index").count()
    with pytest.raises(CollectionError, match="the disk is full"):
        collection.export(small_disk / "rows.npy")
    assert [path.name for path in small_disk.iterdir()] == ["index"]


def test_a_collection_on_a_read_only_disk_can_be_read_and_says_so_when_written(small_disk: Path) -> None:
    Collection.create(small_disk / "index", FakeEncoder()).append([row(1)])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    collection = Collection.open(small_disk / "index")
    assert len(collection.search(np.ones(DIM))) == collection.count() == 1
    for write in (
        lambda: collection.append([row(2)]),
        lambda: collection.export(small_disk / "rows.parquet"),
        lambda: Collection.create(small_disk / "other", FakeEncoder()),
    ):
        with pytest.raises(CollectionError, match="no permission"):
            write()


def test_a_collection_needs_no_folder_for_temporary_files(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", "/proc/nowhere")
    monkeypatch.setattr(tables, "EXACT_BELOW", 3)
    collection.append([row(1), row(2)])
    collection.append([row(2, width=7), row(3)])
    collection.record([failure(), failure("/photos/other.jpg")])
    collection.record([failure(message="worse")])
    widths = {}
    for found in collection.scan(ITEMS, ["id", "width"]):
        widths |= zip((id[-5:] for id in found["id"].to_pylist()), found["width"].to_pylist())
    assert widths == {"1.jpg": 641, "2.jpg": 7, "3.jpg": 643}
    collection.settle()  # which would make an index of so many rows
    assert len(collection.search(np.ones(DIM))) == 3
    assert sorted(found.message for found in collection.failures()) == ["JPEG that ends too early", "worse"]


def test_an_error_of_the_disk_in_the_database_is_one_sentence(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection.append([row(1)])
    table = type(collection._tables[ITEMS])

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("lance error: LanceError(IO): No space left on device (os error 28), /x/y.rs:258:9")

    monkeypatch.setattr(table, "add", full)
    with pytest.raises(CollectionError, match=r"cannot be written: the disk is full; free some space [^\n]*$"):
        collection.append([row(2)], new=True)
    assert collection.count() == 1


# ------------------------------------------------------------------ searching


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_a_search_equals_sorting_all_cosines(collection: Collection) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, DIM)).astype(np.float32) * rng.uniform(0.01, 100, (500, 1)).astype(np.float32)
    collection.append([row(number, one) for number, one in enumerate(rows)])
    for query in rng.standard_normal((20, DIM)) * 1e20:
        cosines = unit(rows) @ unit(query)
        best = np.argsort(-cosines)[:10]
        hits = collection.search(query, 10)
        assert [hit.id for hit in hits] == [row(number).id for number in best]
        np.testing.assert_allclose([hit.score for hit in hits], cosines[best], atol=1e-6)
        assert [(hit.width, hit.sha256, hit.path) for hit in hits] == [
            (row(number).facts.width, row(number).facts.sha256, row(number).locator.path) for number in best
        ]


def test_equal_rows_come_by_id_also_where_the_list_is_cut(collection: Collection) -> None:
    numbers = np.random.default_rng(1).permutation(200).tolist()
    for number in numbers[:50]:
        collection.append([row(number, np.ones(DIM))])
    collection.append([row(number, np.ones(DIM)) for number in numbers[50:]])
    assert [hit.id for hit in collection.search(np.ones(DIM), 7)] == [row(number).id for number in range(7)]
    assert [hit.id for hit in collection.search(-np.ones(DIM), 150)] == [row(number).id for number in range(150)]


def test_asking_for_more_than_there_is_gives_all(collection: Collection) -> None:
    collection.append([row(number) for number in range(5)])
    assert len(collection.search(row(3).embedding, 1000)) == 5


def test_files_with_the_same_bytes_are_one_hit_with_its_copies(collection: Collection) -> None:
    """Also where copies alone are more than what is looked at first, and where others are as near."""
    same = [row(number, np.ones(DIM), sha256="c" * 64) for number in np.random.default_rng(5).permutation(40).tolist()]
    twins = [row(number, np.ones(DIM)) for number in (100, 101)]
    far = [row(number, -np.ones(DIM), sha256="f" * 64) for number in (200, 201)]
    collection.append([*same[:20], *twins, *far, *same[20:]])
    hits = collection.search(np.ones(DIM), 3)
    assert [hit.id for hit in hits] == [row(0).id, row(100).id, row(101).id]
    assert [hit.copies for hit in hits] == [tuple(row(number).id for number in range(1, 40)), (), ()]
    assert [(hit.id, hit.copies) for hit in collection.search(np.ones(DIM), 9)[3:]] == [(row(200).id, (row(201).id,))]
    each = collection.search(np.ones(DIM), 41, each_copy=True)
    assert [hit.id for hit in each] == [row(number).id for number in (*range(40), 100)]
    assert not any(hit.copies for hit in each)


def test_a_row_of_zeros_is_never_found_and_hides_nothing(collection: Collection) -> None:
    collection.append([row(1, np.zeros(DIM)), row(2), row(3)])
    assert {hit.id for hit in collection.search(np.ones(DIM), 3)} == {row(2).id, row(3).id}


@pytest.mark.parametrize("query", [np.zeros(DIM), np.full(DIM, np.nan), np.array([np.inf] + [0.0] * (DIM - 1))])
def test_a_query_without_a_direction_is_an_input_error(collection: Collection, query: np.ndarray) -> None:
    with pytest.raises(InputError):
        collection.search(query)


def test_a_query_of_another_length_and_a_k_below_one_are_refused(collection: Collection) -> None:
    with pytest.raises(CollectionError, match=f"{DIM}"):
        collection.search(np.ones(DIM + 1))
    with pytest.raises(CollectionError):
        collection.search(np.ones((1, DIM)))
    with pytest.raises(InputError, match="k is 0"):
        collection.search(np.ones(DIM), 0)


def test_paths_that_are_not_utf8_come_back_as_they_are(collection: Collection) -> None:
    path = os.fsdecode(b"/photos/caf\xe9 \\ \xff.jpg")
    collection.append([row(1, locator=Locator(path), id=id_of(path))])
    [hit] = collection.search(np.ones(DIM))
    assert hit.path == path
    assert hit.id == "bytes:/photos/caf\\xe9 \\\\ \\xff.jpg"


def test_many_rows_are_found_through_an_index_that_new_rows_need_not_be_in(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "EXACT_BELOW", 3000)
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((4000, DIM)).astype(np.float32)
    collection.append([row(number, one) for number, one in enumerate(rows)])
    collection.settle()
    [index] = collection._tables[ITEMS].list_indices()
    assert index.columns == ["embedding"]
    late = rng.standard_normal((100, DIM)).astype(np.float32)
    collection.append([row(number, one) for number, one in enumerate(late, len(rows))])
    everything = np.concatenate([rows, late])
    found = 0
    queries = rng.standard_normal((40, DIM))
    for query in queries:
        best = np.argsort(-(unit(everything) @ unit(query)))[:10]
        found += len({hit.id for hit in collection.search(query, 10)} & {row(int(number)).id for number in best})
    assert found / (10 * len(queries)) >= 0.95
    for number, one in enumerate(late, len(rows)):
        assert collection.search(one, 1)[0].id == row(number).id
    collection.append([row(number, one) for number, one in enumerate(late * -1, len(everything))])
    collection.append([row(number) for number in range(5000, 5500)])
    collection.settle()
    assert collection._tables[ITEMS].index_stats(index.name).num_unindexed_rows == 0


def test_an_index_is_added_to_and_built_anew_once_much_has_come_and_what_it_finds_is_measured(
    collection: Collection, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "EXACT_BELOW", 1000)
    monkeypatch.setattr(upkeep, "apart", lambda step, folder, name, limit_s: step(folder, name))  # here, which is quick
    rng = np.random.default_rng(4)

    def grow(begin: int, end: int) -> int:
        """After rows were added: in how many pieces the index is."""
        collection.append([row(number, rng.standard_normal(DIM)) for number in range(begin, end)], new=True)
        collection.settle()
        [index] = collection._tables[ITEMS].list_indices()
        return collection._tables[ITEMS].index_stats(index.name).num_indices

    assert collection.info()["recall"] is None
    assert grow(0, 1500) == 1
    assert collection.info()["recall"] == pytest.approx(1.0)
    measured = (folder / INDEX).read_text()
    assert grow(1500, 1550) == 1  # few: they are compared
    assert collection.info()["indexed"] == 1500
    assert [grow(begin, begin + 400) for begin in (1550, 1950, 2350)] == [2, 3, 4]
    assert (folder / INDEX).read_text() == measured
    assert grow(2750, 3200) == 1  # anew
    assert (folder / INDEX).read_text() != measured
    assert grow(3200, 7000) == 1
    assert collection.info()["indexed"] == 7000
    (folder / INDEX).write_text("rubbish")
    assert collection.info()["recall"] is None


def test_the_measured_recall_counts_what_an_index_misses(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.random.default_rng(5).standard_normal((2000, DIM))
    rows[7] = 0
    collection.append([row(number, one) for number, one in enumerate(rows)], new=True)
    table = collection._tables[ITEMS]
    whole = tables.best
    assert upkeep.recall(table) == 1.0  # without an index all are compared

    def half(*arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        rows, distances = whole(*arguments)
        return rows[::2], distances[::2]

    monkeypatch.setattr(tables, "best", half)
    assert upkeep.recall(table) == 0.5


def test_words_images_and_sounds_are_embedded_by_the_model_of_the_collection(tmp_path: Path) -> None:
    encoder = load("clip/demo")
    collection = Collection.create(tmp_path / "index", encoder)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    collection.append([row(1, encoder.encode_image([image])[0]), row(2, -encoder.encode_image([image])[0])])
    opened = open_collection(tmp_path / "index")
    assert opened.search(image=image, k=1) == opened.search(encoder.encode_image([image])[0], 1)
    assert opened.search(words="a red circle") == opened.search(encoder.encode_text(["a red circle"])[0])
    with pytest.raises(InputError, match="no audio tower"):
        opened.search(audio="bark.wav")
    for query in ({}, {"words": "a dog", "image": image}):
        with pytest.raises(InputError, match="give one query"):
            opened.search(**query)
    with pytest.raises(InputError, match="pass a text query as words="):
        opened.search("a red circle")


def test_a_model_that_has_changed_meanwhile_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Collection.create(folder, FakeEncoder())
    changed = FakeEncoder(fingerprint="b" * 32)
    monkeypatch.setattr("image_encoders.models.load", lambda name, **wishes: changed)
    with pytest.raises(CollectionError, match="cannot be compared"):
        open_collection(folder).search(words="a dog")


def test_what_was_chosen_on_another_machine_is_loaded_as_it_was_chosen_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = FakeEncoder()
    begun.precision = "bfloat16"
    Collection.create(folder, begun)
    asked: list[str] = []

    def load(name: str, precision: str = "auto") -> FakeEncoder:
        asked.append(precision)
        encoder = FakeEncoder()
        encoder.precision = "float32" if precision == "auto" else precision
        return encoder

    monkeypatch.setattr("image_encoders.models.load", load)
    assert open_collection(folder).encoder.precision == "bfloat16"
    assert asked == ["auto", "bfloat16"]


def test_a_collection_says_what_it_is(collection: Collection, folder: Path) -> None:
    collection.append([row(1), row(2)])
    collection.record([failure()])
    found = Collection.open(folder).info()
    assert (found["model"], found["dim"], found["images"], found["failures"]) == ("fake/net", DIM, 2, 1)
    assert found["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    created, changed = (datetime.fromisoformat(found[name]) for name in ("created", "changed"))
    assert abs(changed - created) < timedelta(hours=1)
    assert found["indexed"] == 0
    assert json.loads(json.dumps(found)) == found


# ------------------------------------------------------------------ exporting


@pytest.fixture
def filled(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> Collection:
    monkeypatch.setattr(collection_module, "CHUNK", 4 * DIM * 7)  # seven rows at a time
    numbers = np.random.default_rng(3).permutation(60).tolist()
    for part in (numbers[:20], numbers[20:]):
        collection.append([row(number) for number in part])
    collection.append([row(5, np.arange(DIM))])
    collection.remove([row(6).id])
    return collection


EXPORTED = [number for number in range(60) if number != 6]


def test_parquet_holds_every_column_by_id_and_the_encoder(filled: Collection, tmp_path: Path) -> None:
    assert filled.export(tmp_path / "rows.parquet") == 59
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table["id"].to_pylist() == [row(number).id for number in EXPORTED]
    assert table["state"].to_pylist() == [row(number).state for number in EXPORTED]
    embedding = table.schema.field("embedding").type
    assert (str(embedding.value_type), embedding.list_size) == ("float", DIM)
    np.testing.assert_array_equal(table["embedding"].to_pylist()[5], np.arange(DIM))
    about = json.loads(pq.read_schema(tmp_path / "rows.parquet").metadata[b"image-encoders"])
    assert (about["encoder"], about["fingerprint"], about["dim"]) == ("fake/net", "f" * 32, DIM)
    assert pq.ParquetFile(tmp_path / "rows.parquet").num_row_groups == 9


def test_npy_holds_the_rows_by_id_and_says_beside_it_which_they_are(filled: Collection, tmp_path: Path) -> None:
    assert filled.export(tmp_path / "rows.npy") == 59
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert (rows.shape, rows.dtype) == ((59, DIM), np.float32)
    lines = [json.loads(line) for line in (tmp_path / "rows.ids.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [row(number).id for number in EXPORTED]
    assert lines[0]["width"] == row(0).facts.width
    np.testing.assert_array_equal(rows[7], row(8).embedding)
    np.testing.assert_array_equal(rows[5], np.arange(DIM))


@pytest.mark.parametrize("name", ["rows.arrow", "rows.feather"])
def test_arrow_files_hold_every_column_and_can_be_memory_mapped(filled: Collection, tmp_path: Path, name: str) -> None:
    assert filled.export(tmp_path / name) == 59
    table = feather.read_table(tmp_path / name, memory_map=True)
    filled.export(tmp_path / "rows.parquet")
    assert table.equals(pq.read_table(tmp_path / "rows.parquet"))
    assert json.loads(table.schema.metadata[b"image-encoders"])["encoder"] == "fake/net"


def test_csv_has_a_column_for_each_number(filled: Collection, tmp_path: Path) -> None:
    filled.append([row(7, id='/a "quoted", name\nwith a line end', locator=Locator("/a"))])
    assert filled.export(tmp_path / "rows.csv") == 60
    with (tmp_path / "rows.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [one["id"] for one in read][:2] == ['/a "quoted", name\nwith a line end', row(0).id]
    for one, number in zip(read[1:], EXPORTED):
        expected = np.arange(DIM, dtype=np.float32) if number == 5 else row(number).embedding
        assert [np.float32(one[f"embedding_{place}"]) for place in range(DIM)] == expected.tolist()
        assert int(one["width"]) == row(number).facts.width


def test_a_notebook_gets_all_rows_as_a_table(filled: Collection) -> None:
    table = filled.to_arrow()
    assert table["id"].to_pylist() == [row(number).id for number in EXPORTED]
    frame = filled.to_pandas()
    assert list(frame["id"]) == table["id"].to_pylist()
    np.testing.assert_array_equal(np.stack(frame["embedding"])[5], np.arange(DIM))
    assert len(filled) == len(frame) == 59


def test_without_pandas_the_error_names_the_command_that_installs_it(
    filled: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"pip install 'image-encoders\[pandas\]'"):
        filled.to_pandas()


def test_an_empty_collection_exports_no_rows(collection: Collection, tmp_path: Path) -> None:
    assert {collection.export(tmp_path / f"rows{ending}") for ending in exports.ENDINGS} == {0}
    assert np.load(tmp_path / "rows.npy").shape == (0, DIM)
    assert pq.read_table(tmp_path / "rows.parquet").num_rows == 0


def test_a_file_that_is_there_is_replaced_only_with_overwrite(filled: Collection, tmp_path: Path) -> None:
    for name in ("rows.parquet", "rows.npy"):
        (tmp_path / name).write_bytes(b"precious")
        with pytest.raises(CollectionError, match="already exists"):
            filled.export(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"precious"
        assert filled.export(tmp_path / name, overwrite=True) == 59
    assert np.load(tmp_path / "rows.npy").shape == (59, DIM)


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "missing/rows.npy", "rows.npy/rows.parquet"])
def test_an_export_that_cannot_be_is_one_clear_error_and_leaves_nothing(
    filled: Collection, tmp_path: Path, name: str
) -> None:
    before = set(tmp_path.iterdir())
    with pytest.raises(CollectionError) as raised:
        filled.export(tmp_path / name)
    assert "\n" not in str(raised.value)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["rows.npy", "rows.parquet"])
def test_an_export_that_fails_blames_the_side_that_failed(
    filled: Collection, folder: Path, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "missing" / name
    with pytest.raises(CollectionError, match=f"^{target}: there is no folder {target.parent}; "):
        filled.export(target)
    for path in (folder / f"{ITEMS}.lance" / "data").iterdir():
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CollectionError, match=f"^{folder} cannot be read: "):
        Collection.open(folder).export(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_an_export_that_fails_half_way_leaves_the_old_file(
    filled: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.export(tmp_path / "rows.parquet")
    before = (tmp_path / "rows.parquet").read_bytes()

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fails)
    with pytest.raises(CollectionError, match="the disk is full"):
        filled.export(tmp_path / "rows.parquet", overwrite=True)
    assert (tmp_path / "rows.parquet").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"index", "rows.parquet"}


class Killed(BaseException):
    """The process is killed: nothing that it does any more reaches the disk."""


EVENTS = {"open", "os.rename", "os.remove"}
_disk: dict[str, Any] = {"folder": None}  # an audit hook can be added once, and never taken away


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _disk["folder"] is not None and event in EVENTS and str(arguments[0]).startswith(str(_disk["folder"])):
        _disk["left"] -= 1
        if _disk["left"] < 0:
            raise Killed


@pytest.fixture
def killed() -> Iterator[Callable[[Path, int], AbstractContextManager[None]]]:
    """killed(folder, n): the block is killed before it touches the folder for the (n + 1)-th time."""
    if "hook" not in _disk:
        _disk["hook"] = sys.addaudithook(_watch)

    @contextmanager
    def after(folder: Path, count: int) -> Iterator[None]:
        _disk.update(folder=folder, left=count)
        try:
            yield
        finally:
            _disk["folder"] = None

    yield after
    _disk["folder"] = None


def test_an_export_that_is_killed_shows_no_rows_beside_the_names_of_others(
    tmp_path: Path, killed: Callable[[Path, int], AbstractContextManager[None]]
) -> None:
    made = {}
    for name, shift in (("old", 0), ("new", 1)):
        made[name] = Collection.create(tmp_path / name, FakeEncoder())
        made[name].append([row(number + shift) for number in range(5)])
    out = tmp_path / "out"
    out.mkdir()
    moments = 0
    while True:
        made["old"].export(out / "rows.npy", overwrite=True)
        try:
            with killed(out, moments):
                made["new"].export(out / "rows.npy", overwrite=True)
            break
        except Killed:
            moments += 1
        if (out / "rows.ids.jsonl").exists():
            lines = [json.loads(line) for line in (out / "rows.ids.jsonl").read_text().splitlines()]
            numbers = [int(Path(line["id"]).stem) for line in lines]
            np.testing.assert_array_equal(np.load(out / "rows.npy"), [row(number).embedding for number in numbers])
    assert moments >= 8
    assert json.loads((out / "rows.ids.jsonl").read_text().splitlines()[0])["id"] == row(1).id


def test_what_a_killed_export_left_is_removed_by_the_next_one(filled: Collection, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    out = tmp_path / "out"
    out.mkdir()
    for name in ("rows.npy", "rows.ids.jsonl"):
        (out / f".{name}.{gethostname()}.{ended.pid}.1234.part").write_bytes(b"x" * 1000)
    at_work = f".rows.npy.{gethostname()}.{os.getpid()}.1.part"
    (out / at_work).write_bytes(b"of another thread")
    filled.export(out / "rows.npy")
    assert {path.name for path in out.iterdir()} == {"rows.npy", "rows.ids.jsonl", at_work}


@pytest.mark.parametrize("name", ["rows.npy", "rows.parquet"])
def test_a_collection_whose_first_run_was_killed_exports_no_rows(tmp_path: Path, name: str) -> None:
    collection = Collection.create(tmp_path / "index", FakeEncoder())
    for table in (ITEMS, FAILURES):
        subprocess.run(["rm", "-r", tmp_path / "index" / f"{table}.lance"], check=True)
    (tmp_path / name).write_bytes(b"old")
    assert Collection.open(tmp_path / "index").export(tmp_path / name, overwrite=True) == 0
    if name == "rows.npy":
        assert np.load(tmp_path / name).shape == (0, DIM)
        assert (tmp_path / "rows.ids.jsonl").read_text() == ""
    else:
        assert pq.read_table(tmp_path / name).schema == tables.items_schema(DIM, collection._metadata())
        assert pq.read_table(tmp_path / name).num_rows == 0


# ------------------------------------------------------------------ columns


def test_a_new_fact_about_an_image_is_a_column_that_is_stored_and_exported(folder, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class MoreFacts(ImageFacts):
        thumbnail: bytes = b""
        sharpness: float | None = None

    for module in (tables, collection_module):
        monkeypatch.setattr(module, "ImageFacts", MoreFacts)
    monkeypatch.setattr(tables, "FACTS", (*FACTS, "thumbnail", "sharpness"))
    collection = Collection.create(folder, FakeEncoder())
    facts = MoreFacts(**dataclasses.asdict(row(1).facts), thumbnail=b"\xff", sharpness=0.5)
    plain = MoreFacts(1, 1, "c" * 64, 1)
    collection.append([dataclasses.replace(row(n), facts=one) for n, one in ((1, facts), (2, plain))])
    assert collection.stored([facts.sha256])[facts.sha256].facts == facts
    assert collection.to_arrow()["thumbnail"].to_pylist() == [b"\xff", b""]
    assert collection.to_arrow()["sharpness"].to_pylist() == [0.5, None]


def test_a_collection_without_a_column_is_refused_in_one_sentence(folder):
    Collection.create(folder, FakeEncoder()).append([row(1)])
    tables.connect(folder).open_table(ITEMS).drop_columns(["height", "taken"])
    old = Collection.open(folder)
    for use in (len, lambda one: one.append([row(2)]), lambda one: one.search(np.ones(DIM)), Collection.to_arrow):
        with pytest.raises(CollectionError, match=r"its table items has no column height and taken; encode again into"):
            use(old)


def test_the_order_in_which_columns_were_stored_does_not_matter(folder, tmp_path):
    schema = tables.stored_schema(DIM)
    collection = Collection.create(folder, FakeEncoder())
    collection._database.drop_table(ITEMS)
    collection._database.create_table(ITEMS, schema=pa.schema(list(schema)[::-1]))
    old = Collection.open(folder)
    old.append([row(1), row(2)], new=True)
    old.append([row(2, width=9), row(3)])
    assert old.to_arrow().schema.names == schema.names
    assert old.to_arrow()["width"].to_pylist() == [641, 9, 643]
    assert old.export(tmp_path / "all.parquet") == 3


SAID = {  # of images by their numbers
    1: {"year": 2019, "label": "cat", "tags": ["a", "it's"], "sold": True, "when": "2024-05-01T10:00:00", "a.b": 1},
    2: {"year": "2020", "label": "dog", "tags": ["b", 7], "sold": False, "when": "2024-06-01", "exif": {"iso": 100}},
    3: {
        "year": 2020.5,
        "label": 'say "hi"\n\\',
        "sold": "True",
        "when": None,
        "exif": {"iso": 3200, "lens": {"f": 1.8}},
    },
    4: {"year": "unknown", "label": "7", "übel.x y": "ü", "sold": "false", "exif": "none"},
    5: None,
    6: {"year": {"from": 2019}, "label": ""},
}


@pytest.mark.parametrize(
    ("name", "sign", "value", "found"),
    [
        ("year", "=", 2020, {2}),
        ("year", "!=", 2020, {1, 3, 4, 5, 6}),
        ("year", ">=", 2020, {2, 3}),
        ("year", "<", 2020.5, {1, 2}),
        ("year", "=", "2020", {2}),
        ("year", "=", "unknown", {4}),
        ("year.from", "<=", 2019, {6}),
        ("label", "=", "cat", {1}),
        ("label", "=", 'say "hi"\n\\', {3}),
        ("label", "=", "", {6}),
        ("label", ">", "cat", {2, 3}),
        ("label", "=", 7, {4}),
        ("label", "=", "Cat", set()),
        ("tags", "=", "it's", {1}),
        ("tags", "=", 7, {2}),
        ("tags", "!=", "b", {1, 3, 4, 5, 6}),
        ("sold", "=", True, {1, 3}),
        ("sold", "=", False, {2, 4}),
        ("when", ">=", "2024-05", {1, 2}),
        ("when", "<", "2024-06", {1}),
        ("when", "=", None, {3, 4, 5, 6}),
        ("when", "!=", None, {1, 2}),
        ("exif.iso", ">", 100, {3}),
        ("exif.lens.f", "=", 1.8, {3}),
        ("a.b", "=", 1, {1}),
        ("übel.x y", "=", "ü", {4}),
        ('no"thing', "=", 1, set()),
        ("it's", "=", "it's", set()),
    ],
)
def test_a_search_looks_at_images_whose_metadata_compares(collection, name, sign, value, found):
    collection.append([row(number, metadata=said) for number, said in SAID.items()])
    where = Where(metadata=(Comparison(name, sign, value),))
    assert {hit.width - 640 for hit in collection.search(np.ones(DIM), 100, where=where)} == found


def test_comparisons_hold_together_and_are_checked(collection):
    collection.append([row(number, metadata=said) for number, said in SAID.items()])
    where = Where(min_width=642, metadata=(Comparison("year", ">", 2000), Comparison("sold", "=", True)))
    assert [hit.width for hit in collection.search(np.ones(DIM), 100, where=where)] == [643]
    for name, sign, value in [
        *[("", "=", 1), ("a..b", "=", 1), ("a", "==", 1), ("a", "<", True), ("a", ">=", None), ("a", "=", math.nan)],
        ("a", "=", [1]),
    ]:
        with pytest.raises(InputError) as caught:
            Comparison(name, sign, value)  # type: ignore[arg-type]
        assert caught.value.code == "where"


def test_a_narrow_condition_finds_all_that_it_leaves_through_an_index_too(collection, monkeypatch):
    from lancedb.index import IvfSq

    rng = np.random.default_rng(0)
    rows = [row(number, rng.normal(size=DIM), metadata={"rare": number % 500 == 0}) for number in range(5000)]
    collection.append(rows, new=True)
    collection._tables[ITEMS].create_index("embedding", config=IvfSq(distance_type="cosine", num_partitions=78))
    for name, value in (("EXACT_BELOW", 1000), ("LIST", 64), ("PROBES", 1)):
        monkeypatch.setattr(tables, name, value)
    rare = Where(metadata=(Comparison("rare", "=", True),))
    query = rng.normal(size=DIM)
    assert len(collection.search(query, 20, where=rare)) == 10
    found, _ = tables.best(collection._tables[ITEMS], query.astype(np.float32), 20, rare.condition())
    assert len(found) == 10


# ------------------------------------------------------------------ forked processes

AFTER_A_FORK = """
import os, signal, sys
import numpy as np
from image_encoders.collection import open_collection
from image_encoders.errors import CollectionError

before = open_collection(sys.argv[1])
query = np.ones(before.dim)
if "used" in sys.argv:
    before.search(query)
for use in (
    lambda: None,
    lambda: before.search(query),
    lambda: open_collection(sys.argv[1]).count(),
    lambda: before.remove(["x"]),
):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # which ends one that hangs
        try:
            use()
        except CollectionError as error:
            print(error, flush=True)
        sys.exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
before.search(query)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
@pytest.mark.parametrize("before", ["used", "opened"])
def test_a_process_forked_from_one_that_uses_a_collection_ends_and_is_refused_it(
    collection: Collection, before: str
) -> None:
    collection.append([row(0)])
    command = [sys.executable, "-W", "ignore", "-c", AFTER_A_FORK, str(collection.folder), before]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.isdecimal()] == ["0"] * 4
    assert sum("start processes by spawn" in line for line in lines) == (3 if before == "used" else 0)
