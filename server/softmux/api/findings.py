"""What pydantic finds wrong with a request, in words that say what to send instead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from softmux.errors import BadRequest, InvalidRequest, SoftmuxError

TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
    "literal_error": "{expected}",
}
"""Kinds of findings that say no more than that a value is of another type, or is none of a few words: of a union's, any
would do."""
VALUES = {
    "int_parsing": "an integer",
    "int_parsing_size": "an integer of fewer digits",
    "int_from_float": "an integer",
    "bool_parsing": "true or false",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "string_too_short": "{min_length} or more characters",
    "string_too_long": "{max_length} characters or fewer",
    "string_pattern_mismatch": "a string that matches {pattern}",
    "too_short": "{min_length} or more entries",
    "too_long": "{max_length} entries or fewer",
    "union_tag_not_found": "an object that has {discriminator}",
    "union_tag_invalid": "an object whose {discriminator} is one of {expected_tags}",
}
"""The other kinds, as what to send. A kind in neither is told as pydantic tells it."""

_Path = tuple[int | str, ...]
_LONGEST = 300
_MANY = 1000
_UNION_TAG = re.compile(r"^(str|bool|int|float|constrained-str|(list|dict|literal)\[.*\])$", re.DOTALL)
_MODEL_TAG = re.compile(r"^[A-Z]\w*$")
"""What pydantic puts into a path for the member of a union it tried: a type, or a model beside types."""
_TOLD_APART = frozenset({"response_format"})
"""Fields with a discriminator. Behind them its value stands in a path, as if it were a field."""


def invalid(error: ValidationError | RequestValidationError) -> SoftmuxError:
    """pydantic's first finding in the contract's words: `BadRequest` for what is no JSON, else `InvalidRequest`."""
    if isinstance(error, ValidationError) and error.error_count() > _MANY:  # a list of them would take seconds
        return InvalidRequest(f"The body does not fit in {error.error_count():,} places; /docs says what a body holds.")
    found = error.errors()
    # Of a union's findings, the one that got furthest: that a list which is too long is no string is not what is wrong.
    tree = _tree(found)
    first = max(found, key=lambda one: (len(one["loc"]), one["type"] not in TYPES, tree.first_entry(one["loc"])))
    kind, path = first["type"], list(first["loc"])
    if isinstance(error, RequestValidationError):
        path.pop(0)  # the part of the request
    if kind == "json_invalid":
        return BadRequest(f"The body is not valid JSON: {shortened(str(first['ctx']['error']))}.")
    param = shortened(str(path[0])) if path else None
    if kind in ("model_type", "model_attributes_type") and not path:
        return InvalidRequest("The body must be a JSON object.")
    if kind == "extra_forbidden":
        return InvalidRequest(f"There is no field “{shortened(str(path[-1]))}”; leave it out.", param=param)
    at = tree.where(first["loc"])
    where = ".".join(at[len(first["loc"]) - len(path) :])
    if kind == "missing":
        return InvalidRequest(f"The field “{shortened(where)}” is missing; send it.", param=param)
    alike = [first]
    if kind in TYPES:  # what all members of a union would take
        alike = [one for one in found if one["type"] in TYPES and tree.where(one["loc"]) == at]
    told = " or ".join(dict.fromkeys(map(_words, alike)))
    said = f"send {told}" if kind in TYPES or kind in VALUES else told
    return InvalidRequest(shortened(f"{where}: {said}") + ".", param=param)


def _words(one: Any) -> str:
    words = TYPES.get(one["type"]) or VALUES.get(one["type"])
    return str(one["msg"]) if words is None else words.format_map(_plain(one.get("ctx", {})))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as clients write them: 2, not 2.0."""
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value for name, value in values.items()
    }


def shortened(text: str) -> str:
    """A client's own words, as far as an answer says them back."""
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _tree(found: Sequence[Any]) -> _Tree:
    parts: dict[_Path, set[int | str]] = {}
    for path in (one["loc"] for one in found):
        for at, part in enumerate(path):
            parts.setdefault(path[:at], set()).add(part)
    entries = {path: [part for part in beside if isinstance(part, int)] for path, beside in parts.items()}
    return _Tree(parts, {path: min(numbers) for path, numbers in entries.items() if numbers})


@dataclass(frozen=True, slots=True)
class _Tree:
    """All findings' paths: the parts that follow each beginning, and the first of a list's entries among them."""

    parts: dict[_Path, set[int | str]]
    entries: dict[_Path, int]

    def first_entry(self, path: _Path) -> int:
        """Where a path ends in a list: the first entry that is wrong as this member of a union has it; else -1."""
        return self.entries.get(path[:-1], -1) if path and isinstance(path[-1], int) else -1

    def where(self, path: _Path) -> list[str]:
        """A path without the names of a union's members: others were tried in the same place."""
        return [str(part) for at, part in enumerate(path) if part != "[key]" and not self._of_a_union(path[:at], part)]

    def _of_a_union(self, before: _Path, part: int | str) -> bool:
        if not isinstance(part, str):
            return False
        if before and before[-1] in _TOLD_APART:
            return True
        if _UNION_TAG.match(part):
            return len(self.parts[before]) > 1
        return bool(_MODEL_TAG.match(part)) and any(
            isinstance(tag, str) and _UNION_TAG.match(tag) for tag in self.parts[before]
        )
