"""A request's priority and its tenant's weight come from the wire to the scheduler."""

from __future__ import annotations

from softmux.bench.fairness import make_engine
from softmux.types import SamplingParams
from softmux.worker.messages import Generate, Read
from softmux.worker.process import Worker


def test_priority_and_weight_come_to_the_scheduler() -> None:
    engine = make_engine(4)
    worker = Worker.__new__(Worker)  # no socket: what is handed over is looked at here
    worker.engine = engine
    common = {"tenant": "a", "tokens": (5, 6, 7), "priority": -3, "weight": 2.5}
    generate = Generate(id="1", sampling=SamplingParams(), **common)
    read = Read(id="2", scored=1, **common)
    try:
        for message in (generate, read):
            sequence = worker._start(b"c", message, came=0.0)
            assert (sequence.priority, sequence.weight, sequence.root.tenant) == (-3, 2.5, "a")
    finally:
        engine.close()
