"""A real server from start to end: what it publishes, refuses, survives, and how it stops."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from softmux.api.server import WORKER_SETTINGS
from softmux.registry.embedded import server_binary
from softmux.settings import Settings
from softmux.worker.config import WorkerConfig
from softmux.worker.supervisor import WORKER_COMMAND
from support.served import Served, make_adapters, upload_parts
from support.waiting import wait_for


def post(server: Served, task: str | None = None, key: str | None = None, **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return server.http.post("/v1/generate", params={"task": task} if task else {}, json=body, headers=headers)


def softmux(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("SOFTMUX_")}
    command = [sys.executable, "-m", "softmux.cli", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)


def streamed(server: Served, into: list[str], **body: Any) -> threading.Thread:
    """Reads a streamed reply in a thread; its events go into `into`. With the first of them the worker is stopped
    (SIGSTOP), since a tiny model's answer might end before the test does what it is about."""
    worker = server.worker_pid()

    def read() -> None:
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream("POST", f"{server.url}/v1/generate", json={**body, "stream": True}, timeout=60) as response,
        ):
            for line in response.iter_lines():
                if line:
                    if not into:
                        os.kill(worker, signal.SIGSTOP)
                    into.append(line.removeprefix("data: "))

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_a_killed_worker_is_told_and_comes_back(server: Served) -> None:
    events: list[str] = []
    results: list[tuple[int, str, bool]] = []
    reader = streamed(server, events, prompt="a", max_tokens=480, ignore_eos=True)
    wait_for(lambda: bool(events), 30)

    def whole() -> None:
        response = post(server, "prompt-tuning", prompt="a", max_tokens=400, ignore_eos=True)
        error = response.json()["error"]
        results.append((response.status_code, error["code"], error["begun"]))

    waiting = threading.Thread(target=whole)
    waiting.start()
    time.sleep(0.5)  # it is with the worker, too
    os.kill(server.worker_pid(), signal.SIGKILL)
    reader.join()
    waiting.join()
    told = json.loads(events[-2])["error"]
    assert (told["code"], told["begun"]) == ("engine_down", True)
    assert events[-1] == "[DONE]"
    assert results == [(503, "engine_down", True)]
    refused = post(server, prompt="a")
    if refused.status_code != 200:
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["begun"]) == (503, "engine_down", False)
        assert int(refused.headers["retry-after"]) >= 1
    assert server.http.get("/health/live").status_code == 200
    wait_for(lambda: server.http.get("/health/ready").status_code == 200, 60)
    assert post(server, "prompt-tuning", prompt="a", max_tokens=2).status_code == 200
    assert restarts(server) >= 1


def test_an_upload_whose_worker_dies_is_told_so_and_can_be_sent_again(
    server: Served, adapters: dict[str, Path]
) -> None:
    before = restarts(server)
    worker = server.worker_pid()
    os.kill(worker, signal.SIGSTOP)  # the upload is with the worker when it dies
    answers: list[httpx.Response] = []

    def put() -> None:
        answers.append(server.http.put("/v1/adapters/late", files=upload_parts(adapters["prompt-tuning"])))

    uploading = threading.Thread(target=put)
    uploading.start()
    time.sleep(1)
    assert not answers
    os.kill(worker, signal.SIGKILL)
    uploading.join(60)
    assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "engine_down")
    assert int(answers[0].headers["retry-after"]) >= 1
    assert server.http.get("/v1/adapters/late").status_code == 404
    wait_for(lambda: server.http.get("/health/ready").status_code == 200, 60)
    assert restarts(server) == before + 1
    put()
    assert answers[1].status_code == 201
    assert post(server, "late", prompt="a", max_tokens=2).status_code == 200
    assert server.http.delete("/v1/adapters/late").status_code == 204


def restarts(server: Served) -> float:
    lines = server.http.get("/metrics").text.splitlines()
    [line] = [line for line in lines if line.startswith("softmux_worker_restarts_total ")]
    return float(line.split()[1])


