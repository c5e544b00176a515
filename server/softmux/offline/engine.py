"""Rows answered by an engine in this process: no HTTP, no registry, every step as full as it can be."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from softmux.api.choice import Choice, Piece, joined
from softmux.api.findings import invalid
from softmux.api.laying_out import rendered
from softmux.api.own_shape import OwnShape
from softmux.api.schemas import GenerateBody
from softmux.api.tokenizer import Tokenizer
from softmux.api.tokenizer_export import export
from softmux.engine.local import LocalEngine
from softmux.errors import InvalidRequest, SoftmuxError, WrongTaskKind
from softmux.formats.layout import Layout, lay_out
from softmux.offline.interrupt import Interrupt
from softmux.offline.rows import GENERATE, Answer, Row
from softmux.offline.target import Identity
from softmux.settings import Settings
from softmux.types import Manifest, Output, SamplingParams

_TRIES = 3


@dataclass(slots=True)
class _Running:
    """A row of which some choices have not ended."""

    row: Row
    body: GenerateBody
    inputs: list[tuple[int, ...]]
    choices: list[Choice]
    pieces: list[list[Piece]]
    open: set[int] = field(default_factory=set)
    tries: int = 0

    def name(self, index: int) -> str:
        """A sequence's: of each try another."""
        return f"{self.row.number}-{index}-{self.tries}"


