"""Parts of a run: written down, done by anybody, stored once, whatever is killed when; and one committer at a time."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import tarfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import lancedb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn import draw, image, rows
from test_videos import film

from fake_encoder import FakeEncoder
from image_encoders import lease
from image_encoders.bulk import parts as parts_module
from image_encoders.bulk.batch_size import BatchSizeTuner
from image_encoders.bulk.parts import Parts, Worker, cut
from image_encoders.bulk.plan import Plan
from image_encoders.bulk.run import Report, run
from image_encoders.bulk.sources import find, recorded
from image_encoders.bulk.sources.archives import Archive
from image_encoders.collection import Collection
from image_encoders.encoder import Encoder
from image_encoders.errors import CollectionError
from image_encoders.inputs.image import ImageLimits
from image_encoders.lease import Lease

SCRIPT = Path(__file__).with_name("encode_parts.py")
SERIES = int(os.environ.get("KILL_SERIES", "0"))  # of ten random kills each, in `make soak`; else one short one
MOMENTS = ["recorded", "encoded", "listed", "written", "removed"]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "LEAST", 16)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 images in parts of 16, a copy and a broken file among them."""
    draw(tmp_path / "photos", range(38))
    (tmp_path / "photos" / "00003 copy.png").write_bytes(image(3))
    (tmp_path / "photos" / "00020 broken.png").write_bytes(image(1)[:50])
    return tmp_path / "photos"


def one_worker(parts: Parts, encoder: Encoder) -> Worker:
    return Worker(parts, encoder, BatchSizeTuner(8), 2)


def encode(photos: Path | str, collection: Collection, **options: Any) -> Report:
    return run(find([str(photos)]), FakeEncoder(), collection, batch_size=8, **{"pool": one_worker, **options})


def begun(tmp_path: Path) -> Collection:
    return Collection.create(tmp_path / "index", FakeEncoder())


def ledger(collection: Collection) -> list[tuple[str, str, str, str]]:
    return [(one.id, one.stage, one.code, one.message) for one in collection.failures()]


class Stopped(Exception):
    """What a pool raises that does no more."""


def stops_after(count: int) -> Callable[[Parts, Encoder], Any]:
    """A pool whose worker dies once it has done so many parts, before it says so of the last."""

    class Pool:
        def __init__(self, parts: Parts, encoder: Encoder):
            self.worker = one_worker(parts, encoder)

        def finished(self, parts: Iterable[str | None]) -> Generator[str | None, None, None]:
            names = [part for part in parts if part is not None]  # all is listed first
            for part in names[:count]:
                self.worker.encode(part)
            raise Stopped
            yield

    return Pool


def test_a_run_in_parts_stores_what_a_run_without_them_does(photos: Path, tmp_path: Path) -> None:
    local = Collection.create(tmp_path / "local", FakeEncoder())
    expected = run(find([str(photos)]), FakeEncoder(), local, batch_size=8)
    collection = begun(tmp_path)
    report = encode(photos, collection)
    assert rows(collection) == rows(local)
    assert ledger(collection) == ledger(local)
    assert (report.encoded, report.reused, report.failed, report.total) == (38, 1, 1, 40)
    assert (report.encoded, report.reused, report.failed) == (expected.encoded, expected.reused, expected.failed)
    assert list((tmp_path / "index" / "parts").iterdir()) == []


def test_embeddings_and_failures_carry_their_part(photos: Path, tmp_path: Path) -> None:
    collection = begun(tmp_path)
    encode(photos, collection)
    columns = collection.to_arrow()
    parts = dict(zip(columns["id"].to_pylist(), columns["part"].to_pylist()))
    assert len(set(parts.values())) == 3
    assert None not in parts.values()
    (failure,) = collection.failures()
    assert failure.part == parts[failure.id.replace("00020 broken", "00020")]


