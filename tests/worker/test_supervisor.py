from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from softmux.errors import EngineDown, SelfTestFailed
from softmux.recorder import FlightRecorder, Running
from softmux.types import SamplingParams
from softmux.worker import supervisor as supervisor_module
from softmux.worker.client import WorkerClient
from softmux.worker.config import WorkerConfig
from softmux.worker.messages import Generate
from softmux.worker.supervisor import Death, Supervisor
from support import echo_worker
from support.waiting import eventually

COMMAND = (sys.executable, echo_worker.__file__)


def supervisor(
    client: WorkerClient,
    folder: Path,
    model: str = "echo",
    *,
    tell: Callable[[bool], None] = lambda up: None,
    bearable: Callable[[], bool] = lambda: False,
    died: Callable[[Death], None] = lambda death: None,
) -> Supervisor:
    config = WorkerConfig(
        endpoint=f"ipc://{folder}/w.sock",
        registry_url="unix:///nowhere",
        blob_url=None,
        data=str(folder),
        settings={"model": model},
    )
    return Supervisor(client, config, command=COMMAND, tell=tell, bearable=bearable, died=died)


def supervised(folder: Path, story: Callable[[WorkerClient, Supervisor], Awaitable[None]]) -> None:
    async def run() -> None:
        client = WorkerClient()
        watched = supervisor(client, folder)
        running = asyncio.create_task(watched.run())
        try:
            await asyncio.wait_for(watched.ready(), 60)
            await asyncio.wait_for(story(client, watched), 200)
        finally:
            await watched.stop()
            await running
            client.close()

    asyncio.run(run())


def generate(name: str, tokens: tuple[int, ...] = (5,), max_tokens: int = 3) -> Generate:
    return Generate(id=name, tenant="default", tokens=tokens, sampling=SamplingParams(max_tokens=max_tokens))


async def answered(client: WorkerClient, request: Generate) -> int:
    return sum([len(output.tokens) async for output in client.generate(request)])


