"""A classifying request, from its inputs to its results.

lay out → submit to the worker → read scores → labels

A task with a head sends a row for each input, or for each window of a long one. A task without, whose labels are words
(a verbalizer), sends a row for each input and label: how likely is the word, after the input. Their inputs are one path
of the worker's cache, so each is computed once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from softmux.api import verdicts
from softmux.api.deadline import within
from softmux.api.limits import Charge
from softmux.api.schemas import ClassifyBody
from softmux.api.services import Resolved, Services
from softmux.api.tokenizer import LONG_TEXT
from softmux.api.trained_range import beyond
from softmux.api.usage import Meter
from softmux.api.windows import Piece, Window, windows
from softmux.cost import cost
from softmux.errors import ContextTooLong, InternalError, InvalidRequest, WrongTaskKind
from softmux.formats.layout import check_text, lay_out, virtual_ids
from softmux.marks import content_mark, version_mark
from softmux.registry.usage import Used
from softmux.telemetry.trail import Trail, current
from softmux.types import Manifest, Output
from softmux.worker.channel import Channel, SequenceFailed
from softmux.worker.messages import Read


@dataclass(slots=True)
class _Input:
    """One text, and its rows: `windows` of a token task (and of a long text), and the ids sent for each row."""

    text: str
    rows: list[tuple[int, ...]]
    scored: list[int]
    pieces: list[Piece]
    windows: list[Window]


@dataclass(slots=True)
class Classification:
    """One running request: `results` waits for its end, `close` ends it early. `prompt_tokens` are the texts' own."""

    services: Services
    resolved: Resolved
    manifest: Manifest
    body: ClassifyBody
    inputs: list[_Input]
    channel: Channel
    marks: dict[str, tuple[int, int]]
    """Each row's content and version, by `softmux.marks`, in the rows' order."""
    prompt_tokens: int
    charge: Charge
    virtual_tokens: int
    warnings: tuple[str, ...] = ()
    """What is odd about the inputs, for the reply."""
    deadline: float | None = None
    left: bool = False
    _cached: int = 0
    _meter: Meter = field(init=False)
    _trail: Trail = field(init=False)

    def __post_init__(self) -> None:
        adapter = self.resolved.adapter
        self._meter = self.services.usage.begin(self.resolved.tenant, adapter.task if adapter else None, self.used)
        self._trail = current()
        name = next(iter(self.marks)).rpartition("-")[0]
        self._trail.runs(name, self.services.worker.spec.model_id, None, self.channel.made)

    def used(self) -> Used:
        """What it has used by now. A row counts as its part of the whole once it has been read."""
        part = len(self.channel.told) / len(self.marks)
        return Used(
            requests=1,
            prompt_tokens=round(self.prompt_tokens * part),
            virtual_tokens=round(self.virtual_tokens * part),
            cached_tokens=self._cached,
        )

    @classmethod
    async def start(
        cls, services: Services, resolved: Resolved, body: ClassifyBody, deadline: float | None = None, *, label: str
    ) -> Classification:
        """Lays the inputs out and submits their rows. Raises what is wrong with the request. `deadline` is monotonic:
        `results` raises `DeadlineExceeded` then. `label` is the task's for metrics."""
        weight = services.registry.tenants.get(resolved.tenant).weight
        services.backlog.check(resolved.tenant, 0, deadline, weight)
        manifest = _classifier(resolved)
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not texts:
            raise InvalidRequest("The input is an empty list; give it at least one text.", param="input")
        most = services.settings.max_waiting
        each = 1 if manifest.head else len(manifest.labels or ())
        if len(texts) * each > most:
            raise InvalidRequest(
                f"{len(texts)} inputs are {len(texts) * each} sequences, more than this server takes at once ({most}); "
                "send several requests.",
                param="input",
            )
        if not manifest.head and (body.stride is not None or body.aggregation != "none"):
            name = "stride" if body.stride is not None else "aggregation"
            raise InvalidRequest(f"{name} is for tasks with a head, and this one has none.", param=name)
        if body.aggregation != "none" and manifest.head != "token":
            raise InvalidRequest("aggregation is for tasks that label tokens.", param="aggregation")

        def laid_out() -> list[_Input]:
            found: list[_Input] = []
            room = most - each * len(texts)  # what long texts may take beyond a row for each
            for text in texts:
                found.append(_lay_out(services, resolved, manifest, body, text, at_most=room + each))
                room -= len(found[-1].rows) - each
            return found

        long = sum(map(len, texts)) >= LONG_TEXT
        inputs = await asyncio.to_thread(laid_out) if long else laid_out()
        name = "cls-" + secrets.token_hex(12)
        requests = _reads(services, resolved, manifest, body, inputs, name, deadline)
        counted = [row for given in inputs for row in _first(given, manifest)]
        prompt_tokens = sum(sum(token >= 0 for token in tokens) - scored for tokens, scored in counted)
        virtual_tokens = sum(sum(token < 0 for token in tokens) for tokens, _ in counted)
        charge = await services.limits.admit(resolved.tenant, prompt_tokens)
        try:
            channel = services.worker.submit(requests)
        except BaseException:
            charge.settle(0)
            raise
        whole = sum(cost(len(request.tokens), 0) for request in requests)
        services.backlog.submitted(resolved.tenant, len(requests), whole, weight)
        marks = {request.id: (request.content, request.version) for request in requests}
        warnings = beyond(resolved, (_longest(given, manifest) for given in inputs), services.metrics, label)
        return cls(
            services, resolved, manifest, body, inputs, channel, marks, prompt_tokens, charge, virtual_tokens, warnings,
            deadline,
        )  # fmt: skip

    async def results(self) -> list[dict[str, Any]]:
        """A result for each input, in order. Raises the first error of a row."""
        found: dict[str, Output] = {}
        while arrived := await within(self.deadline, self.channel.arrivals(whole=True)):
            for times, event in arrived:
                marks = self.marks[event.id]
                if isinstance(event, SequenceFailed):
                    raise self.services.standing.explained(event.error, self.resolved.adapter, *marks)
                if event.finish_reason == "abort":
                    raise InternalError("The engine gave the request up; try again.")
                self.services.standing.ended_well(*marks)
                found[event.id] = event
                self._trail.ended(event, times[-1])
                self._cached += event.cached_tokens
        if self.left:
            return []
        scores = iter([_floats(found[name].scores) for name in self.marks])
        return [self._result(given, [next(scores) for _ in given.rows]) for given in self.inputs]

    def leave(self) -> None:
        """The client has gone away: what runs is ended, and `results` soon, too."""
        self.left = True
        self.channel.close()

    def close(self) -> None:
        self.channel.close()
        self._meter.end()
        self.charge.settle(self.prompt_tokens)
        self._trail.used(self.prompt_tokens, self.virtual_tokens, 0, cached=self._cached)
        if self.left:
            self._trail.code = "gone"

    def _result(self, given: _Input, rows: list[list[float]]) -> dict[str, Any]:
        labels = tuple(self.manifest.labels or ())
        if self.manifest.head is None:
            likelihoods = verdicts.softmax([sum(row) for row in rows])
            return verdicts.of_sequence(labels, likelihoods, "single_label_classification")
        problem = self.manifest.problem_type or "single_label_classification"
        if self.manifest.head == "sequence":
            each = [verdicts.read_scores(row, problem) for row in rows]
            return verdicts.of_sequence(labels, verdicts.mean(each), problem)
        count = len(labels)
        split = [[row[at : at + count] for at in range(0, len(row), count)] for row in rows]
        return verdicts.of_tokens(
            given.text,
            labels,
            given.pieces,
            list(zip(given.windows, split, strict=True)),
            words=self.body.aggregation == "word",
        )