def test_parts_are_called_after_what_is_in_them(photos: Path, tmp_path: Path) -> None:
    collection = begun(tmp_path)
    first = Parts(tmp_path / "a", collection).record(list(find([str(photos)])))
    assert Parts(tmp_path / "b", collection).record(list(find([str(photos)]))) == first
    os.utime(photos / "00001.png", (1, 1))
    assert Parts(tmp_path / "b", collection).record(list(find([str(photos)]))) != first


def test_files_of_others_stay_where_parts_are_kept(photos: Path, tmp_path: Path) -> None:
    collection = begun(tmp_path)
    shared = tmp_path / "shared"
    folder = parts_module.folder_of(collection, shared)
    folder.mkdir(parents=True)
    others = [where / name for where in (shared, folder) for name in ("film.part", "exam.result", "shop.items")]
    for other in others:
        other.write_text("somebody's")
    left = folder / f".{'a' * 32}.items.host.1.2.part"
    left.write_text("what a killed process was writing")
    encode(photos, collection, parts=shared)
    assert sorted(path for path in shared.rglob("*") if path.is_file()) == sorted(others)
    assert (
        parts_module.folder_of(Collection.create(tmp_path / "another", FakeEncoder(fingerprint="e" * 32)), shared)
        != folder
    )


def test_parts_grow_with_the_run_and_hold_everything_once() -> None:
    sizes = [len(part) for part in cut(range(40_000))]  # type: ignore[arg-type]
    assert sum(sizes) == 40_000
    assert sizes[0] == 16
    assert max(sizes) > 100
    assert [one for part in cut(range(999)) for one in part] == list(range(999))  # type: ignore[arg-type, comparison-overlap]


