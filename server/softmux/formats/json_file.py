"""JSON from strangers: read without surprises, and fitted into a closed schema with errors a person can act on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from softmux.errors import InvalidAdapter, TooLarge

MAX_JSON_BYTES = 1 << 20
MAX_DEPTH = 32
_SHOWN = 80

Schema = TypeVar("Schema", bound=BaseModel)


def shown(text: object) -> str:
    """A name or value from an upload, made safe and short enough for an error message."""
    plain = "".join(char if char.isprintable() else "�" for char in str(text)[: _SHOWN + 1])
    return plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "…"


def read_object(data: bytes, file: str) -> dict[str, Any]:
    """The JSON object in `data`. `file` names it in errors.

    Refuses what Python's reader lets pass and another reader would see differently: keys given twice, `NaN` and
    `Infinity`, halves of surrogate pairs. Raises `TooLarge` beyond `MAX_JSON_BYTES`, else `InvalidAdapter`.
    """
    if len(data) > MAX_JSON_BYTES:
        raise TooLarge(f"{file} has {len(data):,} bytes; at most {MAX_JSON_BYTES:,} are read. Shorten it.", param=file)

    def refuse(reason: str) -> NoReturn:
        raise InvalidAdapter(
            f"{file} can't be read: {reason}. Save the adapter again and send it unchanged.", param=file
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise InvalidAdapter(
                f"{file} gives “{shown(twice)}” twice in one object; keep the one that is meant.",
                param=f"{file}: {shown(twice)}",
            )
        return found

    def constant(name: str) -> NoReturn:
        refuse(f"{name} is no JSON number")

    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique, parse_constant=constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError:
        refuse("it is not UTF-8 text")
    except UnicodeEncodeError:
        refuse("a string in it holds half of a surrogate pair")
    except RecursionError:
        refuse("it is nested too deeply")
    except ValueError as error:
        refuse(f"it is not JSON ({shown(error)})")
    if _deeper_than(MAX_DEPTH, value):
        refuse("it is nested too deeply")
    if not isinstance(value, dict):
        refuse(f"it holds a JSON {type(value).__name__} where an object is expected")
    return value


def _deeper_than(depth: int, value: Any) -> bool:
    level = [value]
    for _ in range(depth):
        level = [inner for outer in level for inner in _children(outer)]
    return bool(level)


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def fit(schema: type[Schema], value: dict[str, Any], file: str) -> Schema:
    """`value` as a `schema`. The first thing that does not fit becomes an `InvalidAdapter` naming file and field."""
    try:
        return schema.model_validate(value)
    except ValidationError as invalid:
        error = invalid.errors(include_url=False, include_input=False)[0]
        field = shown(error["loc"][0])
        if error["type"] == "extra_forbidden":
            reason = f"{file} has a field “{field}” that this server doesn't know; remove it if it has no effect"
        elif error["type"] == "missing":
            reason = f"{file} lacks the field “{field}”; add it"
        else:
            reason = f"{file}: the field “{field}” does not fit: {shown(error['msg'])}"
        raise InvalidAdapter(reason + ".", param=f"{file}: {field}") from None