def _classifier(resolved: Resolved) -> Manifest:
    """The version, which classifies. Raises `InvalidRequest` or `WrongTaskKind`."""
    if resolved.adapter is None or resolved.manifest is None:
        raise InvalidRequest("Name the task that classifies: POST /v1/classify?task=…", param="task")
    if resolved.manifest.head is None and not resolved.manifest.labels:
        raise WrongTaskKind(
            f"“{resolved.adapter.task}” generates, and names no labels to choose from: POST "
            f"/v1/generate?task={resolved.adapter.task}, or upload it with `labels` in its softmux.json.",
            param="task",
        )
    return resolved.manifest


def _rows(inputs: Sequence[_Input]) -> Iterator[tuple[tuple[int, ...], int]]:
    for given in inputs:
        yield from zip(given.rows, given.scored, strict=True)


def _reads(
    services: Services,
    resolved: Resolved,
    manifest: Manifest,
    body: ClassifyBody,
    inputs: Sequence[_Input],
    name: str,
    deadline: float | None,
) -> list[Read]:
    """The rows as messages. Raises `Quarantined`."""
    adapter, digest = resolved.adapter, manifest.digest
    version = 0 if adapter is None else version_mark(resolved.tenant, adapter.digest, adapter.tenant)
    left = None if deadline is None else deadline - time.monotonic()
    requests = []
    for number, (tokens, scored) in enumerate(_rows(inputs)):
        content = content_mark(resolved.tenant, digest, tokens, (manifest.head, scored))
        requests.append(
            Read(
                id=f"{name}-{number}",
                tenant=resolved.tenant,
                tokens=tokens,
                adapter=adapter,
                head=manifest.head,
                scored=scored,
                deadline=left,
                priority=body.priority,
                weight=services.registry.tenants.get(resolved.tenant).weight,
                content=content,
                version=version,
                suspect=services.standing.check(adapter, content, version),
            )
        )
    return requests