class EngineTarget:
    """A task's files, or with None the bare model, on the model of `settings`."""

    def __init__(self, settings: Settings, task: str | None, files: Mapping[str, bytes] | None) -> None:
        self._local = LocalEngine(settings)
        try:
            self._begin(settings, task, files)
        except BaseException:
            self.close()
            raise

    def _begin(self, settings: Settings, task: str | None, files: Mapping[str, bytes] | None) -> None:
        self._engine = engine = self._local.engine
        self._manifest: Manifest | None = None
        if files is not None:
            self._manifest = self._local.adopt(files).manifest
        self._place = self._local.place(None if files is None else 0)
        if engine.spec.family == "encoder" or (self._manifest is not None and self._manifest.head is not None):
            raise WrongTaskKind(
                "This classifies, which takes a server: `softmux serve`, then --url instead of --model.", param="task"
            )
        self._layout = Layout.of(self._manifest)
        self._tokenizer = Tokenizer(export(settings.model))
        self._room = 2 * settings.max_rows
        self._name = task
        digest = self._manifest.digest if self._manifest else None
        self.identity = Identity(engine.spec.base_fingerprint, task, digest)

    def answers(self, rows: Iterator[Row], interrupt: Interrupt) -> Iterator[Answer]:
        running: dict[int, _Running] = {}
        sequences = 0
        while True:
            interrupt.check()
            while sequences < self._room and (row := next(rows, None)) is not None:
                try:
                    started = self._start(row)
                except SoftmuxError as error:
                    yield Answer(row, error=error, status=error.status)
                    continue
                running[row.number] = started
                sequences += len(started.choices)
            if not running:
                return
            news = self._local.step()
            ended: list[Answer] = []
            for sequence, output in news.each():
                self._push(running, sequence.id, output, ended)
            for sequence, failure in news.failed:
                self._fail(running, sequence.id, failure, ended)
            for answer in ended:
                sequences -= len(running.pop(answer.row.number).choices)
                yield answer

    def _start(self, row: Row, tries: int = 0) -> _Running:
        """Raises what is wrong with the row."""
        if row.url != GENERATE:
            raise InvalidRequest(
                f"{row.url} takes a server: `softmux serve`, then --url instead of --model.", param="url"
            )
        try:
            body = GenerateBody.model_validate(row.body, strict=True)
        except ValidationError as error:
            raise invalid(error) from None
        if body.timeout is not None:
            raise InvalidRequest("Rows run in this process have no deadline; leave timeout out.", param="timeout")
        wish, given = body.wish(), body.given()
        wish.check()
        chat = given.chat
        prompts = given.prompts if chat is None else [rendered(self._layout, self._tokenizer, chat)]
        if len(prompts) * body.n > self._room:
            raise InvalidRequest(
                f"A row has at most {self._room} prompts and samples; make it several.", param="prompt"
            )
        inputs = [
            lay_out(
                self._layout, self._tokenizer, vocab_size=self._engine.spec.vocab_size, prompt=prompt,
                variables=body.variables,
            )
            for prompt in prompts
        ]  # fmt: skip
        choices = [Choice(index, self._tokenizer, wish) for index in range(len(inputs) * body.n)]
        started = _Running(row, body, inputs, choices, [[] for _ in choices], tries=tries)
        self._add(started, wish.sampling)
        return started

    def _add(self, started: _Running, params: SamplingParams) -> None:
        order = itertools.product(started.inputs, range(started.body.n))
        for index, (tokens, sample) in enumerate(order):
            try:
                self._engine.add(
                    started.name(index), tokens, params, root=self._place.root, now=time.monotonic(), sample=sample,
                    priority=started.body.priority, trained_prefix=self._place.trained_prefix,
                )  # fmt: skip
            except SoftmuxError:
                self._abort(started)
                raise
            started.open.add(index)

    def _push(self, running: dict[int, _Running], name: str, output: Output, ended: list[Answer]) -> None:
        started, index = self._of(running, name)
        if started is None:
            return
        choice = started.choices[index]
        piece = choice.push(output)
        started.pieces[index].append(piece)
        if choice.stopped:
            self._engine.scheduler.abort(b"", name)
        if choice.finish_reason is not None:
            started.open.discard(index)
            if not started.open:
                ended.append(Answer(started.row, self._reply(started)))

    def _fail(self, running: dict[int, _Running], name: str, error: SoftmuxError, ended: list[Answer]) -> None:
        """A step that failed, or had no memory, is no fault of the row's: it is tried again, but not for ever."""
        started, _ = self._of(running, name)
        if started is None:
            return
        self._abort(started)
        if error.status in (500, 503) and started.tries + 1 < _TRIES:
            try:
                running[started.row.number] = self._start(started.row, started.tries + 1)
                return
            except SoftmuxError as refused:
                ended.append(Answer(started.row, error=refused, status=refused.status))
                return
        ended.append(Answer(started.row, error=error, status=error.status))

    def _of(self, running: dict[int, _Running], name: str) -> tuple[_Running | None, int]:
        """Whose sequence it is, and which choice's; None for one that a stop string, or a failed sibling, has ended."""
        number, index, tries = map(int, name.split("-"))
        started = running.get(number)
        known = started is not None and started.tries == tries and index in started.open
        return started if known else None, index

    def _abort(self, started: _Running) -> None:
        for index in started.open:
            self._engine.scheduler.abort(b"", started.name(index))
        started.open.clear()

    def _reply(self, started: _Running) -> dict[str, Any]:
        import msgspec

        body = started.body
        shape = OwnShape(body.return_token_ids)
        choices = [
            shape.choice(choice.index, joined(pieces), self._tokenizer)
            for choice, pieces in zip(started.choices, started.pieces, strict=True)
        ]
        prompt = sum(token >= 0 for tokens in started.inputs for token in tokens)
        completion = sum(len(choice.tokens) for choice in started.choices)
        manifest = self._manifest
        reply = {
            "id": "gen-" + secrets.token_hex(12),
            "object": "generation",
            "created": int(time.time()),
            "model": self._engine.spec.model_id,
            "adapter": None
            if manifest is None
            else {"task": self._name, "version": None, "digest": manifest.digest, "method": manifest.method},
            "choices": choices,
            "usage": {
                "prompt_tokens": prompt,
                "virtual_tokens": sum(token < 0 for tokens in started.inputs for token in tokens),
                "cached_tokens": sum(choice.cached_tokens for choice in started.choices[:: body.n]),
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
            },
        }
        told: dict[str, Any] = msgspec.to_builtins(reply)
        return told

    def close(self) -> None:
        self._local.close()
