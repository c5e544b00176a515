"""`GET /metrics`, for Prometheus: an admin's key, or an allowed network."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from softmux.api.auth import require
from softmux.api.services import services_of
from softmux.telemetry.exposition import CONTENT_TYPE

router = APIRouter(tags=["metrics"])


@router.get("/metrics", summary="Metrics in Prometheus' text format")
async def metrics(request: Request) -> Response:
    require(request, "admin")
    await services_of(request).worker.refresh_stats()
    return Response(services_of(request).metrics.render(), media_type=CONTENT_TYPE)
