"""What every test may rely on."""

from __future__ import annotations

import os

# Tiny models gain nothing from a second thread, and threads that wait for each other on a busy machine cost fivefold.
# Set before torch is imported, and inherited by every server that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped, and counted as such, where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
