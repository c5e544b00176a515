"""The frozen base model a task is tuned over: loaded once, in float32, never changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from softmux.demo import BASES, DemoName, demo_model
from softmux.engine.bases import family_of
from softmux.errors import InvalidRequest
from softmux.formats.layout import TransformersEncoder


@dataclass(frozen=True, slots=True)
class Base:
    """`label` is what adapters say they were made for: a name, never a path of this machine.

    `eos_ids` end a generation; `end_id` is the one that answers are trained to end with.
    """

    model: Any
    tokenizer: Any
    label: str
    device: torch.device
    eos_ids: tuple[int, ...]

    @property
    def encoder(self) -> TransformersEncoder:
        return TransformersEncoder(self.tokenizer)

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def end_id(self) -> int:
        return self.eos_ids[0]

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


class Method(Protocol):
    @property
    def kind(self) -> str: ...


class OverBase(Protocol):
    """A recipe, as far as it names its base."""

    @property
    def base(self) -> str: ...

    @property
    def demo(self) -> DemoName | None: ...

    @property
    def method(self) -> Method: ...


def source_of(recipe: OverBase, cache: Path | None = None) -> str:
    """Where the recipe's base is: a folder, or a hub id."""
    return str(demo_model(cache, recipe.demo)) if recipe.demo else recipe.base


def load_base(recipe: OverBase, device: str = "auto", cache: Path | None = None) -> Base:
    """The recipe's base; `device` is `auto`, `cpu` or `cuda`. Raises `InvalidRequest` where it is no decoder."""
    source = source_of(recipe, cache)
    config = AutoConfig.from_pretrained(source)
    if (family := family_of(config)) != "decoder":
        raise InvalidRequest(
            f"{recipe.base} is an {family} ({config.model_type}), and {recipe.method.kind} is tuned on decoders. Name "
            "one, or train with PEFT on this base and publish that folder: docs/adapters.md says what is served.",
            param="base",
        )
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    label = label_of(recipe)
    return as_base(model.to(device_of(device)), AutoTokenizer.from_pretrained(source), label)


def label_of(recipe: OverBase) -> str:
    """What adapters say they were made for: the base's name."""
    if recipe.demo:
        return BASES[recipe.demo].name
    folder = Path(recipe.base)
    return folder.resolve().name if folder.is_dir() else recipe.base


def device_of(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda`."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def as_base(model: Any, tokenizer: Any, label: str) -> Base:
    """A loaded model and tokenizer as a base: frozen, in evaluation mode, where it is."""
    model.requires_grad_(False)
    model.eval()
    stops = model.generation_config.eos_token_id
    if stops is None:
        stops = tokenizer.eos_token_id
    eos_ids = tuple(stops) if isinstance(stops, list | tuple) else (int(stops),)
    return Base(model, tokenizer, label, next(model.parameters()).device, eos_ids)


@contextmanager
def tensor_cores() -> Iterator[None]:
    """On CUDA lets float32 products round their operands (TF32) while training; measuring stays in full float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
