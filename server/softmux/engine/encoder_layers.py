"""An encoder of BERT's build, run through its own linear layers and norms, and nothing around them.

transformers' modules for a layer cost the host some four times what its launches do, and a GPU is done with a step of
short texts sooner than the host has gone through them. What is computed is the same, by the same modules, in the same
order.

What follows the last layer is a head, and of a sequence it reads one hidden state. The layer's keys and values are
needed of every token, its queries, its output and its feed-forward of those that are read: of BERT's build two twelfths
of its products remain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

_BUILD = frozenset({"BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer"})
_FEW = 0.5
"""Above this share of the tokens the whole last layer is as good."""

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""A layer's number, its queries, keys and values `[tokens, heads, head_dim]`, the scaling → `[tokens, heads,
head_dim]`."""


@dataclass(slots=True, frozen=True)
class _Layer:
    """A layer's own modules, whatever holds their weights."""

    number: int
    query: Any
    key: Any
    value: Any
    out: Any
    out_norm: Any
    up: Any
    activation: Any
    down: Any
    down_norm: Any
    width: int
    scaling: float

    @classmethod
    def of(cls, layer: Any) -> _Layer:
        own, out = layer.attention.self, layer.attention.output
        return cls(
            own.layer_idx, own.query, own.key, own.value, out.dense, out.LayerNorm, layer.intermediate.dense,
            layer.intermediate.intermediate_act_fn, layer.output.dense, layer.output.LayerNorm,
            own.attention_head_size, own.scaling,
        )  # fmt: skip

    def __call__(self, x: torch.Tensor, attend: Attend, at: torch.Tensor | None) -> torch.Tensor:
        """`[tokens, width]` → `[tokens, width]`, or `[read, width]` of those that are read, `at`."""
        read = x if at is None else x.index_select(0, at)
        query = self.query(read)
        if at is not None:
            query = query.new_zeros((len(x), query.shape[1])).index_copy_(0, at, query)
        query, key, value = (part.view(len(x), -1, self.width) for part in (query, self.key(x), self.value(x)))
        context = attend(self.number, query, key, value, self.scaling)
        if at is not None:
            context = context.index_select(0, at)
        attended = self.out_norm(self.out(context.flatten(1)) + read)
        output: torch.Tensor = self.down_norm(self.down(self.activation(self.up(attended))) + attended)
        return output


class EncoderLayers:
    """Stands in for the base model's own `forward` from `attach` on, where it is given what steps give it; for all else
    that stays as it is, and the module's parts, their names and hooks on them do.

    `read` says before a forward which tokens count (`[read]`, int64); None: all.
    """

    def __init__(self, base: Any, attend: Attend) -> None:
        self._base = base
        self._attend = attend
        self._whole: Callable[..., Any] = base.forward
        self._layers: list[_Layer] = []
        self._attached = False
        self.at: torch.Tensor | None = None

    @classmethod
    def of(cls, module: Any, attend: Attend) -> EncoderLayers | None:
        """Of a module whose layers are of BERT's build; None for another."""
        layers = getattr(getattr(module.base_model, "encoder", None), "layer", None)
        return cls(module.base_model, attend) if layers and type(layers[-1]).__name__ in _BUILD else None

    def attach(self) -> None:
        """What the modules are now is what runs: another `attach` sees what has taken their places."""
        self._layers = [_Layer.of(layer) for layer in self._base.encoder.layer]
        self._base.forward, self._attached = self.forward, True

    def detach(self) -> None:
        self._base.forward, self._attached = self._whole, False

    def read(self, at: torch.Tensor | None, tokens: int) -> None:
        """Of a step of so many `tokens`."""
        few = self._attached and at is not None and 0 < len(at) <= _FEW * tokens
        self.at = at if few else None

    def forward(self, *given: Any, **named: Any) -> Any:
        """`inputs_embeds [1, tokens, width]` and `position_ids [1, tokens]` → `([1, read, width],)`."""
        if given or named.keys() != {"inputs_embeds", "position_ids", "use_cache"}:
            return self._whole(*given, **named)
        x = self._embedded(named["inputs_embeds"][0], named["position_ids"][0])
        last = len(self._layers) - 1
        for number, layer in enumerate(self._layers):
            x = layer(x, self._attend, self.at if number == last else None)
        return (x[None],)

    def _embedded(self, embeddings: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """With all tokens of the first type, as the base takes those of which it is told nothing."""
        own = self._base.embeddings
        x = own.LayerNorm(embeddings + own.token_type_embeddings.weight[0] + own.position_embeddings(positions))
        projected: torch.Tensor = self._base.embeddings_project(x) if hasattr(self._base, "embeddings_project") else x
        return projected
