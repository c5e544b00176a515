from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from softmux.errors import EngineDown, InternalError, InvalidAdapter, Overloaded
from softmux.types import Manifest, Output, SamplingParams
from softmux.worker.channel import SequenceFailed
from softmux.worker.client import WorkerClient
from softmux.worker.messages import Admit, Generate
from support.echo_worker import SPEC, EchoWorker


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Callable[..., tuple[str, EchoWorker]]]:
    started: list[tuple[EchoWorker, threading.Thread]] = []

    def start(**options: float) -> tuple[str, EchoWorker]:
        endpoint = f"ipc://{tmp_path}/w{len(started)}.sock"
        worker = EchoWorker(endpoint, **options)  # type: ignore[arg-type]
        thread = threading.Thread(target=worker.run)
        thread.start()
        started.append((worker, thread))
        return endpoint, worker

    yield start
    for worker, thread in started:
        worker.stopping = True
        thread.join()


def connected(endpoint: str, story: Callable[[WorkerClient], Awaitable[None]]) -> None:
    async def run() -> None:
        client = WorkerClient()
        try:
            await asyncio.wait_for(client.connect(endpoint), 30)
            await asyncio.wait_for(story(client), 60)
        finally:
            client.close()

    asyncio.run(run())


def request(name: str, tokens: tuple[int, ...] = (7, 8, 9), max_tokens: int = 4) -> Generate:
    return Generate(id=name, tenant="default", tokens=tokens, sampling=SamplingParams(max_tokens=max_tokens))


def admission(virtual_tokens: int) -> Admit:
    manifest = Manifest(
        digest="sha256:" + "0" * 64,
        method="prompt_tuning",
        base_fingerprint=SPEC.base_fingerprint,
        files=(),
        virtual_tokens=virtual_tokens,
        parameters=1,
    )
    return Admit(id="a", tenant="default", manifest=manifest, files={"x": b"y"})


def test_the_welcome_brings_the_model_and_a_sequence_its_tokens(peer: Callable) -> None:
    endpoint, _ = peer()

    async def story(client: WorkerClient) -> None:
        assert client.ready
        assert client.spec == SPEC
        outputs = [output async for output in client.generate(request("one"))]
        assert [token for output in outputs for token in output.tokens] == [7, 8, 9, 7]
        assert [output.finish_reason for output in outputs][-1] == "length"
        assert client.sequences == 0

    connected(endpoint, story)


def test_a_failure_of_the_worker_is_raised_as_its_own_error(peer: Callable) -> None:
    endpoint, _ = peer()

    async def story(client: WorkerClient) -> None:
        with pytest.raises(Overloaded, match="one too many"):
            async for _ in client.generate(request("bad", tokens=(13,))):
                pass
        with pytest.raises(InvalidAdapter) as caught:
            await client.admit(admission(100))
        assert caught.value.param == "adapter_config.json: num_virtual_tokens"
        assert (await client.admit(admission(4))).checks == ("It ran.",)

    connected(endpoint, story)


def test_one_channel_carries_many_sequences_and_one_failure_does_not_end_the_others(peer: Callable) -> None:
    endpoint, _ = peer(burst=3)

    async def story(client: WorkerClient) -> None:
        channel = client.submit([request("a", (5,)), request("b", (13,)), request("c", (6,), 7)])
        seen: dict[str, list[int]] = {}
        failed = []
        while events := await channel.events():
            for event in events:
                if isinstance(event, SequenceFailed):
                    failed.append((event.id, event.error.code))
                else:
                    seen.setdefault(event.id, []).extend(event.tokens)
        assert seen == {"a": [5] * 4, "c": [6] * 7}
        assert failed == [("b", "overloaded")]

    connected(endpoint, story)


def test_a_reader_of_whole_replies_is_woken_once_or_by_a_failure(peer: Callable) -> None:
    endpoint, _ = peer(delay=0.01)

    async def story(client: WorkerClient) -> None:
        channel = client.submit([request("a", (5,)), request("c", (6,), 7)])
        arrived = await channel.arrivals(whole=True)
        assert not channel.open
        assert len(arrived) == 11
        times = [at for (at,), _ in arrived]
        assert times == sorted(times)
        assert times[-1] - times[0] > 0.03
        assert await channel.arrivals(whole=True) == []
        channel = client.submit([request("d", max_tokens=10_000), request("b", (13,))])
        *_, (_, last) = await channel.arrivals(whole=True)
        assert isinstance(last, SequenceFailed)
        assert channel.open == {"d"}
        channel.close()

    connected(endpoint, story)


def test_leaving_a_sequence_early_aborts_it_at_the_worker(peer: Callable) -> None:
    endpoint, worker = peer(delay=0.01)

    async def story(client: WorkerClient) -> None:
        stream = client.generate(request("long", max_tokens=10_000))
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
        for _ in range(100):
            if worker.aborted:
                break
            await asyncio.sleep(0.02)
        assert worker.aborted == ["long"]
        assert client.sequences == 0

    connected(endpoint, story)


