"""What an engine runs on its base, against what an adapter is made of: asked here, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from softmux.errors import InvalidAdapter
from softmux.formats.config import CONFIG_FILE
from softmux.formats.parts import PAIR, POOLER, Parts, kinds
from softmux.types import ModelSpec

_NAMES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "prompt": ("learned vectors at the input", "publish it to a server of another base"),
        "prefix": ("learned keys and values", "train it as prompt tuning"),
        "lora": ("LoRA", "merge it into the base (`merge_and_unload`) and serve that, or train a soft prompt"),
        "token_rows": ("trained rows of tokens", "train a soft prompt"),
        "sequence_head": ("a classification head", "train it with CAUSAL_LM and name its labels in softmux.json"),
        "token_head": ("a token classification head", "train it with CAUSAL_LM"),
        POOLER: (
            "a pooler of the base's own, which its checkpoint lacks,",
            "train it with modules_to_save=['pooler'] (on ModernBERT ['head']), so that the trained one is saved",
        ),
        PAIR: ("a LoRA and a soft prompt in one request", "train and publish one of the two"),
    }
)


def check_served(parts: Parts, spec: ModelSpec) -> None:
    """Raises `InvalidAdapter` for a good adapter that needs what the engine does not say that it serves."""
    missing = sorted(kinds(parts) - spec.serves)
    if missing:
        name, instead = _NAMES[missing[0]]
        raise InvalidAdapter(
            f"The adapter is whole, but {name} is not served yet by this version on this base ({spec.model_id}, "
            f"{spec.architecture}). Until it is: {instead}.",
            param=f"{CONFIG_FILE}: peft_type",
        )
