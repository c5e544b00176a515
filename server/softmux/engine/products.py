"""Where every matrix product of the fused step goes: the library's, or one of our kernels, as measured on this card."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton

from softmux.engine.choices import Choices, Problem, cache_folder
from softmux.engine.fp8 import Fp8Weight, Weight
from softmux.engine.kernels import fp8, linear
from softmux.engine.kernels.fp8 import Tile
from softmux.engine.kernels.layer import silu_mul
from softmux.engine.kernels.linear import STREAM_ROWS, stream, stream_gated

_CALLS = 24
_FP8_ROWS = (1, 2, 16, 32, 64, 128, 256, 512, 1024)
"""A step's rows are counted as the next of these; beyond the last, arithmetic rules and the library is taken."""
_TILES = (Tile(64, 128, 1, 4, 4), Tile(128, 128, 1, 8, 3), Tile(64, 256, 1, 4, 3), Tile(64, 128, 2, 4, 4))
_LARGE_TILES = (Tile(128, 64, 1, 8, 4), Tile(128, 128, 1, 8, 3))


class _Way(NamedTuple):
    run: Callable[..., torch.Tensor]
    """`(x, weight, bias)`, for weights of the kind it was made for."""
    outputs_each: int = 0
    """Where a plain weight's product is streamed: its outputs a program, for that with SiLU·up, too."""


def machine() -> str:
    """All that a measurement depends on beside the product itself: card, versions, and our kernels' own text."""
    sources = b"".join(Path(module.__file__ or "").read_bytes() for module in (linear, fp8))
    kernels = hashlib.sha256(sources).hexdigest()[:12]
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, kernels {kernels}"


class Products:
    """`products(x, weight, bias)`: `[rows, in]` · `[out, in]`ᵀ, for plain weights and such in fp8.

    Plain weights go to the library but for up to `STREAM_ROWS` rows; weights in fp8 go to the kernels but for many
    rows. Between the ways that are open to it, each shape takes the one that was fastest when `measure` timed it.
    """

    def __init__(self) -> None:
        self._chosen: dict[tuple[int, torch.Size, bool], _Way] = {}
        self._scratch: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor:
        way = self._chosen.get((_counted(x.shape[0]), weight.shape, isinstance(weight, Fp8Weight)))
        if way is not None:
            return way.run(x, weight, bias)
        if not isinstance(weight, Fp8Weight):
            return F.linear(x, weight, bias)
        return self._unpacked(x, weight, bias) if x.shape[0] > fp8.DOT_ROWS else fp8.product(x, weight, bias)

    def gated(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        """silu(gate)·up, `[rows, inner]`, of a merged `weight` `[2·inner, in]`: gate rows, then up rows."""
        each = self._streamed(x.shape[0], weight)
        if each:
            assert isinstance(weight, torch.Tensor)
            return stream_gated(x, weight, outputs_each=each)
        return silu_mul(self(x, weight, None))

    def _streamed(self, rows: int, weight: Weight) -> int:
        """Outputs a program where a plain weight's product of so many rows is streamed, else 0."""
        if rows > STREAM_ROWS or not isinstance(weight, torch.Tensor):
            return 0
        way = self._chosen.get((rows, weight.shape, False))
        return 0 if way is None else way.outputs_each

    def _unpacked(self, x: torch.Tensor, weight: Fp8Weight, bias: torch.Tensor | None) -> torch.Tensor:
        if self._scratch is None or self._scratch.numel() < weight.shape[1]:
            self._scratch = torch.empty(max(fp8.SCRATCH, weight.shape[1]), dtype=x.dtype, device=x.device)
        return fp8.through_scratch(x, weight, bias, self._scratch)

    def forget(self) -> None:
        """Nothing that was measured counts any more."""
        self._chosen.clear()

    # --- choosing ----------------------------------------------------------------------------------------------------

    def _ways(self, rows: int, weight: Weight) -> dict[str, _Way]:
        """The ways open to a product of that many rows, by the names under which choices are kept."""
        if not isinstance(weight, Fp8Weight):
            return {"library": _Way(F.linear)} | {
                f"stream {each}": _Way(functools.partial(stream, outputs_each=each), each) for each in (4, 8)
            }
        ways: dict[str, _Way] = {}
        if rows <= STREAM_ROWS and weight.shape[1] % 4 == 0:
            for each, warps in ((4, 4), (8, 4), (8, 8), (16, 8)):
                run = functools.partial(fp8.stream, outputs_each=each, warps=warps)
                ways[f"stream {each}, {warps} warps"] = _Way(run)
        if rows <= 1024:
            tiles = _TILES if rows <= 128 else _LARGE_TILES
            for tile in tiles:
                ways["dot " + " ".join(map(str, tile))] = _Way(functools.partial(fp8.dot, tile=tile))
        if rows >= 128:
            ways["unpacked"] = _Way(self._unpacked)
        return ways

    @torch.inference_mode()
    def measure(self, weights: list[Weight], dtype: torch.dtype, choices: Choices | None = None) -> None:
        """Chooses for the weights to be served, `x` in `dtype`: from the file of an earlier start, or by timing every
        way on each shape's weights one after the other, as a step reads them (one weight over and over would come from
        the cache). Half precision only."""
        if dtype not in (torch.bfloat16, torch.float16):
            return
        choices = choices or Choices(machine(), cache_folder() / "products")
        shapes: dict[tuple[torch.Size, bool], list[Weight]] = {}
        for weight in weights:
            shapes.setdefault((weight.shape, isinstance(weight, Fp8Weight)), []).append(weight)
        for (shape, packed), members in shapes.items():
            for rows in _FP8_ROWS if packed else range(1, STREAM_ROWS + 1):
                ways = self._ways(rows, members[0])
                calls = _CALLS if rows <= 64 else 4
                chain = (members * calls)[:calls]
                kind = "e4m3" if packed else str(dtype)
                problem = Problem(rows, shape[0], shape[1], str(dtype), kind)
                time_it = functools.partial(_seconds, rows=rows, dtype=dtype, chain=chain, ways=ways)
                self._chosen[rows, shape, packed] = ways[choices.choose(problem, list(ways), time_it)]
        choices.save()


def _counted(rows: int) -> int:
    return next((size for size in _FP8_ROWS if rows <= size), rows)


def _seconds(name: str, *, rows: int, dtype: torch.dtype, chain: list[Weight], ways: dict[str, _Way]) -> float:
    """Seconds a call, from replays of a graph of the whole chain."""
    first = chain[0]
    device = first.data.device
    x = torch.randn((rows, first.shape[1]), dtype=dtype, device=device)
    run = ways[name].run

    def all_of_it() -> None:
        for weight in chain:
            run(x, weight, None)

    all_of_it()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_of_it()
    graph.replay()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(5):
        graph.replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / 5 / len(chain)
