"""What a server with clip/demo cannot show of search: sounds, clients of other machines, archives, busy threads.

The application over a stand-in of the service, in this process.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from fake_encoder import DIM, FakeEncoder
from image_encoders.api.items import Item
from image_encoders.api.requests import Limits
from image_encoders.batching import Embedded
from image_encoders.bulk.run import run
from image_encoders.collection import Collection, Failure
from image_encoders.errors import CollectionError, InputError, MissingExtra, Overloaded
from image_encoders.records import Locator
from image_encoders.serve import searcher as searcher_module
from image_encoders.serve.app import create_app
from image_encoders.serve.metrics import Metrics
from image_encoders.serve.searcher import Searcher, Threads
from image_encoders.serve.settings import Settings
from image_encoders.tables import Comparison

SOUND = b"RIFF$\0\0\0WAVEfmt "


class StandIn:
    """A service whose nets are a look at the first byte.

    asked: the items that it was to embed
    """

    def __init__(self, collection: Collection | None, modalities: Sequence[str], **settings: Any):
        self.settings = Settings(**settings)
        self.limits = Limits(max_file_bytes=self.settings.max_file_bytes)
        self.collection = collection
        self.collection_model = SimpleNamespace(name="fake/net", modalities=modalities, towers={})
        self.models = {"fake": self.collection_model}
        self.metrics = Metrics()
        self.run: Any = None
        self.title: str | None = None
        self.asked: list[Item] = []

    def model(self, name: str | None = None) -> Any:
        return self.collection_model

    async def embed(self, model: Any, items: Sequence[Item]) -> list[Embedded | InputError]:
        assert model is self.collection_model
        self.asked += items
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Embedded | InputError:
        if item.modality not in self.collection_model.modalities:
            return InputError(f"fake/net has no {item.modality} tower; it has: image", code="no-tower")
        vector = np.ones(DIM, np.float32)
        vector[0] = item.content.encode()[0] if isinstance(item.content, str) else item.content[0]
        return Embedded(vector, 0.0, 0.0, 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def collection(folder: Path, tmp_path: Path) -> Collection:
    run([folder], FakeEncoder(), tmp_path / "index")
    return Collection.open(tmp_path / "index")


@pytest.fixture
def hearing(collection: Collection) -> Collection:
    collection.modalities = ("image", "text", "audio")
    return collection


def client_of(service: StandIn, address: str = "127.0.0.1", base_url: str = "http://127.0.0.1") -> TestClient:
    return TestClient(create_app(service), base_url=base_url, client=(address, 50000))  # type: ignore[arg-type]


# ------------------------------------------------------------------ sounds


def test_a_sound_is_searched_by_where_the_model_hears(hearing: Collection) -> None:
    service = StandIn(hearing, hearing.modalities)
    client = client_of(service)
    answer = client.post("/v1/queries", content=SOUND)
    assert (answer.status_code, answer.json()["modality"], answer.json()["thumbnail"]) == (200, "audio", None)
    assert service.asked == [Item("audio", SOUND)]
    assert len(client.get("/search.json", params={"vector": answer.json()["vector"]}).json()["hits"]) == 5
    given = base64.b64encode(SOUND).decode()
    posted = client.post("/v1/search", json={"queries": [{"audio": given, "weight": 2}, {"text": "a dog"}]})
    assert posted.status_code == 200, posted.text
    assert [item.modality for item in service.asked] == ["audio", "audio", "text"]


def test_a_model_without_ears_or_words_says_so(collection: Collection) -> None:
    client = client_of(StandIn(collection, ["image"]))
    sound = client.post("/v1/queries", content=SOUND)
    assert (sound.status_code, "not an image" in sound.json()["error"]["message"]) == (422, True)
    words = client.get("/search.json?q=a+dog")
    assert (words.status_code, words.json()["error"]["code"], words.json()["error"]["param"]) == (422, "no-tower", "q")
    assert "no text tower" in words.json()["error"]["message"]


def test_the_next_page_of_a_search_by_words_embeds_nothing(hearing: Collection) -> None:
    service = StandIn(hearing, hearing.modalities)
    client = client_of(service)
    for offset in (0, 2, 4):
        assert client.get("/search.json", params={"q": "a dog", "k": 2, "offset": offset}).status_code == 200
    assert len(service.asked) == 1


# ------------------------------------------------------------------ who sees paths


@pytest.mark.parametrize(
    ("address", "url", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000", True),
        ("::1", "http://[::1]:8000", True),
        ("::ffff:127.0.0.1", "http://localhost", True),
        ("192.0.2.7", "http://127.0.0.1", False),
        ("127.0.0.1", "http://photos.example.org", False),  # a proxy on this machine that keeps the name
        ("testclient", "http://localhost", False),
    ],
)
def test_only_clients_of_this_machine_see_where_files_are(
    collection: Collection, address: str, url: str, shown: bool
) -> None:
    failed = Failure("/srv/x/a.jpg", "/srv/x/a.jpg", "read", "truncated", "/srv/x/a.jpg ends", "1 1", "2026-01-01")
    collection.record([failed])
    for settings, expected in (({}, shown), ({"show_paths": True}, True)):
        client = client_of(StandIn(collection, ["image"], **settings), address, url)
        hits = client.get("/search.json").json()["hits"]
        assert {hit["path"] is not None for hit in hits} == {expected}
        listed = client.get("/failures.json")
        assert ("/srv/x" in listed.text) == expected
        assert listed.json()["failures"][0]["name"] == "a.jpg"


def test_failures_come_in_pages(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("image_encoders.serve.search.FAILURES", 2)
    collection.record([Failure(f"/{n}", f"/{n}", "read", "empty", "empty", "0 0", "2026-01-01") for n in range(5)])
    client, offset, seen = client_of(StandIn(collection, ["image"])), 0, []
    while offset is not None:
        answer = client.get("/failures.json", params={"offset": offset}).json()
        seen += [one["name"] for one in answer["failures"]]
        offset = answer["next"]
    assert seen == ["0", "1", "2", "3", "4"]


# ------------------------------------------------------------------ thumbnails


def test_an_image_in_an_archive_has_a_thumbnail_and_the_archive_for_its_folder(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(folder / "shard.tar", "w") as archive:
        archive.add(folder / "0.png", "inside/it.png")
    (folder / "0.png").unlink()
    run([folder, folder / "shard.tar"], FakeEncoder(), tmp_path / "with archive")
    client = client_of(StandIn(Collection.open(tmp_path / "with archive"), ["image"]))
    [hit] = [one for one in client.get("/search.json").json()["hits"] if one["name"] == "it.png"]
    assert hit["folder"] == "shard.tar"
    assert client.get("/search.json", params={"folder": "shard.tar"}).json()["hits"] == [hit]
    shown = client.get(hit["thumbnail"])
    assert Image.open(io.BytesIO(shown.content)).size == (60, 40)
    (folder / "shard.tar").write_bytes(b"another file")
    assert client.get(hit["thumbnail"]).status_code in (410, 422)
    (folder / "shard.tar").unlink()
    assert client.get(hit["thumbnail"]).status_code == 410


def test_a_frame_of_a_video_has_a_thumbnail(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(120):
            pixels = np.full((48, 64, 3), 2 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    run([tmp_path / "film.mp4"], FakeEncoder(), tmp_path / "frames")
    client = client_of(StandIn(Collection.open(tmp_path / "frames"), ["image"]))
    hits = client.get("/search.json").json()["hits"]
    assert {hit["name"] for hit in hits} == {"film.mp4#t=0", "film.mp4#t=10"}
    for hit in hits:
        shown = client.get(hit["thumbnail"])
        assert Image.open(io.BytesIO(shown.content)).size == (64, 48), shown.text


def test_an_image_on_the_web_is_not_fetched_unless_the_service_fetches(collection: Collection) -> None:
    service = StandIn(collection, ["image"])
    with pytest.raises(InputError, match="does not fetch URLs"):
        Searcher(service)._read(Locator("https://example.org/a.jpg"))  # type: ignore[arg-type]


def test_a_collection_that_cannot_be_read_is_503_and_its_reason_is_in_the_log(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any) -> None:
        raise CollectionError("/secret/place cannot be read: an I/O error")

    client = client_of(StandIn(collection, ["image"]))
    monkeypatch.setattr(collection, "failures", broken)
    answer = client.get("/failures.json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "collection")
    assert "secret" not in answer.text
    assert "an I/O error" in caplog.text


def test_a_package_that_is_missing_is_named(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Any) -> None:
        raise MissingExtra("av", "video", "reading videos")

    client = client_of(StandIn(collection, ["image"]))
    monkeypatch.setattr(collection, "failures", missing)
    answer = client.get("/failures.json")
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "missing_extra")
    assert "image-encoders[video]" in answer.json()["error"]["message"]


def test_the_collection_has_the_name_that_the_service_was_given(collection: Collection) -> None:
    service = StandIn(collection, ["image"])
    client = client_of(service)
    assert client.get("/status.json").json()["collection"]["name"] == "index"
    service.title = "photos"
    assert client.get("/status.json").json()["collection"]["name"] == "photos"


def test_of_copies_any_one_that_is_left_makes_the_thumbnail(folder: Path, tmp_path: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    key = hashlib.sha256((folder / "0.png").read_bytes()).hexdigest()
    run([folder], FakeEncoder(), tmp_path / "copies")
    client = client_of(StandIn(Collection.open(tmp_path / "copies"), ["image"]))
    (folder / "0.png").unlink()
    assert client.get(f"/thumbnails/{key}").status_code == 200
    (folder / "copy.png").unlink()
    (folder / "copy.png").symlink_to("/etc/passwd")
    assert client.get(f"/thumbnails/{key}").status_code == 410


def test_an_image_beyond_the_limits_has_no_thumbnail(folder: Path, collection: Collection) -> None:
    key = hashlib.sha256((folder / "0.png").read_bytes()).hexdigest()
    for limit in ({"max_pixels": 100}, {"max_file_bytes": 100}):
        answer = client_of(StandIn(collection, ["image"], **limit)).get(f"/thumbnails/{key}")
        assert (answer.status_code, "at most 100" in answer.json()["error"]["message"]) == (422, True)


# ------------------------------------------------------------------ busy threads


def test_who_comes_when_too_many_wait_is_refused_and_who_has_gone_is_passed_over() -> None:
    async def scenario() -> None:
        threads = Threads("test", 1, most=3)
        free, begun, ran = threading.Event(), threading.Event(), []

        def busy() -> str:
            begun.set()
            assert free.wait(120)
            return "done"

        async def gone() -> bool:
            return True

        first = asyncio.create_task(threads.run(busy))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        second = asyncio.create_task(threads.run(ran.append, "left", gone=gone))
        third = asyncio.create_task(threads.run(ran.append, "stayed"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await threads.run(ran.append, "refused")
        free.set()
        assert await first == "done"
        with pytest.raises(asyncio.CancelledError):
            await second
        await third
        assert ran == ["stayed"]
        assert threads.waiting == 0

    asyncio.run(scenario())


def test_a_full_queue_of_thumbnails_is_429_with_when_to_come_back(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searcher_module, "WAITING_THUMBNAILS", 0)
    client = client_of(StandIn(collection, ["image"]))
    hit = client.get("/search.json").json()["hits"][0]
    answer = client.get(hit["thumbnail"])
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1


# ------------------------------------------------------------------ status, and a collection that comes later


def test_the_status_shows_the_run_that_fills_the_collection(collection: Collection) -> None:
    service = StandIn(collection, ["image"])
    progress = {"state": "embedding", "total": 9, "done": 4, "failed": 0, "rate": 2.5, "eta": 2.0, "message": ""}
    service.run = lambda: progress
    assert client_of(service).get("/status.json").json()["run"] == progress


def test_a_collection_may_come_after_the_start_and_be_another_later(collection: Collection, tmp_path: Path) -> None:
    service = StandIn(None, ["image"])
    client = client_of(service)
    assert client.get("/search.json").status_code == 404
    service.collection = collection
    assert client.get("/search.json").json()["count"] == 5
    service.collection = Collection.create(tmp_path / "other", FakeEncoder())
    assert client.get("/search.json").json()["count"] == 0


def test_a_token_is_of_the_space_that_it_was_made_in(collection: Collection) -> None:
    searcher = Searcher(StandIn(collection, ["image"]))  # type: ignore[arg-type]
    vector = np.random.default_rng(0).standard_normal(DIM).astype(np.float32)
    token = searcher.token(vector)
    np.testing.assert_allclose(searcher.vector(token), vector / np.linalg.norm(vector), atol=1e-3)
    collection.fingerprint = "0" * 32
    with pytest.raises(InputError, match="another model"):
        searcher.vector(token)


# ------------------------------------------------------------------ what is asked for


@pytest.fixture
def described(folder: Path, tmp_path: Path) -> TestClient:
    """A service of the images 0.png to 3.png and album/4.png; a table says of N: year 2018 + N and label "it's N"."""
    (folder / "album").mkdir()
    (folder / "4.png").rename(folder / "album" / "4.png")
    lines = [f"{folder}/{'album/' if n == 4 else ''}{n}.png,{2018 + n},it's {n}\n" for n in range(5)]
    (folder / "list.csv").write_text("path,year,label\n" + "".join(lines))
    run([folder / "list.csv"], FakeEncoder(), tmp_path / "index")
    found = Collection.open(tmp_path / "index")
    found.modalities = ("image", "text")
    return client_of(StandIn(found, found.modalities))


def found(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return sorted(hit["name"] for hit in answer.json()["hits"])


def test_images_are_filtered_by_their_metadata_with_and_without_a_query(described: TestClient) -> None:
    for where, names in (
        (["year >= 2020"], ["2.png", "3.png", "4.png"]),
        (["year>=2020", "label != it's 3"], ["2.png", "4.png"]),
        (["label = it's 1"], ["1.png"]),
        (["price = null"], ["0.png", "1.png", "2.png", "3.png", "4.png"]),
        (["", " "], ["0.png", "1.png", "2.png", "3.png", "4.png"]),
        (["price > 3"], []),
    ):
        for query in ({}, {"q": "a dog"}, {"sort": "path", "group": "month"}):
            assert found(described.get("/search.json", params={"where": where, **query})) == names
        said = [one for one in where if one.strip()]
        for body in ({}, {"queries": [{"text": "a dog"}]}, {"min_width": 60, "each_copy": True}):
            assert found(described.post("/v1/search", json={"where": said, **body})) == names
    assert found(described.get("/search.json", params={"where": "year >= 2020", "folder": "album"})) == ["4.png"]


def test_a_comparison_that_cannot_be_understood_is_refused_as_the_library_does(described: TestClient) -> None:
    for where in ("year", "= 3", "year > true", "a..b = 1", f"year = {10**30}"):
        with pytest.raises(InputError) as caught:
            Comparison.parse(where)
        for answer in (
            described.get("/search.json", params={"where": ["year > 1", where]}),
            described.post("/v1/search", json={"where": ["year > 1", where]}),
        ):
            error = answer.json()["error"]
            assert (answer.status_code, error["param"], error["code"]) == (422, "where", "where")
            assert error["message"] == caught.value.message
    for many in (["y" * 997 + " = 1"], ["year > 1"] * 33):
        assert described.get("/search.json", params={"where": many}).status_code == 400
        assert described.post("/v1/search", json={"where": many}).status_code == 400
    assert described.post("/v1/search", json={"where": "year > 1"}).status_code == 400
    assert found(described.get("/search.json", params={"where": ["y" * 996 + " = 1", *["year > 1"] * 31]})) == []


@pytest.mark.parametrize(
    "text", ["' OR 1=1 --", "') OR ('1'='1", '"', "\\", "\\'", "$", "a'b\"c\\", "*", "[0]", "\0", "%", "é\u202e"]
)
def test_a_comparison_is_never_part_of_the_database_s_query(described: TestClient, text: str) -> None:
    for where in (f"{text} = 1", f"year = {text}", f"label < {text}", f"{text}.{text} = x", f'label = "{text}"'):
        answer = described.get("/search.json", params={"where": [where, "year > 2021"]})
        assert answer.status_code in (200, 422), answer.text
        if answer.status_code == 200:
            assert answer.json()["count"] <= 1
        else:
            assert answer.json()["error"]["code"] == "where"
    assert len(found(described.get("/search.json"))) == 5


def test_a_parameter_that_a_search_does_not_know_is_refused_with_those_that_it_knows(collection: Collection) -> None:
    client = client_of(StandIn(collection, collection.modalities))
    posted = client.post("/v1/search", json={"where": ["a = 1"], "since": "2024"})
    assert (posted.status_code, posted.json()["error"]["param"]) == (400, "since")
    assert posted.json()["error"]["message"].startswith("no parameter since; accepted: folder, from, to, ")
    answer = client.get("/search.json?q=a&minwidth=3&whre=x&limit=5")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")
    assert answer.json()["error"]["message"] == (
        "no parameter limit, minwidth, whre; accepted: folder, from, to, min_width, min_height, where, sort, group, k, "
        "offset, each_copy, q, minus, like, unlike, vector, unvector"
    )
    assert client.get("/search.json?since=2024").status_code == 400  # the name in Python, not that of the parameter
    assert client.get("/search.json?q=&folder=&from=2001&to=&min_width=1&sort=newest&k=2&offset=1").status_code == 200
