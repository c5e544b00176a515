"""`GET /health/live` and `/health/ready`: no key, no data."""

from __future__ import annotations

from fastapi import APIRouter, Request

from softmux.api.replies import ReadyReply
from softmux.api.services import services_of
from softmux.errors import EngineDown

router = APIRouter(prefix="/health", tags=["health"])

_SILENT_SECONDS = 60.0
"""A worker tells its numbers twice a second, but no more often than it ends a step."""


@router.get("/live", summary="The process runs")
async def live() -> dict[str, str]:
    return {"status": "live"}


@router.get("/ready", summary="The engine answers")
async def ready(request: Request) -> ReadyReply:
    services = services_of(request)
    if services.draining:
        raise EngineDown("The server is shutting down.")
    if not services.ready:
        raise EngineDown("The engine is not up yet, or is being started again.")
    if services.worker.silent_seconds > _SILENT_SECONDS:
        raise EngineDown(f"The engine has been silent for {services.worker.silent_seconds:.0f} s.")
    return ReadyReply(status="ready", replicas=services.worker.count, up=services.worker.up)
