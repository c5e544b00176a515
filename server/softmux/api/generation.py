"""A generating request, from its prompts to its reply: the story that every generating route tells.

lay out → submit to the worker → read outputs → choices → one reply, or chunks
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from softmux.api.choice import Choice, Piece
from softmux.api.deadline import within
from softmux.api.limits import Charge
from softmux.api.schemas import Sampling
from softmux.api.services import Resolved, Services
from softmux.api.standing import Standing
from softmux.api.tokenizer import LONG_TEXT
from softmux.api.usage import Meter
from softmux.cost import cost
from softmux.errors import ContextTooLong, InternalError, InvalidRequest, WrongTaskKind
from softmux.formats.layout import lay_out
from softmux.marks import content_mark, version_mark
from softmux.registry.usage import Used
from softmux.types import AdapterRef, Output, SamplingParams
from softmux.worker.channel import Channel, SequenceFailed
from softmux.worker.messages import Generate

Prompt = str | list[int] | None


@dataclass(slots=True)
class Usage:
    """Tokens of a request. A prompt counts once, however many samples are drawn of it."""

    prompt_tokens: int = 0
    virtual_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def json(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "virtual_tokens": self.virtual_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(slots=True)
class Generation:
    """One running request. `pieces` is read to its end, or `close` ends it early; then `usage` stands."""

    id: str
    created: int
    resolved: Resolved
    choices: list[Choice]
    looks_for_stops: bool
    samples: int
    """Choices of each prompt."""
    channel: Channel
    services: Services
    label: str
    began: float
    usage: Usage
    charge: Charge
    """Of the tenant's limits."""
    sizes: list[tuple[int, int]]
    """Of each prompt its own tokens, and learned ones."""
    marks: dict[str, tuple[int, int]]
    """Each sequence's content and version, by `softmux.marks`."""
    deadline: float | None = None
    left: bool = False
    """The client has gone away."""
    _over: bool = False
    _meter: Meter = field(init=False)
    _by_id: dict[str, Choice] = field(default_factory=dict)
    _seen: dict[str, float] = field(default_factory=dict)

    @classmethod
    async def start(
        cls,
        services: Services,
        resolved: Resolved,
        body: Sampling,
        prompts: Sequence[Prompt],
        variables: dict[str, str] | None = None,
        *,
        label: str,
        id_prefix: str = "gen-",
        deadline: float | None = None,
    ) -> Generation:
        """Lays out the prompts and submits `body.n` sequences of each. Raises what is wrong with the request.

        `label` is the task's for metrics. `deadline` is monotonic: `pieces` raises `DeadlineExceeded` then.
        """
        began = time.monotonic()
        weight = services.registry.tenants.get(resolved.tenant).weight
        services.backlog.check(resolved.tenant, body.max_tokens, deadline, weight)
        _check_generates(services, resolved)
        params = body.params()
        tokenizer = services.encoder()
        _check(services, body, params, prompts)
        inputs = await _laid_out(services, resolved, prompts, variables)
        learned = [sum(1 for token in tokens if token < 0) for tokens in inputs]
        sizes = [(len(tokens) - virtual, virtual) for tokens, virtual in zip(inputs, learned, strict=True)]
        usage = Usage(prompt_tokens=sum(own for own, _ in sizes), virtual_tokens=sum(learned))
        adapter = resolved.adapter
        digest = None if adapter is None else adapter.digest
        version = 0 if adapter is None else version_mark(resolved.tenant, adapter.digest, adapter.tenant)
        contents = [content_mark(resolved.tenant, digest, tokens, params) for tokens in inputs]
        suspects = [services.standing.check(adapter, content, version) for content in contents]
        charge = await services.limits.admit(
            resolved.tenant, usage.prompt_tokens + len(inputs) * body.n * params.max_tokens
        )
        left = None if deadline is None else deadline - time.monotonic()
        name = id_prefix + secrets.token_hex(12)
        requests: list[Generate] = []
        choices: dict[str, Choice] = {}
        marks: dict[str, tuple[int, int]] = {}
        for tokens, content, suspect in zip(inputs, contents, suspects, strict=True):
            for sample in range(body.n):
                index = len(requests)
                request = Generate(
                    id=f"{name}-{index}",
                    tenant=resolved.tenant,
                    tokens=tokens,
                    sampling=params,
                    adapter=adapter,
                    sample=sample,
                    priority=body.priority,
                    weight=weight,
                    deadline=left,
                    content=content,
                    version=version,
                    suspect=suspect,
                )
                marks[request.id] = (content, version)
                requests.append(request)
                choices[request.id] = Choice(
                    index, tokenizer, body.stops, min_tokens=body.min_tokens, logprobs=body.logprobs is not None
                )
        try:
            channel = services.worker.submit(requests)
        except BaseException:
            charge.settle(0)
            raise
        whole = body.n * sum(cost(len(tokens), params.max_tokens) for tokens in inputs)
        services.backlog.submitted(resolved.tenant, len(requests), whole, weight)
        return cls(
            id=name,
            created=int(time.time()),
            resolved=resolved,
            choices=list(choices.values()),
            looks_for_stops=bool(body.stops),
            samples=body.n,
            channel=channel,
            services=services,
            label=label,
            began=began,
            usage=usage,
            charge=charge,
            marks=marks,
            deadline=deadline,
            sizes=sizes,
            _by_id=choices,
        )

    def __post_init__(self) -> None:
        adapter = self.resolved.adapter
        self._meter = self.services.usage.begin(self.resolved.tenant, adapter.task if adapter else None, self.used)

    def used(self) -> Used:
        """What it has used by now. A prompt counts once anything has come of it."""
        told = self.channel.told
        begun = {number // self.samples for number, name in enumerate(self._by_id) if name in told}
        return Used(
            requests=1,
            prompt_tokens=sum(self.sizes[number][0] for number in begun),
            virtual_tokens=sum(self.sizes[number][1] for number in begun),
            completion_tokens=self.usage.completion_tokens if self._over else sum(told.values()),
            cached_tokens=sum(choice.cached_tokens for choice in self.choices[:: self.samples]),
        )

    async def pieces(self, *, whole: bool = False) -> AsyncIterator[list[tuple[Choice, Piece]]]:
        """What is new, each time something is; at most one piece a choice. Raises the first error of a sequence.

        `whole` waits until all is there, where no stop string has to be looked for meanwhile.
        """
        whole = whole and not self.looks_for_stops
        while arrived := await within(self.deadline, self.channel.arrivals(whole=whole)):
            outputs: dict[str, list[Output]] = {}
            for at, event in arrived:
                if isinstance(event, SequenceFailed):
                    raise self._standing.explained(event.error, self.resolved.adapter, *self.marks[event.id])
                self._time(event, at)
                outputs.setdefault(event.id, []).append(event)
            news: list[tuple[Choice, Piece]] = []
            for sequence_id, some in outputs.items():
                choice = self._by_id[sequence_id]
                piece = choice.push(some[0] if len(some) == 1 else _as_one(some))
                if choice.finish_reason == "abort":
                    raise InternalError("The engine gave the request up; try again.")
                if choice.stopped:
                    self.channel.abort(sequence_id)
                if choice.finish_reason is not None:
                    self._standing.ended_well(*self.marks[sequence_id])
                if not piece.empty:
                    news.append((choice, piece))
            if news:
                yield news

    @property
    def _standing(self) -> Standing:
        return self.services.standing

    def leave(self) -> None:
        """The client has gone away: what runs is ended, and `pieces` soon, too."""
        self.left = True
        self.channel.close()

    def close(self) -> None:
        """Ends what still runs and counts what was used. Call it however the request ended, once."""
        self.channel.close()
        self.settle()
        self._over = True
        self._meter.end()
        self.charge.settle(self.usage.prompt_tokens + self.usage.completion_tokens)
        metrics = self.services.metrics
        metrics.tokens(self.label, self.usage.prompt_tokens, self.usage.completion_tokens)
        for choice in self.choices:
            if choice.finish_reason is not None:
                metrics.finished(choice.finish_reason)

    def settle(self) -> None:
        """Brings `usage` up to what the choices hold."""
        self.usage.completion_tokens = sum(len(choice.tokens) for choice in self.choices)
        self.usage.cached_tokens = sum(choice.cached_tokens for choice in self.choices[:: self.samples])

    def head(self, kind: str) -> dict[str, Any]:
        """What a reply and its chunks have in common."""
        adapter = self.resolved.adapter
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.services.worker.spec.model_id,
            "adapter": None if adapter is None else _told(adapter),
        }

    def _time(self, output: Output, at: float) -> None:
        tokens = len(output.tokens)
        if not tokens:
            return
        before = self._seen.get(output.id)
        if before is not None:
            self.services.metrics.between_tokens((at - before) / tokens)
        elif not self._seen:
            self.services.metrics.first_token(at - self.began)
        self._seen[output.id] = at


