"""A tiny random base with a tiny tokenizer, and a table of rows that is quickly learned."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer, BertConfig, BertModel, LlamaForCausalLM

from softmux.tuning.bases.base import Base, as_base
from softmux.tuning.bases.head_base import HeadBase, open_head_base
from softmux.tuning.run import tune
from softmux.tuning.training.together import Together
from softmux.tuning.write import Report
from support.encoder_tokenizer import save as save_encoder
from support.encoder_tokenizer import word_piece
from support.recipe_methods import METHODS
from support.tiny_llama import tiny_llama
from support.toy_encoder_decoders import speaking

DATA = '[data]\nsource = "file"\npath = "rows.csv"\n'
TRAIN = "[train]\nsteps = {steps}\nbatch_rows = 8\nlearning_rate = 0.05\nwarmup_steps = 5\nvalidate_every = 5\n"
EVALUATE = '[evaluate]\nmetric = "exact"\nmax_tokens = 6\n'


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(folder)
    return folder


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of an encoder-decoder that answers the toy language's questions, by its architecture."""

    @cache
    def of(architecture: str) -> Path:
        return speaking(architecture, tmp_path_factory.mktemp("speaks") / architecture)

    return of


@pytest.fixture
def base(base_folder: Path) -> Base:
    """Loaded anew for each test, since PEFT takes hold of the model."""
    model = LlamaForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    return as_base(model, AutoTokenizer.from_pretrained(base_folder), "tiny-base")


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-encoder")
    tokenizer = save_encoder(word_piece(), folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def head_base(encoder_folder: Path) -> HeadBase:
    return open_head_base(str(encoder_folder), encoder_folder.name, "cpu")


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows.csv and recipe.toml into a folder of the test, and returns the recipe's path."""

    def write(method: str = "prompt_tuning", *, steps: int = 15, data: bytes | None = None, extra: str = "") -> Path:
        folder = tmp_path / "task"
        folder.mkdir(exist_ok=True)
        (folder / "rows.csv").write_bytes(rows_csv() if data is None else data)
        recipe = folder / "recipe.toml"
        recipe.write_text(
            f'task = "toy"\n{extra}{DATA}[method]\n{METHODS.get(method, method)}\n{TRAIN.format(steps=steps)}{EVALUATE}'
        )
        return recipe

    return write


@pytest.fixture
def run_tune(base: Base) -> Callable[..., Report]:
    """`tune` over the tiny base, quietly."""

    def run(recipe: Path, out: Path) -> Report:
        unsaved = Together(save_every=0)
        return tune(recipe, out, "cpu", base=base, console=Console(file=io.StringIO()), together=unsaved)

    return run


@pytest.fixture
def table() -> bytes:
    return rows_csv()


def rows_csv() -> bytes:
    """Two words that decide the answer, among mixed lengths of others."""
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["prompt", "answer"])
    for number in range(60):
        word = ("dull", "gripping")[number % 2]
        writer.writerow([f"{'far too long ' * (number % 3)}film {number} was {word}", (" no", " yes")[number % 2]])
    return table.getvalue().encode()
