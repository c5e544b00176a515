"""What an encoder-decoder's checkpoint says that its decoder begins with, and must say first and last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from softmux.errors import SelfTestFailed


@dataclass(frozen=True, slots=True)
class DecoderTokens:
    """`start`: the token that every decoder begins with. `first`, `last`: those that the generation config forces as
    the first one generated, and as the last where nothing but `max_tokens` ends a text; None where it forces none."""

    start: int
    first: int | None = None
    last: int | None = None

    @classmethod
    def of(cls, module: Any, model_id: str) -> DecoderTokens:
        """By the module's generation config, then its config. Raises `SelfTestFailed` where neither has a start."""
        given = (getattr(module, "generation_config", None), module.config)
        start = _said("decoder_start_token_id", *given)
        start = _said("bos_token_id", *given) if start is None else start
        if start is None:
            raise SelfTestFailed(
                f"{model_id} does not say what its decoder begins with: set decoder_start_token_id in its "
                "generation_config.json"
            )
        return cls(start, _said("forced_bos_token_id", *given), _said("forced_eos_token_id", *given))

    @property
    def begins(self) -> tuple[int, ...]:
        """What comes before a text that its decoder is to say."""
        return (self.start,) if self.first is None else (self.start, self.first)


def _said(field: str, *configs: Any) -> int | None:
    """A token's id by the first of `configs` that names it."""
    for config in configs:
        found = getattr(config, field, None)
        if found is not None:
            return int(found[0] if isinstance(found, list) else found)
    return None
