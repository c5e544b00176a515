"""The server's book of its API processes: which of them are handed connections, and what all are told."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from softmux.api import processes as processes_module
from softmux.api.control import ApiConfig, State
from softmux.api.processes import ApiProcesses
from support import slow_api_process
from support.waiting import eventually

CONFIG = ApiConfig(settings={}, endpoints=(), registry_url="", blob_url=None, tokenizer="")


def last(folder: Path, number: int) -> State:
    lines = (folder / f"{number}.states").read_bytes().splitlines()
    return msgspec.json.decode(lines[-1], type=State) if lines else State()


def test_the_worker_is_everywhere_once_every_process_has_reached_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW_API_FOLDER", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path[1:]))

    async def run() -> None:
        processes = ApiProcesses(CONFIG, 2, command=(sys.executable, slow_api_process.__file__))
        running = asyncio.create_task(processes.run())
        try:
            await asyncio.wait_for(processes.ready(), 30)
            processes.tell(lambda state: msgspec.structs.replace(state, workers=(0,), started=True))
            (tmp_path / "0").touch()
            await eventually(lambda: last(tmp_path, 1).workers == (0,))
            await asyncio.sleep(0.1)
            assert not last(tmp_path, 0).everywhere
            (tmp_path / "1").touch()
            await eventually(lambda: last(tmp_path, 0).everywhere and last(tmp_path, 1).everywhere)
            processes.tell(lambda state: msgspec.structs.replace(state, workers=(-1,)))
            await eventually(lambda: last(tmp_path, 0).workers == (-1,))
            assert not last(tmp_path, 0).everywhere
            processes.tell(lambda state: msgspec.structs.replace(state, workers=(1,), restarts=1))
            await eventually(lambda: last(tmp_path, 0).workers == (1,))
            assert not last(tmp_path, 0).everywhere  # they have reached the one before
        finally:
            await processes.end()
            await running

    asyncio.run(run())


def test_a_process_that_starts_may_be_silent_for_longer_than_one_that_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine, importing alone takes longer than a process that serves may be silent."""
    monkeypatch.setenv("SLOW_API_FOLDER", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path[1:]))
    monkeypatch.setattr(processes_module, "_PULSE_SECONDS", 0.01)
    monkeypatch.setattr(processes_module, "_HANGING_SECONDS", 0.2)
    (tmp_path / "starting").touch()

    async def run() -> None:
        processes = ApiProcesses(CONFIG, 1, command=(sys.executable, slow_api_process.__file__))
        running = asyncio.create_task(processes.run())
        try:
            await eventually((tmp_path / "0.states").exists)
            await asyncio.sleep(1)
            assert not (tmp_path / "1.states").exists(), "it was killed, and another started"
            (tmp_path / "starting").unlink()
            await asyncio.wait_for(processes.ready(), 30)
            await eventually((tmp_path / "1.states").exists)  # it serves, and answers nothing: now it hangs
        finally:
            await processes.end()
            await running

    asyncio.run(run())


def test_a_replica_that_comes_back_beside_others_leaves_nobody_unready() -> None:
    process = processes_module._Process(None, None, None)  # type: ignore[arg-type]
    process.reached = {0: 2, 1: 0}
    assert process.reaches((2, 0))
    assert process.reaches((2, 1))  # the second is up again, and is being met
    assert not process.reaches((3, -1))  # it has met the first's forerunner only
    assert process.reaches((-1, -1))
