"""Bases in 8 and 4 bits: what their layers compute, how they are loaded and named, and that adapters act on them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from softmux.engine.bases import load_base
from softmux.engine.packed import PackedModel
from softmux.engine.prepacked import Prepacked
from softmux.engine.quantised import FourBitWeight, Int8Weight, QuantisedLinear, take_over
from softmux.errors import SelfTestFailed
from softmux.inspection.base import describe
from softmux.inspection.compare import costs
from support.engines import TestEngine
from support.loras import make_lora
from support.models import greedy_reference, load_peft, make_adapter, make_base
from support.quantised import configs, in_full, load_reference, make_wide_base

CPU = torch.device("cpu")
PROMPTS = ([5, 6, 7, 8, 9], [11, 12, 13], [4, 4, 60, 61])
NEW_TOKENS = 8


def load(folder: Path, quantization: str = "auto") -> PackedModel:
    return PackedModel.load(str(folder), device=CPU, dtype=torch.float32, quantization=quantization)


def quantised(module: Any) -> dict[str, QuantisedLinear]:
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, QuantisedLinear)}


@pytest.mark.parametrize(
    ("architecture", "name", "layers"),
    [("llama", "int8", 21), ("llama", "nf4", 21), ("gpt2", "nf4", 12), ("opt", "int8", 18), ("phi3", "nf4", 12)],
)
def test_all_linear_layers_but_the_head_hold_what_transformers_makes_of_them(
    architecture: str, name: str, layers: int, tmp_path: Path
) -> None:
    base = make_base(architecture, tmp_path)
    found = quantised(load(tmp_path, name).module)
    assert len(found) == layers
    reference = load_reference(tmp_path, name)
    take_over(reference)
    expected = quantised(reference)
    for path, layer in found.items():
        weight = layer.quantised.dequantised(torch.float32)
        assert torch.equal(weight, expected[path].quantised.dequantised(torch.float32)), path
        original = base.get_submodule(path).weight
        original = original.t() if architecture == "gpt2" else original
        assert 0 < (weight - original).norm() < (0.01 if name == "int8" else 0.12) * original.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_multiplies_by_its_dequantised_weight_and_each_row_alone(dtype: torch.dtype, bias: bool) -> None:
    from bitsandbytes.functional import quantize_4bit

    draw = torch.Generator().manual_seed(0)
    x = torch.randn((2, 5, 64), generator=draw).to(dtype)
    x[0, 0, 3] = 50.0  # what LLM.int8 would treat apart, for all rows
    eight = Int8Weight(torch.randint(-127, 128, (40, 64), generator=draw, dtype=torch.int8), torch.rand(40) / 300)
    four = FourBitWeight.of(*quantize_4bit(torch.randn((40, 64), generator=draw), quant_type="nf4"))
    for weight in (eight, four):
        layer = QuantisedLinear(weight, nn.Parameter(torch.ones(40, dtype=dtype)) if bias else None)
        y = layer(x)
        assert y.dtype == dtype
        layer.plainly = True
        expected = F.linear(x.float(), weight.dequantised(torch.float32)) + bias
        torch.testing.assert_close(layer(x).float(), expected.to(dtype).float())
        rounding = 1e-5 if dtype == torch.float32 else 2e-2
        assert (y - expected).norm() < rounding * expected.norm()
        layer.plainly = False
        alone = torch.stack([layer(row[None])[0] for row in x.flatten(0, 1)])
        torch.testing.assert_close(alone, y.flatten(0, 1))


@pytest.mark.parametrize("shape", [(48, 48), (10, 64), (8, 33), (30, 96)])
@pytest.mark.parametrize("double", [True, False])
def test_rows_that_are_no_whole_blocks_come_back_as_near_as_others(shape: tuple[int, int], double: bool) -> None:
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    four = FourBitWeight.of(*quantize_4bit(weight, quant_type="nf4", compress_statistics=double))
    back = four.dequantised(torch.float32)
    assert back.shape == weight.shape
    assert (back - weight).norm() < 0.12 * weight.norm()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_every_method_in_one_batch_is_token_exact_with_peft_on_the_same_base(
    name: str, device: str, tmp_path: Path
) -> None:
    make_wide_base(tmp_path / "base")
    reference = load_reference(tmp_path / "base", name)
    models: dict[str, Any] = {"bare": reference}
    for number, method in enumerate(("prompt_tuning", "prefix_tuning", "p_tuning_mlp")):
        make_adapter(reference, method, tmp_path / method, seed=number)
        models[method] = load_peft(reference, tmp_path / method)
    for number, targets in enumerate((["q_proj", "v_proj"], ["k_proj", "o_proj", "gate_proj", "down_proj"])):
        task = f"lora-{number}"
        models[task] = make_lora(reference, tmp_path / task, seed=number, r=3 + number, target_modules=targets)
    engine = TestEngine(tmp_path / "base", quantization=name, device=device)
    assert engine.engine.spec.quantization == name
    assert "lora" in engine.engine.spec.serves  # the self-test of LoRAs has passed
    adapters = {task: engine.adapter(tmp_path / task) for task in models if task != "bare"}
    asked = {
        engine.add(ids, *adapters.get(task, (None, 0)), max_tokens=NEW_TOKENS, ignore_eos=True): (task, ids)
        for task in models
        for ids in PROMPTS
    }
    engine.run()
    for sequence, (task, ids) in asked.items():
        expected, sure = greedy_reference(models[task], ids, NEW_TOKENS)
        assert engine.done[sequence].tokens[:sure] == expected[:sure], task
    assert max(len(batch) for batch in engine.batches) == len(asked)
    engine.close()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("int8", "int8"),
        ("nf4", "nf4"),
        ("nf4-single", "nf4"),
        ("fp4", "fp4"),
        ("llm.int8", "int8"),
        ("dynamic", "int8"),
    ],
)
def test_a_checkpoint_that_brings_8_or_4_bits_gives_the_tokens_of_its_dequantised_weights(
    name: str, said: str, tmp_path: Path
) -> None:
    make_base("llama", tmp_path / "full")
    module = load_reference(tmp_path / "full", name)
    module.save_pretrained(tmp_path / "base")
    engine = TestEngine(tmp_path / "base")
    spec = engine.engine.spec
    assert spec.quantization == said
    assert spec.base_fingerprint == describe(str(tmp_path / "base"), fingerprints=True).base_fingerprint
    assert spec.base_fingerprint != describe(str(tmp_path / "full"), fingerprints=True).base_fingerprint
    reference = in_full(module)
    reference.config.quantization_config = None
    for ids in PROMPTS:
        sequence = engine.add(ids, max_tokens=NEW_TOKENS, ignore_eos=True)
        engine.run()
        expected, sure = greedy_reference(reference, ids, NEW_TOKENS)
        assert engine.done[sequence].tokens[:sure] == expected[:sure]
    engine.close()


def test_the_fingerprint_names_int8_and_nf4_but_not_fp8(base_folder: Path) -> None:
    specs = {name: load(base_folder, name).spec(64) for name in ("auto", "fp8", "int8", "nf4")}
    prints = {name: spec.base_fingerprint for name, spec in specs.items()}
    assert prints["fp8"] == prints["auto"]
    assert len(set(prints.values())) == 3
    assert load(base_folder, "nf4").spec(64).base_fingerprint == prints["nf4"]
    for name in ("fp8", "int8", "nf4"):
        assert describe(str(base_folder), fingerprints=True, quantization=name).base_fingerprint == prints[name]
    assert len({spec.kv_format for spec in specs.values()}) == 4
    assert len({spec.parameters for spec in specs.values()}) == 1


def test_the_bytes_told_are_those_held_and_those_that_compare_methods_counts(base_folder: Path) -> None:
    full, eight, four = (load(base_folder, name).spec(64) for name in ("auto", "int8", "nf4"))
    linear = sum(shape.inputs * shape.outputs for shape in full.linears if shape.name != full.output_embedding)
    outputs = sum(shape.outputs for shape in full.linears if shape.name != full.output_embedding)
    rest = full.parameters - linear
    assert full.weight_bytes == 4 * full.parameters
    assert eight.weight_bytes == 4 * rest + linear + 4 * outputs
    told = next(cost.base_bytes for cost in costs(full) if cost.method == "qlora")
    scales = 21 * 4 * (1 + 1)  # a layer's scales end in a part of a block
    assert 0 <= four.weight_bytes - (told + 2 * rest) <= scales


def test_the_self_test_holds_the_products_to_the_dequantised_weights(
    base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Int8Weight.product
    monkeypatch.setattr(Int8Weight, "product", lambda weight, x: right(weight, x) * 1.01)
    with pytest.raises(SelfTestFailed, match="differs from the eager module"):
        TestEngine(base_folder, quantization="int8")


def test_faster_ways_leave_quantised_layers_alone(base_folder: Path, base: Any) -> None:
    engine = TestEngine(base_folder, quantization="nf4")
    ways = engine.engine.runner.ways
    assert not any(ways.fallbacks.values())
    assert len(quantised(engine.engine.model.module)) == 21
    engine.close()
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layers = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    quantize_(layers[0], Int8WeightOnlyConfig(set_inductor_config=False), filter_fn=lambda *_: True)
    assert Prepacked(layers).swap() == 1
    assert type(layers[0]) is nn.Linear


@pytest.mark.triton
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_fused_layers_are_not_tried_on_quantised_ones(base_folder: Path) -> None:
    from softmux.engine.fused import FusedDecoder

    nothing: Any = None
    assert FusedDecoder.of(load(base_folder, "int8"), nothing, nothing, nothing) is None


@pytest.mark.parametrize(("name", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes"), ("nf4", "accelerate")])
def test_a_missing_package_is_named_with_the_command_that_brings_it(
    name: str, package: str, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked, *more: None if asked == package else find(asked))
    with pytest.raises(SelfTestFailed, match=rf'need {package}: pip install "softmux\[quantized\]"'):
        load(base_folder, name)


def test_what_cannot_be_quantised_is_refused_in_words(tmp_path: Path) -> None:
    make_base("gpt2", tmp_path / "gpt2")
    with pytest.raises(SelfTestFailed, match="no linear layer that torchao can quantise"):
        load(tmp_path / "gpt2", "int8")  # its layers are Conv1D
    shutil.copytree(tmp_path / "gpt2", tmp_path / "own")
    path = tmp_path / "own" / "config.json"
    brought = {"quantization_config": configs()["nf4"].to_dict()}
    path.write_text(json.dumps(json.loads(path.read_text()) | brought))
    with pytest.raises(SelfTestFailed, match="quantised already; leave --quantization out"):
        load(tmp_path / "own", "nf4")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["BertModel"], "model_type": "bert"}))
    with pytest.raises(SelfTestFailed, match="an encoder with quantised weights"):
        load_base(str(tmp_path / "own"), device=CPU, dtype=torch.float32)
