"""What a step reads of rows that choose no token: heads' scores, and how likely given tokens are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from softmux.engine.device import to_device
from softmux.engine.heads import Heads
from softmux.engine.layout import Layout
from softmux.scheduler.batch import Batch
from softmux.scheduler.radix import RootKey
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

    def told(self) -> tuple[dict[int, bytes], list[int]]:
        """By place: float32 `[tokens, labels]` of a head, `[tokens, 1]` of likelihoods, in this machine's byte order;
        and the places where any of these is not finite."""
        found: dict[int, bytes] = {}
        lost: list[int] = []
        for rows, tensor in ((self.scored, self.scores), (self.likely, self.logprobs)):
            if tensor is None:
                continue
            values, at = tensor.numpy(), 0
            sound = bool(np.isfinite(values).all())
            for place, tokens, labels in rows:
                own = values[at : at + tokens, :labels]
                found[place] = own.tobytes()
                if not sound and not np.isfinite(own).all():
                    lost.append(place)
                at += tokens
        return found, lost


def read(batch: Batch, layout: Layout, states: torch.Tensor, logits: torch.Tensor, heads: Heads) -> Readings:
    """`states` are the last hidden states at `layout.heads`, `logits` those before each of `layout.targets`."""
    headed: list[tuple[int, RootKey, Reading]] = []
    likely: list[tuple[int, int, int]] = []
    for place, chunk in batch.read:
        reading = chunk.sequence.reading
        if reading is not None and reading.what == "head":
            headed.append((place, chunk.sequence.root, reading))
        elif reading is not None:
            likely.append((place, reading.count, 1))
    scores, logprobs = None, None
    scored: list[tuple[int, int, int]] = []
    if headed:
        if any(reading.mean for _, _, reading in headed):
            states = _means(states, [reading for _, _, reading in headed])
        roots, counts = [root for _, root, _ in headed], [reading.results for _, _, reading in headed]
        found, labels = heads.scores(states, roots, counts)
        scores = _to_host(found)
        scored = [(place, count, labels[root]) for (place, root, _), count in zip(headed, counts, strict=True)]
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