def test_an_item_is_read_again_as_its_part_says(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    draw(photos, range(3))
    name = os.fsdecode(b"caf\xe9.png")  # not UTF-8
    (photos / name).write_bytes(image(9))
    parts = Parts(tmp_path / "parts", begun(tmp_path))
    items = list(find([str(photos)]))
    found = parts.items(parts.record(items))
    assert [(one.id, one.locator, one.state) for one in found] == [(one.id, one.locator, one.state) for one in items]
    limits = ImageLimits.from_environment()
    assert [one.read(limits) for one in found] == [one.read(limits) for one in items]


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_rerun_takes_the_results_that_are_there_and_does_the_recorded_parts_first(
    photos: Path, tmp_path: Path, done: int
) -> None:
    collection = begun(tmp_path)
    with pytest.raises(Stopped):
        encode(photos, collection, pool=stops_after(done))
    assert collection.count() == 0
    assert len(list((tmp_path / "index" / "parts").glob("*.items"))) == 3
    draw(photos, [100, 101])
    encoder = FakeEncoder()
    report = run(find([str(photos)]), encoder, collection, pool=one_worker)
    assert encoder.embedded == 40 - (0, 15, 38)[min(done, 2)]
    assert (report.encoded, report.reused, report.failed, report.total) == (40, 1, 1, 42)
    assert len(rows(collection)) == 41
    assert list((tmp_path / "index" / "parts").iterdir()) == []


def test_a_file_that_changed_since_its_part_was_done_is_encoded_as_it_is_now(tmp_path: Path) -> None:
    paths = draw(tmp_path / "photos", range(20))
    shard = tmp_path / "photos.tar"
    with tarfile.open(shard, "w") as tar:
        tar.add(paths[0], "0.png")
    collection = begun(tmp_path)
    sources = [str(tmp_path / "photos"), str(shard)]
    with pytest.raises(Stopped):
        run(find(sources), FakeEncoder(), collection, pool=stops_after(2))
    paths[3].write_bytes(image(103))
    paths[5].write_bytes(b"broken")
    paths[7].unlink()
    with tarfile.open(shard, "w") as tar:
        tar.add(paths[4], "0.png")
    report = run(find(sources), FakeEncoder(), collection, pool=one_worker)
    assert (report.total, report.failed) == (21, 1)
    assert rows(collection)[str(paths[3])]["sha256"] == hashlib.sha256(image(103)).hexdigest()
    assert rows(collection)[f"{shard}#0.png"]["sha256"] == hashlib.sha256(image(4)).hexdigest()
    assert [one.id for one in collection.failures()] == [str(paths[5])]
    assert str(paths[7]) in rows(collection)  # as of every file that is gone
    assert list((tmp_path / "index" / "parts").iterdir()) == []
    again = run(find(sources), FakeEncoder(), collection)
    assert (again.unchanged, again.failed, again.total) == (19, 1, 20)


def test_a_part_all_of_whose_files_have_changed_is_forgotten(tmp_path: Path) -> None:
    paths = draw(tmp_path / "photos", range(3))
    collection = begun(tmp_path)
    with pytest.raises(Stopped):
        encode(tmp_path / "photos", collection, pool=stops_after(1))
    for number, path in enumerate(paths):
        path.write_bytes(image(50 + number))
    assert encode(tmp_path / "photos", collection).encoded == 3
    assert {row["sha256"] for row in rows(collection).values()} == {
        hashlib.sha256(image(50 + number)).hexdigest() for number in range(3)
    }
    assert list((tmp_path / "index" / "parts").iterdir()) == []


def test_a_run_without_workers_finishes_the_parts_of_one_that_had_some(photos: Path, tmp_path: Path) -> None:
    collection = begun(tmp_path)
    with pytest.raises(Stopped):
        encode(photos, collection, pool=stops_after(1))
    report = encode(photos, collection, pool=None)
    assert (report.encoded, report.reused, report.failed, report.total) == (38, 1, 1, 40)
    assert list((tmp_path / "index" / "parts").iterdir()) == []


def test_parts_of_other_sources_are_finished_too(photos: Path, tmp_path: Path) -> None:
    collection = begun(tmp_path)
    with pytest.raises(Stopped):
        encode(photos, collection, pool=stops_after(0))
    others = tmp_path / "others"
    draw(others, [200])
    report = encode(others, collection)
    assert (report.encoded, report.reused, report.failed, report.total) == (39, 1, 1, 41)


def test_a_part_that_is_stored_and_still_lies_there_is_not_stored_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = begun(tmp_path)
    monkeypatch.setattr(Parts, "remove", lambda self, part: None)  # as if killed between "written" and "removed"
    encode(photos, collection)
    monkeypatch.undo()
    before = rows(collection)
    encoder = FakeEncoder()
    report = run(find([str(photos)]), encoder, collection, pool=one_worker)
    assert (report.encoded, report.unchanged, report.failed, report.total) == (0, 39, 1, 40)
    assert encoder.embedded == 0
    assert rows(collection) == before
    assert list((tmp_path / "index" / "parts").iterdir()) == []


def test_a_result_that_came_after_its_part_was_stored_is_removed(photos: Path, tmp_path: Path) -> None:
    collection = begun(tmp_path)
    encode(photos, collection)
    late = tmp_path / "index" / "parts" / f"{'0' * 32}.result"
    late.write_bytes(b"of a worker that was taken for dead")
    encode(photos, collection)
    assert not late.exists()


def test_parts_lie_in_a_folder_of_their_own_where_one_is_named(photos: Path, tmp_path: Path) -> None:
    collection = begun(tmp_path)
    with pytest.raises(Stopped):
        encode(photos, collection, pool=stops_after(0), parts=tmp_path / "shared")
    folder = parts_module.folder_of(collection, tmp_path / "shared")
    assert len(list(folder.iterdir())) == 3
    other = Collection.create(tmp_path / "other", FakeEncoder())
    assert encode(photos, other, parts=tmp_path / "shared").encoded == 38
    shutil.copytree(folder, tmp_path / "other" / "parts")
    with pytest.raises(CollectionError, match="parts of a run into another collection"):
        encode(photos, other)
    assert encode(photos, collection, parts=tmp_path / "shared").encoded == 38


def test_progress_is_reported_in_the_runs_own_thread(photos: Path, tmp_path: Path) -> None:
    threads = set()
    done: list[int] = []

    def progress(standing: Any) -> None:
        threads.add(threading.current_thread())
        done.append(standing.done)

    encode(photos, begun(tmp_path), progress=progress)
    assert threads == {threading.current_thread()}
    assert done == sorted(done)
    assert done[-1] == 40


def test_a_damaged_result_is_named(photos: Path, tmp_path: Path) -> None:
    collection = begun(tmp_path)
    with pytest.raises(Stopped):
        encode(photos, collection, pool=stops_after(1))
    (result,) = (tmp_path / "index" / "parts").glob("*.result")
    result.write_bytes(b"ARROW1 and no more")
    with pytest.raises(CollectionError, match="is damaged; delete it"):
        encode(photos, collection)
    result.unlink()
    assert encode(photos, collection).encoded == 38


def test_members_of_archives_cells_and_metadata_come_through_parts(tmp_path: Path) -> None:
    shard = tmp_path / "shard.tar.gz"  # its members come by in order alone
    with tarfile.open(shard, "w:gz") as tar:
        for number in range(40):
            for name, content in ((f"{number:03d}.png", image(number)), (f"{number:03d}.txt", b"a caption")):
                file = tmp_path / name
                file.write_bytes(content)
                tar.add(file, name)
                file.unlink()
    images = [image(number) for number in range(90, 99)]
    table = pa.table({"image": [image(number) for number in range(50, 80)], "label": list(range(30))})
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=7)
    lancedb.connect(tmp_path).create_table("more", table.slice(0, 9).set_column(0, "image", [images[:9]]))
    sources = [str(shard), str(tmp_path / "table.parquet"), str(tmp_path / "more.lance")]
    local, collection = Collection.create(tmp_path / "local", FakeEncoder()), begun(tmp_path)
    run(find(sources), FakeEncoder(), local, batch_size=8)
    report = run(find(sources), FakeEncoder(), collection, batch_size=8, pool=one_worker)
    assert (report.encoded, report.failed) == (79, 0)
    assert rows(collection) == rows(local)
    assert sorted(filter(None, collection.to_arrow()["metadata"].to_pylist())) == sorted(
        filter(None, local.to_arrow()["metadata"].to_pylist())
    )


