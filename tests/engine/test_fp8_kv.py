"""Keys and values in fp8: how they are rounded, and that every way to and from the pool keeps to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from softmux.engine.attention.base import AttentionBackend, PackedRows
from softmux.engine.attention.torch_sdpa import TorchAttention
from softmux.engine.fast import best_backend
from softmux.engine.fp8 import E4M3
from softmux.engine.kv import KVPool, as_kept
from softmux.engine.transfer import Piece
from softmux.errors import SelfTestFailed
from softmux.types import LayerKV
from support.engines import TestEngine
from support.models import make_adapter, make_base

CPU = torch.device("cpu")


def test_numbers_are_rounded_to_nearest_and_large_ones_stay_finite() -> None:
    given = torch.tensor([0.0, 1.0, -1.06, 1.07, 300.0, 448.0, 500.0, -1e9, 2**-9, 2**-11])
    kept = as_kept(given, E4M3).float()
    assert kept.tolist() == [0.0, 1.0, -1.0, 1.125, 288.0, 448.0, 448.0, -448.0, 2**-9, 0.0]
    assert torch.equal(as_kept(given, torch.float32), given)


@pytest.mark.parametrize("dtype", [torch.float32, E4M3])
def test_what_is_put_is_taken_saved_and_loaded_alike(dtype: torch.dtype) -> None:
    layers = [LayerKV(2, 8)] * 3
    pool, other = KVPool(layers, 20, dtype, CPU), KVPool(layers, 20, dtype, CPU)
    slots = torch.tensor([3, 17, 4])
    given = torch.randn((3, 2, 3, 2, 8)) * 3
    for layer in range(3):
        pool.put(layer, slots, given[layer, 0], given[layer, 1])
    expected = as_kept(given, dtype).float()
    host = torch.empty(pool.prefix_shape(3), dtype=dtype)
    assert pool.save([Piece(host, 0, slots.tolist())]).landed()
    other.load([Piece(host, 1, [0, 5])])  # without the first
    for layer in range(3):
        keys, values = pool.take(layer, slots, torch.float32)
        assert torch.equal(keys, expected[layer, 0])
        assert torch.equal(values, expected[layer, 1])
        keys, values = other.take(layer, torch.tensor([0, 5]), torch.float32)
        assert torch.equal(keys, expected[layer, 0, 1:])
        assert torch.equal(values, expected[layer, 1, 1:])


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float32), pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu)],
)
def test_attention_over_fp8_is_attention_over_what_was_rounded(device: str, dtype: torch.dtype) -> None:
    """Two decoding rows and a chunk, cached tokens and new ones, against a float32 pool of the same numbers."""
    starts, counts = [30, 0, 11], [1, 7, 1]
    new, cached = sum(counts), sum(starts)
    generator = torch.Generator().manual_seed(3)
    query, keys, values = (torch.randn((new, heads, 64), generator=generator).to(dtype) for heads in (8, 2, 2))
    old = torch.randn((2, cached, 2, 64), generator=generator)
    table = torch.zeros((4, 40), dtype=torch.int32)
    slots = torch.randperm(cached + new, generator=generator)
    written, at, before = [], 0, 0
    for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
        table[row, : start + count] = torch.cat([slots[before : before + start], slots[cached + at :][:count]])
        written.append(slots[cached + at :][:count])
        before, at = before + start, at + count

    def attended(backend: type[AttentionBackend], kept: torch.dtype, where: str, kind: torch.dtype) -> torch.Tensor:
        pool = KVPool([LayerKV(2, 64)], cached + new, kept, torch.device(where))
        made = backend(pool)  # type: ignore[call-arg]
        past = as_kept(old, E4M3).float().to(where)
        pool.put(0, slots[:cached].to(where), past[0], past[1])
        rows = PackedRows([0, 1, 2], starts, counts, table.to(where), torch.cat(written).to(where))
        made.begin(rows)
        given = [as_kept(x, E4M3).to(kind) for x in (keys, values)]
        return made.attend(
            0, query.to(where, kind), given[0].to(where), given[1].to(where), scaling=0.125, window=None, softcap=None
        ).float()

    expected = attended(TorchAttention, torch.float32, "cpu", torch.float32)
    found = attended(best_backend(torch.device(device)), E4M3, device, dtype).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if device == "cpu" else 2e-2)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "mistral"])
def test_the_packed_run_attends_to_what_the_reference_rounds(architecture: str, tmp_path: Path) -> None:
    """The start itself is the test: it fails where the two differ. And both formats work together."""
    make_base(architecture, tmp_path)
    engine = TestEngine(tmp_path, kv_cache_dtype="fp8", quantization="fp8")
    assert engine.engine.runner.pool.dtype == E4M3
    assert engine.engine.spec.kv_format == "float32, weights fp8, kv fp8"
    engine.close()


def test_half_the_bytes_hold_twice_the_tokens() -> None:
    layers = [LayerKV(8, 128)] * 80
    assert 2 * KVPool.bytes_per_token(layers, E4M3) == KVPool.bytes_per_token(layers, torch.bfloat16) == 327680


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_a_task_runs_alike_cold_warm_from_its_tier_and_from_disk(
    method: str, base_folder: Path, base: Any, tmp_path: Path
) -> None:
    make_adapter(base, method, tmp_path / "adapter")
    said = []
    for _ in range(2):  # the second engine finds the first one's file
        engine = TestEngine(base_folder, disk_folder=tmp_path / "disk", kv_cache_dtype="fp8")
        root, virtual = engine.adapter(tmp_path / "adapter")
        for _ in range(2):
            name = engine.add([5, 6, 7], root, virtual, max_tokens=6, ignore_eos=True)
            engine.run()
            said.append(engine.done[name].tokens)
            engine.forget_kv()
        engine.close()
    assert all(tokens == said[0] for tokens in said)
    assert len(said[0]) == 6


def test_an_engine_in_fp8_stays_near_the_full_one(
    base_folder: Path, base: Any, make_engine: Callable[..., TestEngine]
) -> None:
    full, kept = make_engine(), make_engine(kv_cache_dtype="fp8")
    answers = []
    for engine in (full, kept):
        name = engine.add(list(range(3, 40)), max_tokens=1, logprobs=5)
        engine.run()
        answers.append(engine.done[name].logprobs[0])
    by_id = dict(zip(answers[1].top_ids, answers[1].top_logprobs, strict=True))
    shared = [(by_id[i], p) for i, p in zip(answers[0].top_ids, answers[0].top_logprobs, strict=True) if i in by_id]
    assert len(shared) >= 3
    assert 0 < max(abs(a - b) for a, b in shared) < 0.3


def test_keys_beyond_the_format_stop_the_start(tmp_path: Path) -> None:
    base = make_base("qwen2", tmp_path)
    with torch.no_grad():
        base.model.layers[0].self_attn.k_proj.bias[0] = 900.0
    base.save_pretrained(tmp_path)
    with pytest.raises(SelfTestFailed, match="beyond fp8's 448; leave --kv-cache-dtype out"):
        TestEngine(tmp_path, kv_cache_dtype="fp8")
    TestEngine(tmp_path).close()
