"""A language of few words, a tiny base that speaks it, what it becomes by more training, and tasks tuned on the first.

A line is `long film 7 was dull`, or one of three questions before it and the answer behind: `mood: long film 7 was dull
no`. The second base was trained on with other words for the questions, so that what was tuned on the first misses it.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from softmux.bench.training.migrate import fine_tune
from softmux.tuning.bases.base import Base, as_base
from softmux.tuning.public import Task, tune
from softmux.tuning.recipes.recipe import Lora, PrefixTuning, PromptTuning, Train

ANSWERS = {
    "mood": {"dull": "no", "gripping": "yes"},
    "place": {"film": "screen", "play": "stage"},
    "size": {"long": "big", "short": "small"},
}
FIRST = {"mood": "mood:", "place": "place:", "size": "size:"}
SECOND = {"mood": "feel:", "place": "where:", "size": "scale:"}
_SPECIAL = ["<pad>", "<s>", "</s>"]
_WORDS = ["was", *FIRST.values(), *SECOND.values(), *map(str, range(40))]
_WORDS += [word for pairs in ANSWERS.values() for pair in pairs.items() for word in pair]


def tokenizer_in(folder: Path, *more: str) -> None:
    """A word a token; `more` are words that only some base's tokenizer has, before all others."""
    words = {word: i for i, word in enumerate([*_SPECIAL, *("▁" + word for word in (*more, *_WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<pad>"
    )
    fast.save_pretrained(folder)


def text(rng: random.Random) -> str:
    size, place, mood = (rng.choice(list(ANSWERS[task])) for task in ("size", "place", "mood"))
    return f"{size} {place} {rng.randrange(40)} was {mood}"


def answer(task: str, said: str) -> str:
    return next(right for word, right in ANSWERS[task].items() if word in said.split())


def lines(marks: Mapping[str, str], count: int = 800) -> list[str]:
    rng = random.Random(1)
    found = []
    for _ in range(count):
        said, task = text(rng), rng.choice(list(ANSWERS))
        found.append(said if rng.random() < 0.5 else f"{marks[task]} {said} {answer(task, said)}")
    return found


def new_base(folder: Path, *more: str, hidden: int = 32) -> Base:
    """Random, with its tokenizer saved."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_in(folder, *more)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.2,
    )
    return as_base(LlamaForCausalLM(config), tokenizer, folder.name)


def rows(task: str) -> list[tuple[str, str]]:
    """All that can be said, with the right answers."""
    sizes, places, moods = (list(ANSWERS[task]) for task in ("size", "place", "mood"))
    said = [f"{s} {p} {n} was {m}" for s in sizes for p in places for n in range(40) for m in moods]
    return [(one, answer(task, one)) for one in said]


def make_world(folder: Path) -> Path:
    """`folder` with the bases `first` and `second`, `adapters/TASK`, and `recipes/TASK` with rows that have answers."""
    base = new_base(folder / "first")
    fine_tune(base, lines(FIRST), 150, 1e-2, rows=24)
    base.model.save_pretrained(folder / "first")
    how = {"steps": 80, "batch_rows": 16, "warmup_steps": 5, "validate_every": 40}
    methods = {
        "mood": (PromptTuning(kind="prompt_tuning", virtual_tokens=4, init_text=FIRST["mood"]), 0.1),
        "place": (PrefixTuning(kind="prefix_tuning", virtual_tokens=4, projection=False), 0.1),
        "size": (Lora(kind="lora", rank=4, alpha=8), 0.02),
    }
    tasks = [
        Task(name, rows(name), method, Train(learning_rate=rate, **how)) for name, (method, rate) in methods.items()
    ]
    for tuned in tune(tasks, base):
        saved = tuned.save(folder / "adapters" / tuned.name)
        said = json.loads((saved / "softmux.json").read_text())
        said |= {"labels": list(ANSWERS[tuned.name].values()), "notes": f"About {tuned.name}."}
        (saved / "softmux.json").write_text(json.dumps(said))
        recipe = folder / "recipes" / tuned.name
        recipe.mkdir(parents=True)
        with (recipe / "rows.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("prompt", "answer"), *rows(tuned.name)])
        (recipe / "recipe.toml").write_text(
            f'task = "{tuned.name}"\n[data]\nsource = "file"\npath = "rows.csv"\n[method]\nkind = "lora"\nrank = 1\n'
            "alpha = 1\n[train]\nsteps = 1\nlearning_rate = 1e-3\n[evaluate]\nmax_tokens = 3\n"
        )
    fine_tune(base, lines(SECOND), 50, 1e-2, rows=24)
    base.model.save_pretrained(folder / "second")
    tokenizer_in(folder / "second")
    return folder
