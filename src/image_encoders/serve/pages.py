"""The files of the search page, as they lie in `page/`: no other host, no inline script, no inline style."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from fastapi import APIRouter, Request, Response

from image_encoders.serve.assets import TYPES, Assets
from image_encoders.serve.guards import own_path

PAGE = Path(__file__).parent / "page"
# Scripts and styles only from files of the page; images also as the page's own previews of what was dropped. Nothing
# that a script could write is read as HTML: trusted-types 'none' makes the browser itself refuse it.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # no-referrer would make the login form's Origin "null"
    "Cache-Control": "no-cache",  # kept by the browser, and asked about each time: a new version is seen at once
}
FAILED = re.compile("<!-- failed: (.*) -->")


def pages() -> APIRouter:
    """The routes of the page: /search, /login and the files that they name under /page/."""
    router = APIRouter(include_in_schema=False)
    files = Assets(PAGE, HEADERS)

    @router.api_route("/search", methods=["GET", "HEAD"])
    async def search(request: Request) -> Response:
        return files.answer(request, "index.html")

    @router.api_route("/login", methods=["GET", "HEAD"])
    async def login(request: Request) -> Response:
        """The login form; it leads to the requested page, if that belongs to this service."""
        asked = request.query_params
        text = files.files["login.html"].content.decode()
        text = text.replace('value="search"', f'value="{escape(own_path(asked.get("next", "")))}"')
        if "failed" in asked:
            text = FAILED.sub(r"\1", text)
        return Response(text, media_type=TYPES[".html"], headers=HEADERS)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def file(request: Request, name: str) -> Response:
        return files.answer(request, name)

    return router
