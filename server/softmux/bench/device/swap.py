"""What a step's copies cost: learned vectors into the step's table, compiled prefixes into the KV pool, and back.

`softmux bench swap`. Host time is what the step's thread spends; device time what the copy takes once the
device turns to it; both, idle to done, is the two together with a wait for the device. On a GPU each is measured in
the batched way and in the direct one, a torch call for each adapter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from softmux.engine.arena import HostArena
from softmux.engine.transfer import Copies, DirectCopies, Piece, best_copies
from softmux.engine.vocabulary import VirtualVocabulary
from softmux.scheduler.radix import RootKey

TOKENS = 20
_UNCOUNTED = 5
"""Calls ahead of those that count, which compile what is to be compiled."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians in microseconds, and the bytes of one call."""

    what: str
    host: float
    device: float | None
    both: float
    bytes: int

    def words(self) -> str:
        device = "–" if self.device is None else f"{self.device:8.1f}"
        return f"{self.what:55s} host {self.host:8.1f} µs  device {device} µs  idle to done {self.both:8.1f} µs"


class _Clock:
    """Times calls that give the device work; `before` is run ahead of each, unmeasured."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self._gpu = device.type == "cuda"
        self._repeats = repeats
        self.calls = 2 * (repeats + _UNCOUNTED)

    def cost(self, what: str, size: int, call: Callable[[int], object], fence: Callable[[], object]) -> Cost:
        """`call(n)` is the n-th of its kind; `fence()` makes it wait for what the device has been given so far."""
        host, both, device = [], [], []
        for number in range(self._repeats + _UNCOUNTED):
            self._settle()
            began = time.perf_counter()
            call(2 * number)
            returned = time.perf_counter()
            self._settle()
            ended = time.perf_counter()
            if number >= _UNCOUNTED:
                host.append(returned - began)
                both.append(ended - began)
            if self._gpu:
                device.append(self._on_device(lambda: call(2 * number + 1), fence))  # noqa: B023
        return Cost(
            what,
            statistics.median(host) * 1e6,
            statistics.median(device[_UNCOUNTED:]) * 1e3 if self._gpu else None,
            statistics.median(both) * 1e6,
            size,
        )

    def _on_device(self, call: Callable[[], object], fence: Callable[[], object]) -> float:
        """Milliseconds, with all of it launched before any of it runs."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(4_000_000)  # some 2 ms
        fence()
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def _settle(self) -> None:
        if self._gpu:
            torch.cuda.synchronize()


def vectors_cost(
    name: str, copies: Copies, device: torch.device, *, adapters: int, hidden: int, repeats: int = 100
) -> Cost:
    """Of `adapters` prompts of 20 vectors, in host memory, into the table from which the step takes them."""
    dtype = torch.bfloat16
    arena = HostArena(pinned=device.type == "cuda")
    values = [arena.empty((TOKENS, hidden), dtype).normal_() for _ in range(adapters)]
    table = VirtualVocabulary(2 * adapters * TOKENS, hidden, dtype, device, copies)
    size = sum(tensor.nbytes for tensor in values)
    clock = _Clock(device, repeats)
    named = [
        {RootKey("", f"{number}-{i}", "", ""): tensor for i, tensor in enumerate(values)}
        for number in range(clock.calls)
    ]

    def call(number: int) -> None:
        table.rows_of(named[number], named[number].__getitem__)

    what = f"{adapters} x {TOKENS} x {hidden} into the table, {name}"
    return clock.cost(what, size, call, lambda: table.gather([0]))


def prefixes_cost(
    name: str,
    copies: Copies,
    device: torch.device,
    *,
    adapters: int,
    layers: int,
    back: bool,
    repeats: int = 50,
) -> Cost:
    """Of `adapters` compiled prefixes of 20 tokens (8 KV heads of 128) into the pool's slots, or `back` from them."""
    dtype = torch.bfloat16
    arena = HostArena(pinned=device.type == "cuda")
    pool = torch.zeros((2, layers, adapters * TOKENS + 1, 8, 128), dtype=dtype, device=device)
    order = torch.randperm(adapters * TOKENS).tolist()
    pieces = [
        Piece(arena.empty((2, layers, TOKENS, 8, 128), dtype).fill_(1), 0, order[at * TOKENS : (at + 1) * TOKENS])
        for at in range(adapters)
    ]
    size = sum(piece.values.nbytes for piece in pieces)
    fences: list[torch.cuda.Event] = []

    def fence() -> None:
        fences[:] = [torch.cuda.Event()]
        fences[0].record()

    def call(_: int) -> None:
        if back:
            copies.gather(pool, 2, pieces)
        else:
            copies.scatter(pool, 2, pieces, fences[0] if fences else None)

    where = "back to the host" if back else "into the pool"
    what = f"{adapters} prefixes of {TOKENS} x {layers} layers {where}, {name}"
    return _Clock(device, repeats).cost(what, size, call, fence)


def measure(device: torch.device, repeats: int) -> list[Cost]:
    ways: dict[str, Copies] = {"batched": best_copies(device), "direct": DirectCopies(device)}
    if device.type == "cpu":
        del ways["batched"]
    found: list[Cost] = []
    for name, copies in ways.items():
        found.append(vectors_cost(name, copies, device, adapters=1, hidden=8192, repeats=repeats))
        found.append(vectors_cost(name, copies, device, adapters=64, hidden=2048, repeats=repeats))
        for layers in (8, 32):
            for adapters in (1, 16, 64):
                for back in (False, True):
                    found.append(
                        prefixes_cost(
                            name, copies, device, adapters=adapters, layers=layers, back=back, repeats=repeats // 4
                        )
                    )
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench swap", description=__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    found = measure(torch.device(options.device), options.repeats)
    for cost in found:
        rate = f"  {cost.bytes / cost.device / 1e3:6.1f} GB/s" if cost.device else ""
        sys.stdout.write(cost.words() + rate + "\n")
    sys.stdout.write(json.dumps([asdict(cost) for cost in found]) + "\n")
    return 0
