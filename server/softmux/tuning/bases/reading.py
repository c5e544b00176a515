"""Inputs that a decoder has read, and what it says after them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Pick = Callable[[torch.Tensor], torch.Tensor]
"""Each row's next token `[rows]` of its logits `[rows, vocabulary]`."""


class Reading(Protocol):
    """A batch of inputs that a base has read. `scores` leaves it as it was; `continued` goes on from it."""

    def scores(self, answers: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """`[rows, answers]`: each answer's log-likelihood next."""

    def continued(self, max_tokens: int, pick: Pick) -> list[tuple[int, ...]]:
        """The tokens that come next, the end token included where it came within `max_tokens`."""


@dataclass(frozen=True, slots=True)
class Read:
    """`logits [rows, vocabulary]` of what comes next, the `past` keys and values, their `mask [rows, keys]`, and the
    next position `place [rows, 1]`."""

    model: Any
    eos_ids: tuple[int, ...]
    logits: torch.Tensor
    past: Any
    mask: torch.Tensor
    place: torch.Tensor

    def scores(self, answers: Sequence[tuple[int, ...]]) -> torch.Tensor:
        first = self.logits.log_softmax(-1)
        found = [first[:, answer[0]] for answer in answers]  # views: of answers that begin alike the same
        for number, answer in enumerate(answers):
            if not answer[1:]:
                continue
            tokens = torch.tensor(answer, device=self.mask.device).expand(len(self.mask), -1)
            out = self.model(
                input_ids=tokens[:, :-1],
                attention_mask=_longer(self.mask, len(answer) - 1),
                position_ids=self.place + torch.arange(len(answer) - 1, device=self.mask.device),
                past_key_values=copy.deepcopy(self.past),
                use_cache=True,
            )
            found[number] = found[number] + out.logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[:, :, 0].sum(1)
        return torch.stack(found, 1)

    def continued(self, max_tokens: int, pick: Pick) -> list[tuple[int, ...]]:
        says, mask, place, logits = Saying(self.eos_ids, pick), self.mask, self.place, self.logits
        while True:
            token = says.next(logits)
            if says.tokens == max_tokens or says.all_done:
                return says.ids()
            mask = _longer(mask, 1)
            logits = self.model(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=place,
                past_key_values=self.past,
                use_cache=True,
            ).logits[:, -1]
            place = place + 1


class Saying:
    """What the rows of a batch say, token by token; a row that has ended says ends from then on."""

    def __init__(self, eos_ids: Sequence[int], pick: Pick) -> None:
        self._eos, self._pick = eos_ids, pick
        self._steps: list[torch.Tensor] = []
        self._done: torch.Tensor | None = None

    def next(self, logits: torch.Tensor, forced: int | None = None) -> torch.Tensor:
        """Each row's next token `[rows]`, by its logits, or `forced` for all that have not ended."""
        stops = torch.tensor(self._eos, device=logits.device)
        done = logits.new_zeros(len(logits), dtype=torch.bool) if self._done is None else self._done
        chosen = self._pick(logits) if forced is None else stops.new_full((len(logits),), forced)
        token = torch.where(done, stops[0], chosen)
        self._done = done | torch.isin(token, stops)
        self._steps.append(token)
        return token

    @property
    def tokens(self) -> int:
        return len(self._steps)

    @property
    def all_done(self) -> bool:
        return self._done is not None and bool(self._done.all())

    def ids(self) -> list[tuple[int, ...]]:
        """Of each row, to its end."""
        return [
            tuple(row[: next((i + 1 for i, token in enumerate(row) if token in self._eos), len(row))])
            for row in torch.stack(self._steps, dim=1).tolist()
        ]


def _longer(mask: torch.Tensor, tokens: int) -> torch.Tensor:
    return torch.cat([mask, mask.new_ones(len(mask), tokens)], dim=1)
