"""What a step read comes back as bytes by row, whatever lies behind a row's own labels."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import torch

from softmux.engine.readings import Readings


def floats(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


def test_rows_have_their_own_labels_and_those_that_are_not_finite_are_told() -> None:
    scores = torch.tensor([[1, 2, inf, nan], [1, 2, 3, 4], [5, nan, 7, 8], [9, 8, 7, nan]])
    likely = torch.tensor([[-0.5], [-1.5], [-inf]])
    found, lost = Readings([(0, 1, 2), (2, 2, 4), (3, 1, 3)], scores, [(5, 2, 1), (7, 1, 1)], likely).told()
    assert found[0] == floats(1, 2)
    assert found[2] == floats(1, 2, 3, 4, 5, nan, 7, 8)
    assert found[3] == floats(9, 8, 7)
    assert (found[5], found[7]) == (floats(-0.5, -1.5), floats(-inf))
    assert lost == [2, 7]


def test_a_step_that_reads_nothing_tells_nothing() -> None:
    assert Readings([], None, [], None).told() == ({}, [])