def _told(adapter: AdapterRef) -> dict[str, Any]:
    said = {
        "task": adapter.task,
        "version": adapter.version or None,
        "digest": adapter.digest,
        "method": adapter.method,
    }
    return {**said, "parts": [_told(part) for part in adapter.parts]} if adapter.parts else said


def _as_one(outputs: Sequence[Output]) -> Output:
    """Successive outputs of one sequence, which cost a reader as much as one."""
    return Output(
        id=outputs[0].id,
        tokens=tuple([token for output in outputs for token in output.tokens]),
        finish_reason=outputs[-1].finish_reason,
        cached_tokens=sum([output.cached_tokens for output in outputs]),
        logprobs=tuple([values for output in outputs for values in output.logprobs]),
    )


def _check_generates(services: Services, resolved: Resolved) -> None:
    """Raises `WrongTaskKind` for what only classifies."""
    task = resolved.adapter.task if resolved.adapter is not None else None
    if resolved.manifest is not None and resolved.manifest.head is not None:
        raise WrongTaskKind(f"“{task}” classifies, and generates nothing: POST /v1/classify?task={task}.", param="task")
    if services.worker.spec.family == "encoder":
        raise WrongTaskKind(
            f"{services.worker.spec.model_id} is an encoder, and generates nothing: POST /v1/classify?task=… with a "
            "task that is published here.",
            param="task",
        )


