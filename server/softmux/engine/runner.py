"""Runs a scheduler's batch: lays its rows end to end, one forward, one token for each row that samples."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from softmux.engine.attention.base import AttentionBackend, PackedRows
from softmux.engine.attention.torch_sdpa import TorchAttention
from softmux.engine.deltas import Deltas, DeltaStep
from softmux.engine.device import is_shortage, send, to_device
from softmux.engine.graphs import DecodeGraphs
from softmux.engine.heads import Heads
from softmux.engine.kv import KVPool
from softmux.engine.layout import Layout, lay_out
from softmux.engine.masks import GrammarMasks, Masks, allowed
from softmux.engine.mirror import TableMirror
from softmux.engine.packed import PackedModel
from softmux.engine.parallel.leader import Leader
from softmux.engine.parallel.orders import Run
from softmux.engine.readings import Readings, read
from softmux.engine.sampling import Choice, Sampled, greedy, logprobs_of, sample
from softmux.engine.staging import Buffer, Ring
from softmux.engine.tiers import AdapterTiers
from softmux.engine.vocabulary import VirtualVocabulary
from softmux.engine.ways import Ways
from softmux.errors import InternalError
from softmux.scheduler.batch import Batch, StepOutput
from softmux.scheduler.rows import Ints

if TYPE_CHECKING:  # Triton is there on GPU machines only
    from softmux.engine.fused import FusedDecoder
    from softmux.engine.mixed_graphs import MixedGraphs

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Launched:
    """A step on its way: what `collect` needs to bring its tokens back."""

    batch: Batch
    landing: Buffer
    """Holds the tokens, one for each row that chooses one, once the step has ended."""
    special: list[int] = field(default_factory=list)
    """Which of those rows were not plainly greedy; `choices` and `sampled` are theirs."""
    choices: list[Choice] = field(default_factory=list)
    sampled: Sampled | None = None
    masks: Masks | None = None
    """What grammars allow, where any row has one."""
    readings: Readings | None = None
    """Of the rows that choose none."""
    output: StepOutput | None = None
    """Where the step was waited for already."""


class _Run(NamedTuple):
    """`logits` of the layout's wanted tokens, the greedy `tokens` where these are known (and kept) already, and where
    its heads' tokens are."""

    logits: torch.Tensor
    heads: torch.Tensor
    tokens: torch.Tensor | None = None


