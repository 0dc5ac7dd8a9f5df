"""OpenAI's requests to a real Flow, through a gateway of ours; its Executors run in processes of their own."""

from __future__ import annotations

import base64
import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import image_encoders as ie
from image_encoders.integrations.jina import EmbeddingsGateway, Flow


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


@pytest.fixture(scope="module", params=["through the whole Flow", "to its Executor"])
def client(request: pytest.FixtureRequest, demo: str) -> Iterator[httpx.Client]:
    """A client of a Flow with an Executor for images and one for texts."""
    port = free_port()
    targets = {"image": "images", "text": "texts"} if request.param == "to its Executor" else None
    options = {"pretrained_model_name_or_path": demo}
    flow = (
        Flow()
        .config_gateway(
            uses=EmbeddingsGateway, protocol="http", port=port, uses_with={"model": "clip/demo", "targets": targets}
        )
        .add(name="images", uses="CLIPImageEncoder", uses_with=options)
        .add(name="texts", uses="CLIPTextEncoder", uses_with=options)
    )
    with flow, httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as one:
        yield one


@pytest.fixture(scope="module")
def encoder(demo: str) -> ie.Encoder:
    return ie.load(f"clip/{demo}", crop="round", precision="float32")


def embeddings(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return np.array([one["embedding"] for one in data], np.float32)


def test_texts_and_images_get_the_librarys_embeddings_in_order(
    client: httpx.Client, images: list[np.ndarray], encoder: ie.Encoder
) -> None:
    texts = ["a red circle", "a blue square"]
    body = {"model": "clip/demo", "input": [texts[0], data_url(png(images[0])), {"text": texts[1]}]}
    found = embeddings(client.post("/v1/embeddings", json=body))
    wanted = np.stack(
        [encoder.encode_text(texts)[0], encoder.encode_image(images[:1])[0], encoder.encode_text(texts)[1]]
    )
    np.testing.assert_allclose(found, wanted, atol=2e-4 * np.abs(wanted).max())
    many = [data_url(png(images[number % len(images)])) for number in range(230)]  # several requests of the Flow
    found = embeddings(client.post("/v1/embeddings", json={"input": many}))
    wanted = encoder.encode_image(images)[np.arange(230) % len(images)]
    np.testing.assert_allclose(found, wanted, atol=2e-4 * np.abs(wanted).max())


def test_the_form_of_the_answer_is_the_services_own(client: httpx.Client, encoder: ie.Encoder) -> None:
    body: dict[str, Any] = {"input": "a red circle", "normalized": True}
    wanted = encoder.encode_text(["a red circle"])[0]
    wanted /= np.linalg.norm(wanted)
    answer = client.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
    found = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    int8 = embeddings(client.post("/v1/embeddings", json={**body, "embedding_type": "int8"}))[0]
    assert np.abs(int8 - np.round(127 * wanted)).max() <= 1


def test_bad_items_are_named_and_others_answered_with_partial(client: httpx.Client, images: list[np.ndarray]) -> None:
    good, bad = data_url(png(images[0])), data_url(png(images[0])[:60])
    refused = client.post("/v1/embeddings", json={"input": [good, bad, "a red circle", {"url": "https://example.org"}]})
    assert refused.status_code == 422
    assert [(one["index"], one["code"]) for one in refused.json()["items"]][1:] == [(3, "urls-off")]
    assert refused.json()["items"][0]["index"] == 1
    answer = client.post("/v1/embeddings", json={"input": [good, bad, "a red circle"], "partial": True}).json()
    assert [one["embedding"] is None for one in answer["data"]] == [False, True, False]
    sound = client.post("/v1/embeddings", json={"input": [{"audio": base64.b64encode(b"RIFF").decode()}]})
    assert sound.status_code == 422


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"{", 400, "invalid_request"),
        (b"{}", 400, "invalid_request"),
        (b'{"input": []}', 400, "no_items"),
        (b'{"input": [[1, 2]]}', 400, "token_arrays"),
        (b'{"input": "a", "model": "other"}', 404, "model_not_found"),
        (b'{"input": "a", "dimensions": 7}', 400, "dimensions"),
        (b'{"input": "a", "colour": 7}', 400, "invalid_request"),
    ],
)
def test_refusals_have_the_services_one_body(client: httpx.Client, content: bytes, status: int, code: str) -> None:
    answer = client.post("/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["detail"] == answer.json()["error"]["message"]


def test_it_says_what_it_is(client: httpx.Client) -> None:
    assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["clip/demo"]
    assert "/v1/embeddings" in client.get("/openapi.json").json()["paths"]
    assert client.get("/").status_code == 200  # Jina's own probe
    assert client.get("/nothing").json()["error"]["code"] == "not_found"


def test_a_flow_from_yaml_may_have_it(tmp_path: Path, demo: str) -> None:
    port = free_port()
    path = tmp_path / "flow.yml"
    path.write_text(
        "jtype: Flow\n"
        f"gateway: {{uses: EmbeddingsGateway, py_modules: [image_encoders.integrations.jina], protocol: http, "
        f"port: {port}, uses_with: {{model: texts}}}}\n"
        f"executors: [{{uses: CLIPTextEncoder, uses_with: {{pretrained_model_name_or_path: '{demo}'}}}}]\n"
    )
    with Flow.load_config(path):
        body = {"model": "texts", "input": "a red circle"}
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/embeddings", json=body, trust_env=False, timeout=60)
        assert embeddings(answer).shape == (1, 128)
