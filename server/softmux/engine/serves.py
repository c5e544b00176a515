"""What this engine runs, by the kind of base, in the words of `softmux.formats.parts`.

Admission refuses what is not said here (`softmux.formats.serving`). An engine that learns a kind of part adds its word
on the line of each family that it runs it on; the table in the documentation is written from this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from softmux.types import Family

SERVES: Mapping[Family, frozenset[str]] = MappingProxyType(
    {
        "decoder": frozenset({"prompt", "prefix"}),
        "encoder": frozenset(),
        "encoder-decoder": frozenset(),
    }
)
