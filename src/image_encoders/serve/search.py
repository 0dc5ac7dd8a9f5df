"""Search over HTTP: hits for queries of words, images and sounds, their thumbnails, and the collection's status.

Nothing that a client sends becomes a file name: images are named by the sha256 of their bytes, folders by names that
the service assigns. Of a comparison with metadata, the name and the value are quoted in the database's query.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import groupby
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.datastructures import UploadFile

from image_encoders.api.items import Item
from image_encoders.api.requests import FIRST, MANY, Bounded, Limits, file_item, text_item
from image_encoders.api.responses import Problem, RequestError
from image_encoders.errors import InputError
from image_encoders.gallery import Group, Ranking, Sort
from image_encoders.inputs.formats import image_format
from image_encoders.serve.guards import may_see_paths
from image_encoders.serve.routes import BUSY, BoundedRoute, json_answer, refusals
from image_encoders.serve.searcher import Searcher, Term, Wanted
from image_encoders.serve.service import Service
from image_encoders.tables import Comparison, Where, as_text

MAX_QUERIES = 32
MAX_COMPARING = 1000  # characters of a comparison with metadata
MAX_HITS = 1000  # of one answer
MAX_SIDE_PX = 1 << 30
PREVIEW = 256  # longest side of an uploaded image's preview [px]
FAILURES = 200  # of one answer
DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.\d+)?)?)?)?)?")
KEY = re.compile(r"[0-9a-f]{64}")
IMMUTABLE = "private, max-age=31536000, immutable"
REFUSED = {
    404: "There is no collection, or no such image.",
    422: "A query that is invalid or cannot be embedded.",
}

router = APIRouter(route_class=BoundedRoute, tags=["search"], responses=refusals(REFUSED, BUSY))

Words = Annotated[list[str], Field(max_length=MAX_QUERIES)]
Offset = Annotated[int, Field(ge=0, le=1 << 31)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE_PX)]
Comparing = Annotated[str, Field(max_length=MAX_COMPARING)]


class Search(Bounded):
    """The filters of a search, all of which must match, and the order and page of its hits."""

    model_config = ConfigDict(extra="forbid")
    folder: str | None = Field(
        None, description="A folder as given in hits, or one of its parents; otherwise a part of folder names."
    )
    since: str | None = Field(None, alias="from", description="A date: 2024, 2024-05, 2024-05-01, 2024-05-01T10:00.")
    until: str | None = Field(None, alias="to", description="The last date, inclusive.")
    min_width: Side | None = Field(None, description="In pixels.")
    min_height: Side | None = Field(None, description="In pixels.")
    where: list[Comparing] = Field(
        [], max_length=MAX_QUERIES, description="Comparisons with the images' metadata, such as `year >= 2020`."
    )
    sort: Sort = Field("score", description="Without a query, `score` means `newest`.")
    group: Group | None = None
    k: Annotated[int, Field(ge=1, le=MAX_HITS)] = Field(200, description="How many hits.")
    offset: Offset = Field(0, description="How many hits to skip: `next` of the previous response.")
    each_copy: bool = Field(False, description="List files with the same bytes as separate hits.")

    @model_validator(mode="before")
    @classmethod
    def _has_known_fields(cls, given: Any) -> Any:
        accepted = [field.alias or name for name, field in cls.model_fields.items()]
        if isinstance(given, dict) and (unknown := sorted(set(given) - set(accepted))):
            said = f"no parameter {', '.join(unknown[:3])}; accepted: {', '.join(accepted)}"
            raise RequestError(400, said, code="invalid_request", param=unknown[0])
        return given

    def terms(self) -> list[Term]:
        """The queries, which are added up."""
        raise NotImplementedError

    def wanted(self, limits: Limits) -> Wanted:
        """The parsed request; raises RequestError."""
        terms = [checked(term, limits) for term in self.terms()]
        try:
            metadata = tuple(map(Comparison.parse, self.where))
        except InputError as error:
            raise RequestError(422, error.message, code=error.code, param="where") from error
        where = Where(
            None, since(self.since, "from"), until(self.until, "to"), self.min_width, self.min_height, metadata
        )
        return Wanted(terms, folder_name(self.folder), where, self.sort, self.group, self.each_copy)


class SearchAddress(Search):
    """A search in a query string."""

    q: Words = Field([], description="Words to search for; several are added.")
    minus: Words = Field([], description="Words to subtract.")
    like: Words = Field([], description="The key of a stored image, to find others like it.")
    unlike: Words = Field([], description="The key of a stored image to subtract.")
    vector: Words = Field([], description="A token from /v1/queries, for an image or a sound.")
    unvector: Words = Field([], description="A token to subtract.")

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, given: Any) -> Any:
        """What a form sends for what was left empty is not there."""
        if not isinstance(given, dict):
            return given
        kept = {name: _without_blanks(value) for name, value in given.items()}
        return {name: value for name, value in kept.items() if value not in ("", [])}

    def terms(self) -> list[Term]:
        """The queries; raises RequestError for too many."""
        terms = [
            Term(kind, value, weight, name)  # type: ignore[arg-type]
            for name, kind, weight in TERMS
            for value in getattr(self, name)
        ]
        check_count(len(terms))
        return terms


def _without_blanks(value: Any) -> Any:
    if isinstance(value, list):
        return [one for one in value if not isinstance(one, str) or one.strip()]
    return "" if isinstance(value, str) and not value.strip() else value


TERMS = (
    ("q", "text", 1.0),
    ("like", "key", 1.0),
    ("vector", "vector", 1.0),
    ("minus", "text", -1.0),
    ("unlike", "key", -1.0),
    ("unvector", "vector", -1.0),
)


class SearchTerm(Bounded):
    """One query: one of its first five fields, and its weight."""

    model_config = ConfigDict(extra="forbid")
    text: str | None = None
    key: str | None = Field(None, description="Of a stored image.")
    image: str | None = Field(None, description="A data: URL or base64.")
    audio: str | None = Field(None, description="A data: URL or base64.")
    vector: str | Annotated[list[float], MANY, FIRST] | None = Field(
        None, description="A token from /v1/queries, or an embedding."
    )
    weight: float = Field(1.0, ge=-1000, le=1000, description="Negative: subtracted.")

    @model_validator(mode="after")
    def _one(self) -> SearchTerm:
        if len(self._given()) != 1:
            raise ValueError("exactly one of text, key, image, audio and vector is accepted")
        return self

    def _given(self) -> dict[str, Any]:
        return self.model_dump(exclude={"weight"}, exclude_none=True)

    def term(self) -> Term:
        """As the searcher takes it."""
        ((kind, value),) = self._given().items()
        return Term(kind, value, self.weight, "queries")  # type: ignore[arg-type]


class SearchRequest(Search):
    """A search as JSON."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"queries": [{"text": "a red circle"}, {"text": "a black background", "weight": -0.5}], "k": 20},
                {"from": "2024-05", "min_width": 1000, "where": ["label = dog"], "sort": "newest", "group": "month"},
            ]
        },
    )
    queries: list[SearchTerm] = Field([], max_length=MAX_QUERIES)

    def terms(self) -> list[Term]:
        """The queries."""
        return [one.term() for one in self.queries]


