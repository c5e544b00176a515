"""Tasks that learn numbers of the same shapes, stacked: one tensor a parameter, `[tasks, …]`.

What makes their vectors, and their optimiser, run for all of them in the same few operations. Nothing is summed over
tasks, so each goes the way that it would go alone. A task joins at the end and leaves from anywhere; what is behind it
moves up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vmap

from softmux.tuning.frozen.low_rank import LowRank
from softmux.tuning.frozen.stacked_heads import Head, StackedHeads
from softmux.tuning.frozen.tables import Tables

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class Start:
    """What a task begins with. `soft` makes `outputs` vectors, or a prefix's keys and values, from their numbers; its
    values are the start's. `low_rank`: by module, (a, b) of a LoRA of this `scaling`. `head`: what stands on the last
    hidden states, on an encoder.

    What is learned may be a residual: `over` `[outputs, width]` is added to what `soft` makes, and `under` is a LoRA of
    the same modules and scaling beside the learned one. Neither changes.
    """

    soft: nn.Module | None
    outputs: int
    is_prefix: bool
    low_rank: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scaling: float = 1.0
    over: torch.Tensor | None = None
    under: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    head: Head | None = None

    def values(self) -> dict[str, torch.Tensor]:
        """Every number that is learned, by name, in the order that `methods.Learned.parameters` has."""
        found = {} if self.soft is None else {f"soft.{name}": p.detach() for name, p in self.soft.named_parameters()}
        for name, (a, b) in self.low_rank.items():
            found |= {f"a.{name}": a.detach(), f"b.{name}": b.detach()}
        if self.head is not None:
            found |= {f"head.{name}": value.detach() for name, value in self.head.values()}
        return found

    def fixed(self) -> dict[str, torch.Tensor]:
        """What a residual is over, by name."""
        found = {} if self.over is None else {"over": self.over}
        for name, (a, b) in self.under.items():
            found |= {f"a.{name}": a, f"b.{name}": b}
        return found

    @torch.no_grad()
    def folded(self, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What was learned (`values`, by name) with what it is over: the numbers of a plain adapter, those of its
        vectors in `soft.embedding.weight`. A LoRA's rank is the sum of both."""
        found = dict(values)
        if self.over is not None:
            assert self.soft is not None
            own = {name: found.pop(f"soft.{name}") for name, _ in self.soft.named_parameters()}
            over = self.over.to(next(iter(own.values())).device)
            made = functional_call(self.soft, own, (torch.arange(self.outputs, device=over.device),))
            found["soft.embedding.weight"] = over + made
        for name, (a, b) in self.under.items():
            a, b = a.to(found[f"a.{name}"].device), b.to(found[f"b.{name}"].device)
            found |= {
                f"a.{name}": torch.cat([a, found[f"a.{name}"]]),
                f"b.{name}": torch.cat([b, found[f"b.{name}"]], 1),
            }
        return found

    @property
    def shape(self) -> tuple[Any, ...]:
        """Equal for starts that can be stacked."""
        soft = f"{self.soft}{self.head}"
        values, fixed = self.values().items(), self.fixed().items()
        return (
            soft,
            self.head is not None and self.head.first,
            self.is_prefix,
            self.scaling,
            *((name, tuple(v.shape)) for name, v in (*values, *fixed)),
        )


@dataclass(slots=True)
class Adam:
    """One task's optimiser, or, as `Cohort` holds it, that of each of several: how many steps it has made."""

    first: list[torch.Tensor]
    second: list[torch.Tensor]
    steps: list[int]


@dataclass(frozen=True, slots=True)
class Rates:
    """How a member is updated in a step."""

    learning_rate: float
    weight_decay: float
    clip_norm: float


