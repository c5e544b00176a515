"""An encoder-decoder as the frozen base of a task: what a user sends is its encoder's input, the answer its decoder's.

Inputs are laid out as everywhere (`lay_out`). Learned vectors stand in the encoder's input; a prefix stands in the
decoder's self-attention, dealt out to its layers in PEFT's way (`formats.methods.prefix`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from softmux.engine.decoder_tokens import DecoderTokens
from softmux.errors import InvalidRequest
from softmux.tuning.bases.base import Base
from softmux.tuning.bases.reading import Pick, Reading, Saying
from softmux.tuning.data.rows import Batch, Row, collate_apart
from softmux.tuning.recipes.recipe import LoraPrefixTuning, MethodRecipe, PrefixTuning, Train


@dataclass(frozen=True, slots=True)
class EncoderDecoderBase(Base):
    """As `Base`, of T5, BART and models of their build."""

    @property
    def task_type(self) -> str:
        return "SEQ_2_SEQ_LM"

    @property
    def says(self) -> DecoderTokens:
        return DecoderTokens.of(self.model, self.label)

    @property
    def vector_options(self) -> dict[str, Any]:
        """PEFT would make a second lot of vectors for the decoder, and give them to nobody."""
        return {"num_transformer_submodules": 1}

    @property
    def prefix_options(self) -> dict[str, Any]:
        """The decoder's heads, and the width of all their keys, which is not that of its states in all of T5's kin."""
        config = self.model.config
        heads = int(getattr(config, "decoder_attention_heads", None) or config.num_attention_heads)
        width = int(getattr(config, "d_kv", None) or config.hidden_size // heads)
        return {"num_attention_heads": heads, "token_dim": heads * width}

    def check(self, method: MethodRecipe, how: Train) -> None:
        """Raises `InvalidRequest` for what can't be tuned on it."""
        if how.dampening:
            raise InvalidRequest(
                f"train.dampening lets the input's own tokens weigh in the loss, and {self.label} is an "
                "encoder-decoder, which says none of them: leave it out.",
                param="train.dampening",
            )
        config = self.model.config
        layers, own = int(config.num_hidden_layers), decoder_layers(config)
        if isinstance(method, PrefixTuning | LoraPrefixTuning) and layers < own:
            raise InvalidRequest(
                f"PEFT makes a prefix of an encoder-decoder for as many layers as its encoder has, and {self.label} "
                f"has {layers} there and {own} in its decoder: tune prompt_tuning, p_tuning or lora on it.",
                param="method.kind",
            )

    @property
    def windows(self) -> tuple[int, ...]:
        """None to heed: nothing stands between a prefix and what the decoder says, which is padded behind."""
        return ()

    def collate(self, rows: Sequence[Row], prefix: int = 0) -> Batch:
        return collate_apart(rows, prefix=prefix, device=self.device)

    def inputs(self, batch: Batch, embeddings: torch.Tensor, past: Any = None) -> dict[str, Any]:
        return {"inputs_embeds": embeddings, "attention_mask": batch.mask, "past_key_values": past}

    def answering(self, inputs: dict[str, Any], batch: Batch) -> torch.Tensor:
        begins = self._begins(len(batch.targets))
        said = torch.cat([begins, batch.targets.clamp(min=0)[:, :-1]], dim=1)
        past = inputs["past_key_values"]
        logits: torch.Tensor = self.model(**inputs, decoder_input_ids=said, use_cache=past is not None).logits
        return logits[:, begins.shape[1] - 1 :]

    def context(self, prompt: int, answer: int, prefix: int = 0) -> int:
        """The longer of the two stacks: a prefix is before the answer, as are the decoder's first tokens but one."""
        return max(prompt - prefix, prefix + len(self.says.begins) - 1 + answer)

    def read(self, inputs: dict[str, Any]) -> Reading:
        mask, past = inputs["attention_mask"], inputs["past_key_values"]
        encoded = self.model.get_encoder()(inputs_embeds=inputs["inputs_embeds"], attention_mask=mask)[0]
        if past is None:
            past = EncoderDecoderCache(DynamicCache(), DynamicCache())
        begins, says = self._begins(len(mask)), self.says
        logits = ReadSource(self.model, self.eos_ids, says, encoded, mask, past).after(begins)
        return ReadSource(self.model, self.eos_ids, says, encoded, mask, past, logits[:, -1])

    def _begins(self, rows: int) -> torch.Tensor:
        return torch.tensor(self.says.begins, device=self.device).expand(rows, -1)


@dataclass(frozen=True, slots=True)
class ReadSource:
    """As `Read`, of inputs that an encoder has read, and the decoder what every answer begins with."""

    model: Any
    eos_ids: tuple[int, ...]
    says: DecoderTokens
    encoded: torch.Tensor
    mask: torch.Tensor
    past: Any
    logits: torch.Tensor | None = None

    def after(self, tokens: torch.Tensor, past: Any = None) -> torch.Tensor:
        """`[rows, tokens, vocabulary]` behind `past`, by default its own, which then has these `tokens` too."""
        logits: torch.Tensor = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.encoded), attention_mask=self.mask,
            decoder_input_ids=tokens, past_key_values=self.past if past is None else past, use_cache=True,
        ).logits  # fmt: skip
        return logits

    def scores(self, answers: Sequence[tuple[int, ...]]) -> torch.Tensor:
        assert self.logits is not None
        first = self.logits.log_softmax(-1)
        found = [first[:, answer[0]] for answer in answers]  # views: of answers that begin alike the same
        for number, answer in enumerate(answers):
            if answer[1:]:
                tokens = torch.tensor(answer, device=self.mask.device).expand(len(self.mask), -1)
                words = self.after(tokens[:, :-1], copy.deepcopy(self.past)).log_softmax(-1)
                found[number] = found[number] + words.gather(2, tokens[:, 1:, None])[:, :, 0].sum(1)
        return torch.stack(found, 1)

    def continued(self, max_tokens: int, pick: Pick) -> list[tuple[int, ...]]:
        """As a server has it: a forced first token counts as one of `max_tokens`, and is not among what is given back;
        where only `max_tokens` ends a text, the forced last one is its end."""
        steps = max_tokens + 1 - len(self.says.begins)
        if not steps:
            return [()] * len(self.mask)
        says, logits = Saying(self.eos_ids, pick), self.logits
        while True:
            assert logits is not None
            token = says.next(logits, self.says.last if says.tokens + 1 == steps else None)
            if says.tokens == steps or says.all_done:
                return says.ids()
            logits = self.after(token[:, None])[:, -1]


def decoder_layers(config: Any) -> int:
    """How many layers the decoder has, by a config that knows T5's or BART's name of it."""
    for name in ("num_decoder_layers", "decoder_layers"):
        if (found := getattr(config, name, None)) is not None:
            return int(found)
    return int(config.num_hidden_layers)
