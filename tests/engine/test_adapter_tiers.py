"""Where adapters lie when the GPU has let them go: host, disk, source; warm means no forward over learned vectors."""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import peft
import pytest
import torch

from softmux.engine import durations
from softmux.engine.disk import DiskTier
from softmux.engine.engine import StepNews
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.kv import KVPool
from softmux.engine.tiers import _PREFETCHED, AdapterTiers
from softmux.errors import BlobDamaged, RegistryDown, SoftmuxError
from softmux.scheduler.batch import PrefixLoad, PrefixSave
from softmux.scheduler.radix import RootKey
from softmux.types import DEFAULT_TENANT, LayerKV
from softmux.worker.stats import WorkerStats
from support.engines import TestEngine
from support.learned import eager_greedy, prompt_part, vectors_for
from support.models import make_adapter

Make = Callable[..., TestEngine]
LEAD = [-1 - i for i in range(8)]
TEXT = [10, 11, 12]


@dataclass
class Landing:
    """A copy to the host that has landed once a test says so."""

    here: bool

    def landed(self) -> bool:
        return self.here


def ask(engine: TestEngine, root: RootKey, text: list[int] = TEXT, lead: list[int] = LEAD) -> list[int]:
    name = engine.text([*lead, *text], root, max_tokens=4, ignore_eos=True)
    engine.run()
    error = engine.done[name].error
    if error is not None:
        raise error
    return engine.done[name].tokens


def written(engine: TestEngine) -> None:
    """Waits until the loader has done all it was given: the disk tier's files are there."""
    assert engine.engine.tiers.loader.settle(10)


def test_kept_kv_is_copied_from_host_without_a_forward_over_the_vectors(make_engine: Make, base: Any) -> None:
    engine = make_engine()
    vectors = vectors_for(base, 8)
    root = engine.learned("tuned", vectors)
    cold = ask(engine, root)
    assert engine.virtual_tokens_run() == 8
    engine.forget_kv()
    engine.batches.clear()
    assert ask(engine, root) == cold == eager_greedy(base, [*LEAD, *TEXT], 4, vectors)
    assert engine.virtual_tokens_run() == 0
    assert [len(load.slots) for batch in engine.batches for load in batch.loads] == [8]
    assert engine.source.fetched == ["tuned"]
    assert engine.engine.tiers.counts.loads["registry"] == 1


def test_a_restart_finds_the_kv_on_disk_and_asks_no_store(make_engine: Make, base: Any, tmp_path: Path) -> None:
    engine = make_engine(disk_folder=tmp_path)
    vectors = vectors_for(base, 8)
    cold = ask(engine, engine.learned("tuned", vectors))
    written(engine)
    again = make_engine(disk_folder=tmp_path)
    root = again.engine.key("default", "tuned")
    assert ask(again, root) == cold
    assert again.virtual_tokens_run() == 0
    assert again.source.fetched == []
    assert again.engine.tiers.counts.loads["disk"] == 1
    template = [10, -1, -2, 11, *LEAD[2:]]
    assert ask(again, root, lead=template) == eager_greedy(base, [*template, *TEXT], 4, vectors), "vectors come too"


def test_a_trained_prefix_lies_on_disk_too(make_engine: Make, base: Any, tmp_path: Path) -> None:
    make_adapter(base, "prefix_tuning", tmp_path / "adapter")
    engine = make_engine(disk_folder=tmp_path / "disk")
    root, virtual = engine.adapter(tmp_path / "adapter")
    first = ask(engine, root, lead=LEAD[:virtual])
    written(engine)
    again = make_engine(disk_folder=tmp_path / "disk")
    assert ask(again, root, lead=LEAD[:virtual]) == first
    assert again.source.fetched == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "gone"])
def test_a_damaged_file_is_dropped_and_made_again(make_engine: Make, base: Any, tmp_path: Path, damage: str) -> None:
    engine = make_engine(disk_folder=tmp_path)
    vectors = vectors_for(base, 8)
    cold = ask(engine, engine.learned("tuned", vectors))
    written(engine)
    files = {path: path.read_bytes() for path in tmp_path.glob("*.kv")}
    assert files
    again = make_engine(disk_folder=tmp_path)
    for path, content in files.items():
        if damage == "gone":
            path.unlink()
        else:
            middle = len(content) // 2
            flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            path.write_bytes({"cut": content[:-9], "flipped": flipped, "emptied": b""}[damage])
    root = again.learned("tuned", vectors)
    assert ask(again, root) == cold
    assert again.source.fetched == ["tuned"]
    assert again.engine.tiers.loader.damaged_on_disk == 1
    assert again.virtual_tokens_run() == 8
    written(again)
    whole = make_engine(disk_folder=tmp_path)
    assert ask(whole, root) == cold
    assert whole.source.fetched == []


