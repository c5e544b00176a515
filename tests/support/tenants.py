"""A real server that several tenants share, and what each of them may hold."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from support.served import Served

ADMIN_KEY = "an-admin-key-from-outside"
TENANTS = ("acme", "beta", "gamma")


@dataclass(frozen=True)
class Shared:
    """`clients` by tenant and role, as `acme/user`; `admin` is the tenant `default`'s."""

    server: Served
    data: Path
    admin: httpx.Client
    clients: dict[str, httpx.Client]
    keys: dict[str, dict[str, str]]
    _stack: ExitStack

    def newcomer(self) -> httpx.Client:
        """A publisher of a tenant that is new, so that nothing can be cached for it."""
        name = f"new-{len(self.clients)}"
        self.join(name, "publisher")
        return self.client(name)

    def join(self, tenant: str, *roles: str) -> None:
        """Makes the tenant and its keys."""
        assert self.admin.post("/v1/tenants", json={"name": tenant}).status_code == 201
        for role in roles:
            made = self.admin.post("/v1/keys", json={"tenant": tenant, "role": role}).json()
            headers = {"authorization": f"Bearer {made['key']}"}
            client = self._stack.enter_context(httpx.Client(base_url=self.server.url, headers=headers, timeout=60))
            self.clients[f"{tenant}/{role}"] = client
            self.keys[f"{tenant}/{role}"] = made

    def client(self, tenant: str, role: str = "publisher") -> httpx.Client:
        return self.clients[f"{tenant}/{role}"]

    def softmux(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command on the server's registry, or, with its own `--url`, on the server."""
        command = [sys.executable, "-m", "softmux.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.admin.get("/v1/audit?limit=10000&format=ndjson").text.splitlines()]


def generate(client: httpx.Client, task: str | None, prompt: str = "a film", **body: Any) -> httpx.Response:
    params = {"task": task} if task else {}
    body = {"max_tokens": 4, "ignore_eos": True, "return_token_ids": True, **body}
    return client.post("/v1/generate", params=params, json={"prompt": prompt, **body})


@contextmanager
def shared_server(model: Path, folder: Path) -> Iterator[Shared]:
    """A server in two API processes with the tenants `TENANTS`, each with a key of each lesser role."""
    data = folder / "data"
    env = {"SOFTMUX_ADMIN_KEY": ADMIN_KEY}
    with (
        Served(model, data, "--api-processes", "2", env=env, key=ADMIN_KEY) as server,
        ExitStack() as stack,
    ):
        running = Shared(server, data, server.http, {}, {}, stack)
        for tenant in TENANTS:
            running.join(tenant, "user", "publisher")
        yield running
