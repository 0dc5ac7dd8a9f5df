"""Requests: what OpenAI's, infinity's, Jina's and Cohere's clients send, as one `EmbeddingCall`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from image_encoders.api.items import Item
from image_encoders.api.responses import EmbeddingType, Encoding, Form, RequestError, bad_items
from image_encoders.errors import InputError
from image_encoders.inputs.urls import UrlLimits, read_url

Modality = Literal["text", "image", "audio"]
MANY = Field(max_length=1 << 16)  # of which no more are looked at; a service's own limit is said with its own words
MOST_FIELDS = 64
FIRST = Field(fail_fast=True)  # one wrong item is named, and not each of millions
CohereType = Literal["float", "int8", "ubinary", "base64"]
Tokens = int | Annotated[list[int], FIRST]
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"  # a red one, in PNG
)
TOKENS = (
    "input holds token ids, which belong to another model's tokenizer; send texts. "
    "LangChain: OpenAIEmbeddings(..., check_embedding_ctx_length=False)"
)

WRONG = {  # what pydantic's errors name by the types that it tried
    "input": "a text, a data: URL, an object with one of text, image, audio, url and bytes, or a list of those",
}


@dataclass(frozen=True)
class Limits:
    """Limits of a request."""

    max_items: int = 2048
    max_file_bytes: int = 64 << 20
    max_text_bytes: int = 64 << 10


@dataclass(frozen=True)
class EmbeddingCall:
    """A parsed request.

    items: what to embed; an InputError for an item that could not be read
    dimensions: the requested length of embeddings; None: the model's
    partial: whether to return the others if some fail; None: such requests have no such option
    items_param, dimensions_param: the fields of the request that the items and the length came from
    """

    model: str | None
    items: Sequence[Item | InputError]
    form: Form
    dimensions: int | None = None
    partial: bool | None = None
    items_param: str = "input"
    dimensions_param: str = "dimensions"

    def check_dimensions(self, dim: int, model: str) -> None:
        """Raise RequestError unless the model's embeddings have the requested length."""
        if self.dimensions not in (None, dim):
            param = self.dimensions_param
            raise RequestError(
                400,
                f"{param} is {self.dimensions}; embeddings of {model} have {dim}, and cannot be shortened: it was not "
                "trained for that",
                code="dimensions",
                param=param,
            )

    def check_outcomes(self, outcomes: Sequence[Any]) -> None:
        """Raise RequestError if items have no embedding, and `partial` is not set."""
        failed = {position: one for position, one in enumerate(outcomes) if isinstance(one, InputError)}
        if failed and not self.partial:
            raise bad_items(failed, len(outcomes), param=self.items_param, partial=self.partial is not None)


class Bounded(BaseModel):
    """An object whose unknown fields are listed in errors, unless there are very many."""

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, given: Any) -> Any:
        if isinstance(given, dict) and len(given) > MOST_FIELDS:
            raise ValueError(f"an object of {len(given):,} fields; at most {MOST_FIELDS} are accepted")
        return given


