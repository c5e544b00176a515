"""Low-rank updates of a step's rows, whatever adapters they run on, added to a product's output: by torch anywhere, by
our kernels on a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from softmux.engine.delta_slots import DeltaSlots
from softmux.engine.device import send, to_device
from softmux.scheduler.rows import Ints

if TYPE_CHECKING:  # Triton is there on GPU machines only
    from softmux.engine.kernels.lora import Blocks


class _Group(NamedTuple):
    """Adapters of like rank that have like numbers of tokens, and so share a product: their slots, the larger rank."""

    slots: tuple[int, ...]
    rank: int


@dataclass(slots=True)
class Spread:
    """Whose adapter each token of a module's input is: `slots[i]` (−1: none) is that of `counts[i]` tokens in a row."""

    slots: Ints
    counts: Ints
    device: torch.device
    _tokens: dict[int, Ints] = field(default_factory=dict)
    _indices: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor | None]] = field(default_factory=dict)
    _blocks: Blocks | None = None

    def __post_init__(self) -> None:
        at = np.repeat(self.slots, self.counts)
        self._tokens = {slot: np.flatnonzero(at == slot) for slot in self.active}

    @property
    def active(self) -> list[int]:
        """The slots in use, in order."""
        active: list[int] = np.unique(self.slots[self.slots >= 0]).tolist()
        return active

    @property
    def by_token(self) -> Ints:
        return np.repeat(self.slots, self.counts)

    def count(self, slot: int) -> int:
        return len(self._tokens[slot])

    def index(self, slots: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`[slots, most]`: each slot's tokens, and behind them some token or other; and which of all these places are
        no filling (None: all)."""
        found = self._indices.get(slots)
        if found is None:
            most = max(self.count(slot) for slot in slots)
            index = np.zeros((len(slots), most), np.int64)
            real = np.zeros((len(slots), most), np.bool_)
            for row, slot in enumerate(slots):
                index[row, : self.count(slot)] = self._tokens[slot]
                real[row, : self.count(slot)] = True
            kept = None if real.all() else to_device(np.flatnonzero(real), self.device)
            found = self._indices[slots] = to_device(index.reshape(-1), self.device).view(index.shape), kept
        return found

    def blocks(self) -> Blocks:
        """For the kernels."""
        if self._blocks is None:
            from softmux.engine.kernels.lora import Blocks

            if int(self.counts.max()) == 1:
                self._blocks = Blocks(send(self.device, self.slots)[0].int())
            else:
                length = Blocks.length()
                rows = np.flatnonzero(self.slots >= 0)
                starts = (np.cumsum(self.counts) - self.counts)[rows]
                each = -(-self.counts[rows] // length)
                number = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
                at = np.repeat(starts, each) + number * length
                left = np.repeat(self.counts[rows], each) - number * length
                sent = send(self.device, np.repeat(self.slots[rows], each), at, np.minimum(left, length))
                self._blocks = Blocks(*(part.int() for part in sent))
        return self._blocks


class DeltaProducts(Protocol):
    """How updates are added."""

    def begin(self, spread: Spread) -> None:
        """Called once a step, with that of its tokens; other spreads of the step have no other slots."""

    def add(self, module: str, x: torch.Tensor, y: torch.Tensor, spread: Spread) -> None:
        """To `y [tokens, outputs]`, contiguous, what the adapters of `spread` make of `x [tokens, inputs]`."""


class TorchDeltas:
    """Two batched products for each group of adapters of like rank and like number of tokens (within a factor of two).

    A group's matrices are laid side by side once, and kept while the same adapters run.
    """

    def __init__(self, slots: DeltaSlots) -> None:
        self._slots = slots
        self._stacks: dict[tuple[str, _Group], tuple[torch.Tensor, torch.Tensor]] = {}
        self._stacked: list[tuple[int, int]] = []

    def begin(self, spread: Spread) -> None:
        stacked = [(slot, self._slots.seatings[slot]) for slot in spread.active]
        if stacked != self._stacked:
            self._stacks.clear()
            self._stacked = stacked

    def add(self, module: str, x: torch.Tensor, y: torch.Tensor, spread: Spread) -> None:
        for group in self._groups(module, spread):
            a, b = self._stack(module, group)
            index, kept = spread.index(group.slots)
            gained = torch.bmm(torch.bmm(x[index], a.transpose(1, 2)), b).flatten(0, 1)
            at = index.view(-1)
            if kept is not None:
                at, gained = at[kept], gained[kept]
            y.index_add_(0, at, gained)

    def _groups(self, module: str, spread: Spread) -> list[_Group]:
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for slot in spread.active:
            delta = self._slots.deltas[slot]
            update = delta.by_module.get(module) if delta is not None else None
            if update is not None:
                like = ((update.rank - 1).bit_length(), (spread.count(slot) - 1).bit_length())
                found.setdefault(like, []).append((slot, update.rank))
        return [_Group(tuple(s for s, _ in members), max(r for _, r in members)) for members in found.values()]

    def _stack(self, module: str, group: _Group) -> tuple[torch.Tensor, torch.Tensor]:
        """a `[adapters, rank, inputs]` and b `[adapters, rank, outputs]`, zeros where a rank is smaller."""
        found = self._stacks.get((module, group))
        if found is None:
            pairs = []
            for slot in group.slots:
                delta = self._slots.deltas[slot]
                assert delta is not None
                update = delta.by_module[module]
                pairs.append((delta.a(update), delta.b(update)))
            if len(pairs) == 1:
                found = pairs[0][0][None], pairs[0][1][None]
            else:
                found = tuple(  # type: ignore[assignment]
                    torch.nn.utils.rnn.pad_sequence([pair[side] for pair in pairs], batch_first=True) for side in (0, 1)
                )
            assert found is not None
            self._stacks[module, group] = found
        return found


class TritonDeltas:
    """Two launches for a product, whatever adapters, ranks and numbers of tokens there are (`kernels/lora.py`).

    Several modules' outputs may lie side by side in one product (merged QKV): `add_merged`.
    """

    def __init__(self, slots: DeltaSlots) -> None:
        self._slots = slots
        self._tiles: dict[tuple[int, int], torch.Tensor] = {}

    def begin(self, spread: Spread) -> None: ...

    def add(self, module: str, x: torch.Tensor, y: torch.Tensor, spread: Spread) -> None:
        self.add_merged(self._slots.columns[module], 1, x, y, spread.blocks())

    def add_merged(self, column: int, modules: int, x: torch.Tensor, y: torch.Tensor, blocks: Blocks) -> None:
        """To the outputs of `modules` neighbouring modules of the table, the first of them in `column`."""
        from softmux.engine.kernels.lora import add_lora, scratch_numbers, tiles_of

        tiles = self._tiles.get((column, modules))
        if tiles is None:
            tiles = tiles_of(self._slots.outputs[column : column + modules], x.device)
            self._tiles[column, modules] = tiles
        room = self._slots.largest_rank
        numbers = scratch_numbers(x.shape[0], modules, room, x.shape[1])
        scratch = torch.empty(numbers, dtype=torch.float32, device=x.device)
        slots = self._slots
        add_lora(y, x.contiguous(), slots.weights, slots.table, column, modules, tiles, blocks, scratch, room)
