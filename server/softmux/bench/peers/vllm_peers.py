"""vLLM in this process, where it is installed: the bare model, soft prompts as `prompt_embeds`, and LoRAs instead."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from softmux.bench.loads.workload import VIRTUAL_TOKENS, Job
from softmux.bench.peers.peers import Peer

NAMES = ("vllm", "vllm-embeds", "vllm-lora")
_RANK = 8


def vllm_missing() -> str | None:
    """Why vLLM can't be a peer here; None where it can."""
    if importlib.util.find_spec("vllm") is None:
        return "vllm is not installed"
    return None


class Vllm(Peer):
    """vLLM on the bare model, its prefix cache off: no prompt is met twice."""

    name = "vLLM, bare"

    def __init__(self, model: str, *, dtype: str, memory: float, dummy: bool = False, **more: Any) -> None:
        """`memory` is vLLM's share of the GPU's memory; `dummy` makes random weights of the folder's config."""
        from vllm import LLM

        self._llm: Any = LLM(
            model=model,
            dtype=dtype,
            gpu_memory_utilization=memory,
            load_format="dummy" if dummy else "auto",
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            generation_config="vllm",
            disable_log_stats=True,
            seed=0,
            **more,
        )

    def answer(self, jobs: Sequence[Job]) -> list[float]:
        from vllm import SamplingParams

        sampling = [
            SamplingParams(temperature=0.0, max_tokens=job.new_tokens, ignore_eos=True, detokenize=False)
            for job in jobs
        ]
        adapters = [self.lora(job) for job in jobs]
        found = self._llm.generate(
            [self.prompt(job) for job in jobs],
            sampling,
            use_tqdm=False,
            lora_request=adapters if any(adapters) else None,
        )
        made = sum(len(output.outputs[0].token_ids) for output in found)
        if made != sum(job.new_tokens for job in jobs):
            raise RuntimeError(f"{self.name} made {made} tokens")
        return [time.perf_counter()] * len(jobs)

    def prompt(self, job: Job) -> dict[str, Any]:
        return {"prompt_token_ids": list(job.ids)}

    def lora(self, job: Job) -> Any:
        return None

    def close(self) -> None:
        del self._llm


class VllmEmbeds(Vllm):
    """Soft prompts as vLLM takes them: the client looks the prompt's ids up in the embedding table, and sends learned
    vectors and these as one tensor. Building the tensors is part of the request's time, as it is of a client's."""

    name = "vLLM, prompt_embeds"

    def __init__(self, model: str, table: torch.Tensor, tasks: int, **more: Any) -> None:
        """`table` is the model's embedding table, `[vocabulary, hidden]`, on the CPU."""
        super().__init__(model, enable_prompt_embeds=True, **more)
        draw = torch.Generator().manual_seed(0)
        self._table = table
        self._soft = [
            torch.randn(VIRTUAL_TOKENS, table.shape[1], generator=draw).mul_(0.02).to(table.dtype) for _ in range(tasks)
        ]

    def prompt(self, job: Job) -> dict[str, Any]:
        text = self._table[torch.tensor(job.ids)]
        return {"prompt_embeds": text if job.task is None else torch.cat([self._soft[job.task], text])}


class VllmLora(Vllm):
    """A LoRA of rank 8 on the queries and values in each soft prompt's place: what many adapters are today."""

    name = "vLLM, LoRA"

    def __init__(self, model: str, base: Any, tasks: int, folder: Path, **more: Any) -> None:
        from vllm.lora.request import LoRARequest

        self._loras = []
        for number in range(tasks):
            write_lora(base, folder / f"lora-{number}", number)
            self._loras.append(LoRARequest(f"lora-{number}", number + 1, str(folder / f"lora-{number}")))
        slots = min(tasks, 64)
        super().__init__(
            model, enable_lora=True, max_loras=slots, max_cpu_loras=max(slots, tasks), max_lora_rank=_RANK, **more
        )

    def lora(self, job: Job) -> Any:
        return None if job.task is None else self._loras[job.task]


def write_lora(base: Any, folder: Path, seed: int) -> None:
    """A random LoRA of rank 8 on every `q_proj` and `v_proj` of `base`, in a folder as PEFT writes it."""
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in base.named_modules():
        if name.rsplit(".", 1)[-1] not in ("q_proj", "v_proj"):
            continue
        rows, columns = module.weight.shape
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(_RANK, columns, generator=draw).mul_(0.01)
        tensors[f"{key}.lora_B.weight"] = torch.randn(rows, _RANK, generator=draw).mul_(0.01)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": _RANK,
        "lora_alpha": 2 * _RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "",
    }
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