class Usual(BaseModel):
    """The query's scores over a sample of the collection: their median and spread."""

    score: float
    spread: float


class Hit(BaseModel):
    """An image that was found."""

    key: str = Field(description="The sha256 of its bytes.")
    name: str
    folder: str
    path: str | None = Field(description="Only for clients on this machine, or with --show-paths.")
    score: float | None = Field(description="Its cosine similarity to the query.")
    above: float | None = Field(description="How far the score is above the query's typical score, in spreads.")
    width: int
    height: int
    bytes: int
    taken: str | None = Field(description="By the camera's own clock.")
    copies: int = Field(description="Other files with the same bytes.")
    thumbnail: str


class HitGroup(BaseModel):
    """Hits that belong together."""

    name: str
    hits: list[int] = Field(description="Their positions in this answer's hits.")


class SearchAnswer(BaseModel):
    """Hits, best first, or as they were sorted."""

    model: str
    fingerprint: str
    count: int = Field(description="The number of hits on all pages.")
    usual: Usual | None
    line: float | None = Field(description="The best score expected by chance alone.")
    hits: list[Hit]
    groups: list[HitGroup] | None
    next: int | None = Field(description="The offset of the next page.")
    seconds: dict[str, float]


class UploadedQuery(BaseModel):
    """An image or a sound that was embedded, but not stored."""

    vector: str = Field(description="A token for `vector=`.")
    modality: Literal["image", "audio"]
    name: str | None
    thumbnail: str | None = Field(description="Of an image: a data: URL.")


@router.get("/search.json", response_model=SearchAnswer)
async def search(request: Request, asked: Annotated[SearchAddress, Query()]) -> Response:
    """The hits of a search; all images without a query. The page of the same address shows them."""
    return await _answer(request, asked)


@router.post("/v1/search", response_model=SearchAnswer)
async def search_by_json(request: Request, asked: SearchRequest) -> Response:
    """The same, with weights, and with images and sounds in the request."""
    return await _answer(request, asked)


