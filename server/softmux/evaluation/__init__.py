"""What a tuned task is worth, and whether to ship it: tried on held-out rows in many ways, told in one report."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`evaluate` is loaded when it is asked for: it brings torch."""
    if name == "evaluate":
        from softmux.evaluation.run import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
