"""How an encoder numbers the positions of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from softmux.errors import SelfTestFailed

_ROTARY = frozenset({"modernbert"})
"""Types with rotary embeddings whose heads are known, too."""


@torch.inference_mode()
def numbering(module: nn.Module, ask: Callable[[], object]) -> tuple[int, int]:
    """(number of a row's first position, numbers there are), as the module's own position embeddings, or its rotary
    ones, are asked when `ask` runs it over a row of two tokens: BERT and ModernBERT count from 0, RoBERTa from the
    number behind its padding token's id.

    Raises `SelfTestFailed` where it numbers them in another way.
    """
    kind = type(module).__name__
    config: Any = module.config
    table = _named(module, "position_embeddings") or _named(module, "rotary_emb")
    rotary = table is not None and not isinstance(table, nn.Embedding)
    if table is None or (rotary and config.model_type not in _ROTARY):
        raise SelfTestFailed(
            f"{kind} numbers its positions in a way that softmux does not know; it serves BERT, "
            "RoBERTa, XLM-R, ELECTRA, ModernBERT and models of their build"
        )
    asked: list[torch.Tensor] = []
    hook = table.register_forward_pre_hook(lambda _module, given: asked.append(given[int(rotary)]))
    try:
        ask()
    finally:
        hook.remove()
    if not asked or asked[0].flatten().diff().tolist() != [1]:
        raise SelfTestFailed(f"{kind} does not number its positions in order; softmux can't serve it")
    numbers = config.max_position_embeddings if rotary else table.num_embeddings
    return int(asked[0].flatten()[0]), int(numbers)


def _named(module: nn.Module, end: str) -> Any:
    return next((child for name, child in module.named_modules() if name.endswith(end)), None)
