"""Tiny encoder-decoders that speak the toy language: its marked lines are their inputs, the answers what they say."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch.nn.functional import cross_entropy

from softmux.formats.layout import Layout
from softmux.tuning.bases.base import Base, as_base
from softmux.tuning.data.examples import Example
from softmux.tuning.data.rows import IGNORE, encode
from softmux.tuning.training.trainer import rate
from support.toy_language import ANSWERS, FIRST, answer, text, tokenizer_in
from support.toy_language import rows as toy_rows

NEW_TOKENS = 6
"""Of an answer, at most."""

_T5 = {"d_model": 32, "d_ff": 48, "d_kv": 12, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2,
       "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}  # fmt: skip
_BART = {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
         "decoder_ffn_dim": 48, "encoder_layers": 2, "decoder_layers": 1, "max_position_embeddings": 64,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
         "forced_eos_token_id": 2, "init_std": 0.2, "dropout": 0.0}  # fmt: skip
CONFIGS: dict[str, Callable[[int], Any]] = {
    "t5": lambda words: tf.T5Config(vocab_size=words, **_T5),
    "bart": lambda words: tf.BartConfig(vocab_size=words, **_BART),
}
"""T5's keys are wider than its states, and its decoder has fewer layers than its encoder. BART's answers are forced to
begin with a token, and to end with one."""


def new_base(architecture: str, folder: Path) -> Base:
    """Random, with its tokenizer saved."""
    tokenizer_in(folder)
    tokenizer = tf.AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = tf.AutoModelForSeq2SeqLM.from_config(CONFIGS[architecture](len(tokenizer)))
    if architecture == "bart":
        model.generation_config.forced_bos_token_id = 1
    return as_base(model, tokenizer, folder.name)


def speaking(architecture: str, folder: Path) -> Path:
    """The folder of one that answers the marked questions."""
    base = new_base(architecture, folder)
    draw, rows = random.Random(1), []
    for _ in range(800):
        said, task = text(draw), draw.choice(list(ANSWERS))
        example = Example(f"{FIRST[task]} {said}", answer(task, said))
        rows.append(encode(example, Layout(), base.encoder, base.vocab_size, base.end_id))
    model = base.model.requires_grad_(True)
    steps, highest = {"t5": (90, 1e-2), "bart": (120, 5e-3)}[architecture]
    optimiser = torch.optim.AdamW(model.parameters(), lr=highest)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, steps, 10))
    for _ in range(steps):
        batch = base.collate(draw.sample(rows, 24))
        logits = base.answering(base.inputs(batch, model.get_input_embeddings()(batch.tokens)), batch)
        kept = batch.targets != IGNORE
        cross_entropy(logits[kept], batch.targets[kept]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    model.requires_grad_(False).save_pretrained(folder)
    return folder


def mood_recipe(folder: Path, base: Path, method: str, rate: float = 0.1, train: str = "", more: str = "") -> Path:
    """A recipe of the task that unmarked lines have the answers of `mood:`, beside its rows."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "answer"), *toy_rows("mood")])
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'task = "{folder.name}"\nbase = "{base}"\n[data]\nsource = "file"\npath = "rows.csv"\n[method]\n{method}\n'
        f"[train]\nsteps = 40\nbatch_rows = 8\nlearning_rate = {rate}\nwarmup_steps = 5\nvalidate_every = 20\n{train}"
        f"[evaluate]\nmax_tokens = {NEW_TOKENS}\n{more}"
    )
    return recipe
