"""Slots for what adapters change of the base: who has one, who gives way, and that nothing in use is touched."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from softmux.engine.delta import Delta
from softmux.engine.delta_slots import DeltaSlots
from softmux.errors import InvalidAdapter
from softmux.formats.parts import LoraLayer, LoraPart, TokenRowsPart
from softmux.scheduler.radix import RootKey
from softmux.types import LinearShape

LINEARS = (LinearShape("up", 8, 24), LinearShape("down", 24, 8))
CPU = torch.device("cpu")


def key(number: int) -> RootKey:
    return RootKey("a", f"lora-{number}", "base", "float32")


def delta(rank: int, seed: int = 0, modules: tuple[str, ...] = ("up", "down")) -> Delta:
    draw = np.random.default_rng(seed)
    layers = {
        linear.name: LoraLayer(
            draw.standard_normal((rank, linear.inputs), np.float32),
            draw.standard_normal((linear.outputs, rank), np.float32),
            0.5,
        )
        for linear in LINEARS
        if linear.name in modules
    }
    made = Delta.of((LoraPart(layers),), torch.float32)
    assert made is not None
    return made


def slots(count: int, room: int = 0) -> DeltaSlots:
    return DeltaSlots(LINEARS, slots=count, largest_rank=16, room=room, dtype=torch.float32, device=CPU)


def test_an_update_is_what_was_trained_with_its_scaling() -> None:
    draw = np.random.default_rng(3)
    a, b = draw.standard_normal((3, 8), np.float32), draw.standard_normal((24, 3), np.float32)
    rows = draw.standard_normal((2, 8), np.float32)
    parts = (LoraPart({"up": LoraLayer(a, b, 0.25)}), TokenRowsPart((7, 2), rows, "input"))
    made = Delta.of(parts, torch.float32)
    assert made is not None
    update = made.by_module["up"]
    x = torch.randn((5, 8))
    expected = 0.25 * (x @ torch.from_numpy(a).t()) @ torch.from_numpy(b).t()
    torch.testing.assert_close(x @ made.a(update).t() @ made.b(update), expected)
    (table,) = made.tables_at("input")
    assert table.ids == (7, 2)
    assert torch.equal(made.rows(table), torch.from_numpy(rows))
    assert not list(made.tables_at("output"))


def test_those_in_use_keep_their_slots_and_the_others_give_way_by_last_use() -> None:
    some = slots(2)
    parts = [delta(2, n) for n in range(4)]
    first, second = some.hold(key(0), parts[0]), some.hold(key(1), parts[1])
    assert {first, second} == {0, 1}
    assert some.room(key(2), parts[2]) == "full"
    assert some.room(key(0), parts[0]) == "held"
    some.release(key(1))
    assert some.room(key(2), parts[2]) == "free"
    assert some.room(key(1), parts[1]) == "free"
    assert some.hold(key(1), parts[1]) == second, "what nobody took the place of is there still"
    some.release(key(0))
    some.release(key(1))
    assert some.hold(key(2), parts[2]) == first, "the least recently used gives way"
    assert some.deltas[second] is parts[1]
    some.check_integrity()


def test_what_can_never_run_is_refused_in_words() -> None:
    with pytest.raises(InvalidAdapter, match="--max-lora-rank 17"):
        slots(1).room(key(0), delta(17))
    with pytest.raises(InvalidAdapter, match="--lora-bytes"):
        slots(1, room=1024).room(key(0), delta(16))


@pytest.mark.parametrize("seed", range(20))
def test_weights_on_the_device_are_their_own_whatever_comes_and_goes(seed: int) -> None:
    draw = random.Random(seed)
    some = slots(draw.choice([1, 3, 6]), room=draw.choice([4096, 9000, 40000]))
    parts = {n: delta(draw.randint(1, 12), n, draw.choice([("up",), ("down",), ("up", "down")])) for n in range(8)}
    held: list[int] = []
    for _ in range(200):
        number = draw.randrange(8)
        if held and draw.random() < 0.45:
            some.release(key(held.pop(draw.randrange(len(held)))))
        elif parts[number].data.nbytes <= some.weights.nbytes and some.room(key(number), parts[number]) != "full":
            some.hold(key(number), parts[number])
            held.append(number)
        some.check_integrity()
        for running in set(held):
            slot = some.hold(key(running), parts[running])
            there = some.deltas[slot]
            assert there is not None
            assert torch.equal(there.data, parts[running].data)
            for update in parts[running].updates:
                rank, at, b_at, _ = some.table[slot, some.columns[update.name]].tolist()
                assert rank == update.rank
                lies = some.weights[16 * at : 16 * at + rank * update.inputs]
                assert torch.equal(lies, parts[running].a(update).reshape(-1))
                lies = some.weights[16 * b_at : 16 * b_at + rank * update.outputs]
                assert torch.equal(lies, parts[running].b(update).reshape(-1))
            some.release(key(running))
    for number in held:
        some.release(key(number))
    some.check_integrity()


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_an_update_of_a_module_that_is_not_served_is_refused_by_name(room: int) -> None:
    """As the disk tier may hold one that another release has admitted."""
    served = DeltaSlots(LINEARS[:1], slots=2, largest_rank=16, room=room, dtype=torch.float32, device=CPU)
    with pytest.raises(InvalidAdapter, match="acts on down, where none is served"):
        served.room(key(1), delta(2))
