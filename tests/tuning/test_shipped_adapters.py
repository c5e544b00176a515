"""The tasks in the box are whole, and say what they are worth."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from peft import PeftConfig
from safetensors import safe_open
from safetensors.torch import load_file

from softmux.formats.softmux_json import SoftmuxJson
from softmux.formats.template import Template
from softmux.tuning.recipes.recipe import Lora, LoraPrefixTuning, PrefixTuning, PTuningV2, read_recipe

ADAPTERS = Path(__file__).parents[2] / "adapters"
TASKS = ["address", "capital", "person-or-company", "sentiment", "source", "summary"]
LORA_TASKS = ["address-lora", "address-lora-prefix"]
ENCODER_TASKS = ["address-tags", "sentiment-encoder", "source-encoder"]
HIDDEN, LAYERS, KV_WIDTH = 576, 30, 192
ENCODER_WIDTH, ENCODER_LAYERS = 384, 6


@pytest.mark.parametrize("task", TASKS)
def test_a_shipped_folder_fits_the_demos_base(task: str) -> None:
    folder = ADAPTERS / task
    recipe = read_recipe(folder / "recipe.toml")
    config = PeftConfig.from_pretrained(folder)
    assert recipe.task == task
    assert config.peft_type == recipe.method.kind.upper()
    assert config.num_virtual_tokens == recipe.method.virtual_tokens
    width = LAYERS * 2 * KV_WIDTH if isinstance(recipe.method, PrefixTuning) else HIDDEN
    with safe_open(folder / "adapter_model.safetensors", "pt") as tensors:
        assert list(tensors.keys()) == ["prompt_embeddings"]
        values = tensors.get_tensor("prompt_embeddings")
    assert values.shape == (recipe.method.virtual_tokens, width)
    assert values.isfinite().all()
    assert (folder / "adapter_model.safetensors").stat().st_size < 2_000_000
    said = SoftmuxJson.model_validate_json((folder / "softmux.json").read_text())
    assert said.template == recipe.template
    assert said.labels == recipe.labels
    if said.template is not None:
        Template.parse(said.template).check("p_tuning", config.num_virtual_tokens)
    raw = json.loads((folder / "adapter_config.json").read_text())
    assert raw["base_model_name_or_path"] == "SmolLM2-135M-Instruct"


@pytest.mark.parametrize("task", ENCODER_TASKS)
def test_a_shipped_folder_fits_the_demos_encoder(task: str) -> None:
    folder = ADAPTERS / task
    recipe = read_recipe(folder / "recipe.toml")
    assert isinstance(recipe.method, PTuningV2)
    assert (recipe.task, recipe.demo) == (task, "minilm")
    said = SoftmuxJson.model_validate_json((folder / "softmux.json").read_text())
    assert isinstance(said.labels, list)
    assert recipe.labels in (None, said.labels)
    assert said.base_fingerprint
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "all-MiniLM-L6-v2"
    assert (config["task_type"] == "TOKEN_CLS") == (recipe.method.head == "token")
    tensors = load_file(folder / "adapter_model.safetensors")
    prefix = tensors.pop("prompt_embeddings")
    assert prefix.shape == (recipe.method.virtual_tokens, ENCODER_LAYERS * 2 * ENCODER_WIDTH)
    [weight] = [tensor for name, tensor in tensors.items() if name.endswith("classifier.weight")]
    assert weight.shape == (len(said.labels), ENCODER_WIDTH)
    assert all(tensor.isfinite().all() for tensor in (prefix, *tensors.values()))
    assert (folder / "adapter_model.safetensors").stat().st_size < 2_000_000


@pytest.mark.parametrize("task", LORA_TASKS)
def test_a_shipped_lora_fits_the_demos_base(task: str) -> None:
    folder = ADAPTERS / task
    recipe = read_recipe(folder / "recipe.toml")
    pair = isinstance(recipe.method, LoraPrefixTuning)
    assert isinstance(recipe.method, Lora | LoraPrefixTuning)
    assert (recipe.task, recipe.demo) == (task, "smollm2")
    part = ".lora" if pair else ""
    config = json.loads((folder / f"adapter_config{part}.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", recipe.method.rank, recipe.method.alpha)
    assert sorted(config["target_modules"]) == sorted(recipe.method.target_modules or ())
    tensors = load_file(folder / f"adapter_model{part}.safetensors")
    assert len(tensors) == LAYERS * 2 * len(config["target_modules"])
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert all(tensor.any() for name, tensor in tensors.items() if ".lora_B." in name)
    if pair:
        prefix = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
        assert prefix.shape == (recipe.method.virtual_tokens, LAYERS * 2 * KV_WIDTH)
    for name in ("adapter_config.json", f"adapter_config{part}.json"):
        assert json.loads((folder / name).read_text())["base_model_name_or_path"] == "SmolLM2-135M-Instruct"


@pytest.mark.parametrize("task", [*TASKS, *LORA_TASKS, *ENCODER_TASKS])
def test_a_shipped_readme_states_its_figures(task: str) -> None:
    readme = (ADAPTERS / task / "README.md").read_text()
    notes = json.loads((ADAPTERS / task / "softmux.json").read_text())["notes"]
    figure = re.search(r"Held-out (.+) ([0-9.]+) over (\d+) rows\.", notes)
    assert figure
    assert f"| {figure[1]} | {figure[2]} |" in readme
    assert f"{figure[3]} held out" in readme
    assert "softmux tune recipe.toml" in readme


FLOORS = {"sentiment": ("exact", 0.88), "source": ("exact", 0.90), "person-or-company": ("exact", 0.95)}


@pytest.mark.parametrize("task", FLOORS)
def test_a_shipped_task_is_as_good_as_asked(task: str) -> None:
    name, floor = FLOORS[task]
    stated = re.search(rf"\| {name} \| ([0-9.]+) \|", (ADAPTERS / task / "README.md").read_text())
    assert stated
    assert float(stated[1]) >= floor
