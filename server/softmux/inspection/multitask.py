"""One task of a multitask prompt, as a folder of prompt tuning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import safetensors.numpy

from softmux.errors import InvalidAdapter
from softmux.formats.config import CONFIG_FILE
from softmux.formats.json_file import fit, read_object
from softmux.formats.methods.encoded import SAVED
from softmux.formats.methods.prompt import MultitaskConfig, fold_task
from softmux.formats.tensors import WEIGHTS_FILE, read_safetensors

_KEPT = ("task_type", "base_model_name_or_path", "revision", "num_virtual_tokens", "token_dim", "num_layers",
         "num_attention_heads", "num_transformer_submodules", "inference_mode", "peft_version")  # fmt: skip


def one_task(files: Mapping[str, bytes], task: int) -> dict[str, bytes]:
    """`files` with the task's vectors in place of all tasks'. Raises `InvalidAdapter`."""
    raw = read_object(files[CONFIG_FILE], CONFIG_FILE)
    if raw.get("peft_type") != "MULTITASK_PROMPT_TUNING":
        raise InvalidAdapter(
            f"{CONFIG_FILE} says {raw.get('peft_type')}; only MULTITASK_PROMPT_TUNING holds several tasks.",
            param=f"{CONFIG_FILE}: peft_type",
        )
    config = fit(MultitaskConfig, raw, CONFIG_FILE)
    tasks = config.num_tasks or 1
    if task >= tasks:
        raise InvalidAdapter(f"There is no task {task}: the folder holds 0 to {tasks - 1}.", param="--task-id")
    tensors = read_safetensors(files[WEIGHTS_FILE])
    shared = tensors.get(SAVED)
    width = shared.shape[-1] if shared is not None and shared.shape else 0
    vectors = fold_task(config, tensors, width, task)
    kept: dict[str, Any] = {name: raw[name] for name in _KEPT if name in raw}
    new = {
        CONFIG_FILE: (json.dumps({"peft_type": "PROMPT_TUNING", **kept}, indent=2) + "\n").encode(),
        WEIGHTS_FILE: safetensors.numpy.save({SAVED: vectors}),
    }
    return {**files, **new}
