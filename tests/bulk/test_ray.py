"""A real Ray, two nodes as processes: what is stored is what a run without it stores, whatever dies in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drawn import image, rows

from image_encoders import load
from image_encoders.bulk import parts as parts_module
from image_encoders.bulk.run import Report, run
from image_encoders.bulk.sources import find
from image_encoders.collection import Collection
from image_encoders.encoder import Encoder
from image_encoders.errors import DeviceError
from image_encoders.process import starting_ray

pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

SERIES = int(os.environ.get("KILL_SERIES", "0"))  # of ten kills each, in `make soak`
MEMORY = 80_000_000  # bytes of an object store: the least that Ray takes
APART = 1e-5  # 1 - cosine: how far embeddings are from those of other batches in float32, at most


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load("clip/demo", precision="float32")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 images, copies and broken files among them."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(160):
        (folder / f"{number:03d}.jpg").write_bytes(image(number - number % 40 // 39, "JPEG"))
    for number in (5, 77):
        (folder / f"{number:03d} broken.jpg").write_bytes(image(number, "JPEG")[:90])
    return folder


@pytest.fixture(scope="module")
def local(encoder: Encoder, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    collection = Collection.create(tmp_path_factory.mktemp("local") / "index", encoder)
    run(find([str(photos)]), encoder, collection, batch_size=16)
    return collection


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    from image_encoders.bulk import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_DATA_USAGE_DISABLED", "1")  # else a thread of its asks for numbers until this process ends
        with starting_ray():
            cluster = Cluster(
                initialize_head=True,
                head_node_args={"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False},
            )
            add_node(cluster)
        with ray.connected(cluster.address):
            yield cluster
        cluster.shutdown()


def add_node(cluster: Any) -> Any:
    node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    cluster.wait_for_nodes()
    return node


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "LEAST", 32)


def on_ray(photos: Path, encoder: Encoder, index: Path, then: Callable[[Any, int], None] | None = None) -> Report:
    """A run on the cluster; `then` is called now and then with its workers and how many images are done."""
    from image_encoders.bulk.ray import Workers

    started: list[Workers] = []

    def workers(*arguments: Any) -> Workers:
        started.append(Workers(*arguments, batch_size=16))
        return started[0]

    collection = Collection.open_or_create(index, encoder)
    progress = then and (lambda standing: then(started[0], standing.read))
    return run(find([str(photos)]), encoder, collection, pool=workers, progress=progress)


def assert_same(index: Path, local: Collection) -> None:
    """Equal rows and failures, embeddings but for what other batches change, and nothing left of the parts."""
    collection = Collection.open(index)
    found, expected = rows(collection), rows(local)
    assert found.keys() == expected.keys()
    for id, row in found.items():
        assert {**row, "embedding": b""} == {**expected[id], "embedding": b""}
        one, other = (np.frombuffer(row["embedding"], np.float32) for row in (row, expected[id]))
        assert 1 - one @ other / (np.linalg.norm(one) * np.linalg.norm(other)) < APART
    assert [(one.id, one.code) for one in collection.failures()] == [(one.id, one.code) for one in local.failures()]
    assert list((index / "parts").iterdir()) == []


def test_it_stores_what_a_run_without_ray_does_though_a_worker_and_a_node_die(
    cluster: Any, photos: Path, encoder: Encoder, local: Collection, tmp_path: Path
) -> None:
    import ray

    (node,) = cluster.worker_nodes
    killed: list[Any] = []

    def kill(workers: Any, done: int) -> None:
        busy = [member for member, part in workers._busy.values() if part is not None]
        if busy and not killed:
            killed.append(busy[0])
            ray.kill(busy[0].actor)
        elif done >= 32 and node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)

    report = on_ray(photos, encoder, tmp_path / "index", kill)
    assert len(killed) == 1
    assert node not in cluster.worker_nodes
    assert report.total == report.encoded + report.reused + report.failed == 162
    assert report.failed == 2
    assert_same(tmp_path / "index", local)
    add_node(cluster)


@pytest.mark.parametrize("seed", range(10 * SERIES or 1))
def test_a_driver_that_is_killed_is_run_again(
    cluster: Any, photos: Path, encoder: Encoder, local: Collection, tmp_path: Path, seed: int
) -> None:
    index = tmp_path / "index"
    places = "import sys; from image_encoders.bulk import parts; parts.LEAST = 32; from image_encoders.cli import main;"
    command = [sys.executable, "-c", f"{places} main()", "encode", photos, "-o", index, "--ray", cluster.address]
    command += ["--model", "clip/demo", "--precision", "float32", "--batch-size", "16", "--quiet"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_results(process, index, Random(seed).randrange(3))
    process.kill()
    _, complaints = process.communicate()
    assert process.returncode in (-signal.SIGKILL, 3), complaints
    on_ray(photos, encoder, index)
    assert_same(index, local)


def wait_for_results(process: subprocess.Popen[str], index: Path, count: int) -> None:
    """Until so many parts were done, or the run has come to its end."""
    seen: set[str] = set()
    while process.poll() is None and len(seen) <= count:
        seen |= {path.name for path in (index / "parts").glob("*.result")}
        time.sleep(0.005)


def test_a_worker_that_gives_other_embeddings_is_refused(
    cluster: Any, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from image_encoders.bulk import ray

    encoder = load("clip/demo", precision="float32")
    embed = ray.embed_canaries
    monkeypatch.setattr(ray, "embed_canaries", lambda encoder: embed(encoder)[:, ::-1])
    with pytest.raises(DeviceError, match=r"gives other embeddings than where the run was started.*allowed in float32"):
        on_ray(photos, encoder, tmp_path / "index")


def test_a_dataset_gets_an_embedding_or_an_error_for_each_row(cluster: Any, photos: Path, encoder: Encoder) -> None:
    import ray

    from image_encoders.bulk.ray import encode_dataset

    paths = sorted(photos.iterdir())[:20]
    values = [path.read_bytes() for path in paths]
    dataset = ray.data.from_items([{"image": value, "n": n} for n, value in enumerate([*values, values[0]])])
    found = encode_dataset(dataset, encoder, column="image", workers=1, batch_size=8).take_all()
    found.sort(key=lambda row: row["n"])
    assert "data-usage-metrics-poller" not in {thread.name for thread in threading.enumerate()}
    assert [row["error"] is None for row in found] == ["broken" not in path.name for path in paths] + [True]
    (error,) = {row["error"] for row in found} - {None}
    assert error.startswith("truncated: ")
    for row, value in zip(found, [*values, values[0]]):
        if row["error"] is None:
            np.testing.assert_allclose(row["embedding"], encoder.encode_image([value])[0], atol=2e-4)


def test_paths_of_a_dataset_are_read_where_it_is_computed(cluster: Any, photos: Path, encoder: Encoder) -> None:
    import ray

    from image_encoders.bulk.ray import encode_dataset

    paths = [str(photos / "000.jpg"), str(photos / "missing.jpg")]
    dataset = ray.data.from_items([{"path": path} for path in paths])
    found = {row["path"]: row for row in encode_dataset(dataset, encoder, column="path", workers=1).take_all()}
    expected = encoder.encode_image([paths[0]])[0]
    np.testing.assert_allclose(found[paths[0]]["embedding"], expected, atol=2e-4)
    assert found[paths[1]]["error"].startswith("not-found: ")


def test_workers_are_spread_over_processors_and_gpus() -> None:
    from image_encoders.bulk.ray import Place, places

    def node(name: str, **resources: float) -> dict[str, Any]:
        return {"NodeID": name, "Alive": name != "dead", "Resources": resources}

    plain = [node("head"), node("a", CPU=4), node("b", CPU=8), node("dead", CPU=2)]
    assert places(plain, None, "auto") == [Place("a", 4, 0), Place("b", 8, 0)]
    assert places(plain, 3, "auto") == [Place("a", 2, 0), Place("b", 8, 0), Place("a", 2, 0)]
    mixed = [node("a", CPU=4), node("g", CPU=16, GPU=2)]
    assert places(mixed, None, "auto") == [Place("g", 8, 1), Place("g", 8, 1)]
    assert places(mixed, 4, "auto") == [Place("g", 4, 0.5)] * 4
    assert places(mixed, None, "cpu") == [Place("a", 4, 0), Place("g", 16, 0)]
    with pytest.raises(DeviceError, match="no node"):
        places([node("head")], None, "auto")


def test_an_address_where_nothing_answers_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray as library

    from image_encoders.bulk import ray

    monkeypatch.setattr(library, "is_initialized", lambda: False)  # though other tests have a cluster
    refused = pytest.raises(DeviceError, match=r"no Ray cluster at '127.0.0.1:1': .*refused; accepted: local")
    with refused, ray.connected("127.0.0.1:1"):
        pass


def test_a_worker_says_so_where_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    from image_encoders.bulk import ray

    there = SimpleNamespace(device="cpu", precision="bfloat16")
    for computes, said in ((True, None), (False, "computes bfloat16 slowly")):
        monkeypatch.setattr(ray, "has_bfloat16", lambda computes=computes: computes)
        assert said == ray.slow(there) or (said and said in ray.slow(there))  # type: ignore[arg-type, operator]


def test_it_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    with starting_ray():
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ
