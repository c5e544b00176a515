"""Every attention backend against a plain reference, a row at a time, in float64."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import pytest
import torch

from softmux.engine.attention.base import AttentionBackend, PackedRows
from softmux.engine.attention.torch_sdpa import TorchAttention
from softmux.engine.fast import best_backend
from softmux.engine.kv import KVPool
from softmux.errors import SelfTestFailed
from softmux.types import LayerKV

Make = Callable[[KVPool], AttentionBackend]
SLOTS, CONTEXT, MAX_ROWS = 700, 160, 12


def triton(pool: KVPool) -> AttentionBackend:
    made = best_backend(torch.device("cuda"))(pool)  # type: ignore[call-arg]
    assert made.name == "triton"
    return made


def flashinfer(pool: KVPool) -> AttentionBackend:
    pytest.importorskip("flashinfer", reason="flashinfer-python is not installed")
    if pool.keys[0].shape[-1] not in (64, 128, 256):
        pytest.skip("FlashInfer has no kernels for heads of this size, and says so")
    return best_backend(torch.device("cuda"), "flashinfer")(pool)  # type: ignore[call-arg]


BACKENDS = [
    pytest.param(TorchAttention, "cpu", torch.float32, id="torch-cpu"),
    pytest.param(TorchAttention, "cpu", torch.bfloat16, id="torch-cpu-bf16"),
    pytest.param(TorchAttention, "cuda", torch.float32, id="torch-cuda", marks=pytest.mark.gpu),
    pytest.param(TorchAttention, "cuda", torch.bfloat16, id="torch-cuda-bf16", marks=pytest.mark.gpu),
    pytest.param(triton, "cuda", torch.float32, id="triton", marks=pytest.mark.gpu),
    pytest.param(triton, "cuda", torch.bfloat16, id="triton-bf16", marks=pytest.mark.gpu),
    pytest.param(flashinfer, "cuda", torch.bfloat16, id="flashinfer-bf16", marks=pytest.mark.gpu),
    pytest.param(flashinfer, "cuda", torch.float16, id="flashinfer-fp16", marks=pytest.mark.gpu),
]
TOLERANCE = {"cpu": 2e-5, "cuda": 2e-3}
"""In float32. TF32 products on a GPU are allowed."""
CHANCE, WORST = 1.05, 1.5
"""In half precision nobody is asked for more than the module's own eager attention gives in the same dtype, on the same
numbers: it rounds scores, weights and results to it. Two sums in different order round differently: errors agree within
a few per cent over all of a step's numbers, the largest of them only in kind."""


def reference(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, scaling: float,
    window: int | None, softcap: float | None,
) -> torch.Tensor:  # fmt: skip
    """One row: `query [count, heads, dim]`, `keys`, `values [start + count, kv_heads, dim]`, a query at a time."""
    repeats = query.shape[1] // keys.shape[1]
    out = torch.empty_like(query)
    for i in range(query.shape[0]):
        first = 0 if window is None else max(0, start + i - window + 1)
        for head in range(query.shape[1]):
            scores = keys[first : start + i + 1, head // repeats] @ query[i, head] * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            out[i, head] = scores.softmax(-1) @ values[first : start + i + 1, head // repeats]
    return out


def eager(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, scaling: float,
    window: int | None, softcap: float | None,
) -> torch.Tensor:  # fmt: skip
    """The same row as transformers' eager attention computes it in the tensors' own dtype (its Gemma 2 caps scores)."""
    repeats = query.shape[1] // keys.shape[1]
    q, k, v = (tensor.transpose(0, 1) for tensor in (query, keys, values))
    scores = q @ k.repeat_interleave(repeats, 0).transpose(1, 2) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    at = torch.arange(keys.shape[0], device=query.device)
    own = at[start:, None]
    seen = at <= own if window is None else (at <= own) & (at > own - window)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ v.repeat_interleave(repeats, 0)).transpose(0, 1)


