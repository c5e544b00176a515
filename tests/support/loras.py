"""LoRA adapters as PEFT makes and saves them, alone and in pairs, with weights far enough from zero to show."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from support.models import make_adapter


def linear_names(base: Any) -> list[str]:
    """The last words of the paths of the linear modules within the layers, as `target_modules` names them."""
    head = base.get_output_embeddings()
    found = {}
    for name, module in base.named_modules():
        if module is not head and type(module).__name__ in ("Linear", "Conv1D") and ".0." in f".{name}.":
            found[name.rpartition(".")[2]] = None
    return list(found)


def make_lora(base: Any, folder: Path, seed: int = 0, **config: Any) -> Any:
    """A random LoRA for `base`, saved as PEFT saves it; its model."""
    torch.manual_seed(seed)
    chosen = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8} | config
    model = get_peft_model(copy.deepcopy(base), LoraConfig(**chosen))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoraLayer):
                for side in (*module.lora_A.values(), *module.lora_B.values()):
                    side.weight.copy_(torch.randn_like(side.weight) * 0.4)
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(torch.randn_like(parameter) * parameter.std())
    model.save_pretrained(folder, save_embedding_layers=False)
    return model.eval()


def make_pair(base: Any, method: str, folder: Path, seed: int = 0, **config: Any) -> Any:
    """A soft prompt and a LoRA in the four files of a pair. Its reference, as PEFT composes them: the LoRA merged into
    the base, and the soft prompt's model on that."""
    merged = make_half(base, folder, seed, **config)
    make_adapter(base, method, folder, seed=seed)
    return PeftModel.from_pretrained(merged, str(folder)).eval()


def make_half(base: Any, folder: Path, seed: int = 0, **config: Any) -> Any:
    """The LoRA's two files of a pair, into `folder`; the base with that LoRA merged into it."""
    alone = folder.with_name(f"{folder.name}-lora")
    model = make_lora(base, alone, seed, **config)
    folder.mkdir(exist_ok=True)
    written = json.loads((alone / "adapter_config.json").read_text())
    written["auto_mapping"] = None  # PEFT names a class to import there, where `task_type` is null
    (folder / "adapter_config.lora.json").write_text(json.dumps(written))
    shutil.copy(alone / "adapter_model.safetensors", folder / "adapter_model.lora.safetensors")
    return model.merge_and_unload()
