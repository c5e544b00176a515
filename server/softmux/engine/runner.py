"""Runs a scheduler's batch: lays its rows end to end, one forward, one token for each row that samples."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from softmux.engine.attention.base import AttentionBackend, PackedRows
from softmux.engine.attention.torch_sdpa import TorchAttention
from softmux.engine.device import to_device
from softmux.engine.graphs import DecodeGraphs, StaticRows
from softmux.engine.kv import KVPool
from softmux.engine.packed import PackedModel
from softmux.engine.sampling import Choice, Sampled, logprobs_of, needs_more_than_argmax, sample
from softmux.engine.tiers import AdapterTiers
from softmux.engine.vocabulary import VirtualVocabulary
from softmux.engine.ways import Ways
from softmux.scheduler.batch import Batch, Row, StepOutput
from softmux.scheduler.radix import RootKey

if TYPE_CHECKING:  # Triton is there on GPU machines only
    from softmux.engine.fused import FusedDecoder

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Launched:
    """A step on its way: what `collect` needs to bring its tokens back."""

    batch: Batch
    choices: list[Choice]
    sampled: Sampled | None
    tokens: torch.Tensor | None = None
    """On the host, pinned, once `ready` has happened; for the CPU, at once."""
    ready: torch.cuda.Event | None = None


class ModelRunner:
    """Holds what a step works on: KV pool, slot table, virtual vocabulary, attention backend.

    The slot table, `[max_rows + 1, context]` on the device, says where each running sequence's KV lies; a step adds
    only the entries that are new (the last row is padding's). `last_tokens [max_rows + 1]` keeps each row's newest
    token on the device, so that the next step can be launched before the host has seen it.

    On a GPU a step in which every row decodes is replayed from a CUDA graph, where `graphs` has one of its size.
    """

    def __init__(
        self,
        model: PackedModel,
        *,
        slots: int,
        max_rows: int,
        context_length: int,
        resident_vectors: int,
        tiers: AdapterTiers,
        backend: type[AttentionBackend] | None = None,
    ) -> None:
        self.model = model
        self.device = model.device
        self.max_rows = max_rows
        self.pool = KVPool(model.layers, slots, model.dtype, model.device)
        hidden = int(model.embedding.weight.shape[1])
        self.vocabulary = VirtualVocabulary(resident_vectors, hidden, model.dtype, model.device, self.pool.copies)
        self.tiers = tiers
        shape = (max_rows + 1, context_length)
        self.table = torch.full(shape, self.pool.spare, dtype=torch.int32, device=model.device)
        self.last_tokens = torch.zeros(max_rows + 1, dtype=torch.int64, device=model.device)
        self._known: dict[int, tuple[object, int, int]] = {}
        """By table row: the sequence it belongs to, since which admission, and how many of its entries are written."""
        self._eos = model.eos_token_ids
        self.backend: AttentionBackend = (backend or TorchAttention)(self.pool)  # type: ignore[call-arg]
        model.use(self.backend)
        self.fused: FusedDecoder | None = None
        self.graphs: DecodeGraphs | None = None
        self.ways = Ways()

    def take(self, *, fused: FusedDecoder, graphs: DecodeGraphs | None = None) -> None:
        """Steps run by these from now on."""
        self.fused, self.graphs = fused, graphs
        self.ways.layers, self.ways.graphs = "fused", "none" if graphs is None else "all"

    def leave_fast_paths(self) -> None:
        """Steps run through the module from now on."""
        self.fused = self.graphs = None
        self.ways.layers, self.ways.graphs = "module", "none"

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Launched:
        """Runs the step; on a GPU, returns before it has ended."""
        if batch.loads:
            self.tiers.load(batch.loads, self.pool)
        if not batch.rows:
            return Launched(batch, [], None)
        logits, tokens = self._replay(batch.rows) or (self._forward(batch.rows), None)
        if batch.saves:
            self.tiers.save(batch.saves, self.pool)
        sampling = [row for row in batch.rows if row.samples]
        if not sampling:
            return Launched(batch, [], None, ready=self._ready())
        choices = [Choice(row.sequence, row.start + row.count - row.sequence.prompt_length) for row in sampling]
        if tokens is not None and not needs_more_than_argmax(choices):
            sampled = Sampled(tokens)
        else:
            sampled = sample(logits, choices, self._eos)
            rows = to_device([row.sequence.row for row in sampling], self.device)
            self.last_tokens.index_copy_(0, rows, sampled.tokens.clamp(min=0))
        return self._on_its_way(batch, choices, sampled)

    def _on_its_way(self, batch: Batch, choices: list[Choice], sampled: Sampled) -> Launched:
        if self.device.type == "cpu":
            return Launched(batch, choices, sampled, sampled.tokens)
        host = torch.empty(sampled.tokens.shape, dtype=sampled.tokens.dtype, pin_memory=True)
        host.copy_(sampled.tokens, non_blocking=True)
        return Launched(batch, choices, sampled, host, self._ready())

    def _ready(self) -> torch.cuda.Event | None:
        """Happens when the device has done all it was given by now."""
        if self.device.type == "cpu":
            return None
        ready = torch.cuda.Event()
        ready.record()
        return ready

    def forget_rows(self) -> None:
        """The table's rows are written anew from here on (after a self-test, or a failed step)."""
        self._known.clear()
        self.pool.fence()

    def collect(self, launched: Launched) -> StepOutput:
        """Waits until the step has ended, for its tokens if it chooses any: its slots may be others' after that."""
        if launched.ready is not None:
            launched.ready.synchronize()
        if launched.sampled is None or launched.tokens is None:
            return StepOutput([], [])
        return StepOutput(launched.tokens.tolist(), logprobs_of(launched.sampled, launched.choices))

    # --- laying out --------------------------------------------------------------------------------------------------

    def _replay(self, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Logits and greedy tokens from a graph; None where there is none for this step."""
        if self.graphs is None:
            return None
        if not self.graphs.fits(len(rows)):
            if all(row.count == 1 and row.samples for row in rows):
                self.ways.left("graph")
            return None
        static = self._static(rows)
        if static is None:
            return None
        self.ways.ran("graph")
        return self.graphs.replay(static)

    def _static(self, rows: list[Row]) -> StaticRows | None:
        """The step as a graph takes it, if it is one: every row decodes, and the table knows all but its newest."""
        static = StaticRows([], [], [], [])
        ends: list[tuple[int, tuple[object, int, int]]] = []
        for row in rows:
            sequence, start = row.sequence, row.start
            known = self._known.get(sequence.row)
            if row.count != 1 or not row.samples or known != (sequence, sequence.admissions, start):
                return None
            token = -1 if row.future else sequence.tokens[start]
            if token < 0 and not row.future:
                return None  # a virtual token: its vector is looked up outside the graph
            static.ids.append(token)
            static.rows.append(sequence.row)
            static.positions.append(start)
            static.slots.append(sequence.slots[start])
            ends.append((sequence.row, (sequence, sequence.admissions, start + 1)))
        self._known.update(ends)
        return static

    def _forward(self, rows: list[Row]) -> torch.Tensor:
        """Logits of the rows that sample, `[rows, vocab]`."""
        self._update_table(rows)
        embeddings, positions = self._inputs(rows)
        packed, wanted = self._pack(rows)
        if self.fused is not None:
            try:
                self.backend.begin(packed)
                logits = self.fused.forward(embeddings, positions, packed.slots, wanted)
                self.ways.ran("fused")
                return logits
            except torch.OutOfMemoryError:
                raise
            except Exception:
                if self.ways.proving:
                    raise
                log.exception("a step of fused layers failed; this step and all others run through the module")
                self.leave_fast_paths()
                self.ways.left("fused")
        self.ways.ran("module")
        return self.model.forward(embeddings, positions, wanted, packed)

    def _update_table(self, rows: list[Row]) -> None:
        """Writes the slots that the batch's sequences have gained since their last step."""
        at_row: list[int] = []
        at_position: list[int] = []
        slots: list[int] = []
        for row in rows:
            sequence = row.sequence
            owner, admission, written = self._known.get(sequence.row, (None, 0, 0))
            end = row.start + row.count
            if owner is not sequence or admission != sequence.admissions:
                written = 0
            if written < end:
                at_row.extend([sequence.row] * (end - written))
                at_position.extend(range(written, end))
                slots.extend(sequence.slots[written:end])
            self._known[sequence.row] = (sequence, sequence.admissions, end)
        if slots:
            sent = to_device([at_row, at_position, slots], self.device)
            self.table[sent[0], sent[1]] = sent[2].int()

    def _inputs(self, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """`[tokens, hidden]` embeddings, learned vectors scattered in, and `[tokens]` positions."""
        ids: list[int] = []
        positions: list[int] = []
        virtual: list[tuple[int, RootKey, int]] = []
        future: list[tuple[int, int]] = []
        for row in rows:
            sequence = row.sequence
            positions.extend(range(row.start, row.start + row.count))
            if row.future:
                future.append((len(ids), sequence.row))
                ids.append(0)
                continue
            for token in sequence.tokens[row.start : row.start + row.count]:
                if token < 0:
                    virtual.append((len(ids), sequence.root, -1 - token))
                    token = 0
                ids.append(token)
        tokens = to_device(ids, self.device)
        if future:
            index = to_device(future, self.device)
            tokens[index[:, 0]] = self.last_tokens[index[:, 1]]
        embeddings: torch.Tensor = self.model.embedding(tokens)
        if virtual:
            at, learned = self._learned(virtual)
            embeddings = embeddings.index_copy(0, at, learned.to(embeddings.dtype))
        return embeddings, to_device(positions, self.device)

    def _learned(self, virtual: list[tuple[int, RootKey, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Resolves virtual ids to rows of the table: their places in the step, and their vectors."""
        rows_of = self.vocabulary.rows_of({adapter for _, adapter, _ in virtual}, self.tiers.vectors)
        at = to_device([place for place, _, _ in virtual], self.device)
        return at, self.vocabulary.gather([rows_of[adapter][index] for _, adapter, index in virtual])

    def _pack(self, rows: list[Row]) -> tuple[PackedRows, torch.Tensor]:
        slots: list[int] = []
        wanted: list[int] = []
        at = 0
        for row in rows:
            slots.extend(row.sequence.slots[row.start : row.start + row.count])
            at += row.count
            if row.samples:
                wanted.append(at - 1)
        packed = PackedRows(
            table_rows=[row.sequence.row for row in rows],
            starts=[row.start for row in rows],
            counts=[row.count for row in rows],
            table=self.table,
            slots=to_device(slots, self.device),
        )
        return packed, to_device(wanted, self.device)
