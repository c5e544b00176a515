"""A batch as arrays, laid end to end: what a packed forward is told of its tokens. On the host, by numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softmux.scheduler.batch import Batch
from softmux.scheduler.radix import RootKey
from softmux.scheduler.rows import Ints, Rows


def ranges(starts: Ints, counts: Ints) -> Ints:
    """`starts[i] … starts[i] + counts[i]` of every i, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts - starts, counts)


def cut(starts: Ints, counts: Ints, queries: int) -> tuple[Ints, Ints]:
    """Rows' new tokens in blocks of at most `queries`: each block's row, and its first token there. Those that attend
    to most come first, so that the last to run are short."""
    blocks = -(-counts // queries)
    rows = np.repeat(np.arange(len(counts)), blocks)
    firsts = ranges(np.zeros_like(blocks), blocks) * queries
    order = np.argsort(-(starts[rows] + firsts), kind="stable")
    return rows[order], firsts[order]


@dataclass(slots=True, frozen=True)
class Layout:
    """One packed step. The batch's decoding rows come first, so their tokens do, too.

    By row: `rows` (of the table), `starts`, `counts`, `sources`, `deltas` (the slots of what their adapters change of
    the base). By token: `ids` (0 where it is not known or no real
    one), `positions`, `slots`. `wanted`: the tokens whose logits are needed, first those behind which rows choose one,
    then those before each of `targets`, whose likelihood is read. `heads`: tokens whose hidden states heads read.
    `futures`: tokens that the step before is choosing; `virtual`: tokens that are learned vectors, with the adapters
    they belong to and their numbers there.
    """

    rows: Rows
    starts: Ints
    counts: Ints
    sources: Ints
    deltas: Ints
    ids: Ints
    positions: Ints
    slots: Ints
    wanted: Ints
    futures: Ints
    virtual: Ints
    adapters: list[RootKey]
    vectors: Ints
    heads: Ints
    targets: list[int]

    @property
    def source_counts(self) -> Ints:
        """How many of each row's tokens are an encoder's."""
        counts: Ints = np.clip(self.sources[:, 1] - self.starts, 0, self.counts)
        return counts


def lay_out(batch: Batch) -> Layout:
    table, decodes = batch.table, batch.decodes.shape[1]
    rows, starts, counts = batch.rows, batch.starts, batch.counts
    at_row, positions = np.repeat(rows, counts), ranges(starts, counts)
    ids = table.tokens[at_row, positions].astype(np.int64)
    ids[:decodes] = batch.decodes[0]
    futures = np.flatnonzero(ids[:decodes] < 0)
    virtual = np.flatnonzero(ids[decodes:] < 0) + decodes
    vectors = -1 - ids[virtual]
    ends = np.cumsum(counts)
    chooses = [True] * decodes + [chunk.samples and chunk.sequence.reading is None for chunk in batch.chunks]
    heads, before, targets = _read(batch, ends - counts)
    return Layout(
        rows=rows,
        starts=starts,
        counts=counts,
        sources=table.sources[rows],
        deltas=table.deltas[rows],
        ids=np.maximum(ids, 0),
        positions=positions,
        slots=table.slots[at_row, positions].astype(np.int64),
        wanted=np.concatenate([ends[np.array(chooses, np.bool_)] - 1, before]),
        futures=futures,
        virtual=virtual,
        adapters=[sequence.root for sequence in table.sequences[at_row[virtual]].tolist()],
        vectors=vectors,
        heads=heads,
        targets=targets,
    )


def _read(batch: Batch, begins: Ints) -> tuple[Ints, Ints, list[int]]:
    """(tokens that heads read, tokens before those whose likelihood is read, the ids of the latter). `begins`: each
    row's first token."""
    firsts: dict[str, list[int]] = {"head": [], "likelihood": []}
    counts: dict[str, list[int]] = {"head": [], "likelihood": []}
    targets: list[int] = []
    for chunk, begin in zip(batch.chunks, begins[batch.decodes.shape[1] :].tolist(), strict=True):
        reading = chunk.sequence.reading
        if reading is None or not chunk.samples:
            continue
        firsts[reading.what].append(begin - chunk.start + reading.first)
        counts[reading.what].append(reading.end - reading.first)
        if reading.what == "likelihood":
            targets += chunk.sequence.prompt[reading.first : reading.end]
    heads, likely = (
        ranges(np.array(firsts[what], np.int64), np.array(counts[what], np.int64)) for what in ("head", "likelihood")
    )
    return heads, likely - 1, targets
