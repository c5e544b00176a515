"""Which part of a model is whose: heads and inner units by rank, and what follows for weights and adapters."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from softmux.engine.arena import Empty, pageable
from softmux.engine.delta import UNIT, Delta, LowRank
from softmux.engine.host_adapter import HostAdapter
from softmux.errors import SelfTestFailed

KNOWN = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
)
"""Decoders whose layers are `self_attn` (q, k, v, o) and `mlp` (gate, up, down), with norms of whole rows or heads."""


class Part(NamedTuple):
    """`begin … end` of a dimension of a weight `[outputs, inputs]`."""

    dim: int
    begin: int
    end: int


def refusal(architecture: str, config: Any, size: int) -> str | None:
    """Why a model can't be cut in `size` parts, and what to do; None where it can."""
    if architecture not in KNOWN:
        return f"{architecture} runs in one process only: leave --tensor-parallel out, or serve {', '.join(KNOWN)}"
    heads, inner = int(config.num_attention_heads), int(config.intermediate_size)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    fits = [n for n in range(1, 65) if heads % n == 0 and inner % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
    if size in fits:
        return None
    return (
        f"{heads} attention heads, {kv_heads} of keys and values, and {inner} inner units can't be dealt out to {size} "
        f"processes alike: --tensor-parallel takes {', '.join(map(str, fits))} for this model"
    )


@dataclass(frozen=True, slots=True)
class Cut:
    """What rank `rank` of `size` has of a model of these whole numbers. Queries' heads, and inner units, in `size`
    equal parts; heads of keys and values as well, or, where there are fewer of them than ranks, each on several ranks;
    the output's rows in equal parts, the last filled up with zeros."""

    rank: int
    size: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any, rank: int, size: int) -> Cut:
        heads = int(config.num_attention_heads)
        return cls(
            rank=rank,
            size=size,
            heads=heads,
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            inner=int(config.intermediate_size),
            vocabulary=int(config.vocab_size),
        )

    @property
    def own_kv(self) -> tuple[int, int]:
        """First of its heads of keys and values, and the one behind the last."""
        if self.kv_heads < self.size:
            first = self.rank * self.kv_heads // self.size
            return first, first + 1
        each = self.kv_heads // self.size
        return self.rank * each, (self.rank + 1) * each

    @property
    def output_rows(self) -> int:
        """Rows of the output projection that each rank has, filling included."""
        return -(-self.vocabulary // self.size)

    def config(self, whole: Any) -> Any:
        """That of the rank's own module: a smaller model's, but for the embeddings."""
        own = copy.deepcopy(whole)
        own.head_dim = self.head_dim
        own.num_attention_heads = self.heads // self.size
        own.num_key_value_heads = self.own_kv[1] - self.own_kv[0]
        own.intermediate_size = self.inner // self.size
        return own

    def part(self, module: str) -> Part | None:
        """Of the weight of a linear module, by its path; None: it has all of it."""
        each, inner = self.heads // self.size * self.head_dim, self.inner // self.size
        first, end = self.own_kv
        match module.rpartition(".")[2]:
            case "q_proj":
                return Part(0, self.rank * each, (self.rank + 1) * each)
            case "k_proj" | "v_proj":
                return Part(0, first * self.head_dim, end * self.head_dim)
            case "o_proj":
                return Part(1, self.rank * each, (self.rank + 1) * each)
            case "gate_proj" | "up_proj":
                return Part(0, self.rank * inner, (self.rank + 1) * inner)
            case "down_proj":
                return Part(1, self.rank * inner, (self.rank + 1) * inner)
            case _:
                return None

    def adapter(self, whole: HostAdapter, empty: Empty = pageable) -> HostAdapter:
        """What the rank needs of an adapter: learned vectors whole, keys and values of its heads, of a LoRA the rows of
        b where it has rows of the weight, the columns of a where it has columns. Heads are rank 0's."""
        prefix, first, end = whole.prefix, *self.own_kv
        if prefix is not None:
            shape = (*prefix.shape[:3], end - first, prefix.shape[4])
            prefix = empty(shape, prefix.dtype).copy_(prefix[:, :, :, first:end])
        reads = self.rank == 0
        return dataclasses.replace(
            whole,
            vectors=None
            if whole.vectors is None
            else empty(tuple(whole.vectors.shape), whole.vectors.dtype).copy_(whole.vectors),
            prefix=prefix,
            delta=None if whole.delta is None else self._delta(whole.delta, empty),
            head=whole.head if reads else None,
            head_shape=whole.head_shape if reads else None,
        )

    def _delta(self, whole: Delta, empty: Empty) -> Delta:
        pieces: list[tuple[int, torch.Tensor]] = []
        size = 0

        def place(tensor: torch.Tensor) -> int:
            nonlocal size
            at = size
            pieces.append((at, tensor))
            size += -(-tensor.numel() // UNIT) * UNIT
            return at

        updates = []
        for update in whole.updates:
            a, b, part = whole.a(update), whole.b(update), self.part(update.name)
            if part is not None and part.dim == 0:
                b = b[:, part.begin : part.end]
            elif part is not None:
                a = a[:, part.begin : part.end]
            updates.append(LowRank(update.name, update.rank, a.shape[1], b.shape[1], place(a), place(b)))
        tables = tuple(
            type(table)(table.side, table.ids, table.width, place(whole.rows(table))) for table in whole.tables
        )
        data = empty((size,), whole.data.dtype).zero_()
        for at, tensor in pieces:
            data[at : at + tensor.numel()] = tensor.reshape(-1)
        return Delta(data, tuple(updates), tables)


def refuse(words: str | None) -> None:
    if words is not None:
        raise SelfTestFailed(words)