async def served_again(client: WorkerClient, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not client.ready:
        assert time.monotonic() < limit, "the worker did not come back"
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_worker_is_told_at_once_and_served_again_without_help(tmp_path: Path) -> None:
    async def story(client: WorkerClient, watched: Supervisor) -> None:
        first = watched.pid
        assert first is not None
        assert await answered(client, generate("before")) == 3
        running = [asyncio.create_task(answered(client, generate(str(i), max_tokens=100_000))) for i in range(20)]
        await asyncio.sleep(0.2)
        os.kill(first, signal.SIGKILL)
        killed = time.monotonic()
        results = await asyncio.gather(*running, return_exceptions=True)
        assert time.monotonic() - killed < 30
        assert all(isinstance(result, EngineDown) and result.retry_after for result in results)
        await served_again(client)
        assert watched.restarts == 1
        assert watched.pid != first
        assert await answered(client, generate("after")) == 3

    supervised(tmp_path, story)


def test_each_birth_and_each_death_is_told_once(tmp_path: Path) -> None:
    told: list[bool] = []

    async def run() -> None:
        client = WorkerClient()
        watched = supervisor(client, tmp_path, tell=told.append)
        running = asyncio.create_task(watched.run())
        await asyncio.wait_for(watched.ready(), 60)
        with pytest.raises(EngineDown):
            await answered(client, generate("poison", tokens=(255,)))
        await served_again(client)
        assert told == [True, False, True]
        await watched.stop()
        await running
        client.close()

    asyncio.run(run())
    assert told == [True, False, True, False]


def test_a_worker_that_dies_of_a_request_comes_back(tmp_path: Path) -> None:
    async def story(client: WorkerClient, watched: Supervisor) -> None:
        with pytest.raises(EngineDown):
            await answered(client, generate("poison", tokens=(255,)))
        await served_again(client)
        assert await answered(client, generate("after")) == 3

    supervised(tmp_path, story)


def test_stop_ends_the_worker(tmp_path: Path) -> None:
    pids: list[int] = []

    async def story(client: WorkerClient, watched: Supervisor) -> None:
        assert watched.pid is not None
        pids.append(watched.pid)

    supervised(tmp_path, story)
    assert not alive(pids[0])


def test_a_worker_that_refuses_is_not_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def run() -> None:
        client = WorkerClient()
        watched = supervisor(client, tmp_path, "refuse")
        with pytest.raises(SelfTestFailed, match="cannot be served: it echoes"):
            await asyncio.wait_for(watched.run(), 60)
        assert watched.restarts == 0
        client.close()

    asyncio.run(run())
    assert "cannot be served" in capsys.readouterr().err  # its stderr goes through


@pytest.mark.parametrize("bearable", [False, True])
def test_one_that_is_refused_when_it_is_started_again_stays_down_where_the_server_can_do_without_it(
    bearable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor_module, "_REFUSED_PAUSE", 0.01)
    asked: list[bool] = []
    deaths: list[Death] = []

    def answer() -> bool:
        asked.append(bearable)
        if len(asked) == 3:
            (tmp_path / "refuse").unlink()
        return bearable

    async def run() -> None:
        client = WorkerClient()
        watched = supervisor(client, tmp_path, bearable=answer, died=deaths.append)
        running = asyncio.create_task(watched.run())
        await asyncio.wait_for(watched.ready(), 60)
        (tmp_path / "refuse").touch()
        assert watched.pid is not None
        os.kill(watched.pid, signal.SIGKILL)
        if bearable:
            await eventually(lambda: len(asked) == 3)
            await served_again(client, 60)
            assert await answered(client, generate("after")) == 3
            await watched.stop()
            await running
        else:
            with pytest.raises(SelfTestFailed, match="cannot be served"):
                await asyncio.wait_for(running, 60)
        assert watched.restarts == 1  # the others were tries of one that is refused
        client.close()

    asyncio.run(run())
    assert [death.cause for death in deaths] == ["crash", *(["refused"] * (3 if bearable else 1))]
    assert [death.killed for death in deaths] == [True, *([False] * (len(deaths) - 1))]
    told = [record.getMessage() for record in caplog.records if "stays down: this model cannot" in record.getMessage()]
    assert len(told) == (3 if bearable else 0)
    assert len(set(told)) == len(told)  # each pause is longer
    assert all("`softmux doctor`" in line for line in told)


def test_a_worker_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    async def run() -> None:
        client = WorkerClient()
        watched = supervisor(client, tmp_path, "crash")
        with pytest.raises(SelfTestFailed, match="before it was ready, last with code 1"):
            await asyncio.wait_for(watched.run(), 60)
        assert watched.restarts == 2
        client.close()

    asyncio.run(run())


def test_a_worker_that_is_still_loading_can_be_stopped(tmp_path: Path) -> None:
    async def run() -> None:
        client = WorkerClient()
        watched = supervisor(client, tmp_path, "deaf")
        running = asyncio.create_task(watched.run())
        while watched.pid is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        pid = watched.pid
        with pytest.raises(EngineDown, match="starting"):
            client.submit([generate("early")])
        await asyncio.wait_for(watched.stop(), 60)
        await running
        assert not alive(pid)
        client.close()

    asyncio.run(run())


def test_told_to_stop_while_a_worker_is_being_started_it_ends(tmp_path: Path) -> None:
    async def run() -> None:
        client = WorkerClient()
        watched = supervisor(client, tmp_path)
        running = asyncio.create_task(watched.run())
        await asyncio.sleep(0)  # it has asked for the process, which is not there yet
        assert watched.pid is None
        await watched.stop()
        await asyncio.wait_for(running, 60)
        assert watched.pid is not None
        assert not alive(watched.pid)
        client.close()

    asyncio.run(run())


def test_told_to_stop_between_two_workers_it_does_not_wait_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_FIRST_PAUSE", 60.0)

    async def story(client: WorkerClient, watched: Supervisor) -> None:
        with pytest.raises(EngineDown):
            await answered(client, generate("poison", tokens=(255,)))
        await asyncio.sleep(0.1)

    began = time.monotonic()
    supervised(tmp_path, story)
    assert time.monotonic() - began < 30


def marked(name: str, token: int, content: int, version: int = 0) -> Generate:
    return Generate(
        id=name, tenant="default", tokens=(token,), sampling=SamplingParams(), content=content, version=version
    )


def watched_over(
    folder: Path, story: Callable[[WorkerClient, Supervisor, list[Death]], Awaitable[None]], model: str = "echo"
) -> None:
    """A supervisor with a flight recorder, that lets a worker be silent for a second, and 3 s while it loads."""

    async def run() -> None:
        client, deaths = WorkerClient(), list[Death]()
        path = folder / "recorder"
        config = WorkerConfig(
            endpoint=f"ipc://{folder}/w.sock",
            registry_url="unix:///nowhere",
            blob_url=None,
            data=str(folder),
            settings={"model": model},
            recorder=str(path),
        )
        watched = Supervisor(
            client,
            config,
            command=COMMAND,
            died=deaths.append,
            recorder=FlightRecorder(echo_worker.ROWS, path),
            hang_seconds=1.0,
            load_seconds=3.0,
        )
        running = asyncio.create_task(watched.run())
        try:
            await asyncio.wait_for(story(client, watched, deaths), 200)
        finally:
            await watched.stop()
            await asyncio.wait([running])
            client.close()

    asyncio.run(run())


def test_a_death_tells_whose_rows_were_in_the_step(tmp_path: Path) -> None:
    async def story(client: WorkerClient, watched: Supervisor, deaths: list[Death]) -> None:
        await asyncio.wait_for(watched.ready(), 60)
        assert await answered(client, generate("fine")) == 3
        with pytest.raises(EngineDown):
            await answered(client, marked("poison", 255, content=7, version=9))
        await served_again(client)
        assert deaths == [Death("crash", Running(frozenset({7}), frozenset({9})))]

    watched_over(tmp_path, story)


def test_a_worker_that_hangs_is_told_and_replaced_and_an_idle_or_busy_one_is_left_alone(tmp_path: Path) -> None:
    async def story(client: WorkerClient, watched: Supervisor, deaths: list[Death]) -> None:
        await asyncio.wait_for(watched.ready(), 60)
        await asyncio.sleep(2.0)  # idle for longer than a hang may last
        assert await answered(client, generate("long", max_tokens=500)) == 500  # and busy for longer
        assert (watched.restarts, deaths) == (0, [])
        with pytest.raises(EngineDown):
            await answered(client, marked("endless", 254, content=7))
        await served_again(client)
        assert deaths == [Death("hang", Running(frozenset({7}), frozenset()))]
        stopped = watched.pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        running = asyncio.create_task(answered(client, generate("unlucky")))
        with pytest.raises(EngineDown):
            await running
        await served_again(client)
        assert [death.cause for death in deaths] == ["hang", "hang"]
        assert not alive(stopped)
        assert await answered(client, generate("after")) == 3

    watched_over(tmp_path, story)


def test_a_worker_may_take_longer_to_load_than_a_step_but_not_for_ever(tmp_path: Path) -> None:
    async def story(client: WorkerClient, watched: Supervisor, deaths: list[Death]) -> None:
        began = time.monotonic()
        while not deaths:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert time.monotonic() - began > 3
        assert deaths[0].cause == "hang"

    watched_over(tmp_path, story, model="deaf")