class Cohort:
    """`values[i]` is the i-th parameter of every member, and `names[i]` its name."""

    def __init__(self, start: Start, device: torch.device) -> None:
        self._soft, self._head = start.soft, start.head
        self.outputs, self.is_prefix, self._scaling = start.outputs, start.is_prefix, start.scaling
        self.names = list(start.values())
        self.values = [
            torch.empty((0, *value.shape), dtype=torch.float32, device=device) for value in start.values().values()
        ]
        self.adam = Adam([v.clone() for v in self.values], [v.clone() for v in self.values], [])
        self._fixed = {
            name: torch.empty((0, *value.shape), dtype=torch.float32, device=device)
            for name, value in start.fixed().items()
        }
        self.device = device

    @property
    def size(self) -> int:
        return len(self.adam.steps)

    @property
    def has_low_rank(self) -> bool:
        return any(name.startswith("a.") for name in self.names)

    @property
    def has_head(self) -> bool:
        return self._head is not None

    def add(self, values: Sequence[torch.Tensor], adam: Adam | None = None, start: Start | None = None) -> int:
        """Joins a task with these values; its index. Without `adam` it has made no step. `start`: the task's, for what
        its residual is over."""
        fixed = {} if start is None else start.fixed()
        own = [fixed[name].to(self.device, torch.float32) for name in self._fixed]
        self._fixed = dict(zip(self._fixed, _joined(list(self._fixed.values()), own), strict=True))
        values = [value.to(self.device, torch.float32) for value in values]
        zeros = [torch.zeros_like(value) for value in values]
        first, second = (zeros, zeros) if adam is None else (adam.first, adam.second)
        self.values = _joined(self.values, values)
        self.adam = Adam(
            _joined(self.adam.first, [x.to(self.device) for x in first]),
            _joined(self.adam.second, [x.to(self.device) for x in second]),
            [*self.adam.steps, 0 if adam is None else adam.steps[0]],
        )
        return self.size - 1

    def remove(self, index: int) -> None:
        kept = torch.tensor([i for i in range(self.size) if i != index], device=self.device, dtype=torch.int64)
        self.values = [value.detach().index_select(0, kept) for value in self.values]
        self._fixed = {name: value.index_select(0, kept) for name, value in self._fixed.items()}
        self.adam = Adam(
            [x.index_select(0, kept) for x in self.adam.first],
            [x.index_select(0, kept) for x in self.adam.second],
            [step for i, step in enumerate(self.adam.steps) if i != index],
        )

    def member(self, index: int) -> list[torch.Tensor]:
        """A copy of one task's values."""
        return [value[index].detach().clone() for value in self.values]

    def member_adam(self, index: int) -> Adam:
        return Adam(
            [x[index].clone() for x in self.adam.first],
            [x[index].clone() for x in self.adam.second],
            [self.adam.steps[index]],
        )

    def leaves(self) -> list[torch.Tensor]:
        """The stacked parameters, with gradients wanted."""
        self.values = [value.detach().requires_grad_() for value in self.values]
        return self.values

    def made(self) -> torch.Tensor | None:
        """`[members, outputs, width]`: the vectors, or prefixes, of every member."""
        if self._soft is None:
            return None
        own = self._named("soft.")
        which = torch.arange(self.outputs, device=self.device)
        soft = self._soft

        def make(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
            out: torch.Tensor = functional_call(soft, parameters, (which,))
            return out

        if any(isinstance(module, nn.LSTM) for module in soft.modules()):  # has no batched form over weights
            apart = {name: value.unbind(0) for name, value in own.items()}
            return torch.stack([make({name: values[i] for name, values in apart.items()}) for i in range(self.size)])
        batched: Callable[..., torch.Tensor] = vmap(make)
        made = batched(own)
        return made + self._fixed["over"] if "over" in self._fixed else made

    def low_rank(self) -> LowRank:
        by_name = dict(zip(self.names, self.values, strict=True))
        modules = [name.removeprefix("a.") for name in self.names if name.startswith("a.")]
        pairs = {name: (by_name[f"a.{name}"], by_name[f"b.{name}"]) for name in modules}
        for name in modules:
            if f"a.{name}" in self._fixed:
                a, b = pairs[name]
                pairs[name] = (torch.cat([self._fixed[f"a.{name}"], a], 1), torch.cat([self._fixed[f"b.{name}"], b], 2))
        return LowRank(pairs, self._scaling)

    def heads(self) -> StackedHeads:
        assert self._head is not None
        return StackedHeads(self._head, self._named("head."))

    def _named(self, kind: str) -> dict[str, torch.Tensor]:
        named = zip(self.names, self.values, strict=True)
        return {name.removeprefix(kind): value for name, value in named if name.startswith(kind)}

    @torch.no_grad()
    def update(self, rates: Sequence[Rates]) -> None:
        """A step of AdamW for every member by its own gradient, clipped to its own norm, at its own rate."""
        gradients = [torch.zeros_like(v) if v.grad is None else v.grad for v in self.values]
        self.adam.steps = [step + 1 for step in self.adam.steps]
        squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients])
        limit = self._each([rate.clip_norm for rate in rates])
        scale = (limit / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
        first_correction = [1 - BETAS[0] ** step for step in self.adam.steps]
        second_correction = self._each([(1 - BETAS[1] ** step) ** 0.5 for step in self.adam.steps])
        shrink = self._each([1 - rate.learning_rate * rate.weight_decay for rate in rates])
        size = self._each([rate.learning_rate / c for rate, c in zip(rates, first_correction, strict=True)])
        for value, gradient, first, second in zip(
            self.values, gradients, self.adam.first, self.adam.second, strict=True
        ):
            shape = (-1, *(1,) * (value.dim() - 1))
            gradient = gradient * scale.view(shape)
            first.lerp_(gradient, 1 - BETAS[0])
            second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            steady = second.sqrt().div_(second_correction.view(shape)).add_(EPSILON)
            value.mul_(shrink.view(shape)).sub_(first / steady * size.view(shape))
            value.grad = None

    def _each(self, numbers: Sequence[float]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.float32, device=self.device)


def tables_of(
    cohorts: Sequence[Cohort], made: Sequence[torch.Tensor | None]
) -> tuple[Tables, list[tuple[torch.Tensor, torch.Tensor]]]:
    """The step's tables, and (what a cohort made, the leaf that stands for it in the tables): packs add up gradients
    on the leaves, and what makes the vectors is gone back through once."""
    parts = []
    vectors: list[torch.Tensor] = []
    prefixes: list[torch.Tensor] = []
    for cohort, out in zip(cohorts, made, strict=True):
        if out is None:
            continue
        leaf = out.detach().requires_grad_(torch.is_grad_enabled())
        parts.append((out, leaf))
        (prefixes if cohort.is_prefix else vectors).append(leaf.flatten(0, 1))
    return Tables(
        torch.cat(vectors) if vectors else None,
        torch.cat(prefixes) if prefixes else None,
        {number: cohort.low_rank() for number, cohort in enumerate(cohorts) if cohort.has_low_rank},
        {number: cohort.heads() for number, cohort in enumerate(cohorts) if cohort.has_head},
    ), parts


def _joined(stacked: Sequence[torch.Tensor], own: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [torch.cat([many.detach(), one[None]]) for many, one in zip(stacked, own, strict=True)]