async def _answer(request: Request, asked: Search) -> Response:
    searcher = searcher_of(request)
    collection = searcher.collection
    wanted = asked.wanted(_service(request).limits)
    began = time.perf_counter()
    direction = await searcher.direction(wanted.terms)
    embed_s = time.perf_counter() - began
    shows_paths = may_see_paths(request.scope, _service(request).settings)

    def page(ranking: Ranking) -> dict[str, Any]:
        end = min(asked.offset + asked.k, len(ranking))
        places = range(min(asked.offset, end), end)
        return {
            "count": len(ranking),
            "usual": None if ranking.usual is None else {"score": ranking.usual, "spread": ranking.spread},
            "line": ranking.line,
            "hits": [_hit(ranking, place, shows_paths) for place in places],
            "groups": None if ranking.groups is None else list(_groups(ranking, places)),
            "next": end if end < len(ranking) else None,
        }

    found, search_s = await searcher.rank(direction, wanted, page)
    of = {"model": collection.name, "fingerprint": collection.fingerprint}
    seconds = {"embed": round(embed_s, 4), "search": round(search_s, 4)}
    headers = {"X-Encoder": collection.name, "X-Encoder-Fingerprint": collection.fingerprint}
    return json_answer({**of, **found, "seconds": seconds}, headers)


def _hit(ranking: Ranking, place: int, shows_paths: bool) -> dict[str, Any]:
    image = ranking.view.image(int(ranking.positions[place]))
    above = ranking.above(place)
    return {
        "key": image.key,
        "name": as_text(image.name),
        "folder": image.folder,
        "path": as_text(image.locator.path) if shows_paths else None,
        "score": None if ranking.scores is None else round(float(ranking.scores[place]), 6),
        "above": None if above is None else round(above, 3),
        "width": image.width,
        "height": image.height,
        "bytes": image.bytes,
        "taken": image.taken.isoformat() if isinstance(image.taken, datetime) else None,
        "copies": int(ranking.copies[place]),
        "thumbnail": f"/thumbnails/{image.key}",
    }


def _groups(ranking: Ranking, places: range) -> Iterator[dict[str, Any]]:
    names = ranking.groups or ()
    for name, hits in groupby(range(len(places)), key=lambda hit: names[places[hit]]):
        yield {"name": name, "hits": list(hits)}


UPLOAD = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"file": {"type": "string", "format": "binary"}},
                "required": ["file"],
            }
        },
    },
}


@router.post("/v1/queries", response_model=UploadedQuery, openapi_extra={"requestBody": UPLOAD})
async def upload_query(request: Request) -> Response:
    """An image or a sound as a token for `vector=`: its embedding. Nothing is stored.

    The body is the file, or multipart/form-data with one file.
    """
    searcher = searcher_of(request)
    name, content = await _uploaded(request)
    modality = _modality(content, searcher.collection.modalities)
    try:
        token = searcher.token(await searcher.embed(Item(modality, content)))
        preview = await searcher.preview(content, PREVIEW) if modality == "image" else None
    except InputError as error:
        raise RequestError(422, error.message, code=error.code, param="file") from error
    shown = None if preview is None else f"data:image/jpeg;base64,{base64.b64encode(preview).decode()}"
    return json_answer({"vector": token, "modality": modality, "name": name, "thumbnail": shown})


