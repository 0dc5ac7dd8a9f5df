"""Search over HTTP, against a real server with clip/demo and a collection made from drawn scenes."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from service_process import Server, serving

from image_encoders.bulk.run import run
from image_encoders.collection import Collection, Failure, Where
from image_encoders.encoder import Encoder
from image_encoders.scenes import COLOURS, SHAPES, draw, sample_scene

COUNT = 60
TRICKY = '<img src=x onerror=alert(1)> & it\'s "so".png'


@dataclasses.dataclass
class Searched:
    """A folder of images, its collection, and a service that searches it."""

    folder: Path
    collection: Collection
    server: Server
    scenes: dict[str, Any]  # by the image's path

    def key(self, name: str) -> str:
        return hashlib.sha256((self.folder / name).read_bytes()).hexdigest()


def draw_scenes(folder: Path, count: int, seed: int, first: int = 0) -> dict[str, Any]:
    rng = random.Random(seed)
    scenes = {}
    for number in range(first, first + count):
        path = folder / f"album-{number % 3}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene = sample_scene(rng)
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9003] = f"20{10 + number % 12}:{1 + number % 12:02d}:03 04:05:06"
        if number % 5:
            Image.fromarray(draw(scene, (100 + 10 * number, 120))).save(path, quality=90, exif=exif)
        else:
            Image.fromarray(draw(scene, (100 + 10 * number, 120))).save(path, quality=90)
            os.utime(path, (1_400_000_000 + 86_400 * number,) * 2)
        scenes[str(path)] = scene
    return scenes


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory, encoder: Encoder) -> Iterator[Searched]:
    place = tmp_path_factory.mktemp("searched")
    folder = place / "photos"
    scenes = draw_scenes(folder, COUNT, seed=3)
    shutil.copy(folder / "album-0" / "000.jpg", folder / "album-1" / "copy of 000.jpg")
    Image.fromarray(draw(sample_scene(random.Random(99)), 150)).save(folder / "album-2" / TRICKY)
    (folder / "album-1" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this breaks off")
    run([folder], encoder, place / "index")
    with serving("--collection", str(place / "index"), models=()) as server:
        yield Searched(folder, Collection.open(place / "index"), server, scenes)


@pytest.fixture
def client(searched: Searched) -> Iterator[httpx.Client]:
    with searched.server.client() as one:
        yield one


@pytest.fixture
def search(client: httpx.Client) -> Callable[..., dict]:
    def ask(**params: Any) -> dict:
        answer = client.get("/search.json", params={name.rstrip("_"): value for name, value in params.items()})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    return ask


def names(answer: dict) -> list[str]:
    return [hit["name"] for hit in answer["hits"]]


def refused(answer: httpx.Response, status: int, *said: str) -> dict:
    """The one error body, with this status."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["status"] == status
    for word in said:
        assert word in body["error"]["message"]
    return dict(body)


# ------------------------------------------------------------------ queries


def test_the_address_alone_leads_to_the_page(client: httpx.Client) -> None:
    answer = client.get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "search")


def test_words_find_what_the_collection_finds(searched: Searched, search: Callable, encoder: Encoder) -> None:
    query = encoder.encode_text(["a red circle"])[0]
    answer = search(q="a red circle", k=10)
    hits = searched.collection.search(query, 10)
    assert [hit["path"] for hit in answer["hits"]] == [hit.path for hit in hits]
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], [hit.score for hit in hits], atol=1e-5)
    first = answer["hits"][0]
    assert (first["width"], first["height"], first["key"]) == (hits[0].width, hits[0].height, hits[0].sha256)
    assert first["folder"] in ("album-0", "album-1", "album-2")
    assert first["thumbnail"] == f"/thumbnails/{first['key']}"
    assert (answer["model"], answer["fingerprint"]) == ("clip/demo", searched.collection.fingerprint)
    assert (answer["count"], answer["next"]) == (COUNT + 1, 10)
    usual = answer["usual"]
    assert first["above"] == pytest.approx((first["score"] - usual["score"]) / usual["spread"], abs=0.01)
    assert usual["score"] < answer["line"] < 1


