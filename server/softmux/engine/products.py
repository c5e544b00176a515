"""Where every matrix product of the fused step goes: the library's, or a weight-streaming kernel, as measured."""

from __future__ import annotations

import logging
import time

import torch
import torch.nn.functional as F

from softmux.engine.kernels.layer import silu_mul
from softmux.engine.kernels.linear import STREAM_ROWS, stream, stream_gated

log = logging.getLogger(__name__)

_CANDIDATES = (4, 8)
_CALLS = 24


class Products:
    """`products(x, weight, bias)`: `[rows, in]` · `[out, in]`ᵀ. For up to `STREAM_ROWS` rows, each weight shape goes
    the way that was fastest when `measure` timed it on this card; larger steps go to the library."""

    def __init__(self) -> None:
        self._outputs_each: dict[tuple[int, torch.Size], int] = {}

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        each = self._outputs_each.get((x.shape[0], weight.shape)) if x.shape[0] <= STREAM_ROWS else None
        if each is None:
            return F.linear(x, weight, bias)
        return stream(x, weight, bias, outputs_each=each)

    def gated(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """silu(gate)·up, `[rows, inner]`, of a merged `weight` `[2·inner, in]`: gate rows, then up rows."""
        each = self._outputs_each.get((x.shape[0], weight.shape)) if x.shape[0] <= STREAM_ROWS else None
        if each is None:
            return silu_mul(F.linear(x, weight))
        return stream_gated(x, weight, outputs_each=each)

    @torch.inference_mode()
    def measure(self, weights: list[torch.Tensor]) -> None:
        """Times both ways on the weights to be served, each shape's one after the other as a step reads them (one
        weight over and over would come from the cache). A few seconds; half precision only."""
        if weights[0].dtype not in (torch.bfloat16, torch.float16):
            return
        shapes: dict[torch.Size, list[torch.Tensor]] = {}
        for weight in weights:
            shapes.setdefault(weight.shape, []).append(weight)
        for shape, members in shapes.items():
            chain = (members * _CALLS)[: max(_CALLS, len(members))]
            for rows in range(1, STREAM_ROWS + 1):
                x = torch.randn((rows, shape[1]), dtype=weights[0].dtype, device=weights[0].device)
                times = {0: self._time(x, chain, 0)}
                times |= {each: self._time(x, chain, each) for each in _CANDIDATES}
                best = min(times, key=times.__getitem__)
                if best:
                    self._outputs_each[rows, shape] = best
                log.info(
                    "product %s, %d rows: %s", tuple(shape), rows, {k: round(v * 1e6, 1) for k, v in times.items()}
                )

    @staticmethod
    def _time(x: torch.Tensor, chain: list[torch.Tensor], each: int) -> float:
        """Seconds a call, from replays of a graph of the whole chain."""

        def run() -> None:
            for weight in chain:
                if each:
                    stream(x, weight, outputs_each=each)
                else:
                    F.linear(x, weight)

        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        graph.replay()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(5):
            graph.replay()
        torch.cuda.synchronize()
        return (time.perf_counter() - began) / 5 / len(chain)
