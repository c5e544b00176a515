"""What every test may rely on."""

from __future__ import annotations

import os

# Tiny models gain nothing from a second thread, and threads that wait for each other on a busy machine cost fivefold.
# Set before torch is imported, and inherited by every server that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from support.tools import reason_to_skip

pytest_plugins = ["support.served_fixtures"]
"""One server for all folders whose tests leave it as they found it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` or `tools` are skipped, and listed as such, where there is no GPU or a program is missing."""
    gpu = torch.cuda.is_available()
    for item in items:
        if not gpu and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        for marker in item.iter_markers("tools"):
            if reason := reason_to_skip(marker.args):
                item.add_marker(pytest.mark.skip(reason=reason))
