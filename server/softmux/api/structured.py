"""What a request may ask of its reply's form: OpenAI's `response_format`, and vLLM's `structured_outputs`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from softmux.errors import InvalidRequest
from softmux.types import Grammar, GrammarKind

_MOST_CHOICES = 4096
_ANY_OBJECT = '{"type":"object"}'


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextFormat(_Form):
    type: Literal["text"] = Field(description="As the model writes it.")


class JsonObjectFormat(_Form):
    type: Literal["json_object"] = Field(description="Any JSON object.")


class NamedSchema(_Form):
    name: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Annotated[str, StringConstraints(max_length=4096)] | None = Field(
        default=None, description="Taken, and not used: say in the prompt what is wanted."
    )
    schema_: dict[str, Any] | bool = Field(alias="schema", description="What the reply fits, always.")
    strict: bool | None = Field(default=None, description="A reply fits its schema whatever is said here.")


class JsonSchemaFormat(_Form):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
Spelling = Annotated[str, StringConstraints(min_length=1)]


class StructuredOutputs(_Form):
    """One of these."""

    json_: dict[str, Any] | bool | Spelling | None = Field(
        default=None, alias="json", description="A JSON schema, or the text of one."
    )
    json_object: Literal[True] | None = Field(default=None, description="Any JSON object.")
    regex: Spelling | None = Field(default=None, description="A regular expression that the whole reply matches.")
    choice: Annotated[list[Spelling], Field(min_length=1, max_length=_MOST_CHOICES)] | None = Field(
        default=None, description="The reply is one of these."
    )
    grammar: Spelling | None = Field(
        default=None, description="A grammar in Lark's notation (its rule `start`), or in GBNF (its rule `root`)."
    )


def grammar_of(response_format: ResponseFormat | None, structured: StructuredOutputs | None) -> Grammar | None:
    """What the reply has to look like; None where it is free. Raises `InvalidRequest` for two wishes at once."""
    asked = _of_format(response_format)
    if structured is None:
        return asked
    if asked is not None:
        raise InvalidRequest(
            "response_format and structured_outputs both say what the reply looks like; send one of them.",
            param="structured_outputs",
        )
    schema = structured.json_
    wishes: list[tuple[GrammarKind, str]] = []
    if schema is not None:
        wishes.append(("json_schema", schema if isinstance(schema, str) else _text(schema, "structured_outputs")))
    if structured.json_object:
        wishes.append(("json_schema", _ANY_OBJECT))
    if structured.regex is not None:
        wishes.append(("regex", structured.regex))
    if structured.choice is not None:
        wishes.append(("choice", _text(structured.choice, "structured_outputs")))
    if structured.grammar is not None:
        wishes.append(("grammar", structured.grammar))
    if len(wishes) != 1:
        raise InvalidRequest(
            "structured_outputs takes one of json, json_object, regex, choice and grammar.", param="structured_outputs"
        )
    return Grammar(*wishes[0])


def _of_format(asked: ResponseFormat | None) -> Grammar | None:
    match asked:
        case JsonObjectFormat():
            return Grammar("json_schema", _ANY_OBJECT, "response_format")
        case JsonSchemaFormat():
            schema = asked.json_schema.schema_
            return Grammar("json_schema", _text(schema, "response_format"), "response_format")
        case _:
            return None


def _text(value: Any, param: str) -> str:
    """JSON, its keys in their order: the reply's follow it."""
    try:
        return msgspec.json.encode(value).decode()
    except (RecursionError, ValueError, TypeError) as error:
        raise InvalidRequest(f"What the reply has to look like is no JSON: {error}.", param=param) from None
