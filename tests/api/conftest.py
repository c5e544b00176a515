from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.registries import registry, runner
from support.served_fixtures import adapters, base, server
from support.tenants import Shared, shared_server

__all__ = ["adapters", "base", "registry", "runner", "server", "shared"]


@pytest.fixture(scope="session")
def shared(base: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A server of several tenants, used by all tests that give their tasks names of their own."""
    with shared_server(base[1], tmp_path_factory.mktemp("shared")) as running:
        yield running
