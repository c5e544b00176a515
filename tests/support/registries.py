"""A real embedded server for every test that asks for one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from softmux.registry.registry import Registry


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for a test and its registry."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def registry(tmp_path: Path, runner: asyncio.Runner) -> Iterator[Registry]:
    """An open registry on an embedded server of its own, following."""
    registry = runner.run(Registry.open(None, tmp_path))
    try:
        runner.run(registry.follow())
        yield registry
    finally:
        runner.run(registry.close())