def test_one_image_finds_itself_and_its_copies_are_one_hit(searched: Searched, search: Callable) -> None:
    key = searched.key("album-0/000.jpg")
    hit = search(like=key)["hits"][0]
    assert (hit["key"], hit["copies"]) == (key, 1)
    assert hit["score"] == pytest.approx(1, abs=1e-5)
    assert hit["bytes"] == (searched.folder / "album-0" / "000.jpg").stat().st_size


def test_an_uploaded_image_is_a_token_that_finds_it_and_nothing_is_kept(
    searched: Searched, client: httpx.Client, search: Callable
) -> None:
    before = sorted(searched.collection.folder.rglob("*"))
    content = (searched.folder / "album-1" / "001.jpg").read_bytes()
    raw = client.post("/v1/queries", content=content, headers={"Content-Type": "application/octet-stream"})
    form = client.post("/v1/queries", files={"file": ("../../etc/pass\\wd.jpg", content)})
    assert raw.status_code == form.status_code == 200, (raw.text, form.text)
    assert (raw.json()["modality"], raw.json()["name"], form.json()["name"]) == ("image", None, "wd.jpg")
    shown = raw.json()["thumbnail"].removeprefix("data:image/jpeg;base64,")
    assert max(Image.open(io.BytesIO(base64.b64decode(shown))).size) <= 256
    assert len(raw.json()["vector"]) < 500  # short enough for an address
    for token in (raw.json()["vector"], form.json()["vector"]):
        hits = search(vector=token)["hits"]
        assert (hits[0]["name"], hits[0]["key"]) == ("001.jpg", searched.key("album-1/001.jpg"))
        assert hits[0]["score"] > 0.999
        assert search(unvector=token)["hits"][-1]["name"] == "001.jpg"
    assert sorted(searched.collection.folder.rglob("*")) == before


def test_a_mix_is_the_weighted_sum_of_its_queries(
    searched: Searched, client: httpx.Client, search: Callable, encoder: Encoder
) -> None:
    red, black = encoder.encode_text(["a red circle", "a black background"])
    key = searched.key("album-2/002.jpg")
    stored = searched.collection.stored([key])[key].embedding
    expected = searched.collection.search(searched.collection.mix([red, stored, black], [1, 1, -1]), 20)
    answer = search(q="a red circle", like=key, minus="a black background", k=20)
    assert [hit["path"] for hit in answer["hits"]] == [hit.path for hit in expected]
    image = base64.b64encode((searched.folder / "album-2" / "002.jpg").read_bytes()).decode()
    for last in (
        {"key": key},
        {"image": image},
        {"image": f"data:image/jpeg;base64,{image}"},
        {"vector": stored.tolist()},
    ):
        queries = [{"text": "a red circle"}, {"text": "a black background", "weight": -1}, last]
        posted = client.post("/v1/search", json={"queries": queries, "k": 20})
        assert posted.status_code == 200, posted.text
        assert [hit["path"] for hit in posted.json()["hits"]] == [hit.path for hit in expected]
    half = client.post("/v1/search", json={"queries": [{"text": "a red circle"}, {"key": key, "weight": 0.25}]}).json()
    assert names(half) != names(answer)
    against = search(unlike=key)["hits"]
    assert against[-1]["key"] == key


def test_several_words_are_added_up(search: Callable, searched: Searched, encoder: Encoder) -> None:
    both = encoder.encode_text(["a red circle", "a blue star"])
    expected = searched.collection.search(searched.collection.mix(list(both), [1, 1]), 5)
    assert [hit["path"] for hit in search(q=["a red circle", "a blue star"], k=5)["hits"]] == [
        hit.path for hit in expected
    ]


def test_above_the_line_there_are_more_matches_than_by_chance(searched: Searched, search: Callable) -> None:
    """For words and for images: of the hits that are better than chance, more are right than of all images."""
    right, above, base, total = 0, 0, 0, 0
    for colour in COLOURS:
        for shape in SHAPES:
            answer = search(q=f"a {colour} {shape}", k=1000)
            for hit in answer["hits"]:
                if hit["path"] in searched.scenes:
                    matches = any(one.pair == (colour, shape) for one in searched.scenes[hit["path"]].things)
                    base, total = base + matches, total + 1
                    right, above = (
                        right + (matches and hit["score"] >= answer["line"]),
                        above + (hit["score"] >= answer["line"]),
                    )
    assert above > 10
    assert right / above > 5 * base / total


