"""A real `softmux serve --tensor-parallel 2`: two processes hold the model, and live and die together."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_staying_up_served import Stream, generate, ready

from support.loras import make_lora
from support.models import greedy_reference, load_peft
from support.served import Served, upload_parts
from support.waiting import wait_for

IDS = [11, 40, 7, 203, 66]


@pytest.fixture(scope="module")
def ranks(base: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(base[1], tmp_path_factory.mktemp("ranks") / "data", "--tensor-parallel", "2")
    server.start()
    try:
        server.wait_ready(240)  # two processes load torch, beside whatever else a machine does
        yield server
    finally:
        server.http.close()
        server.end()


def rank_pids(server: Served) -> list[int]:
    """Of the processes beside the worker."""
    command = ["pgrep", "-P", str(server.worker_pid()), "-f", "softmux.worker.rank"]
    return [int(pid) for pid in subprocess.run(command, capture_output=True, text=True).stdout.split()]


def expect(server: Served, task: str | None, reference: Any) -> None:
    tokens, known = greedy_reference(reference, IDS, 8)
    answer = generate(server, task, prompt=IDS, max_tokens=8, ignore_eos=True, return_token_ids=True)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["token_ids"][:known] == tokens[:known]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()


def kill_one_under_load(server: Served, victim: int, number: int = 0) -> float:
    """Seconds from a rank's death until all clients were told; the server serves again when this returns."""
    before = [server.worker_pid(), *rank_pids(server)]
    deaths = server.samples().get('softmux_worker_deaths_total{cause="crash"}', 0)
    streams = [Stream(server, prompt=[i + 5, number + 5], max_tokens=500, ignore_eos=True) for i in range(8)]
    wait_for(lambda: any(stream.events for stream in streams), 60)
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    codes = [stream.code for stream in streams]
    assert "engine_down" in codes
    assert set(codes) <= {"engine_down", None}, "who was not told has had all"
    told = time.monotonic() - killed
    wait_for(lambda: not any(map(alive, before)), 20)
    wait_for(lambda: ready(server), 240)
    assert server.samples()['softmux_worker_deaths_total{cause="crash"}'] == deaths + 1
    return told


def test_two_processes_serve_uploads_and_come_back_when_one_is_killed(
    base: tuple[Any, Path], adapters: dict[str, Path], ranks: Served, tmp_path: Path
) -> None:
    tuned = make_lora(base[0], tmp_path / "lora", 3, target_modules="all-linear")
    references = {task: load_peft(base[0], folder) for task, folder in adapters.items()} | {"lora": tuned}
    for task, folder in (adapters | {"lora": tmp_path / "lora"}).items():
        answer = ranks.http.put(f"/v1/adapters/{task}", files=upload_parts(folder))
        assert answer.status_code == 201, answer.text
        assert answer.json()["warnings"] == []
    assert ranks.http.get("/v1/model").json()["layers"] == 2
    assert len(rank_pids(ranks)) == 1
    for task, reference in references.items():
        expect(ranks, task, reference)
    expect(ranks, None, base[0])
    kill_one_under_load(ranks, rank_pids(ranks)[0])
    for task, reference in references.items():
        expect(ranks, task, reference)


@pytest.mark.nightly
def test_ten_kills_are_told_within_two_seconds_and_served_again(base: tuple[Any, Path], ranks: Served) -> None:
    for number in range(10):
        victim = ranks.worker_pid() if number % 3 == 2 else rank_pids(ranks)[0]
        told = kill_one_under_load(ranks, victim, number)  # other prompts each time: what often dies is quarantined
        assert told < 2, f"kill {number}"
        expect(ranks, None, base[0])


@pytest.mark.nightly
def test_two_hundred_uploads_under_load_are_whole_at_their_first_use(
    base: tuple[Any, Path], ranks: Served, tmp_path: Path
) -> None:
    """Each is used at once, and must answer as its own version and no other."""
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            assert generate(ranks, prompt=[5, 9, 12], max_tokens=60, ignore_eos=True).status_code == 200

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    mismatches = 0
    try:
        for number in range(200):
            folder = tmp_path / f"lora-{number}"
            kinds: list[Any] = ["all-linear", ["o_proj", "down_proj"], ["q_proj", "v_proj"]]
            reference = make_lora(base[0], folder, number, r=1 + number % 7, target_modules=kinds[number % 3])
            answer = ranks.http.put("/v1/adapters/busy", files=upload_parts(folder))
            assert answer.status_code == 201, answer.text
            tokens, known = greedy_reference(reference, IDS, 4)
            said = generate(ranks, "busy", prompt=IDS, max_tokens=4, ignore_eos=True, return_token_ids=True).json()
            assert said["adapter"]["digest"] == answer.json()["digest"]
            mismatches += said["choices"][0]["token_ids"][:known] != tokens[:known]
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert mismatches == 0