def test_cells_that_hold_no_bytes_come_through_parts_as_they_do_without(tmp_path: Path) -> None:
    """As data sets on the Hugging Face hub have them: bytes, or a path, or neither."""
    paths = draw(tmp_path / "photos", range(3))
    cells = [{"bytes": image(10), "path": "10.png"}, None, {"bytes": None, "path": str(paths[0])}]
    cells += [{"bytes": None, "path": None}, {"bytes": b"no image", "path": "x"}, {"bytes": image(11), "path": None}]
    mixed = pa.table(
        {"image": pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.utf8())])), "n": range(6)}
    )
    pq.write_table(mixed, tmp_path / "mixed.parquet", row_group_size=3)
    pq.write_table(pa.table({"image": [image(20), None, image(21)]}), tmp_path / "plain.parquet", row_group_size=1)
    lancedb.connect(tmp_path).create_table("mixed", mixed)
    lancedb.connect(tmp_path).create_table("plain", pa.table({"image": [image(30), None, image(31)]}))
    (tmp_path / "data.csv").write_text("image\ndata:image/png;base64,AAAA\ndata:,%\n")
    sources = [
        str(tmp_path / name) for name in ("mixed.parquet", "plain.parquet", "mixed.lance", "plain.lance", "data.csv")
    ]
    local = Collection.create(tmp_path / "local", FakeEncoder())
    expected = run(find(sources), FakeEncoder(), local, batch_size=8)
    collection = begun(tmp_path)
    report = run(find(sources), FakeEncoder(), collection, batch_size=8, pool=one_worker)
    assert set(rows(collection)) == set(rows(local))
    assert ledger(collection) == ledger(local)
    assert (report.total, report.failed) == (expected.total, expected.failed)
    assert str(paths[0]) in rows(collection)


