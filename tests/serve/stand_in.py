"""A stand-in for the service behind the search page: the same addresses and answers, over made-up images.

What it answers follows from the request alone, so that tests know it: 10,000 images (or what a test sets), scored by a
hash of the query, with names that try to be scripts, words that answer slowly, and words that are refused.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image

from image_encoders.scenes import draw, sample_scene
from image_encoders.serve.pages import pages
from image_encoders.tables import Comparison

HOSTILE = [
    "<img src=x onerror=\"document.title='run'\">.jpg",
    "<script>document.title='run'</script>.png",
    "javascript:document.title='run'.jpg",
    '"><svg onload=alert(1)>.jpg',
    "\u202egpj.exe \u0000\u001b[31m.jpg",
    "=HYPERLINK(1),2.jpg",
    "a" * 200 + ".jpg",
    "\u05ea\u05de\u05d5\u05e0\u05d4 \u05d9\u05e4\u05d4.jpg",
]
SPREAD, USUAL = 0.03, 0.12
SCENES = 48
MATCHES = 500  # that are sorted by date, or grouped


def key_of(number: int) -> str:
    return hashlib.sha256(b"image %d" % number).hexdigest()


@lru_cache(maxsize=1)
def scenes() -> list[bytes]:
    """A few drawn scenes as JPEGs, shown in turn."""
    rng = random.Random(0)
    found = []
    for _ in range(SCENES):
        file = io.BytesIO()
        Image.fromarray(draw(sample_scene(rng), 256)).save(file, "JPEG", quality=80)
        found.append(file.getvalue())
    return found


@lru_cache(maxsize=20_000)
def image(number: int) -> dict[str, Any]:
    """What the service knows of an image."""
    rng = random.Random(number)
    name = HOSTILE[number] if number < len(HOSTILE) else f"IMG_{number:05d}.jpg"
    month = number % 24
    folder = f"{2023 + month // 12}/album {number % 7 + 1}"
    width, height = rng.choice([(4000, 3000), (3000, 4000), (1024, 1024), (6000, 900), (640, 480)])
    return {
        "key": key_of(number),
        "name": name,
        "folder": folder,
        "path": f"/photos/{folder}/{name}",
        "width": width,
        "height": height,
        "bytes": rng.randint(20_000, 5_000_000),
        "taken": f"{2023 + month // 12}-{month % 12 + 1:02d}-{rng.randint(1, 28):02d}T10:11:12",
        "copies": 2 if number % 50 == 0 else 0,
        "thumbnail": f"/thumbnails/{key_of(number)}",
    }


@dataclass
class StandIn:
    """The stand-in's state, which tests set."""

    url: str = ""
    images: int = 10_000
    reachable: bool = True  # the folder of the images
    modalities: list[str] = field(default_factory=lambda: ["image", "text", "audio"])
    collection: bool = True
    failures: int = 230
    relevant: int = 37  # images above the line
    run: dict[str, Any] | None = None
    key: str | None = None  # that requests must bring
    show_paths: bool = True
    seconds: dict[str, float] = field(default_factory=dict)  # how long a search for these words takes
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)  # words and what they are refused with
    asked: list[str] = field(default_factory=list)  # the query strings of searches, as they came


def score(said: str, number: int, relevant: int, images: int) -> float:
    """Words bring `relevant` of the images above the line, the same ones each time."""
    place = int.from_bytes(hashlib.blake2b(f"{said} {number}".encode(), digest_size=4).digest(), "big") / 2**32
    start = int.from_bytes(hashlib.blake2b(said.encode(), digest_size=4).digest(), "big") % max(images, 1)
    if (number - start) % max(images, 1) < relevant:
        return USUAL + SPREAD * (4.2 + 4 * place)
    return USUAL + SPREAD * (4 * place - 2)


@lru_cache(maxsize=64)
def ranked(said: str, relevant: int, images: int) -> list[tuple[float, int]]:
    found = ((score(said, number, relevant, images), number) for number in range(images))
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))


