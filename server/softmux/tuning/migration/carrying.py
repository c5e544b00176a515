"""What was learned over one base, as a beginning over another; and what is trained from there, as parts again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from softmux.errors import InvalidRequest
from softmux.formats.parts import (
    Float32Array,
    HeadPart,
    LoraLayer,
    LoraPart,
    Part,
    Parts,
    PrefixPart,
    PromptPart,
    TokenRowsPart,
)
from softmux.tuning.bases.base import Base
from softmux.tuning.migration.kinship import NEAR, Remembered, translated
from softmux.tuning.training.cohort import Start
from softmux.types import ModelSpec


@dataclass(frozen=True, slots=True)
class Carrier:
    """From the base that `old` is left of to `new`, whose embeddings are as near as `near` says (`kinship.nearness`).
    `text` is what a prefix begins as where the old keys and values say nothing to the new base."""

    old: Remembered
    new: Base
    spec: ModelSpec
    near: float
    seed: int = 0

    @property
    def is_near(self) -> bool:
        return self.near >= NEAR

    def carry(self, parts: Parts, text: str) -> tuple[Parts, str]:
        """Parts of the same kinds and shapes over the new base, and how they begin, in words. Raises `InvalidRequest`
        where the new base has no place for one."""
        carried, words = [], []
        for part in parts:
            own, said = self._carry(part, text)
            carried.append(own)
            words.append(said)
        return tuple(carried), " and ".join(dict.fromkeys(words))

    def fits(self, parts: Parts) -> bool:
        """Whether the old parts can be put on the new base as they are."""
        return all(self._fits(part) for part in parts)

    def _fits(self, part: Part) -> bool:
        match part:
            case PromptPart():
                return bool(part.vectors.shape[1] == self.spec.hidden_size)
            case PrefixPart():
                layer = self.spec.layers[0]
                shape = (len(self.spec.layers), part.virtual_tokens, layer.kv_heads, layer.head_dim)
                return part.keys.shape == shape and all(other == layer for other in self.spec.layers)
            case LoraPart():
                shapes = self._linears()
                return all(shapes.get(name) == _shape(layer) for name, layer in part.layers.items())
            case _:
                return False

    def _carry(self, part: Part, text: str) -> tuple[Part, str]:
        if self.is_near and self._fits(part):
            return part, "what it was"
        match part:
            case PromptPart():
                vectors = translated(torch.from_numpy(part.vectors), self.old, self.new)
                return PromptPart(_array(vectors)), "the nearest words"
            case PrefixPart():
                return self._prefix(part.virtual_tokens, text), "the words of its description"
            case LoraPart():
                return self._lora(part), "a fresh LoRA"
            case _:
                raise InvalidRequest(why_not(part))

    @torch.no_grad()
    def _prefix(self, count: int, text: str) -> PrefixPart:
        """The keys and values that the new base computes of the text, repeated or cut to `count` tokens."""
        layer = self.spec.layers[0]
        if any(other != layer for other in self.spec.layers):
            raise InvalidRequest("the new base's layers have keys and values of different shapes: it takes no prefix")
        ids = self.new.encoder.encode(text, add_special_tokens=False) or [self.new.end_id]
        tokens = torch.tensor([(ids * -(-count // len(ids)))[:count]], device=self.new.device)
        cache = self.new.model(input_ids=tokens, use_cache=True, logits_to_keep=1).past_key_values
        keys, values = (
            torch.stack([getattr(own, name)[0].transpose(0, 1).float() for own in cache.layers])
            for name in ("keys", "values")
        )
        if keys.shape[:2] != (len(self.spec.layers), count):
            raise InvalidRequest("the new base does not keep all keys and values of so long a text: it takes no prefix")
        return PrefixPart(_array(keys), _array(values))

    def _lora(self, part: LoraPart) -> LoraPart:
        """As LoRAs begin: a random A, a B of zeros, on the modules of the same names."""
        shapes = self._linears()
        targets = {name.rpartition(".")[2] for name in part.layers}
        named = [name for name in shapes if name.rpartition(".")[2] in targets]
        if set(named) != set(part.layers):
            like = next(iter(part.layers.values()))
            if len({(layer.rank, layer.scaling) for layer in part.layers.values()}) > 1:
                raise InvalidRequest("its LoRA has ranks or scalings by layer, and the new base has other layers")
            if missing := targets - {name.rpartition(".")[2] for name in shapes}:
                raise InvalidRequest(f"its LoRA is on {', '.join(sorted(missing))}, which the new base does not have")
            plan = dict.fromkeys(named, like)
        else:
            plan = dict(part.layers)
        generator = np.random.default_rng(self.seed)
        layers = {}
        for name, like in plan.items():
            inputs, outputs = shapes[name]
            bound = 1 / math.sqrt(inputs)
            a = generator.uniform(-bound, bound, (like.rank, inputs)).astype(np.float32)
            layers[name] = LoraLayer(a, np.zeros((outputs, like.rank), np.float32), like.scaling)
        return LoraPart(layers)

    def _linears(self) -> Mapping[str, tuple[int, int]]:
        return {linear.name: (linear.inputs, linear.outputs) for linear in self.spec.linears}


def why_not(part: Part) -> str:
    """Why a part of this kind is not taught to another base."""
    match part:
        case HeadPart():
            return "it has a head, which reads hidden states of its own base: tune it on the new one (softmux tune)"
        case TokenRowsPart():
            return "it has rows of the token tables, which are the old base's own: train them on the new one"
        case _:
            return f"a {part.kind} is not taught to another base"


def start_of(parts: Parts) -> Start:
    """Where training begins. A LoRA's scaling is within its B's, so that layers of different scalings train as one."""
    soft, count, is_prefix, low_rank = None, 0, False, {}
    for part in parts:
        match part:
            case PromptPart():
                soft, count = _embedding(torch.from_numpy(part.vectors)), part.virtual_tokens
            case PrefixPart():
                both = torch.stack([torch.from_numpy(part.keys), torch.from_numpy(part.values)])
                flat = both.permute(2, 1, 0, 3, 4).flatten(1)
                soft, count, is_prefix = _embedding(flat), part.virtual_tokens, True
            case LoraPart():
                for name, layer in part.layers.items():
                    low_rank[name] = (torch.from_numpy(layer.a), torch.from_numpy(layer.b) * layer.scaling)
            case _:
                raise InvalidRequest(why_not(part))
    return Start(soft, count, is_prefix, low_rank)


def parts_of(values: Mapping[str, torch.Tensor], like: Parts) -> Parts:
    """What was trained from `start_of(like)`, as parts."""
    found: list[Part] = []
    for part in like:
        match part:
            case PromptPart():
                found.append(PromptPart(_array(values["soft.weight"])))
            case PrefixPart():
                layers, count, heads, width = part.keys.shape
                both = values["soft.weight"].view(count, layers, 2, heads, width).permute(2, 1, 0, 3, 4)
                found.append(PrefixPart(_array(both[0]), _array(both[1])))
            case LoraPart():
                found.append(
                    LoraPart(
                        {
                            name: LoraLayer(
                                _array(values[f"a.{name}"]),
                                _array(values[f"b.{name}"] / (layer.scaling or 1.0)),
                                layer.scaling,
                            )
                            for name, layer in part.layers.items()
                        }
                    )
                )
            case _:
                raise InvalidRequest(why_not(part))
    return tuple(found)


def _embedding(rows: torch.Tensor) -> torch.nn.Embedding:
    made = torch.nn.Embedding(*rows.shape)
    with torch.no_grad():
        made.weight.copy_(rows)
    return made


def _shape(layer: LoraLayer) -> tuple[int, int]:
    return int(layer.a.shape[1]), int(layer.b.shape[0])


def _array(values: torch.Tensor) -> Float32Array:
    return np.ascontiguousarray(values.detach().cpu().float().numpy())