def test_a_start_publishes_folders_and_undoes_nothing_and_a_drain_ends_whole(
    base: tuple[Any, Path], tmp_path: Path
) -> None:
    folders = tmp_path / "adapters"
    make_adapters(base[0], folders)
    shutil.copytree(folders / "prompt-tuning", folders / "broken")
    (folders / "broken" / "adapter_model.safetensors").write_bytes(b"x")
    (folders / "not-an-adapter").mkdir()
    shutil.copytree(folders / "prompt-tuning", folders / "of-another-base")
    (folders / "of-another-base" / "softmux.json").write_text('{"base_fingerprint": "sha256:another"}')
    shutil.copytree(folders / "prompt-tuning", folders / "of-an-encoder")
    config = folders / "of-an-encoder" / "adapter_config.json"
    of_an_encoder = {"task_type": "SEQ_CLS", "base_model_name_or_path": "an-encoder"}
    config.write_text(json.dumps(json.loads(config.read_text()) | of_an_encoder))
    server = Served(base[1], tmp_path / "data", "--adapters", str(folders))
    with server:
        tasks = [version["task"] for version in server.http.get("/v1/adapters").json()["data"]]
        assert tasks == ["p-tuning-lstm", "prefix-tuning", "prompt-tuning"]
        log = server.log.read_text()
        assert "broken" in log
        assert log.count("made for another base") == 2
        assert "of-another-base" in log
        assert "of-an-encoder" in log
        assert server.http.delete("/v1/adapters/prefix-tuning").status_code == 204
        worker = server.worker_pid()
        events: list[str] = []
        reader = streamed(server, events, prompt="a", max_tokens=480, ignore_eos=True)
        wait_for(lambda: bool(events), 30)
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        try:
            wait_for(lambda: server.http.get("/health/ready").status_code == 503, 30)  # it has heard the signal
            os.kill(worker, signal.SIGCONT)
            while True:  # until it is gone it says that it is not ready, and goes on living
                assert server.http.get("/health/ready").status_code == 503
                refused = post(server, prompt="a")
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
                time.sleep(0.02)
        except httpx.TransportError:
            pass
        reader.join()
        assert events[-1] == "[DONE]"
        last = json.loads(events[-2])
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["usage"]["completion_tokens"] == 480
        assert server.process.wait(20) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)
    with Served(base[1], tmp_path / "data", "--adapters", str(folders)) as again:
        tasks = [version["task"] for version in again.http.get("/v1/adapters").json()["data"]]
        assert tasks == ["p-tuning-lstm", "prompt-tuning"]
        versions = again.http.get("/v1/adapters/prompt-tuning/versions").json()["data"]
        assert [version["version"] for version in versions] == [1]


