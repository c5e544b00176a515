"""`/v1/tenants` and `/v1/keys`, for admins: what `softmux tenant` and `softmux key` do on the registry itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import JSONResponse, Response

from softmux.api.auth import require
from softmux.api.body import described, read_json
from softmux.api.schemas import Body
from softmux.api.services import services_of
from softmux.registry.keys import KeyRecord
from softmux.types import DEFAULT_TENANT

router = APIRouter(prefix="/v1", tags=["admin"])

_MAX_BODY = 4096


class TenantBody(Body):
    name: str


class KeyBody(Body):
    tenant: str = DEFAULT_TENANT
    role: Annotated[Literal["user", "publisher", "admin"], Field(description="What the key may do.")] = "user"


def key_json(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "tenant": record.tenant,
        "role": record.role,
        "prefix": record.prefix,
        "created_at": int(record.created_at),
        "revoked_at": None if record.revoked_at is None else int(record.revoked_at),
    }


@router.get("/tenants", summary="All tenants")
async def tenants(request: Request) -> dict[str, Any]:
    require(request, "admin")
    return {"data": [{"name": tenant.name} for tenant in await services_of(request).registry.tenants.list()]}


@router.post("/tenants", openapi_extra=described(TenantBody), status_code=201, summary="Create a tenant")
async def create_tenant(request: Request) -> Response:
    caller = require(request, "admin")
    body = await read_json(request, TenantBody, _MAX_BODY)
    _, created = await services_of(request).registry.tenants.create(body.name, actor=caller.actor)
    return JSONResponse({"name": body.name}, 201 if created else 200)


@router.get("/keys", summary="All keys, without their secrets")
async def keys(request: Request) -> dict[str, Any]:
    require(request, "admin")
    return {"data": [key_json(record) for record in await services_of(request).registry.keys.list_keys()]}


@router.post("/keys", openapi_extra=described(KeyBody), status_code=201, summary="Create a key; it is shown this once")
async def create_key(request: Request) -> dict[str, Any]:
    caller = require(request, "admin")
    body = await read_json(request, KeyBody, _MAX_BODY)
    services = services_of(request)
    key_id, secret = await services.registry.keys.create_key(body.tenant, body.role, actor=caller.actor)
    await services.siblings.see(body.tenant, None)
    return {"id": key_id, "key": secret, "tenant": body.tenant, "role": body.role}


@router.delete("/keys/{key_id}", status_code=204, summary="Revoke a key")
async def revoke_key(request: Request, key_id: str) -> Response:
    caller = require(request, "admin")
    services = services_of(request)
    revoked = await services.registry.keys.revoke_key(key_id, actor=caller.actor)
    await services.siblings.see(revoked.tenant, None)
    return Response(status_code=204)
