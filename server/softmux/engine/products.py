"""Where every matrix product of the fused step goes: the library's, or one of our kernels, as measured on this card."""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton

from softmux.engine.choices import Choices, Problem, cache_folder
from softmux.engine.device import is_shortage
from softmux.engine.fp8 import Fp8Weight, Weight
from softmux.engine.kernels import bulk, dot, fp8, launch, layer, linear
from softmux.engine.kernels.dot import Tile
from softmux.engine.kernels.layer import silu_mul
from softmux.engine.kernels.linear import PLAIN, STREAM_ROWS, Walk, stream, stream_gated

log = logging.getLogger(__name__)

_CALLS = 24
_TOLERANCE = 0.02
"""What a way may differ by from the library, as a share of a row's length: five times what rounding makes it, and less
than a tile that is left out."""
_GATED_ROWS = (1, 2, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192)
"""A step's rows are counted as the next of these, or as the last."""
_FP8_ROWS = _GATED_ROWS[:9]
"""Those for which weights in fp8 are measured; beyond, arithmetic rules and the library is taken."""
_PLAIN_ROWS = _GATED_ROWS[:5]
"""The same, of plain weights without SiLU·up."""
_WARM_ROWS, _WARM_REPLAYS = 1024, 15
"""From so many rows on a card grows hot while it multiplies, and slower: it is not timed cold."""
_PROVED_ROWS = 256
"""Rows that are compared at a time: in float32 they are three times as large as what was computed."""
_ROWS_OF_TILES = 128
"""At so many both kinds of tiles for gate and up are tried: `dot_gated`'s below, the copy engine's above."""
_TILES = (Tile(64, 128, 1, 4, 4), Tile(128, 128, 1, 8, 3), Tile(64, 256, 1, 4, 3), Tile(64, 128, 2, 4, 4))
_PLAIN_TILES = (
    Tile(64, 128, 1, 4, 4),
    Tile(64, 128, 2, 4, 4),
    Tile(64, 128, 4, 4, 4),
    Tile(128, 64, 1, 8, 4),
    Tile(128, 128, 1, 8, 3),
)
_GATED_TILES = (
    Tile(64, 128, 1, 4, 4),
    Tile(128, 64, 1, 4, 5),
    Tile(128, 128, 1, 8, 3),
    Tile(128, 128, 1, 8, 4),
)
_BULK_TILES = (Tile(64, 64, 1, 4, 5), Tile(128, 64, 1, 8, 3), Tile(128, 64, 1, 8, 4))
_LARGE_TILES = (Tile(128, 64, 1, 8, 4), Tile(128, 128, 1, 8, 3))
_WALKS = (
    PLAIN,
    Walk(4, 1024, 8, True),
    Walk(4, 1024, 4, True),
    Walk(4, 512, 4, True),
    Walk(2, 2048, 4, True),
    Walk(16, 512, 8, True),
)
"""Each was the fastest of eleven for one of the products of a 1B and an 8B, or within 3 % of it, on an H200."""


class Product(NamedTuple):
    """One of a step's: `x [rows, in]` by `weight [out, in]`."""

    weight: Weight
    gated: bool = False
    """The outputs are gate, then up, and silu(gate)·up is what comes of them."""


_Run = Callable[[torch.Tensor, Any, torch.Tensor | None], torch.Tensor]
"""`(x, weight, bias)`, for weights of the kind that it was made for."""


def machine() -> str:
    """All that a measurement depends on beside the product itself: card, versions, and our kernels' own text."""
    sources = b"".join(Path(module.__file__ or "").read_bytes() for module in (linear, dot, bulk, fp8, layer, launch))
    kernels = hashlib.sha256(sources).hexdigest()[:12]
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, kernels {kernels}"