def test_a_cancelled_reader_leaves_the_channel_usable(peer: Callable) -> None:
    endpoint, _ = peer(delay=0.05)

    async def story(client: WorkerClient) -> None:
        channel = client.submit([request("slow", max_tokens=3)])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(channel.events(), 0.001)
        tokens = 0
        while events := await channel.events():
            tokens += sum(len(event.tokens) for event in events if isinstance(event, Output))
        assert tokens == 3

    connected(endpoint, story)


def test_when_the_worker_has_died_all_are_told_and_new_requests_refused(peer: Callable) -> None:
    endpoint, _ = peer(delay=0.02)

    async def story(client: WorkerClient) -> None:
        async def one(number: int) -> str:
            try:
                async for _ in client.generate(request(str(number), max_tokens=10_000)):
                    pass
            except EngineDown as error:
                return error.message
            return "finished"

        readers = [asyncio.create_task(one(i)) for i in range(50)]
        await asyncio.sleep(0.1)
        started = time.monotonic()
        client.fail_all(EngineDown("gone"))
        assert await asyncio.gather(*readers) == ["gone"] * 50
        assert time.monotonic() - started < 10
        assert not client.ready
        with pytest.raises(EngineDown):
            client.submit([request("x")])
        with pytest.raises(EngineDown):
            await client.admit(admission(4))
        assert client.spec == SPEC  # what is known of the model stays known

    connected(endpoint, story)


def test_a_client_connects_again_to_the_next_worker(peer: Callable) -> None:
    first, old = peer()

    async def story(client: WorkerClient) -> None:
        client.fail_all(EngineDown("gone"))
        old.stopping = True
        second, _ = peer()
        await client.connect(second)
        outputs = [output async for output in client.generate(request("again"))]
        assert sum(len(output.tokens) for output in outputs) == 4

    connected(first, story)


def test_another_protocol_is_refused_in_words(peer: Callable) -> None:
    endpoint, _ = peer(protocol=99)

    async def run() -> None:
        client = WorkerClient()
        try:
            with pytest.raises(InternalError, match="protocol 99"):
                await asyncio.wait_for(client.connect(endpoint), 30)
        finally:
            client.close()

    asyncio.run(run())


def test_connecting_waits_for_a_worker_that_binds_later(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/late.sock"

    async def run() -> None:
        client = WorkerClient()
        connecting = asyncio.create_task(client.connect(endpoint))
        await asyncio.sleep(0.2)
        assert not connecting.done()
        worker = EchoWorker(endpoint)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            assert await asyncio.wait_for(connecting, 30) == SPEC
        finally:
            worker.stopping = True
            thread.join()
            client.close()

    asyncio.run(run())


def test_stats_arrive_by_themselves(peer: Callable) -> None:
    endpoint, _ = peer()

    async def story(client: WorkerClient) -> None:
        for _ in range(200):
            if client.stats is not None:
                break
            await asyncio.sleep(0.02)
        assert client.stats is not None
        assert client.stats.counters["engine_steps_total"] == 1.0
        assert client.silent_seconds < 30

    connected(endpoint, story)


def test_a_thousand_sequences_at_once_all_come_whole(peer: Callable) -> None:
    endpoint, _ = peer()

    async def story(client: WorkerClient) -> None:
        async def one(number: int) -> list[int]:
            found: list[int] = []
            async for output in client.generate(request(str(number), (number % 200 + 20,), 20)):
                found.extend(output.tokens)
            return found

        results = await asyncio.gather(*(one(i) for i in range(1000)))
        assert all(tokens == [i % 200 + 20] * 20 for i, tokens in enumerate(results))

    connected(endpoint, story)


def test_what_the_dead_said_last_is_not_taken_for_the_next_ones(peer: Callable[..., tuple[str, EchoWorker]]) -> None:
    """Its numbers, still on their way when it was given up, would be counted a second time."""

    async def story(client: WorkerClient) -> None:
        asking = asyncio.create_task(client.refresh_stats(30))
        await asyncio.sleep(0)  # the question is out
        client.lost()
        await asyncio.wait_for(asking, 30)  # nobody waits for the answer
        client.forget_stats()
        await asyncio.sleep(0.5)  # it tells them five times a second
        assert client.stats is None

    connected(peer()[0], story)


def test_one_that_dies_as_it_is_reached_is_not_taken_for_up(peer: Callable[..., tuple[str, EchoWorker]]) -> None:
    async def run() -> None:
        client = WorkerClient()
        welcomed = client._welcomed
        client._welcomed = lambda message: (welcomed(message), client.lost())[0]  # type: ignore[method-assign]
        try:
            with pytest.raises(EngineDown):
                await asyncio.wait_for(client.connect(peer()[0]), 30)
            assert not client.ready
        finally:
            client.close()

    asyncio.run(run())
