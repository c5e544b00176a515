"""The ways a user would serve the same work without softmux: PEFT's loops, and transformers on one padded batch."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch

from softmux.bench.workload import Job


def load_base(model: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    return base.to(device).eval()


def _generate(model: Any, rows: list[tuple[int, ...]], new_tokens: int) -> int:
    device = next(model.parameters()).device
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return len(rows) * min(new_tokens, int(output.shape[1]))


def padded_batch(base: Any, jobs: list[Job]) -> float:
    """`generate` of the bare model on all rows, left-padded to one batch → new tokens a second."""
    began = time.perf_counter()
    tokens = _generate(base, [job.ids for job in jobs], jobs[0].new_tokens)
    return tokens / (time.perf_counter() - began)


def load_each(base: Any, folders: list[Path], jobs: list[Job]) -> float:
    """`PeftModel.from_pretrained` for each request, one row at a time → new tokens a second."""
    from peft import PeftModel

    began = time.perf_counter()
    tokens = 0
    for job in jobs:
        assert job.task is not None
        model: Any = PeftModel.from_pretrained(copy.copy(base), str(folders[job.task])).eval()
        tokens += _generate(model, [job.ids], job.new_tokens)
    return tokens / (time.perf_counter() - began)


class SetAdapter:
    """All adapters loaded once; `set_adapter` and `generate`, one row at a time.

    PEFT refuses to load prompt methods of different types into one model, so there is one model for each type, over
    the same base.
    """

    def __init__(self, base: Any, folders: list[Path]) -> None:
        from peft import PeftConfig, PeftModel

        models: dict[str, Any] = {}
        self._models: list[Any] = []
        for number, folder in enumerate(folders):
            kind = str(PeftConfig.from_pretrained(str(folder)).peft_type)
            name = f"task-{number}"
            if kind in models:
                models[kind].load_adapter(str(folder), adapter_name=name)
            else:
                models[kind] = PeftModel.from_pretrained(copy.copy(base), str(folder), adapter_name=name)
            self._models.append(models[kind])

    def run(self, jobs: list[Job]) -> float:
        began = time.perf_counter()
        tokens = 0
        for job in jobs:
            assert job.task is not None
            model = self._models[job.task]
            model.set_adapter(f"task-{job.task}")
            tokens += _generate(model.eval(), [job.ids], job.new_tokens)
        return tokens / (time.perf_counter() - began)
