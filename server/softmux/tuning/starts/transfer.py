"""A task's start, begun from another's numbers, or as a residual over them.

Begun so, the task is at step 0 what the other is (SPoT, arXiv 2110.07904). What lengths or ranks differ by is cut, or
is the start's own. As a residual, the other's numbers stay, and what is learned is added: zero at step 0, of low rank
where the recipe says so (a skip connection over a prompt, as in residual prompt tuning, arXiv 2305.03937, here over a
prompt that is frozen, and without its network).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from softmux.errors import InvalidRequest
from softmux.formats.parts import LoraLayer, LoraPart, PrefixPart
from softmux.tuning.recipes.recipe import Lora, LoraPrefixTuning, MethodRecipe
from softmux.tuning.starts.origin import PARAM, Begun, Origin
from softmux.tuning.training.cohort import Start

Pair = tuple[torch.Tensor, torch.Tensor]
_VECTORS = "embedding.weight"
"""What PEFT calls the vectors, or keys and values, that are learned directly."""


@dataclass(frozen=True, slots=True)
class Transferred:
    """`words` say what was taken; `warning` what was lost of it, None where nothing was."""

    start: Start
    words: str
    warning: str | None


class LowRankVectors(nn.Module):
    """`[outputs, width]` of rank `rank`, zero at first: a · b, with b zero and a of variance 1 / rank, so that a step
    of b moves the product about as far as the same step would move its numbers themselves."""

    def __init__(self, outputs: int, width: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(outputs, rank) / math.sqrt(rank))
        self.b = nn.Parameter(torch.zeros(rank, width))

    def forward(self, which: torch.Tensor) -> torch.Tensor:
        return self.a[which] @ self.b

    def extra_repr(self) -> str:
        return f"{tuple(self.a.shape)}, {tuple(self.b.shape)}"


def start_method(method: MethodRecipe, origin: Origin | None) -> MethodRecipe:
    """The method with what it leaves to its origin: the modules of a LoRA."""
    if not isinstance(method, Lora | LoraPrefixTuning) or origin is None or origin.lora is None:
        return method
    if method.target_modules is not None:
        return method
    return method.model_copy(
        update={"target_modules": sorted({name.rpartition(".")[2] for name in origin.lora.layers})}
    )


def saved_method(method: MethodRecipe, origin: Origin | None) -> MethodRecipe:
    """The method that an ordinary adapter of what was learned has: a LoRA's residual adds its rank to the origin's."""
    method = start_method(method, origin)
    if not isinstance(method, Lora | LoraPrefixTuning) or origin is None or origin.lora is None or not method.residual:
        return method
    rank = method.rank + origin.lora.max_rank
    return method.model_copy(update={"rank": rank, "alpha": method.alpha / method.rank * rank})


def transferred(start: Start, method: Begun, origin: Origin) -> Transferred:
    """`start`, which is the method's own, begun from `origin`. Random parts come from torch's global generator: seed it
    first. Raises `InvalidRequest` where a LoRA's modules do not fit."""
    said, lost = [], []
    if start.soft is not None:
        own = start.values()[f"soft.{_VECTORS}"].cpu()
        flat = _flat(origin, own.shape[1]).to(own.dtype)
        taken = min(len(own), len(flat))
        vectors = torch.cat([flat[:taken], own[taken:]])
        start = replace(start, soft=_embedding(start.soft, vectors))
        what = "keys and values a layer" if start.is_prefix else "vectors"
        said.append(_counted(taken, len(flat), len(own), what))
        if taken < len(flat):
            lost.append(f"its last {len(flat) - taken} of {len(flat)} {what} were cut off")
        if method.residual:
            start = replace(start, soft=_residual(method, vectors), over=vectors)
    if origin.lora is not None:
        pairs, kept = _fitted(start, origin.lora, None if method.residual else _rank(start))
        start = replace(start, under=pairs) if method.residual else replace(start, low_rank=pairs)
        said.append(f"a LoRA of rank {origin.lora.max_rank}")
        if kept < 1:
            lost.append(
                f"its LoRA was cut from rank {origin.lora.max_rank} to {_rank(start)}, which keeps "
                f"{100 * kept:.1f} % of it (of the squares of its singular values)"
            )
    words = f"{origin.name} ({origin.digest}): {' and '.join(said)}"
    if method.residual:
        words += f", as they were; what was learned{_of_rank(method)} is added to them"
    return Transferred(start, words, f"begun from {origin.name}: {', and '.join(lost)}" if lost else None)


def _counted(taken: int, had: int, wanted: int, what: str) -> str:
    rest = f" in front of {wanted - taken} of this task's own" if taken < wanted else ""
    return (f"its first {taken} of {had} {what}" if taken < had else f"all its {had} {what}") + rest


