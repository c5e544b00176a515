from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.served import Served, upload_parts
from support.served_fixtures import adapters, base, server

__all__ = ["adapters", "base", "server"]

KEY = "an-admin-key-from-outside"


@pytest.fixture(scope="session")
def keyed(
    base: tuple[Any, Path], adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server that knows one admin key: the requests make tenants and keys of their own."""
    data = tmp_path_factory.mktemp("keyed") / "data"
    with Served(base[1], data, key=KEY, env={"SOFTMUX_ADMIN_KEY": KEY}) as running:
        for task, folder in adapters.items():
            assert running.http.put(f"/v1/adapters/{task}", files=upload_parts(folder)).status_code == 201
        yield running