# ------------------------------------------------------------------ listing, filters, order, pages


def test_without_a_query_all_images_are_listed_newest_first(searched: Searched, search: Callable) -> None:
    answer = search(k=1000)
    assert (answer["usual"], answer["line"], answer["groups"], answer["next"]) == (None, None, None, None)
    assert len(answer["hits"]) == answer["count"] == COUNT + 1
    assert {(hit["score"], hit["above"]) for hit in answer["hits"]} == {(None, None)}
    taken = [hit["taken"] for hit in answer["hits"] if hit["taken"]]
    assert taken == sorted(taken, reverse=True)
    assert len(taken) == COUNT - COUNT // 5  # the others have their files' dates alone
    oldest = search(sort="oldest", k=1000)
    assert names(oldest) != names(answer)
    assert {hit["key"] for hit in oldest["hits"]} == {hit["key"] for hit in answer["hits"]}
    paths = [hit["path"] for hit in search(sort="path", k=1000)["hits"]]
    assert paths == sorted(paths)


def test_pages_join_to_the_whole_whatever_is_asked(search: Callable) -> None:
    for asked in ({"q": "a blue star"}, {}, {"sort": "path", "group": "folder"}, {"q": "a star", "group": "month"}):
        whole = search(**asked, k=1000)
        joined, offset = [], 0
        while offset is not None:
            page = search(**asked, k=17, offset=offset)
            assert page["count"] == whole["count"]
            joined += page["hits"]
            offset = page["next"]
        assert joined == whole["hits"]
    past = search(offset=10**9)
    assert (past["hits"], past["next"], past["count"]) == ([], None, COUNT + 1)


def test_groups_name_hits_by_their_places_and_hold_each_once(search: Callable) -> None:
    for asked in ({"group": "folder"}, {"group": "month"}, {"q": "a green ring", "group": "month", "sort": "newest"}):
        answer = search(**asked, k=1000)
        places = [place for group in answer["groups"] for place in group["hits"]]
        assert places == list(range(len(answer["hits"])))
        assert len({group["name"] for group in answer["groups"]}) == len(answer["groups"])
        for group in answer["groups"]:
            for place in group["hits"]:
                hit = answer["hits"][place]
                if asked["group"] == "folder":
                    assert hit["folder"] == group["name"]
                elif hit["taken"]:
                    assert hit["taken"].startswith(group["name"])
    months = [group["name"] for group in search(group="month", sort="oldest", k=1000)["groups"]]
    assert months == sorted(months)


def test_filters_keep_what_they_say(searched: Searched, client: httpx.Client, search: Callable) -> None:
    assert {hit["folder"] for hit in search(folder="album-2", k=1000)["hits"]} == {"album-2"}
    wide = search(min_width=400, min_height=100, q="a red circle", k=1000)["hits"]
    assert min(hit["width"] for hit in wide) >= 400
    assert len(wide) == sum(100 + 10 * number >= 400 for number in range(COUNT))
    year = [hit["taken"][:4] for hit in search(from_="2015", to="2016", k=1000)["hits"] if hit["taken"]]
    assert set(year) == {"2015", "2016"}
    day = search(from_="2011-02-03", to="2011-02-03", k=1000)["hits"]
    assert {hit["taken"] for hit in day} == {"2011-02-03T04:05:06"}
    assert search(from_="2011-02-03T04:06", to="2011-02-03")["count"] == 0
    by_file = search(from_="2014-05-13", to="2014-05-13", k=1000)["hits"]
    assert names({"hits": by_file}) == ["000.jpg"]  # not taken by a camera: its file's date
    filters = {"folder": "album-1", "from": "2012", "to": "2019-12-31", "min_width": 300}
    posted = client.post("/v1/search", json={**filters, "k": 1000}).json()["hits"]
    assert posted == search(folder="album-1", from_="2012", to="2019-12-31", min_width=300, k=1000)["hits"]
    where = Where((str(searched.folder / "album-1"),), datetime(2012, 1, 1), datetime(2020, 1, 1), 300)
    found = searched.collection.search(np.ones(searched.collection.dim), 1000, where=where)
    assert {hit["path"] for hit in posted} == {hit.path for hit in found}


