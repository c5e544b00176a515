"""Tasks of random numbers for an engine over a random base: adopted from memory, held there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from softmux.engine.engine import Engine
from softmux.errors import InvalidRequest
from softmux.formats.parts import LoraLayer, LoraPart, Parts, PrefixPart, PromptPart
from softmux.scheduler.radix import RootKey
from softmux.types import LinearShape, ModelSpec

VIRTUAL_TOKENS = 20
METHODS = ("prompt tuning", "prefix tuning", "P-tuning", "P-tuning template")
LORA_RANK = 8
LORA_MODULES = ("q_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Task:
    """An adapter that the engine has, and how many of its virtual tokens stand before and behind a request's text."""

    root: RootKey
    front: int = 0
    behind: int = 0

    def around(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        virtual = tuple(-1 - i for i in range(self.front + self.behind))
        return (*virtual[: self.front], *ids, *virtual[self.front :])


def soft_prompt(engine: Engine, number: int, method: str) -> Task:
    """A task of 20 virtual tokens, by one of `METHODS`."""
    if method == "prefix tuning":
        return prefix(engine, f"task-{number}", VIRTUAL_TOKENS, number)
    behind = VIRTUAL_TOKENS // 2 if method == "P-tuning template" else 0
    draw = np.random.default_rng(number)
    part = PromptPart(draw.standard_normal((VIRTUAL_TOKENS, engine.spec.hidden_size), dtype=np.float32) * 0.02)
    return Task(_held(engine, f"task-{number}", (part,)), VIRTUAL_TOKENS - behind, behind)


def prefix(engine: Engine, name: str, tokens: int, seed: int = 0) -> Task:
    """Keys and values of `tokens` positions: a trained prefix, or a cartridge."""
    layers, draw = engine.spec.layers, np.random.default_rng(seed)
    shape = (len(layers), tokens, layers[0].kv_heads, layers[0].head_dim)
    keys = draw.standard_normal(shape, dtype=np.float32)
    values = draw.standard_normal(shape, dtype=np.float32) * 0.1
    return Task(_held(engine, name, (PrefixPart(keys, values),)), tokens)


def lora(engine: Engine, number: int, rank: int = LORA_RANK, modules: Sequence[str] = LORA_MODULES) -> Task:
    """A LoRA on every linear module whose path ends in one of `modules`."""
    return Task(_held(engine, f"lora-{number}", (random_lora(engine.spec, number, rank, modules),)))


def linears_named(spec: ModelSpec, modules: Sequence[str]) -> list[LinearShape]:
    """Raises `InvalidRequest` where the base lacks one of `modules`, the last words of a linear module's path."""
    there = {linear.name.rpartition(".")[2] for linear in spec.linears}
    if missing := [name for name in dict.fromkeys(modules) if name not in there]:
        raise InvalidRequest(
            f"The base has no module {' or '.join(missing)}. It has {', '.join(sorted(there))}.", param="modules"
        )
    return [linear for linear in spec.linears if linear.name.rpartition(".")[2] in modules]


def random_lora(spec: ModelSpec, number: int, rank: int, modules: Sequence[str]) -> LoraPart:
    """Updates small beside what they act on. Raises as `linears_named` does."""
    draw = np.random.default_rng(number)
    layers = {}
    for linear in linears_named(spec, modules):
        a = draw.standard_normal((rank, linear.inputs), dtype=np.float32) * 0.01
        b = draw.standard_normal((linear.outputs, rank), dtype=np.float32) * 0.01
        layers[linear.name] = LoraLayer(a, b, 2.0)
    return LoraPart(layers)


def _held(engine: Engine, name: str, parts: Parts) -> RootKey:
    root = engine.key("default", name)
    engine.adopt(root, parts)
    engine.tiers.hold(root)
    return root