def test_keys_made_while_it_runs_count_soon(base: tuple[Any, Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    adapters = make_adapters(base[0], tmp_path / "adapters")
    with Served(base[1], data) as server:
        assert post(server, prompt="a", max_tokens=1).status_code == 200
        assert softmux("tenant", "create", "acme", "--data", str(data)).returncode == 0
        made = {}
        for tenant, role in (("default", "admin"), ("acme", "publisher"), ("acme", "user")):
            ran = softmux("key", "create", "--tenant", tenant, "--role", role, "--data", str(data), "--json")
            assert ran.returncode == 0, ran.stderr
            made[role] = json.loads(ran.stdout)
        admin, publisher, user = (made[role]["key"] for role in ("admin", "publisher", "user"))
        wait_for(lambda: post(server, prompt="a", max_tokens=1).status_code == 401, 30)
        wrong = post(server, key="sk-wrong", prompt="a")
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (401, "unauthorized")
        assert server.http.get("/health/ready").status_code == 200
        for path in ("/metrics", "/v1/model", "/v1/adapters", "/docs", "/nope"):
            assert server.http.get(path).status_code == 401
        wait_for(lambda: post(server, key=user, prompt="a", max_tokens=1).status_code == 200, 30)

        def put(key: str) -> httpx.Response:
            parts = upload_parts(adapters["prompt-tuning"])
            return server.http.put("/v1/adapters/mine", files=parts, headers={"authorization": f"Bearer {key}"})

        def get(path: str, key: str) -> int:
            return server.http.get(path, headers={"authorization": f"Bearer {key}"}).status_code

        refused = put(user)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
        assert put(publisher).status_code == 201
        assert post(server, "mine", key=user, prompt="a", max_tokens=1).status_code == 200
        theirs, nobodys = post(server, "mine", key=admin, prompt="a"), post(server, "none", key=admin, prompt="a")
        assert (theirs.status_code, nobodys.status_code) == (404, 404)
        assert theirs.text.replace("mine", "none") == nobodys.text  # as if it did not exist
        assert get("/v1/adapters/mine", admin) == 404
        assert get("/metrics", user) == 403
        assert get("/metrics", admin) == 200
        assert get("/v1/keys", publisher) == 403
        assert get("/v1/keys", admin) == 200
        assert softmux("key", "revoke", made["user"]["id"], "--data", str(data)).returncode == 0
        wait_for(lambda: post(server, key=user, prompt="a", max_tokens=1).status_code == 401, 30)
        log = server.log.read_text()
        assert not any(key in log for key in (admin, publisher, user, "sk-wrong"))


def test_beyond_loopback_it_starts_with_keys_alone(base: tuple[Any, Path], tmp_path: Path) -> None:
    refused = softmux(
        "serve", "--model", str(base[1]), "--host", "0.0.0.0", "--port", "0", "--data", str(tmp_path / "a")
    )
    assert refused.returncode == 1
    assert "SOFTMUX_ADMIN_KEY" in refused.stderr
    secret = "a-first-admin-key-from-outside"
    env = {"SOFTMUX_ADMIN_KEY": secret, "SOFTMUX_LOG_PROMPTS": "true", "SOFTMUX_METRICS_NETWORKS": "127.0.0.0/8"}
    with Served(base[1], tmp_path / "b", "--host", "0.0.0.0", env=env, key=secret) as server:
        assert server.http.get("/v1/model").status_code == 200
        assert httpx.get(f"{server.url}/v1/model").status_code == 401
        assert "softmux_worker_up" in httpx.get(f"{server.url}/metrics").text  # from an allowed network
        assert post(server, prompt="an open wish", max_tokens=1).status_code == 200
        assert "an open wish" in server.log.read_text()  # asked for
        assert secret not in server.log.read_text()


def test_a_key_file_that_holds_no_key_ends_the_start_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "short").write_text("short")
    serve = ("serve", "--model", "x", "--host", "0.0.0.0", "--port", "0", "--data", str(tmp_path / "data"))
    for name, reason in (
        ("missing", "No such file"),
        ("binary", "is not text"),
        ("empty", "is empty: write a key into it"),
        ("short", "at least 16"),
    ):
        ran = softmux(*serve, "--admin-key-file", str(tmp_path / name))
        assert ran.returncode == 1
        assert reason in ran.stderr
        assert "Traceback" not in ran.stderr


def test_what_cannot_be_served_ends_the_start_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = softmux("serve", "--model", str(tmp_path / "empty"), "--port", "0", "--data", str(tmp_path / "data"))
    assert ran.returncode == 1
    assert str(tmp_path / "empty") in ran.stderr
    assert softmux("serve", "--port", "0", "--data", str(tmp_path / "data")).returncode == 1
    assert "give --model" in softmux("serve", "--data", str(tmp_path / "data")).stderr
    bad = softmux("serve", "--model", "x", "--max-rows", "0")
    assert (bad.returncode, "--max-rows" in bad.stderr) == (1, True)


def test_without_its_registry_it_goes_on_generating_and_refuses_changes(base: tuple[Any, Path], tmp_path: Path) -> None:
    adapters = make_adapters(base[0], tmp_path / "adapters")
    path = f"/tmp/softmux-test-{os.getpid()}.sock"
    command = [server_binary(), "--port", "0", "--unixsocket", path, "--save", "", "--dir", str(tmp_path)]
    redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: Path(path).exists(), 10)
        (tmp_path / "key").write_text("an-admin-key-from-a-file\n")
        options = ("--redis", f"unix://{path}", "--admin-key-file", str(tmp_path / "key"))
        with Served(base[1], tmp_path / "data", *options, key="an-admin-key-from-a-file") as server:
            parts = upload_parts(adapters["prompt-tuning"])
            assert server.http.put("/v1/adapters/mine", files=parts).status_code == 201
            data = tmp_path / "data"
            assert {place.stat().st_mode & 0o777 for place in (data, data / "cache", data / "cache" / "kv")} == {0o700}
            expected = post(server, "mine", prompt="a", max_tokens=4).json()["choices"]
            redis.kill()
            redis.wait()
            response = server.http.put("/v1/adapters/other", files=upload_parts(adapters["prefix-tuning"]))
            assert (response.status_code, response.json()["error"]["code"]) == (503, "registry_down")
            assert "retry-after" in response.headers
            assert "the registry does not answer: try again shortly" in response.json()["error"]["message"]
            assert path not in response.text, "where it lies is the operator's business"
            assert f"answered registry_down: the registry at unix://{path}" in server.log.read_text()
            assert post(server, "mine", prompt="a", max_tokens=4).json()["choices"] == expected
            assert post(server, "mine", key="sk-wrong", prompt="a").status_code == 401
            assert server.http.get("/health/ready").status_code == 200
    finally:
        redis.kill()
        redis.wait()
        Path(path).unlink(missing_ok=True)


