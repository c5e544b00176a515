"""`GET /v1/usage`: what tenants used, by day and task, as JSON or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from softmux.api.auth import principal_of
from softmux.api.replies import UsageReport, answers
from softmux.api.services import services_of
from softmux.errors import InvalidRequest
from softmux.registry.tenants import no_tenant
from softmux.registry.usage import UsageKey, Used, today
from softmux.telemetry.exposition import BARE

router = APIRouter(tags=["usage"])

_DEFAULT_DAYS = 30
_MOST_DAYS = 400
_EVERY = "*"
_COLUMNS = (
    "date", "tenant", "task", "requests", "prompt_tokens", "completion_tokens", "cached_tokens", "virtual_tokens",
    "gpu_seconds",
)  # fmt: skip
_CSV = {"text/csv": {"schema": {"type": "string"}}}
_DAY = {"max_length": 10, "description": "A day, as 2026-11-24 (UTC)."}


@router.get(
    "/v1/usage",
    responses={200: {**answers(UsageReport)[200], "content": _CSV}},
    response_model=None,
    summary="What tenants used, by day and task",
)
async def usage(
    request: Request,
    first: Annotated[str | None, Query(alias="from", **_DAY)] = None,
    last: Annotated[str | None, Query(alias="to", **_DAY)] = None,
    task: Annotated[
        str | None, Query(max_length=200, description="One task alone; `(base)` is the bare model.")
    ] = None,
    tenant: Annotated[
        str | None, Query(max_length=64, description="An admin's choice, deleted ones too; `*`: all.")
    ] = None,
    format: Annotated[Literal["json", "csv"] | None, Query()] = None,
) -> Response:
    services = services_of(request)
    tenants = await _tenants(request, tenant)
    until = _day(last, "to") if last else today()
    since = _day(first, "from") if first else until - min(timedelta(days=_DEFAULT_DAYS - 1), until - date.min)
    if not 0 <= (until - since).days < _MOST_DAYS:
        raise InvalidRequest(
            f"from must not be after to, and at most {_MOST_DAYS} days are told at once.", param="from"
        )
    await services.usage.flush()  # what this process has not told yet
    found = await services.registry.usage.read(tenants, since, until)
    rows = [(key, used) for key, used in found if task is None or key.task == task]
    if format == "csv" or (format is None and "text/csv" in request.headers.get("accept", "")):
        return Response(
            _csv(rows), media_type="text/csv", headers={"content-disposition": "inline; filename=usage.csv"}
        )
    total = sum((used for _, used in rows), Used())
    return JSONResponse(
        {
            "object": "usage",
            "from": since.isoformat(),
            "to": until.isoformat(),
            "data": [dict(zip(_COLUMNS, _row(key, used, None), strict=True)) for key, used in rows],
            "total": dict(zip(_COLUMNS[3:], _amounts(total), strict=True)),
        }
    )


async def _tenants(request: Request, wanted: str | None) -> Sequence[str]:
    """Whose usage is asked for. Raises `NotFound` for another's, as for one that does not exist."""
    caller = principal_of(request)
    if wanted is None or wanted == caller.tenant:
        return [caller.tenant]
    if not caller.may("admin"):
        raise no_tenant(wanted)
    names = await services_of(request).registry.usage.tenants()
    if wanted != _EVERY and wanted not in names:
        raise no_tenant(wanted)
    return names if wanted == _EVERY else [wanted]


def _day(text: str, param: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"“{text}” is no day: write it as 2026-11-24.", param=param) from None


def _row(key: UsageKey, used: Used, bare: str | None) -> list[Any]:
    return [key.day, key.tenant, bare if key.task == BARE else key.task, *_amounts(used)]


def _amounts(used: Used) -> list[Any]:
    *counts, microseconds = used.values()
    return [*counts, microseconds / 1e6]


def _csv(rows: Sequence[tuple[UsageKey, Used]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    writer.writerows(_row(key, used, BARE) for key, used in rows)
    return text.getvalue()
