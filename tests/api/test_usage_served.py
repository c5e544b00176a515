"""Usage over HTTP, with two API processes and a worker without a model: what replies say is what is booked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.test_processes_served import api_pids
from softmux.registry.registry import Registry
from softmux.registry.usage import Used, today
from support.echo_server import EchoServed
from support.echo_worker import HELD_AFTER, TOKEN
from support.served import Served
from support.waiting import wait_for

KEY = "an-admin-key-from-outside"
COUNTS = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens", "virtual_tokens")


@pytest.fixture(scope="module")
def server_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoServed]:
    data = tmp_path_factory.mktemp("used") / "data"
    env = {"SOFTMUX_ADMIN_KEY": KEY}
    with EchoServed(data, key=KEY, env=env, api_processes=2, usage_flush_seconds=0.3) as running:
        yield running


def tenant(server: Served, name: str) -> dict[str, str]:
    """A new tenant's headers."""
    assert server.http.post("/v1/tenants", json={"name": name}).status_code == 201
    key = server.http.post("/v1/keys", json={"tenant": name, "role": "user"}).json()["key"]
    headers = {"authorization": f"Bearer {key}"}
    wait_for(
        lambda: all(httpx.get(f"{server.url}/v1/model", headers=headers).status_code == 200 for _ in range(4)),
        30,
        "both processes know the key",
    )
    return headers


def ask(server: Served, headers: dict[str, str], **body: Any) -> httpx.Response:
    asked = {"prompt": [5, 6, 7], "max_tokens": 4, **body}
    return httpx.post(f"{server.url}/v1/generate", headers=headers, json=asked, timeout=60)


def report(server: Served, headers: dict[str, str], **params: str) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/v1/usage", headers=headers, params=params, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def total(server: Served, headers: dict[str, str]) -> dict[str, int]:
    return {name: report(server, headers)["total"][name] for name in COUNTS}


def summed(usages: list[dict[str, int]]) -> dict[str, int]:
    return {
        "requests": len(usages),
        **{name: sum(usage[name] for usage in usages) for name in COUNTS if name != "requests"},
    }


def test_totals_are_the_sum_of_the_replies(server_pair: EchoServed) -> None:
    headers = tenant(server_pair, "adds")
    usages = []
    for number in range(12):
        body: dict[str, Any] = {"prompt": [5] * (number + 1), "max_tokens": number + 1, "n": 1 + number % 3}
        if number % 4 == 3:
            events = ask(server_pair, headers, stream=True, **body).text.strip().split("\n\n")
            assert events[-1] == "data: [DONE]"
            usages.append(json.loads(events[-2].removeprefix("data: "))["usage"])
        else:
            usages.append(ask(server_pair, headers, **body).json()["usage"])
    assert ask(server_pair, headers, prompt=[999]).status_code == 422  # refused: it used nothing
    wait_for(lambda: total(server_pair, headers) == summed(usages), 20, f"the totals are {summed(usages)}")
    [row] = report(server_pair, headers)["data"]
    assert (row["date"], row["tenant"], row["task"]) == (today().isoformat(), "adds", None)
    wait_for(
        lambda: abs(report(server_pair, headers)["total"]["gpu_seconds"] - row["completion_tokens"] * TOKEN) < 1e-3,
        20,
        "the engine's time is booked, too",
    )


def test_what_a_client_that_left_had_computed_counts(server_pair: EchoServed) -> None:
    headers = tenant(server_pair, "leaves")
    body = {"prompt": [5, 6, 253], "max_tokens": 480, "stream": True}
    url = f"{server_pair.url}/v1/generate"
    with httpx.stream("POST", url, headers=headers, json=body, timeout=60) as running:
        lines = running.iter_lines()
        for _ in range(3):
            next(lines)
        # it is counted while it runs
        wait_for(
            lambda: total(server_pair, headers)["completion_tokens"] == HELD_AFTER,
            20,
            "tokens are counted as they come",
        )
    wait_for(lambda: "softmux_num_requests_running 0" in server_pair.http.get("/metrics").text, 20, "it was ended")
    used = total(server_pair, headers)
    assert used["requests"] == 1
    assert used["prompt_tokens"] == 3
    assert used["completion_tokens"] == HELD_AFTER


def test_a_killed_process_loses_an_interval_at_most(server_pair: EchoServed) -> None:
    headers = tenant(server_pair, "killed")
    told = [ask(server_pair, headers, max_tokens=9).json()["usage"] for _ in range(10)]
    wait_for(lambda: total(server_pair, headers) == summed(told), 20, "all is told")
    late = [ask(server_pair, headers, max_tokens=9).json()["usage"] for _ in range(6)]
    for pid in api_pids(server_pair):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: ready(server_pair), 60, "it is served again")
    used = total(server_pair, headers)
    for name in COUNTS:
        assert summed(told)[name] <= used[name] <= summed(told + late)[name]
    again = [ask(server_pair, headers, max_tokens=9).json()["usage"] for _ in range(4)]
    expected = {name: used[name] + summed(again)[name] for name in COUNTS}
    wait_for(lambda: total(server_pair, headers) == expected, 20, f"the totals are {expected}")


