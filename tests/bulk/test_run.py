"""Runs: what is encoded, what is not encoded again, and what becomes of what cannot be. Against a real LanceDB."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import draw, image, rows
from PIL import Image

from fake_encoder import DIM, FakeEncoder
from image_encoders.bulk import commit
from image_encoders.bulk import encode as encode_module
from image_encoders.bulk import run as run_module
from image_encoders.bulk.run import Report, Standing, run
from image_encoders.bulk.sources import SourceFile, find
from image_encoders.collection import Collection
from image_encoders.encoder import Encoder, InputSpec, Tower
from image_encoders.errors import CollectionError, InputError
from image_encoders.inputs.image import ImageLimits, read_image
from image_encoders.inputs.preprocessing import channels_first
from image_encoders.records import Locator


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    draw(tmp_path / "photos", range(20))
    return tmp_path / "photos"


@pytest.fixture
def encode(photos: Path) -> Callable[..., Report]:
    """A run over `photos` into a collection beside it."""

    def encode(encoder: FakeEncoder | None = None, **options: Any) -> Report:
        encoder = encoder or FakeEncoder()
        collection = Collection.open_or_create(photos.parent / "index", encoder)
        return run(find([str(photos)]), encoder, collection, **{"batch_size": 8, **options})

    return encode


@pytest.fixture
def index(photos: Path) -> Callable[[], Collection]:
    return lambda: Collection.open(photos.parent / "index")


def counts(report: Report) -> dict[str, int]:
    """The counts that are not zero; they must add up."""
    assert report.total == report.encoded + report.reused + report.unchanged + report.failed
    names = ("encoded", "reused", "unchanged", "failed", "ignored", "pruned")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def state_of(path: Path) -> str:
    return f"{path.stat().st_size} {path.stat().st_mtime_ns}"


def touch(path: Path) -> None:
    found = os.stat(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1_000_000_000))


def failing_for(*numbers: int, error: Exception) -> Callable[[np.ndarray], None]:
    """What raises `error` for a batch in which one of these images is."""
    plain = FakeEncoder()
    tower = plain.tower("image")
    bad = {tower.input(image(number)).tobytes() for number in numbers}

    def before(inputs: np.ndarray) -> None:
        if any(one.tobytes() in bad for one in inputs):
            raise error

    return before


# ------------------------------------------------------------------ what is encoded


def test_every_image_gets_the_row_that_the_library_gives_it(encode, index, photos: Path) -> None:
    (photos / "notes.md").write_text("no image")
    report = encode()
    assert counts(report) == {"encoded": 20, "ignored": 1}
    paths = sorted(photos.glob("*.png"))
    expected = FakeEncoder().encode_image(paths)
    stored = rows(index())
    for path, row in zip(paths, expected):
        one = stored[str(path)]
        np.testing.assert_allclose(np.frombuffer(one["embedding"], np.float32), row, rtol=1e-6)
        assert (one["width"], one["height"]) == (12, 9 + int(path.stem) % 5)
        assert (one["size"], one["state"]) == (path.stat().st_size, state_of(path))
    assert len(stored) == 20


def test_rows_keep_the_order_of_their_sources_though_threads_race(encode, index, photos: Path) -> None:
    delays = np.random.default_rng(0).uniform(0, 0.01, 1000)

    def read(content: bytes) -> np.ndarray:
        threading.Event().wait(delays[hash(content) % 1000])
        return FakeEncoder().tower("image").read(content)

    encode(FakeEncoder(read=read), workers=6, batch_size=4)
    assert list(rows(index())) == [str(path) for path in sorted(photos.glob("*.png"))]


def test_a_second_run_reads_nothing(encode, index, monkeypatch: pytest.MonkeyPatch) -> None:
    encode()
    before = rows(index())

    def read(self: SourceFile, limits: object) -> bytes:
        raise AssertionError("a file was read")

    monkeypatch.setattr(SourceFile, "read", read)
    encoder = FakeEncoder()
    assert counts(encode(encoder)) == {"unchanged": 20}
    assert encoder.batches == []
    assert rows(index()) == before


def test_only_what_is_new_is_embedded(encode, photos: Path) -> None:
    encode()
    draw(photos, range(20, 25))
    encoder = FakeEncoder()
    assert counts(encode(encoder)) == {"encoded": 5, "unchanged": 20}
    assert encoder.embedded == 5


def test_a_touched_file_keeps_its_embedding_and_gets_its_new_time(encode, index, photos: Path) -> None:
    encode()
    before = rows(index())
    touched = photos / "00003.png"
    touch(touched)
    encoder = FakeEncoder()
    assert counts(encode(encoder)) == {"unchanged": 20}
    assert encoder.embedded == 0
    after = rows(index())
    assert after[str(touched)].pop("state") == state_of(touched)
    assert before[str(touched)].pop("state") != state_of(touched)
    assert after == before


def test_a_changed_file_is_embedded_again_and_has_one_row(encode, index, photos: Path) -> None:
    encode()
    (photos / "00003.png").write_bytes(image(777))
    assert counts(encode()) == {"encoded": 1, "unchanged": 19}
    stored = rows(index())
    assert len(stored) == 20
    expected = FakeEncoder().encode_image([image(777)])[0]
    np.testing.assert_allclose(
        np.frombuffer(stored[str(photos / "00003.png")]["embedding"], np.float32), expected, rtol=1e-6
    )


def test_a_reader_never_sees_a_changed_file_without_its_row_or_with_two(encode, index, photos: Path) -> None:
    encode()
    seen: list[list[str]] = []
    stop = threading.Event()

    def watch() -> None:
        reader = index()
        while not stop.is_set():
            seen.append(sorted(hit.id for hit in reader.search(np.ones(DIM), 100)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for round in range(8):
            for number in range(20):
                (photos / f"{number:05d}.png").write_bytes(image(1000 + 20 * round + number))
            assert counts(encode(batch_size=3)) == {"encoded": 20}
    finally:
        stop.set()
        watcher.join()
    assert len(seen) > 3
    assert all(ids == sorted(map(str, photos.glob("*.png"))) for ids in seen)


def test_equal_bytes_are_embedded_once_in_a_batch_in_a_run_and_between_runs(encode, index, photos: Path) -> None:
    for name, number in (("00000 copy.png", 0), ("00001 copy.png", 0), ("99999.png", 0), ("99998.png", 19)):
        (photos / name).write_bytes(image(number))
    encoder = FakeEncoder()
    assert counts(encode(encoder)) == {"encoded": 20, "reused": 4}
    assert encoder.embedded == 20
    (photos / "later.png").write_bytes(image(0))
    (photos / "00007.png").rename(photos / "renamed.png")
    assert counts(encode(encoder)) == {"reused": 2, "unchanged": 23}
    assert encoder.embedded == 20
    stored = rows(index())
    same = [stored[str(photos / name)]["embedding"] for name in ("00000.png", "00001 copy.png", "later.png")]
    assert len(set(same)) == 1
    assert stored[str(photos / "renamed.png")]["embedding"] == stored[str(photos / "00007.png")]["embedding"]


def test_thousands_of_copies_wait_for_no_full_batch(photos: Path, encode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_module, "OUTCOMES", 16)
    monkeypatch.setattr(commit, "COMMIT_ROWS", 16)
    for number in range(100):
        (photos / f"copy {number}.png").write_bytes(image(19))
    assert counts(encode(batch_size=16)) == {"encoded": 20, "reused": 100}


def test_files_that_have_exchanged_their_bytes_have_exchanged_their_rows(encode, index, photos: Path) -> None:
    encode()
    before = rows(index())
    paths = sorted(photos.glob("*.png"))
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[-1:] + contents[:-1]):
        path.write_bytes(content)
        touch(path)
    assert counts(encode(batch_size=3)) == {"reused": 20}
    after = rows(index())
    assert [after[str(path)]["embedding"] for path in paths] == [
        before[str(path)]["embedding"] for path in paths[-1:] + paths[:-1]
    ]


def test_bytes_whose_row_was_replaced_meanwhile_are_embedded_after_all(
    encode, index, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode()
    monkeypatch.setattr(commit, "COMMIT_ROWS", 1)  # the old row of 0 is gone before 19 asks for it
    (photos / "00000.png").write_bytes(image(500))
    (photos / "00019.png").write_bytes(image(0))
    assert counts(encode(batch_size=1)) == {"encoded": 2, "unchanged": 18}
    expected = FakeEncoder().encode_image([image(0)])[0]
    stored = rows(index())[str(photos / "00019.png")]
    np.testing.assert_allclose(np.frombuffer(stored["embedding"], np.float32), expected, rtol=1e-6)


def test_a_source_that_comes_twice_has_one_row(photos: Path, tmp_path: Path) -> None:
    files = list(find([str(photos)]))
    for batch_size in (1, 8, 64):
        encoder = FakeEncoder()
        collection = Collection.create(tmp_path / f"index {batch_size}", encoder)
        report = run([*files, *files, *files[:5]], encoder, collection, batch_size=batch_size)
        assert counts(report) == {"encoded": 20, "unchanged": 25}
        assert len(rows(collection)) == 20


def test_names_that_are_not_utf8_are_encoded(encode, index, photos: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    (photos / odd).write_bytes(image(99))
    assert counts(encode()) == {"encoded": 21}
    assert counts(encode()) == {"unchanged": 21}
    expected = FakeEncoder().encode_image([image(99)])[0]
    hit = index().search(expected, 1)[0]
    assert hit.path == str(photos / odd)
    assert hit.id.endswith("caf\\xe9.png")


# ------------------------------------------------------------------ what cannot be encoded


def test_broken_files_fail_alone_and_are_listed_with_stage_and_reason(encode, index, photos: Path) -> None:
    (photos / "broken.png").write_bytes(image(3)[:60])
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_text("not an image")
    (photos / "nowhere.jpg").symlink_to("nowhere")
    assert counts(encode()) == {"encoded": 20, "failed": 4}
    failures = {Path(one.id).name: one for one in index().failures()}
    assert {name: (one.stage, one.code) for name, one in failures.items()} == {
        "broken.png": ("read", "truncated"),
        "empty.jpg": ("read", "empty"),
        "text.jpg": ("read", "not-an-image"),
        "nowhere.jpg": ("read", "not-found"),
    }
    assert failures["text.jpg"].state == state_of(photos / "text.jpg")
    listed = (photos.parent / "index" / "failures.txt").read_text()
    assert all(one.id in listed and one.message in listed for one in failures.values())


def test_known_failures_are_not_tried_again_until_they_change_or_one_asks(encode, index, photos: Path) -> None:
    broken = photos / "broken.png"
    broken.write_bytes(image(3)[:60])
    reads: list[bytes] = []

    def read(content: bytes) -> np.ndarray:
        reads.append(content)
        return FakeEncoder().tower("image").read(content)

    assert counts(encode()) == {"encoded": 20, "failed": 1}
    assert counts(encode(FakeEncoder(read=read))) == {"unchanged": 20, "failed": 1}
    assert reads == []
    assert counts(encode(FakeEncoder(read=read), retry_failed=True)) == {"unchanged": 20, "failed": 1}
    assert len(reads) == 1
    touch(broken)
    assert counts(encode(FakeEncoder(read=read))) == {"unchanged": 20, "failed": 1}
    assert len(reads) == 2
    broken.write_bytes(image(50))
    assert counts(encode()) == {"encoded": 1, "unchanged": 20}
    assert index().failures() == []
    assert not (photos.parent / "index" / "failures.txt").exists()
    assert counts(encode()) == {"unchanged": 21}


def test_a_file_that_breaks_loses_its_row(encode, index, photos: Path) -> None:
    encode()
    broken = photos / "00004.png"
    broken.write_bytes(b"gone bad")
    assert counts(encode()) == {"unchanged": 19, "failed": 1}
    assert str(broken) not in rows(index())
    assert [one.id for one in index().failures()] == [str(broken)]
    assert counts(encode()) == {"unchanged": 19, "failed": 1}


def test_a_missing_path_in_a_list_fails_and_the_others_are_encoded(photos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{photos}/00001.png\n{photos}/missing.png\n{photos}/00002.png\n")
    encoder = FakeEncoder()
    collection = Collection.create(tmp_path / "index", encoder)
    for _ in range(2):
        report = run(find([str(listed)]), encoder, collection)
        assert (report.total, report.failed) == (3, 1)
    assert [one.code for one in collection.failures()] == ["not-found"]
    draw(photos, [7])
    (photos / "missing.png").write_bytes(image(7))
    assert run(find([str(listed)]), encoder, collection).failed == 0
    assert collection.failures() == []


@pytest.mark.parametrize("batch_size", [1, 8, 20])
def test_an_image_that_the_net_fails_on_fails_alone(encode, index, batch_size: int) -> None:
    encoder = FakeEncoder(before=failing_for(3, 11, error=ZeroDivisionError("no\nway")))
    assert counts(encode(encoder, batch_size=batch_size)) == {"encoded": 18, "failed": 2}
    assert [(Path(one.id).name, one.stage, one.code, one.message) for one in index().failures()] == [
        (f"{number:05d}.png", "embed", "unexpected", "ZeroDivisionError: no") for number in (3, 11)
    ]
    assert counts(encode()) == {"unchanged": 18, "failed": 2}
    assert counts(encode(retry_failed=True)) == {"encoded": 2, "unchanged": 18}


def test_rows_that_are_not_finite_fail_and_are_not_stored(encode, index) -> None:
    class Broken(FakeEncoder):
        def _embed(self, inputs: np.ndarray) -> np.ndarray:
            out = super()._embed(inputs)
            out[inputs.reshape(len(inputs), -1).sum(axis=1) % 3 == 0, 2] = np.nan
            return out

    report = encode(Broken())
    assert report.failed > 2
    assert {(one.stage, one.code) for one in index().failures()} == {("embed", "not-finite")}
    stored = rows(index())
    assert len(stored) == report.encoded == 20 - report.failed
    assert all(np.isfinite(np.frombuffer(one["embedding"], np.float32)).all() for one in stored.values())


def test_copies_of_an_image_that_the_net_fails_on_fail_too(encode, photos: Path) -> None:
    (photos / "copy.png").write_bytes(image(3))
    encoder = FakeEncoder(before=failing_for(3, error=ValueError("no")))
    assert counts(encode(encoder)) == {"encoded": 19, "failed": 2}


def test_rows_of_a_wrong_shape_are_failures_not_a_crash(encode, index) -> None:
    class Broken(FakeEncoder):
        def _embed(self, inputs: np.ndarray) -> np.ndarray:
            return super()._embed(inputs)[:, :3]

    assert counts(encode(Broken())) == {"failed": 20}
    assert {(one.stage, one.code) for one in index().failures()} == {("embed", "shape")}


def test_a_device_without_memory_for_a_batch_gets_smaller_ones_from_then_on(encode) -> None:
    tried: list[int] = []

    def before(inputs: np.ndarray) -> None:
        tried.append(len(inputs))
        if len(inputs) > 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    assert counts(encode(FakeEncoder(before=before), batch_size=10)) == {"encoded": 20}
    assert [size for size in tried if size > 3] == [10, 5]


@pytest.mark.parametrize("stage", ["read", "prepare"])
def test_whatever_a_decoder_raises_fails_one_file(encode, index, photos: Path, stage: str) -> None:
    class Broken(FakeEncoder):
        def _prepare(self, pixels: np.ndarray) -> np.ndarray:
            if stage == "prepare" and pixels.shape[0] == 10:
                raise KeyError("surprise")
            return super()._prepare(pixels)

    def read(content: bytes) -> np.ndarray:
        pixels = FakeEncoder().tower("image").read(content)
        if stage == "read" and pixels.shape[0] == 10:
            raise KeyError("surprise")
        return pixels

    assert counts(encode(Broken(read=read))) == {"encoded": 16, "failed": 4}
    assert {(one.stage, one.code, one.message) for one in index().failures()} == {
        (stage, "unexpected", "KeyError: 'surprise'")
    }


def test_inputs_of_another_shape_than_the_tower_takes_fail_in_prepare(encode, index) -> None:
    class Broken(FakeEncoder):
        def _prepare(self, pixels: np.ndarray) -> np.ndarray:
            one = super()._prepare(pixels)
            return one[:, :2] if pixels.shape[0] == 10 else one

    assert counts(encode(Broken())) == {"encoded": 16, "failed": 4}
    assert {(one.stage, one.code) for one in index().failures()} == {("prepare", "shape")}


def test_failed_files_are_never_found_nor_exported(encode, index, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes(b"x")
    encode()
    assert not any("broken" in hit.id for hit in index().search(np.ones(DIM), 100))
    assert index().export(tmp_path / "rows.npy") == 20


def test_files_dated_beyond_what_the_database_can_store_are_encoded_once(encode, photos: Path) -> None:
    for name, seconds in (("00001.png", 10**10), ("00002.png", -(2**31)), ("00003.png", 2**34 - 2**31 - 1)):
        os.utime(photos / name, ns=(0, seconds * 10**9))  # the years 2286, 1901 and 2446
    assert counts(encode()) == {"encoded": 20}
    assert counts(encode()) == {"unchanged": 20}


def test_a_folder_that_can_be_searched_again_leaves_the_list_of_failures(
    encode, index, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(photos / "closed", range(20, 23))
    scandir = os.scandir

    def denied(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    for _ in range(2):
        assert counts(encode(retry_failed=True)).get("failed") == 1
        assert [one.id for one in index().failures()] == [str(photos / "closed")]
    monkeypatch.undo()
    assert counts(encode()) == {"encoded": 3, "unchanged": 20}
    assert index().failures() == []


# ------------------------------------------------------------------ pruning


def test_a_row_whose_path_became_a_folder_is_pruned(encode, index, photos: Path) -> None:
    encode()
    (photos / "00003.png").unlink()
    draw(photos / "00003.png", [500])
    assert counts(encode(prune=True)) == {"encoded": 1, "unchanged": 19, "pruned": 1}
    assert str(photos / "00003.png") not in rows(index())


def test_rows_of_files_that_are_gone_stay_until_pruned(encode, index, photos: Path) -> None:
    (photos / "broken.png").write_bytes(b"x")
    encode()
    (photos / "00001.png").unlink()
    (photos / "00002.png").rename(photos / "renamed.png")
    (photos / "broken.png").unlink()
    assert counts(encode()) == {"reused": 1, "unchanged": 18}
    assert index().count() == 21
    assert len(index().failures()) == 1
    encoder = FakeEncoder()
    assert counts(encode(encoder, prune=True)) == {"unchanged": 19, "pruned": 2}
    assert set(rows(index())) == set(map(str, photos.glob("*.png")))
    assert index().failures() == []
    assert encoder.embedded == 0


def test_pruning_keeps_what_cannot_be_looked_at(encode, index, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode()
    stat = os.stat

    def denied(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("00001.png"):
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    files = list(find([str(photos / "00005.png")]))
    monkeypatch.setattr(run_module.os, "stat", denied)
    assert run(files, FakeEncoder(), index(), prune=True).pruned == 0


# ------------------------------------------------------------------ order, memory, progress


@dataclass(frozen=True)
class Drawn:
    """An item that is no file: a grey image of 4 x 4 pixels."""

    number: int
    state: str = "1"
    metadata: dict[str, Any] | None = None
    error: InputError | None = None

    @property
    def id(self) -> str:
        return f"drawn:{self.number}"

    @property
    def locator(self) -> Locator:
        return Locator("/archive.tar", f"{self.number}.png", self.number / 4)

    def read(self, limits: ImageLimits) -> bytes:
        return self.id.encode()


def grey(content: bytes) -> np.ndarray:
    return np.full((4, 4, 3), int(content.rpartition(b":")[2]) % 256, np.uint8)


def test_what_is_held_does_not_grow_with_the_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = 0
    monkeypatch.setattr(commit, "COMMIT_ROWS", 500)

    def counted() -> Iterator[Drawn]:
        nonlocal begun
        for number in range(10_000):
            begun += 1
            ahead = 3 * 16 + 4 + 1
            assert begun - encoder.embedded <= ahead
            if number % 100 == 0:
                assert begun - collection.count() <= 2 * (500 + 16) + ahead
            yield Drawn(number)

    encoder = FakeEncoder(read=grey)
    collection = Collection.create(tmp_path / "index", encoder)
    assert run(counted(), encoder, collection, batch_size=16, workers=4).encoded == 10_000
    assert encoder.most_alive <= 3 * 16 + 4
    assert collection.count() == 10_000


def test_items_need_not_be_files(tmp_path: Path) -> None:
    """What a source says about them comes into the collection; a state says whether they must be read again."""
    encoder = FakeEncoder(read=grey)
    collection = Collection.create(tmp_path / "index", encoder)
    items = [Drawn(number, metadata={"caption": f"grey \ud800 {number}"}) for number in range(5)]
    assert counts(run(items, encoder, collection)) == {"encoded": 5}
    assert counts(run(items, encoder, collection)) == {"unchanged": 5}
    table = collection.to_arrow().to_pylist()
    assert [(one["path"], one["member"], one["time_s"]) for one in table] == [
        ("/archive.tar", f"{number}.png", number / 4) for number in range(5)
    ]
    captions = [json.loads(one["metadata"])["caption"] for one in table]
    assert captions == [f"grey \\ud800 {number}" for number in range(5)]  # what is no Unicode is spelled out
    changed = [dataclasses.replace(items[0], state="2"), dataclasses.replace(items[1], state=""), *items[2:]]
    assert counts(run(changed, FakeEncoder(read=grey), collection)) == {"unchanged": 5}
    assert {one["state"] for one in rows(collection).values()} == {"1", "2", ""}
    again = dataclasses.replace(items[1], state="")
    assert again.read(ImageLimits()) == b"drawn:1"
    assert counts(run([again], FakeEncoder(read=grey), collection)) == {"unchanged": 1}


def test_the_date_an_image_was_taken_is_stored_where_the_camera_says_it(encode, index, photos: Path) -> None:
    image, exif = Image.new("RGB", (12, 9), "red"), Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2021:07:04 18:30:05"
    image.save(photos / "dated.jpg", exif=exif)
    (photos / "copy.jpg").write_bytes((photos / "dated.jpg").read_bytes())
    encode()
    (photos / "later.jpg").write_bytes((photos / "dated.jpg").read_bytes())
    encode()
    taken = {Path(id).name: row["taken"] for id, row in rows(index()).items()}
    for name in ("dated.jpg", "copy.jpg", "later.jpg"):
        assert taken[name] == datetime(2021, 7, 4, 18, 30, 5)
    assert taken["00001.png"] is None


def test_progress_counts_up_to_the_total(encode, photos: Path) -> None:
    calls: list[tuple[int, int]] = []
    encode(progress=lambda now: calls.append((now.done, now.read)), batch_size=4)
    assert calls == sorted(calls)
    assert calls[-1] == (20, 20)
    calls.clear()
    draw(photos, [20])
    encode(progress=lambda now: calls.append((now.done, now.read)))
    assert calls[-1] == (21, 1)


def test_progress_reports_failures_by_code_and_what_was_waited_for(encode, photos: Path) -> None:
    (photos / "broken.png").write_bytes(b"x")
    last: list[Standing] = []
    encode(progress=lambda now: last.append(now))
    assert dict(last[-1].failures) == {"not-an-image": 1}
    assert set(last[-1].waited) == {"reading", "embedding", "committing"}
    assert all(seconds >= 0 for seconds in last[-1].waited.values())


def test_a_collection_remembers_its_runs(encode, index, photos: Path) -> None:
    encode()
    (photos / "broken.png").write_bytes(b"x")
    encode()
    first, second = index().runs()
    assert first.sources == second.sources == [str(photos)]
    assert (first.encoded, first.failed, second.unchanged, second.failed) == (20, 0, 20, 1)
    assert first.began <= first.ended <= second.began <= second.ended
    assert index().info()["sources"] == [str(photos)]


def test_paths_are_enough_for_a_run(photos: Path, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    assert counts(run(photos, encoder, tmp_path / "index")) == {"encoded": 20}
    both = [photos / "00001.png", str(photos / "00002.png")]
    assert counts(run(both, encoder, str(tmp_path / "index"))) == {"unchanged": 2}


def test_an_empty_folder_is_a_run_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    encoder = FakeEncoder()
    collection = Collection.create(tmp_path / "index", encoder)
    assert counts(run(find([str(tmp_path / "empty")]), encoder, collection)) == {}
    assert collection.count() == 0


# ------------------------------------------------------------------ interrupts and refusals


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as Python has it, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stores_what_has_been_embedded(encode, index) -> None:
    def before(inputs: np.ndarray) -> None:
        if len(encoder.batches) == 2:
            signal.raise_signal(signal.SIGINT)

    encoder = FakeEncoder(before=before)
    with pytest.raises(KeyboardInterrupt):
        encode(encoder, batch_size=4)
    assert len(rows(index())) == encoder.embedded == 8
    assert [one.encoded for one in index().runs()] == [8]
    assert counts(encode()) == {"encoded": 12, "unchanged": 8}


def test_a_second_ctrl_c_does_not_wait_until_all_is_stored(
    encode, index, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, go_on = Collection.append, threading.Event()

    def before(inputs: np.ndarray) -> None:
        if len(encoder.batches) == 2:
            signal.raise_signal(signal.SIGINT)

    def slow(self: Collection, rows: list, **options: Any) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        assert go_on.wait(120)
        append(self, rows, **options)

    monkeypatch.setattr(Collection, "append", slow)
    encoder = FakeEncoder(before=before)
    with pytest.raises(KeyboardInterrupt):
        encode(encoder, batch_size=4)
    with pytest.raises(CollectionError, match="another process"):
        encode(FakeEncoder())  # it is still being written
    go_on.set()
    while any(thread.name == "commit" for thread in threading.enumerate()):
        time.sleep(0.01)
    monkeypatch.undo()
    assert len(rows(index())) == 8
    assert counts(encode()) == {"encoded": 12, "unchanged": 8}


def test_ctrl_c_while_waiting_for_a_source_ends_the_run(photos: Path, tmp_path: Path) -> None:
    def endless() -> Iterator[SourceFile]:
        yield from find([str(photos)])
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("still running")

    encoder = FakeEncoder()
    collection = Collection.create(tmp_path / "index", encoder)
    with pytest.raises(KeyboardInterrupt):
        run(endless(), encoder, collection, batch_size=2, workers=1)
    assert collection.count() == encoder.embedded > 0


def test_a_run_off_the_main_thread_works(encode) -> None:
    reports: list[Report] = []
    thread = threading.Thread(target=lambda: reports.append(encode()))
    thread.start()
    thread.join()
    assert counts(reports[0]) == {"encoded": 20}


def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(encode, index, monkeypatch: pytest.MonkeyPatch) -> None:
    append = Collection.append

    def full(self: Collection, rows: list, **options: Any) -> None:
        if self.count() >= 8:
            raise CollectionError("the disk is full")
        append(self, rows, **options)

    monkeypatch.setattr(commit, "COMMIT_ROWS", 4)
    monkeypatch.setattr(Collection, "append", full)
    with pytest.raises(CollectionError, match="disk is full"):
        encode(batch_size=4)
    monkeypatch.undo()
    assert len(rows(index())) == 8
    assert counts(encode()) == {"encoded": 12, "unchanged": 8}


def test_another_encoder_and_a_collection_in_use_are_refused_before_anything_is_read(encode, index) -> None:
    encode()
    read: list[Drawn] = []
    watched = (read.append(one) or one for one in map(Drawn, range(3)))
    with pytest.raises(CollectionError, match=r"f{32}.*b{32}"):
        run(watched, FakeEncoder(fingerprint="b" * 32), index())
    with index().writing(), pytest.raises(CollectionError, match="another process"):
        run(watched, FakeEncoder(), index())
    with pytest.raises(InputError, match="batch_size"):
        run(watched, FakeEncoder(), index(), batch_size=0)
    assert read == []


def test_inputs_of_one_shape_wait_for_each_other(tmp_path: Path) -> None:
    """Small and large images by turns: each shape goes through the net in whole batches, not in halves."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(24):
        side = 12 if number % 2 else 30
        Image.fromarray(np.full((side, side, 3), number * 10, np.uint8)).save(folder / f"{number:02}.png")
    batches: list[tuple[int, ...]] = []

    def embed(inputs: np.ndarray) -> np.ndarray:
        batches.append(inputs.shape)
        return np.stack([inputs.mean(axis=(1, 2, 3)), inputs.max(axis=(1, 2, 3))], axis=1).astype(np.float32)

    tower = Tower(InputSpec("image", read_image, channels_first), embed)
    encoder = Encoder("any/size", 2, {"image": tower}, "e" * 32, recipe={"name": "any/size", "options": {}})
    collection = Collection.create(tmp_path / "index", encoder)
    batches.clear()
    report = run(find([str(folder)]), encoder, collection, batch_size=6)
    assert counts(report) == {"encoded": 24}
    assert [shape[0] for shape in batches] == [6, 6, 6, 6]
    stored = rows(Collection.open(tmp_path / "index"))
    for number in range(24):
        row = np.frombuffer(stored[str(folder / f"{number:02}.png")]["embedding"], np.float32)
        assert row.tolist() == [number * 10, number * 10]


