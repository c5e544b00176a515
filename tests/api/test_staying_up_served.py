"""A real server under faults of its engine: hung, felled by a request, given what is not finite, asked too much."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from support.echo_server import EchoServed
from support.learned import prompt_files
from support.served import Served
from support.waiting import wait_for

HANG_SECONDS = 2


def ready(server: Served) -> bool:
    return server.http.get("/health/ready").status_code == 200


def changed(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after[name] - before.get(name, 0)


def generate(server: Served, task: str | None = None, **body: Any) -> httpx.Response:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        return client.post("/v1/generate", params={"task": task} if task else {}, json=body)


class Stream(threading.Thread):
    """Reads a streamed reply; `events` are its data lines, `status` what it was answered with. With the first of them
    it stops the process `stops` (SIGSTOP)."""

    def __init__(self, server: Served, task: str | None = None, stops: int | None = None, **body: Any) -> None:
        super().__init__()
        self._stops = stops
        self.events: list[str] = []
        self.status = 0
        self._url = f"{server.url}/v1/generate" + (f"?task={task}" if task else "")
        self._body = {**body, "stream": True}
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=60) as response:
            self.status = response.status_code
            for line in response.iter_lines():
                if line:
                    if self._stops is not None and not self.events:
                        os.kill(self._stops, signal.SIGSTOP)
                    self.events.append(line.removeprefix("data: "))

    @property
    def code(self) -> str | None:
        """The error that ended it."""
        self.join()
        last = json.loads(self.events[-2 if self.status == 200 else -1])
        return last["error"]["code"] if "error" in last else None


@pytest.fixture(scope="module")
def sturdy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Its worker has no model: the token 255 fells it, 254 makes it hang."""
    folder = tmp_path_factory.mktemp("sturdy")
    with EchoServed(folder / "data", hang_seconds=HANG_SECONDS, api_processes=2) as server:
        files = prompt_files(torch.randn((4, 16), generator=torch.Generator().manual_seed(0)))
        parts = {name: (name, data) for name, data in files.items()}
        assert server.http.put("/v1/adapters/echoed", files=parts).status_code == 201
        yield server


def test_a_stopped_worker_is_told_and_replaced(base: tuple[Any, Path], tmp_path: Path) -> None:
    with Served(base[1], tmp_path / "data", "--hang-seconds", str(HANG_SECONDS)) as server:
        worker = server.worker_pid()
        stream = Stream(server, stops=worker, prompt="a stop", max_tokens=480, ignore_eos=True)
        assert stream.code == "engine_down"
        wait_for(lambda: ready(server), 60)
        assert server.worker_pid() != worker
        assert generate(server, prompt="a stop", max_tokens=2).status_code == 200
        assert server.samples()['softmux_worker_deaths_total{cause="hang"}'] == 1


def fell(server: Served, poison: dict[str, Any], others: list[dict[str, Any]], task: str | None = None) -> list[Any]:
    """Runs `others`, and the poison among them; what became of it and of them, once the engine is back."""
    restarts = server.samples()["softmux_worker_restarts_total"]
    streams = [Stream(server, **body) for body in others]
    wait_for(lambda: all(stream.events for stream in streams), 30)
    assert [stream.status for stream in streams] == [200] * len(others)
    answer = generate(server, task, **poison)
    codes = [answer.json()["error"]["code"], *(stream.code for stream in streams)]
    wait_for(lambda: server.samples()["softmux_worker_restarts_total"] > restarts, 60)
    wait_for(lambda: ready(server), 60)
    return codes


