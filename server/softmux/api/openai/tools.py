"""Tools that a chat's reply may call: what the request says of them, and the grammar of a call that must come.

A call is written as Hermes' models and Qwen's are trained to: `<tool_call>`, a line of JSON with `name` and
`arguments`, `</tool_call>`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, StringConstraints

from softmux.api.schemas import Body
from softmux.errors import InvalidRequest
from softmux.types import Grammar

OPENS, CLOSES = "<tool_call>", "</tool_call>"
MOST_TOOLS = 128
_MOST_CALLS = 8
_WRITTEN = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class Function(Body):
    name: Name
    description: Annotated[str, StringConstraints(max_length=4096)] | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema of the arguments.")
    strict: bool | None = Field(
        default=None, description="A call that must come fits its schema whatever is said here."
    )


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: Name


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class Called(Body):
    name: Name
    arguments: str = Field(description="JSON.")


class ToolCall(Body):
    """A call of an earlier reply, as it was told."""

    id: Annotated[str, StringConstraints(max_length=256)]
    type: Literal["function"] = "function"
    function: Called

    def as_turn(self) -> dict[str, Any]:
        """As chat templates take it: the arguments an object."""
        try:
            arguments = msgspec.json.decode(self.function.arguments)
        except (ValueError, RecursionError):
            raise InvalidRequest(
                f"The arguments of the call {self.id[:100]} are no JSON; send them as the reply told them.",
                param="messages",
            ) from None
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.function.name, "arguments": arguments},
        }


def offered(tools: Sequence[Tool], choice: ToolChoice) -> list[dict[str, Any]] | None:
    """What the chat template is told of, in OpenAI's words; None for no tools."""
    if not tools or choice == "none":
        return None
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]


def check_tools(tools: Sequence[Tool], choice: ToolChoice | None) -> None:
    """Raises `InvalidRequest` for a choice among none, and for two tools of one name."""
    names = [tool.function.name for tool in tools]
    if len(set(names)) != len(names):
        raise InvalidRequest("Two tools have one name; give each its own.", param="tools")
    if choice not in (None, "none") and not tools:
        raise InvalidRequest("tool_choice speaks of tools, and there are none; send tools.", param="tool_choice")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise InvalidRequest(f"tool_choice names {choice.function.name}, which tools do not.", param="tool_choice")


def calls_grammar(tools: Sequence[Tool], choice: ToolChoice, *, several: bool) -> Grammar | None:
    """Of a reply that is a call, or `several`; None where it may be anything."""
    if choice in ("none", "auto"):
        return None
    if isinstance(choice, NamedTool):
        tools, several = [tool for tool in tools if tool.function.name == choice.function.name], False
    lines = [f'start: call ("\\n" call){{0,{_MOST_CALLS - 1}}}' if several else "start: call"]
    lines.append(f'call: "{OPENS}\\n" ({" | ".join(f"f{at}" for at in range(len(tools)))}) "\\n{CLOSES}"')
    for at, tool in enumerate(tools):
        head = json.dumps(f'{{"name": "{tool.function.name}", "arguments": ')
        given = tool.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}
        schema = msgspec.json.encode({**given, "x-guidance": _WRITTEN}).decode()
        lines.append(f'f{at}: {head} %json {schema} "}}"')
    return Grammar("grammar", "\n".join(lines), "tools")


class CallReader:
    """Tells calls from text, as both come piece by piece. What stands between the marks and is no call is text, marks
    included; line ends about a call are none of either. With `one`, calls after the first are told by nobody."""

    def __init__(self, *, one: bool = False) -> None:
        self._one = one
        self._any = False
        self._held = ""
        self._before: str | None = None
        """Inside a call: the line ends before it."""
        self._calls: list[Call] = []

    def push(self, text: str) -> str:
        """The text that may be shown."""
        self._held += text
        said = ""
        while True:
            inside, mark = self._before is not None, OPENS if self._before is None else CLOSES
            before, found, after = self._held.partition(mark)
            if not found:
                break
            self._held = after
            if not inside:
                shown = before.rstrip("\n")
                said, self._before = said + shown, before[len(shown) :]
                continue
            call = _call(before)
            if call is None:
                said += f"{self._before}{OPENS}{before}{CLOSES}"
            elif not (self._one and self._any):
                self._calls.append(call)
                self._any = True
            self._before = None
        if self._before is not None:
            return said
        shown = self._held[: len(self._held) - self._beginning()].rstrip("\n")
        self._held = self._held[len(shown) :]
        return said + shown

    def _beginning(self) -> int:
        """Length of the end that may begin a mark."""
        lengths = range(min(len(OPENS), len(self._held)), 0, -1)
        return next((length for length in lengths if OPENS.startswith(self._held[-length:])), 0)

    def flush(self) -> str:
        """What was held back, once nothing more can come."""
        held, self._held = self._held, ""
        return held if self._before is None else f"{self._before}{OPENS}{held}"

    def called(self) -> list[Call]:
        """What has been called since the last question."""
        calls, self._calls = self._calls, []
        return calls


class Call(msgspec.Struct, frozen=True):
    """`arguments` is JSON, as the model wrote it."""

    name: str
    arguments: str


def _call(text: str) -> Call | None:
    try:
        found = msgspec.json.decode(text)  # unlike Python's, it takes JSON alone: no NaN, no 1e999
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", {})
    return Call(found["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
