"""Embeddings: OpenAI's endpoint, Cohere's, and one for raw files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Annotated, Literal
from uuid import uuid4

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from image_encoders.api.requests import (
    EmbeddingCall,
    EmbeddingsRequest,
    EmbedRequest,
    Limits,
    attempt,
    check_count,
    raw_item,
)
from image_encoders.api.responses import (
    EmbedAnswer,
    EmbeddingsAnswer,
    EmbeddingType,
    Encoding,
    Form,
    RequestError,
    embed_answer,
    embeddings_answer,
)
from image_encoders.batching import Embedded
from image_encoders.errors import InputError
from image_encoders.serve.routes import BUSY, BoundedRoute, json_answer, refusals
from image_encoders.serve.served_model import ServedModel
from image_encoders.serve.service import Outcome, Service

NPY = "application/x-npy"
BINARY = {"schema": {"type": "string", "format": "binary"}}
RAW = {
    "required": True,
    "content": {
        **dict.fromkeys(("image/jpeg", "image/png", "image/webp", "application/octet-stream"), BINARY),
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                "required": ["file"],
            }
        },
    },
}
Npy = {"content": {NPY: BINARY}, "description": "The embeddings; as one array (N, dim) if `Accept` asks for it."}

REFUSED = {
    400: "The request is invalid: `error.message` says why, and what is accepted.",
    404: "There is no such model.",
    413: "Too many items, or too many bytes.",
    422: "Items that cannot be embedded: `items` names each of them, with a reason.",
}

router = APIRouter(route_class=BoundedRoute, tags=["embeddings"], responses=refusals(REFUSED, BUSY))


@router.post("/v1/embeddings", response_model=EmbeddingsAnswer)
async def create_embeddings(request: Request, body: EmbeddingsRequest) -> Response:
    """Embeddings of texts, images and sounds, in the order of the request.

    As OpenAI's endpoint; images are data: URLs, or objects such as `{"image": BASE64}`.
    """
    service: Service = request.app.state.service
    call = body.call(service.limits)
    served, outcomes = await run(service, call)
    return json_answer(embeddings_answer(_arrays(outcomes), call.form, served.name), headers(served, outcomes))


@router.post("/v2/embed", response_model=EmbedAnswer)
async def embed(request: Request, body: EmbedRequest) -> Response:
    """The same in the format of Cohere's endpoint."""
    service: Service = request.app.state.service
    served, outcomes = await run(service, body.call(service.limits))
    embeddings = [one for one in _arrays(outcomes) if not isinstance(one, InputError)]
    answer = embed_answer(embeddings, body.embedding_types, id=str(uuid4()), texts=body.texts)
    return json_answer(answer, headers(served, outcomes))


@router.post("/v1/images", response_model=EmbeddingsAnswer, responses={200: Npy}, openapi_extra={"requestBody": RAW})
async def embed_images(
    request: Request,
    model: Annotated[str | None, Query(description="One of /v1/models; default: the first.")] = None,
    modality: Annotated[Literal["image", "audio"], Query(description="What the files are.")] = "image",
    encoding_format: Annotated[Encoding, Query()] = "float",
    embedding_type: Annotated[EmbeddingType, Query()] = "float",
    dimensions: Annotated[int | None, Query(ge=1)] = None,
    normalized: bool = False,
    partial: Annotated[
        bool, Query(description="Return the embeddings of the other items if some fail; not with npy.")
    ] = False,
) -> Response:
    """Embeddings of image files: one as the body, or several as multipart/form-data.

    With `Accept: application/x-npy` the response is an array that `numpy.load` reads.
    """
    service: Service = request.app.state.service
    limits = service.limits
    npy = NPY in request.headers.get("accept", "")
    if npy and partial:
        raise RequestError(
            400, "partial requires a JSON response: an array cannot hold the reasons for failures", code="partial"
        )
    contents = await _files(request, limits)
    check_count(len(contents), limits, "the body")
    items = [attempt(raw_item, content, modality, limits) for content in contents]
    form = Form(embedding_type, encoding_format, normalized)
    call = EmbeddingCall(model, items, form, dimensions, None if npy else partial, items_param="file")
    served, outcomes = await run(service, call)
    if npy:
        file = io.BytesIO()
        np.save(file, np.stack([form.array(one) for one in _arrays(outcomes) if not isinstance(one, InputError)]))
        return Response(file.getvalue(), media_type=NPY, headers=headers(served, outcomes))
    return json_answer(embeddings_answer(_arrays(outcomes), form, served.name), headers(served, outcomes))


async def _files(request: Request, limits: Limits) -> list[bytes]:
    """The body as one file, or its files."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return [await request.body()]
    try:
        async with request.form(max_files=limits.max_items, max_fields=limits.max_items) as form:
            given = [value for _, value in form.multi_items()]
            files = [await value.read() for value in given if isinstance(value, UploadFile)]
    except HTTPException as error:
        if "Too many" in str(error.detail):
            raise RequestError(413, f"more than {limits.max_items:,} files", code="too_many_items") from error
        raise
    if len(files) < len(given):
        raise RequestError(400, "a field that is not a file; each part needs a filename", code="invalid_request")
    return files


async def run(service: Service, call: EmbeddingCall) -> tuple[ServedModel, list[Outcome]]:
    """The model and the items' outcomes; RequestError if some failed and `partial` is not set."""
    served = service.model(call.model)
    call.check_dimensions(served.dim, served.name)
    outcomes = await service.embed(served, call.items)
    call.check_outcomes(outcomes)
    return served, outcomes


def headers(served: ServedModel, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """The encoder and its fingerprint, and the longest times for waiting, preparing and embedding an item [ms]."""
    done = [one for one in outcomes if isinstance(one, Embedded)]
    times = {
        "queue": max((one.wait_s for one in done), default=0.0),
        "prepare": max((one.prepare_s for one in done), default=0.0),
        "embed": max((one.embed_s for one in done), default=0.0),
    }
    timing = ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in times.items())
    return {"X-Encoder": served.name, "X-Encoder-Fingerprint": served.fingerprint, "Server-Timing": timing}


def _arrays(outcomes: Sequence[Outcome]) -> list[np.ndarray | InputError]:
    return [one.embedding if isinstance(one, Embedded) else one for one in outcomes]
