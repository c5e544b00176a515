"""One real server for the tests of all folders. A folder that wants its own imports these into its conftest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.served import Served


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny random Llama, and the folder it is saved in."""
    from support.served import make_model

    folder = tmp_path_factory.mktemp("model")
    return make_model(folder), folder


@pytest.fixture(scope="session")
def adapters(base: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter's folder for each method, by task name."""
    from support.served import make_adapters

    return make_adapters(base[0], tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session")
def server(
    base: tuple[Any, Path], adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A server with every adapter published, used by all tests that leave it as they found it."""
    from support.served import Served, upload_parts

    data = tmp_path_factory.mktemp("served") / "data"
    with Served(base[1], data, "--max-upload-bytes", "2000000", "--max-body-bytes", "200000") as running:
        for task, folder in adapters.items():
            response = running.http.put(f"/v1/adapters/{task}", files=upload_parts(folder))
            assert response.status_code == 201, response.text
        yield running
