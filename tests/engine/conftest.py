"""One tiny Llama for the engine's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engines import TestEngine
from support.models import make_base


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "base"
    make_base("llama", folder)
    return folder


@pytest.fixture(scope="session")
def base(base_folder: Path) -> Any:
    return make_base("llama", base_folder)


@pytest.fixture
def make_engine(base_folder: Path) -> Iterator[Callable[..., TestEngine]]:
    made: list[TestEngine] = []

    def make(**settings: Any) -> TestEngine:
        made.append(TestEngine(base_folder, **settings))
        return made[-1]

    yield make
    for engine in made:
        engine.engine.check_integrity()
        engine.close()
