"""/v1/embeddings of a service in a process of its own."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import numpy as np
import pytest

from image_encoders.conformance import bundle
from image_encoders.encoder import Encoder
from image_encoders.models import load

IMAGES = sorted(path for path in (bundle.FOLDER / "images").iterdir() if path.suffix in (".jpg", ".png", ".webp"))


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    return load("clip/demo", precision="float32")


def data_url(path: Path) -> str:
    return f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def post(client: httpx.Client, **body: object) -> httpx.Response:
    return client.post("/v1/embeddings", json=body)


def embeddings(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return np.array([one["embedding"] for one in data], np.float32)


def test_an_image_alone_has_the_librarys_embedding_to_the_last_bit(client: httpx.Client, encoder: Encoder) -> None:
    # A request of one image to a service with nothing else to do is a batch of one; so is it for the library here.
    for path in IMAGES:
        found = embeddings(post(client, input=data_url(path)))
        assert np.array_equal(found, encoder.encode_image([path], batch_size=1)), path


def test_a_list_has_its_embeddings_in_its_order(client: httpx.Client, encoder: Encoder) -> None:
    found = embeddings(post(client, input=[data_url(path) for path in IMAGES]))
    np.testing.assert_allclose(found, encoder.encode_image(IMAGES), rtol=1e-4, atol=1e-4)


def test_texts_and_images_may_come_together(client: httpx.Client, encoder: Encoder) -> None:
    found = embeddings(post(client, input=["a red circle", data_url(IMAGES[0])]))
    np.testing.assert_allclose(found[:1], encoder.encode_text(["a red circle"]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1:], encoder.encode_image(IMAGES[:1]), rtol=1e-4, atol=1e-4)


def test_bad_images_fail_their_request_and_are_all_named(client: httpx.Client) -> None:
    truncated = base64.b64encode(IMAGES[0].read_bytes()[:100]).decode()
    answer = post(client, input=["a text", "data:image/png;base64,!", {"image": truncated}, data_url(IMAGES[0])])
    assert answer.status_code == 422
    assert [one["index"] for one in answer.json()["items"]] == [1, 2]
