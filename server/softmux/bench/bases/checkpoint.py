"""A checkpoint of random weights that a server can be started on: speed does not ask what they are.

`softmux bench checkpoint OUT --shape 1b --tokenizer DIR` has the shape of Llama-3.2-1B; `--like DIR` that of
another folder's config.json, as an encoder's, and its tokenizer. Weights are drawn on a GPU where there is one.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from softmux.bench.bases.random_base import SHAPES, config_of
from softmux.engine.engine import pick_device, pick_dtype
from softmux.errors import InvalidRequest

_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "spm.model",
    "vocab.txt",
    "vocab.json",
)
_BESIDE = (
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_LAYOUT = "give a model's folder in Hugging Face's layout."


def write_checkpoint(config: Any, tokenizer: Path, folder: Path, *, dtype: torch.dtype, device: torch.device) -> None:
    """Fills `folder`, which is empty or not there yet. Raises `InvalidRequest`, before anything is drawn, where it
    holds something, and where `tokenizer` holds none, or one with ids beyond the config's vocabulary; it may have
    fewer."""
    import transformers as tf

    files = _tokenizer_files(tokenizer, config)
    _make(folder)
    loads_as: Any = getattr(tf, (config.architectures or ["AutoModelForCausalLM"])[0], tf.AutoModelForCausalLM)
    make = getattr(loads_as, "_from_config", None) or loads_as.from_config
    torch.manual_seed(0)
    with device:
        module: Any = make(config, dtype=dtype)
    module.save_pretrained(folder)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def _check_apart(folder: Path, *read: Path | None) -> None:
    for source in read:
        if source is not None and folder.resolve() == source.resolve():
            raise InvalidRequest(
                f"{folder} is what the checkpoint is made after, and would be written over: name another folder.",
                param="OUT",
            )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = next(folder.iterdir(), None)
    except OSError as error:
        raise InvalidRequest(
            f"{folder} can not be written to ({error.strerror}): name a folder that can be made.", param="OUT"
        ) from None
    if held is not None:
        raise InvalidRequest(
            f"{folder} already holds {held.name}, and nothing is written over: name a folder that is empty or not "
            "there yet.",
            param="OUT",
        )


def _tokenizer_files(folder: Path, config: Any) -> list[Path]:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise InvalidRequest(f"{folder} holds no tokenizer: {_LAYOUT}", param="tokenizer")
    try:
        made: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each kind of tokenizer fails in its own way
        raise InvalidRequest(
            f"{folder} holds no tokenizer that loads ({_first_line(error)}): {_LAYOUT}", param="tokenizer"
        ) from None
    needed = max(made.get_vocab().values(), default=-1) + 1
    rows = getattr(config.get_text_config(), "vocab_size", 0)
    if needed > rows:
        raise InvalidRequest(
            f"The tokenizer in {folder} has {needed:,} ids, the model a vocabulary of {rows:,}: give a tokenizer that "
            "has no more.",
            param="tokenizer",
        )
    return [path for name in (*_VOCABULARIES, *_BESIDE) if (path := folder / name).is_file()]


def _config_like(folder: Path) -> Any:
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise InvalidRequest(f"{folder} holds no config.json: {_LAYOUT}", param="like")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"{folder / 'config.json'} can not be read ({_first_line(error)}): {_LAYOUT}", param="like"
        ) from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="OUT")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--shape", choices=SHAPES)
    what.add_argument("--like", type=Path, metavar="DIR", help="a folder with config.json and a tokenizer")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="a folder with a tokenizer; default: --like's")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    options = parser.parse_args(arguments)
    if options.tokenizer is None and options.like is None:
        parser.error("--shape needs a --tokenizer")
    _check_apart(options.folder, options.like, options.tokenizer)
    device = pick_device("auto")
    config = config_of(options.shape) if options.shape else _config_like(options.like)
    dtype = pick_dtype(options.dtype, device)
    write_checkpoint(config, options.tokenizer or options.like, options.folder, dtype=dtype, device=device)
    sys.stdout.write(f"{options.folder}\n")
    return 0
