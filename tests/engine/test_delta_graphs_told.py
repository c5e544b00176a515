"""What the device is told of rows' slots, when telling it fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from softmux.engine import delta_graphs
from softmux.engine.delta_graphs import DeltaGraphs


def _no_graphs(*_: Any) -> Any:
    raise AssertionError("nothing is captured here")


def test_what_could_not_be_told_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = DeltaGraphs(_no_graphs, 4, torch.device("cpu"))
    rows, slots = np.array([0, 2]), np.array([1, 3])

    def no_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as failing:
        failing.setattr(delta_graphs, "send", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            graphs.tell(rows, slots)
    graphs.tell(rows, slots)
    assert graphs.row_slots.tolist() == [1, -1, 3, -1, -1]
