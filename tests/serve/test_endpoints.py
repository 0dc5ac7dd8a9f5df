"""Every endpoint but /v1/embeddings, and the one error body that they share."""

from __future__ import annotations

import io
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from service_process import Server

from image_encoders.api.requests import PIXEL
from image_encoders.conformance import bundle
from image_encoders.encoder import Encoder

JPEG = bundle.FOLDER / "images" / "rgb.jpg"
PNG = bundle.FOLDER / "images" / "rgba.png"
PIXEL_URL = f"data:image/png;base64,{PIXEL}"


def test_a_file_as_the_body_has_the_librarys_embedding(client: httpx.Client, encoder: Encoder) -> None:
    answer = client.post("/v1/images", content=JPEG.read_bytes(), headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 200
    found = np.array([one["embedding"] for one in answer.json()["data"]], np.float32)
    assert np.array_equal(found, encoder.encode_image([JPEG]))


def test_several_files_come_as_multipart_and_go_as_an_array(client: httpx.Client, encoder: Encoder) -> None:
    files = [("file", (path.name, path.read_bytes())) for path in (JPEG, PNG)]
    answer = client.post("/v1/images", files=files, headers={"Accept": "application/x-npy"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-npy"
    found = np.load(io.BytesIO(answer.content))
    np.testing.assert_allclose(found, encoder.encode_image([JPEG, PNG]), rtol=1e-4, atol=1e-4)


def test_answers_say_which_embeddings_they_hold_and_what_they_took(client: httpx.Client, encoder: Encoder) -> None:
    answer = client.post("/v1/embeddings", json={"input": PIXEL_URL})
    assert answer.headers["x-encoder"] == "clip/demo"
    assert answer.headers["x-encoder-fingerprint"] == encoder.fingerprint
    assert re.fullmatch(r"queue;dur=[\d.]+, prepare;dur=[\d.]+, embed;dur=[\d.]+", answer.headers["server-timing"])


def test_the_models_are_listed(client: httpx.Client, encoder: Encoder) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "clip/demo"
    assert model["modalities"] == ["image", "text"]
    assert (model["dim"], model["fingerprint"]) == (encoder.dim, encoder.fingerprint)


def test_the_address_alone_leads_to_the_documentation(client: httpx.Client) -> None:
    answer = client.get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "docs")


def test_the_service_is_live_and_ready(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready", "models": {"clip/demo": "ready"}}


def test_what_is_answered_is_counted(client: httpx.Client) -> None:
    def counted() -> float:
        line = re.search(
            r'image_encoders_items_total\{modality="text",model="clip/demo",outcome="embedded"\} (\S+)',
            client.get("/metrics").text,
        )
        return float(line[1]) if line else 0.0

    before = counted()
    client.post("/v1/embeddings", json={"input": ["one", "two", "three"]})
    assert counted() == before + 3


def test_metrics_name_routes_and_not_what_clients_make_up(client: httpx.Client) -> None:
    client.get("/made-up-by-a-client")
    assert "made-up" not in client.get("/metrics").text


def test_what_the_guards_refuse_is_counted_too(client: httpx.Client) -> None:
    assert client.get("/v1/models", headers={"Host": "other.example"}).status_code == 421
    assert 'method="GET",route="none",status="421"' in client.get("/metrics").text


def test_the_documentation_comes_from_this_host_alone(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    named = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert {"/docs/docs.js", "/docs/docs.css"} <= set(named)
    for name in named:
        assert client.get(name).status_code == 200, name


def test_every_example_of_the_documentation_works(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    tried = 0
    for path, methods in described["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        if "application/json" in content and path.startswith(("/v1/embeddings", "/v2/")):
            name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
            for example in described["components"]["schemas"][name]["examples"]:
                answer = client.post(path, json=example)
                assert answer.status_code == 200, (path, example, answer.text)
                tried += 1
    assert tried >= 5


REFUSED = {
    "no such path": ("GET", "/nothing", {}, 404, "not_found"),
    "another method": ("DELETE", "/v1/embeddings", {}, 405, "method_not_allowed"),
    "no JSON": (
        "POST",
        "/v1/embeddings",
        {"content": b"{", "headers": {"Content-Type": "application/json"}},
        400,
        "invalid_request",
    ),
    "no input": ("POST", "/v1/embeddings", {"json": {}}, 400, "invalid_request"),
    "an unknown field": ("POST", "/v1/embeddings", {"json": {"input": "a", "dimension": 3}}, 400, "invalid_request"),
    "a wrong input": ("POST", "/v1/embeddings", {"json": {"input": [{"texts": "a"}]}}, 400, "invalid_request"),
    "two things in one": (
        "POST",
        "/v1/embeddings",
        {"json": {"input": [{"text": "a", "image": "b"}]}},
        400,
        "invalid_request",
    ),
    "an empty list": ("POST", "/v1/embeddings", {"json": {"input": []}}, 400, "no_items"),
    "tokens": ("POST", "/v1/embeddings", {"json": {"input": [1, 2, 3]}}, 400, "token_arrays"),
    "lists of tokens": ("POST", "/v1/embeddings", {"json": {"input": [[1, 2, 3]]}}, 400, "token_arrays"),
    "fewer dimensions": ("POST", "/v1/embeddings", {"json": {"input": "a", "dimensions": 64}}, 400, "dimensions"),
    "more dimensions": ("POST", "/v1/embeddings", {"json": {"input": "a", "dimensions": 999}}, 400, "dimensions"),
    "another model": ("POST", "/v1/embeddings", {"json": {"input": "a", "model": "gpt"}}, 404, "model_not_found"),
    "too many items": ("POST", "/v1/embeddings", {"json": {"input": ["a"] * 2049}}, 413, "too_many_items"),
    "a million parts": ("POST", "/v1/embeddings", {"json": {"input": [{}] * 1_000_000}}, 413, "too_many_parts"),
    "a URL": ("POST", "/v1/embeddings", {"json": {"input": {"url": "http://127.0.0.1/a.jpg"}}}, 422, "bad_items"),
    "no image": ("POST", "/v1/embeddings", {"json": {"input": {"bytes": "bm8gaW1hZ2U="}}}, 422, "bad_items"),
    "a sound": ("POST", "/v1/embeddings", {"json": {"input": {"audio": "bm8gaW1hZ2U="}}}, 422, "bad_items"),
    "Cohere, nothing": ("POST", "/v2/embed", {"json": {}}, 400, "invalid_request"),
    "Cohere, both": ("POST", "/v2/embed", {"json": {"texts": ["a"], "images": [PIXEL_URL]}}, 400, "invalid_request"),
    "Cohere, no image": ("POST", "/v2/embed", {"json": {"images": ["data:image/png;base64,bm8="]}}, 422, "bad_items"),
    "an empty file": ("POST", "/v1/images", {"content": b""}, 422, "bad_items"),
    "no image file": ("POST", "/v1/images", {"content": b"<html>"}, 422, "bad_items"),
    "a wrong query": ("POST", "/v1/images?encoding_format=x", {"content": b"a"}, 400, "invalid_request"),
    "a field": ("POST", "/v1/images", {"data": {"a": "b"}, "files": {"file": b"a"}}, 400, "invalid_request"),
    "no boundary": (
        "POST",
        "/v1/images",
        {"content": b"a", "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "invalid_request",
    ),
    "npy of a part": (
        "POST",
        "/v1/images?partial=true",
        {"content": b"a", "headers": {"Accept": "application/x-npy"}},
        400,
        "partial",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.replace(" ", "-").replace(",", ""))
def test_every_refusal_has_the_same_body(client: httpx.Client, case: str) -> None:
    method, path, options, status, code = REFUSED[case]
    answer = client.request(method, path, **options)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    body = answer.json()
    assert set(body) == {"error", "type", "title", "status", "detail", "items", "request_id"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["status"] == status
    assert body["detail"] == body["error"]["message"]
    assert (status == 422) == bool(body["items"])
    assert len(body["detail"]) < 1000


def test_token_arrays_are_refused_with_the_remedy(client: httpx.Client) -> None:
    said = client.post("/v1/embeddings", json={"input": [[1, 2], [3]]}).json()["error"]["message"]
    assert "check_embedding_ctx_length=False" in said


def test_nothing_that_a_service_says_names_a_path_of_its_machine(server: Server, client: httpx.Client) -> None:
    here = str(Path(__file__).parents[2])
    said = [client.get(path).text for path in ("/v1/models", "/health/ready", "/metrics", "/openapi.json", "/docs")]
    said.append(client.post("/v1/embeddings", json={"input": {"bytes": "bm8gaW1hZ2U="}}).text)
    assert not [text for text in said if here in text or "site-packages" in text]
