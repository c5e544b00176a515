"""The rarer kinds of folders through a real server: served as PEFT computes them, or refused in words."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from support.loras import make_lora, make_pair
from support.models import greedy_reference
from support.served import Served, upload_parts

IDS = [5, 9, 17, 4]


@pytest.fixture
def task(server: Served, request: pytest.FixtureRequest) -> Iterator[str]:
    name = "zoo." + str(abs(hash(request.node.name)) % 10**9)
    yield name
    server.http.delete(f"/v1/adapters/{name}")


def tuned(base: Any, config: Any, folder: Path, seed: int = 5) -> Any:
    torch.manual_seed(seed)
    model = peft.get_peft_model(copy.deepcopy(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "prompt_encoder" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()


SERVED: dict[str, tuple[Callable[[], Any], str, int]] = {
    "multitask": (
        lambda: peft.MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "prompt_tuning",
        4,
    ),
    "cpt": (lambda: peft.CPTConfig(task_type="CAUSAL_LM", cpt_token_ids=[4, 5, 6]), "cpt", 3),
    "cartridge": (lambda: peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=33), "cartridge", 33),
    "lora": (lambda: peft.LoraConfig(task_type="CAUSAL_LM", r=2), "lora", 0),
    "trainable_tokens": (
        lambda: peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[5, 9]),
        "trainable_tokens",
        0,
    ),
}


@pytest.mark.parametrize("kind", SERVED)
def test_a_rarer_adapter_is_served_as_peft_computes_it(
    kind: str, server: Served, task: str, base: tuple[Any, Path], tmp_path: Path
) -> None:
    make, method, virtual = SERVED[kind]
    model = tuned(base[0], make(), tmp_path)
    version = server.http.put(f"/v1/adapters/{task}", files=upload_parts(tmp_path))
    assert version.status_code == 201, version.text
    assert (version.json()["method"], version.json()["virtual_tokens"]) == (method, virtual)
    body = {"prompt": IDS, "max_tokens": 6, "ignore_eos": True, "return_token_ids": True}
    reply = server.http.post("/v1/generate", params={"task": task}, json=body).json()
    more = {"task_ids": torch.tensor([0])} if kind == "multitask" else {}
    expected, certain = greedy_reference(model, IDS, 6, **more)
    assert certain > 0
    assert reply["choices"][0]["token_ids"][:certain] == expected[:certain]
    assert reply["adapter"]["method"] == method
    assert reply["usage"]["virtual_tokens"] == virtual


def test_a_pair_is_served_as_peft_composes_it(
    server: Served, task: str, base: tuple[Any, Path], tmp_path: Path
) -> None:
    model = make_pair(base[0], "prompt_tuning", tmp_path / "pair", r=3, target_modules=["q_proj", "down_proj"])
    version = server.http.put(f"/v1/adapters/{task}", files=upload_parts(tmp_path / "pair"))
    assert version.status_code == 201, version.text
    assert version.json()["method"] == "lora+prompt_tuning"
    body = {"prompt": IDS, "max_tokens": 6, "ignore_eos": True, "return_token_ids": True}
    reply = server.http.post("/v1/generate", params={"task": task}, json=body).json()
    expected, certain = greedy_reference(model, IDS, 6)
    assert certain > 0
    assert reply["choices"][0]["token_ids"][:certain] == expected[:certain]


def test_a_rank_beyond_the_servers_is_refused_with_what_to_do(
    server: Served, task: str, base: tuple[Any, Path], tmp_path: Path
) -> None:
    make_lora(base[0], tmp_path / "large", r=129, target_modules=["q_proj"])
    refused = server.http.put(f"/v1/adapters/{task}", files=upload_parts(tmp_path / "large"))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (422, "invalid_adapter")
    assert "--max-lora-rank 129" in error["message"]
    assert server.http.get(f"/v1/adapters/{task}").status_code == 404


@pytest.mark.parametrize(
    ("change", "param"),
    [({"r": 0}, "r"), ({"target_modules": ["nowhere"]}, "base_model"), ({"use_dora": True}, "use_dora")],
)
def test_a_pair_with_a_broken_lora_names_the_loras_file(
    change: dict[str, Any], param: str, server: Served, task: str, base: tuple[Any, Path], tmp_path: Path
) -> None:
    tuned(base[0], peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), tmp_path / "soft")
    tuned(base[0], peft.LoraConfig(task_type="CAUSAL_LM", r=2), tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text()) | change
    files = dict(upload_parts(tmp_path / "soft")) | {
        "adapter_config.lora.json": ("adapter_config.lora.json", json.dumps(config).encode()),
        "adapter_model.lora.safetensors": (
            "adapter_model.lora.safetensors",
            (tmp_path / "lora" / "adapter_model.safetensors").read_bytes(),
        ),
    }
    refused = server.http.put(f"/v1/adapters/{task}", files=files)
    assert refused.status_code == 422
    file, _, name = refused.json()["error"]["param"].partition(": ")
    assert file in ("adapter_config.lora.json", "adapter_model.lora.safetensors")
    assert name.startswith(param)
