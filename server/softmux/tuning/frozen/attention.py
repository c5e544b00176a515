"""Attention within rows of a packed input, with gradients: each row sees its own prefix, and its own past alone, or,
in an encoder, the whole of itself.

`VarlenAttention`   FlashAttention's kernel for rows of any length, in half precision on a GPU
`PaddedAttention`   torch's scaled_dot_product_attention over rows padded for it alone: anywhere, any dtype
"""

from __future__ import annotations

import warnings
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

from softmux.tuning.frozen.packing import Packed


class RowAttention(Protocol):
    """Both take `query [tokens, heads, dim]`, keys and values `[tokens + prefixes, kv_heads, dim]` in rows' order.
    They are made `causal`, where a token sees nothing of its row that is behind it, or not."""

    name: str

    def begin(self, packed: Packed) -> None:
        """Said before a forward over `packed`."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """`[tokens, heads, dim]`. `window` w: a token sees itself and the w − 1 before it, or, not causal, the w − 1 on
        either side."""


class VarlenAttention:
    """FlashAttention 2 as torch ships it. The last query of a row sees all its keys, so a prefix needs no mask."""

    name = "varlen"

    def __init__(self, *, causal: bool = True) -> None:
        self._causal = causal

    def begin(self, packed: Packed) -> None:
        self._packed = packed

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        assert softcap is None
        longest_q, longest_kv = self._packed.longest
        after = 0 if self._causal or window is None else window - 1
        sides = {} if window is None else {"window_size_left": window - 1, "window_size_right": after}
        out: torch.Tensor = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            self._packed.cu_q,
            self._packed.cu_kv,
            longest_q,
            longest_kv,
            0.0,
            self._causal and window is None,
            False,
            scale=scaling,
            **sides,
        )[0]
        return out


class PaddedAttention:
    """Rows are padded on the left for the length of one attention, so the last column is every row's last token. What
    fills a row up is its own first token: numbers that broke (NaN) must not reach another row, even weighed by 0."""

    name = "padded"

    def __init__(self, *, causal: bool = True) -> None:
        self._causal = causal

    def begin(self, packed: Packed) -> None:
        device = packed.tokens.device
        queries = torch.tensor([length for length, _ in packed.lengths], device=device)
        keys = torch.tensor([length for _, length in packed.lengths], device=device)
        width, key_width = packed.longest
        columns = torch.arange(width, device=device) - (width - queries)[:, None]
        key_columns = torch.arange(key_width, device=device) - (key_width - keys)[:, None]
        self._columns, self._key_columns = columns, key_columns
        self._real = columns >= 0
        self._at = columns.clamp(min=0) + packed.cu_q[:-1, None]
        self._keys_at = key_columns.clamp(min=0) + packed.cu_kv[:-1, None]
        self._back = torch.nonzero(self._real.flatten()).flatten()
        self._masks: dict[int | None, torch.Tensor] = {}
        self._prefixes = (keys - queries)[:, None, None]

    def _mask(self, window: int | None) -> torch.Tensor:
        """`[rows, 1, width, key width]`; padding may see everything, so that no softmax is over nothing."""
        if window not in self._masks:
            at = self._columns[:, :, None] + self._prefixes
            keys = self._key_columns[:, None, :]
            seen = (keys >= 0).expand(-1, at.shape[1], -1)
            if self._causal:
                seen = seen & (keys <= at)
            if window is not None:
                seen = seen & (keys > at - window)
                if not self._causal:
                    seen = seen & (keys < at + window)
            self._masks[window] = (seen | ~self._real[:, :, None])[:, None]
        return self._masks[window]

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        repeats = query.shape[1] // key.shape[1]
        q = query[self._at].transpose(1, 2)
        k, v = (x[self._keys_at].transpose(1, 2).repeat_interleave(repeats, 1) for x in (key, value))
        mask = self._mask(window)
        if softcap is None:
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
        else:
            scores = torch.tanh(q @ k.transpose(2, 3) * scaling / softcap) * softcap
            out = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        flat = out.transpose(1, 2).reshape(-1, *query.shape[1:])
        return flat.index_select(0, self._back)


def best_attention(
    device: torch.device, dtype: torch.dtype, softcap: bool, head_dim: int, *, causal: bool = True
) -> RowAttention:
    """The fastest that agrees with the padded one on made-up rows."""
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and not softcap and head_dim <= 256:
        if varlen_agrees(device, dtype, head_dim, causal=causal):
            return VarlenAttention(causal=causal)
        warnings.warn("FlashAttention differs from the reference here; training pads rows for attention", stacklevel=2)
    return PaddedAttention(causal=causal)


def varlen_agrees(device: torch.device, dtype: torch.dtype, head_dim: int, *, causal: bool = True) -> bool:
    """Whether values and gradients of three rows, one behind a prefix, are the padded attention's."""
    from softmux.tuning.frozen.packing import Place, Prepared, pack

    ids = [torch.arange(1, length + 1).numpy() for length in (5, 17, 9)]
    rows = [(Prepared(row, row * 0.0, 0), Place(0, prefix=prefix)) for row, prefix in zip(ids, (0, 4, 0), strict=True)]
    packed = pack(rows, device)
    torch.manual_seed(0)
    found = []
    query = torch.randn(31, 4, head_dim, device=device, dtype=dtype)
    key, value = (torch.randn(35, 2, head_dim, device=device, dtype=dtype) for _ in range(2))
    try:
        for backend in (PaddedAttention(causal=causal), VarlenAttention(causal=causal)):
            given = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
            backend.begin(packed)
            out = backend.attend(*given, scaling=head_dim**-0.5, window=None, softcap=None)
            out.float().square().sum().backward()
            found.append([out.detach(), *(tensor.grad for tensor in given)])
    except (RuntimeError, NotImplementedError):
        return False
    return all(
        float((a.float() - b.float()).norm()) <= 0.02 * float(a.float().norm()) for a, b in zip(*found, strict=True)
    )
