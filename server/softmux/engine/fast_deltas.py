"""The fused layers and graphs for steps whose rows' adapters change the base."""

from __future__ import annotations

import logging

import torch

from softmux.engine.attention.triton_paged import TritonAttention
from softmux.engine.delta_fused import FusedColumns, FusedStep, Kinds
from softmux.engine.delta_graphs import SIZES, DeltaGraphs
from softmux.engine.delta_products import TritonDeltas
from softmux.engine.deltas import Deltas
from softmux.engine.fused import FusedDecoder
from softmux.engine.graphs import DecodeGraphs
from softmux.engine.kernels.argmax import argmax
from softmux.engine.kernels.lora import Blocks
from softmux.engine.kernels.step import begin_step
from softmux.engine.runner import ModelRunner

log = logging.getLogger(__name__)


def fuse_deltas(runner: ModelRunner, deltas: Deltas, fused: FusedDecoder) -> None:
    """Such steps take the fused layers, and graphs of their own where the others have graphs."""
    attention = runner.backend
    if not isinstance(deltas.products, TritonDeltas) or not isinstance(attention, TritonAttention):
        return
    try:
        columns = FusedColumns(deltas.products, deltas.slots, fused.layers)
    except (KeyError, ValueError) as error:
        log.warning("steps with LoRAs run through the module: %s", error)
        return

    def make(kinds: Kinds, row_slots: torch.Tensor) -> DecodeGraphs:
        steps: list[FusedStep] = []

        def begin(inputs: torch.Tensor, table: torch.Tensor, last_tokens: torch.Tensor) -> torch.Tensor:
            steps[:] = [FusedStep(columns, kinds, Blocks(row_slots.index_select(0, inputs[1])))]
            return begin_step(inputs, table, last_tokens, fused.embedding)

        def forward(embeddings: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
            return fused.forward(embeddings, positions, slots, None, steps[0])

        return DecodeGraphs(
            begin, forward, argmax, attention, table=runner.table, last_tokens=runner.last_tokens,
            spare_slot=runner.pool.spare, max_rows=runner.max_rows, sizes=SIZES,
        )  # fmt: skip

    deltas.columns = columns
    if runner.graphs is not None:
        deltas.graphs = DeltaGraphs(make, runner.max_rows, runner.device)
