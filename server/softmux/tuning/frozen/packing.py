"""Rows of many tasks as one packed `[1, tokens]` input: end to end, nothing between them.

What a row needs to know of its task comes with it (`Place`): where the task's learned vectors or prefix lie in the
step's tables, and what share of its loss each token has. The shares are fixed for the task's whole batch before it is
cut into packs, so a task's gradients do not depend on how, or beside whom, its rows are packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from softmux.tuning.data.rows import IGNORE, HeadRow, TaskRow

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A row as arrays. `ids`: input, then answer, without the places of a prefix; learned token i is `-1 - i`.
    `kept [len(ids)]`: each token's weight in the loss, before it is divided by the task's sum. `taught`: the row's.
    `labels [len(ids)]`: what a head says at each token; None where tokens themselves are said, by those before them."""

    ids: Ints
    kept: Floats
    answer_tokens: int
    taught: NDArray[np.float32] | None = None
    labels: Ints | None = None

    @property
    def length(self) -> int:
        return len(self.ids)


def prepare(row: TaskRow, prefix: int, dampening: float) -> Prepared:
    """Answers weigh 1, the input's own tokens `dampening`; what nothing comes before, and learned tokens, nothing. Of a
    row with a head each label weighs 1."""
    if isinstance(row, HeadRow):
        said = np.full(len(row.ids), IGNORE, dtype=np.int64)
        said[row.at : row.at + len(row.targets)] = row.targets
        return Prepared(np.array(row.ids, dtype=np.int64), (said != IGNORE).astype(np.float64), 0, labels=said)
    ids = np.array([*row.ids[prefix:], *row.answer], dtype=np.int64)
    kept = np.where(ids >= 0, dampening, 0.0)
    kept[len(ids) - len(row.answer) :] = 1.0
    kept[0] = 0.0
    return Prepared(ids, kept, len(row.answer), row.taught)


@dataclass(frozen=True, slots=True)
class Place:
    """A task within a step: its `number` there, where its vectors begin in the table of vectors, where its prefix of
    `prefix` tokens begins in the table of prefixes, and the `total` weight that its losses are divided by. `low_rank`
    is (cohort, index) of its LoRA, `head` of its head; None without."""

    number: int
    vectors: int = 0
    prefix_at: int = 0
    prefix: int = 0
    total: float = 1.0
    low_rank: tuple[int, int] | None = None
    head: tuple[int, int] | None = None


Placed = tuple[Prepared, Place]


