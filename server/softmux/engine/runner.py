"""Runs a scheduler's batch: lays its rows end to end, one forward, one token for each row that samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from softmux.engine.attention.base import AttentionBackend, PackedRows
from softmux.engine.attention.torch_sdpa import TorchAttention
from softmux.engine.kv import KVPool
from softmux.engine.packed import PackedModel
from softmux.engine.sampling import Choice, Sampled, logprobs_of, sample
from softmux.engine.tiers import AdapterTiers
from softmux.engine.vocabulary import VirtualVocabulary
from softmux.scheduler.batch import Batch, Row, StepOutput
from softmux.scheduler.radix import RootKey


@dataclass(slots=True)
class Launched:
    """A step on its way: what `collect` needs to bring its tokens back."""

    batch: Batch
    choices: list[Choice]
    sampled: Sampled | None


class ModelRunner:
    """Holds what a step works on: KV pool, slot table, virtual vocabulary, attention backend.

    The slot table, `[max_rows, context]` on the device, says where each running sequence's KV lies; a step adds only
    the entries that are new. `last_tokens [max_rows]` keeps each row's newest token on the device, so that the next
    step can be launched before the host has seen it.
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
        self.pool = KVPool(model.layers, slots, model.dtype, model.device)
        hidden = int(model.embedding.weight.shape[1])
        self.vocabulary = VirtualVocabulary(resident_vectors, hidden, model.dtype, model.device)
        self.tiers = tiers
        self._table = torch.zeros((max_rows, context_length), dtype=torch.int64, device=model.device)
        self._last_tokens = torch.zeros(max_rows, dtype=torch.int64, device=model.device)
        self._known: dict[int, tuple[object, int, int]] = {}
        """By table row: the sequence it belongs to, since which admission, and how many of its entries are written."""
        self._eos = model.eos_token_ids
        self.backend: AttentionBackend = (backend or TorchAttention)(self.pool)  # type: ignore[call-arg]
        model.use(self.backend)

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Launched:
        """Runs the step; on a GPU, returns before it has ended."""
        for load in batch.loads:
            self.pool.write(self.tiers.prefix(load.adapter), load.start, load.slots)
        if not batch.rows:
            return Launched(batch, [], None)
        self._update_table(batch.rows)
        embeddings, positions = self._inputs(batch.rows)
        packed, wanted = self._pack(batch.rows)
        logits = self.model.forward(embeddings, positions, wanted, packed)
        for save in batch.saves:
            self.tiers.keep_prefix(save.adapter, self.pool.read(save.slots))
        sampling = [row for row in batch.rows if row.samples]
        if not sampling:
            return Launched(batch, [], None)
        choices = [Choice(row.sequence, row.start + row.count - row.sequence.prompt_length) for row in sampling]
        sampled = sample(logits, choices, self._eos)
        rows = torch.tensor([row.sequence.row for row in sampling], device=self.device)
        self._last_tokens.index_copy_(0, rows, sampled.tokens.clamp(min=0))
        return Launched(batch, choices, sampled)

    def forget_rows(self) -> None:
        """The table's rows are written anew from here on (after a self-test, or a failed step)."""
        self._known.clear()

    def collect(self, launched: Launched) -> StepOutput:
        """Waits for a step's tokens."""
        if launched.sampled is None:
            return StepOutput([], [])
        return StepOutput(launched.sampled.tokens.tolist(), logprobs_of(launched.sampled, launched.choices))

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
            index = torch.tensor([at_row, at_position], device=self.device)
            self._table[index[0], index[1]] = torch.tensor(slots, device=self.device)

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
        tokens = torch.tensor(ids, device=self.device)
        if future:
            index = torch.tensor(future, device=self.device)
            tokens[index[:, 0]] = self._last_tokens[index[:, 1]]
        embeddings: torch.Tensor = self.model.embedding(tokens)
        if virtual:
            at, learned = self._learned(virtual)
            embeddings = embeddings.index_copy(0, at, learned.to(embeddings.dtype))
        return embeddings, torch.tensor(positions, device=self.device)

    def _learned(self, virtual: list[tuple[int, RootKey, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Resolves virtual ids to rows of the table: their places in the step, and their vectors."""
        keep = {adapter for _, adapter, _ in virtual}
        rows_of = {
            adapter: self.vocabulary.rows_of(adapter, lambda key=adapter: self.tiers.vectors(key), keep)  # type: ignore[misc]
            for adapter in keep
        }
        rows = [rows_of[adapter][index] for _, adapter, index in virtual]
        at = torch.tensor([place for place, _, _ in virtual], device=self.device)
        return at, self.vocabulary.table[torch.tensor(rows, device=self.device)]

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
            table=self._table,
            slots=torch.tensor(slots, device=self.device),
        )
        return packed, torch.tensor(wanted, dtype=torch.int64, device=self.device)
