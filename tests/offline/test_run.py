"""`softmux run`: every row once, by a server and by an engine in the process, however often it is killed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from softmux.cli import app
from softmux.client import AsyncClient
from softmux.client.calls import Call
from softmux.engine.engine import Engine
from softmux.engine.local import LocalEngine
from softmux.offline.interrupt import Interrupt
from softmux.offline.served import ServedTarget
from support.served import Served, upload_parts


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, as in a terminal: a shell's background job, as a test run may be, ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(*arguments: str | Path, url: str = "http://127.0.0.1:9") -> Result:
    return CliRunner().invoke(app, ["run", *map(str, arguments)], env={"SOFTMUX_URL": url})


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(path: Path) -> list[dict[str, Any]]:
    """In the input's order. Each line whole, and each row once."""
    data = path.read_text(encoding="utf-8")
    assert data.endswith("\n") or not data
    found = sorted((json.loads(line) for line in data.splitlines()), key=lambda line: int(line["row"]))
    numbers = [line["row"] for line in found]
    assert len(set(numbers)) == len(numbers)
    return found


@pytest.fixture(scope="module")
def tasks(server: Served, adapters: dict[str, Path]) -> Iterator[Served]:
    folder = adapters["prompt-tuning"]
    labels = b'{"labels": ["sports", "weather"]}'
    for task, parts in (("run", upload_parts(folder)), ("run-topic", upload_parts(folder, **{"softmux.json": labels}))):
        assert server.http.put(f"/v1/adapters/{task}", files=parts).status_code == 201
    yield server
    for task in ("run", "run-topic"):
        server.http.delete(f"/v1/adapters/{task}")


MIXED: list[Any] = [
    {"prompt": "a film", "max_tokens": 5, "id": "first"},
    {"prompt": ["one", "two"], "n": 2, "temperature": 1, "seed": 3, "max_tokens": 4, "logprobs": 1},
    {"prompt": [5, 6, 7], "max_tokens": 3, "return_token_ids": True},
    {"prompt": "a stop", "max_tokens": 12, "stop": ["e", "a"]},
    {"custom_id": "c-1", "method": "POST", "url": "/v1/generate", "body": {"prompt": "a film", "max_tokens": 5}},
    {"prompt": "a", "max_tokens": 0},
    {"prompt": "a", "colour": "red"},
    {"prompt": "a", "stream": True},
    {"custom_id": "c-2", "method": "POST", "url": "/v1/nothing", "body": {}},
    [1],
    {"prompt": "a " * 600, "max_tokens": 5},
    {"prompt": "a film", "max_tokens": 9, "structured_outputs": {"choice": ["yes", "no"]}},
]


def check(lines: list[dict[str, Any]]) -> None:
    assert [line.get("id") for line in lines[:2]] == ["first", None]
    assert len(lines[0]["reply"]["choices"]) == 1
    assert lines[0]["text"] == lines[0]["reply"]["choices"][0]["text"]
    assert [choice["index"] for choice in lines[1]["reply"]["choices"]] == [0, 1, 2, 3]
    assert len(lines[2]["reply"]["choices"][0]["token_ids"]) == lines[2]["reply"]["usage"]["completion_tokens"] <= 3
    assert not {"e", "a"} & set(lines[3]["text"])
    assert (lines[4]["custom_id"], lines[4]["response"]["status_code"], lines[4]["error"]) == ("c-1", 200, None)
    assert lines[4]["response"]["body"]["choices"] == lines[0]["reply"]["choices"]
    failed = [(line["error"]["code"], line["error"].get("param")) for line in lines[5:11]]
    assert lines[11]["text"] in ("yes", "no")
    assert failed == [
        ("invalid_request", "max_tokens"),
        ("invalid_request", "colour"),
        ("invalid_request", "stream"),
        ("invalid_request", None),
        ("bad_request", None),
        ("context_too_long", "prompt"),
    ]


