"""What a step reads of rows that choose no token: heads' scores, and how likely given tokens are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from softmux.engine.device import to_device
from softmux.engine.heads import Heads
from softmux.engine.layout import Layout
from softmux.scheduler.batch import Batch


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
    headed = [(place, root, reading.count) for place, root, reading in readings if reading and reading.what == "head"]
    likely = [(place, reading.count, 1) for place, _, reading in readings if reading and reading.what != "head"]
    scores, logprobs = None, None
    scored: list[tuple[int, int, int]] = []
    if headed:
        roots = [root for _, root, _ in headed]
        scores = _to_host(heads.scores(states, roots, [count for _, _, count in headed]))
        scored = [(place, count, heads.labels(root)) for place, root, count in headed]
    if likely:
        targets = to_device(layout.targets, logits.device)
        logprobs = _to_host(logits.float().log_softmax(-1).gather(1, targets[:, None]))
    return Readings(scored, scores, likely, logprobs)


def _to_host(values: torch.Tensor) -> torch.Tensor:
    if values.device.type == "cpu":
        return values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)
