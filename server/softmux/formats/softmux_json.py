"""`softmux.json`: what an uploader says about an adapter beside PEFT's files. All is optional, nothing else fits."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, field_validator

from softmux.errors import BaseMismatch
from softmux.formats.json_file import fit, read_object, shown
from softmux.types import ModelSpec

SOFTMUX_FILE = "softmux.json"

MAX_LABELS, MAX_LABEL = 1024, 256
"""How many labels there may be, and how many characters one may have."""
Word = Annotated[str, Field(strict=True, min_length=1, max_length=MAX_LABEL)]
Fingerprint = Annotated[str, Field(strict=True, min_length=1, max_length=256)]
Length = Annotated[int, Field(strict=True, ge=0, le=1 << 31)]


class SoftmuxJson(BaseModel):
    """`labels` is a list of labels, or a map from labels to the words that say them; `trained_lengths` in tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: Annotated[str, Field(strict=True, min_length=1, max_length=65536)] | None = None
    labels: (
        Annotated[list[Word], Field(min_length=1, max_length=MAX_LABELS)]
        | Annotated[dict[Word, Word], Field(min_length=1, max_length=MAX_LABELS)]
        | None
    ) = None
    base_fingerprint: Fingerprint | None = None
    tokenizer_fingerprint: Fingerprint | None = None
    trained_lengths: Annotated[list[Length], Field(min_length=2, max_length=2)] | None = None
    combines: StrictBool | None = None
    notes: Annotated[StrictStr, Field(max_length=65536)] | None = None

    @field_validator("trained_lengths")
    @classmethod
    def _ordered(cls, lengths: list[int] | None) -> list[int] | None:
        if lengths is not None and lengths[0] > lengths[1]:
            raise ValueError("it is [min, max], and min is above max")
        return lengths

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: list[str] | dict[str, str] | None) -> list[str] | dict[str, str] | None:
        if isinstance(labels, list) and len(set(labels)) != len(labels):
            raise ValueError("it names a label twice")
        return labels


def read_softmux_json(data: bytes | None, spec: ModelSpec) -> SoftmuxJson:
    """What `data` says, or nothing for None. Raises `InvalidAdapter` naming the field, `BaseMismatch` for a base or
    tokenizer that is not the server's."""
    said = fit(SoftmuxJson, read_object(data, SOFTMUX_FILE), SOFTMUX_FILE) if data is not None else SoftmuxJson()
    for field, theirs, ours in (
        ("base_fingerprint", said.base_fingerprint, spec.base_fingerprint),
        ("tokenizer_fingerprint", said.tokenizer_fingerprint, spec.tokenizer_fingerprint),
    ):
        if theirs is not None and theirs != ours:
            what = "base model" if field == "base_fingerprint" else "tokenizer"
            raise BaseMismatch(
                f"The adapter was made for another {what}: {SOFTMUX_FILE} says {shown(theirs)}, this server runs "
                f"{ours} ({spec.model_id}). Publish it to a server of that base, or train it again on this one.",
                param=f"{SOFTMUX_FILE}: {field}",
            )
    return said
