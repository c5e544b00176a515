"""Learned vectors without PEFT: as parts, as files, and laid out by hand before the eager module."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from softmux.formats.parts import PromptPart


def vectors_for(base: Any, count: int, seed: int = 0) -> torch.Tensor:
    """`[count, hidden]`, as far apart as the model's own embeddings."""
    weight = base.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((count, weight.shape[1]), generator=generator) * weight.detach().std()


def prompt_part(vectors: torch.Tensor) -> PromptPart:
    return PromptPart(np.ascontiguousarray(vectors.numpy()))


def prompt_files(vectors: torch.Tensor) -> dict[str, bytes]:
    """A prompt-tuning adapter as PEFT lays it down."""
    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": vectors.shape[0],
        "token_dim": vectors.shape[1],
        "inference_mode": True,
    }
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save({"prompt_embeddings": vectors.contiguous()}),
    }


@torch.no_grad()
def eager_logits(
    base: Any, tokens: list[int], vectors: torch.Tensor | None = None, device: str = "cpu"
) -> torch.Tensor:
    """`[tokens, vocab]` of the eager module on embeddings laid out by hand: id −1 − i stands for `vectors[i]`."""
    embedding = base.get_input_embeddings()
    rows = []
    for token in tokens:
        if token < 0:
            assert vectors is not None
            rows.append(vectors[-1 - token])
        else:
            rows.append(embedding(torch.tensor(token, device=device)))
    return base(inputs_embeds=torch.stack(rows)[None], use_cache=False).logits[0]


def eager_greedy(base: Any, tokens: list[int], count: int, vectors: torch.Tensor | None = None) -> list[int]:
    """The `count` tokens that the eager module finds likeliest, whatever they are."""
    at = list(tokens)
    for _ in range(count):
        at.append(int(eager_logits(base, at, vectors)[-1].argmax()))
    return at[len(tokens) :]
