"""How a rank's process ends where what it does raises."""

from __future__ import annotations

import io
import signal
from types import SimpleNamespace

import msgspec
import pytest

from softmux.worker import rank
from softmux.worker.config import RankConfig


def test_a_rank_whose_step_raises_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By an ordinary exit it would take its communicators down first, which waits for ranks that wait for it."""

    def ended(code: int) -> None:
        raise SystemExit(code)

    def failing(_: RankConfig) -> int:
        raise RuntimeError("no memory for a step")

    config = msgspec.json.encode(RankConfig(1, "meeting", "orders", "gifts", 1, {}))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(config + b"\n")))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr("logging.shutdown", lambda: None)
    monkeypatch.setattr(rank, "_die_with", lambda _: None)
    monkeypatch.setattr(rank, "serve", failing)
    monkeypatch.setattr("os._exit", ended)
    with pytest.raises(SystemExit) as end:
        rank.main()
    assert end.value.code == 1
    assert "no memory for a step" in caplog.text
