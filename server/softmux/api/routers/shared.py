"""`/v1/shared`: what other tenants share with the caller, to be read. They do so by `/v1/adapters/{task}/shares`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from softmux.api.auth import principal_of
from softmux.api.replies import FILE, SharedVersionPage, SharedVersionReply, SharedVersionsReply, answers
from softmux.api.routers.adapters import file_response, version_json, version_number
from softmux.api.services import services_of
from softmux.errors import Forbidden
from softmux.registry.publication import no_version
from softmux.registry.records import TaskView, VersionRecord
from softmux.registry.versions import active_of

router = APIRouter(prefix="/v1/shared", tags=["shared"])


def shared_json(record: VersionRecord) -> dict[str, Any]:
    """A version as another tenant sees it; `task` is what it calls the task."""
    return {**version_json(record), "task": f"{record.tenant}/{record.task}", "owner": record.tenant, "shared": True}


def _view(request: Request, owner: str, task: str) -> TaskView:
    return services_of(request).registry.catalog.shared(principal_of(request).tenant, f"{owner}/{task}")


@router.get(
    "",
    responses=answers(SharedVersionPage),
    summary="The active versions of all tasks that others share with you, by tenant/task",
)
async def tasks(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=160)] = None,
    prefix: Annotated[str, Query(max_length=160)] = "",
) -> dict[str, Any]:
    services = services_of(request)
    page = services.registry.catalog.shared_tasks(
        principal_of(request).tenant, services.worker.spec.base_fingerprint, limit=limit, cursor=cursor, prefix=prefix
    )
    return {"data": [shared_json(record) for record in page.data], "next_cursor": page.next_cursor}


@router.get("/{owner}/{task}", responses=answers(SharedVersionReply), summary="A shared task's active version")
async def active(request: Request, owner: str, task: str) -> dict[str, Any]:
    view = _view(request, owner, task)
    return shared_json(active_of(view, f"{owner}/{task}", services_of(request).worker.spec.base_fingerprint))


@router.get(
    "/{owner}/{task}/versions",
    responses=answers(SharedVersionsReply),
    summary="All versions of a shared task, newest first",
)
async def versions(request: Request, owner: str, task: str) -> dict[str, Any]:
    view = _view(request, owner, task)
    return {"data": [shared_json(view.versions[number]) for number in sorted(view.versions, reverse=True)]}


@router.get(
    "/{owner}/{task}/versions/{number}/files/{name}",
    response_class=Response,
    responses=FILE,
    summary="A file of a shared version, byte for byte",
)
async def file(request: Request, owner: str, task: str, number: str, name: str) -> Response:
    view = _view(request, owner, task)
    if version_number(number) not in view.versions:
        raise no_version(f"{owner}/{task}", version_number(number))
    if view.share is None or not view.share.files:
        raise Forbidden(f"{owner} shares this task without its files; ask its owner for them.")
    return file_response(name, await services_of(request).registry.file(owner, task, version_number(number), name))
