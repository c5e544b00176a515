"""What a base says next, drawn at a temperature."""

from __future__ import annotations

import torch


class Sampler:
    """A `Pick` that draws each token at a temperature; the same draws for the same seed on one device."""

    def __init__(self, temperature: float, seed: int, device: torch.device) -> None:
        self._temperature = temperature
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        shares = (logits.float() / self._temperature).softmax(-1)
        return torch.multinomial(shares, 1, generator=self._generator)[:, 0]
