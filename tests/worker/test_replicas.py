"""Several workers behind one face, over real sockets: where sequences go, and what becomes of them when one dies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from softmux.errors import EngineDown, SoftmuxError
from softmux.types import AdapterRef, SamplingParams
from softmux.worker.channel import Channel, SequenceFailed
from softmux.worker.merged import merged
from softmux.worker.messages import Admit, Generate, Histogram, Stats
from softmux.worker.quarantine import Verdicts
from softmux.worker.replicas import Replicas
from support.echo_worker import SPEC, EchoWorker
from support.waiting import eventually

Story = Callable[[Replicas, list[EchoWorker]], Awaitable[None]]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[list[str], list[EchoWorker]]]:
    endpoints = [f"ipc://{tmp_path}/w{number}.sock" for number in range(2)]
    workers = [EchoWorker(endpoint, delay=0.002) for endpoint in endpoints]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    yield endpoints, workers
    for worker, thread in zip(workers, threads, strict=True):
        worker.stopping = True
        thread.join()


def connected(pair: tuple[list[str], list[EchoWorker]], story: Story, *, free: int = 8, up: int = 2) -> None:
    async def run() -> None:
        replicas = Replicas.of(2, free=free)
        try:
            for number in range(up):
                await asyncio.wait_for(replicas.connect(number, pair[0][number]), 30)
            await asyncio.wait_for(story(replicas, pair[1]), 60)
        finally:
            replicas.close()

    asyncio.run(run())


def request(name: str, task: str | None = None, *, max_tokens: int = 4, **more: object) -> Generate:
    adapter = AdapterRef("acme", task, 1, f"sha256:{task}", "prompt_tuning", 4) if task is not None else None
    sampling = SamplingParams(max_tokens=max_tokens)
    return Generate(id=name, tenant="acme", tokens=(7, 8), sampling=sampling, adapter=adapter, **more)  # type: ignore[arg-type]


async def ended(channel: Channel) -> dict[str, int | SoftmuxError]:
    """By sequence, how many tokens came, or what it failed with."""
    found: dict[str, int | SoftmuxError] = {}
    while events := await channel.events():
        for event in events:
            if isinstance(event, SequenceFailed):
                found[event.id] = event.error
            else:
                found[event.id] = channel.told[event.id]
    return found


def asked(worker: EchoWorker) -> set[str]:
    return {one.id for _, one, _ in worker.running}


def test_requests_of_a_task_go_where_it_is_warm_and_tasks_spread(pair: tuple[list[str], list[EchoWorker]]) -> None:
    async def story(replicas: Replicas, workers: list[EchoWorker]) -> None:
        assert (replicas.spec, replicas.up, replicas.count) == (SPEC, 2, 2)
        channels = [
            replicas.submit([request(f"{task}-{turn}", f"t{task}", max_tokens=10_000)])
            for task in range(12)
            for turn in range(3)
        ]
        await eventually(lambda: sum(len(asked(worker)) for worker in workers) == 36)
        homes = [{name.split("-")[0] for name in asked(worker)} for worker in workers]
        assert all(homes)
        assert not homes[0] & homes[1]
        assert replicas.sequences == 36
        for channel in channels:
            channel.close()
        await eventually(lambda: not any(asked(worker) for worker in workers))  # each was told, wherever it ran
        assert replicas.sequences == 0

    connected(pair, story, free=64)


def test_a_task_that_is_asked_too_much_runs_at_both(pair: tuple[list[str], list[EchoWorker]]) -> None:
    async def story(replicas: Replicas, workers: list[EchoWorker]) -> None:
        channel = replicas.submit([request(f"r{turn}", "hot", max_tokens=10_000) for turn in range(24)])
        await eventually(lambda: sum(len(asked(worker)) for worker in workers) == 24)
        assert min(len(asked(worker)) for worker in workers) >= 8
        channel.close()

    connected(pair, story, free=4)


def test_what_has_not_begun_when_its_worker_dies_begins_at_another(pair: tuple[list[str], list[EchoWorker]]) -> None:
    async def story(replicas: Replicas, workers: list[EchoWorker]) -> None:
        begun = replicas.submit([request("begun", max_tokens=10_000, content=1)])
        await eventually(lambda: "begun" in begun.told)
        workers[0].delay = 1.0  # what comes now waits
        waiting = replicas.submit(
            [request(name, "t", content=content, deadline=60.0) for name, content in (("innocent", 2), ("poison", 3))]
            + [request(f"more{turn}", "t", content=9 + turn) for turn in range(9)]
        )
        await asyncio.wait_for(replicas.connect(1, pair[0][1]), 30)
        assert not waiting.told
        replicas.lost(0, Verdicts(suspects=frozenset({3})))
        assert replicas.up == 1
        assert isinstance((await ended(begun))["begun"], EngineDown)
        told = await ended(waiting)
        failed = {name: what.begun for name, what in told.items() if isinstance(what, EngineDown)}
        assert failed == {"poison": True}
        assert all(what == 4 for name, what in told.items() if name not in failed)

    connected(pair, story, up=1)


def test_a_suspect_is_not_begun_again_and_its_versions_others_run_as_suspects(
    pair: tuple[list[str], list[EchoWorker]],
) -> None:
    async def story(replicas: Replicas, workers: list[EchoWorker]) -> None:
        sent: list[Generate] = []
        other = replicas._clients["1"]
        keep = other.send
        other.send = lambda one: (sent.append(one.request), keep(one))[1]  # type: ignore[method-assign, assignment]
        workers[0].delay = 1.0
        channel = replicas.submit(
            [request("poison", content=3, version=5), request("sibling", content=4, version=5, deadline=60.0)]
        )
        await asyncio.wait_for(replicas.connect(1, pair[0][1]), 30)
        replicas.lost(0, Verdicts(suspects=frozenset({3, 5})))
        told = await ended(channel)
        assert isinstance(told["poison"], EngineDown)
        assert told["sibling"] == 4
        [again] = sent
        assert again.suspect
        assert again.deadline is not None
        assert 59 < again.deadline < 60

    connected(pair, story, up=1)


def test_a_version_that_this_death_convicts_does_not_fell_the_next(pair: tuple[list[str], list[EchoWorker]]) -> None:
    async def story(replicas: Replicas, workers: list[EchoWorker]) -> None:
        workers[0].delay = 1.0
        channel = replicas.submit(
            [request("felling", content=3, version=5), request("nan", content=4, version=6), request("good", content=7)]
        )
        await asyncio.wait_for(replicas.connect(1, pair[0][1]), 30)
        replicas.lost(0, Verdicts(felling=frozenset({5}), not_finite=frozenset({6})))
        told = await ended(channel)
        assert {name for name, what in told.items() if isinstance(what, EngineDown)} == {"felling", "nan"}
        assert told["good"] == 4
        assert not {"felling", "nan"} & asked(workers[1])

    connected(pair, story, up=1)


def test_with_none_left_all_fail_and_nothing_is_taken(pair: tuple[list[str], list[EchoWorker]]) -> None:
    async def story(replicas: Replicas, workers: list[EchoWorker]) -> None:
        channel = replicas.submit([request(f"r{turn}", content=turn) for turn in range(4)])
        replicas.lost(0)
        replicas.lost(1)
        told = (await ended(channel)).values()
        assert [isinstance(error, EngineDown) and error.begun for error in told] == [True] * 4
        assert not replicas.ready
        with pytest.raises(EngineDown) as late:
            replicas.submit([request("late")])
        assert not late.value.begun
        with pytest.raises(EngineDown):
            await replicas.admit(Admit(id="a", tenant="acme", manifest=None, files={}))  # type: ignore[arg-type]
        assert replicas.spec == SPEC

    connected(pair, story)


def test_counts_go_on_when_a_worker_is_another(pair: tuple[list[str], list[EchoWorker]]) -> None:
    async def story(replicas: Replicas, workers: list[EchoWorker]) -> None:
        await replicas.refresh_stats(5)
        assert replicas.stats is not None
        assert replicas.stats.counters == {"engine_steps_total": 2.0}
        assert replicas.stats is replicas.stats
        replicas.lost(0)
        assert replicas.stats.counters == {"engine_steps_total": 2.0}
        await asyncio.wait_for(replicas.connect(0, pair[0][0]), 30)
        await replicas.refresh_stats(5)
        assert replicas.stats.counters == {"engine_steps_total": 3.0}

    connected(pair, story)


def test_one_that_comes_after_a_death_counts_what_the_dead_had(pair: tuple[list[str], list[EchoWorker]]) -> None:
    """A process that is started anew, beside others: a scrape of it would else find counts that went back."""

    async def story(replicas: Replicas, workers: list[EchoWorker]) -> None:
        await replicas.refresh_stats(5)
        replicas.lost(0)
        later = Replicas.of(2)
        try:
            assert later.stats is None
            later.take_over(msgspec.msgpack.decode(msgspec.msgpack.encode(replicas.gone), type=dict[str, Stats]))
            await asyncio.wait_for(later.connect(1, pair[0][1]), 30)
            await later.refresh_stats(5)
            assert later.stats is not None
            assert later.stats.counters == replicas.stats.counters == {"engine_steps_total": 2.0}  # type: ignore[union-attr]
            before = later.stats
            later.take_over(replicas.gone)
            replicas.take_over(later.gone)
            assert later.stats is before
            assert replicas.stats.counters == {"engine_steps_total": 2.0}  # type: ignore[union-attr]
        finally:
            later.close()

    connected(pair, story)


def test_several_numbers_are_one() -> None:
    one = Stats(
        counters={"engine_steps_total": 3.0},
        gauges={"num_requests_running": 2.0, "kv_cache_usage_perc": 0.2, "step_token_limit": 512.0},
        histograms={"step_seconds": Histogram((1, 2), 0.5)},
        labelled={"adapter_loads_total": {"host": 1.0}},
        infos={
            "server_info": {"model": "m"},
            "lora_requests_info": {"max_lora": "2", "running_lora_adapters": "a,b", "waiting_lora_adapters": ""},
        },
        queues={"acme": (5.0, 2.0)},
    )
    other = msgspec.structs.replace(
        one,
        gauges={"num_requests_running": 5.0, "kv_cache_usage_perc": 0.6, "step_token_limit": 256.0},
        labelled={"adapter_loads_total": {"host": 1.0, "disk": 4.0}},
        infos={
            **one.infos,
            "lora_requests_info": {"max_lora": "2", "running_lora_adapters": "b,c", "waiting_lora_adapters": "d"},
        },
        queues={"acme": (1.0, 2.0), "bolt": (7.0, 1.0)},
    )
    both = merged([one, other])
    assert both == Stats(
        counters={"engine_steps_total": 6.0},
        gauges={"num_requests_running": 7.0, "kv_cache_usage_perc": pytest.approx(0.4), "step_token_limit": 256.0},
        histograms={"step_seconds": Histogram((2, 4), 1.0)},
        labelled={"adapter_loads_total": {"host": 2.0, "disk": 4.0}},
        infos={
            "server_info": {"model": "m"},
            "lora_requests_info": {"max_lora": "4", "running_lora_adapters": "a,b,c", "waiting_lora_adapters": "d"},
        },
        queues={"acme": (6.0, 2.0), "bolt": (7.0, 1.0)},
    )
    assert merged([]) is None
    assert merged([one]) is one
