"""Whether the service lives, whether it is ready, which models it has."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from image_encoders.api.responses import RequestError
from image_encoders.serve.service import Service

router = APIRouter()


@router.get("/health/live", tags=["health"])
async def live() -> dict[str, str]:
    """The process answers."""
    return {"status": "live"}


@router.get("/health/ready", tags=["health"])
async def ready(request: Request) -> Response:
    """A canary image went through every net lately."""
    service: Service = request.app.state.service
    states = {name: model.state for name, model in service.models.items()}
    if not service.ready:
        wrong = ", ".join(f"{name} is {state}" for name, state in states.items() if state not in ("ready", "idle"))
        raise RequestError(503, f"not ready: {wrong}", code="not_ready", headers={"Retry-After": "1"})
    return JSONResponse({"status": "ready", "models": states})


@router.get("/v1/models", tags=["models"])
async def models(request: Request) -> dict[str, Any]:
    """The models that requests may name; the first is the default."""
    service: Service = request.app.state.service
    return {"object": "list", "data": [describe(name, service) for name in service.models]}


def describe(name: str, service: Service) -> dict[str, Any]:
    """A model, as /v1/models lists it."""
    model = service.models[name]
    facts = {key: getattr(model, key) for key in ("dim", "fingerprint", "precision", "engine", "device", "state")}
    about = {"id": name, "object": "model", "created": 0, "owned_by": "image-encoders"}
    return {**about, "modalities": list(model.modalities), **facts}
