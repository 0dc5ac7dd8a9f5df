"""The body of an answer that refuses a request before any route has seen it."""

from __future__ import annotations

import json
from http import HTTPStatus


def refusal_body(status: int, code: str, message: str) -> bytes:
    """JSON, in the form of every error of the service."""
    title = HTTPStatus(status).phrase
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return json.dumps(
        {"error": error, "type": "about:blank", "title": title, "status": status, "detail": message}
    ).encode()
