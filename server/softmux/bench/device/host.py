"""What the host does for a decode step, and for texts that heads read, with a model that takes no time: `softmux bench
host`.

The scheduler, the runner and the wire are the server's own; the model's layers, the GPU and its graphs are stood in for
by nothing. So these are the microseconds that must hide behind the device's step before (docs/performance.md).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from softmux.engine.graphs import pad
from softmux.engine.heads import HeadShape, head_rows
from softmux.engine.runner import Launched, ModelRunner
from softmux.engine.staging import Ring
from softmux.engine.tiers import AdapterTiers
from softmux.formats.parts import HeadPart
from softmux.scheduler.radix import RootKey
from softmux.scheduler.reading import Reading
from softmux.scheduler.rows import Step
from softmux.scheduler.scheduler import Scheduler
from softmux.scheduler.sequence import Sequence as Running
from softmux.scheduler.shelf import Room
from softmux.types import LayerKV, SamplingParams
from softmux.worker.messages import Outputs
from softmux.worker.outbox import messages

ROWS = (1, 16, 64, 256)
PARTS = ("next", "launch", "collect", "update", "encode")
TEXT_PARTS = ("queue", *PARTS)
_CONTEXT, _PROMPT, _TASKS, _VOCABULARY = 4096, 256, 16, 32
_CPU = torch.device("cpu")
_TRAINED, _LONGEST = 16, 48
"""Of the texts: positions of the trained prefix before each, and the most tokens that one has."""


class _Shelf:
    """Every adapter is at hand, and none has compiled KV."""

    def expect(self, adapter: RootKey) -> None: ...

    def ready(self, adapter: RootKey) -> bool:
        return True

    def compiled(self, adapter: RootKey) -> int:
        return 0

    def room(self, adapter: RootKey) -> Room:
        return "none"

    def hold(self, adapter: RootKey) -> int:
        return -1

    def release(self, adapter: RootKey) -> None: ...


class _Model:
    """No layers: logits at once, the same for every row."""

    device, dtype, kv_dtype, layers, eos_token_ids = _CPU, torch.float32, torch.float32, (LayerKV(1, 1),), (2,)
    state_width, pooler, causal, forced_first = 1, None, True, 0
    embedding = torch.nn.Embedding(_VOCABULARY, 1)

    def use(self, backend: object) -> None: ...

    def forward(self, _embeddings: object, _positions: object, wanted: torch.Tensor, _rows: object) -> torch.Tensor:
        return torch.zeros((len(wanted), _VOCABULARY))

    def forced(self, _batch: object) -> None: ...

    def will_read(self, _at: object, _tokens: int) -> None: ...


class _Encoder(_Model):
    """All hidden states are alike."""

    causal = False

    def states(self, at: torch.Tensor) -> torch.Tensor:
        return torch.zeros((len(at), 1))


class _Prefixed(_Shelf):
    """Every adapter has a trained prefix, which costs nothing to copy, and a head of two labels."""

    def __init__(self) -> None:
        weight = np.ones((2, 1), np.float32)
        part = HeadPart("sequence", weight, None, None, False, ("a", "b"), "single_label_classification")
        self._shape, self._rows = head_rows(part)

    def compiled(self, adapter: RootKey) -> int:
        return _TRAINED

    def load(self, _loads: object, _pool: object) -> None: ...

    def head_shape(self, _adapter: RootKey) -> HeadShape:
        return self._shape

    def head(self, _adapter: RootKey) -> torch.Tensor:
        return self._rows


class _Graphs:
    """One graph of `rows` rows: its inputs are laid out, and nothing runs."""

    def __init__(self, rows: int) -> None:
        self._staging = Ring((4, rows), torch.int32, _CPU)
        self._padding = np.zeros((4, 1), np.int32)
        self._logits, self._tokens = torch.zeros((rows, _VOCABULARY)), torch.full((rows,), 7)

    def fits(self, rows: int) -> bool:
        return rows <= len(self._tokens)

    def replay(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        buffer = self._staging.next()
        pad(buffer.array, step, self._padding)
        buffer.mark()
        return self._logits[: step.shape[1]], self._tokens[: step.shape[1]]


@dataclass(slots=True)
class HostTimes:
    """Seconds of each part, by step or by pass over all texts."""

    rows: int
    parts: dict[str, list[float]]

    def microseconds(self) -> dict[str, float]:
        """Medians, and their sum."""
        medians = {name: statistics.median(times) * 1e6 for name, times in self.parts.items()}
        return medians | {"sum": sum(medians.values())}

    def least(self) -> dict[str, float]:
        """The fastest of each part in microseconds, and their sum: other load only adds to a pass of many rows."""
        fastest = {name: min(times) * 1e6 for name, times in self.parts.items()}
        return fastest | {"sum": sum(fastest.values())}


def measure(rows: int, steps: int = 300) -> HostTimes:
    """`steps` steps in which `rows` rows of 16 tasks decode, each built before the one before is booked."""
    scheduler = Scheduler(
        slots=rows * (_PROMPT + steps + 64), max_rows=rows, max_step_tokens=8192, context_length=_CONTEXT, eos=(2,),
        shelf=_Shelf(),
    )  # fmt: skip
    model: Any = _Model()
    tiers: Any = AdapterTiers
    runner = ModelRunner(
        model, slots=16, max_rows=rows, context_length=_CONTEXT, resident_vectors=1, tiers=tiers, backend=_backend()
    )
    graphs: Any = _Graphs(rows)
    runner.graphs = graphs
    draw = random.Random(0)  # noqa: S311
    for number in range(rows):
        root = RootKey("tenant", f"task-{number % _TASKS}", "base", "kv")
        tokens = [draw.randrange(3, _VOCABULARY) for _ in range(_PROMPT)]
        name = f"gen-0123456789abcdef01234567-{number}"
        scheduler.add(Running(name, b"api", root, tokens, SamplingParams(max_tokens=steps + 32), arrival=0.0))
    while scheduler.table.taken < rows or not scheduler.table.decodes.all():
        batch, _ = scheduler.next(0.0)
        scheduler.update(batch, runner.collect(runner.launch(batch)), 0.0)
    times = HostTimes(rows, {part: [] for part in PARTS})
    encode = msgspec.msgpack.Encoder().encode
    flying: Launched | None = None
    for _ in range(steps):
        moments = [time.perf_counter()]
        batch, _ = scheduler.next(0.0)
        moments.append(time.perf_counter())
        launched = runner.launch(batch)
        moments.append(time.perf_counter())
        flying, landed = launched, flying
        if landed is None:
            continue
        output = runner.collect(landed)
        moments.append(time.perf_counter())
        news = scheduler.update(landed.batch, output, 0.0)
        moments.append(time.perf_counter())
        sent: list[tuple[bytes, Outputs]] = messages({}, news.plain)
        for _, message in sent:
            encode(message)
        moments.append(time.perf_counter())
        for part, begin, end in zip(PARTS, moments, moments[1:], strict=False):
            times.parts[part].append(end - begin)
    return times


def measure_texts(texts: int = 512, passes: int = 40) -> HostTimes:
    """`texts` short texts of 16 tasks, all at once, to heads behind trained prefixes: by pass, in steps of up to 8192
    tokens and 256 rows, each built before the one before is booked."""
    shelf: Any = _Prefixed()
    scheduler = Scheduler(
        slots=2 * texts * (_TRAINED + _LONGEST), max_rows=ROWS[-1], max_step_tokens=8192, context_length=_CONTEXT,
        eos=(), shelf=shelf,
    )  # fmt: skip
    model: Any = _Encoder()
    runner = ModelRunner(
        model, slots=16, max_rows=ROWS[-1], context_length=_CONTEXT, resident_vectors=1, tiers=shelf, backend=_backend()
    )
    draw = random.Random(0)  # noqa: S311
    prefix = [-1 - i for i in range(_TRAINED)]
    lengths = [2 + int((_LONGEST - 1) * draw.random() ** 2) for _ in range(texts)]
    inputs = [prefix + [draw.randrange(_VOCABULARY) for _ in range(length)] for length in lengths]
    roots = [RootKey("tenant", f"task-{number}", "base", "kv") for number in range(_TASKS)]
    once = SamplingParams(max_tokens=1, ignore_eos=True)
    times = HostTimes(texts, {part: [] for part in TEXT_PARTS})
    encode = msgspec.msgpack.Encoder().encode
    for turn in range(1 + passes):  # the first copies prefixes and heads in
        spent = dict.fromkeys(TEXT_PARTS, 0.0)
        clock = _Clock(spent)
        for number, tokens in enumerate(inputs):
            reading = Reading("head", _TRAINED, _TRAINED + 1, _TRAINED, alone=True)
            root = roots[number % _TASKS]
            scheduler.add(Running(f"read-{number}", b"api", root, tokens, once, 0.0, reading=reading))
        clock.spent_on("queue")
        flying: Launched | None = None
        left = texts
        while left:
            batch, _ = scheduler.next(0.0)
            clock.spent_on("next")
            launched = runner.launch(batch) if len(batch) else None
            clock.spent_on("launch")
            flying, landed = launched, flying
            if landed is None:
                continue
            output = runner.collect(landed)
            clock.spent_on("collect")
            news = scheduler.update(landed.batch, output, 0.0)
            clock.spent_on("update")
            for _, message in messages({b"api": [told for _, told in news.outputs]}, news.plain):
                encode(message)
            clock.spent_on("encode")
            left -= len(news.outputs)
        for part in TEXT_PARTS if turn else ():
            times.parts[part].append(spent[part])
    return times


class _Clock:
    """Books the time since it was last asked."""

    def __init__(self, spent: dict[str, float]) -> None:
        self._spent = spent
        self._since = time.perf_counter()

    def spent_on(self, part: str) -> None:
        now = time.perf_counter()
        self._spent[part] += now - self._since
        self._since = now


def _backend() -> Any:
    class Backend:
        name = "none"

        def __init__(self, _pool: object) -> None: ...

    return Backend


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="softmux bench host", description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    say = sys.stdout.write
    say("microseconds a step  " + "".join(f"{name:>10}" for name in (*PARTS, "sum")) + "\n")
    found: dict[int | str, dict[str, float]] = {}
    for rows in ROWS:
        found[rows] = measure(rows, options.steps).microseconds()
        say(f"{rows:4d} rows            " + "".join(f"{value:10.1f}" for value in found[rows].values()) + "\n")
    read = measure_texts()
    told = read.least()
    parts = ", ".join(f"{name} {value / 1e3:.2f}" for name, value in told.items())
    say(f"milliseconds for {read.rows} texts that heads read, at least: {parts}\n")
    if options.json:
        found["texts"] = told
        options.json.write_text(json.dumps(found, indent=2) + "\n")
