"""The kernels of plain weights' products without a card: in Triton's interpreter, which knows no bfloat16 dot."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F


def check() -> int:
    """Every kernel against plain torch; how many comparisons were made."""
    from softmux.engine.kernels import bulk
    from softmux.engine.kernels.dot import Tile, dot, dot_gated
    from softmux.engine.kernels.linear import Walk, stream, stream_gated

    def same(got: torch.Tensor, expected: torch.Tensor) -> int:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        return 1

    torch.manual_seed(0)
    compared = 0
    for biased in (False, True):
        weight, bias = torch.randn((10, 150)), torch.randn(10) if biased else None
        for rows in (1, 2, 20):
            x = torch.randn((rows, 150))
            expected, both = F.linear(x, weight, bias), F.linear(x, weight)
            gated = F.silu(both[:, :5]) * both[:, 5:]
            if rows <= 2:
                for ahead in (False, True):
                    walk = Walk(4, 64, 4, ahead)
                    compared += same(stream(x, weight, bias, walk=walk), expected)
                    compared += same(stream_gated(x, weight, walk=walk), gated)
            for splits in (1, 2):
                compared += same(dot(x, weight, bias, Tile(32, 32, splits, 4, 2)), expected)
            compared += same(dot_gated(x, weight, Tile(4, 32, 1, 4, 2)), gated)
    x, weight = torch.randn((300, 150)), torch.randn((40, 150))  # blocks of rows, too
    compared += same(dot(x, weight, None, Tile(32, 32, 3, 4, 2)), F.linear(x, weight))
    # blocks of 128 rows and 16 outputs, the last of each not full; at last more than take turns in one group
    for rows, inner, width in ((3, 40, 152), (300, 40, 152), (2200, 24, 24)):
        x, weight = torch.randn((rows, width)), torch.randn((2 * inner, width)) / width**0.5
        gate, up = F.linear(x, weight).split(inner, 1)
        compared += same(bulk.gated(x, weight, Tile(16, 32, 1, 4, 2)), F.silu(gate) * up)
    return compared


def check_counting() -> None:
    """Rows are counted as no fewer than they are, or as the last count; no way is offered that takes fewer."""
    from softmux.engine import products
    from softmux.engine.products import Product, Products

    counts = {rows: products._counted(rows) for rows in (1, 2, 3, 16, 17, 65, 129, 1025, 2049, 8192, 20_000)}
    assert list(counts.values()) == [1, 2, 16, 16, 32, 128, 256, 2048, 8192, 8192, 8192]
    weight = torch.randn((20, 128), dtype=torch.bfloat16)
    for gated in (False, True):
        for rows in set(counts.values()):
            kinds = {name.partition(" ")[0] for name in Products().ways(rows, Product(weight, gated))}
            few = rows <= 64 or (gated and rows <= 128)
            assert kinds == {"library", *(["stream"] if rows <= 2 else ["dot"] if few else [])}


def check_proof() -> None:
    """A block of outputs that a way leaves out is found, however many there are."""
    from softmux.engine.products import Product, Products

    weight = torch.randn((14_336, 16), dtype=torch.bfloat16)

    def but_for_a_block(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        found = F.linear(x, weight, bias)
        found[-128:, -64:] = 0
        return found

    Products()._prove(F.linear, 2048, Product(weight), torch.bfloat16)
    with pytest.raises(RuntimeError, match="differs from the library's"):
        Products()._prove(but_for_a_block, 2048, Product(weight), torch.bfloat16)


def check_shortage(folder: Path) -> None:
    """What there is no memory to measure is left to the library; all else is chosen for, and kept."""
    from softmux.engine import products
    from softmux.engine.choices import Choices
    from softmux.engine.products import Product, Products

    asked = []

    def seconds(run: object, rows: int, *_: object) -> float:
        if rows == 2048:
            raise torch.OutOfMemoryError("CUDA out of memory")
        asked.append(rows)
        return 1.0

    products._seconds = seconds  # type: ignore[assignment]
    Products._prove = lambda *_: None  # type: ignore[assignment, method-assign]
    made = [Product(torch.randn((20, 128), dtype=torch.bfloat16), gated) for gated in (False, True)]
    for start in range(2):
        asked.clear()
        chosen = Products()
        chosen.measure(made, torch.bfloat16, Choices("card", folder), most=2048)
        rows = {gated: [count for count, _, _, own in chosen._chosen if own is gated] for gated in (False, True)}
        assert rows == {False: [1, 2, 16, 32, 64], True: [1, 2, 16, 32, 64, 128, 256, 512, 1024]}
        assert bool(asked) is (start == 0)


def run(told: str) -> None:
    """In a process of its own: the interpreter must be asked for before Triton is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    program = f"from pathlib import Path; from engine.test_products_interpreted import *; {told}"
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.triton
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_plain_products_in_the_interpreter() -> None:
    run("assert check() == 38")


@pytest.mark.triton
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_how_the_interpreters_products_are_chosen(tmp_path: Path) -> None:
    run(f"check_counting(); check_proof(); check_shortage(Path({str(tmp_path)!r}))")
