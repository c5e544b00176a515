"""How a request's input is laid out as token ids. Serving and training both lay out here, so they cannot differ.

Virtual token i of the adapter is the id `-1 - i`; every other id is the tokenizer's.

Without a template: the virtual ids in order, then the prompt as the tokenizer encodes it by default (special tokens
included), or the ids given. With one: the slots are filled, then each run of text between learned tokens is encoded on
its own, literally; the tokenizer's leading special tokens (BOS) go before the first run, its trailing ones after the
last. So `{p:20}{prompt}` is prompt tuning. A prefix always leads: its ids stand for keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from softmux.errors import InvalidRequest
from softmux.formats.json_file import shown
from softmux.formats.template import Learned, Template, Text
from softmux.types import KV_METHODS, Manifest, Method


class Encoder(Protocol):
    """A tokenizer, as far as a layout needs one. Must be a pure function of its arguments."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]: ...


class TransformersEncoder:
    """An `Encoder` over a transformers tokenizer (anything whose call returns `input_ids`).

    Of a bare `tokenizers.Tokenizer`, `encode(text, add_special_tokens=…).ids` is the same, provided that its padding
    and truncation are off (`no_padding()`, `no_truncation()`).
    """

    def __init__(self, tokenizer: Callable[..., Any]) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        encoded = self._tokenizer(
            text, add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
        )
        return [int(token) for token in encoded["input_ids"]]


@dataclass(frozen=True, slots=True)
class Layout:
    """What of an adapter shapes its inputs. The bare model's is `Layout()`."""

    virtual_tokens: int = 0
    template: Template | None = None
    method: Method | None = None

    @classmethod
    def of(cls, manifest: Manifest | None) -> Layout:
        if manifest is None:
            return cls()
        template = Template.parse(manifest.template) if manifest.template is not None else None
        return cls(manifest.virtual_tokens, template, manifest.method)


def lay_out(
    adapter: Layout | Manifest | None,
    tokenizer: Encoder,
    *,
    vocab_size: int,
    prompt: str | Sequence[int] | None = None,
    variables: Mapping[str, str] | None = None,
) -> tuple[int, ...]:
    """The input ids of one sequence. `adapter` None is the bare model; `vocab_size` bounds the tokens' ids.

    Raises `InvalidRequest` with `param` `prompt` or `variables`. Length is not checked here.
    """
    layout = adapter if isinstance(adapter, Layout) else Layout.of(adapter)
    if layout.template is None:
        ids = virtual_ids(layout.virtual_tokens) + _plain(tokenizer, prompt, variables)
    else:
        lead = virtual_ids(layout.virtual_tokens) if layout.method in KV_METHODS else ()
        ids = lead + _filled(layout.template, tokenizer, _slot_values(layout.template, prompt, variables))
    if ids and max(ids) >= vocab_size:
        beyond = next(token for token in ids if token >= vocab_size)
        raise InvalidRequest(
            f"Token id {beyond} is beyond the model's vocabulary; ids are 0 to {vocab_size - 1}.", param="prompt"
        )
    if not ids or (layout.method in KV_METHODS and ids[-1] < 0):
        raise InvalidRequest("The prompt holds no token; give it at least one.", param="prompt")
    return ids


def virtual_ids(count: int, start: int = 0) -> tuple[int, ...]:
    """The ids of `count` learned tokens from the adapter's number `start` on."""
    return tuple(range(-1 - start, -1 - start - count, -1))


def _plain(
    tokenizer: Encoder, prompt: str | Sequence[int] | None, variables: Mapping[str, str] | None
) -> tuple[int, ...]:
    if variables:
        raise InvalidRequest("This task has no template, so nothing takes variables; send a prompt.", param="variables")
    if prompt is None:
        raise InvalidRequest("A prompt is needed: a string, or a list of token ids.", param="prompt")
    if isinstance(prompt, str):
        check_text(prompt, "prompt")
        return tuple(tokenizer.encode(prompt, add_special_tokens=True))
    if {*map(type, prompt)} == {int} and min(prompt) >= 0:
        return tuple(prompt)
    for token in prompt:
        if isinstance(token, bool) or token < 0:
            raise InvalidRequest(f"{token} is no token id; ids count from 0.", param="prompt")
    return tuple(int(token) for token in prompt)


def check_text(text: str, param: str) -> None:
    """JSON can carry half of a surrogate pair, which no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest("The text holds half of a surrogate pair; send valid Unicode.", param=param) from None


def _slot_values(
    template: Template, prompt: str | Sequence[int] | None, variables: Mapping[str, str] | None
) -> Mapping[str, str]:
    """The value of every slot, from `variables`, or from `prompt` where there is one slot."""
    slots = ", ".join(template.slots) or "none"
    if prompt is not None:
        if not isinstance(prompt, str):
            raise InvalidRequest("This task has a template, which takes text; send the prompt as text.", param="prompt")
        if variables:
            raise InvalidRequest("Send prompt or variables; both would fill the same slot.", param="variables")
        if len(template.slots) != 1:
            raise InvalidRequest(
                f"A prompt fills the slot of a template that has one; this task's slots are: {slots}. "
                "Send their values in variables.",
                param="prompt",
            )
        check_text(prompt, "prompt")
        return {template.slots[0]: prompt}
    values = variables or {}
    for slot in template.slots:
        if slot not in values:
            raise InvalidRequest(f"The slot “{slot}” has no value; this task's slots are: {slots}.", param="variables")
    for name, value in values.items():
        if name not in template.slots:
            raise InvalidRequest(
                f"The template has no slot “{shown(name)}”; this task's slots are: {slots}.", param="variables"
            )
        if not isinstance(value, str):
            raise InvalidRequest(f"The value of the slot “{name}” must be a string.", param="variables")
        check_text(value, "variables")
    return values


def _filled(template: Template, tokenizer: Encoder, values: Mapping[str, str]) -> tuple[int, ...]:
    runs = template.runs(values)
    texts = [index for index, run in enumerate(runs) if isinstance(run, Text)]
    whole = len(texts) == 1
    leading, trailing = ([], []) if whole else special_tokens(tokenizer)
    ids: list[int] = []
    learned = 0
    for index, run in enumerate(runs):
        if isinstance(run, Learned):
            ids += virtual_ids(run.count, learned)
            learned += run.count
        else:
            ids += leading if index == texts[0] else []
            ids += tokenizer.encode(run.text, add_special_tokens=whole)
            ids += trailing if index == texts[-1] else []
    return tuple(ids)


def special_tokens(tokenizer: Encoder) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text by default."""
    probe = "a"
    plain = tokenizer.encode(probe, add_special_tokens=False)
    wrapped = tokenizer.encode(probe, add_special_tokens=True)
    for start in range(len(wrapped) - len(plain) + 1):
        if wrapped[start : start + len(plain)] == plain:
            return wrapped[:start], wrapped[start + len(plain) :]
    raise InvalidRequest(
        "This model's tokenizer changes a text's own tokens where it adds special ones, so a template with text in "
        "several places can't be laid out; use one run of text.",
        param="variables",
    )
