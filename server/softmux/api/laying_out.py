"""From what a request gives to the input ids of its sequences, and what can be told of them before anything runs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from softmux.api.chat import VARIABLES
from softmux.api.services import Resolved, Services
from softmux.api.tokenizer import LONG_TEXT, Tokenizer
from softmux.api.wish import Chat, Given, Prompt, Wish
from softmux.errors import ContextTooLong, InvalidRequest, WrongTaskKind
from softmux.formats.layout import Layout, lay_out


def check_generates(services: Services, resolved: Resolved) -> None:
    """Raises `WrongTaskKind` for what only classifies."""
    task = resolved.adapter.task if resolved.adapter is not None else None
    if resolved.manifest is not None and resolved.manifest.head is not None:
        raise WrongTaskKind(f"“{task}” classifies, and generates nothing: POST /v1/classify?task={task}.", param="task")
    if services.worker.spec.family == "encoder":
        raise WrongTaskKind(
            f"{services.worker.spec.model_id} is an encoder, and generates nothing: POST /v1/classify?task=… with a "
            "task that is published here.",
            param="task",
        )


async def laid_out(services: Services, resolved: Resolved, wish: Wish, given: Given) -> list[tuple[int, ...]]:
    """Each prompt's input ids, virtual ones included. Raises `InvalidRequest` or `ContextTooLong`."""
    tokenizer, vocab_size, variables = services.encoder(), services.worker.spec.vocab_size, given.variables
    prompts = given.prompts
    if given.chat is not None:
        long = given.chat.characters >= LONG_TEXT
        asked = resolved.layout, tokenizer, given.chat
        prompts = [await asyncio.to_thread(rendered, *asked) if long else rendered(*asked)]
    _check(services, wish, prompts)

    def all_of_them() -> list[tuple[int, ...]]:
        return [
            lay_out(resolved.layout, tokenizer, vocab_size=vocab_size, prompt=prompt, variables=variables)
            for prompt in prompts
        ]

    texts = [prompt for prompt in prompts if isinstance(prompt, str)] + list((variables or {}).values())
    if sum(map(len, texts)) >= LONG_TEXT:
        return await asyncio.to_thread(all_of_them)
    return all_of_them()


def bounded(services: Services, wish: Wish, inputs: Sequence[Sequence[int]]) -> Wish:
    """The wish with what the context has left as its `max_tokens`, where it asks for that. Raises `InvalidRequest` as
    `Wish.check` does."""
    if wish.to_the_end:
        spec = services.worker.spec
        taken = max(_lead(tokens) if spec.family == "encoder-decoder" else len(tokens) for tokens in inputs)
        left = max(1, spec.context_length - taken)  # the worker says so where there is nothing left
        wish = replace(wish, sampling=msgspec.structs.replace(wish.sampling, max_tokens=left))
    wish.check()
    return wish


def _lead(tokens: Sequence[int]) -> int:
    """How many virtual tokens lead."""
    return next((place for place, token in enumerate(tokens) if token >= 0), len(tokens))


def _check(services: Services, wish: Wish, prompts: Sequence[Prompt]) -> None:
    """What can be told before they are laid out."""
    spec, most = services.worker.spec, services.settings.max_waiting
    if len(prompts) * wish.samples > most:
        raise InvalidRequest(
            f"{len(prompts)} prompts with n = {wish.samples} are more sequences than this server takes at once "
            f"({most}); send several requests.",
            param="prompt",
        )
    for token, _ in wish.sampling.logit_bias:
        if token >= spec.vocab_size:
            raise InvalidRequest(
                f"logit_bias names token {token}; ids are 0 to {spec.vocab_size - 1}.", param="logit_bias"
            )
    for prompt in prompts:
        if isinstance(prompt, list) and len(prompt) > spec.context_length:
            raise ContextTooLong(
                f"This model's maximum context length is {spec.context_length} tokens here; the prompt has "
                f"{len(prompt)}: shorten it.",
                param="prompt",
            )


def rendered(layout: Layout, tokenizer: Tokenizer, chat: Chat) -> str | list[int]:
    """The chat as a prompt: by the model's chat template, or as what fills the one slot of a task's template. Raises
    `InvalidRequest`."""
    if layout.template is None:
        return tokenizer.render_chat(chat.messages, chat.tools, chat.variables)
    if chat.variables:
        raise InvalidRequest(
            "This task has a template, and no chat template is rendered; leave chat_template_kwargs out.",
            param=VARIABLES,
        )
    value = chat.slot_value
    if value is not None and len(layout.template.slots) == 1:
        return value
    one_turn = " A chat of one turn, by the user, fills the slot of a template that has one." if chat.fills_slot else ""
    raise InvalidRequest(f"This task has a template; send variables instead of messages.{one_turn}", param="messages")
