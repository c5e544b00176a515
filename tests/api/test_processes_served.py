"""Several API processes behind one port: what one knows all know, and what becomes of one concerns no other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.served import Served, upload_parts
from support.waiting import wait_for


def api_pids(server: Served) -> list[int]:
    assert server.process is not None
    command = ["pgrep", "-P", str(server.process.pid), "-f", "softmux.api.process"]
    return sorted(int(pid) for pid in subprocess.run(command, capture_output=True, text=True).stdout.split())


class Caller:
    """A client with one connection of its own."""

    def __init__(self, server: Served) -> None:
        self.server = server
        self.http = httpx.Client(base_url=server.url, timeout=60)
        self.events: list[str] = []

    def process(self) -> int:
        """The API process that holds the connection, by what the kernel says."""
        with self.http.stream("GET", "/health/live") as response:
            mine = response.extensions["network_stream"].get_extra_info("socket").getsockname()[1]
            response.read()
        wanted = f":{self.server.port:04X}", f":{mine:04X}"
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, remote, *_, inode = line.split()[:10]
            if (local[-5:], remote[-5:]) == wanted:
                for pid in api_pids(self.server):
                    for link in Path(f"/proc/{pid}/fd").iterdir():
                        if os.readlink(link) == f"socket:[{inode}]":
                            return pid
        raise AssertionError("no process holds the connection")

    def generate(self, task: str | None = None, **body: Any) -> httpx.Response:
        return self.http.post("/v1/generate", params={"task": task} if task else {}, json=body)

    def stream(self, tokens: int) -> threading.Thread:
        """Reads a streamed reply in a thread, into `events`; what breaks it is the last of them."""

        def read() -> None:
            body = {"prompt": "a", "max_tokens": tokens, "ignore_eos": True, "stream": True}
            try:
                with self.http.stream("POST", "/v1/generate", json=body) as response:
                    self.events += [line.removeprefix("data: ") for line in response.iter_lines() if line]
            except httpx.TransportError as error:
                self.events.append(type(error).__name__)

        thread = threading.Thread(target=read)
        thread.start()
        return thread

    def whole(self, tokens: int) -> bool:
        return self.events[-1] == "[DONE]" and json.loads(self.events[-2])["usage"]["completion_tokens"] == tokens


@pytest.fixture(scope="module")
def pair(
    base: tuple[Any, Path], adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    data = tmp_path_factory.mktemp("pair") / "data"
    with Served(base[1], data, "--api-processes", "2") as server:
        parts = upload_parts(adapters["prompt-tuning"])
        assert server.http.put("/v1/adapters/prompt-tuning", files=parts).status_code == 201
        yield server


@pytest.fixture
def callers(pair: Served) -> Iterator[tuple[Caller, Caller]]:
    """Two clients whose connections different processes hold."""
    one, other = Caller(pair), Caller(pair)
    assert one.process() != other.process()
    yield one, other
    one.http.close()
    other.http.close()


def test_what_is_done_through_one_process_holds_in_the_other_at_once(
    callers: tuple[Caller, Caller], adapters: dict[str, Path]
) -> None:
    one, other = callers
    for round_ in range(5):
        name = f"new-{round_}"
        first = one.http.put(f"/v1/adapters/{name}", files=upload_parts(adapters["prompt-tuning"]))
        assert first.status_code == 201
        assert other.generate(name, prompt="a", max_tokens=1).json()["adapter"]["version"] == 1
        assert other.http.put(f"/v1/adapters/{name}", files=upload_parts(adapters["prefix-tuning"])).status_code == 201
        assert one.generate(name, prompt="a", max_tokens=1).json()["adapter"]["version"] == 2
        assert one.http.post(f"/v1/adapters/{name}/activate", json={"version": 1}).status_code == 200
        assert other.generate(name, prompt="a", max_tokens=1).json()["adapter"]["digest"] == first.json()["digest"]
        assert other.http.delete(f"/v1/adapters/{name}").status_code == 204
        assert one.generate(name, prompt="a", max_tokens=1).status_code == 404


def test_a_process_may_hold_as_many_connections_as_the_system_lets_it(pair: Served) -> None:
    for pid in api_pids(pair):
        limits = Path(f"/proc/{pid}/limits").read_text()
        [soft, hard] = next(line for line in limits.splitlines() if line.startswith("Max open files")).split()[3:5]
        assert int(soft) == (65536 if hard == "unlimited" else max(int(soft), min(65536, int(hard))))


def test_metrics_are_those_of_all_processes_whichever_is_asked(pair: Served, callers: tuple[Caller, Caller]) -> None:
    series = 'softmux_generation_tokens_total{task="prompt-tuning"}'
    before = pair.samples().get(series, 0.0)
    for caller, tokens in zip(callers, (3, 4), strict=True):
        assert caller.generate("prompt-tuning", prompt="a", max_tokens=tokens, ignore_eos=True).status_code == 200
    seen = [caller.http.get("/metrics").text for caller in callers]
    assert [f"{series} {before + 7}" in text for text in seen] == [True, True]
    for text in seen:
        assert text.count("\nsoftmux_worker_up ") == 1
        names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
        assert len(names) == len(set(names))


def test_a_killed_process_takes_its_own_requests_along_and_comes_back(
    pair: Served, callers: tuple[Caller, Caller]
) -> None:
    one, other = callers
    doomed = one.process()
    one.generate(prompt="a", max_tokens=1)
    time.sleep(1.5)  # the server takes down each second what has been counted
    before = pair.samples()['softmux_requests_total{outcome="ok",task="(base)"}']
    readers = [caller.stream(480) for caller in callers]
    wait_for(lambda: pair.samples()["softmux_num_requests_running"] == 2, 30)
    os.kill(doomed, signal.SIGKILL)
    for reader in readers:
        reader.join()
    assert one.events[-1].endswith("Error")
    assert other.whole(480)
    wait_for(lambda: len(api_pids(pair)) == 2, 30)
    assert doomed not in api_pids(pair)
    wait_for(lambda: pair.samples()["softmux_num_requests_running"] == 0, 30)
    wait_for(lambda: len({Caller(pair).process() for _ in range(2)}) == 2, 30)
    assert pair.samples()['softmux_requests_total{outcome="ok",task="(base)"}'] == before + 1
    assert pair.http.get("/health/ready").status_code == 200


def test_a_process_told_to_end_is_replaced_without_a_lost_request(pair: Served, callers: tuple[Caller, Caller]) -> None:
    one, _ = callers
    leaving = one.process()
    statuses: list[int | str] = []
    going_on = True

    def ask() -> None:
        kept = httpx.Client(base_url=pair.url, timeout=60)
        while going_on:
            for client in (kept, httpx):
                try:
                    body = {"prompt": "a", "max_tokens": 2}
                    url = "/v1/generate" if client is kept else f"{pair.url}/v1/generate"
                    statuses.append(client.post(url, json=body).status_code)  # type: ignore[attr-defined]
                except httpx.TransportError as error:
                    statuses.append(repr(error))

    reader = one.stream(480)
    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    wait_for(lambda: len(statuses) > 8, 30)
    os.kill(leaving, signal.SIGTERM)
    wait_for(lambda: len(api_pids(pair)) == 3, 30)  # its heir is there before it is gone
    reader.join()
    wait_for(lambda: leaving not in api_pids(pair), 30)
    going_on = False
    for thread in asking:
        thread.join()
    assert one.whole(480)
    assert set(statuses) == {200}
    assert len(api_pids(pair)) == 2


def test_a_signal_to_the_server_drains_all_of_them(base: tuple[Any, Path], tmp_path: Path) -> None:
    with Served(base[1], tmp_path / "data", "--api-processes", "2") as server:
        callers = [Caller(server), Caller(server)]
        processes = [caller.process() for caller in callers]
        assert sorted(processes) == api_pids(server)
        idle = [Caller(server), Caller(server)]
        assert sorted(caller.process() for caller in idle) == api_pids(server)
        readers = [caller.stream(480) for caller in callers]
        wait_for(lambda: server.samples()["softmux_num_requests_running"] == 2, 30)
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{server.url}/health/ready").status_code == 503, 30)
        assert {httpx.get(f"{server.url}/health/ready").status_code for _ in range(4)} == {503}
        assert [caller.http.get("/v1/whoami").headers.get("connection") for caller in idle] == ["close", "close"]
        for reader in readers:
            reader.join()
        assert all(caller.whole(480) for caller in callers)
        assert server.process.wait(20) == 0
        for pid in processes:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
