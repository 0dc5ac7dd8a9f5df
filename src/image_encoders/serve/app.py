"""The application: every route, and the one error body."""

from __future__ import annotations

import logging
import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from image_encoders import __version__
from image_encoders.api.responses import PROBLEM, RequestError, problem
from image_encoders.errors import CollectionError, InputError, MissingExtra, Overloaded, UnknownModel
from image_encoders.serve import embeddings, health
from image_encoders.serve.service import Deadline, Service, Unavailable

log = logging.getLogger(__name__)

DESCRIPTION = "Embeddings of images, texts and sounds."
CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "media_type", 401: "no_key"}


def create_app(service: Service) -> FastAPI:
    """The application over a service that has started."""
    app = FastAPI(title="Image Encoders", version=__version__, description=DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(embeddings.router)
    app.include_router(health.router)
    for kind in (
        RequestError,
        Overloaded,
        UnknownModel,
        Unavailable,
        Deadline,
        InputError,
        MissingExtra,
        CollectionError,
        RequestValidationError,
        HTTPException,
        Exception,
    ):
        app.add_exception_handler(kind, _answer_error)
    return app


async def _answer_error(request: Request, error: Exception) -> Response:
    """The answer to a request that fails, whatever failed."""
    refused = as_request_error(error)
    if refused.status == 500:
        log.error("a request failed", exc_info=error)
    return JSONResponse(
        problem(refused, request.scope.get("request_id")), refused.status, refused.headers, media_type=PROBLEM
    )


def as_request_error(error: Exception) -> RequestError:
    """Any error as the refusal that a client may see."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, Overloaded):
        return RequestError(429, str(error), code="overloaded", headers=_retry(error.retry_s))
    if isinstance(error, UnknownModel):
        return RequestError(404, str(error), code="model_not_found", param="model")
    if isinstance(error, (Unavailable, Deadline)):
        code = "deadline" if isinstance(error, Deadline) else "unavailable"
        return RequestError(503, str(error), code=code, headers=_retry(getattr(error, "retry_s", 1.0)))
    if isinstance(error, InputError):
        return RequestError(422, str(error), code=error.code)
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        code = CODES.get(error.status_code, "invalid_request")
        return RequestError(error.status_code, str(error.detail), code=code, headers=error.headers)
    return RequestError(500, "the request failed inside the service; its log says why", code="internal")


def _retry(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _invalid(error: RequestValidationError) -> RequestError:
    """What is wrong with a body or a query, the first three things of it."""
    said: list[str] = []
    params: list[str] = []
    for one in error.errors():
        where = [str(part) for part in one["loc"] if part not in ("body", "query", "path", "header")]
        params.append(where[0] if where else str(one["loc"][0]))
        said.append(f"{'.'.join(where[:2]) or one['loc'][0]}: {one['msg']}")
    said = list(dict.fromkeys(said))
    more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
    return RequestError(422, "; ".join(said[:3]) + more, code="invalid_request", param=params[0] if params else None)


__all__ = ["as_request_error", "create_app"]
