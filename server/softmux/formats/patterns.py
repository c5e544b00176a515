"""Regular expressions from strangers, matched within a bounded time: a LoRA names its modules by them."""

from __future__ import annotations

import time

import regex

from softmux.errors import InvalidAdapter
from softmux.formats.config import invalid_field
from softmux.formats.json_file import shown

_SECONDS = 1.0


class Patterns:
    """Matches as Python's `re` does. All matches of one of these together take about a second at most, and other
    threads run on meanwhile; then `InvalidAdapter` names the field. A pattern can be written to match for hours."""

    def __init__(self, seconds: float = _SECONDS) -> None:
        self._until = time.monotonic() + seconds

    def fullmatch(self, pattern: str, name: str, field: str) -> bool:
        left = self._until - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            return regex.compile(pattern).fullmatch(name, timeout=left, concurrent=True) is not None
        except TimeoutError:
            raise _refused(pattern, field, "takes too long to match") from None
        except (regex.error, RecursionError, MemoryError, OverflowError):
            raise _refused(pattern, field, "is no regular expression that can be read") from None

    def ends(self, pattern: str, name: str, field: str) -> bool:
        """Whether `pattern` is the end of `name`, from a dot on, as keys of `rank_pattern` are meant."""
        return self.fullmatch(rf"(.*\.)?({pattern})$", name, field)


def _refused(pattern: str, field: str, what: str) -> InvalidAdapter:
    return invalid_field(field, f"the pattern “{shown(pattern)}” {what}; list the modules' names instead.")
