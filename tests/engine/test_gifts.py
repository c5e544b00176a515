"""Adapters on their way from rank 0 to the others, where something goes wrong with one."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import zmq

from softmux.engine.arena import Empty, pageable
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.parallel.cut import Cut
from softmux.engine.parallel.follower import Follower
from softmux.engine.parallel.leader import Leader
from softmux.formats.parts import PromptPart

_WHOLE = HostAdapter.from_parts((PromptPart(torch.ones((3, 6)).numpy()),), torch.float32)


class _Full(Cut):
    """A rank's, for which there is no memory the first time."""

    tries: ClassVar[list[int]] = []

    def adapter(self, whole: HostAdapter, empty: Empty = pageable) -> HostAdapter:
        self.tries.append(1)
        if len(self.tries) == 1:
            raise MemoryError("none left")
        return super().adapter(whole, empty)


def follower(orders: str, gifts: str) -> Follower:
    runner: Any = SimpleNamespace(tiers=SimpleNamespace(slots=None), device=torch.device("cpu"))
    return Follower(runner, orders, gifts)


def test_an_adapter_that_cannot_be_cut_is_nobodys_and_the_next_is_everybodys(tmp_path: Path) -> None:
    endpoints = [(f"ipc://{tmp_path}/orders-{rank}", f"ipc://{tmp_path}/gifts-{rank}") for rank in (1, 2)]
    whole = {"heads": 8, "kv_heads": 4, "head_dim": 6, "inner": 40, "vocabulary": 97}
    kinds = (Cut, Cut, _Full)
    leader = Leader(endpoints, [kind(rank=rank, size=3, **whole) for rank, kind in enumerate(kinds)])
    ranks = [follower(*pair) for pair in endpoints]
    with pytest.raises(MemoryError):
        leader.give(_WHOLE)
    assert [len(rank.shares) for rank in ranks] == [0, 0]
    given: list[HostAdapter] = []
    giving = threading.Thread(target=lambda: given.append(leader.give(_WHOLE)), daemon=True)
    giving.start()
    giving.join(20)
    assert given
    for rank in ranks:
        assert rank.shares.of(given[0].serial).vectors is not None
    leader.close()


def test_a_rank_that_cannot_take_one_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, code = threading.Event(), []
    monkeypatch.setattr(os, "_exit", lambda told: (code.append(told), ended.set()))
    gifts: Any = zmq.Context.instance().socket(zmq.REQ)
    gifts.bind(f"ipc://{tmp_path}/gifts")
    follower(f"ipc://{tmp_path}/orders", f"ipc://{tmp_path}/gifts")
    gifts.send_multipart([(1).to_bytes(8, "little"), b"not a header"])
    assert ended.wait(20)
    assert code == [1]
    gifts.close(linger=0)