class DictItem(Bounded):
    """One thing to embed, under the name of what it is."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "minProperties": 1,
            "maxProperties": 1,
            "examples": [{"text": "a red circle"}, {"image": f"data:image/png;base64,{PIXEL}"}],
        },
    )

    text: str = ""
    image: str = Field("", description="A data: URL, base64, or an http(s) address where the service fetches those.")
    audio: str = Field("", description="A sound, in the same forms.")
    url: str = Field("", description="A data: URL or an address, of an image, or of the given `modality`.")
    bytes: str = Field("", description="Base64 of an image file, or of the given `modality`.")

    @model_validator(mode="after")
    def _is_one(self) -> DictItem:
        if len(self.model_fields_set) != 1:
            raise ValueError("exactly one of text, image, audio, url and bytes is accepted")
        return self


class EmbeddingsRequest(Bounded):
    """OpenAI's request, and what infinity and Jina add to it."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"input": ["a red circle", "a blue square"]},
                {"input": f"data:image/png;base64,{PIXEL}", "normalized": True},
                {"input": [{"text": "a red circle"}, {"image": PIXEL}], "encoding_format": "base64"},
            ]
        },
    )

    input: str | DictItem | Annotated[list[str | DictItem | Tokens], FIRST, MANY] = Field(
        description="A text, an image as a data: URL, an object that says which it is, or a list of those. Token ids "
        "are refused."
    )
    model: str | None = Field(None, description="One of /v1/models; default: the first.")
    modality: Modality | None = Field(
        None, description="What plain strings are: text by default; data: URLs are always recognised."
    )
    encoding_format: Encoding = Field("float", description="Numbers, or base64 of their little-endian bytes.")
    embedding_type: EmbeddingType = Field(
        "float",
        description="float32; int8: round(127 x the embedding of unit length); ubinary: its signs, eight to a byte.",
    )
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="The length of an embedding.")
    normalized: bool = Field(False, description="Scale embeddings to unit length.")
    partial: bool = Field(
        False, description="Return the embeddings of the other items if some fail; those get an `error`."
    )
    user: str | None = Field(None, description="Not used.")

    def call(self, limits: Limits) -> EmbeddingCall:
        """The parsed request; raises RequestError."""
        inputs = self.input if isinstance(self.input, list) else [self.input]
        check_count(len(inputs), limits, "input")
        if any(isinstance(one, (int, list)) for one in inputs):
            raise RequestError(400, TOKENS, code="token_arrays", param="input")
        items = [attempt(_item, one, self.modality, limits) for one in inputs if not isinstance(one, (int, list))]
        form = Form(self.embedding_type, self.encoding_format, self.normalized)
        return EmbeddingCall(self.model, items, form, self.dimensions, self.partial)


class ImageUrl(BaseModel):
    """Where an image is."""

    url: str
    detail: str | None = Field(None, description="Not used.")


class Part(BaseModel):
    """A text or an image."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Content(BaseModel):
    """One thing to embed."""

    content: list[Part] = Field(min_length=1, max_length=1, description="One part: towers embed one thing at a time.")


class EmbedRequest(Bounded):
    """Cohere's request: exactly one of `texts`, `images` and `inputs`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"texts": ["a red circle"], "embedding_types": ["float", "int8"]},
                {"images": [f"data:image/png;base64,{PIXEL}"]},
            ]
        },
    )

    model: str | None = Field(None, description="One of /v1/models; default: the first.")
    texts: Annotated[list[str], FIRST] | None = None
    images: Annotated[list[str], FIRST] | None = Field(None, description="As data: URLs.")
    inputs: Annotated[list[Content], FIRST] | None = None
    input_type: str | None = Field(None, description="Not used: these models embed queries as documents.")
    embedding_types: list[CohereType] = Field(["float"], min_length=1, max_length=4)
    output_dimension: Annotated[int, Field(ge=1)] | None = None
    truncate: Literal["NONE"] | None = Field(None, description="Texts that are too long are refused, never truncated.")
    max_tokens: int | None = Field(None, description="Not used.")
    priority: int | None = Field(None, description="Not used.")

    def call(self, limits: Limits) -> EmbeddingCall:
        """The parsed request; raises RequestError."""
        given = {name: one for name in ("texts", "images", "inputs") if (one := getattr(self, name)) is not None}
        if len(given) != 1:
            raise RequestError(
                400, "exactly one of texts, images and inputs is accepted", code="invalid_request", param="texts"
            )
        ((name, inputs),) = given.items()
        check_count(len(inputs), limits, name)
        readers: dict[str, Callable[..., Item]] = {"texts": text_item, "images": _image_item, "inputs": _part_item}
        items = [attempt(readers[name], one, limits) for one in inputs]
        return EmbeddingCall(
            self.model,
            items,
            Form(),
            self.output_dimension,
            items_param=name,
            dimensions_param="output_dimension",
        )


def _image_item(said: str, limits: Limits) -> Item:
    return file_item(said, "image", limits)


def _part_item(one: Content, limits: Limits) -> Item:
    (part,) = one.content
    if part.type == "text" and part.text is not None:
        return text_item(part.text, limits)
    if part.type == "image_url" and part.image_url is not None:
        return file_item(part.image_url.url, "image", limits)
    raise InputError(f"a part of type {part.type} without {part.type}", code="part")


def raw_item(content: bytes, modality: str, limits: Limits) -> Item:
    """An image or a sound from its bytes."""
    if len(content) > limits.max_file_bytes:
        raise InputError(
            f"{len(content):,} bytes; at most {limits.max_file_bytes:,} are accepted", code="too-many-bytes"
        )
    if not content:
        raise InputError("an empty file", code="empty")
    return Item(modality, content)


