"""A frozen module, run with gradients over packed rows of many tasks: what is the same for every kind of base.

`FrozenBase`      a causal language model, whose logits are compared with tokens or with a teacher's, or whose last
                  hidden states go to each task's own head (`decoder.py`)
`FrozenEncoder`   an encoder, whose last hidden states go to each task's own head (`encoder.py`)

`FrozenEncoderDecoder` is a `FrozenBase` that does not run packed rows packed (`encoder_decoder.py`).
"""

from __future__ import annotations

import itertools
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, embedding, rms_norm
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from softmux.errors import InvalidRequest
from softmux.tuning.frozen.attention import RowAttention, best_attention
from softmux.tuning.frozen.packing import Packed, Placed, packs
from softmux.tuning.frozen.tables import Tables

_names = itertools.count()


class FrozenModule(ABC):
    """A module whose weights never get a gradient: only what flows into it does. `running()` lends it this object's
    attention and gives it back as it was. `causal`: whether a token sees its row's past alone, or its whole row."""

    causal = True

    def __init__(self, model: Any, *, attention: RowAttention | None = None, checkpointing: bool = False) -> None:
        self.model = model.requires_grad_(False).eval()
        config = model.config.get_text_config()
        weight = model.get_input_embeddings().weight
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        self.layers = int(config.num_hidden_layers)
        self.checkpointing = checkpointing
        softcap = bool(getattr(config, "attn_logit_softcapping", None))
        head_dim = int(getattr(config, "head_dim", 0) or config.hidden_size // config.num_attention_heads)
        self.attention = attention or best_attention(self.device, self.dtype, softcap, head_dim, causal=self.causal)
        self._name = f"softmux_tuning_{next(_names)}"
        self._packed: Packed | None = None
        self._prefixes: tuple[torch.Tensor, ...] = ()
        self._hooks: list[Any] = []
        AttentionInterface.register(self._name, _attends(self))

    def packs(self, rows: Sequence[Placed], tokens: int) -> Iterator[list[Placed]]:
        """Cuts rows into packs of at most `tokens` tokens that it runs at once."""
        return packs(rows, tokens)

    @abstractmethod
    def losses(self, packed: Packed, tables: Tables, noise: torch.Tensor | None = None) -> torch.Tensor:
        """`[targets]`, the loss of each target in float32. Within `running()`. `noise [tokens, embedding width]` is
        added to the input's embeddings."""

    @abstractmethod
    def scored(self, packed: Packed, tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
        """`losses`, and `[targets]` whether each target is the likeliest there; without gradients. Within
        `running()`."""

    @contextmanager
    def running(self) -> Iterator[None]:
        was = self.model.config._attn_implementation
        self.model.set_attn_implementation(self._name)
        restore = self._fused_norms() + (self._checkpointed() if self.checkpointing else [])
        try:
            yield
        finally:
            self.detach()
            self.model.set_attn_implementation(was)
            for layer in restore:
                del layer.forward

    def _embedded(self, packed: Packed, tables: Tables, noise: torch.Tensor | None) -> torch.Tensor:
        """`[tokens, width]`, the pack's embeddings, its learned vectors among them."""
        embeddings: torch.Tensor = self.model.get_input_embeddings()(packed.tokens)
        if noise is not None:
            embeddings = embeddings + noise.to(embeddings.dtype)
        if tables.vectors is not None and len(packed.vector_at):
            vectors = embedding(packed.vector_from, tables.vectors).to(embeddings.dtype)
            embeddings = embeddings.index_copy(0, packed.vector_at, vectors)
        return embeddings

    def _begin(self, packed: Packed, tables: Tables, noise: torch.Tensor | None) -> torch.Tensor:
        """As `_embedded`; from here on the module's attention is that of these rows behind their prefixes."""
        embeddings = self._embedded(packed, tables, noise)
        self._packed = packed
        self._prefixes = ()
        if packed.prefix_from is not None:
            assert tables.prefixes is not None
            by_layer = tables.prefixes.view(len(tables.prefixes), 2 * self.layers, -1)
            self._prefixes = by_layer.transpose(0, 1).contiguous().unbind(0)
        self.attention.begin(packed)
        return embeddings

    @contextmanager
    def _given(self, packed: Packed, tables: Tables, noise: torch.Tensor | None) -> Iterator[torch.Tensor]:
        """As `_begin`, with the tasks' LoRAs on their modules. They stay on for a backward that runs layers again."""
        embeddings = self._begin(packed, tables, noise)
        try:
            for rows in packed.low_rank:
                self._hooks.extend((tables.low_rank or {})[rows.cohort].attach(self.model, rows))
            yield embeddings
        finally:
            if not (self.checkpointing and torch.is_grad_enabled()):
                self.detach()

    def _labelled(self, states: torch.Tensor, packed: Packed, tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
        """`[targets]` the cross-entropy of each label in float32, and `[targets]` the likeliest one, of the last hidden
        states `[targets, hidden]`, each read by its own task's head."""
        losses = torch.zeros(len(packed.targets), device=self.device)
        likeliest = torch.zeros_like(packed.targets)
        for rows in packed.heads:
            assert tables.heads is not None
            logits = tables.heads[rows.cohort].logits(states, rows)
            own = cross_entropy(logits, packed.targets.index_select(0, rows.at), reduction="none")
            losses = losses.index_copy(0, rows.at, own)
            likeliest = likeliest.index_copy(0, rows.at, logits.detach().argmax(-1))
        return losses, likeliest

    def detach(self) -> None:
        """Takes the step's LoRAs off; after the backward where that runs layers again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """transformers' attention interface: `[1, heads, tokens, head_dim]` in, `[1, tokens, heads, head_dim]` out."""
        assert self._packed is not None
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        if self._packed.prefix_from is not None:
            layer: Any = getattr(module, "layer_idx", None)
            if layer is None:
                raise InvalidRequest(
                    f"{type(self.model).__name__} takes no prefix: its layers have no number.", param="base"
                )
            k, v = (
                self._with_prefix(x, table)
                for x, table in zip((k, v), self._prefixes[2 * layer : 2 * layer + 2], strict=True)
            )
        out = self.attention.attend(
            q,
            k,
            v,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            window=sliding_window,
            softcap=softcap,
        )
        return out[None], None

    def _with_prefix(self, own: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        assert self._packed is not None
        assert self._packed.prefix_from is not None
        assert self._packed.kv_order is not None
        before = embedding(self._packed.prefix_from, table).to(own.dtype).view(-1, *own.shape[1:])
        return torch.cat([own, before]).index_select(0, self._packed.kv_order)

    def _fused_norms(self) -> list[Any]:
        """Norms that are `weight · x / rms(x)`, tried and seen to be, run as torch's one kernel: the modules' own, step
        by step in float32, move most of the bytes of a small model's layers."""
        norms = [(module, eps) for module in self.model.modules() if (eps := _is_rms_norm(module)) is not None]
        for norm, eps in norms:
            norm.forward = partial(rms_norm, normalized_shape=norm.weight.shape, weight=norm.weight, eps=eps)
        return [norm for norm, _ in norms]

    def _checkpointed(self) -> list[Any]:
        """Layers keep their input alone, and are run again in the backward."""
        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        for layer in layers:
            layer.forward = _again(layer.forward)
        return layers


def rounding(dtype: torch.dtype) -> float:
    """By how much, of their size, two ways to the same values may differ where the base's numbers are of this kind."""
    return 1e-3 if dtype == torch.float32 else 0.08


def _attends(frozen: FrozenModule) -> Callable[..., Any]:
    """What transformers keeps for the life of the process: nothing of the module, which may be gone long before."""
    held = weakref.ref(frozen)

    def attend(*given: Any, **named: Any) -> Any:
        own = held()
        assert own is not None
        return own._attend(*given, **named)

    return attend


@torch.no_grad()
def _is_rms_norm(module: Any) -> float | None:
    """The module's epsilon, where it computes what `rms_norm` does (Gemma's, of 1 + weight, do not)."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if "RMSNorm" not in type(module).__name__ or not isinstance(eps, float) or weight is None or weight.dim() != 1:
        return None
    x = torch.linspace(-2, 3, len(weight), device=weight.device, dtype=weight.dtype)[None]
    close = 1e-5 if weight.dtype == torch.float32 else 2e-2
    own = module(x)
    same = own.shape == x.shape and torch.allclose(own, rms_norm(x, weight.shape, weight, eps), rtol=close, atol=close)
    return eps if same else None


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*given, **named)
        return checkpoint(forward, *given, use_reentrant=False, **named)

    return run