def test_a_model_without_a_tokenizer_is_served_by_ids_and_a_second_signal_ends_at_once(
    base: tuple[Any, Path], tmp_path: Path
) -> None:
    shutil.copytree(base[1], tmp_path / "model", ignore=shutil.ignore_patterns("token*", "special*", "chat*"))
    with Served(tmp_path / "model", tmp_path / "data") as server:
        reply = post(server, prompt=[1, 5, 9], max_tokens=3, return_token_ids=True, ignore_eos=True)
        assert reply.status_code == 200, reply.text
        assert len(reply.json()["choices"][0]["token_ids"]) == 3
        refused = post(server, prompt="text")
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "prompt")
        assert "token ids" in refused.json()["error"]["message"]
        worker = server.worker_pid()
        events: list[str] = []
        reader = streamed(server, events, prompt=[1, 5], max_tokens=500, ignore_eos=True, return_token_ids=True)
        wait_for(lambda: bool(events), 30)
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: server.http.get("/health/ready").status_code == 503, 30)  # it drains
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 128 + signal.SIGTERM
        os.kill(worker, signal.SIGCONT)
        reader.join()
        assert events[-1] != "[DONE]", "cut off"
        wait_for(lambda: not _alive(worker), 10)


def test_a_drain_has_an_end(base: tuple[Any, Path], tmp_path: Path) -> None:
    with Served(base[1], tmp_path / "data", "--drain-seconds", "0.5") as server:
        body = {"prompt": [1, 5], "max_tokens": 500, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/generate", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)  # and then this client stays, and reads no more
            assert server.process is not None
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0, "not after drain_seconds' default of five minutes"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_whose_server_died_while_it_loaded_ends(base: tuple[Any, Path], tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    settings = Settings(model=str(base[1]), device="cpu", dtype="float32", data=tmp_path, kv_tokens=256)
    config = WorkerConfig(
        endpoint=f"ipc://{tmp_path}/worker.sock",
        registry_url=f"unix://{tmp_path}/none.sock",
        blob_url=None,
        data=str(tmp_path),
        settings=settings.model_dump(mode="json", include=set(WORKER_SETTINGS)),
        supervisor=gone.pid,
    )
    told = msgspec.json.encode(config) + b"\n"
    ended = subprocess.run(WORKER_COMMAND, input=told, stderr=subprocess.PIPE, timeout=120)
    assert ended.returncode == 0
    assert b"the server is gone" in ended.stderr
