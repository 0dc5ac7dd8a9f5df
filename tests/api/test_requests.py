"""What clients send, understood without a service."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from image_encoders.api.items import Item
from image_encoders.api.requests import PIXEL, EmbeddingCall, EmbeddingsRequest, EmbedRequest, Limits
from image_encoders.api.responses import Form, RequestError
from image_encoders.errors import InputError

BYTES = base64.b64decode(PIXEL)
URL = f"data:image/png;base64,{PIXEL}"
SOUND = "data:audio/wav;base64,UklGRg=="


def read(limits: Limits | None = None, **body: Any) -> EmbeddingCall:
    return EmbeddingsRequest.model_validate(body).call(limits or Limits())


@pytest.mark.parametrize(
    ("said", "modality", "item"),
    [
        ("a text", None, Item("text", "a text")),
        ("", None, Item("text", "")),
        ("https://a.example/b.jpg", None, Item("text", "https://a.example/b.jpg")),
        ("https://a.example/b.jpg", "image", Item("image", url="https://a.example/b.jpg")),
        (URL, None, Item("image", BYTES)),
        (URL, "text", Item("text", URL)),
        (SOUND, None, Item("audio", b"RIFF")),
        (PIXEL, "image", Item("image", BYTES)),
        ({"text": URL}, None, Item("text", URL)),
        ({"image": PIXEL}, None, Item("image", BYTES)),
        ({"image": URL}, "audio", Item("image", BYTES)),
        ({"audio": "UklGRg=="}, None, Item("audio", b"RIFF")),
        ({"url": SOUND}, None, Item("audio", b"RIFF")),
        ({"url": "http://a.example/b"}, None, Item("image", url="http://a.example/b")),
        ({"bytes": PIXEL}, None, Item("image", BYTES)),
        ({"bytes": "UklGRg=="}, "audio", Item("audio", b"RIFF")),
    ],
)
def test_an_item_is_what_it_is_called_or_looks_like(said: Any, modality: str | None, item: Item) -> None:
    assert list(read(input=said, modality=modality).items) == [item]
    assert list(read(input=[said, "b"], modality=modality).items)[:1] == [item]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("data:image/png;base64,?", "url"),
        ("data:image/png", "url"),
        ({"image": "?"}, "base64"),
        ({"bytes": URL}, "base64"),
        ({"url": "file:///etc/passwd"}, "url"),
        ({"url": "/etc/passwd"}, "url"),
        ({"image": "/etc/passwd"}, "base64"),
        ({"image": PIXEL * 3}, "too-many-bytes"),
        ("x" * 33, "too-many-bytes"),
    ],
)
def test_a_bad_item_is_an_error_of_its_own(said: Any, code: str) -> None:
    limits = Limits(max_file_bytes=100, max_text_bytes=32)
    bad, good = read(limits, input=[said, "a"]).items
    assert isinstance(bad, InputError)
    assert bad.code == code
    assert good == Item("text", "a")


def test_as_many_items_are_accepted_as_the_limit_says() -> None:
    assert len(read(Limits(max_items=3), input=["a"] * 3).items) == 3
    with pytest.raises(RequestError, match="at most 3") as refused:
        read(Limits(max_items=3), input=["a"] * 4)
    assert refused.value.status == 413


def test_of_many_wrong_items_the_first_is_named() -> None:
    with pytest.raises(ValidationError) as refused:
        EmbeddingsRequest.model_validate({"input": [{}] * 100_000})
    assert refused.value.error_count() < 10


def test_coheres_inputs_have_one_part_each() -> None:
    inputs = [{"content": [{"type": "text", "text": "a"}]}, {"content": [{"type": "text"}]}]
    good, bad = EmbedRequest.model_validate({"inputs": inputs}).call(Limits()).items
    assert good == Item("text", "a")
    assert isinstance(bad, InputError)
    with pytest.raises(ValidationError):
        EmbedRequest.model_validate({"inputs": [{"content": [{"type": "text", "text": "a"}] * 2}]})


def test_embeddings_of_unit_length_are_rounded_to_int8_and_signs_are_packed() -> None:
    embedding = np.float32([3, -4, 0, 0, 0, 0, 0, 0, 1e-3])
    unit = embedding / np.linalg.norm(embedding)
    assert Form("int8").value(embedding) == np.round(127 * unit).astype(int).tolist()
    assert Form("int8").value(np.float32([0, 2])) == [0, 127]
    assert Form("ubinary").value(embedding) == [0b10000000, 0b10000000]
    assert Form(normalized=True).value(np.float32([3, -4])) == pytest.approx([0.6, -0.8])
    assert Form(normalized=True).value(np.zeros(2, np.float32)) == [0, 0]
    assert Form().value(embedding) == embedding.tolist()
    said = Form("int8", "base64").value(embedding)
    assert np.frombuffer(base64.b64decode(str(said)), np.int8).tolist() == Form("int8").value(embedding)
