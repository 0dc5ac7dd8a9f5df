"""Shared by routes: reading bodies, writing responses, and describing errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from image_encoders.api.responses import Problem, RequestError

BUSY = {
    429: "Too many items are waiting; `Retry-After` says when to retry.",
    503: "The model is being restarted, or the request exceeded its deadline.",
}
OTHER = {"4XX": "Another error, in the same form.", "5XX": "An internal error, in the same form."}
MOST_PARTS = 1_000_000  # of a JSON body: what its lists and objects hold takes far more memory than the body itself


class BoundedRoute(APIRoute):
    """A route that counts the parts of a JSON body before it is parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            if self.body_field is not None:
                body = await request.body()
                parts = body.count(b",") + body.count(b"[") + body.count(b"{")
                if parts > MOST_PARTS:
                    raise RequestError(
                        413, f"a body of more than {MOST_PARTS:,} lists, objects and commas", code="too_many_parts"
                    )
            return await answer(request)

        return bounded


def refusals(*described: Mapping[Any, str]) -> dict[int | str, dict[str, Any]]:
    """The errors, for the schema: their statuses and meanings."""
    said = {status: text for some in (*described, OTHER) for status, text in some.items()}
    return {status: {"model": Problem, "description": text} for status, text in said.items()}


def json_answer(body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """A body that is already JSON, which FastAPI need not process."""
    return Response(json.dumps(body, separators=(",", ":")), media_type="application/json", headers=headers)
