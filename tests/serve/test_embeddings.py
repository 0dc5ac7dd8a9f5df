"""/v1/embeddings of a service in a process of its own."""

from __future__ import annotations

import base64
from pathlib import Path

import httpx
import numpy as np
from service_process import serving

from image_encoders.conformance import bundle
from image_encoders.encoder import Encoder

IMAGES = sorted(path for path in (bundle.FOLDER / "images").iterdir() if path.suffix in (".jpg", ".png", ".webp"))


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


def test_bad_items_are_named_and_all_others_embedded_where_partial_answers_are_wanted(
    client: httpx.Client, encoder: Encoder
) -> None:
    answer = post(client, input=[{"bytes": "bm8="}, data_url(IMAGES[0]), {"image": "?"}], partial=True)
    assert answer.status_code == 200
    first, second, third = answer.json()["data"]
    assert (first["embedding"], first["error"]["code"], first["error"]["index"]) == (None, "not-an-image", 0)
    assert (third["embedding"], third["error"]["code"]) == (None, "base64")
    np.testing.assert_allclose([second["embedding"]], encoder.encode_image(IMAGES[:1]), rtol=1e-4, atol=1e-4)


def test_partial_answers_are_advised_only_where_they_can_be_asked_for(client: httpx.Client) -> None:
    advised = post(client, input=["a", {"image": "?"}]).json()["error"]
    assert (advised["param"], "partial=true" in advised["message"]) == ("input", True)
    cohere = client.post("/v2/embed", json={"images": ["?"]}).json()["error"]
    assert (cohere["param"], "partial" in cohere["message"]) == ("images", False)
    files = client.post("/v1/images", content=b"no image").json()["error"]
    assert (files["param"], "partial=true" in files["message"]) == ("file", True)
    array = client.post("/v1/images", content=b"no image", headers={"Accept": "application/x-npy"}).json()["error"]
    assert (array["param"], "partial" in array["message"]) == ("file", False)


def test_a_wrong_length_is_named_as_the_request_names_it(client: httpx.Client) -> None:
    found = post(client, input="a", dimensions=3).json()["error"]
    assert (found["param"], found["message"][:16]) == ("dimensions", "dimensions is 3;")
    cohere = client.post("/v2/embed", json={"texts": ["a"], "output_dimension": 3}).json()["error"]
    assert (cohere["param"], cohere["message"][:22]) == ("output_dimension", "output_dimension is 3;")


def test_a_list_in_batches_of_one_has_the_librarys_embeddings_to_the_last_bit(encoder: Encoder) -> None:
    # With --batch-size 1 every batch of the service is that of the library with batch_size=1, whatever else comes.
    with serving("--batch-size", "1") as server, server.client() as client:
        found = embeddings(post(client, input=[data_url(path) for path in IMAGES]))
        assert np.array_equal(found, encoder.encode_image(IMAGES, batch_size=1))
        texts = ["a red circle", "two", "a green heart and a yellow square"]
        assert np.array_equal(embeddings(post(client, input=texts)), encoder.encode_text(texts, batch_size=1))


def test_what_an_item_is_can_be_said_in_many_ways(client: httpx.Client, encoder: Encoder) -> None:
    image = base64.b64encode(IMAGES[0].read_bytes()).decode()
    url = data_url(IMAGES[0])
    said = [url, {"image": url}, {"image": image}, {"url": url}, {"bytes": image}]
    found = embeddings(post(client, input=said))
    np.testing.assert_allclose(found, encoder.encode_image([IMAGES[0]] * len(said)), rtol=1e-4, atol=1e-4)
    assert np.array_equal(embeddings(post(client, input=image, modality="image")), encoder.encode_image(IMAGES[:1]))
    text = encoder.encode_text(["http://a.example/b.jpg", "data:"])
    assert np.array_equal(embeddings(post(client, input="http://a.example/b.jpg")), text[:1])
    assert np.array_equal(embeddings(post(client, input="data:", modality="text")), text[1:])


def test_embeddings_come_in_the_form_that_was_asked_for(client: httpx.Client, encoder: Encoder) -> None:
    (plain,) = encoder.encode_text(["a red circle"])
    unit = plain / np.linalg.norm(plain.astype(np.float64))

    def found(**form: object) -> object:
        return post(client, input="a red circle", **form).json()["data"][0]["embedding"]

    assert np.array_equal(np.float32(found()), plain)
    assert np.array_equal(np.frombuffer(base64.b64decode(str(found(encoding_format="base64"))), "<f4"), plain)
    np.testing.assert_allclose(found(normalized=True), unit, rtol=1e-6)
    assert found(embedding_type="int8") == np.round(127 * unit).astype(int).tolist()
    assert found(embedding_type="ubinary") == np.packbits(plain > 0).tolist()
    assert np.array_equal(np.float32(found(dimensions=encoder.dim)), plain)


def test_lists_as_long_as_openais_are_admitted_whatever_the_length_of_the_queue(encoder: Encoder) -> None:
    texts = [f"text {number}" for number in range(64)]
    with serving("--max-waiting", "40") as server, server.client() as client:
        found = embeddings(post(client, input=32 * texts))
    np.testing.assert_allclose(found, np.tile(encoder.encode_text(texts), (32, 1)), rtol=1e-3, atol=1e-3)