def ready(server: Served) -> bool:
    try:
        return len(api_pids(server)) == 2 and all(
            httpx.get(f"{server.url}/health/ready", timeout=5).status_code == 200 for _ in range(4)
        )
    except httpx.TransportError:
        return False


def test_who_may_see_what(server_pair: EchoServed) -> None:
    headers, others = tenant(server_pair, "sees"), tenant(server_pair, "seen")
    ask(server_pair, others)
    wait_for(lambda: total(server_pair, others)["requests"] == 1, 20, "it is booked")
    assert report(server_pair, headers)["data"] == []
    assert report(server_pair, headers, tenant="sees")["data"] == []
    answers = [
        httpx.get(f"{server_pair.url}/v1/usage", headers=headers, params={"tenant": name})
        for name in ("seen", "nobody")
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].text.replace("seen", "X") == answers[1].text.replace("nobody", "X")
    admin = {"authorization": f"Bearer {KEY}"}
    assert {row["tenant"] for row in report(server_pair, admin, tenant="seen")["data"]} == {"seen"}
    assert {"seen"} <= {row["tenant"] for row in report(server_pair, admin, tenant="*")["data"]}
    assert report(server_pair, admin, tenant="seen", task="mood")["data"] == []
    assert len(report(server_pair, admin, tenant="seen", task="(base)")["data"]) == 1
    assert server_pair.http.get("/v1/usage", params={"tenant": "nobody"}).status_code == 404


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"from": "yesterday"}, "from"),
        ({"to": "2026-13-01"}, "to"),
        ({"from": "2026-03-02", "to": "2026-03-01"}, "from"),
        ({"from": "2020-01-01", "to": "2026-03-01"}, "from"),
        ({"format": "xml"}, "format"),
    ],
)
def test_what_makes_no_sense_is_refused(server_pair: EchoServed, params: dict[str, str], param: str) -> None:
    answer = server_pair.http.get("/v1/usage", params=params)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == param


def test_the_first_days_there_are(server_pair: EchoServed) -> None:
    found = report(server_pair, {"authorization": f"Bearer {KEY}"}, to="0001-01-02")
    assert (found["from"], found["data"]) == ("0001-01-01", [])


def test_what_a_deleted_tenant_used_is_an_admins_to_see(server_pair: EchoServed) -> None:
    headers, admin = tenant(server_pair, "dissolved"), {"authorization": f"Bearer {KEY}"}
    assert ask(server_pair, headers).status_code == 200
    wait_for(lambda: report(server_pair, admin, tenant="dissolved")["total"]["requests"] == 1, 20, "it is booked")
    assert server_pair.http.delete("/v1/tenants/dissolved", params={"force": True}).status_code == 204
    assert report(server_pair, admin, tenant="dissolved")["total"]["requests"] == 1
    assert "dissolved" in {row["tenant"] for row in report(server_pair, admin, tenant="*")["data"]}


def test_it_is_to_be_had_as_csv_and_on_the_command_line(server_pair: EchoServed) -> None:
    headers = tenant(server_pair, "prints")
    ask(server_pair, headers)
    wait_for(lambda: total(server_pair, headers)["requests"] == 1, 20, "it is booked")
    url = f"{server_pair.url}/v1/usage"
    asked = httpx.get(url, headers={**headers, "accept": "text/csv"})
    assert asked.headers["content-type"].startswith("text/csv")
    head, row = asked.text.splitlines()
    assert head == "date,tenant,task,requests,prompt_tokens,completion_tokens,cached_tokens,virtual_tokens,gpu_seconds"
    assert row.startswith(f"{today().isoformat()},prints,(base),1,3,4,0,0,")
    key = headers["authorization"].removeprefix("Bearer ")
    command = [sys.executable, "-m", "softmux.cli", "usage", "--url", server_pair.url, "--key", key]
    shown = subprocess.run([*command, "--csv"], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[0] == head
    assert (
        json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)["total"][
            "completion_tokens"
        ]
        == 4
    )
    assert "(base)" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_server_that_ends_tells_what_it_has(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with EchoServed(data, usage_flush_seconds=3600) as server:
        assert ask(server, {}).status_code == 200

    async def booked() -> list[Used]:
        registry = await Registry.open(None, data)
        try:
            return [used for _, used in await registry.usage.read(["default"], today(), today())]
        finally:
            await registry.close()

    [used] = asyncio.run(booked())
    assert used == Used(1, 3, 4, gpu_microseconds=round(4 * TOKEN * 1e6))


def test_with_a_model_the_engines_time_is_shared_out(server: Served) -> None:
    def gpu_seconds(task: str) -> float:
        seconds: float = server.http.get("/v1/usage", params={"task": task}).json()["total"]["gpu_seconds"]
        return seconds

    task = "prompt-tuning"
    before = gpu_seconds(task)
    answer = server.http.post(
        "/v1/generate", params={"task": task}, json={"prompt": "a", "max_tokens": 100, "ignore_eos": True}
    )
    assert answer.status_code == 200
    wait_for(lambda: gpu_seconds(task) > before, 20, "the worker has told")
    assert gpu_seconds(task) - before < 60
