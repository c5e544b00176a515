"""What the adapters of a step change of the base, for their rows alone: on the untouched module's own layers."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from softmux.engine.anatomy import embeddings, row_scale
from softmux.engine.delta_fused import FusedColumns, FusedStep, Kinds
from softmux.engine.delta_graphs import DeltaGraphs
from softmux.engine.delta_products import DeltaProducts, Spread, TorchDeltas, TritonDeltas
from softmux.engine.delta_slots import DeltaSlots
from softmux.engine.token_rows import TokenRows
from softmux.errors import InternalError
from softmux.scheduler.rows import Ints, Step


@dataclass(slots=True)
class DeltaStep:
    """A step with adapters that change the base: whose each token is, and each row whose logits are wanted."""

    tokens: Spread
    wanted: Spread
    source: Spread | None
    """On an encoder-decoder whose each source token is; `tokens` are then the decoder's."""
    modules: tuple[str, ...]
    """Those that some adapter of the step updates."""
    scores: bool
    """Some adapter of the step has rows of its own at the output."""


class Deltas:
    """Knows the module's parts by their paths. A step of rows that change nothing never comes here.

    `head` is the output projection's path: it is given the wanted rows, where every other module is given all tokens.
    On an encoder-decoder those of `on_source` are given the source tokens, all others the decoder's.
    """

    def __init__(
        self, slots: DeltaSlots, products: DeltaProducts, tokens: TokenRows, head: str, on_source: frozenset[str]
    ) -> None:
        self.slots = slots
        self.products = products
        self.head = head
        self._on_source = on_source
        self._token_rows = tokens
        self.columns: FusedColumns | None = None
        """Where the fused layers can run such steps, too; and `graphs`, where those can be captured."""
        self.graphs: DeltaGraphs | None = None

    @classmethod
    def of(cls, module: Any, slots: DeltaSlots, on_source: frozenset[str] = frozenset()) -> Deltas:
        """On the module as loaded, by our kernels where they run."""
        given = module.get_input_embeddings()
        on_gpu = slots.device.type == "cuda" and importlib.util.find_spec("triton") is not None
        products = TritonDeltas(slots) if on_gpu else TorchDeltas(slots)
        vocabulary = int(module.config.get_text_config().vocab_size)
        rows = TokenRows(slots, vocabulary, row_scale(given) or 1.0)
        return cls(slots, products, rows, embeddings(module)[1], on_source)

    def step(self, slots: Ints, counts: Ints, samples: Ints, sources: Ints | None = None) -> DeltaStep | None:
        """By row of the step: `slots` of their adapters (−1: none), `counts` of tokens, `sources` how many of those are
        an encoder's; `samples`: the slots of the rows whose logits are wanted. None where no row has a slot."""
        if not (slots >= 0).any():
            return None
        self.slots.await_arrivals()
        device = self.slots.device
        source = None
        if self._on_source and sources is not None:
            new = sources > 0
            source, counts = Spread(slots[new], sources[new], device), counts - sources
        tokens = Spread(slots, counts, device)
        wanted = Spread(samples, np.ones(len(samples), np.int64), device)
        self.products.begin(tokens)
        deltas = [self.slots.deltas[slot] for slot in tokens.active]
        modules = {update.name: None for delta in deltas if delta is not None for update in delta.updates}
        return DeltaStep(tokens, wanted, source, tuple(modules), self._token_rows.there("output", tokens))

    def embed(self, step: DeltaStep, embeddings: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """`embeddings [tokens, hidden]` with the adapters' own rows in their places."""
        return self._token_rows.embed(embeddings, ids, step.tokens)

    def fused(self, step: DeltaStep) -> FusedStep | None:
        """For the fused layers; None where the step must run through the module."""
        kinds = self.columns.kinds(step.tokens.active) if self.columns is not None else None
        return None if kinds is None or self.columns is None else FusedStep(self.columns, kinds, step.tokens.blocks())

    def replayable(self, slots: Ints) -> Kinds | None:
        """Of a step in which every row decodes, by row: what a graph of it must know; None where it can't be one."""
        if self.graphs is None or self.columns is None:
            return None
        return self.columns.kinds(np.unique(slots[slots >= 0]).tolist())

    def replay(self, kinds: Kinds, slots: Ints, decodes: Step) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Logits and greedy tokens of such a step, from a graph; None where there is none of its size."""
        assert self.graphs is not None, "`replayable` has said so"
        self.slots.await_arrivals()
        self.graphs.tell(decodes[1].astype(np.int64), slots)
        return self.graphs.replay(kinds, decodes)

    def leave_fast_paths(self) -> None:
        """Such steps run through the module from now on, and their updates are torch's."""
        self.columns = self.graphs = None
        self.products = TorchDeltas(self.slots)

    @contextlib.contextmanager
    def attached(self, module: nn.Module, step: DeltaStep) -> Iterator[None]:
        """While the module runs the step, its linear layers, whatever kind they are, gain the adapters' updates.

        Hooks are there for these layers and this step alone, so others pay nothing.
        """
        handles = []
        try:
            if step.scores:
                handles.append(module.get_submodule(self.head).register_forward_hook(self._score(step)))
            for name in step.modules:
                spread = step.wanted if name == self.head else step.tokens
                if name in self._on_source and step.source is not None:
                    spread = step.source
                handles.append(module.get_submodule(name).register_forward_hook(self._gain(name, spread)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _gain(self, name: str, spread: Spread) -> Any:
        tokens = int(spread.counts.sum())

        def gain(_: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            x = given[0].reshape(-1, given[0].shape[-1])
            if x.shape[0] != tokens:
                raise InternalError(
                    f"{name} is given {x.shape[0]} of the step's {tokens} tokens; no LoRA can act there"
                )
            y = output.reshape(-1, output.shape[-1])
            kept_in = self.slots.weights.dtype
            if spread.active and x.dtype == y.dtype == kept_in:
                self.products.add(name, x, y, spread)
            elif spread.active:  # in float16 T5 keeps its feed-forwards' second layers in float32
                gained = torch.zeros_like(y, dtype=kept_in)
                self.products.add(name, x.to(kept_in), gained, spread)
                y = y + gained
            return y.view(output.shape)

        return gain

    def _score(self, step: DeltaStep) -> Any:
        def score(_: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            logits = output.reshape(-1, output.shape[-1])
            self._token_rows.score(given[0].reshape(-1, given[0].shape[-1]), logits, step.wanted)
            return logits.view(output.shape)

        return score
