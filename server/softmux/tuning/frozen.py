"""The frozen module, run with gradients over packed rows of many tasks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, embedding, kl_div, rms_norm
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from softmux.errors import InvalidRequest
from softmux.tuning.attention import PaddedAttention, RowAttention, best_attention
from softmux.tuning.low_rank import LowRank
from softmux.tuning.packing import Packed

_names = itertools.count()


@dataclass(frozen=True, slots=True)
class Tables:
    """What a step's tasks have learned. `vectors [V, hidden]`; `prefixes [P, 2 · layers · kv_heads · head_dim]`,
    layer by layer keys, then values; `low_rank` the LoRAs, by
    cohort. All in float32; None, or empty, where no task has any."""

    vectors: torch.Tensor | None = None
    prefixes: torch.Tensor | None = None
    low_rank: dict[int, LowRank] | None = None


class FrozenBase:
    """A causal language model whose weights never get a gradient: only what flows into it does.

    `running()` lends it this object's attention and gives it back as it was. `teacher` makes logits of the states that
    rows are taught by; None: this model does, whose own states they then are.
    """

    def __init__(
        self,
        model: Any,
        *,
        attention: RowAttention | None = None,
        checkpointing: bool = False,
        teacher: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.teacher = teacher
        config = model.config.get_text_config()
        weight = model.get_input_embeddings().weight
        self.device: torch.device = weight.device
        self.dtype: torch.dtype = weight.dtype
        self.layers = int(config.num_hidden_layers)
        self.checkpointing = checkpointing
        softcap = bool(getattr(config, "attn_logit_softcapping", None))
        head_dim = int(getattr(config, "head_dim", 0) or config.hidden_size // config.num_attention_heads)
        self.attention = attention or best_attention(self.device, self.dtype, softcap, head_dim)
        self._name = f"softmux_tuning_{next(_names)}"
        self._packed: Packed | None = None
        self._prefixes: tuple[torch.Tensor, ...] = ()
        AttentionInterface.register(self._name, self._attend)

    @contextmanager
    def running(self) -> Iterator[None]:
        was = self.model.config._attn_implementation
        self.model.set_attn_implementation(self._name)
        restore = self._fused_norms() + (self._checkpointed() if self.checkpointing else [])
        try:
            yield
        finally:
            self.model.set_attn_implementation(was)
            for layer in restore:
                del layer.forward

    def losses(self, packed: Packed, tables: Tables, noise: torch.Tensor | None = None) -> torch.Tensor:
        """`[targets]`, the cross-entropy of each target in float32; of those that are taught, the divergence
        `KL(teacher || own)` over the whole vocabulary. Within `running()`. `noise [tokens, hidden]` is added to the
        input's embeddings."""
        return self._compared(packed, tables, noise)[0]

    @torch.no_grad()
    def scored(self, packed: Packed, tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
        """`losses`, and `[targets]` whether each target is the likeliest token there. Within `running()`."""
        losses, own = self._compared(packed, tables, None)
        return losses, own.argmax(-1) == packed.targets

    def _compared(
        self, packed: Packed, tables: Tables, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses, and the logits `[targets, vocabulary]` in float32."""
        taught = packed.taught
        if taught is None:
            own = self._logits(packed, tables, noise).float()
            return cross_entropy(own, packed.targets, reduction="none"), own
        assert packed.taught_at is not None
        own, theirs = self._beside(packed, tables, noise, taught)
        theirs = theirs.detach().log_softmax(-1)
        words = own.log_softmax(-1)
        divergence = kl_div(words.index_select(0, packed.taught_at), theirs, reduction="none", log_target=True).sum(-1)
        if len(packed.taught_at) == len(packed.targets):
            return divergence, own
        return cross_entropy(own, packed.targets, reduction="none").index_copy(0, packed.taught_at, divergence), own

    def _beside(
        self, packed: Packed, tables: Tables, noise: torch.Tensor | None, taught: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the targets, and those of the teacher's states `taught`, in float32."""
        if self.teacher is not None:
            with torch.no_grad():
                theirs = self.teacher(taught)
            return self._logits(packed, tables, noise).float(), theirs.float()

        def beside(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden, *others = given
            return torch.cat([hidden, taught[None].to(hidden.dtype)], dim=1), *others

        with before(self.model.get_output_embeddings(), beside):  # whatever is done to logits is done to both
            logits = self._logits(packed, tables, noise).float()
        return logits[: len(packed.targets)], logits[len(packed.targets) :]

    @torch.no_grad()
    def hidden(self, packed: Packed, tables: Tables) -> torch.Tensor:
        """`[targets, hidden]`, what the output head is given for each target: all that its logits are made of. Within
        `running()`."""
        seen: list[torch.Tensor] = []

        def look(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            seen.append(given[0][0].float())

        with before(self.model.get_output_embeddings(), look):
            self._logits(packed, tables, None)
        return seen[0]

    def _logits(self, packed: Packed, tables: Tables, noise: torch.Tensor | None) -> torch.Tensor:
        embeddings = self.model.get_input_embeddings()(packed.tokens)
        if noise is not None:
            embeddings = embeddings + noise.to(embeddings.dtype)
        if tables.vectors is not None and len(packed.vector_at):
            vectors = embedding(packed.vector_from, tables.vectors).to(embeddings.dtype)
            embeddings = embeddings.index_copy(0, packed.vector_at, vectors)
        self._packed = packed
        self._prefixes = ()
        if packed.prefix_from is not None:
            assert tables.prefixes is not None
            by_layer = tables.prefixes.view(len(tables.prefixes), 2 * self.layers, -1)
            self._prefixes = by_layer.transpose(0, 1).contiguous().unbind(0)
        self.attention.begin(packed)
        hooks = [
            hook for rows in packed.low_rank for hook in (tables.low_rank or {})[rows.cohort].attach(self.model, rows)
        ]
        try:
            logits: torch.Tensor = self.model(
                inputs_embeds=embeddings[None],
                position_ids=packed.positions[None],
                attention_mask=None,
                use_cache=False,
                logits_to_keep=packed.wanted,
            ).logits[0]
        finally:
            self._hooks = hooks
            if not (self.checkpointing and torch.is_grad_enabled()):
                self.detach()
        return logits

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
            layer: Any = module.layer_idx
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


@contextmanager
def before(module: Any, hook: Callable[..., Any]) -> Iterator[None]:
    """Within it `hook(module, given)` runs before each forward of `module`; what it returns is given instead."""
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


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


def prove(frozen: FrozenBase, vocab_size: int) -> None:
    """Two packed rows against the module's own attention, one row at a time. Raises `InvalidRequest` where they differ
    by more than rounding: such a base can't be trained on packed."""
    from softmux.tuning.packing import Place, pack, prepare
    from softmux.tuning.rows import Row

    rows = [Row(tuple((7 * i + 3) % vocab_size for i in range(n)), tuple(range(1, 6))) for n in (9, 4)]
    prepared = [prepare(row, 0, 1.0) for row in rows]
    with torch.no_grad():
        with frozen.running():
            packed = frozen.losses(pack([(row, Place(0)) for row in prepared], frozen.device), Tables())
        alone = []
        for row in prepared:
            ids = torch.from_numpy(row.ids).to(frozen.device)
            logits = frozen.model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
            alone.append(cross_entropy(logits, ids[1:], reduction="none"))
    expected = torch.cat(alone)
    allowed = 1e-3 if frozen.dtype == torch.float32 else 0.08
    if not torch.allclose(packed, expected, rtol=allowed, atol=allowed):
        raise InvalidRequest(
            f"{type(frozen.model).__name__} gives other values for packed rows than for rows alone "
            f"(by up to {float((packed - expected).abs().max()):.2g}): softmux can't tune on it.",
            param="base",
        )


def padded_base(model: Any) -> FrozenBase:
    """With the attention that runs anywhere."""
    return FrozenBase(model, attention=PaddedAttention())
