"""What is run: requests over tasks, and random adapters of the served methods for any base model."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METHODS = ("prompt_tuning", "prefix_tuning", "p_tuning_mlp", "p_tuning_lstm")
VIRTUAL_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Job:
    """One request: a task's number (None: the bare model), its prompt's ids, and how many tokens it is to generate.
    A prompt that is a text has no ids; a server is sent it as it is."""

    task: int | None
    ids: tuple[int, ...]
    new_tokens: int
    text: str | None = None


def make_jobs(
    count: int, tasks: int, *, lengths: tuple[int, int], new_tokens: int, vocabulary: int, seed: int = 0
) -> list[Job]:
    """`count` requests of uniformly random length, their tasks in arrival order shuffled evenly over `tasks`."""
    draw = random.Random(seed)  # noqa: S311
    order = [i % tasks for i in range(count)]
    draw.shuffle(order)
    low = min(3, vocabulary - 1)
    return [
        Job(task, tuple(draw.randrange(low, vocabulary) for _ in range(draw.randint(*lengths))), new_tokens)
        for task in order
    ]


def bare(jobs: list[Job]) -> list[Job]:
    """The same prompts without any task."""
    return [Job(None, job.ids, job.new_tokens) for job in jobs]


def zipf_tasks(count: int, tasks: int, *, exponent: float = 1.0, seed: int = 0) -> list[int]:
    """`count` task numbers drawn with probability ∝ 1 / rank^exponent (0: uniform)."""
    draw = random.Random(seed)  # noqa: S311
    weights = [1.0 / (rank + 1) ** exponent for rank in range(tasks)]
    return draw.choices(range(tasks), weights=weights, k=count)


def make_adapters(base: Any, folder: Path, count: int, methods: tuple[str, ...] = METHODS) -> list[Path]:
    """`count` random adapters of 20 virtual tokens for `base`, methods in turn, in PEFT folders made by PEFT."""
    import torch
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model

    task_type = "SEQ_2_SEQ_LM" if base.config.is_encoder_decoder else "CAUSAL_LM"

    def config(method: str) -> Any:
        common: dict[str, Any] = {"task_type": task_type, "num_virtual_tokens": VIRTUAL_TOKENS}
        if method == "prompt_tuning":
            return PromptTuningConfig(**common)
        if method == "prefix_tuning":
            return PrefixTuningConfig(**common)
        kind = method.removeprefix("p_tuning_").upper()
        return PromptEncoderConfig(
            **common, encoder_reparameterization_type=kind, encoder_hidden_size=128, encoder_dropout=0.0
        )

    folders = []
    for number in range(count):
        path = folder / f"task-{number:05d}"
        folders.append(path)
        if path.is_dir():
            continue
        torch.manual_seed(number)
        model = get_peft_model(copy.copy(base), config(methods[number % len(methods)]))
        model.save_pretrained(str(path))
    return folders


def random_prompt_adapter(number: int, hidden: int, scale: float = 0.1) -> dict[str, bytes]:
    """A random prompt-tuning adapter of 20 vectors as PEFT's two files, made in memory."""
    import json

    import numpy as np
    from safetensors.numpy import save

    config = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": VIRTUAL_TOKENS,
        "token_dim": hidden,
        "inference_mode": True,
    }
    vectors = np.random.default_rng(number).standard_normal((VIRTUAL_TOKENS, hidden), dtype=np.float32) * scale
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save({"prompt_embeddings": vectors}),
    }


def write_adapter(files: Mapping[str, bytes], folder: Path) -> Path:
    """Lays an adapter's files out as a folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
