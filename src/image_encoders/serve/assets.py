"""Scripts, styles and pages of a folder in the package, as served to browsers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi import HTTPException, Request, Response

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """A file, in memory as it was at the start."""

    content: bytes
    type: str
    etag: str


class Assets:
    """The files of a folder by name.

    headers: of each answer
    """

    def __init__(self, folder: Path, headers: Mapping[str, str]):
        self.headers = headers
        self.files: dict[str, Asset] = {}
        for path in sorted(folder.iterdir()):
            if path.suffix in TYPES:
                content = path.read_bytes()
                etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
                self.files[path.name] = Asset(content, TYPES[path.suffix], etag)

    def answer(self, request: Request, name: str) -> Response:
        """The file, or 304 if the browser has it; 404 for an unknown name."""
        file = self.files.get(name)
        if file is None:
            raise HTTPException(404, f"There is no file {name!r}.")
        headers = {**self.headers, "ETag": file.etag}
        known = request.headers.get("if-none-match", "")
        if file.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.type, headers=headers)
