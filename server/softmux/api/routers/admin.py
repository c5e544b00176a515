"""`/v1/tenants`, `/v1/keys`, `/v1/audit`, for admins: what `softmux tenant`, `key` and `audit` do on the registry."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from pydantic import Field, FiniteFloat
from starlette.responses import JSONResponse, Response

from softmux.api.auth import require
from softmux.api.body import described, read_json
from softmux.api.replies import AuditReply, KeyMade, KeysReply, TenantReply, TenantsReply, answers
from softmux.api.schemas import Body
from softmux.api.services import services_of
from softmux.registry.keys import KeyRecord
from softmux.registry.tenants import Limits, TenantRecord

router = APIRouter(prefix="/v1", tags=["admin"])

_MAX_BODY = 4096

Limit = Annotated[int, Field(ge=0, le=2**53)] | None


class LimitsBody(Body):
    """What is left out stays as it is; null is no limit."""

    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None
    tokens_in_flight: Limit = None
    stored_bytes: Limit = None
    adapters: Limit = None

    def given(self) -> dict[str, int | None]:
        return self.model_dump(exclude_unset=True)


class TenantChange(Body):
    weight: Annotated[FiniteFloat, Field(ge=0.001, le=1000, description="Its share beside other tenants.")] | None = (
        None
    )
    limits: LimitsBody = LimitsBody()


class TenantBody(Body):
    name: str
    weight: Annotated[FiniteFloat, Field(ge=0.001, le=1000, description="Its share beside other tenants.")] = 1.0
    limits: LimitsBody = LimitsBody()


class KeyBody(Body):
    tenant: Annotated[str, Field(description="Whose key it is.")]
    role: Annotated[Literal["user", "publisher", "admin"], Field(description="What the key may do.")] = "user"


def tenant_json(record: TenantRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "created_at": int(record.created_at),
        "weight": record.weight,
        "limits": msgspec.structs.asdict(record.limits),
    }


def key_json(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "tenant": record.tenant,
        "role": record.role,
        "prefix": record.prefix,
        "created_at": int(record.created_at),
        "revoked_at": None if record.revoked_at is None else int(record.revoked_at),
    }


@router.get("/tenants", responses=answers(TenantsReply), summary="All tenants")
async def tenants(request: Request) -> dict[str, Any]:
    require(request, "admin")
    return {"data": [tenant_json(tenant) for tenant in await services_of(request).registry.tenants.list()]}


@router.post(
    "/tenants",
    openapi_extra=described(TenantBody, name="acme"),
    status_code=201,
    responses=answers(TenantReply, 201, also=200),
    summary="Create a tenant; one that is there stays as it is",
)
async def create_tenant(request: Request) -> Response:
    caller = require(request, "admin")
    body = await read_json(request, TenantBody, _MAX_BODY)
    services = services_of(request)
    limits = Limits(**body.limits.given())
    record, created = await services.registry.tenants.create(
        body.name, weight=body.weight, limits=limits, actor=caller.actor
    )
    await services.siblings.see(body.name, None)
    return JSONResponse(tenant_json(record), 201 if created else 200)


@router.get("/tenants/{name}", responses=answers(TenantReply), summary="A tenant")
async def tenant(request: Request, name: str) -> dict[str, Any]:
    require(request, "admin")
    return tenant_json(await services_of(request).registry.tenants.find(name))


@router.patch(
    "/tenants/{name}",
    openapi_extra=described(TenantChange, weight=2.0),
    responses=answers(TenantReply),
    summary="Change a tenant's weight, or limits",
)
async def change_tenant(request: Request, name: str) -> dict[str, Any]:
    caller = require(request, "admin")
    body = await read_json(request, TenantChange, _MAX_BODY)
    services = services_of(request)
    record = await services.registry.tenants.set(
        name, weight=body.weight, limits=body.limits.given(), actor=caller.actor
    )
    await services.siblings.see(name, None)
    return tenant_json(record)


@router.delete("/tenants/{name}", status_code=204, summary="Delete a tenant")
async def delete_tenant(
    request: Request,
    name: str,
    force: Annotated[bool, Query(description="Revoke its keys and delete its tasks first.")] = False,
) -> Response:
    caller = require(request, "admin")
    services = services_of(request)
    await services.registry.delete_tenant(name, force=force, actor=caller.actor)
    await services.siblings.see(name, None)
    return Response(status_code=204)


@router.get("/keys", responses=answers(KeysReply), summary="All keys, without their secrets")
async def keys(request: Request, tenant: Annotated[str | None, Query(max_length=64)] = None) -> dict[str, Any]:
    require(request, "admin")
    return {"data": [key_json(record) for record in await services_of(request).registry.keys.list_keys(tenant)]}


@router.post(
    "/keys",
    openapi_extra=described(KeyBody, tenant="acme", role="user"),
    status_code=201,
    responses=answers(KeyMade, 201),
    summary="Create a key; it is shown this once",
)
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


@router.get(
    "/audit",
    responses=answers(AuditReply, lines=True),
    summary="Who changed what, and when, beyond the entry `after`",
)
async def audit(
    request: Request,
    after: Annotated[str | None, Query(max_length=50)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 100,
    tenant: Annotated[str | None, Query(max_length=64)] = None,
    order: Annotated[Literal["oldest", "newest"], Query(description="Which entries come first.")] = "oldest",
    format: Annotated[Literal["json", "ndjson"], Query(description="`ndjson`: a line an entry.")] = "json",
) -> Response:
    require(request, "admin")
    page = await services_of(request).registry.audit.read(
        after=after, limit=limit, tenant=tenant, newest=order == "newest"
    )
    if format == "ndjson":
        return Response(msgspec.json.Encoder().encode_lines(page.data), media_type="application/x-ndjson")
    return Response(msgspec.json.encode(page), media_type="application/json")