@dataclass(frozen=True, slots=True)
class Packed:
    """`tokens`, `positions` `[tokens]`. Learned vector `vector_from[i]` of the step's table goes to `vector_at[i]`.

    `cu_q`, `cu_kv` `[rows + 1]`: where rows begin among tokens, and among keys with prefixes; `prefix_from [P]` says
    which prefix tokens are keys here, `kv_order [tokens + P]` puts `cat(tokens, prefixes)` into the rows' order.
    Logits are wanted at `wanted [targets]`; loss i is `targets[i]`'s, weighs `shares[i]`, and is task `owners[i]`'s.
    `low_rank`: the tokens of each cohort with a LoRA; `heads`: the targets of each with a head. `lengths`: of each row,
    without and with its prefix; `answers`: how many of its tokens are its answer's. A teacher's hidden
    state `taught[i]` is what the target at `taught_at[i]` of `targets` is learned from; None where none has a teacher.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    vector_at: torch.Tensor
    vector_from: torch.Tensor
    cu_q: torch.Tensor
    cu_kv: torch.Tensor
    longest: tuple[int, int]
    prefix_from: torch.Tensor | None
    kv_order: torch.Tensor | None
    wanted: torch.Tensor
    targets: torch.Tensor
    shares: torch.Tensor
    owners: torch.Tensor
    low_rank: tuple[Members, ...]
    heads: tuple[Members, ...]
    lengths: tuple[tuple[int, int], ...]
    answers: tuple[int, ...]
    taught: torch.Tensor | None = None
    taught_at: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Members:
    """What a pack holds of the tasks of one `cohort`: tokens, or targets. `members [n]` are indices in it; member i's
    are `padded[i]`, filled up with its own first; `flat` are the places of the true ones in `padded.flatten()`, which
    are `at` of the pack."""

    cohort: int
    members: torch.Tensor
    padded: torch.Tensor
    flat: torch.Tensor
    at: torch.Tensor


def packs(rows: Sequence[Placed], tokens: int) -> Iterator[list[Placed]]:
    """Cuts rows into packs of at most `tokens` tokens (one row at least): those alike in what they need, and in length,
    together, and never one that a head reads with one that says words. A pack that is small is no reason to wait: it is
    the last of its kind."""

    def needs(placed: Placed) -> tuple[bool, bool, bool, int]:
        row, place = placed
        return row.labels is not None, place.prefix > 0, place.low_rank is not None, row.length

    ordered = sorted(rows, key=needs)
    pack: list[Placed] = []
    held = 0
    for placed in ordered:
        if pack and (held + placed[0].length > tokens or needs(placed)[0] != needs(pack[0])[0]):
            yield pack
            pack, held = [], 0
        pack.append(placed)
        held += placed[0].length
    if pack:
        yield pack


def pack(rows: Sequence[Placed], device: torch.device) -> Packed:
    """The rows as one input on `device`."""
    prepared, places = [row for row, _ in rows], [place for _, place in rows]
    lengths = np.array([row.length for row in prepared])
    prefixes = np.array([place.prefix for place in places])
    ids = np.concatenate([row.ids for row in prepared])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    kv_starts = np.concatenate([[0], np.cumsum(lengths + prefixes)])
    within = np.arange(len(ids)) - np.repeat(starts[:-1], lengths)
    row_of = np.repeat(np.arange(len(rows)), lengths)
    virtual = np.flatnonzero(ids < 0)
    begins = np.array([place.vectors for place in places])
    kept = np.concatenate([row.kept for row in prepared])
    targets = np.flatnonzero(kept)
    totals = np.array([place.total for place in places])
    owners = np.array([place.number for place in places])

    def put(array: NDArray[np.generic]) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    prefix_from = order = None
    if prefixes.any():
        at = np.concatenate([np.arange(place.prefix_at, place.prefix_at + place.prefix) for place in places])
        own = np.repeat(kv_starts[:-1] + prefixes, lengths) + within  # where each token's key goes
        before = np.arange(len(at)) - np.repeat(np.cumsum(prefixes) - prefixes, prefixes)
        theirs = np.repeat(kv_starts[:-1], prefixes) + before
        places_of = np.empty(len(ids) + len(at), dtype=np.int64)
        places_of[np.concatenate([own, theirs])] = np.arange(len(places_of))
        prefix_from, order = put(at), put(places_of)
    taught = taught_at = None
    states = [row.taught for row in prepared if row.taught is not None]
    if states:
        answers_at = np.where([row.taught is not None for row in prepared], starts[1:] - _answers(prepared), len(ids))
        taught, taught_at = put(np.concatenate(states)), put(np.flatnonzero(targets >= answers_at[row_of[targets]]))
    each = np.bincount(row_of[targets], minlength=len(rows))
    ends = np.cumsum(each)
    said, behind = ids, 1
    if prepared[0].labels is not None:
        said, behind = np.concatenate([row.labels for row in prepared if row.labels is not None]), 0
    return Packed(
        tokens=put(np.maximum(ids, 0)),
        positions=put(within + prefixes[row_of]),
        vector_at=put(virtual),
        vector_from=put(begins[row_of[virtual]] + (-1 - ids[virtual])),
        cu_q=put(starts.astype(np.int32)),
        cu_kv=put(kv_starts.astype(np.int32)),
        longest=(int(lengths.max()), int((lengths + prefixes).max())),
        prefix_from=prefix_from,
        kv_order=order,
        wanted=put(targets - behind),
        targets=put(said[targets]),
        shares=put((kept[targets] / totals[row_of[targets]]).astype(np.float32)),
        owners=put(owners[row_of[targets]]),
        low_rank=tuple(_members([place.low_rank for place in places], starts[:-1], starts[1:], put)),
        heads=tuple(_members([place.head for place in places], ends - each, ends, put)),
        lengths=tuple(zip(lengths.tolist(), (lengths + prefixes).tolist(), strict=True)),
        answers=tuple(row.answer_tokens for row in prepared),
        taught=taught,
        taught_at=taught_at,
    )


def _answers(rows: Sequence[Prepared]) -> Ints:
    return np.array([row.answer_tokens for row in rows], dtype=np.int64)


def _members(places: Sequence[tuple[int, int] | None], starts: Ints, ends: Ints, put: object) -> Iterator[Members]:
    """Of rows whose tasks are (cohort, index), and that hold what lies from `starts` to `ends`, by cohort."""
    assert callable(put)
    tokens: dict[int, dict[int, list[Ints]]] = {}
    for place, start, end in zip(places, starts, ends, strict=True):
        if place is not None and start < end:
            cohort, member = place
            tokens.setdefault(cohort, {}).setdefault(member, []).append(np.arange(start, end))
    for cohort, members in tokens.items():
        own = [np.concatenate(runs) for runs in members.values()]
        padded = np.empty((len(own), max(map(len, own))), dtype=np.int64)
        flat = []
        for i, run in enumerate(own):
            padded[i] = run[0]
            padded[i, : len(run)] = run
            flat.append(i * padded.shape[1] + np.arange(len(run)))
        yield Members(
            cohort,
            put(np.array(list(members), dtype=np.int64)),
            put(padded),
            put(np.concatenate(flat)),
            put(np.concatenate(own)),
        )
