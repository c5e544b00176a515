"""`/v1/adapters`: upload, list, show, activate, download, delete."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from softmux.api.admission import admit
from softmux.api.auth import principal_of, require
from softmux.api.body import described, read_json
from softmux.api.multipart import read_upload
from softmux.api.replies import FILE, ShareReply, VersionPage, VersionReply, VersionsReply, answers
from softmux.api.schemas import ActivateBody, ShareBody
from softmux.api.services import services_of
from softmux.errors import InvalidRequest, QuotaExceeded, SoftmuxError, VersionNotFound
from softmux.formats.folder import ALLOWED_FILES, REQUIRED_FILES
from softmux.marks import version_mark
from softmux.registry.keyspace import check_name
from softmux.registry.records import Share, VersionRecord

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

_PART = {"type": "string", "contentMediaType": "application/octet-stream"}
_UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": dict.fromkeys(ALLOWED_FILES, _PART),
                    "required": list(REQUIRED_FILES),
                }
            }
        },
    }
}
_MAX_SMALL_BODY = 4096
_MAX_SHARE_BODY = 100_000


def version_json(record: VersionRecord) -> dict[str, Any]:
    """A version as the contract describes it, and what its uploader said about it."""
    manifest = record.manifest
    return {
        "task": record.task,
        "version": record.version,
        "digest": manifest.digest,
        "method": manifest.method,
        "virtual_tokens": manifest.virtual_tokens,
        "parameters": manifest.parameters,
        "bytes": manifest.bytes,
        "base_fingerprint": manifest.base_fingerprint,
        "created_at": int(record.created_at),
        "active": record.active,
        "warnings": list(record.warnings),
        "files": [{"name": file.name, "bytes": file.size, "sha256": file.sha256} for file in manifest.files],
        "template": manifest.template,
        "labels": manifest.labels,
        "head": manifest.head,
        "problem_type": manifest.problem_type,
        "trained_lengths": manifest.trained_lengths,
        "combines": manifest.combines,
        "notes": manifest.notes,
        "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
        "base_model_name_or_path": manifest.base_label,
        "tokenizer_name_or_path": manifest.tokenizer_label,
        "revision": manifest.revision_label,
    }


@router.put(
    "/{task}",
    openapi_extra=_UPLOAD,
    status_code=201,
    responses=answers(VersionReply, 201, also=200),
    summary="Upload an adapter: a new version of its task; the same content again is the same one",
)
async def put(request: Request, task: str, activate: bool = True) -> Response:
    services = services_of(request)
    caller = require(request, "publisher")
    began = time.monotonic()
    try:
        check_name(task, "task")
        async with services.uploads.of(caller.tenant):
            files = await read_upload(request, services.settings.max_upload_bytes)
            admission = await admit(
                services.worker,
                caller.tenant,
                files,
                check=lambda manifest: services.standing.check_upload(caller.tenant, manifest),
            )
            published = await services.registry.publish(
                caller.tenant,
                task,
                admission.manifest,
                files,
                activate=activate,
                warnings=admission.warnings,
                actor=caller.actor,
            )
        services.siblings.report_released(version_mark(caller.tenant, admission.manifest.digest))
        await services.siblings.see(caller.tenant, task)
    except SoftmuxError as error:
        services.metrics.upload(error.code)
        if isinstance(error, QuotaExceeded):
            services.metrics.limited(error.param or "", caller.tenant)
        raise
    services.metrics.upload("created" if published.created else "unchanged")
    if activate:
        services.metrics.swapped(time.monotonic() - began)
    answer = {
        **version_json(published.version),
        "warnings": list(admission.warnings),
        "checks": list(admission.checks),
    }
    return JSONResponse(answer, 201 if published.created else 200)


@router.get("", responses=answers(VersionPage), summary="The active versions of all tasks, by name")
async def tasks(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=100)] = None,
    prefix: Annotated[str, Query(max_length=64)] = "",
) -> dict[str, Any]:
    services = services_of(request)
    page = await services.registry.tasks(
        principal_of(request).tenant, services.worker.spec.base_fingerprint, limit=limit, cursor=cursor, prefix=prefix
    )
    return {"data": [version_json(record) for record in page.data], "next_cursor": page.next_cursor}


@router.get("/{task}", responses=answers(VersionReply), summary="A task's active version")
async def active(request: Request, task: str) -> dict[str, Any]:
    services = services_of(request)
    base = services.worker.spec.base_fingerprint
    return version_json(await services.registry.active(principal_of(request).tenant, task, base))


@router.get("/{task}/versions", responses=answers(VersionsReply), summary="All versions of a task, newest first")
async def versions(request: Request, task: str) -> dict[str, Any]:
    found = await services_of(request).registry.versions(principal_of(request).tenant, task)
    return {"data": [version_json(record) for record in found]}


@router.post(
    "/{task}/activate",
    openapi_extra=described(ActivateBody, version=1),
    responses=answers(VersionReply),
    summary="Make a version the active one",
)
async def activate(request: Request, task: str) -> dict[str, Any]:
    services = services_of(request)
    caller = require(request, "publisher")
    began = time.monotonic()
    body = await read_json(request, ActivateBody, _MAX_SMALL_BODY)
    record = await services.registry.activate(caller.tenant, task, body.version, actor=caller.actor)
    services.siblings.report_released(version_mark(caller.tenant, record.manifest.digest))
    await services.siblings.see(caller.tenant, task)
    services.metrics.swapped(time.monotonic() - began)
    return version_json(record)


@router.get(
    "/{task}/versions/{number}/files/{name}",
    response_class=Response,
    responses=FILE,
    summary="A file of a version, byte for byte",
)
async def file(request: Request, task: str, number: str, name: str) -> Response:
    data = await services_of(request).registry.file(principal_of(request).tenant, task, version_number(number), name)
    return file_response(name, data)


@router.delete("/{task}", status_code=204, summary="Delete a task with all its versions")
async def delete(request: Request, task: str) -> Response:
    services = services_of(request)
    caller = require(request, "publisher")
    await services.registry.delete(caller.tenant, task, actor=caller.actor)
    await services.siblings.see(caller.tenant, task)
    return Response(status_code=204)


@router.get("/{task}/shares", responses=answers(ShareReply), summary="Who else may use a task")
async def shares(request: Request, task: str) -> dict[str, Any]:
    share = await services_of(request).registry.shared_with(principal_of(request).tenant, task)
    return share_json(share or Share())


@router.put(
    "/{task}/shares",
    openapi_extra=described(ShareBody, tenants=["acme"]),
    responses=answers(ShareReply),
    summary="Share a task with other tenants, to be read",
)
async def share(request: Request, task: str) -> dict[str, Any]:
    services = services_of(request)
    caller = require(request, "publisher")
    body = await read_json(request, ShareBody, _MAX_SHARE_BODY)
    if not (body.tenants or body.everyone):
        raise InvalidRequest("Name tenants, or everyone; DELETE this to share with nobody.", param="tenants")
    tenants = sorted({check_name(name, "tenant") for name in body.tenants})
    wanted = Share(tenants=tuple(tenants), everyone=body.everyone, files=body.files)
    await services.registry.share(caller.tenant, task, wanted, actor=caller.actor)
    await services.siblings.see(caller.tenant, task)
    return share_json(wanted)


@router.delete("/{task}/shares", status_code=204, summary="Share a task with nobody any more")
async def unshare(request: Request, task: str) -> Response:
    services = services_of(request)
    caller = require(request, "publisher")
    await services.registry.share(caller.tenant, task, None, actor=caller.actor)
    await services.siblings.see(caller.tenant, task)
    return Response(status_code=204)


def file_response(name: str, data: bytes) -> Response:
    return Response(data, media_type="application/json" if name.endswith(".json") else "application/octet-stream")


def share_json(share: Share) -> dict[str, Any]:
    return {"tenants": list(share.tenants), "everyone": share.everyone, "files": share.files}


def version_number(text: str) -> int:
    """Raises `VersionNotFound`."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise VersionNotFound(f"“{text[:50]}” is no version's number; list the task's versions.", param="version")
    return int(text)
