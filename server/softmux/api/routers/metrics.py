"""`GET /metrics`, for Prometheus: an admin's key, or an allowed network."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from softmux.api.auth import require
from softmux.api.services import services_of
from softmux.telemetry.exposition import CONTENT_TYPE

router = APIRouter(tags=["metrics"])


@router.get("/metrics", response_class=PlainTextResponse, summary="Metrics in Prometheus' text format")
async def metrics(request: Request) -> Response:
    require(request, "admin")
    services = services_of(request)
    _, others = await asyncio.gather(services.worker.refresh_stats(), services.siblings.counts())
    return Response(services.metrics.render(others), media_type=CONTENT_TYPE)
