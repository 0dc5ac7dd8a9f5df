"""The real clients of OpenAI and Cohere, pointed at a service."""

from __future__ import annotations

import base64

import cohere
import httpx
import numpy as np
import openai
import pytest
from service_process import Server

from image_encoders.conformance import bundle
from image_encoders.encoder import Encoder

JPEG = bundle.FOLDER / "images" / "rgb.jpg"
URL = "data:image/jpeg;base64," + base64.b64encode(JPEG.read_bytes()).decode()


@pytest.fixture
def client(server: Server):
    with httpx.Client(trust_env=False) as http:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=http)


def test_openais_client_gets_the_librarys_embeddings(client: openai.OpenAI, encoder: Encoder) -> None:
    answer = client.embeddings.create(model="clip/demo", input=["a red circle"])
    assert np.array_equal(np.float32(answer.data[0].embedding), encoder.encode_text(["a red circle"])[0])
    answer = client.embeddings.create(model="clip/demo", input=URL, encoding_format="float")
    assert np.array_equal(np.float32(answer.data[0].embedding), encoder.encode_image([JPEG])[0])
    assert (answer.model, answer.object, answer.usage.total_tokens) == ("clip/demo", "list", 0)


def test_openais_client_passes_what_is_ours(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(
        model="clip/demo",
        input=[{"image": URL}, {"text": "a"}],  # type: ignore[list-item]
        encoding_format="float",
        extra_body={"normalized": True},
    )
    assert [round(float(np.linalg.norm(one.embedding)), 3) for one in answer.data] == [1.0, 1.0]


def test_openais_client_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["clip/demo"]


def test_openais_client_raises_what_it_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.embeddings.create(model="gpt", input="a")
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as refused:
        client.embeddings.create(model="clip/demo", input=[[1, 2]])
    assert (refused.value.code, refused.value.param) == ("token_arrays", "input")
    with pytest.raises(openai.UnprocessableEntityError, match="item 1") as refused:
        client.embeddings.create(model="clip/demo", input=["a", "data:image/png;base64,bm8="])
    assert refused.value.code == "bad_items"


def test_coheres_client_gets_every_type_of_embedding(server: Server, encoder: Encoder) -> None:
    with httpx.Client(trust_env=False) as http:
        client = cohere.ClientV2(api_key="none", base_url=server.url, httpx_client=http)
        answer = client.embed(
            model="clip/demo",
            texts=["a red circle", "two"],
            input_type="search_query",
            embedding_types=["float", "int8", "ubinary", "base64"],
        )
        expected = encoder.encode_text(["a red circle", "two"])
        found = answer.embeddings
        np.testing.assert_allclose(found.float_, expected, rtol=1e-4, atol=1e-4)
        assert found.int8 is not None
        assert found.ubinary is not None
        assert found.base64 is not None
        assert np.shape(found.int8) == (2, 128)
        assert np.shape(found.ubinary) == (2, 16)
        assert np.array_equal(np.frombuffer(base64.b64decode(found.base64[0]), "<f4"), np.float32(found.float_[0]))
        images = client.embed(
            model="clip/demo", images=[URL], input_type="image", embedding_types=["float"]
        ).embeddings.float_
        assert np.array_equal(np.float32(images), encoder.encode_image([JPEG]))
        mixed = client.embed(
            model="clip/demo",
            inputs=[{"content": [{"type": "image_url", "image_url": {"url": URL}}]}],
            input_type="search_document",
            embedding_types=["float"],
        ).embeddings.float_
        assert np.array_equal(np.float32(mixed), encoder.encode_image([JPEG]))


def test_coheres_client_raises_what_it_knows(server: Server) -> None:
    with httpx.Client(trust_env=False) as http:
        client = cohere.ClientV2(api_key="none", base_url=server.url, httpx_client=http)
        with pytest.raises(cohere.NotFoundError):
            client.embed(model="gpt", texts=["a"], input_type="search_query", embedding_types=["float"])
        with pytest.raises(cohere.UnprocessableEntityError):
            client.embed(model="clip/demo", images=["x"], input_type="image", embedding_types=["float"])
