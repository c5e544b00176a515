"""What a sequence costs the engine, in tokens generated: how long a queue takes is counted in it."""

from __future__ import annotations

PREFILL = 1 / 8
"""Of an input token, which is computed beside many others."""


def cost(input_tokens: int, new_tokens: int) -> float:
    """`new_tokens` at most: what a sequence really brings is in the measured rate."""
    return PREFILL * input_tokens + new_tokens
