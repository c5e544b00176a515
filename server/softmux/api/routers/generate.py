"""`POST /v1/generate`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from softmux.api.answering import Asked, answer
from softmux.api.body import described, read_json
from softmux.api.own_shape import OwnShape
from softmux.api.queries import TaskQuery
from softmux.api.replies import GenerationReply, events
from softmux.api.schemas import GenerateBody
from softmux.api.services import Services

router = APIRouter(tags=["generate"])

PATH = "/v1/generate"


@router.post(
    PATH,
    openapi_extra=described(GenerateBody, prompt="a gripping, beautiful film", max_tokens=16),
    responses=events(GenerationReply),
    summary="Generate text, for a task or with the bare model",
)
async def generate(request: Request, task: TaskQuery = None) -> Response:
    async def read(services: Services) -> Asked:
        body = await read_json(request, GenerateBody, services.settings.max_body_bytes)
        given = body.given()
        return Asked(
            task=task,
            wish=body.wish(),
            given=given,
            shape=OwnShape(body.return_token_ids),
            stream=body.stream,
            timeout=body.timeout,
            said={
                "prompt": body.prompt,
                "messages": given.chat.messages if given.chat is not None else [],
                "variables": body.variables,
            },
        )

    return await answer(request, read, bare=task is None)
