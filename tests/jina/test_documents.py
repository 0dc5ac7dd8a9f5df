"""`Document`, and the paths through a tree of them."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from image_encoders.errors import InputError
from image_encoders.integrations.jina import Document
from image_encoders.integrations.jina.documents import traversal, traverse


def test_a_blob_is_kept_as_it_is() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    kept = Document(blob=pixels).blob
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(kept, pixels)


def test_a_document_can_be_copied_from_another() -> None:
    doc = Document(text="a", tags={"x": 1}, chunks=[Document(text="b")])
    copy = Document(doc, text="c")
    assert (copy.text, copy.tags, copy.chunks[0].text, copy.id) == ("c", {"x": 1}, "b", doc.id)


@pytest.mark.parametrize("field", ["blob", "tensor", "embedding"])
@pytest.mark.parametrize("value", [b"\x89PNG", bytearray(b"x"), "text"])
def test_bytes_and_text_are_not_arrays(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match="buffer"):
        Document(**{field: value})


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(ValidationError, match="pixels"):
        Document(pixels=np.zeros(3))


@pytest.mark.parametrize(
    ("paths", "meant"),
    [
        ("r", ["r"]),
        (["c"], ["c"]),
        (("cc", "r"), ["cc", "r"]),
        ("@r,cc", ["r", "cc"]),
        ("@c, m", ["c", "m"]),
        (["r,c", "@m"], ["r", "c", "m"]),
    ],
)
def test_paths_come_in_every_spelling(paths: object, meant: list[str]) -> None:
    assert traversal(paths) == meant


@pytest.mark.parametrize("paths", ["x", "", "@", ["r", 3], 7, "r-c", "@c[:2]"])
def test_other_paths_are_refused(paths: object) -> None:
    with pytest.raises(InputError, match="traversal path"):
        traversal(paths)


def test_paths_lead_through_chunks_and_matches_each_document_once() -> None:
    tree = Document(
        text="r",
        chunks=[Document(text="c1", chunks=[Document(text="cc")]), Document(text="c2", matches=[Document(text="cm")])],
        matches=[Document(text="m")],
    )

    def texts(*paths: str) -> list[str]:
        return [doc.text for doc in traverse([tree, Document(text="r2")], list(paths))]

    assert texts("r") == ["r", "r2"]
    assert texts("c") == texts("rc") == ["c1", "c2"]
    assert texts("cc", "cm", "m") == ["cc", "cm", "m"]
    assert texts("r", "c", "r") == ["r", "r2", "c1", "c2"]
