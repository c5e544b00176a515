"""What an adapter is made of once its files are read: parts, in the order in which they act on a request.

The engine knows parts, not methods. A part's `kind` is the word by which an engine says that it runs such parts
(`ModelSpec.serves`). All arrays are float32, C-contiguous, and finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from softmux.types import HeadKind, ProblemType

Float32Array = NDArray[np.float32]
Activation = Literal["tanh", "gelu", "relu"]


@dataclass(frozen=True, slots=True, eq=False)
class PromptPart:
    """Learned input embeddings. `vectors` is `[k, hidden]`; row i is what virtual token i stands for.

    A vector takes the place of what the model's embedding module gives for a token id.
    """

    kind: ClassVar[str] = "prompt"
    vectors: Float32Array

    @property
    def virtual_tokens(self) -> int:
        return int(self.vectors.shape[0])

    def arrays(self) -> Iterator[tuple[str, Float32Array]]:
        yield "vectors", self.vectors


@dataclass(frozen=True, slots=True, eq=False)
class PrefixPart:
    """Learned keys and values of k leading positions, `[layers, k, kv_heads, head_dim]` each.

    Keys are stored as attention uses them: no rotary embedding is to be applied (PEFT applies none).
    """

    kind: ClassVar[str] = "prefix"
    keys: Float32Array
    values: Float32Array

    @property
    def virtual_tokens(self) -> int:
        return int(self.keys.shape[1])

    def arrays(self) -> Iterator[tuple[str, Float32Array]]:
        yield "keys", self.keys
        yield "values", self.values


@dataclass(frozen=True, slots=True, eq=False)
class LoraLayer:
    """`a` is `[rank, inputs]`, `b` is `[outputs, rank]`: the layer's output gains `scaling · (x aᵀ) bᵀ`."""

    a: Float32Array
    b: Float32Array
    scaling: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class LoraPart:
    """Low-rank updates of linear modules (2106.09685), by the module's path in `ModelSpec.linears`.

    Ranks and scalings may differ between layers. For a `Conv1D` (GPT-2) the shapes are the same as for a `Linear`.
    """

    kind: ClassVar[str] = "lora"
    layers: Mapping[str, LoraLayer]
    virtual_tokens: ClassVar[int] = 0

    @property
    def max_rank(self) -> int:
        return max(layer.rank for layer in self.layers.values())

    def arrays(self) -> Iterator[tuple[str, Float32Array]]:
        for name, layer in self.layers.items():
            yield f"{name}.lora_A", layer.a
            yield f"{name}.lora_B", layer.b


@dataclass(frozen=True, slots=True, eq=False)
class TokenRowsPart:
    """Rows of the embedding table replaced, for this adapter's requests: `vectors[i]` `[hidden]` is token `ids[i]`'s.

    They are rows of the table, so a module that scales what it looks up (Gemma's) scales them too. `at` says which
    table: the input's, the output's (the token's logit is `h · vectors[i]`), or both, as where they are tied.
    """

    kind: ClassVar[str] = "token_rows"
    ids: tuple[int, ...]
    vectors: Float32Array
    at: Literal["input", "output", "both"]
    virtual_tokens: ClassVar[int] = 0

    def arrays(self) -> Iterator[tuple[str, Float32Array]]:
        yield "trainable_tokens_delta", self.vectors


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A layer norm (1607.06450): `weight` and `bias`, if it has one, `[width]`."""

    weight: Float32Array
    bias: Float32Array | None
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """`norm(activation(x weightᵀ + bias))`, `weight` `[outputs, inputs]`. `gelu` is the exact one (erf)."""

    weight: Float32Array
    bias: Float32Array | None
    activation: Activation
    norm: Norm | None = None

    def arrays(self) -> Iterator[tuple[str, Float32Array]]:
        for name, layer in (("dense", self), ("norm", self.norm)):
            if layer is not None:
                yield name, layer.weight
                if layer.bias is not None:
                    yield f"{name} bias", layer.bias


@dataclass(frozen=True, slots=True, eq=False)
class HeadPart:
    """A classification head over the base's last hidden states, dropout left out: `x weightᵀ + bias`.

    `x` is, for `sequence`, one row: on a decoder the last token's; on an encoder the first position's, which is the
    first text token behind a prefix, and the first virtual token where vectors lead, as PEFT has it, or the mean of all
    positions, vectors included, where the base's config says so. For `token` it is every text token's. Before it acts
    `dense` where there is one, or, with `base_pooler`, what the base itself has there (`softmux.engine.poolers`).
    `weight` `[labels, inputs]`, `bias` `[labels]` or None. `labels[i]` names output i.
    """

    head: HeadKind
    weight: Float32Array
    bias: Float32Array | None
    dense: Dense | None
    base_pooler: bool
    labels: tuple[str, ...]
    problem_type: ProblemType
    virtual_tokens: ClassVar[int] = 0

    @property
    def kind(self) -> str:
        return f"{self.head}_head"

    def arrays(self) -> Iterator[tuple[str, Float32Array]]:
        yield "classifier", self.weight
        if self.bias is not None:
            yield "classifier bias", self.bias
        if self.dense is not None:
            yield from self.dense.arrays()


Part = PromptPart | PrefixPart | LoraPart | TokenRowsPart | HeadPart
Parts = tuple[Part, ...]

KINDS = ("prompt", "prefix", "lora", "token_rows", "sequence_head", "token_head")
"""The kinds there are, and with them `PAIR` and `POOLER`, the words of `ModelSpec.serves`."""

PAIR = "lora_pair"
"""The word for a LoRA and a soft prompt at work in one row."""


POOLER = "pooler"
"""The word for a pooler of the base's own, which some heads read through: not every checkpoint brings one."""


def parameters(parts: Parts) -> int:
    """Learned numbers in all."""
    return sum(int(array.size) for part in parts for _, array in part.arrays())


def kinds(parts: Parts) -> frozenset[str]:
    """The words that an engine must say to run `parts` together."""
    words = {part.kind for part in parts}
    if "lora" in words and words & {"prompt", "prefix"}:
        words.add(PAIR)
    if any(isinstance(part, HeadPart) and part.base_pooler for part in parts):
        words.add(POOLER)
    return frozenset(words)
