"""The attention bench's layouts hold what they say, and every layout gives the same numbers."""

from __future__ import annotations

import pytest
import torch

from softmux.bench.device.attention import LAYOUTS, Attention, Case, slots_for


@pytest.mark.parametrize("together", LAYOUTS.values(), ids=LAYOUTS)
def test_every_slot_is_used_once_and_pieces_lie_together(together: int) -> None:
    slots = slots_for(3, 64, together, torch.Generator().manual_seed(0))
    assert sorted(slots.flatten().tolist()) == list(range(192))
    piece = together or 64
    steps = slots.view(3, -1, piece).diff(dim=2)
    assert (steps == 1).all()
    jumps = (slots.diff(dim=1) != 1).float().mean()
    assert (jumps > 0.9) if together == 1 else (jumps < 0.07)


def test_a_piece_that_does_not_divide_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="20 tokens do not divide into pieces of 16"):
        slots_for(2, 20, 16, torch.Generator())


def test_layouts_change_where_numbers_lie_and_nothing_else() -> None:
    case = Case(rows=2, context=32, new=4, head_dim=16, heads=4, kv_heads=2)
    told = []
    for together in LAYOUTS.values():
        attention = Attention(case, "torch", torch.float32, torch.device("cpu"), layers=1)
        slots = slots_for(2, 32, together, torch.Generator().manual_seed(0))
        source = torch.Generator().manual_seed(5)
        for tensor in (attention.pool.keys[0], attention.pool.values[0]):
            tensor[slots.flatten()] = torch.randn((64, 2, 16), generator=source)
        attention.prepare(slots)
        told.append(attention.run())
    assert torch.equal(told[0], told[1])
    assert torch.equal(told[0], told[2])


def test_the_work_of_a_case() -> None:
    case = Case(rows=2, context=8, new=8, head_dim=64, heads=4, kv_heads=2)
    assert case.flops == 2 * 2 * 2 * 36 * 4 * 64
    assert case.kv_bytes == 2 * 8 * 2 * 2 * 64 * 2
