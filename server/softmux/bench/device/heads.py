"""Heads of their own against one shared head: 64 rows, read by 64 heads or by one.

`softmux bench heads --shape 1b`: random weights, so nothing is downloaded; every row computes its whole text
in both cases, so that what differs is the heads alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from softmux.bench.bases.random_base import SHAPES
from softmux.engine.engine import Engine
from softmux.engine.packed import PackedModel
from softmux.formats.parts import HeadPart
from softmux.scheduler.radix import RootKey
from softmux.settings import Settings
from softmux.types import DEFAULT_TENANT

_LABELS = (2, 4, 25)


def make_engine(shape: str, device: torch.device) -> Engine:
    from transformers import AutoModelForCausalLM, LlamaConfig

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=4096, bos_token_id=1, eos_token_id=2)
    with device:
        module: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")

    def from_nowhere(key: RootKey) -> dict[str, bytes]:
        raise LookupError(f"{key} is in no store")

    settings = Settings(model=f"random-{shape}", kv_tokens=32768)
    return Engine(settings, from_nowhere, model=PackedModel(module, None, f"random-{shape}"))


def make_heads(engine: Engine, count: int) -> list[RootKey]:
    draw = np.random.default_rng(0)
    roots = []
    for number in range(count):
        labels = _LABELS[number % len(_LABELS)]
        weight = draw.standard_normal((labels, engine.spec.hidden_size), dtype=np.float32)
        names = tuple(map(str, range(labels)))
        part = HeadPart("sequence", weight, None, None, False, names, "single_label_classification")
        roots.append(engine.key(DEFAULT_TENANT, f"head-{number}"))
        engine.adopt(roots[-1], (part,))
    return roots


def seconds(engine: Engine, roots: list[RootKey], rows: int, tokens: int, run: int) -> float:
    """One batch of `rows` fresh texts, by the heads in turn."""
    draw = np.random.default_rng(run)
    texts = draw.integers(3, engine.spec.vocab_size, (rows, tokens)).tolist()
    began = time.perf_counter()
    for number, text in enumerate(texts):
        engine.read(str(number), tuple(text), root=roots[number % len(roots)], now=0.0, head="sequence")
    left = rows
    while left:
        left -= len(list(engine.step().each()))
    return time.perf_counter() - began


def main(arguments: Sequence[str]) -> None:
    options = argparse.ArgumentParser(prog="softmux bench heads", description=__doc__)
    options.add_argument("--shape", choices=SHAPES, default="1b")
    options.add_argument("--rows", type=int, default=64)
    options.add_argument("--tokens", type=int, default=24)
    options.add_argument("--runs", type=int, default=30)
    given = options.parse_args(arguments)
    engine = make_engine(given.shape, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    roots = make_heads(engine, given.rows)
    took: dict[str, list[float]] = {"own": [], "shared": []}
    for run in range(given.runs + 3):
        for name, heads in (("own", roots), ("shared", roots[2:3])):  # the one of 25 labels
            spent = seconds(engine, heads, given.rows, given.tokens, 2 * run + (name == "own"))
            if run >= 3:
                took[name].append(spent)
    own, shared = (statistics.median(took[name]) for name in ("own", "shared"))
    engine.close()
    told = {
        "shape": given.shape,
        "device": str(engine.model.device),
        "rows": given.rows,
        "own_rows_per_second": round(given.rows / own, 1),
        "shared_rows_per_second": round(given.rows / shared, 1),
        "own_of_shared": round(shared / own, 3),
    }
    sys.stdout.write(json.dumps(told, indent=1) + "\n")
