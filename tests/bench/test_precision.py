"""What fewer bits cost, measured on a tiny model: nothing where nothing is rounded, and more the more is."""

from __future__ import annotations

from pathlib import Path

import torch

from softmux.bench.device.precision import KINDS, cost, load, logits
from support.models import make_base


def test_every_kind_of_rounding_costs_something_and_none_costs_nothing(tmp_path: Path) -> None:
    make_base("llama", tmp_path)
    texts = [torch.arange(3, 40), torch.arange(50, 70)]
    before = logits(load(str(tmp_path)), texts)
    assert before.shape == (57, 96)
    same = cost(before, logits(load(str(tmp_path)), texts), texts)
    assert (same.largest, same.same_token, same.loss_after) == (0.0, 1.0, same.loss_before)
    found = {name: cost(before, logits(load(str(tmp_path), **how), texts), texts) for name, how in KINDS.items()}
    assert all(0 < each.rms < each.largest and each.divergence > 0 for each in found.values())
    assert all(each.largest < 1 for name, each in found.items() if name != "weights in nf4")
    assert found["both"].divergence > found["KV in fp8"].divergence
    assert found["weights in int8"].divergence < found["weights in nf4"].divergence
    assert found["weights and head in fp8"].rms > found["weights in fp8"].rms
