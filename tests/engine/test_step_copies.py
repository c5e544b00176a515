"""A step's copies between host memory and slots: every way of making them, on every device, gives the same bytes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from softmux.engine import transfer
from softmux.engine.arena import HostArena
from softmux.engine.transfer import Copies, DirectCopies, Piece, StreamedCopies, best_copies

WAYS = [
    pytest.param(DirectCopies, "cpu", id="direct-cpu"),
    pytest.param(DirectCopies, "cuda", id="direct-cuda", marks=pytest.mark.gpu),
    pytest.param(StreamedCopies, "cuda", id="streamed-cuda", marks=pytest.mark.gpu),
]
LAYERS, HEADS = 3, 2


def settled(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().contiguous().view(torch.uint8)


def check_prefixes(copies: Copies, device: str, dtype: torch.dtype, head_dim: int) -> None:
    """Parts of prefixes of several lengths into slots in any order, and slots back into prefixes."""
    arena = HostArena(pinned=device == "cuda", first_slab=1 << 16)
    draw = random.Random(0)
    pool = torch.zeros((2, LAYERS, 200, HEADS, head_dim), dtype=dtype, device=device)
    expected = torch.zeros((2, LAYERS, 200, HEADS, head_dim), dtype=dtype)
    free = list(range(200))
    draw.shuffle(free)
    pieces = []
    for length, start, count in ((5, 1, 3), (20, 0, 20), (1, 0, 1), (40, 7, 33), (64, 0, 64)):
        values = arena.empty((2, LAYERS, length, HEADS, head_dim), dtype)
        values.copy_(torch.randn(values.shape))
        slots = [free.pop() for _ in range(count)]
        pieces.append(Piece(values, start, slots))
        expected[:, :, slots] = values[:, :, start : start + count]
    copies.scatter(pool, 2, pieces, None)
    assert torch.equal(raw(pool), raw(expected))
    back = [
        Piece(arena.empty((2, LAYERS, len(piece.slots), HEADS, head_dim), dtype), 0, piece.slots[::-1])
        for piece in pieces
    ]
    landing = copies.gather(pool, 2, back)
    settled(device)
    assert landing.landed()
    for piece in back:
        assert torch.equal(raw(piece.values), raw(expected[:, :, list(piece.slots)]))


def check_vectors(copies: Copies, device: str, dtype: torch.dtype, hidden: int) -> None:
    arena = HostArena(pinned=device == "cuda", first_slab=1 << 16)
    table = torch.zeros((90, hidden), dtype=dtype, device=device)
    learned = [arena.empty((count, hidden), dtype).copy_(torch.randn((count, hidden))) for count in (20, 1, 33)]
    rows = list(range(90))
    random.Random(1).shuffle(rows)
    pieces = [Piece(values, 0, [rows.pop() for _ in range(len(values))]) for values in learned]
    copies.scatter(table, 0, pieces, None)
    for piece in pieces:
        assert torch.equal(raw(table[list(piece.slots)]), raw(piece.values))
    assert not table[rows].any()


def check_many(copies: Copies, device: str) -> None:
    """More tokens than the copies have made room for, between calls that have room enough."""
    arena = HostArena(pinned=device == "cuda", first_slab=1 << 20)
    for count in (5, 9000, 7):
        table = torch.zeros((9000, 4), device=device)
        values = arena.empty((count, 4), torch.float32).copy_(torch.randn((count, 4)))
        copies.scatter(table, 0, [Piece(values, 0, range(count))], None)
        assert torch.equal(table[:count].cpu(), values)
        assert not table[count:].any()


class KeptKernel:
    """A kernel as Triton compiles it, made of the interpreter's: launched with all arguments, in the kernel's order."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.dispatched = self.launched = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def dispatch(*arguments: object, num_warps: int, **constants: object) -> KeptKernel:
            self.dispatched += 1
            self.kernel[grid](*arguments, **constants)
            return KeptKernel.Compiled(self)  # type: ignore[return-value]

        return dispatch

    class Compiled:
        def __init__(self, of: KeptKernel) -> None:
            self._of = of

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*arguments: object, stream: int | None = None) -> None:
                assert stream is None
                self._of.launched += 1
                self._of.kernel[grid](*arguments)

            return launch


