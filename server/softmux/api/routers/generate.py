"""`POST /v1/generate`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any

import msgspec
import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from softmux.api import sse
from softmux.api.auth import principal_of
from softmux.api.body import described, read_json
from softmux.api.choice import Choice, Piece, choice_json, joined
from softmux.api.deadline import deadline_of
from softmux.api.generation import Generation, Prompt
from softmux.api.presence import ClientGone, watching
from softmux.api.replies import GenerationReply, events
from softmux.api.schemas import GenerateBody
from softmux.api.services import Resolved, Services, services_of
from softmux.api.tokenizer import LONG_TEXT
from softmux.errors import InvalidRequest, Overloaded, SoftmuxError
from softmux.telemetry.exposition import BARE
from softmux.telemetry.labels import OTHER

log = structlog.stdlib.get_logger(__name__)
router = APIRouter(tags=["generate"])

PATH = "/v1/generate"
LONGEST_TASK = 1280
"""Tenants, tasks and versions: `acme/manual@3,appendix`."""


@router.post(
    PATH,
    openapi_extra=described(GenerateBody),
    responses=events(GenerationReply),
    summary="Generate text, for a task or with the bare model",
)
async def generate(request: Request, task: Annotated[str | None, Query(max_length=LONGEST_TASK)] = None) -> Response:
    services = services_of(request)
    began = time.monotonic()
    tenant = principal_of(request).tenant
    label = BARE if task is None else OTHER  # until it is known that there is such a task
    try:
        if services.draining:
            services.metrics.refused("draining")
            raise Overloaded("The server is shutting down; send the request to another one.", retry_after=5.0)
        body = await read_json(request, GenerateBody, services.settings.max_body_bytes)
        if services.settings.log_prompts:
            messages = [message.as_chat() for message in body.messages or ()]
            log.info("asked", tenant=tenant, task=task, prompt=body.prompt, messages=messages, variables=body.variables)
        deadline = deadline_of(request, body.timeout, began)
        resolved = services.resolve(tenant, task)
        label = services.metrics.task_label(tenant, resolved.adapter.task if resolved.adapter else None)
        prompts = await _prompts(services, resolved, body)
        generation = await Generation.start(
            services, resolved, body, prompts, body.variables, label=label, deadline=deadline
        )
    except SoftmuxError as error:
        services.metrics.request(label, error.code, time.monotonic() - began)
        raise
    if body.stream:
        return await _streamed(request, generation, body)
    outcome = "gone"
    try:
        with watching(request, generation.leave):
            reply = await _whole(generation, body)
        outcome = "ok"
        return reply
    except ClientGone:
        return Response(status_code=499)
    except SoftmuxError as error:
        outcome = error.code
        raise
    finally:
        generation.close()
        services.metrics.request(label, outcome, time.monotonic() - began)


async def _prompts(services: Services, resolved: Resolved, body: GenerateBody) -> Sequence[Prompt]:
    """The prompts of the request, each a string, ids, or None where variables say it all."""
    if body.messages is not None:
        if body.prompt is not None:
            raise InvalidRequest("Send prompt or messages, not both.", param="prompt")
        if resolved.layout.template is not None:
            raise InvalidRequest("This task has a template; send variables instead of messages.", param="messages")
        chat, encoder = [message.as_chat() for message in body.messages], services.encoder()
        if sum(len(turn["content"]) for turn in chat) >= LONG_TEXT:
            return [await asyncio.to_thread(encoder.render_chat, chat)]
        return [encoder.render_chat(chat)]
    if isinstance(body.prompt, list):
        if not body.prompt:
            raise InvalidRequest("The prompt is an empty list; give it at least one token or text.", param="prompt")
        if isinstance(body.prompt[0], str):
            return [text for text in body.prompt if isinstance(text, str)]
        return [[token for token in body.prompt if isinstance(token, int)]]
    return [body.prompt]


async def _whole(generation: Generation, body: GenerateBody) -> Response:
    pieces: dict[int, list[Piece]] = {choice.index: [] for choice in generation.choices}
    async for news in generation.pieces(whole=True):
        for choice, piece in news:
            pieces[choice.index].append(piece)
    if generation.left:
        raise ClientGone
    generation.settle()
    choices = [
        choice_json(choice.index, joined(pieces[choice.index]), token_ids=body.return_token_ids)
        for choice in generation.choices
    ]
    reply = {**generation.head("generation"), "choices": choices, "usage": generation.usage.json()}
    return Response(msgspec.json.encode(reply), headers=generation.charge.headers, media_type="application/json")


async def _streamed(request: Request, generation: Generation, body: GenerateBody) -> Response:
    """Waits for the first news, so that what fails before has its own status; then the rest follows as events."""
    news = generation.pieces()
    metrics = generation.services.metrics
    try:
        with watching(request, generation.leave):
            begin: list[tuple[Choice, Piece]] = await anext(news, [])
        if generation.left:
            raise ClientGone
    except BaseException as error:
        generation.close()
        outcome = error.code if isinstance(error, SoftmuxError) else "gone"
        metrics.request(generation.label, outcome, time.monotonic() - generation.began)
        if isinstance(error, ClientGone):
            return Response(status_code=499)
        raise

    async def events() -> AsyncGenerator[bytes, None]:
        """One item a wake-up, however many events it is, the last with the end."""
        chunks = sse.Chunks(generation.head("generation.chunk"))
        running = {choice.index for choice in generation.choices}
        outcome = "gone"
        try:
            with watching(request, generation.leave):
                part = begin
                while part:
                    ready: list[bytes] = []
                    for choice, piece in part:
                        if piece.finish_reason is not None:
                            running.discard(choice.index)
                        elif not (piece.text or body.return_token_ids or piece.logprobs):
                            continue
                        usage = None
                        if not running:
                            generation.settle()
                            usage = generation.usage.json()
                        shown: dict[str, Any] = choice_json(choice.index, piece, token_ids=body.return_token_ids)
                        ready.append(chunks.chunk([shown], usage))
                    if not running:
                        break
                    if ready:
                        yield b"".join(ready)
                    part = await anext(news, [])
                if not generation.left:
                    outcome = "ok"
                    yield b"".join((*ready, sse.DONE))
        except SoftmuxError as error:
            outcome = error.code
            yield sse.error_event(error) + sse.DONE
        finally:
            generation.close()
            metrics.request(generation.label, outcome, time.monotonic() - generation.began)

    return sse.EventStream(events(), generation.charge.headers)
