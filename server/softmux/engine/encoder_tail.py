"""An encoder's last layer, run for the tokens alone that heads read.

What follows the last layer is a head, and of a sequence it reads one hidden state. The layer's keys and values are
needed of every token, its queries, its output and its feed-forward of those that are read: of BERT's build two twelfths
of its products remain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from softmux.engine.attention.base import AttentionBackend

_BUILD = frozenset({"BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer"})
_FEW = 0.5
"""Above this share of the tokens the whole layer is as good."""


class LastLayer:
    """Stands in for the layer's own `forward` from `attach` on; the module's parts, and their names, stay as they are.

    `read` says before a forward which tokens count (`[read]`, int64); None: all, by the layer's own code.
    """

    def __init__(self, layer: Any, backend: Callable[[], AttentionBackend]) -> None:
        self._layer = layer
        self._backend = backend
        self._whole: Callable[..., torch.Tensor] = layer.forward
        self._attached = False
        self.at: torch.Tensor | None = None

    @classmethod
    def of(cls, module: Any, backend: Callable[[], AttentionBackend]) -> LastLayer | None:
        """Of a module whose layers are of BERT's build; None for another. `backend` gives the one of the step."""
        layers = getattr(getattr(module.base_model, "encoder", None), "layer", None)
        return cls(layers[-1], backend) if layers and type(layers[-1]).__name__ in _BUILD else None

    def attach(self) -> None:
        self._layer.forward, self._attached = self.forward, True

    def detach(self) -> None:
        self._layer.forward, self._attached = self._whole, False

    def read(self, at: torch.Tensor | None, tokens: int) -> None:
        """Of a step of so many `tokens`."""
        few = self._attached and at is not None and 0 < len(at) <= _FEW * tokens
        self.at = at if few else None

    def forward(self, hidden_states: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        """`[1, tokens, width]` → `[1, read, width]`."""
        if self.at is None:
            return self._whole(hidden_states, *rest, **named)
        own, x = self._layer.attention.self, hidden_states[0]
        read = x[self.at]
        asked = own.query(read)
        query = asked.new_zeros((len(x), asked.shape[1])).index_copy_(0, self.at, asked)
        context = self._backend().attend(
            own.layer_idx,
            *(part.view(len(x), -1, own.attention_head_size) for part in (query, own.key(x), own.value(x))),
            scaling=own.scaling,
            window=None,
            softcap=None,
        )
        attended = self._layer.attention.output(context[self.at].flatten(1), read)
        output: torch.Tensor = self._layer.feed_forward_chunk(attended)
        return output[None]
