"""The products' kernels for weights in fp8, against the dequantised weight in float64.

Without a GPU they run in Triton's interpreter, in a process of its own: it has to be told before Triton is imported.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

GPU = [(rows, shape) for rows in (1, 2, 5, 20, 70, 300) for shape in ((37, 96), (64, 200), (130, 256), (512, 2048))]
INTERPRETED = [(1, (37, 96)), (2, (64, 200)), (20, (70, 96))]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def check(device: str, problems: list[tuple[int, tuple[int, int]]], dtypes: tuple[torch.dtype, ...]) -> int:
    """Every way on every problem (rows, and the weight's shape); how many comparisons were made."""
    from softmux.engine.fp8 import Fp8Weight
    from softmux.engine.kernels import fp8

    torch.manual_seed(0)
    compared = 0
    for (rows, (outputs, width)), biased, dtype in itertools.product(problems, (False, True), dtypes):
        weight = Fp8Weight.quantise(torch.randn((outputs, width), device=device))
        x = torch.randn((rows, width), device=device, dtype=dtype)
        bias = torch.randn(outputs, device=device, dtype=dtype) if biased else None
        unpacked = weight.dequantised(torch.float64)
        expected = F.linear(x.double(), unpacked, None if bias is None else bias.double())
        small = torch.empty(width * 40, device=device, dtype=dtype)  # holds a piece of the weight
        got = {"unpacked": fp8.through_scratch(x, weight, bias, small)}
        if fp8.streams(x):
            got |= {f"stream {each}": fp8.stream(x, weight, bias, outputs_each=each) for each in (2, 4)}
        if device == "cuda" or dtype == torch.float32:  # the interpreter's dot knows no half precision
            tiles = (fp8.Tile(64, 32, 1, 4, 2), fp8.Tile(64, 64, 2, 4, 2))
            got |= {f"dot {tile}": fp8.dot(x, weight, bias, tile) for tile in tiles}
            got["product"] = fp8.product(x, weight, bias)
        for name, y in got.items():
            assert y.dtype == dtype
            error = float((y.double() - expected).norm() / expected.norm())
            assert error < TOLERANCE[dtype], (name, rows, outputs, width, biased, dtype, error)
            compared += 1
    return compared


@pytest.mark.gpu
def test_products_on_the_gpu() -> None:
    assert check("cuda", GPU, (torch.float32, torch.bfloat16, torch.float16)) > 300


@pytest.mark.gpu
def test_every_number_of_the_format_survives() -> None:
    from softmux.engine.fp8 import E4M3, Fp8Weight
    from softmux.engine.kernels import fp8

    codes = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8, device="cuda")
    data = codes.view(E4M3)[:, None].repeat(1, 16).contiguous()
    weight = Fp8Weight(data, torch.ones(len(codes), device="cuda"))
    x = torch.zeros((1, 16), device="cuda", dtype=torch.bfloat16)
    for at in range(16):
        one = x.clone()
        one[0, at] = 1
        assert torch.equal(fp8.stream(one, weight, None, outputs_each=4)[0].float(), data[:, 0].float())
        assert torch.equal(fp8.dot(one, weight, None, fp8.PLAIN)[0].float(), data[:, 0].float())


@pytest.mark.triton
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_products_in_the_interpreter() -> None:
    told = """
import torch
from engine.test_fp8_kernels import INTERPRETED, check
assert check("cpu", INTERPRETED, (torch.float32, torch.bfloat16)) > 30
"""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr[-2000:]
