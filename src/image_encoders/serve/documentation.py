"""/, /openapi.json and /docs: the service's own description, and a page that shows it, without other hosts."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from image_encoders.serve.assets import Assets

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
ASSETS = Assets(Path(__file__).parent / "docs", HEADERS)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: endpoints</title>
<link rel="stylesheet" href="/docs/docs.css">
<script src="/docs/docs.js" defer></script>
</head>
<body>
<header><h1>{title} {version}</h1><p>{description}</p><p><a href="/openapi.json">openapi.json</a></p>
<nav aria-label="Endpoints"><ul>{contents}</ul></nav></header>
<main>{operations}</main>
</body>
</html>
"""

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def first(request: Request) -> Response:
    """The start page: the search page, or without a collection the docs."""
    service = request.app.state.service
    return RedirectResponse("docs" if service.collection is None and service.run is None else "search")


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Every endpoint with examples to try."""
    return Response(page(request.app, str(request.base_url).rstrip("/")), media_type="text/html", headers=HEADERS)


@router.get("/docs/{name}")
async def asset(request: Request, name: str) -> Response:
    """The page's script or style."""
    return ASSETS.answer(request, name)


def page(app: FastAPI, address: str) -> str:
    """The page, made from the service's description of itself."""
    described = app.openapi()
    operations = [
        (path, method, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    contents = "".join(
        f'<li><a href="#{_anchor(path, method)}"><b>{method.upper()}</b> {escape(path)}</a></li>'
        for path, method, _ in operations
    )
    shown = "".join(_operation(path, method, one, described, address) for path, method, one in operations)
    about = {name: escape(described["info"][name]) for name in ("title", "version", "description")}
    return PAGE.format(**about, contents=contents, operations=shown)


def _anchor(path: str, method: str) -> str:
    return escape(method + path.replace("/", "-").replace("{", "").replace("}", ""))


def _operation(path: str, method: str, operation: dict[str, Any], described: dict[str, Any], address: str) -> str:
    parameters = "".join(
        f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}</td>"
        f"<td>{escape(one.get('description', ''))}</td></tr>"
        for one in operation.get("parameters", ())
    )
    answers = "".join(
        f"<tr><td><code>{escape(status)}</code></td><td>{escape(one['description'])}</td></tr>"
        for status, one in operation["responses"].items()
    )
    return (
        f'<section id="{_anchor(path, method)}"><h2><b>{method.upper()}</b> {escape(path)}</h2>'
        f"<p>{escape(operation.get('description', ''))}</p>"
        + (f"<h3>Parameters</h3><table>{parameters}</table>" if parameters else "")
        + _body(path, method, operation, described, address)
        + f"<h3>Answers</h3><table>{answers}</table></section>"
    )


def _body(path: str, method: str, operation: dict[str, Any], described: dict[str, Any], address: str) -> str:
    """The fields of a request's body, examples of it, and a curl line."""
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" not in content:
        curl = f"curl {address}{path}"
        if content:
            curl += " -H 'Content-Type: image/jpeg' --data-binary @photo.jpg"
        tried = "" if content or "{" in path else _tried(path, method, "")
        return f"<pre>{escape(curl)}</pre>{tried}"
    schema = _resolved(content["application/json"]["schema"], described)
    fields = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_kind(one))}</td>"
        f"<td>{escape(one.get('description', ''))}</td></tr>"
        for name, one in schema["properties"].items()
    )
    examples = [json.dumps(example, indent=2) for example in schema.get("examples", [])]
    first = json.dumps(json.loads(examples[0])) if examples else "{}"
    curl = f"curl {address}{path} --json '{first}'"
    forms = "".join(_tried(path, method, example) for example in examples)
    return f"<h3>Body</h3><table>{fields}</table><pre>{escape(curl)}</pre>{forms}"


def _tried(path: str, method: str, example: str) -> str:
    """A form that sends an example; docs.js does it."""
    area = (
        f'<textarea rows="{min(example.count(chr(10)) + 2, 16)}" spellcheck="false" aria-label="Body of the request">'
        f"{escape(example)}</textarea>"
        if example
        else ""
    )
    return (
        f'<form data-method="{method.upper()}" data-path="{escape(path)}">{area}'
        '<button>Send</button><output aria-live="polite"></output></form>'
    )


def _resolved(schema: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref", "")
    found: dict[str, Any] = described["components"]["schemas"][reference.rpartition("/")[2]] if reference else schema
    return found


def _kind(schema: dict[str, Any]) -> str:
    """What a field holds, in a few words."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("const", schema.get("type", "any")))