def test_each_copy_can_be_a_hit(client: httpx.Client, searched: Searched) -> None:
    key = searched.key("album-0/000.jpg")
    answer = client.post("/v1/search", json={"queries": [{"key": key}], "each_copy": True, "k": 3}).json()
    assert [hit["key"] == key for hit in answer["hits"]] == [True, True, False]
    assert answer["count"] == COUNT + 2


def test_what_a_form_left_empty_is_not_there(search: Callable) -> None:
    blank = {
        "q": ["", "  "],
        "folder": "",
        "from_": "",
        "to": " ",
        "min_width": "",
        "group": "",
        "sort": "",
        "like": "",
    }
    assert search(**blank)["hits"] == search()["hits"]
    assert search(folder=".")["count"] == search()["count"]


# ------------------------------------------------------------------ what cannot be understood


HOSTILE = [
    "' OR 1=1 --",
    '"; DROP TABLE items; --',
    "\0",
    "%00",
    "../../../../etc/passwd",
    "/etc/passwd",
    "\ud800",
    "é" * 300,
    "9" * 400,
    "-1",
    "1e999",
    "NaN",
    "null",
    "[]",
    "{{7*7}}",
    "<script>alert(1)</script>",
    "\r\nX-Injected: yes",
]
FILTERS = ["folder", "from", "to", "min_width", "min_height", "where"]
PARAMETERS = [
    *("q", "minus", "like", "unlike", "vector", "unvector"),
    *("sort", "group", "k", "offset", "each_copy"),
    *FILTERS,
]


@pytest.mark.parametrize("value", HOSTILE)
def test_no_text_in_any_parameter_breaks_anything(client: httpx.Client, value: str) -> None:
    encoded = value.encode("utf-8", "surrogatepass")
    for name in PARAMETERS:
        answer = client.get(httpx.URL("/search.json", params=[(name, encoded)]))
        assert answer.status_code in (200, 400, 422), (name, answer.text)
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]
        assert "x-injected" not in answer.headers
    for path in ("/thumbnails/", "/failures.json?offset=", "/thumbnails/" + "0" * 64 + "?size="):
        answer = client.get(httpx.URL(path.partition("?")[0]).join(path) if "?" in path else "/thumbnails/x")
        assert answer.status_code in (200, 400, 404, 422)
    for body in (
        {"queries": [{"text": value}]},
        {"queries": [{"key": value}]},
        {"queries": [{"image": value}]},
        {"queries": [{"vector": value}]},
        {"folder": value},
        {"from": value},
        {"min_width": value},
        {"where": [value, f"{value} = 1", f"name = {value}", f"a.{value} >= {value}", f'"{value}" != "{value}"']},
        *({"where": [text]} for text in (f"{value} = 1", f"name = {value}", f'"{value}" != "{value}"')),
        {"sort": value},
    ):
        content = json.dumps(body)
        answer = client.post("/v1/search", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400, 422), (body, answer.text)
    assert client.get("/search.json").status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"queries": [{"text": "a", "key": "0" * 64}]}, "exactly one"),
        ({"queries": [{}]}, "exactly one"),
        ({"queries": [{"text": "a"}] * 33}, "at most 32"),
        ({"queries": [{"vector": [0.0] * 128}]}, "all zeros"),
        ({"queries": [{"vector": [1.0, 2.0]}]}, "embeddings of clip/demo have"),
        ({"queries": [{"text": "a"}, {"text": "a", "weight": -1}]}, "cancel each other out"),
        ({"queries": [{"text": "a", "weight": 1e6}]}, "weight"),
        ({"queries": [{"image": "bm90IGFuIGltYWdl"}]}, "not an image"),
        ({"queries": [{"audio": "bm90IGEgc291bmQ="}]}, "no audio tower"),
        ({"queries": [{"image": "http://127.0.0.1/x.jpg"}]}, "does not fetch URLs"),
        ({"queries": [{"key": "0" * 64}]}, "no image of the collection has this key"),
        ({"from": "yesterday"}, "a date is accepted"),
        ({"from": "2024-13"}, "a date is accepted"),
        ({"sql": "1=1"}, "no parameter sql; accepted: folder, from, "),
        ({"min_width": 10**40}, "min_width"),
        ({"k": 0}, "k"),
        ({"k": 10**6}, "k"),
        ({"offset": -1}, "offset"),
        ({"sort": "size; DROP TABLE"}, "sort"),
        ({"nothing": 1}, "nothing"),
    ],
)
def test_a_search_that_cannot_be_understood_says_why(client: httpx.Client, body: dict, said: str) -> None:
    answer = client.post("/v1/search", json=body)
    assert answer.status_code in (400, 422), answer.text
    assert said in answer.json()["error"]["message"]