async def _uploaded(request: Request) -> tuple[str | None, bytes]:
    """The name, where there is one, and the bytes of the file that a request brings."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        name, content = None, await request.body()
    else:
        async with request.form(max_files=1, max_fields=8) as form:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            if not files:
                raise RequestError(422, "no file in the form; exactly one is accepted", code="no_file", param="file")
            name, content = files[0].filename, await files[0].read()
    most = _service(request).settings.max_file_bytes
    if len(content) > most:
        raise RequestError(413, f"{len(content):,} bytes; at most {most:,} are accepted", code="too_large")
    return None if not name else as_text(re.split(r"[/\\]", name)[-1])[:255], content


def _modality(content: bytes, modalities: tuple[str, ...]) -> Literal["image", "audio"]:
    """What a file is; RequestError where it is nothing that the collection can be searched by."""
    try:
        image_format(content)
        return "image"
    except InputError as error:
        if "audio" in modalities and error.code == "not-an-image":
            return "audio"
        raise RequestError(422, error.message, code=error.code, param="file") from error


JPEG = {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}, "description": "A JPEG."}


@router.get(
    "/thumbnails/{key}",
    response_class=Response,
    responses={200: JPEG, 410: {"model": Problem, "description": "The file is gone or has changed."}},
)
@router.head("/thumbnails/{key}", include_in_schema=False)
async def thumbnail(
    request: Request,
    key: str,
    size: Annotated[Literal["256", "1024"], Query(description="The longest side in pixels.")] = "256",
) -> Response:
    """A small JPEG of a stored image. It never changes, so browsers may cache it."""
    searcher = searcher_of(request)
    if not KEY.fullmatch(key):
        raise RequestError(404, "no image of the collection has this key", code="unknown_key")
    headers = {"ETag": f'"{key}-{size}"', "Cache-Control": IMMUTABLE}
    known = request.headers.get("if-none-match", "")
    if any(tag.strip().removeprefix("W/") == headers["ETag"] for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    await request.body()  # what comes after it is that the client has gone
    content = await searcher.thumbnail(key, int(size), request.is_disconnected)
    return Response(content, media_type="image/jpeg", headers=headers)


@router.get("/failures.json")
async def failures(request: Request, offset: Annotated[Offset, Query()] = 0) -> Response:
    """The files that could not be embedded, and why."""
    listed = await searcher_of(request).failures()
    shows_paths = may_see_paths(request.scope, _service(request).settings)
    end = min(offset + FAILURES, len(listed))
    rows = []
    for failure in listed[min(offset, end) : end]:
        path = as_text(failure.path)
        name = path.rstrip("/").rpartition("/")[2]
        rows.append(
            {
                "name": name,
                "path": path if shows_paths else None,
                "stage": failure.stage,
                "code": failure.code,
                "message": failure.message if shows_paths else failure.message.replace(path, name),
                "when": failure.when,
            }
        )
    return json_answer({"count": len(listed), "failures": rows, "next": end if end < len(listed) else None})


@router.get("/status.json")
async def status(request: Request) -> Response:
    """The collection, the progress of its run, and the load of the last minute."""
    service, searcher = _service(request), searcher_of(request)
    served = service.collection_model or next(iter(service.models.values()), None)  # none while the first one is loaded
    collection = None
    if service.collection is not None:
        images, failed = await searcher.counts()
        collection = {"name": as_text(searcher.name), "images": images, "failures": failed}
    waiting = sum(tower.waiting for model in service.models.values() for tower in model.towers.values())
    return json_answer(
        {
            "model": None if served is None else served.name,
            "modalities": [] if served is None else list(served.modalities),
            "collection": collection,
            "run": None if service.run is None else service.run(),
            "service": {**service.metrics.last_minute(), "waiting": waiting},
        }
    )


# ------------------------------------------------------------------ what routes share


def searcher_of(request: Request) -> Searcher:
    """The searcher of this application."""
    searcher: Searcher = request.app.state.searcher
    return searcher


def checked(term: Term, limits: Limits) -> Term:
    """The term, its content read; RequestError where that cannot be."""
    try:
        if term.kind == "text":
            text_item(term.value, limits)
        elif term.kind in ("image", "audio"):
            return Term(term.kind, file_item(term.value, term.kind, limits), term.weight, term.param)
    except InputError as error:
        raise RequestError(422, error.message, code=error.code, param=term.param) from error
    return term


def check_count(count: int) -> None:
    """Raise RequestError for too many queries."""
    if count > MAX_QUERIES:
        raise RequestError(422, f"{count} queries; at most {MAX_QUERIES} are accepted", code="too_many_queries")


def folder_name(said: str | None) -> str | None:
    """A folder to stay in; None for the collection's own."""
    return None if said is None or said.rstrip("/") in ("", ".") else said


def since(said: str | None, param: str) -> datetime | None:
    """When a date begins."""
    return None if said is None else _period(said, param)[0]


def until(said: str | None, param: str) -> datetime | None:
    """When a date is over; None for the last one that there is."""
    return None if said is None else _period(said, param)[1]


def _period(said: str, param: str) -> tuple[datetime, datetime | None]:
    """When a year, a month, a day, a minute or a second begins, and when the next one does."""
    found = DATE.fullmatch(said)
    try:
        if found is None:
            raise ValueError
        numbers = [int(one) for one in found.groups() if one is not None]
        begin = datetime(*(numbers + [1, 1][len(numbers) - 1 :] if len(numbers) < 3 else numbers))  # type: ignore[arg-type]
    except ValueError as error:
        raise RequestError(
            422,
            f"{param} is {said[:40]!r}; a date is accepted, such as 2024, 2024-05, 2024-05-01 or 2024-05-01T10:00",
            code="date",
            param=param,
        ) from error
    try:
        if len(numbers) == 1:
            return begin, begin.replace(year=begin.year + 1)
        if len(numbers) == 2:
            return begin, (begin + timedelta(days=31)).replace(day=1)
        step = {3: timedelta(days=1), 5: timedelta(minutes=1), 6: timedelta(seconds=1)}[len(numbers)]
        return begin, begin + step
    except (ValueError, OverflowError):  # the end of the year 9999
        return begin, None


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
