"""The model's own chat template, run as transformers runs it: in a sandbox, with the same helpers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from softmux.errors import InvalidRequest

VARIABLES = "chat_template_kwargs"
"""The field that sets them."""
_OURS = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class _Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's words for training; here it only shows them."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """`special_tokens` are the names the template may use, such as `bos_token`."""

    def __init__(self, template: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        self._template = environment.from_string(template)
        reads = jinja2.meta.find_undeclared_variables(environment.parse(template))
        self.takes_tools = "tools" in reads
        """Whether it tells the model of tools."""
        self._special_tokens = dict(special_tokens)
        self._variables = reads - _OURS - self._special_tokens.keys() - environment.globals.keys()

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text up to where the assistant's answer begins. `variables` are the template's own. Raises
        `InvalidRequest` (param `messages`, `tools`, or `chat_template_kwargs`) for what the template refuses, or does
        not read."""
        if not self.takes_tools and (tools or any(turn["role"] == "tool" or "tool_calls" in turn for turn in messages)):
            raise InvalidRequest(
                "The model's chat template knows no tools; tell of them in a message, or leave them out.",
                param="tools" if tools else "messages",
            )
        given = dict(variables or {})
        for name in given.keys() - self._variables:
            reads = ", ".join(sorted(self._variables)) or "none"
            raise InvalidRequest(
                f"The model's chat template reads no “{name[:64]}”; leave it out. What it reads: {reads[:200]}.",
                param=VARIABLES,
            )
        ours = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": True}
        try:
            return self._template.render({**given, **self._special_tokens, **ours})
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise InvalidRequest(
                f"The model's chat template does not take these messages: {error}", param="messages"
            ) from None


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
