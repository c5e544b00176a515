"""Random JSON schemas, every one its own, whose documents come to an end: strings, arrays and numbers are bounded."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

Schema = dict[str, Any]

_WORDS = (
    "name", "city", "age", "total", "email", "tags", "status", "price", "items", "owner", "title", "score", "address",
    "notes", "kind", "count", "code", "country", "language", "topic", "label", "rating", "author", "colour", "phase",
)  # fmt: skip
_PATTERNS = ("^[A-Z]{3}-[0-9]{4}$", "^[a-z]{2,8}$", "^[0-9a-f]{8}$", "^(low|medium|high)$", r"^\+[0-9]{6,12}$")
_FORMATS = ("date", "ipv4", "uuid")
"""Not `time`: its fractions of a second may have any number of digits, and a small model writes them for ever."""
_DEEPEST = 3


def random_schema(number: int, *, seed: int = 0) -> Schema:
    """Schema `number` of a series: an object of 2 to 5 properties, nested up to three deep, that allows no others."""
    return _object(Random(f"{seed}-{number}"), 0, least=2)  # noqa: S311 - a reproducible load, no secret


def _object(chance: Random, depth: int, least: int = 1) -> Schema:
    names = chance.sample(_WORDS, chance.randint(least, 5 if depth == 0 else 3))
    named = {f"{name}_{chance.randint(1, 999)}" if chance.random() < 0.3 else name: name for name in names}
    required = [name for name in named if chance.random() < 0.8]
    return {
        "type": "object",
        "properties": {name: _value(chance, depth + 1) for name in named},
        "required": required or list(named)[:1],
        "additionalProperties": False,
    }


def _value(chance: Random, depth: int) -> Schema:
    simple: tuple[Callable[[Random, int], Schema], ...] = (_string, _integer, _choice, _flag, _spelled, _number)
    nested: tuple[Callable[[Random, int], Schema], ...] = (_object, _array, _either)
    return chance.choice(simple + nested if depth < _DEEPEST else simple)(chance, depth)


def _string(chance: Random, _: int) -> Schema:
    return {"type": "string", "minLength": chance.randint(0, 3), "maxLength": chance.randint(4, 16)}


def _integer(chance: Random, _: int) -> Schema:
    low = chance.randint(-100, 100)
    return {"type": "integer", "minimum": low, "maximum": low + chance.randint(1, 5000)}


def _number(chance: Random, _: int) -> Schema:
    return {"type": "number", "minimum": 0, "maximum": chance.randint(1, 1000), "multipleOf": 0.25}


def _choice(chance: Random, _: int) -> Schema:
    return {"enum": chance.sample(_WORDS, chance.randint(2, 6))}


def _flag(chance: Random, _: int) -> Schema:
    return chance.choice([{"type": "boolean"}, {"type": ["boolean", "null"]}, {"const": chance.choice(_WORDS)}])


def _spelled(chance: Random, _: int) -> Schema:
    if chance.random() < 0.5:
        return {"type": "string", "pattern": chance.choice(_PATTERNS)}
    return {"type": "string", "format": chance.choice(_FORMATS)}


def _array(chance: Random, depth: int) -> Schema:
    least = chance.randint(0, 1)
    return {"type": "array", "items": _value(chance, depth + 1), "minItems": least, "maxItems": least + 2}


def _either(chance: Random, depth: int) -> Schema:
    return {"anyOf": [_value(chance, depth + 1), _integer(chance, depth)]}
