"""The kernels of plain weights' products without a card: in Triton's interpreter, which knows no bfloat16 dot."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

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
    arrived = torch.zeros(8, dtype=torch.int32)
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
                for counted in (None, arrived):
                    compared += same(dot(x, weight, bias, Tile(32, 32, splits, 4, 2), arrived=counted), expected)
            compared += same(dot_gated(x, weight, Tile(4, 32, 1, 4, 2)), gated)
    assert not arrived.any()
    for rows in (3, 300):  # blocks of 128 rows and 16 outputs, the last of each not full
        x, weight = torch.randn((rows, 152)), torch.randn((2 * 40, 152)) / 12
        gate, up = F.linear(x, weight).split(40, 1)
        compared += same(bulk.gated(x, weight, Tile(16, 64, 1, 4, 2)), F.silu(gate) * up)
    return compared


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_plain_products_in_the_interpreter() -> None:
    told = "from engine.test_products_interpreted import check; assert check() == 48"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr[-2000:]