def check_kept() -> None:
    """Variants that have been compiled are launched without the dispatcher, each with its own kernel."""
    from softmux.engine.kernels import copy

    kernel = KeptKernel(copy._copy)
    copy._copy = kernel
    copies = StreamedCopies(torch.device("cpu"))
    for _ in range(2):
        check_prefixes(copies, "cpu", torch.float32, 16)
        check_vectors(copies, "cpu", torch.bfloat16, 2100)
    assert (kernel.dispatched, kernel.launched) == (3, 5), "in, out and into a table of another width; then no more"
    dispatching = StreamedCopies(torch.device("cpu"), short=False)
    for _ in range(2):
        check_vectors(dispatching, "cpu", torch.bfloat16, 2100)
    check_prefixes(dispatching, "cpu", torch.float32, 16)
    assert (kernel.dispatched, kernel.launched) == (8, 5)


@pytest.mark.parametrize(("way", "device"), WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 64, 3])
def test_prefixes_go_into_slots_and_come_back(
    way: type[DirectCopies | StreamedCopies], device: str, dtype: torch.dtype, head_dim: int
) -> None:
    check_prefixes(way(torch.device(device)), device, dtype, head_dim)


@pytest.mark.parametrize(("way", "device"), WAYS)
@pytest.mark.parametrize(("dtype", "hidden"), [(torch.float32, 64), (torch.bfloat16, 2100), (torch.float32, 8192)])
def test_learned_vectors_go_into_rows(
    way: type[DirectCopies | StreamedCopies], device: str, dtype: torch.dtype, hidden: int
) -> None:
    check_vectors(way(torch.device(device)), device, dtype, hidden)


@pytest.mark.parametrize(("way", "device"), WAYS)
def test_values_of_another_dtype_are_converted(way: type[DirectCopies | StreamedCopies], device: str) -> None:
    table = torch.zeros((9, 8), dtype=torch.bfloat16, device=device)
    values = torch.randn((3, 8))
    way(torch.device(device)).scatter(table, 0, [Piece(values, 1, [4, 2])], None)
    assert torch.equal(table[[4, 2]].cpu(), values[1:].bfloat16())


def test_the_kernel_itself_on_the_cpu() -> None:
    """By Triton's interpreter, which must be asked for before Triton is imported: in a process of its own."""
    pytest.importorskip("triton")
    program = (
        "import torch, test_step_copies as t\n"
        "copies = t.StreamedCopies(torch.device('cpu'))\n"
        "for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):\n"
        "    t.check_prefixes(copies, 'cpu', dtype, 16)\n"
        "t.check_vectors(copies, 'cpu', torch.bfloat16, 2100)\n"
        "t.check_many(copies, 'cpu')\n"
        "t.check_kept()\n"
        "print('equal')"
    )
    path = [os.path.dirname(__file__), *sys.path]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr


@pytest.mark.parametrize(("way", "device"), WAYS)
def test_thousands_of_tokens_in_one_call(way: type[DirectCopies | StreamedCopies], device: str) -> None:
    check_many(way(torch.device(device)), device)


