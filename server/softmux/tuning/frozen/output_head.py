"""What a base makes of its last hidden states: the logits that a teacher's states stand for, kept while the teacher
itself is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from softmux.tuning.frozen.decoder import before

Head = Callable[[torch.Tensor], torch.Tensor]
"""Logits `[n, vocabulary]` of states `[n, hidden]`."""


@torch.no_grad()
def head_of(model: Any) -> Head:
    """The model's output projection, where that is all that it does to its last states; tried on a few tokens. Else
    the model itself with these states in the place of its own: whatever is done to logits is done to them. The states
    are a decoder's, which may have an encoder beside it."""
    plain = model.get_output_embeddings()
    seen: list[torch.Tensor] = []
    probe = torch.arange(1, 9, device=plain.weight.device)[None]

    def run(ids: torch.Tensor) -> torch.Tensor:
        said = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        logits: torch.Tensor = model(input_ids=ids, **said, use_cache=False).logits
        return logits

    with before(plain, lambda _module, given: seen.append(given[0])):
        logits = run(probe)
    if torch.allclose(plain(seen[0]), logits, rtol=1e-4, atol=1e-4):
        return lambda states: plain(states.to(plain.weight.dtype))

    def whole(states: torch.Tensor) -> torch.Tensor:
        put = states[None].to(plain.weight.dtype)
        with before(plain, lambda _module, given: (put, *given[1:])):
            return run(probe[:, :1])[0]

    return whole
