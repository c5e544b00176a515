"""How alike an old base and a new one are: whether they speak the same tokens, and whether these mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cosine_similarity, normalize

from softmux.tuning.bases.base import Base
from softmux.tuning.frozen.output_head import Head, head_of

NEAR = 0.8
"""From this mean cosine on, embeddings of the same tokens are near enough for what was learned over the one base to be
where the other's begins. A base and what it was fine-tuned to lie above 0.99, bases of different trainings near 0."""

COMPARED = 4096
_PROBES = ("A gripping film, 2 hours long.", "  def f(x):\n\treturn x", "naïve – “ça va?” 東京")


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is kept of an old base once it has taught. `table` `[vocabulary, hidden]` are its input embeddings, `head`
    makes logits of its states."""

    tokenizer: Any
    table: torch.Tensor
    head: Head

    @classmethod
    def of(cls, base: Base) -> Remembered:
        return cls(base.tokenizer, base.model.get_input_embeddings().weight.detach(), head_of(base.model))


def same_words(old: Base, new_tokenizer: Any, new_vocabulary: int, new_eos: tuple[int, ...]) -> bool:
    """Whether a token means the same word to both, so that distributions over tokens can be compared."""
    ours, theirs = old.tokenizer, new_tokenizer
    return bool(
        old.vocab_size == new_vocabulary
        and set(old.eos_ids) == set(new_eos)
        and ours.get_vocab() == theirs.get_vocab()
        and all(ours(text)["input_ids"] == theirs(text)["input_ids"] for text in _PROBES)
    )


@torch.no_grad()
def nearness(old: Remembered, new: Base) -> float:
    """The mean cosine between both bases' embeddings of the tokens that both have; 0 where widths differ."""
    table = new.model.get_input_embeddings().weight
    if table.shape[1] != old.table.shape[1]:
        return 0.0
    pairs = _shared(old.tokenizer.get_vocab(), new.tokenizer.get_vocab(), len(old.table), len(table))
    if not pairs:
        return 0.0
    ours, theirs = (torch.tensor(ids, device=table.device) for ids in zip(*pairs, strict=True))
    return float(cosine_similarity(old.table[ours].float(), table[theirs].float()).mean())


def _shared(ours: Mapping[str, int], theirs: Mapping[str, int], most: int, their_most: int) -> list[tuple[int, int]]:
    """Up to `COMPARED` pairs of ids of the same word, spread over the vocabulary."""
    both = sorted((i, theirs[w]) for w, i in ours.items() if i < most and theirs.get(w, their_most) < their_most)
    return both[:: -(-len(both) // COMPARED)] if both else []


@torch.no_grad()
def translated(vectors: torch.Tensor, old: Remembered, new: Base) -> torch.Tensor:
    """`[k, new hidden]`: for each old vector the new base's embedding of the word that it is nearest to, by cosine over
    the old base's embeddings. Of a word that the new base says in several tokens, their mean."""
    like = normalize(vectors.to(old.table.device, torch.float32)) @ normalize(old.table.float()).T
    embedding = new.model.get_input_embeddings()
    rows = []
    for token in like.argmax(1).tolist():
        ids = new.encoder.encode(str(old.tokenizer.decode([token])), add_special_tokens=False) or [new.end_id]
        rows.append(embedding(torch.tensor(ids, device=new.device)).float().mean(0))
    return torch.stack(rows)
