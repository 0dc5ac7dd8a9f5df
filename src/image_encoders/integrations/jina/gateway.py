"""A gateway that answers OpenAI's clients: `POST /v1/embeddings` before the Executors of a Flow."""

# No `from __future__ import annotations` here: with it, Jina hangs at start-up.
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Dict, Optional, Union

import numpy as np
from docarray import DocList
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from jina.serve.runtimes.gateway.http.fastapi import FastAPIBaseGateway
from starlette.exceptions import HTTPException

from image_encoders import __version__
from image_encoders.api.items import Item
from image_encoders.api.requests import EmbeddingCall, EmbeddingsRequest, Limits, invalid_request
from image_encoders.api.responses import (
    EmbeddingsAnswer,
    Problem,
    RequestError,
    embeddings_answer,
    problem,
)
from image_encoders.errors import InputError
from image_encoders.integrations.jina.documents import Document

log = logging.getLogger(__name__)

ENDPOINT = "/encode"
Outcome = Union[np.ndarray, InputError]


class EmbeddingsGateway(FastAPIBaseGateway):
    """Takes requests in the shape of OpenAI's endpoint, and has a Flow's Executors embed their items.

    model: what requests call the model; another name is refused
    targets: for "text", "image" and "audio" the name of the Executor, or a regular expression, that embeds such items;
        without it they go through the whole Flow
    urls: pass addresses on to Executors, which fetch them
    max_items, max_file_bytes, max_text_bytes: of a request; of an image or a sound; of a text
    """

    def __init__(
        self,
        model: str = "jina",
        targets: Optional[Dict[str, str]] = None,
        urls: bool = False,
        max_items: int = Limits.max_items,
        max_file_bytes: int = Limits.max_file_bytes,
        max_text_bytes: int = Limits.max_text_bytes,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.model, self.targets, self.urls = model, dict(targets or {}), urls
        self.limits = Limits(max_items, max_file_bytes, max_text_bytes)

    @property
    def app(self) -> FastAPI:
        """What Jina serves."""
        app = FastAPI(title="Image Encoders", version=__version__)
        for kind in (RequestError, RequestValidationError, HTTPException, Exception):
            app.add_exception_handler(kind, _answer_error)

        @app.post("/v1/embeddings", response_model=EmbeddingsAnswer, responses={"4XX": {"model": Problem}})
        async def create_embeddings(body: EmbeddingsRequest) -> JSONResponse:
            """Embeddings of texts, images and sounds, in the order in which they are sent."""
            return JSONResponse(await self._answer(body.call(self.limits)))

        @app.get("/v1/models")
        async def models() -> Dict[str, Any]:
            """The model that requests may name."""
            one = {"id": self.model, "object": "model", "created": 0, "owned_by": "image-encoders"}
            return {"object": "list", "data": [one]}

        return app

    async def _answer(self, call: EmbeddingCall) -> Dict[str, Any]:
        if call.model not in (None, self.model):
            raise RequestError(
                404,
                f"there is no model {call.model!r} here; there is: {self.model}",
                code="model_not_found",
                param="model",
            )
        outcomes = await self._embed(call.items)
        for outcome in outcomes:
            if not isinstance(outcome, InputError):
                call.check_dimensions(len(outcome), self.model)
        call.check_outcomes(outcomes)
        return embeddings_answer(outcomes, call.form, self.model)

    async def _embed(self, items: Sequence[Union[Item, InputError]]) -> Sequence[Outcome]:
        """The embedding of each item, in order, or why it has none."""
        outcomes: Dict[int, Outcome] = {}
        together: Dict[str, Dict[int, Item]] = {}  # by where they go
        for position, item in enumerate(items):
            if isinstance(item, InputError):
                outcomes[position] = item
            elif item.url is not None and not self.urls:
                outcomes[position] = InputError(
                    "this service does not fetch URLs; send the bytes, for example as a data: URL", code="urls-off"
                )
            else:
                together.setdefault(self.targets.get(item.modality, ""), {})[position] = item
        for target, some in together.items():
            outcomes.update(zip(some, await self._sent(list(some.values()), target)))
        return [outcomes[position] for position in range(len(items))]

    async def _sent(self, items: Sequence[Item], target: str) -> Sequence[Outcome]:
        """What comes back for items that go to one Executor, or through the whole Flow."""
        sent = DocList[Document]([_document(item) for item in items])
        found: Dict[str, Document] = {}
        # Without a target each Executor sees every document, and must not take away what another one needs.
        async for docs, error in self.streamer.stream(
            docs=sent,
            exec_endpoint=ENDPOINT,
            target_executor=target or None,
            parameters={"strip": True} if target else None,
            return_type=DocList[Document],
        ):
            if error is not None:
                log.error("an Executor failed: %s", error)
                raise RequestError(503, "an Executor of the Flow failed; its log says why", code="unavailable")
            found.update((str(doc.id), doc) for doc in docs)
        return [_outcome(found.get(str(doc.id)), item) for doc, item in zip(sent, items)]


def _document(item: Item) -> Document:
    if item.url is not None:
        return Document(uri=item.url)
    if isinstance(item.content, str):
        return Document(text=item.content)
    return Document(buffer=item.content)


def _outcome(doc: Optional[Document], item: Item) -> Outcome:
    if doc is not None and doc.embedding is not None:
        return np.asarray(doc.embedding, np.float32)
    tags: Mapping[str, Any] = {} if doc is None else doc.tags
    if "error" in tags:
        return InputError(str(tags["error"]), code=str(tags.get("error_code", "invalid")))
    return InputError(f"no Executor of this Flow gave it an embedding: none takes {item.modality}", code="no-tower")


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    """The one body of every refusal."""
    refused = _as_request_error(error)
    return JSONResponse(problem(refused), refused.status, refused.headers)


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, RequestValidationError):
        return invalid_request(error.errors())
    if isinstance(error, HTTPException):
        code = "not_found" if error.status_code == 404 else "invalid_request"
        return RequestError(error.status_code, str(error.detail), code=code, headers=error.headers)
    log.error("a request failed", exc_info=error)
    return RequestError(500, "the request failed inside the service; its log says why", code="internal")