@pytest.mark.parametrize(("make", "device", "dtype"), BACKENDS)
@pytest.mark.parametrize(
    ("window", "softcap"), [(None, None), (7, None), (1, None), (64, None), (None, 5.0), (20, 5.0)]
)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(4, 4, 64), (8, 2, 64), (6, 1, 80), (4, 2, 128), (2, 1, 256)]
)
def test_rows_of_any_shape_attend_to_their_own_past_alone(
    make: Make, device: str, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int,
    window: int | None, softcap: float | None,
) -> None:  # fmt: skip
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    draw = random.Random(f"{heads}{head_dim}{window}{softcap}")
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    pool = KVPool([LayerKV(kv_heads, head_dim)] * 2, SLOTS, dtype, torch.device(device))
    for tensor in (*pool.keys, *pool.values):
        tensor.fill_(float("nan"))  # whatever a row must not read
    backend = make(pool)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    shapes = [(draw.choice([0, 1, 5, 40, 90]), draw.choice([1, 1, 2, 17, 33])) for _ in range(7)] + [(99, 1), (0, 1)]
    free = draw.sample(range(SLOTS), sum(start + count for start, count in shapes))
    table = torch.full((MAX_ROWS + 1, CONTEXT), pool.spare, dtype=torch.int32)
    table_rows = draw.sample(range(MAX_ROWS), len(shapes))
    slots: list[int] = []
    query, key, value, expected, plain = [], [], [], [], []
    layer, scaling = 1, head_dim**-0.5
    for (start, count), row in zip(shapes, table_rows, strict=True):
        own, free = free[: start + count], free[start + count :]
        table[row, : start + count] = torch.tensor(own, dtype=torch.int32)
        slots += own[start:]
        keys, values = noise(start + count, kv_heads, head_dim), noise(start + count, kv_heads, head_dim)
        queries = noise(count, heads, head_dim) * 3
        pool.keys[layer][own[:start]] = keys[:start].to(device)
        pool.values[layer][own[:start]] = values[:start].to(device)
        query.append(queries)
        key.append(keys[start:])
        value.append(values[start:])
        expected.append(reference(queries.double(), keys.double(), values.double(), start, scaling, window, softcap))
        on_device = (tensor.to(device) for tensor in (queries, keys, values))
        plain.append(eager(*on_device, start, scaling, window, softcap).cpu())
    backend.begin(
        PackedRows(
            table_rows=table_rows,
            starts=[start for start, _ in shapes],
            counts=[count for _, count in shapes],
            table=table.to(device),
            slots=torch.tensor(slots, device=device),
        )
    )
    found = backend.attend(
        layer, torch.cat(query).to(device), torch.cat(key).to(device), torch.cat(value).to(device),
        scaling=scaling, window=window, softcap=softcap,
    )  # fmt: skip
    exact = torch.cat(expected)
    ours, theirs = ((out.cpu().double() - exact).abs() for out in (found, torch.cat(plain)))
    if dtype == torch.float32:
        assert ours.max() < TOLERANCE[device]
    else:
        told = f"error {ours.max():.4f} (eager {theirs.max():.4f}), mean {ours.mean():.6f} ({theirs.mean():.6f})"
        assert ours.mean() <= CHANCE * theirs.mean(), told
        assert ours.max() <= WORST * theirs.max(), told
    assert torch.equal(pool.keys[layer][slots].cpu(), torch.cat(key)), "the new tokens' keys are in the pool"
    assert torch.isnan(pool.keys[0]).all(), "another layer's are untouched"


@pytest.mark.parametrize("asked", ["triton", "flashinfer"])
def test_a_backend_that_cannot_run_here_is_refused_in_words(asked: str) -> None:
    with pytest.raises(SelfTestFailed, match=rf"--attention-backend {asked} needs a CUDA device.*the model runs on"):
        best_backend(torch.device("cpu"), asked)


def test_torch_can_be_asked_for_anywhere_and_auto_never_takes_flashinfer() -> None:
    for device in ("cpu", "cuda"):
        assert best_backend(torch.device(device), "torch") is TorchAttention
        assert best_backend(torch.device(device), "auto").__name__ in ("TorchAttention", "TritonAttention")


@pytest.mark.parametrize(
    ("dtype", "head_dim", "words"),
    [(torch.float32, 64, "no kernels for KV in float32; have"), (torch.bfloat16, 80, "no kernels for heads of 80")],
)
def test_flashinfer_says_what_it_has_no_kernels_for(dtype: torch.dtype, head_dim: int, words: str) -> None:
    from softmux.engine.attention.flashinfer import FlashInferAttention

    with pytest.raises(SelfTestFailed, match=words):
        FlashInferAttention(KVPool([LayerKV(2, head_dim)], 8, dtype, torch.device("cpu")))


def test_flashinfer_that_is_not_installed_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from softmux.engine.attention.flashinfer import FlashInferAttention

    monkeypatch.setitem(sys.modules, "flashinfer", None)
    with pytest.raises(SelfTestFailed, match=r"cannot be imported.*install flashinfer-python"):
        FlashInferAttention(KVPool([LayerKV(2, 64)], 8, torch.bfloat16, torch.device("cpu")))