def check_count(count: int, limits: Limits, param: str) -> None:
    """Raise RequestError for a request with no items, or too many."""
    if count == 0:
        raise RequestError(400, f"{param} is empty; 1 to {limits.max_items:,} items are accepted", code="no_items")
    if count > limits.max_items:
        raise RequestError(
            413,
            f"{param} has {count:,} items; at most {limits.max_items:,} are accepted in a request",
            code="too_many_items",
            param=param,
        )


def attempt(read: Callable[..., Item], *arguments: Any) -> Item | InputError:
    """An item, or why it cannot be read."""
    try:
        return read(*arguments)
    except InputError as error:
        return error


def _item(one: str | DictItem, modality: Modality | None, limits: Limits) -> Item:
    """One of `input`: a string, or an object whose only field says what it is."""
    if isinstance(one, str):
        kind = modality or _kind(one) or "text"
        return text_item(one, limits) if kind == "text" else file_item(one, kind, limits)
    (name,) = one.model_fields_set
    said: str = getattr(one, name)
    match name:
        case "text":
            return text_item(said, limits)
        case "image" | "audio":
            return file_item(said, name, limits)
        case "bytes":
            return decoded_item(said, modality or "image", limits)
    if not said[:5].lower().startswith(("data:", "http:", "https")):
        raise InputError("neither a data: URL nor an http(s) address", code="url")
    return file_item(said, modality or _kind(said) or "image", limits)


def text_item(text: str, limits: Limits) -> Item:
    """A text; InputError where it is too long."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError("a text with an unpaired surrogate", code="text") from error
    if size > limits.max_text_bytes:
        raise InputError(
            f"a text of {size:,} bytes; at most {limits.max_text_bytes:,} are accepted", code="too-many-bytes"
        )
    return Item("text", text)


def file_item(said: str, modality: str, limits: Limits) -> Item:
    """An image or a sound from a data: URL, an address that has yet to be fetched, or base64."""
    scheme = said[:8].lower()
    if scheme.startswith("data:"):
        return Item(modality, read_url(said, UrlLimits(max_bytes=limits.max_file_bytes)))
    if scheme.startswith(("http:", "https:")):
        return Item(modality, url=said)
    return decoded_item(said, modality, limits)


def decoded_item(said: str, modality: str, limits: Limits) -> Item:
    """An image or a sound from base64."""
    if len(said) // 4 * 3 > limits.max_file_bytes + 2:
        raise InputError(f"more than the {limits.max_file_bytes:,} bytes that are accepted", code="too-many-bytes")
    try:
        return Item(modality, base64.b64decode(said, validate=True))
    except (binascii.Error, ValueError) as error:
        raise InputError(
            f"neither a data: URL nor base64 ({error}); a {modality} is accepted as either", code="base64"
        ) from error


def _kind(url: str) -> str | None:
    """What a data: URL says that it holds; None for what is none."""
    if url[:5].lower() != "data:":
        return None
    return "audio" if url[5:11].lower() == "audio/" else "image"


def invalid_request(errors: Sequence[Any]) -> RequestError:
    """What is wrong with a body or a query: the first three problems.

    errors: as pydantic lists them
    """
    said: dict[str, None] = {}
    params: list[str] = []
    for one in errors:
        where = [part for part in one["loc"] if part not in ("body", "query", "path", "header")]
        name = str((where or one["loc"] or ["body"])[0])
        params.append(name)
        position = next((f"[{part}]" for part in where if isinstance(part, int)), "")
        within = f".{where[-1]}" if len(where) > 1 and isinstance(where[-1], str) else ""
        if one["type"] == "json_invalid":
            said[f"the body is not valid JSON: {one.get('ctx', {}).get('error', one['msg'])}"] = None
        elif name in WRONG and one["type"] not in ("missing", "value_error"):
            said[f"{name}{position}: {WRONG[name]} is accepted"] = None
        else:
            said[f"{name}{position}{within}: {one['msg']}"] = None
    sentences = list(said)
    more = f"; and {len(sentences) - 3} more" if len(sentences) > 3 else ""
    param = None if "json_invalid" in (one["type"] for one in errors) else params[0]
    return RequestError(400, "; ".join(sentences[:3]) + more, code="invalid_request", param=param)
