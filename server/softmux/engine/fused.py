"""The fast path for decoders of Llama's build: the loaded module's own weights, in fewer and larger launches.

Merged QKV and gate-up products (the module's projections become views into the merged weights, so nothing is held
twice and the untouched module still works), and one launch each for norm + residual, RoPE + KV write, and gate and up
with SiLU·up.
`FusedDecoder.of` answers None for any class or setting it does not know; the module itself then runs instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from softmux.engine.attention.triton_paged import TritonAttention
from softmux.engine.delta_fused import FusedStep
from softmux.engine.fp8 import Weight, merge, weight_of
from softmux.engine.kernels.layer import RMSNorm, silu_mul
from softmux.engine.kernels.rope import rope_write
from softmux.engine.kv import KVPool
from softmux.engine.packed import PackedModel
from softmux.engine.parallel.one_shot import take_normed_sums
from softmux.engine.parallel.ranks import Ranks
from softmux.engine.products import Product, Products

_KNOWN = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(slots=True)
class _Layer:
    qkv: Weight
    qkv_bias: torch.Tensor | None
    out: Weight
    out_bias: torch.Tensor | None
    gate_up: Weight
    down: Weight
    input_norm: RMSNorm
    post_norm: RMSNorm
    head_norms: tuple[torch.Tensor, torch.Tensor] | None
    window: int | None


def _merge(projections: list[nn.Linear]) -> tuple[Weight, torch.Tensor | None]:
    """One weight of several (`fp8.merge`), and one bias, where they have any."""
    merged = merge([*projections])
    if projections[0].bias is None:
        return merged, None
    return merged, torch.cat([projection.bias.data for projection in projections])


class FusedDecoder:
    """A decoder's forward over packed rows, equal to the module's within rounding (the self-test compares them)."""

    def __init__(self, model: PackedModel, pool: KVPool, attention: TritonAttention, products: Products) -> None:
        config: Any = model.text_config
        self._model = model
        self._pool = pool
        self._attention = attention
        self._products = products
        self._ranks = model.ranks
        decoder = model.module.model
        self._eps = float(config.rms_norm_eps)
        self._heads = int(config.num_attention_heads)
        self._layers = [self._take(layer) for layer in decoder.layers]
        self._norm = RMSNorm(decoder.norm.weight.data, self._eps)
        self._head: torch.Tensor = model.module.lm_head.weight.data
        self._vocabulary = int(config.vocab_size)
        self._rotation = _rotation(decoder.rotary_emb, model)
        self._scaling = float(decoder.layers[0].self_attn.scaling)

    @property
    def layers(self) -> int:
        return len(self._layers)

    @property
    def embedding(self) -> torch.Tensor:
        """`[vocab, hidden]`."""
        table: torch.Tensor = self._model.embedding.weight.data
        return table

    @property
    def products(self) -> list[Product]:
        """Every product of the step, in the order in which it makes them; the merged one for gate and up twice, for
        beside an adapter's update the two are not gated at once."""
        each = [
            product
            for layer in self._layers
            for product in (
                Product(layer.qkv),
                Product(layer.out),
                Product(layer.gate_up, gated=True),
                Product(layer.gate_up),
                Product(layer.down),
            )
        ]
        return [*each, Product(self._head)]

    @classmethod
    def of(
        cls, model: PackedModel, pool: KVPool, attention: TritonAttention, products: Products
    ) -> FusedDecoder | None:
        config: Any = model.text_config
        if model.architecture not in _KNOWN or config.hidden_act != "silu" or getattr(config, "mlp_bias", False):
            return None
        if model.module.lm_head.bias is not None or type(model.embedding) is not nn.Embedding:
            return None
        if model.quantization not in (None, "fp8"):  # 8- and 4-bit layers multiply by themselves
            return None
        return cls(model, pool, attention, products)

    def _take(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        qkv, qkv_bias = _merge([attention.q_proj, attention.k_proj, attention.v_proj])
        gate_up, _ = _merge([mlp.gate_proj, mlp.up_proj])
        norms = None
        if hasattr(attention, "q_norm"):
            norms = (attention.q_norm.weight.data, attention.k_norm.weight.data)
        window = getattr(attention, "sliding_window", None)
        if self._model.architecture == "MistralForCausalLM":
            window = getattr(self._model.text_config, "sliding_window", None)
        return _Layer(
            qkv=qkv,
            qkv_bias=qkv_bias,
            out=weight_of(attention.o_proj),
            out_bias=None if attention.o_proj.bias is None else attention.o_proj.bias.data,
            gate_up=gate_up,
            down=weight_of(mlp.down_proj),
            input_norm=RMSNorm(layer.input_layernorm.weight.data, self._eps),
            post_norm=RMSNorm(layer.post_attention_layernorm.weight.data, self._eps),
            head_norms=norms,
            window=window,
        )

    def forward(
        self, embeddings: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, wanted: torch.Tensor | None,
        deltas: FusedStep | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """`embeddings [tokens, hidden]` → logits `[rows, vocab]` of the `wanted` tokens (None: all). The attention
        backend has been told of the step (`begin`). `deltas`: what its rows' adapters add to the products."""
        products = self._products
        x = embeddings
        residual: torch.Tensor | None = None
        for number, layer in enumerate(self._layers):
            if deltas is not None:
                x, residual = self._changed_layer(number, layer, x, residual, positions, slots, deltas)
                continue
            normed, residual = self._normed(layer.input_norm, x, residual, 1)
            attended = self._attend(number, layer, products(normed, layer.qkv, layer.qkv_bias), positions, slots)
            x = products(attended.flatten(1), layer.out, layer.out_bias)
            normed, residual = self._normed(layer.post_norm, x, residual, 0)
            x = products(products.gated(normed, layer.gate_up), layer.down, None)
        x = self._summed(x)
        if wanted is not None and residual is not None:
            self._last = x, residual
            if not len(wanted):
                return x.new_empty((0, self._vocabulary))
            x, residual = x.index_select(0, wanted), residual.index_select(0, wanted)
        logits = products(self._norm(x, residual)[0], self._head, None)
        return logits if self._ranks is None else self._ranks.gather(logits, self._vocabulary)

    def take_normed_sums(self, ranks: Ranks) -> None:
        """Sums over ranks take the norm behind them along, where that is right and faster here."""
        norm = self._layers[0].post_norm
        width = int(norm.gain.shape[0])
        take_normed_sums(ranks, norm.gain.dtype, width, lambda x, residual: norm(x, residual)[0], norm.gain, norm.eps)

    def _normed(
        self, norm: RMSNorm, x: torch.Tensor, residual: torch.Tensor | None, half: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`norm(x, residual)` of all ranks' parts of `x`. Without a residual `x` is no part, but all of it."""
        if self._ranks is None or residual is None:
            return norm(x, residual)
        sums = self._ranks.normed
        if sums is not None and sums.fits(x):
            return sums(x, residual, norm.gain, norm.eps, half), residual
        return norm(self._ranks.reduce(x), residual)

    def _summed(self, x: torch.Tensor) -> torch.Tensor:
        """Of all ranks' parts."""
        return x if self._ranks is None else self._ranks.reduce(x)

    def _changed_layer(
        self, number: int, layer: _Layer, x: torch.Tensor, residual: torch.Tensor | None, positions: torch.Tensor,
        slots: torch.Tensor, deltas: FusedStep,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """A layer whose products gain low-rank updates, which need each product's own input: norms, and SiLU·up, are
        launches of their own then."""
        products = self._products
        normed, residual = self._normed(layer.input_norm, x, residual, 1)
        qkv = products(normed, layer.qkv, layer.qkv_bias)
        deltas.add(number, "qkv", normed, qkv)
        attended = self._attend(number, layer, qkv, positions, slots).flatten(1)
        x = products(attended, layer.out, layer.out_bias)
        deltas.add(number, "out", attended, x)
        normed, residual = self._normed(layer.post_norm, x, residual, 0)
        both = products(normed, layer.gate_up, None)
        deltas.add(number, "gate_up", normed, both)
        inner = silu_mul(both)
        x = products(inner, layer.down, None)
        deltas.add(number, "down", inner, x)
        return x, residual

    def states(self, at: torch.Tensor) -> torch.Tensor:
        """As `PackedModel.states`, of the last forward that was given `wanted`."""
        x, residual = (part.index_select(0, at) for part in self._last)
        return self._norm(x, residual)[0] if len(at) else x

    def _attend(
        self, number: int, layer: _Layer, qkv: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor
    ) -> torch.Tensor:
        if self._attention.decoding:
            return self._attention.rotate_and_decode(
                number, qkv, self._rotation, layer.head_norms, self._eps,
                heads=self._heads, scaling=self._scaling, window=layer.window,
            )  # fmt: skip
        query = rope_write(
            qkv, self._pool.keys[number], self._pool.values[number], self._rotation, positions, slots,
            layer.head_norms, self._eps, heads=self._heads,
        )  # fmt: skip
        return self._attention.attend_written(number, query, scaling=self._scaling, window=layer.window, softcap=None)


@torch.inference_mode()
def _rotation(rotary: Any, model: PackedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The module's own cos and sin for every position, once: float32 `[context, head_dim/2]`."""
    positions = torch.arange(model.context_length, device=model.device)[None]
    cos, sin = rotary(torch.zeros((1, 1, 1), dtype=torch.float32, device=model.device), positions)
    half = cos.shape[-1] // 2
    return cos[0, :, :half].float().contiguous(), sin[0, :, :half].float().contiguous()
