from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.served import Served
from support.served_fixtures import adapters, base

__all__ = ["adapters", "base", "browser", "keyed", "publisher", "user"]

ADMIN_KEY = "an-admin-key-from-outside"


@pytest.fixture(scope="session")
def keyed(base: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    data = tmp_path_factory.mktemp("console") / "data"
    with Served(base[1], data, env={"SOFTMUX_ADMIN_KEY": ADMIN_KEY}, key=ADMIN_KEY) as server:
        yield server


def _key(server: Served, role: str) -> str:
    server.http.post("/v1/tenants", json={"name": "acme"}).raise_for_status()
    made: str = server.http.post("/v1/keys", json={"tenant": "acme", "role": role}).json()["key"]
    return made


@pytest.fixture(scope="session")
def publisher(keyed: Served) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {_key(keyed, 'publisher')}"}
    with httpx.Client(base_url=keyed.url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def user(keyed: Served) -> str:
    return _key(keyed, "user")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from support.browser import chromium

    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found
