"""Liveness, readiness, models and metrics of the service."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

from image_encoders.api.responses import Problem, RequestError
from image_encoders.serve.routes import refusals
from image_encoders.serve.service import Service

router = APIRouter(responses=refusals())


class Live(BaseModel):
    """The process responds."""

    status: Literal["live"] = "live"


class Ready(BaseModel):
    """Every net embedded a canary recently."""

    status: Literal["ready"] = "ready"
    models: dict[str, str] = Field(description="By name: ready, or idle until the next request.")


class ModelObject(BaseModel):
    """A model that requests may name."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str
    modalities: list[str]
    dim: int
    fingerprint: str = Field(description="Embeddings with equal fingerprints are comparable.")
    precision: str
    engine: str
    device: str
    state: Literal["loading", "ready", "unhealthy", "idle"]


class Models(BaseModel):
    """The models, the default one first."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


@router.get("/health/live", tags=["health"])
async def live() -> Live:
    """Whether the process responds; restart it if it does not."""
    return Live()


@router.get(
    "/health/ready",
    tags=["health"],
    response_model=Ready,
    responses={503: {"model": Problem, "description": "A net does not respond; it is being restarted."}},
)
async def ready(request: Request) -> Response:
    """Whether a canary image passed through every net recently; if not, send no requests."""
    service: Service = request.app.state.service
    states = {name: model.state for name, model in service.models.items()}
    if not service.ready:
        late = [f"{name} is {state}" for name, state in states.items() if state not in ("ready", "idle")]
        wrong = ", ".join(late) if states else "the model is being loaded"
        raise RequestError(503, f"not ready: {wrong}", code="not_ready", headers={"Retry-After": "1"})
    return JSONResponse({"status": "ready", "models": states})


@router.get("/v1/models", tags=["models"])
async def models(request: Request) -> Models:
    """The models that requests may name; the first is the default."""
    service: Service = request.app.state.service
    return Models(data=[_described(name, service) for name in service.models])


def _described(name: str, service: Service) -> ModelObject:
    model = service.models[name]
    facts = {key: getattr(model, key) for key in ("dim", "fingerprint", "precision", "engine", "device", "state")}
    return ModelObject(id=name, owned_by="image-encoders", modalities=list(model.modalities), **facts)


@router.get(
    "/metrics",
    tags=["health"],
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "For Prometheus."}},
)
async def metrics(request: Request) -> Response:
    """Counters and times, as Prometheus reads them."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
