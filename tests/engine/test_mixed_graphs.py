"""What a graph of a mixed step is given: every token of the step once, and nothing else that anybody could notice."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from softmux.engine.attention.base import PackedRows
from softmux.engine.attention.torch_sdpa import TorchAttention
from softmux.engine.kv import KVPool
from softmux.engine.layout import Layout, cut, lay_out
from softmux.engine.mixed_graphs import Bucket, Inputs, MixedGraphs, fill, parts, room
from softmux.types import LayerKV
from support.simulation import Simulation

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SPARE_ROW, SPARE_SLOT = 77, 9999
STALE = -123456


def filled(layout: Layout, bucket: Bucket) -> Inputs[Any]:
    """As it is after another step's numbers."""
    inputs = parts(np.full(room(bucket), STALE, np.int32), bucket)
    fill(inputs, layout, bucket, spare_row=SPARE_ROW, spare_slot=SPARE_SLOT)
    return inputs


def attended(inputs: Inputs[Any], bucket: Bucket) -> list[tuple[int, int, int]]:
    """(token, its table row, its position) of all that the kernels will compute."""
    found = [
        (int(token), int(row), int(at))
        for token, row, at in zip(inputs.picked, inputs.rows, inputs.at, strict=True)
        if token >= 0
    ]
    for chunk, first in zip(inputs.block_chunks, inputs.block_firsts, strict=True):
        for query in range(first, min(first + bucket.queries, inputs.counts[chunk])):
            token = int(inputs.offsets[chunk]) + query
            found.append((token, int(inputs.chunk_rows[chunk]), int(inputs.starts[chunk]) + query))
    return sorted(found)


@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_every_token_of_a_step_is_attended_once_and_every_choice_kept_for_its_row(seed: int) -> None:
    simulation = Simulation(seed, 1)
    launch, steps = simulation.engine.launch, 0

    def checked(batch: Any) -> Any:
        nonlocal steps
        steps += 1
        layout = lay_out(batch)
        tokens, counts = len(layout.ids), layout.counts
        singles = int((counts == 1).sum())
        # a bucket that is just full, but for its chunks, and one with room
        for bucket in (Bucket(tokens, singles, 16), Bucket(2 * tokens + 64, singles + 5, 64)):
            if len(counts) - singles > bucket.chunks:
                continue
            inputs = filled(layout, bucket)
            owners = np.repeat(layout.rows, counts)
            expected = list(zip(range(tokens), owners.tolist(), layout.positions.tolist(), strict=True))
            assert attended(inputs, bucket) == expected
            assert inputs.positions[:tokens].tolist() == layout.positions.tolist()
            assert inputs.slots[:tokens].tolist() == layout.slots.tolist()
            assert set(inputs.slots[tokens:].tolist()) <= {SPARE_SLOT}, "padding writes nobody's keys"
            wanted = len(layout.wanted)
            assert inputs.wanted[:wanted].tolist() == layout.wanted.tolist()
            assert inputs.choosers[:wanted].tolist() == owners[layout.wanted].tolist()
            assert set(inputs.choosers[wanted:].tolist()) <= {SPARE_ROW}, "padding chooses nobody's token"
            assert all(STALE not in part for part in inputs)
        return launch(batch)

    simulation.engine.launch = checked  # type: ignore[method-assign]
    simulation.run()
    assert steps > 10


def test_a_step_of_nothing_is_padding_alone() -> None:
    none = np.zeros(0, np.int64)
    bucket = Bucket(32, 8, 64)
    inputs = filled(Layout(*[none] * 11, [], none, none, []), bucket)  # type: ignore[arg-type]
    assert attended(inputs, bucket) == []
    assert set(inputs.slots.tolist()) == {SPARE_SLOT}
    assert set(inputs.choosers.tolist()) == {SPARE_ROW}


def test_blocks_with_the_most_keys_come_first() -> None:
    rows, firsts = cut(np.array([0, 100, 0]), np.array([130, 64, 65]), 64)
    assert list(zip(rows.tolist(), firsts.tolist(), strict=True)) == [
        (0, 128),
        (1, 0),
        (0, 64),
        (2, 64),
        (0, 0),
        (2, 0),
    ]
    assert [part.tolist() for part in cut(np.zeros(0, np.int64), np.zeros(0, np.int64), 64)] == [[], []]


