"""A trace: requests with times of their own, one JSON object a line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from softmux.errors import InvalidRequest


class TraceLine(BaseModel):
    """`{"seconds": 0.25, "task": "topic", "input_length": 120, "max_tokens": 64}`. A `prompt` (a text, or token ids)
    may stand in place of `input_length`; without `task`, the request is for the bare model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    task: str | None = None
    prompt: str | tuple[int, ...] | None = None
    input_length: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 64

    @model_validator(mode="after")
    def _one_of_two(self) -> TraceLine:
        if (self.prompt is None) == (self.input_length is None):
            raise ValueError("give either prompt or input_length")
        return self


def read_trace(path: Path) -> list[TraceLine]:
    """The trace's requests in order of time, the first one at its own second. Raises `InvalidRequest` naming the line
    that does not fit."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}.", param="trace") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(TraceLine.model_validate_json(line))
        except ValidationError as error:
            what = error.errors()[0]
            where = ".".join(map(str, what["loc"])) or "the line"
            raise InvalidRequest(f"{path}, line {number}: {where}: {what['msg']}.", param="trace") from error
    if not found:
        raise InvalidRequest(f"{path} holds no request.", param="trace")
    return sorted(found, key=lambda line: line.seconds)