class ModelRunner:
    """Holds what a step works on: KV pool, slot table, virtual vocabulary, attention backend.

    `table`, `[max_rows + 1, context]` on the device, says where each running sequence's KV lies (`mirror` keeps it up
    to date). `last_tokens [max_rows + 1]` keeps each row's newest token on the device, so that the next step can be
    launched before the host has seen it. At most one step may be in flight while the next is launched.

    On a GPU a step in which every row decodes is replayed from a CUDA graph, where `graphs` has one of its size; so is
    a small one of other rows, from its embeddings on, where `mixed` has.
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
        deltas: Deltas | None = None,
        backend: type[AttentionBackend] | None = None,
    ) -> None:
        self.model = model
        self.device = model.device
        self.max_rows = max_rows
        self.pool = KVPool(model.layers, slots, model.kv_dtype, model.device)
        hidden = int(model.embedding.weight.shape[1])
        self.vocabulary = VirtualVocabulary(resident_vectors, hidden, model.dtype, model.device, self.pool.copies)
        self.tiers = tiers
        self.heads = Heads(
            model.state_width, model.device, self.pool.copies, pooler=model.pooler,
            shape_of=tiers.head_shape, rows_of=tiers.head,
        )  # fmt: skip
        self.deltas = deltas
        self._mirror = TableMirror(max_rows, context_length, self.pool.spare, model.device)
        self.table = self._mirror.slots
        self.last_tokens = torch.zeros(max_rows + 1, dtype=torch.int64, device=model.device)
        self._landings = Ring((max_rows,), torch.int64, model.device)
        self._eos = model.eos_token_ids
        self.masks = GrammarMasks(max_rows, self._eos, model.device, forced=model.forced_first)
        self.backend: AttentionBackend = (backend or TorchAttention)(self.pool)
        model.use(self.backend)
        self.fused: FusedDecoder | None = None
        self.graphs: DecodeGraphs | None = None
        self.mixed: MixedGraphs | None = None
        self._ran: PackedModel | FusedDecoder = model
        self.ways = Ways()
        self.orders: Leader | None = None
        """Tells the other ranks what they must run with this one, once they listen."""

    def take(self, *, fused: FusedDecoder, graphs: DecodeGraphs | None = None) -> None:
        """Steps run by these from now on."""
        self.fused, self.graphs, self.mixed = fused, graphs, None
        self.ways.layers, self.ways.graphs = "fused", "none" if graphs is None else "all"

    def leave_fast_paths(self) -> None:
        """Steps run through the module from now on."""
        self.fused = self.graphs = self.mixed = None
        self.ways.layers, self.ways.graphs = "module", "none"

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Launched:
        """Runs the step; on a GPU, returns before it has ended."""
        if batch.loads:
            self.tiers.load(batch.loads, self.pool)
        launched = Launched(batch, self._landings.next())
        if len(batch):
            masks = self.masks.begin(batch)
            logits, tokens = self._replay(batch) or self._forward(launched)
            if batch.saves:
                self.tiers.save(batch.saves, self.pool)
            launched.masks = masks.result() if masks is not None else None
            self._choose(launched, logits, tokens)
            self.masks.launched(batch, launched.landing)
        launched.landing.mark()
        return launched

    def forget_rows(self) -> None:
        """The table's rows are written anew from here on (after a self-test, or a failed step)."""
        self._mirror.forget()
        self.pool.fence()

    def undo(self, batch: Batch) -> None:
        """A launch has raised, somewhere: what it was to write, of its rows and their adapters, does not count."""
        self.forget_rows()
        for sequence in batch.table.sequences[batch.rows].tolist():
            self.vocabulary.forget(sequence.root)
            self.heads.forget(sequence.root)

    def collect(self, launched: Launched) -> StepOutput:
        """Waits until the step has ended, for its tokens if it chooses any: its slots may be others' after that."""
        if launched.output is not None:
            return launched.output
        launched.landing.wait()
        batch = launched.batch
        places, tokens = batch.choosing, np.zeros(len(batch.sampled), np.int64)
        tokens[places] = launched.landing.array[: len(places)]
        output = StepOutput(tokens)
        if launched.sampled is not None:
            for place, values in logprobs_of(launched.sampled, launched.choices).items():
                output.logprobs[int(places[launched.special[place]])] = values
        if launched.masks is not None:
            output.stuck.update((int(places[place]), why) for place, why in launched.masks.stuck.items())
        if launched.readings is not None:
            scores, lost = launched.readings.told()
            output.scores.update(scores)
            tokens[lost] = -1
        return output

    @torch.inference_mode()
    def follow(self, run: Run) -> None:
        """On another rank than the first: its part of a step that rank 0 launches."""
        ranks = self.model.ranks
        assert ranks is not None
        tokens: torch.Tensor | None = None
        if run.layout is None:
            replayed = self._follow_replay(run)
            if replayed is None:
                return  # and so it was on rank 0, which says how the step runs instead
            logits, tokens = replayed
        else:
            logits = self._run(run.layout.laid_out(), run.layout.table_entries()).logits
        rows = run.choosing()
        if run.special:
            tokens = ranks.hand_on(torch.empty(len(rows), dtype=torch.int64, device=self.device))
        elif tokens is not None:
            return  # the graph has kept them
        else:
            tokens = greedy(logits[: len(rows)])
        self.last_tokens.index_copy_(0, to_device(rows, self.device), tokens.clamp(min=0))

    def _follow_replay(self, run: Run) -> tuple[torch.Tensor, torch.Tensor] | None:
        slots, decodes = run.slots(), run.decode_step()
        if slots is None:
            assert self.graphs is not None
            return self.graphs.replay(decodes)
        kinds = self.deltas.replayable(slots) if self.deltas is not None else None
        if self.deltas is None or kinds is None:
            raise InternalError("rank 0 replays a step that this rank can't")
        return self.deltas.replay(kinds, slots, decodes)

    # --- choosing ----------------------------------------------------------------------------------------------------

    def _choose(self, launched: Launched, logits: torch.Tensor, tokens: torch.Tensor | None) -> None:
        """Sends each row's token on its way. `tokens`: the likeliest, where they are known (and kept) already."""
        batch = launched.batch
        rows, lengths = batch.sampled[batch.choosing], batch.lengths[batch.choosing]
        if not len(rows):
            return
        forced = self.model.forced(batch)
        special = batch.table.plain_from[rows] > lengths
        launched.special = np.flatnonzero(special if forced is None else special | (forced >= 0)).tolist()
        kept = tokens is not None and not launched.special
        if launched.special:
            tokens = self._sample(launched, logits, tokens, forced)
            if self.model.ranks is not None and self.orders is not None:
                tokens = self.model.ranks.hand_on(tokens)
        elif tokens is None:
            tokens = greedy(logits)
        if not kept:
            self.last_tokens.index_copy_(0, to_device(rows, self.device), tokens.clamp(min=0))
        launched.landing.tensor[: len(rows)].copy_(tokens, non_blocking=True)

    def _sample(
        self, launched: Launched, logits: torch.Tensor, tokens: torch.Tensor | None, forced: Ints | None
    ) -> torch.Tensor:
        """The tokens of all rows, those of the special ones as they wish, or must (`forced`, by row)."""
        batch, special = launched.batch, launched.special
        rows, lengths = batch.sampled[batch.choosing], batch.lengths[batch.choosing]
        for place in special:
            sequence = batch.table.sequences[rows[place]]
            must = -1 if forced is None else int(forced[place])
            launched.choices.append(Choice(sequence, int(lengths[place]) - sequence.prompt_length, must))
        guided = None
        if launched.masks is not None:
            width = logits.shape[1]
            places = np.searchsorted(special, launched.masks.places).tolist()  # both ascend
            guided = places, allowed(launched.masks.on(self.device), width)
        if len(special) == len(rows):
            launched.sampled = sample(logits, launched.choices, self._eos, guided)
            return launched.sampled.tokens
        at = to_device(special, self.device)
        if tokens is None:
            tokens = greedy(logits)
        launched.sampled = sample(logits[at], launched.choices, self._eos, guided)
        return tokens.index_copy(0, at, launched.sampled.tokens)

    # --- laying out --------------------------------------------------------------------------------------------------

    def _replay(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Logits and greedy tokens from a graph; None where there is none for this step."""
        if self.graphs is None or not self._mirror.lacks_only_newest(batch):
            return None
        slots = batch.table.deltas[batch.rows]
        if self.deltas is not None and (slots >= 0).any():
            kinds = self.deltas.replayable(slots)
            if kinds is None:
                return None
            if self.orders is not None:
                self.orders.replay(batch, slots)
            replayed = self.deltas.replay(kinds, slots, batch.decodes)
            if replayed is not None:
                self.ways.ran("graph")
                self._mirror.wrote(batch)
            return replayed
        if not self.graphs.fits(len(batch)):
            self.ways.left("graph")
            return None
        self.ways.ran("graph")
        if self.orders is not None:
            self.orders.replay(batch, None)
        replayed = self.graphs.replay(batch.decodes)
        self._mirror.wrote(batch)
        return replayed

    def _forward(self, launched: Launched) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the rows that choose a token, `[rows, vocab]`, and from a graph their greedy tokens; the others'
        readings are on their way."""
        batch = launched.batch
        layout, entries = lay_out(batch), self._mirror.missing(batch)
        if self.orders is not None:
            self.orders.run(batch, layout, entries, self.tiers.serials(set(layout.adapters)))
        self._mirror.wrote(batch)
        ran = self._run(layout, entries)
        if not batch.read:
            return ran.logits, ran.tokens
        states = self._ran.states(ran.heads)
        chosen = len(batch.choosing)
        launched.readings = read(batch, layout, states, ran.logits[chosen:], self.heads)
        return ran.logits[:chosen], None

    def _run(self, layout: Layout, entries: tuple[Ints, Ints, Ints]) -> _Run:
        """`entries` are what the slots' table lacks: rows, positions, slots."""
        at_row, at_position, at_slot, ids, positions, slots, wanted, futures, future_rows, virtual = send(
            self.device,
            *entries,
            layout.ids,
            layout.positions,
            layout.slots,
            layout.wanted,
            layout.futures,
            layout.rows[layout.futures],
            layout.virtual,
        )
        self.table[at_row, at_position] = at_slot.int()
        if len(futures):
            ids = ids.index_copy(0, futures, self.last_tokens[future_rows])
        deltas = self._deltas(layout)
        embeddings: torch.Tensor = self.model.embedding(ids)
        if deltas is not None and self.deltas is not None:
            embeddings = self.deltas.embed(deltas, embeddings, ids)
        if len(virtual):
            embeddings = embeddings.index_copy(0, virtual, self._learned(layout).to(embeddings.dtype))
        bucket = self.mixed.bucket(layout) if self.mixed is not None and deltas is None else None
        if self.mixed is not None and bucket is not None:
            self.ways.ran("mixed_graph")
            logits, tokens = self.mixed.replay(bucket, layout, embeddings)
            return _Run(logits, wanted[:0], tokens)  # it reads none
        packed = PackedRows(
            table_rows=layout.rows.tolist(),
            starts=layout.starts.tolist(),
            counts=layout.counts.tolist(),
            table=self.table,
            slots=slots,
            causal=self.model.causal,
            sources=layout.sources,
        )
        heads = to_device(layout.heads, self.device)
        self.model.will_read(heads if deltas is None else None, len(embeddings))
        return _Run(self._through_layers(embeddings, positions, wanted, packed, deltas), heads)

    def _deltas(self, layout: Layout) -> DeltaStep | None:
        """What the step's adapters change of the base; None where that is nothing."""
        if self.deltas is None:
            return None
        of = layout.deltas
        return self.deltas.step(of, layout.counts, np.repeat(of, layout.counts)[layout.wanted], layout.source_counts)

    def _through_layers(
        self, embeddings: torch.Tensor, positions: torch.Tensor, wanted: torch.Tensor, packed: PackedRows,
        deltas: DeltaStep | None,
    ) -> torch.Tensor:  # fmt: skip
        """Logits of the tokens that are `wanted`: by the fused layers, or the module where there are none, or they
        raise."""
        within = self.deltas.fused(deltas) if deltas is not None and self.deltas is not None else None
        if self.fused is not None and (deltas is None or within is not None):
            try:
                self.backend.begin(packed)
                logits = self.fused.forward(embeddings, positions, packed.slots, wanted, within)
                self.ways.ran("fused")
                self._ran = self.fused
                return logits
            except Exception as error:
                if self.ways.proving or is_shortage(error) or self.model.ranks is not None:
                    raise  # other ranks would go on in the layers that this one leaves
                log.exception("a step of fused layers failed; this step and all others run through the module")
                self.leave_fast_paths()
                self.ways.left("fused")
        self.ways.ran("module")
        self._ran = self.model
        if deltas is None or self.deltas is None:
            return self.model.forward(embeddings, positions, wanted, packed)
        with self.deltas.attached(self.model.module, deltas):
            return self.model.forward(embeddings, positions, wanted, packed)

    def _learned(self, layout: Layout) -> torch.Tensor:
        """The vectors of the step's virtual tokens, in order."""
        rows_of = self.vocabulary.rows_of(set(layout.adapters), self.tiers.vectors)
        places = zip(layout.adapters, layout.vectors.tolist(), strict=True)
        return self.vocabulary.gather([rows_of[adapter][number] for adapter, number in places])
