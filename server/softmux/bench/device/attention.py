"""Attention alone: what pages of one token cost, and how the backends compare. `softmux bench attention`.

The same rows are laid out in the KV pool in three ways: each row's slots one after the other, in pages of 16 tokens
that lie anywhere, and every token anywhere. The pool has as many layers as it takes to leave the card's caches cold.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from softmux.bench.device.rates import median_seconds, name_of
from softmux.engine.attention.base import PackedRows
from softmux.engine.engine import pick_device
from softmux.engine.fast import best_backend
from softmux.engine.kv import KVPool
from softmux.types import LayerKV

LAYOUTS = {"contiguous": 0, "pages of 16": 16, "scattered": 1}
"""By name: tokens of a row that lie together (0: all)."""
_COLD_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """`rows` rows of `context` tokens of which the last `new` are queries, `heads` over `kv_heads` of `head_dim`."""

    rows: int
    context: int
    new: int
    head_dim: int
    heads: int = 32
    kv_heads: int = 8

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one layer, in half precision."""
        return self.rows * self.context * 2 * self.kv_heads * self.head_dim * 2

    @property
    def flops(self) -> int:
        """Of one layer's two products, masked halves left out."""
        seen = self.new * (self.context - self.new) + self.new * (self.new + 1) // 2
        return 4 * self.rows * seen * self.heads * self.head_dim


def slots_for(rows: int, context: int, together: int, generator: torch.Generator) -> torch.Tensor:
    """`[rows, context]`: every slot of a pool of `rows · context` once, `together` of a row in a piece (0: all)."""
    piece = together or context
    if context % piece:
        raise ValueError(f"{context} tokens do not divide into pieces of {piece}")
    pieces = rows * context // piece
    order = torch.arange(pieces) if together == 0 else torch.randperm(pieces, generator=generator)
    return (order[:, None] * piece + torch.arange(piece)).view(rows, context)


class Attention:
    """One backend over one case; `prepare` lays the rows out, `run` attends once in each layer."""

    def __init__(self, case: Case, backend: str, dtype: torch.dtype, device: torch.device, layers: int = 0) -> None:
        self.case = case
        self.layers = layers or max(2, -(-_COLD_BYTES // case.kv_bytes))
        shape = LayerKV(case.kv_heads, case.head_dim)
        self.pool = KVPool([shape] * self.layers, case.rows * case.context, dtype, device)
        for tensor in (*self.pool.keys, *self.pool.values):
            tensor.normal_(generator=torch.Generator(device).manual_seed(1))
        self.backend: Any = best_backend(device, backend)(self.pool)
        generator = torch.Generator(device).manual_seed(2)
        tokens = case.rows * case.new
        self.query = torch.randn((tokens, case.heads, case.head_dim), dtype=dtype, device=device, generator=generator)

    def prepare(self, slots: torch.Tensor) -> None:
        case = self.case
        self.backend.begin(
            PackedRows(
                table_rows=list(range(case.rows)),
                starts=[case.context - case.new] * case.rows,
                counts=[case.new] * case.rows,
                table=slots.to(self.pool.device, torch.int32),
                slots=slots[:, case.context - case.new :].flatten().to(self.pool.device, torch.int64),
            )
        )

    def run(self) -> torch.Tensor:
        """The last layer's output. Nothing is written: the pool holds what the rows read."""
        out = self.query
        for layer in range(self.layers):
            out = self.backend.attend_written(
                layer, self.query, scaling=self.case.head_dim**-0.5, window=None, softcap=None
            )
        return out


def seconds_of(run: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    """Of one call: on a GPU the median over replays of a CUDA graph, so that no launch is waited for."""
    if device.type != "cuda":
        return median_seconds(device, run, repeats)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return median_seconds(device, graph.replay, repeats)


def measure(case: Case, backend: str, layouts: Sequence[str], device: torch.device) -> dict[str, float]:
    """Seconds of one layer's attention, by layout."""
    attention = Attention(case, backend, torch.bfloat16, device)
    found = {}
    for layout in layouts:
        generator = torch.Generator().manual_seed(3)
        attention.prepare(slots_for(case.rows, case.context, LAYOUTS[layout], generator))
        found[layout] = seconds_of(attention.run, device) / attention.layers
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="softmux bench attention", description=__doc__)
    parser.add_argument("--backends", help="names as in --attention-backend, with commas between; default: the best")
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="of: " + ", ".join(LAYOUTS))
    parser.add_argument("--head-dims", default="64,128")
    parser.add_argument("--decode-rows", default="64,256", help="rows of 512 tokens, one of them new")
    parser.add_argument("--prefill", default="4x2048", help="rows x new tokens; 0x0 leaves it out")
    options = parser.parse_args(arguments)
    rows, length = map(int, options.prefill.split("x"))
    cases = []
    for head_dim in map(int, options.head_dims.split(",")):
        cases += [Case(int(n), 512, 1, head_dim) for n in options.decode_rows.split(",")]
        cases += [Case(rows, length, length, head_dim)] if rows else []
    say = sys.stdout.write
    device = pick_device("auto")
    backends = options.backends or best_backend(device).name
    say(f"{name_of(device)}, bfloat16, 32 heads over 8, one layer's attention\n")
    found: list[dict[str, Any]] = []
    for case in cases:
        for backend in backends.split(","):
            began = time.perf_counter()
            times = measure(case, backend, options.layouts.split(","), device)
            took = time.perf_counter() - began
            for layout, seconds in times.items():
                rate = f"{case.flops / seconds / 1e12:6.1f} TFLOP/s" if case.new > 1 else ""
                rate = rate or f"{case.kv_bytes / seconds / 1e12:6.3f} TB/s"
                say(
                    f"{backend:10} {case.rows:4} x {case.context} tokens, {case.new} new, heads of {case.head_dim}: "
                    f"{layout:12} {seconds * 1e6:8.1f} us {rate}\n"
                )
                found.append({"backend": backend, "case": str(case), "layout": layout, "seconds": seconds})
            say(f"           ({took:.1f} s in all)\n")
    say(json.dumps(found) + "\n")