def test_a_rare_shape_does_not_wait_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):  # every image has a shape of its own
        Image.fromarray(np.full((8 + number, 8, 3), number, np.uint8)).save(folder / f"{number:02}.png")
    waiting: list[int] = []

    def embed(inputs: np.ndarray) -> np.ndarray:
        waiting.append(len(inputs))
        return inputs.reshape(len(inputs), -1)[:, :2].astype(np.float32)

    tower = Tower(InputSpec("image", read_image, channels_first), embed)
    encoder = Encoder("any/size", 2, {"image": tower}, "e" * 32, recipe={"name": "any/size", "options": {}})
    collection = Collection.create(tmp_path / "index", encoder)
    waiting.clear()
    report = run(find([str(folder)]), encoder, collection, batch_size=2)
    assert counts(report) == {"encoded": 40}
    assert waiting == [1] * 40


def drawn_encoder(**options: Any) -> FakeEncoder:
    return FakeEncoder(read=grey, **options)


@dataclass(frozen=True)
class Stored(Drawn):
    """An item in a store that is no file system."""

    @property
    def locator(self) -> Locator:
        return Locator(f"s3://bucket/{self.number}")

    def read(self, limits: ImageLimits) -> bytes:
        if self.error is not None:
            raise self.error
        return super().read(limits)


