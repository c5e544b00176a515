"""Heads of many tasks on one frozen encoder: each reads the states of its own tasks' targets in a pack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call, vmap

from softmux.tuning.frozen.packing import Members


class Head(nn.Module):
    """What stands on an encoder's last hidden states: `[states, hidden]` in, `[states, labels]` out. The modules are
    the model's own. A sequence's (`first`) read a row's first state, and think it is all of the row; `pooler` is what
    stands between, where the model has one. `learned` are the names of what the task learns, in order."""

    def __init__(self, classifier: nn.Module, pooler: nn.Module | None, *, first: bool, learns_pooler: bool) -> None:
        super().__init__()
        self.classifier, self.pooler, self.first = classifier, pooler, first
        named = [name for name, _ in self.named_parameters()]
        self.learned = [name for name in named if learns_pooler or not name.startswith("pooler.")]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        given = states[:, None] if self.first else states
        logits: torch.Tensor = self.classifier(given if self.pooler is None else self.pooler(given))
        return logits

    @property
    def labels(self) -> int:
        return len(list(self.classifier.parameters())[-1])

    def values(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The numbers that are learned, by name."""
        own = dict(self.named_parameters())
        return ((name, own[name]) for name in self.learned)


@dataclass(frozen=True, slots=True)
class StackedHeads:
    """Those of one cohort: `values` by name `[tasks, …]`; what `head` has of numbers beside these is the base's."""

    head: Head
    values: Mapping[str, torch.Tensor]

    def logits(self, states: torch.Tensor, rows: Members) -> torch.Tensor:
        """`[len(rows.at), labels]` of the pack's states `[targets, hidden]`, in float32."""
        own = states.float().index_select(0, rows.padded.flatten()).view(*rows.padded.shape, -1)
        values = {name: value.index_select(0, rows.members) for name, value in self.values.items()}

        def read(one: dict[str, torch.Tensor], given: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = functional_call(self.head, one, (given,))
            return out

        logits: torch.Tensor = vmap(read)(values, own)
        return logits.flatten(0, 1).index_select(0, rows.flat)
