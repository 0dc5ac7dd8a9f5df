"""`Document`, and the paths through a tree of them."""

from __future__ import annotations

import numpy as np
import pytest
from jina.proto.jina_pb2 import DataRequestProto
from pydantic import ValidationError

from image_encoders.errors import InputError
from image_encoders.integrations.jina import DocList, Document
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


@pytest.mark.parametrize(
    "value", [np.array([1, "a"], object), np.array([None, 1]), np.zeros(2, [("a", object)]), [None, {}]]
)
def test_arrays_of_objects_are_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="arrays of numbers are accepted"):
        Document(blob=value)


def nested(levels: int) -> Document:
    document = Document(text="innermost", tags={"levels": levels})
    for _ in range(levels):
        document = Document(chunks=[document])
    return document


def sent(document: Document) -> Document:
    """What arrives of it, through the same limit on messages as gRPC's."""
    wire = DocList[Document]([document]).to_protobuf().SerializeToString()
    message = DataRequestProto()
    message.data.docs.ParseFromString(wire)
    return DocList[Document].from_protobuf(DataRequestProto.FromString(message.SerializeToString()).data.docs)[0]


def in_itself() -> Document:
    document = Document(chunks=[])
    document.chunks.append(document)
    document.chunks.append(document)
    return document


def tags_in_themselves() -> Document:
    tags: dict[str, object] = {}
    tags["again"] = tags
    document = Document()
    document.tags["tags"] = tags
    return document


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nested(17), "nested more than 16 levels"),
        (lambda: nested(200), "nested more than 16 levels"),
        (in_itself, "nested more than 16 levels"),
        (tags_in_themselves, "nested more than 16 levels"),
        (lambda: Document(text="half of \ud83d"), "surrogates not allowed"),
        (lambda: Document(tags={"a": "\udc00"}), "surrogates not allowed"),
        (lambda: Document(tags={"a": object()}), "not supported"),
        (lambda: Document(tags={"a": 2**70}), "it cannot be sent"),
    ],
)
def test_a_document_that_no_message_can_hold_arrives_with_the_reason(make: object, reason: str) -> None:
    document = make()
    found = sent(document)
    assert found.id == document.id
    assert reason in found.tags["error"]
    assert found.tags["error_code"] == "document"
    assert found.chunks is found.text is None


def test_only_the_part_that_cannot_be_sent_is_replaced() -> None:
    found = sent(Document(text="kept", chunks=[Document(text="\ud800"), Document(text="kept too")]))
    assert (found.text, found.chunks[1].text, found.tags) == ("kept", "kept too", {})
    assert found.chunks[0].tags["error_code"] == "document"


def test_an_id_that_is_not_unicode_does_not_stop_its_document() -> None:
    assert sent(Document(id="a\ud800b")).id == "ab"


@pytest.mark.parametrize("levels", [0, 1, 15])
def test_documents_nested_less_deeply_arrive(levels: int) -> None:
    found = sent(nested(levels))
    for _ in range(levels):
        (found,) = found.chunks
    assert (found.text, found.tags) == ("innermost", {"levels": levels})


def test_a_message_that_cannot_be_read_is_a_document_that_failed() -> None:
    message = Document(id="mine", blob=np.zeros(3, np.uint8)).to_protobuf()
    message.data["blob"].ndarray.dense.dtype = "O"
    found = Document.from_protobuf(message)
    assert (found.id, found.blob, found.tags["error_code"]) == ("mine", None, "document")


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


@pytest.mark.parametrize("paths", ["x", "", "@", ["r", 3], 7, "r-c", "@c[:2]", [], (), {"r": 1}, {"r"}])
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
