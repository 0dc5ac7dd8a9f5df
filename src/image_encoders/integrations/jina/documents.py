"""The `Document` of the executors' documentation, on docarray's BaseDoc."""

# Annotations stay objects here: as text, a schema or an executor makes Jina hang at start-up.
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Dict, List, Optional

import numpy as np
from docarray import BaseDoc
from docarray.typing import NdArray
from pydantic import Field, field_validator

from image_encoders.errors import InputError

BRANCHES = {"c": "chunks", "m": "matches"}
DEEPEST = 16  # levels of documents and tags within each other: gRPC reads messages 100 deep, and each takes five


def _undescribed(schema: Dict[str, Any]) -> None:
    """Leaves out of a schema what the documents below are.

    A Flow's gateway builds a class from the schema of each Executor. From one that refers to itself it cannot, and a
    Flow of two Executors would not start. The description does not change what documents hold.
    """
    schema.clear()
    schema.update({"type": "array", "items": {"type": "object"}, "default": None})


class Document(BaseDoc):
    """A document: pixels, samples, encoded bytes, an address or a text; documents below it; and its embedding.

    blob, tensor: an array, such as (H, W, 3) uint8; two names of the same thing, `tensor` is looked at first
    buffer: the bytes of an image or sound file
    uri: a data:, http: or https: address of one
    tags: anything; after encoding, `error` and `error_code` where the document could not be encoded

    `Document(other)` copies; an unknown field is an error. A document that no message can hold (nested too deeply or in
    itself, text that is not Unicode) fails alone: it arrives with its id and the reason in its tags.
    """

    model_config = {**BaseDoc.model_config, "extra": "forbid"}

    text: Optional[str] = None
    blob: Optional[NdArray] = None
    tensor: Optional[NdArray] = None
    buffer: Optional[bytes] = None
    uri: Optional[str] = None
    mime_type: Optional[str] = None
    tags: Dict[str, Any] = {}
    embedding: Optional[NdArray] = None
    chunks: Optional[List["Document"]] = Field(None, json_schema_extra=_undescribed)
    matches: Optional[List["Document"]] = Field(None, json_schema_extra=_undescribed)

    def __init__(self, other: Optional[BaseDoc] = None, /, **fields: Any):
        copied = {} if other is None else {name: getattr(other, name) for name in type(self).model_fields}
        super().__init__(**{**copied, **fields})

    @field_validator("blob", "tensor", "embedding", mode="before")
    @classmethod
    def _only_arrays(cls, value: Any) -> Any:
        """Bytes would silently become an array of nonsense."""
        if isinstance(value, (bytes, bytearray, memoryview, str)):
            raise ValueError("an array is expected; the bytes of a file go into `buffer`, an address into `uri`")
        return value

    @field_validator("blob", "tensor", "embedding")
    @classmethod
    def _no_objects(cls, value: Optional[np.ndarray]) -> Optional[np.ndarray]:
        """No message can hold them."""
        if value is not None and value.dtype.hasobject:
            raise ValueError(f"an array of Python objects, shape {value.shape}; arrays of numbers are accepted")
        return value

    def to_protobuf(self) -> Any:
        """This document as a message; where that cannot be, its id with the reason in its tags.

        Jina creates messages while it sends them; exceptions raised there are lost.
        """
        if _nested_deeper_than(DEEPEST, self):
            return self._failed(f"nested more than {DEEPEST} levels deep, or within itself").to_protobuf()
        try:
            return super().to_protobuf()
        except Exception as error:
            reason = error.__cause__ or error
            return self._failed(
                f"it cannot be sent: {reason.args[-1] if reason.args else type(reason).__name__}"
            ).to_protobuf()

    @classmethod
    def from_protobuf(cls, message: Any) -> "Document":
        """The document of a message; one that cannot be read has the reason in its tags."""
        try:
            return super().from_protobuf(message)
        except Exception as error:
            return cls(id=message.data["id"].text)._failed(f"it cannot be read: {type(error).__name__}")

    def _failed(self, reason: str) -> "Document":
        name = str(self.id).encode("utf-8", "ignore").decode()
        return type(self)(id=name, tags={"error": reason, "error_code": "document"})

    @property
    def array(self) -> Optional[np.ndarray]:
        """The pixels or samples, if there are any."""
        return self.tensor if self.tensor is not None else self.blob


def _nested_deeper_than(levels: int, document: Document) -> bool:
    """Whether documents, and the containers in their tags, are within each other for more than so many levels."""
    level: dict[int, Any] = {id(document): document}
    for _ in range(levels):
        below = [inner for outer in level.values() for inner in _inside(outer)]
        level = {id(one): one for one in below if isinstance(one, (Document, Mapping, list, tuple, set))}
        if not level:
            return False
    return True


def _inside(container: Any) -> Iterable[Any]:
    if isinstance(container, Document):
        return [*(container.chunks or []), *(container.matches or []), *container.tags.values()]
    return container.values() if isinstance(container, Mapping) else container


def traversal(paths: Any) -> list[str]:
    """Paths as words of "r", "c" and "m": from "r", ["c"], ("cc", "r"), "@r,cc"; InputError for others."""
    given = [paths] if isinstance(paths, str) else paths
    if not isinstance(given, (list, tuple)) or not given or not all(isinstance(path, str) for path in given):
        raise InputError(f"traversal paths {paths!r}; accepted: 'r', ['c'], ('cc', 'r'), '@r,cc'", code="option")
    found = [path.strip() for text in given for path in text.removeprefix("@").split(",")]
    for path in found:
        if path != "r" and (not path or set(path.removeprefix("r")) - set(BRANCHES)):
            raise InputError(
                f"traversal path {path!r}; accepted: r (the documents), c (their chunks), m (their matches), cc, ...",
                code="option",
            )
    return found


def traverse(docs: Iterable[Any], paths: list[str]) -> Iterator[Any]:
    """The documents that the paths lead to, each once, in order."""
    docs = list(docs)
    seen: set[int] = set()
    for path in paths:
        level = docs
        for step in path.removeprefix("r"):
            level = [below for doc in level for below in (getattr(doc, BRANCHES[step]) or [])]
        for doc in level:
            if id(doc) not in seen:
                seen.add(id(doc))
                yield doc
