"""The turns of a chat, as OpenAI's clients send them: their own, and those that replies were made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from softmux.api.openai.fields import Refused
from softmux.api.schemas import Body, Many

Role = Literal["system", "developer", "user", "assistant"]


class ContentPart(Body):
    type: Annotated[Literal["text"], Refused("text alone is read: no images, audio or files")]
    text: str


class ChatMessage(Body):
    """A turn. Its parts of text are joined."""

    role: Role = Field(description="`developer` is another word for `system`.")
    content: str | Many[ContentPart]
    name: str | None = None
    refusal: Annotated[None, Refused("a refusal is text like any other")] = None
    tool_calls: Annotated[list[None] | None, Field(max_length=0), Refused("no tools are called")] = None
    function_call: Annotated[None, Refused("no functions are called")] = None
    audio: Annotated[None, Refused("text alone is read")] = None
    annotations: Annotated[list[None] | None, Field(max_length=0), Refused("text alone is read")] = None

    def as_turn(self) -> dict[str, str]:
        """As chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        turn = {"role": "system" if self.role == "developer" else self.role, "content": content}
        return turn if self.name is None else {**turn, "name": self.name}
