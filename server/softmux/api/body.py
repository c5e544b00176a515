"""Request bodies: read within bounds, and read as what they say they are."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from softmux.api.findings import invalid
from softmux.errors import BadRequest, DeadlineExceeded, InvalidRequest, TooLarge, UnsupportedMediaType

Model = TypeVar("Model", bound=BaseModel)

_SILENT_SECONDS = 30.0
"""How long a client may send nothing of a body it has begun."""
_LEAST_RATE = 4096.0
"""Bytes a second that a body must come by on the whole, beyond its first seconds: places to read uploads are few."""
_MANY = 1000
"""Keys that are not counted: reading the body again takes no longer."""


def described(model: type[BaseModel], /, **example: Any) -> dict[str, Any]:
    """A route's `openapi_extra` for a JSON body that is read by `read_json`. An `example`, which must be one, is what
    pages begin with where a body is tried; all fields at once would be none.

    What pydantic defines aside goes where it is named: its references would be looked for at the document's top.
    """
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def inlined(value: Any) -> Any:
        if isinstance(value, list):
            return [inlined(item) for item in value]
        if not isinstance(value, dict):
            return value
        named = definitions[value["$ref"].rpartition("/")[2]] if "$ref" in value else {}
        told = {**named, **value}.items()
        return {key: inlined(item) for key, item in told if key != "$ref" and not _tells_members_apart(key, item)}

    content = {"schema": inlined(schema)}
    if example:
        content["example"] = model.model_validate(example) and example
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _tells_members_apart(key: str, value: Any) -> bool:
    """A union's `discriminator`, which names definitions where they were; its members say as much by themselves."""
    return key == "discriminator" and isinstance(value, dict) and "mapping" in value


async def read_json(request: Request, model: type[Model], max_bytes: int) -> Model:
    """The body as `model`. Raises `UnsupportedMediaType`, `BadRequest` (no JSON), `InvalidRequest` (a key
    sent twice included), or as `body_chunks` does."""
    said = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if said != "application/json" and not said.endswith("+json"):
        raise UnsupportedMediaType("Send the body as JSON, with the header content-type: application/json.")
    body = await read_bytes(request, max_bytes)
    try:
        read = model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None
    colons = body.count(b":")
    if colons > _MANY or colons > _keys(read):  # else each stands behind a key that was read, and none is there again
        _decode(body.decode())
    return read


def _keys(value: Any) -> int:
    """How many keys of a body were read, or fewer: a list that begins with a text or a number is passed over."""
    if isinstance(value, BaseModel):
        read, fields = value.model_fields_set, value.__dict__
        return len(read) + sum([_keys(fields[name]) for name in read if not isinstance(fields[name], (str, int))])
    if isinstance(value, dict):
        return len(value) + sum(map(_keys, value.values()))
    if isinstance(value, list) and value and not isinstance(value[0], (str, int)):
        return sum(map(_keys, value))
    return 0


def _unique(pairs: list[tuple[str, Any]]) -> None:
    """Raises `InvalidRequest` for an object that has a key twice: the last would win, and nobody would be told."""
    if len(dict(pairs)) != len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0][:64]
        raise InvalidRequest(f"An object in the body has “{name}” twice; send it once.", param=name)


_decode = json.JSONDecoder(object_pairs_hook=_unique).decode


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises as `body_chunks` does."""
    return b"".join([chunk async for chunk in body_chunks(request, max_bytes)])


async def body_chunks(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body as it comes. Raises `TooLarge` as soon as it is known to be longer than `max_bytes`, `BadRequest` where
    the connection ends before it, `DeadlineExceeded` where nothing more comes: what waits for it must not be held up;
    `UnsupportedMediaType` for one that is compressed.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedMediaType(f"The body comes as it is here: send it without content-encoding: {coding[:50]}.")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)
    size, more = 0, True
    clock = asyncio.get_running_loop().time
    patience = clock() + _SILENT_SECONDS
    try:
        while more:
            async with asyncio.timeout_at(min(clock() + _SILENT_SECONDS, patience + size / _LEAST_RATE)):
                message = await request.receive()
            if message["type"] == "http.disconnect":
                raise BadRequest("The connection ended before the body did.")
            chunk, more = message.get("body", b""), message.get("more_body", False)
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            yield chunk
    except TimeoutError:
        raise DeadlineExceeded(
            f"The body came too slowly: nothing for {_SILENT_SECONDS:.0f} s, or less than {_LEAST_RATE:,.0f} bytes a "
            "second; send it again, without a pause."
        ) from None


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The body is larger than the {max_bytes:,} bytes this server takes; send less at once.")
