"""What an API process says of the requests that were in the step a worker died in."""

from __future__ import annotations

from contextvars import copy_context
from typing import Any

import pytest

from softmux.api import standing
from softmux.api.siblings import Siblings
from softmux.api.standing import MOST_NAMED, Standing
from softmux.errors import EngineDown
from softmux.telemetry.exposition import Metrics
from softmux.telemetry.trail import begin
from softmux.types import AdapterRef
from softmux.worker.quarantine import Verdicts

ADAPTER = AdapterRef("default", "sentiment", 3, "sha256:d", "lora", 0)
IN_STEP = frozenset(range(1, 31))


def test_so_many_of_a_deaths_requests_are_named_and_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[dict[str, Any]] = []

    class Log:
        def warning(self, event: str, **fields: Any) -> None:
            lines.append(fields)

    monkeypatch.setattr(standing, "log", Log())
    book = Standing(Siblings(None), Metrics(lambda: None))  # type: ignore[arg-type]

    def end(content: int, adapter: AdapterRef | None = ADAPTER) -> None:
        def within_its_request() -> None:
            begin(f"mine-{content}")
            book.explained(EngineDown("it died"), adapter, content, 7)

        copy_context().run(within_its_request)

    book.hear(Verdicts(requests=frozenset({2})), IN_STEP, died=True)
    end(99)
    assert lines == [], "it only waited"
    end(1, None)
    end(2)
    assert lines == [
        {"request_id": "mine-1", "task": None, "version": None, "quarantined": False},
        {"request_id": "mine-2", "task": "sentiment", "version": 3, "quarantined": True},
    ]
    for content in IN_STEP - {1, 2}:
        end(content)
    book.hear(Verdicts(), IN_STEP, died=False)  # of something else
    end(5)
    assert len(lines) == MOST_NAMED
    book.hear(Verdicts(), IN_STEP, died=True)
    end(5)
    assert len(lines) == MOST_NAMED + 1
