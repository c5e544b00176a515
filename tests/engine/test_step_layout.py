"""A batch as arrays: against the same laid out token by token, over whole loads; and the buffers it is sent from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from softmux.engine.device import send
from softmux.engine.graphs import pad
from softmux.engine.layout import lay_out, ranges
from softmux.engine.mirror import TableMirror
from softmux.engine.staging import Ring
from softmux.scheduler.batch import Batch
from support.simulated_engine import rows_of
from support.simulation import Simulation

CPU = torch.device("cpu")


def token_by_token(batch: Batch) -> tuple[list[list[int]], list[int]]:
    """What `lay_out` must say: id, position and slot of each token, and which logits are wanted."""
    tokens, wanted = [], []
    for row in rows_of(batch):
        for position in range(row.start, row.start + row.count):
            known = row.sequence.tokens[position] if not row.future else 0
            tokens.append([max(known, 0), position, row.sequence.slots[position]])
        if row.samples:
            wanted.append(len(tokens) - 1)
    return tokens, wanted


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_a_load_laid_out_at_once_is_the_same_as_token_by_token(seed: int, depth: int) -> None:
    simulation = Simulation(seed, depth)
    table = simulation.scheduler.table
    mirror = TableMirror(simulation.max_rows, table.context, spare=9999, device=CPU)
    launch, graphs = simulation.engine.launch, 0

    def checked(batch: Batch):  # type: ignore[no-untyped-def]
        nonlocal graphs
        layout = lay_out(batch)
        tokens, wanted = token_by_token(batch)
        assert np.stack([layout.ids, layout.positions, layout.slots], axis=1).tolist() == tokens
        assert layout.wanted.tolist() == wanted
        assert layout.futures.tolist() == [i for i, row in enumerate(rows_of(batch)) if row.future]
        learned = [
            (row.sequence.root, -1 - token)
            for row in rows_of(batch)
            if not row.future
            for token in row.sequence.tokens[row.start : row.start + row.count]
            if token < 0
        ]
        assert list(zip(layout.adapters, layout.vectors.tolist(), strict=True)) == learned
        if mirror.lacks_only_newest(batch):  # as a graph does: it writes the newest entries itself
            graphs += 1
            _, rows, positions, slots = torch.from_numpy(batch.decodes).long()
        else:
            rows, positions, slots = (torch.from_numpy(part) for part in mirror.missing(batch))
        mirror.slots[rows, positions] = slots.int()
        mirror.wrote(batch)
        for row in rows_of(batch):
            end = row.start + row.count
            assert mirror.slots[row.sequence.row, :end].tolist() == row.sequence.slots[:end]
        return launch(batch)

    simulation.engine.launch = checked  # type: ignore[method-assign]
    failed = simulation.scheduler.step_failed

    def forgetting(batch: Batch):  # type: ignore[no-untyped-def]
        mirror.forget()
        return failed(batch)

    simulation.scheduler.step_failed = forgetting  # type: ignore[method-assign]
    simulation.run()
    assert graphs > 0, "no step was a graph's"
    assert (mirror.slots[-1] == 9999).all()


def test_ranges_lie_end_to_end_and_may_be_empty() -> None:
    assert ranges(np.array([3, 7, 0]), np.array([2, 0, 3])).tolist() == [3, 4, 0, 1, 2]
    assert ranges(np.array([], np.int64), np.array([], np.int64)).tolist() == []


def test_a_step_is_padded_anew_each_time_a_buffer_is_used() -> None:
    ring = Ring((4, 6), torch.int32, CPU)
    padding = np.array([[0], [8], [0], [99]], np.int32)
    for count in (6, 2, 5, 1, 6, 3):
        buffer = ring.next()
        pad(buffer.array, np.full((4, count), count, np.int32), padding)
        buffer.mark()
        assert buffer.tensor.tolist() == [[count] * count + [value] * (6 - count) for value in (0, 8, 0, 99)]


def test_a_buffer_is_not_used_again_while_two_more_steps_may_be_under_way() -> None:
    ring = Ring((1,), torch.int64, CPU)
    for number in range(9):
        ring.next().tensor.fill_(number)
        if number >= 2:
            assert sorted(int(buffer.array[0]) for buffer in ring._buffers) == [number - 2, number - 1, number]


def test_arrays_sent_together_arrive_apart_each_on_a_line_of_its_own() -> None:
    arrays = [np.arange(3), np.arange(0), np.arange(16) + 100, np.array([1 << 40]), np.arange(17, dtype=np.int32)]
    sent = send(CPU, *arrays)
    assert [part.tolist() for part in sent] == [array.tolist() for array in arrays]
    assert all(part.dtype == torch.int64 for part in sent)
    begin = sent[0].data_ptr()
    assert all((part.data_ptr() - begin) % 128 == 0 for part in sent if len(part))