def application(state: StandIn) -> FastAPI:
    app = FastAPI()
    app.include_router(pages())
    numbers = {key_of(number): number for number in range(20_000)}

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        body = {"error": {"message": error.detail, "type": "invalid", "param": None, "code": None}}
        problem = {**body, "detail": error.detail, "status": error.status_code}
        return JSONResponse(problem, error.status_code, error.headers)

    def check(request: Request) -> None:
        if state.key and request.cookies.get("key") != state.key:
            raise HTTPException(401, "This service asks for a key.")

    @app.post("/login")
    async def login(request: Request) -> Response:
        form = await request.form()
        right = form["key"] == state.key
        answer = Response(status_code=303)
        answer.headers["Location"] = str(form["next"]) if right else "/login?failed=1"
        if right:
            answer.set_cookie("key", str(form["key"]), httponly=True, samesite="strict")
        return answer

    @app.get("/search.json")
    async def search(request: Request) -> dict[str, Any]:
        check(request)
        state.asked.append(request.url.query)
        asked = request.query_params
        terms = ("q", "minus", "like", "unlike", "vector", "unvector")
        said = " ".join(f"{name}={value}" for name, value in asked.multi_items() if name in terms)
        words = asked.get("q", "")
        await asyncio.sleep(state.seconds.get(words, 0))
        if words in state.broken:
            status, reason = state.broken[words]
            raise HTTPException(status, reason)
        if "q" in asked and "text" not in state.modalities:
            raise HTTPException(422, "The model has no text tower; it has: image")
        for key in (*asked.getlist("like"), *asked.getlist("unlike")):
            if key not in numbers:
                raise HTTPException(404, f"No image has the key {key}.")
        if said:
            order = ranked(said, state.relevant, state.images)
        else:
            order = [(0.0, number) for number in range(state.images)]
        order = [pair for pair in order if fits(image(pair[1]), asked)] if filtered(asked) else order
        if said and (asked.get("sort", "score") != "score" or asked.get("group")):
            order = order[:MATCHES]
        if asked.get("sort") in ("newest", "oldest", "path"):
            by = "path" if asked["sort"] == "path" else "taken"
            order = sorted(order, key=lambda pair: image(pair[1])[by], reverse=asked["sort"] == "newest")
        if "like" in asked and "q" not in asked and asked.get("sort", "score") == "score" and not filtered(asked):
            number = numbers[asked["like"]]
            order = [(1.0, number)] + [pair for pair in order if pair[1] != number]
        kind = asked.get("group")
        if kind:
            first: dict[str, int] = {}
            for at, (_, number) in enumerate(order):
                first.setdefault(group_of(number, kind), at)
            order = sorted(order, key=lambda pair: first[group_of(pair[1], kind)])
        offset, k = int(asked.get("offset", 0)), int(asked.get("k", 50))
        shown = order[offset : offset + k]
        hits = [hit(number, value if said else None, state) for value, number in shown]
        groups = None
        if kind:
            names: dict[str, list[int]] = {}
            for at, (_, number) in enumerate(shown):
                names.setdefault(group_of(number, kind), []).append(at)
            groups = [{"name": name, "hits": places} for name, places in names.items()]
        return {
            "model": "clip/stand-in",
            "fingerprint": "0" * 16,
            "count": len(order),
            "usual": {"score": USUAL, "spread": SPREAD} if said else None,
            "line": USUAL + 4 * SPREAD if said else None,
            "hits": hits,
            "groups": groups,
            "next": offset + k if offset + k < len(order) else None,
            "seconds": {"embed": 0.0, "search": 0.0},
        }

    @app.post("/v1/queries")
    async def queries(request: Request) -> dict[str, Any]:
        check(request)
        content = await request.body()
        if b"broken" in content:
            raise HTTPException(422, "The JPEG ends after 12 of 900 bytes.")
        sound = (request.headers.get("content-type") or "").startswith("audio/")
        token = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        picture = None if sound else "data:image/jpeg;base64," + base64.b64encode(scenes()[0]).decode()
        return {"vector": token, "modality": "audio" if sound else "image", "name": None, "thumbnail": picture}

    @app.get("/thumbnails/{key}")
    async def thumbnail(key: str) -> Response:
        number = numbers.get(key)
        if number is None:
            raise HTTPException(404, "No image has this key.")
        if number == 9 or not state.reachable:
            raise HTTPException(410, "The file is gone.", {"Cache-Control": "private, no-cache"})
        headers = {"Cache-Control": "public, max-age=31536000, immutable", "ETag": f'"{key}"'}
        return Response(scenes()[number % SCENES], media_type="image/jpeg", headers=headers)

    @app.get("/failures.json")
    async def failures(request: Request, offset: int = 0) -> dict[str, Any]:
        check(request)
        listed = [failure(at, state) for at in range(offset, min(offset + 100, state.failures))]
        more = offset + 100 if offset + 100 < state.failures else None
        return {"count": state.failures, "failures": listed, "next": more}

    @app.get("/status.json")
    async def status(request: Request) -> dict[str, Any]:
        check(request)
        collection = {"name": "Holidays", "images": state.images, "failures": state.failures}
        return {
            "model": "clip/stand-in" if state.modalities else None,
            "modalities": state.modalities,
            "collection": collection if state.collection else None,
            "run": state.run,
            "service": {
                "requests_per_second": 12.5,
                "images_per_second": 81.2,
                "p50_ms": 18.3,
                "p99_ms": 94.0,
                "waiting": 3,
            },
        }

    return app


def group_of(number: int, kind: str) -> str:
    found = image(number)
    return str(found["folder"] if kind == "folder" else found["taken"][:7])


def filtered(asked: Any) -> bool:
    return any(name in asked for name in ("folder", "from", "to", "min_width", "min_height", "where"))


def fits(found: dict[str, Any], asked: Any) -> bool:
    return (
        found["folder"].startswith(asked.get("folder", ""))
        and found["taken"] >= asked.get("from", "")
        and found["taken"][:10] <= asked.get("to", "9999")
        and found["width"] >= int(asked.get("min_width", 0))
        and found["height"] >= int(asked.get("min_height", 0))
        and all(found[one.name] >= one.value for one in map(Comparison.parse, asked.getlist("where")))
    )


def hit(number: int, value: float | None, state: StandIn) -> dict[str, Any]:
    above = None if value is None else (value - USUAL) / SPREAD
    found = {**image(number), "score": value, "above": above}
    return found if state.show_paths else {**found, "path": None}


def failure(at: int, state: StandIn) -> dict[str, Any]:
    name = HOSTILE[at] if at < len(HOSTILE) else f"broken_{at:04d}.jpg"
    return {
        "name": name,
        "path": f"/photos/2024/{name}" if state.show_paths else None,
        "stage": "read",
        "code": "truncated",
        "message": "The JPEG ends after 12 of 900 bytes.",
        "when": "2026-11-20T08:00:00",
    }


@contextmanager
def running(state: StandIn) -> Iterator[StandIn]:
    """The stand-in on a free port of loopback, on a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application(state), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    state.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield state
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
