"""A generating request, from its prompts to its reply: the story that every generating route tells.

lay out → submit to the worker → read outputs → choices → one reply, or chunks
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from softmux.api.amounts import Input, Usage
from softmux.api.choice import Choice, Piece
from softmux.api.deadline import within
from softmux.api.laying_out import bounded, check_generates, laid_out
from softmux.api.limits import Charge
from softmux.api.services import Resolved, Services
from softmux.api.standing import Standing
from softmux.api.tokenizer import Tokenizer
from softmux.api.trained_range import beyond
from softmux.api.usage import Meter
from softmux.api.wish import Given, Wish
from softmux.cost import cost
from softmux.errors import InternalError, InvalidRequest
from softmux.marks import content_mark, version_mark
from softmux.registry.usage import Used
from softmux.telemetry.trail import Trail, current
from softmux.types import AdapterRef, Output
from softmux.worker.channel import Channel, SequenceFailed
from softmux.worker.messages import Generate

_MOST_GRAMMAR_BYTES = 16 << 20
"""A grammar goes to the worker with each sequence."""


@dataclass(slots=True)
class Generation:
    """One running request. `pieces` is read to its end or not, then `end` called; then `usage` stands."""

    id: str
    created: int
    resolved: Resolved
    choices: list[Choice]
    tokenizer: Tokenizer
    looks_for_stops: bool
    samples: int
    """Choices of each prompt."""
    channel: Channel
    services: Services
    label: str
    began: float
    """When the request was received, monotonic."""
    usage: Usage
    charge: Charge
    """Of the tenant's limits."""
    inputs: list[Input]
    marks: dict[str, tuple[int, int]]
    """Each sequence's content and version, by `softmux.marks`."""
    warnings: tuple[str, ...] = ()
    """What is odd about the request, for its reply."""
    deadline: float | None = None
    left: bool = False
    """The client has gone away."""
    outcome: str = "gone"
    """What it counts as when it ends: `ok`, an error's code, or this, as long as its client has nothing."""
    _over: bool = False
    _meter: Meter = field(init=False)
    _trail: Trail = field(init=False)
    _by_id: dict[str, Choice] = field(default_factory=dict)
    _seen: dict[str, float] = field(default_factory=dict)

    @classmethod
    async def start(
        cls,
        services: Services,
        resolved: Resolved,
        wish: Wish,
        given: Given,
        *,
        label: str,
        began: float,
        id_prefix: str = "gen-",
        deadline: float | None = None,
    ) -> Generation:
        """Lays the prompts out and submits the sequences wished of each. Raises what is wrong with the request.

        `label` is the task's for metrics. `began` and `deadline` are monotonic: `pieces` raises `DeadlineExceeded` at
        the latter.
        """
        weight = services.registry.tenants.get(resolved.tenant).weight
        services.backlog.check(resolved.tenant, 0 if wish.to_the_end else wish.sampling.max_tokens, deadline, weight)
        check_generates(services, resolved)
        tokenizer = services.encoder()
        await _check_grammar(services, resolved.tenant, wish, len(given.prompts) or 1, deadline)
        rows = await laid_out(services, resolved, wish, given)
        wish = bounded(services, wish, rows)
        params = wish.sampling
        inputs = [Input.of(tokens) for tokens in rows]
        usage = Usage(sum(each.own for each in inputs), sum(len(each.learned) for each in inputs))
        adapter = resolved.adapter
        digest = None if adapter is None else adapter.digest
        version = 0 if adapter is None else version_mark(resolved.tenant, adapter.digest, adapter.tenant)
        contents = [content_mark(resolved.tenant, digest, tokens, params) for tokens in rows]
        suspects = [services.standing.check(adapter, content, version) for content in contents]
        charge = await services.limits.admit(
            resolved.tenant, usage.prompt_tokens + len(inputs) * wish.samples * params.max_tokens
        )
        left = None if deadline is None else deadline - time.monotonic()
        name = id_prefix + secrets.token_hex(12)
        requests: list[Generate] = []
        choices: dict[str, Choice] = {}
        marks: dict[str, tuple[int, int]] = {}
        for tokens, content, suspect in zip(rows, contents, suspects, strict=True):
            for sample in range(wish.samples):
                index = len(requests)
                request = Generate(
                    id=f"{name}-{index}",
                    tenant=resolved.tenant,
                    tokens=tokens,
                    sampling=params,
                    adapter=adapter,
                    sample=sample,
                    priority=wish.priority,
                    weight=weight,
                    deadline=left,
                    content=content,
                    version=version,
                    suspect=suspect,
                )
                marks[request.id] = (content, version)
                requests.append(request)
                choices[request.id] = Choice(index, tokenizer, wish)
        try:
            channel = services.worker.submit(requests)
        except BaseException:
            charge.settle(0)
            raise
        whole = wish.samples * sum(cost(len(tokens), params.max_tokens) for tokens in rows)
        services.backlog.submitted(resolved.tenant, len(requests), whole, weight)
        return cls(
            id=name,
            created=int(time.time()),
            resolved=resolved,
            choices=list(choices.values()),
            tokenizer=tokenizer,
            looks_for_stops=bool(wish.stops or wish.stop_token_ids),
            samples=wish.samples,
            channel=channel,
            services=services,
            label=label,
            began=began,
            usage=usage,
            charge=charge,
            inputs=inputs,
            marks=marks,
            warnings=beyond(resolved, (each.own for each in inputs), services.metrics, label),
            deadline=deadline,
            _by_id=choices,
        )

    def __post_init__(self) -> None:
        adapter = self.resolved.adapter
        self._meter = self.services.usage.begin(self.resolved.tenant, adapter.task if adapter else None, self.used)
        self._trail = current()
        channel = self.channel
        self._trail.runs(
            self.id, self.services.worker.spec.model_id, channel.sampling, channel.made, samples=self.samples
        )

    def used(self) -> Used:
        """What it has used by now. A prompt counts once anything has come of it."""
        told = self.channel.told
        begun = {number // self.samples for number, name in enumerate(self._by_id) if name in told}
        return Used(
            requests=1,
            prompt_tokens=sum(self.inputs[number].own for number in begun),
            virtual_tokens=sum(len(self.inputs[number].learned) for number in begun),
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
            for times, event in arrived:
                if isinstance(event, SequenceFailed):
                    raise self._standing.explained(event.error, self.resolved.adapter, *self.marks[event.id])
                self._time(event, times)
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

    def end(self) -> None:
        """Ends what still runs, and counts what was used, and the request as its `outcome`. Call it however the request
        ended, once; after an answer's last byte, where there is one."""
        if self.left:
            self.outcome = "gone"
        self.channel.close()
        self.settle()
        self._over = True
        self._meter.end()
        self.charge.settle(self.usage.prompt_tokens + self.usage.completion_tokens)
        usage = self.usage
        self._trail.used(usage.prompt_tokens, usage.virtual_tokens, usage.completion_tokens, cached=usage.cached_tokens)
        for name, choice in self._by_id.items():
            self._trail.chose(name, choice.finish_reason, len(choice.tokens), self._seen.get(name))
        if self.outcome != "ok":
            self._trail.code = self.outcome
        metrics = self.services.metrics
        metrics.request(self.label, self.outcome, time.monotonic() - self.began)
        metrics.tokens(self.label, self.usage.prompt_tokens, self.usage.completion_tokens)
        for choice in self.choices:
            if choice.finish_reason is not None:
                metrics.finished(choice.finish_reason)

    def settle(self) -> None:
        """Brings `usage` up to what the choices hold."""
        self.usage.completion_tokens = sum(len(choice.tokens) for choice in self.choices)
        cached = [choice.cached_tokens for choice in self.choices[:: self.samples]]
        self.usage.cached_tokens = sum(cached)
        self.usage.cached_prompt_tokens = sum(
            each.own_of(first) for each, first in zip(self.inputs, cached, strict=True)
        )

    @property
    def adapter(self) -> dict[str, Any] | None:
        """The weights that make this reply."""
        adapter = self.resolved.adapter
        return None if adapter is None else adapter_json(adapter)

    @property
    def told(self) -> dict[str, Any]:
        """What a reply, and each of its chunks, says of how it is made: `adapter`, and `warnings` where there are."""
        said: dict[str, Any] = {"adapter": self.adapter}
        return {**said, "warnings": self.warnings} if self.warnings else said

    @property
    def fingerprint(self) -> str:
        """Names the exact weights: the version's, or the bare model's."""
        adapter = self.resolved.adapter
        return self.services.worker.spec.base_fingerprint if adapter is None else adapter.digest

    def _time(self, output: Output, times: Sequence[float]) -> None:
        """`times` as in `softmux.worker.channel.Arrival`."""
        first, last = times[0], times[-1]
        if output.finish_reason is not None:
            self._trail.ended(output, last)
        if not output.tokens:
            return
        metrics, before = self.services.metrics, self._seen.get(output.id)
        if before is None:
            if not self._seen:
                metrics.first_token(first - self.began)
            if output.finish_reason is None:
                self._trail.first(output, first)
            metrics.tokens_came(first, times[1:])
        elif len(times) > 1:
            metrics.tokens_came(before, times)
        else:
            metrics.between_tokens((last - before) / len(output.tokens))
        self._seen[output.id] = last


def adapter_json(adapter: AdapterRef) -> dict[str, Any]:
    """As replies tell of it."""
    said = {
        "task": adapter.task,
        "version": adapter.version or None,
        "digest": adapter.digest,
        "method": adapter.method,
    }
    return {**said, "parts": [adapter_json(part) for part in adapter.parts]} if adapter.parts else said


def _as_one(outputs: Sequence[Output]) -> Output:
    """Successive outputs of one sequence, which cost a reader as much as one."""
    return Output(
        id=outputs[0].id,
        tokens=tuple([token for output in outputs for token in output.tokens]),
        finish_reason=outputs[-1].finish_reason,
        cached_tokens=sum([output.cached_tokens for output in outputs]),
        logprobs=tuple([values for output in outputs for values in output.logprobs]),
    )


async def _check_grammar(services: Services, tenant: str, wish: Wish, prompts: int, deadline: float | None) -> None:
    """Raises `InvalidRequest` where the reply's form can't be followed, or is too much for so many prompts."""
    grammar = wish.sampling.grammar
    if grammar is None:
        return
    if prompts * wish.samples * len(grammar.text) > _MOST_GRAMMAR_BYTES:
        raise InvalidRequest(
            f"{prompts} prompts with n = {wish.samples} are too many for so large a {grammar.param}; send several "
            "requests.",
            param=grammar.param,
        )
    await within(deadline, services.grammars.check(tenant, grammar))
