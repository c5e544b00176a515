"""The GPU's own kernels against plain torch. Their behaviour in a step is held on the CPU by the parity tests."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("outputs", "width"), [(37, 96), (64, 2048), (3072, 2048), (10, 1500)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("each", [4, 8])
def test_streamed_products(rows: int, outputs: int, width: int, biased: bool, each: int) -> None:
    from softmux.engine.kernels.linear import stream

    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        x = torch.randn((rows, width), device="cuda", dtype=dtype)
        weight = torch.randn((outputs, width), device="cuda", dtype=dtype)
        bias = torch.randn(outputs, device="cuda", dtype=dtype) if biased else None
        expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        got = stream(x, weight, bias, outputs_each=each).double()
        assert (got - expected).norm() / expected.norm() < tolerance


def test_argmax_takes_the_first_of_the_highest_and_tells_of_rows_that_are_not_finite() -> None:
    from softmux.engine.kernels.argmax import argmax

    logits = torch.randn((6, 9001), device="cuda")
    logits[0, 8999] = 9
    logits[1, 7] = float("nan")
    logits[2, 3] = float("inf")
    logits[3] = float("-inf")
    logits[4, 17] = logits[4, 5000] = 8
    assert argmax(logits).tolist() == [8999, -1, -1, -1, 17, int(logits[5].argmax())]


@pytest.mark.parametrize("width", [96, 2048])
@pytest.mark.parametrize("add", [False, True])
def test_norm_with_residual(width: int, add: bool) -> None:
    from softmux.engine.kernels.layer import add_norm

    x, residual, weight = (torch.randn(shape, device="cuda") for shape in ((5, width), (5, width), (width,)))
    total = x + residual if add else x
    out = add_norm(x, residual, weight, 1e-5, add=add)
    torch.testing.assert_close(residual, total)
    torch.testing.assert_close(out, F.rms_norm(total, (width,), weight, 1e-5), rtol=1e-5, atol=1e-5)


def test_silu_times_up() -> None:
    from softmux.engine.kernels.layer import silu_mul

    x = torch.randn((3, 6000), device="cuda")
    torch.testing.assert_close(silu_mul(x), F.silu(x[:, :3000]) * x[:, 3000:])
