"""How an encoder numbers the positions of a row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from softmux.errors import SelfTestFailed


@torch.inference_mode()
def numbering(module: nn.Module, ask: Callable[[], object]) -> tuple[int, int]:
    """(number of a row's first position, numbers there are), as the module's own position embeddings are asked when
    `ask` runs it over a row of two tokens: BERT counts from 0, RoBERTa from the number behind its padding token's id.

    Raises `SelfTestFailed` where it numbers them in another way.
    """
    kind = type(module).__name__
    table = next((m for name, m in module.named_modules() if name.endswith("position_embeddings")), None)
    if not isinstance(table, nn.Embedding):
        raise SelfTestFailed(
            f"{kind} numbers its positions in a way that softmux does not know; it serves BERT, "
            "RoBERTa, XLM-R, ELECTRA and models of their build"
        )
    asked: list[torch.Tensor] = []
    hook = table.register_forward_pre_hook(lambda _module, given: asked.append(given[0]))
    try:
        ask()
    finally:
        hook.remove()
    if not asked or asked[0].flatten().diff().tolist() != [1]:
        raise SelfTestFailed(f"{kind} does not number its positions in order; softmux can't serve it")
    return int(asked[0].flatten()[0]), int(table.num_embeddings)
