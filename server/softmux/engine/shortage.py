"""A step for which the device has no memory: it is run again in parts, and where that fails, too, its work waits."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field

import numpy as np
import torch

from softmux.engine.runner import Launched, ModelRunner
from softmux.scheduler.batch import Batch, Chunk, StepOutput
from softmux.types import TokenLogprobs

LEAST = 16
"""Tokens that a step is always allowed."""
PATIENCE = 256
"""Steps without a shortage after which twice as many tokens are allowed again."""
_PARTS = 4


@dataclass(slots=True)
class Shortage:
    """How many tokens a step may have for now, and what shortages have come to: steps run in parts (`split`), steps
    whose work went back to the queue (`requeued`), sequences refused (`refused`)."""

    limit: int | None = None
    """None: as many as ever."""
    counts: dict[str, int] = field(default_factory=lambda: {"split": 0, "requeued": 0})
    refused: int = 0
    _calm: int = 0

    def tighten(self, tokens: int) -> None:
        """A step of `tokens` had no room: steps have less than half of them for a while."""
        self.limit = max(LEAST, min(tokens, self.limit or tokens) // 2)
        self._calm = 0

    def calm(self, most: int) -> None:
        """A step had room. After enough of these the limit is raised, and lifted where it would reach `most`."""
        if self.limit is None:
            return
        self._calm += 1
        if self._calm >= PATIENCE:
            self._calm = 0
            self.limit = None if 2 * self.limit >= most else 2 * self.limit


def run_in_parts(runner: ModelRunner, batch: Batch) -> Launched:
    """Runs a batch whose launch has raised once more, a part after the other, and waits for each. No step is in flight.
    Whatever the failed launch has written is written again."""
    runner.undo(batch)
    gc.collect()
    if runner.device.type == "cuda":
        torch.cuda.empty_cache()
    tokens: list[int] = []
    logprobs: dict[int, TokenLogprobs] = {}
    scores: dict[int, bytes] = {}
    stuck: dict[int, str] = {}
    for part in parts(batch, max(1, -(-batch.tokens // _PARTS))):
        launched = runner.launch(part)
        output = runner.collect(launched)
        logprobs |= {len(tokens) + place: values for place, values in output.logprobs.items()}
        scores |= {len(tokens) + place: values for place, values in output.scores.items()}
        stuck |= {len(tokens) + place: why for place, why in output.stuck.items()}
        tokens.extend(output.tokens.tolist())
    runner.masks.ran(batch, np.array(tokens, np.int64)[batch.choosing])
    whole = StepOutput(np.array(tokens, np.int64), logprobs, scores, stuck)
    return Launched(batch, launched.landing, output=whole)


def parts(batch: Batch, most: int) -> list[Batch]:
    """The batch's work in its own order, in steps of at most `most` tokens (1 at least): what a row shares with one
    before it in the batch is there when it runs. What runs whole (`Sequence.whole`) stays so, however long it is.
    Tokens that the step before was choosing are known by now, and told as such."""
    table, decodes = batch.table, batch.decodes.copy()
    chosen = table.tokens[decodes[1], decodes[2]]  # of a row that ended meanwhile, whatever is there: it is not heard
    decodes[0] = np.where(decodes[0] < 0, np.maximum(chosen, 0), decodes[0])
    made = [Batch(table, decodes[:, at : at + most]) for at in range(0, decodes.shape[1], most)]
    room = 0
    for chunk in batch.chunks:
        at = 0
        while at < chunk.count:
            start, end = chunk.start + at, chunk.sequence.whole[1]
            whole = end - start if start < end <= chunk.start + chunk.count else 0
            if room == 0 or (whole and room < min(whole, most)):
                made.append(Batch(table))
                room = most
            count = max(whole, min(room, chunk.count - at))
            last = at + count == chunk.count
            made[-1].chunks.append(Chunk(chunk.sequence, chunk.row, start, count, chunk.samples and last))
            at += count
            room = max(0, room - count)
    if not made:
        made.append(Batch(table))
    made[0].loads, made[-1].saves = batch.loads, batch.saves
    return made
