"""Which tokens grammars allow the rows of a step: found beside the step's forward, in time for its choices."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from llguidance import LLExecutor

from softmux.engine.durations import Durations
from softmux.engine.staging import Buffer, Ring
from softmux.grammars.matcher import Guide
from softmux.scheduler.batch import Batch
from softmux.scheduler.rows import Ints, Rows

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Masks:
    """Of the rows at `places` among those that choose a token: what each is allowed, `[places, words]` int32, 32 tokens
    to a word, in the first rows of `buffer`. A row that is `stuck` is allowed nothing."""

    places: list[int]
    buffer: Buffer
    stuck: dict[int, str] = field(default_factory=dict)

    def on(self, device: torch.device) -> torch.Tensor:
        """The masks there, as bytes `[places, 4 * words]`; the buffer may be used again when the device has them."""
        masks = self.buffer.tensor[: len(self.places)].to(device, non_blocking=True)
        self.buffer.mark()
        return masks.view(torch.uint8)


@dataclass(slots=True)
class _Row:
    guide: Guide
    tokens: list[int]
    """Those known that its matcher has not seen."""
    awaited: int
    """Where the step in flight puts the one after them; −1 where there is none."""


class GrammarMasks:
    """`begin` before a step's forward, `launched` when it is on its way, as every step is.

    A row's mask needs its last token. Where the step that chooses that is still in flight, the thread waits for it
    while this step's forward is being launched and run: no row is held back for its grammar, and none for another's.
    """

    def __init__(self, max_rows: int, ends: Sequence[int], device: torch.device, forced: int = 0) -> None:
        self._max_rows = max_rows
        self._ends = frozenset(ends)
        self._device = device
        self._forced = forced
        """How many tokens the model itself says first, whatever the grammar: an encoder-decoder's may be 1."""
        self._ring: Ring | None = None
        self._executor: Any = None
        self._thread = ThreadPoolExecutor(1, "masks")
        self._last: Future[Masks] | None = None
        self._before: tuple[Rows, Buffer] = np.empty(0, np.int64), Buffer((1,), torch.int64, torch.device("cpu"))
        self.seconds = Durations()
        """What the masks of a step took."""
        self.rows = 0
        """Masks made so far."""

    def begin(self, batch: Batch) -> Future[Masks] | None:
        """The step's masks, on their way; None where no row has a grammar."""
        table = batch.table
        rows = batch.sampled[batch.choosing]
        places = np.flatnonzero(table.guided[rows]).tolist()
        if not places:
            return None
        if self._last is not None:
            self._last.exception()  # a step that raised may have left it behind
        lengths, work = batch.lengths[batch.choosing], []
        for place in places:
            row, length = int(rows[place]), int(lengths[place])
            guide, prompt, known = table.sequences[row].guide, int(table.prompts[row]), int(table.known[row])
            tokens = table.tokens[row, prompt + guide.taken : known].tolist()
            awaited = int(np.flatnonzero(self._before[0] == row)[-1]) if length > known else -1
            work.append(_Row(guide, tokens, awaited))
        if self._ring is None:
            self._ring = Ring((self._max_rows, work[0].guide.words), torch.int32, self._device)
        self._last = self._thread.submit(self._make, places, work, self._ring.next(), self._before[1])
        return self._last

    def launched(self, batch: Batch, landing: Buffer) -> None:
        """`batch` is on its way, its tokens in `landing` when it has ended."""
        self._before = batch.sampled[batch.choosing], landing

    def ran(self, batch: Batch, tokens: Ints) -> None:
        """`batch` has run in parts, each told as `launched`; these are the tokens of all its rows that choose one."""
        landing = Buffer((len(tokens),), torch.int64, torch.device("cpu"))
        landing.array[:] = tokens
        self.launched(batch, landing)

    def _make(self, places: list[int], work: list[_Row], buffer: Buffer, before: Buffer) -> Masks:
        if any(row.awaited >= 0 for row in work):
            before.wait()
        began = perf_counter()
        masks = Masks(places, buffer)
        into = buffer.array[: len(places)]
        try:
            self._fill(masks, work, into, before.array)
        except Exception as error:
            log.exception("the masks of %d rows failed", len(places))
            into[:] = 0
            masks.stuck = dict.fromkeys(places, f"its mask failed: {error}")
        self.seconds.add(perf_counter() - began)
        self.rows += len(places)
        return masks

    def _fill(self, masks: Masks, work: list[_Row], into: np.ndarray[Any, Any], landed: np.ndarray[Any, Any]) -> None:
        self._executor = self._executor or LLExecutor()
        wanted = []
        for at, row in enumerate(work):
            tokens = [*row.tokens, int(landed[row.awaited])] if row.awaited >= 0 else row.tokens
            forced = tokens[: max(0, self._forced - row.guide.taken)]
            row.guide.taken += len(forced)
            if row.awaited >= 0 and (tokens[-1] < 0 or tokens[-1] in self._ends):
                into[at] = -1  # it has ended meanwhile: what it chooses now is not heard
                continue
            row.guide.follow(tokens[len(forced) :])
            into[at] = 0
            wanted.append((row.guide.matcher, at))
        self._executor.unsafe_compute_mask_ptr(wanted, into.ctypes.data, into.shape[1] * 4, len(into))
        for _, at in wanted:
            if why := work[at].guide.stuck:
                into[at] = 0
                masks.stuck[masks.places[at]] = why

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def allowed(masks: torch.Tensor, width: int) -> torch.Tensor:
    """`[rows, bytes]` uint8 → `[rows, width]` bool, by token: whether its bit is set; false beyond the masks."""
    bits = (masks[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=masks.device)) & 1
    flat = bits.flatten(1)[:, :width].bool()
    return torch.nn.functional.pad(flat, (0, width - flat.shape[1])) if flat.shape[1] < width else flat
