"""`POST /v1/classify`."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import structlog
from fastapi import APIRouter, Request
from starlette.responses import Response

from softmux.api.auth import principal_of
from softmux.api.body import described, read_json
from softmux.api.classification import Classification
from softmux.api.deadline import deadline_of
from softmux.api.presence import watching
from softmux.api.queries import TaskQuery
from softmux.api.replies import ClassificationReply, answers
from softmux.api.schemas import ClassifyBody
from softmux.api.services import services_of
from softmux.errors import Overloaded, SoftmuxError
from softmux.telemetry.exposition import BARE
from softmux.telemetry.labels import OTHER

log = structlog.stdlib.get_logger(__name__)
router = APIRouter(tags=["classify"])


@router.post(
    "/v1/classify",
    openapi_extra=described(ClassifyBody, input="a gripping, beautiful film"),
    responses=answers(ClassificationReply),
    summary="Label texts, or their tokens, by a task",
)
async def classify(request: Request, task: TaskQuery = None) -> Response:
    services = services_of(request)
    began = time.monotonic()
    tenant = principal_of(request).tenant
    label = BARE if task is None else OTHER  # until it is known that there is such a task
    outcome = "gone"
    running: Classification | None = None
    try:
        if services.draining:
            services.metrics.refused("draining")
            raise Overloaded("The server is shutting down; send the request to another one.", retry_after=5.0)
        body = await read_json(request, ClassifyBody, services.settings.max_body_bytes)
        if services.settings.log_prompts:
            log.info("asked", tenant=tenant, task=task, input=body.input)
        resolved = services.resolve(tenant, task)
        adapter = resolved.adapter
        label = services.metrics.task_label(tenant, adapter.task if adapter else None)
        deadline = deadline_of(request, body.timeout, began)
        running = await Classification.start(services, resolved, body, deadline, label=label)
        with watching(request, running.leave):
            results = await running.results()
        if running.left:
            return Response(status_code=499)
        outcome = "ok"
    except SoftmuxError as error:
        outcome = error.code
        raise
    finally:
        if running is not None:
            running.close()
            services.metrics.tokens(label, running.prompt_tokens, 0)
        services.metrics.request(label, outcome, time.monotonic() - began)
    assert adapter is not None, "`start` refuses the bare model"
    reply: dict[str, Any] = {
        "object": "classification",
        "model": services.worker.spec.model_id,
        "adapter": {
            "task": adapter.task, "version": adapter.version, "digest": adapter.digest, "method": adapter.method,
        },
        **({"warnings": running.warnings} if running.warnings else {}),
        "results": results,
        "usage": {"prompt_tokens": running.prompt_tokens, "total_tokens": running.prompt_tokens},
    }  # fmt: skip
    return Response(msgspec.json.encode(reply), headers=running.charge.headers, media_type="application/json")
