"""LoRAs, alone and trained together with a prefix: what is measured is what the folder's files compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from softmux.errors import InvalidRequest
from softmux.formats.folder import load_folder, parse_adapter
from softmux.formats.layout import Layout
from softmux.formats.parts import LoraPart, PrefixPart
from softmux.inspection.base import describe
from softmux.tuning.bases.base import Base, as_base
from softmux.tuning.data.examples import Example
from softmux.tuning.data.rows import encode
from softmux.tuning.evaluate import generate
from softmux.tuning.learned import methods
from softmux.tuning.learned.methods import Learned, begin
from softmux.tuning.recipes.recipe import Lora, LoraPrefixTuning
from softmux.tuning.write import Report

Write = Callable[..., Path]
Run = Callable[[Path, Path], Report]
LORA = 'kind = "lora"\nrank = 4\nalpha = 16\ntarget_modules = ["q_proj", "v_proj", "down_proj"]'
PAIR = LORA.replace('"lora"', '"lora+prefix_tuning"') + "\nvirtual_tokens = 3\nencoder_hidden_size = 24"
FILES = {
    LORA: ["README.md", "adapter_config.json", "adapter_model.safetensors", "recipe.toml", "softmux.json"],
    PAIR: [
        "README.md", "adapter_config.json", "adapter_config.lora.json", "adapter_model.lora.safetensors",
        "adapter_model.safetensors", "recipe.toml", "softmux.json",
    ],
}  # fmt: skip


@pytest.mark.parametrize("method", FILES, ids=["lora", "pair"])
def test_the_folder_is_one_that_the_server_reads(
    method: str, write_recipe: Write, run_tune: Run, base_folder: Path, tmp_path: Path
) -> None:
    report = run_tune(write_recipe(method, steps=60), tmp_path / "out")
    assert report.trained.best_loss < 0.9 * report.trained.losses[0]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == FILES[method]
    adapter = parse_adapter(load_folder(tmp_path / "out"), describe(str(base_folder)))
    assert adapter.manifest.method == ("lora" if method == LORA else "lora+prefix_tuning")
    lora = next(part for part in adapter.parts if isinstance(part, LoraPart))
    assert any(layer.b.any() for layer in lora.layers.values())
    assert any(isinstance(part, PrefixPart) for part in adapter.parts) == (method == PAIR)
    assert str(tmp_path) not in "".join(file.read_text() for file in (tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize("method", FILES, ids=["lora", "pair"])
def test_what_is_measured_is_what_the_files_compute(
    method: str, write_recipe: Write, run_tune: Run, base: Base, base_folder: Path, tmp_path: Path
) -> None:
    """The reference of a pair: the LoRA merged into the base, and PEFT's prefix on that."""
    run_tune(write_recipe(method, steps=20), tmp_path / "out")
    pair = method == PAIR
    lora = tmp_path / "lora"
    lora.mkdir()
    suffix = ".lora" if pair else ""
    for name in ("adapter_config{}.json", "adapter_model{}.safetensors"):
        (lora / name.format("")).write_bytes((tmp_path / "out" / name.format(suffix)).read_bytes())
    module = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    merged = PeftModel.from_pretrained(module, lora).merge_and_unload()
    reference = PeftModel.from_pretrained(merged, tmp_path / "out") if pair else merged
    own = as_base(merged, base.tokenizer, "merged")
    layout = Layout(3, None, "prefix_tuning") if pair else Layout()
    learned = Learned(own, layout, reference) if pair else None
    prompts = ["film", "a gripping, beautiful film", "far too long " * 4]
    rows = [encode(Example(text, " x"), layout, base.encoder, base.vocab_size, None) for text in prompts]
    for prompt, text in zip(prompts, generate(own, learned, rows, 8), strict=True):
        ids = base.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        out = reference.eval().generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert text == base.text(out.tolist())


def test_a_pairs_parts_are_both_trained_and_the_bare_model_is_measured_without(
    write_recipe: Write, run_tune: Run, base: Base, tmp_path: Path
) -> None:
    recipe = write_recipe("prefix_direct", steps=1)
    alone = run_tune(recipe, tmp_path / "alone").beside["the bare model"]
    report = run_tune(write_recipe(PAIR, steps=30), tmp_path / "out")
    assert report.beside["the bare model"].values == alone.values
    low_rank = load_file(tmp_path / "out" / "adapter_model.lora.safetensors")
    assert all(tensor.any() for name, tensor in low_rank.items() if "lora_B" in name)
    assert load_file(tmp_path / "out" / "adapter_model.safetensors")["prompt_embeddings"].shape == (3, 2 * 2 * 2 * 8)
    assert json.loads((tmp_path / "out" / "adapter_config.lora.json").read_text())["r"] == 4


def low_rank_layers(base: Base) -> list[str]:
    return [name for name, module in base.model.named_modules() if isinstance(module, LoraLayer)]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["q_proj", "post_attention_layernorm"], "no linear module post_attention_layernorm, but another of that name"),
        (
            ["q_proj", "bogus"],
            r"no linear module bogus: name .* \(down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v",
        ),
        (["embed_tokens"], "no linear module embed_tokens, but another of that name"),
        (["proj"], "no linear module proj: name"),
        (["q_proj", "lm_head"], "names the output head"),
    ],
)
def test_modules_that_no_lora_is_tuned_on_are_named_and_the_base_is_as_it_was(
    names: list[str], words: str, base: Base
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        begin(Lora(kind="lora", rank=2, alpha=4, target_modules=names), base)
    assert not low_rank_layers(base)


def test_a_module_is_named_by_any_end_of_its_name(base: Base) -> None:
    names = ["layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"]
    begin(Lora(kind="lora", rank=2, alpha=4, target_modules=names), base)
    assert low_rank_layers(base) == ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"]


def test_a_pair_whose_prefix_can_not_begin_leaves_nothing_in_the_base(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_prefix(*_: object, **__: object) -> PeftConfig:
        raise MemoryError

    monkeypatch.setattr(methods, "soft_config", no_prefix)
    with pytest.raises(MemoryError):
        begin(LoraPrefixTuning(kind="lora+prefix_tuning", rank=2, alpha=4, virtual_tokens=2), base)
    assert not low_rank_layers(base)