@pytest.mark.parametrize(("fail", "tried"), [(0, [True]), (1, [True, False]), (2, [True, False])])
def test_a_way_that_fails_its_proof_is_left_for_the_next(
    fail: int, tried: list[bool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[bool] = []

    class Streamed:
        def __init__(self, _device: torch.device, *, short: bool) -> None:
            made.append(short)

    def prove(_copies: Copies, _device: torch.device) -> None:
        if len(made) <= fail:
            raise RuntimeError("another than was sent")

    monkeypatch.setattr(transfer, "StreamedCopies", Streamed)
    monkeypatch.setattr(transfer, "_prove", prove)
    monkeypatch.setattr(transfer.importlib.util, "find_spec", lambda _name: True)
    found = best_copies(torch.device("cuda"))
    assert isinstance(found, DirectCopies if fail == 2 else Streamed)
    assert made == tried
    assert caplog.text.count("another than was sent") == fail


@pytest.mark.gpu
def test_a_gpu_has_the_short_way_and_the_longer_one_brings_the_same() -> None:
    assert best_copies(torch.device("cuda"))._copy._keep, "the log says what failed"  # type: ignore[attr-defined]
    longer = StreamedCopies(torch.device("cuda"), short=False)
    check_prefixes(longer, "cuda", torch.bfloat16, 64)
    check_many(longer, "cuda")


@pytest.mark.gpu
def test_a_copy_runs_beside_the_step_and_the_next_step_finds_it() -> None:
    copies = best_copies(torch.device("cuda"))
    assert isinstance(copies, StreamedCopies)
    arena = HostArena(pinned=True)
    table = torch.zeros((64, 1024), device="cuda")
    values = arena.empty((20, 1024), torch.float32).copy_(torch.randn((20, 1024)))
    rows = list(range(20, 40))
    copies.scatter(table, 0, [Piece(values, 0, rows)], None)  # compiles
    table.zero_()
    torch.cuda.synchronize()
    torch.cuda._sleep(400_000_000)  # the step in flight: some 200 ms
    busy = torch.cuda.Event()
    busy.record()
    copies.scatter(table, 0, [Piece(values, 0, rows)], None)
    flight = copies._flights._flights[-1]
    flight.event.synchronize()
    assert not busy.query(), "the copy waited for the step"
    assert torch.equal(table[rows].cpu(), values)


@pytest.mark.gpu
def test_a_copy_waits_for_what_it_was_told_to_wait_for() -> None:
    copies = best_copies(torch.device("cuda"))
    arena = HostArena(pinned=True)
    table = torch.zeros((8, 64), device="cuda")
    values = arena.empty((4, 64), torch.float32).copy_(torch.ones((4, 64)))
    torch.cuda._sleep(100_000_000)
    table.fill_(7)  # a step that still uses those rows
    read = torch.cuda.Event()
    read.record()
    copies.scatter(table, 0, [Piece(values, 0, [0, 1, 2, 3])], read)
    assert table[:4].cpu().eq(1).all()
    assert table[4:].cpu().eq(7).all()


@pytest.mark.gpu
@pytest.mark.parametrize("way", [DirectCopies, StreamedCopies])
def test_what_a_copy_reads_stays_until_it_has_landed_whoever_lets_it_go(
    way: type[DirectCopies | StreamedCopies],
) -> None:
    """The tiers may evict an adapter, and others take its memory, while its copy still waits for its turn."""
    copies = way(torch.device("cuda"))
    arena = HostArena(pinned=True, first_slab=1 << 20)
    table = torch.zeros((64, 1024), device="cuda")
    expected = torch.randn((20, 1024))
    values = arena.empty((20, 1024), torch.float32).copy_(expected)
    held = values.nbytes
    torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)
    read = torch.cuda.Event()
    read.record()
    copies.scatter(table, 0, [Piece(values, 0, list(range(20)))], read)
    del values
    assert arena.free <= arena.size - held
    others = [arena.empty((20, 1024), torch.float32).fill_(3) for _ in range(10)]
    assert torch.equal(table[:20].cpu(), expected)
    assert len(others) == 10


@pytest.mark.gpu
def test_slots_that_are_saved_may_be_written_by_the_next_step() -> None:
    copies = best_copies(torch.device("cuda"))
    arena = HostArena(pinned=True)
    pool = torch.randn((2, 4, 64, 2, 64), device="cuda")
    expected = pool[:, :, 8:28].cpu()
    back = arena.empty((2, 4, 20, 2, 64), torch.float32)
    copies.gather(pool, 2, [Piece(back, 0, list(range(20)))])  # compiles the kernels, which takes longer than the sleep
    torch.cuda.synchronize()
    torch.cuda._sleep(100_000_000)
    landing = copies.gather(pool, 2, [Piece(back, 0, list(range(8, 28)))])
    pool.zero_()
    assert not landing.landed()
    torch.cuda.synchronize()
    assert landing.landed()
    assert torch.equal(back, expected)
