"""The LoRA kernels against plain products: on a GPU as they are, on a CPU by Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
CASES = [
    (width, outputs, blocks)
    for width, outputs in ((48, [48, 24, 24]), (80, [200]), (2112, [130, 40]))
    for blocks in (False, True)
]


class Adapters:
    """Random updates of modules side by side in one product, ranks from 1 on, in slots; some leave one alone."""

    def __init__(self, width: int, outputs: list[int], slots: int, dtype: torch.dtype) -> None:
        self.width, self.outputs, self.dtype = width, outputs, dtype
        self.pairs: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self.table = torch.zeros((slots, len(outputs) + 2, 4), dtype=torch.int32)
        pieces: list[torch.Tensor] = []
        size = 0
        for slot in range(slots):
            for module, count in enumerate(outputs):
                if (slot + module) % 4 == 3:
                    continue
                rank = 1 + (5 * slot + 7 * module) % 24
                a = (torch.randn((rank, width)) / width**0.5).to(dtype)
                b = (torch.randn((rank, count)) / rank**0.5).to(dtype)
                self.pairs[slot, module] = a, b
                begins = []
                for part in (a, b):
                    padded = -(-part.numel() // 16) * 16
                    pieces.append(torch.cat([part.reshape(-1), part.new_zeros(padded - part.numel())]))
                    begins.append(size // 16)
                    size += padded
                self.table[slot, module + 1, :3] = torch.tensor([rank, *begins])
        self.weights = torch.cat(pieces).to(DEVICE)
        self.table = self.table.to(DEVICE)

    def expected(self, x: torch.Tensor, y: torch.Tensor, slots: list[int]) -> torch.Tensor:
        out = y.double().clone()
        for token, slot in enumerate(slots):
            at = 0
            for module, count in enumerate(self.outputs):
                if (slot, module) in self.pairs:
                    a, b = (part.double() for part in self.pairs[slot, module])
                    out[token, at : at + count] += x[token].double() @ a.t() @ b
                at += count
        return out

    def added(self, x: torch.Tensor, y: torch.Tensor, slots: list[int], counts: list[int] | None) -> torch.Tensor:
        """`slots` by token, or by block of `counts` tokens."""
        from softmux.engine.kernels.lora import Blocks, add_lora, scratch_numbers, tiles_of

        def told(numbers: list[int]) -> torch.Tensor:
            return torch.tensor(numbers, dtype=torch.int32, device=DEVICE)

        blocks = Blocks(told(slots))
        if counts is not None:
            starts = [sum(counts[:i]) for i in range(len(counts))]
            blocks = Blocks(told(slots), told(starts), told(counts))
        modules, room = len(self.outputs), 32
        scratch = torch.full((scratch_numbers(x.shape[0], modules, room, self.width),), float("nan"), device=DEVICE)
        result = y.to(DEVICE)
        tiles = tiles_of(self.outputs, torch.device(DEVICE))
        add_lora(result, x.to(DEVICE), self.weights, self.table, 1, modules, tiles, blocks, scratch, room)
        return result.cpu()


def check(width: int, outputs: list[int], blocks: bool, dtype: torch.dtype) -> None:
    """Every token gains its own adapter's update, and none but that."""
    torch.manual_seed(width)
    adapters = Adapters(width, outputs, 5, dtype)
    slots, counts = ([0, 4, -1, 2, 1, 2, 3], [1, 32, 5, 17, 2, 1, 30]) if blocks else ([3, -1, 0, 0, 4, 1, 2], None)
    by_token = [slot for slot, count in zip(slots, counts or [1] * len(slots), strict=True) for _ in range(count)]
    x = torch.randn((len(by_token), width)).to(dtype)
    y = torch.randn((len(by_token), sum(outputs))).to(dtype)
    expected = adapters.expected(x, y, by_token)
    got = adapters.added(x, y, slots, counts).double()
    assert (got - expected).norm() / expected.norm() < (1e-5 if dtype == torch.float32 else 1e-2)
    untouched = [token for token, slot in enumerate(by_token) if slot < 0]
    assert torch.equal(got[untouched], y[untouched].double())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("width", "outputs", "blocks"), CASES)
def test_every_token_gains_its_own_adapters_update(
    dtype: torch.dtype, width: int, outputs: list[int], blocks: bool
) -> None:
    check(width, outputs, blocks, dtype)


def interpreted(program: str) -> None:
    """Runs it in a process of its own: the interpreter must be asked for before Triton is imported."""
    path = [os.path.dirname(__file__), *sys.path]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(path)}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=240)
    assert ran.stdout.endswith("equal\n"), ran.stderr[-2000:]


@pytest.mark.triton
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_the_kernels_in_the_interpreter() -> None:
    """Not in bfloat16, whose bits it would multiply."""
    interpreted(
        "import torch, test_lora_kernels as t\n"
        "for case in t.CASES:\n"
        "    for dtype in (torch.float32, torch.float16):\n"
        "        t.check(*case, dtype)\n"
        "print('equal')"
    )