def test_a_token_of_another_model_or_cut_off_is_refused(
    searched: Searched, client: httpx.Client, tmp_path: Path
) -> None:
    token = client.post("/v1/queries", content=(searched.folder / "album-1" / "001.jpg").read_bytes()).json()["vector"]
    content = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    other = base64.urlsafe_b64encode(b"12345678" + content[8:]).decode()
    short = base64.urlsafe_b64encode(content[:-4]).decode()
    zeros = base64.urlsafe_b64encode(content[:8] + bytes(len(content) - 8)).decode()
    wild = base64.urlsafe_b64encode(content[:8] + b"\xff" * (len(content) - 8)).decode()
    for text, said in ((other, "another model"), (short, "truncated"), (zeros, "all zeros"), (wild, "not finite")):
        assert said in refused(client.get("/search.json", params={"vector": text}), 422)["error"]["message"]


def test_an_upload_that_is_no_image_is_refused_with_a_reason(client: httpx.Client) -> None:
    refused(client.post("/v1/queries", content=b"hello there, world"), 422, "not an image")
    refused(client.post("/v1/queries", content=b""), 422, "empty")
    refused(client.post("/v1/queries", content=b"\xff\xd8\xff\xe0 breaks off"), 422)
    refused(client.post("/v1/queries", files={"file": ("x.html", b"<html>")}), 422, "not an image")
    refused(client.post("/v1/queries", data={"file": "a text"}), 422)
    assert client.get("/search.json").status_code == 200


# ------------------------------------------------------------------ thumbnails


