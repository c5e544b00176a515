"""docs/http.md says what the API does: its routes, the fields of a generation and a classification, the errors."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from softmux.api.app import ROUTERS
from softmux.api.openai.bodies import ChatBody, CompletionBody, OpenAIBody
from softmux.api.schemas import ClassifyBody, GenerateBody
from softmux.errors import SoftmuxError

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text(encoding="utf-8")
_OF_THE_FRAMEWORK = {("GET", "/openapi.json"), ("GET", "/docs")}


def _errors(cls: type[SoftmuxError] = SoftmuxError) -> set[tuple[int, str]]:
    found: set[tuple[int, str]] = set()
    for child in cls.__subclasses__():
        if child.__module__ == SoftmuxError.__module__ and "code" in vars(child):
            found.add((child.status, child.code))
        found |= _errors(child)
    return found


def _section(title: str) -> str:
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, f"docs/http.md has no section {title}"
    return match[1]


def test_every_route_is_listed_and_every_listed_route_exists() -> None:
    routes = {
        (method, route.path_format)
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in route.methods
    }
    listed = set(re.findall(r"^\| `([A-Z]+) (/\S*)` \|", _section("Routes"), re.MULTILINE))
    assert listed == routes | _OF_THE_FRAMEWORK


def test_every_field_of_a_generation_is_listed() -> None:
    cells = re.findall(r"^\| (`.*?) \| .*? \|", _section("Generating"), re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == sorted(GenerateBody.model_fields)


def test_every_field_of_a_classification_is_listed() -> None:
    cells = re.findall(r"^\| (`.*?) \| .*? \|", _section("Classifying"), re.MULTILINE)
    assert sorted(name for cell in cells for name in re.findall(r"`(\w+)`", cell)) == sorted(ClassifyBody.model_fields)


def _offered(body: type[OpenAIBody]) -> tuple[set[str], set[str]]:
    """The fields that take something but null, and those that don't."""
    refused = {name for name, field in body.model_fields.items() if field.annotation is type(None)}
    return set(body.model_fields) - refused, refused


def test_every_field_of_openais_routes_is_listed_where_it_is_taken() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in _section("OpenAI's routes").splitlines()
        if line.startswith("| `")
    ]
    for column, body in ((1, CompletionBody), (2, ChatBody)):
        listed = [name for row in rows if row[column] for name in re.findall(r"`(\w+)`", row[0])]
        assert len(listed) == len(set(listed))
        assert set(listed) == _offered(body)[0], body
    [said] = re.findall(r"of OpenAI's (`suffix`.*?), and whatever", _section("OpenAI's routes"), re.DOTALL)
    assert set(re.findall(r"`(\w+)`", said)) == _offered(CompletionBody)[1] | _offered(ChatBody)[1]


def test_a_field_of_openais_clients_is_taken_or_refused_in_words_of_its_own() -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase as Chat
    from openai.types.completion_create_params import CompletionCreateParamsBase as Completion

    assert set(Chat.__annotations__) | {"stream"} <= set(ChatBody.model_fields)
    assert set(Completion.__annotations__) | {"stream"} <= set(CompletionBody.model_fields)


@pytest.mark.parametrize("name", [n for n, f in GenerateBody.model_fields.items() if f.default is not None])
def test_the_defaults_listed_are_the_codes(name: str) -> None:
    default = GenerateBody.model_fields[name].default
    row = next(line for line in _section("Generating").splitlines() if line.startswith("|") and f"`{name}`" in line)
    names, defaults = (cell.strip() for cell in row.split("|")[1:3])
    values = [value.strip() for value in defaults.split(",")]
    value = values[min(names.split(", ").index(f"`{name}`"), len(values) - 1)]
    assert value == (str(default).lower() if isinstance(default, bool) else f"{default:g}")


def test_every_error_is_listed_with_its_status() -> None:
    listed = re.findall(r"^\| (\d+) \| `(\w+)` \|", _section("Errors"), re.MULTILINE)
    assert {(int(status), code) for status, code in listed} == _errors()
    assert len(listed) == len(set(listed))
