"""A checkpoint of random weights that a server can be started on: speed does not ask what they are.

`python -m softmux.bench.checkpoint OUT --shape 1b --tokenizer DIR` has the shape of Llama-3.2-1B; `--like DIR` that of
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

from softmux.bench.random_base import SHAPES, config_of
from softmux.engine.engine import pick_device, pick_dtype
from softmux.errors import InvalidRequest

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)


def write_checkpoint(config: Any, tokenizer: Path, folder: Path, *, dtype: torch.dtype, device: torch.device) -> None:
    """Raises `InvalidRequest` where `tokenizer` holds none; its vocabulary may be smaller than the config's."""
    import transformers as tf

    files = [tokenizer / name for name in _TOKENIZER if (tokenizer / name).is_file()]
    if not files:
        raise InvalidRequest(f"{tokenizer} holds no tokenizer: give a model's folder in Hugging Face's layout.")
    loads_as: Any = getattr(tf, (config.architectures or ["AutoModelForCausalLM"])[0], tf.AutoModelForCausalLM)
    make = getattr(loads_as, "_from_config", None) or loads_as.from_config
    torch.manual_seed(0)
    with device:
        module: Any = make(config, dtype=dtype)
    module.save_pretrained(folder)
    for file in files:
        shutil.copyfile(file, folder / file.name)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m softmux.bench.checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="OUT")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--shape", choices=SHAPES)
    what.add_argument("--like", type=Path, metavar="DIR", help="a folder with config.json and a tokenizer")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="a folder with a tokenizer; default: --like's")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    options = parser.parse_args(arguments)
    if options.tokenizer is None and options.like is None:
        parser.error("--shape needs a --tokenizer")
    from transformers import AutoConfig

    device = pick_device("auto")
    config = config_of(options.shape) if options.shape else AutoConfig.from_pretrained(options.like)
    dtype = pick_dtype(options.dtype, device)
    write_checkpoint(config, options.tokenizer or options.like, options.folder, dtype=dtype, device=device)
    sys.stdout.write(f"{options.folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
