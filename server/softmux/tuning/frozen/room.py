"""How many tokens a device has room to train on at once."""

from __future__ import annotations

import torch

from softmux.tuning.frozen.module import FrozenModule

CPU_TOKENS = 2048


def tokens_at_once(base: FrozenModule) -> int:
    """As many as half of a GPU's free memory holds the activations of; a CPU is filled by few."""
    if base.device.type != "cuda":
        return CPU_TOKENS
    config = base.model.config.get_text_config()
    wide = 16 * config.hidden_size + 5 * getattr(config, "intermediate_size", 4 * config.hidden_size)
    kept = config.hidden_size if base.checkpointing else wide
    free, _ = torch.cuda.mem_get_info(base.device)
    size = torch.finfo(base.dtype).bits // 8
    fits = free // 2 // (kept * base.layers * size + 10 * config.vocab_size // 8)
    return int(min(65536, max(1024, fits)))