def capturing(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Bucket], bool]) -> MixedGraphs:
    """Of 20 rows at most; a graph takes half of the time of launching."""

    def capture(_: MixedGraphs, bucket: Bucket, pool: object) -> Any:
        if fails(bucket):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return SimpleNamespace(graph=SimpleNamespace(replay="graph"))

    monkeypatch.setattr(MixedGraphs, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr("softmux.engine.mixed_graphs._seconds", lambda step: 0.5 if step == "graph" else 1.0)
    nothing: Any = None
    table = torch.zeros((21, 4), dtype=torch.int32)
    attention: Any = SimpleNamespace(queries=lambda longest: 64)
    return MixedGraphs(
        nothing, nothing, attention, table=table, last_tokens=table, spare_slot=0, embedding=torch.zeros((8, 4)),
        vocabulary=8, max_rows=20, max_tokens=300,
    )  # fmt: skip


def chunks(*counts: int) -> Layout:
    none, given = np.zeros(0, np.int64), np.array(counts)
    zeros = np.zeros(given.sum(), np.int64)
    return Layout(given, given, given, none, none, zeros, zeros, zeros, none, none, none, [], none, none, [])


def test_what_there_is_no_memory_to_capture_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = capturing(monkeypatch, lambda bucket: bucket.tokens > 64)  # already when tried
    assert graphs.capture() == []
    assert [graphs.bucket(chunks(count)) for count in (16, 17, 64, 65)] == [
        Bucket(16, 8, 64), Bucket(32, 8, 64), Bucket(64, 8, 64), None
    ]  # fmt: skip
    monkeypatch.setattr(MixedGraphs, "_pays", lambda _, size: size <= 96)
    graphs = capturing(monkeypatch, lambda bucket: bucket.tokens == 32)
    assert graphs.capture() == [Bucket(32, 20, 64), Bucket(32, 8, 64)], "alone"
    assert [graphs.bucket(chunks(count)) for count in (16, 17, 33)] == [Bucket(16, 8, 64), None, Bucket(64, 8, 64)]
    graphs = capturing(monkeypatch, lambda bucket: True)
    with pytest.raises(torch.OutOfMemoryError):
        graphs.capture()


def test_a_step_of_many_chunks_takes_no_graph_far_larger_than_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = capturing(monkeypatch, lambda bucket: False)
    graphs.capture()
    assert graphs.bucket(chunks(*[2] * 8)) == Bucket(16, 8, 64)
    assert graphs.bucket(chunks(*[2] * 16)) == Bucket(32, 8, 64)
    assert graphs.bucket(chunks(*[1] * 9, 2, 2)) == Bucket(16, 16, 64)
    assert graphs.bucket(chunks(*[2] * 78)) == Bucket(256, 8, 64), "there is room in the next"
    assert graphs.bucket(chunks(*[2] * 90)) is None, "nor there"


@pytest.mark.skipif(not _INTERPRETED, reason="needs TRITON_INTERPRET=1; a GPU compares whole engines")
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("splits", [1, 3])
def test_the_kernels_pass_over_padding(splits: int, window: int | None) -> None:
    from softmux.engine.kernels.attention import decode, extend

    heads, width, shapes = 4, 24, [(30, 1), (0, 1), (9, 40), (0, 5), (70, 1)]
    starts, counts = np.array(shapes).T
    total = int((starts + counts).sum())
    torch.manual_seed(0)
    pool = KVPool([LayerKV(2, width)], total, torch.float32, torch.device("cpu"))
    pool.keys[0].normal_()
    pool.values[0].normal_()
    table = torch.full((SPARE_ROW + 1, 90), pool.spare, dtype=torch.int32)
    order, at, slots = torch.randperm(total), 0, []
    for row, (start, count) in enumerate(shapes):
        own = order[at : at + start + count]
        table[row, : len(own)] = own.int()
        slots.append(own[start:])
        at += start + count
    tokens = int(counts.sum())
    query = torch.randn((tokens, heads, width))
    reference = TorchAttention(pool)
    reference.begin(PackedRows(list(range(5)), starts.tolist(), counts.tolist(), table, torch.cat(slots)))
    given: dict[str, Any] = {"scaling": width**-0.5, "window": window, "softcap": None}
    expected = reference.attend_written(0, query, **given)

    none, rows = np.zeros(0, np.int64), np.arange(5)
    positions = np.concatenate([start + np.arange(count) for start, count in shapes])
    layout = Layout(
        rows, starts, counts, none, none, positions, positions, positions, none, none, none, [], none, none, []
    )
    bucket = Bucket(64, 8, 16)
    inputs = Inputs(*(torch.from_numpy(part) for part in filled(layout, bucket)))
    out = torch.full((bucket.tokens, heads, width), 5.0)
    padded = torch.cat([query, torch.full((bucket.tokens - tokens, heads, width), float("nan"))])
    keys, values = pool.keys[0], pool.values[0]
    extend(
        padded, keys, values, table, out, (inputs.block_chunks, inputs.block_firsts),
        (inputs.chunk_rows, inputs.offsets, inputs.starts, inputs.counts), queries=bucket.queries, **given,
    )  # fmt: skip
    decode(padded, keys, values, table, inputs.rows, inputs.at, out, inputs.picked, splits=splits, **given)
    torch.testing.assert_close(out[:tokens], expected, rtol=1e-4, atol=1e-4)
    assert (out[tokens:] == 5.0).all(), "nothing is written for padding"
