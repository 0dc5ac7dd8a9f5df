"""Responses: embeddings in the requested form, and the body of every error."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from image_encoders.errors import ImageEncodersError, InputError

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}

Encoding = Literal["float", "base64"]
EmbeddingType = Literal["float", "int8", "ubinary"]


class RequestError(ImageEncodersError):
    """A request that is refused as a whole.

    status: of the response
    code: a short stable word
    param: the field of the request that caused it
    items: the items that caused it, by their positions
    headers: of the response
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        items: Mapping[int, InputError] | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.items, self.headers = dict(items or {}), dict(headers or {})


def bad_items(items: Mapping[int, InputError], count: int, *, param: str, partial: bool) -> RequestError:
    """The error for a request of `count` items some of which have no embedding.

    param: the field that holds them
    partial: whether the request may set `partial`, to get the others
    """
    said = "; ".join(f"item {position}: {error.message}" for position, error in list(items.items())[:3])
    more = f"; and {len(items) - 3} more" if len(items) > 3 else ""
    return RequestError(
        422,
        f"{len(items)} of {count} items cannot be embedded: {said}{more}"
        + (". With partial=true the embeddings of the others are returned" if partial else ""),
        code="bad_items",
        param=param,
        items=items,
    )


class ItemProblem(BaseModel):
    """Why one item has no embedding."""

    index: int = Field(description="The item's position in the request.")
    code: str = Field(description="A short stable word, such as `truncated`.")
    message: str


class ErrorObject(BaseModel):
    """The error object that OpenAI's clients read."""

    message: str
    type: str
    param: str | None = None
    code: str


class Problem(BaseModel):
    """The body of all errors: OpenAI's `error` object, and the fields of RFC 9457."""

    error: ErrorObject
    type: str = "about:blank"
    title: str
    status: int
    detail: str
    items: list[ItemProblem] = Field([], description="The items that caused the error, if any.")
    request_id: str | None = None


def problem(error: RequestError, request_id: str | None = None) -> dict[str, Any]:
    """The response body for a refused request."""
    kind = KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {
        "error": {"message": error.message, "type": kind, "param": error.param, "code": error.code},
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "items": [item_problem(position, one) for position, one in sorted(error.items.items())],
        "request_id": request_id,
    }


def item_problem(position: int, error: InputError) -> dict[str, Any]:
    """Why one item has no embedding, as JSON."""
    return {"index": position, "code": error.code, "message": error.message}


@dataclass(frozen=True)
class Form:
    """How embeddings are written.

    normalized: to unit length
    kind: float32 as they are; int8: round(127 x the unit embedding); ubinary: its signs, eight to a byte, the first one
        in the highest bit
    """

    kind: EmbeddingType = "float"
    encoding: Encoding = "float"
    normalized: bool = False

    def array(self, embedding: np.ndarray) -> np.ndarray:
        """(dim,) float32 as float32, int8 or uint8."""
        if self.kind == "ubinary":
            return np.packbits(embedding > 0)
        if self.kind == "int8":
            return np.round(127 * unit(embedding)).astype(np.int8)
        return unit(embedding) if self.normalized else embedding

    def value(self, embedding: np.ndarray) -> str | list[float] | list[int]:
        """The same, as JSON can hold it; base64 is of little-endian bytes."""
        array = self.array(embedding)
        if self.encoding == "base64":
            return base64.b64encode(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()).decode()
        return array.tolist()  # type: ignore[no-any-return]


def unit(embedding: np.ndarray) -> np.ndarray:
    """(dim,) float32 of length 1; zeros stay zeros."""
    length = np.linalg.norm(embedding.astype(np.float64))
    return (embedding / length).astype(np.float32) if length > 0 else embedding


class EmbeddingObject(BaseModel):
    """One item's embedding; with `partial`, or the reason why it has none."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str | None
    error: ItemProblem | None = None


class Usage(BaseModel):
    """OpenAI's counts of tokens; this service counts none."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingsAnswer(BaseModel):
    """The embeddings of a request, in the order of its items."""

    object: Literal["list"] = "list"
    data: list[EmbeddingObject]
    model: str
    usage: Usage


def embeddings_answer(outcomes: Sequence[np.ndarray | InputError], form: Form, model: str) -> dict[str, Any]:
    """The body that answers /v1/embeddings."""
    data: list[dict[str, Any]] = []
    for position, outcome in enumerate(outcomes):
        one: dict[str, Any] = {"object": "embedding", "index": position}
        if isinstance(outcome, InputError):
            data.append({**one, "embedding": None, "error": item_problem(position, outcome)})
        else:
            data.append({**one, "embedding": form.value(outcome)})
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 0, "total_tokens": 0}}


class EmbeddingsByType(BaseModel):
    """Embeddings, in each of the requested forms."""

    float_: list[list[float]] | None = Field(None, alias="float")
    int8: list[list[int]] | None = None
    ubinary: list[list[int]] | None = None
    base64: list[str] | None = None


class EmbedAnswer(BaseModel):
    """The embeddings of a request of Cohere's shape, in the order of its items."""

    id: str
    embeddings: EmbeddingsByType
    texts: list[str] | None = None
    meta: dict[str, Any]
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"


FORMS = {"float": Form(), "int8": Form("int8"), "ubinary": Form("ubinary"), "base64": Form(encoding="base64")}


def embed_answer(
    embeddings: Sequence[np.ndarray], types: Sequence[str], *, id: str, texts: Sequence[str] | None
) -> dict[str, Any]:
    """The body that answers /v2/embed."""
    by_type = {kind: [FORMS[kind].value(one) for one in embeddings] for kind in dict.fromkeys(types)}
    said = {} if texts is None else {"texts": list(texts)}
    meta = {"api_version": {"version": "2"}}
    return {"id": id, "embeddings": by_type, **said, "meta": meta, "response_type": "embeddings_by_type"}