def test_what_no_file_system_holds_is_never_pruned(tmp_path: Path) -> None:
    items = [Stored(0), Stored(1), Stored(2, error=InputError("not available", code="unreadable"))]
    for _ in range(2):
        report = run(items, drawn_encoder(), tmp_path / "index", prune=True)
        assert (report.failed, report.pruned) == (1, 0)
    assert Collection.open(tmp_path / "index").count() == 2
    assert len(Collection.open(tmp_path / "index").failures()) == 1


@dataclass(frozen=True)
class Unsteady(Drawn):
    """An item whose state is not known, and which cannot be read as long as `broken` is not empty."""

    state: str = ""
    broken: tuple[InputError, ...] = ()

    def read(self, limits: ImageLimits) -> bytes:
        for error in self.broken:
            raise error
        return super().read(limits)


def test_an_item_of_unknown_state_that_failed_is_read_again(tmp_path: Path) -> None:
    failed = Unsteady(0, broken=(InputError("answers 503", code="unreadable"),))
    assert run([failed], drawn_encoder(), tmp_path / "index").failed == 1
    assert run([Unsteady(0)], drawn_encoder(), tmp_path / "index").encoded == 1


def test_metadata_that_cannot_be_stored_fails_its_item_alone(tmp_path: Path) -> None:
    items = [Drawn(0), Drawn(1, metadata={"score": float("nan")}), Drawn(2, metadata={(1, 2): 3})]
    report = run(items, drawn_encoder(), tmp_path / "index")
    assert (report.encoded, report.failed) == (1, 2)
    assert {failure.code for failure in Collection.open(tmp_path / "index").failures()} == {"metadata"}


