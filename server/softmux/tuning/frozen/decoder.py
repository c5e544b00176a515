"""A frozen causal language model, run with gradients over packed rows of many tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div

from softmux.errors import InvalidRequest
from softmux.tuning.frozen.attention import PaddedAttention, RowAttention
from softmux.tuning.frozen.module import FrozenModule, rounding
from softmux.tuning.frozen.packing import Packed
from softmux.tuning.frozen.tables import Tables


class FrozenBase(FrozenModule):
    """A causal language model, under each task's own head where its rows have labels. `teacher` makes logits of the
    states that rows are taught by; None: this model does, whose own states they then are. `says_inputs`: whether it
    says an input's own tokens, so that they can weigh in a loss, too."""

    says_inputs = True

    def __init__(
        self,
        model: Any,
        *,
        attention: RowAttention | None = None,
        checkpointing: bool = False,
        teacher: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(model, attention=attention, checkpointing=checkpointing)
        self.teacher = teacher

    def losses(self, packed: Packed, tables: Tables, noise: torch.Tensor | None = None) -> torch.Tensor:
        """`[targets]`, the cross-entropy of each target in float32; of those that are taught, the divergence
        `KL(teacher || own)` over the whole vocabulary. Within `running()`. `noise [tokens, hidden]` is added to the
        input's embeddings."""
        if packed.heads:
            return self._labelled(self._states(packed, tables, noise), packed, tables)[0]
        return self._compared(packed, tables, noise)[0]

    @torch.no_grad()
    def scored(self, packed: Packed, tables: Tables) -> tuple[torch.Tensor, torch.Tensor]:
        """`losses`, and `[targets]` whether each target is the likeliest token, or label, there. Within `running()`."""
        if packed.heads:
            losses, likeliest = self._labelled(self._states(packed, tables, None), packed, tables)
            return losses, likeliest == packed.targets
        losses, own = self._compared(packed, tables, None)
        return losses, own.argmax(-1) == packed.targets

    def _compared(
        self, packed: Packed, tables: Tables, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses, and the logits `[targets, vocabulary]` in float32."""
        taught = packed.taught
        if taught is None:
            own = self._logits(packed, tables, noise).float()
            return cross_entropy(own, packed.targets, reduction="none"), own
        assert packed.taught_at is not None
        own, theirs = self._beside(packed, tables, noise, taught)
        theirs = theirs.detach().log_softmax(-1)
        words = own.log_softmax(-1)
        divergence = kl_div(words.index_select(0, packed.taught_at), theirs, reduction="none", log_target=True).sum(-1)
        if len(packed.taught_at) == len(packed.targets):
            return divergence, own
        return cross_entropy(own, packed.targets, reduction="none").index_copy(0, packed.taught_at, divergence), own

    def _beside(
        self, packed: Packed, tables: Tables, noise: torch.Tensor | None, taught: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the targets, and those of the teacher's states `taught`, in float32."""
        if self.teacher is not None:
            with torch.no_grad():
                theirs = self.teacher(taught)
            return self._logits(packed, tables, noise).float(), theirs.float()

        def beside(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden, *others = given
            return torch.cat([hidden, taught[None].to(hidden.dtype)], dim=1), *others

        with before(self.model.get_output_embeddings(), beside):  # whatever is done to logits is done to both
            logits = self._logits(packed, tables, noise).float()
        return logits[: len(packed.targets)], logits[len(packed.targets) :]

    def alone(self, ids: torch.Tensor, answer_tokens: int) -> torch.Tensor:
        """As `losses`, of one row without anything learned, by the module as it is. Not within `running()`."""
        logits = self.model(input_ids=ids[None], use_cache=False).logits[0, :-1].float()
        return cross_entropy(logits, ids[1:], reduction="none")

    def _logits(self, packed: Packed, tables: Tables, noise: torch.Tensor | None) -> torch.Tensor:
        with self._given(packed, tables, noise) as embeddings:
            logits: torch.Tensor = self.model(
                inputs_embeds=embeddings[None],
                position_ids=packed.positions[None],
                attention_mask=None,
                use_cache=False,
                logits_to_keep=packed.wanted,
            ).logits[0]
        return logits

    def _states(self, packed: Packed, tables: Tables, noise: torch.Tensor | None) -> torch.Tensor:
        """`[targets, hidden]`, the last hidden states that heads read: those before the output head."""
        with self._given(packed, tables, noise) as embeddings:
            states: torch.Tensor = self.model.base_model(
                inputs_embeds=embeddings[None],
                position_ids=packed.positions[None],
                attention_mask=None,
                use_cache=False,
            )[0][0]
        return states.index_select(0, packed.wanted)


@contextmanager
def before(module: Any, hook: Callable[..., Any]) -> Iterator[None]:
    """Within it `hook(module, given)` runs before each forward of `module`; what it returns is given instead."""
    handle = module.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def heard(head: nn.Module) -> Iterator[list[torch.Tensor]]:
    """`[rows, hidden]` for each forward within: what an output head is given of the rows' last tokens."""
    seen: list[torch.Tensor] = []
    with before(head, lambda _module, given: seen.append(given[0][:, -1])):
        yield seen


def prove(frozen: FrozenBase, vocab_size: int) -> None:
    """Two packed rows against the module's own attention, one row at a time. Raises `InvalidRequest` where they differ
    by more than rounding: such a base can't be trained on packed."""
    from softmux.tuning.data.rows import Row
    from softmux.tuning.frozen.packing import Place, pack, prepare

    rows = [Row(tuple((7 * i + 3) % vocab_size for i in range(n)), tuple(range(1, 6))) for n in (9, 4)]
    prepared = [prepare(row, 0, float(frozen.says_inputs)) for row in rows]
    with torch.no_grad():
        with frozen.running():
            packed = frozen.losses(pack([(row, Place(0)) for row in prepared], frozen.device), Tables())
        expected = torch.cat(
            [frozen.alone(torch.from_numpy(row.ids).to(frozen.device), row.answer_tokens) for row in prepared]
        )
    allowed = rounding(frozen.dtype)
    if not torch.allclose(packed, expected, rtol=allowed, atol=allowed):
        raise InvalidRequest(
            f"{type(frozen.model).__name__} gives other values for packed rows than for rows alone "
            f"(by up to {float((packed - expected).abs().max()):.2g}): softmux can't tune on it.",
            param="base",
        )


def padded_base(model: Any) -> FrozenBase:
    """With the attention that runs anywhere."""
    return FrozenBase(model, attention=PaddedAttention())
