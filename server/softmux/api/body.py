"""Request bodies: read within bounds, and read as what they say they are."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from softmux.api.errors import invalid
from softmux.errors import BadRequest, TooLarge, UnsupportedMediaType

Model = TypeVar("Model", bound=BaseModel)


def described(model: type[BaseModel]) -> dict[str, Any]:
    """A route's `openapi_extra` for a JSON body that is read by `read_json`.

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
        return {key: inlined(item) for key, item in {**named, **value}.items() if key != "$ref"}

    return {"requestBody": {"required": True, "content": {"application/json": {"schema": inlined(schema)}}}}


async def read_json(request: Request, model: type[Model], max_bytes: int) -> Model:
    """The body as `model`. Raises `UnsupportedMediaType`, `TooLarge`, `BadRequest` (no JSON) or `InvalidRequest`."""
    said = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if said != "application/json" and not said.endswith("+json"):
        raise UnsupportedMediaType("Send the body as JSON, with the header content-type: application/json.")
    body = await read_bytes(request, max_bytes)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises `TooLarge` as soon as it is known to be longer than `max_bytes`."""
    too_large = TooLarge(f"The body is larger than the {max_bytes:,} bytes this server takes; send less at once.")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > max_bytes:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise too_large
            chunks.append(chunk)
    except ClientDisconnect:
        raise BadRequest("The connection ended before the body did.") from None
    return b"".join(chunks)
