"""The device that something was measured on, as a README names it."""

from __future__ import annotations

import platform

import torch


def device_words(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
