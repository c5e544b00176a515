"""Attention of whole rows to themselves and to a prefix in front, or to what of these is near, as encoders have it:
torch's, and Triton's kernels, the latter on a CPU by the interpreter (`TRITON_INTERPRET=1`)."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from softmux.engine.attention.base import PackedRows
from softmux.engine.attention.torch_sdpa import TorchAttention
from softmux.engine.kv import KVPool
from softmux.errors import SelfTestFailed
from softmux.types import LayerKV

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HEADS, WIDTH, CONTEXT = 4, 24, 90
SHAPES = [(0, 1), (5, 1), (0, 17), (9, 40), (3, 70), (0, 2), (33, 33)]
WINDOWS = pytest.mark.parametrize("window", [None, 1, 7, 40, 1000])


class Rows:
    """Random rows of (prefix, text) tokens over scattered slots, and what each text's tokens should find."""

    def __init__(self, device: str, window: int | None) -> None:
        generator = torch.Generator().manual_seed(0)
        total = sum(start + count for start, count in SHAPES)
        self.pool = KVPool([LayerKV(HEADS, WIDTH)], total, torch.float32, torch.device(device))
        free = torch.randperm(total, generator=generator).tolist()
        table = torch.full((len(SHAPES), CONTEXT), self.pool.spare, dtype=torch.int32)
        queries, keys, values, slots, expected = [], [], [], [], []
        for row, (start, count) in enumerate(SHAPES):
            own, free = free[: start + count], free[start + count :]
            table[row, : len(own)] = torch.tensor(own, dtype=torch.int32)
            q = torch.randn((count, HEADS, WIDTH), generator=generator)
            k, v = (torch.randn((start + count, HEADS, WIDTH), generator=generator) for _ in range(2))
            self.pool.keys[0][own] = k.to(device)
            self.pool.values[0][own] = v.to(device)
            scores = torch.einsum("qhd,khd->hqk", q, k) * WIDTH**-0.5
            if window is not None:
                apart = (torch.arange(start, start + count)[:, None] - torch.arange(start + count)).abs()
                scores = scores.masked_fill(apart >= window, float("-inf"))
            weights = scores.softmax(-1)
            expected.append(torch.einsum("hqk,khd->qhd", weights, v))
            queries.append(q)
            keys.append(k[start:])
            values.append(v[start:])
            slots += own[start:]
        self.query, self.key, self.value = (torch.cat(parts).to(device) for parts in (queries, keys, values))
        self.expected = torch.cat(expected)
        self.packed = PackedRows(
            table_rows=list(range(len(SHAPES))),
            starts=[start for start, _ in SHAPES],
            counts=[count for _, count in SHAPES],
            table=table.to(device),
            slots=torch.tensor(slots, device=device),
            causal=False,
        )


@WINDOWS
def test_torch_lets_a_row_see_all_of_itself_or_what_is_near(window: int | None) -> None:
    rows = Rows("cpu", window)
    backend = TorchAttention(rows.pool)
    backend.begin(rows.packed)
    found = backend.attend(0, rows.query, rows.key, rows.value, scaling=WIDTH**-0.5, window=window, softcap=None)
    torch.testing.assert_close(found, rows.expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not _INTERPRETED, reason="needs TRITON_INTERPRET=1; a GPU runs the test below")
@WINDOWS
@pytest.mark.parametrize("queries", [16, 64])
def test_the_extend_kernel_does_too(queries: int, window: int | None) -> None:
    from softmux.engine.kernels.attention import extend

    rows = Rows("cpu", window)
    out = torch.zeros_like(rows.query)
    blocks = [(i, first) for i, (_, count) in enumerate(SHAPES) for first in range(0, count, queries)]
    starts, counts = torch.tensor(SHAPES, dtype=torch.int32).T.contiguous()
    offsets = (counts.cumsum(0) - counts).int()
    numbers = torch.arange(len(SHAPES), dtype=torch.int32)
    block_rows, firsts = torch.tensor(blocks, dtype=torch.int32).T.contiguous()
    extend(
        rows.query, rows.pool.keys[0], rows.pool.values[0], rows.packed.table, out, (block_rows, firsts),
        (numbers, offsets, starts, counts), scaling=WIDTH**-0.5, window=window, softcap=None, queries=queries,
        causal=False,
    )  # fmt: skip
    torch.testing.assert_close(out, rows.expected, rtol=1e-4, atol=1e-4)


@WINDOWS
@pytest.mark.gpu
def test_the_triton_backend_does_too(window: int | None) -> None:
    from softmux.engine.attention.triton_paged import TritonAttention

    rows = Rows("cuda", window)
    backend = TritonAttention(rows.pool)
    backend.begin(rows.packed)
    found = backend.attend(0, rows.query, rows.key, rows.value, scaling=WIDTH**-0.5, window=window, softcap=None)
    torch.testing.assert_close(found.cpu(), rows.expected, rtol=2e-3, atol=2e-3)


def test_flashinfer_has_no_such_windows_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from softmux.engine.attention.flashinfer import FlashInferAttention

    monkeypatch.setitem(sys.modules, "flashinfer", SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=None))
    pool = KVPool([LayerKV(HEADS, 64)], 8, torch.bfloat16, torch.device("cpu"))
    backend = FlashInferAttention(pool)
    table, slots = torch.arange(8, dtype=torch.int32)[None], torch.arange(8)
    backend.begin(PackedRows(table_rows=[0], starts=[0], counts=[8], table=table, slots=slots, causal=False))
    query, key, value = torch.zeros((3, 8, HEADS, 64), dtype=torch.bfloat16)
    with pytest.raises(SelfTestFailed, match=r"windows that reach forward.*use another backend"):
        backend.attend(0, query, key, value, scaling=0.125, window=5, softcap=None)
