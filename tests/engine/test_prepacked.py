from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from softmux.engine.prepacked import Prepacked, PrepackedLinear
from support.models import make_base


def test_the_swapped_module_computes_the_same_and_can_be_taken_back(tmp_path: Path) -> None:
    module = make_base("qwen2", tmp_path)  # its projections have biases
    original = copy.deepcopy(module)
    linears = sum(type(m) is nn.Linear for m in original.modules())
    swap = Prepacked(module)
    assert swap.swap() == linears
    assert sum(isinstance(m, PrepackedLinear) for m in module.modules()) == linears
    for rows in (1, 7, 90):
        ids = torch.randint(0, 96, (1, rows))
        with torch.inference_mode():
            torch.testing.assert_close(module(ids).logits, original(ids).logits, rtol=1e-4, atol=1e-4)
    swap.undo()
    assert sum(type(m) is nn.Linear for m in module.modules()) == linears


def test_a_layer_that_comes_out_different_stays_as_it_is(tmp_path: Path) -> None:
    module = make_base("llama", tmp_path)
    weight = module.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        weight[0, 0] = float("nan")  # its product is never equal to itself
    swap = Prepacked(module)
    swap.swap()
    assert type(module.model.layers[0].mlp.up_proj) is nn.Linear
    assert isinstance(module.model.layers[0].mlp.down_proj, PrepackedLinear)


def test_half_precision_is_left_alone(tmp_path: Path) -> None:
    module = make_base("llama", tmp_path).to(torch.bfloat16)
    assert Prepacked(module).swap() == 0
