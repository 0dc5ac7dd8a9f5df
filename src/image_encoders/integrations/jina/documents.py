"""The `Document` of the executors' documentation, on docarray's BaseDoc."""

# Annotations stay objects here: as text, a schema or an executor makes Jina's start-up hang for ever.
from collections.abc import Iterable, Iterator
from typing import Any, Dict, List, Optional

import numpy as np
from docarray import BaseDoc
from docarray.typing import NdArray
from pydantic import Field, field_validator

from image_encoders.errors import InputError

BRANCHES = {"c": "chunks", "m": "matches"}


def _untold(schema: Dict[str, Any]) -> None:
    """Leaves out of a schema what the documents below are.

    A Flow's gateway builds a class from the schema of each Executor. From one that refers to itself it cannot, and a
    Flow of two Executors would not start. What it is told does not change what documents hold.
    """
    schema.clear()
    schema.update({"type": "array", "items": {"type": "object"}, "default": None})


class Document(BaseDoc):
    """A document: pixels, samples, encoded bytes, an address or a text; documents below it; and its embedding.

    blob, tensor: an array, such as (H, W, 3) uint8; two names of the same thing, `tensor` is looked at first
    buffer: the bytes of a picture or sound file
    uri: a data:, http: or https: address of one
    tags: anything; after encoding, `error` and `error_code` where the document could not be encoded

    `Document(other)` copies; an unknown field is an error.
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
    chunks: Optional[List["Document"]] = Field(None, json_schema_extra=_untold)
    matches: Optional[List["Document"]] = Field(None, json_schema_extra=_untold)

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

    @property
    def array(self) -> Optional[np.ndarray]:
        """The pixels or samples, if there are any."""
        return self.tensor if self.tensor is not None else self.blob


def traversal(paths: Any) -> list[str]:
    """Paths as words of "r", "c" and "m": from "r", ["c"], ("cc", "r"), "@r,cc"; InputError for others."""
    given = [paths] if isinstance(paths, str) else paths
    if not isinstance(given, Iterable) or not all(isinstance(path, str) for path in given):
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