def test_a_file_that_the_registry_has_lost_is_counted_and_asked_for_again(make_engine: Make, base: Any) -> None:
    engine = make_engine()
    root = engine.learned("tuned", vectors_for(base, 8))
    whole = engine.source.files

    class Lost(dict[str, Any]):
        def __missing__(self, digest: str) -> Any:
            raise BlobDamaged(f"the files of {digest} are damaged")

    engine.source.files = Lost()
    with pytest.raises(BlobDamaged, match="of tuned are damaged"):
        ask(engine, root)
    assert engine.engine.tiers.counts.damaged == 1
    engine.source.files = whole
    assert ask(engine, root)
    assert engine.engine.tiers.counts.damaged == 1


def test_only_the_latest_loads_wait_to_be_counted(
    make_engine: Make, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine without a worker has nobody who counts them."""
    monkeypatch.setattr(durations, "_KEPT", 3)
    engine = make_engine()
    stats = WorkerStats(engine.engine)
    for number in range(5):
        ask(engine, engine.learned(f"task {number}", vectors_for(base, 8)))
    assert engine.engine.tiers.counts.loads["registry"] == 5
    for _ in range(2):  # what was counted is not counted again
        stats.observe(StepNews())
        assert stats.snapshot().histograms["adapter_load_seconds"].counts[-1] == 3


def test_the_disk_tier_keeps_its_budget_drops_the_oldest_and_clears_what_was_never_finished(tmp_path: Path) -> None:
    adapters = [HostAdapter(torch.full((4, 16), float(i))) for i in range(6)]
    size = adapters[0].write(tmp_path / "one")
    (tmp_path / "one").unlink()
    keys = [RootKey("a", str(i), "f", "d") for i in range(6)]
    (tmp_path / "left.123.tmp").write_bytes(b"half")
    tier = DiskTier(tmp_path, 3 * size)
    assert not (tmp_path / "left.123.tmp").exists()
    for key, adapter in zip(keys[:3], adapters, strict=False):
        tier.put(key, adapter)
    assert tier.get(keys[0]) is not None
    tier.put(keys[3], adapters[3])
    assert tier.get(keys[1]) is None, "the least recently used one"
    for kept in (0, 2, 3):
        found = tier.get(keys[kept])
        assert found is not None
        assert found.vectors is not None
        assert torch.equal(found.vectors, torch.full((4, 16), float(kept)))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 3 * size
    small = DiskTier(tmp_path / "small", size - 1)
    small.put(keys[0], adapters[0])
    assert small.get(keys[0]) is None
    reopened = DiskTier(tmp_path, 3 * size)
    reopened.put(keys[5], adapters[5])
    assert sum(reopened.get(key) is not None for key in keys) == 3


def test_the_host_budget_holds_with_hundreds_of_adapters(make_engine: Make, base: Any, tmp_path: Path) -> None:
    """Their vectors and their KV are let go, oldest first, and come back right."""
    budget = 300_000
    engine = make_engine(disk_folder=tmp_path, host_cache_bytes=budget, kv_tokens=512, resident_vectors=64)
    vectors = [vectors_for(base, 8, seed) for seed in range(300)]
    roots = [engine.learned(f"task{i}", vectors[i]) for i in range(300)]
    tiers = engine.engine.tiers
    for i in range(300):
        engine.text([*LEAD, *TEXT], roots[i], max_tokens=2, ignore_eos=True)
        if i % 20 == 19:
            engine.run()
            assert tiers.host_bytes <= budget
    each = tiers.host_bytes // tiers.resident
    assert tiers.resident == budget // each
    vocabulary = engine.engine.runner.vocabulary
    assert (vocabulary.table.shape[0], vocabulary.resident) == (64, 8), "no step needed more: the rest gave way"
    assert vocabulary.swaps >= 300
    written(engine)
    engine.batches.clear()
    for i in (3, 150, 299):
        assert ask(engine, roots[i]) == eager_greedy(base, [*LEAD, *TEXT], 4, vectors[i])
    assert engine.virtual_tokens_run() == 0
    assert tiers.counts.loads["disk"] == 2
    assert tiers.counts.loads["registry"] == 300


def test_a_step_that_needs_more_vectors_than_the_table_holds_makes_it_grow(make_engine: Make, base: Any) -> None:
    engine = make_engine(max_step_tokens=512, resident_vectors=64)
    vectors = [vectors_for(base, 8, seed) for seed in range(20)]
    roots = [engine.learned(f"task{i}", vectors[i]) for i in range(20)]
    names = [engine.text([*LEAD, *TEXT], root, max_tokens=3, ignore_eos=True) for root in roots]
    engine.step()  # the loads begin
    written(engine)
    engine.run()
    assert max(batch.adapters for batch in engine.batches) == 20
    assert engine.engine.runner.vocabulary.table.shape[0] >= 160
    for name, values in zip(names, vectors, strict=True):
        assert engine.done[name].tokens == eager_greedy(base, [*LEAD, *TEXT], 3, values)


def test_no_host_memory_at_all_is_slow_and_right(make_engine: Make, base: Any) -> None:
    engine = make_engine(host_cache_bytes=0)
    vectors = vectors_for(base, 8)
    root = engine.learned("tuned", vectors)
    for _ in range(2):
        assert ask(engine, root) == eager_greedy(base, [*LEAD, *TEXT], 4, vectors)
        engine.forget_kv()
    assert engine.engine.tiers.resident == 0
    assert engine.source.fetched == ["tuned"] * 2


def test_an_upload_under_admission_stays_while_it_waits(make_engine: Make, base: Any) -> None:
    """It is in no store yet: if it were let go, it could not be had again."""
    engine = make_engine(host_cache_bytes=0, max_rows=1)
    vectors = vectors_for(base, 8)
    busy = engine.learned("busy", vectors_for(base, 8, 1))
    names = [engine.text([*LEAD, *TEXT, i], busy, max_tokens=6, ignore_eos=True) for i in range(4)]
    root = engine.engine.key("default", "upload")
    engine.engine.adopt(root, (prompt_part(vectors),))
    name = engine.text([*LEAD, *TEXT], root, max_tokens=4, ignore_eos=True)
    engine.run()
    assert all(engine.done[other].error is None for other in names)
    assert engine.done[name].tokens == eager_greedy(base, [*LEAD, *TEXT], 4, vectors)
    assert engine.engine.tiers.resident == 0


def test_an_adapter_that_nobody_waits_for_any_more_does_not_stay(make_engine: Make, base: Any) -> None:
    engine = make_engine(host_cache_bytes=0, max_rows=1)
    long = engine.add([5, 6], max_tokens=60, ignore_eos=True)
    engine.step()
    root = engine.learned("tuned", vectors_for(base, 8))
    gone = engine.text([*LEAD, *TEXT], root)
    engine.engine.tiers.ready(root)
    written(engine)
    engine.step()
    assert engine.engine.tiers.resident == 1
    engine.engine.scheduler.abort(b"", gone)
    engine.run()
    other = engine.learned("other", vectors_for(base, 8, 1))
    ask(engine, other)
    assert engine.engine.tiers.resident == 0
    assert len(engine.done[long].tokens) == 60


def test_a_failing_store_is_asked_again_and_its_answer_reaches_those_who_wait(make_engine: Make, base: Any) -> None:
    engine = make_engine()
    vectors = vectors_for(base, 8)
    root = engine.learned("tuned", vectors)
    files = engine.source.files.pop("tuned")
    with pytest.raises(SoftmuxError, match="tuned"):
        ask(engine, root)
    error: list[SoftmuxError] = [RegistryDown("the registry is away")]

    class Away(dict[str, bytes]):
        def __getattribute__(self, name: str) -> Any:
            if error and not name.startswith("__"):
                raise error[0]
            return super().__getattribute__(name)

    engine.source.files["tuned"] = Away(files)
    with pytest.raises(RegistryDown):
        ask(engine, root)
    late = engine.text([*LEAD, *TEXT], root, max_tokens=1)
    engine.step()
    engine.engine.scheduler.abort(b"", late)
    written(engine)
    engine.step()
    error.clear()
    assert ask(engine, root) == eager_greedy(base, [*LEAD, *TEXT], 4, vectors), "an old failure is nobody's answer"


def test_a_broken_disk_stops_no_loader(make_engine: Make, base: Any, tmp_path: Path) -> None:
    engine = make_engine(disk_folder=tmp_path / "disk")
    for path in (tmp_path / "disk").iterdir():
        path.unlink()
    written(engine)
    for path in (tmp_path / "disk").iterdir():
        path.unlink()
    (tmp_path / "disk").rmdir()
    (tmp_path / "disk").write_bytes(b"no folder")
    for i in range(3):
        vectors = vectors_for(base, 8, i)
        root = engine.learned(f"task{i}", vectors)
        assert ask(engine, root) == eager_greedy(base, [*LEAD, *TEXT], 4, vectors)
        written(engine)


def test_two_tenants_with_one_digest_load_and_keep_it_apart(make_engine: Make, base: Any) -> None:
    engine = make_engine()
    vectors = vectors_for(base, 8)
    roots = [engine.learned("tuned", vectors, tenant) for tenant in ("one", "two")]
    assert ask(engine, roots[0]) == ask(engine, roots[1])
    assert engine.source.fetched == ["tuned", "tuned"]
    assert engine.virtual_tokens_run() == 16


def test_loading_holds_up_no_step(make_engine: Make, base: Any) -> None:
    engine = make_engine()
    release = threading.Event()
    vectors = vectors_for(base, 8)
    root = engine.learned("tuned", vectors)
    fetch = engine.source.files["tuned"]

    class Slow(dict[str, bytes]):
        def keys(self) -> Any:
            release.wait(60)
            return super().keys()

        def __iter__(self) -> Any:
            release.wait(60)
            return super().__iter__()

        def items(self) -> Any:
            release.wait(60)
            return super().items()

        def get(self, *args: Any) -> Any:
            release.wait(60)
            return super().get(*args)

    engine.source.files["tuned"] = Slow(fetch)
    waiting = engine.text([*LEAD, *TEXT], root, max_tokens=4, ignore_eos=True)
    began = time.monotonic()
    other = engine.add([3, 4], max_tokens=8, ignore_eos=True)
    for _ in range(10):
        engine.step()
    assert engine.done[other].reason == "length"
    assert engine.done[waiting].tokens == []
    assert time.monotonic() - began < 55
    release.set()
    engine.run()
    assert engine.done[waiting].tokens == eager_greedy(base, [*LEAD, *TEXT], 4, vectors)


def test_a_request_that_waits_for_a_row_has_its_adapter_fetched_meanwhile(make_engine: Make, base: Any) -> None:
    engine = make_engine(max_rows=1)
    engine.add([5, 6], max_tokens=60, ignore_eos=True)
    engine.step()
    vectors = vectors_for(base, 8)
    name = engine.text([*LEAD, *TEXT], engine.learned("tuned", vectors), max_tokens=4, ignore_eos=True)
    written(engine)
    assert engine.source.fetched == ["tuned"]
    engine.step()
    assert len(engine.engine.scheduler.running) == 1
    assert engine.engine.tiers.resident == 1
    engine.run()
    assert engine.done[name].tokens == eager_greedy(base, [*LEAD, *TEXT], 4, vectors)
    assert engine.source.fetched == ["tuned"]


def test_no_more_are_fetched_ahead_than_the_window_holds(make_engine: Make, base: Any) -> None:
    """Thousands may wait, each for a task of its own: what waits for them in host memory is bounded."""
    engine = make_engine(max_rows=1, host_cache_bytes=0)
    vectors = vectors_for(base, 8)
    engine.add([5, 6], max_tokens=60, ignore_eos=True)
    for number in range(_PREFETCHED + 100):
        engine.text([*LEAD, *TEXT], engine.learned(f"task{number}", vectors), max_tokens=1, ignore_eos=True)
    for _ in range(3):
        written(engine)
        engine.step()
    assert len(engine.source.fetched) == engine.engine.tiers.resident == _PREFETCHED
    engine.run()
    assert len(engine.source.fetched) == _PREFETCHED + 100
    assert engine.engine.tiers.resident == 0


@pytest.fixture
def tiers_of_a_gpu(make_engine: Make) -> Iterator[tuple[AdapterTiers, KVPool, RootKey]]:
    """What a GPU's engine has below it; a pool of 64 slots of random KV, and an adapter that is held."""
    spec = make_engine().engine.spec
    pool = KVPool(spec.layers, 64, torch.float32, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for layer in (*pool.keys, *pool.values):
        layer.normal_()
    tiers = AdapterTiers(spec=spec, dtype=torch.float32, budget=1 << 30, gpu=True, source=lambda key: {})
    key = RootKey("default", "tuned", "f", "float32")
    tiers.adopt(key, HostAdapter(torch.zeros((4, spec.hidden_size))))
    tiers.hold(key)
    yield tiers, pool, key
    tiers.check_integrity()
    tiers.close()


def test_a_gpu_keeps_kv_that_it_had_to_compute_twice(tiers_of_a_gpu: tuple[AdapterTiers, KVPool, RootKey]) -> None:
    """What is used once, or never leaves the GPU's own cache, costs no copy and no host memory."""
    tiers, pool, key = tiers_of_a_gpu
    before = tiers.host_bytes
    tiers.save([PrefixSave(key, [3, 1, 5, 9])], pool)
    assert (tiers.compiled(key), tiers.host_bytes) == (0, before)
    slots = [7, 2, 8, 40]
    tiers.save([PrefixSave(key, slots), PrefixSave(key._replace(digest="gone"), [11])], pool)
    tiers.save([PrefixSave(key, slots)], pool)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    tiers.arrivals()
    assert tiers.compiled(key) == 4
    assert tiers.host_bytes == before + KVPool.bytes_per_token(layers_of(pool), torch.float32) * 4
    expected = torch.stack([torch.stack([layer[slots] for layer in side]) for side in (pool.keys, pool.values)])
    for layer in (*pool.keys, *pool.values):
        layer.zero_()
    tiers.load([PrefixLoad(key, 1, [50, 20])], pool)
    for side, found in zip(expected, (pool.keys, pool.values), strict=True):
        for values, layer in zip(side, found, strict=True):
            assert torch.equal(layer[[50, 20]], values[1:3])


def test_computed_kv_takes_what_adapters_leave_and_what_older_kv_had(
    tiers_of_a_gpu: tuple[AdapterTiers, KVPool, RootKey],
) -> None:
    """One prompt's KV is as large as many adapters, which would all have to be read from disk again."""
    tiers, pool, key = tiers_of_a_gpu
    each = KVPool.bytes_per_token(layers_of(pool), torch.float32) * 4
    others = [key._replace(digest=f"other{number}") for number in range(3)]
    for other in others:
        tiers.adopt(other, HostAdapter(torch.zeros((4, pool.keys[0].shape[-1]))))
        tiers.hold(other)
    known = [key, *others]

    def compute(adapter: RootKey) -> int:
        for _ in range(2):
            tiers.save([PrefixSave(adapter, [1, 2, 3, 4])], pool)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        tiers.arrivals()
        return tiers.compiled(adapter)

    tiers.budget = tiers.host_bytes + 2 * each - 1
    assert [compute(adapter) for adapter in known] == [4, 0, 0, 0], "there is room for one, which is in use"
    tiers.check_integrity()
    tiers.release(key)
    assert [compute(adapter) for adapter in others] == [4, 0, 0], "nobody used the first any more"
    assert tiers.compiled(key) == 0
    tiers.release(others[0])
    tiers.budget = tiers.host_bytes - each
    assert compute(others[1]) == 0, "adapters fill it"
    assert tiers.resident == 4
    tiers.check_integrity()
    tiers.hold(key)


def test_kv_that_was_counted_on_is_there_though_its_adapter_is_let_go_before_the_step_is_launched(
    tiers_of_a_gpu: tuple[AdapterTiers, KVPool, RootKey],
) -> None:
    """A row may be sent back to the queue by the very step that was to copy its prefix in."""
    tiers, pool, key = tiers_of_a_gpu
    other = key._replace(digest="prefix")
    prefix = torch.randn(pool.prefix_shape(3))
    tiers.adopt(other, HostAdapter(None, prefix, trained=True))
    tiers.hold(other)
    assert tiers.compiled(other) == 3
    tiers.release(other)
    tiers.forget(other)
    tiers.load([PrefixLoad(other, 0, [4, 6, 5])], pool)
    assert torch.equal(pool.keys[0][[4, 6, 5]].cpu(), prefix[0, 0])


def test_kv_that_lands_after_its_adapter_was_let_go_is_not_counted(
    tiers_of_a_gpu: tuple[AdapterTiers, KVPool, RootKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers, pool, key = tiers_of_a_gpu
    late = Landing(here=False)
    monkeypatch.setattr(pool, "save", lambda pieces: late)
    for _ in range(2):
        tiers.save([PrefixSave(key, [0, 1, 2, 3])], pool)
    assert tiers.compiled(key) == 0
    tiers.release(key)
    tiers.forget(key)
    late.here = True
    tiers.arrivals()
    assert (tiers.resident, tiers.host_bytes) == (0, 0)
    tiers.adopt(key, HostAdapter(torch.zeros((4, 8))))
    tiers.hold(key)


@pytest.mark.parametrize(
    ("device", "room"),
    [
        ("cpu", 40_000),
        pytest.param("cuda", 20_000, marks=pytest.mark.gpu),
        pytest.param("cuda", 100_000, marks=pytest.mark.gpu),
    ],
)
def test_many_tasks_through_tiers_too_small_for_them_answer_as_each_alone(
    make_engine: Make, base: Any, tmp_path: Path, device: str, room: int
) -> None:
    """Again and again: computed, copied from host memory, and read from disk. A GPU's tiers keep KV from the second
    computation on, where adapters (36,864 bytes of vectors in all) leave room for it; the CPU's write it to disk."""
    engine = make_engine(
        disk_folder=tmp_path, device=device, host_cache_bytes=room, kv_tokens=160, resident_vectors=64, max_rows=8
    )
    vectors = [vectors_for(base, 8, seed) for seed in range(24)]
    roots = [engine.learned(f"task{i}", vectors[i]) for i in range(24)]
    expected = [eager_greedy(base, [*LEAD, *TEXT], 4, values) for values in vectors]
    draw = random.Random(0)
    for _ in range(4):
        order = [min(23, int(draw.expovariate(0.15))) for _ in range(40)]
        names = [engine.text([*LEAD, *TEXT], roots[task], max_tokens=4, ignore_eos=True) for task in order]
        engine.run()
        assert [engine.done[name].tokens for name in names] == [expected[task] for task in order]
        written(engine)
        engine.forget_kv()
    loads = engine.engine.tiers.counts.loads
    assert loads["host"] > 0
    assert (loads["disk"] > 0) == (room < 100_000)
    assert (sum(len(batch.loads) for batch in engine.batches) > 0) == (device == "cpu" or room == 100_000)
    assert engine.engine.runner.vocabulary.swaps > 18


def layers_of(pool: KVPool) -> list[LayerKV]:
    heads, head_dim = pool.keys[0].shape[1:]
    return [LayerKV(heads, head_dim)] * len(pool.keys)


def kept_from_growing(tiers: AdapterTiers, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What the writer's thread is asked to do, and does not."""
    asked: list[Callable[[], object]] = []
    monkeypatch.setattr(tiers.loader, "call", asked.append)
    return asked


def test_many_that_find_no_room_take_one_slab(
    tiers_of_a_gpu: tuple[AdapterTiers, KVPool, RootKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slabs are never given back: each would be memory beyond the budget for good."""
    tiers, _, _ = tiers_of_a_gpu
    asked = kept_from_growing(tiers, monkeypatch)
    shape = (tiers._arena.size + 1,)  # type: ignore[union-attr]
    assert [tiers._room(shape, torch.uint8) for _ in range(5)] == [None] * 5
    assert len(asked) == 1
    asked[0]()
    found = tiers._room(shape, torch.uint8)
    assert found is not None
    assert found.nbytes == shape[0]
    assert len(asked) == 1


def test_what_was_dropped_makes_room_before_memory_is_made_larger(
    tiers_of_a_gpu: tuple[AdapterTiers, KVPool, RootKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine drops is let go by readers, and there may be nothing to read."""
    tiers, _, key = tiers_of_a_gpu
    asked = kept_from_growing(tiers, monkeypatch)
    arena = tiers._arena
    assert arena is not None
    large = key._replace(digest="large")
    tiers.adopt(large, HostAdapter(torch.zeros((arena.free - 256) // 4)))
    assert tiers._room((512,), torch.uint8) is None
    assert len(asked) == 1
    tiers.forget(large)
    assert tiers._room((512,), torch.uint8) is not None
    assert len(asked) == 1


def test_a_combination_comes_back_from_disk_as_it_was_each_order_as_its_own(
    base: Any, base_folder: Path, tmp_path: Path
) -> None:
    for number, name in enumerate(("one", "other")):
        torch.manual_seed(number)
        config = peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=4 + number)
        model = peft.get_peft_model(copy.deepcopy(base), config)
        for parameter in model.prompt_encoder.parameters():
            parameter.data = torch.randn_like(parameter)
        model.save_pretrained(tmp_path / name)
        (tmp_path / name / "softmux.json").write_text('{"combines": true}')
    heard: list[list[list[int]]] = []
    for start in range(2):
        engine = TestEngine(base_folder, disk_folder=tmp_path / "disk")
        digests = [str(engine.adapter(tmp_path / name)[0].digest) for name in ("one", "other")]
        said = []
        for order in (digests, digests[::-1]):
            asked = engine.add([5, 6, 7], engine.engine.key(DEFAULT_TENANT, "+".join(order)), 9, max_tokens=6)
            engine.run()
            assert engine.done[asked].error is None
            said.append(engine.done[asked].tokens)
        heard.append(said)
        assert engine.engine.tiers.loader.settle(30)
        assert engine.source.fetched == ([*digests, *digests[::-1]] if start == 0 else [])
        engine.close()
    assert heard[0] == heard[1]
    assert heard[0][0] == heard[0][1], "no layer here has a window, and these keys know no place"


def test_kv_that_lands_when_what_was_to_give_way_is_in_use_takes_no_adapters_place(
    tiers_of_a_gpu: tuple[AdapterTiers, KVPool, RootKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers, pool, key = tiers_of_a_gpu
    older, newer, idle = (key._replace(digest=name) for name in ("older", "newer", "idle"))
    for other in (older, newer, idle):
        tiers.adopt(other, HostAdapter(torch.zeros((4, pool.keys[0].shape[-1]))))
        tiers.hold(other)

    def compute(adapter: RootKey, landing: Landing) -> None:
        monkeypatch.setattr(pool, "save", lambda pieces: landing)
        for _ in range(2):
            tiers.save([PrefixSave(adapter, [1, 2, 3, 4])], pool)

    compute(older, Landing(here=True))
    assert tiers.compiled(older) == 4
    tiers.budget = tiers.host_bytes + 1
    for other in (older, idle):
        tiers.release(other)
    late = Landing(here=False)
    compute(newer, late)
    tiers.hold(older)
    late.here = True
    tiers.arrivals()
    assert (tiers.compiled(older), tiers.compiled(newer)) == (4, 0)
    assert tiers.at_hand(idle)


def test_a_load_lets_go_of_what_was_dropped_while_it_waited_before_memory_is_made_larger(
    make_engine: Make,
) -> None:
    begun, go = threading.Event(), threading.Event()

    class Slow:
        damaged = 0

        def __contains__(self, key: RootKey) -> bool:
            return True

        def get(self, key: RootKey, empty: Callable[[tuple[int, ...], torch.dtype], torch.Tensor]) -> HostAdapter:
            begun.set()
            assert go.wait(60)
            return HostAdapter(empty((1000, 64), torch.float32))

    tiers = AdapterTiers(
        spec=make_engine().engine.spec, dtype=torch.float32, budget=1 << 20, gpu=True, source=lambda key: {},
        disk=cast("DiskTier", Slow()),
    )  # fmt: skip
    keys = [RootKey(DEFAULT_TENANT, f"adapter{number}", "f", "float32") for number in range(5)]
    for key in keys[:4]:
        tiers.adopt(key, HostAdapter(torch.zeros(1000, 64)))
    arena = tiers._arena
    assert arena is not None
    before = arena.size
    tiers.ready(keys[4])
    assert begun.wait(60)
    for key in keys[:4]:
        tiers.forget(key)
    go.set()
    assert tiers.loader.settle(60)
    assert arena.size == before
    tiers.close()


def test_an_empty_tensor_keeps_the_frames_behind_it_in_step() -> None:
    sent = HostAdapter(torch.zeros((0, 64)), head=torch.randn(3, 7))
    got = HostAdapter.of_frames([memoryview(frame) for frame in sent.frames()])
    assert got.vectors is not None
    assert got.vectors.shape == (0, 64)
    assert got.head is not None
    assert torch.equal(got.head, cast("torch.Tensor", sent.head))
