"""What a step reads of rows that choose no token: heads' scores, and how likely given tokens are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from softmux.engine.device import to_device
from softmux.engine.heads import Heads
from softmux.engine.layout import Layout
from softmux.scheduler.batch import Batch
from softmux.scheduler.reading import Reading


@dataclass(slots=True, frozen=True)
class Readings:
    """On their way to the host: they may be asked for once the step has ended.

    `scored` and `likely` are, row of the batch after row, `(place among the sampling rows, tokens, labels)`.
    """

    scored: list[tuple[int, int, int]]
    scores: torch.Tensor | None
    likely: list[tuple[int, int, int]]
    logprobs: torch.Tensor | None

    def values(self) -> dict[int, torch.Tensor]:
        """By place: float32 `[tokens, labels]` of a head, `[tokens, 1]` of likelihoods."""
        found = {}
        for rows, values in ((self.scored, self.scores), (self.likely, self.logprobs)):
            at = 0
            for place, tokens, labels in rows:
                assert values is not None
                found[place] = values[at : at + tokens, :labels].contiguous()
                at += tokens
        return found


def read(batch: Batch, layout: Layout, states: torch.Tensor, logits: torch.Tensor, heads: Heads) -> Readings:
    """`states` are the last hidden states at `layout.heads`, `logits` those before each of `layout.targets`."""
    readings = [(place, chunk.sequence.root, chunk.sequence.reading) for place, chunk in batch.read]
    headed = [(place, root, reading) for place, root, reading in readings if reading and reading.what == "head"]
    likely = [(place, reading.count, 1) for place, _, reading in readings if reading and reading.what != "head"]
    scores, logprobs = None, None
    scored: list[tuple[int, int, int]] = []
    if headed:
        roots = [root for _, root, _ in headed]
        if any(reading.mean for _, _, reading in headed):
            states = _means(states, [reading for _, _, reading in headed])
        scores = _to_host(heads.scores(states, roots, [reading.results for _, _, reading in headed]))
        scored = [(place, reading.results, heads.labels(root)) for place, root, reading in headed]
    if likely:
        targets = to_device(layout.targets, logits.device)
        logprobs = _to_host(logits.float().log_softmax(-1).gather(1, targets[:, None]))
    return Readings(scored, scores, likely, logprobs)


def _means(states: torch.Tensor, readings: list[Reading]) -> torch.Tensor:
    """`[tokens, width]`: one of each reading that is a mean, and of others their states as they are. Each is a sum in
    its row's own order, whatever rows are beside it."""
    lengths = [length for one in readings for length in ([one.count] if one.mean else [1] * one.count)]
    spans = to_device(lengths, states.device)
    return torch.segment_reduce(states.float(), "mean", lengths=spans, unsafe=True).to(states.dtype)


def _to_host(values: torch.Tensor) -> torch.Tensor:
    if values.device.type == "cpu":
        return values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)
