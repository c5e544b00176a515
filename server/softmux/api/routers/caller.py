"""`GET /v1/whoami`: whose key this is, and what it may do."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request

from softmux.api.auth import in_networks, principal_of
from softmux.api.networks import parse_networks
from softmux.api.replies import CallerReply, answers
from softmux.api.services import services_of

router = APIRouter(tags=["caller"])


@router.get("/v1/whoami", responses=answers(CallerReply), response_model=None, summary="Whose key this is")
async def whoami(request: Request) -> dict[str, Any]:
    services, caller = services_of(request), principal_of(request)
    networks = parse_networks(services.settings.metrics_networks)
    tenant = services.registry.tenants.get(caller.tenant)
    return {
        "object": "caller",
        "tenant": caller.tenant,
        "role": caller.role,
        "key_id": caller.key_id or None,
        "metrics": caller.may("admin") or in_networks(request.scope, networks),
        "weight": tenant.weight,
        "limits": msgspec.structs.asdict(tenant.limits),
    }
