"""Many heads in one product: each row by its own head, whatever the others', however small the table."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from softmux.engine import heads as module
from softmux.engine.heads import Heads, head_rows
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.transfer import best_copies
from softmux.formats.parts import Activation, Dense, HeadPart, Norm
from softmux.scheduler.radix import RootKey

WIDTH = 24
CPU = torch.device("cpu")


def make(
    labels: int, dense: Activation | None = None, *, biased: bool = True, pooled: bool = False, eps: float | None = None
) -> HeadPart:
    def noise(*shape: int) -> object:
        return (torch.randn(shape) / WIDTH**0.5).numpy()

    norm = Norm(noise(WIDTH), noise(WIDTH) if biased else None, eps) if eps else None  # type: ignore[arg-type]
    before = noise(WIDTH) if biased or norm is None else None
    return HeadPart(
        head="sequence",
        weight=noise(labels, WIDTH),  # type: ignore[arg-type]
        bias=noise(labels) if biased else None,  # type: ignore[arg-type]
        dense=Dense(noise(WIDTH, WIDTH), before, dense, norm) if dense else None,  # type: ignore[arg-type]
        base_pooler=pooled,
        labels=tuple(map(str, range(labels))),
        problem_type="single_label_classification",
    )


class Pooler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(WIDTH, WIDTH)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(states))


def tensor(array: Any) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array)


def plain(part: HeadPart, x: torch.Tensor, pooler: Pooler) -> torch.Tensor:
    if part.base_pooler:
        x = pooler(x)
    if part.dense is not None:
        inner = nn.functional.linear(x, *map(tensor, (part.dense.weight, part.dense.bias)))
        x = {"tanh": torch.tanh, "gelu": nn.functional.gelu, "relu": torch.relu}[part.dense.activation](inner)
        if (norm := part.dense.norm) is not None:
            x = nn.functional.layer_norm(x, (WIDTH,), *map(tensor, (norm.weight, norm.bias)), norm.eps)
    bias = torch.from_numpy(part.bias) if part.bias is not None else 0.0
    return x @ torch.from_numpy(part.weight).T + bias


@torch.no_grad()
@pytest.mark.parametrize("room", [1, 1 << 20], ids=["a table that must grow", "room for all"])
def test_each_row_is_read_by_its_own_head(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BYTES", room)
    torch.manual_seed(0)
    draw, pooler = random.Random(0), Pooler()
    kinds: list[Activation | None] = [None, "tanh", "gelu", "relu"]
    parts = {
        RootKey("t", str(i), "b", "f"): make(
            draw.choice([1, 2, 4, 25]),
            draw.choice(kinds),
            biased=i % 3 > 0,
            pooled=i % 5 == 0,
            eps=draw.choice([None, 1e-5, 0.1]),
        )
        for i in range(40)
    }
    stored = {key: head_rows(part) for key, part in parts.items()}
    heads = Heads(
        WIDTH, CPU, best_copies(CPU), pooler=pooler, shape_of=lambda key: stored[key][0],
        rows_of=lambda key: stored[key][1],
    )  # fmt: skip
    for _ in range(6):
        rows = [draw.choice(list(parts)) for _ in range(draw.choice([1, 3, 64]))]
        counts = [draw.choice([1, 1, 1, 2, 70]) for _ in rows]
        states = torch.randn((sum(counts), WIDTH))
        found, labels = heads.scores(states, rows, counts)
        for key, own, scores in zip(rows, states.split(counts), found.split(counts), strict=True):
            expected = plain(parts[key], own, pooler)
            torch.testing.assert_close(scores[:, : labels[key]], expected, rtol=1e-5, atol=1e-5)


def test_a_head_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    torch.manual_seed(1)
    adapter = HostAdapter.from_parts((make(4, "gelu", pooled=True, eps=0.5),), torch.bfloat16)
    assert adapter.nbytes == 4 * (4 + WIDTH + 2) * (WIDTH + 8), "heads stay in float32"
    adapter.write(tmp_path / "file")
    again = HostAdapter.read(tmp_path / "file")
    assert again.head_shape == adapter.head_shape
    assert again.head is not None
    assert adapter.head is not None
    assert torch.equal(again.head, adapter.head)


class Counted(TorchDispatchMode):
    """How many torch calls there are: on a GPU each costs the host microseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, call: Any, _types: Any, given: Any = (), named: Any = None) -> Any:
        self.calls += 1
        return call(*given, **(named or {}))


@torch.no_grad()
def test_more_rows_take_no_more_calls() -> None:
    parts = {RootKey("t", str(i), "b", "f"): make(labels, "tanh") for i, labels in enumerate((2, 4, 25))}
    told = {key: head_rows(part) for key, part in parts.items()}
    heads = Heads(WIDTH, CPU, best_copies(CPU), shape_of=lambda key: told[key][0], rows_of=lambda key: told[key][1])
    calls = []
    for rows in (3, 3, 96):  # the first copies the heads in
        roots = [list(parts)[row % 3] for row in range(rows)]
        with Counted() as counted:
            heads.scores(torch.randn(rows, WIDTH), roots, [1] * rows)
        calls.append(counted.calls)
    assert calls[1] == calls[2]
