"""The files of the search page, as they lie in `page/`: no other host, no inline script, no inline style."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

PAGE = Path(__file__).parent / "page"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
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


@dataclass(frozen=True)
class PageFile:
    """A file of the page, in memory: what is served is what was there at the start."""

    content: bytes
    type: str
    etag: str


def page_files() -> dict[str, PageFile]:
    """The page's files by name."""
    files = {}
    for path in sorted(PAGE.iterdir()):
        if path.suffix in TYPES:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            files[path.name] = PageFile(content, TYPES[path.suffix], etag)
    return files


def own_path(target: str) -> bool:
    """Whether an address leads nowhere but to a path of this service."""
    return re.fullmatch(r"/?[A-Za-z][^\s\\:]*", target.partition("?")[0]) is not None


def pages() -> APIRouter:
    """The routes of the page: /search, /login and the files that they name under /page/."""
    router = APIRouter(include_in_schema=False)
    files = page_files()

    def answer(request: Request, name: str) -> Response:
        file = files.get(name)
        if file is None:
            raise HTTPException(404, f"The page has no file {name!r}.")
        headers = {**HEADERS, "ETag": file.etag}
        known = request.headers.get("if-none-match", "")
        if file.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.type, headers=headers)

    @router.api_route("/search", methods=["GET", "HEAD"])
    async def search(request: Request) -> Response:
        return answer(request, "index.html")

    @router.api_route("/login", methods=["GET", "HEAD"])
    async def login(request: Request) -> Response:
        """The form for a key; it leads on to the page that was asked for, if that is one of this service."""
        asked = request.query_params
        text = files["login.html"].content.decode()
        if own_path(target := asked.get("next", "")):
            text = text.replace('value="/search"', f'value="{escape(target)}"')
        if "failed" in asked:
            text = FAILED.sub(r"\1", text)
        return Response(text, media_type=TYPES[".html"], headers=HEADERS)

    @router.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def file(request: Request, name: str) -> Response:
        return answer(request, name)

    return router
