"""A server whose Redis hangs, then is gone: what is resident goes on being served, changes are refused at once."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from softmux.registry.registry import Registry
from support.redis_server import RedisServer
from support.served import Served, make_adapters, make_model, upload_parts
from support.waiting import wait_for

_ADMIN = "sk-an-admin-key-for-the-test"


class _Clients:
    """Four clients that ask for resident tasks without rest; `phase` says under which name times are kept."""

    def __init__(self, server: Served, tasks: list[str]) -> None:
        self.phase = "before"
        self.seconds: dict[str, list[float]] = {"before": [], "away": [], "after": []}
        self.failed: list[str] = []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(server, tasks, number)) for number in range(4)]

    def _ask(self, server: Served, tasks: list[str], number: int) -> None:
        with httpx.Client(base_url=server.url, headers=server.http.headers, timeout=60) as http:
            count = number
            while not self._done.is_set():
                count += 1
                phase, start = self.phase, time.monotonic()
                body = {"prompt": "a film", "max_tokens": 3}
                reply = http.post("/v1/generate", params={"task": tasks[count % len(tasks)]}, json=body)
                if phase == self.phase:
                    self.seconds[phase].append(time.monotonic() - start)
                if reply.status_code != 200:
                    self.failed.append(reply.text)

    def __enter__(self) -> _Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def most(self, phase: str) -> float:
        return max(self.seconds[phase])


def _refused(server: Served, method: str, path: str, **more: Any) -> float:
    """How long the refusal took."""
    start = time.monotonic()
    reply = server.http.request(method, path, **more)
    took = time.monotonic() - start
    assert reply.status_code == 503, reply.text
    assert reply.json()["error"]["code"] == "registry_down"
    assert "retry-after" in reply.headers
    return took


@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=[pytest.mark.nightly, pytest.mark.timeout(600)])])
def test_a_redis_that_hangs_slows_no_request_and_refuses_changes_at_once(tmp_path: Path, seconds: int) -> None:
    model = make_model(tmp_path / "model")
    folders = make_adapters(model, tmp_path / "adapters")
    with RedisServer(tmp_path / "redis") as redis_server:
        options = ("--redis", redis_server.url)
        env = {"SOFTMUX_ADMIN_KEY": _ADMIN}
        with Served(tmp_path / "model", tmp_path / "data", *options, env=env, key=_ADMIN) as server:
            for task, folder in folders.items():
                assert server.http.put(f"/v1/adapters/{task}", files=upload_parts(folder)).status_code == 201
            user_id, user = asyncio.run(_user(redis_server.url, tmp_path))
            task, folder = next(iter(folders.items()))
            with _Clients(server, list(folders)) as clients:
                wait_for(lambda: len(clients.seconds["before"]) > 100, 60, "clients are served")
                with redis_server.stalled():
                    clients.phase = "away"
                    stalled = time.monotonic()
                    refusals = [
                        _refused(server, "PUT", f"/v1/adapters/{task}", files=upload_parts(folder)),
                        _refused(server, "DELETE", f"/v1/adapters/{task}"),
                        _refused(server, "POST", f"/v1/adapters/{task}/activate", json={"version": 1}),
                        _refused(server, "GET", f"/v1/adapters/{task}/versions"),
                    ]
                    assert server.http.get("/health/ready").status_code == 200, "it serves, so it is ready"
                    wait_for(lambda: "softmux_registry_up 0" in server.http.get("/metrics").text, 30, "it is told")
                    time.sleep(max(0.0, seconds - (time.monotonic() - stalled)))
                    clients.phase = "after"
                asyncio.run(_revoke(redis_server.url, tmp_path, user_id))
                revoked = time.monotonic()
                headers = {"authorization": f"Bearer {user}"}
                wait_for(lambda: _status(server, headers) == 401, 30, "the revoked key is refused")
                took_to_revoke = time.monotonic() - revoked
                wait_for(lambda: "softmux_registry_up 1" in server.http.get("/metrics").text, 30, "it is told")
                assert server.http.put(f"/v1/adapters/{task}", files=upload_parts(folder)).status_code == 200
            assert not clients.failed
            away, before = clients.most("away") * 1e3, clients.most("before") * 1e3
            print(f"{len(clients.seconds['away'])} requests while Redis hung {seconds} s: {away:.0f} ms at most")
            print(f"(before it {before:.0f} ms); changes refused in {max(refusals):.2f} s")
            print(f"a key revoked on its return is refused after {took_to_revoke:.2f} s")
            assert len(clients.seconds["away"]) > 20
            assert clients.most("away") < seconds, "none waited for it"


def _status(server: Served, headers: dict[str, str]) -> int:
    return server.http.get("/v1/model", headers=headers).status_code


async def _user(url: str, tmp_path: Path) -> tuple[str, str]:
    registry = await Registry.open(url, tmp_path / "other")
    made = await registry.keys.create_key("default", "user", actor="t")
    await registry.close()
    return made


async def _revoke(url: str, tmp_path: Path, key_id: str) -> None:
    registry = await Registry.open(url, tmp_path / "other")
    await registry.keys.revoke_key(key_id, actor="t")
    await registry.close()