def _of_rank(method: Begun) -> str:
    if isinstance(method, Lora):
        return f" (rank {method.rank})"
    return f" (rank {method.residual_rank})" if method.residual_rank is not None else ""


def _flat(origin: Origin, width: int) -> torch.Tensor:
    """`[k, width]`, laid out as PEFT saves them: of a prefix, layer by layer keys, then values."""
    part = origin.prefix or origin.vectors
    assert part is not None
    if isinstance(part, PrefixPart):
        stacked = np.stack([part.keys, part.values]).transpose(2, 1, 0, 3, 4)
        if origin.family == "encoder-decoder":
            stacked = _undealt(origin.name, stacked, width // int(np.prod(stacked.shape[2:])))
        return torch.from_numpy(np.ascontiguousarray(stacked.reshape(part.virtual_tokens, -1)))
    return torch.from_numpy(part.vectors.copy())


def _undealt(name: str, stacked: Any, layers: int) -> Any:
    """An encoder-decoder's prefix `[k, decoder's layers, 2, heads, head_dim]` as PEFT keeps it, in `layers` layers, of
    which decoder layer l is given the one at 2l, counted around (`formats.methods.prefix`). The others are zero.

    Raises `InvalidRequest` where two layers that would have one place differ: it was made with other `num_layers`."""
    kept = np.zeros((len(stacked), layers, *stacked.shape[2:]), stacked.dtype)
    places = [2 * layer % layers for layer in range(stacked.shape[1])]
    kept[:, places] = stacked
    if not np.array_equal(kept[:, places], stacked):
        raise InvalidRequest(
            f"{name} was made with num_layers that are not this base's encoder's, so that nothing tuned here can begin "
            "as it is: begin from another.",
            param=PARAM,
        )
    return kept


def _embedding(soft: nn.Module, vectors: torch.Tensor) -> nn.Module:
    """A module of the same kind that makes `vectors`."""
    made = copy.deepcopy(soft)
    with torch.no_grad():
        dict(made.named_parameters())[_VECTORS].copy_(vectors)
    return made


def _residual(method: Begun, vectors: torch.Tensor) -> nn.Module:
    outputs, width = vectors.shape
    if not isinstance(method, Lora) and method.residual_rank is not None:
        return LowRankVectors(outputs, width, method.residual_rank)
    return nn.Embedding(outputs, width, _weight=torch.zeros(outputs, width))


def _rank(start: Start) -> int:
    return next(len(a) for a, _ in start.low_rank.values())


def _fitted(start: Start, lora: LoraPart, rank: int | None) -> tuple[dict[str, Pair], float]:
    """The LoRA by the start's modules and in its scaling, of `rank` (None: its own highest), and the least share of a
    module's update that is kept. Modules that it does not have are as in the start, or, at its own rank, zero."""
    if missing := sorted(set(lora.layers) - set(start.low_rank)):
        names = sorted({name.rpartition(".")[2] for name in lora.layers})
        raise InvalidRequest(
            f"init_from names a LoRA of {', '.join(names)}, and this recipe's has nothing at {missing[0]}: leave "
            f"target_modules out, or name them all.",
            param=PARAM,
        )
    found, kept = {}, 1.0
    for name, (a, b) in start.low_rank.items():
        a, b = a.cpu(), b.cpu()
        wide = rank or lora.max_rank
        if name not in lora.layers:
            found[name] = (a, b) if rank else (a.new_zeros(wide, a.shape[1]), b.new_zeros(b.shape[0], wide))
            continue
        layer_a, layer_b, share = _cut(lora.layers[name], wide, start.scaling)
        kept, lacks = min(kept, share), wide - len(layer_a)
        more = a[len(layer_a) :] if rank else a.new_zeros(lacks, a.shape[1])
        found[name] = (torch.cat([layer_a, more]), torch.cat([layer_b, b.new_zeros(len(b), lacks)], 1))
    return found, kept


def _cut(layer: LoraLayer, rank: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The layer's (a, b) for another scaling. Of a higher rank than `rank`, the best of that rank: its update's largest
    singular values, found without the update itself, and what share of all their squares these have."""
    a, b = torch.from_numpy(layer.a.copy()), torch.from_numpy(layer.b.copy()) * (layer.scaling / scaling)
    if len(a) <= rank:
        return a, b, 1.0
    left, upper = torch.linalg.qr(b)
    right, lower = torch.linalg.qr(a.T)
    u, sizes, v = torch.linalg.svd(upper @ lower.T)
    roots = sizes[:rank].sqrt()
    share = float(sizes[:rank].square().sum() / sizes.square().sum()) if sizes.any() else 1.0
    return roots[:, None] * (right @ v.T[:, :rank]).T, (left @ u[:, :rank]) * roots, share