@dataclass(frozen=True)
class Member(Drawn):
    """A member of an archive whose name is no Unicode."""

    @property
    def locator(self) -> Locator:
        return Locator("/archive.tar", "caf\udce9.png")


def test_a_member_may_have_any_name(tmp_path: Path) -> None:
    assert run([Member(0)], drawn_encoder(), tmp_path / "index").encoded == 1


def test_paths_from_a_generator_are_refused_with_what_to_do(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"00000.png: a path among source items.*run\(list\(paths\)"):
        run(iter(sorted(photos.iterdir())), FakeEncoder(), tmp_path / "index")


def test_two_runs_of_threads_into_one_collection_are_one_too_many(tmp_path: Path) -> None:
    encoding, go = threading.Event(), threading.Event()

    def wait(inputs: np.ndarray) -> None:
        encoding.set()
        assert go.wait(120)

    collection = Collection.create(tmp_path / "index", FakeEncoder())
    thread = threading.Thread(target=run, args=([Drawn(0)], drawn_encoder(before=wait), collection))
    thread.start()
    try:
        assert encoding.wait(120)
        with pytest.raises(CollectionError, match="being written by another run of this process"):
            run([Drawn(1)], drawn_encoder(), collection)
    finally:
        go.set()
        thread.join()
    assert collection.count() == 1
