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
    from softmux.engine.kernels.dot import Tile, dot
    from softmux.engine.kernels.linear import Walk, stream, stream_gated

    torch.manual_seed(0)
    compared = 0
    for biased in (False, True):
        weight, bias = torch.randn((10, 150)), torch.randn(10) if biased else None
        for rows in (1, 2, 20):
            x = torch.randn((rows, 150))
            expected = F.linear(x, weight, bias)
            if rows <= 2:
                for ahead in (False, True):
                    walk = Walk(4, 64, 4, ahead)
                    torch.testing.assert_close(stream(x, weight, bias, walk=walk), expected, rtol=1e-4, atol=1e-4)
                    both = F.linear(x, weight)
                    gated = F.silu(both[:, :5]) * both[:, 5:]
                    torch.testing.assert_close(stream_gated(x, weight, walk=walk), gated, rtol=1e-4, atol=1e-4)
                    compared += 2
            for splits in (1, 2):
                torch.testing.assert_close(
                    dot(x, weight, bias, Tile(32, 32, splits, 4, 2)), expected, rtol=1e-4, atol=1e-4
                )
                compared += 1
    return compared


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_plain_products_in_the_interpreter() -> None:
    told = "from engine.test_products_interpreted import check; assert check() == 28"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr[-2000:]
