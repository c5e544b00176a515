"""`doctor`, `top`, completion, and the help that errors give."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from softmux.cli import app
from softmux.doctor import host
from softmux.settings import Settings
from support.redis_server import RedisServer
from support.served import Served


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


def checks(result: Result) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_a_machine_that_can_serve_is_well(base: tuple[Any, Path], tmp_path: Path) -> None:
    options = ("--model", base[1], "--data", tmp_path / "data", "--port", free_port(), "--device", "cpu")
    well = run("doctor", *options, "--json")
    assert well.exit_code == 0, well.output
    found = checks(well)
    assert {"packages", "model", "weights", "tokenizer", "gpu", "redis", "port", "data", "descriptors"} <= set(found)
    assert all(check["state"] != "fail" for check in found.values())
    assert all(bool(check["advice"]) == (check["state"] != "ok") for check in found.values())
    parameters = sum(parameter.numel() for parameter in base[0].parameters())
    assert f"{parameters:,} numbers" in found["weights"]["found"]
    assert not (tmp_path / "data").exists()


def test_a_misspelt_variable_and_a_missing_folder_of_adapters_are_told(tmp_path: Path) -> None:
    env = {"SOFTMUX_MODLE": "x", "SOFTMUX_ADAPTERS": str(tmp_path / "none")}
    options = ("doctor", "--model", tmp_path, "--data", tmp_path, "--port", free_port(), "--device", "cpu", "--json")
    found = checks(run(*options, env=env))
    assert found["variables"]["state"] == "warn"
    assert "SOFTMUX_MODLE" in found["variables"]["found"]
    assert "SOFTMUX_MODEL" in found["variables"]["advice"]
    assert found["adapters"]["state"] == "fail"
    assert "No such file" in found["adapters"]["found"]
    found = checks(run(*options, env={"SOFTMUX_ADAPTERS": str(tmp_path)}))
    assert (found["variables"]["state"], found["adapters"]["state"]) == ("ok", "ok")


def test_what_is_broken_is_told_with_what_to_do(base: tuple[Any, Path], server: Served, tmp_path: Path) -> None:
    broken = shutil.copytree(base[1], tmp_path / "broken")
    weights = broken / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)
    (tmp_path / "file").write_text("x")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ill = run("doctor", "--model", broken, "--data", tmp_path / "file", "--port", port, "--json", "--device", "cpu",
                  "--redis", "redis://127.0.0.1:9/0")  # fmt: skip
    assert ill.exit_code == 1
    found = checks(ill)
    assert {name: found[name]["state"] for name in ("weights", "data", "port", "redis")} == {
        "weights": "fail", "data": "fail", "port": "fail", "redis": "fail",
    }  # fmt: skip
    assert "and says" in found["weights"]["found"]
    none = run("doctor", "--model", tmp_path / "none", "--data", tmp_path, "--port", str(server.port))
    assert none.exit_code == 1
    assert "✗ model" in none.output
    assert "a server answers" in none.output
    assert "→ check --model" in none.output
    if "--device cuda, and no GPU" not in run("doctor", "--device", "cuda", "--port", free_port()).output:
        assert shutil.which("nvidia-smi")


@pytest.mark.parametrize(
    "url", ["redis://:pa/secret@127.0.0.1", "redis://:pa#secret@127.0.0.1", "redis://:secret@h/0?foo=1"]
)
def test_an_address_that_is_none_is_told_without_what_may_be_its_password(url: str, tmp_path: Path) -> None:
    told = run("doctor", "--redis", url, "--data", tmp_path, "--port", free_port(), "--json", "--device", "cpu")
    assert checks(told)["redis"]["state"] == "fail"
    assert "write redis://HOST:PORT" in checks(told)["redis"]["advice"]
    assert "secret" not in told.output


def test_a_redis_that_would_lose_or_evict_tasks_is_told(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as redis:
        options = ("doctor", "--redis", redis.url, "--port", free_port(), "--json")
        client = redis.client()
        client.config_set("appendonly", "no")
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        found = checks(run(*options))
        assert (found["redis"]["state"], found["writing"]["state"]) == ("ok", "ok")
        assert (found["persistence"]["state"], found["eviction"]["state"]) == ("warn", "fail")
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")
        client.config_set("appendfsync", "everysec")
        assert "appendfsync everysec" in checks(run(*options))["persistence"]["found"]
        client.config_set("appendfsync", "always")
        found = checks(run(*options))
        assert (found["persistence"]["state"], found["eviction"]["state"]) == ("ok", "ok")
        assert client.keys("softmux:doctor:*") == []


def test_few_descriptors_and_a_full_disk_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host.resource, "getrlimit", lambda what: (256, 524288))
    [few] = host.descriptors(Settings())
    assert (few.state, "ulimit -n 65536" in few.advice) == ("fail", True)
    monkeypatch.setattr(host.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1 << 40, 1 << 40, 1 << 20))
    [full] = host.data_folder(Settings(data=tmp_path / "data"))
    assert (full.state, "1.0 MiB free" in full.found) == ("fail", True)


def test_top_tells_what_a_server_does(server: Served) -> None:
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            body = {"prompt": "a", "max_tokens": 8}
            server.http.post("/v1/generate", params={"task": "prompt-tuning"}, json=body)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        shown = json.loads(run("top", "--once", "--json", "-n", "1.5", "--url", server.url).stdout)
    finally:
        stop.set()
        asking.join()
    assert shown["up"] is True
    assert shown["tokens"]["generated_per_second"] > 0
    assert shown["batch"]["mix"]["prompt_tuning"] > 0
    [task] = [row for row in shown["tasks"] if row["task"] == "prompt-tuning"]
    assert task["requests_per_second"] > 0
    assert shown["tenants"][0]["tenant"] == "default"
    assert shown["latency"]["first_token"]["p50"] > 0
    plain = run("top", "--once", "-n", "0.1", "--url", server.url)
    assert plain.exit_code == 0
    assert "found in cache" in plain.stdout


def test_top_draws_on_a_terminal_until_it_is_interrupted(server: Served) -> None:
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        env = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        command = [sys.executable, "-m", "softmux.cli", "top", "-n", "0.2", "--url", server.url]
        os.execve(sys.executable, command, env)
    drawn, limit = b"", time.monotonic() + 60
    while b"found in cache" not in drawn and time.monotonic() < limit:
        if select.select([terminal], [], [], 0.2)[0]:
            drawn += os.read(terminal, 1 << 16)
    assert b"running" in drawn
    os.kill(child, signal.SIGINT)
    while time.monotonic() < limit:
        if not select.select([terminal], [], [], 0.2)[0]:
            continue
        try:
            if not os.read(terminal, 1 << 16):
                break
        except OSError:  # Linux says so when the other side is closed
            break
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)


def test_the_shell_completes_commands_and_the_servers_tasks(server: Served) -> None:
    def completed(words: str, url: str) -> list[str]:
        env = {"_SOFTMUX_COMPLETE": "complete_bash", "COMP_WORDS": words, "SOFTMUX_URL": url}
        env["COMP_CWORD"] = str(len(words.split(" ")) - 1)
        return CliRunner().invoke(app, [], env=env, prog_name="softmux").stdout.split()

    assert completed("softmux ta", server.url) == []
    assert "tenant" in completed("softmux te", server.url)
    assert completed("softmux show pr", server.url) == ["prefix-tuning", "prompt-tuning"]
    assert completed("softmux show pr", "http://127.0.0.1:9") == []


def test_a_name_like_the_one_meant_is_told(server: Served) -> None:
    env = {"SOFTMUX_URL": server.url}
    for arguments in (
        ("generate", "a", "--task", "promt-tuning"),
        ("show", "promt-tuning"),
        ("export", "promt-tuning", "x"),
    ):
        wrong = run(*arguments, env=env)
        assert (wrong.exit_code, "Did you mean prompt-tuning" in wrong.output) == (1, True), wrong.output
    assert "Did you mean" not in run("show", "zzz", env=env).output
    command = run("generat")
    assert (command.exit_code, "Did you mean 'generate'" in command.output) == (2, True), command.output
