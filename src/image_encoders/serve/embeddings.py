"""/v1/embeddings: OpenAI's endpoint, for images and sounds too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from image_encoders.api.requests import EmbeddingCall, EmbeddingsRequest, Limits, check_dimensions
from image_encoders.api.responses import EmbeddingsAnswer, bad_items, embeddings_answer
from image_encoders.batching import Embedded
from image_encoders.errors import InputError
from image_encoders.serve.models import ServedModel
from image_encoders.serve.service import Outcome, Service

router = APIRouter()


@router.post("/v1/embeddings", response_model=EmbeddingsAnswer, tags=["embeddings"])
async def embeddings(request: Request, body: EmbeddingsRequest) -> Response:
    """Embeddings of texts, images and sounds, in the order in which they were sent."""
    service: Service = request.app.state.service
    call = body.call(limits_of(service))
    served, outcomes = await run(service, call)
    answer = embeddings_answer(arrays(outcomes), call.form, served.name)
    return JSONResponse(answer, headers=headers(served, outcomes))


def limits_of(service: Service) -> Limits:
    """What a request may hold."""
    settings = service.settings
    return Limits(settings.max_items, settings.max_image_bytes, settings.max_text_bytes)


async def run(service: Service, call: EmbeddingCall) -> tuple[ServedModel, list[Outcome]]:
    """The model and what became of the items; RequestError where some failed and all are wanted."""
    served = service.model(call.model)
    check_dimensions(call.dimensions, served.dim, served.name)
    outcomes = await service.embed(call.model, call.items)
    failed = {position: one for position, one in enumerate(outcomes) if isinstance(one, InputError)}
    if failed and not call.partial:
        raise bad_items(failed, len(outcomes))
    return served, outcomes


def arrays(outcomes: Sequence[Outcome]) -> list[np.ndarray | InputError]:
    """Embeddings without what they took."""
    return [one.embedding if isinstance(one, Embedded) else one for one in outcomes]


def headers(served: ServedModel, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Which embeddings these are, and the longest that an item waited, was prepared, was embedded [ms]."""
    done = [one for one in outcomes if isinstance(one, Embedded)]
    times: dict[str, Any] = {
        "queue": max((one.wait_s for one in done), default=0.0),
        "prepare": max((one.prepare_s for one in done), default=0.0),
        "embed": max((one.embed_s for one in done), default=0.0),
    }
    timing = ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in times.items())
    return {"X-Encoder": served.name, "X-Encoder-Fingerprint": served.fingerprint, "Server-Timing": timing}
