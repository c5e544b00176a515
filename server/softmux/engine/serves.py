"""What this engine runs, by the kind of base, in the words of `softmux.formats.parts`.

Admission refuses what is not said here (`softmux.formats.serving`). An engine that learns a kind of part adds its word
on the line of each family that it runs it on; the table in the documentation is written from this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from softmux.formats.parts import PAIR, POOLER
from softmux.types import Family

SERVES: Mapping[Family, frozenset[str]] = MappingProxyType(
    {
        "decoder": frozenset({"prompt", "prefix", "lora", "token_rows", PAIR, "sequence_head", "token_head"}),
        "encoder": frozenset({"prompt", "prefix", "lora", PAIR, "sequence_head", "token_head", POOLER}),
        "encoder-decoder": frozenset({"prompt", "prefix", "lora", PAIR}),
    }
)