def test_a_server_and_an_engine_here_answer_alike(
    tasks: Served, base: tuple[Any, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", MIXED)
    served, here = tmp_path / "served.jsonl", tmp_path / "here.jsonl"
    one = run("run", source, "-o", served, "--json", url=tasks.url)
    assert one.exit_code == 1, one.output
    summary = json.loads(one.stdout)
    assert (summary["rows"], summary["answered"], summary["failed"]) == (12, 6, 6)
    check(answers(served))
    two = run(adapters["prompt-tuning"], source, "-o", here, "--model", base[1], "--json")
    assert two.exit_code == 1, two.output
    assert json.loads(two.stdout)["digest"] == summary["digest"]
    check(answers(here))
    for ours, theirs in zip(answers(here), answers(served), strict=True):
        assert ours.get("text") == theirs.get("text")
        if ours.get("reply"):
            assert ours["reply"]["usage"]["total_tokens"] == theirs["reply"]["usage"]["total_tokens"]
    assert one.stderr == two.stderr == ""


def test_it_classifies_by_a_server_and_says_so_where_it_can_not(
    tasks: Served, base: tuple[Any, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", [{"input": "a match in Rome"}, {"input": ["rain", "snow"], "id": 7}])
    assert run("run-topic", source, "-o", tmp_path / "out", url=tasks.url).exit_code == 0
    first, second = answers(tmp_path / "out")
    assert first["label"] == first["reply"]["results"][0]["label"]
    assert (second["id"], len(second["reply"]["results"]), "label" in second) == (7, 2, False)
    assert run("-", source, "-o", tmp_path / "bare", "--model", base[1]).exit_code == 1
    assert "takes a server" in answers(tmp_path / "bare")[0]["error"]["message"]


def test_openais_rows_are_answered_in_openais_shapes(tasks: Served, tmp_path: Path) -> None:
    told = {"max_tokens": 4, "model": "gpt-4o-mini"}
    chat = {**told, "messages": [{"role": "user", "content": "a film"}]}
    rows = [
        {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {**told, "prompt": "a film"}},
        {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": chat},
        {"custom_id": "c", "method": "POST", "url": "/v1/completions", "body": {**told, "prompt": "a", "best_of": 3}},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    assert run("run", source, "-o", tmp_path / "out", url=tasks.url).exit_code == 1
    first, second, third = answers(tmp_path / "out")
    assert [line["custom_id"] for line in (first, second, third)] == ["a", "b", "c"]
    assert first["response"]["body"]["object"] == "text_completion"
    assert first["response"]["body"]["model"].startswith("run")
    assert second["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
    assert (third["response"]["status_code"], third["error"]["code"]) == (422, "invalid_request")
    bare = run("-", source, "-o", tmp_path / "bare", url=tasks.url)
    assert bare.exit_code == 1
    assert answers(tmp_path / "bare")[0]["error"]["code"] in ("task_not_found", "model_not_found")


def test_it_goes_on_with_the_version_it_began_with_and_with_nothing_else(
    tasks: Served, base: tuple[Any, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": f"film {number}", "max_tokens": 3} for number in range(12)])
    output = tmp_path / "out.jsonl"
    assert run("run", source, "-o", output, "--seed", "1", url=tasks.url).exit_code == 0
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:5]) + lines[5][:20])  # as a machine that falls leaves it
    assert tasks.http.put("/v1/adapters/run", files=upload_parts(adapters["prefix-tuning"])).json()["active"]
    on = run("run", source, "-o", output, "--seed", "1", "--json", url=tasks.url)
    assert (on.exit_code, json.loads(on.stdout)["before"], json.loads(on.stdout)["answered"]) == (0, 5, 7)
    assert [line["text"] for line in answers(output)] == [
        json.loads(line)["text"] for line in sorted(lines, key=lambda line: int(json.loads(line)["row"]))
    ]
    tasks.http.post("/v1/adapters/run/activate", json={"version": 1})
    nothing = run("run", source, "-o", output, "--seed", "1", url=tasks.url)
    assert (nothing.exit_code, "0 rows answered" in nothing.stdout) == (0, True)

    write(tmp_path / "other.jsonl", [{"prompt": "x"}] * 12)
    for arguments, told in (
        (("run", tmp_path / "other.jsonl", "--seed", "1"), "input was"),
        (("run", source, "--seed", "2"), "parameters was"),
        (("run-topic", source, "--seed", "1"), "task was"),
    ):
        refused = run(*arguments, "-o", output, url=tasks.url)
        assert (refused.exit_code, told in refused.stderr) == (1, True), refused.output
    assert len(answers(output)) == 12
    assert run("run-topic", source, "-o", output, "--overwrite", url=tasks.url).exit_code == 0
    (tmp_path / "mine.txt").write_text("kept")
    assert "--overwrite" in run("run", source, "-o", tmp_path / "mine.txt", url=tasks.url).stderr
    assert (tmp_path / "mine.txt").read_text() == "kept"
    assert "overwrite the input" in run("run", source, "-o", source, url=tasks.url).stderr


def test_what_failed_is_asked_again_when_told_to(tasks: Served, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 2}, {"prompt": "b", "max_tokens": 10**6}])
    output = tmp_path / "out.jsonl"
    assert run("run", source, "-o", output, url=tasks.url).exit_code == 1
    assert run("run", source, "-o", output, url=tasks.url).exit_code == 1
    again = run("run", source, "-o", output, "--retry-failed", "--json", url=tasks.url)
    assert (json.loads(again.stdout)["before"], json.loads(again.stdout)["failed"]) == (1, 1)
    assert len(answers(output)) == 2


def test_without_a_server_it_gives_up_and_writes_no_error_a_row(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    away = run("run", source, "-o", tmp_path / "out", "--patience", "0")
    assert (away.exit_code, "softmux serve" in away.stderr) == (1, True), away.output
    assert not (tmp_path / "out").exists()
    assert "can't be read" in run("run", tmp_path / "none", "-o", tmp_path / "out").stderr
    (tmp_path / "empty").write_text("\n\n")
    assert "has no rows" in run("run", tmp_path / "empty", "-o", tmp_path / "out").stderr


def kill_and_resume(
    command: list[str | Path], output: Path, rows: int, kills: Sequence[tuple[int, signal.Signals]]
) -> None:
    """A signal once so many rows are written, then again the same command, until it ends by itself."""
    for least, number in kills:
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
        while not output.exists() or output.read_bytes().count(b"\n") < least:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.005)
        os.kill(process.pid, number)
        assert process.wait() == (-number if number == signal.SIGKILL else 130)
        written = output.read_bytes()
        assert least <= written.count(b"\n") < rows
        output.write_bytes(written + b'{"row": 1, "tex')  # as if it had been cut off in a line
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    found = answers(output)
    assert [line["row"] for line in found] == list(range(rows))
    assert [line["id"] for line in found] == [f"row {number}" for number in range(rows)]
    assert all(line["error"] is None for line in found)


def _command(source: Path, output: Path, *more: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "softmux.cli", "run", *more, source, "-o", output]


def test_killed_and_stopped_every_row_is_there_once(tasks: Served, tmp_path: Path) -> None:
    rows = [{"id": f"row {number}", "prompt": f"film {number}", "max_tokens": 4} for number in range(200)]
    output = tmp_path / "out.jsonl"
    command = _command(write(tmp_path / "in.jsonl", rows), output, "--url", tasks.url, "--concurrency", "8", "run")
    kill_and_resume(command, output, 200, ((30, signal.SIGKILL), (110, signal.SIGTERM)))


@pytest.mark.nightly
@pytest.mark.parametrize("where", ["server", "here"])
def test_ten_thousand_rows_killed_twice_are_there_once(
    where: str, tasks: Served, base: tuple[Any, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"id": f"row {number}", "prompt": f"film {number}", "max_tokens": 8} for number in range(10_000)]
    output, source = tmp_path / "out.jsonl", write(tmp_path / "in.jsonl", rows)
    on_server = ("--url", tasks.url, "run")
    command = _command(
        source, output, *(on_server if where == "server" else ("--model", base[1], adapters["prompt-tuning"]))
    )
    kill_and_resume(command, output, 10_000, ((2_500, signal.SIGKILL), (6_000, signal.SIGKILL)))


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_does_not_come_between_a_request_and_its_clean_up(
    number: signal.Signals, tasks: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0
    send = AsyncClient.send

    async def signalled(self: AsyncClient, call: Call, **options: Any) -> Any:
        nonlocal sent
        reply = await send(self, call, **options)
        sent += call.path == "/v1/generate"
        if sent == 6:
            try:
                os.kill(os.getpid(), number)
                await asyncio.sleep(0)
            except BaseException:
                raise RuntimeError("what a library says whose clean-up is broken off") from None
        return reply

    monkeypatch.setattr(AsyncClient, "send", signalled)
    source = write(tmp_path / "in.jsonl", [{"prompt": f"film {number}", "max_tokens": 2} for number in range(30)])
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stopped = run("run", source, "-o", tmp_path / "out", "--concurrency", "2", url=tasks.url)
    assert (stopped.exit_code, "run the same command again" in stopped.stderr) == (130, True), stopped.output
    assert 5 <= len(answers(tmp_path / "out")) <= 8, "what was answered by then"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    monkeypatch.undo()
    assert run("run", source, "-o", tmp_path / "out", url=tasks.url).exit_code == 0
    assert [line["row"] for line in answers(tmp_path / "out")] == list(range(30))


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As SIGINT is for what a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            interrupt.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_engine_here_that_refuses_its_task_is_closed(
    base: tuple[Any, Path], adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[LocalEngine] = []
    monkeypatch.setattr(LocalEngine, "close", lambda self, close=LocalEngine.close: (closed.append(self), close(self)))
    broken = tmp_path / "broken"
    shutil.copytree(adapters["prompt-tuning"], broken)
    (broken / "adapter_config.json").write_text("{}")
    source = write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    assert run(broken, source, "-o", tmp_path / "out", "--model", base[1]).exit_code == 1
    assert len(closed) == 1


def test_a_signal_ends_the_wait_for_a_server_that_does_not_answer(
    tasks: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = AsyncClient.send

    async def silent(self: AsyncClient, call: Call, **options: Any) -> Any:
        if call.path != "/v1/generate":
            return await send(self, call, **options)
        asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    monkeypatch.setattr(AsyncClient, "send", silent)
    source = write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    assert run("run", source, "-o", tmp_path / "out", url=tasks.url).exit_code == 130
    assert answers(tmp_path / "out") == []


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("twice", "ran"), [(False, 4), (True, 3)])
def test_an_engine_here_ends_after_the_step_of_a_signal_and_at_once_by_a_second(
    twice: bool,
    ran: int,
    base: tuple[Any, Path],
    adapters: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = 0
    step = Engine.step

    def signalled(self: Engine) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            signal.raise_signal(signal.SIGTERM)
            news = step(self)
            if twice:
                signal.raise_signal(signal.SIGINT)
            steps += 1
            return news
        return step(self)

    monkeypatch.setattr(Engine, "step", signalled)
    source = write(tmp_path / "in.jsonl", [{"prompt": "a film", "max_tokens": 300}])
    here = run(adapters["prompt-tuning"], source, "-o", tmp_path / "out", "--model", base[1])
    assert (here.exit_code, steps) == (130, ran), here.output
    assert answers(tmp_path / "out") == []


def test_an_interrupt_in_the_turn_in_which_a_row_ends_is_no_error(tasks: Served) -> None:
    target = ServedTarget(tasks.url, None, None, concurrency=1, patience=10)

    def interrupted() -> None:
        raise KeyboardInterrupt

    async def ends() -> None:
        asyncio.get_running_loop().call_soon(interrupted)

    with pytest.raises(KeyboardInterrupt):
        target._runner.run(ends())
    target.close()
