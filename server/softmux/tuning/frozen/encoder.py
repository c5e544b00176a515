"""A frozen encoder, run with gradients over packed rows of many tasks, each under its own head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache

from softmux.engine.numbering import numbering
from softmux.errors import InvalidRequest, SelfTestFailed
from softmux.tuning.data.rows import HeadRow
from softmux.tuning.frozen.attention import PaddedAttention, RowAttention
from softmux.tuning.frozen.module import FrozenModule, rounding
from softmux.tuning.frozen.packing import Packed, Place, pack, prepare
from softmux.tuning.frozen.tables import Tables

_PROVED = (9, 4)
"""Lengths of the rows that are compared."""
_PREFIX = 3


class FrozenEncoder(FrozenModule):
    """A token sees its whole row and its task's prefix. Positions are numbered as the module itself does it, a prefix
    counted; token types are 0. `context_length`: tokens of a row and its prefix at most.

    Raises `InvalidRequest` for an encoder whose positions softmux does not know.
    """

    causal = False

    def __init__(self, model: Any, *, attention: RowAttention | None = None, checkpointing: bool = False) -> None:
        super().__init__(model, attention=attention, checkpointing=checkpointing)
        self._first, self.context_length = positions_of(model)

    def losses(self, packed: Packed, tables: Tables, noise: torch.Tensor | None = None) -> torch.Tensor:
        """`[targets]`, the cross-entropy of each label in float32."""
        return self._labelled(self.states(packed, tables, noise), packed, tables)[0]

    @torch.no_grad()
    def scored(self, packed: Packed, tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
        losses, likeliest = self._labelled(self.states(packed, tables, None), packed, tables)
        return losses, likeliest == packed.targets

    def states(self, packed: Packed, tables: Tables, noise: torch.Tensor | None = None) -> torch.Tensor:
        """`[targets, hidden]`, the last hidden states that are read. Within `running()`."""
        positions = packed.positions + self._first
        with self._given(packed, tables, noise) as embeddings:
            output = self.model(inputs_embeds=embeddings[None], position_ids=positions[None], attention_mask=None)
        states: torch.Tensor = output[0][0]
        return states.index_select(0, packed.wanted)


def positions_of(model: Any) -> tuple[int, int]:
    """(number of a row's first position, how many a row can have)."""
    embeddings = model.get_input_embeddings()
    two = embeddings(torch.zeros(2, dtype=torch.int64, device=embeddings.weight.device))
    try:
        with _asked(model):
            first, numbers = numbering(model, lambda: model(inputs_embeds=two[None]))
    except SelfTestFailed as error:
        raise InvalidRequest(error.message, param="base") from error
    return first, numbers - first


@contextmanager
def _asked(model: Any) -> Iterator[None]:
    """While an encoder is tried: one that wants more than a row of its own length (a language, a window's padding)
    fails in words of its own, which become an `InvalidRequest`. A lack of memory stays what it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        raise InvalidRequest(
            f"{type(model).__name__} does not run on rows as softmux gives them ({error}): softmux can't tune on it.",
            param="base",
        ) from error


@torch.no_grad()
def prove_encoder(frozen: FrozenEncoder, vocab_size: int) -> None:
    """Two packed rows against the module's own attention, one row at a time, without a prefix and behind one. Raises
    `InvalidRequest` where they differ by more than rounding: such a base can't be trained on packed."""
    rows = [tuple((7 * i + 3) % vocab_size for i in range(length)) for length in _PROVED]
    prepared = [prepare(HeadRow(ids, (0,) * len(ids)), 0, 0.0) for ids in rows]
    config = frozen.model.config
    width = 2 * frozen.layers * config.hidden_size
    drawn = torch.Generator().manual_seed(0)
    prefix = torch.randn(_PREFIX, width, generator=drawn).to(frozen.device)
    for length in (0, _PREFIX):
        with _asked(frozen.model):
            with frozen.running():
                packed = pack([(row, Place(0, prefix=length)) for row in prepared], frozen.device)
                found = frozen.states(packed, Tables(prefixes=prefix)).float()
            expected = torch.cat([_alone(frozen, ids, prefix[:length]) for ids in rows])
        apart = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        if not bool((apart <= rounding(frozen.dtype)).all()):
            raise InvalidRequest(
                f"{type(frozen.model).__name__} gives other values for packed rows than for rows alone "
                f"(by up to {float(apart.max()):.2g} of their size): softmux can't tune on it.",
                param="base",
            )


def _alone(frozen: FrozenEncoder, ids: tuple[int, ...], prefix: torch.Tensor) -> torch.Tensor:
    """The module's own last hidden states of one row, behind `prefix` as PEFT gives it one."""
    config, past = frozen.model.config, None
    if len(prefix):
        heads = config.num_attention_heads
        tables = prefix.to(frozen.dtype).view(len(prefix), 2 * frozen.layers, heads, -1).permute(1, 2, 0, 3)[:, None]
        past = DynamicCache(config=config)
        for layer, (keys, values) in enumerate(zip(tables[::2], tables[1::2], strict=True)):
            past.update(keys, values, layer)
    given = torch.tensor([ids], device=frozen.device)
    mask = torch.ones(1, len(prefix) + len(ids), device=frozen.device, dtype=torch.int64)
    states: torch.Tensor = frozen.model(input_ids=given, attention_mask=mask, past_key_values=past)[0][0]
    return states.float()


def padded_encoder(model: Any) -> FrozenEncoder:
    """With the attention that runs anywhere."""
    return FrozenEncoder(model, attention=PaddedAttention(causal=False))