def test_an_archive_is_passed_over_once_however_many_of_its_members_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_ENCODERS_MAX_BYTES", "1000")
    with tarfile.open(tmp_path / "shard.tar.gz", "w:gz") as tar:
        for number in range(10):
            (tmp_path / "member").write_bytes(image(number) if number % 2 else bytes(2000))
            tar.add(tmp_path / "member", f"{number}.png")
    collection = begun(tmp_path)
    parts = Parts(tmp_path / "parts", collection)
    part = parts.record(list(find([str(tmp_path / "shard.tar.gz")])))
    walks: list[Any] = []

    class Counted(Archive):
        def entries(self) -> Iterator[Any]:
            walks.append(self)
            return super().entries()

    monkeypatch.setattr(recorded, "Archive", Counted)
    one_worker(parts, FakeEncoder()).encode(part)
    codes = [getattr(one, "code", None) for one in parts.outcomes(part)]
    assert (codes, len(walks)) == (["too-many-bytes", None] * 5, 1)


def test_urls_objects_and_frames_come_through_parts(photos: Path, tmp_path: Path) -> None:
    import fsspec

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    store = fsspec.filesystem("memory")
    for number in range(5):
        store.pipe(f"/parts/{number}.png", image(300 + number))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(photos)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = [f"http://127.0.0.1:{server.server_port}/{name}" for name in ("00001.png", "00002.png", "missing.png")]
    names = tmp_path / "names.txt"
    names.write_text("\n".join([*urls, "memory://parts/0.png", str(film(tmp_path / "film.mp4", 12))]))
    sources = [str(names), "memory://parts"]
    local, collection = Collection.create(tmp_path / "local", FakeEncoder()), begun(tmp_path)
    encoder = FakeEncoder()
    try:
        run(find(sources, private_urls=True, frames="4"), encoder, local, batch_size=8)
        report = run(find(sources, private_urls=True, frames="4"), encoder, collection, pool=one_worker)
        again = run(find(sources, private_urls=True, frames="4"), encoder, collection, pool=one_worker)
    finally:
        server.shutdown()
        server.server_close()
        store.rm("/parts", recursive=True)
    assert (report.encoded, report.failed, report.total) == (10, 1, 11)
    assert (again.encoded, again.reused, again.unchanged) == (0, 0, 10)
    assert rows(collection) == rows(local)
    assert ledger(collection) == ledger(local)


def test_an_archive_that_lost_a_member_meanwhile_says_which(tmp_path: Path) -> None:
    import zipfile

    for count in (3, 2):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
            for number in range(count):
                zipped.writestr(f"{number}.png", image(number))
        if count == 3:
            collection = begun(tmp_path)
            with pytest.raises(Stopped):
                encode(tmp_path / "a.zip", collection, pool=stops_after(0))
    encode(tmp_path / "a.zip", collection)
    (failure,) = collection.failures()
    assert (failure.id, failure.code) == (f"{tmp_path}/a.zip#2.png", "not-found")


def test_a_plan_counts_what_an_earlier_run_has_left_once(photos: Path, tmp_path: Path) -> None:
    plan = Plan(begun(tmp_path))
    items = list(find([str(photos)]))
    plan.carry_on(items[:10])
    assert [one.id for one in plan.changed(items)] == [one.id for one in items[10:]]
    assert plan.total == 40


# ------------------------------------------------------------------ the lease


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """elsewhere("b"): from now on this process is on machine b, which sees no locks of others."""

    def move(machine: str) -> None:
        monkeypatch.setattr(lease, "_machine", lambda: machine)

    return move


