"""The turns of a chat, as OpenAI's clients send them: their own, and those that replies were made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from softmux.api.openai.fields import Refused
from softmux.api.openai.tools import ToolCall
from softmux.api.schemas import Body, Many, Role, as_told
from softmux.errors import InvalidRequest

_MOST_CALLS = 128


class ContentPart(Body):
    type: Annotated[Literal["text"], Refused("text alone is read: no images, audio or files")]
    text: str


class ChatMessage(Body):
    """A turn. Its parts of text are joined."""

    role: Role
    content: str | Many[ContentPart] | None = None
    name: str | None = None
    refusal: Annotated[None, Refused("a refusal is text like any other")] = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=_MOST_CALLS)] | None = Field(
        default=None, description="Of the assistant: what it called."
    )
    tool_call_id: str | None = Field(default=None, description="Of a tool: which call it answers.")
    function_call: Annotated[None, Refused("no functions are called")] = None
    audio: Annotated[None, Refused("text alone is read")] = None
    annotations: Annotated[list[None] | None, Field(max_length=0), Refused("text alone is read")] = None

    def as_turn(self) -> dict[str, Any]:
        """As chat templates take it. Raises `InvalidRequest`."""
        if self.tool_calls and self.role != "assistant":
            raise InvalidRequest("tool_calls are the assistant's; leave them out of other turns.", param="messages")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise InvalidRequest(
                "A turn of the role tool has a tool_call_id, and no other has one: the id of the call that it answers.",
                param="messages",
            )
        if self.content is None and not self.tool_calls:
            raise InvalidRequest("A turn of the messages has no content; send some.", param="messages")
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        turn: dict[str, Any] = {"role": as_told(self.role), "content": content}
        more = {"name": self.name, "tool_call_id": self.tool_call_id}
        turn |= {name: value for name, value in more.items() if value is not None}
        if self.tool_calls:
            turn["tool_calls"] = [call.as_turn() for call in self.tool_calls]
        return turn
