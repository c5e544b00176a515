"""How far the log probabilities of a self-test's rows may lie from the eager module's, and still be rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from softmux.errors import SelfTestFailed
from softmux.scheduler.sequence import Sequence
from softmux.types import TokenLogprobs

_TOLERANCE = {torch.float32: 2e-3}
_HALF_TOLERANCE = 0.3
"""Of log probabilities. Half precision rounds each of a model's many sums; a wrong position or mask is far beyond."""
_SHAKEN = 2.0
_MOST = 3.0
"""A deep model, or weights, keys and values in fp8, may make more of a last bit: where the eager module's own log
probabilities move when the last bits of its input do, so many times that is rounding, too, but never beyond this."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a row told of the tokens that it generated, and what it is held to: `reference` gives the logits of every
    token `[tokens, vocab]` for `embeddings [tokens, hidden]`, the row's own."""

    sequence: Sequence
    rows: list[TokenLogprobs]
    embeddings: torch.Tensor
    reference: Callable[[torch.Tensor], torch.Tensor]

    def difference(self) -> float:
        """The largest, over the tokens generated, between the log probabilities told and the reference's."""
        expected = self._expected(self.embeddings)
        return _largest(
            expected[at, list(row.top_ids)].cpu() - torch.tensor(row.top_logprobs) for at, row in self._generated()
        )

    def moved(self) -> float:
        """By how much the reference's own log probabilities of these tokens move with its input's last bits."""
        x = self.embeddings
        signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(1)).to(x) * 2 - 1
        before, after = (self._expected(y) for y in (x, x * (1 + signs * torch.finfo(x.dtype).eps)))
        return _largest((before - after)[at, list(row.top_ids)] for at, row in self._generated())

    def _expected(self, embeddings: torch.Tensor) -> torch.Tensor:
        return self.reference(embeddings).float().log_softmax(-1)

    def _generated(self) -> Iterable[tuple[int, TokenLogprobs]]:
        return enumerate(self.rows, start=self.sequence.prompt_length - 1)


def _largest(differences: Iterable[torch.Tensor]) -> float:
    """Not a number where one of them is none."""
    return float(torch.cat([torch.zeros(1), *(each.float().cpu() for each in differences)]).abs().max())


@torch.inference_mode()
def apart(rows: list[Told], dtype: torch.dtype) -> tuple[float, float]:
    """(the largest difference of all rows, what of it is rounding for a model in `dtype`)."""
    worst = max(row.difference() for row in rows)
    tolerance = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    if worst > tolerance and dtype not in _TOLERANCE:
        tolerance = min(_MOST, max(tolerance, _SHAKEN * max(row.moved() for row in rows)))
    return worst, tolerance


def check_apart(rows: list[Told], dtype: torch.dtype, architecture: str) -> None:
    """Raises `SelfTestFailed` where more than rounding lies between the packed run and the eager module."""
    worst, tolerance = apart(rows, dtype)
    if not worst <= tolerance:
        raise SelfTestFailed(
            f"self-test: the packed run of {architecture} differs from the eager module by {worst:.3g} in log "
            f"probability (at most {tolerance:g} is rounding); softmux cannot serve this model correctly"
        )