@pytest.mark.parametrize("fatal", [255, 254])
def test_what_was_in_two_deaths_is_quarantined_and_its_neighbours_are_not(sturdy: Served, fatal: int) -> None:
    before = sturdy.samples()
    poison = {"prompt": [fatal, 7], "max_tokens": 5}
    neighbours = [{"prompt": [fatal - 200, i], "max_tokens": 480} for i in range(3)]
    fresh = {"prompt": [fatal - 200, 9], "max_tokens": 480}
    assert fell(sturdy, poison, neighbours) == ["engine_down"] * 4
    assert fell(sturdy, poison, [fresh]) == ["quarantined", "engine_down"]
    for _ in range(4):  # whichever API process is asked
        refused = generate(sturdy, **poison)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "quarantined")
    after = sturdy.samples()
    cause = {255: "crash", 254: "hang"}[fatal]
    assert changed(before, after, f'softmux_worker_deaths_total{{cause="{cause}"}}') == 2
    assert changed(before, after, 'softmux_quarantined{what="requests"}') == 1
    assert changed(before, after, 'softmux_quarantined{what="suspects"}') == 4
    assert changed(before, after, 'softmux_requests_refused_total{reason="quarantined_request"}') == 5
    streams = [Stream(sturdy, **body) for body in (*neighbours, fresh)]
    assert [stream.code for stream in streams] == [None] * 4
    wait_for(lambda: changed(before, sturdy.samples(), 'softmux_quarantined{what="suspects"}') <= 0, 30)
    assert generate(sturdy, prompt=[7, 8], max_tokens=5).status_code == 200


def test_a_version_whose_requests_all_fell_the_engine_is_quarantined_until_it_is_activated(sturdy: Served) -> None:
    innocent = {"prompt": [33, 34], "max_tokens": 480}
    for number in range(3):
        codes = fell(sturdy, {"prompt": [255, 40 + number]}, [innocent] if number == 0 else [], "echoed")
        assert codes[0] == ("engine_down" if number < 2 else "quarantined")
    refused = generate(sturdy, "echoed", prompt=[1, 2], max_tokens=2)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "quarantined")
    assert "echoed@1" in refused.json()["error"]["message"]
    lines = [json.loads(text) for text in sturdy.log.read_text("utf-8").splitlines() if text.startswith("{")]
    felling = [said for said in lines if said["event"].startswith("a request was in the step") and said["task"]]
    assert [(said["task"], said["version"]) for said in felling] == [("echoed", 1)] * 3
    answered = {said["request_id"]: said["code"] for said in lines if said["event"] == "answered" and "code" in said}
    assert [answered[said["request_id"]] for said in felling] == ["engine_down", "engine_down", "quarantined"]
    assert sturdy.log.read_text("utf-8").count("the worker is ready again, after restart") >= 3
    assert generate(sturdy, **innocent).status_code == 200
    assert sturdy.http.post("/v1/adapters/echoed/activate", json={"version": 1}).status_code == 200
    for _ in range(4):
        assert generate(sturdy, "echoed", prompt=[1, 2], max_tokens=2).status_code == 200


def test_a_deadline_ends_a_request_by_field_or_header_before_or_within_its_answer(sturdy: Served) -> None:
    long = {"prompt": [5, 6], "max_tokens": 480}
    late = generate(sturdy, **long, timeout=0.2)
    assert (late.status_code, late.json()["error"]["code"]) == (408, "deadline_exceeded")
    with httpx.Client(base_url=sturdy.url, headers={"x-request-timeout": "0.2"}, timeout=60) as client:
        assert client.post("/v1/generate", json=long).status_code == 408
        assert client.post("/v1/generate", json={**long, "timeout": 60}).status_code == 408  # the shorter counts
        assert client.post("/v1/generate", json={**long, "max_tokens": 2}).status_code == 200
    stream = Stream(sturdy, **long, timeout=0.5)
    assert (stream.code, stream.status) == ("deadline_exceeded", 200)
    assert stream.events[-1] == "[DONE]"
    for wrong in ("soon", "0", "-1", "nan", "1e9"):
        refused = sturdy.http.post("/v1/generate", json=long, headers={"x-request-timeout": wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "x-request-timeout")
    for wrong in (0, -1, 1e9, "1"):
        refused = generate(sturdy, **long, timeout=wrong)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "timeout")
    wait_for(lambda: sturdy.samples()["softmux_num_requests_running"] == 0, 30)
