"""`--replicas`: several engines behind one port, real processes. One that dies loses nothing that had not begun."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.echo_server import EchoServed
from support.served import Served, upload_parts
from support.waiting import wait_for

ROWS = 2
PROMPTS = [f"{letter} tale" for letter in "abcdefghijkl"]
"""None is another: a request that is like one whose worker died with it is a suspect, too."""


@pytest.fixture(scope="module")
def served(
    base: tuple[Any, Path], adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    data = tmp_path_factory.mktemp("replicas") / "data"
    with Served(base[1], data, "--replicas", "2", "--api-processes", "2", "--max-rows", str(ROWS)) as server:
        yield server


class Asker(threading.Thread):
    """Streams one reply; `tokens` that came, and the `error` that ended it."""

    def __init__(self, server: Served, task: str | None, tokens: int, prompt: str = "a") -> None:
        super().__init__()
        self._url = f"{server.url}/v1/generate" + (f"?task={task}" if task else "")
        self._body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
        self._body["return_token_ids"] = True
        self.tokens: list[int] = []
        self.error: str | None = None
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=120) as response:
            for line in response.iter_lines():
                event = line.removeprefix("data: ")
                if not event or event == "[DONE]":
                    continue
                said = json.loads(event)
                if "error" in said:
                    self.error = said["error"]["code"]
                else:
                    self.tokens += [token for choice in said["choices"] for token in choice["token_ids"]]


def test_an_upload_answers_alike_at_every_replica(served: Served, adapters: dict[str, Path]) -> None:
    assert len(served.worker_pids()) == 2
    before = served.samples()
    assert (before["softmux_worker_up"], before["softmux_workers"]) == (2, 2)
    both = {"status": "ready", "replicas": 2, "up": 2}
    wait_for(lambda: served.http.get("/health/ready").json() == both)  # each process, once it has met both
    for name, folder in adapters.items():
        assert served.http.put(f"/v1/adapters/{name}", files=upload_parts(folder)).status_code == 201
    askers = [Asker(served, name, 24) for _ in range(6) for name in [*adapters, None]]
    for asker in askers:
        asker.join()
    assert {asker.error for asker in askers} == {None}
    for number in range(len(adapters) + 1):
        replies = {tuple(asker.tokens) for asker in askers[number :: len(adapters) + 1]}
        assert [len(tokens) for tokens in replies] == [24]  # one reply, whichever engine made it
    counter = "softmux_engine_generated_tokens_total"
    wait_for(lambda: served.samples()[counter] - before[counter] >= 24 * len(askers), 60)  # told twice a second


def test_a_replica_that_is_killed_loses_no_request_that_had_not_begun(served: Served) -> None:
    askers = [Asker(served, None, 200, prompt) for prompt in PROMPTS]
    wait_for(lambda: sum(bool(asker.tokens) for asker in askers) == 2 * ROWS, 60)
    doomed, other = served.worker_pids()
    os.kill(doomed, signal.SIGKILL)
    time.sleep(0.5)
    assert served.http.get("/health/ready").status_code == 200  # the other one serves
    for asker in askers:
        asker.join()
    failed = [asker for asker in askers if asker.error]
    assert {asker.error for asker in failed} == {"engine_down"}
    assert len(failed) <= ROWS
    wait_for(lambda: served.samples()["softmux_worker_up"] == 2, 60)
    assert other in served.worker_pids()
    assert doomed not in served.worker_pids()
    assert served.samples()["softmux_worker_restarts_total"] == 1
    again = [Asker(served, None, 200, prompt) for prompt in PROMPTS]
    for asker in again:
        asker.join()
    assert {asker.error for asker in again} == {None}
    assert all(one.tokens == other.tokens for one, other in zip(askers, again, strict=True) if not one.error)


@pytest.mark.nightly
def test_a_replica_that_is_refused_when_it_comes_back_stays_down_and_the_other_serves(tmp_path: Path) -> None:
    with EchoServed(tmp_path / "data", replicas=2) as server:
        wait_for(lambda: server.http.get("/health/ready").json().get("up") == 2, 60)
        for folder in (server.data, server.data / "replica-1"):  # whichever dies
            folder.mkdir(exist_ok=True)
            (folder / "refuse").touch()
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        wait_for(lambda: "stays down" in server.log.read_text(), 60)
        told = server.http.get("/health/ready")
        assert (told.status_code, told.json()) == (200, {"status": "ready", "replicas": 2, "up": 1})
        said = server.samples()
        assert (said["softmux_worker_up"], said["softmux_workers"]) == (1, 2)
        assert server.http.post("/v1/generate", json={"prompt": [5, 6], "max_tokens": 3}).status_code == 200
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        assert server.process is not None
        assert server.process.wait(60) == 1  # none is left to serve, and none may yet
    assert "this model cannot be served: it echoes" in server.log.read_text().splitlines()[-1]
