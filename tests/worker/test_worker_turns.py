"""A request's priority and its tenant's weight come from the wire to the scheduler."""

from __future__ import annotations

import torch

from softmux.bench.services.fairness import make_engine
from softmux.formats.folder import read_adapter
from softmux.types import SamplingParams
from softmux.worker.canary import Canary
from softmux.worker.messages import Admit, Generate, Read
from softmux.worker.process import Worker
from support.learned import prompt_files


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


def test_an_upload_leaves_its_tenants_weight_as_it_is() -> None:
    engine = make_engine(4)
    try:
        engine.add("1", (5, 6, 7), SamplingParams(), root=engine.key("a", None), now=0.0, weight=4.0)
        files = prompt_files(torch.ones(2, engine.spec.hidden_size))
        manifest = read_adapter(files, engine.spec).manifest
        for tenant, weight in (("a", 4.0), ("b", 1.0)):
            admit = Admit(id=tenant, tenant=tenant, manifest=manifest, files=files)
            assert Canary(engine).start(b"c", admit, 0.0) == []
            assert engine.scheduler.counters.weight(tenant) == weight
    finally:
        engine.close()
