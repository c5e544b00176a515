"""Weights in fp8: their numerics, their loading, and the model that runs on them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from softmux.engine.fp8 import E4M3, Fp8Linear, Fp8Weight, merge, swap_linears
from softmux.engine.packed import PackedModel
from softmux.errors import SelfTestFailed
from support.engines import TestEngine
from support.models import greedy_reference, make_base

CPU = torch.device("cpu")


def load(folder: Path, quantization: str = "fp8") -> PackedModel:
    return PackedModel.load(str(folder), device=CPU, dtype=torch.float32, quantization=quantization)


def test_every_number_is_rounded_to_the_nearest_of_its_channels_scale() -> None:
    weight = torch.randn((40, 300), generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 3, 40)[:, None]
    quantised = Fp8Weight.quantise(weight)
    assert quantised.data.dtype == E4M3
    assert (quantised.data.float().abs().amax(1) == 448).all()
    worst = (quantised.dequantised(torch.float32) - weight).abs().amax(1) / weight.abs().amax(1)
    assert worst.max() <= 16 / 448 + 1e-6  # half the step between the format's largest numbers


def test_a_channel_of_zeros_stays_zero_and_an_outlier_costs_only_its_own_channel() -> None:
    weight = torch.full((3, 64), 0.01)
    weight[0] = 0
    weight[1, 0] = 1000
    back = Fp8Weight.quantise(weight).dequantised(torch.float32)
    assert (back[0] == 0).all()
    torch.testing.assert_close(back[2], weight[2], rtol=1e-6, atol=0)


def test_large_weights_are_quantised_in_pieces_as_small_ones_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn((50, 70))
    whole = Fp8Weight.quantise(weight)
    monkeypatch.setattr("softmux.engine.fp8._PIECE", 200)
    pieces = Fp8Weight.quantise(weight)
    assert torch.equal(whole.data.view(torch.uint8), pieces.data.view(torch.uint8))
    assert torch.equal(whole.scale, pieces.scale)


@pytest.mark.parametrize("layer", [nn.Linear(24, 10), nn.Linear(24, 10, bias=False), Conv1D(10, 24)])
def test_a_layer_multiplies_by_its_dequantised_weight(layer: nn.Module) -> None:
    given: Any = layer
    made = Fp8Linear(layer)
    quantised = made.quantise(given.weight.data)
    made.hold(quantised)
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(made(x), F.linear(x, quantised.dequantised(torch.float32), given.bias))
    assert (made(x) - layer(x)).norm() < 0.05 * layer(x).norm()


def test_a_weight_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        Fp8Linear(nn.Linear(24, 10)).quantise(torch.zeros(3, 4))


@pytest.mark.parametrize("packed", [True, False])
def test_merged_layers_become_views_and_compute_what_they_did(packed: bool) -> None:
    layers: list[nn.Module] = [nn.Linear(16, outputs, bias=False) for outputs in (8, 3, 5)]
    if packed:
        made = [Fp8Linear(layer) for layer in layers]
        for layer, quantised in zip(layers, made, strict=True):
            quantised.hold(quantised.quantise(layer.weight.data))  # type: ignore[arg-type]
        layers = [*made]
    x = torch.randn(4, 16)
    with torch.no_grad():
        before = torch.cat([layer(x) for layer in layers], 1)
        merged = merge(layers)
        after = torch.cat([layer(x) for layer in layers], 1)
    assert torch.equal(before, after)
    assert merged.shape == (16, 16)
    inside = range(merged.data.data_ptr(), merged.data.data_ptr() + merged.nbytes)
    assert all(layer.weight.data_ptr() in inside for layer in layers)  # type: ignore[operator]
    whole = merged.dequantised(torch.float32) if isinstance(merged, Fp8Weight) else merged
    torch.testing.assert_close(F.linear(x, whole), after)


@pytest.mark.parametrize(
    ("architecture", "layers"), [("llama", 21), ("gpt2", 12), ("phi3", 12), ("opt", 18), ("gemma2", 21)]
)
def test_all_linear_layers_but_the_head_are_quantised_as_they_are_read(
    architecture: str, layers: int, tmp_path: Path
) -> None:
    base = make_base(architecture, tmp_path)
    module = load(tmp_path).module
    quantised = {name: layer for name, layer in module.named_modules() if isinstance(layer, Fp8Linear)}
    assert len(quantised) == layers
    for name, layer in quantised.items():
        weight = base.get_submodule(name).weight
        expected = Fp8Weight.quantise(weight.t() if isinstance(base.get_submodule(name), Conv1D) else weight)
        assert torch.equal(layer.weight.view(torch.uint8), expected.data.view(torch.uint8)), name
        assert torch.equal(layer.weight_scale, expected.scale)
    for name, parameter in module.named_parameters():
        if parameter.dtype != E4M3:
            assert torch.equal(parameter, base.get_parameter(name)), name


def test_a_weight_is_not_held_in_full_beside_the_next(base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every linear weight is read, and let go, before the next is."""
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []
    quantise = Fp8Linear.quantise

    def watched(layer: Fp8Linear, weight: torch.Tensor) -> Fp8Weight:
        assert sum(ref() is not None for ref in alive) <= 1, "an earlier weight is still held in full"
        alive.append(weakref.ref(weight))
        return quantise(layer, weight)

    monkeypatch.setattr(Fp8Linear, "quantise", watched)
    load(base_folder)
    assert len(alive) == 21
    assert all(ref() is None for ref in alive)


def test_the_fingerprint_names_the_checkpoint_and_the_caches_key_the_way_it_runs(base_folder: Path) -> None:
    plain, quantised = load(base_folder, "auto").spec(64), load(base_folder).spec(64)
    assert quantised.base_fingerprint == plain.base_fingerprint
    assert quantised.parameters == plain.parameters
    assert (plain.quantization, quantised.quantization) == (None, "fp8")
    assert plain.kv_format == "float32"
    assert quantised.kv_format == "float32, weights fp8"


def test_a_checkpoint_that_is_quantised_already_or_lacks_a_weight_is_refused(base_folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(base_folder, tmp_path / "quantised")
    config = json.loads((tmp_path / "quantised" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "quantised" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SelfTestFailed, match="quantised already; leave --quantization out"):
        load(tmp_path / "quantised")

    shutil.copytree(base_folder, tmp_path / "lacking")
    weights = tmp_path / "lacking" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(SelfTestFailed, match=r"no weight for model\.layers\.1\.mlp\.up_proj"):
        load(tmp_path / "lacking")


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_served_model_gives_the_tokens_of_its_dequantised_weights(architecture: str, tmp_path: Path) -> None:
    make_base(architecture, tmp_path)
    engine = TestEngine(tmp_path, quantization="fp8")
    reference = load(tmp_path).module
    reference.set_attn_implementation("eager")
    for ids in ([5, 6, 7, 8, 9], [11, 12, 13]):
        name = engine.add(ids, max_tokens=8)
        engine.run()
        expected, sure = greedy_reference(reference, ids, 8)
        assert engine.done[name].tokens[:sure] == expected[:sure]
    assert engine.engine.spec.quantization == "fp8"
    engine.close()


def test_a_head_that_shares_the_embedding_is_left_alone(base: Any) -> None:
    module = copy.deepcopy(base)
    head = module.get_output_embeddings()
    swap_linears(module)
    assert module.get_output_embeddings() is head
    assert type(head) is nn.Linear
