"""FlashInfer's kernels (Ye et al., 2025), where they are installed and asked for: `--attention-backend flashinfer`.

A page is one token, as everywhere here. One wrapper takes decoding rows and chunks alike: its causal mask is aligned to
a row's end, so a decoding row is a chunk of one token. Its kernels are compiled at first use (nvcc, and a minute).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from softmux.engine.attention.base import AttentionBackend, PackedRows
from softmux.engine.device import to_device
from softmux.engine.kv import KVPool
from softmux.errors import SelfTestFailed

HEAD_DIMS = (64, 128, 256)
DTYPES = (torch.bfloat16, torch.float16)
_LEAST_WORKSPACE = 128 << 20
_TILE = 128
"""Queries a program takes at most (a KV head's query heads count as queries)."""

_Mask = tuple[int | None, float | None, float]
"""What a plan holds for, beside the step's rows: window, soft cap, scaling."""


@dataclass(slots=True)
class _Step:
    """A step's rows as FlashInfer takes them. Pinned on the host, so that no copy waits for the device."""

    query_ends: torch.Tensor
    """`[rows + 1]` int32: where each row's queries begin and end in the packed step."""
    key_ends: torch.Tensor
    """`[rows + 1]` int32: the same for its slots in `slots`."""
    lengths: torch.Tensor
    """`[rows]` int32: each row's slots."""
    ones: torch.Tensor
    """`[rows]` int32: every page is full."""
    slots: torch.Tensor
    """`[sum(lengths)]` int32, on the device."""
    causal: bool


@dataclass(slots=True)
class _Planned:
    wrapper: Any
    copied: torch.cuda.Event
    """The plan has left the wrapper's pinned memory: only then may the next one be written there."""
    step: _Step | None = None


class FlashInferAttention(AttentionBackend):
    """One plan a step for each mask that its layers use (Gemma's have two); no CUDA graphs, no fused layers.

    Raises `SelfTestFailed`, in words, for what FlashInfer has no kernels for, and where it is not installed.
    """

    name = "flashinfer"

    def __init__(self, pool: KVPool) -> None:
        head_dim = pool.keys[0].shape[-1]
        if pool.dtype not in DTYPES:
            kept = str(pool.dtype).removeprefix("torch.")
            raise SelfTestFailed(
                f"--attention-backend flashinfer has no kernels for KV in {kept}; have model and KV in bfloat16 "
                "or float16, or use another backend"
            )
        if head_dim not in HEAD_DIMS:
            raise SelfTestFailed(
                f"--attention-backend flashinfer has no kernels for heads of {head_dim} (only 64, 128 and 256); use "
                "another backend"
            )
        try:
            from flashinfer import BatchPrefillWithPagedKVCacheWrapper
        except ImportError as error:
            raise SelfTestFailed(
                f"--attention-backend flashinfer: it cannot be imported ({error}); install flashinfer-python, or use "
                "another backend"
            ) from error
        self._wrapper = BatchPrefillWithPagedKVCacheWrapper
        super().__init__(pool)
        self._workspace: torch.Tensor | None = None
        self._plans: dict[_Mask, _Planned] = {}
        self._step: _Step | None = None

    def begin(self, rows: PackedRows) -> None:
        lengths = [start + count for start, count in zip(rows.starts, rows.counts, strict=True)]
        query_ends = [0, *itertools.accumulate(rows.counts)]
        key_ends = [0, *itertools.accumulate(lengths)]
        host = torch.tensor([*query_ends, *key_ends, *lengths, *[1] * len(lengths)], dtype=torch.int32)
        if self._pool.device.type == "cuda":
            host = host.pin_memory()
        count = len(lengths)
        query_host, key_host, length_host, ones = host.split([count + 1, count + 1, count, count])
        sent = to_device([rows.table_rows, key_ends[:-1], lengths], self._pool.device)
        total = key_ends[-1]
        row, begin = torch.repeat_interleave(sent[:2], sent[2], dim=1, output_size=total)
        position = torch.arange(total, device=row.device) - begin
        self._step = _Step(query_host, key_host, length_host, ones, rows.table[row, position], rows.causal)
        self._slots = rows.slots

    def attend_written(
        self, layer: int, query: torch.Tensor, *, scaling: float, window: int | None, softcap: float | None
    ) -> torch.Tensor:
        if window is not None and self._step is not None and not self._step.causal:
            raise SelfTestFailed(
                "--attention-backend flashinfer has no kernels for windows that reach forward too, as those of this "
                "encoder's layers do; use another backend"
            )
        query = query.contiguous()
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        wrapper = self._planned((window, softcap, scaling), query.shape[1])
        output: torch.Tensor = wrapper.run(query, (keys[:, None], values[:, None]))
        return output

    def _planned(self, mask: _Mask, heads: int) -> Any:
        """The mask's wrapper, with its plan for this step: made by the step's first layer that has this mask."""
        kv_heads, head_dim = self._pool.keys[0].shape[1:]
        if self._workspace is None:
            self._workspace = self._made(heads, kv_heads, head_dim)
        planned = self._plans.get(mask)
        if planned is None:
            wrapper = self._wrapper(self._workspace, "NHD", backend="fa2")
            planned = self._plans[mask] = _Planned(wrapper, torch.cuda.Event())
        step = self._step
        assert step is not None, "begin comes before attend"
        if planned.step is not step:
            window, softcap, scaling = mask
            planned.copied.synchronize()
            planned.wrapper.plan(
                step.query_ends,
                step.key_ends,
                step.slots,
                step.ones,
                heads,
                kv_heads,
                head_dim,
                1,
                causal=step.causal,
                sm_scale=scaling,
                window_left=-1 if window is None else window - 1,
                logits_soft_cap=softcap,
                q_data_type=self._pool.dtype,
                kv_data_type=self._pool.dtype,
                seq_lens=step.lengths,
            )
            planned.copied.record()
            planned.step = step
        return planned.wrapper

    def _made(self, heads: int, kv_heads: int, head_dim: int) -> torch.Tensor:
        """Room for the partial results of as many programs as split a row's keys, which is at most two a processor."""
        processors = torch.cuda.get_device_properties(self._pool.device).multi_processor_count
        programs = -(-2 * processors // kv_heads)
        needed = heads * programs * _TILE * (head_dim + 1) * 4
        return torch.empty(max(_LEAST_WORKSPACE, needed), dtype=torch.uint8, device=self._pool.device)
