"""OpenAI's routes: `/v1/models`, `/v1/completions`, `/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from softmux.api.answering import Asked, answer
from softmux.api.auth import principal_of
from softmux.api.body import described, read_json
from softmux.api.openai.bodies import ChatBody, CompletionBody
from softmux.api.openai.models import base_json, in_its_words, listed_json, resolved_json, task_of
from softmux.api.openai.shapes import ChatShape, CompletionShape
from softmux.api.queries import LONGEST_TASK
from softmux.api.replies import answers, events
from softmux.api.replies_openai import ChatCompletionReply, CompletionReply, OpenAIModel, OpenAIModels
from softmux.api.services import Services, services_of
from softmux.errors import SoftmuxError, TaskNotFound

router = APIRouter(prefix="/v1", tags=["openai"])

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
MOST_MODELS = 10_000
"""In one listing: OpenAI's clients ask for no second page."""


@router.post(
    "/completions",
    openapi_extra=described(CompletionBody, model="sentiment", prompt="a gripping, beautiful film", max_tokens=16),
    responses=events(CompletionReply),
    summary="OpenAI's completions: `model` is a task, or the base model",
)
async def completions(request: Request) -> Response:
    async def read(services: Services) -> Asked:
        body = await read_json(request, CompletionBody, services.settings.max_body_bytes)
        return Asked(
            task=task_of(services, body.model),
            wish=body.wish(),
            given=body.given(),
            shape=CompletionShape(body.model, body.return_token_ids, body.includes_usage, body.tells_usage),
            stream=body.stream,
            timeout=body.timeout,
            said={"prompt": body.prompt, "variables": body.variables},
        )

    return await answer(request, read)


@router.post(
    "/chat/completions",
    openapi_extra=described(
        ChatBody, model="sentiment", messages=[{"role": "user", "content": "Who are you?"}], max_tokens=16
    ),
    responses=events(ChatCompletionReply),
    summary="OpenAI's chat completions: `model` is a task, or the base model",
)
async def chat_completions(request: Request) -> Response:
    async def read(services: Services) -> Asked:
        body = await read_json(request, ChatBody, services.settings.max_body_bytes)
        wish, given = body.wish(), body.given()
        return Asked(
            task=task_of(services, body.model),
            wish=wish,
            given=given,
            shape=ChatShape(
                body.model,
                body.return_token_ids,
                body.includes_usage,
                body.tells_usage,
                may_call=body.may_call,
                one_call=body.one_call,
            ),
            stream=body.stream,
            timeout=body.timeout,
            said={"messages": given.chat.messages if given.chat else []},
        )

    return await answer(request, read)


@router.get(
    "/models",
    responses=answers(OpenAIModels),
    response_class=Response,
    summary="The base model, and the tasks that you may use, as OpenAI lists models",
)
async def models(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=MOST_MODELS)] = MOST_MODELS,
    after: Annotated[str | None, Query(max_length=LONGEST_TASK)] = None,
) -> Response:
    services, tenant = services_of(request), principal_of(request).tenant
    spec = services.worker.spec
    found: list[dict[str, Any]] = []
    if after is None:
        found.append(base_json(services))
    page = services.registry.catalog.usable(
        tenant,
        spec.base_fingerprint,
        limit=limit - len(found),
        cursor=None if after == spec.model_id else after,
    )
    found += [listed_json(services, tenant, record) for record in page.data]
    listing = {"object": "list", "data": found, "has_more": page.next_cursor is not None}
    return Response(msgspec.json.encode(listing), media_type="application/json")


@router.get(
    "/models/{model:path}",
    responses=answers(OpenAIModel),
    summary="What a name of `model` means now",
)
async def model(request: Request, model: str) -> dict[str, Any]:
    services, tenant = services_of(request), principal_of(request).tenant
    if len(model) > LONGEST_TASK:
        raise TaskNotFound("There is no task of so long a name; GET /v1/models lists what there is.", param="model")
    try:
        resolved = services.resolve(tenant, task_of(services, model))
    except SoftmuxError as error:
        raise in_its_words(error) from None
    return resolved_json(services, model, resolved)
