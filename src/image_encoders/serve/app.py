"""The application: every route, and the one error body."""

from __future__ import annotations

import logging
import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from image_encoders import __version__
from image_encoders.api.requests import invalid_request
from image_encoders.api.responses import RequestError, problem
from image_encoders.errors import CollectionError, InputError, MissingExtra, Overloaded, UnknownModel
from image_encoders.serve import documentation, embeddings, health, search
from image_encoders.serve.pages import pages
from image_encoders.serve.searcher import Searcher
from image_encoders.serve.service import Deadline, Service
from image_encoders.serve.worker_process import Unavailable

log = logging.getLogger(__name__)

DESCRIPTION = "Embeddings of images, texts and sounds, in the shapes of OpenAI's and Cohere's clients."
CODES = {401: "no_key", 404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "media_type"}


def create_app(service: Service) -> FastAPI:
    """The application over a service that has started."""
    app = FastAPI(title="Image Encoders", version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.service = service
    app.state.searcher = Searcher(service)
    for router in (embeddings.router, health.router, search.router, documentation.router, pages()):
        app.include_router(router)
    for kind in (
        *(RequestError, Overloaded, UnknownModel, Unavailable, Deadline, InputError, MissingExtra, CollectionError),
        *(RequestValidationError, HTTPException, Exception),
    ):
        app.add_exception_handler(kind, _answer_error)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    """The answer to a request that fails, whatever failed."""
    if isinstance(error, CollectionError):  # what is no ImageEncodersError the guards log, as it is raised through them
        log.error("the collection cannot be read", exc_info=error)
    refused = as_request_error(error)
    return JSONResponse(problem(refused, request.scope.get("request_id")), refused.status, refused.headers)


def as_request_error(error: Exception) -> RequestError:
    """Any error as the RequestError that a client may see."""
    match error:
        case RequestError():
            return error
        case Overloaded():
            return RequestError(429, str(error), code="overloaded", headers=_retry(error.retry_s))
        case UnknownModel():
            return RequestError(404, str(error), code="model_not_found", param="model")
        case Deadline():
            return RequestError(503, str(error), code="deadline", headers=_retry(1.0))
        case Unavailable():
            return RequestError(503, str(error), code="unavailable", headers=_retry(error.retry_s))
        case InputError():
            return RequestError(422, str(error), code=error.code)
        case MissingExtra():
            return RequestError(501, str(error), code="missing_extra")
        case CollectionError():
            message = "the collection cannot be read at the moment; the service's log says why"
            return RequestError(503, message, code="collection", headers=_retry(2.0))
        case RequestValidationError():
            return invalid_request(error.errors())
        case HTTPException():
            code = CODES.get(error.status_code, "invalid_request")
            return RequestError(error.status_code, str(error.detail), code=code, headers=error.headers)
    return RequestError(500, "the request failed inside the service; its log says why", code="internal")


def _retry(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
