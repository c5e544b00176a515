from __future__ import annotations

import pytest

from softmux.registry import connection
from support.registries import registry, runner

__all__ = ["registry", "runner"]


@pytest.fixture(autouse=True)
def _patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than a second; what is about that second keeps it."""
    if request.path.name != "test_redis_answers.py":
        monkeypatch.setattr(connection, "BUDGET", 10.0)