def _check(services: Services, body: Sampling, params: SamplingParams, prompts: Sequence[Prompt]) -> None:
    """What can be told without a tokenizer. Raises `InvalidRequest` or `ContextTooLong`."""
    spec, most = services.worker.spec, services.settings.max_waiting
    if len(prompts) * body.n > most:
        raise InvalidRequest(
            f"{len(prompts)} prompts with n = {body.n} are more sequences than this server takes at once ({most}); "
            "send several requests.",
            param="prompt",
        )
    for token, _ in params.logit_bias:
        if token >= spec.vocab_size:
            raise InvalidRequest(
                f"logit_bias names token {token}; ids are 0 to {spec.vocab_size - 1}.", param="logit_bias"
            )
    for prompt in prompts:
        if isinstance(prompt, list) and len(prompt) > spec.context_length:
            raise ContextTooLong(
                f"The prompt has {len(prompt)} tokens, this server takes {spec.context_length}; shorten it.",
                param="prompt",
            )


async def _laid_out(
    services: Services, resolved: Resolved, prompts: Sequence[Prompt], variables: dict[str, str] | None
) -> list[tuple[int, ...]]:
    """Each prompt's input ids, virtual ones included. Raises `InvalidRequest`."""
    tokenizer, vocab_size = services.encoder(), services.worker.spec.vocab_size

    def all_of_them() -> list[tuple[int, ...]]:
        return [
            lay_out(resolved.layout, tokenizer, vocab_size=vocab_size, prompt=prompt, variables=variables)
            for prompt in prompts
        ]

    texts = [prompt for prompt in prompts if isinstance(prompt, str)] + list((variables or {}).values())
    if sum(map(len, texts)) >= LONG_TEXT:
        return await asyncio.to_thread(all_of_them)
    return all_of_them()
