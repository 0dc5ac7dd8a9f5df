"""Requests: what OpenAI's, infinity's, Jina's and Cohere's clients send, as one `EmbeddingCall`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from image_encoders.api.items import Item
from image_encoders.api.responses import EmbeddingType, Encoding, Form, RequestError
from image_encoders.errors import InputError
from image_encoders.inputs.urls import UrlLimits, read_url

Modality = Literal["text", "image", "audio"]
TOKENS = (
    "input holds token numbers, which belong to another model's tokenizer; send texts. "
    "LangChain: OpenAIEmbeddings(..., check_embedding_ctx_length=False)"
)


@dataclass(frozen=True)
class Limits:
    """What a request may hold."""

    max_items: int = 2048
    max_image_bytes: int = 64 << 20
    max_text_bytes: int = 64 << 10


@dataclass(frozen=True)
class EmbeddingCall:
    """A request understood.

    items: what is to be embedded; what could not be read is an InputError already
    partial: whether the others are wanted where some fail
    """

    model: str | None
    items: Sequence[Item | InputError]
    form: Form
    dimensions: int | None = None
    partial: bool = False


class TextItem(BaseModel):
    """A text."""

    model_config = ConfigDict(extra="forbid")
    text: str


class ImageItem(BaseModel):
    """An image."""

    model_config = ConfigDict(extra="forbid")
    image: str = Field(description="A data: URL, base64, or an http(s) address where the service fetches those.")


class UrlItem(BaseModel):
    """What an address holds."""

    model_config = ConfigDict(extra="forbid")
    url: str = Field(description="A data: URL, or an http(s) address where the service fetches those.")


class BytesItem(BaseModel):
    """The bytes of a file."""

    model_config = ConfigDict(extra="forbid")
    bytes: str = Field(description="Base64 of an image's file, or of what `modality` says.")


class AudioItem(BaseModel):
    """A sound."""

    model_config = ConfigDict(extra="forbid")
    audio: str = Field(description="A data: URL, base64, or an http(s) address where the service fetches those.")


DictItem = TextItem | ImageItem | UrlItem | BytesItem | AudioItem


class EmbeddingsRequest(BaseModel):
    """OpenAI's request, and what infinity and Jina add to it."""

    model_config = ConfigDict(extra="forbid")

    input: str | DictItem | list[str | DictItem] | list[int] | list[list[int]] = Field(
        description="A text, an image as a data: URL, an object that says which it is, or a list of those."
    )
    model: str | None = Field(None, description="One of /v1/models; without it, the first.")
    modality: Modality | None = Field(
        None, description="What strings are: text unless it says otherwise, or unless they are data: URLs."
    )
    encoding_format: Encoding = Field("float", description="Numbers, or base64 of their little-endian bytes.")
    embedding_type: EmbeddingType = Field(
        "float",
        description="float32; int8: round(127 x the embedding of unit length); ubinary: its signs, eight to a byte.",
    )
    dimensions: Annotated[int, Field(ge=1)] | None = Field(None, description="The length of an embedding.")
    normalized: bool = Field(False, description="Scale embeddings to unit length.")
    partial: bool = Field(False, description="Answer although some items fail; these get an `error`.")
    user: str | None = Field(None, description="Not used.")

    def call(self, limits: Limits) -> EmbeddingCall:
        """What is asked for; raises RequestError."""
        inputs = self.input if isinstance(self.input, list) else [self.input]
        check_count(len(inputs), limits, "input")
        if any(isinstance(one, (int, list)) for one in inputs):
            raise RequestError(400, TOKENS, code="token_arrays", param="input")
        items = [_attempt(one, self.modality, limits) for one in inputs]
        form = Form(self.embedding_type, self.encoding_format, self.normalized)
        return EmbeddingCall(self.model, items, form, self.dimensions, self.partial)


def check_count(count: int, limits: Limits, param: str) -> None:
    """Raise RequestError for a request of no items, or of too many."""
    if count == 0:
        raise RequestError(400, f"{param} is empty; 1 to {limits.max_items:,} items are accepted", code="no_items")
    if count > limits.max_items:
        raise RequestError(
            413,
            f"{param} has {count:,} items; at most {limits.max_items:,} are accepted in a request",
            code="too_many_items",
            param=param,
        )


def check_dimensions(wanted: int | None, dim: int, model: str) -> None:
    """Raise RequestError unless embeddings have the length that is wanted."""
    if wanted not in (None, dim):
        raise RequestError(
            400,
            f"dimensions is {wanted}; embeddings of {model} have {dim}, and it was not trained to be cut shorter",
            code="dimensions",
            param="dimensions",
        )


def _attempt(one: Any, modality: Modality | None, limits: Limits) -> Item | InputError:
    try:
        return _item(one, modality, limits)
    except InputError as error:
        return error


def _item(one: Any, modality: Modality | None, limits: Limits) -> Item:
    if isinstance(one, TextItem):
        return text_item(one.text, limits)
    if isinstance(one, ImageItem):
        return file_item(one.image, "image", limits)
    if isinstance(one, AudioItem):
        return file_item(one.audio, "audio", limits)
    if isinstance(one, BytesItem):
        return decoded_item(one.bytes, modality or "image", limits)
    if isinstance(one, UrlItem):
        return file_item(one.url, modality or _kind(one.url) or "image", limits)
    if modality in ("image", "audio"):
        return file_item(one, modality, limits)
    kind = None if modality == "text" else _kind(one)
    return text_item(one, limits) if kind is None else file_item(one, kind, limits)


def text_item(text: str, limits: Limits) -> Item:
    """A text; InputError where it is too long."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError("a text with half a character", code="text") from error
    if size > limits.max_text_bytes:
        raise InputError(
            f"a text of {size:,} bytes; at most {limits.max_text_bytes:,} are accepted", code="too-many-bytes"
        )
    return Item("text", text)


def file_item(said: str, modality: str, limits: Limits) -> Item:
    """An image or a sound from a data: URL, an address that has yet to be fetched, or base64."""
    scheme = said[:8].lower()
    if scheme.startswith("data:"):
        return Item(modality, read_url(said, UrlLimits(max_bytes=limits.max_image_bytes)))
    if scheme.startswith(("http:", "https:")):
        return Item(modality, url=said)
    return decoded_item(said, modality, limits)


def decoded_item(said: str, modality: str, limits: Limits) -> Item:
    """An image or a sound from base64."""
    if len(said) // 4 * 3 > limits.max_image_bytes + 2:
        raise InputError(f"more than the {limits.max_image_bytes:,} bytes that are accepted", code="too-many-bytes")
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