def test_a_run_on_another_machine_is_refused_while_one_goes_on(
    tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    elsewhere("a")
    first = Lease(tmp_path)
    first.take()
    elsewhere("b")
    with pytest.raises(CollectionError, match=r"is being written by process .* on .*last active 0 s ago; wait until"):
        Lease(tmp_path).take()
    first.check()
    first.give_back()
    second = Lease(tmp_path)
    second.take()
    assert second.epoch == 2


def test_one_that_was_silent_for_long_is_shut_out_and_stops(tmp_path: Path, elsewhere: Callable[[str], None]) -> None:
    elsewhere("a")
    first = Lease(tmp_path)
    first.take()
    os.utime(tmp_path / ".lease.1", (1, 1))
    elsewhere("b")
    second = Lease(tmp_path)
    second.take()
    with pytest.raises(CollectionError, match="taken over by another run"):
        first.check()
    first.give_back()  # changes nothing for the other
    second.check()
    second.give_back()
    third = Lease(tmp_path)
    third.take()
    with pytest.raises(CollectionError, match="taken over"):
        first.check()
    third.give_back()


def test_after_a_kill_the_same_machine_goes_on_at_once(tmp_path: Path) -> None:
    def take() -> None:
        Lease(tmp_path).take()
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=take)
    process.start()
    process.join()
    after = Lease(tmp_path)
    after.take()
    assert after.epoch == 2


def test_of_many_machines_that_take_it_at_once_one_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_machine", lambda: threading.current_thread().name)
    got: list[Lease] = []

    def take() -> None:
        one = Lease(tmp_path)
        with suppress(CollectionError):
            one.take()
            got.append(one)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one,) = got
    one.check()
    one.give_back()
    assert os.listdir(tmp_path) == [".lease.1"]


def test_a_committer_that_was_shut_out_writes_nothing_more(
    photos: Path, tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    collection = begun(tmp_path)
    elsewhere("a")

    def overtaken(parts: Parts, encoder: Encoder) -> Worker:
        os.utime(tmp_path / "index" / ".lease.1", (1, 1))
        elsewhere("b")
        Lease(tmp_path / "index").take()
        return one_worker(parts, encoder)

    with pytest.raises(CollectionError, match="was taken over by another run"):
        encode(photos, collection, pool=overtaken)
    assert collection.count() == 0
    os.utime(tmp_path / "index" / ".lease.2", (1, 1))
    elsewhere("a")
    assert encode(photos, collection).encoded == 38


# ------------------------------------------------------------------ kills


@pytest.fixture
def start(
    tmp_path: Path, start_script: Callable[..., subprocess.Popen[str]]
) -> Callable[[str, int], subprocess.Popen[str]]:
    """Starts a process that imports everything and waits for a line."""
    return partial(start_script, SCRIPT, tmp_path / "photos", tmp_path / "index")


@pytest.mark.parametrize("seed", range(max(1, SERIES)))
def test_killed_at_random_steps_of_its_parts_it_comes_to_the_same_end(
    photos: Path, tmp_path: Path, start: Callable[[str, int], subprocess.Popen[str]], seed: int
) -> None:
    draw(photos, range(1000, 1120))
    undisturbed = finish(photos, tmp_path / "undisturbed")
    random = Random(seed)
    steps = [(random.choice(MOMENTS), random.randrange(1, 4)) for _ in range(10 if SERIES else 1)]
    steps = [("written", 1), ("listed", 1), *steps]
    waiting = [start(*step) for step in steps[:2]]  # their imports take long
    for number in range(len(steps)):
        process = waiting.pop(0)
        _, complaints = process.communicate("go\n", timeout=300)
        assert process.returncode in (0, -signal.SIGKILL), complaints
        waiting += [start(*step) for step in steps[number + 2 : number + 3]]
        if (tmp_path / "index" / "collection.json").exists():
            stored = rows(Collection.open(tmp_path / "index"))
            assert stored.items() <= rows(undisturbed).items()
    collection = finish(photos, tmp_path / "index")
    assert rows(collection) == rows(undisturbed)
    assert ledger(collection) == ledger(undisturbed)
    assert list((tmp_path / "index" / "parts").iterdir()) == []


def finish(photos: Path, index: Path) -> Collection:
    """The run to its end, in this process; embeddings depend on where parts and batches are cut."""
    encoder = FakeEncoder(batch_sensitive=True)
    collection = Collection.open_or_create(index, encoder)
    run(find([str(photos)]), encoder, collection, batch_size=8, pool=one_worker)
    return collection
