"""The GPU's own kernels against plain torch. Their behaviour in a step is held on the CPU by the parity tests."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.gpu

_WALKS = [(8, 1024, 8, False), (4, 512, 4, True), (2, 2048, 8, True)]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("outputs", "width"), [(37, 96), (64, 2048), (3072, 2048), (10, 1500)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("each", "block", "warps", "ahead"), _WALKS)
def test_streamed_products(
    rows: int, outputs: int, width: int, biased: bool, each: int, block: int, warps: int, ahead: bool
) -> None:
    from softmux.engine.kernels.linear import Walk, stream

    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        x = torch.randn((rows, width), device="cuda", dtype=dtype)
        weight = torch.randn((outputs, width), device="cuda", dtype=dtype)
        bias = torch.randn(outputs, device="cuda", dtype=dtype) if biased else None
        expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        got = stream(x, weight, bias, walk=Walk(each, block, warps, ahead)).double()
        assert (got - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize("rows", [3, 20, 64])
@pytest.mark.parametrize(("outputs", "width"), [(37, 96), (130, 256), (512, 2048)])
@pytest.mark.parametrize("biased", [False, True])
def test_tiled_products(rows: int, outputs: int, width: int, biased: bool) -> None:
    from softmux.engine.kernels.dot import Tile, dot

    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        x = torch.randn((rows, width), device="cuda", dtype=dtype)
        weight = torch.randn((outputs, width), device="cuda", dtype=dtype)
        bias = torch.randn(outputs, device="cuda", dtype=dtype) if biased else None
        expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
        for tile in (Tile(64, 32, 1, 4, 3), Tile(32, 64, 4, 4, 2)):
            got = dot(x, weight, bias, tile).double()
            assert (got - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize("rows", [3, 64, 300, 2200])
@pytest.mark.parametrize(("inner", "width"), [(24, 96), (72, 152), (512, 2048)])
def test_gate_and_up_in_one_launch(rows: int, inner: int, width: int) -> None:
    """Of rows, outputs and inputs that fill no block, and of more blocks of rows than take turns at a time."""
    from softmux.engine.kernels import bulk
    from softmux.engine.kernels.dot import Tile, dot_gated

    for dtype, tolerance in ((torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
        x = torch.randn((rows, width), device="cuda", dtype=dtype)
        weight = torch.randn((2 * inner, width), device="cuda", dtype=dtype) / width**0.5
        gate, up = F.linear(x.double(), weight.double()).split(inner, 1)
        expected = F.silu(gate) * up
        found = [dot_gated(x, weight, Tile(64, 64, 1, 4, 3))]
        if bulk.fits(weight):
            found += [bulk.gated(x, weight, tile) for tile in (Tile(64, 64, 1, 4, 5), Tile(128, 64, 1, 8, 3))]
        for got in found:
            assert (got.double() - expected).norm() / expected.norm() < tolerance


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


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("inner", "width"), [(37, 96), (64, 2048), (10, 1500)])
@pytest.mark.parametrize(("each", "block", "warps", "ahead"), _WALKS)
def test_streamed_gated_products(
    rows: int, inner: int, width: int, each: int, block: int, warps: int, ahead: bool
) -> None:
    from softmux.engine.kernels.linear import Walk, stream_gated

    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        x = torch.randn((rows, width), device="cuda", dtype=dtype)
        weight = torch.randn((2 * inner, width), device="cuda", dtype=dtype) / width**0.5
        both = F.linear(x.double(), weight.double())
        expected = F.silu(both[:, :inner]) * both[:, inner:]
        got = stream_gated(x, weight, walk=Walk(each, block, warps, ahead)).double()
        assert (got - expected).norm() / expected.norm() < tolerance


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "normed", "window", "splits"),
    [
        (32, 8, 64, False, None, 1),
        (32, 8, 64, False, None, 32),
        (8, 2, 128, True, None, 5),
        (6, 3, 80, False, 50, 3),
        (4, 4, 256, True, 7, 8),
    ],
)
def test_rope_with_write_and_decode(
    heads: int, kv_heads: int, width: int, normed: bool, window: int | None, splits: int
) -> None:
    from softmux.engine.kernels.rope import rope_write
    from softmux.engine.kernels.rope_decode import rope_decode

    lengths, slots = [1, 40, 333], 1000
    positions = torch.tensor([length - 1 for length in lengths], device="cuda", dtype=torch.int32)
    rows = torch.tensor([3, 0, 5], device="cuda", dtype=torch.int32)
    table = torch.zeros((6, 400), device="cuda", dtype=torch.int32)
    offset = 0
    order = torch.randperm(slots, device="cuda").int()
    for row, length in zip(rows.tolist(), lengths, strict=True):
        table[row, :length] = order[offset : offset + length]
        offset += length
    at = table[rows.long(), positions.long()]
    cos, sin = torch.randn((2, 400, width // 2), device="cuda").unbind(0)
    keys, values = torch.randn((2, slots, kv_heads, width), device="cuda").unbind(0)
    qkv = torch.randn((3, (heads + 2 * kv_heads) * width), device="cuda")
    norms = (torch.randn(width, device="cuda"), torch.randn(width, device="cuda")) if normed else None

    parts = qkv.view(3, -1, width)
    query, key = parts[:, :heads], parts[:, heads : heads + kv_heads]
    if norms is not None:
        query, key = (F.rms_norm(x, (width,), w, 1e-5) for x, w in zip((query, key), norms, strict=True))
    turn = (cos[positions.long()][:, None], sin[positions.long()][:, None])
    query, key = _turn(query, *turn), _turn(key, *turn)
    expected_keys, expected_values = keys.clone(), values.clone()
    expected_keys[at.long()], expected_values[at.long()] = key, parts[:, heads + kv_heads :]
    attended = []
    for i, length in enumerate(lengths):
        seen = table[rows[i], max(0, length - (window or length)) : length].long()
        k, v = (x[seen].repeat_interleave(heads // kv_heads, 1) for x in (expected_keys, expected_values))
        weights = torch.einsum("hd,nhd->hn", query[i].double(), k.double()).mul(width**-0.5).softmax(-1)
        attended.append(torch.einsum("hn,nhd->hd", weights, v.double()))

    written = (keys.clone(), values.clone())
    got = rope_write(qkv, *written, (cos, sin), positions, at, norms, 1e-5, heads=heads)
    torch.testing.assert_close(got, query, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(written[0], expected_keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(written[1], expected_values)

    arrived = torch.zeros(3 * kv_heads, dtype=torch.int32, device="cuda")
    for _ in range(3):  # the counters are left as they were
        written = (keys.clone(), values.clone())
        got = rope_decode(
            qkv, *written, (cos, sin), table, rows, positions, at, norms, 1e-5, arrived,
            heads=heads, scaling=width**-0.5, window=window, splits=splits,
        )  # fmt: skip
        torch.testing.assert_close(got.double(), torch.stack(attended), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(written[0], expected_keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(written[1], expected_values)
        assert not arrived.any()


def test_a_decode_step_begins_and_ends_in_the_engines_own_tables() -> None:
    from softmux.engine.kernels.argmax import argmax
    from softmux.engine.kernels.step import begin_step

    table = torch.zeros((5, 20), dtype=torch.int32, device="cuda")
    last_tokens = torch.tensor([9, 8, 7, 6, 5], device="cuda")
    weight = torch.randn((10, 3000), device="cuda")
    inputs = torch.tensor([[4, -1, 0], [0, 2, 4], [7, 19, 0], [33, 44, 55]], dtype=torch.int32, device="cuda")
    got = begin_step(inputs, table, last_tokens, weight)
    torch.testing.assert_close(got, weight[[4, 7, 0]])
    assert [table[0, 7].item(), table[2, 19].item(), table[4, 0].item()] == [33, 44, 55]
    assert int((table != 0).sum()) == 3

    logits = torch.randn((3, 5000), device="cuda")
    logits[1, 3] = float("nan")
    chosen = argmax(logits, inputs[1], last_tokens)
    best = logits.argmax(-1).tolist()
    assert chosen.tolist() == [best[0], -1, best[2]]
    assert last_tokens.tolist() == [best[0], 8, 0, 6, best[2]]