def _first(given: _Input, manifest: Manifest) -> list[tuple[tuple[int, ...], int]]:
    """The rows that count as the input: of a verbalizer's, which all begin with it, one."""
    rows = list(zip(given.rows, given.scored, strict=True))
    return rows if manifest.head else rows[:1]


def _longest(given: _Input, manifest: Manifest) -> int:
    """The input's own tokens, of its windows the most that one has."""
    return max(sum(token >= 0 for token in tokens) - scored for tokens, scored in _first(given, manifest))


def _lay_out(
    services: Services, resolved: Resolved, manifest: Manifest, body: ClassifyBody, text: str, *, at_most: int
) -> _Input:
    """One text as at most so many rows. Raises `InvalidRequest`, `ContextTooLong`."""
    tokenizer, spec, layout = services.encoder(), services.worker.spec, resolved.layout
    check_text(text, "input")
    if not text.strip():
        raise InvalidRequest("The input is empty; give it at least one word.", param="input")
    most = spec.context_length
    if manifest.head == "token" and spec.family == "decoder":
        most = min(most, services.settings.max_step_tokens)  # its tokens are read in one step
    if manifest.head is not None and layout.template is None:
        pieces, cut = windows(tokenizer, text, most=most - layout.virtual_tokens, stride=body.stride, at_most=at_most)
        lead = virtual_ids(layout.virtual_tokens)
        return _Input(text, [(*lead, *window.ids) for window in cut], [0] * len(cut), pieces, cut)
    if manifest.head == "token" or body.stride is not None:
        what = "Labels of tokens are" if manifest.head == "token" else "stride is"
        raise InvalidRequest(f"{what} for tasks without a template, and this one has one.", param="task")
    ids = lay_out(layout, tokenizer, vocab_size=spec.vocab_size, prompt=text)
    words: list[tuple[int, ...]] = [()]
    if manifest.head is None:
        labels = manifest.labels or ()
        said = labels.values() if isinstance(labels, dict) else labels
        words = [tuple(tokenizer.encode(word, add_special_tokens=False)) for word in said]
        if not all(words):
            raise InvalidRequest("A label of this task has no tokens; upload it with other words.", param="task")
    longest = len(ids) + max(map(len, words))
    if longest > most:
        raise ContextTooLong(
            f"The input and its labels have {longest} tokens, this server takes {most}; shorten it.", param="input"
        )
    return _Input(text, [(*ids, *word) for word in words], [len(word) for word in words], [], [])


def _floats(data: bytes) -> list[float]:
    return array("f", data).tolist()