class Products:
    """`products(x, weight, bias)`: `[rows, in]` · `[out, in]`ᵀ, for plain weights and such in fp8.

    Plain weights go to the library but for few rows, and but for gate and up; weights in fp8 go to the kernels but for
    many rows. Between the ways that are open to it, each shape takes the one that was fastest when `measure` timed it.
    """

    def __init__(self) -> None:
        self._chosen: dict[tuple[int, torch.Size, bool, bool], _Run] = {}
        self._scratch: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor:
        run = self._chosen.get((_counted(x.shape[0]), weight.shape, isinstance(weight, Fp8Weight), False))
        if run is not None:
            return run(x, weight, bias)
        if not isinstance(weight, Fp8Weight):
            return F.linear(x, weight, bias)
        return self._unpacked(x, weight, bias) if x.shape[0] > fp8.DOT_ROWS else fp8.product(x, weight, bias)

    def gated(self, x: torch.Tensor, weight: Weight) -> torch.Tensor:
        """silu(gate)·up, `[rows, inner]`, of a merged `weight` `[2·inner, in]`: gate rows, then up rows."""
        run = self._chosen.get((_counted(x.shape[0]), weight.shape, isinstance(weight, Fp8Weight), True))
        return silu_mul(self(x, weight, None)) if run is None else run(x, weight, None)

    def _unpacked(self, x: torch.Tensor, weight: Fp8Weight, bias: torch.Tensor | None) -> torch.Tensor:
        if self._scratch is None or self._scratch.numel() < weight.shape[1]:
            self._scratch = torch.empty(max(fp8.SCRATCH, weight.shape[1]), dtype=x.dtype, device=x.device)
        return fp8.through_scratch(x, weight, bias, self._scratch)

    def forget(self) -> None:
        """Nothing that was measured counts any more."""
        self._chosen.clear()

    # --- choosing ----------------------------------------------------------------------------------------------------

    def ways(self, rows: int, product: Product) -> dict[str, _Run]:
        """The ways open to a product of that many rows, by the names under which choices are kept."""
        weight = product.weight
        if isinstance(weight, Fp8Weight):
            return self._fp8_ways(rows, weight)
        library: _Run = _with_silu(F.linear) if product.gated else F.linear
        ways: dict[str, _Run] = {"library": library}
        if rows <= STREAM_ROWS:
            run = _streamed_gated if product.gated else stream
            ways |= {f"stream {walk}": functools.partial(run, walk=walk) for walk in _WALKS}
        elif product.gated:
            if rows <= _ROWS_OF_TILES:
                ways |= {f"dot {tile}": functools.partial(_dot_gated, tile=tile) for tile in _GATED_TILES}
            if rows >= _ROWS_OF_TILES and bulk.fits(weight):
                ways |= {f"bulk {tile}": functools.partial(_bulk_gated, tile=tile) for tile in _BULK_TILES}
        elif rows <= _PLAIN_ROWS[-1]:
            ways |= {f"dot {tile}": functools.partial(dot.dot, tile=tile) for tile in _PLAIN_TILES}
        return ways

    def _fp8_ways(self, rows: int, weight: Fp8Weight) -> dict[str, _Run]:
        ways: dict[str, _Run] = {}
        if rows <= STREAM_ROWS and weight.shape[1] % 4 == 0:
            for each, warps in ((4, 4), (8, 4), (8, 8), (16, 8)):
                ways[f"stream {each}, {warps} warps"] = functools.partial(fp8.stream, outputs_each=each, warps=warps)
        if rows <= 1024:
            for tile in _TILES if rows <= 128 else _LARGE_TILES:
                ways[f"dot {tile}"] = functools.partial(fp8.dot, tile=tile)
        if rows >= 128:
            ways["unpacked"] = self._unpacked
        return ways

    @torch.inference_mode()
    def measure(
        self, products: list[Product], dtype: torch.dtype, choices: Choices | None = None, *, most: int
    ) -> None:
        """Chooses for the products to be served, `x` in `dtype`, in steps of `most` rows at most: from the file of an
        earlier start, or by timing every way on each shape's weights one after the other, as a step reads them (one
        weight over and over would come from the cache). Half precision only. What there is no memory for is not
        chosen for."""
        if dtype not in (torch.bfloat16, torch.float16):
            return
        choices = choices or Choices(machine(), cache_folder() / "products")
        try:
            self._measure(products, dtype, choices, _counted(most))
        finally:
            choices.save()
            torch.cuda.empty_cache()  # each graph had memory of its own

    def _measure(self, products: list[Product], dtype: torch.dtype, choices: Choices, most: int) -> None:
        shapes: dict[tuple[torch.Size, bool, bool], list[Product]] = {}
        for product in products:
            packed = isinstance(product.weight, Fp8Weight)
            shapes.setdefault((product.weight.shape, packed, product.gated), []).append(product)
        for (shape, packed, gated), members in shapes.items():
            if packed and gated:
                continue  # no kernel does both
            counts = _FP8_ROWS if packed else _GATED_ROWS if gated else _PLAIN_ROWS
            for rows in [count for count in counts if count <= most]:
                ways = self.ways(rows, members[0])
                calls = _CALLS if rows <= 64 else 4
                chain = [product.weight for product in (members * calls)[:calls]]
                unproved = set(ways)
                kind = "e4m3" if packed else f"{dtype}, gated" if gated else str(dtype)
                problem = Problem(rows, shape[0], shape[1], str(dtype), kind)

                def time_it(
                    name: str,
                    rows: int = rows,
                    chain: list[Weight] = chain,
                    ways: Any = ways,
                    unproved: set[str] = unproved,
                    first: Product = members[0],
                ) -> float:
                    if name in unproved:
                        self._prove(ways[name], rows, first, dtype)
                        unproved.discard(name)
                    return _seconds(ways[name], rows, chain, dtype)

                try:
                    self._chosen[rows, shape, packed, gated] = ways[choices.choose(problem, list(ways), time_it)]
                except Exception as error:
                    if not is_shortage(error):
                        raise
                    log.warning("no way is chosen for %s: %s", problem, error)

    def _prove(self, run: _Run, rows: int, product: Product, dtype: torch.dtype) -> None:
        """Raises RuntimeError where a way does not give what the library gives: the self-test's steps are of fewer
        rows than some ways are taken for."""
        weight = product.weight
        x = torch.randn((rows, weight.shape[1]), dtype=dtype, device=weight.data.device)
        reference: _Run = self._unpacked if isinstance(weight, Fp8Weight) else F.linear
        expected = (_with_silu(reference) if product.gated else reference)(x, weight, None)
        found = run(x, weight, None)
        for part, right in zip(found.split(_PROVED_ROWS), expected.split(_PROVED_ROWS), strict=True):
            share = (part.float() - right.float()).norm(dim=1) / right.float().norm(dim=1)
            if not (share <= _TOLERANCE).all():
                raise RuntimeError(f"it differs from the library's result by {float(share.max()):.2g} of a row")


def _counted(rows: int) -> int:
    return next((size for size in _GATED_ROWS if rows <= size), _GATED_ROWS[-1])


def _with_silu(run: _Run) -> _Run:
    """silu(gate)·up in a launch behind the product's."""
    return lambda x, weight, bias: silu_mul(run(x, weight, bias))


def _streamed_gated(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, walk: Walk) -> torch.Tensor:
    return stream_gated(x, weight, walk=walk)


def _dot_gated(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, tile: Tile) -> torch.Tensor:
    return dot.dot_gated(x, weight, tile)


def _bulk_gated(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, tile: Tile) -> torch.Tensor:
    return bulk.gated(x, weight, tile)


def _seconds(run: _Run, rows: int, chain: list[Weight], dtype: torch.dtype) -> float:
    """Seconds a call, from replays of a graph of the whole chain."""
    first = chain[0]
    x = torch.randn((rows, first.shape[1]), dtype=dtype, device=first.data.device)

    def all_of_it() -> None:
        for weight in chain:
            run(x, weight, None)

    all_of_it()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        all_of_it()
    for _ in range(1 if rows < _WARM_ROWS else _WARM_REPLAYS):
        graph.replay()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(5):
        graph.replay()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / 5 / len(chain)