def test_a_thumbnail_is_small_and_kept_for_ever(searched: Searched, client: httpx.Client) -> None:
    key = searched.key("album-2/059.jpg")
    answer = client.get(f"/thumbnails/{key}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert max(Image.open(io.BytesIO(answer.content)).size) == 256
    assert "immutable" in answer.headers["cache-control"]
    again = client.get(f"/thumbnails/{key}", headers={"If-None-Match": f'W/"x", {answer.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    large = client.get(f"/thumbnails/{key}?size=1024")
    assert max(Image.open(io.BytesIO(large.content)).size) == 690  # as large as it is
    assert large.headers["etag"] != answer.headers["etag"]
    assert client.head(f"/thumbnails/{key}").headers["etag"] == answer.headers["etag"]
    refused(client.get(f"/thumbnails/{key}?size=4096"), 400, "size")


@pytest.mark.parametrize(
    "key", ["0" * 64, "x", "..%2f..%2fetc%2fpasswd", "A" * 64, "0" * 65, "%00", "0" * 63 + "%0a", "%ff"]
)
def test_a_key_that_no_image_has_is_404(client: httpx.Client, key: str) -> None:
    refused(client.get(f"/thumbnails/{key}"), 404)


def test_names_and_folders_are_plain_text(search: Callable, searched: Searched, client: httpx.Client) -> None:
    key = searched.key(f"album-2/{TRICKY}")
    answer = client.get("/search.json", params={"like": key, "k": 1})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["hits"][0]["name"] == TRICKY


# ------------------------------------------------------------------ who sees paths


@pytest.mark.parametrize(
    "headers",
    [{"X-Forwarded-For": "203.0.113.9"}, {"Forwarded": "for=203.0.113.9"}, {"Via": "1.1 proxy"}],
)
def test_paths_are_hidden_from_clients_that_come_through_a_proxy(client: httpx.Client, headers: dict) -> None:
    answer = client.get("/search.json", headers=headers).json()
    assert {hit["path"] for hit in answer["hits"]} == {None}
    assert all(hit["name"] and hit["folder"].startswith("album-") for hit in answer["hits"])
    failed = client.get("/failures.json", headers=headers).json()["failures"]
    assert [(one["name"], one["path"]) for one in failed] == [("broken.jpg", None)]


# ------------------------------------------------------------------ failures and status


def test_failures_are_listed_with_their_reasons(searched: Searched, client: httpx.Client) -> None:
    answer = client.get("/failures.json").json()
    assert (answer["count"], answer["next"]) == (1, None)
    [failure] = answer["failures"]
    assert failure["path"] == str(searched.folder / "album-1" / "broken.jpg")
    assert (failure["name"], failure["stage"]) == ("broken.jpg", "read")
    assert failure["code"]
    assert failure["message"]
    assert client.get("/failures.json?offset=5").json()["failures"] == []


def test_the_status_says_what_is_searched_and_what_the_service_did(searched: Searched, client: httpx.Client) -> None:
    client.get("/search.json?q=a+star")
    status = client.get("/status.json").json()
    assert (status["model"], status["modalities"], status["run"]) == ("clip/demo", ["image", "text"], None)
    assert status["collection"] == {"name": "index", "images": COUNT + 2, "failures": 1}
    assert status["service"]["requests_per_second"] > 0
    assert status["service"]["p99_ms"] >= status["service"]["p50_ms"] > 0
    assert status["service"]["waiting"] == 0


def test_a_service_without_a_collection_says_so(server: Server) -> None:
    with server.client() as client:
        for path in ("/search.json", "/thumbnails/" + "0" * 64, "/failures.json"):
            refused(client.get(path), 404, "--collection")
        assert client.get("/status.json").json()["collection"] is None


# ------------------------------------------------------------------ while the collection changes


@pytest.fixture
def growing(tmp_path: Path, encoder: Encoder) -> Iterator[Searched]:
    folder = tmp_path / "photos"
    scenes = draw_scenes(folder, 6, seed=11)
    run([folder], encoder, tmp_path / "index")
    with serving("--collection", str(tmp_path / "index"), models=()) as server:
        yield Searched(folder, Collection.open(tmp_path / "index"), server, scenes)


def test_a_collection_may_grow_shrink_and_change_while_it_is_served(growing: Searched, encoder: Encoder) -> None:
    with growing.server.client() as client:
        assert client.get("/search.json").json()["count"] == 6
        draw_scenes(growing.folder, 5, seed=12, first=6)
        run([growing.folder], encoder, growing.collection.folder)
        key = growing.key("album-1/010.jpg")
        assert client.get(f"/search.json?like={key}").json()["count"] == 11
        assert client.get(f"/thumbnails/{key}").status_code == 200

        gone, changed = growing.folder / "album-1" / "001.jpg", growing.folder / "album-2" / "002.jpg"
        keys = growing.key("album-1/001.jpg"), growing.key("album-2/002.jpg")
        gone.unlink()
        shutil.copy(growing.folder / "album-0" / "000.jpg", changed)
        for key in keys:
            assert client.get(f"/search.json?like={key}").json()["hits"][0]["key"] == key  # still stored
            refused(client.get(f"/thumbnails/{key}"), 410, "gone")
        run([growing.folder], encoder, growing.collection.folder, prune=True)
        for key in keys:
            refused(client.get(f"/thumbnails/{key}"), 404)
            refused(client.get(f"/search.json?like={key}"), 422, "no image of the collection")
        assert client.get("/search.json").json()["count"] == 9
        growing.collection.record([Failure("/x", "/x", "read", "empty", "empty", "0 0", "2026-01-01T00:00:00+00:00")])
        assert client.get("/status.json").json()["collection"]["failures"] == 1
        assert client.get("/failures.json").json()["count"] == 1


def test_a_collection_of_another_model_is_refused_at_the_start(growing: Searched, tmp_path: Path) -> None:
    mark = json.loads((growing.collection.folder / "collection.json").read_text())
    mark["encoder"]["fingerprint"] = "0" * 32
    other = tmp_path / "other"
    shutil.copytree(growing.collection.folder, other)
    (other / "collection.json").write_text(json.dumps(mark))
    with pytest.raises(AssertionError, match=r"fingerprint 0{32}"), serving("--collection", str(other)):
        pass
