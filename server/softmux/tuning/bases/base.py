"""The frozen base model a task is tuned over: loaded once, in float32, never changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from softmux.demo import BASES, DemoName, demo_model
from softmux.engine.bases import family_of
from softmux.errors import InvalidRequest
from softmux.formats.layout import TransformersEncoder
from softmux.tuning.bases.reading import Read, Reading
from softmux.tuning.data.examples import BadData, Example
from softmux.tuning.data.rows import Batch, Row, collate
from softmux.tuning.recipes.recipe import MethodRecipe, Train

_POSITION_TABLES = {"wpe", "embed_positions"}
"""What GPT-2's and BART's kin call the modules that have a row for each position."""


@dataclass(frozen=True, slots=True)
class Base:
    """A decoder. `label` is what adapters say they were made for: a name, never a path of this machine.

    `eos_ids` end a generation; `end_id` is the one that answers are trained to end with.
    """

    model: Any
    tokenizer: Any
    label: str
    device: torch.device
    eos_ids: tuple[int, ...]

    @property
    def task_type(self) -> str:
        """What PEFT calls a task that generates on this kind of base."""
        return "CAUSAL_LM"

    @property
    def vector_options(self) -> dict[str, Any]:
        """What PEFT's configs of learned vectors need to be told on this kind of base."""
        return {}

    @property
    def prefix_options(self) -> dict[str, Any]:
        """The same, of its prefixes'."""
        return {}

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

    def check(self, method: MethodRecipe, how: Train) -> None:
        """Raises `InvalidRequest` for what can't be tuned on it."""

    @property
    def positions(self) -> int | None:
        """How many positions a row may have, where a table ends them; None where nothing does (rotary, distances)."""
        tables = {name.rpartition(".")[2] for name, _ in self.model.named_modules()} & _POSITION_TABLES
        return int(self.model.config.get_text_config().max_position_embeddings) if tables else None

    def context(self, prompt: int, answer: int, prefix: int = 0) -> int:
        """How many positions an input (learned tokens included, of which `prefix` are keys and values) and an answer of
        so many tokens need."""
        return prompt + answer

    def fitting(self, rows: Sequence[Row], prefix: int = 0) -> list[Row]:
        """Those that there are positions for."""
        most = self.positions
        return [row for row in rows if most is None or self.context(len(row.ids), len(row.answer), prefix) <= most]

    def check_room(
        self, examples: Sequence[Example], rows: Sequence[Row], prefix: int = 0, max_tokens: int = 0
    ) -> None:
        """Raises `BadData` for the first of the examples whose row, with `max_tokens` in the place of its answer where
        these are more, has too few positions."""
        most = self.positions
        for example, row in zip(examples, rows, strict=True):
            answer = max(len(row.answer), max_tokens)
            if most is not None and self.context(len(row.ids), answer, prefix) > most:
                raise BadData(
                    f"its {len(row.ids)} tokens, learned ones included, and an answer of {answer} have no room in the "
                    f"{most} positions that {self.label} has: shorten the text, or leave the row out",
                    file=example.file,
                    row=example.row,
                )

    # --- how it is asked ---------------------------------------------------------------------------------------------

    def collate(self, rows: Sequence[Row], prefix: int = 0) -> Batch:
        """Rows as one batch, whose first `prefix` learned tokens are keys and values."""
        return collate(rows, prefix=prefix, device=self.device)

    @property
    def windows(self) -> tuple[int, ...]:
        """How many columns of a batch a token sees, its own among them, in layers that do not see all before it."""
        config = self.model.config.get_text_config()
        found = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        return tuple(int(window) for window in found if window is not None)

    def batches(self, rows: Sequence[Row], size: int, *, prefix: int = 0, more: int = 0) -> Iterator[list[int]]:
        """Indices of the rows, at most `size` at once, of such as may be collated together while they grow by `more`
        tokens. The longest come first: what they take and leave has room for the others, where each batch longer than
        the last would be given new memory.

        These are all, but for rows behind a `prefix` that are longer than a window: padding stands between a prefix and
        its row, and would count in the window. They are collated only with those as long.
        """
        reach = min(self.windows, default=math.inf) - more if prefix else math.inf
        order = sorted(range(len(rows)), key=lambda i: rows[i].length, reverse=True)
        for _, run in groupby(order, key=lambda i: max(reach, rows[i].length)):
            alike = list(run)
            yield from (alike[start : start + size] for start in range(0, len(alike), size))

    def inputs(self, batch: Batch, embeddings: torch.Tensor, past: Any = None) -> dict[str, Any]:
        """What the model is called with for a batch. `embeddings` are its tokens' and learned vectors', `past` a cache
        that begins with learned keys and values."""
        return {
            "inputs_embeds": embeddings,
            "attention_mask": batch.mask,
            "position_ids": batch.positions,
            "past_key_values": past,
        }

    def answering(self, inputs: dict[str, Any], batch: Batch) -> torch.Tensor:
        """`[*batch.targets.shape, vocabulary]`: logits before each token of the batch's answers."""
        logits: torch.Tensor = self.model(**inputs, logits_to_keep=batch.targets.shape[1] + 1).logits[:, :-1]
        return logits

    def read(self, inputs: dict[str, Any]) -> Reading:
        """The inputs of a batch without answers, to go on from."""
        out = self.model(**inputs, use_cache=True, logits_to_keep=1)
        place = inputs["position_ids"][:, -1:] + 1
        return Read(self.model, self.eos_ids, out.logits[:, -1], out.past_key_values, inputs["attention_mask"], place)


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
    """The recipe's base; `device` is `auto`, `cpu` or `cuda`. Raises `InvalidRequest` where it generates nothing."""
    source = source_of(recipe, cache)
    config = config_of(source)
    if family_of(config) == "encoder":
        raise InvalidRequest(
            f"{recipe.base} is an encoder ({config.model_type}), and {recipe.method.kind} is tuned on decoders and "
            'encoder-decoders. Name one, or tune kind = "p_tuning_v2", which gives an encoder a head.',
            param="base",
        )
    return open_source(source, label_of(recipe), device)


def config_of(source: str) -> Any:
    """What is in the folder, or of the hub id, `source`. Raises `InvalidRequest` where no base is."""
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InvalidRequest(
            f"No base can be read from {source} ({reason}): give a folder as save_pretrained writes it, with its "
            "config.json, weights and tokenizer, or a hub id.",
            param="base",
        ) from error


def open_source(source: str, label: str, device: str = "auto") -> Base:
    """The base in the folder, or of the hub id, `source`: one that generates."""
    pair = family_of(config_of(source)) == "encoder-decoder"
    kind: Any = AutoModelForSeq2SeqLM if pair else AutoModelForCausalLM
    model = kind.from_pretrained(source, dtype=torch.float32)
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
    from softmux.tuning.bases.encoder_decoder import EncoderDecoderBase  # which is a `Base`

    model.requires_grad_(False)
    model.eval()
    stops = model.generation_config.eos_token_id
    if stops is None:
        stops = tokenizer.eos_token_id
    eos_ids = tuple(stops) if isinstance(stops, list | tuple) else (int(stops),)
    kind = EncoderDecoderBase if family_of(model.config) == "encoder-decoder" else Base
    return kind(model, tokenizer, label, next(model.parameters()).device, eos_ids)


@contextmanager
def tensor_cores() -> Iterator[None]:
    """On CUDA lets float32 products round their operands (TF32) while training; measuring stays in full float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
